"""`make deploy-check`: the committed files have no problems, and each kind of mistake is found."""

from __future__ import annotations

import copy
import shutil

import pytest
import yaml
from manifest_checks import (
    CHECKS,
    DEPLOY,
    PLACEHOLDER,
    Overlay,
    dockerfile_images,
    file_problems,
    image_problems,
    main,
    name_of,
    overlays,
    parsed,
    problems_of,
)

pytestmark = [
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
    pytest.mark.slow,  # renders all overlays
]
DELETED = object()
CONTAINER, POD = "spec.template.spec.containers.0", "spec.template.spec"
DIGEST = "@sha256:" + 64 * "a"
DEPLOYMENT, AUTOSCALER = "Deployment/alexnet", "HorizontalPodAutoscaler/alexnet"
MISTAKES = [
    # check, overlay, object, path, new value, reported problem
    ("schemas", "cpu", DEPLOYMENT, "spec.replica", 3, "is invalid in Kubernetes 1.37"),
    ("schemas", "cpu", AUTOSCALER, "apiVersion", "autoscaling/v2beta2", "is invalid in Kubernetes 1.37"),
    ("schemas", "kserve", "InferenceService/alexnet", "spec.predictor.initContainers.0.volumeMount", [], "is invalid in Kubernetes"),
    ("command lines", "cpu", DEPLOYMENT, f"{CONTAINER}.args.5", "--exit-time=30", "No such option: --exit-time"),
    ("selectors", "cpu", "Service/alexnet", "spec.selector", {"app": "other"}, "selector {'app': 'other'} matches no pod"),
    ("selectors", "cpu", "PodDisruptionBudget/alexnet", "spec.selector", DELETED, "selector {} matches no pod"),
    ("selectors", "cpu", DEPLOYMENT, f"{POD}.topologySpreadConstraints", [], "no topologySpreadConstraint"),
    ("selectors", "kserve", "InferenceService/alexnet", "spec.predictor.labels", {}, "PodMonitor/triton: selector"),
    ("ports", "cpu", "PodMonitor/triton", "spec.podMetricsEndpoints.0.port", "web", "no container has port web"),
    ("ports", "cpu", "Service/alexnet", "spec.clusterIP", DELETED, "clusterIP must be None"),
    ("ports", "cpu", DEPLOYMENT, f"{CONTAINER}.args.3", "--grpc-port=9001", "containerPorts differ from --grpc-port"),
    ("probes", "cpu", DEPLOYMENT, f"{CONTAINER}.readinessProbe", DELETED, "readinessProbe must use gRPC port 8001"),
    ("probes", "cpu", DEPLOYMENT, f"{CONTAINER}.startupProbe.failureThreshold", 3, "startupProbe fails after 6 s"),
    ("probes", "cpu", DEPLOYMENT, f"{CONTAINER}.livenessProbe", {"grpc": {"port": 8001}}, "must run `alexnet-server probe`"),
    ("probes", "cpu", DEPLOYMENT, f"{CONTAINER}.livenessProbe.timeoutSeconds", 5, "timeoutSeconds must exceed its --timeout of 10 s"),
    ("probes", "gpu-mtls", DEPLOYMENT, f"{CONTAINER}.readinessProbe", {"grpc": {"port": 8001}}, "`alexnet-server probe` with TLS"),
    ("probes", "kserve", "ServingRuntime/alexnet-triton", "spec.containers.0.readinessProbe.grpc.port", 8001, "must use gRPC port 9000"),
    ("shutdown", "cpu", DEPLOYMENT, f"{POD}.terminationGracePeriodSeconds", 45, "is 45, but preStop 10 + exit timeout 30 + margin 10 = 50"),
    ("shutdown", "cpu", DEPLOYMENT, f"{CONTAINER}.lifecycle", DELETED, "preStop must sleep"),
    ("shutdown", "cpu", DEPLOYMENT, "spec.strategy.rollingUpdate.maxUnavailable", 1, "a rolling update reduces capacity"),
    ("security", "cpu", DEPLOYMENT, f"{POD}.securityContext.runAsUser", 0, "the pod's securityContext must be"),
    ("security", "cpu", DEPLOYMENT, f"{POD}.initContainers.0.securityContext", {}, "deliver: the securityContext must be"),
    ("security", "cpu", DEPLOYMENT, f"{POD}.automountServiceAccountToken", True, "without a mounted token"),
    ("volumes", "cpu", DEPLOYMENT, f"{POD}.volumes.2.emptyDir.sizeLimit", "4Gi", "may use the whole memory limit of 3Gi"),
    ("volumes", "cpu", DEPLOYMENT, f"{POD}.volumes.1.emptyDir", {}, "volume tmp must be an emptyDir with a sizeLimit"),
    ("volumes", "cpu", DEPLOYMENT, f"{CONTAINER}.resources.limits", {}, "needs a memory request and a memory limit"),
    ("delivery", "cpu", DEPLOYMENT, f"{POD}.initContainers", [], "no init container delivers the models to --repository=/models"),
    ("delivery", "cpu", DEPLOYMENT, f"{CONTAINER}.volumeMounts.0.readOnly", DELETED, "must be mounted read-only"),
    ("policies", "cpu", "NetworkPolicy/grpc-from-clients", "spec.ingress.0.from", DELETED, "a rule must name both peers and ports"),
    ("policies", "cpu", "NetworkPolicy/default-deny", "spec.policyTypes", ["Ingress"], "denies all other ingress and egress"),
    ("policies", "cpu", "Namespace/alexnet-serving", "metadata.labels", {}, "must enforce the restricted"),
    ("autoscaling", "cpu", AUTOSCALER, "spec.minReplicas", 1, "the minimum of 1 replicas must be at least 2"),
    ("autoscaling", "cpu", AUTOSCALER, "spec.scaleTargetRef.name", "other", "its target must be a Deployment"),
    ("autoscaling", "cpu", DEPLOYMENT, "spec.replicas", 3, "must be a Deployment without `replicas`"),
    ("autoscaling", "cpu", AUTOSCALER, "spec.metrics.0.pods.metric.name", "queue_time", "has no rule for queue_time"),
    ("autoscaling", "cpu", "PodDisruptionBudget/alexnet", "spec.maxUnavailable", 0, "nodes cannot be drained"),
    ("monitors", "cpu", "PodMonitor/triton", "spec.podMetricsEndpoints.0.relabelings", [], "must set the jobs"),
    ("KEDA", "gpu-keda", "ScaledObject/alexnet", "spec.triggers.0.metadata.threshold", 0.5, "all trigger metadata must be strings"),
    ("KServe", "kserve", "InferenceService/alexnet", "metadata.annotations", {}, "deploymentMode must be Standard"),
    ("KServe", "kserve", "ServingRuntime/alexnet-triton", "spec.containers.0.name", "triton", "requires the container name"),
    ("images", "cpu", DEPLOYMENT, f"{CONTAINER}.image", "a.example/server:1.0", "a.example/server:1.0 has no digest"),
]  # fmt: skip


