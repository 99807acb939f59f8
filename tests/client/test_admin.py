"""The administration key of a local server."""

from __future__ import annotations

import pytest

from alexnet_client import BadInput, Client
from alexnet_client.admin import admin_metadata, key_file, loopback_address


def test_the_key_of_the_launcher_is_sent_in_the_header_that_triton_expects(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = key_file("127.0.0.1:8001")
    assert path == tmp_path / "alexnet-serving/127.0.0.1-8001.key"
    with pytest.raises(BadInput, match=r"8001\.key \(no such file.*`alexnet-server serve` of the same user"):
        admin_metadata("127.0.0.1:8001")
    path.parent.mkdir()
    path.write_text("s3cret\n")
    assert admin_metadata("127.0.0.1:8001") == (("triton-grpc-protocol-admin", "s3cret"),)


def test_without_a_runtime_directory_the_key_is_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert key_file("127.0.0.1:1") == tmp_path / "alexnet-serving/run/127.0.0.1-1.key"


@pytest.mark.parametrize(("address", "name"), [("localhost:1", "127.0.0.1:1"), ("[::1]:1", "::1:1")])
def test_the_key_belongs_to_the_loopback_address(address, name):
    assert loopback_address(address) == name


@pytest.mark.parametrize("address", ["10.0.0.1:8001", "example.org:8001", "0.0.0.0:8001"])
def test_a_client_with_shared_memory_rejects_addresses_that_may_be_remote(address):
    with pytest.raises(BadInput, match="shared memory requires a server on this machine"):
        Client(f"127.0.0.1:1,{address}", shared_memory=True)
