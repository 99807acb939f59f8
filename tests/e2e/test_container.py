"""The commands that a container's runtime calls, with the wheel's Triton in the place of NVIDIA's image: exec, probe, deliver."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from alexnet_client import BlockingClient
from alexnet_client.errors import Overloaded
from alexnet_server import container
from alexnet_server.__main__ import app

IMAGE = np.zeros((1, 224, 224, 3), np.uint8)


def run(*arguments, **variables):
    command = [sys.executable, "-m", "alexnet_server", *map(str, arguments)]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


@dataclass
class Contained:
    """A process that became Triton."""

    process: subprocess.Popen
    target: str

    def probe(self):
        models = ("--model", "alexnet", "--model", "alexnet_encoded")
        return run("probe", *models, "--target", self.target, "--timeout", "5")


@contextmanager
def contained(repository, free_port):
    grpc_port = free_port()
    ports = ("--grpc-port", grpc_port, "--metrics-port", free_port())
    command = [sys.executable, "-m", "alexnet_server", "exec", "--repository", repository, *ports]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        found = Contained(process, f"127.0.0.1:{grpc_port}")
        try:
            deadline_s = time.monotonic() + 60
            while found.probe()[0]:
                assert process.poll() is None
                assert time.monotonic() < deadline_s
            yield found
        finally:
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
                child.kill()
            process.kill()
            process.wait(10)
            for left_over in Path("/dev/shm").glob(f"alexnet_{process.pid}_*"):
                left_over.unlink()


def test_it_becomes_triton_answers_and_its_end_is_orderly(cheap, free_port):
    with contained(cheap.repository, free_port) as server:
        assert psutil.Process(server.process.pid).name() == "tritonserver"
        with BlockingClient(server.target) as client:
            assert np.allclose(client.infer(IMAGE).logits, cheap.logits(IMAGE), atol=1e-4)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        code, said = server.probe()
        assert code == 1
        assert "no server responds" in said


@pytest.mark.parametrize("model", ["alexnet", "alexnet_decode"])
def test_the_probe_finds_a_dead_backend_behind_an_open_port(cheap, free_port, model):
    with contained(cheap.repository, free_port) as server:
        for child in psutil.Process(server.process.pid).children(recursive=True):
            if "triton_python_backend_stub" in child.name() and f"/{model}/" in child.cmdline()[1]:
                child.kill()
        assert server.probe()[0] == 1


def test_the_probe_takes_an_overloaded_server_for_alive(monkeypatch):
    async def refuse(transport, model, deadline):
        raise Overloaded("the queue is full")

    monkeypatch.setattr(container, "probe_model", refuse)
    assert CliRunner().invoke(app, ["probe"]).exit_code == 0


@pytest.fixture
def copied(cheap, tmp_path):
    return shutil.copytree(cheap.repository, tmp_path / "source")


def test_nothing_is_started_with_a_file_that_is_not_what_was_published(copied):
    (copied / "alexnet/1/model.onnx").write_bytes(b"something else")
    code, said = run("exec", "--repository", copied)
    assert code == 1
    assert "its SHA-256 differs" in said


def test_the_wheels_triton_is_not_shown_to_a_network_and_a_release_with_the_fixes_is(copied):
    assert "57 published vulnerabilities" in run("exec", "--repository", copied, "--address", "0.0.0.0")[1]
    (copied / "alexnet/1/model.onnx").unlink()  # ends it before it listens
    for release, accepted in (("26.05", False), ("26.06", True), ("27.01", True), ("nonsense", False)):
        said = run("exec", "-r", copied, "--address", "0.0.0.0", NVIDIA_TRITON_SERVER_VERSION=release)[1]
        assert ("model.onnx: missing" in said) is accepted, release


def test_a_repository_is_delivered_whole(cheap, tmp_path):
    code, said = run("deliver", cheap.repository, tmp_path / "models")
    assert code == 0
    assert "alexnet version 1: all files match the manifest" in said
    delivered = {path.relative_to(tmp_path / "models") for path in (tmp_path / "models").rglob("[!.]*")}
    there = {path.relative_to(cheap.repository) for path in cheap.repository.rglob("*")}
    assert delivered == {path for path in there if not any(part.startswith(".") for part in path.parts)}


def test_a_damaged_release_is_not_delivered(copied, tmp_path):
    (copied / "alexnet/1/model.onnx").write_bytes(b"something else")
    code, said = run("deliver", copied, tmp_path / "models")
    assert code == 1
    assert "its SHA-256 differs" in said
    assert not (tmp_path / "models/alexnet").exists()


def test_a_version_that_nobody_published_is_not_delivered_beside_one_that_was(copied, tmp_path):
    (copied / "alexnet/2").mkdir()
    shutil.copy(copied / "alexnet/1/model.onnx", copied / "alexnet/2")
    code, said = run("deliver", copied, tmp_path / "models")
    assert code == 1
    assert "alexnet/2/manifest.json: missing" in said


def test_it_may_be_delivered_again_as_after_a_crash_half_way(cheap, tmp_path):
    destination = tmp_path / "models"
    assert run("deliver", cheap.repository, destination)[0] == 0
    (destination / ".incoming").mkdir()
    (destination / "alexnet/1/model.onnx").unlink()
    assert run("deliver", cheap.repository, destination)[0] == 0
    assert (destination / "alexnet/1/model.onnx").exists()
    assert not (destination / ".incoming").exists()


def test_what_cannot_be_delivered_is_told(copied, tmp_path):
    assert "no such model repository" in run("deliver", tmp_path / "nowhere", tmp_path / "models")[1]
    assert "not empty" in run("deliver", copied, copied)[1]
    shutil.rmtree(copied / "alexnet/1")
    code, said = run("deliver", copied, tmp_path / "models")
    assert code == 1
    assert "contains no published release" in said
