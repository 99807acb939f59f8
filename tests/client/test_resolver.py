"""Addresses of the servers: lists and DNS names."""

from __future__ import annotations

import asyncio

import pytest

from alexnet_client.errors import BadInput, Unavailable
from alexnet_client.resolver import parse_targets


async def test_a_list_contains_its_addresses_and_a_name_is_looked_up():
    assert await parse_targets("a:1, b:2").resolve() == ["a:1", "b:2"]
    assert await parse_targets("[::1]:8001").resolve() == ["[::1]:8001"]
    assert "127.0.0.1:8001" in await parse_targets("dns:///localhost:8001").resolve()


async def test_each_address_of_a_name_is_a_replica(monkeypatch):
    async def lookup(host, port, *, type):  # noqa: A002  the name is asyncio's
        assert (host, port) == ("triton", 8001)
        return [(0, 0, 0, "", (address, port)) for address in ("10.0.0.2", "10.0.0.1", "fd00::1", "10.0.0.2")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    assert await parse_targets("dns:///triton:8001").resolve() == ["10.0.0.1:8001", "10.0.0.2:8001", "[fd00::1]:8001"]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", 64 * "a" + ".example"])
async def test_a_name_without_an_address_is_unavailable(host):
    with pytest.raises(Unavailable, match="the name has no address"):
        await parse_targets(f"dns:///{host}:8001").resolve()


@pytest.mark.parametrize(
    "wrong", ["", "host", "host:0", "host:99999", ":1", "a:1,,b:1", "http://a:1", "dns:///a", "a:1,a:1"]
)
def test_other_texts_and_repeated_addresses_are_rejected(wrong):
    with pytest.raises(BadInput, match=r"not an address of the form host:port|contains an address twice"):
        parse_targets(wrong)
