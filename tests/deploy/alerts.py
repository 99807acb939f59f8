"""Stories that each alert must tell: series that make it fire, and when. For promtool."""

from __future__ import annotations

from dataclasses import dataclass

from alexnet_server.monitoring.slo import BURNS, SLOS, Burn, Slo, duration

STEP_S = 15
TRITON = 'instance="a:8002",job="triton",model="alexnet",version="1"'
"""Labels of a model's counters."""


@dataclass(frozen=True)
class Story:
    """What Prometheus sees, and what it makes of it.

    Attributes:
        alert: its name.
        series: PromQL selector -> values, one each ``step_s``.
        fires_s: the first evaluation at which it fires, seconds since the first value.
        labels: of the alert, without its name and state.
        step_s: between values, and between evaluations.
        slack: evaluations that it may fire later, because it reads what another group has recorded.
    """

    alert: str
    series: dict[str, str]
    fires_s: float
    labels: dict[str, str]
    step_s: float = STEP_S
    slack: int = 0

    def promtool(self) -> dict[str, object]:
        """As an entry of promtool's ``tests``: silent just before, firing just after."""
        expr = f'ALERTS{{alertname="{self.alert}",alertstate="firing"}}'
        labels = {"alertname": self.alert, "alertstate": "firing", **self.labels}
        shown = "ALERTS{" + ",".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}"
        if "window" in self.labels:  # several alerts have one name
            expr = expr.replace("}", f',window="{self.labels["window"]}"}}')
        return {
            "name": f"{self.alert} {self.labels}",
            "interval": duration(self.step_s),
            "input_series": [{"series": name, "values": values} for name, values in self.series.items()],
            "promql_expr_test": [
                {"eval_time": duration(self.fires_s - self.step_s), "expr": expr, "exp_samples": []},
                {
                    "eval_time": duration(self.fires_s + self.slack * self.step_s),
                    "expr": expr,
                    "exp_samples": [{"labels": shown, "value": 1}],
                },
            ],
        }


def ticket(**labels: str) -> dict[str, str]:
    """Labels of an alert that waits for the morning."""
    return {"severity": "ticket", **labels}


AT_A = {"instance": "a:8002"}
MODEL_AT_A = {"instance": "a:8002", "model": "alexnet"}
BEGINS_S = 40 * STEP_S
"""Values change after the 40th: what is wrong is first seen one step later, at 615 s."""


def counters(**values: str) -> dict[str, str]:
    """Triton's counters of a model, by the end of their names."""
    return {f"nv_inference_{name}{{{TRITON}}}": value for name, value in values.items()}


def failures(reason: str, values: str) -> dict[str, str]:
    """Triton's counter of requests that failed for a reason."""
    return {f'nv_inference_request_failure{{{TRITON},reason="{reason}"}}': values}


