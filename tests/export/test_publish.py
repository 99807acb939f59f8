"""Releases appear whole and never change."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest

from alexnet_export import publish as publishing
from alexnet_client.errors import BadInput
from alexnet_export.publish import prune, publish, roll_back
from alexnet_export.releases import Release, check_files, releases, rolled_back

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
    assert "dims: [2]" in (repository / "alexnet/config.pbtxt").read_text()


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
    with pytest.raises(BadInput, match="has 2 classes that are not these 3; publish into another repository"):
        publish(repository, {"model.onnx": model}, ("a", "b", "c"), {})
    assert snapshot(repository) == before


def test_a_full_disk_leaves_the_repository_as_it_was(repository, model, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = snapshot(repository)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(BadInput, match="the disk is full; free some space"):
        publish(repository, {"model.onnx": model}, LABELS, {})
    assert snapshot(repository) == before
    assert not list(repository.glob("alexnet/.publishing-*"))


def test_a_first_release_of_other_classes_that_fails_at_the_last_step_gives_the_old_files_back(
    repository, model, monkeypatch
):
    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    shutil.rmtree(repository / "alexnet/1")
    before = snapshot(repository)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(BadInput, match="Input/output error"):
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
    except BadInput as error:
        answer.put(str(error))


def test_a_write_the_system_cuts_off_in_the_middle_leaves_the_repository_as_it_was(repository, model):
    before, answer = snapshot(repository), fork.SimpleQueue()
    process = fork.Process(target=_publish_with_a_limit, args=(repository, model, 100_000, answer))
    process.start()
    process.join(30)
    assert "cannot be written" in answer.get()
    assert snapshot(repository) == before
    assert not list(repository.glob("alexnet/.publishing-*"))


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
    assert not list(repository.glob("alexnet/.publishing-*"))


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
    with pytest.raises(BadInput, match=r"alexnet: cannot be written \(Permission denied\)"):
        publish(repository, {"model.onnx": model}, LABELS, {})


def test_a_damaged_manifest_is_named(repository):
    for content in (b"{", b"3", b"\xff"):
        (repository / "alexnet/1/manifest.json").write_bytes(content)
        with pytest.raises(BadInput, match=r"1/manifest\.json: missing or damaged .*or delete that version"):
            _ = releases(repository)[0].manifest


def test_a_repository_that_does_not_exist_has_no_releases(tmp_path):
    assert releases(tmp_path / "nowhere") == []


@pytest.fixture
def three(repository, model) -> Path:
    """A repository with three releases."""
    for _ in range(2):
        publish(repository, {"model.onnx": model}, LABELS, {})
    return repository


def versions(found) -> list[int]:
    return [release.version for release in found]


def test_a_rollback_withdraws_the_newest_and_keeps_its_files(three):
    before = (three / "alexnet/3/model.onnx").read_bytes()
    withdrawn, target = roll_back(three)
    assert (versions(withdrawn), target.version, versions(releases(three))) == ([3], 2, [1, 2])
    assert versions(rolled_back(three)) == [3]
    assert (withdrawn[0].directory / "model.onnx").read_bytes() == before


def test_a_rollback_to_a_version_withdraws_all_newer_ones(three):
    withdrawn, target = roll_back(three, to=1)
    assert (versions(withdrawn), target.version, versions(releases(three))) == ([2, 3], 1, [1])


def test_a_number_is_never_given_again(three, model):
    roll_back(three, to=1)
    assert publish(three, {"model.onnx": model}, LABELS, {}).version == 4
    prune(three, keep=1)
    assert (versions(releases(three)), versions(rolled_back(three))) == ([4], [])
    shutil.rmtree(three / "alexnet/4")
    assert publish(three, {"model.onnx": model}, LABELS, {}).version == 5


def test_prune_keeps_the_newest_and_deletes_what_was_rolled_back(three):
    roll_back(three)
    assert versions(prune(three, keep=1)) == [3, 1]
    assert versions(releases(three)) == [2]
    assert not list(three.glob("alexnet/.publishing-*"))
    assert prune(three, keep=1) == []


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda repository: roll_back(repository, to=7), "has no version 7, only 1, 2, 3"),
        (lambda repository: roll_back(repository, to=3), "version 3 is the newest already"),
        (lambda repository: prune(repository, keep=0), "--keep must be positive, got 0"),
        (lambda repository: roll_back(repository / "nowhere"), "no such model; name the model repository"),
        (lambda repository: prune(repository / "nowhere", keep=1), "no such model; name the model repository"),
    ],
)
def test_what_cannot_be_rolled_back_or_pruned_is_said(three, act, says):
    before = snapshot(three)
    with pytest.raises(BadInput, match=says):
        act(three)
    assert snapshot(three) == before


def test_the_only_release_cannot_be_rolled_back(repository):
    with pytest.raises(BadInput, match="has 1 release, there is no older one to go back to"):
        roll_back(repository)


def test_a_kill_in_a_prune_is_cleaned_up_by_the_next(three):
    def die(repository):
        shutil.rmtree = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
        prune(repository, keep=2)

    process = fork.Process(target=die, args=(three,))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert versions(releases(three)) == [2, 3]
    prune(three, keep=2)
    assert not list(three.glob("alexnet/.publishing-*"))


def test_a_rollback_and_a_publication_at_once_do_not_disturb_each_other(three, model):
    processes = [
        *(fork.Process(target=publish, args=(three, {"model.onnx": model}, LABELS, {})) for _ in range(3)),
        *(fork.Process(target=roll_back, args=(three,)) for _ in range(2)),
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 5
    there, withdrawn = versions(releases(three)), versions(rolled_back(three))
    assert sorted(there + withdrawn) == [1, 2, 3, 4, 5, 6]
    assert len(withdrawn) == 2
    assert all(check_files(release) for release in releases(three))


def damage(change):
    def apply(release: Release) -> None:
        manifest = release.manifest
        change(manifest)
        (release.directory / "manifest.json").write_text(json.dumps(manifest))

    return apply


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda release: (release.directory / "model.onnx").write_bytes(b"other"), "model.onnx: its SHA-256 is not"),
        (lambda release: (release.directory / "model.onnx").unlink(), "model.onnx: missing though manifest.json lists"),
        (lambda release: (release.directory / "model.plan").touch(), "model.plan: is not listed in manifest.json"),
        (damage(lambda manifest: manifest.update(version=2)), "was edited by hand, or is of another version"),
        (damage(lambda manifest: manifest.update(files={})), "was edited by hand"),
        (damage(lambda manifest: manifest.update(files=[])), "was edited by hand"),
        (damage(lambda manifest: manifest["files"].update({"model.onnx": 3})), "its SHA-256 is not the one"),
    ],
)
def test_a_release_whose_files_are_not_its_manifests_is_found(repository, harm, says):
    release = releases(repository)[0]
    assert check_files(release)["version"] == 1
    harm(release)
    with pytest.raises(BadInput, match=says):
        check_files(release)


def test_what_a_configuration_names_to_be_served_is_neither_withdrawn_nor_deleted(three):
    config = three / "alexnet/config.pbtxt"
    config.write_text(re.sub(r"latest \{\s+num_versions: 1\s+\}", "specific { versions: [2] }", config.read_text()))
    with pytest.raises(BadInput, match="version 2 is the one to be served"):
        roll_back(three, to=1)
    with pytest.raises(BadInput, match="version 2 is the one to be served"):
        prune(three, keep=1)
    assert versions(releases(three)) == [1, 2, 3]
    assert versions(roll_back(three)[0]) == [3]
