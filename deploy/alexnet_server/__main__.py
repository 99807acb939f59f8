"""``alexnet-server``: serve a model repository from the command line."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from alexnet_client.logs import configure_logs
from alexnet_client.terminal import EXIT_CODES, FAILED, console
from alexnet_server.cli import ConfigName, GrpcPort, MetricsPort, TlsDirectory, errors_logged, existing
from alexnet_server.command import VULNERABILITIES, ServerOptions
from alexnet_server.container import deliver, exec_, probe
from alexnet_server.errors import LaunchError
from alexnet_server.failure_detection import RestartPolicy
from alexnet_server.preflight import check_all
from alexnet_server.supervisor import Event, Restarting, Supervisor, UnloadFailed

app = typer.Typer(add_completion=False, no_args_is_help=True, epilog=EXIT_CODES)
log = logging.getLogger("alexnet_server")
app.command("exec", epilog=EXIT_CODES)(exec_)
app.command(epilog=EXIT_CODES)(deliver)
app.command(epilog=EXIT_CODES)(probe)

Repository = Annotated[Path, typer.Option("--repository", "-r", help="Triton model repository")]
HealthPort = Annotated[
    int, typer.Option(min=0, max=65535, help="TCP port for the launcher's /ready, /live and /metrics; 0 disables it")
]
POLL_INTERVAL_S = 0.2


@app.callback()
def configure() -> None:
    """Serve a Triton model repository on this machine, and monitor it."""
    configure_logs("alexnet-server")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": False}, epilog=EXIT_CODES)
def serve(
    context: typer.Context,
    repository: Repository = Path("model_repository"),
    address: Annotated[str, typer.Option(help="IPv4 address to listen on; loopback only")] = "127.0.0.1",
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    http_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="TCP port for HTTP; disabled by default")
    ] = None,
    config_name: ConfigName = "",
    health_port: HealthPort = 8004,
    accept_known_vulnerabilities: Annotated[
        bool,
        typer.Option(
            "--accept-known-vulnerabilities",
            help=f"allow an --address that other machines can reach. {VULNERABILITIES}",
        ),
    ] = False,
    rate_limit: Annotated[
        bool, typer.Option("--rate-limit", help="enable Triton's rate limiter (instance_group.rate_limiter)")
    ] = False,
    log_file: Annotated[
        Path | None, typer.Option("--log", help="file for Triton's log; the terminal by default")
    ] = None,
    start_timeout: Annotated[float, typer.Option(min=1, help="seconds until all models must be ready")] = 120,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="maximum number of restarts in a row after failures of Triton")
    ] = RestartPolicy.limit,
    probe_interval: Annotated[
        float, typer.Option(min=0, help="seconds between probes (blank images) of an idle model; 0 disables them")
    ] = 5.0,
    hang_timeout: Annotated[
        float, typer.Option(min=1, help="seconds without an execution while requests wait, until Triton is restarted")
    ] = 10.0,
    trace_endpoint: Annotated[
        str,
        typer.Option(
            help="OTLP/HTTP endpoint for OpenTelemetry traces, such as http://127.0.0.1:4318/v1/traces; disabled by default"
        ),
    ] = "",
    trace_rate: Annotated[int, typer.Option(min=1, help="trace 1 in N requests")] = 1,
    tls: TlsDirectory = None,
    shutdown_delay: Annotated[
        float,
        typer.Option(
            min=0,
            help="seconds between SIGTERM and the shutdown; meanwhile the server serves and /ready returns 503, so that load "
            "balancers stop sending requests",
        ),
    ] = 0.0,
) -> None:
    """Serve until Ctrl-C, or while a command runs: alexnet-server serve -- COMMAND.

    Triton is restarted when it exits, when a backend process ends, or when a model hangs. The exit code is that of the
    command, or of Triton without a command.
    """
    with errors_logged():
        options = ServerOptions(
            existing(repository),
            address=address,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            http_port=http_port,
            health_port=health_port or None,
            accept_vulnerabilities=accept_known_vulnerabilities,
            config_name=config_name,
            rate_limit=rate_limit,
            trace_endpoint=trace_endpoint,
            trace_rate=trace_rate,
            tls=tls,
        )
        if accept_known_vulnerabilities:
            log.warning("%s. Everyone who can connect to %s can exploit them", VULNERABILITIES, address)
        if context.args:
            log.info("Starting Triton on %s to run %s", options.target, context.args[0])
        supervisor = Supervisor(
            options,
            log=log_file,
            start_timeout_s=start_timeout,
            policy=RestartPolicy(limit=max_restarts),
            probe_after_s=probe_interval,
            hang_timeout_s=hang_timeout,
            shutdown_delay_s=shutdown_delay,
            on_event=lambda event: _report(event, options, quiet=bool(context.args)),
        )
        code = asyncio.run(supervisor.run(context.args))
    if not context.args:
        console.print("Triton stopped." if code == 0 else f"Triton was killed (exit code {code}).")
    raise typer.Exit(code)


def _report(event: Event, options: ServerOptions, *, quiet: bool) -> None:
    """Log or print an event. With ``quiet``, the terminal belongs to the user's command: only problems are reported."""
    if isinstance(event, Restarting):
        when = f" in {event.delay_s:g} s" if event.delay_s else ""
        text = f"{event.reason}. Restarting Triton{when} ({event.restart} of {event.limit})"
        log.warning(text, extra={"restart": event.restart, "limit": event.limit, "delay_s": event.delay_s})
        return
    if isinstance(event, UnloadFailed):
        text = "Triton completed all requests, then crashed or hung while it unloaded its models; no request was lost"
        log.warning("%s (exit code %s)", text, event.exit_code, extra={"exit_code": event.exit_code})
        return
    if not sys.stderr.isatty():
        fields = {"models": event.models, "after_s": round(event.after_s, 3), "restarts": event.restarts}
        log.info("Serving on %s", options.target, extra=fields | {"ports": options.ports})
    if event.restarts or not quiet:
        ports = ", ".join(f"{purpose} {options.address}:{port}" for purpose, port in options.ports.items())
        again = " again" if event.restarts else ""
        console.print(f"Serving{again} {', '.join(event.models)}: {ports}. Press Ctrl-C to stop.", soft_wrap=True)


