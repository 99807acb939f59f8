"""The session uses the requested provider; runs with I/O binding return the same outputs as plain runs."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from alexnet_server.onnxruntime.device import DeviceRunner
from alexnet_server.onnxruntime.providers import CPU, CUDA, ConfigError
from alexnet_server.onnxruntime.session import check_providers
from alexnet_server.onnxruntime.settings import read_settings


@pytest.fixture(scope="module")
def session():
    shape = ["batch", 2]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["double"]), helper.make_node("Neg", ["x"], ["negative"])],
        "doubling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("double", "negative")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=[CPU])


def numbers(rows):
    return np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)


def gpu_settings(**parameters):
    named = {key: {"string_value": value} for key, value in parameters.items()}
    return read_settings({"parameters": named}, kind="GPU", device_id=0, available=(CUDA, CPU), cpus=2)


def test_a_gpu_that_cannot_be_used_is_an_error():
    settings = gpu_settings()
    assert settings.session_entries == {"session.disable_cpu_ep_fallback": "1"}
    assert [name for name, _ in settings.providers] == [CUDA]
    with pytest.raises(ConfigError, match=r"cannot use CUDAExecutionProvider and uses CPUEx.* allow_cpu_fallback"):
        check_providers([CPU], settings)


def test_the_fallback_to_the_cpu_can_be_allowed():
    settings = gpu_settings(allow_cpu_fallback="1")
    check_providers([CPU], settings)
    assert settings.providers[-1] == (CPU, {})
    assert not settings.session_entries


@pytest.mark.parametrize("names", [["double", "negative"], ["negative"]])
def test_a_run_with_io_binding_equals_a_plain_run(session, names):
    runner = DeviceRunner(session, "cpu", 0)
    for rows in (1, 3, 2):
        found = runner.run(names, {"x": numbers(rows)})
        for bound, plain in zip(found, session.run(names, {"x": numbers(rows)}), strict=True):
            assert np.array_equal(bound, plain)


def test_a_tensor_in_device_memory_is_not_copied(session, monkeypatch):
    value = ort.OrtValue.from_dlpack(numbers(3))
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", lambda *_: pytest.fail("copied"))
    assert np.array_equal(DeviceRunner(session, "cpu", 0).run(["double"], {"x": value})[0], 2 * numbers(3))


class RecordedRuns:
    """Records binding and CUDA graph of each run; ``execute`` runs it on the CPU, which has no graphs."""

    def __init__(self, session, *, execute):
        self.session, self.execute, self.runs = session, execute, []

    def __getattr__(self, name):
        return getattr(self.session, name)

    def run_with_iobinding(self, binding, options):
        self.runs.append((id(binding), options.get_run_config_entry("gpu_graph_id")))
        if self.execute:
            self.session.run_with_iobinding(binding)


def test_batch_sizes_with_a_cuda_graph_keep_their_memory_and_others_use_no_graph(session):
    recorded = RecordedRuns(session, execute=False)
    runner = DeviceRunner(recorded, "cpu", 0, graph_batches=(1, 4))
    for rows in (1, 4, 1, 4):
        runner.run(["double"], {"x": numbers(rows)})
    assert recorded.runs[0] == recorded.runs[2]
    assert recorded.runs[1] == recorded.runs[3]
    assert {graph for _, graph in recorded.runs} == {"1", "2"}
    with pytest.raises(RuntimeError):  # the fake leaves the output empty
        runner.run(["double"], {"x": numbers(2)})
    assert recorded.runs[-1][1] == "-1"


def test_replayed_batches_return_the_outputs_of_their_own_inputs(session):
    runner = DeviceRunner(RecordedRuns(session, execute=True), "cpu", 0, graph_batches=(2,))
    for offset in (0, 5, 9):
        assert np.array_equal(runner.run(["double"], {"x": numbers(2) + offset})[0], 2 * (numbers(2) + offset))
