"""The public names in a type checker."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
from pathlib import Path
from typing import assert_type
import numpy as np
from alexnet_client import (
    BatchOptions, BatchResult, BlockingClient, Classification, Client, ClientError, Connection, RetryOptions, Tls
)
pixels = np.zeros((224, 224, 3), np.uint8)


async def asynchronous() -> str:
    connection = Connection(tls=Tls(roots=Path("ca.pem")))
    async with Client(batching=BatchOptions(max_batch=8), retries=RetryOptions(), connection=connection) as client:
        assert_type(client, Client)
        assert_type(await client.classify("a.jpg"), Classification)
        assert_type(await client.classify(b"", top=1), Classification)
        assert_type(await client.infer(pixels[np.newaxis]), BatchResult)
        async for result in client.classify_many([pixels], window=8, return_errors=True):
            assert_type(result, Classification | ClientError)
        client.classify("a.jpg")  # unused-coroutine
        client.classify_many([3])  # list-item
        return await client.ready()  # return-value


def blocking() -> None:
    with BlockingClient("127.0.0.1:8001", timeout_s=3, batching=BatchOptions(max_batch=8)) as client:
        assert_type(client, BlockingClient)
        assert_type(client.classify("a.jpg", top=1), Classification)
        assert_type(client.infer(pixels[np.newaxis], timeout_s=1), BatchResult)
        assert_type(client.labels(), tuple[str, ...])
        assert_type(client.ready(timeout_s=1), bool)
        for result in client.classify_many(path for path in ("a.jpg", "b.jpg")):
            assert_type(result, Classification | ClientError)
        client.classify(3)  # arg-type
        client.classify("a.jpg", 5)  # call-arg
        client.classify_many("a.jpg", size=3)  # call-arg


Client(8001)  # arg-type
Client(timeout="3")  # call-arg
BatchOptions(max_batch="8")  # arg-type
BlockingClient(timeout="3")  # call-arg
BlockingClient(timeout_s="3")  # arg-type
"""


def test_mypy_accepts_correct_uses_and_finds_each_mistake_at_its_line(tmp_path, pytestconfig):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", pytestconfig.cache.mkdir("mypy"), "program.py"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    found = re.findall(r"^program\.py:(\d+): error: .*\[(\S+)\]$", done.stdout, re.MULTILINE)
    assert f"Found {len(found)} errors" in done.stdout, done.stdout + done.stderr
    lines = enumerate(PROGRAM.splitlines(), 1)
    assert found == [(str(number), line.partition("  # ")[2]) for number, line in lines if "  # " in line]