CAUSES = (
    Story("NoServer", {'up{job="triton",instance="a:8002"}': "1x40 0x40"}, 615 + 60, {"severity": "page"}),
    Story(
        "TargetDown",
        {'up{job="triton",instance="a:8002"}': "1x40 0x40", 'up{job="triton",instance="b:8002"}': "1x80"},
        615 + 300,
        ticket(job="triton", **AT_A),
    ),
    Story(
        "ClientMetricsMissing",
        {**counters(request_success="0+150x120"), 'up{job="alexnet-client",instance="c:8003"}': "1x40 0x90"},
        615 + 900,
        ticket(),
    ),
    Story(
        "ServerNotReady",
        {'alexnet_server_ready{job="alexnet-server",instance="a:8004"}': "1x40 0x40"},
        615 + 120,
        ticket(job="alexnet-server", instance="a:8004"),
    ),
    Story(
        "ServerRestarted",
        {'alexnet_server_restarts_total{job="alexnet-server",instance="a:8004"}': "0x40 1x40"},
        615,
        ticket(job="alexnet-server", instance="a:8004"),
    ),
    Story(
        "BackendDead",
        {**counters(request_success="0+15x40 600x40"), **failures("BACKEND", "0x40 15+15x40")},
        # The last success is seen until it leaves the window of a minute.
        600 + 45 + 60 + STEP_S,
        ticket(**MODEL_AT_A),
    ),
    Story(
        "ModelStalled",
        {**counters(exec_count="0+15x40 600x40"), f"nv_inference_pending_request_count{{{TRITON}}}": "0x40 9x40"},
        615 + 60 + 60,
        ticket(**MODEL_AT_A),
    ),
    Story(
        "HighQueueTime",
        counters(
            request_success="0+15x100",
            queue_duration_us="0+30000x40 1200000+3000000x60",
            compute_input_duration_us="0+1x100",
            compute_infer_duration_us="0+300000x100",
            compute_output_duration_us="0+1x100",
        ),
        645 + 600,  # two of 20 steps with the long wait are enough
        ticket(**MODEL_AT_A),
        slack=1,
    ),
    Story(
        "BatchingBroken",
        {
            **counters(
                request_success="0+15x100",
                count="0+15x100",
                exec_count="0+15x100",
                queue_duration_us="0+30000x40 1200000+3000000x60",
                compute_input_duration_us="0+1x100",
                compute_infer_duration_us="0+300000x100",
                compute_output_duration_us="0+1x100",
            ),
            'alexnet_backend_max_batch_size{instance="a:8002",job="triton",model="alexnet",version="1"}': "64x100",
        },
        645 + 600,  # two of 20 steps with the long wait are enough
        ticket(**MODEL_AT_A),
        slack=1,
    ),
    Story(
        "CpuFallback",
        {
            **counters(exec_count="0+15x100"),
            'nv_gpu_memory_total_bytes{instance="a:8002",job="triton",gpu_uuid="g"}': "8e10x100",
            'nv_gpu_utilization{instance="a:8002",job="triton",gpu_uuid="g"}': "0.5x40 0x60",
        },
        600 + 300 + STEP_S + 600,
        ticket(**AT_A),
    ),
    Story(
        "CpuFallback",
        {
            **counters(exec_count="0+15x100"),
            'nv_gpu_memory_total_bytes{instance="a:8002",job="triton",gpu_uuid="g"}': "8e10x100",
            'nv_gpu_utilization{instance="a:8002",job="triton",gpu_uuid="g"}': "0.5x100",
            f'alexnet_backend_info{{{TRITON},provider="CPUExecutionProvider"}}': "_x41 1x60",
        },
        615 + 600,
        ticket(**AT_A),
    ),
    Story(
        "RequestsRejected",
        {
            'alexnet_client_calls_total{job="alexnet-client",instance="c:8003",outcome="ok"}': "0+90x100",
            'alexnet_client_calls_total{job="alexnet-client",instance="c:8003",outcome="overloaded"}': "0x40 10+10x60",
        },
        630 + 300,  # 20 of 1,820 calls; the first 10 are less than 1 %
        ticket(job="alexnet-client"),
    ),
    Story("RequestsExpiredInQueue", failures("REJECTED", "0x40 1+1x60"), 615 + 300, ticket(**MODEL_AT_A)),
    Story("BackendErrors", failures("BACKEND", "0x40 1+1x60"), 615 + 300, ticket(**MODEL_AT_A)),
    Story(
        "ReplicasEjected",
        {
            'alexnet_client_replicas{job="alexnet-client",instance="c:8003"}': "3x100",
            'alexnet_client_replicas_healthy{job="alexnet-client",instance="c:8003"}': "3x40 2x60",
        },
        615 + 300,
        ticket(job="alexnet-client", instance="c:8003"),
    ),
    Story(
        "RetryBudgetExhausted",
        {
            'alexnet_client_retries_denied_total{job="alexnet-client",instance="c:8003",reason="overloaded"}': "0x40 1+1x80"
        },
        615 + 600,
        ticket(job="alexnet-client"),
    ),
    Story(
        "MixedReleases",
        {
            'alexnet_backend_info{job="triton",instance="a:8002",model="alexnet",version="1",release="r1"}': "1x400",
            'alexnet_backend_info{job="triton",instance="b:8002",model="alexnet",version="2",release="r2"}': "_x41 1x360",
        },
        615 + 3600,
        ticket(model="alexnet"),
    ),
    Story(
        "HostMemoryLow",
        {
            'nv_cpu_memory_used_bytes{instance="a:8002",job="triton"}': "50x40 91x80",
            'nv_cpu_memory_total_bytes{instance="a:8002",job="triton"}': "100x120",
        },
        615 + 600,
        ticket(job="triton", **AT_A),
    ),
    Story(
        "GpuMemoryLow",
        {
            'nv_gpu_memory_used_bytes{instance="a:8002",job="triton",gpu_uuid="g"}': "50x40 96x80",
            'nv_gpu_memory_total_bytes{instance="a:8002",job="triton",gpu_uuid="g"}': "100x120",
        },
        615 + 600,
        ticket(job="triton", gpu_uuid="g", **AT_A),
    ),
    Story(
        "PinnedMemoryLow",
        {
            'nv_pinned_memory_pool_used_bytes{instance="a:8002",job="triton"}': "50x40 96x80",
            'nv_pinned_memory_pool_total_bytes{instance="a:8002",job="triton"}': "100x120",
        },
        615 + 600,
        ticket(job="triton", **AT_A),
    ),
    Story(
        "CertificateExpiresSoon",
        {
            'alexnet_client_certificate_expiry_timestamp_seconds{job="alexnet-client",instance="c:8003",certificate="own"}': (
                f"{14 * 86_400 + 600}x400"
            )
        },
        615 + 3600,
        ticket(job="alexnet-client", instance="c:8003", certificate="own"),
    ),
    Story(
        "CertificateExpires",
        {
            'alexnet_client_certificate_expiry_timestamp_seconds{job="alexnet-client",instance="c:8003",certificate="own"}': (
                f"{2 * 86_400 + 600}x400"
            )
        },
        615 + 600,
        {"severity": "page", "job": "alexnet-client", "instance": "c:8003", "certificate": "own"},
    ),
    Story(
        "RulesFail",
        {
            'prometheus_rule_evaluation_failures_total{job="prometheus",instance="p:9090",rule_group="slo"}': "0x40 1+1x60"
        },
        615 + 300,
        ticket(job="prometheus", instance="p:9090", rule_group="slo"),
    ),
)


