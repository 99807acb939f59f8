"""Releases appear whole and never change."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest

from alexnet_export import publish as publishing
from alexnet_export.errors import UserError
from alexnet_export.publish import publish, releases

LABELS = ("cat", "dog")
fork = multiprocessing.get_context("fork")


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "some.onnx"
    path.write_bytes(os.urandom(300_000))
    return path


@pytest.fixture
def repository(tmp_path, model) -> Path:
    """A repository with one release."""
    publish(tmp_path / "repository", {"model.onnx": model}, LABELS, {"precision": "fp32"})
    return tmp_path / "repository"


def snapshot(repository: Path) -> dict[str, bytes]:
    """Every file that Triton could see, hidden ones left out, with its content."""
    files = [path for path in sorted(repository.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(repository)): path.read_bytes()
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(repository).parts)
    }


def test_a_release_holds_its_files_and_a_manifest_with_their_hashes(repository, model):
    release = releases(repository)[0]
    assert release.version == 1
    manifest = release.manifest
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert manifest["files"] == {"model.onnx": {"sha256": digest, "bytes": 300_000}}
    assert (manifest["precision"], manifest["version"], manifest["labels"]) == ("fp32", 1, list(LABELS))
    assert (repository / "alexnet/labels.txt").read_text() == "cat\ndog\n"
    assert "dims: [ 2 ]" in (repository / "alexnet/config.pbtxt").read_text()


def test_the_next_version_leaves_the_others_untouched(repository, model):
    before = snapshot(repository)
    for expected in (2, 3):
        assert publish(repository, {"model.onnx": model}, LABELS, {}).version == expected
    after = snapshot(repository)
    assert {name: after[name] for name in before} == before


def test_versions_are_counted_as_numbers(repository, model):
    (repository / "alexnet/1").rename(repository / "alexnet/9")
    assert publish(repository, {"model.onnx": model}, LABELS, {}).version == 10
    assert publish(repository, {"model.onnx": model}, LABELS, {}).version == 11
    assert [release.version for release in releases(repository)] == [9, 10, 11]


def test_a_tuned_configuration_stays(repository, model):
    config = repository / "alexnet/config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 4"))
    publish(repository, {"model.onnx": model}, LABELS, {})
    assert "count: 4" in config.read_text()


def test_directories_that_are_no_versions_are_left_alone(repository, model):
    for name in ("²", "007", "backup"):
        (repository / "alexnet" / name).mkdir()
    assert publish(repository, {"model.onnx": model}, LABELS, {}).version == 2


def test_other_classes_are_refused_because_older_releases_would_lie(repository, model):
    before = snapshot(repository)
    with pytest.raises(UserError, match="has 2 classes that are not these 3; publish into another repository"):
        publish(repository, {"model.onnx": model}, ("a", "b", "c"), {})
    assert snapshot(repository) == before


def test_a_full_disk_leaves_the_repository_as_it_was(repository, model, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = snapshot(repository)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match="the disk is full; free some space"):
        publish(repository, {"model.onnx": model}, LABELS, {})
    assert snapshot(repository) == before
    assert not list(repository.glob("alexnet/.*"))


def test_a_first_release_of_other_classes_that_fails_at_the_last_step_gives_the_old_files_back(
    repository, model, monkeypatch
):
    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    shutil.rmtree(repository / "alexnet/1")
    before = snapshot(repository)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(UserError, match="Input/output error"):
        publish(repository, {"model.onnx": model}, ("a", "b", "c"), {})
    assert snapshot(repository) == before
    monkeypatch.undo()
    publish(repository, {"model.onnx": model}, ("a", "b", "c"), {})
    assert (repository / "alexnet/labels.txt").read_text() == "a\nb\nc\n"


def _publish_with_a_limit(repository: Path, model: Path, limit: int, answer) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        publish(repository, {"model.onnx": model}, LABELS, {})
    except UserError as error:
        answer.put(str(error))


def test_a_write_the_system_cuts_off_in_the_middle_leaves_the_repository_as_it_was(repository, model):
    before, answer = snapshot(repository), fork.SimpleQueue()
    process = fork.Process(target=_publish_with_a_limit, args=(repository, model, 100_000, answer))
    process.start()
    process.join(30)
    assert "cannot be written" in answer.get()
    assert snapshot(repository) == before
    assert not list(repository.glob("alexnet/.*"))


def _die_at(step: str, repository: Path, model: Path) -> None:
    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    target = {"rename": Path, "copyfile": shutil}.get(step, publishing)
    setattr(target, step, die)
    publish(repository, {"model.onnx": model}, LABELS, {})


@pytest.mark.parametrize("step", ["copyfile", "sha256_file", "flush", "write_text", "_text", "rename"])
def test_a_kill_at_any_step_leaves_the_repository_as_it_was_and_the_next_try_cleans_up(repository, model, step):
    before = snapshot(repository)
    process = fork.Process(target=_die_at, args=(step, repository, model))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert snapshot(repository) == before
    assert publish(repository, {"model.onnx": model}, LABELS, {}).version == 2
    assert not list(repository.glob("alexnet/.*"))


def test_many_publishing_at_once_each_get_a_version_of_their_own(repository, model):
    processes = [
        fork.Process(target=publish, args=(repository, {"model.onnx": model}, LABELS, {"by": number}))
        for number in range(6)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [release.version for release in releases(repository)] == [1, 2, 3, 4, 5, 6, 7]
    assert {release.manifest.get("by") for release in releases(repository)} == {None, *range(6)}


def test_a_repository_that_cannot_be_written_is_named(repository, model, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(publishing.tempfile, "mkdtemp", refused)
    with pytest.raises(UserError, match=r"alexnet: cannot be written \(Permission denied\)"):
        publish(repository, {"model.onnx": model}, LABELS, {})


def test_a_damaged_manifest_is_named(repository):
    for content in (b"{", b"3", b"\xff"):
        (repository / "alexnet/1/manifest.json").write_bytes(content)
        with pytest.raises(UserError, match=r"1/manifest\.json: missing or damaged .*or delete that version"):
            _ = releases(repository)[0].manifest


def test_a_repository_that_does_not_exist_has_no_releases(tmp_path):
    assert releases(tmp_path / "nowhere") == []
