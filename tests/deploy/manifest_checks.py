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
from collections.abc import Iterable, Iterator, Sequence
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
KUBERNETES = ("1.27", "1.37")
"""The first version with gRPC probes enabled by default, and the latest one that has schemas."""
CUSTOM_RESOURCES = frozenset({"InferenceService", "PodMonitor", "PrometheusRule", "ScaledObject", "ServingRuntime"})
CLIENT_LABELS = {"alexnet-serving/client": "true"}
JOBS = {"triton", "alexnet-client"}
"""Values of the label `job` that the Prometheus rules select."""
SHUTDOWN_MARGIN_S = 10
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
MIN_FAILURE_S = {"startupProbe": 120, "livenessProbe": 60}
"""Loading the models takes up to two minutes; high load alone must not cause a restart."""
MIN_REPLICAS = 2
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
NOT_IN_POD_SPEC = frozenset(
    ("model", "minReplicas", "maxReplicas", "labels", "annotations", "autoScaling", "deploymentStrategy")
)
UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
COMMANDS = typer.main.get_command(app)
Document = dict[str, Any]


@dataclass(frozen=True)
class Overlay:
    """The objects that `kubectl kustomize` renders for one overlay."""

    name: str
    documents: tuple[Document, ...]

    def of_kind(self, *kinds: str) -> list[Document]:
        return [each for each in self.documents if each["kind"] in kinds]


@dataclass(frozen=True)
class Pod:
    """The pods of a Deployment or of a KServe InferenceService."""

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]
    strategy: dict[str, Any]

    @property
    def all_containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


def overlays(names: Iterable[str] = ()) -> list[Overlay]:
    """Render overlays; all of them if no names are given.

    Raises:
        FileNotFoundError: kubectl is not installed.
        subprocess.CalledProcessError: an overlay cannot be rendered.
    """
    directory, rendered = DEPLOY / "kubernetes/overlays", []
    for name in names or sorted(each.name for each in directory.iterdir()):
        command = ["kubectl", "kustomize", directory / name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rendered.append(Overlay(name, tuple(filter(None, yaml.safe_load_all(done.stdout)))))
    return rendered


def name_of(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def pods(overlay: Overlay) -> list[Pod]:
    found = []
    for document in overlay.of_kind("Deployment"):
        spec = document["spec"]
        template = spec["template"]
        labels = template["metadata"].get("labels", {})
        found.append(Pod(name_of(document), labels, template["spec"], spec.get("strategy", {})))
    runtimes = {each["metadata"]["name"]: each["spec"] for each in overlay.of_kind("ServingRuntime")}
    for document in overlay.of_kind("InferenceService"):
        predictor = document["spec"]["predictor"]
        runtime = runtimes[predictor["model"]["runtime"]]
        merged = {key: value for key, value in predictor.items() if key not in NOT_IN_POD_SPEC}
        merged |= {"containers": runtime["containers"], "volumes": runtime.get("volumes", [])}
        strategy = predictor.get("deploymentStrategy", {})
        found.append(Pod(name_of(document), predictor.get("labels", {}), merged, strategy))
    return found


def parsed(words: list[str]) -> dict[str, Any]:
    """The values of all options and arguments of an `alexnet-server` command line; `{}` for another program.

    Raises:
        typer.TyperException: the command line is invalid.
    """
    if words[:1] != ["alexnet-server"]:
        return {}
    group = COMMANDS
    name, command, rest = group.resolve_command(group.make_context("x", [], resilient_parsing=True), words[1:])
    with command.make_context(name, rest) as context:
        return {option: context.params[each.name] for each in command.params for option in each.opts}


def command_of(container: dict[str, Any]) -> list[str]:
    return [*container.get("command", ()), *container.get("args", ())]


def servers(overlay: Overlay) -> Iterator[tuple[Pod, dict[str, Any], dict[str, Any]]]:
    """Each container that serves, with its pod and the options of its command line."""
    for pod in pods(overlay):
        for container in pod.spec["containers"]:
            yield pod, container, parsed(command_of(container))


def check_schemas(overlay: Overlay) -> Iterator[str]:
    # KServe's own schema does not describe the pod, so the pod is validated separately.
    inference = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.owner}, "spec": pod.spec}
        for pod in pods(overlay)
        if overlay.of_kind("InferenceService")
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
    for pod in pods(overlay):
        for container in pod.all_containers:
            probes = [container.get(name, {}).get("exec", {}).get("command", []) for name in PROBES]
            for words in (command_of(container), *probes):
                try:
                    parsed(words)
                except typer.TyperException as error:
                    yield f"{pod.owner}: `{' '.join(words)}` is invalid: {error}"


