"""The pods that an overlay would make, whoever makes them: a Deployment, or KServe. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alexnet_server.deployment.rendering import Document, Overlay

UNITS = {"": 1, "m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class Workload:
    """Pods alike.

    Attributes:
        where: for findings.
        kind, name: of the object that makes them.
        labels: of the pods.
        pod: their specification.
        strategy: how new ones replace old ones.
    """

    where: str
    kind: str
    name: str
    labels: dict[str, str]
    pod: dict[str, Any]
    strategy: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        """Those that serve."""
        return list(self.pod.get("containers", ()))

    @property
    def all_containers(self) -> list[dict[str, Any]]:
        """Those that serve, and those that run before them."""
        return [*self.pod.get("initContainers", ()), *self.containers]


def workloads(overlay: Overlay) -> list[Workload]:
    """Everything in an overlay that makes pods."""
    return [*_deployments(overlay), *_inference_services(overlay)]


def _deployments(overlay: Overlay) -> Iterator[Workload]:
    for document in overlay.of_kind("Deployment"):
        spec = document["spec"]
        template = spec.get("template", {})
        labels = template.get("metadata", {}).get("labels", {})
        yield Workload(
            overlay.where(document),
            "Deployment",
            document["metadata"]["name"],
            labels,
            template.get("spec", {}),
            spec.get("strategy", {}),
        )


def _inference_services(overlay: Overlay) -> Iterator[Workload]:
    """KServe merges the runtime's containers and volumes with the predictor's pod."""
    runtimes: dict[str, Document] = {each["metadata"]["name"]: each for each in overlay.of_kind("ServingRuntime")}
    for document in overlay.of_kind("InferenceService"):
        name = document["metadata"]["name"]
        predictor = document["spec"]["predictor"]
        runtime = runtimes.get(predictor.get("model", {}).get("runtime", ""), {}).get("spec", {})
        pod = {
            **{key: value for key, value in predictor.items() if key not in _NOT_OF_A_POD},
            "containers": runtime.get("containers", []),
            "volumes": [*runtime.get("volumes", ()), *predictor.get("volumes", ())],
        }
        labels = {**predictor.get("labels", {}), "serving.kserve.io/inferenceservice": name}
        yield Workload(
            overlay.where(document), "InferenceService", name, labels, pod, predictor.get("deploymentStrategy", {})
        )


_NOT_OF_A_POD = frozenset(
    ("model", "minReplicas", "maxReplicas", "labels", "annotations", "autoScaling", "deploymentStrategy")
)


def option(container: dict[str, Any], name: str) -> str | None:
    """The value of a command line's option, as ``--name=value`` or in two words."""
    return value_of([*container.get("command", ()), *container.get("args", ())], name)


def value_of(words: list[str], name: str) -> str | None:
    """The same of a list of words."""
    for place, word in enumerate(words):
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
        if word == name and place + 1 < len(words):
            return words[place + 1]
    return None


def quantity(text: str | float) -> float:
    """Kubernetes' notation: "500m" is 0.5, "1Gi" is 2**30.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"([\d.]+)(m|k|M|G|T|Ki|Mi|Gi|Ti)?", str(text))
    if found is None:
        raise ValueError(f"{text}: not a quantity")
    return float(found[1]) * UNITS[found[2] or ""]
