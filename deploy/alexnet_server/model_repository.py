"""The model repository: its models, the versions that Triton serves, and whether their files match the manifests. Read-only."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from alexnet_client.manifest import MANIFEST, find_mismatch, read_manifest, versions


def models(repository: Path) -> list[Path]:
    """The directories of the models in a repository."""
    return sorted(path.parent for path in repository.glob("*/config.pbtxt"))


def selected_config(model: Path, config_name: str) -> Path:
    """The configuration that Triton uses: ``configs/<config_name>.pbtxt`` if it exists, otherwise ``config.pbtxt``."""
    named = model / "configs" / f"{config_name}.pbtxt"
    return named if config_name and named.is_file() else model / "config.pbtxt"


def is_ensemble(model: Path) -> bool:
    """Whether the model in this directory is an ensemble, which executes nothing itself."""
    return bool(read_config(model / "config.pbtxt").platform == "ensemble")


def is_published(model: Path) -> bool:
    """Whether this project published a version of the model; the user's own models have no manifest."""
    return any((version / MANIFEST).is_file() for version in versions(model))


def served_versions(model: Path, config: Path) -> list[Path]:
    """The version directories that Triton loads according to the version policy of the configuration, oldest first."""
    policy = read_config(config).version_policy
    available = versions(model)
    if policy.WhichOneof("policy_choice") == "all":
        return available
    if policy.WhichOneof("policy_choice") == "specific":
        return [version for version in available if int(version.name) in policy.specific.versions]
    return available[-max(1, policy.latest.num_versions) :]


def find_served_mismatch(model: Path, config: Path) -> str:
    """Describe the first difference between the served versions and their manifests; empty if there is none.

    Args:
        model: directory of the model. A model that this project did not publish has no manifest to compare with.
        config: the configuration that Triton uses.

    Raises:
        OSError: a file cannot be read.
    """
    if not is_published(model):
        return ""
    return next((found for version in served_versions(model, config) if (found := find_mismatch(version))), "")


def needs_int8_instructions(model: Path, config: Path) -> bool:
    """Whether int8 weights that use all 8 bits would run on a CPU: products of them overflow without such instructions."""
    if on_gpu(read_config(config)):
        return False
    for version in served_versions(model, config):
        quantization = (read_manifest(version) or {}).get("quantization")
        if isinstance(quantization, dict) and quantization.get("reduce_range") is False:
            return True
    return False


def on_gpu(config: model_config_pb2.ModelConfig) -> bool:
    """Whether all instances of a model are on GPUs."""
    groups = config.instance_group
    return bool(groups) and all(group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU for group in groups)


def read_config(config: Path) -> model_config_pb2.ModelConfig:
    """Read a configuration; the empty one if that is not possible."""
    try:
        return text_format.Parse(config.read_text(), model_config_pb2.ModelConfig(), allow_unknown_field=True)
    except (OSError, ValueError, text_format.ParseError):
        return model_config_pb2.ModelConfig()  # Triton reports what is wrong with it
