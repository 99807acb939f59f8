"""Scenarios in which each alert fires, for promtool: input series, and the time at which the alert starts to fire."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alexnet_server.monitoring.slo import BURN_RATE_ALERTS, SLOS, BurnRateAlert, Slo, duration

STEP_S = 15
CHANGED_S = 41 * STEP_S
"""In most scenarios the values change after the 40th; this is the first evaluation that sees it."""


@dataclass(frozen=True)
class Scenario:
    """Input series and the expected alert.

    Attributes:
        alert: its name.
        series: values by PromQL selector, in promtool's notation; one value every ``step_s``.
        fires_s: first evaluation at which the alert fires, seconds since the first value.
        labels: of the alert, without its name and state.
        step_s: seconds between values and between evaluations.
        slack: number of later evaluations at which it may fire first, because it reads series of another rule group.
    """

    alert: str
    series: dict[str, str]
    fires_s: float
    labels: dict[str, str]
    step_s: float = STEP_S
    slack: int = 0

    def test(self) -> dict[str, Any]:
        """Entry of promtool's ``tests``: the alert is silent one step before it fires, and firing afterwards."""
        fixed = {"alertname": self.alert, "alertstate": "firing"}
        # Alerts with the same name differ in these labels.
        chosen = {name: self.labels[name] for name in ("window", "severity") if name in self.labels}
        expr, expected = _series("ALERTS", fixed | chosen), _series("ALERTS", fixed | self.labels)
        before, after = self.fires_s - self.step_s, self.fires_s + self.slack * self.step_s
        return {
            "name": f"{self.alert} {self.labels}",
            "interval": duration(self.step_s),
            "input_series": [{"series": name, "values": values} for name, values in self.series.items()],
            "promql_expr_test": [
                {"eval_time": duration(before), "expr": expr, "exp_samples": []},
                {"eval_time": duration(after), "expr": expr, "exp_samples": [{"labels": expected, "value": 1}]},
            ],
        }


def promtool_problems(rules: dict[str, Any], test: dict[str, Any], directory: Path, step_s: float = STEP_S) -> str:
    """Output of ``promtool test rules`` if the test fails, otherwise "".

    Args:
        rules: content of a rule file.
        test: entry of promtool's ``tests``.
        directory: for temporary files.
        step_s: evaluation interval, seconds.
    """
    content = {"rule_files": ["rules.yml"], "evaluation_interval": duration(step_s), "tests": [test]}
    (directory / "rules.yml").write_text(yaml.safe_dump(rules))
    (directory / "test.yml").write_text(yaml.safe_dump(content))
    command = ["promtool", "test", "rules", "test.yml"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def ticket(**labels: str) -> dict[str, str]:
    return {"severity": "ticket", **labels}


def page(**labels: str) -> dict[str, str]:
    return {"severity": "page", **labels}


def _series(name: str, labels: dict[str, str]) -> str:
    shown = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{shown}}}"


SERVER = {"instance": "a:8002"}
MODEL = {"instance": "a:8002", "model": "alexnet"}
GPU = {"job": "triton", "gpu_uuid": "g", **SERVER}
LAUNCHER = {"job": "alexnet-server", "instance": "a:8004"}
CLIENT = {"job": "alexnet-client", "instance": "c:8003"}
CLIENT_TLS = {**CLIENT, "certificate": "tls"}
RULE_GROUP = {"job": "prometheus", "instance": "p:9090", "rule_group": "slo"}


def up(job: str, instance: str, values: str) -> dict[str, str]:
    return {_series("up", {"job": job, "instance": instance}): values}


def server(metric: str, values: str, **labels: str) -> dict[str, str]:
    return {_series(metric, {"job": "triton", **SERVER, **labels}): values}


def model(metric: str, values: str, **labels: str) -> dict[str, str]:
    return server(metric, values, model="alexnet", version="1", **labels)