@app.command(epilog=EXIT_CODES)
def doctor(
    repository: Repository = Path("model_repository"),
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    health_port: HealthPort = 8004,
) -> None:
    """Check everything that `serve` needs, and print a remedy for each failed check."""
    with errors_logged():
        options = ServerOptions(
            repository, grpc_port=grpc_port, metrics_port=metrics_port, health_port=health_port or None
        )
        checks = list(check_all(options))
    table = Table("check", "found", "remedy", highlight=False)
    for check in checks:
        table.add_row(check.name, Text(check.found, style="green" if check.ok else "red"), check.remedy)
    console.print(table)
    raise typer.Exit(0 if all(check.ok for check in checks) else FAILED)


@app.command(epilog=EXIT_CODES)
def monitor(
    configuration: Annotated[
        Path, typer.Option(help="directory with prometheus.yml, rules/, targets/ and alertmanager.yml")
    ] = Path("deploy/prometheus"),
    data: Annotated[Path, typer.Option(help="directory for recorded metrics and logs")] = Path("build/monitor"),
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="TCP port for Prometheus; also set it in targets/prometheus.yml")
    ] = 9090,
    alertmanager_port: Annotated[
        int, typer.Option(min=1, max=65535, help="TCP port for Alertmanager; also set it in targets/alertmanager.yml")
    ] = 9093,
) -> None:
    """Run Prometheus with alert rules and a status page on this machine until Ctrl-C."""
    from alexnet_server.monitoring.prometheus import MonitorOptions, monitoring

    options = MonitorOptions(configuration, data, port, alertmanager_port)
    with errors_logged():
        try:
            with _sigterm_interrupts(), monitoring(options) as (prometheus, alerting):
                console.print(f"Status page: {options.status_url}", soft_wrap=True)
                console.print(f"Prometheus: {options.url}", soft_wrap=True)
                console.print(
                    f"Alertmanager: http://127.0.0.1:{alertmanager_port}"
                    if alerting
                    else "Alertmanager is not installed: alerts are shown but not delivered.",
                    soft_wrap=True,
                )
                console.print("Press Ctrl-C to stop.")
                while prometheus.exit_code is None:
                    time.sleep(POLL_INTERVAL_S)
                raise LaunchError(f"Prometheus exited with code {prometheus.exit_code}; see {data}/prometheus.log")
        except KeyboardInterrupt:
            console.print("Stopped.")


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def main() -> None:
    """Entry point."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime sends telemetry otherwise
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # a restart forks while gRPC threads run; the child does not use gRPC
    app()


if __name__ == "__main__":
    main()
