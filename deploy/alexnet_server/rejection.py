"""Reject one request while the other requests of its batch succeed. Imported only in Triton's Python stub process."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils


class RequestRejected(Exception):
    """One request cannot be executed: the cause, for the client, and a status code of ``pb_utils.TritonError``."""

    def __init__(self, text: str, code: Any) -> None:
        super().__init__(text)
        self.text, self.code = text, code

    def response(self) -> Any:
        """The error response for Triton."""
        return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(self.text, self.code))


def reject_cancelled(request: Any) -> None:
    """Raise ``RequestRejected`` if the client cancelled the request."""
    if request.is_cancelled():
        raise RequestRejected("the client cancelled this request", pb_utils.TritonError.CANCELLED)