def client(metric: str, values: str, **labels: str) -> dict[str, str]:
    return {_series(f"alexnet_client_{metric}", CLIENT | labels): values}


def expiry(seconds: int) -> dict[str, str]:
    return client("certificate_expiry_timestamp_seconds", f"{seconds}x400", certificate="tls")


QUEUEING = {
    **model("nv_inference_request_success", "0+15x100"),
    **model("nv_inference_count", "0+15x100"),
    **model("nv_inference_exec_count", "0+15x100"),
    **model("nv_inference_queue_duration_us", "0+30000x40 1200000+3000000x60"),
    **model("nv_inference_compute_input_duration_us", "0+1x100"),
    **model("nv_inference_compute_infer_duration_us", "0+300000x100"),
    **model("nv_inference_compute_output_duration_us", "0+1x100"),
    **model("alexnet_backend_max_batch_size", "64x100"),
}
"""Batches of one image. Two of 20 steps with the long queue time exceed the threshold, 45 s after the change."""
ON_GPU = {
    **model("nv_inference_exec_count", "0+15x100"),
    **server("nv_gpu_memory_total_bytes", "8e10x100", gpu_uuid="g"),
}

CAUSES = (
    Scenario("AllServersDown", up("triton", "a:8002", "1x40 0x40"), CHANGED_S + 60, page()),
    Scenario(
        "TargetDown",
        {**up("triton", "a:8002", "1x40 0x40"), **up("triton", "b:8002", "1x80")},
        CHANGED_S + 300,
        ticket(job="triton", **SERVER),
    ),
    Scenario(
        "ClientMetricsMissing",
        {**model("nv_inference_request_success", "0+150x120"), **up("alexnet-client", "c:8003", "1x40 0x90")},
        CHANGED_S + 900,
        ticket(),
    ),
    Scenario(
        "ServerNotReady", {_series("alexnet_server_ready", LAUNCHER): "1x40 0x40"}, CHANGED_S + 120, ticket(**LAUNCHER)
    ),
    Scenario(
        "ServerRestarted",
        {_series("alexnet_server_restarts_total", LAUNCHER): "0x40 1x40"},
        CHANGED_S,
        ticket(**LAUNCHER),
    ),
    Scenario(
        "BackendDead",
        {
            **model("nv_inference_request_success", "0+15x40 600x40"),
            **model("nv_inference_request_failure", "0x40 15+15x40", reason="BACKEND"),
        },
        CHANGED_S + 45 + 60,  # the last success leaves the window of one minute
        ticket(**MODEL),
    ),
    Scenario(
        "ModelStalled",
        {
            **model("nv_inference_exec_count", "0+15x40 600x40"),
            **model("nv_inference_pending_request_count", "0x40 9x40"),
        },
        CHANGED_S + 60 + 60,
        ticket(**MODEL),
    ),
    Scenario("HighQueueTime", QUEUEING, CHANGED_S + 30 + 600, ticket(**MODEL), slack=1),
    Scenario("BatchingIneffective", QUEUEING, CHANGED_S + 30 + 600, ticket(**MODEL), slack=1),
    Scenario(
        "CpuFallback",
        {**ON_GPU, **server("nv_gpu_utilization", "0.5x40 0x60", gpu_uuid="g")},
        CHANGED_S + 300 + 600,
        ticket(**SERVER),
    ),
    Scenario(
        "CpuFallback",
        {
            **ON_GPU,
            **server("nv_gpu_utilization", "0.5x100", gpu_uuid="g"),
            **model("alexnet_backend_info", "_x41 1x60", provider="CPUExecutionProvider"),
        },
        CHANGED_S + 600,
        ticket(**SERVER),
    ),
    Scenario(
        "RequestsRejected",
        {
            **client("calls_total", "0+90x100", outcome="ok"),
            **client("calls_total", "0x40 10+10x60", outcome="overloaded"),
        },
        CHANGED_S + 15 + 300,  # 20 of 1,820 calls; the first 10 are less than 1 %
        ticket(job="alexnet-client"),
    ),
    *(
        Scenario(
            alert,
            model("nv_inference_request_failure", "0x40 1+1x60", reason=reason),
            CHANGED_S + 300,
            ticket(**MODEL),
        )
        for alert, reason in (("RequestsExpiredInQueue", "REJECTED"), ("BackendErrors", "BACKEND"))
    ),
    Scenario(
        "ReplicasEjected",
        {**client("replicas", "3x100"), **client("replicas_healthy", "3x40 2x60")},
        CHANGED_S + 300,
        ticket(**CLIENT),
    ),
    Scenario(
        "RetryBudgetExhausted",
        client("retry_budget_exhausted_total", "0x40 1+1x80", reason="overloaded"),
        CHANGED_S + 600,
        ticket(job="alexnet-client"),
    ),
    Scenario(
        "MixedReleases",
        {
            **server("alexnet_backend_info", "1x400", model="alexnet", version="1", release="r1"),
            **server("alexnet_backend_info", "_x41 1x360", instance="b:8002", model="alexnet", version="2"),
        },
        CHANGED_S + 3600,
        ticket(model="alexnet"),
    ),
    *(
        Scenario(
            alert,
            {
                **server(f"{memory}_used_bytes", "50x40 96x80", **gpu),
                **server(f"{memory}_total_bytes", "100x120", **gpu),
            },
            CHANGED_S + 600,
            ticket(job="triton", **SERVER, **gpu),
        )
        for alert, memory, gpu in (
            ("HostMemoryLow", "nv_cpu_memory", {}),
            ("GpuMemoryLow", "nv_gpu_memory", {"gpu_uuid": "g"}),
            ("PinnedMemoryLow", "nv_pinned_memory_pool", {}),
        )
    ),
    Scenario("CertificateExpiring", expiry(14 * 86_400 + 600), CHANGED_S + 3600, ticket(**CLIENT_TLS)),
    Scenario("CertificateExpiring", expiry(2 * 86_400 + 600), CHANGED_S + 600, page(**CLIENT_TLS)),
    Scenario(
        "PrometheusRuleFailures",
        {_series("prometheus_rule_evaluation_failures_total", RULE_GROUP): "0x40 1+1x60"},
        CHANGED_S + 300,
        ticket(**RULE_GROUP),
    ),
)


