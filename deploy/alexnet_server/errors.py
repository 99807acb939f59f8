"""Errors of the launcher. A mistake of the user is ``alexnet_client.errors.BadInput`` instead."""


class LaunchError(Exception):
    """A program cannot be started or exited unexpectedly; the text contains the cause and the remedy."""
