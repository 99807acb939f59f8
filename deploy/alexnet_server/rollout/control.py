"""Triton's explicit model control, through the restricted channel of a server that this user's launcher runs here."""

from __future__ import annotations

import asyncio

from tritonclient.grpc import service_pb2

from alexnet_client.deadline import Deadline
from alexnet_client.registration import LocalTransport

LOAD_S = 120.0
"""A version may take so long to be loaded and warmed, seconds."""
POLL_S = 0.05


class ModelControl(LocalTransport):
    """Loads and unloads models of a running server; each call ends when that is done."""

    async def load(self, model: str) -> None:
        """Load a model as its configuration says, or again: what serves goes on serving until the new version is ready.

        Raises:
            ClientError: the model cannot be loaded, or the server takes no such orders.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        await self.administer(self._stub.RepositoryModelLoad, request, Deadline.after(LOAD_S))

    async def unload(self, model: str) -> None:
        """Unload a model; requests in flight are answered first.

        Raises:
            ClientError: the server does not answer, or takes no such orders.
        """
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        await self.administer(self._stub.RepositoryModelUnload, request, Deadline.after(LOAD_S))

    async def versions(self, model: str) -> set[int]:
        """Versions of a model that are ready.

        Raises:
            ClientError: the server does not answer, or takes no such orders.
        """
        request = service_pb2.RepositoryIndexRequest(ready=True)
        found = await self.administer(self._stub.RepositoryIndex, request, Deadline.after(10))
        return {int(each.version) for each in found.models if each.name == model and each.state == "READY"}

    async def wait_for(self, model: str, version: int) -> None:
        """Return when that version alone is ready.

        Raises:
            DeadlineExceeded: it is not, though Triton says that it has loaded the model.
            ClientError: the server does not answer.
        """
        async with Deadline.after(LOAD_S).over(f"waiting for version {version} of {model} alone to be ready"):
            while await self.versions(model) != {version}:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)  # Triton tells nobody when it has unloaded a version
