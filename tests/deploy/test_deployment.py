"""`make deploy-check`: what is committed passes, and each planted mistake is found, by its place and in plain words."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from alexnet_server.deployment import programs
from alexnet_server.deployment.inspection import Surroundings, objects, surroundings
from alexnet_server.deployment.rendering import Overlay, portability, render
from alexnet_server.deployment.schemas import schemas

DEPLOY = Path(__file__).parents[2] / "deploy"
pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed (apt-get install kubernetes-client)"
)
GONE = object()
"""A planted mistake takes the field away."""
CONTAINER = "spec.template.spec.containers.0"
POD = "spec.template.spec"


@dataclass(frozen=True)
class Mistake:
    """A value put at a place of an object, and what is said of it."""

    name: str
    thing: str
    path: str
    value: Any
    says: str
    overlay: str = "cpu"


MISTAKES = (
    Mistake("service selects nobody", "Service/alexnet", "spec.selector", {"app": "other"}, "selector app=other matches no pod"),
    Mistake("service without a selector", "Service/alexnet", "spec.selector", GONE, r"selector \(none\) matches no pod"),
    Mistake("budget without a selector", "PodDisruptionBudget/alexnet", "spec.selector", GONE, r"selector \(none\) matches no pod"),
    Mistake("budget for clients", "PodDisruptionBudget/alexnet", "spec.selector.matchLabels", {"alexnet-serving/client": "true"}, "matches no pod"),
    Mistake("deployment selects others", "Deployment/alexnet", "spec.selector.matchLabels", {"a": "b"}, "does not match its own pods"),
    Mistake("budget of nobody", "PodDisruptionBudget/alexnet", "spec.selector.matchLabels", {"a": "b"}, "a=b matches no pod"),
    Mistake("budget that blocks", "PodDisruptionBudget/alexnet", "spec", {"minAvailable": 2}, "no node can be drained"),
    Mistake("policy for nobody", "NetworkPolicy/dns", "spec.podSelector.matchLabels", {"a": "b"}, "podSelector a=b matches no pod"),
    Mistake("policy for everybody", "NetworkPolicy/grpc-from-clients", "spec.ingress.0.from", GONE, "lets everybody in"),
    Mistake("policy for every port", "NetworkPolicy/grpc-from-clients", "spec.ingress.0.ports", GONE, "opens every port"),
    Mistake("nothing denied", "NetworkPolicy/default-deny", "spec.policyTypes", ["Ingress"], "nothing denies"),
    Mistake("unguarded namespace", "Namespace/alexnet-serving", "metadata.labels", {}, "admits any pod"),
    Mistake("monitor of nobody", "PodMonitor/triton", "spec.selector.matchLabels", {"a": "b"}, "a=b matches no pod"),
    Mistake("monitor of another port", "PodMonitor/triton", "spec.podMetricsEndpoints.0.port", "web", "leads to port web"),
    Mistake("monitor without a job", "PodMonitor/triton", "spec.podMetricsEndpoints.0.relabelings", [], "none makes the job triton"),
    Mistake("service with an address", "Service/alexnet", "spec.clusterIP", GONE, "one connection stays at one pod"),
    Mistake("spread of others", "Deployment/alexnet", f"{POD}.topologySpreadConstraints.1.labelSelector.matchLabels", {"a": "b"}, "spreads pods with a=b"),
    Mistake("all on one node", "Deployment/alexnet", f"{POD}.topologySpreadConstraints", [], "may put all pods on one node"),
    Mistake("no readiness probe", "Deployment/alexnet", f"{CONTAINER}.readinessProbe", GONE, "has no readinessProbe"),
    Mistake("readiness elsewhere", "Deployment/alexnet", f"{CONTAINER}.readinessProbe.grpc.port", 9000, "readinessProbe asks port 9000"),
    Mistake("readiness by HTTP", "Deployment/alexnet", f"{CONTAINER}.readinessProbe", {"httpGet": {"port": 8000}}, "neither by gRPC"),
    Mistake("hasty start", "Deployment/alexnet", f"{CONTAINER}.startupProbe.failureThreshold", 3, "startupProbe gives 6 s"),
    Mistake("no liveness probe", "Deployment/alexnet", f"{CONTAINER}.livenessProbe", GONE, "a dead backend stays"),
    Mistake("liveness by readiness", "Deployment/alexnet", f"{CONTAINER}.livenessProbe", {"grpc": {"port": 8001}}, "makes no inference"),
    Mistake("impatient liveness", "Deployment/alexnet", f"{CONTAINER}.livenessProbe.timeoutSeconds", 5, "killed after 5 s, but waits 10 s"),
    Mistake("liveness under load", "Deployment/alexnet", f"{CONTAINER}.livenessProbe.failureThreshold", 1, "restarts within a minute"),
    Mistake("too little grace", "Deployment/alexnet", f"{POD}.terminationGracePeriodSeconds", 30, r"is 30, preStop 10 \+ exit timeout 30 \+ 10 are 50"),
    Mistake("no grace", "Deployment/alexnet", f"{POD}.terminationGracePeriodSeconds", GONE, "terminationGracePeriodSeconds is None"),
    Mistake("no preStop", "Deployment/alexnet", f"{CONTAINER}.lifecycle", GONE, "has no preStop sleep"),
    Mistake("capacity falls", "Deployment/alexnet", "spec.strategy.rollingUpdate.maxUnavailable", 1, "may take capacity away"),
    Mistake("escalation allowed", "Deployment/alexnet", f"{CONTAINER}.securityContext.allowPrivilegeEscalation", True, "may escalate its privileges"),
    Mistake("escalation of the init container", "Deployment/alexnet", f"{POD}.initContainers.0.securityContext", {}, "container deliver: may escalate"),
    Mistake("capabilities kept", "Deployment/alexnet", f"{CONTAINER}.securityContext.capabilities", {}, "keeps capabilities"),
    Mistake("root", "Deployment/alexnet", f"{POD}.securityContext.runAsUser", 0, "may run as root"),
    Mistake("no seccomp", "Deployment/alexnet", f"{POD}.securityContext.seccompProfile", GONE, "has no seccomp profile"),
    Mistake("writable root", "Deployment/alexnet", f"{CONTAINER}.securityContext.readOnlyRootFilesystem", False, "can write to its image"),
    Mistake("token", "Deployment/alexnet", f"{POD}.automountServiceAccountToken", True, "gets a token of the API server"),
    Mistake("host's network", "Deployment/alexnet", f"{POD}.hostNetwork", True, "hostNetwork is true"),
    Mistake("no memory limit", "Deployment/alexnet", f"{CONTAINER}.resources.limits", {}, "no limit of memory"),
    Mistake("shared memory too large", "Deployment/alexnet", f"{POD}.volumes.2.emptyDir.sizeLimit", "4Gi", "memory limit is 3Gi, but the emptyDirs in memory take 4096 MiB"),
    Mistake("unbounded directory", "Deployment/alexnet", f"{POD}.volumes.1.emptyDir", {}, "emptyDir tmp has no sizeLimit"),
    Mistake("writable models", "Deployment/alexnet", f"{CONTAINER}.volumeMounts.0.readOnly", GONE, "can write to its models"),
    Mistake("model not delivered", "Deployment/alexnet", f"{POD}.initContainers", [], "has no init container that delivers"),
    Mistake("model delivered elsewhere", "Deployment/alexnet", f"{POD}.initContainers.0.volumeMounts.0.name", "tmp", "into which nothing is delivered"),
    Mistake("another repository", "Deployment/alexnet", f"{CONTAINER}.args.1", "--repository=/other", "reads /other, where nothing is mounted"),
    Mistake("malformed containers", "Deployment/alexnet", f"{POD}.containers", [None], r"an object is malformed \("),
    Mistake("malformed quantity", "Deployment/alexnet", f"{CONTAINER}.resources.limits.memory", "3 GB", "malformed .*3 GB: not a quantity"),
    Mistake("secret in the environment", "Deployment/alexnet", f"{CONTAINER}.env.0", {"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}, "secret in its environment"),
    Mistake("image by tag", "Deployment/alexnet", f"{CONTAINER}.image", "a.example/server:1.0", "has no digest: a tag can be moved"),
    Mistake("latest image", "Deployment/alexnet", f"{CONTAINER}.image", "a.example/server:latest", "is whatever is the latest"),
    Mistake("old Triton", "Deployment/alexnet", f"{CONTAINER}.image", f"nvcr.io/nvidia/tritonserver:24.10-py3@sha256:{64 * 'a'}", "24.10 of Triton has published vulnerabilities"),
    Mistake("stale autoscaler", "HorizontalPodAutoscaler/alexnet", "apiVersion", "autoscaling/v2beta2", "v2beta2, which is not current; use autoscaling/v2"),
    Mistake("stale deployment", "Deployment/alexnet", "apiVersion", "extensions/v1beta1", "use apps/v1"),
    Mistake("stale budget", "PodDisruptionBudget/alexnet", "apiVersion", "policy/v1beta1", "use policy/v1"),
    Mistake("unknown kind", "Service/alexnet", "kind", "Ingress", "nothing here checks: Ingress"),
    Mistake("minimum above maximum", "HorizontalPodAutoscaler/alexnet", "spec.minReplicas", 9, "minimum of 9 is more than its maximum of 8"),
    Mistake("one replica", "HorizontalPodAutoscaler/alexnet", "spec.minReplicas", 1, "its minimum is 1; with fewer than 2"),
    Mistake("scaling somebody else", "HorizontalPodAutoscaler/alexnet", "spec.scaleTargetRef.name", "other", "scales Deployment/other, which is not there"),
    Mistake("metric nobody makes", "HorizontalPodAutoscaler/alexnet", "spec.metrics.0.pods.metric.name", "queue_time", "scales on queue_time, an unknown metric"),
    Mistake("blind to overload", "HorizontalPodAutoscaler/alexnet", "spec.metrics.1", GONE, "a full queue hides"),
    Mistake("replicas fixed", "Deployment/alexnet", "spec.replicas", 3, "an apply would undo the autoscaler"),
    Mistake("unknown metric in a rule", "PrometheusRule/alexnet", "spec.groups.0.rules.0.expr", "nv_inference_sucess > 1", "nv_inference_sucess, an unknown metric"),
    Mistake("the launcher's metric", "PrometheusRule/alexnet", "spec.groups.0.rules.0.expr", "alexnet_server_ready == 0", "alexnet_server_ready, an unknown metric"),
    Mistake("unknown metric of KEDA", "ScaledObject/alexnet", "spec.triggers.0.metadata.query", "sum(rate(nv_queue_us[1m]))", "nv_queue_us, an unknown metric", "gpu-keda"),
    Mistake("KEDA down to none", "ScaledObject/alexnet", "spec.minReplicaCount", 0, "its minimum is 0", "gpu-keda"),
    Mistake("KServe without grace", "InferenceService/alexnet", "spec.predictor.terminationGracePeriodSeconds", 30, "InferenceService/alexnet: terminationGracePeriodSeconds is 30", "kserve"),
    Mistake("KServe's image", "ServingRuntime/alexnet-triton", "spec.containers.0.image", "nvcr.io/nvidia/tritonserver:23.05-py3", "23.05 of Triton has published vulnerabilities", "kserve"),
    Mistake("KServe's probe", "ServingRuntime/alexnet-triton", "spec.containers.0.readinessProbe.grpc.port", 8001, "asks port 8001, Triton listens on 9000", "kserve"),
    Mistake("KServe's rights", "InferenceService/alexnet", "spec.predictor.securityContext", {}, "may run as root", "kserve"),
    Mistake("KServe's label", "InferenceService/alexnet", "spec.predictor.labels", {}, "PodMonitor/triton: its selector .* matches no pod", "kserve"),
)  # fmt: skip
UNFIT = (
    Mistake("misspelt field", "Deployment/alexnet", "spec.replica", 3, "Kubernetes 1.37 refuses"),
    Mistake("wrong type", "Service/alexnet", "spec.ports.0.port", "http", "Kubernetes 1.37 refuses spec.ports.0.port"),
    Mistake("misspelt in a monitor", "PodMonitor/triton", "spec.podMetricEndpoints", [], "'podMetricEndpoints' was unexpected"),
    Mistake("rule without a name", "PrometheusRule/alexnet", "spec.groups.0.rules.0.alert", GONE, "spec.groups.0.rules.0"),
    Mistake("number for KEDA", "ScaledObject/alexnet", "spec.triggers.0.metadata.threshold", 0.5, "0.5 is not of type 'string'", "gpu-keda"),
    Mistake("what KServe does not read", "InferenceService/alexnet", "spec.predictor.autoScaling.metrics.0.external.target", {"type": "AverageValue", "averageValue": "1"}, "'value' is a required property", "kserve"),
    Mistake("Knative", "InferenceService/alexnet", "metadata.annotations", {"serving.kserve.io/deploymentMode": "Serverless"}, "'Standard' was expected", "kserve"),
    Mistake("container KServe does not find", "ServingRuntime/alexnet-triton", "spec.containers.0.name", "triton", "does not contain items matching", "kserve"),
    Mistake("misspelt in KServe's pod", "InferenceService/alexnet", "spec.predictor.initContainers.0.volumeMount", [], "Kubernetes 1.37 refuses spec.initContainers.0", "kserve"),
)  # fmt: skip


@pytest.fixture(scope="module")
def overlays() -> dict[str, Overlay]:
    rendered, findings = render(DEPLOY / "kubernetes")
    assert findings == []
    return {overlay.name: overlay for overlay in rendered}


@pytest.fixture(scope="module")
def around() -> Surroundings:
    return surroundings(DEPLOY)


def planted(overlay: Overlay, mistake: Mistake) -> Overlay:
    documents = copy.deepcopy(overlay.documents)
    kind, name = mistake.thing.split("/")
    (thing,) = (each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name))
    *way, last = (int(step) if step.isdigit() else step for step in mistake.path.split("."))
    for step in way:
        thing = thing[step]
    if mistake.value is GONE:
        del thing[last]
    else:
        thing[last] = mistake.value
    return Overlay(overlay.name, documents)


def found(checks) -> list[str]:
    return [str(finding) for check in checks for finding in check.findings]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_planted_mistake_is_found_and_named(mistake, overlays, around):
    said = found(objects([planted(overlays[mistake.overlay], mistake)], around))
    assert any(re.search(mistake.says, each) for each in said), said
    assert all(each.startswith(f"{mistake.overlay}: ") for each in said)


@pytest.mark.parametrize("mistake", UNFIT, ids=lambda mistake: mistake.name)
def test_what_a_cluster_would_refuse_or_drop_is_found_by_a_schema(mistake, overlays):
    whole = planted(overlays[mistake.overlay], mistake)
    kinds = {mistake.thing.split("/")[0], "ServingRuntime"}
    part = Overlay(whole.name, tuple(each for each in whole.documents if each["kind"] in kinds))
    said = [str(finding) for finding in schemas([part], versions=["1.37"])]
    assert any(re.search(mistake.says, each) for each in said), said


def test_two_autoscalers_of_one_deployment_are_found(overlays, around):
    both = Overlay("both", overlays["gpu-keda"].documents + tuple(overlays["gpu"].of_kind("HorizontalPodAutoscaler")))
    assert any("there must be one autoscaler" in each for each in found(objects([both], around)))


def test_placeholders_of_images_are_a_note_and_before_an_apply_a_mistake(overlays, around):
    assert {overlay.name for overlay in overlays.values()} >= {"cpu", "gpu", "gpu-keda", "kserve"}
    checks = list(objects(list(overlays.values()), around))
    assert found(checks) == []
    notes = [note for check in checks for note in check.notes]
    assert notes == ["images of cpu, gpu, gpu-keda, gpu-mtls, kserve are placeholders: put in yours before you apply"]
    strict = Surroundings(around.adapter, around.known, release=True)
    said = found(objects([overlays["gpu"]], strict))
    assert len(said) == 2
    assert all("has the placeholder's digest; put in that of the image you pushed" in each for each in said)


def test_with_mutual_tls_every_probe_shows_a_certificate_and_the_kubelets_own_which_cannot_is_not_used(overlays):
    (deployment,) = overlays["gpu-mtls"].of_kind("Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "--tls=/tls" in container["args"]
    assert {"name": "tls", "mountPath": "/tls", "readOnly": True} in container["volumeMounts"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert set(container[name]) & {"grpc", "exec", "tcpSocket", "httpGet"} == {"exec"}
        assert "--tls=/tls" in container[name]["exec"]["command"]


def test_an_overlay_that_does_not_render_is_named_and_the_others_are_looked_at(tmp_path):
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    (tmp_path / "kubernetes/overlays/cpu/kustomization.yaml").write_text("bases: [../nowhere]\n")
    rendered, findings = render(tmp_path / "kubernetes")
    assert "cpu" not in {overlay.name for overlay in rendered}
    assert len(findings) == 1
    assert re.search("overlays/cpu: does not render: .*nowhere", str(findings[0]))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("components: [../tls]\n", "has `components`, which kustomize 2.0.3 does not know"),
        ("resources: [../other]\n", "names a directory in resources: ../other"),
    ],
)
def test_what_only_a_new_kustomize_understands_is_found(content, says, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "one/kustomization.yaml").write_text(content)
    (finding,) = portability(tmp_path)
    assert says in str(finding)


def test_a_deletion_by_patch_is_found(tmp_path):
    (tmp_path / "patch.yaml").write_text("kind: Service\n$patch: delete\n")
    (finding,) = portability(tmp_path)
    assert "turns into an empty document" in str(finding)


def test_a_missing_program_is_a_mistake_with_a_command_as_its_remedy(overlays, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    _, findings = render(DEPLOY / "kubernetes")
    assert "kubectl: no such program" in str(findings[0])
    assert "apt-get install --no-install-recommends kubernetes-client" in str(findings[0])
    (finding,) = programs.rules([overlays["cpu"], overlays["gpu"]])
    assert "promtool: no such program" in str(finding)
    assert "apt-get install --no-install-recommends prometheus" in str(finding)
    (finding,) = programs.compose(tmp_path / "compose.yml")
    assert "apt-get install --no-install-recommends docker-compose" in str(finding)


def command(deploy: Path, *options: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "alexnet_server.deployment", str(deploy), *options]
    return subprocess.run(whole, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "120"})


def test_what_is_committed_passes():
    done = command(DEPLOY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mistake" not in done.stdout
    assert done.stdout.count("nothing wrong") >= 18
    assert "Note: images of cpu, gpu, gpu-keda, gpu-mtls, kserve are placeholders" in done.stdout


def test_mistakes_in_files_are_told_with_what_where_and_remedy(tmp_path):
    """A stale generated file, a selector, the adapter's metric, an unpinned image in a Dockerfile and in the compose file."""
    deploy = tmp_path / "deploy"
    for name in ("kubernetes", "prometheus", "grafana"):
        shutil.copytree(DEPLOY / name, deploy / name)
    edit(deploy / "kubernetes/monitoring/rules.yaml", "for: 1m", "for: 2m")
    edit(
        deploy / "kubernetes/base/service.yaml",
        "selector:\n    app.kubernetes.io/name: alexnet",
        "selector:\n    app: x",
    )
    edit(
        deploy / "kubernetes/prometheus-adapter/values.yaml",
        "nv_inference_compute_infer_duration_us",
        "nv_inference_us",
    )
    (deploy / "server.Dockerfile").write_text("ARG BASE=nvcr.io/nvidia/tritonserver:26.07-py3\nFROM ${BASE}\n")
    (deploy / "compose").mkdir()
    service = {"image": "docker.io/prom/prometheus:latest", "prots": []}
    (deploy / "compose/compose.yml").write_text(yaml.safe_dump({"version": "3.8", "services": {"prometheus": service}}))
    done = command(deploy, "--release")
    assert done.returncode == 1
    assert done.stderr == ""
    for says in (
        r"made by make monitoring: .*monitoring/rules.yaml: is not what its sources make; run `make monitoring`",
        r"selectors and ports: cpu: Service/alexnet: its selector app=x matches no pod; pods have app.kubernetes.io/name=",
        r"prometheus-adapter: .*triton_queue_to_compute: asks for nv_inference_us, an unknown metric",
        r"images built upon: .*server.Dockerfile:2: nvcr.io/nvidia/tritonserver:26.07-py3 has no digest.*; add @sha256",
        r"compose file: .*compose.yml: prometheus: docker.io/prom/prometheus:latest is whatever is the latest",
        r"compose file: .*compose.yml: docker-compose says: .*prots",
        r"images of the pods: gpu: .*container triton: registry.example.com/.* has the placeholder's digest",
    ):
        assert re.search(says, done.stdout), f"{says}\n{done.stdout}"


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
