"""The session uses the requested provider; runs with I/O binding return the same outputs as plain runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from alexnet_client.errors import BadInput
from alexnet_client.golden import GOLDEN, Golden
from alexnet_server.onnxruntime import session as sessions
from alexnet_server.onnxruntime.device import DeviceRunner
from alexnet_server.onnxruntime.providers import CPU, CUDA, OPENVINO, ConfigError
from alexnet_server.onnxruntime.session import check_engine, check_golden, check_providers, make_session
from alexnet_server.onnxruntime.settings import read_settings

UNSUPPORTED = """
<ir_version: 10, opset_import: ["": 20]> g (float[N, 2, 2] x) => (float[N] y) { y = Det(x) }
"""
"""A graph with an operator that ONNX Runtime can execute and OpenVINO cannot."""


@pytest.fixture
def session(arithmetic):
    return ort.InferenceSession(arithmetic / "model.onnx", providers=[CPU])


def on_openvino(precision="f32"):
    accelerator = {"name": "openvino", "parameters": {"INFERENCE_PRECISION_HINT": precision}}
    config = {"optimization": {"execution_accelerators": {"cpu_execution_accelerator": [accelerator]}}}
    return read_settings(config, kind="CPU", device_id=0, available=[CPU], cpus=2)


def on_onnxruntime(kind="CPU"):
    return read_settings({}, kind=kind, device_id=0, available=[CUDA, CPU], cpus=2)


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


def test_openvino_computes_everything_or_the_session_is_an_error(arithmetic):
    unsupported = onnx.parser.parse_model(UNSUPPORTED).SerializeToString()
    ort.InferenceSession(unsupported, providers=[CPU])
    try:
        sessions.openvino_device()
    except ConfigError as error:
        assert "GenuineIntel" not in Path("/proc/cpuinfo").read_text(), "the plug-in must work on every Intel CPU"
        expected = f"{error}"
    else:
        expected = "fallback to CPU EP has been explicitly disabled"
        session = make_session(arithmetic / "model.onnx", on_openvino())
        assert session.get_providers()[0] == OPENVINO
        double, total = session.run(["double", "sum"], {"x": numbers(3)})
        assert np.array_equal(double, 2 * numbers(3))
        assert np.array_equal(total, numbers(3).sum(axis=1, keepdims=True))
    with pytest.raises(ConfigError) as failed:
        make_session(unsupported, on_openvino())
    assert expected in str(failed.value)


def test_a_missing_plugin_or_one_without_a_device_is_an_error_with_a_remedy(arithmetic, monkeypatch):
    monkeypatch.setattr(sessions.ort, "get_ep_devices", list)
    with pytest.raises(ConfigError, match=r"supports only Intel CPUs, this is .+ publish a release for this machine"):
        make_session(arithmetic / "model.onnx", on_openvino())
    monkeypatch.setattr(sessions, "_register_openvino", sessions._register_openvino.__wrapped__)
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    with pytest.raises(ConfigError, match=r"cannot be loaded: .*Install onnxruntime-ep-openvino \(`make setup`\)"):
        make_session(arithmetic / "model.onnx", on_openvino())


def test_bfloat16_on_a_cpu_without_its_instructions_is_an_error(arithmetic, monkeypatch):
    device = SimpleNamespace(ep_metadata={"OPTIMIZATION_CAPABILITIES": "FP32 INT8 BIN"})
    monkeypatch.setattr(sessions, "openvino_device", lambda: device)
    with pytest.raises(ConfigError, match="has no bfloat16 instructions"):
        make_session(arithmetic / "model.onnx", on_openvino("bf16"))


def test_a_release_is_only_served_by_an_engine_that_it_was_validated_with(tmp_path):
    check_engine(tmp_path, on_openvino())  # a model of another tool has no manifest
    rows = [("int8", "openvino f32", "passed"), ("int8", "onnxruntime", "failed"), ("fp32", "onnxruntime", "passed")]
    variants = [dict(zip(("name", "engine", "gate"), row, strict=True)) for row in rows]
    (tmp_path / "manifest.json").write_text(json.dumps({"precision": "int8", "variants": variants}))
    check_engine(tmp_path, on_openvino())
    check_engine(tmp_path, on_onnxruntime("GPU"))
    for settings in (on_onnxruntime(), on_openvino("bf16")):
        message = (
            rf"'{settings.engine}', .* \(int8\) was validated with 'openvino f32': change cpu_execution_accelerator"
        )
        with pytest.raises(ConfigError, match=message):
            check_engine(tmp_path, settings)


def fake_session(answer):
    """A session with a function of the images as logits."""
    return SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name="x")], run=lambda _, inputs: [answer(inputs["x"])])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: 2 * x + 0.001, ""),
        (lambda x: 2 * x + np.ptp(x) / 10, r"wrong answers with onnxruntime, .* RMS error of the logits is 0\.05"),
        (lambda x: 2 * x + (len(x) == 1), "RMS error"),
        (lambda x: np.where(x == 3, np.nan, 2 * x), "1 logits are not finite"),
        (lambda x: x[:, :1], r"shape \[4, 1\], expected \[4, 2\]"),
    ],
    ids=["equal", "wrong", "wrong for a single image", "not a number", "wrong shape"],
)
def test_a_session_must_give_the_golden_answers(tmp_path, answer, message):
    check_golden(tmp_path, fake_session(answer), on_onnxruntime())  # a model of another tool has none
    Golden(numbers(4), 2 * numbers(4)).write(tmp_path / GOLDEN)
    if message:
        with pytest.raises(ConfigError, match=message):
            check_golden(tmp_path, fake_session(answer), on_onnxruntime())
    else:
        check_golden(tmp_path, fake_session(answer), on_onnxruntime())


def test_damaged_golden_answers_are_an_error(tmp_path):
    (tmp_path / GOLDEN).write_bytes(b"PK damaged")
    with pytest.raises(BadInput, match=r"golden\.npz: damaged .* publish again"):
        check_golden(tmp_path, fake_session(lambda x: x), on_onnxruntime())
