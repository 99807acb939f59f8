"""``python -m alexnet_client.fake``: a fake server as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal

from alexnet_client.fake.server import FakeServer


def main() -> None:
    """Serve until SIGINT or SIGTERM; the first line on standard output is JSON and names the target."""
    parser = argparse.ArgumentParser(prog="python -m alexnet_client.fake", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1; 0 for a free one")
    parser.add_argument("--max-batch-size", type=int, default=64, help="images that a request may hold")
    parser.add_argument("--delay-s", type=float, default=0.0, help="what an inference takes, seconds")
    parser.add_argument("--at-once", type=int, default=0, help="inferences at a time; 0 for all")
    parser.add_argument("--queue-size", type=int, default=0, help="requests that may wait; 0 for no limit")
    options = parser.parse_args()

    async def serve() -> None:
        over = asyncio.Event()
        for each in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(each, over.set)
        async with FakeServer(max_batch_size=options.max_batch_size, port=options.port) as server:
            server.delay_s, server.at_once, server.queue_size = options.delay_s, options.at_once, options.queue_size
            print(json.dumps({"target": server.target}), flush=True)
            await over.wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
