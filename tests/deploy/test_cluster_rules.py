"""Rules and autoscalers' queries in a cluster: what they say of series as Kubernetes labels them. By the real promtool."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from alerts import Story, ticket

from alexnet_server.monitoring.kubernetes import REPLACED, prometheus_rule

DEPLOY = Path(__file__).parents[2] / "deploy"
RULE = yaml.safe_load((DEPLOY / "kubernetes/monitoring/rules.yaml").read_text())
pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (apt-get install prometheus): no rule is tested"
)
OURS = 'namespace="alexnet-serving"'
KSM = f'job="kube-state-metrics",{OURS},pod="alexnet-1"'
FILE = "/etc/prometheus/rules/rules-0/alexnet-serving-alexnet-0a1b.yaml;causes"
STORIES = (
    Story(
        "TargetDown",
        {
            f'up{{job="triton",{OURS},instance="alexnet-1"}}': "0x30",
            'up{job="web",namespace="shop",instance="a"}': "0x30",
        },
        5 * 60,
        ticket(job="triton", namespace="alexnet-serving", instance="alexnet-1"),
    ),
    Story(
        "ServerNotReady",
        {f'kube_pod_status_ready{{{KSM},condition="true"}}': "0x70"},
        15 * 60,
        ticket(job="kube-state-metrics", namespace="alexnet-serving", pod="alexnet-1", condition="true"),
    ),
    Story(
        "ServerRestarted",
        {f'kube_pod_container_status_restarts_total{{{KSM},container="triton"}}': "0x5 1x10"},
        6 * 15,
        ticket(job="kube-state-metrics", namespace="alexnet-serving", pod="alexnet-1", container="triton"),
    ),
    Story(
        "RulesFail",
        {
            f'prometheus_rule_evaluation_failures_total{{rule_group="{FILE}"}}': "0 0+1x40",
            'prometheus_rule_evaluation_failures_total{rule_group="/etc/shop.yaml;a"}': "0 0+1x40",
        },
        5 * 60 + 30,
        ticket(rule_group=FILE),
    ),
)


def promtool(content: dict, tmp_path: Path) -> str:
    """What promtool says is not so; nothing if all is."""
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(RULE["spec"]))
    path = tmp_path / "test.yml"
    path.write_text(
        yaml.safe_dump({"rule_files": [str(tmp_path / "rules.yml")], "evaluation_interval": "15s", **content})
    )
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.alert)
def test_an_alert_that_a_cluster_tells_otherwise_is_silent_just_before_and_fires_just_after(story, tmp_path):
    assert promtool({"tests": [story.promtool()]}, tmp_path) == ""


def test_every_alert_that_is_told_otherwise_has_a_story_and_keeps_its_section_of_the_runbook():
    assert {story.alert for story in STORIES} == set(REPLACED)
    alerts = {rule["alert"]: rule for group in RULE["spec"]["groups"] for rule in group["rules"] if "alert" in rule}
    for name in REPLACED:
        assert alerts[name]["annotations"]["runbook_url"] == f"deploy/RUNBOOK.md#{name.lower()}"


def test_somebody_elses_triton_in_the_same_cluster_is_not_counted(tmp_path):
    series = [
        {
            "series": f'nv_inference_count{{model="alexnet",{namespace},instance="{instance}"}}',
            "values": f"0+{rate * 15}x40",
        }
        for namespace, instance, rate in ((OURS, "a", 2), (OURS, "b", 3), ('namespace="shop"', "c", 100))
    ]
    tested = {
        "expr": "model:triton_images:rate5m",
        "eval_time": "10m",
        "exp_samples": [{"labels": 'model:triton_images:rate5m{model="alexnet"}', "value": 5}],
    }
    content = {"interval": "15s", "input_series": series, "promql_expr_test": [tested]}
    assert promtool({"tests": [content]}, tmp_path) == ""
    tested["exp_samples"][0]["value"] = 105  # with the other's
    assert re.search(r"got: .* 5E\+00", promtool({"tests": [content]}, tmp_path))


@pytest.mark.parametrize("expr", ["alexnet_server_ready == 0", "nv_cpu_utilization > 0 and alexnet_server_ready"])
def test_a_rule_that_needs_the_launcher_is_not_made_for_a_cluster_without_a_word(expr):
    with pytest.raises(ValueError, match=r"Unheard: looks at the launcher.*REPLACED"):
        prometheus_rule([{"name": "a", "rules": [{"alert": "Unheard", "expr": expr}]}])


def keda(place: int) -> str:
    content = yaml.safe_load((DEPLOY / "kubernetes/autoscaling/keda/scaled-object.yaml").read_text())
    return content["spec"]["triggers"][place]["metadata"]["query"]


def kserve(place: int) -> str:
    content = yaml.safe_load((DEPLOY / "kubernetes/overlays/kserve/inference-service.yaml").read_text())
    return content["spec"]["predictor"]["autoScaling"]["metrics"][place]["external"]["metric"]["query"]


def adapter(kind: str) -> str:
    content = yaml.safe_load((DEPLOY / "kubernetes/prometheus-adapter/values.yaml").read_text())
    (rule,) = content["rules"][kind]
    return rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", OURS)


def pod(name: str, queue_us: int, compute_us: int) -> dict[str, str]:
    """Counters of a pod, by what they grow in 15 seconds."""
    labels = f'model="alexnet",{OURS},pod="{name}",instance="{name}"'
    grows = {"queue": queue_us, "compute_input": compute_us // 4, "compute_infer": compute_us // 2}
    grows["compute_output"] = compute_us - sum((compute_us // 4, compute_us // 2))
    counters = {f"nv_inference_{key}_duration_us{{{labels}}}": f"0+{value}x40" for key, value in grows.items()}
    return {**counters, f'up{{job="triton",{OURS},instance="{name}"}}': "1x40"}


def calls(ok: int, refused: int) -> dict[str, str]:
    name = 'alexnet_client_calls_total{job="alexnet-client",namespace="shop",outcome='
    return {f'{name}"ok"}}': f"0+{ok}x40", f'{name}"queue_full"}}': f"0+{refused}x40"}


BUSY_AND_IDLE = {**pod("a", 3000, 1000), **pod("b", 0, 0)}


@pytest.mark.parametrize(
    ("query", "series", "answer"),
    [
        pytest.param(keda(0), BUSY_AND_IDLE, {"{}": 3}, id="keda sums ratios; an idle pod has 0"),
        pytest.param(keda(1), calls(98, 2), {"{}": 0.02}, id="keda, overload"),
        pytest.param(keda(1), {}, {"{}": 0}, id="keda without clients"),
        pytest.param(keda(1), calls(0, 0), {"{}": 0}, id="keda with idle clients"),
        pytest.param(kserve(0), BUSY_AND_IDLE, {"{}": 3}, id="kserve sums ratios"),
        pytest.param(kserve(1), {**BUSY_AND_IDLE, **calls(98, 2)}, {"{}": 0.04}, id="kserve, overload times replicas"),
        pytest.param(kserve(1), BUSY_AND_IDLE, {"{}": 0}, id="kserve without clients"),
        pytest.param(adapter("custom"), BUSY_AND_IDLE, {'{pod="a"}': 3, '{pod="b"}': 0}, id="adapter, of each pod"),
        pytest.param(adapter("external"), calls(98, 2), {"{}": 0.02}, id="adapter, overload"),
        pytest.param(adapter("external"), calls(0, 0), {"{}": 0}, id="adapter with idle clients"),
    ],
)
def test_an_autoscalers_query_answers(query, series, answer, tmp_path):
    expected = [{"labels": labels, "value": value} for labels, value in answer.items()]
    content = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": "10m", "exp_samples": expected}],
    }
    assert promtool({"tests": [content]}, tmp_path) == ""
