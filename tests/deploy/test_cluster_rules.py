"""Rules and queries of autoscalers in Kubernetes, evaluated by promtool for series with the labels of a cluster."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from alerts import CLUSTER, promtool_problems

from alexnet_server.monitoring.kubernetes import REPLACED, prometheus_rule

KUBERNETES = Path(__file__).parents[2] / "deploy/kubernetes"
GROUPS = yaml.safe_load((KUBERNETES / "monitoring/rules.yaml").read_text())["spec"]["groups"]
pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed"
)
NAMESPACE = 'namespace="alexnet-serving"'


@pytest.mark.parametrize("scenario", CLUSTER, ids=lambda scenario: scenario.alert)
def test_an_alert_with_a_cluster_expression_fires_exactly_at_its_threshold(scenario, tmp_path):
    assert scenario.problems(GROUPS, tmp_path) == ""


def test_every_alert_with_a_cluster_expression_has_a_scenario():
    assert {scenario.alert for scenario in CLUSTER} == set(REPLACED)


def evaluation(query: str, series: dict[str, str], expected: dict[str, float]) -> dict[str, Any]:
    """Entry of promtool's ``tests``: the value of a query after ten minutes."""
    samples = [{"labels": labels, "value": value} for labels, value in expected.items()]
    return {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": "10m", "exp_samples": samples}],
    }


@pytest.mark.parametrize(("images", "problem"), [(5, ""), (105, r"got: .* 5E\+00")])
def test_triton_servers_of_other_namespaces_are_not_counted(images, problem, tmp_path):
    series = {
        f'nv_inference_count{{model="alexnet",{namespace},instance="{instance}"}}': f"0+{rate * 15}x40"
        for namespace, instance, rate in ((NAMESPACE, "a", 2), (NAMESPACE, "b", 3), ('namespace="shop"', "c", 100))
    }
    test = evaluation("model:triton_images:rate5m", series, {'model:triton_images:rate5m{model="alexnet"}': images})
    found = promtool_problems(GROUPS, test, tmp_path)
    assert re.search(problem, found) if problem else found == ""


def test_a_rule_on_launcher_metrics_without_a_cluster_expression_is_rejected():
    rule = {"alert": "NewAlert", "expr": "nv_cpu_utilization > 0 and alexnet_server_ready"}
    with pytest.raises(ValueError, match=r"NewAlert: uses a launcher metric.*REPLACED"):
        prometheus_rule([{"name": "a", "rules": [rule]}])


def keda(index: int) -> str:
    content = yaml.safe_load((KUBERNETES / "autoscaling/keda/scaled-object.yaml").read_text())
    return content["spec"]["triggers"][index]["metadata"]["query"]


def kserve(index: int) -> str:
    content = yaml.safe_load((KUBERNETES / "overlays/kserve/inference-service.yaml").read_text())
    return content["spec"]["predictor"]["autoScaling"]["metrics"][index]["external"]["metric"]["query"]


def adapter(kind: str, field: str = "metricsQuery") -> str:
    content = yaml.safe_load((KUBERNETES / "prometheus-adapter/values.yaml").read_text())
    (rule,) = content["rules"][kind]
    return rule[field].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", NAMESPACE)


def pod(name: str, queue_us: int, compute_us: int) -> dict[str, str]:
    """Duration counters of a pod with their increase per 15 seconds."""
    labels = f'model="alexnet",{NAMESPACE},pod="{name}",instance="{name}"'
    increase = {"queue": queue_us, "compute_input": compute_us // 4, "compute_infer": compute_us // 2}
    increase["compute_output"] = compute_us - compute_us // 4 - compute_us // 2
    counters = {f"nv_inference_{phase}_duration_us{{{labels}}}": f"0+{value}x40" for phase, value in increase.items()}
    return {**counters, f'up{{job="triton",{NAMESPACE},instance="{name}"}}': "1x40"}


def calls(ok: int, rejected: int) -> dict[str, str]:
    counter = 'alexnet_client_calls_total{job="alexnet-client",namespace="shop",outcome='
    return {f'{counter}"ok"}}': f"0+{ok}x40", f'{counter}"queue_full"}}': f"0+{rejected}x40"}


BUSY_AND_IDLE = {**pod("a", 3000, 1000), **pod("b", 0, 0)}


@pytest.mark.parametrize(
    ("query", "series", "expected"),
    [
        pytest.param(keda(0), BUSY_AND_IDLE, {"{}": 3}, id="keda: sum over pods, 0 for an idle pod"),
        pytest.param(keda(1), calls(98, 2), {"{}": 0.02}, id="keda: share of rejected calls"),
        pytest.param(keda(1), {}, {"{}": 0}, id="keda: no clients"),
        pytest.param(keda(1), calls(0, 0), {"{}": 0}, id="keda: idle clients"),
        pytest.param(kserve(0), BUSY_AND_IDLE, {"{}": 3}, id="kserve: sum over pods"),
        pytest.param(kserve(1), BUSY_AND_IDLE | calls(98, 2), {"{}": 0.04}, id="kserve: rejected calls times pods"),
        pytest.param(kserve(1), BUSY_AND_IDLE, {"{}": 0}, id="kserve: no clients"),
        pytest.param(adapter("custom"), BUSY_AND_IDLE, {'{pod="a"}': 3, '{pod="b"}': 0}, id="adapter: by pod"),
        pytest.param(adapter("external"), calls(98, 2), {"{}": 0.02}, id="adapter: share of rejected calls"),
        pytest.param(adapter("external"), calls(0, 0), {"{}": 0}, id="adapter: idle clients"),
    ],
)
def test_an_autoscaler_query_returns_a_value(query, series, expected, tmp_path):
    assert promtool_problems([], evaluation(query, series, expected), tmp_path) == ""
