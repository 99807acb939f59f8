"""What a fake server notes of a request, and what it is told to do with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio

Call: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Refusal: TypeAlias = tuple[grpc.StatusCode, str]
CLASSES = "classification"
"""The parameter of an output that asks for class names instead (Triton's classification extension)."""


@dataclass(frozen=True)
class Received:
    """An inference request without its images.

    Attributes:
        model_version: the release that was asked for; empty for any.
        input_name: of the first tensor.
        images: in that tensor.
        nbytes: of all contents.
        asks_labels: whether class names were asked for instead of tensors.
        parameters: such as ``{"timeout": 200_000}``, microseconds.
        metadata: what came with the call.
    """

    model_version: str
    input_name: str
    images: int
    nbytes: int
    asks_labels: bool
    parameters: Mapping[str, bool | int | float | str]
    metadata: tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True)
class Step:
    """What becomes of an inference request; the default is a right answer.

    Attributes:
        delay_s: on top of the server's own, seconds.
        fail: status and text to answer with.
        mangle: changes the answer (a ``ModelInferResponse``) before it is sent.
        hang: never answer.
        cut: drop the connection it came on, with all that is in flight there.
    """

    delay_s: float = 0.0
    fail: Refusal | None = None
    mangle: Callable[[Any], None] = lambda response: None
    hang: bool = False
    cut: bool = False


def record(request: Any, call: Call) -> Received:
    """The note of an inference request."""
    parameters = {name: getattr(each, each.WhichOneof("parameter_choice")) for name, each in request.parameters.items()}
    first = request.inputs[0] if request.inputs else None
    return Received(
        model_version=request.model_version,
        input_name=first.name if first else "",
        images=first.shape[0] if first and first.shape else 0,
        nbytes=sum(map(len, request.raw_input_contents)),
        asks_labels=any(CLASSES in output.parameters for output in request.outputs),
        parameters=parameters,
        metadata=tuple((key, value) for key, value in call.invocation_metadata() or ()),
    )
