"""What ``make demo`` produces: the full-size network, the fastest valid variant, on the real Triton, compared with PyTorch.

The images are a folder of four colours instead of the digits: a few training steps separate them, so that the accuracy gate of the
quantised network has a clear answer.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from servers import run_command

from alexnet_client import Client
from alexnet_client.images import load_pixels
from alexnet_export import checkpoint as checkpoints
from alexnet_export.model import ServedModel
from alexnet_export.runners import onnx_runner
from alexnet_export.verify import answers

pytestmark = pytest.mark.full_size

ROOT = Path(__file__).parents[2]
COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40), "yellow": (210, 200, 40)}
SPLITS = {"train": 40, "val": 15, "test": 100}
"""Images of each class; the gate of the quantised network needs 390 test images."""


@dataclass(frozen=True)
class Demo:
    """The result of one ``make demo``."""

    output: str
    repository: Path
    build: Path

    @property
    def json_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.repository / "alexnet/1/manifest.json").read_text())

    @property
    def checkpoint(self) -> Path:
        return next(self.build.glob("colours-*/checkpoint"))

    @property
    def samples(self) -> list[Path]:
        """Held-out images, as the demo wrote and classified them."""
        return sorted(self.build.glob("colours-*/samples/*/*.png"))


def environment() -> dict[str, str]:
    """The environment without make's own variables, and without the limit of one thread for each test process."""
    hidden = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {key: value for key, value in os.environ.items() if key not in hidden}


