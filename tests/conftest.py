"""Fixtures all parts share: a random network, the digits, and a repository with a real release of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alexnet_export import checkpoint as checkpoints
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet, open_dataset
from alexnet_export.model import UNIFORM, AlexNet, initialize
from alexnet_export.pipeline import export_release
from alexnet_export.publish import Release

_skipped: list[str] = []
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime reads it when it is first used


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI everything is installed, so a skipped test is a failure."""
    if os.environ.get("CI") and _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def digits() -> DataSet:
    return open_dataset("digits")


@pytest.fixture(scope="session")
def checkpoint(digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A saved checkpoint of a random network whose answers differ from image to image."""
    torch.manual_seed(2012)
    network = AlexNet(len(digits.labels))
    initialize(network)
    torch.nn.init.normal_(network.classifier[6].weight, std=0.05)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):  # the exporter drops biases that are all zero
            torch.nn.init.normal_(parameter, std=0.1)
    directory = tmp_path_factory.mktemp("checkpoint")
    checkpoints.save(Checkpoint(network.state_dict(), digits.labels, UNIFORM, {"made_for": "tests"}), directory)
    return checkpoints.load(directory)


@pytest.fixture(scope="session")
def release(checkpoint: Checkpoint, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The checkpoint, exported, proved and published by the real pipeline."""
    return export_release(checkpoint, digits, tmp_path_factory.mktemp("repository")).release


@pytest.fixture(scope="session")
def repository(release: Release) -> Path:
    return release.directory.parent.parent


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives a TCP port of 127.0.0.1 that nobody listens on, another one each time."""
    given: set[int] = set()

    def find() -> int:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in given:
                given.add(port)
                return port

    return find
