"""The backend executes requests as one batch; each request gets its rows of the outputs, or its error."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest


class Request:
    def __init__(self, rows, *, outputs=("double", "sum"), cancelled=False, name="x", dtype=np.float32):
        self.inputs = {name: np.array(rows, dtype)}
        self.outputs, self.cancelled = outputs, cancelled

    def is_cancelled(self):
        return self.cancelled

    def requested_output_names(self):
        return list(self.outputs)


@pytest.fixture
def backend(stub_utilities):
    from alexnet_server.onnxruntime import model

    return model


@pytest.fixture
def load(backend, arithmetic):
    """Loads the model with changes of its configuration."""

    def initialized(**changes):
        config = {
            "max_batch_size": 8,
            "default_model_filename": "model.onnx",
            "input": [{"name": "x", "data_type": "TYPE_FP32"}],
            "output": [{"name": "double"}, {"name": "sum"}],
            **changes,
        }
        instance = backend.TritonPythonModel()
        instance.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(arithmetic.parent),
                "model_version": "1",
                "model_name": "arithmetic",
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
            }
        )
        return instance

    return initialized


def record_runs(instance, change=lambda output: output):
    """Record output names and rows of each run; runs with a negative number fail."""
    session, runs = instance._session, []

    def run(names, inputs):
        runs.append((list(names), len(inputs["x"])))
        if (inputs["x"] < 0).any():
            raise RuntimeError("negative")
        return [change(output) for output in session.run(names, inputs)]

    instance._run = run
    return runs


def test_requests_of_different_sizes_are_one_run_and_each_gets_its_own_rows(load):
    instance = load()
    runs = record_runs(instance)
    responses = instance.execute([Request([[1, 2]]), Request([[3, 4], [5, 6]]), Request([[7, 8]])])
    assert runs == [(["double", "sum"], 4)]
    assert [response.outputs["double"].tolist() for response in responses] == [[[2, 4]], [[6, 8], [10, 12]], [[14, 16]]]
    assert [response.outputs["sum"].tolist() for response in responses] == [[[3]], [[7], [11]], [[15]]]


def test_only_requested_outputs_are_computed_and_returned(load):
    instance = load()
    runs = record_runs(instance)
    total, double = (Request([[1, 2]], outputs=(name,)) for name in ("sum", "double"))
    assert [set(response.outputs) for response in instance.execute([total, total])] == [{"sum"}, {"sum"}]
    assert [set(response.outputs) for response in instance.execute([total, double])] == [{"sum"}, {"double"}]
    assert runs == [(["sum"], 2), (["double", "sum"], 2)]


@pytest.mark.parametrize(
    ("invalid", "code", "message"),
    [
        (Request([[1, 2]], cancelled=True), "CANCELLED", "cancelled"),
        (Request([[1, 2]], name="y"), "INVALID_ARG", "input x is missing"),
        (Request([[1, 2]], dtype=np.int64), "INVALID_ARG", "input x has data type int64, expected float32"),
        (Request([[-1, 2]]), "INTERNAL", "inference failed: negative"),
    ],
)
def test_an_invalid_request_gets_its_error_and_the_other_requests_succeed(load, invalid, code, message):
    instance = load()
    record_runs(instance)
    first, middle, last = instance.execute([Request([[1, 2]]), invalid, Request([[3, 4]])])
    assert (first.outputs["sum"].tolist(), last.outputs["sum"].tolist()) == ([[3]], [[7]])
    assert middle.error.code == code
    assert message in middle.error.text


def test_a_batch_with_only_invalid_requests_is_not_run(load):
    instance = load()
    runs = record_runs(instance)
    responses = instance.execute([Request([[1, 2]], cancelled=True), Request([[1, 2]], name="y")])
    assert all(response.error for response in responses)
    assert not runs


def test_an_output_with_a_wrong_number_of_rows_is_an_error(load):
    instance = load()
    record_runs(instance, lambda output: output[:1])
    first, second = instance.execute([Request([[1, 2]]), Request([[3, 4], [5, 6]])])
    assert first.outputs["sum"].tolist() == [[3]]
    assert "output double has 1 rows, the inputs have 2" in second.error.text


def test_a_model_without_a_batch_dimension_runs_each_request_alone(load):
    instance = load(max_batch_size=0)
    runs = record_runs(instance)
    responses = instance.execute([Request([[1, 2]]), Request([[3, 4]])])
    assert [response.outputs["sum"].tolist() for response in responses] == [[[3]], [[7]]]
    assert len(runs) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"default_model_filename": "other.onnx"}, r"1/other\.onnx: no such file; `make export`"),
        ({"default_model_filename": "damaged.onnx"}, r"cannot load damaged\.onnx"),
        ({"input": [{"name": "z", "data_type": "TYPE_FP32"}]}, r"has inputs \['z'\], the graph has \['x'\]"),
        ({"output": [{"name": "triple"}]}, r"has outputs \['triple'\]"),
        ({"parameters": {"execution_mode": {"string_value": "5"}}}, "execution_mode must be 0"),
    ],
)
def test_an_invalid_configuration_or_file_fails_the_load_with_a_message(backend, load, arithmetic, changes, message):
    (arithmetic / "damaged.onnx").write_bytes(b"not onnx")
    with pytest.raises(backend.pb_utils.TritonModelException, match=message):
        load(**changes)


def test_a_release_that_was_validated_with_another_engine_is_not_loaded(backend, load, arithmetic):
    variant = {"name": "int8", "engine": "openvino f32", "gate": "passed"}
    (arithmetic / "manifest.json").write_text(json.dumps({"precision": "int8", "variants": [variant]}))
    with pytest.raises(backend.pb_utils.TritonModelException, match="validated with 'openvino f32'"):
        load()
    (arithmetic / "manifest.json").unlink()


def test_settings_are_applied_to_the_session_and_ignored_ones_are_logged(backend, load):
    backend.pb_utils.warnings.clear()
    parameters = {
        "intra_op_thread_count": "1",
        "inter_op_thread_count": "3",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "0",
        "session.intra_op.allow_spinning": "0",
        "memory.enable_memory_arena_shrinkage": "cpu:0",
        "colour": "blue",
    }
    instance = load(
        parameters={key: {"string_value": value} for key, value in parameters.items()},
        optimization={"graph": {"level": -1}},
    )
    options = instance._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 3)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    error = instance.execute([Request([[1, 2]])])[0].error.text
    assert "arena" in error, "shrinking a disabled arena fails, which shows that the option is used"
    (warning,) = backend.pb_utils.warnings
    assert warning == "arithmetic: parameter colour: unknown parameter of the onnxruntime backend, ignored"


def test_the_metrics_contain_executions_release_and_number_of_instances(backend, load, arithmetic):
    values = backend.pb_utils.metrics
    values.clear()
    content = {"precision": "int8", "git_revision": "abc", "files": {"model.onnx": {"sha256": "0123456789abcdef"}}}
    (arithmetic / "manifest.json").write_text(json.dumps(content))
    first, second = load(), load()
    (arithmetic / "manifest.json").unlink()
    labels = (("model", "arithmetic"), ("version", "1"))
    facts = {"precision": "int8", "revision": "abc", "release": "0123456789ab", "engine": "onnxruntime"}
    info = tuple(sorted({**dict(labels), **facts, "onnxruntime": ort.__version__}.items()))
    assert values["alexnet_backend_instances", *labels] == values["alexnet_backend_info", *info] == 2
    assert values["alexnet_backend_max_batch_size", *labels] == 8
    first.execute([Request([[1, 2]]), Request([[3, 4], [5, 6]])])
    second.execute([Request([[1, 2]])])
    first.finalize()
    second.finalize()
    assert sorted(values["alexnet_backend_batch_images", *labels]) == [1, 3]
    assert [duration > 0 for duration in values["alexnet_backend_execution_duration_seconds", *labels]] == [True, True]
    assert values["alexnet_backend_instances", *labels] == values["alexnet_backend_info", *info] == 0


def test_a_metric_that_triton_does_not_confirm_blocks_neither_inference_nor_the_end(stub_utilities, monkeypatch):
    from alexnet_server.onnxruntime import metrics

    observing, confirmed, increments = threading.Event(), threading.Event(), []
    metric = SimpleNamespace(
        set=lambda value: None,
        increment=increments.append,
        observe=lambda value: (observing.set(), confirmed.wait(60)),
    )
    monkeypatch.setattr(metrics, "_metric", lambda *description: metric)
    found = metrics.BackendMetrics(
        "m", "1", release={}, engine="onnxruntime", max_batch_size=8, queue_size=2, close_timeout_s=0.05
    )
    for _ in range(5):
        found.observe(1, 0.1)
    assert observing.wait(60)
    found.close()
    assert increments == [1, 1], "updating the gauges would block too"
    confirmed.set()


@pytest.mark.parametrize("content", [None, "no JSON", "{}"])
def test_labels_of_a_release_without_a_manifest_are_empty(stub_utilities, tmp_path, content):
    from alexnet_server.onnxruntime.metrics import release_labels

    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    assert release_labels(tmp_path) == {"precision": "", "revision": "", "release": ""}
