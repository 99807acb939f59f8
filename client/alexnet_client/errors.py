"""The exceptions a caller can act on, one class for each thing there is to do about them.

Owns the tree and nothing else: it never imports grpc. Only ``transport`` turns gRPC status codes into these.
"""


class ClientError(Exception):
    """Base of everything this package raises on purpose; its text names the cause and the remedy."""


class BadInput(ClientError):
    """The request is wrong and will stay wrong: do not retry it, mend it."""


class ImageError(BadInput):
    """The image cannot be read: not an image, truncated, or too large."""


class RequestRejected(BadInput):
    """The server refuses the request whatever its images are: no such model or release there, no permission."""


class Overloaded(ClientError):
    """The server is alive and refuses work for now (full queue, expired queue timeout): back off, then retry."""


class QueueFull(Overloaded):
    """Too much waits in this process already: send less, or let the call wait for room."""


class DeadlineExceeded(ClientError):
    """The deadline passed before the answer came."""


class Unavailable(ClientError):
    """No server answers there, or it is stopping: try another replica, or start one."""


class Closed(ClientError):
    """The client was used after it was closed."""


class ServerFault(ClientError):
    """The server failed while it worked on a request that was right; the same request may succeed elsewhere."""
