"""Whether the cluster would take the objects: Kubernetes' own kinds by its schemas, others by ours (schemas.yaml)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from alexnet_server.deployment.finding import Finding
from alexnet_server.deployment.rendering import Document, Overlay
from alexnet_server.deployment.workloads import workloads

VERSIONS = ("1.27", "1.37")
"""The oldest Kubernetes that asks gRPC health without a feature gate, and the newest that there are schemas of."""
CURRENT = {
    "ConfigMap": "v1",
    "Deployment": "apps/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "Namespace": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "Service": "v1",
    "ServiceAccount": "v1",
    "InferenceService": "serving.kserve.io/v1beta1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "ScaledObject": "keda.sh/v1alpha1",
    "ServingRuntime": "serving.kserve.io/v1alpha1",
}
"""The version of each kind that is served today. autoscaling/v2beta2 and policy/v1beta1, for two, are gone."""


def versions(overlay: Overlay) -> Iterator[Finding]:
    """Kinds by the API versions that clusters have. Pure."""
    for document in overlay.documents:
        current = CURRENT.get(document["kind"])
        if current is None:
            yield Finding(
                overlay.where(document),
                f"is of a kind that nothing here checks: {document['kind']}",
                "teach schemas.py",
            )
        elif document["apiVersion"] != current:
            yield Finding(
                overlay.where(document), f"asks for {document['apiVersion']}, which is not current", f"use {current}"
            )


def schemas(overlays: Iterable[Overlay], versions: Iterable[str] = VERSIONS) -> Iterator[Finding]:
    """Every object, once, however many overlays have it."""
    seen: list[Document] = []
    for overlay in overlays:
        for document in (*overlay.documents, *_pods_of_kserve(overlay)):
            stale = CURRENT.get(document["kind"], "v1") != document["apiVersion"]  # no schema: versions() tells of it
            if document in seen or stale:
                continue
            seen.append(document)
            ours = custom_schemas().get(document["kind"])
            said = (
                _by_ours(document, ours)
                if ours
                else (each for one in versions for each in _by_kubernetes(document, one))
            )
            yield from (Finding(overlay.where(document), what, "see the kind's reference") for what in said)


def _pods_of_kserve(overlay: Overlay) -> Iterator[Document]:
    """As Pod objects, so that Kubernetes' schemas look at what our own do not."""
    for workload in workloads(overlay):
        if workload.kind == "InferenceService":
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": workload.name}, "spec": workload.pod}


def _by_kubernetes(document: Document, version: str) -> Iterator[str]:
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"Kubernetes {version} refuses {'.'.join(map(str, error.path)) or 'it'}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield f"Kubernetes {version} does not know it: {error.message}"


def _by_ours(document: Document, schema: dict[str, Any]) -> Iterator[str]:
    validator = jsonschema.Draft202012Validator({**schema, "$defs": custom_schemas()["$defs"]})
    for error in validator.iter_errors(document):
        yield f"{'.'.join(map(str, error.path)) or 'it'}: {error.message}"


@cache
def custom_schemas() -> dict[str, Any]:
    """By kind, and ``$defs`` that they share."""
    content: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "schemas.yaml").read_text())
    return content
