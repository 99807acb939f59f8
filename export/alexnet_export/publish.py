"""Publish, roll back and delete releases in a Triton model repository.

A release is ``<repository>/<model>/<N>/`` with ``model.onnx``, golden answers and ``manifest.json``; ``config.pbtxt`` and
``labels.txt`` belong to the model. The configurations select the engine of the newest release, unless they were changed.
A release is written to a hidden directory next to the versions, flushed to disk, and renamed: it appears completely or
not at all, and never changes afterwards. A rollback hides a version under another name. A version number is never used
twice.
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

from alexnet_client.errors import BadInput
from alexnet_client.files import check_writable, flush, sha256_file, write_text, writing
from alexnet_client.manifest import MANIFEST
from alexnet_export.releases import (
    HIGHEST,
    MODEL,
    ROLLED_BACK,
    Release,
    configured_versions,
    highest_version,
    releases,
    rolled_back,
)
from alexnet_export.triton_config import (
    CPU_ENGINES,
    ONNXRUNTIME,
    VERSION,
    render_configs,
    render_encoded_configs,
)


def check_publishable(repository: Path, labels: Sequence[str]) -> None:
    """Check the requirements of ``publish`` before a long computation.

    Raises:
        BadInput: the repository is not writable, or its releases have other classes.
    """
    check_writable(repository / MODEL / MANIFEST)
    _check_labels(releases(repository), labels)


def publish(
    repository: Path,
    files: Mapping[str, Path],
    labels: Sequence[str],
    manifest: Mapping[str, Any],
) -> Release:
    """Publish the next version.

    Args:
        repository: the Triton model repository; created if it is missing.
        files: of the release, by name; they are copied.
        labels: class names in the order of the logits.
        manifest: description of the release; version, labels and hashes of the files are added.

    Raises:
        BadInput: the repository is not writable, the disk is full, or the releases have other classes.
    """
    directory = repository / MODEL
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            _check_labels(releases(repository), labels)
            version = highest_version(repository) + 1
            staged = Path(tempfile.mkdtemp(prefix=".publishing-", dir=directory))
            names = "".join(f"{label}\n" for label in labels)
            labels_file = {directory / "labels.txt": names}
            rendered = labels_file | _configs(repository, len(labels), str(manifest.get("engine")))
            before = {path: _text(path) for path in rendered}
            other_classes = before[directory / "labels.txt"] != names
            unchanged = _unchanged_configs(repository, len(labels))
            try:
                _fill(staged, files, {**manifest, "model": MODEL, "version": version, "labels": list(labels)})
                for path, text in before.items():
                    if text is None or other_classes or path in unchanged:  # changes by the user are kept
                        path.parent.mkdir(exist_ok=True)
                        _write_if_different(path, rendered[path])
                for name in render_encoded_configs(MODEL, classes=len(labels)):
                    (repository / name / VERSION).mkdir(exist_ok=True)
                staged.chmod(0o755)
                staged.rename(directory / str(version))
                flush(directory)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                for path, text in before.items():
                    path.unlink(missing_ok=True) if text is None else _write_if_different(path, text)
                raise
            with suppress(BadInput):  # only needed once the version is deleted
                write_text(directory / HIGHEST, f"{version}\n")
    return Release(directory / str(version))


def roll_back(repository: Path, *, to: int | None = None) -> tuple[list[Release], Release]:
    """Withdraw the newest version, or all versions newer than ``to``. The files stay, hidden, until ``prune``.

    Returns:
        The withdrawn releases, and the release that is now the newest.

    Raises:
        BadInput: there is no such version, or no older one, or the configuration selects a version to be withdrawn.
    """
    directory = _model_directory(repository)
    with writing(directory), _locked(directory):
        published = releases(repository)
        if len(published) < 2:
            raise BadInput(f"{directory}: {len(published)} version published, no older one to roll back to")
        target = next((each for each in published if each.version == (to or published[-2].version)), None)
        if target is None:
            numbers = ", ".join(str(each.version) for each in published)
            raise BadInput(f"{directory}: version {to} does not exist; published: {numbers}")
        newer = [each for each in published if each.version > target.version]
        if not newer:
            raise BadInput(f"{directory}: version {target.version} is already the newest")
        _check_not_configured(repository, newer)
        manifest = target.manifest
        for each in reversed(newer):  # newest first: a kill in between leaves an older version to serve
            each.directory.rename(directory / f"{ROLLED_BACK}{each.version}")
        classes = len(manifest.get("labels", []))
        unchanged = _unchanged_configs(repository, classes)
        for path, text in _configs(repository, classes, str(manifest.get("engine"))).items():
            if path in unchanged:
                _write_if_different(path, text)
        flush(directory)
    return [Release(directory / f"{ROLLED_BACK}{each.version}") for each in newer], target


def prune(repository: Path, *, keep: int) -> list[Release]:
    """Delete all versions except the newest ``keep``, and all that were rolled back; return the deleted releases.

    Raises:
        BadInput: ``keep`` is not positive, the configuration selects a version to be deleted, or a directory is not
            writable.
    """
    if keep < 1:
        raise BadInput(f"--keep must be positive, got {keep}")
    directory = _model_directory(repository)
    with writing(directory), _locked(directory):
        deleted = [*rolled_back(repository), *releases(repository)[:-keep]]
        _check_not_configured(repository, deleted)
        write_text(directory / HIGHEST, f"{highest_version(repository)}\n")
        for each in deleted:
            hidden = directory / f".publishing-{each.directory.name}"  # after a kill, the next lock removes it
            each.directory.rename(hidden)
            shutil.rmtree(hidden)
        flush(directory)
    return deleted


def _model_directory(repository: Path) -> Path:
    if not (repository / MODEL).is_dir():
        raise BadInput(f"{repository / MODEL}: no such model; set the model repository with --repository")
    return repository / MODEL


def _check_not_configured(repository: Path, leaving: Sequence[Release]) -> None:
    """Triton serves nothing if the only version in its configuration is missing."""
    selected = sorted(configured_versions(repository) & {each.version for each in leaving})
    if selected:
        raise BadInput(
            f"{repository / MODEL}: its configuration serves version {selected[0]} (version_policy {{ specific }}); "
            "change the version_policy first"
        )


def _configs(repository: Path, classes: int, engine: str) -> dict[Path, str]:
    """All configurations: of the model with the engine of a release, and of the models that decode image files for it."""
    on_cpu = engine if engine in CPU_ENGINES else ONNXRUNTIME
    rendered = render_configs(MODEL, classes=classes, engine=on_cpu)
    own = {repository / MODEL / name: text for name, text in rendered.items()}
    encoded = render_encoded_configs(MODEL, classes=classes)
    return own | {repository / name / "config.pbtxt": text for name, text in encoded.items()}


def _unchanged_configs(repository: Path, classes: int) -> set[Path]:
    """Configurations that were written by this project, for a release with any engine, and not changed by the user."""
    return {
        path
        for engine in CPU_ENGINES
        for path, text in _configs(repository, classes, engine).items()
        if _text(path) == text
    }


def _fill(staged: Path, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> None:
    hashes = {}
    for name, source in files.items():
        shutil.copyfile(source, staged / name)
        flush(staged / name)
        hashes[name] = {"sha256": sha256_file(staged / name), "bytes": (staged / name).stat().st_size}
    write_text(staged / MANIFEST, json.dumps({**manifest, "files": hashes}, indent=2) + "\n")
    flush(staged)


def _check_labels(existing: Sequence[Release], labels: Sequence[str]) -> None:
    """All versions share config.pbtxt and labels.txt, so they must have the same classes."""
    for release in existing:
        published = release.manifest.get("labels")
        if published != list(labels):
            count = len(published) if isinstance(published, list) else 0
            raise BadInput(
                f"{release.directory}: its {count} classes differ from the {len(labels)} of this model; publish to "
                "another repository (--repository), or delete the old versions if no server uses them"
            )


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _write_if_different(path: Path, text: str) -> None:
    if _text(path) != text:
        write_text(path, text)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Exclusive lock of a model directory; the kernel releases it when the process ends."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for leftover in directory.glob(".publishing-*"):
            shutil.rmtree(leftover, ignore_errors=True)  # from a process that was killed
        yield
    finally:
        os.close(descriptor)
