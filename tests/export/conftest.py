"""Fixtures of the export tests."""

from __future__ import annotations

import multiprocessing
import resource
import signal
from collections.abc import Callable

import pytest

from alexnet_client.errors import BadInput

fork = multiprocessing.get_context("fork")


def _run(limit: int, message, function, *arguments) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        function(*arguments)
    except BadInput as error:
        message.put(str(error))


@pytest.fixture
def with_limited_files() -> Callable[..., str]:
    """Runs a function in a process whose files cannot grow beyond a limit, bytes; returns the text of its BadInput."""

    def run(limit, function, *arguments) -> str:
        message = fork.SimpleQueue()
        process = fork.Process(target=_run, args=(limit, message, function, *arguments))
        process.start()
        process.join(60)
        return message.get()

    return run
