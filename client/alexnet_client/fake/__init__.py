"""A fake V2 inference server for tests of programs that use the client."""

from alexnet_client.fake.script import Received, Step
from alexnet_client.fake.server import FakeServer

__all__ = ["FakeServer", "Received", "Step"]
