"""Load on a server. The soak test of the client measures its own memory with it: imports no PyTorch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from alexnet_client.admin import admin_metadata
from alexnet_client.codec import encode_request
from alexnet_client.connection import CHANNEL_OPTIONS

INPUT, OUTPUTS = "image", ("logits", "probabilities")
METHOD, TIMEOUT_S = "/inference.GRPCInferenceService/ModelInfer", 60.0
Send = Callable[[int], Awaitable[Any]]
"""Sends one request; the argument is the number of the caller."""
Side = tuple[Send, int, int]
"""How to send a request, images per request, requests in flight."""


@dataclass
class Measurement:
    """Throughput in images per second, CPU time of this process per image, and the latency of each request in seconds."""

    throughput: float = 0.0
    cpu_us: float = 0.0
    latencies_s: list[float] = field(default_factory=list)

    @property
    def p50_ms(self) -> float:
        return float(1000 * np.percentile(self.latencies_s, 50))

    @property
    def p99_ms(self) -> float:
        return float(1000 * np.percentile(self.latencies_s, 99))


def random_images() -> np.ndarray:
    """64 images of random pixels, uint8 [64, 224, 224, 3]."""
    return np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3)).astype(np.uint8)


async def closed_loop(send: Send, *, images: int = 1, in_flight: int, seconds: float) -> Measurement:
    """Each of ``in_flight`` callers sends requests of ``images`` images, the next one after the previous answer."""
    result, answered, cpu_s = Measurement(), 0, time.process_time()
    end = time.perf_counter() + seconds

    async def call(caller: int) -> None:
        nonlocal answered
        while (sent := time.perf_counter()) < end:
            await send(caller)
            result.latencies_s.append(time.perf_counter() - sent)
            answered += images

    started = time.perf_counter()
    await asyncio.gather(*(call(caller) for caller in range(in_flight)))
    result.throughput = answered / (time.perf_counter() - started)
    result.cpu_us = 1e6 * (time.process_time() - cpu_s) / answered
    return result


async def alternate(sides: dict[str, Side], rounds: int, seconds: float) -> dict[str, list[Measurement]]:
    """Measure each side in each round after a warm-up round."""
    found: dict[str, list[Measurement]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, (send, images, in_flight) in sides.items():
            run = await closed_loop(send, images=images, in_flight=in_flight, seconds=seconds)
            if number:
                found[name].append(run)
    return found


async def open_loop(send: Send, *, rate: float, seconds: float, seed: int = 0) -> Measurement:
    """Requests with Poisson arrivals; latency is measured from the planned send time."""
    result = Measurement()
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    started = time.perf_counter()

    async def call(caller: int, planned: float) -> None:
        await send(caller)
        result.latencies_s.append(time.perf_counter() - planned)

    tasks = []
    for caller, planned in enumerate(started + np.cumsum(gaps)):
        await asyncio.sleep(max(0.0, planned - time.perf_counter()))
        tasks.append(asyncio.create_task(call(caller, planned)))
    await asyncio.gather(*tasks)
    result.throughput = len(tasks) / (time.perf_counter() - started)
    return result


@contextmanager
def shared_memory_requests(target: str, images: np.ndarray, region: str) -> Iterator[Send]:
    """Requests with their images in shared memory. Needs a running event loop."""
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
        tensor = request.inputs.add(name=INPUT, datatype="UINT8", shape=images.shape)
        tensor.parameters["shared_memory_region"].string_param = region
        tensor.parameters["shared_memory_byte_size"].int64_param = images.nbytes
        for name in OUTPUTS:
            request.outputs.add(name=name)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.aio.insecure_channel(target))
        yield lambda caller: stub.ModelInfer(request)
    finally:
        memory.close()
        memory.unlink()


@asynccontextmanager
async def prepared_requests(target: str, images: np.ndarray) -> AsyncIterator[Send]:
    """Single-image requests that are encoded beforehand and sent with plain gRPC: the client costs almost nothing."""
    requests = [encode_request("alexnet", {INPUT: image[np.newaxis]}, OUTPUTS).SerializeToString() for image in images]
    async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)
        yield lambda caller: call(requests[caller % len(requests)], timeout=TIMEOUT_S)
