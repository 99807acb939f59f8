"""Lint of configurations: each mistake is found once with its fix; valid configurations have no findings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from alexnet_export.__main__ import app
from alexnet_export.check import check_config, check_repository
from alexnet_export.check_release import TARGETS
from alexnet_export.triton_config import (
    bounded_config,
    cpu_config,
    decode_config,
    encoded_config,
    gpu_config,
    render_configs,
    tensorrt_config,
)

OLD, NEW = TARGETS["24.10"], TARGETS["26.06"]
MAKERS = {
    "config.pbtxt": cpu_config,
    "configs/bounded.pbtxt": bounded_config,
    "configs/gpu.pbtxt": gpu_config,
    "configs/tensorrt.pbtxt": tensorrt_config,
}
MANIFEST = {"files": {"model.onnx": {}}, "max_batch_size": 64, "precision": "int8"}


def graph(*, batch="batch", opset=18, ir_version=10, pixel=onnx.TensorProto.UINT8, classes=10, extra=False):
    def tensor(name, kind, *shape):
        return onnx.helper.make_tensor_value_info(name, kind, [batch, *shape])

    outputs = [tensor(name, onnx.TensorProto.FLOAT, classes) for name in ("logits", "probabilities")]
    inputs = [tensor("image", pixel, 224, 224, 3), *([tensor("mask", pixel, 1)] if extra else [])]
    made = onnx.helper.make_graph([], "g", inputs, outputs)
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=ir_version)


def found(name="config.pbtxt", change=lambda config: None, **how):
    config = MAKERS[name]("alexnet", classes=10)
    change(config)
    given = {"target": OLD, "model": graph(), "manifest": MANIFEST, "versions": [1], "labels": 10, **how}
    return check_config(text_format.MessageToString(config), path=Path("models/alexnet") / name, **given)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_generated_configurations_have_no_findings(name, target):
    assert found(name, target=target) == []
    assert found(name, target=target, model=None, manifest=None) == [], "before there is a release"


def queue(config):
    return config.dynamic_batching.default_queue_policy


def gpu(config):
    return config.optimization.execution_accelerators.gpu_execution_accelerator


def cpu(config):
    return config.optimization.execution_accelerators.cpu_execution_accelerator


def tensorrt(config):
    return gpu(config)[0].parameters


def cuda(config):
    return gpu(config)[1].parameters


def profile(end, shapes):
    return lambda config: tensorrt(config).update({PROFILE.format(end): shapes})


PROFILE, CACHED = "trt_profile_{}_shapes", {"trt_engine_cache_enable": "1"}
CPU, BOUNDED, GPU, PLAN = MAKERS
KIND_AUTO = model_config_pb2.ModelInstanceGroup.KIND_AUTO
MISTAKES = {
    "name": (CPU, lambda c: setattr(c, "name", "other"), "name 'other' differs", 'name: "alexnet"'),
    "backend": (CPU, lambda c: c.ClearField("backend"), "no backend", 'backend: "onnxruntime"'),
    "runtime": (CPU, lambda c: setattr(c, "runtime", "x.py"), "runtime is set", "remove it"),
    "file name": (CPU, lambda c: c.ClearField("default_model_filename"), "no default_model_filename", "model.onnx"),
    "batching": (PLAN, lambda c: c.ClearField("dynamic_batching"), "no dynamic_batching", "default_queue_policy"),
    "batch": (CPU, lambda c: setattr(c, "max_batch_size", 0), "max_batch_size 0 disables batching", "64"),
    "versions": (CPU, lambda c: c.ClearField("version_policy"), "no version_policy", "latest { num_versions: 1 }"),
    "metrics": (CPU, lambda c: c.model_metrics.metric_control.add(), "24.10 cannot parse model_metrics", "24.11"),
    "instances": (CPU, lambda c: c.ClearField("instance_group"), "no instance_group", "count: 1"),
    "kind": (CPU, lambda c: setattr(c.instance_group[0], "kind", KIND_AUTO), "without count or kind", "KIND_CPU"),
    "one instance": (BOUNDED, lambda c: setattr(c.instance_group[0], "count", 1), "can stall", "count: 2"),
    "queue": (BOUNDED, lambda c: queue(c).ClearField("max_queue_size"), "queue size is not limited", "512"),
    "timeout": (BOUNDED, lambda c: queue(c).ClearField("default_timeout_microseconds"), "no queue timeout", "10000000"),
    "override": (BOUNDED, lambda c: queue(c).ClearField("allow_timeout_override"), "cannot set a shorter", "true"),
    "captured": (PLAN, lambda c: c.optimization.cuda.graph_spec.add(batch_size=99), "graph for batch 99", "remove"),
    "graphs": (GPU, lambda c: setattr(c.optimization.cuda, "graphs", True), "no effect outside the tensorrt", "remove"),
    "warm-up": (CPU, lambda c: c.model_warmup.pop(), "no warm-up for batch 64", "model_warmup { batch_size: 64"),
    "warm-up of one": (PLAN, lambda c: c.model_warmup.pop(2), "no warm-up for batch 16", "batch_size: 16"),
    "labels": (CPU, lambda c: c.output[1].ClearField("label_filename"), "no output has a label_filename", "labels.txt"),
    "file": (CPU, lambda c: setattr(c, "default_model_filename", "m.onnx"), "has no m.onnx", "name one of model.onnx"),
    "input name": (CPU, lambda c: setattr(c.input[0], "name", "images"), "input images is not in the graph", "image"),
    "input type": (CPU, lambda c: setattr(c.input[0], "data_type", 11), "image is TYPE_FP32", "data_type: TYPE_UINT8"),
    "input dims": (CPU, lambda c: c.input[0].dims.insert(0, -1), "image has dims [-1, 224, 224, 3]", "[224, 224, 3]"),
    "output name": (CPU, lambda c: setattr(c.output[0], "name", "y"), "output y is not in the graph", "logits"),
    "profile": (GPU, lambda c: tensorrt(c).pop(PROFILE.format("opt")), "opt_shapes is missing", "image:32x"),
    "profile max": (GPU, profile("max", "image:32x224x224x3"), "batch 32, requests need 64", "image:64x224x224x3"),
    "profile min": (GPU, profile("min", "image:2x224x224x3"), "batch 2, requests need 1", "image:1x224x224x3"),
    "profile input": (GPU, profile("min", "images:1x3x224x224"), "does not contain the inputs", "image:1x224x224x3"),
    "tensorrt key": (GPU, lambda c: tensorrt(c).update(fast="1"), "unknown key fast", "remove it"),
    "precision": (GPU, lambda c: tensorrt(c).update(precision_mode="FP16"), "precision_mode", "PRECISION=fp16"),
    "cache": (GPU, lambda c: tensorrt(c).update(CACHED), "cache without a path", "set trt_"),
    "stale engine": (GPU, lambda c: tensorrt(c).update(CACHED), "does not distinguish releases", '_enable to "0"'),
    "cuda key": (GPU, lambda c: cuda(c).update(gpu_mem_limit="1"), "gpu_mem_limit has no effect", "parameters {"),
    "accelerator": (GPU, lambda c: gpu(c).add(name="rocm"), "GPU accelerator 'rocm' is unknown", "tensorrt or cuda"),
    "preference": (
        PLAN,
        lambda c: setattr(c, "max_batch_size", 32),
        "batch_size 64 exceeds max_batch_size 32",
        "raise",
    ),
    "version": (CPU, lambda c: c.version_policy.specific.versions.extend([1, 7]), "names version 7, which", "latest {"),
    "CPU accelerator": (
        CPU,
        lambda c: cpu(c).add(name="dnnl"),
        "unknown CPU execution accelerator 'dnnl'; use openvino",
        "remove it",
    ),
    "parameter": (CPU, lambda c: setattr(c.parameters["execution_mode"], "string_value", "2"), "0 (sequ", "correct"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_once_with_its_fix(mistake):
    name, change, problem, fix = MISTAKES[mistake]
    findings = [finding for finding in found(name, change) if problem in finding.problem]
    assert len(findings) == 1, found(name, change)
    assert fix in findings[0].fix
    assert findings[0].path == f"models/alexnet/{name}"


@pytest.mark.parametrize(
    ("how", "problem", "fix"),
    [
        ({"model": graph(batch=8)}, "has a fixed batch size of 8", "dynamic batch axis"),
        ({"model": graph(opset=22)}, "opset 22, ONNX Runtime 1.19.2 of Triton 24.10", "make export"),
        ({"model": graph(ir_version=11)}, "IR version 11, ONNX Runtime 1.19.2 of Triton 24.10", "make export"),
        ({"model": graph(classes=9)}, "output logits has dims [10], the graph has [9]", "dims: [9]"),
        ({"model": graph(extra=True)}, "input mask of the graph is not in the configuration", 'name: "mask"'),
        ({"manifest": {**MANIFEST, "max_batch_size": 32}}, "the model supports 32", "max_batch_size: 32"),
        ({"manifest": {**MANIFEST, "precision": "fp16"}}, "is fp16, which is slow on CPUs", "--config-name gpu"),
        ({"labels": 9}, "probabilities has dims [10], labels.txt has 9 names", "dims: [ 9 ]"),
        ({"labels": None}, "labels.txt is missing", "make export"),
    ],
)
def test_a_release_that_does_not_match_is_found(how, problem, fix):
    findings = [finding for finding in found(**how) if problem in finding.problem]
    assert findings
    assert all(fix in finding.fix for finding in findings)


VALIDATED = {"name": "int8", "gate": "passed"}
OPENVINO = {"precision": "int8", "variants": [{**VALIDATED, "engine": "openvino f32"}]}


def openvino(**parameters):
    return lambda config: cpu(config).add(name="openvino", parameters=parameters)


@pytest.mark.parametrize(
    ("manifest", "change", "problems"),
    [
        ({"variants": [VALIDATED]}, lambda config: None, []),
        (
            {"variants": [VALIDATED]},
            openvino(),
            ["engine is 'openvino f32', the newest release was validated with 'onn"],
        ),
        (OPENVINO, openvino(INFERENCE_PRECISION_HINT="f32"), []),
        (OPENVINO, openvino(INFERENCE_PRECISION_HINT="bf16"), ["the engine is 'openvino bf16'"]),
        (OPENVINO, openvino(INFERENCE_PRECISION_HINT="f16"), ["INFERENCE_PRECISION_HINT must be one of f32, bf16"]),
        (
            OPENVINO,
            lambda config: None,
            ["engine is 'onnxruntime', the newest release was validated with 'openvino f32'"],
        ),
        (OPENVINO, openvino(NUM_STREAMS="2"), ["NUM_STREAMS has no effect in NVIDIA's container"]),
        ({"precision": "fp32"}, openvino(), ["NVIDIA's container computes this fp32 release in bf16"]),
    ],
)
@pytest.mark.parametrize("target", [OLD, NEW], ids=lambda target: target.name)
def test_the_engine_is_a_validated_one_and_has_an_effect(manifest, change, problems, target):
    findings = found(change=change, manifest={**MANIFEST, **manifest}, target=target)
    expected = [problem for problem in problems if target is NEW or "container" not in problem]
    assert len(findings) == len(expected), findings
    for finding, problem in zip(findings, expected, strict=True):
        assert problem in finding.problem
    assert found("configs/gpu.pbtxt", manifest={**MANIFEST, **manifest}, target=target) == [], "not on the CPU"


def step(config, number):
    return config.ensemble_scheduling.step[number]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c, "name", "x"), "name 'x' differs from the directory"),
        (lambda c: setattr(step(c, 1), "model_name", "resnet"), "step resnet is not a model"),
        (lambda c: step(c, 0).input_map.update(encoded_image="file"), "reads file, which no earlier step writes"),
        (lambda c: step(c, 1).output_map.pop("logits"), "no step writes output logits"),
    ],
    ids=["name", "step", "input", "output"],
)
def test_a_mistake_in_the_ensemble_is_found(repository, change, message):
    config = encoded_config("alexnet", classes=10)
    change(config)
    path = repository / "alexnet_encoded/config.pbtxt"
    findings = check_config(text_format.MessageToString(config), path=path, target=OLD)
    assert [message in finding.problem for finding in findings] == [True], findings


def test_the_decoding_model_needs_an_instance_group():
    config = decode_config("alexnet")
    config.ClearField("instance_group")
    text, path = text_format.MessageToString(config), Path("m/alexnet_decode/config.pbtxt")
    (finding,) = check_config(text, path=path, target=OLD)
    assert "no instance_group" in finding.problem


def test_newer_triton_releases_support_model_metrics():
    assert found(change=lambda config: config.model_metrics.metric_control.add(), target=NEW) == []


@pytest.mark.parametrize(("text", "line"), [('name: "alexnet"\nbackend "onnxruntime" {', "2:"), ("nonsense: 1", "1:")])
def test_a_syntax_error_is_reported_with_its_line(text, line):
    (finding,) = check_config(text, path=Path("models/alexnet/config.pbtxt"), target=OLD)
    assert "cannot be parsed" in finding.problem
    assert line in finding.problem


def test_a_published_repository_has_no_findings(repository):
    paths, findings = check_repository(repository, OLD)
    assert [str(path.relative_to(repository)) for path in paths] == [
        *(f"alexnet/{name}" for name in MAKERS),
        *("alexnet_decode/config.pbtxt", "alexnet_encoded/config.pbtxt"),
    ]
    assert findings == []


def test_a_file_that_differs_from_the_manifest_is_found(repository, tmp_path):
    shutil.copytree(repository, tmp_path / "models")
    manifest = tmp_path / "models/alexnet/1/manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["model.onnx"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    (finding,) = check_repository(tmp_path / "models", OLD)[1]
    assert "its SHA-256 differs from the one in manifest.json" in finding.problem
    assert finding.fix == "publish again, or roll back: alexnet-export rollback"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in ("check", *arguments)])


def test_the_command_prints_the_fix_and_exits_with_1(tmp_path):
    (tmp_path / "alexnet/configs").mkdir(parents=True)
    (tmp_path / "alexnet/labels.txt").write_text("".join(f"{number}\n" for number in range(10)))
    for path, text in render_configs("alexnet", classes=10).items():
        (tmp_path / "alexnet" / path).write_text(text)
    good = run(tmp_path)
    assert good.exit_code == 0, good.output
    assert json.loads(good.stdout.splitlines()[-1])["findings"] == []
    config = tmp_path / "alexnet/config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 64", "max_batch_size: 32"))
    bad = run(tmp_path)
    assert bad.exit_code == 1
    (finding,) = json.loads(bad.stdout.splitlines()[-1])["findings"]
    assert finding["fix"] == "model_warmup { batch_size: 32 inputs { ... } }"
