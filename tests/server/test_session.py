"""The session is the one that was asked for; runs bound to a device give what plain runs give."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from alexnet_client import cpus
from alexnet_client.cpus import usable_cpus
from alexnet_server.onnxruntime.device import DeviceRunner
from alexnet_server.onnxruntime.providers import CPU, CUDA, ConfigError
from alexnet_server.onnxruntime.session import check_providers
from alexnet_server.onnxruntime.settings import read_settings


@pytest.fixture(scope="module")
def doubling():
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


def test_a_provider_that_could_not_be_used_is_an_error_with_a_remedy():
    with pytest.raises(ConfigError, match=r"could not use CUDAExecutionProvider and took CPUEx.* allow_cpu_fallback"):
        check_providers([CPU], gpu_settings())


def test_a_fallback_to_the_cpu_happens_when_it_is_asked_for():
    settings = gpu_settings(allow_cpu_fallback="1")
    check_providers([CPU], settings)
    assert settings.providers[-1] == (CPU, {})
    assert not settings.session_entries


def test_without_it_no_node_may_run_on_the_cpu():
    settings = gpu_settings()
    assert settings.session_entries == {"session.disable_cpu_ep_fallback": "1"}
    assert [name for name, _ in settings.providers] == [CUDA]


@pytest.mark.parametrize("names", [["double", "negative"], ["negative"]])
def test_a_bound_run_equals_a_plain_one(doubling, names):
    runner = DeviceRunner(doubling, "cpu", 0)
    for rows in (1, 3, 2):
        found = runner.run(names, {"x": numbers(rows)})
        for mine, theirs in zip(found, doubling.run(names, {"x": numbers(rows)}), strict=True):
            assert np.array_equal(mine, theirs)


def test_a_tensor_on_the_device_is_run_where_it_is(doubling, monkeypatch):
    value = ort.OrtValue.from_dlpack(numbers(3))
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", lambda *_: pytest.fail("copied"))
    assert np.array_equal(DeviceRunner(doubling, "cpu", 0).run(["double"], {"x": value})[0], 2 * numbers(3))


class Bindings:
    """Remembers what each bound run was given."""

    def __init__(self, session):
        self.session, self.seen = session, []

    def __getattr__(self, name):
        return getattr(self.session, name)

    def run_with_iobinding(self, binding, options):
        self.seen.append((id(binding), options.get_run_config_entry("gpu_graph_id")))


def test_captured_batch_sizes_keep_their_memory_and_their_graph_and_others_have_none(doubling):
    watched = Bindings(doubling)
    runner = DeviceRunner(watched, "cpu", 0, graph_batches=(1, 4))
    for rows in (1, 4, 1, 4):
        runner.run(["double"], {"x": numbers(rows)})
    assert watched.seen[0] == watched.seen[2]
    assert watched.seen[1] == watched.seen[3]
    assert {graph for _, graph in watched.seen} == {"1", "2"}
    with pytest.raises(RuntimeError):  # this stand-in leaves an unbound output empty; its graph is what matters
        runner.run(["double"], {"x": numbers(2)})
    assert watched.seen[-1][1] == "-1"


def test_answers_of_replayed_batches_are_those_of_their_own_inputs(doubling):
    class Ungraphed(Bindings):
        def run_with_iobinding(self, binding, options):
            self.session.run_with_iobinding(binding)  # the CPU knows no graphs

    runner = DeviceRunner(Ungraphed(doubling), "cpu", 0, graph_batches=(2,))
    for offset in (0, 5, 9):
        assert np.array_equal(runner.run(["double"], {"x": numbers(2) + offset})[0], 2 * (numbers(2) + offset))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "nonsense"}, 4),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({}, 4),
    ],
)
def test_processors_are_counted_within_the_cgroups_quota(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert usable_cpus(tmp_path) == expected
