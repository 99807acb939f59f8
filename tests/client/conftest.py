"""Fake servers for the tests of the client."""

from __future__ import annotations

import numpy as np
import pytest

from alexnet_client.fake import FakeServer

LABELS = ("cat", "dog", "bird: small")


@pytest.fixture
async def server():
    """A fake server in the event loop of the test."""
    async with FakeServer(labels=LABELS) as server:
        yield server


@pytest.fixture
def threaded_server():
    """A fake server on its own thread, for blocking code and for code that runs its own event loop."""
    with FakeServer(labels=LABELS).in_thread() as server:
        yield server


@pytest.fixture(scope="session")
def image():
    """Creates the pixels of an image; the fake server classifies it by ``kind``."""

    def create(kind: int) -> np.ndarray:
        return np.full((224, 224, 3), kind, np.uint8)

    return create
