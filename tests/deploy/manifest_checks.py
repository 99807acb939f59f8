"""Checks of the Kubernetes overlays, the compose file and the Dockerfiles; `make deploy-check` runs them all.

Schemas come from `kubernetes-validate`. The other checks are specific to this project: which objects must agree with each
other and with the command line of `alexnet-server`. A check yields one sentence for each problem.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import typer.main
import yaml

from alexnet_client.terminal import EXIT_CODES
from alexnet_server.__main__ import app

DEPLOY = Path(__file__).parents[2] / "deploy"
OVERLAYS = tuple(sorted(each.name for each in (DEPLOY / "kubernetes/overlays").iterdir()))
KUBERNETES = ("1.27", "1.37")
"""The first version with gRPC probes enabled by default, and the latest one that has schemas."""
CUSTOM_RESOURCES = frozenset({"InferenceService", "PodMonitor", "PrometheusRule", "ScaledObject", "ServingRuntime"})
SELECTORS = {"Deployment": "selector", "NetworkPolicy": "podSelector", "PodDisruptionBudget": "selector"}
SELECTORS |= {"PodMonitor": "selector", "Service": "selector"}
CLIENT_LABELS = {"alexnet-serving/client": "true"}
JOBS = {"triton", "alexnet-client"}
"""Values of the label `job` that the Prometheus rules select."""
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
MIN_STARTUP_S = 120
SHUTDOWN_MARGIN_S = 10
MIN_TRITON = (26, 6)
"""First release with fixes of all vulnerabilities known in August 2026 (NVIDIA bulletin 2026/5865)."""
POD_SECURITY = yaml.safe_load(
    "{runAsNonRoot: true, runAsUser: 1000, runAsGroup: 1000, fsGroup: 1000, seccompProfile: {type: RuntimeDefault}}"
)
CONTAINER_SECURITY = yaml.safe_load(
    "{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}"
)
ADAPTER = yaml.safe_load((DEPLOY / "kubernetes/prometheus-adapter/values.yaml").read_text())["rules"]
PLACEHOLDER = "sha256:" + 64 * "0"
NOT_IN_POD_SPEC = {"model", "minReplicas", "maxReplicas", "labels", "autoScaling", "deploymentStrategy"}
Document = dict[str, Any]


def name_of(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


@dataclass(frozen=True)
class Pod:
    """The pods of a Deployment or of a KServe InferenceService."""

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


@dataclass(frozen=True)
class Overlay:
    """The objects that `kubectl kustomize` renders for one overlay."""

    name: str
    documents: tuple[Document, ...]

    def of_kind(self, *kinds: str) -> list[Document]:
        return [each for each in self.documents if each["kind"] in kinds]

    @property
    def pods(self) -> list[Pod]:
        found = []
        for document in self.of_kind("Deployment"):
            template = document["spec"]["template"]
            found.append(Pod(name_of(document), template["metadata"]["labels"], template["spec"]))
        for document in self.of_kind("InferenceService"):
            predictor, (runtime,) = document["spec"]["predictor"], self.of_kind("ServingRuntime")
            spec = {key: value for key, value in predictor.items() if key not in NOT_IN_POD_SPEC}
            spec |= {key: runtime["spec"][key] for key in ("containers", "volumes")}
            found.append(Pod(name_of(document), predictor["labels"], spec))
        return found

    def servers(self) -> Iterator[tuple[Pod, dict[str, Any], dict[str, Any]]]:
        """Each container that serves, with its pod and the options of its command line."""
        for pod in self.pods:
            for container in pod.spec["containers"]:
                yield pod, container, server_options(command_of(container))


@cache
def rendered(name: str) -> Overlay:
    command = ["kubectl", "kustomize", DEPLOY / "kubernetes/overlays" / name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr}")
    return Overlay(name, tuple(filter(None, yaml.safe_load_all(done.stdout))))


def parsed(app: typer.Typer, words: Sequence[str]) -> dict[str, Any]:
    """The values of all options and arguments of a command line.

    Raises:
        typer.TyperException: the command line is invalid.
    """
    group = typer.main.get_command(app)
    name, command, rest = group.resolve_command(group.make_context("x", [], resilient_parsing=True), list(words))
    with command.make_context(name, rest) as context:
        return {option: context.params[each.name] for each in command.params for option in each.opts}


def server_options(words: Sequence[str]) -> dict[str, Any]:
    return parsed(app, words[1:]) if words[:1] == ["alexnet-server"] else {}


def command_of(container: dict[str, Any]) -> list[str]:
    return [*container.get("command", ()), *container.get("args", ())]


def probe_command(probe: dict[str, Any]) -> list[str]:
    return probe.get("exec", {}).get("command", [])


def check_schemas(overlay: Overlay) -> Iterator[str]:
    # KServe's own schema does not describe the pod, so the pod is validated separately.
    inference = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.owner}, "spec": pod.spec}
        for pod in overlay.pods
        if pod.owner.startswith("InferenceService")
    ]
    for document in (*overlay.documents, *inference):
        if document["kind"] not in CUSTOM_RESOURCES:
            yield from _schema_problems(json.dumps(document))


@cache  # most objects are part of several overlays
def _schema_problems(text: str) -> list[str]:
    document, problems = json.loads(text), []
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            problems.append(f"{name_of(document)} is invalid in Kubernetes {version}: {error.message}")
    return problems


def check_command_lines(overlay: Overlay) -> Iterator[str]:
    for pod in overlay.pods:
        for container in pod.containers:
            for words in (command_of(container), *(probe_command(container.get(name, {})) for name in PROBES)):
                try:
                    server_options(words)
                except typer.TyperException as error:
                    yield f"{pod.owner}: `{' '.join(words)}` is invalid: {error}"


def check_selectors(overlay: Overlay) -> Iterator[str]:
    known = [CLIENT_LABELS, *(pod.labels for pod in overlay.pods)]
    for document in overlay.of_kind(*SELECTORS):
        selector = document["spec"].get(SELECTORS[document["kind"]], {})
        labels = selector.get("matchLabels", selector)
        all_pods = document["kind"] == "NetworkPolicy" and selector == {}
        if not all_pods and not (labels and any(labels.items() <= each.items() for each in known)):
            yield f"{name_of(document)}: selector {labels} matches no pod"


def check_ports(overlay: Overlay) -> Iterator[str]:
    known = set()
    for pod, container, options in overlay.servers():
        ports = {port["containerPort"]: port["name"] for port in container.get("ports", ())}
        known |= {*ports, *ports.values()}
        if set(ports) != {options["--grpc-port"], options["--metrics-port"]}:
            yield f"{pod.owner}: containerPorts differ from --grpc-port and --metrics-port"
    for document in overlay.of_kind("Service", "NetworkPolicy", "PodMonitor"):
        spec = document["spec"]
        ports = [each.get("targetPort", each["port"]) for each in spec.get("ports", ())]
        ports += [each["port"] for rule in spec.get("ingress", ()) for each in rule.get("ports", ())]
        ports += [each["port"] for each in spec.get("podMetricsEndpoints", ())]
        yield from (f"{name_of(document)}: no container has port {port}" for port in ports if port not in known)
    for document in overlay.of_kind("Service"):
        if document["spec"].get("clusterIP") != "None":
            yield f"{name_of(document)}: clusterIP must be None, so that clients can balance over all pods"


def check_probes(overlay: Overlay) -> Iterator[str]:
    for pod, container, server in overlay.servers():
        for name in PROBES:
            probe = container.get(name, {})
            command = server_options(probe_command(probe))
            port = command["--target"].rpartition(":")[2] if command else probe.get("grpc", {}).get("port")
            if str(port) != str(server["--grpc-port"]) or command.get("--tls") != server["--tls"]:
                yield f"{pod.owner}: {name} must use the port and the certificates of the server"
            if command and probe.get("timeoutSeconds", 1) <= command["--timeout"]:
                yield f"{pod.owner}: timeoutSeconds of {name} must exceed its --timeout of {command['--timeout']:g} s"
        if not probe_command(container.get("livenessProbe", {})):
            yield f"{pod.owner}: livenessProbe must run `alexnet-server probe`: a draining server is alive, but not ready"
        startup = container.get("startupProbe", {})
        if startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3) < MIN_STARTUP_S:
            yield f"{pod.owner}: startupProbe must allow {MIN_STARTUP_S} s for loading the models"
        if server_options(probe_command(startup)).get("--golden") != server["--repository"]:
            yield f"{pod.owner}: startupProbe must compare golden answers (--golden={server['--repository']})"


def check_shutdown(overlay: Overlay) -> Iterator[str]:
    for pod, container, options in overlay.servers():
        hook = probe_command(container.get("lifecycle", {}).get("preStop", {}))
        given = pod.spec.get("terminationGracePeriodSeconds", 30)
        if hook[:1] != ["sleep"]:
            yield f"{pod.owner}: preStop must sleep until clients know that the pod terminates"
        elif given < (needed := int(hook[1]) + options["--exit-timeout"] + SHUTDOWN_MARGIN_S):
            terms = f"preStop {hook[1]} + exit timeout {options['--exit-timeout']} + margin {SHUTDOWN_MARGIN_S}"
            yield f"{pod.owner}: terminationGracePeriodSeconds is {given}, but {terms} = {needed}"


def check_security(overlay: Overlay) -> Iterator[str]:
    """The restricted profile of the Pod Security Standards, a read-only root file system, and network policies."""
    for pod in overlay.pods:
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.owner}: the token of the service account must not be mounted"
        if pod.spec.get("securityContext") != POD_SECURITY:
            yield f"{pod.owner}: the pod's securityContext must be {POD_SECURITY}"
        for container in pod.containers:
            if container.get("securityContext") != CONTAINER_SECURITY:
                yield f"{pod.owner}: {container['name']}: the securityContext must be {CONTAINER_SECURITY}"
    policies = [document["spec"] for document in overlay.of_kind("NetworkPolicy")]
    if not any(each["podSelector"] == {} and len(each["policyTypes"]) == 2 for each in policies):
        yield "no NetworkPolicy denies all other ingress and egress"
    for rule in (rule for each in policies for rule in (*each.get("ingress", ()), *each.get("egress", ()))):
        if not (rule.get("from") or rule.get("to")) or not rule.get("ports"):
            yield "a rule of a NetworkPolicy must name both peers and ports"


def check_autoscaling_and_monitoring(overlay: Overlay) -> Iterator[str]:
    for document in overlay.of_kind("HorizontalPodAutoscaler", "ScaledObject"):
        target = document["spec"]["scaleTargetRef"]["name"]
        if [each["spec"].get("replicas") for each in overlay.of_kind("Deployment")] != [None]:
            yield f"{name_of(document)}: the Deployment {target} must have no `replicas`"
    known = {each["name"]["as"] for rules in ADAPTER.values() for each in rules}
    for document in overlay.of_kind("HorizontalPodAutoscaler"):
        names = {each[each["type"].lower()]["metric"]["name"] for each in document["spec"]["metrics"]}
        yield from (f"{name_of(document)}: prometheus-adapter has no rule for {each}" for each in names - known)
    endpoints = [each["spec"]["podMetricsEndpoints"][0] for each in overlay.of_kind("PodMonitor")]
    relabelings = [relabeling for each in endpoints for relabeling in each.get("relabelings", ())]
    if {each["replacement"] for each in relabelings if each["targetLabel"] == "job"} != JOBS:
        yield f"the PodMonitors must set the jobs {sorted(JOBS)}, which the rules select"


def check_images(overlay: Overlay) -> Iterator[str]:
    for pod in overlay.pods:
        yield from (f"{pod.owner}: {text}" for each in pod.containers for text in image_problems(each["image"]))


CHECKS = (
    *(check_selectors, check_ports, check_probes, check_shutdown, check_security),
    *(check_autoscaling_and_monitoring, check_images),
)


def problems_of(overlay: Overlay) -> list[str]:
    # The other checks assume valid objects and valid command lines.
    invalid = [*check_schemas(overlay), *check_command_lines(overlay)]
    return [f"{overlay.name}: {each}" for each in invalid or [text for check in CHECKS for text in check(overlay)]]


def image_problems(image: str) -> Iterator[str]:
    if not re.search(r"@sha256:[0-9a-f]{64}$", image):
        yield f"image {image} has no digest, so its content can change"
    triton = re.search(r"tritonserver:(\d+)\.(\d+)", image)
    if triton and (int(triton[1]), int(triton[2])) < MIN_TRITON:
        yield f"image {image} has known vulnerabilities; {MIN_TRITON[0]}.{MIN_TRITON[1]:02d} or later is required"


@cache
def file_problems() -> list[str]:
    """Problems of the Dockerfiles and the compose file."""
    compose = DEPLOY / "compose/compose.yml"
    services = yaml.safe_load(compose.read_text())["services"].values()
    images = [each["image"] for each in services if "build" not in each]
    for path in DEPLOY.glob("*.Dockerfile"):
        bases = re.findall(r"^(?:FROM |ARG \w+=|COPY --from=)(\S+)", path.read_text(), re.MULTILINE)
        images += [each for each in bases if ":" in each]  # the others are stages of the same file
    problems = [text for image in images for text in image_problems(image)]
    if shutil.which("docker-compose") is None:
        return [*problems, "compose.yml cannot be checked: docker-compose is not installed"]
    done = subprocess.run(
        ["docker-compose", "-f", compose, "config", "-q"], capture_output=True, text=True, check=False
    )
    return [*problems, f"{compose.name}: {done.stderr.strip()}"] if done.returncode else problems


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make deploy-check", description=__doc__, epilog=EXIT_CODES)
    parser.add_argument("overlay", nargs="?", choices=OVERLAYS, help="name of an overlay; default: all")
    parser.add_argument("--release", action="store_true", help="fail if image digests are still placeholders")
    options = parser.parse_args(arguments)
    if shutil.which("kubectl") is None:
        parser.error("kubectl is not installed (Debian: apt-get install --no-install-recommends kubernetes-client)")
    overlays = [rendered(name) for name in OVERLAYS if options.overlay in (None, name)]
    problems = [*file_problems(), *(each for overlay in overlays for each in problems_of(overlay))]
    images = {each["image"] for overlay in overlays for pod in overlay.pods for each in pod.containers}
    unset = [f"{image} is a placeholder" for image in sorted(images) if PLACEHOLDER in image]
    problems += unset if options.release else []
    names = ", ".join(each.name for each in overlays)
    print("\n".join(problems) or f"No problems in {names}, compose.yml and the Dockerfiles.")
    if unset and not options.release:
        print("Image digests are placeholders. Replace them before `kubectl apply`; --release checks that.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
