"""Fixtures all parts share: a random network, the digits, and a repository with a real release of it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from alexnet_export import checkpoint as checkpoints
from alexnet_export import model, work
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet, Pixels, Split, Unreadable, open_dataset
from alexnet_export.machine import keep_freed_memory
from alexnet_export.model import UNIFORM, AlexNet, initialize
from alexnet_export.pipeline import Exported, export_release
from alexnet_export.releases import Release
from alexnet_export.to_onnx import export_onnx
from alexnet_export.variants import Variant
from alexnet_export.work import Progress

END_TO_END = Path(__file__).parent / "e2e"
_skipped: list[str] = []
_tried: dict[str, int] = {}
_figures: list[str] = []
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime reads it when it is first used
keep_freed_memory()  # models come and go all the time: new pages for them cost half of an export

# The same layers with a quarter of the channels: what is tested is the way of a network, not its size, and it costs a tenth.
# What knows the size of the whole one asks for `whole_network`.
WHOLE = {"CHANNELS": model.CHANNELS, "HIDDEN": model.HIDDEN}
model.CHANNELS, model.HIDDEN = (16, 48, 96, 64, 64), 256


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of the real Triton, run the longest first, and keep each file in one process of pytest-xdist."""
    for item in items:
        if END_TO_END in item.path.parents:
            item.add_marker("e2e")
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)
    items.sort(key=lambda item: item.get_closest_marker("full_size") is None)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI everything is installed, so a skipped test is a failure."""
    if os.environ.get("CI") and _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _tried:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in _tried.items())
        terminalreporter.write_line(f"Hostile inputs tried: {sum(_tried.values()):,} ({kinds})")
    for line in _figures:
        terminalreporter.write_line(f"A fleet, {line}")


@pytest.fixture(scope="session")
def tried() -> Callable[[str, int], None]:
    """Counts hostile inputs by kind, for the summary at the end."""

    def count(kind: str, number: int) -> None:
        _tried[kind] = _tried.get(kind, 0) + number

    return count


@pytest.fixture(scope="session")
def fleet_figures() -> Callable[[str], None]:
    """Takes a line for the summary at the end: what a fleet did, which no test asserts."""
    return _figures.append


@pytest.fixture(scope="session")
def digits() -> DataSet:
    return open_dataset("digits")


@pytest.fixture
def whole_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network as it is served, for tests that know its size."""
    for name, value in WHOLE.items():
        monkeypatch.setattr(model, name, value)


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
    """As many images as the gates need, and no more."""
    splits = (First(digits.train, 64), First(digits.validation, 74), First(digits.test, 500))
    return DataSet("few digits", digits.labels, *splits)


@pytest.fixture(scope="session")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file as the exporter makes it, before any rewrite."""
    path = tmp_path_factory.mktemp("exported") / "exported.onnx"
    export_onnx(checkpoint, path)
    return path


@pytest.fixture(scope="session")
def release(checkpoint: Checkpoint, few_digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The checkpoint, exported, proved and published by the real pipeline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alexnet_export.work.ROUNDS", 2)  # its speed is of no interest
        patch.setattr("alexnet_export.variants.ROUNDS", 2)
        patch.setattr("alexnet_export.speed.REPEATS_OF_ONE", 2)
        return export_release(checkpoint, few_digits, tmp_path_factory.mktemp("repository"), precision="fp32").release


@pytest.fixture(scope="session")
def quickly(exported: Path) -> Callable[[], AbstractContextManager[None]]:
    """A context in which an export takes the exporter's own file, few images, and no time for measuring."""

    @contextmanager
    def patched() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(work, "export_onnx", lambda checkpoint, path, metadata: shutil.copyfile(exported, path))
            patch.setattr(work, "BATCH_SIZES", (1, 2))
            patch.setattr(work, "ROUNDS", 2)
            patch.setattr("alexnet_export.variants.ROUNDS", 2)
            patch.setattr("alexnet_export.speed.REPEATS_OF_ONE", 2)
            patch.setattr("alexnet_export.int8.SENSITIVITY_IMAGES", 16)
            patch.setattr("alexnet_export.image_sets.MINIMUM_IMAGES", 80)
            yield

    return patched


@pytest.fixture(scope="session")
def tiny_digits(digits: DataSet) -> DataSet:
    """For exports whose comparison is of no interest."""
    splits = (First(digits.train, 32), First(digits.validation, 74), First(digits.test, 80))
    return DataSet("tiny digits", digits.labels, *splits)


@pytest.fixture(scope="session")
def exported_int8(
    checkpoint: Checkpoint,
    tiny_digits: DataSet,
    quickly: Callable[[], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Exported, list[Progress], list[Variant]]:
    """The random network as int8. Its answers are closer together than a trained one's: they are not judged."""
    steps: list[Progress] = []
    variants: list[Variant] = []
    with quickly(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("alexnet_export.variants.check_loss", lambda comparison: None)
        patch.setattr("alexnet_export.int8._holds", lambda comparison: True)
        done = export_release(
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
