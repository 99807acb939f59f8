"""All checks in their order. Owns which there are; reads the deploy directory, and leaves the judging to the other modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from alexnet_server.deployment import delivery, images, pods, programs, queries, scaling, schemas, selectors
from alexnet_server.deployment.finding import Check, Finding
from alexnet_server.deployment.rendering import Overlay, portability, render
from alexnet_server.monitoring.generated import files

ADAPTER = "kubernetes/prometheus-adapter/values.yaml"
COMPOSE = "compose/compose.yml"
Rule = Callable[[Overlay], Iterable[Finding]]


@dataclass(frozen=True)
class Surroundings:
    """What objects are compared with.

    Attributes:
        adapter: values of prometheus-adapter.
        known: names of metrics that exist.
        release: whether the images' placeholders must have been replaced.
    """

    adapter: dict[str, Any]
    known: frozenset[str]
    release: bool = False


def surroundings(deploy: Path, *, release: bool = False) -> Surroundings:
    """Those of a deploy directory."""
    adapter = yaml.safe_load((deploy / ADAPTER).read_text())
    return Surroundings(adapter, queries.known_names(deploy), release)


def inspect(deploy: Path, *, release: bool = False) -> Iterator[Check]:
    """Look at everything in a deploy directory.

    Args:
        deploy: with kubernetes/, prometheus/, and, where they are there, compose/ and *.Dockerfile.
        release: whether this is about to be applied, so that placeholders are mistakes.
    """
    overlays, hindered = render(deploy / "kubernetes")
    names = ", ".join(overlay.name for overlay in overlays) or "none"
    yield Check("overlays render", names, [*hindered, *portability(deploy / "kubernetes")])
    around = surroundings(deploy, release=release)
    yield from objects(overlays, around)
    yield Check("schemas", f"Kubernetes {' and '.join(schemas.VERSIONS)}", list(schemas.schemas(overlays)))
    yield Check("rules, by promtool", "PrometheusRule", list(programs.rules(overlays)))
    adapter = list(queries.adapter_names(str(deploy / ADAPTER), around.adapter, around.known))
    yield Check("prometheus-adapter", ADAPTER, adapter)
    yield Check("made by make monitoring", "is current", list(_stale(deploy)))
    yield from _images(deploy, release=release)


def objects(overlays: Sequence[Overlay], around: Surroundings) -> Iterator[Check]:
    """What can be said of rendered objects without asking anybody."""
    rules: dict[str, Rule] = {
        "API versions": schemas.versions,
        "selectors and ports": selectors.selectors,
        "jobs of the monitors": selectors.jobs,
        "who may reach what": selectors.guards,
        "probes": pods.probes,
        "time to end": pods.grace,
        "rights": pods.restricted,
        "memory and volumes": pods.memory,
        "secrets": pods.secrets,
        "delivery of the model": delivery.delivery,
        "autoscaling": lambda overlay: scaling.scaling(overlay, around.adapter),
        "names of metrics": lambda overlay: queries.metric_names(overlay, around.known),
    }
    extent = f"{sum(len(overlay.documents) for overlay in overlays)} objects"
    for name, rule in rules.items():
        yield Check(name, extent, [found for overlay in overlays for found in _applied(rule, overlay)])
    rule = partial(images.manifest_images, release=around.release)
    waiting = [overlay.name for overlay in overlays if images.placeholders(overlay) and not around.release]
    notes = [f"images of {', '.join(waiting)} are placeholders: put in yours before you apply"] if waiting else []
    yield Check(
        "images of the pods", extent, [found for overlay in overlays for found in _applied(rule, overlay)], notes
    )


def _applied(rule: Rule, overlay: Overlay) -> list[Finding]:
    """What a rule says; of objects so malformed that it cannot read them, it says that."""
    try:
        return list(rule(overlay))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        said = f"an object is malformed ({type(error).__name__}: {error})"
        return [Finding(f"{overlay.name}: all objects", said, "correct what the schemas find")]


def _stale(deploy: Path) -> Iterator[Finding]:
    for name, content in files(deploy).items():
        path = deploy / name
        if not path.is_file() or path.read_text() != content:
            yield Finding(str(path), "is not what its sources make", "run `make monitoring` and commit what it writes")


def _images(deploy: Path, *, release: bool) -> Iterator[Check]:
    recipes = sorted(deploy.glob("*.Dockerfile"))
    if recipes:
        found = [each for path in recipes for each in images.dockerfile_images(path, release=release)]
        yield Check("images built upon", ", ".join(path.name for path in recipes), found)
    compose = deploy / COMPOSE
    if compose.is_file():
        found = [*images.compose_images(compose, release=release), *programs.compose(compose)]
        yield Check("compose file", COMPOSE, found)
