"""``alexnet-server``: serve the model repository from the terminal. The only module here that prints."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Never

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alexnet_server.checks import check_all
from alexnet_server.command import ServerOptions
from alexnet_server.errors import LaunchError
from alexnet_server.launcher import run_with_server, running

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Serve a Triton model repository on this machine.")
console = Console(markup=False, highlight=False)

Repository = Annotated[Path, typer.Option("--repository", "-r", help="the Triton model repository")]
Address = Annotated[str, typer.Option(help="address to listen on; loopback only")]
GrpcPort = Annotated[int, typer.Option(min=1, max=65535)]
MetricsPort = Annotated[int, typer.Option(min=1, max=65535)]
HttpPort = Annotated[int | None, typer.Option(min=1, max=65535, help="also speak HTTP there; off by default")]
ConfigName = Annotated[str, typer.Option(help="serve configs/NAME.pbtxt of each model that has one")]
Log = Annotated[Path | None, typer.Option(help="file for Triton's own lines; they go to the terminal otherwise")]
StartTimeout = Annotated[float, typer.Option(min=1, help="seconds the models may take to answer")]
DEFAULT_REPOSITORY = Path("model_repository")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": False})
def serve(
    context: typer.Context,
    repository: Repository = DEFAULT_REPOSITORY,
    address: Address = "127.0.0.1",
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    http_port: HttpPort = None,
    config_name: ConfigName = "",
    log: Log = None,
    start_timeout: StartTimeout = 120,
) -> None:
    """Serve until Ctrl-C, or while a command runs: alexnet-server serve -- COMMAND.

    Exits with the exit code of the command, or with Triton's.
    """
    try:
        options = ServerOptions(repository, address, grpc_port, metrics_port, http_port, config_name)
        if context.args:
            print(f"Starting Triton on {options.target} to run {context.args[0]}", file=sys.stderr)
            raise typer.Exit(run_with_server(options, context.args, log=log, timeout_s=start_timeout))
        with running(options, log=log, timeout_s=start_timeout) as server:
            where = ", ".join(f"{purpose} {address}:{port}" for purpose, port in options.ports.items())
            console.print(f"Serving {', '.join(server.models)}: {where}. Ctrl-C stops.")
            code = server.wait()
    except LaunchError as error:
        _fail(error)
    how = (
        "has stopped."
        if code == 0
        else f"was {'killed' if server.stopping else 'ended from outside'}, exit code {code}."
    )
    console.print(f"Triton {how}")
    raise typer.Exit(code)


@app.command()
def doctor(
    repository: Repository = DEFAULT_REPOSITORY,
    address: Address = "127.0.0.1",
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    http_port: HttpPort = None,
) -> None:
    """Check what Triton needs of this machine, with a remedy for each lack; exits 1 if there is one."""
    try:
        checks = list(check_all(ServerOptions(repository, address, grpc_port, metrics_port, http_port)))
    except LaunchError as error:
        _fail(error)
    table = Table("check", "found", "remedy", highlight=False)
    for check in checks:
        table.add_row(check.name, Text(check.found, style="green" if check.ok else "red"), check.remedy)
    console.print(table)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


def main() -> None:
    """Entry point."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime would report to its makers otherwise
    app()


def _fail(error: LaunchError) -> Never:
    print(f"alexnet-server: {error}", file=sys.stderr)
    raise typer.Exit(1) from None


if __name__ == "__main__":
    main()
