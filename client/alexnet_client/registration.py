"""A server's administrative calls about shared memory: map this file, forget it, which do you have. Makes no files."""

from __future__ import annotations

import ipaddress
from typing import Any

from tritonclient.grpc import service_pb2

from alexnet_client.admin import admin_metadata
from alexnet_client.connection import Connection
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, ServerFault
from alexnet_client.transport import Transport


def check_local(address: str) -> str:
    """The name under which a launcher on this machine leaves the key of its server at ``address`` (host:port).

    Raises:
        BadInput: the address may be another machine's.
    """
    host, _, port = address.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise BadInput(
            f"{address}: shared memory and administration work with servers on this machine, each by its loopback address "
            "(127.0.0.1:8001); connect to others without"
        )
    return f"{host}:{port}"


class LocalTransport(Transport):
    """A server on this machine that this user's launcher started, with its administrative calls.

    Args:
        target: host:port.
        connection: how it is reached.

    Raises:
        BadInput: the target may be another machine's.
    """

    def __init__(self, target: str, connection: Connection | None = None) -> None:
        self._key_name = check_local(target)
        super().__init__(target, connection)

    async def administer(self, method: Any, request: Any, deadline: Deadline) -> Any:
        """Make an administrative call. The key is read each time: the launcher makes a new one at each start.

        Raises:
            BadInput: there is no key, or it is wrong.
            ClientError: the server does not answer, or refuses.
        """
        return await self._call(method, request, deadline, admin_metadata(self._key_name))


class RegisteringTransport(LocalTransport):
    """Shared memory of a server on this machine."""

    async def register(self, name: str, size: int, deadline: Deadline) -> None:
        """Have the server map all ``size`` bytes of a file in /dev/shm, and know it by the file's name.

        Raises:
            BadInput: there is no key, it is wrong, or the server sees another /dev/shm.
            ClientError: the server does not answer.
        """
        request = service_pb2.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", byte_size=size)
        try:
            await self.administer(self._stub.SystemSharedMemoryRegister, request, deadline)
        except ServerFault as error:
            raise BadInput(
                f"{self.target}: the server cannot open this machine's shared memory, so it runs elsewhere (in a container, "
                f"behind a forwarded port); connect to it without shared_memory ({error})"
            ) from None

    async def unregister(self, name: str, deadline: Deadline) -> bool:
        """Whether the server does not know the region any more. Triton 2.51 refuses as long as a request uses it.

        Raises:
            ClientError: the server does not answer, or wants another key.
        """
        assert name, "Triton takes the empty name for all regions, also those of others"
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
        try:
            await self.administer(self._stub.SystemSharedMemoryUnregister, request, deadline)
        except ServerFault:
            return False
        return True

    async def registered(self, deadline: Deadline) -> list[str]:
        """Names of the regions it knows, of all clients.

        Raises:
            ClientError: the server does not answer, or wants another key.
        """
        request = service_pb2.SystemSharedMemoryStatusRequest()
        return list((await self.administer(self._stub.SystemSharedMemoryStatus, request, deadline)).regions)
