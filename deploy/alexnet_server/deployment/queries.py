"""Names of metrics in rules and autoscalers: each exists. A query for one that does not has no answer and no error. Pure.

Known are the names in the panels and in Prometheus' rule files, all of which tests/e2e/test_monitoring.py finds in the scrape of
a real Triton, launcher and client, and what others' exporters show.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from alexnet_server.deployment.finding import Finding
from alexnet_server.deployment.rendering import Document, Overlay
from alexnet_server.monitoring.kubernetes import LAUNCHER, metrics_of
from alexnet_server.monitoring.panels import RELEASES, ROWS

ELSEWHERE = frozenset(("up", "kube_pod_status_ready", "kube_pod_container_status_restarts_total"))
"""Prometheus' own, and kube-state-metrics'."""


def known_names(deploy: Path) -> frozenset[str]:
    """Names that a scrape shows in a cluster, or a rule records. The launcher's are not among them: it has none."""
    files = sorted((deploy / "prometheus/rules").glob("*.yml"))
    rules = [rule for path in files for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    exprs = [rule["expr"] for rule in rules]
    exprs += [query.expr for panels in ROWS.values() for panel in panels for query in panel.queries] + [RELEASES.expr]
    names = ELSEWHERE.union(*map(metrics_of, exprs), {rule["record"] for rule in rules if "record" in rule})
    return frozenset(name for name in names if not name.startswith(LAUNCHER))


def metric_names(overlay: Overlay, known: frozenset[str]) -> Iterator[Finding]:
    """Of every PromQL expression in an overlay."""
    for document in overlay.documents:
        for expr in expressions(document):
            yield from _unknown(overlay.where(document), expr, known)


def adapter_names(where: str, adapter: dict[str, Any], known: frozenset[str]) -> Iterator[Finding]:
    """Of prometheus-adapter's rules, which must take rates of counters."""
    rules = adapter.get("rules", {})
    for rule in (*(rules.get("custom") or ()), *(rules.get("external") or ())):
        name = f"{where}: {rule['name']['as']}"
        for expr in (rule["seriesQuery"], rule["metricsQuery"]):
            yield from _unknown(name, expr, known)
        if re.search(r"\bi?delta\(", rule["metricsQuery"]):
            yield Finding(name, "takes the delta of a counter, which a restart makes negative", "take its rate()")


def expressions(document: Document) -> Iterator[str]:
    """PromQL in an object."""
    spec = document.get("spec", {})
    match document["kind"]:
        case "PrometheusRule":
            yield from (rule["expr"] for group in spec.get("groups", ()) for rule in group["rules"])
        case "ScaledObject":
            yield from (each["metadata"]["query"] for each in spec["triggers"] if "query" in each.get("metadata", {}))
        case "InferenceService":
            for metric in spec["predictor"].get("autoScaling", {}).get("metrics", ()):
                query = metric.get("external", {}).get("metric", {}).get("query")
                if query:
                    yield query


def _unknown(where: str, expr: str, known: frozenset[str]) -> Iterator[Finding]:
    for name in sorted(metrics_of(expr) - known):
        yield Finding(
            where, f"asks for {name}, an unknown metric", "names are in deploy/prometheus/rules and the panels"
        )
