"""The exception of a failed gate. Mistakes of the user are ``alexnet_client.errors.BadInput``."""


class GateFailed(Exception):
    """An exported model does not match its checkpoint or lost too much accuracy; it is not published."""
