"""Overlays as the cluster would be given them, by ``kubectl kustomize``. The one place that runs kubectl."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alexnet_server.deployment.finding import Finding

Document = dict[str, Any]
KUBECTL = (
    "on Debian or Ubuntu: apt-get install --no-install-recommends kubernetes-client; elsewhere take it from "
    "kubernetes.io/releases/download and put it into the PATH"
)
TIMEOUT_S = 60
PORTABLE = frozenset(
    (
        *("apiVersion", "kind", "namespace", "bases", "resources", "images", "commonLabels", "commonAnnotations"),
        *("patchesStrategicMerge", "patchesJson6902", "configMapGenerator", "secretGenerator", "generatorOptions"),
    )
)
"""Fields of a kustomization that kustomize 2.0.3 (kubectl 1.14 to 1.20, Debian's among them) understands, and 5 still does."""


@dataclass(frozen=True)
class Overlay:
    """A rendered overlay: its name, and what the cluster would be given."""

    name: str
    documents: tuple[Document, ...]

    def of_kind(self, *kinds: str) -> list[Document]:
        """The objects of some kinds."""
        return [each for each in self.documents if each["kind"] in kinds]

    def where(self, document: Document) -> str:
        """How a finding names an object of this overlay."""
        return f"{self.name}: {document['kind']}/{document['metadata']['name']}"


def render(kubernetes: Path) -> tuple[list[Overlay], list[Finding]]:
    """All overlays of a directory with ``overlays/``, and what hindered some."""
    program = shutil.which("kubectl")
    if program is None:
        return [], [Finding("kubectl", "no such program", KUBECTL)]
    overlays, findings = [], []
    directories = sorted(path.parent for path in (kubernetes / "overlays").glob("*/kustomization.yaml"))
    if not directories:
        return [], [Finding(str(kubernetes), "has no overlays/*/kustomization.yaml", "name the deploy directory")]
    for directory in directories:
        done = subprocess.run(
            [program, "kustomize", str(directory)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if not line.startswith("# Warning")]
            findings.append(Finding(str(directory), f"does not render: {' '.join(said)}", "correct what it names"))
        else:
            overlays.append(Overlay(directory.name, tuple(filter(None, yaml.safe_load_all(done.stdout)))))
    return overlays, findings


def portability(kubernetes: Path) -> Iterator[Finding]:
    """What only new versions of kustomize would understand."""
    for path in sorted(kubernetes.rglob("kustomization.yaml")):
        try:
            content = yaml.safe_load(path.read_text()) or {}
        except yaml.YAMLError:
            continue  # kubectl says what is wrong with it
        for field in sorted(set(content) - PORTABLE):
            yield Finding(str(path), f"has `{field}`, which kustomize 2.0.3 does not know", "use the fields it knows")
        directories = [name for name in content.get("resources", ()) if (path.parent / name).is_dir()]
        if directories:
            yield Finding(
                str(path),
                f"names a directory in resources: {', '.join(directories)}",
                "directories belong into `bases`",
            )
    for path in sorted(kubernetes.rglob("*.yaml")):
        if "$patch: delete" in path.read_text():
            yield Finding(
                str(path),
                "deletes by a patch, which kustomize 2.0.3 turns into an empty document",
                "take the object out of the base instead",
            )
