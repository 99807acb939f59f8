"""``FakeServer``: a fake V2 inference server for tests.

It uses real gRPC on 127.0.0.1 and simulates rare situations on demand: slow responses, failures, hanging requests, restarts. It
runs no network: the class of an image is the red value of its first pixel, modulo the number of classes, so that tests can match
results and images. It never imports ``codec``, because it is used to test it.
"""
# ruff: noqa: N802  the protocol defines the names of the calls

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from alexnet_client.connection import MAX_MESSAGE_BYTES
from alexnet_client.errors import BadInput, ImageError
from alexnet_client.fake.model import respond
from alexnet_client.fake.script import Call, Received, Status, Step, record
from alexnet_client.images import CROP

T = TypeVar("T")
TENSORS = ("logits", "probabilities")
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # otherwise two servers on one port would share the calls
)
QUEUE_FULL = grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"
"""Status of Triton 2.51 for a full queue."""


class FakeServer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # it has no types
    """A fake server. Without an event loop: ``with FakeServer().in_thread() as server``.

        async with FakeServer(labels=("cat", "dog")) as server, Client(server.target) as client:
            server.next(Step(fail=(grpc.StatusCode.INTERNAL, "out of memory")), times=2)

    Attributes that may be set at any time and from any thread:
        version: version of the model.
        ready: response of health checks.
        outputs: names of the outputs in the model's metadata.
        delay_s: duration of an inference, seconds.
        at_once: number of concurrent inferences; other requests are queued; 0 for no limit.
        queue_size: number of queued requests; more are rejected as by Triton; 0 for no limit.
        fail, mangle, hang: as in ``Step``, for each request.
        choose: returns the step of a request, instead of ``fail``, ``mangle`` and ``hang``; steps of ``next`` are used first.

    Attributes to read:
        requests: the latest 10,000 inference requests, including the requests for labels.
        working, queued: number of inferences in progress and of queued requests.

    Args:
        labels: class names.
        max_batch_size: largest number of images per request.
        model: name of the model.
        encoded: the model reads image files instead of pixels.
        port: on 127.0.0.1; 0 for a free one, which ``stop`` and ``start`` keep.
    """

    def __init__(
        self,
        *,
        labels: Sequence[str] = ("cat", "dog"),
        max_batch_size: int = 8,
        model: str = "alexnet",
        encoded: bool = False,
        port: int = 0,
    ) -> None:
        self.labels, self.max_batch_size, self.model, self.port = tuple(labels), max_batch_size, model, port
        # The input of the real model is "image": another name detects clients that do not fetch it.
        self._input = ("encoded_image", "BYTES", [1]) if encoded else ("pixels", "UINT8", [CROP, CROP, 3])
        self.version, self.ready, self.outputs = "1", True, TENSORS
        self.delay_s, self.at_once, self.queue_size = 0.0, 0, 0
        self.fail: Status | None = None
        self.mangle: Callable[[Any], None] = lambda response: None
        self.hang = False
        self.choose: Callable[[Received], Step] = lambda _: Step(fail=self.fail, mangle=self.mangle, hang=self.hang)
        self.requests: deque[Received] = deque(maxlen=10_000)
        self.working = self.queued = 0
        self._next: deque[Step] = deque()
        self._freed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    @property
    def target(self) -> str:
        """host:port, for ``Client``."""
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; after ``stop``, on the same port again. Raises ``BadInput`` if the port is in use."""
        self._loop = asyncio.get_running_loop()
        self._server = grpc.aio.server(options=OPTIONS)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        try:
            self.port = self._server.add_insecure_port(self.target)
        except RuntimeError as error:
            raise BadInput(f"{self.target}: cannot listen there, the port is in use") from error
        await self._server.start()

    async def stop(self, *, grace_s: float = 0.0) -> None:
        """Stop listening. Calls in flight have ``grace_s`` seconds to end; 0 simulates a killed process."""
        server, self._server = self._server, None
        if server is not None:
            if not grace_s:
                self.cut()
            await server.stop(grace_s or None)

    @contextmanager
    def in_thread(self) -> Iterator[Self]:
        """Run the server in an event loop on its own thread."""
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = loop = runner.get_loop()

        def work() -> None:
            with runner:
                loop.run_forever()

        thread = threading.Thread(target=work, name="alexnet-client fake server", daemon=True)
        thread.start()
        try:
            self.run(self.start())
            yield self
        finally:
            self.run(self.stop())
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's event loop, from another thread: ``server.run(server.stop())``."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def next(self, *steps: Step, times: int = 1) -> None:
        """Use these steps for the next inference requests, one each, repeated ``times`` times."""
        self._next.extend(steps * times)

    def cut(self, peer: str = "") -> None:
        """Close the connection to ``peer`` (gRPC's name of it), or all connections, with the calls in flight.

        gRPC has no function for this: the sockets are found among the descriptors of this process by the server's port.
        """
        for each in filter(Path.is_socket, Path("/dev/fd").iterdir()):
            with suppress(OSError), socket.fromfd(int(each.name), socket.AF_INET, socket.SOCK_STREAM) as found:
                other = found.getpeername()[1:2]  # raises OSError for the listening socket
                if found.getsockname()[1:2] == (self.port,) and (not peer or peer.endswith(f":{other[0]}")):
                    found.shutdown(socket.SHUT_RDWR)

    async def ServerReady(self, _: Any, __: Call) -> Any:
        return pb.ServerReadyResponse(ready=self.ready)

    async def ServerMetadata(self, _: Any, __: Call) -> Any:
        return pb.ServerMetadataResponse(name="fake", version="9.9.9")

    async def ModelReady(self, request: Any, _: Call) -> Any:
        return pb.ModelReadyResponse(ready=self.ready and request.name == self.model)

    async def ModelMetadata(self, request: Any, call: Call) -> Any:
        await self._check_model(request.name, request.version, call)
        name, datatype, shape = self._input
        response = pb.ModelMetadataResponse(name=self.model, versions=[self.version])
        response.inputs.add(name=name, datatype=datatype, shape=[-1, *shape])
        for output in self.outputs:
            response.outputs.add(name=output, datatype="FP32", shape=[-1, len(self.labels)])
        return response

    async def ModelConfig(self, request: Any, call: Call) -> Any:
        await self._check_model(request.name, request.version, call)
        response = pb.ModelConfigResponse()
        response.config.name, response.config.max_batch_size = self.model, self.max_batch_size
        return response

    async def ModelInfer(self, request: Any, call: Call) -> Any:
        received = record(request, call)
        self.requests.append(received)
        step = self._next.popleft() if self._next else self.choose(received)
        if self.queue_size and self._full and self.queued >= self.queue_size:
            await call.abort(*QUEUE_FULL)
        async with self._slot():
            await asyncio.sleep(self.delay_s + step.delay_s)
            if step.cut:
                self.cut(call.peer())
            if step.cut or step.hang:
                await asyncio.Event().wait()
        if step.fail is not None:
            await call.abort(*step.fail)
        await self._check_model(request.model_name, request.model_version, call)
        try:
            self._check_tensors(request)
            response = respond(request, version=self.version, labels=self.labels)
        except (ImageError, ValueError, struct.error) as error:
            await call.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        step.mangle(response)
        return response

    @property
    def _full(self) -> bool:
        return 0 < self.at_once <= self.working

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Wait for one of the ``at_once`` slots."""
        self.queued += 1
        try:
            async with self._freed:
                await self._freed.wait_for(lambda: not self._full)
                self.working += 1
        finally:
            self.queued -= 1
        try:
            yield
        finally:
            self.working -= 1
            async with self._freed:
                self._freed.notify_all()

    async def _check_model(self, model: str, version: str, call: Call) -> None:
        if model != self.model or version not in ("", self.version):
            of = f" version {version}" if version else ""
            await call.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{model}'{of} is not found")

    def _check_tensors(self, request: Any) -> None:
        """Raise ``ValueError`` if the inputs or the requested outputs do not match the model."""
        found = [(each.name, each.datatype, list(each.shape[1:])) for each in request.inputs]
        wanted = [output.name for output in request.outputs]
        if found != [self._input] or len(request.raw_input_contents) != 1 or not set(wanted) <= set(TENSORS):
            raise ValueError(f"expected {self._input} and outputs {TENSORS}, got {found} and {wanted}")
        if not 0 < request.inputs[0].shape[0] <= self.max_batch_size:
            raise ValueError(f"inference request batch-size must be <= {self.max_batch_size} for '{self.model}'")
