"""A V2 inference server for the tests of what uses the client: ``FakeServer`` and its script."""

from alexnet_client.fake.script import Received, Step
from alexnet_client.fake.server import FakeServer

__all__ = ["FakeServer", "Received", "Step"]
