"""The commands of a container: ``exec``, ``probe`` and ``deliver``. The Triton in the wheel replaces the one in NVIDIA's image."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from servers import run_command
from typer.testing import CliRunner
from waiting import wait_until

from alexnet_client import BlockingClient
from alexnet_client.errors import Overloaded
from alexnet_server import container
from alexnet_server.__main__ import app

IMAGE = np.zeros((1, 224, 224, 3), np.uint8)


def invoke(*arguments):
    """Exit code and output of ``alexnet-server`` in this process."""
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    return done.exit_code, done.output


def exec_fails(repository, *options, code=1, **environment):
    """Error output of an ``exec`` that is rejected before Triton starts."""
    done = run_command("alexnet_server", "exec", "--repository", repository, *options, **environment)
    assert done.returncode == code
    return done.stderr


@dataclass
class Container:
    """The main process of a container."""

    process: subprocess.Popen
    target: str
    repository: Path

    def probe(self, *models):
        """Exit code and output; golden answers are compared if ``alexnet`` is one of the models."""
        golden = ("--golden", self.repository) if "alexnet" in models else ()
        named = [part for model in models for part in ("--model", model)]
        return invoke("probe", *named, "--target", self.target, "--timeout", 5, *golden)

    def kill_backend(self, model):
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if "triton_python_backend_stub" in child.name() and f"/{model}/" in child.cmdline()[1]:
                child.kill()

    def is_ready(self):
        assert self.process.poll() is None
        return self.probe("alexnet_encoded", "alexnet")[0] == 0


@contextmanager
def container_of(repository, free_port):
    port = free_port()
    options = ("--repository", repository, "--grpc-port", port, "--metrics-port", free_port())
    command = [sys.executable, "-m", "alexnet_server", "exec", *options]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        running = Container(process, f"127.0.0.1:{port}", repository)
        try:
            wait_until(running.is_ready, "Triton is ready", every_s=0.2)
            yield running
        finally:
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
                child.kill()
            process.kill()
            process.wait(10)
            for region in Path("/dev/shm").glob(f"alexnet_{process.pid}_*"):
                region.unlink()


def test_exec_becomes_triton_which_serves_and_stops_gracefully(cheap, free_port):
    with container_of(cheap.repository, free_port) as running:
        assert psutil.Process(running.process.pid).name() == "tritonserver"
        with BlockingClient(running.target) as client:
            assert np.allclose(client.infer(IMAGE).logits, cheap.logits(IMAGE), atol=1e-4)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0
        code, output = running.probe("alexnet")
    assert code == 1
    assert "no server responds" in output


def test_the_probe_finds_a_dead_backend_process_behind_an_open_port(cheap, free_port):
    with container_of(cheap.repository, free_port) as running:
        running.kill_backend("alexnet_decode")
        assert running.probe("alexnet_encoded")[0] == 1
        assert running.probe("alexnet")[0] == 0
        running.kill_backend("alexnet")
        assert running.probe("alexnet")[0] == 1


def test_the_probe_passes_if_the_server_is_overloaded(monkeypatch):
    async def reject(transport, model, deadline):
        raise Overloaded("the queue is full")

    monkeypatch.setattr(container, "probe_model", reject)
    assert invoke("probe")[0] == 0


@pytest.fixture
def copied(cheap, tmp_path):
    return shutil.copytree(cheap.repository, tmp_path / "source")


def damage(repository):
    (repository / "alexnet/1/model.onnx").write_bytes(b"something else")


def add_version_without_manifest(repository):
    shutil.copytree(repository / "alexnet/1", repository / "alexnet/2", ignore=shutil.ignore_patterns("manifest.json"))


def test_exec_rejects_a_file_that_is_not_the_published_one(copied):
    damage(copied)
    assert "its SHA-256 differs" in exec_fails(copied)


def test_only_a_triton_release_with_the_fixes_may_listen_for_other_machines(copied):
    assert "57 published vulnerabilities" in exec_fails(copied, "--address", "0.0.0.0", code=2)
    (copied / "alexnet/1/model.onnx").unlink()  # the next check fails
    accepted = exec_fails(copied, "--address", "0.0.0.0", NVIDIA_TRITON_SERVER_VERSION="26.06")
    assert "model.onnx: missing" in accepted
    releases = {"26.05": False, "26.06": True, "27.01": True, "nonsense": False, "": False}
    assert {release: container.is_fixed(release) for release in releases} == releases


def test_a_delivered_repository_is_complete_also_after_an_interruption(cheap, tmp_path):
    source = {path.relative_to(cheap.repository) for path in cheap.repository.rglob("*")}
    visible = {path for path in source if not any(part.startswith(".") for part in path.parts)}
    destination = tmp_path / "models"
    for _ in range(2):
        code, output = invoke("deliver", cheap.repository, destination)
        assert code == 0
        assert "alexnet version 1: all files match the manifest" in output
        assert {path.relative_to(destination) for path in destination.rglob("[!.]*")} == visible
        assert not (destination / ".incoming").exists()
        (destination / ".incoming").mkdir()
        (destination / "alexnet/1/model.onnx").unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (damage, "its SHA-256 differs"),
        (add_version_without_manifest, "alexnet/2/manifest.json: missing"),
        (lambda repository: shutil.rmtree(repository / "alexnet/1"), "contains no published release"),
        (shutil.rmtree, "no such model repository"),
    ],
    ids=["damaged", "no manifest", "no release", "missing"],
)
def test_an_invalid_repository_is_not_delivered(copied, tmp_path, change, reason):
    change(copied)
    code, output = invoke("deliver", copied, tmp_path / "models")
    assert code != 0
    assert reason in output
    assert not (tmp_path / "models/alexnet").exists()


def test_a_repository_is_not_delivered_over_another_directory(copied):
    assert "not empty" in invoke("deliver", copied, copied)[1]
