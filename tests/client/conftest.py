"""A scripted V2 server in this process, for what a real one does too rarely."""

from __future__ import annotations

import asyncio
import threading

import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from alexnet_client.codec import DTYPES

LABELS = ("cat", "dog", "bird: small")


class ScriptedServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers every image with the class of its first pixel's red; ``fail`` or ``mangle`` change the next answers."""

    def __init__(self) -> None:
        self.requests: list[service_pb2.ModelInferRequest] = []
        self.version = "1"
        self.fail: tuple[grpc.StatusCode, str] | None = None
        self.mangle = lambda response: None
        self.hang = False

    async def ServerMetadata(self, request, context):  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="scripted", version="9.9.9")

    async def ServerReady(self, request, context):  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=True)

    async def ModelReady(self, request, context):  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name == "alexnet")

    async def ModelMetadata(self, request, context):  # noqa: N802
        response = service_pb2.ModelMetadataResponse(name=request.name, versions=[self.version])
        response.inputs.add(name="pixels", datatype="UINT8", shape=[-1, 224, 224, 3])
        for name in ("logits", "probabilities") if request.name == "alexnet" else ("other",):
            response.outputs.add(name=name, datatype="FP32", shape=[-1, len(LABELS)])
        return response

    async def ModelConfig(self, request, context):  # noqa: N802
        response = service_pb2.ModelConfigResponse()
        response.config.max_batch_size = 8
        return response

    async def ModelInfer(self, request, context):  # noqa: N802
        self.requests.append(request)
        if self.hang:
            await asyncio.Event().wait()
        if self.fail:
            await context.abort(*self.fail)
        images = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(tuple(request.inputs[0].shape))
        logits = np.zeros((len(images), len(LABELS)), np.float32)
        logits[np.arange(len(images)), images[:, 0, 0, 0] % len(LABELS)] = 5
        response = service_pb2.ModelInferResponse(model_name="alexnet", model_version=self.version)
        for output in request.outputs:
            values = logits if output.name == "logits" else np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            if "classification" in output.parameters:
                texts = [f"{values[0, index]}:{index}:{label}".encode() for index, label in enumerate(LABELS)]
                response.outputs.add(name=output.name, datatype="BYTES", shape=[1, len(texts)])
                response.raw_output_contents.append(b"".join(len(t).to_bytes(4, "little") + t for t in texts))
            else:
                response.outputs.add(name=output.name, datatype="FP32", shape=values.shape)
                response.raw_output_contents.append(values.astype(DTYPES["FP32"]).tobytes())
        self.mangle(response)
        return response


@pytest.fixture
async def scripted():
    """(server, target) of a scripted server that runs for one test."""
    servicer = ScriptedServer()
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
def scripted_elsewhere():
    """(server, target) of a scripted server on a thread of its own, for commands that run their own event loop."""
    servicer = ScriptedServer()
    loop, started, found = asyncio.new_event_loop(), threading.Event(), {}

    async def run() -> None:
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        found.update(target=f"127.0.0.1:{port}", stop=asyncio.Event())
        started.set()
        await found["stop"].wait()
        await server.stop(None)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert started.wait(10)
    yield servicer, found["target"]
    loop.call_soon_threadsafe(found["stop"].set)
    thread.join(10)
    loop.close()
