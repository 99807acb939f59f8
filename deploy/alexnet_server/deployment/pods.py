"""What every pod must have: probes that tell the truth, time to end, few rights, memory for what it keeps there. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from alexnet_server.deployment.finding import Finding
from alexnet_server.deployment.rendering import Overlay
from alexnet_server.deployment.workloads import Workload, option, quantity, value_of, workloads

MARGIN_S = 10
"""Between the longest orderly end and the kill."""
LEAST_START_S = 120
"""To load the models, warm up, and build a GPU's engines."""
SECRET = re.compile(r"pass(word|wd)?|secret|token|credential|api_?key|private_?key|access_?key", re.IGNORECASE)


def probes(overlay: Overlay) -> Iterator[Finding]:
    """Started and ready by Triton's health service, alive by an inference."""
    for workload in workloads(overlay):
        for container in workload.containers:
            where = f"{workload.where}, container {container['name']}"
            yield from _health_probes(where, container)
            yield from _liveness(where, container)


def _health_probes(where: str, container: dict[str, Any]) -> Iterator[Finding]:
    port = int(option(container, "--grpc-port") or 8001)
    for name in ("startupProbe", "readinessProbe"):
        probe = container.get(name)
        if not probe:
            yield Finding(where, f"has no {name}", f"ask Triton's health service: grpc: {{port: {port}}}")
        elif "grpc" in probe and probe["grpc"].get("port") != port:
            yield Finding(
                where, f"{name} asks port {probe['grpc'].get('port')}, Triton listens on {port}", "use one port"
            )
        elif not {"grpc", "exec"} & set(probe):
            yield Finding(
                where, f"{name} asks neither by gRPC nor by a program", "HTTP is off, and an open port is no model"
            )
    startup = container.get("startupProbe") or {}
    budget_s = startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3)
    if startup and budget_s < LEAST_START_S:
        yield Finding(
            where, f"startupProbe gives {budget_s} s", f"models take up to {LEAST_START_S} s: failureThreshold"
        )


def _liveness(where: str, container: dict[str, Any]) -> Iterator[Finding]:
    probe = container.get("livenessProbe")
    remedy = "make an inference: exec: [alexnet-server, probe, --target=127.0.0.1:PORT]"
    if not probe:
        yield Finding(where, "has no livenessProbe, so that a dead backend stays", remedy)
        return
    command = probe.get("exec", {}).get("command", [])
    if "probe" not in command:
        yield Finding(where, "livenessProbe makes no inference: readiness would restart a server that drains", remedy)
        return
    target = value_of(command, "--target") or ""
    port = option(container, "--grpc-port") or "8001"
    if not target.endswith(f":{port}"):
        yield Finding(where, f"livenessProbe asks {target or 'nobody'}, Triton listens on {port}", "use one port")
    asked_s = float(value_of(command, "--timeout") or 0)
    if probe.get("timeoutSeconds", 1) <= asked_s:
        yield Finding(
            where,
            f"livenessProbe is killed after {probe.get('timeoutSeconds', 1)} s, but waits {asked_s:g} s for an answer",
            "timeoutSeconds must be longer than its --timeout",
        )
    if probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3) < 60:
        yield Finding(
            where, "livenessProbe restarts within a minute", "load alone must not: periodSeconds, failureThreshold"
        )


def grace(overlay: Overlay) -> Iterator[Finding]:
    """What still runs when the time to end is over, is killed."""
    for workload in workloads(overlay):
        given = workload.pod.get("terminationGracePeriodSeconds")
        for container in workload.containers:
            where = f"{workload.where}, container {container['name']}"
            sleep_s, exit_s = _sleep_s(container), option(container, "--exit-timeout")
            if sleep_s is None:
                yield Finding(where, "has no preStop sleep", "clients must hear of the end first: exec: [sleep, 10]")
            if exit_s is None:
                yield Finding(where, "has no --exit-timeout", "say how long requests in flight may take")
            if sleep_s is None or exit_s is None:
                continue
            needed = sleep_s + float(exit_s) + MARGIN_S
            if given is None or given < needed:
                yield Finding(
                    workload.where,
                    f"terminationGracePeriodSeconds is {given}, preStop {sleep_s:g} + exit timeout {exit_s} + {MARGIN_S} "
                    f"are {needed:g}",
                    f"set it to {needed:g} or more",
                )
        rolling = workload.strategy.get("rollingUpdate", {})
        if rolling.get("maxUnavailable") != 0 or not rolling.get("maxSurge"):
            yield Finding(
                workload.where, f"a rollout may take capacity away: {rolling}", "maxUnavailable: 0 and maxSurge: 1"
            )


