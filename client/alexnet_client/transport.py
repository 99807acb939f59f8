"""The gRPC channel to one server. The only module that handles gRPC status codes; all others use ``alexnet_client.errors``."""

from __future__ import annotations

import asyncio
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
"""Triton 2.51 returns UNAVAILABLE for a full queue and for an expired queue timeout. Only the message distinguishes them from a
server that does not respond (scheduler_utils.cc and dynamic_batch_scheduler.cc in triton-inference-server/core)."""
_STOPPING = "has no available versions"
"""Message of Triton 2.51 (NOT_FOUND) for a model that was unloaded because the server is stopping."""
_BAD_INPUT: dict[grpc.StatusCode, type[BadInput]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadInput,
    grpc.StatusCode.OUT_OF_RANGE: BadInput,
    grpc.StatusCode.RESOURCE_EXHAUSTED: BadInput,  # the message exceeds a size limit
    grpc.StatusCode.NOT_FOUND: RequestRejected,
    grpc.StatusCode.FAILED_PRECONDITION: RequestRejected,
    grpc.StatusCode.ALREADY_EXISTS: RequestRejected,
    grpc.StatusCode.PERMISSION_DENIED: RequestRejected,
    grpc.StatusCode.UNAUTHENTICATED: RequestRejected,
    grpc.StatusCode.UNIMPLEMENTED: RequestRejected,
}


def error_from_status(code: grpc.StatusCode, details: str, target: str, timeout_s: float) -> ClientError:
    """Convert the status of a failed call to an exception."""
    message = details.removeprefix("[request id: <id_unknown>] ").strip() or code.name
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{target}: no response within {timeout_s:g} s")
    if code is grpc.StatusCode.UNAVAILABLE or _STOPPING in message:
        return _unavailable(message, target)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        message = f"the server does not implement the V2 inference protocol, or not this call ({message})"
    return _BAD_INPUT.get(code, ServerFault)(f"{target}: {message}")


def _unavailable(message: str, target: str) -> ClientError:
    """Triton uses UNAVAILABLE for four causes; only the message distinguishes them."""
    if any(text in message.lower() for text in _OVERLOAD):
        return Overloaded(f"{target}: {message}")
    if "protocol is restricted" in message.lower():
        return RequestRejected(f"{target}: this call requires the administration key of the server ({message})")
    return Unavailable(
        f"{target}: no server responds, or it is stopping; start a server or check the address ({message})"
    )


def _to_bytes(request: service_pb2.ModelInferRequest | bytes) -> bytes:
    return request if isinstance(request, bytes) else bytes(request.SerializeToString())


class Transport:
    """A channel to one server. Create it in a running event loop and close it."""

    def __init__(self, target: str, connection: Connection | None = None) -> None:
        self.target, connection = target, connection or Connection()
        self._metadata = connection.metadata
        self._channel = connection.open(target)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer: Any = self._channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=_to_bytes,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        self._closed = False

    async def infer(
        self,
        request: service_pb2.ModelInferRequest | bytes,
        deadline: Deadline,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> service_pb2.ModelInferResponse:
        """Run one inference request, a message or its bytes. Raises ``ClientError``."""
        return await self._call(self._infer, request, deadline, metadata)

    async def ready(self, deadline: Deadline) -> bool:
        """Whether the server and all its models are ready."""
        return bool((await self._call(self._stub.ServerReady, service_pb2.ServerReadyRequest(), deadline)).ready)

    async def model_ready(self, model: str, deadline: Deadline) -> bool:
        """Whether a model is ready."""
        return bool(
            (await self._call(self._stub.ModelReady, service_pb2.ModelReadyRequest(name=model), deadline)).ready
        )

    async def server_metadata(self, deadline: Deadline) -> service_pb2.ServerMetadataResponse:
        """Name, version and extensions of the server."""
        return await self._call(self._stub.ServerMetadata, service_pb2.ServerMetadataRequest(), deadline)

    async def model_metadata(self, model: str, deadline: Deadline) -> service_pb2.ModelMetadataResponse:
        """Versions, inputs and outputs of a model."""
        request = service_pb2.ModelMetadataRequest(name=model)
        return await self._call(self._stub.ModelMetadata, request, deadline)

    async def model_config(self, model: str, deadline: Deadline) -> service_pb2.ModelConfigResponse:
        """Configuration of a model on the server."""
        return await self._call(self._stub.ModelConfig, service_pb2.ModelConfigRequest(name=model), deadline)

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._closed = True
        await self._channel.close(None)

    async def _call(
        self, method: Any, request: Any, deadline: Deadline, metadata: tuple[tuple[str, str], ...] = ()
    ) -> Any:
        left = deadline.remaining_s("waiting to send")
        try:
            return await method(request, timeout=left, metadata=(*self._metadata, *metadata) or None)
        except grpc.aio.AioRpcError as error:
            raise error_from_status(error.code(), error.details() or "", self.target, deadline.timeout_s) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            # Closing the channel cancels the call, but not the task that awaits it.
            if self._closed and task is not None and not task.cancelling():
                raise Closed(f"{self.target}: this client is closed") from None
            raise
        except grpc.aio.UsageError as error:
            raise Closed(f"{self.target}: this client is closed") from error