def check_selectors(overlay: Overlay) -> Iterator[str]:
    labels = [pod.labels for pod in pods(overlay)]
    for document in overlay.documents:
        spec = document.get("spec", {})
        match document["kind"]:
            case "Service":
                selector = spec.get("selector", {})
            case "Deployment" | "PodDisruptionBudget" | "PodMonitor":
                selector = spec.get("selector", {}).get("matchLabels", {})
            case "NetworkPolicy" if spec.get("podSelector") != {}:  # {} selects all pods
                selector = spec.get("podSelector", {}).get("matchLabels", {})
            case _:
                continue
        known = [*labels, CLIENT_LABELS] if document["kind"] == "PodMonitor" else labels
        if not selector or not any(selector.items() <= each.items() for each in known):
            yield f"{name_of(document)}: selector {selector} matches no pod"
    for pod in pods(overlay):
        spread = pod.spec.get("topologySpreadConstraints", [])
        if "kubernetes.io/hostname" not in {each["topologyKey"] for each in spread}:
            yield f"{pod.owner}: no topologySpreadConstraint spreads the pods over nodes"
        if any(not each["labelSelector"]["matchLabels"].items() <= pod.labels.items() for each in spread):
            yield f"{pod.owner}: a topologySpreadConstraint selects other pods"


def check_ports(overlay: Overlay) -> Iterator[str]:
    known = set()
    for pod, container, options in servers(overlay):
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
    for pod, container, server in servers(overlay):
        for name in PROBES:
            for problem in _probe_problems(name, container.get(name, {}), server):
                yield f"{pod.owner}: {name} {problem}"


def _probe_problems(name: str, probe: dict[str, Any], server: dict[str, Any]) -> Iterator[str]:
    command, port = parsed(probe.get("exec", {}).get("command", [])), server["--grpc-port"]
    seconds = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
    if seconds < MIN_FAILURE_S.get(name, 0):
        yield f"fails after {seconds} s; at least {MIN_FAILURE_S[name]} s are required"
    if command:
        if not command["--target"].endswith(f":{port}") or command["--tls"] != server["--tls"]:
            yield f"must use port {port} and the same --tls as the server"
        if probe.get("timeoutSeconds", 1) <= command["--timeout"]:
            yield f"timeoutSeconds must exceed its --timeout of {command['--timeout']:g} s"
    elif name == "livenessProbe":
        yield "must run `alexnet-server probe`: a draining server is not ready, but must not be restarted"
    elif server["--tls"] or probe.get("grpc", {}).get("port") != port:
        yield f"must use gRPC port {port}, or `alexnet-server probe` with TLS"


def check_shutdown(overlay: Overlay) -> Iterator[str]:
    for pod, container, options in servers(overlay):
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
        given = pod.spec.get("terminationGracePeriodSeconds", 30)
        if hook[:1] != ["sleep"]:
            yield f"{pod.owner}: preStop must sleep until clients know that the pod terminates"
        elif given < (needed := int(hook[1]) + options["--exit-timeout"] + SHUTDOWN_MARGIN_S):
            terms = f"preStop {hook[1]} + exit timeout {options['--exit-timeout']} + margin {SHUTDOWN_MARGIN_S}"
            yield f"{pod.owner}: terminationGracePeriodSeconds is {given}, but {terms} = {needed}"
        rolling = pod.strategy.get("rollingUpdate", {})
        if rolling.get("maxUnavailable") != 0 or not rolling.get("maxSurge"):
            yield f"{pod.owner}: a rolling update reduces capacity; set maxUnavailable: 0 and maxSurge: 1"


def check_security(overlay: Overlay) -> Iterator[str]:
    """The restricted profile of the Pod Security Standards, and a read-only root file system."""
    yield from (f"{name_of(each)}: a secret must not be in a file" for each in overlay.of_kind("Secret"))
    for pod in pods(overlay):
        if pod.spec.get("automountServiceAccountToken") is not False or "serviceAccountName" not in pod.spec:
            yield f"{pod.owner}: requires its own service account, without a mounted token"
        if pod.spec.get("securityContext") != POD_SECURITY:
            yield f"{pod.owner}: the pod's securityContext must be {POD_SECURITY}"
        for container in pod.all_containers:
            if container.get("securityContext") != CONTAINER_SECURITY:
                yield f"{pod.owner}: {container['name']}: the securityContext must be {CONTAINER_SECURITY}"


