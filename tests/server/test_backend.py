"""The backend executes requests as one batch; each request gets its rows of the outputs, or its error."""

from __future__ import annotations

import json
import threading

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper


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


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A model with two outputs: double = 2x, sum = the sum of each row."""
    directory = tmp_path_factory.mktemp("model")
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["double"]),
            helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
        ],
        "arithmetic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [
            helper.make_tensor_value_info("double", TensorProto.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 1]),
        ],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (directory / "1").mkdir()
    onnx.save_model(model, directory / "1/model.onnx")
    return directory


def arguments(repository, **changes):
    config = {
        "max_batch_size": 8,
        "default_model_filename": "model.onnx",
        "input": [{"name": "x", "data_type": "TYPE_FP32"}],
        "output": [{"name": "double"}, {"name": "sum"}],
        **changes,
    }
    return {
        "model_config": json.dumps(config),
        "model_repository": str(repository),
        "model_version": "1",
        "model_name": "arithmetic",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }


@pytest.fixture
def loaded(backend, repository):
    instance = backend.TritonPythonModel()
    instance.initialize(arguments(repository))
    return instance


class RecordedRuns:
    """Records the runs of a session; runs with a negative number fail."""

    def __init__(self, session):
        self.session, self.batches, self.arrays = session, [], []

    def run(self, names, inputs, options):
        self.batches.append((list(names), len(inputs["x"])))
        self.arrays.append(inputs["x"])
        if (inputs["x"] < 0).any():
            raise RuntimeError("negative")
        return self.session.run(names, inputs, options)


def record_runs(instance, kind=RecordedRuns):
    recorded = kind(instance._session)
    instance._run = lambda names, inputs: recorded.run(names, inputs, None)
    return recorded


def test_requests_of_different_sizes_are_one_run_and_each_gets_its_own_rows(loaded):
    recorded = record_runs(loaded)
    responses = loaded.execute([Request([[1, 2]]), Request([[3, 4], [5, 6]]), Request([[7, 8]])])
    assert recorded.batches == [(["double", "sum"], 4)]
    assert [response.outputs["double"].tolist() for response in responses] == [[[2, 4]], [[6, 8], [10, 12]], [[14, 16]]]
    assert [response.outputs["sum"].tolist() for response in responses] == [[[3]], [[7], [11]], [[15]]]


def test_a_single_request_is_not_copied(loaded):
    recorded = record_runs(loaded)
    request = Request([[1, 2]])
    assert loaded.execute([request])[0].outputs["sum"].tolist() == [[3]]
    assert recorded.arrays[0] is request.inputs["x"]


def test_only_requested_outputs_are_computed_and_returned(loaded):
    recorded = record_runs(loaded)
    responses = loaded.execute([Request([[1, 2]], outputs=("sum",)), Request([[3, 4]], outputs=("sum",))])
    assert recorded.batches == [(["sum"], 2)]
    assert [set(response.outputs) for response in responses] == [{"sum"}, {"sum"}]
    mixed = loaded.execute([Request([[1, 2]], outputs=("sum",)), Request([[3, 4]], outputs=("double",))])
    assert [set(response.outputs) for response in mixed] == [{"sum"}, {"double"}]


@pytest.mark.parametrize(
    ("invalid", "code", "message"),
    [
        (Request([[1, 2]], cancelled=True), "CANCELLED", "cancelled"),
        (Request([[1, 2]], name="y"), "INVALID_ARG", "input x is missing"),
        (Request([[1, 2]], dtype=np.int64), "INVALID_ARG", "input x has data type int64, expected float32"),
        (Request([[-1, 2]]), "INTERNAL", "inference failed: negative"),
    ],
)
def test_an_invalid_request_gets_its_error_and_the_other_requests_succeed(loaded, invalid, code, message):
    record_runs(loaded)
    first, middle, last = loaded.execute([Request([[1, 2]]), invalid, Request([[3, 4]])])
    assert first.outputs["sum"].tolist() == [[3]]
    assert last.outputs["sum"].tolist() == [[7]]
    assert middle.error.code == code
    assert message in middle.error.text


def test_a_batch_with_only_invalid_requests_is_not_run(loaded):
    recorded = record_runs(loaded)
    responses = loaded.execute([Request([[1, 2]], cancelled=True), Request([[1, 2]], name="y")])
    assert all(response.error for response in responses)
    assert not recorded.batches


def test_an_output_with_a_wrong_number_of_rows_is_an_error(loaded):
    class Short(RecordedRuns):
        def run(self, names, inputs, options):
            return [output[:1] for output in super().run(names, inputs, options)]

    record_runs(loaded, Short)
    responses = loaded.execute([Request([[1, 2]]), Request([[3, 4], [5, 6]])])
    assert responses[0].outputs["sum"].tolist() == [[3]]
    assert "rows" in responses[1].error.text


def test_a_model_without_a_batch_dimension_runs_each_request_alone(backend, repository):
    instance = backend.TritonPythonModel()
    instance.initialize(arguments(repository, max_batch_size=0))
    recorded = record_runs(instance)
    responses = instance.execute([Request([[1, 2]]), Request([[3, 4]])])
    assert [response.outputs["sum"].tolist() for response in responses] == [[[3]], [[7]]]
    assert len(recorded.batches) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"default_model_filename": "other.onnx"}, r"1/other\.onnx: no such file; `make export`"),
        ({"input": [{"name": "z", "data_type": "TYPE_FP32"}]}, r"has inputs \['z'\], the graph has \['x'\]"),
        ({"output": [{"name": "triple"}]}, r"has outputs \['triple'\]"),
        ({"parameters": {"execution_mode": {"string_value": "5"}}}, "execution_mode must be 0"),
    ],
)
def test_an_invalid_configuration_fails_the_load_with_a_message(backend, repository, changes, message):
    with pytest.raises(backend.pb_utils.TritonModelException, match=message):
        backend.TritonPythonModel().initialize(arguments(repository, **changes))


def test_a_damaged_model_file_fails_the_load_with_a_message(backend, repository, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1/model.onnx").write_bytes(b"not onnx")
    with pytest.raises(backend.pb_utils.TritonModelException, match=r"cannot load model\.onnx"):
        backend.TritonPythonModel().initialize(arguments(tmp_path))


def test_settings_are_applied_to_the_session_and_ignored_ones_are_logged(backend, repository):
    backend.pb_utils.warnings.clear()
    instance = backend.TritonPythonModel()
    parameters = {
        "intra_op_thread_count": {"string_value": "1"},
        "inter_op_thread_count": {"string_value": "3"},
        "execution_mode": {"string_value": "1"},
        "enable_mem_arena": {"string_value": "0"},
        "enable_mem_pattern": {"string_value": "0"},
        "session.use_device_allocator_for_initializers": {"string_value": "1"},
        "session.intra_op.allow_spinning": {"string_value": "0"},
        "memory.enable_memory_arena_shrinkage": {"string_value": "cpu:0"},
        "colour": {"string_value": "blue"},
    }
    graph = {"graph": {"level": -1}}
    instance.initialize(arguments(repository, parameters=parameters, optimization=graph))
    options = instance._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 3)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    error = instance.execute([Request([[1, 2]])])[0].error.text
    assert "arena" in error, "shrinking a disabled arena fails, which shows that the option is used"
    assert backend.pb_utils.warnings == [
        "arithmetic: parameter colour: unknown parameter of the onnxruntime backend, ignored"
    ]


def test_the_metrics_contain_executions_release_and_number_of_instances(backend, repository):
    values = backend.pb_utils.metrics
    values.clear()
    (repository / "1/manifest.json").write_text(
        json.dumps(
            {"precision": "int8", "git_revision": "abc", "files": {"model.onnx": {"sha256": "0123456789abcdef"}}}
        )
    )
    instances = []
    for _ in range(2):
        instance = backend.TritonPythonModel()
        instance.initialize(arguments(repository))
        instances.append(instance)
    labels = (("model", "arithmetic"), ("version", "1"))
    facts = {"precision": "int8", "revision": "abc", "release": "0123456789ab", "provider": "CPUExecutionProvider"}
    info = tuple(sorted({**dict(labels), **facts, "onnxruntime": ort.__version__}.items()))
    assert values["alexnet_backend_instances", *labels] == values["alexnet_backend_info", *info] == 2
    assert values["alexnet_backend_max_batch_size", *labels] == 8
    instances[0].execute([Request([[1, 2]]), Request([[3, 4], [5, 6]])])
    instances[1].execute([Request([[1, 2]])])
    for instance in instances:
        instance.finalize()
    assert sorted(values["alexnet_backend_batch_images", *labels]) == [1, 3]
    assert all(0 < each < 5 for each in values["alexnet_backend_execution_duration_seconds", *labels])
    assert len(values["alexnet_backend_execution_duration_seconds", *labels]) == 2
    assert values["alexnet_backend_instances", *labels] == values["alexnet_backend_info", *info] == 0
    (repository / "1/manifest.json").unlink()


class UnconfirmedMetric:
    """A metric whose observations Triton does not confirm."""

    def __init__(self):
        self.value, self.observing, self.released = 0, threading.Event(), threading.Event()

    def set(self, value):
        pass

    def increment(self, value):
        self.value += value

    def observe(self, value):
        self.observing.set()
        self.released.wait(60)


def test_a_metric_that_triton_does_not_confirm_blocks_neither_inference_nor_the_end(stub_utilities, monkeypatch):
    from alexnet_server.onnxruntime import metrics

    metric = UnconfirmedMetric()
    monkeypatch.setattr(metrics, "_metric", lambda *description: metric)
    found = metrics.BackendMetrics(
        "m", "1", release={}, provider="CPU", max_batch_size=8, queue_size=2, close_timeout_s=0.05
    )
    for _ in range(5):
        found.observe(1, 0.1)
    assert metric.observing.wait(60)
    value = metric.value
    found.close()
    assert metric.value == value, "updating the gauges would block too"
    metric.released.set()


@pytest.mark.parametrize("content", [None, "no JSON", "{}"])
def test_labels_of_a_release_without_a_manifest_are_empty(stub_utilities, tmp_path, content):
    from alexnet_server.onnxruntime.metrics import release_labels

    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    assert release_labels(tmp_path) == {"precision": "", "revision": "", "release": ""}
