"""Benchmark of the model variants in process on the CPU with random images, alternating between files and engines."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from in_process import HAS_AMX, InProcess
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from results import Result
from workloads import INPUT, random_images

from alexnet_client.golden import read_golden, rms_error
from alexnet_export.data import DataSet
from alexnet_export.image_sets import calibration_images
from alexnet_export.releases import Release, releases
from alexnet_export.runners import onnx_runner, openvino_engines
from alexnet_export.speed import measure
from alexnet_export.triton_config import ONNXRUNTIME, OPENVINO_BF16
from alexnet_server.onnxruntime.providers import ConfigError

BATCHES = (1, 8, 32, 64)
FASTER_THAN_PLAIN = {1: 1.25, 64: 2.5} if HAS_AMX else {1: 1.0, 64: 1.0}
"""Goals of the engine of the INT8 release, by batch size, compared with plain ONNX Runtime and the same file."""
STATIC = {"quantize_static (uint8)": QuantType.QUInt8, "quantize_static (int8)": QuantType.QInt8}
"""Files quantised by ONNX Runtime, by the data type of the activations."""
BENCHMARK_APP = """\
import sys
sys.modules["openvino_telemetry"] = None  # makes its import fail: nothing is sent
from openvino.tools.benchmark.main import main
main()"""


def bench_variants(repositories: Mapping[str, Path], dataset: DataSet, *, rounds: int = 21) -> Iterator[Result]:
    """Measure the files of the INT8 and the FP32 release with each engine of this CPU, and those of ``quantize_static``.

    "onnxruntime" is plain ONNX Runtime: its own CPU kernels, with the session options that the server uses.
    """
    found: dict[str, Release] = {name: releases(each)[-1] for name, each in repositories.items()}
    engine = found["int8"].manifest["engine"]
    files = {name: each.directory / "model.onnx" for name, each in found.items()}
    sides = {f"{name}, {ONNXRUNTIME}": (path, ONNXRUNTIME) for name, path in files.items()}
    with suppress(ConfigError):  # OpenVINO does not support this CPU
        for each in openvino_engines():
            own = {"bf16": files["fp32"]} if each == OPENVINO_BF16 else files
            sides |= {f"{name}, {each}": (path, each) for name, path in own.items()}
    chosen, float32, plain = f"int8, {engine}", f"fp32, {ONNXRUNTIME}", f"int8, {ONNXRUNTIME}"
    pairs = [(title, plain if path == files["int8"] else float32) for title, (path, _) in sides.items()]
    pairs += [(title, float32) for title in sides]
    for name, activations in STATIC.items():
        path = repositories["int8"].parent / f"{activations}.onnx"
        sides[name] = quantized_by_onnxruntime(files["fp32"], path, dataset, activations), engine
        pairs.append((chosen, name))
    golden = read_golden(found["fp32"].directory)
    assert golden is not None
    yield Result.of("size of the int8 file", [files["int8"].stat().st_size / 1e6], unit="MB", goal=62, at_most=True)
    runners = {title: onnx_runner(path, engine=each) for title, (path, each) in sides.items()}
    for title, run in runners.items():
        percent = 100 * rms_error(golden.logits, run(golden.images)[0])
        yield Result.of(f"{title}: RMS error of the logits", [percent], unit="% of their range")
    speeds = measure(runners, rounds=rounds, batch_sizes=BATCHES)
    for title, other in dict.fromkeys(pair for pair in pairs if pair[0] != pair[1]):
        for batch in BATCHES:
            mine, theirs = ([batch / each for each in speeds[side].seconds[batch]] for side in (title, other))
            goal = FASTER_THAN_PLAIN.get(batch) if (title, other) == (chosen, plain) else None
            yield Result.ratio(f"{title} / {other}, batch {batch}", mine, theirs, goal=goal)
    if find_spec("openvino"):
        yield against_benchmark_app(files["int8"], engine, rounds=min(5, rounds))


def against_benchmark_app(model: Path, engine: str, *, rounds: int, seconds: int = 4) -> Result:
    """Throughput of the release's engine relative to OpenVINO's own benchmark, without ONNX Runtime."""
    baseline = InProcess(model, engine, random_images(), batches=(64,))
    options = ("-d", "CPU", "-hint", "throughput", "-infer_precision", "f32", "-shape", f"{INPUT}[64,224,224,3]")
    command = [sys.executable, "-c", BENCHMARK_APP, "-m", str(model), "-t", str(seconds), *options]
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(baseline.throughput(seconds))
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        theirs.append(float(re.findall(r"Throughput:\s*([\d.]+) FPS", output)[0]))
    name = f"int8, in process ({baseline.fastest}) / OpenVINO's benchmark_app, batch 64"
    return Result.ratio(name, ours, theirs, goal=0.85 if HAS_AMX else None)


def quantized_by_onnxruntime(source: Path, path: Path, dataset: DataSet, activations: QuantType) -> Path:
    """Quantise a float file with ONNX Runtime's ``quantize_static``: uint8 or symmetric int8 activations."""
    batches = iter({INPUT: batch} for batch in np.split(calibration_images(dataset).pixels[:128], 8))
    quantize_static(
        source,
        path,
        SimpleNamespace(get_next=lambda: next(batches, None)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=activations,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": activations == QuantType.QInt8},
    )
    return path
