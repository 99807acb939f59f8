"""Rules and dashboard as Kubernetes' objects, made of the files that a Prometheus and a Grafana elsewhere read. Pure.

What differs in a cluster: its Prometheus sees other people's jobs and Tritons, so that rules must say whose they mean; and the
kubelet does the launcher's work, so that what the launcher would tell of readiness and restarts, kube-state-metrics tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

NAMESPACE = "alexnet-serving"
LAUNCHER = "alexnet_server_"
"""How names of the launcher's metrics begin. In Kubernetes there is no launcher."""
ALTERNATIVE = re.compile(rf" or {LAUNCHER}\w+")
"""What a rule looks at besides, where there is a launcher."""
OURS = re.compile(r"(?<![\w:])((?:nv|alexnet_backend)_\w+|up(?=\{job=\"triton\"))(\{?)")
"""Selectors of what a server shows. Clients live in other namespaces, and their metrics' names are ours alone."""
METRIC = re.compile(r"(?<![\w:.])[A-Za-z_:][\w:]*(?![\w:]|\s*\()")
NO_METRIC = frozenset(("and", "or", "unless", "bool", "offset", "inf", "nan"))
REPLACED: dict[str, dict[str, Any]] = {
    "TargetDown": {
        "expr": f'up{{job="triton",namespace="{NAMESPACE}"}} == 0',
    },
    "ServerNotReady": {
        "expr": f'kube_pod_status_ready{{namespace="{NAMESPACE}",condition="true"}} == 0',
        "for": "15m",  # a GPU's engines may take ten minutes to build
        "summary": "{{ $labels.pod }} does not become ready.",
    },
    "ServerRestarted": {
        "expr": f'increase(kube_pod_container_status_restarts_total{{namespace="{NAMESPACE}"}}[15m]) > 0',
        "summary": "{{ $labels.container }} of {{ $labels.pod }} was started again, {{ $value | humanize }} times in 15 minutes.",
    },
    "RulesFail": {
        # The operator names the file after namespace and name of the PrometheusRule.
        "expr": f'increase(prometheus_rule_evaluation_failures_total{{rule_group=~".*/{NAMESPACE}-alexnet-.*"}}[5m]) > 0',
    },
}
"""What an alert is in a cluster, where that is not what it is elsewhere."""


def prometheus_rule(groups: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The Prometheus Operator's object.

    Args:
        groups: of Prometheus' rule files.

    Raises:
        ValueError: a rule needs the launcher, so that it could never hold here.
    """
    adapted = [{**group, "rules": [_adapted(rule) for rule in group["rules"]]} for group in groups]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "alexnet", "namespace": NAMESPACE},
        "spec": {"groups": adapted},
    }


def dashboard_config_map(dashboard: str) -> dict[str, Any]:
    """The dashboard's JSON as the ConfigMap that the sidecar of Grafana's chart looks for."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "alexnet-dashboard", "namespace": NAMESPACE, "labels": {"grafana_dashboard": "1"}},
        "data": {"alexnet.json": dashboard},
    }


def metrics_of(expr: str) -> set[str]:
    """Names of the metrics and recorded series in a PromQL expression, or in a template of one (``<<.GroupBy>>``)."""
    bare = re.sub(r"<<.*?>>|\"[^\"]*\"|'[^']*'", "", expr)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", " ", bare)
    bare = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*(?:\([^)]*\))?", " ", bare)
    return set(METRIC.findall(bare)) - NO_METRIC


def _adapted(rule: dict[str, Any]) -> dict[str, Any]:
    other = REPLACED.get(rule.get("alert", ""), {})
    made = {**rule, "expr": other.get("expr") or _scoped(ALTERNATIVE.sub("", " ".join(rule["expr"].split())))}
    if "for" in other:
        made["for"] = other["for"]
    if "summary" in other:
        made["annotations"] = {**rule["annotations"], "summary": other["summary"]}
    if LAUNCHER in made["expr"]:
        raise ValueError(
            f"{rule.get('alert', rule.get('record'))}: looks at the launcher, which a cluster does not have; say in REPLACED "
            "what it is there"
        )
    return made


def _scoped(expr: str) -> str:
    """The same of our own servers: a cluster's Prometheus may see others' Tritons."""
    namespace = f'namespace="{NAMESPACE}"'
    return OURS.sub(lambda found: f"{found[1]}{{{namespace}" + ("," if found[2] else "}"), expr)
