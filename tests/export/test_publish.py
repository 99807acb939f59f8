"""Publication, rollback and deletion of releases: a release appears completely or not at all, and never changes."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from alexnet_client.errors import BadInput
from alexnet_client.manifest import find_mismatch
from alexnet_export import publish as publishing
from alexnet_export.publish import prune, publish, roll_back
from alexnet_export.releases import releases, rolled_back
from alexnet_export.triton_config import CPU_ENGINES, render_configs

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


@pytest.fixture
def three(repository, model) -> Path:
    """A repository with three releases."""
    for _ in range(2):
        publish(repository, {"model.onnx": model}, LABELS, {})
    return repository


def versions(found) -> list[int]:
    return [release.version for release in found]


def snapshot(repository: Path) -> dict[str, bytes]:
    """Content of all files that Triton can see, without hidden ones."""
    files = [path for path in sorted(repository.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(repository)): path.read_bytes()
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(repository).parts)
    }


def run(*processes) -> list[int]:
    """Exit codes of processes that run at the same time."""
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_a_release_contains_its_files_and_a_manifest_with_their_hashes(repository, model):
    release = releases(repository)[0]
    manifest = release.manifest
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert manifest["files"] == {"model.onnx": {"sha256": digest, "bytes": 300_000}}
    assert (manifest["precision"], manifest["version"], manifest["labels"]) == ("fp32", 1, list(LABELS))
    assert (repository / "alexnet/labels.txt").read_text() == "cat\ndog\n"
    assert "dims: [2]" in (repository / "alexnet/config.pbtxt").read_text()
    assert find_mismatch(release.directory) == ""


def test_the_next_version_does_not_change_existing_files_or_user_changes(repository, model):
    config = repository / "alexnet/config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 4"))
    before = snapshot(repository)
    for expected in (2, 3):
        assert publish(repository, {"model.onnx": model}, LABELS, {}).version == expected
    after = snapshot(repository)
    assert {name: after[name] for name in before} == before


def test_configurations_follow_the_engine_of_the_newest_release_unless_they_were_changed(repository, model):
    expected = {
        engine: {f"alexnet/{name}": text.encode() for name, text in rendered.items()}
        for engine in CPU_ENGINES
        for rendered in [render_configs("alexnet", classes=2, engine=engine)]
    }
    assert expected["onnxruntime"] != expected["openvino f32"] != expected["openvino bf16"]
    for engine in ("openvino f32", "openvino bf16", "cuda"):
        publish(repository, {"model.onnx": model}, LABELS, {"engine": engine})
        assert snapshot(repository).items() >= expected.get(engine, expected["onnxruntime"]).items()
    for selected in ("openvino bf16", "openvino f32"):
        roll_back(repository)
        assert snapshot(repository).items() >= expected[selected].items()
    config = repository / "alexnet/config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 4"))
    expected["onnxruntime"]["alexnet/config.pbtxt"] = config.read_bytes()
    roll_back(repository)
    assert snapshot(repository).items() >= expected["onnxruntime"].items()


def test_versions_are_sorted_as_numbers_and_other_directories_are_ignored(repository, model):
    (repository / "alexnet/1").rename(repository / "alexnet/9")
    for name in ("²", "007", "backup"):
        (repository / "alexnet" / name).mkdir()
    publish(repository, {"model.onnx": model}, LABELS, {})
    assert versions(releases(repository)) == [9, 10]
    assert releases(repository / "nowhere") == rolled_back(repository / "nowhere") == []


def fail_with(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("target", "name", "number", "message"),
    [
        (shutil, "copyfile", errno.ENOSPC, "the disk is full; free some space"),
        (publishing.tempfile, "mkdtemp", errno.EACCES, r"alexnet: cannot be written \(permission denied\)"),
        (Path, "rename", errno.EIO, "input/output error"),
    ],
)
def test_a_failed_write_leaves_the_repository_unchanged(repository, model, monkeypatch, target, name, number, message):
    before = snapshot(repository)
    monkeypatch.setattr(target, name, fail_with(number))
    with pytest.raises(BadInput, match=message):
        publish(repository, {"model.onnx": model}, LABELS, {})
    monkeypatch.undo()
    assert snapshot(repository) == before
    assert not list(repository.glob("alexnet/.publishing-*"))


def test_other_classes_need_a_repository_without_versions(repository, model, monkeypatch):
    def publish_three_classes():
        return publish(repository, {"model.onnx": model}, ("a", "b", "c"), {})

    with pytest.raises(BadInput, match="its 2 classes differ from the 3 of this model; publish to another repository"):
        publish_three_classes()
    shutil.rmtree(repository / "alexnet/1")
    before = snapshot(repository)
    monkeypatch.setattr(Path, "rename", fail_with(errno.EIO))
    with pytest.raises(BadInput):
        publish_three_classes()
    assert snapshot(repository) == before, "a failure restores labels and configurations"
    monkeypatch.undo()
    publish_three_classes()
    assert (repository / "alexnet/labels.txt").read_text() == "a\nb\nc\n"


def _die_at(step: str, repository: Path, model: Path) -> None:
    target = {"rename": Path, "copyfile": shutil}.get(step, publishing)
    setattr(target, step, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))
    publish(repository, {"model.onnx": model}, LABELS, {})


@pytest.mark.parametrize("step", ["copyfile", "sha256_file", "flush", "write_text", "_text", "rename"])
def test_a_kill_at_any_step_leaves_the_repository_unchanged_and_the_next_run_cleans_up(repository, model, step):
    before = snapshot(repository)
    assert run(fork.Process(target=_die_at, args=(step, repository, model))) == [-signal.SIGKILL]
    assert snapshot(repository) == before
    assert publish(repository, {"model.onnx": model}, LABELS, {}).version == 2
    assert not list(repository.glob("alexnet/.publishing-*"))


@pytest.mark.parametrize("content", [b"{", b"3", b"\xff"])
def test_a_damaged_manifest_is_named(repository, content):
    (repository / "alexnet/1/manifest.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"1/manifest\.json: missing or damaged; restore it, or delete this version"):
        _ = releases(repository)[0].manifest


@pytest.mark.parametrize(("to", "target", "newer"), [(None, 2, [3]), (1, 1, [2, 3])])
def test_a_rollback_withdraws_all_newer_versions_and_keeps_their_files(three, to, target, newer):
    before = (three / "alexnet/3/model.onnx").read_bytes()
    withdrawn, newest = roll_back(three, to=to)
    assert (versions(withdrawn), newest.version, releases(three)[-1].version) == (newer, target, target)
    assert versions(rolled_back(three)) == newer
    assert (withdrawn[-1].directory / "model.onnx").read_bytes() == before


def test_a_version_number_is_never_used_twice(three, model):
    roll_back(three, to=1)
    assert publish(three, {"model.onnx": model}, LABELS, {}).version == 4
    prune(three, keep=1)
    assert (versions(releases(three)), versions(rolled_back(three))) == ([4], [])
    shutil.rmtree(three / "alexnet/4")
    assert publish(three, {"model.onnx": model}, LABELS, {}).version == 5


def test_prune_keeps_the_newest_and_deletes_rolled_back_versions(three):
    roll_back(three)
    assert versions(prune(three, keep=1)) == [3, 1]
    assert versions(releases(three)) == [2]
    assert not list(three.glob("alexnet/.publishing-*"))
    assert prune(three, keep=1) == []


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda repository: roll_back(repository, to=7), "version 7 does not exist; published: 1, 2, 3"),
        (lambda repository: roll_back(repository, to=3), "version 3 is already the newest"),
        (lambda repository: prune(repository, keep=0), "--keep must be positive, got 0"),
        (lambda repository: roll_back(repository / "nowhere"), "no such model; set the model repository"),
        (lambda repository: prune(repository / "nowhere", keep=1), "no such model; set the model repository"),
        (lambda repository: roll_back(repository, to=2), "missing or damaged; restore it"),
    ],
)
def test_an_impossible_rollback_or_prune_changes_nothing(three, act, message):
    (three / "alexnet/2/manifest.json").write_text("{")
    before = snapshot(three)
    with pytest.raises(BadInput, match=message):
        act(three)
    assert snapshot(three) == before
    roll_back(three, to=1)
    with pytest.raises(BadInput, match="1 version published, no older one to roll back to"):
        roll_back(three)


def test_the_next_prune_finishes_one_that_was_killed(three):
    def die(repository):
        shutil.rmtree = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
        prune(repository, keep=2)

    assert run(fork.Process(target=die, args=(three,))) == [-signal.SIGKILL]
    assert versions(releases(three)) == [2, 3]
    prune(three, keep=2)
    assert not list(three.glob("alexnet/.publishing-*"))


def test_concurrent_rollbacks_and_publications_do_not_interfere(three, model):
    codes = run(
        *(fork.Process(target=publish, args=(three, {"model.onnx": model}, LABELS, {})) for _ in range(3)),
        *(fork.Process(target=roll_back, args=(three,)) for _ in range(2)),
    )
    assert codes == [0] * 5
    published, withdrawn = versions(releases(three)), versions(rolled_back(three))
    assert sorted(published + withdrawn) == [1, 2, 3, 4, 5, 6]
    assert len(withdrawn) == 2
    assert not any(find_mismatch(release.directory) for release in releases(three))


def test_a_version_selected_by_the_configuration_is_neither_withdrawn_nor_deleted(three):
    config = three / "alexnet/config.pbtxt"
    config.write_text(re.sub(r"latest \{\s+num_versions: 1\s+\}", "specific { versions: [2] }", config.read_text()))
    for act in (lambda: roll_back(three, to=1), lambda: prune(three, keep=1)):
        with pytest.raises(BadInput, match=r"serves version 2 \(version_policy.*change the version_policy first"):
            act()
    assert versions(releases(three)) == [1, 2, 3]
    assert versions(roll_back(three)[0]) == [3]
