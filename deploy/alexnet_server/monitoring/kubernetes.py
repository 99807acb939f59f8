"""Rules and dashboard as Kubernetes objects, made from the Prometheus rule files and the Grafana dashboard. Performs no I/O.

Two things differ in a cluster. Prometheus also scrapes Tritons of other namespaces, so selectors of server metrics get a
``namespace`` matcher. The kubelet replaces the launcher, so alerts on launcher metrics use kube-state-metrics instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

NAMESPACE = "alexnet-serving"
LAUNCHER = "alexnet_server_"
"""Prefix of the launcher's metrics."""
LAUNCHER_ALTERNATIVE = re.compile(rf" or {LAUNCHER}\w+")
SERVER_SELECTOR = re.compile(r"(?<![\w:])((?:nv|alexnet_backend)_\w+|up(?=\{job=\"triton\"))(\{?)")
"""Selectors of server metrics. Clients run in other namespaces, and the names of their metrics are unique to this project."""
REPLACED: dict[str, dict[str, Any]] = {
    "TargetDown": {"expr": f'up{{job="triton",namespace="{NAMESPACE}"}} == 0'},
    "ServerNotReady": {
        "expr": f'kube_pod_status_ready{{namespace="{NAMESPACE}",condition="true"}} == 0',
        "for": "15m",  # building the engines of a GPU can take ten minutes
        "summary": "Pod {{ $labels.pod }} is not ready.",
    },
    "ServerRestarted": {
        "expr": f'increase(kube_pod_container_status_restarts_total{{namespace="{NAMESPACE}"}}[15m]) > 0',
        "summary": "Container {{ $labels.container }} of pod {{ $labels.pod }} restarted {{ $value | humanize }} times in 15 minutes.",
    },
    "PrometheusRuleFailures": {
        # The operator names the rule file after the namespace and the name of the PrometheusRule.
        "expr": f'increase(prometheus_rule_evaluation_failures_total{{rule_group=~".*/{NAMESPACE}-alexnet-.*"}}[5m]) > 0',
    },
}
"""Fields of alerts that differ in a cluster."""


def prometheus_rule(groups: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The custom resource of the Prometheus Operator for the groups of Prometheus rule files.

    Raises:
        ValueError: a rule uses a launcher metric, which has no data in a cluster.
    """
    adapted = [{**group, "rules": [_adapted(rule) for rule in group["rules"]]} for group in groups]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "alexnet", "namespace": NAMESPACE},
        "spec": {"groups": adapted},
    }


def dashboard_config_map(dashboard: str) -> dict[str, Any]:
    """The dashboard's JSON as a ConfigMap for the sidecar of the Grafana Helm chart."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "alexnet-dashboard", "namespace": NAMESPACE, "labels": {"grafana_dashboard": "1"}},
        "data": {"alexnet.json": dashboard},
    }


def _adapted(rule: dict[str, Any]) -> dict[str, Any]:
    replaced = REPLACED.get(rule.get("alert", ""), {})
    without_launcher = LAUNCHER_ALTERNATIVE.sub("", " ".join(rule["expr"].split()))
    adapted = {**rule, "expr": replaced.get("expr") or _with_namespace(without_launcher)}
    if "for" in replaced:
        adapted["for"] = replaced["for"]
    if "summary" in replaced:
        adapted["annotations"] = {**rule["annotations"], "summary": replaced["summary"]}
    if LAUNCHER in adapted["expr"]:
        raise ValueError(
            f"{rule.get('alert', rule.get('record'))}: uses a launcher metric, which a cluster does not have; "
            "add an expression for clusters to REPLACED"
        )
    return adapted


def _with_namespace(expr: str) -> str:
    matcher = f'namespace="{NAMESPACE}"'
    return SERVER_SELECTOR.sub(lambda found: f"{found[1]}{{{matcher}" + ("," if found[2] else "}"), expr)
