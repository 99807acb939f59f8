"""Releases in the Triton model repository: a version directory appears whole, and never changes afterwards.

``<repository>/<model>/<N>/model.onnx`` and ``manifest.json``; ``config.pbtxt`` and ``labels.txt`` are the model's. A
release is written into a hidden directory beside the versions, flushed, and renamed; until then nothing has happened.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_export.atomic import flush, sha256_file, write_text, writing
from alexnet_export.config import render_config
from alexnet_export.errors import UserError

MODEL = "alexnet"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Release:
    """A published version."""

    directory: Path

    @property
    def version(self) -> int:
        return int(self.directory.name)

    @property
    def manifest(self) -> dict[str, Any]:
        """What the release says of itself.

        Raises:
            UserError: the manifest is missing or damaged.
        """
        try:
            return dict(json.loads((self.directory / MANIFEST).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{self.directory / MANIFEST}: missing or damaged ({error}); restore it, or delete that version"
            ) from None


def releases(repository: Path, model: str = MODEL) -> list[Release]:
    """The published versions, oldest first."""
    directory = repository / model
    if not directory.is_dir():
        return []
    numbered = [path for path in directory.iterdir() if path.is_dir() and re.fullmatch("[1-9][0-9]*", path.name)]
    return [Release(path) for path in sorted(numbered, key=lambda path: int(path.name))]


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
            version = existing[-1].version + 1 if existing else 1
            staged = Path(tempfile.mkdtemp(prefix=".publishing-", dir=directory))
            before = {path: _text(path) for path in (directory / "labels.txt", directory / "config.pbtxt")}
            try:
                _fill(staged, files, {**manifest, "model": model, "version": version, "labels": list(labels)})
                names = "".join(f"{label}\n" for label in labels)
                if _text(directory / "config.pbtxt") is None or _text(directory / "labels.txt") != names:
                    # Only for other classes: what a user has tuned in config.pbtxt stays.
                    _replace_if_other(directory / "labels.txt", names)
                    _replace_if_other(directory / "config.pbtxt", render_config(model, classes=len(labels)))
                staged.chmod(0o755)
                staged.rename(directory / str(version))
                flush(directory)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                for path, text in before.items():
                    path.unlink(missing_ok=True) if text is None else _replace_if_other(path, text)
                raise
    return Release(directory / str(version))


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
