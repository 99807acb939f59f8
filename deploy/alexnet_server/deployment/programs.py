"""Checks that others' programs make: promtool of the rules, docker-compose of its file. The one place that runs these."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from alexnet_server.deployment.finding import Finding
from alexnet_server.deployment.rendering import Overlay

PACKAGES = {"promtool": "prometheus", "docker-compose": "docker-compose"}
"""Debian's, by the program in them."""
TIMEOUT_S = 60


def rules(overlays: Sequence[Overlay]) -> Iterator[Finding]:
    """What promtool says of each PrometheusRule, once."""
    done: list[object] = []
    for overlay in overlays:
        for document in overlay.of_kind("PrometheusRule"):
            if document["spec"] in done:
                continue
            done.append(document["spec"])
            with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
                yaml.safe_dump(document["spec"], file)
                file.flush()
                yield from _run(overlay.where(document), "promtool", "check", "rules", "--lint-fatal", file.name)


def compose(path: Path) -> Iterator[Finding]:
    """What docker-compose says of its file."""
    yield from _run(str(path), "docker-compose", "-f", str(path), "config", "-q")


def _run(where: str, name: str, *arguments: str) -> Iterator[Finding]:
    program = shutil.which(name)
    if program is None:
        remedy = f"on Debian or Ubuntu: apt-get install --no-install-recommends {PACKAGES[name]}"
        yield Finding(name, "no such program", remedy)
        return
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        yield Finding(where, f"{name} says: {' '.join((done.stdout + done.stderr).split())}", "correct what it names")
