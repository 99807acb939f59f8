"""Errors that are the user's to mend: the command line prints their text alone, without a traceback."""


class LaunchError(Exception):
    """Triton cannot be started, or ended by itself; the text names the cause and the remedy."""
