"""Who means whom: every selector of pods finds some, every reference finds its object. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alexnet_server.deployment.finding import Finding
from alexnet_server.deployment.rendering import Document, Overlay
from alexnet_server.deployment.workloads import Workload, workloads

CLIENTS = {"alexnet-serving/client": "true"}
"""Labels that programs with our client have. Their pods are made elsewhere."""
JOBS = ("triton", "alexnet-client")
"""Values of the label `job` that the rules know."""


def selectors(overlay: Overlay) -> Iterator[Finding]:
    """Of Deployment, Service, disruption budget, network policies, monitors and spread constraints."""
    pods = workloads(overlay)
    yield from _own_pods(overlay)
    yield from _spread(pods)
    for document in overlay.documents:
        for purpose, labels in _selected(document):
            known = [CLIENTS] if document["kind"] == "PodMonitor" else []
            known += [each.labels for each in pods]
            if not labels or not any(_matches(labels, each) for each in known):
                yield Finding(
                    overlay.where(document),
                    f"its {purpose} {_shown(labels)} matches no pod",
                    f"pods have {'; '.join(_shown(each.labels) for each in pods)}",
                )
    yield from _ports(overlay, pods)


def _own_pods(overlay: Overlay) -> Iterator[Finding]:
    for document in overlay.of_kind("Deployment"):
        spec = document["spec"]
        labels = spec.get("template", {}).get("metadata", {}).get("labels", {})
        wanted = spec.get("selector", {}).get("matchLabels", {})
        if not wanted or not _matches(wanted, labels):
            yield Finding(
                overlay.where(document),
                f"its selector {_shown(wanted)} does not match its own pods {_shown(labels)}",
                "make them equal",
            )


def _spread(pods: list[Workload]) -> Iterator[Finding]:
    for workload in pods:
        constraints = workload.pod.get("topologySpreadConstraints", [])
        if "kubernetes.io/hostname" not in {each.get("topologyKey") for each in constraints}:
            yield Finding(
                workload.where, "may put all pods on one node", "topologySpreadConstraints over kubernetes.io/hostname"
            )
        affinity = workload.pod.get("affinity", {}).get("podAntiAffinity", {})
        terms = [
            each["podAffinityTerm"] for each in affinity.get("preferredDuringSchedulingIgnoredDuringExecution", ())
        ]
        for each in (*constraints, *terms):
            labels = each.get("labelSelector", {}).get("matchLabels", {})
            if not _matches(labels, workload.labels):
                yield Finding(
                    workload.where,
                    f"spreads pods with {_shown(labels)}, but its own have {_shown(workload.labels)}",
                    "make them equal",
                )


def _selected(document: Document) -> Iterator[tuple[str, dict[str, str]]]:
    """What an object wants of pods' labels."""
    spec = document.get("spec", {})
    match document["kind"]:
        case "Service":
            yield "selector", spec.get("selector", {})
        case "PodDisruptionBudget" | "PodMonitor":
            yield "selector", spec.get("selector", {}).get("matchLabels", {})
        case "NetworkPolicy" if spec.get("podSelector") != {}:  # empty: all pods, which is what default-deny means
            yield "podSelector", spec.get("podSelector", {}).get("matchLabels", {})


def _matches(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in wanted.items())


def _shown(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in labels.items()) or "(none)"


def _ports(overlay: Overlay, pods: list[Workload]) -> Iterator[Finding]:
    declared = [port for pod in pods for each in pod.containers for port in each.get("ports", ())]
    known = {port.get("name") for port in declared} | {port["containerPort"] for port in declared}
    for document in overlay.documents:
        for port in _ports_of(document):
            if port not in known:
                yield Finding(
                    overlay.where(document),
                    f"leads to port {port}, which no container has",
                    f"ports are {_list(known)}",
                )
    for document in overlay.of_kind("Service"):
        if document["spec"].get("clusterIP") != "None":
            yield Finding(
                overlay.where(document),
                "has a cluster address, behind which a client's one connection stays at one pod",
                "clusterIP: None",
            )


def _list(ports: set[Any]) -> str:
    return ", ".join(sorted(str(port) for port in ports if port))


def _ports_of(document: Document) -> Iterator[Any]:
    spec = document.get("spec", {})
    match document["kind"]:
        case "Service":
            yield from (port.get("targetPort", port["port"]) for port in spec.get("ports", ()))
        case "NetworkPolicy":
            yield from (port["port"] for rule in spec.get("ingress", ()) for port in rule.get("ports", ()))
        case "PodMonitor":
            yield from (each.get("port") for each in spec.get("podMetricsEndpoints", ()))


def jobs(overlay: Overlay) -> Iterator[Finding]:
    """Every monitor names its job as the rules do, and every job of the rules has a monitor."""
    found = set()
    for document in overlay.of_kind("PodMonitor"):
        named = [
            step.get("replacement")
            for each in document["spec"].get("podMetricsEndpoints", ())
            for step in each.get("relabelings", ())
            if step.get("targetLabel") == "job"
        ]
        found.update(named)
        if not set(named) & set(JOBS):
            yield Finding(
                overlay.where(document), f"its series get the job {named or 'of the monitor'}", f"the rules know {JOBS}"
            )
    if overlay.of_kind("PrometheusRule") and set(JOBS) - found:
        missing = ", ".join(sorted(set(JOBS) - found))
        yield Finding(
            f"{overlay.name}: monitors", f"none makes the job {missing}", "the rules need it: targetLabel: job"
        )


def guards(overlay: Overlay) -> Iterator[Finding]:
    """Nobody gets in or out who is not named, and the namespace itself refuses privileges."""
    for document in overlay.of_kind("Namespace"):
        if document["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield Finding(
                overlay.where(document), "admits any pod", "label pod-security.kubernetes.io/enforce: restricted"
            )
    policies = overlay.of_kind("NetworkPolicy")
    closed = [
        each
        for each in policies
        if not each["spec"].get("podSelector") and {"Ingress", "Egress"} <= set(each["spec"].get("policyTypes", ()))
    ]
    if not closed:
        yield Finding(
            f"{overlay.name}: NetworkPolicy", "nothing denies what is not allowed", "podSelector: {}, both policyTypes"
        )
    for document in policies:
        for rule in (*document["spec"].get("ingress", ()), *document["spec"].get("egress", ())):
            if not rule.get("from") and not rule.get("to"):
                yield Finding(overlay.where(document), "lets everybody in or out", "name who with from: or to:")
            if not rule.get("ports"):
                yield Finding(overlay.where(document), "opens every port", "name the ports")
    for kind, name in (("Namespace", "a namespace"), ("PodDisruptionBudget", "a PodDisruptionBudget")):
        if not overlay.of_kind(kind):
            yield Finding(f"{overlay.name}: {kind}", f"there is not {name}", "take deploy/kubernetes/guards as a base")
