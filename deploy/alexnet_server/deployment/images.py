"""Which images run: each by its digest, so that what was tested is what starts; Triton no older than its last known holes. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from alexnet_server.deployment.finding import Finding
from alexnet_server.deployment.rendering import Overlay
from alexnet_server.deployment.workloads import workloads

PLACEHOLDER = "sha256:" + 64 * "0"
DIGEST = re.compile(r"@(sha256:[0-9a-f]{64})$")
TRITON = re.compile(r"tritonserver:(\d\d)\.(\d\d)")
LEAST_TRITON = (26, 6)
"""The release that fixed the latest vulnerabilities known in August 2026 (NVIDIA's bulletin 2026/5865)."""
PIN = "add @sha256:..., as `docker pull` prints it"


def manifest_images(overlay: Overlay, *, release: bool) -> Iterator[Finding]:
    """Of all pods.

    Args:
        overlay: the rendered one.
        release: whether the placeholders must have been replaced.
    """
    for workload in workloads(overlay):
        for container in workload.all_containers:
            where = f"{workload.where}, container {container['name']}"
            yield from _judge(where, str(container.get("image", "")), release=release)


def placeholders(overlay: Overlay) -> bool:
    """Whether somebody must still say which images."""
    return any(PLACEHOLDER in str(each.get("image")) for one in workloads(overlay) for each in one.all_containers)


def compose_images(path: Path, *, release: bool) -> Iterator[Finding]:
    """Of the services that are not built where they run."""
    services = (yaml.safe_load(path.read_text()) or {}).get("services", {})
    built_here = {service.get("image") for service in services.values() if "build" in service}
    for name, service in services.items():
        image = _resolved(str(service.get("image", "")))
        if service.get("image") in built_here or (not image and "extends" in service):
            continue
        yield from _judge(f"{path}: {name}", image, release=release)


def dockerfile_images(path: Path, *, release: bool) -> Iterator[Finding]:
    """Of FROM and COPY --from, with the defaults of ARGs before them put in."""
    arguments: dict[str, str] = {}
    stages: set[str] = {"scratch"}
    for number, line in _instructions(path.read_text()):
        where = f"{path}:{number}"
        if declared := re.match(r"ARG\s+(\w+)=(\S+)", line, re.IGNORECASE):
            arguments[declared[1]] = declared[2].strip("\"'")
        if copied := re.match(r"COPY\s.*--from=(\S+)", line, re.IGNORECASE):
            name = _substituted(copied[1], arguments)
            if name not in stages and not name.isdigit():
                yield from _judge(where, name, release=release)
        if begun := re.match(r"FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?", line, re.IGNORECASE):
            image = _substituted(begun[1], arguments)
            if image not in stages:
                yield from _judge(where, image, release=release)
            if begun[2]:
                stages.add(begun[2])


def _instructions(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, continued ones in one."""
    held, began = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            continue
        began = began if held else number
        held += line.strip()
        if held.endswith("\\"):
            held = held[:-1] + " "
            continue
        yield began, held
        held = ""


def _substituted(text: str, arguments: dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)(?::-([^}]*))?\}?", lambda found: arguments.get(found[1], found[2] or found[0]), text)


def _resolved(text: str) -> str:
    """Compose's ``${NAME:-default}`` with its default."""
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", text)


def _judge(where: str, image: str, *, release: bool) -> Iterator[Finding]:
    digest = DIGEST.search(image)
    if not image:
        yield Finding(where, "has no image", "name one, by its digest")
    elif "$" in image:
        yield Finding(where, f"{image}: which image is left to the caller", "give the argument a default with a digest")
    elif digest is None:
        tag = re.search(r":([\w.-]+)$", image)
        if tag is None or tag[1] == "latest":
            yield Finding(where, f"{image} is whatever is the latest", PIN)
        else:
            yield Finding(where, f"{image} has no digest: a tag can be moved", PIN)
    elif release and digest[1] == PLACEHOLDER:
        yield Finding(where, f"{image} has the placeholder's digest", "put in that of the image you pushed")
    triton = TRITON.search(image)
    if triton and (int(triton[1]), int(triton[2])) < LEAST_TRITON:
        yield Finding(
            where,
            f"{image}: release {triton[1]}.{triton[2]} of Triton has published vulnerabilities",
            f"take {LEAST_TRITON[0]}.{LEAST_TRITON[1]:02d} or later",
        )
