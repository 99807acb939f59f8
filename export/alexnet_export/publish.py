"""Releases in the Triton model repository: a version directory appears whole, and never changes afterwards.

``<repository>/<model>/<N>/model.onnx`` and ``manifest.json``; ``config.pbtxt`` and ``labels.txt`` are the model's. A
release is written into a hidden directory beside the versions, flushed, and renamed; until then nothing has happened.
One that is rolled back is hidden under another name, and its number is never given again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alexnet_export.atomic import flush, sha256_file, write_text, writing
from alexnet_export.config import render_configs
from alexnet_export.config_encoded import VERSION, render_encoded_configs
from alexnet_export.errors import UserError
from alexnet_export.releases import (
    HIGHEST,
    MANIFEST,
    MODEL,
    ROLLED_BACK,
    Release,
    highest_version,
    pinned,
    releases,
    rolled_back,
)


def check_publishable(repository: Path, labels: Sequence[str], model: str = MODEL) -> None:
    """Find out early what would stop ``publish``.

    Raises:
        UserError: the repository cannot be written, or its releases have other classes.
    """
    directory = repository / model
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writable-", dir=directory):
            pass
    _check_labels(releases(repository, model), labels)


def publish(
    repository: Path,
    files: Mapping[str, Path],
    labels: Sequence[str],
    manifest: Mapping[str, Any],
    *,
    model: str = MODEL,
) -> Release:
    """Publish the next version.

    Args:
        repository: the Triton model repository; made if it is missing.
        files: of the release, by their names in the version directory; copied.
        labels: class names, in the order of the logits.
        manifest: what made the release; hashes of the files, labels and version are added.
        model: its name in the repository.

    Raises:
        UserError: the repository cannot be written, the disk is full, or its releases have other classes.
    """
    directory = repository / model
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            existing = releases(repository, model)
            _check_labels(existing, labels)
            version = highest_version(directory) + 1
            staged = Path(tempfile.mkdtemp(prefix=".publishing-", dir=directory))
            names = "".join(f"{label}\n" for label in labels)
            ours = {directory / "labels.txt": names, **_configs(repository, model, len(labels))}
            before = {path: _text(path) for path in ours}
            other_classes = before[directory / "labels.txt"] != names
            try:
                _fill(staged, files, {**manifest, "model": model, "version": version, "labels": list(labels)})
                for path, text in before.items():
                    if text is None or other_classes:  # what a user has tuned in a configuration stays
                        path.parent.mkdir(exist_ok=True)
                        _replace_if_other(path, ours[path])
                for name in render_encoded_configs(model, classes=len(labels)):
                    (repository / name / VERSION).mkdir(exist_ok=True)
                staged.chmod(0o755)
                staged.rename(directory / str(version))
                flush(directory)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                for path, text in before.items():
                    path.unlink(missing_ok=True) if text is None else _replace_if_other(path, text)
                raise
            with suppress(UserError):  # it is published; the note only matters once it is deleted
                write_text(directory / HIGHEST, f"{version}\n")
    return Release(directory / str(version))


def roll_back(repository: Path, *, to: int | None = None, model: str = MODEL) -> tuple[list[Release], Release]:
    """Withdraw the newest version, or all newer than ``to``; the files stay, hidden, until ``prune``.

    Returns:
        What was withdrawn, and the version that a server started from now on takes.

    Raises:
        UserError: there is no older version, none of that number, or the configuration names one that would go.
    """
    directory = repository / model
    if not directory.is_dir():
        raise UserError(f"{directory}: no such model; name the model repository with --repository")
    with writing(directory), _locked(directory):
        there = releases(repository, model)
        if len(there) < 2:
            raise UserError(f"{directory}: has {len(there)} release, there is no older one to go back to")
        target = next((each for each in there if each.version == (to or there[-2].version)), None)
        if target is None:
            raise UserError(f"{directory}: has no version {to}, only {', '.join(str(each.version) for each in there)}")
        newer = [each for each in there if each.version > target.version]
        if not newer:
            raise UserError(f"{directory}: version {target.version} is the newest already")
        _check_unpinned(repository, newer, model)
        for each in reversed(newer):  # newest first: a kill in between leaves an older one serving, never a gap
            each.directory.rename(directory / f"{ROLLED_BACK}{each.version}")
        flush(directory)
    return [Release(directory / f"{ROLLED_BACK}{each.version}") for each in newer], target


def prune(repository: Path, *, keep: int, model: str = MODEL) -> list[Release]:
    """Delete all but the newest ``keep`` versions, and all that were rolled back; give what was deleted.

    Raises:
        UserError: ``keep`` is not positive, the configuration names one that would go, or the disk refuses.
    """
    if keep < 1:
        raise UserError(f"--keep must be positive, got {keep}; the newest version is what is served")
    directory = repository / model
    if not directory.is_dir():
        raise UserError(f"{directory}: no such model; name the model repository with --repository")
    with writing(directory), _locked(directory):
        doomed = [*rolled_back(repository, model), *releases(repository, model)[:-keep]]
        _check_unpinned(repository, doomed, model)
        write_text(directory / HIGHEST, f"{highest_version(directory)}\n")
        for each in doomed:
            hidden = directory / f".publishing-{each.directory.name}"  # removed by the next who locks, if we are killed
            each.directory.rename(hidden)
            shutil.rmtree(hidden)
        flush(directory)
    return doomed


def _check_unpinned(repository: Path, leaving: Sequence[Release], model: str) -> None:
    """A server that finds none of its pinned versions serves nothing."""
    served = sorted(pinned(repository, model) & {each.version for each in leaving})
    if served:
        raise UserError(
            f"{repository / model}: version {served[0]} is the one to be served, by its configuration's version_policy; put "
            "another to service before: alexnet-server rollback, or rollout"
        )


def _configs(repository: Path, model: str, classes: int) -> dict[Path, str]:
    """The texts of all configurations, of the model and of those that read image files for it."""
    own = {repository / model / name: text for name, text in render_configs(model, classes=classes).items()}
    encoded = render_encoded_configs(model, classes=classes)
    return own | {repository / name / "config.pbtxt": text for name, text in encoded.items()}


def _fill(staged: Path, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> None:
    hashes = {}
    for name, source in files.items():
        shutil.copyfile(source, staged / name)
        flush(staged / name)
        hashes[name] = {"sha256": sha256_file(staged / name), "bytes": (staged / name).stat().st_size}
    write_text(staged / MANIFEST, json.dumps({**manifest, "files": hashes}, indent=2) + "\n")
    flush(staged)


def _check_labels(existing: Sequence[Release], labels: Sequence[str]) -> None:
    """All versions share config.pbtxt and labels.txt: other classes would make the older releases lie."""
    for release in existing:
        published = release.manifest.get("labels")
        if published != list(labels):
            count = len(published) if isinstance(published, list) else 0
            raise UserError(
                f"{release.directory}: has {count} classes that are not these {len(labels)}; publish into another "
                "repository (--repository), or delete the old versions if nobody serves them any more"
            )


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _replace_if_other(path: Path, text: str) -> None:
    if _text(path) != text:
        write_text(path, text)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One publication at a time; the lock goes with the process, however it ends."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for left_over in directory.glob(".publishing-*"):
            shutil.rmtree(left_over, ignore_errors=True)  # of a publication that was killed
        yield
    finally:
        os.close(descriptor)
