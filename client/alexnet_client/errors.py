"""The exceptions of this package, organised by what the caller can do about them.

This module never imports grpc; only ``transport`` converts gRPC status codes to these exceptions.
"""


class ClientError(Exception):
    """Base class of all errors of this package. The message names the cause and a remedy."""


class BadInput(ClientError):
    """The request is invalid: do not retry it, fix it."""


class ImageError(BadInput):
    """The image cannot be read: not an image, truncated, or too large."""


class RequestRejected(BadInput):
    """The server rejects every such request, whatever the images are: unknown model or version, or no permission."""


class Overloaded(ClientError):
    """The server works but its queue is full or a queue timeout expired: wait, then retry."""


class QueueFull(Overloaded):
    """The queue of this client is full: send fewer images, or let calls wait for a place in the queue."""


class DeadlineExceeded(ClientError):
    """The deadline passed before the result arrived."""


class Unavailable(ClientError):
    """The server does not respond or is stopping: try another replica, or start one."""


class Closed(ClientError):
    """The client is closed."""


class ServerFault(ClientError):
    """The server failed to process a valid request; another replica may succeed."""
