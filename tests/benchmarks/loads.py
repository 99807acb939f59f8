"""Loads on a server, and the same arithmetic without one: images a second, and seconds of each request."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import grpc.aio
import numpy as np
import onnxruntime as ort
from tritonclient.grpc import service_pb2, service_pb2_grpc

from alexnet_client import BatchOptions
from alexnet_client.admin import admin_metadata
from alexnet_client.codec import encode_request
from alexnet_client.connection import CHANNEL_OPTIONS
from alexnet_load.options import NO_BATCHING as SEPARATE_CLIENTS

INFER, TIMEOUT_S = "/inference.GRPCInferenceService/ModelInfer", 60.0
NO_BATCHING = BatchOptions(**SEPARATE_CLIENTS)
"""For clients that stand for many separate ones: every call is a request of its own, sent at once."""
Ask = Callable[[int], Awaitable[Any]]
"""Sends the request of a caller, by its number."""


@dataclass
class Measured:
    """What a run did: images a second, and how long each request took, seconds."""

    rate: float = 0.0
    latencies_s: list[float] = field(default_factory=list)


async def closed_loop(ask: Ask, *, images: int, in_flight: int, seconds: float) -> Measured:
    """Callers who each send the next request when the last is answered."""
    found, answered = Measured(), 0
    end = time.perf_counter() + seconds

    async def call(caller: int) -> None:
        nonlocal answered
        while (sent := time.perf_counter()) < end:
            await ask(caller)
            found.latencies_s.append(time.perf_counter() - sent)
            answered += images

    began = time.perf_counter()
    await asyncio.gather(*(call(caller) for caller in range(in_flight)))
    found.rate = answered / (time.perf_counter() - began)
    return found


async def open_loop(ask: Ask, *, rate: float, seconds: float, seed: int = 0) -> Measured:
    """Requests at random times (Poisson), whatever becomes of those before; seconds count from the planned time."""
    found = Measured()
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    began = time.perf_counter()

    async def call(caller: int, planned: float) -> None:
        await ask(caller)
        found.latencies_s.append(time.perf_counter() - planned)

    tasks = []
    for caller, planned in enumerate(began + np.cumsum(gaps)):
        await asyncio.sleep(max(0.0, planned - time.perf_counter()))
        tasks.append(asyncio.create_task(call(caller, planned)))
    await asyncio.gather(*tasks)
    found.rate = len(tasks) / (time.perf_counter() - began)
    return found


@contextmanager
def through_shared_memory(target: str, images: np.ndarray, region: str) -> Iterator[Ask]:
    """Requests whose images lie in shared memory: only their place goes over the wire. Inside a running loop."""
    memory = SharedMemory(create=True, size=images.nbytes)
    try:
        np.ndarray(images.shape, images.dtype, memory.buf)[:] = images
        with grpc.insecure_channel(target) as channel:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).SystemSharedMemoryRegister(
                service_pb2.SystemSharedMemoryRegisterRequest(
                    name=region, key=f"/{memory.name}", byte_size=images.nbytes
                ),
                metadata=admin_metadata(target),
            )
        request = service_pb2.ModelInferRequest(model_name="alexnet")
        tensor = request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
        tensor.parameters["shared_memory_region"].string_param = region
        tensor.parameters["shared_memory_byte_size"].int64_param = images.nbytes
        for name in ("logits", "probabilities"):
            request.outputs.add(name=name)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.aio.insecure_channel(target))
        yield lambda caller: stub.ModelInfer(request)
    finally:
        memory.close()
        memory.unlink()


@asynccontextmanager
async def ready_requests(target: str, images: np.ndarray, *, tensor: str = "image") -> AsyncIterator[Ask]:
    """Requests of one image each, made beforehand and sent by a bare gRPC call: what is left is the server's cost."""
    requests = [
        encode_request("alexnet", {tensor: image[np.newaxis]}, ("logits", "probabilities")).SerializeToString()
        for image in images
    ]
    async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        call = channel.unary_unary(INFER, request_serializer=None, response_deserializer=None)
        yield lambda caller: call(requests[caller % len(requests)], timeout=TIMEOUT_S)


class Raw:
    """The same file in this process, in whatever arrangement of threads is fastest here.

    Args:
        model: the ONNX file.
        images: uint8 [64, 224, 224, 3].
        threads: processors there are.
    """

    def __init__(self, model: str, images: np.ndarray, threads: int) -> None:
        self._images = images
        self._alone = _session(model, threads)
        single = _session(model, 1)
        self.arrangements = {
            f"1 session, {threads} threads, batch 64": ([self._alone], 64),
            f"{threads} callers of 1 thread each, batch 32": ([single] * threads, 32),
            f"{threads} callers of 1 thread each, batch 64": ([single] * threads, 64),
        }
        self.best = max(self.arrangements, key=lambda name: self.rate(2.0, name))

    def rate(self, seconds: float, arrangement: str = "") -> float:
        """Images a second of the best arrangement, or of the one named."""
        sessions, batch = self.arrangements[arrangement or self.best]
        runs = [0] * len(sessions)
        end = time.perf_counter() + seconds

        def call(place: int) -> None:
            while time.perf_counter() < end:
                sessions[place].run(None, {"image": self._images[:batch]})
                runs[place] += 1

        began = time.perf_counter()
        threads = [threading.Thread(target=call, args=(place,)) for place in range(len(sessions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(runs) * batch / (time.perf_counter() - began)

    def latencies_s(self, seconds: float, batch: int = 1) -> list[float]:
        """Seconds of runs of one batch after the other, with the threads that the server uses."""
        found: list[float] = []
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            self._alone.run(None, {"image": self._images[:batch]})
            found.append(time.perf_counter() - began)
        return found


def _session(model: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as config.pbtxt has it
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
