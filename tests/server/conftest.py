"""A fake of the module that exists only in Triton's Python stub process, and a small model."""

from __future__ import annotations

import sys
import types
from typing import ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper


class FakeError:
    INVALID_ARG, INTERNAL, CANCELLED = "INVALID_ARG", "INTERNAL", "CANCELLED"

    def __init__(self, text, code):
        self.text, self.code = text, code


class FakeTensor:
    def __init__(self, name, array):
        self.name, self.array = name, array

    def as_numpy(self):
        return self.array

    def is_cpu(self):
        return True


class FakeResponse:
    def __init__(self, output_tensors, error=None):
        self.outputs = {tensor.name: tensor.array for tensor in output_tensors}
        self.error = error


class FakeMetric:
    """Adds the values of all instances with the same labels, like Triton."""

    values: ClassVar[dict] = {}

    def __init__(self, name, kind, labels):
        self.key = (name, *sorted(labels.items()))
        self.values.setdefault(self.key, [] if kind == "histogram" else 0)

    def set(self, value):
        self.values[self.key] = value

    def increment(self, value):
        self.values[self.key] += value

    def observe(self, value):
        self.values[self.key].append(value)


class FakeMetricFamily:
    GAUGE, HISTOGRAM = "gauge", "histogram"

    def __init__(self, name, description, kind):
        self.name, self.kind = name, kind

    def Metric(self, labels, buckets=None):  # noqa: N802  Triton's name
        assert (buckets is not None) == (self.kind == "histogram")
        return FakeMetric(self.name, self.kind, labels)


@pytest.fixture(scope="session")
def stub_utilities():
    """The module triton_python_backend_utils, as far as the backends use it; they import it under its own name."""
    utilities = types.ModuleType("triton_python_backend_utils")
    utilities.TritonError, utilities.Tensor, utilities.InferenceResponse = FakeError, FakeTensor, FakeResponse
    utilities.TritonModelException = type("TritonModelException", (Exception,), {})
    utilities.MetricFamily, utilities.metrics = FakeMetricFamily, FakeMetric.values
    utilities.warnings = []
    utilities.Logger = types.SimpleNamespace(log_warn=utilities.warnings.append)
    utilities.triton_string_to_numpy = {"TYPE_FP32": np.float32}.get
    utilities.get_input_tensor_by_name = lambda request, name: (
        FakeTensor(name, request.inputs[name]) if name in request.inputs else None
    )
    sys.modules["triton_python_backend_utils"] = utilities
    yield utilities
    del sys.modules["triton_python_backend_utils"]


@pytest.fixture(scope="session")
def arithmetic(tmp_path_factory):
    """Version directory with a model that has two outputs: double = 2x, sum = the sum of each row."""
    x, double, total = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", columns])
        for name, columns in (("x", 2), ("double", 2), ("sum", 1))
    )
    nodes = [
        helper.make_node("Add", ["x", "x"], ["double"]),
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "arithmetic", [x], [double, total], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    version = tmp_path_factory.mktemp("arithmetic") / "1"
    version.mkdir()
    onnx.save_model(model, version / "model.onnx")
    return version