def check_volumes(overlay: Overlay) -> Iterator[str]:
    for pod in pods(overlay):
        volumes = {each["name"]: each for each in pod.spec.get("volumes", ())}
        for name, volume in volumes.items():
            if "hostPath" in volume or ("emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]):
                yield f"{pod.owner}: volume {name} must be an emptyDir with a sizeLimit"
        for container in pod.all_containers:
            resources, mounts = container.get("resources", {}), container.get("volumeMounts", ())
            limit, request = (resources.get(kind, {}).get("memory") for kind in ("limits", "requests"))
            in_memory = [volumes[each["name"]].get("emptyDir", {}) for each in mounts]
            used = sum(_bytes(each["sizeLimit"]) for each in in_memory if each.get("medium") == "Memory")
            if not limit or not request:
                yield f"{pod.owner}: container {container['name']} needs a memory request and a memory limit"
            elif used >= _bytes(limit):
                yield f"{pod.owner}: memory-backed volumes may use the whole memory limit of {limit}"
    for pod, container, _ in servers(overlay):
        for path in {"/dev/shm", "/tmp"} - {each["mountPath"] for each in container.get("volumeMounts", ())}:
            yield f"{pod.owner}: no volume is mounted at {path}, and the root file system is read-only"


def _bytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", quantity).groups()
    return float(number) * UNITS[unit]


def check_model_delivery(overlay: Overlay) -> Iterator[str]:
    """An init container copies and verifies the models; the server mounts the same volume read-only."""
    for pod, container, options in servers(overlay):
        delivered = set()
        for each in pod.spec.get("initContainers", ()):
            delivered.add(_volume_at(each, parsed(command_of(each)).get("destination")).get("name"))
        mount = _volume_at(container, options["--repository"])
        if mount.get("name") not in delivered - {None}:
            yield f"{pod.owner}: no init container delivers the models to --repository={options['--repository']}"
        elif not mount.get("readOnly"):
            yield f"{pod.owner}: the model repository must be mounted read-only"


def _volume_at(container: dict[str, Any], path: Path | None) -> dict[str, Any]:
    return next((each for each in container.get("volumeMounts", ()) if each["mountPath"] == str(path)), {})


def check_network_policies(overlay: Overlay) -> Iterator[str]:
    policies = overlay.of_kind("NetworkPolicy")
    if not any(each["spec"]["podSelector"] == {} and len(each["spec"]["policyTypes"]) == 2 for each in policies):
        yield "no NetworkPolicy denies all other ingress and egress"
    for document in policies:
        for rule in (*document["spec"].get("ingress", ()), *document["spec"].get("egress", ())):
            if not (rule.get("from") or rule.get("to")) or not rule.get("ports"):
                yield f"{name_of(document)}: a rule must name both peers and ports"
    namespaces = [each["metadata"].get("labels", {}) for each in overlay.of_kind("Namespace")]
    if [each.get("pod-security.kubernetes.io/enforce") for each in namespaces] != ["restricted"]:
        yield "the namespace must enforce the restricted Pod Security Standard"


def check_autoscaling(overlay: Overlay) -> Iterator[str]:
    scalers = overlay.of_kind("HorizontalPodAutoscaler", "ScaledObject", "InferenceService")
    if len(scalers) != 1:
        yield f"one autoscaler is required, found {[name_of(each) for each in scalers]}"
    deployments = {each["metadata"]["name"]: each for each in overlay.of_kind("Deployment")}
    for document in scalers:
        spec = document["spec"].get("predictor", document["spec"])
        target = spec.get("scaleTargetRef", {}).get("name")
        if target and "replicas" in deployments.get(target, {"spec": {"replicas": 1}})["spec"]:
            yield f"{name_of(document)}: its target must be a Deployment without `replicas`"
        lowest = spec.get("minReplicas", spec.get("minReplicaCount", 0))
        if not MIN_REPLICAS <= lowest <= spec.get("maxReplicas", spec.get("maxReplicaCount", 0)):
            yield f"{name_of(document)}: the minimum of {lowest} replicas must be at least {MIN_REPLICAS} and at most the maximum"
    known = {each["name"]["as"] for rules in ADAPTER.values() for each in rules}
    for document in overlay.of_kind("HorizontalPodAutoscaler"):
        names = {each[each["type"].lower()]["metric"]["name"] for each in document["spec"]["metrics"]}
        yield from (f"{name_of(document)}: prometheus-adapter has no rule for {each}" for each in names - known)
    budgets = overlay.of_kind("PodDisruptionBudget")
    if [each["spec"].get("maxUnavailable") for each in budgets] != [1]:
        yield "a PodDisruptionBudget with maxUnavailable: 1 is required; otherwise nodes cannot be drained safely"


def check_monitors(overlay: Overlay) -> Iterator[str]:
    relabelings = [
        each
        for document in overlay.of_kind("PodMonitor")
        for endpoint in document["spec"]["podMetricsEndpoints"]
        for each in endpoint.get("relabelings", ())
    ]
    if {each["replacement"] for each in relabelings if each["targetLabel"] == "job"} != JOBS:
        yield f"the PodMonitors must set the jobs {sorted(JOBS)}, which the rules select"


def check_custom_resources(overlay: Overlay) -> Iterator[str]:
    """What KEDA and KServe require or silently ignore."""
    for document in overlay.of_kind("ScaledObject"):
        for trigger in document["spec"]["triggers"]:
            if not all(isinstance(value, str) for value in trigger["metadata"].values()):
                yield f"{name_of(document)}: all trigger metadata must be strings"
    for document in overlay.of_kind("InferenceService"):
        if document["metadata"]["annotations"].get("serving.kserve.io/deploymentMode") != "Standard":
            yield f"{name_of(document)}: deploymentMode must be Standard"
        for metric in document["spec"]["predictor"]["autoScaling"]["metrics"]:
            if set(metric["external"]["target"]) != {"type", "value"}:
                yield f"{name_of(document)}: KServe reads only `value` of an external target"
    for document in overlay.of_kind("ServingRuntime"):
        if [each["name"] for each in document["spec"]["containers"]] != ["kserve-container"]:
            yield f"{name_of(document)}: KServe requires the container name kserve-container"


def check_images(overlay: Overlay) -> Iterator[str]:
    for pod in pods(overlay):
        yield from (f"{pod.owner}: {each}" for image in pod.all_containers for each in image_problems(image["image"]))


CHECKS = (
    *(check_selectors, check_ports, check_probes, check_shutdown, check_security, check_volumes, check_model_delivery),
    *(check_network_policies, check_autoscaling, check_monitors, check_custom_resources, check_images),
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


def dockerfile_images(text: str) -> list[str]:
    """Images of FROM and COPY --from, with the defaults of ARG; without the stages of the same file."""
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
    resolved = re.sub(r"\$\{?(\w+)\}?", lambda found: arguments.get(found[1], found[0]), text)
    stages = re.findall(r"^FROM \S+ AS (\S+)", resolved, re.MULTILINE)
    images = re.findall(r"^(?:FROM |COPY --from=)(\S+)", resolved, re.MULTILINE)
    return [each for each in images if each not in stages]


def file_problems() -> Iterator[str]:
    """Problems of the Dockerfiles and the compose file."""
    compose = DEPLOY / "compose/compose.yml"
    services = yaml.safe_load(compose.read_text())["services"].values()
    images = {compose: [each["image"] for each in services if "build" not in each]}
    images |= {path: dockerfile_images(path.read_text()) for path in DEPLOY.glob("*.Dockerfile")}
    for path, names in images.items():
        yield from (f"{path.name}: {each}" for name in names for each in image_problems(name))
    if shutil.which("docker-compose") is None:
        yield "docker-compose is not installed, so compose.yml is not checked (apt-get install docker-compose)"
        return
    command = ["docker-compose", "-f", compose, "config", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        yield f"{compose.name}: {done.stderr.strip()}"


def placeholders(overlay: Overlay) -> list[str]:
    return [each["image"] for pod in pods(overlay) for each in pod.all_containers if PLACEHOLDER in each["image"]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make deploy-check", description=__doc__, epilog=EXIT_CODES)
    parser.add_argument("overlays", nargs="*", help="names of overlays; all if none is given")
    parser.add_argument("--release", action="store_true", help="fail if image digests are still placeholders")
    options = parser.parse_args(arguments)
    unknown = [each for each in options.overlays if not (DEPLOY / "kubernetes/overlays" / each).is_dir()]
    if unknown:
        parser.error(f"unknown overlay: {', '.join(unknown)}")
    try:
        rendered = overlays(options.overlays)
    except FileNotFoundError:
        parser.error("kubectl is not installed (Debian: apt-get install --no-install-recommends kubernetes-client)")
    except subprocess.CalledProcessError as error:
        print(error.stderr)
        return 1
    problems = [*file_problems(), *(each for overlay in rendered for each in problems_of(overlay))]
    unset = [f"{overlay.name}: {each} is a placeholder" for overlay in rendered for each in placeholders(overlay)]
    problems += unset if options.release else []
    names = ", ".join(each.name for each in rendered)
    print("\n".join(problems) or f"No problems in {names}, compose.yml and the Dockerfiles.")
    if unset and not options.release:
        print("Image digests are placeholders. Replace them before `kubectl apply`; --release checks that.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
