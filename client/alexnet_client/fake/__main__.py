"""``python -m alexnet_client.fake``: runs a fake server as a process."""

from __future__ import annotations

import asyncio
import signal
from typing import Annotated

import typer

from alexnet_client.errors import BadInput
from alexnet_client.fake.server import FakeServer
from alexnet_client.terminal import EXIT_CODES, errors_reported, print_json

PROGRAM = "python -m alexnet_client.fake"
app = typer.Typer(add_completion=False)


@app.command(epilog=EXIT_CODES)
def serve(port: Annotated[int, typer.Option(help="port on 127.0.0.1; 0 for a free one")] = 0) -> None:
    """Run a fake server until SIGINT or SIGTERM. The first line on standard output is JSON and contains the target."""

    async def run() -> None:
        stop = asyncio.Event()
        for each in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(each, stop.set)
        async with FakeServer(max_batch_size=64, port=port) as server:
            print_json({"target": server.target})
            await stop.wait()

    with errors_reported(PROGRAM, BadInput):
        asyncio.run(run())


if __name__ == "__main__":
    app(prog_name=PROGRAM)
