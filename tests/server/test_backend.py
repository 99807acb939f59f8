"""The backend's execute: one run for a batch, every request its own rows or its own error."""

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
    """A model of two rows' worth of arithmetic: double = 2x, sum = the sum of each row; a Gather fails on x < 0."""
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


class CountedRuns:
    """Counts a session's runs and makes those fail that hold a negative number."""

    def __init__(self, session):
        self.session, self.batches, self.arrays = session, [], []

    def run(self, names, inputs, options):
        self.batches.append((list(names), len(inputs["x"])))
        self.arrays.append(inputs["x"])
        if (inputs["x"] < 0).any():
            raise RuntimeError("negative")
        return self.session.run(names, inputs, options)


def count_runs(instance, kind=CountedRuns):
    counted = kind(instance._session)
    instance._run = lambda names, inputs: counted.run(names, inputs, None)
    return counted


def test_requests_of_several_sizes_share_one_run_and_get_their_own_rows(loaded):
    counted = count_runs(loaded)
    answers = loaded.execute([Request([[1, 2]]), Request([[3, 4], [5, 6]]), Request([[7, 8]])])
    assert counted.batches == [(["double", "sum"], 4)]
    assert [answer.outputs["double"].tolist() for answer in answers] == [[[2, 4]], [[6, 8], [10, 12]], [[14, 16]]]
    assert [answer.outputs["sum"].tolist() for answer in answers] == [[[3]], [[7], [11]], [[15]]]


def test_a_lone_request_is_run_on_its_own_array_without_a_copy(loaded):
    counted = count_runs(loaded)
    request = Request([[1, 2]])
    assert loaded.execute([request])[0].outputs["sum"].tolist() == [[3]]
    assert counted.arrays[0] is request.inputs["x"]


def test_only_the_outputs_that_were_asked_for_are_computed_and_sent(loaded):
    counted = count_runs(loaded)
    answers = loaded.execute([Request([[1, 2]], outputs=("sum",)), Request([[3, 4]], outputs=("sum",))])
    assert counted.batches == [(["sum"], 2)]
    assert [set(answer.outputs) for answer in answers] == [{"sum"}, {"sum"}]
    mixed = loaded.execute([Request([[1, 2]], outputs=("sum",)), Request([[3, 4]], outputs=("double",))])
    assert [set(answer.outputs) for answer in mixed] == [{"sum"}, {"double"}]


@pytest.mark.parametrize(
    ("bad", "code", "says"),
    [
        (Request([[1, 2]], cancelled=True), "CANCELLED", "cancelled"),
        (Request([[1, 2]], name="y"), "INVALID_ARG", "input x is missing"),
        (Request([[1, 2]], dtype=np.int64), "INVALID_ARG", "input x is int64, the model reads float32"),
        (Request([[-1, 2]]), "INTERNAL", "inference failed: negative"),
    ],
)
def test_a_bad_request_gets_its_error_and_its_batch_mates_their_answers(loaded, bad, code, says):
    count_runs(loaded)
    first, middle, last = loaded.execute([Request([[1, 2]]), bad, Request([[3, 4]])])
    assert first.outputs["sum"].tolist() == [[3]]
    assert last.outputs["sum"].tolist() == [[7]]
    assert middle.error.code == code
    assert says in middle.error.text


def test_a_batch_of_bad_requests_only_is_answered_without_a_run(loaded):
    counted = count_runs(loaded)
    answers = loaded.execute([Request([[1, 2]], cancelled=True), Request([[1, 2]], name="y")])
    assert all(answer.error for answer in answers)
    assert not counted.batches


def test_an_output_with_other_rows_than_the_input_is_an_error_not_a_wrong_answer(loaded):
    class Short(CountedRuns):
        def run(self, names, inputs, options):
            return [output[:1] for output in super().run(names, inputs, options)]

    count_runs(loaded, Short)
    answers = loaded.execute([Request([[1, 2]]), Request([[3, 4], [5, 6]])])
    assert answers[0].outputs["sum"].tolist() == [[3]]
    assert "rows" in answers[1].error.text


def test_a_model_without_a_batch_axis_is_run_request_by_request(backend, repository):
    instance = backend.TritonPythonModel()
    instance.initialize(arguments(repository, max_batch_size=0))
    counted = count_runs(instance)
    answers = instance.execute([Request([[1, 2]]), Request([[3, 4]])])
    assert [answer.outputs["sum"].tolist() for answer in answers] == [[[3]], [[7]]]
    assert len(counted.batches) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"default_model_filename": "other.onnx"}, r"1/other\.onnx: no such file; `make export`"),
        ({"input": [{"name": "z", "data_type": "TYPE_FP32"}]}, r"has inputs \['z'\], the graph has \['x'\]"),
        ({"output": [{"name": "triple"}]}, r"has outputs \['triple'\]"),
        ({"parameters": {"execution_mode": {"string_value": "5"}}}, "execution_mode must be 0"),
    ],
)
def test_a_configuration_that_does_not_fit_fails_the_load_with_the_reason(backend, repository, changes, says):
    with pytest.raises(backend.pb_utils.TritonModelException, match=says):
        backend.TritonPythonModel().initialize(arguments(repository, **changes))


def test_a_damaged_model_file_fails_the_load_with_the_reason(backend, repository, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1/model.onnx").write_bytes(b"not onnx")
    with pytest.raises(backend.pb_utils.TritonModelException, match=r"cannot load model\.onnx"):
        backend.TritonPythonModel().initialize(arguments(tmp_path))


def test_settings_reach_the_session_and_ignored_ones_the_log(backend, repository):
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
    complaint = instance.execute([Request([[1, 2]])])[0].error.text
    assert "arena" in complaint, "shrinking an arena that is switched off fails, so the option has reached the run"
    assert backend.pb_utils.warnings == ["arithmetic: parameter colour: unknown to the onnxruntime backend, ignored"]


def test_the_metrics_say_what_ran_and_that_an_instance_is_gone(backend, repository):
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


class Unconfirmed:
    """A metric whose observations Triton never confirms."""

    def __init__(self, *description):
        self.counted, self.asked, self.released = 0, threading.Event(), threading.Event()

    def set(self, value):
        pass

    def increment(self, value):
        self.counted += value

    def observe(self, value):
        self.asked.set()
        self.released.wait(10)


def test_a_metric_that_triton_never_confirms_holds_up_neither_inference_nor_the_end(backend, repository, monkeypatch):
    from alexnet_server.onnxruntime import metrics

    metric = Unconfirmed()
    monkeypatch.setattr(metrics, "_metric", lambda *description: metric)
    monkeypatch.setattr(metrics, "MOST_UNTOLD", 2)
    monkeypatch.setattr(metrics, "CLOSE_S", 0.05)
    instance = backend.TritonPythonModel()
    instance.initialize(arguments(repository))
    for _ in range(5):
        assert instance.execute([Request([[1, 2]])])[0].error is None
    assert metric.asked.wait(5)
    counted = metric.counted
    instance.finalize()
    assert metric.counted == counted, "what would wait for Triton too is not asked for"
    metric.released.set()


@pytest.mark.parametrize("content", [None, "no JSON", "{}"])
def test_a_release_without_a_manifest_has_facts_without_values(stub_utilities, tmp_path, content):
    from alexnet_server.onnxruntime.metrics import release_facts

    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    assert release_facts(tmp_path) == {"precision": "", "revision": "", "release": ""}