def burn_story(slo: Slo, burn: Burn) -> Story:
    """All is well for a long window; then twice the share of calls is bad that the alert is about."""
    step_s = max(60, burn.short_s / 6)
    steps, calls = round(burn.long_s / step_s), 1_000_000
    # Steps until the share of bad calls in the window is too high: half a window is not quite enough, one more is.
    bad = round(burn.speed * slo.budget * calls * steps / (steps / 2 + 0.5))
    labels = 'job="alexnet-client",instance="c:8003"'
    later = 2 * steps + round(burn.for_s / step_s)
    total = f"0+{calls}x{steps + later}"
    good = f"0+{calls}x{steps} {(steps + 1) * calls - bad}+{calls - bad}x{later}"
    if slo.name == "latency":
        series = {
            f'alexnet_client_call_duration_seconds_count{{{labels},outcome="ok"}}': total,
            f'alexnet_client_call_duration_seconds_bucket{{{labels},outcome="ok",le="0.1"}}': good,
        }
    else:
        failed = f"0x{steps} {bad}+{bad}x{later}"
        series = {
            f'alexnet_client_calls_total{{{labels},outcome="ok"}}': good,
            f'alexnet_client_calls_total{{{labels},outcome="overloaded"}}': failed,
        }
    crosses_s = burn.long_s + (steps / 2 + 1) * step_s
    fired = {"severity": burn.severity, "window": duration(burn.long_s), "slo": slo.name, "job": "alexnet-client"}
    return Story(slo.alert, series, crosses_s + burn.for_s, fired, step_s)


BURN_STORIES = tuple(burn_story(slo, burn) for slo in SLOS for burn in BURNS)