def _sleep_s(container: dict[str, Any]) -> float | None:
    hook = container.get("lifecycle", {}).get("preStop", {})
    if "sleep" in hook:
        return float(hook["sleep"]["seconds"])
    command = hook.get("exec", {}).get("command", [])
    return float(command[1]) if command[:1] == ["sleep"] and len(command) == 2 else None


def restricted(overlay: Overlay) -> Iterator[Finding]:
    """The rights of the restricted profile of Kubernetes' Pod Security Standards, and a root file system nobody writes to."""
    for workload in workloads(overlay):
        pod = workload.pod.get("securityContext", {})
        if workload.pod.get("automountServiceAccountToken") is not False:
            yield Finding(workload.where, "gets a token of the API server", "automountServiceAccountToken: false")
        if workload.pod.get("serviceAccountName", "default") == "default":
            yield Finding(workload.where, "runs as the default service account", "give it one of its own")
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if workload.pod.get(field):
                yield Finding(workload.where, f"{field} is true", "leave it out")
        for container in workload.all_containers:
            where = f"{workload.where}, container {container['name']}"
            for what, remedy in _rights(pod, container.get("securityContext", {})):
                yield Finding(where, what, remedy)


def _rights(pod: dict[str, Any], container: dict[str, Any]) -> Iterator[tuple[str, str]]:
    both = {**pod, **container}
    if both.get("runAsNonRoot") is not True or both.get("runAsUser", 1) == 0:
        yield "may run as root", "runAsNonRoot: true, runAsUser: 1000"
    if container.get("allowPrivilegeEscalation") is not False:
        yield "may escalate its privileges", "allowPrivilegeEscalation: false"
    if container.get("privileged"):
        yield "is privileged", "leave it out"
    capabilities = container.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()) or capabilities.get("add"):
        yield "keeps capabilities", "capabilities: {drop: [ALL]}"
    if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "has no seccomp profile", "seccompProfile: {type: RuntimeDefault}"
    if container.get("readOnlyRootFilesystem") is not True:
        yield "can write to its image", "readOnlyRootFilesystem: true, and emptyDirs for what it writes"


def memory(overlay: Overlay) -> Iterator[Finding]:
    """Limits there, requests no larger, and what lies in memory (/dev/shm) inside them."""
    for workload in workloads(overlay):
        volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", ())}
        for container in workload.all_containers:
            where = f"{workload.where}, container {container['name']}"
            limit = container.get("resources", {}).get("limits", {}).get("memory")
            if limit is None or not container.get("resources", {}).get("requests", {}).get("memory"):
                yield Finding(where, "has no request or no limit of memory", "resources: {requests:, limits:}")
                continue
            mounted = [volumes.get(mount["name"], {}) for mount in container.get("volumeMounts", ())]
            kept = sum(_in_memory(volume) for volume in mounted)
            if kept >= quantity(limit):
                yield Finding(
                    where,
                    f"its memory limit is {limit}, but the emptyDirs in memory take {kept / 2**20:g} MiB of it",
                    "raise the limit, or lower their sizeLimit",
                )
        yield from _volumes(workload)


def _in_memory(volume: dict[str, Any]) -> float:
    directory = volume.get("emptyDir") or {}
    return quantity(directory.get("sizeLimit", 0)) if directory.get("medium") == "Memory" else 0.0


def _volumes(workload: Workload) -> Iterator[Finding]:
    for volume in workload.pod.get("volumes", ()):
        if "emptyDir" in volume and not (volume["emptyDir"] or {}).get("sizeLimit"):
            yield Finding(
                workload.where, f"emptyDir {volume['name']} has no sizeLimit", "a node's disk or memory is shared"
            )
        if "hostPath" in volume:
            yield Finding(workload.where, f"volume {volume['name']} is a path of the node", "use an emptyDir")
    mounts = [mount for each in workload.containers for mount in each.get("volumeMounts", ())]
    for needed in ("/dev/shm", "/tmp"):  # noqa: S108  paths in the container
        if needed not in {mount["mountPath"] for mount in mounts}:
            yield Finding(workload.where, f"nothing is mounted at {needed}", "mount an emptyDir: the root is read-only")


def secrets(overlay: Overlay) -> Iterator[Finding]:
    """A value in a manifest is in git, and in the environment it is in every process and crash report."""
    for document in overlay.of_kind("Secret"):
        yield Finding(
            overlay.where(document), "is a secret in a file", "make secrets in the cluster, mount them as files"
        )
    for workload in workloads(overlay):
        for container in workload.all_containers:
            for variable in container.get("env", ()):
                if SECRET.search(variable["name"]) or "secretKeyRef" in variable.get("valueFrom", {}):
                    yield Finding(
                        f"{workload.where}, container {container['name']}",
                        f"has a secret in its environment: {variable['name']}",
                        "mount it as a file",
                    )
