"""How many pods there are and may be: autoscalers have a target, bounds and metrics that exist. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alexnet_server.deployment.finding import Finding
from alexnet_server.deployment.rendering import Document, Overlay

LEAST = 2
"""Replicas of which a drained node leaves one."""


def scaling(overlay: Overlay, adapter: dict[str, Any]) -> Iterator[Finding]:
    """Bounds and targets of HorizontalPodAutoscaler, ScaledObject and InferenceService.

    Args:
        overlay: the rendered one.
        adapter: values of prometheus-adapter, whose rules make the metrics.
    """
    scalers = overlay.of_kind("HorizontalPodAutoscaler", "ScaledObject", "InferenceService")
    if len(scalers) != 1:
        found = ", ".join(f"{each['kind']}/{each['metadata']['name']}" for each in scalers)
        yield Finding(
            f"{overlay.name}: autoscaling", f"there must be one autoscaler, not {found or 'none'}", "two would contend"
        )
    for document in scalers:
        yield from _bounds(overlay, document)
        yield from _target(overlay, document)
    yield from _adapter_metrics(overlay, adapter)
    for document in overlay.of_kind("Deployment"):
        if scalers and "replicas" in document["spec"]:
            yield Finding(
                overlay.where(document), "sets replicas: an apply would undo the autoscaler", "leave replicas out"
            )
    yield from _disruptions(overlay)


def bounds(document: Document) -> tuple[int, int]:
    """Fewest and most replicas that an autoscaler allows."""
    spec = document["spec"]
    match document["kind"]:
        case "HorizontalPodAutoscaler":
            return spec.get("minReplicas", 1), spec.get("maxReplicas", 0)
        case "ScaledObject":
            return spec.get("minReplicaCount", 0), spec.get("maxReplicaCount", 100)
        case _:
            return spec["predictor"].get("minReplicas", 1), spec["predictor"].get("maxReplicas", 0)


def _bounds(overlay: Overlay, document: Document) -> Iterator[Finding]:
    least, most = bounds(document)
    if least > most:
        yield Finding(
            overlay.where(document), f"its minimum of {least} is more than its maximum of {most}", "swap them"
        )
    if least < LEAST:
        yield Finding(
            overlay.where(document),
            f"its minimum is {least}",
            f"with fewer than {LEAST} a drained node ends the service",
        )


def _target(overlay: Overlay, document: Document) -> Iterator[Finding]:
    target = document["spec"].get("scaleTargetRef")
    if target is None:
        return
    there = {(each["kind"], each["metadata"]["name"]) for each in overlay.documents}
    if (target.get("kind", "Deployment"), target["name"]) not in there:
        yield Finding(
            overlay.where(document),
            f"scales {target.get('kind')}/{target['name']}, which is not there",
            "correct its target",
        )


def _adapter_metrics(overlay: Overlay, adapter: dict[str, Any]) -> Iterator[Finding]:
    rules = adapter.get("rules", {})
    made = {
        kind: {rule["name"]["as"] for rule in rules.get(section) or ()}
        for kind, section in (("Pods", "custom"), ("External", "external"))
    }
    for document in overlay.of_kind("HorizontalPodAutoscaler"):
        metrics = document["spec"].get("metrics", [])
        for metric in metrics:
            name = metric.get(metric["type"].lower(), {}).get("metric", {}).get("name")
            if metric["type"] in made and name not in made[metric["type"]]:
                yield Finding(
                    overlay.where(document),
                    f"scales on {name}, an unknown metric: no rule of prometheus-adapter makes it",
                    f"of type {metric['type']} there are {', '.join(sorted(made[metric['type']])) or 'none'}",
                )
        kinds = {metric["type"] for metric in metrics}
        if not {"Pods", "External"} <= kinds:
            yield Finding(
                overlay.where(document),
                f"scales on {', '.join(sorted(kinds)) or 'nothing'} alone",
                "a full queue hides behind short waits: take the clients' overload (External), too",
            )


def _disruptions(overlay: Overlay) -> Iterator[Finding]:
    least = min((bounds(each)[0] for each in overlay.of_kind("HorizontalPodAutoscaler", "ScaledObject")), default=LEAST)
    for document in overlay.of_kind("PodDisruptionBudget"):
        spec = document["spec"]
        if spec.get("maxUnavailable") == 0 or spec.get("minAvailable") == "100%":
            yield Finding(overlay.where(document), "lets no node be drained", "maxUnavailable: 1")
        if isinstance(spec.get("minAvailable"), int) and spec["minAvailable"] >= least:
            yield Finding(
                overlay.where(document),
                f"wants {spec['minAvailable']} of {least} pods to stay: no node can be drained",
                "maxUnavailable: 1",
            )
