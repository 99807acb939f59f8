"""``alexnet-server``: serve the model repository from the terminal. It prints by ``terminal`` alone."""

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
from alexnet_server.checks import check_all
from alexnet_server.command import VULNERABILITIES, ServerOptions
from alexnet_server.container import deliver, exec_, probe
from alexnet_server.ending import BrokenUnload
from alexnet_server.errors import LaunchError
from alexnet_server.rollout.commands import rollback, rollout, unpin
from alexnet_server.rollout.pins import behind
from alexnet_server.supervisor import Event, Restarting, Supervisor
from alexnet_server.terminal import (
    DEFAULT_REPOSITORY,
    ConfigName,
    GrpcPort,
    MetricsPort,
    Repository,
    TlsDirectory,
    console,
    fail,
)
from alexnet_server.watch import RestartPolicy

app = typer.Typer(add_completion=False, no_args_is_help=True)
log = logging.getLogger("alexnet_server")
app.command("exec")(exec_)
app.command()(deliver)
app.command()(probe)
app.command()(rollout)
app.command()(rollback)
app.command()(unpin)

Address = Annotated[str, typer.Option(help="address to listen on; loopback only")]
AcceptVulnerabilities = Annotated[
    bool,
    typer.Option(
        "--accept-known-vulnerabilities", help=f"listen on --address though others can reach it. {VULNERABILITIES}"
    ),
]
HealthPort = Annotated[int, typer.Option(min=0, max=65535, help="the launcher's own /ready and /live; 0 for none")]
MaxRestarts = Annotated[int, typer.Option(min=0, help="how often in a row a failed Triton is started again")]
ProbeInterval = Annotated[
    float, typer.Option(min=0, help="seconds between blank requests to an idle model; 0 for none")
]
HttpPort = Annotated[int | None, typer.Option(min=1, max=65535, help="also speak HTTP there; off by default")]
Log = Annotated[
    Path | None, typer.Option("--log", help="file for Triton's own lines; they go to the terminal otherwise")
]
StartTimeout = Annotated[float, typer.Option(min=1, help="seconds the models may take to answer")]
RateLimit = Annotated[bool, typer.Option("--rate-limit", help="models take turns, by instance_group.rate_limiter")]
TraceEndpoint = Annotated[
    str, typer.Option(help="send OpenTelemetry traces there, such as http://127.0.0.1:4318/v1/traces; off by default")
]
TraceRate = Annotated[int, typer.Option(min=1, help="trace one request in so many")]
Rollouts = Annotated[
    bool,
    typer.Option(
        "--rollouts",
        help="take new releases while serving, by `alexnet-server rollout`; what serves is pinned. Where you trust the other users "
        "of this machine: while Triton starts, they can read the key for it in the process list",
    ),
]
ShutdownDelay = Annotated[
    float,
    typer.Option(
        min=0,
        help="once told to stop, serve so many seconds more while /ready says 503: a balancer that looks there sends nothing new",
    ),
]
HangTimeout = Annotated[float, typer.Option(min=1, help="seconds a model may execute nothing while requests wait")]
DEFAULT_CONFIGURATION = Path("deploy/prometheus")
DEFAULT_DATA = Path("build/monitor")
LOOK_EVERY_S = 0.2


@app.callback()
def begin() -> None:
    """Serve a Triton model repository on this machine, and watch it."""
    configure_logs("alexnet-server")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": False})
def serve(
    context: typer.Context,
    repository: Repository = DEFAULT_REPOSITORY,
    address: Address = "127.0.0.1",
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    http_port: HttpPort = None,
    config_name: ConfigName = "",
    health_port: HealthPort = 8004,
    accept_known_vulnerabilities: AcceptVulnerabilities = False,
    rate_limit: RateLimit = False,
    log_file: Log = None,
    start_timeout: StartTimeout = 120,
    max_restarts: MaxRestarts = RestartPolicy.limit,
    probe_interval: ProbeInterval = 5.0,
    hang_timeout: HangTimeout = 10.0,
    trace_endpoint: TraceEndpoint = "",
    trace_rate: TraceRate = 1,
    tls: TlsDirectory = None,
    rollouts: Rollouts = False,
    shutdown_delay: ShutdownDelay = 0.0,
) -> None:
    """Serve until Ctrl-C, or while a command runs: alexnet-server serve -- COMMAND.

    A Triton that ends, loses a backend process or executes nothing any more is started again. Exits with the exit code
    of the command, or with Triton's.
    """
    try:
        options = ServerOptions(
            repository,
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
            rollouts=rollouts,
        )
        if accept_known_vulnerabilities:
            log.warning("WARNING: %s; whoever reaches %s may use them", VULNERABILITIES, address)
        if context.args:
            log.info("Starting Triton on %s to run %s", options.target, context.args[0])
        for each in () if rollouts else behind(repository):
            log.warning("%s", each)
        supervisor = Supervisor(
            options,
            log=log_file,
            start_timeout_s=start_timeout,
            policy=RestartPolicy(limit=max_restarts),
            probe_every_s=probe_interval,
            hung_after_s=hang_timeout,
            shutdown_delay_s=shutdown_delay,
            on_event=lambda event: _tell(event, options, quiet=bool(context.args)),
        )
        code = asyncio.run(supervisor.run(context.args))
    except LaunchError as error:
        fail(error)
    if not context.args:
        console.print("Triton has stopped." if code == 0 else f"Triton was killed, exit code {code}.")
    raise typer.Exit(code)


