"""Reads the manifest of a version and compares the files of its directory with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alexnet_client.files import sha256_file

MANIFEST = "manifest.json"


def versions(model: Path) -> list[Path]:
    """Version directories of a model, oldest first; empty if the model directory does not exist."""
    if not model.is_dir():
        return []
    numbered = [path for path in model.iterdir() if path.is_dir() and re.fullmatch("[1-9][0-9]*", path.name)]
    return sorted(numbered, key=lambda path: int(path.name))


def read_manifest(version: Path) -> dict[str, Any] | None:
    """Content of ``manifest.json`` in a version directory; None if it is missing or damaged."""
    try:
        content = json.loads((version / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def validated_engines(manifest: Mapping[str, Any]) -> list[str]:
    """Engines with which the file of a release passed its gate, such as "openvino f32".

    Releases that record no engine were validated with ONNX Runtime's CPU kernels.
    """
    precision = manifest.get("precision")
    rows = [row for row in manifest.get("variants", []) if row.get("name") == precision and row.get("gate") == "passed"]
    return [str(row.get("engine", "onnxruntime")) for row in rows]


def find_mismatch(version: Path) -> str:
    """Describe the first difference between a version directory and its manifest; empty if there is none."""
    return next(_mismatches(version), "")


def _mismatches(version: Path) -> Iterator[str]:
    manifest = read_manifest(version)
    if manifest is None:
        yield f"{version / MANIFEST}: missing or damaged"
        return
    files = manifest.get("files")
    identity = (manifest.get("model"), manifest.get("version"))
    if identity != (version.parent.name, int(version.name)) or not isinstance(files, dict) or not files:
        yield f"{version / MANIFEST}: edited by hand, or belongs to another version or model"
        return
    for path in sorted(version.iterdir()):
        if path.name not in (MANIFEST, *files):
            yield f"{path}: not listed in {MANIFEST}"
    for name, facts in files.items():
        if not (version / name).is_file():
            yield f"{version / name}: missing, but listed in {MANIFEST}"
        elif not isinstance(facts, dict) or sha256_file(version / name) != facts.get("sha256"):
            yield f"{version / name}: its SHA-256 differs from the one in {MANIFEST}"