def draw_folder(directory: Path) -> None:
    """Images of one noisy colour each, split by split and class by class."""
    for place, (split, count) in enumerate(SPLITS.items()):
        for label, (name, colour) in enumerate(COLOURS.items()):
            (directory / split / name).mkdir(parents=True)
            for number in range(count):
                random = np.random.default_rng((place, label, number))
                pixels = random.normal(np.array(colour) * random.uniform(0.7, 1.1), 40, (64, 64, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(directory / split / name / f"{number}.png")


@pytest.fixture(scope="module")
def demo(tmp_path_factory, free_port) -> Demo:
    directory = tmp_path_factory.mktemp("demo")
    draw_folder(directory / "colours")
    port = free_port()
    command = [
        *("make", "demo", "DATA=folder", f"DATA_DIR={directory}/colours"),
        *(f"REPOSITORY={directory}/repository", f"BUILD={directory}/build", f"TARGET=127.0.0.1:{port}", "RATE=20"),
        f"SERVE_OPTIONS=--grpc-port {port} --metrics-port {free_port()} --health-port 0",
        *("TRAIN_OPTIONS=--steps 16 --batch-size 8", "EXPORT_OPTIONS=--rounds 1"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Demo(done.stdout, directory / "repository", directory / "build")


@pytest.fixture(scope="module")
def pixels(demo) -> np.ndarray:
    """Held-out images, uint8 [137, 224, 224, 3]."""
    return np.stack([load_pixels(path) for path in demo.samples[:137]])


@pytest.fixture(scope="module")
def expected(demo, pixels) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch's logits and probabilities for these images, float32 [137, 4]."""
    checkpoint = checkpoints.load(demo.checkpoint)
    model = ServedModel(checkpoint.network(), checkpoint.normalization).eval()
    with torch.inference_mode():
        logits, probabilities = model(torch.from_numpy(pixels))
    return logits.numpy(), probabilities.numpy()


@pytest.fixture(scope="module")
def demo_server(demo, launch):
    with launch(demo.repository, "--probe-interval", 0) as running:
        yield running
        assert running.stop() == 0


def test_demo_publishes_the_full_size_network_as_int8_after_its_gates(demo):
    manifest = demo.manifest
    assert [each["name"] for each in manifest["variants"]] == ["fp32", "int8"]
    assert all(each["gate"] == "passed" and each["images"] >= 500 for each in manifest["variants"])
    assert manifest["variants"][0]["bytes"] > 220e6, "57 million weights of 32 bits"
    assert manifest["variants"][0]["max_logit_difference"] <= 1e-4
    fastest = max(manifest["variants"], key=lambda each: each["images_per_second"])
    assert manifest["precision"] == fastest["name"]
    assert (demo.repository / "alexnet/1/model.onnx").stat().st_size == fastest["bytes"]


def test_demo_classifies_held_out_images_and_ends_with_a_load_test(demo):
    evaluation, load = demo.json_lines[-2:]
    assert (evaluation["images"], evaluation["model_version"], evaluation["triton_version"]) == (200, "1", "2.51.0")
    assert evaluation["accuracy"] >= 0.95
    assert 0 < evaluation["p50_ms"] <= evaluation["p99_ms"]
    assert load["ok"] > 0
    assert load["page"] == f"{demo.build}/load/index.html"
    assert Path(load["page"]).exists()
    assert next(demo.build.glob("colours-*/answers.png")).exists()


async def test_the_served_network_agrees_with_pytorch_on_held_out_images(demo_server, pixels, expected):
    async with Client(demo_server.target, timeout_s=60) as client:
        batches = np.split(pixels, np.cumsum([1, 2, 7, 63]))
        found = [await client.infer(batch) for batch in batches]
    assert [len(answer.logits) for answer in found] == [1, 2, 7, 63, 64]
    logits = np.concatenate([answer.logits for answer in found])
    probabilities = np.concatenate([answer.probabilities for answer in found])
    clear = np.diff(np.sort(expected[1], axis=1)[:, -2:], axis=1)[:, 0] > 0.2
    assert clear.mean() > 0.9
    assert (logits.argmax(1) == expected[0].argmax(1))[clear].all()
    assert np.abs(logits - expected[0]).max() <= 0.03 * np.ptp(expected[0]), "INT8; 0.006 was measured"
    assert np.abs(probabilities.sum(1) - 1).max() < 1e-5


async def test_the_served_network_answers_as_the_same_file_in_process(demo, demo_server, pixels):
    in_process = answers(onnx_runner(demo.repository / "alexnet/1/model.onnx"), pixels[:64])
    async with Client(demo_server.target, timeout_s=60) as client:
        served = (await client.infer(pixels[:64])).logits
    assert np.abs(served - in_process).max() <= 1e-5 * np.ptp(in_process)


async def test_image_files_get_the_same_answers_as_their_pixels(demo, demo_server, pixels):
    async with Client(demo_server.target, model="alexnet_encoded", timeout_s=60) as files:
        by_file = [await files.classify(path) for path in demo.samples[:5]]
    async with Client(demo_server.target, timeout_s=60) as client:
        by_pixels = [await client.classify(image) for image in pixels[:5]]
    for file, image in zip(by_file, by_pixels, strict=True):
        assert np.array_equal(file.logits, image.logits)
        assert file.label == image.label in COLOURS


def verify(demo, repository, target):
    return run_command(
        *("alexnet_export", "verify", "--checkpoint", demo.checkpoint, "--repository", repository, "--served", target),
        *("--data", "folder", "--data-dir", demo.build.parent / "colours"),
    )


def test_the_served_release_passes_its_gate_again(demo, demo_server):
    done = verify(demo, demo.repository, demo_server.target)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["answered_by"] == demo_server.target


def test_a_server_with_another_version_than_the_repository_is_reported(demo, demo_server, tmp_path):
    shutil.copytree(demo.repository, tmp_path / "copy")
    (tmp_path / "copy/alexnet/1").rename(tmp_path / "copy/alexnet/2")
    done = verify(demo, tmp_path / "copy", demo_server.target)
    assert done.returncode == 2
    assert "version 1" in done.stderr


def test_make_serve_answers_make_classify_until_it_is_interrupted(demo, tmp_path, free_port):
    port = free_port()
    common = [f"REPOSITORY={demo.repository}", f"BUILD={tmp_path}", f"TARGET=127.0.0.1:{port}"]
    options = f"SERVE_OPTIONS=--grpc-port {port} --metrics-port {free_port()} --health-port 0"
    classify = ["make", "classify", *common, "IMAGE=tests/golden/photo.jpg"]
    with subprocess.Popen(
        ["make", "serve", *common, options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        process_group=0,
    ) as serving:
        try:
            lines = iter(serving.stdout.readline, "")  # make may print more before
            line = next((line for line in lines if line.startswith("Serving")), "")
            assert line.startswith(f"Serving alexnet, alexnet_decode, alexnet_encoded: gRPC 127.0.0.1:{port}"), line
            done = subprocess.run(classify, cwd=ROOT, capture_output=True, text=True, env=environment(), check=True)
            assert len(json.loads(done.stdout.splitlines()[-1])["images"][0]["top"]) == len(COLOURS)
        finally:
            os.killpg(serving.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
        assert "Triton stopped." in serving.stdout.read()
    failed = subprocess.run(classify, cwd=ROOT, capture_output=True, text=True, env=environment(), check=False)
    assert failed.returncode != 0
    assert f"127.0.0.1:{port}" in failed.stderr
