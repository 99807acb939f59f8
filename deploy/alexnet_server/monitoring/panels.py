"""What people look at: rows of panels, each with its queries. Grafana's dashboard and the status page are made of them."""

from __future__ import annotations

from dataclasses import dataclass

from alexnet_server.monitoring.slo import BURNS, SLOS, ratio_of

FAST_S = BURNS[0].long_s
SECONDS = "alexnet_client_call_duration_seconds_bucket"


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and how its series are named: ``{{label}}`` stands for a label's value."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A graph, or a figure.

    Attributes:
        title: of the panel.
        queries: what it shows.
        unit: Grafana's name of it.
        text: what it means, for people.
        kind: timeseries or stat.
        stacked: whether series add up to something.
        gpu: whether it has data on hosts with a GPU only.
        main: whether the status page shows it.
    """

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    text: str = ""
    kind: str = "timeseries"
    stacked: bool = False
    gpu: bool = False
    main: bool = False


def _quantiles(bucket: str, *quantiles: float) -> tuple[Query, ...]:
    return tuple(
        Query(f"histogram_quantile({each}, sum by (le) (rate({bucket}[5m])))", f"p{100 * each:g}") for each in quantiles
    )


def _phase(name: str) -> str:
    """Mean seconds a request of each model spends in a phase, in all servers."""
    return (
        f"sum by (model) (rate(nv_inference_{name}_duration_us[5m])) / 1e6 "
        "/ (sum by (model) (rate(nv_inference_request_success[5m])) > 0)"
    )


ROWS: dict[str, tuple[Panel, ...]] = {
    "Objectives": (
        *(
            Panel(
                f"Budget left: {slo.name}",
                (Query(f'job:slo_budget_left:ratio30d{{slo="{slo.name}"}}', "{{job}}"),),
                "percentunit",
                f"Of the {slo.budget:.1%} of calls whose {slo.name} may be bad in 30 days; below zero the objective is missed.",
                kind="stat",
                main=True,
            )
            for slo in SLOS
        ),
        Panel(
            "Speed at which the budget burns",
            tuple(
                Query(f'{ratio_of(FAST_S)}{{slo="{slo.name}"}} / {slo.budget:g}', f"{slo.name}, {{{{job}}}}")
                for slo in SLOS
            ),
            text=f"1 uses it up in exactly 30 days; a page comes at {BURNS[0].speed:g}.",
            main=True,
        ),
    ),
    "Traffic": (
        Panel(
            "Calls a second",
            (Query("job_outcome:alexnet_client_calls:rate5m > 0", "{{outcome}}"),),
            "reqps",
            "By outcome, as clients saw them.",
            stacked=True,
            main=True,
        ),
        Panel(
            "Images a second",
            (Query("model:triton_images:rate5m", "{{model}}"),),
            text="As Triton counts them; an ensemble and its steps count each for itself.",
            main=True,
        ),
    ),
    "Latency": (
        Panel(
            "Calls: percentiles",
            _quantiles(f'{SECONDS}{{outcome="ok"}}', 0.5, 0.95, 0.99),
            "s",
            "From a call to its answer, queue and retries included, over all clients.",
            main=True,
        ),
        Panel(
            "Where the time goes",
            (
                Query("clamp_min(model:triton_frontend_overhead_seconds:mean5m, 0)", "{{model}}: wire and front end"),
                Query(_phase("queue"), "{{model}}: queue"),
                Query(_phase("compute_input"), "{{model}}: input"),
                Query(_phase("compute_infer"), "{{model}}: inference"),
                Query(_phase("compute_output"), "{{model}}: output"),
            ),
            "s",
            "Means of a request, server side, and on top what the wire and Triton's front end take.",
            stacked=True,
            main=True,
        ),
        Panel(
            "Client: phases",
            (
                Query(
                    "sum by (phase) (rate(alexnet_client_phase_duration_seconds_sum[5m])) "
                    "/ (sum by (phase) (rate(alexnet_client_phase_duration_seconds_count[5m])) > 0)",
                    "{{phase}}",
                ),
            ),
            "s",
            "Means; served is the wire and the server together.",
        ),
        Panel(
            "Runs: percentiles",
            _quantiles("alexnet_backend_execution_duration_seconds_bucket", 0.5, 0.99),
            "s",
            "One execution of the network, without Triton around it.",
        ),
    ),
    "Batching": (
        Panel(
            "Images in a batch",
            (
                Query("instance_model:triton_batch_images:mean5m", "{{model}} at {{instance}}: mean"),
                *_quantiles("alexnet_backend_batch_images_bucket", 0.95),
                Query(
                    "rate(alexnet_client_batch_images_sum[5m]) / (rate(alexnet_client_batch_images_count[5m]) > 0)",
                    "sent by {{instance}}: mean",
                ),
            ),
            text="Formed by Triton out of what clients send.",
            main=True,
        ),
        Panel(
            "Batch fill",
            (Query("instance_model:triton_batch_fill:ratio5m", "{{model}} at {{instance}}"),),
            "percentunit",
            "Mean batch as a share of the largest allowed.",
        ),
    ),
    "Saturation": (
        Panel(
            "Queue to compute",
            (Query("instance_model:triton_queue_to_compute:ratio5m", "{{model}} at {{instance}}"),),
            text="How long requests wait, in times of how long they are computed; beyond 1 a server has too much to do.",
            main=True,
        ),
        Panel(
            "Instances busy",
            (Query("instance_model:triton_instances_busy:ratio5m", "{{model}} at {{instance}}"),),
            "percentunit",
            main=True,
        ),
        Panel(
            "Waiting in Triton",
            (Query("nv_inference_pending_request_count", "{{model}} at {{instance}}"),),
            text="Requests that no instance has taken yet, as of each scrape.",
        ),
        Panel(
            "Clients: in flight and queued",
            (
                Query("alexnet_client_batches_in_flight", "in flight, {{instance}}"),
                Query("alexnet_client_concurrency_limit", "limit, {{instance}}"),
                Query("alexnet_client_queued_images", "images queued, {{instance}}"),
            ),
        ),
        Panel(
            "Host",
            (
                Query("nv_cpu_utilization", "processors, {{instance}}"),
                Query("nv_cpu_memory_used_bytes / nv_cpu_memory_total_bytes", "memory, {{instance}}"),
            ),
            "percentunit",
        ),
        Panel(
            "GPU",
            (
                Query("nv_gpu_utilization", "busy, {{gpu_uuid}}"),
                Query("nv_gpu_memory_used_bytes / nv_gpu_memory_total_bytes", "memory, {{gpu_uuid}}"),
                Query("nv_gpu_power_usage / nv_gpu_power_limit", "power, {{gpu_uuid}}"),
            ),
            "percentunit",
            gpu=True,
        ),
        Panel(
            "Energy for 1,000 images",
            (Query("instance:triton_gpu_joules_per_1000_images:ratio5m", "{{instance}}"),),
            "joule",
            gpu=True,
        ),
    ),
    "Errors": (
        Panel(
            "Calls that failed",
            (Query('job_outcome:alexnet_client_calls:rate5m{outcome!="ok"}', "{{outcome}}"),),
            "reqps",
            "As clients saw them; what a full queue refuses is in none of Triton's counters.",
            stacked=True,
            main=True,
        ),
        Panel(
            "Triton's failures",
            (Query("model_reason:triton_request_failures:ratio_rate5m", "{{model}}: {{reason}}"),),
            "percentunit",
            "As shares of its requests.",
        ),
        Panel(
            "Retries, hedges, ejections",
            (
                Query("sum by (reason) (rate(alexnet_client_retries_total[5m]))", "retried: {{reason}}"),
                Query("sum by (reason) (rate(alexnet_client_retries_denied_total[5m]))", "not retried: {{reason}}"),
                Query("sum by (result) (rate(alexnet_client_hedges_total[5m]))", "hedge {{result}}"),
            ),
            "ops",
        ),
    ),
    "Replicas": (
        Panel(
            "Requests a second to each",
            (Query("sum by (replica) (rate(alexnet_client_attempts_total[5m]))", "{{replica}}"),),
            "reqps",
            "Balanced if the lines are close to each other.",
        ),
        Panel(
            "Usable",
            (
                Query("sum by (instance) (alexnet_client_replicas_healthy)", "usable to {{instance}}"),
                Query("sum by (instance) (alexnet_client_replicas)", "known to {{instance}}"),
            ),
        ),
        Panel(
            "Ready, and restarts",
            (
                Query("alexnet_server_ready", "ready: {{instance}}"),
                Query("alexnet_server_restarts_total", "restarts: {{instance}}"),
            ),
            text="As the launcher sees its Triton.",
            main=True,
        ),
        Panel(
            "Releases",
            (
                Query(
                    "sum by (model, version, precision, provider) (alexnet_backend_info)",
                    "{{model}} {{version}}: {{precision}}, {{provider}}",
                ),
            ),
            text="Servers that run each.",
        ),
    ),
}

RELEASES = Query(
    "count by (model, version, release) (alexnet_backend_info) "
    "unless count by (model, version, release) (alexnet_backend_info offset 1m)",
    "{{model}} {{version}}",
)
"""Has a value while a release is new: for marks in the graphs."""
