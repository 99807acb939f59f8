"""The public names in a type checker."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

RIGHT = """
import asyncio
from pathlib import Path
from typing import assert_type

import numpy as np

from alexnet_client import (
    BatchOptions, BatchResult, BlockingClient, Classification, Client, ClientError, Connection, RetryOptions, Tls
)

PIXELS = np.zeros((224, 224, 3), np.uint8)


async def asynchronous() -> None:
    options = BatchOptions(max_batch=8), RetryOptions(max_attempts=2), Connection(tls=Tls(roots=Path("ca.pem")))
    async with Client(batching=options[0], retries=options[1], connection=options[2]) as client:
        assert_type(client, Client)
        results = await asyncio.gather(client.classify("a.jpg"), client.classify(b"", top=1), client.classify(PIXELS))
        assert_type(results[0], Classification)
        assert_type(await client.infer(PIXELS[np.newaxis]), BatchResult)
        async for result in client.classify_many([Path("a.jpg")], window=8, return_errors=True):
            assert_type(result, Classification | ClientError)


def blocking() -> None:
    with BlockingClient("127.0.0.1:8001", timeout_s=3, batching=BatchOptions(max_batch=8)) as client:
        assert_type(client, BlockingClient)
        assert_type(client.classify("a.jpg", top=1), Classification)
        assert_type(client.infer(PIXELS[np.newaxis], timeout_s=1), BatchResult)
        assert_type(client.labels(), tuple[str, ...])
        assert_type(client.ready(timeout_s=1), bool)
        for result in client.classify_many(path for path in ("a.jpg", "b.jpg")):
            assert_type(result, Classification | ClientError)
"""

WRONG = """
from alexnet_client import BatchOptions, BlockingClient, Client

Client(8001)  # arg-type
Client(timeout="3")  # call-arg
BatchOptions(max_batch="8")  # arg-type
BlockingClient(timeout="3")  # call-arg
BlockingClient(timeout_s="3")  # arg-type
BlockingClient().classify(3)  # arg-type
BlockingClient().classify("a.jpg", 5)  # call-arg
BlockingClient().classify_many("a.jpg", size=3)  # call-arg
BlockingClient().labels().label  # attr-defined


async def wrong(client: Client) -> str:
    client.classify("a.jpg")  # unused-coroutine
    async for result in client.classify_many([3]):  # list-item
        pass
    return await client.ready()  # return-value
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory, pytestconfig):
    """The errors of mypy in both programs, from one run: [(program, line, code)]."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "right.py").write_text(RIGHT)
    (folder / "wrong.py").write_text(WRONG)
    cache = pytestconfig.cache.mkdir("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", cache, "right.py", "wrong.py"]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    found = re.findall(r"^(\S+)\.py:(\d+): error: .*\[(\S+)\]$", done.stdout, re.MULTILINE)
    assert f"Found {len(found)} errors" in done.stdout, done.stdout + done.stderr
    return [(program, int(line), code) for program, line, code in found]


def test_a_correct_program_passes_strict_checks(errors):
    assert not [each for each in errors if each[0] != "wrong"]


def test_each_mistake_is_found_at_its_line(errors):
    lines = enumerate(WRONG.splitlines(), 1)
    expected = [("wrong", number, line.partition("  # ")[2]) for number, line in lines if "  # " in line]
    assert [each for each in errors if each[0] == "wrong"] == expected
