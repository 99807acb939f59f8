"""Releases of a model repository: their versions and manifests. Never writes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from alexnet_client.errors import BadInput
from alexnet_client.manifest import MANIFEST, read_manifest, versions

MODEL = "alexnet"
ROLLED_BACK = ".rolled-back-"
HIGHEST = ".highest-version"


@dataclass(frozen=True)
class Release:
    """A published version, or a version that was rolled back."""

    directory: Path

    @property
    def version(self) -> int:
        return int(self.directory.name.removeprefix(ROLLED_BACK))

    @property
    def rolled_back(self) -> bool:
        return self.directory.name.startswith(ROLLED_BACK)

    @property
    def manifest(self) -> dict[str, Any]:
        """Content of the manifest.

        Raises:
            BadInput: the manifest is missing or damaged.
        """
        manifest = read_manifest(self.directory)
        if manifest is None:
            raise BadInput(f"{self.directory / MANIFEST}: missing or damaged; restore it, or delete this version")
        return manifest


def releases(repository: Path, model: str = MODEL) -> list[Release]:
    """Published versions, oldest first."""
    return [Release(path) for path in versions(repository / model)]


def rolled_back(repository: Path) -> list[Release]:
    """Versions that were rolled back and not deleted, oldest first."""
    hidden = [
        Release(path)
        for path in (repository / MODEL).glob(f"{ROLLED_BACK}*")
        if re.fullmatch("[1-9][0-9]*", path.name.removeprefix(ROLLED_BACK))
    ]
    return sorted(hidden, key=lambda release: release.version)


def configured_versions(repository: Path) -> set[int]:
    """Versions in a ``version_policy { specific }`` of the model's configurations; empty if Triton serves the newest."""
    found: set[int] = set()
    for path in (repository / MODEL).rglob("*.pbtxt"):
        try:
            config = text_format.Parse(path.read_text(), triton.ModelConfig())
        except (OSError, text_format.ParseError):
            continue  # `alexnet-export check` reports it
        found.update(config.version_policy.specific.versions)
    return found


def highest_version(repository: Path) -> int:
    """The highest version number ever published, including deleted versions."""
    record = repository / MODEL / HIGHEST
    recorded = record.read_text() if record.is_file() else "0"
    present = [each.version for each in (*releases(repository), *rolled_back(repository))]
    return max([int(recorded) if recorded.strip().isdecimal() else 0, *present])
