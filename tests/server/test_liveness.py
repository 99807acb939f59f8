"""Probes with blank images, and the evaluation of Triton's metrics."""

from __future__ import annotations

import io

import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from typer.testing import CliRunner

from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, Overloaded, ServerFault, Unavailable
from alexnet_client.fake import FakeServer
from alexnet_client.golden import GOLDEN, Golden
from alexnet_client.images import load_pixels
from alexnet_server import liveness
from alexnet_server.__main__ import app
from alexnet_server.command import ServerOptions
from alexnet_server.liveness import LivenessMonitor, probe_model


class FakeTransport:
    """Transport to a model with one input."""

    target = "nowhere:1"

    def __init__(self, datatype="UINT8", *, ready=True, error=None):
        self.datatype, self.ready, self.error, self.requests = datatype, ready, error, []

    async def model_ready(self, model, deadline):
        return self.ready

    async def model_metadata(self, model, deadline):
        metadata = service_pb2.ModelMetadataResponse()
        metadata.inputs.add(name="x", datatype=self.datatype, shape=[-1, 2])
        metadata.outputs.add(name="y")
        return metadata

    async def infer(self, request, deadline):
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        return service_pb2.ModelInferResponse()


async def probe(transport):
    await probe_model(transport, "m", Deadline.after(10))
    return transport.requests


async def test_a_probe_sends_zeros_to_a_numeric_input_and_an_image_file_to_a_bytes_input():
    (numbers,) = await probe(FakeTransport("UINT8"))
    assert numbers.raw_input_contents[0] == bytes(2)
    (files,) = await probe(FakeTransport("BYTES"))
    raw = files.raw_input_contents[0]
    assert (load_pixels(raw[4 : 4 + int.from_bytes(raw[:4], "little")]) == 255).all()


async def test_a_model_that_rejects_the_blank_image_is_alive():
    await probe(FakeTransport("BYTES", error=BadInput("not a text")))


@pytest.mark.parametrize("error", [ServerFault("Stub process is not healthy"), Unavailable("stopped")])
async def test_a_failed_probe_raises(error):
    with pytest.raises(type(error)):
        await probe(FakeTransport(error=error))


async def test_a_model_that_is_not_ready_or_has_no_numpy_data_type_receives_no_request():
    transport = FakeTransport(ready=False)
    with pytest.raises(Unavailable, match="m is not ready"):
        await probe(transport)
    assert not transport.requests
    assert not await probe(FakeTransport("BF16"))


@pytest.mark.parametrize(
    ("scale", "version", "model", "code", "message"),
    [
        (5, "1", "alexnet", 0, ""),
        (6, "1", "alexnet", 1, "alexnet version 1 gives wrong answers on this machine: the RMS error"),
        (5, "2", "alexnet", 2, "alexnet/1/golden.npz: missing; publish again"),
        (5, "1", "other", 2, "contains no release of alexnet"),
    ],
)
def test_a_probe_compares_the_answers_with_the_golden_ones_of_the_served_version(
    tmp_path, scale, version, model, code, message
):
    directory = tmp_path / model / version
    directory.mkdir(parents=True)
    (directory / "manifest.json").touch()
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((224, 224, 3), np.uint8)
    Golden(images, scale * np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]).write(directory / GOLDEN)
    with FakeServer().in_thread() as server:
        result = CliRunner().invoke(app, ["probe", "--target", server.target, "--golden", str(tmp_path)])
    assert result.exit_code == code, result.output
    assert message in result.stderr


@pytest.fixture
def monitor(tmp_path):
    return LivenessMonitor(ServerOptions(tmp_path), ["m"], probe_after_s=1)


def test_a_model_is_stalled_while_requests_wait_and_the_number_of_executions_does_not_change(monitor):
    for executions, pending, stalled in [(1, 5, set()), (1, 5, {"m"}), (2, 5, set()), (2, 0, set()), (2, 1, {"m"})]:
        monitor._update({"exec_count": {"m": executions}, "pending_request_count": {"m": pending}})
        assert monitor.stalled == stalled


async def test_a_model_has_failed_after_two_failed_probes_in_a_row(monitor):
    failing = FakeTransport(error=ServerFault("broken"))
    await monitor._probe(failing, "m")
    await monitor._probe(FakeTransport(), "m")
    await monitor._probe(failing, "m")
    assert monitor.faults == {}
    await monitor._probe(failing, "m")
    assert monitor.faults == {"m": "broken"}


async def test_an_overloaded_model_is_stalled_but_has_not_failed(monitor):
    for _ in range(3):
        await monitor._probe(FakeTransport(error=Overloaded("queue full")), "m")
    assert (monitor.stalled, monitor.faults) == ({"m"}, {})


def test_metrics_of_all_versions_of_a_model_are_added(monkeypatch, tmp_path):
    text = b"""nv_inference_exec_count{model="m",version="1"} 3
nv_inference_exec_count{model="m",version="2"} 4
nv_inference_pending_request_count{model="m",version="1"} 2
nv_inference_count{model="m",version="1"} 9
"""
    monkeypatch.setattr(liveness.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(text))
    assert liveness.scrape(ServerOptions(tmp_path)) == {"exec_count": {"m": 7}, "pending_request_count": {"m": 2}}


def test_unavailable_metrics_are_empty(tmp_path, free_port):
    assert liveness.scrape(ServerOptions(tmp_path, metrics_port=free_port())) == {}