@pytest.fixture(scope="module")
def rendered() -> dict[str, Overlay]:
    return {overlay.name: overlay for overlay in overlays()}


@pytest.mark.parametrize("name", ["cpu", "gpu", "gpu-keda", "gpu-mtls", "kserve"])
def test_a_committed_overlay_has_no_problems(name, rendered):
    assert problems_of(rendered[name]) == []


@pytest.mark.parametrize(
    ("check", "overlay", "target", "path", "value", "problem"),
    MISTAKES,
    ids=[f"{each[0]}-{each[3]}" for each in MISTAKES],
)
def test_a_mistake_in_a_manifest_is_reported(check, overlay, target, path, value, problem, rendered):
    documents = copy.deepcopy(rendered[overlay].documents)
    (content,) = (each for each in documents if name_of(each) == target)
    *parents, last = (int(step) if step.isdigit() else step for step in path.split("."))
    for step in parents:
        content = content[step]
    if value is DELETED:
        del content[last]
    else:
        content[last] = value
    assert any(problem in each for each in problems_of(Overlay(overlay, documents)))


def test_every_check_has_a_mistake():
    assert len({each[0] for each in MISTAKES} - {"schemas", "command lines", "KEDA"}) == len(CHECKS)


def test_two_autoscalers_of_one_deployment_are_reported(rendered):
    both = (*rendered["gpu-keda"].documents, *rendered["gpu"].of_kind("HorizontalPodAutoscaler"))
    assert any("one autoscaler is required" in each for each in problems_of(Overlay("both", both)))


def test_the_compose_file_and_the_dockerfiles_have_no_problems():
    assert list(file_problems()) == []


def test_the_command_lines_of_the_compose_file_are_valid_and_their_timeouts_fit():
    services = yaml.safe_load((DEPLOY / "compose/compose.yml").read_text())["services"]
    for name in ("triton", "triton-gpu"):
        options = parsed(["alexnet-server", *services[name]["command"]])
        assert options["--exit-timeout"] < int(services[name]["stop_grace_period"].removesuffix("s"))
        health = services[name]["healthcheck"]
        assert parsed(health["test"][1:])["--timeout"] < int(health["timeout"].removesuffix("s"))


@pytest.mark.parametrize(
    ("dockerfile", "images"),
    [
        ("FROM debian:12\n", ["debian:12"]),
        ("# FROM comment\nARG BASE=python:3.11\nFROM ${BASE} AS one\nFROM one\n", ["python:3.11"]),
        ("FROM a:1 AS one\nCOPY --from=one /x /x\nCOPY --from=b:2 /x /x\n", ["a:1", "b:2"]),
        ("ARG BASE\nFROM $BASE\n", ["$BASE"]),
    ],
)
def test_the_images_of_a_dockerfile_are_its_bases_and_copy_sources(dockerfile, images):
    assert dockerfile_images(dockerfile) == images


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ("prom/prometheus:v3.5.0", "has no digest"),
        ("$BASE", "has no digest"),
        (f"nvcr.io/nvidia/tritonserver:24.10-py3{DIGEST}", "has known vulnerabilities; 26.06 or later is required"),
        (f"nvcr.io/nvidia/tritonserver:26.06-py3{DIGEST}", None),
    ],
)
def test_an_image_needs_a_digest_and_a_triton_without_known_vulnerabilities(image, problem):
    found = list(image_problems(image))
    assert found == [] if problem is None else problem in found[0]


def test_the_command_fails_while_image_digests_are_placeholders_before_a_release(capsys):
    assert main(["cpu"]) == 0
    assert "Image digests are placeholders" in capsys.readouterr().out
    assert main(["cpu", "--release"]) == 1
    assert f"{PLACEHOLDER} is a placeholder" in capsys.readouterr().out


def test_the_command_rejects_an_unknown_overlay_with_exit_code_2(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["other"])
    assert "unknown overlay: other" in capsys.readouterr().err


def test_the_command_names_the_package_of_a_missing_kubectl(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "kubernetes-client" in capsys.readouterr().err
