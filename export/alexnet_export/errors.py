"""Errors that are the user's to mend: the command line prints their text alone, without a traceback."""


class UserError(Exception):
    """Something given to the program is wrong; the text names the cause and the remedy."""


class GateFailed(Exception):
    """An exported model did not prove equal to its source, so nothing is published."""
