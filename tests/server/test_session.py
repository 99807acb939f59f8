"""The session uses the requested provider; runs with I/O binding return the same outputs as plain runs."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from alexnet_server.onnxruntime.device import DeviceRunner
from alexnet_server.onnxruntime.providers import CPU, CUDA, ConfigError
from alexnet_server.onnxruntime.session import check_providers, make_session
from alexnet_server.onnxruntime.settings import read_settings


@pytest.fixture
def session(arithmetic):
    return ort.InferenceSession(arithmetic / "model.onnx", providers=[CPU])


def numbers(rows):
    return np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)


@pytest.mark.parametrize(
    ("level", "name"),
    [(-1, "ENABLE_BASIC"), (0, "ENABLE_ALL"), (1, "ENABLE_EXTENDED"), (2, "DISABLE_ALL"), (7, "ENABLE_ALL")],
)
def test_the_graph_level_has_the_same_meaning_as_in_the_cpp_backend(arithmetic, level, name):
    config = {"optimization": {"graph": {"level": level}}}
    settings = read_settings(config, kind="CPU", device_id=0, available=[CPU], cpus=1)
    session = make_session(arithmetic / "model.onnx", settings)
    assert session.get_session_options().graph_optimization_level.name == f"ORT_{name}"


def test_a_gpu_that_cannot_be_used_is_an_error_unless_the_fallback_to_the_cpu_is_allowed():
    strict, fallback = (
        read_settings({"parameters": parameters}, kind="GPU", device_id=0, available=(CUDA, CPU), cpus=2)
        for parameters in ({}, {"allow_cpu_fallback": {"string_value": "1"}})
    )
    assert strict.session_entries == {"session.disable_cpu_ep_fallback": "1"}
    with pytest.raises(ConfigError, match=r"cannot use CUDAExecutionProvider and uses CPUEx.* allow_cpu_fallback"):
        check_providers([CPU], strict)
    check_providers([CPU], fallback)
    assert fallback.providers[-1] == (CPU, {})
    assert not fallback.session_entries


@pytest.mark.parametrize("names", [["double", "sum"], ["sum"]])
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
    """Records binding and CUDA graph of each run, and executes it without the graph, which a CPU does not have."""

    def __init__(self, session):
        self.session, self.runs = session, []

    def __getattr__(self, name):
        return getattr(self.session, name)

    def run_with_iobinding(self, binding, options):
        self.runs.append((id(binding), options.get_run_config_entry("gpu_graph_id")))
        self.session.run_with_iobinding(binding)


def test_batch_sizes_with_a_cuda_graph_keep_their_memory_and_others_use_no_graph(session):
    recorded = RecordedRuns(session)
    runner = DeviceRunner(recorded, "cpu", 0, graph_batches=(1, 4))
    for rows in (1, 4, 1, 4, 2):
        inputs = numbers(rows) + len(recorded.runs)
        assert np.array_equal(runner.run(["double"], {"x": inputs})[0], 2 * inputs)
    first, second, *again, (_, other) = recorded.runs
    assert again == [first, second]
    assert (first[1], second[1], other) == ("1", "2", "-1")