def _tell(event: Event, options: ServerOptions, *, quiet: bool) -> None:
    """Say what happens; ``quiet``: a command of the user's has the terminal, so only what is wrong and mended is said."""
    if isinstance(event, Restarting):
        when = f"in {event.delay_s:g} s " if event.delay_s else ""
        text = f"{event.reason}. Starting Triton again {when}({event.restart} of {event.limit})"
        log.warning(text, extra={"restart": event.restart, "limit": event.limit, "delay_s": event.delay_s})
        return
    if isinstance(event, BrokenUnload):
        text = "Triton had answered everything, and then crashed or hung while it unloaded its models; nothing is lost"
        log.warning("%s (exit code %s)", text, event.exit_code, extra={"exit_code": event.exit_code})
        return
    if not sys.stderr.isatty():
        facts = {"models": event.models, "after_s": round(event.after_s, 3), "restarts": event.restarts}
        log.info("Serving %s", options.target, extra=facts | {"ports": options.ports})
    if event.restarts or not quiet:
        where = ", ".join(f"{purpose} {options.address}:{port}" for purpose, port in options.ports.items())
        again = " again" if event.restarts else ""
        console.print(f"Serving{again} {', '.join(event.models)}: {where}. Ctrl-C stops.", soft_wrap=True)


@app.command()
def doctor(
    repository: Repository = DEFAULT_REPOSITORY,
    address: Address = "127.0.0.1",
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    http_port: HttpPort = None,
    health_port: HealthPort = 8004,
) -> None:
    """Check what Triton needs of this machine, with a remedy for each lack; exits 1 if there is one."""
    try:
        options = ServerOptions(repository, address, grpc_port, metrics_port, http_port, health_port or None)
        checks = list(check_all(options))
    except LaunchError as error:
        fail(error)
    table = Table("check", "found", "remedy", highlight=False)
    for check in checks:
        table.add_row(check.name, Text(check.found, style="green" if check.ok else "red"), check.remedy)
    console.print(table)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@app.command()
def monitor(
    configuration: Annotated[
        Path, typer.Option(help="directory with prometheus.yml, rules/, targets/ and alertmanager.yml")
    ] = DEFAULT_CONFIGURATION,
    data: Annotated[Path, typer.Option(help="directory for what is recorded, and for logs")] = DEFAULT_DATA,
    port: Annotated[int, typer.Option(min=1, max=65535, help="of Prometheus, as targets/prometheus.yml has it")] = 9090,
    alertmanager_port: Annotated[
        int, typer.Option(min=1, max=65535, help="of the Alertmanager, as targets/alertmanager.yml has it")
    ] = 9093,
) -> None:
    """Run Prometheus on this machine until Ctrl-C, with our rules and a page of the main graphs."""
    from alexnet_server.monitoring.prometheus import MonitorOptions, monitoring

    options = MonitorOptions(configuration, data, port, alertmanager_port)
    try:
        with until_told(), monitoring(options) as (prometheus, alerting):
            console.print(f"The graphs: {options.status_url}", soft_wrap=True)
            console.print(f"Prometheus: {options.url}", soft_wrap=True)
            console.print(
                f"Alertmanager: http://127.0.0.1:{alertmanager_port}"
                if alerting
                else "Alertmanager is not installed: alerts are shown, and told nobody.",
                soft_wrap=True,
            )
            console.print("Ctrl-C stops.")
            while prometheus.exit_code is None:
                time.sleep(LOOK_EVERY_S)
            fail(LaunchError(f"Prometheus ended, exit code {prometheus.exit_code}; its lines: {data}/prometheus.log"))
    except LaunchError as error:
        fail(error)
    except KeyboardInterrupt:
        console.print("Stopped.")


@contextmanager
def until_told() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Entry point."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime would report to its makers otherwise
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # a restart forks while gRPC's threads run; the child calls none of it
    app()


if __name__ == "__main__":
    main()
