"""What several tests of the real server share: command lines that run to their end, and callers that generate load."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
from waiting import until

from alexnet_client import Client
from alexnet_client.errors import ClientError

TIMEOUT_S = 90


def run_command(module: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line of this project to its end: ``run_command("alexnet_client", "health")``."""
    return run([sys.executable, "-m", module, *arguments], **environment)


def serve_command(repository: Path, ports: Callable[[], int], *options: object) -> list[object]:
    """The command line of a server on free ports, without a health endpoint. Later options replace earlier ones."""
    own_ports = ("--grpc-port", ports(), "--metrics-port", ports(), "--health-port", 0)
    return [sys.executable, "-m", "alexnet_server", "serve", "--repository", repository, *own_ports, *options]


def run(command: list[object], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and check that it prints no traceback."""
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, **environment},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


class Load:
    """Callers that send single images without a pause, and the number of calls by outcome.

    The outcomes are "correct", "wrong", and the names of the client's exceptions.
    """

    def __init__(self, client: Client, images: np.ndarray, expected: np.ndarray, *, callers: int = 8) -> None:
        self.outcomes: Counter[str] = Counter()
        self._client, self._images, self._expected = client, images, expected
        self._callers, self._tolerance = callers, 1e-4 * np.ptp(expected)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._call(random.Random(seed))) for seed in range(self._callers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError), outcome

    async def _call(self, rng: random.Random) -> None:
        while True:
            row = rng.randrange(len(self._images))
            try:
                logits = (await self._client.infer(self._images[row : row + 1])).logits[0]
            except ClientError as error:
                self.outcomes[type(error).__name__] += 1
                await asyncio.sleep(0.02)
            else:
                correct = np.allclose(logits, self._expected[row], atol=self._tolerance)
                self.outcomes["correct" if correct else "wrong"] += 1

    async def wait_for_answers(self, count: int) -> None:
        """Wait until so many more calls have a correct answer."""
        wanted = self.outcomes["correct"] + count
        await until(lambda: self.outcomes["correct"] >= wanted, f"{count} more correct answers")
