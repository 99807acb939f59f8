"""The releases that a model repository holds: their versions, their manifests, and whether their files are still those."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from alexnet_export.atomic import sha256_file
from alexnet_export.errors import UserError

MODEL = "alexnet"
MANIFEST = "manifest.json"
ROLLED_BACK = ".rolled-back-"
HIGHEST = ".highest-version"


@dataclass(frozen=True)
class Release:
    """A published version, or one that was rolled back."""

    directory: Path

    @property
    def version(self) -> int:
        return int(self.directory.name.removeprefix(ROLLED_BACK))

    @property
    def rolled_back(self) -> bool:
        return self.directory.name.startswith(ROLLED_BACK)

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


def check_files(release: Release) -> dict[str, Any]:
    """The manifest of a release whose files are what it says.

    Raises:
        UserError: a file is missing, altered or not listed, or the manifest was edited by hand.
    """
    manifest, directory = release.manifest, release.directory
    remedy = "publish again, or go back with alexnet-export rollback"
    listed = manifest.get("files")
    identity = (manifest.get("model"), manifest.get("version"))
    if identity != (directory.parent.name, release.version) or not isinstance(listed, dict) or not listed:
        raise UserError(f"{directory / MANIFEST}: was edited by hand, or is of another version or model; {remedy}")
    for path in sorted(directory.iterdir()):
        if path.name not in (MANIFEST, *listed):
            raise UserError(f"{path}: is not listed in {MANIFEST}; remove it, or {remedy}")
    for name, facts in listed.items():
        if not (directory / name).is_file():
            raise UserError(f"{directory / name}: missing though {MANIFEST} lists it; {remedy}")
        if not isinstance(facts, dict) or sha256_file(directory / name) != facts.get("sha256"):
            raise UserError(f"{directory / name}: its SHA-256 is not the one in {MANIFEST}; {remedy}")
    return manifest


def releases(repository: Path, model: str = MODEL) -> list[Release]:
    """The published versions, oldest first."""
    return _numbered(repository / model, "")


def rolled_back(repository: Path, model: str = MODEL) -> list[Release]:
    """The versions that were rolled back and not pruned, oldest first."""
    return _numbered(repository / model, ROLLED_BACK)


def pinned(repository: Path, model: str = MODEL) -> set[int]:
    """The versions that a configuration names to be served, as ``alexnet-server rollout`` does; empty where the newest serve."""
    found: set[int] = set()
    for path in (repository / model).rglob("*.pbtxt"):
        try:
            config = text_format.Parse(path.read_text(), triton.ModelConfig())
        except (OSError, text_format.ParseError):
            continue  # `alexnet-export check` says what is wrong with it
        found.update(config.version_policy.specific.versions)
    return found


def _numbered(directory: Path, prefix: str) -> list[Release]:
    if not directory.is_dir():
        return []
    pattern = re.escape(prefix) + "[1-9][0-9]*"
    found = [Release(path) for path in directory.iterdir() if path.is_dir() and re.fullmatch(pattern, path.name)]
    return sorted(found, key=lambda release: release.version)


def highest_version(directory: Path) -> int:
    """The highest number ever given, whatever has been deleted since."""
    note = directory / HIGHEST
    noted = note.read_text() if note.is_file() else "0"
    there = [each.version for prefix in ("", ROLLED_BACK) for each in _numbered(directory, prefix)]
    return max([int(noted) if noted.strip().isdecimal() else 0, *there])
