"""What the lint of configurations looks at: a parsed configuration, the release it serves, the Triton it shall run in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from tritonclient.grpc import model_config_pb2 as triton

Problem = tuple[str, str]
"""What is wrong, and the exact fix."""
HIGHEST_OPSET, HIGHEST_IR = 21, 10
"""What ONNX Runtime 1.19 reads; the later containers' read at least that."""
DIMENSION = "a batch axis named by a symbol, not a number"


@dataclass(frozen=True)
class Target:
    """A Triton release that the configurations shall run in."""

    name: str
    onnxruntime: str
    model_metrics: bool


TARGETS = {
    each.name: each
    for each in (
        Target("24.10", "1.19.2", model_metrics=False),
        Target("25.06", "1.22.0", model_metrics=True),
        Target("25.12", "1.23.2", model_metrics=True),
        Target("26.06", "1.24.4", model_metrics=True),
        Target("26.07", "1.27.0", model_metrics=True),
    )
}
"""Source: docs/introduction/compatibility.md and build.py of triton-inference-server/server."""


@dataclass(frozen=True)
class Subject:
    """A parsed configuration and what it is to fit; ``model`` and ``manifest`` are None before there is a release."""

    config: triton.ModelConfig
    path: Path
    target: Target
    model: onnx.ModelProto | None = None
    manifest: Mapping[str, Any] | None = None
    labels: int | None = None


def model_directory(path: Path) -> Path:
    return path.parent.parent if path.parent.name == "configs" else path.parent
