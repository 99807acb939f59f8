"""Fixtures all parts share: a random network, the digits, and a repository with a real release of it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet_export import checkpoint as checkpoints
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet, Pixels, Split, Unreadable, open_dataset
from alexnet_export.machine import keep_freed_memory
from alexnet_export.model import UNIFORM, AlexNet, Widths, initialize
from alexnet_export.pipeline import Exported, ExportOptions, Progress, export_release
from alexnet_export.releases import Release
from alexnet_export.to_onnx import export_onnx
from alexnet_export.variants import Variant

END_TO_END = Path(__file__).parent / "e2e"
_skipped: list[str] = []
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime reads it when it is first used
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # as alexnet-server sets it: its children call nothing of gRPC
torch.set_num_threads(1)  # the networks are small, and other test processes use the other CPUs
keep_freed_memory()  # tests create many models; allocating new pages for each takes half of the time of an export

SMALL = Widths(channels=(16, 48, 96, 64, 64), hidden=256)
"""A quarter of the channels: a tenth of the cost, for tests in which the size of the network does not matter."""
QUICK = ExportOptions(
    rounds=2,
    batch_sizes=(1, 2),
    repeats_of_one=2,
    minimum_images=80,
    maximum_images=80,
)
"""Options of exports whose speed measurements and gates are not tested."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of the real Triton, and run the longest first: pytest-xdist starts the files in this order."""
    for item in items:
        if END_TO_END in item.path.parents:
            item.add_marker("e2e")
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)
    items.sort(key=lambda item: item.get_closest_marker("full_size") is None)


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
def small() -> Widths:
    """Sizes of the layers of the small network."""
    return SMALL


@pytest.fixture(scope="session")
def checkpoint(digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A saved checkpoint of a small random network; its answers differ between images."""
    torch.manual_seed(2012)
    network = AlexNet(len(digits.labels), widths=SMALL)
    initialize(network)
    torch.nn.init.normal_(network.classifier[6].weight, std=0.05)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):  # the exporter drops biases that are zero
            torch.nn.init.normal_(parameter, std=0.1)
    directory = tmp_path_factory.mktemp("checkpoint")
    made_by = {"made_for": "tests"}
    checkpoints.save(Checkpoint(network.state_dict(), digits.labels, UNIFORM, made_by, widths=SMALL), directory)
    return checkpoints.load(directory)


@dataclass(frozen=True)
class First:
    """The first images of a split; every ``unreadable_every``th is unreadable."""

    split: Split
    count: int
    unreadable_every: int = 0

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int, epoch: int) -> tuple[Pixels, int]:
        if self.unreadable_every and index % self.unreadable_every == 0:
            raise Unreadable(f"{index}.jpg: damaged")
        return self.split.sample(index, epoch)


@pytest.fixture(scope="session")
def first() -> type[First]:
    return First


@pytest.fixture(scope="session")
def few_digits(digits: DataSet) -> DataSet:
    """The smallest number of images that the gates accept."""
    splits = (First(digits.train, 64), First(digits.validation, 74), First(digits.test, 500))
    return DataSet("few digits", digits.labels, *splits)


@pytest.fixture(scope="session")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of the exporter, before any rewrite."""
    path = tmp_path_factory.mktemp("exported") / "exported.onnx"
    export_onnx(checkpoint, path)
    return path


@pytest.fixture(scope="session")
def release(checkpoint: Checkpoint, few_digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release of the small network, published by the real pipeline."""
    repository = tmp_path_factory.mktemp("repository")
    return export_release(checkpoint, few_digits, repository, precision="fp32", options=QUICK).release


@pytest.fixture(scope="session")
def quickly(exported: Path) -> Callable[..., Exported]:
    """``export_release`` with the options ``QUICK``, and with the existing file of the exporter."""

    def export(*arguments: Any, **how: Any) -> Exported:
        with pytest.MonkeyPatch.context() as patch:
            copy_exported = lambda checkpoint, path, metadata: shutil.copyfile(exported, path)  # noqa: E731
            patch.setattr("alexnet_export.pipeline.export_onnx", copy_exported)
            return export_release(*arguments, **{"options": QUICK, **how})

    return export


@pytest.fixture(scope="session")
def tiny_digits(digits: DataSet) -> DataSet:
    """For exports whose gates are not tested."""
    splits = (First(digits.train, 32), First(digits.validation, 74), First(digits.test, 80))
    return DataSet("tiny digits", digits.labels, *splits)


@pytest.fixture(scope="session")
def exported_int8(
    checkpoint: Checkpoint,
    tiny_digits: DataSet,
    quickly: Callable[..., Exported],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Exported, list[Progress], list[Variant]]:
    """The small random network as int8. Its logits are closer together than a trained network's: no accuracy gate."""
    steps: list[Progress] = []
    variants: list[Variant] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alexnet_export.variants.check_loss", lambda comparison: None)
        patch.setattr("alexnet_export.quantize._within_budget", lambda comparison: True)
        done = quickly(
            checkpoint,
            tiny_digits,
            tmp_path_factory.mktemp("int8"),
            precision="int8",
            on_progress=steps.append,
            on_variants=variants.extend,
        )
    return done, steps, variants


@pytest.fixture(scope="session")
def repository(release: Release) -> Path:
    return release.directory.parent.parent


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives a TCP port of 127.0.0.1 that nobody listens on, another one each time.

    None of those that the kernel gives to whoever connects to something meanwhile, and hardly ever one that another process
    of the tests was given.
    """
    given: set[int] = set()

    def find() -> int:
        while True:
            port = secrets.choice(range(12_000, 32_000))
            with suppress(OSError), socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
                if port not in given:
                    given.add(port)
                    return port

    return find
