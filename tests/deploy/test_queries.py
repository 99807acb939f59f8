"""All PromQL queries use metrics and labels that exist. A query for a metric that does not exist returns no error, only no data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from test_cluster_rules import KUBERNETES, adapter, keda, kserve

from alexnet_client.metrics import ClientMetrics
from alexnet_server.health import Health
from alexnet_server.monitoring.panels import RELEASES, ROWS

RULES = KUBERNETES.parent / "prometheus/rules"
TARGET_LABELS = {"job", "instance", "namespace", "pod"}
"""Labels that Prometheus adds to each series of a scrape."""
NOT_SCRAPED = {
    "up": set(),
    "prometheus_rule_evaluation_failures_total": {"rule_group"},
    "kube_pod_status_ready": {"condition"},  # kube-state-metrics
    "kube_pod_container_status_restarts_total": {"container"},
    # Triton on a GPU host: docs/user_guide/metrics.md of the Triton server
    **{f"nv_gpu_{name}": {"gpu_uuid"} for name in ("utilization", "power_usage", "power_limit")},
    **{f"nv_gpu_memory_{name}_bytes": {"gpu_uuid"} for name in ("used", "total")},
    "nv_energy_consumption": {"gpu_uuid"},
}


def scraped_series() -> dict[str, set[str]]:
    """Names of series and their labels: from the captured scrape of Triton, and from the metrics of client and launcher."""
    registry = CollectorRegistry()
    ClientMetrics(registry)
    status = Health({"ca": 0.0}).respond("/metrics")[2].decode()
    captured = Path(__file__).with_name("triton_metrics.txt").read_text()
    text = captured + status + generate_latest(registry).decode()
    series: dict[str, set[str]] = {name: set() for name in re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        series.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return series


def rules(path: Path) -> list[dict[str, str]]:
    content = yaml.safe_load(path.read_text())
    return [rule for group in content.get("spec", content)["groups"] for rule in group["rules"]]


SERIES = scraped_series() | NOT_SCRAPED
LABELS = {"replica"}.union(TARGET_LABELS, *SERIES.values())  # a client without attempts has no series with this label
RECORDED = {rule["record"] for path in RULES.glob("*.yml") for rule in rules(path) if "record" in rule}
CLUSTER_QUERIES = [rule["expr"] for rule in rules(KUBERNETES / "monitoring/rules.yaml")]
QUERIES = {
    **{path.name: [rule["expr"] for rule in rules(path)] for path in RULES.glob("*.yml")},
    "cluster rules": CLUSTER_QUERIES,
    "panels": [RELEASES.expr, *(query.expr for panels in ROWS.values() for panel in panels for query in panel.queries)],
    "autoscalers": [
        *(query(index) for query in (keda, kserve) for index in (0, 1)),
        *(adapter(kind, field) for kind in ("custom", "external") for field in ("seriesQuery", "metricsQuery")),
    ],
}


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def problems(query: str) -> Iterator[str]:
    for selector in selectors(query):
        labels = {matcher.name for matcher in selector.matchers.matchers}
        if selector.name in SERIES:
            unknown = labels - SERIES[selector.name] - TARGET_LABELS
            yield from (f"{selector.name} has no label {label}" for label in sorted(unknown))
        elif selector.name not in RECORDED:
            yield f"no metric {selector.name}"
    grouped = {label for labels in re.findall(r"\bby \(([\w, ]+)\)", query) for label in labels.split(", ")}
    yield from (f"no metric has the label {label}" for label in sorted(grouped - LABELS))


@pytest.mark.parametrize("source", QUERIES)
def test_queries_use_metrics_and_labels_that_exist(source):
    assert {query: found for query in QUERIES[source] if (found := list(problems(query)))} == {}


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("rate(nv_inference_counts[5m])", "no metric nv_inference_counts"),
        ('sum(alexnet_client_calls_total{result="ok"}) > 0', "alexnet_client_calls_total has no label result"),
        ("sum by (model, colour) (alexnet_backend_info)", "no metric has the label colour"),
        ("up == 1 unless on () model:triton_images:rate1m", "no metric model:triton_images:rate1m"),
    ],
)
def test_an_unknown_metric_or_label_is_found(query, problem):
    assert list(problems(query)) == [problem]


def test_cluster_rules_select_only_server_metrics_of_their_namespace():
    for selector in (each for query in CLUSTER_QUERIES for each in selectors(query)):
        if selector.name == "up" and 'job="alexnet-client"' in str(selector.matchers):
            continue  # clients run in all namespaces
        if selector.name.startswith(("nv_", "alexnet_backend_", "kube_", "up")):
            assert 'namespace="alexnet-serving"' in str(selector.matchers), selector.prettify()
