"""What a release says of its files, and whether they still are what it says. Reads the repository, never writes it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

MANIFEST = "manifest.json"
INTEGER_FLAGS = frozenset(("avx512_vnni", "avx_vnni", "amx_int8"))
"""CPU flags of instructions that sum products of 8-bit integers in 32 bits."""


def wrong_files(model: Path, config: Path) -> str:
    """The first thing wrong with the files of the versions that would be served; empty if there is none.

    Args:
        model: its directory in the repository.
        config: the configuration it is served with.
    """
    if not list(model.glob(f"[1-9]*/{MANIFEST}")):
        return ""  # somebody's own model, which this project did not publish
    return next((problem for version in served(model, config) if (problem := wrong_version(version))), "")


def wrong_version(version: Path) -> str:
    """The first thing wrong with the files of a version directory; empty if there is none."""
    return next(_wrong(version), "")


def needs_integer_flags(model: Path, config: Path) -> bool:
    """Whether a CPU would run int8 weights of full range, which overflow without such instructions."""
    groups = _read_config(config).instance_group
    if groups and all(group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU for group in groups):
        return False
    for version in served(model, config):
        manifest = _read(version)
        quantization = manifest.get("quantization") if manifest else None
        if isinstance(quantization, dict) and quantization.get("reduce_range") is False:
            return True
    return False


def has_integer_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU has instructions for sums of integer products."""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    return bool(flags and INTEGER_FLAGS & set(flags.group(1).split()))


def is_ensemble(model: Path) -> bool:
    """Whether a model (its directory) only hands tensors from one model to the next, and runs nothing itself."""
    return bool(_read_config(model / "config.pbtxt").platform == "ensemble")


def ensembles_of(model: Path) -> list[str]:
    """Names of the ensembles in its repository that a model is a step of."""
    found = []
    for config in sorted(model.parent.glob("*/config.pbtxt")):
        steps = _read_config(config).ensemble_scheduling.step
        if any(step.model_name == model.name for step in steps):
            found.append(config.parent.name)
    return found


def served(model: Path, config: Path) -> list[Path]:
    """The version directories that Triton would load by the configuration's version policy."""
    policy = _read_config(config).version_policy
    there = versions(model)
    if policy.WhichOneof("policy_choice") == "all":
        return there
    if policy.WhichOneof("policy_choice") == "specific":
        return [version for version in there if int(version.name) in policy.specific.versions]
    return there[-max(1, policy.latest.num_versions) :]


def published(model: Path) -> list[Path]:
    """The version directories of a model that this project published, oldest first."""
    return [version for version in versions(model) if (version / MANIFEST).is_file()] if model.is_dir() else []


def versions(model: Path) -> list[Path]:
    """The version directories of a model, oldest first."""
    numbered = [path for path in model.iterdir() if path.is_dir() and re.fullmatch("[1-9][0-9]*", path.name)]
    return sorted(numbered, key=lambda path: int(path.name))


def _read_config(config: Path) -> model_config_pb2.ModelConfig:
    try:
        return text_format.Parse(config.read_text(), model_config_pb2.ModelConfig(), allow_unknown_field=True)
    except (OSError, ValueError, text_format.ParseError):
        return model_config_pb2.ModelConfig()  # Triton will say what is wrong with it


def _read(version: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((version / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _wrong(version: Path) -> Iterator[str]:
    manifest = _read(version)
    if manifest is None:
        yield f"{version / MANIFEST} is missing or damaged"
        return
    files = manifest.get("files")
    identity = (manifest.get("model"), manifest.get("version"))
    if identity != (version.parent.name, int(version.name)) or not isinstance(files, dict) or not files:
        yield f"{version / MANIFEST} was edited by hand, or is of another version or model"
        return
    for path in sorted(version.iterdir()):
        if path.name not in (MANIFEST, *files):
            yield f"{path} is not listed in {MANIFEST}"
    for name, facts in files.items():
        if not (version / name).is_file():
            yield f"{version / name} is missing, {MANIFEST} lists it"
        elif not isinstance(facts, dict) or _sha256(version / name) != facts.get("sha256"):
            yield f"{version / name} is not the file that was published: its SHA-256 is not the one in {MANIFEST}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
