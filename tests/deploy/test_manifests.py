"""`make deploy-check`: the committed files have no problems, and each kind of mistake is found."""

from __future__ import annotations

import copy
import shutil

import pytest
import yaml
from manifest_checks import (
    DEPLOY,
    OVERLAYS,
    Overlay,
    file_problems,
    image_problems,
    main,
    name_of,
    problems_of,
    rendered,
    server_options,
)

pytestmark = [
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
    pytest.mark.slow,  # renders all overlays
]
DELETED = object()
DEPLOYMENT, AUTOSCALER = "Deployment/alexnet", "HorizontalPodAutoscaler/alexnet"
CONTAINER, POD = "spec.template.spec.containers.0", "spec.template.spec"
MISTAKES = [
    # overlay, object, path, new value, reported problem
    ("cpu", DEPLOYMENT, "spec.replica", 3, "is invalid in Kubernetes 1.37"),
    ("kserve", "InferenceService/alexnet", "spec.predictor.initContainers.0.volumeMount", [], "is invalid in Kubernetes"),
    ("cpu", DEPLOYMENT, f"{CONTAINER}.args.5", "--exit-time=30", "No such option: --exit-time"),
    ("cpu", "Service/alexnet", "spec.selector", {"app": "other"}, "selector {'app': 'other'} matches no pod"),
    ("cpu", "PodDisruptionBudget/alexnet", "spec.selector", DELETED, "selector {} matches no pod"),
    ("cpu", DEPLOYMENT, f"{CONTAINER}.args.3", "--grpc-port=9001", "containerPorts differ from --grpc-port"),
    ("cpu", "PodMonitor/triton", "spec.podMetricsEndpoints.0.port", "web", "no container has port web"),
    ("cpu", "Service/alexnet", "spec.clusterIP", DELETED, "clusterIP must be None"),
    ("cpu", DEPLOYMENT, f"{CONTAINER}.readinessProbe", DELETED, "readinessProbe must use the port"),
    ("gpu-mtls", DEPLOYMENT, f"{CONTAINER}.readinessProbe", {"grpc": {"port": 8001}}, "and the certificates of the server"),
    ("cpu", DEPLOYMENT, f"{CONTAINER}.livenessProbe", {"grpc": {"port": 8001}}, "must run `alexnet-server probe`"),
    ("cpu", DEPLOYMENT, f"{CONTAINER}.livenessProbe.timeoutSeconds", 5, "must exceed its --timeout of 10 s"),
    ("cpu", DEPLOYMENT, f"{CONTAINER}.startupProbe.failureThreshold", 3, "must allow 120 s"),
    ("kserve", "ServingRuntime/alexnet-triton", "spec.containers.0.startupProbe.exec.command.6", "--golden=/models",
        "must compare golden answers (--golden=/mnt/models)"),
    ("cpu", DEPLOYMENT, f"{POD}.terminationGracePeriodSeconds", 45, "is 45, but preStop 10 + exit timeout 30 + margin 10 = 50"),
    ("cpu", DEPLOYMENT, f"{CONTAINER}.lifecycle", DELETED, "preStop must sleep"),
    ("cpu", DEPLOYMENT, f"{POD}.securityContext.runAsUser", 0, "the pod's securityContext must be"),
    ("cpu", DEPLOYMENT, f"{POD}.initContainers.0.securityContext", {}, "deliver: the securityContext must be"),
    ("cpu", "NetworkPolicy/grpc-from-clients", "spec.ingress.0.from", DELETED, "must name both peers and ports"),
    ("cpu", "NetworkPolicy/default-deny", "spec.policyTypes", ["Ingress"], "denies all other ingress and egress"),
    ("cpu", DEPLOYMENT, "spec.replicas", 3, "must have no `replicas`"),
    ("cpu", AUTOSCALER, "spec.metrics.0.pods.metric.name", "queue_time", "has no rule for queue_time"),
    ("cpu", "PodMonitor/triton", "spec.podMetricsEndpoints.0.relabelings", [], "must set the jobs"),
    ("cpu", DEPLOYMENT, f"{CONTAINER}.image", "a.example/server:1.0", "a.example/server:1.0 has no digest"),
]  # fmt: skip


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_committed_overlay_has_no_problems(name):
    assert problems_of(rendered(name)) == []


@pytest.mark.parametrize(
    ("overlay", "target", "path", "value", "problem"), MISTAKES, ids=[each[2] for each in MISTAKES]
)
def test_a_mistake_in_a_manifest_is_reported(overlay, target, path, value, problem):
    documents = copy.deepcopy(rendered(overlay).documents)
    (content,) = (each for each in documents if name_of(each) == target)
    *parents, last = (int(step) if step.isdigit() else step for step in path.split("."))
    for step in parents:
        content = content[step]
    if value is DELETED:
        del content[last]
    else:
        content[last] = value
    assert any(problem in each for each in problems_of(Overlay(overlay, documents)))


def test_the_compose_file_and_the_dockerfiles_have_no_problems():
    assert file_problems() == []


def test_the_command_lines_of_the_compose_file_are_valid_and_their_timeouts_fit():
    services = yaml.safe_load((DEPLOY / "compose/compose.yml").read_text())["services"]
    for name in ("triton", "triton-gpu"):
        options = server_options(["alexnet-server", *services[name]["command"]])
        assert options["--exit-timeout"] < int(services[name]["stop_grace_period"].removesuffix("s"))
        health = services[name]["healthcheck"]
        assert server_options(health["test"][1:])["--timeout"] < int(health["timeout"].removesuffix("s"))


def test_a_triton_with_known_vulnerabilities_is_reported():
    image = f"nvcr.io/nvidia/tritonserver:{{}}-py3@sha256:{64 * 'a'}"
    assert "26.06 or later is required" in next(image_problems(image.format("24.10")))
    assert not list(image_problems(image.format("26.06")))


def test_the_command_fails_for_a_release_while_image_digests_are_placeholders(capsys):
    assert main(["cpu"]) == 0
    assert "Image digests are placeholders" in capsys.readouterr().out
    assert main(["--release", "cpu"]) == 1
    assert "is a placeholder" in capsys.readouterr().out


def test_a_missing_kubectl_is_a_usage_error(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "kubernetes-client" in capsys.readouterr().err