def _burn_rate_scenario(slo: Slo, alert: BurnRateAlert) -> Scenario:
    """No bad calls for a long window, then twice the share of bad calls at which the alert fires."""
    step_s = max(60, alert.short_s / 6)
    steps, calls = round(alert.long_s / step_s), 1_000_000
    # Half a window with bad calls stays just below the threshold; one step more exceeds it.
    bad = round(alert.burn_rate * slo.budget * calls * steps / (steps / 2 + 0.5))
    later = 2 * steps + round(alert.for_s / step_s)
    good = f"0+{calls}x{steps} {(steps + 1) * calls - bad}+{calls - bad}x{later}"
    if slo.name == "latency":
        series = {
            **client("call_duration_seconds_count", f"0+{calls}x{steps + later}", outcome="ok"),
            **client("call_duration_seconds_bucket", good, outcome="ok", le="0.1"),
        }
    else:
        series = {
            **client("calls_total", good, outcome="ok"),
            **client("calls_total", f"0x{steps} {bad}+{bad}x{later}", outcome="overloaded"),
        }
    exceeds_s = alert.long_s + (steps / 2 + 1) * step_s
    labels = {"severity": alert.severity, "window": duration(alert.long_s), "slo": slo.name, "job": "alexnet-client"}
    return Scenario(slo.alert, series, exceeds_s + alert.for_s, labels, step_s)


BURN_RATES = tuple(_burn_rate_scenario(slo, alert) for slo in SLOS for alert in BURN_RATE_ALERTS)
