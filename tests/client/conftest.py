"""A scripted server for each test that asks for one."""

from __future__ import annotations

import pytest

from alexnet_client.fake import FakeServer

LABELS = ("cat", "dog", "bird: small")


@pytest.fixture
async def scripted():
    """(server, target) of a scripted server in the test's own event loop."""
    async with FakeServer(labels=LABELS) as server:
        yield server, server.target


@pytest.fixture
def scripted_elsewhere():
    """(server, target) of a scripted server on a thread of its own, for what waits or runs its own event loop."""
    with FakeServer(labels=LABELS).in_thread() as server:
        yield server, server.target
