"""The administration key's file."""

from __future__ import annotations

import pytest

from alexnet_client.admin import admin_metadata, key_file
from alexnet_client.errors import BadInput


def test_the_key_of_a_server_becomes_the_header_triton_asks_for(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = key_file("127.0.0.1:8001")
    assert path == tmp_path / "alexnet-serving/127.0.0.1-8001.key"
    path.parent.mkdir()
    path.write_text("s3cret\n")
    assert admin_metadata("127.0.0.1:8001") == (("triton-grpc-protocol-admin", "s3cret"),)


def test_without_a_runtime_directory_it_lies_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert key_file("127.0.0.1:1") == tmp_path / "alexnet-serving/run/127.0.0.1-1.key"


def test_no_key_says_where_it_was_looked_for_and_when_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(
        BadInput, match=r"127\.0\.0\.1-8001\.key \(no such file.*`alexnet-server serve` of the same user"
    ):
        admin_metadata("127.0.0.1:8001")
