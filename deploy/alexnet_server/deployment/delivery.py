"""How the model gets into a pod: copied and verified before the server starts, read-only for the server. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alexnet_server.deployment.finding import Finding
from alexnet_server.deployment.rendering import Overlay
from alexnet_server.deployment.workloads import option, workloads


def delivery(overlay: Overlay) -> Iterator[Finding]:
    """The directory that the server reads is one that `alexnet-server deliver` has written."""
    for workload in workloads(overlay):
        delivered = {_delivered(each) for each in workload.pod.get("initContainers", ())} - {None}
        if not delivered:
            yield Finding(
                workload.where,
                "has no init container that delivers the model",
                "alexnet-server deliver SOURCE DESTINATION",
            )
        for container in workload.containers:
            where = f"{workload.where}, container {container['name']}"
            repository = option(container, "--repository")
            mount = next((each for each in container.get("volumeMounts", ()) if each["mountPath"] == repository), None)
            if mount is None:
                yield Finding(
                    where, f"reads {repository or 'no repository'}, where nothing is mounted", "mount the model"
                )
            elif delivered and mount["name"] not in delivered:
                yield Finding(
                    where, f"reads the volume {mount['name']}, into which nothing is delivered", "use one volume"
                )
            elif not mount.get("readOnly"):
                yield Finding(where, "can write to its models", "readOnly: true")


def _delivered(container: dict[str, Any]) -> str | None:
    """The volume that an init container delivers into."""
    words = [*container.get("command", ()), *container.get("args", ())]
    if "deliver" not in words:
        return None
    return next((each["name"] for each in container.get("volumeMounts", ()) if each["mountPath"] == words[-1]), None)
