"""What the fake server records of a request, and the instructions for its response."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio

Call: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Status: TypeAlias = tuple[grpc.StatusCode, str]
CLASSES = "classification"
"""Parameter of an output that requests class names instead of a tensor (classification extension of Triton)."""


@dataclass(frozen=True)
class Received:
    """An inference request without its images.

    Attributes:
        model_version: requested version; empty for any.
        input_name: name of the first input tensor.
        images: number of images in this tensor.
        requests_labels: the request is for class names instead of tensors.
        parameters: such as ``{"timeout": 200_000}``, microseconds.
        metadata: gRPC metadata of the call.
    """

    model_version: str
    input_name: str
    images: int
    requests_labels: bool
    parameters: Mapping[str, bool | int | float | str]
    metadata: tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True)
class Step:
    """Instructions for one inference request; the default is a correct response.

    Attributes:
        delay_s: added to the delay of the server, seconds.
        fail: status code and message of the response.
        mangle: modifies the response (a ``ModelInferResponse``) before it is sent.
        hang: never respond.
        cut: close the connection of the request, with all calls in flight on it.
    """

    delay_s: float = 0.0
    fail: Status | None = None
    mangle: Callable[[Any], None] = lambda response: None
    hang: bool = False
    cut: bool = False


def record(request: Any, call: Call) -> Received:
    """The record of an inference request."""
    parameters = {name: getattr(each, each.WhichOneof("parameter_choice")) for name, each in request.parameters.items()}
    first = request.inputs[0] if request.inputs else None
    return Received(
        model_version=request.model_version,
        input_name=first.name if first else "",
        images=first.shape[0] if first and first.shape else 0,
        requests_labels=any(CLASSES in output.parameters for output in request.outputs),
        parameters=parameters,
        metadata=tuple((key, value) for key, value in call.invocation_metadata() or ()),
    )
