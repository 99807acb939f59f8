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
def serve(
    port: Annotated[int, typer.Option(help="port on 127.0.0.1; 0 for a free one")] = 0,
    max_batch_size: Annotated[int, typer.Option(help="largest number of images per request")] = 64,
    delay_s: Annotated[float, typer.Option(help="duration of an inference, seconds")] = 0.0,
    at_once: Annotated[int, typer.Option(help="number of concurrent inferences; 0 for no limit")] = 0,
    queue_size: Annotated[int, typer.Option(help="number of queued requests; 0 for no limit")] = 0,
) -> None:
    """Serve until SIGINT or SIGTERM. The first line on standard output is JSON and contains the target."""

    async def run() -> None:
        stop = asyncio.Event()
        for each in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(each, stop.set)
        async with FakeServer(max_batch_size=max_batch_size, port=port) as server:
            server.delay_s, server.at_once, server.queue_size = delay_s, at_once, queue_size
            print_json({"target": server.target})
            await stop.wait()

    with errors_reported(PROGRAM, BadInput):
        asyncio.run(run())


if __name__ == "__main__":
    app(prog_name=PROGRAM)
