"""Panels of the Grafana dashboard and the status page, with their queries. Performs no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from alexnet_server.monitoring.slo import BUDGET_REMAINING, BURN_RATE_ALERTS, LATENCY, SLOS, error_ratio_series

FASTEST = BURN_RATE_ALERTS[0]


@dataclass(frozen=True)
class Query:
    """A PromQL expression and the legend of its series: ``{{label}}`` is replaced by the value of a label."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A graph, or a single value.

    Attributes:
        title: unique among all panels.
        queries: the series.
        unit: Grafana's identifier of the unit.
        description: meaning of the series, for people.
        kind: timeseries or stat.
        stacked: whether the series are drawn on top of each other.
        gpu: whether only hosts with a GPU have data.
        main: whether the status page contains the panel.
    """

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    description: str = ""
    kind: str = "timeseries"
    stacked: bool = False
    gpu: bool = False
    main: bool = False


def _quantiles(bucket: str, *quantiles: float, legend: str = "") -> tuple[Query, ...]:
    return tuple(
        Query(f"histogram_quantile({each}, sum by (le) (rate({bucket}[5m])))", f"{legend}p{100 * each:g}")
        for each in quantiles
    )


def _phase(name: str) -> str:
    """Mean seconds per request in a phase, by model."""
    return (
        f"sum by (model) (rate(nv_inference_{name}_duration_us[5m])) / 1e6 "
        "/ (sum by (model) (rate(nv_inference_request_success[5m])) > 0)"
    )


ROWS: dict[str, tuple[Panel, ...]] = {
    "Service level objectives": (
        *(
            Panel(
                f"Error budget remaining: {slo.name}",
                (Query(f'{BUDGET_REMAINING}{{slo="{slo.name}"}}', "{{job}}"),),
                "percentunit",
                f"The error budget is {100 * slo.budget:g} % of the calls in 30 days. Below 0 %, the SLO is violated.",
                kind="stat",
                main=True,
            )
            for slo in SLOS
        ),
        Panel(
            "Error budget burn rate",
            tuple(
                Query(
                    f'{error_ratio_series(FASTEST.long_s)}{{slo="{slo.name}"}} / {slo.budget:g}',
                    f"{slo.name}, {{{{job}}}}",
                )
                for slo in SLOS
            ),
            description=(
                "A burn rate of 1 uses up the error budget in exactly 30 days. "
                f"Above {FASTEST.burn_rate:g}, an alert pages."
            ),
            main=True,
        ),
    ),
    "Traffic": (
        Panel(
            "Calls per second",
            (Query("job_outcome:alexnet_client_calls:rate5m > 0", "{{outcome}}"),),
            "reqps",
            "Calls by outcome, as measured by the clients.",
            stacked=True,
            main=True,
        ),
        Panel(
            "Images per second",
            (Query("model:triton_images:rate5m", "{{model}}"),),
            description="Images as counted by Triton. An ensemble and each of its steps count separately.",
            main=True,
        ),
    ),
    "Latency": (
        Panel(
            "Call latency",
            _quantiles(f'{LATENCY}_bucket{{outcome="ok"}}', 0.5, 0.95, 0.99),
            "s",
            "Latency of successful calls of all clients, with client queue and retries.",
            main=True,
        ),
        Panel(
            "Mean request latency by phase",
            (
                Query(
                    "clamp_min(model:triton_frontend_overhead_seconds:mean5m, 0)", "{{model}}: network and front end"
                ),
                Query(_phase("queue"), "{{model}}: queue"),
                Query(_phase("compute_input"), "{{model}}: input"),
                Query(_phase("compute_infer"), "{{model}}: inference"),
                Query(_phase("compute_output"), "{{model}}: output"),
            ),
            "s",
            "Phases of a request in Triton, and the overhead of the network and Triton's front end.",
            stacked=True,
            main=True,
        ),
        Panel(
            "Mean client latency by phase",
            (
                Query(
                    "sum by (phase) (rate(alexnet_client_phase_duration_seconds_sum[5m])) "
                    "/ (sum by (phase) (rate(alexnet_client_phase_duration_seconds_count[5m])) > 0)",
                    "{{phase}}",
                ),
            ),
            "s",
            "The phase served is the time on the network and in the server.",
        ),
        Panel(
            "Model execution time",
            _quantiles("alexnet_backend_execution_duration_seconds_bucket", 0.5, 0.99),
            "s",
            "One execution of the network in the backend, without Triton's overhead.",
        ),
    ),
    "Batching": (
        Panel(
            "Batch size",
            (
                Query("instance_model:triton_batch_images:mean5m", "{{model}} at {{instance}}: mean"),
                *_quantiles("alexnet_backend_batch_images_bucket", 0.95, legend="all models: "),
                Query(
                    "rate(alexnet_client_batch_images_sum[5m]) / (rate(alexnet_client_batch_images_count[5m]) > 0)",
                    "sent by {{instance}}: mean",
                ),
            ),
            description="Images per batch that Triton executed, and images per batch that clients sent.",
            main=True,
        ),
    ),
    "Saturation": (
        Panel(
            "Queue time per compute time",
            (Query("instance_model:triton_queue_per_compute:ratio_rate5m", "{{model}} at {{instance}}"),),
            description="Above 1, requests wait longer than they are computed: the server is overloaded.",
            main=True,
        ),
        Panel(
            "Model instance utilisation",
            (Query("instance_model:triton_instance_utilization:ratio_rate5m", "{{model}} at {{instance}}"),),
            "percentunit",
            "Share of time in which the model's instances execute.",
            main=True,
        ),
        Panel(
            "Pending requests in Triton",
            (Query("nv_inference_pending_request_count", "{{model}} at {{instance}}"),),
            description="Requests that wait for a model instance at the time of the scrape.",
        ),
        Panel(
            "Client queue and concurrency",
            (
                Query("alexnet_client_batches_in_flight", "batches in flight, {{instance}}"),
                Query("alexnet_client_concurrency_limit", "concurrency limit, {{instance}}"),
                Query("alexnet_client_queued_images", "images queued, {{instance}}"),
            ),
        ),
        Panel(
            "Host CPU and memory",
            (
                Query("nv_cpu_utilization", "CPU, {{instance}}"),
                Query("nv_cpu_memory_used_bytes / nv_cpu_memory_total_bytes", "memory, {{instance}}"),
            ),
            "percentunit",
        ),
        Panel(
            "GPU utilisation, memory and power",
            (
                Query("nv_gpu_utilization", "utilisation, {{gpu_uuid}}"),
                Query("nv_gpu_memory_used_bytes / nv_gpu_memory_total_bytes", "memory, {{gpu_uuid}}"),
                Query("nv_gpu_power_usage / nv_gpu_power_limit", "power, {{gpu_uuid}}"),
            ),
            "percentunit",
            gpu=True,
        ),
        Panel(
            "GPU energy per image",
            (Query("instance:triton_gpu_joules_per_image:ratio_rate5m", "{{instance}}"),),
            "joule",
            gpu=True,
        ),
    ),
    "Errors": (
        Panel(
            "Failed calls per second",
            (Query('job_outcome:alexnet_client_calls:rate5m{outcome!="ok"}', "{{outcome}}"),),
            "reqps",
            "Calls by outcome, as measured by the clients. Triton does not count requests that a full queue rejects.",
            stacked=True,
            main=True,
        ),
        Panel(
            "Failed requests in Triton",
            (Query("model_reason:triton_request_failures:ratio_rate5m", "{{model}}: {{reason}}"),),
            "percentunit",
            "Share of all requests to the model.",
        ),
        Panel(
            "Retries and hedged requests",
            (
                Query("sum by (reason) (rate(alexnet_client_retries_total[5m]))", "retried: {{reason}}"),
                Query(
                    "sum by (reason) (rate(alexnet_client_retry_budget_exhausted_total[5m]))",
                    "not retried, budget exhausted: {{reason}}",
                ),
                Query("sum by (result) (rate(alexnet_client_hedges_total[5m]))", "hedged request {{result}}"),
            ),
            "ops",
        ),
    ),
    "Replicas": (
        Panel(
            "Requests per second by replica",
            (Query("sum by (replica) (rate(alexnet_client_attempts_total[5m]))", "{{replica}}"),),
            "reqps",
            "The load is balanced if the lines are close to each other.",
        ),
        Panel(
            "Healthy replicas",
            (
                Query("sum by (instance) (alexnet_client_replicas_healthy)", "healthy, {{instance}}"),
                Query("sum by (instance) (alexnet_client_replicas)", "all, {{instance}}"),
            ),
            description="Replicas of each client. The others are ejected.",
        ),
        Panel(
            "Server readiness and restarts",
            (
                Query("alexnet_server_ready", "ready: {{instance}}"),
                Query("alexnet_server_restarts_total", "restarts: {{instance}}"),
            ),
            description="State of Triton as reported by the launcher. Kubernetes has no launcher and no data here.",
            main=True,
        ),
        Panel(
            "Model instances by release",
            (
                Query(
                    "sum by (model, version, precision, engine) (alexnet_backend_info)",
                    "{{model}} {{version}}: {{precision}}, {{engine}}",
                ),
            ),
            description="Model instances that run each release, over all servers.",
        ),
    ),
}

RELEASES = Query(
    "count by (model, version, release) (alexnet_backend_info) "
    "unless count by (model, version, release) (alexnet_backend_info offset 1m)",
    "{{model}} {{version}}",
)
"""Has a value for one minute after a new release appears. Grafana marks these times in all graphs."""
