"""``make serve``, ``make classify`` and ``make demo`` as a user types them, against the real Triton."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = f"""#!{sys.executable}
from alexnet_export import __main__, options
from alexnet_export.model import Widths

full = options.TrainOptions
options.TrainOptions = lambda **how: full(**how, widths=Widths((16, 48, 96, 64, 64), 256))
options.TrainOptions.steps, options.TrainOptions.learning_rate = full.steps, full.learning_rate
options.TrainOptions.evaluate_every = full.evaluate_every
__main__.main()
"""


def variables() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}


def test_serve_answers_classify_until_it_is_interrupted(repository, tmp_path, free_port):
    port, metrics = free_port(), free_port()
    common = [f"REPOSITORY={repository}", f"BUILD={tmp_path}", f"TARGET=127.0.0.1:{port}"]
    serve = ["make", "serve", *common, f"SERVE_OPTIONS=--grpc-port {port} --metrics-port {metrics} --health-port 0"]
    with subprocess.Popen(
        serve, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=variables(), process_group=0
    ) as serving:
        try:
            lines = iter(serving.stdout.readline, "")  # make may have had to install something first
            said = next((line for line in lines if line.startswith("Serving")), "")
            assert said.startswith(f"Serving alexnet, alexnet_decode, alexnet_encoded: gRPC 127.0.0.1:{port}"), said
            classify = ["make", "classify", *common, "IMAGE=tests/golden/photo.jpg"]
            done = subprocess.run(classify, cwd=ROOT, capture_output=True, text=True, env=variables(), check=True)
            assert len(json.loads(done.stdout.splitlines()[-1])["images"][0]["top"]) == 5
        finally:
            os.killpg(serving.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
        assert "Triton stopped." in serving.stdout.read()
    refused = subprocess.run(classify, cwd=ROOT, capture_output=True, text=True, env=variables(), check=False)
    assert refused.returncode != 0
    assert "no server responds, or it is stopping; start a server or check the address" in refused.stderr


@pytest.fixture
def programs(tmp_path):
    """A directory of the commands that make calls, whose exporter has the small network of the tests."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("alexnet-client", "alexnet-load", "alexnet-server"):
        (directory / name).symlink_to(Path(sys.executable).parent / name)
    (directory / "alexnet-export").write_text(SMALL)
    (directory / "alexnet-export").chmod(0o755)
    return directory


def test_demo_walks_the_whole_road_and_ends_with_a_json_line(tmp_path, free_port, programs):
    port, metrics = free_port(), free_port()
    command = [
        *("make", "demo", f"REPOSITORY={tmp_path}/repository", f"BUILD={tmp_path}/build", f"TARGET=127.0.0.1:{port}"),
        f"SERVE_OPTIONS=--grpc-port {port} --metrics-port {metrics} --health-port 0",
        *("TRAIN_OPTIONS=--steps 2 --batch-size 8", "PRECISION=fp32", f"BIN={programs}"),  # the road, not the accuracy
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables(), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report, load = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")][-2:]
    assert report["images"] == 200
    assert report["model_version"] == "1"
    assert report["triton_version"] == "2.51.0"
    assert 0 < report["p50_ms"] <= report["p99_ms"]
    assert 0 <= report["accuracy"] <= 1
    assert "Images: " in done.stdout
    assert load["requests"] > 100
    assert load["ok"] > 0  # how many are answered in time is this machine's affair: other tests take its processors
    assert load["page"] == f"{tmp_path}/build/load/index.html"
    attempts = load["client"]["attempts"]
    late = sum(attempts.values()) - attempts["ok"]  # what a client no longer waits for, a server may answer
    assert attempts["ok"] <= load["server"]["success"] <= attempts["ok"] + late
    manifest = json.loads((tmp_path / "repository/alexnet/1/manifest.json").read_text())
    assert manifest["variants"][0]["images"] >= 500
    assert (tmp_path / "build/digits/answers.png").exists()
