"""The gRPC channel to one server, and the only place that sees gRPC status codes.

Everything above this module catches ``alexnet_client.errors``; ``error_from_status`` is the border.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from alexnet_client.connection import Connection
from alexnet_client.deadline import Deadline
from alexnet_client.errors import (
    BadInput,
    ClientError,
    Closed,
    DeadlineExceeded,
    Overloaded,
    RequestRejected,
    ServerFault,
    Unavailable,
)

_OVERLOAD = ("exceeds maximum queue size", "request timeout expired")
"""Triton 2.51 says UNAVAILABLE for a full queue and for an expired queue timeout: only the text tells them from a
server that is gone (core's scheduler_utils.cc and dynamic_batch_scheduler.cc)."""
_STOPPING = "has no available versions"
"""What Triton 2.51 says, as NOT_FOUND, of a model it has unloaded because it is stopping."""
_BAD_INPUT: dict[grpc.StatusCode, type[BadInput]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadInput,
    grpc.StatusCode.OUT_OF_RANGE: BadInput,
    grpc.StatusCode.RESOURCE_EXHAUSTED: BadInput,  # a message over a size limit
    grpc.StatusCode.NOT_FOUND: RequestRejected,
    grpc.StatusCode.FAILED_PRECONDITION: RequestRejected,
    grpc.StatusCode.ALREADY_EXISTS: RequestRejected,
    grpc.StatusCode.PERMISSION_DENIED: RequestRejected,
    grpc.StatusCode.UNAUTHENTICATED: RequestRejected,
    grpc.StatusCode.UNIMPLEMENTED: RequestRejected,
}


def error_from_status(code: grpc.StatusCode, details: str, target: str, timeout_s: float) -> ClientError:
    """The exception for a failed call: what the caller can do about it, not how gRPC names it."""
    said = details.removeprefix("[request id: <id_unknown>] ").strip() or code.name
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{target}: no answer within {timeout_s:g} s")
    if code is grpc.StatusCode.UNAVAILABLE or _STOPPING in said:
        return _unavailable(said, target)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        said = f"the server there does not speak the V2 inference protocol, or lacks this call ({said})"
    return _BAD_INPUT.get(code, ServerFault)(f"{target}: {said}")


def _unavailable(said: str, target: str) -> ClientError:
    """Triton gives one code four meanings; only the text tells them apart."""
    if any(text in said.lower() for text in _OVERLOAD):
        return Overloaded(f"{target}: {said}")
    if "protocol is restricted" in said.lower():
        return RequestRejected(f"{target}: that call needs the server's administration key ({said})")
    return Unavailable(f"{target}: no server answers there, or it is stopping; start one or check the address ({said})")


def _to_bytes(request: service_pb2.ModelInferRequest | bytes) -> bytes:
    return request if isinstance(request, bytes) else bytes(request.SerializeToString())


class Transport:
    """One server, or several behind one of gRPC's names. Made inside a running event loop; must be closed."""

    def __init__(self, target: str, connection: Connection | None = None) -> None:
        self.target, connection = target, connection or Connection()
        self._metadata = connection.metadata
        self._channels = [connection.open(target) for _ in range(connection.channels)]
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channels[0])
        infer = [
            channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=_to_bytes,
                response_deserializer=service_pb2.ModelInferResponse.FromString,
            )
            for channel in self._channels
        ]
        self._infer = itertools.cycle(infer)
        self._closed = False

    async def infer(
        self,
        request: service_pb2.ModelInferRequest | bytes,
        deadline: Deadline,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> service_pb2.ModelInferResponse:
        """Run one inference request, a message or its bytes; raises ``ClientError``."""
        return await self._call(next(self._infer), request, deadline, metadata)

    async def ready(self, deadline: Deadline) -> bool:
        """Whether the server and all its models are ready."""
        return bool((await self._call(self._stub.ServerReady, service_pb2.ServerReadyRequest(), deadline)).ready)

    async def model_ready(self, model: str, deadline: Deadline, *, version: str = "") -> bool:
        """Whether one model is ready, or one version of it."""
        request = service_pb2.ModelReadyRequest(name=model, version=version)
        return bool((await self._call(self._stub.ModelReady, request, deadline)).ready)

    async def server_metadata(self, deadline: Deadline) -> service_pb2.ServerMetadataResponse:
        """Name, version and extensions of the server."""
        return await self._call(self._stub.ServerMetadata, service_pb2.ServerMetadataRequest(), deadline)

    async def model_metadata(self, model: str, deadline: Deadline) -> service_pb2.ModelMetadataResponse:
        """Versions, inputs and outputs of a model."""
        request = service_pb2.ModelMetadataRequest(name=model)
        return await self._call(self._stub.ModelMetadata, request, deadline)

    async def model_config(self, model: str, deadline: Deadline) -> service_pb2.ModelConfigResponse:
        """The model's configuration as the server runs it."""
        return await self._call(self._stub.ModelConfig, service_pb2.ModelConfigRequest(name=model), deadline)

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._closed = True
        for channel in self._channels:
            await channel.close(None)

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    async def _call(
        self, method: Any, request: Any, deadline: Deadline, metadata: tuple[tuple[str, str], ...] = ()
    ) -> Any:
        if self._closed:
            raise Closed(f"{self.target}: this client is closed")
        left = deadline.remaining_s("waiting to send")
        try:
            return await method(request, timeout=left, metadata=(*self._metadata, *metadata) or None)
        except grpc.aio.AioRpcError as error:
            raise error_from_status(error.code(), error.details() or "", self.target, deadline.timeout_s) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            # Closing cancels the call, and not the task that waits for it.
            if self.closed and task is not None and not task.cancelling():
                raise Closed(f"{self.target}: this client is closed") from None
            raise
        except grpc.aio.UsageError as error:
            raise Closed(f"{self.target}: this client is closed") from error
