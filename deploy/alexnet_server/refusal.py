"""A request that gets an error while its batch mates get answers. Imported inside Triton's Python stub alone."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils


class RequestRejected(Exception):
    """One request cannot be run; the others of its batch can.

    Args:
        text: the cause, for the caller.
        code: one of ``pb_utils.TritonError``'s.
    """

    def __init__(self, text: str, code: Any) -> None:
        super().__init__(text)
        self.text, self.code = text, code

    def response(self) -> Any:
        """The error as Triton wants it."""
        return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(self.text, self.code))


def refuse_cancelled(request: Any) -> None:
    """Raises ``RequestRejected`` if nobody waits for the answer any more."""
    if request.is_cancelled():
        raise RequestRejected("the caller cancelled this request", pb_utils.TritonError.CANCELLED)
