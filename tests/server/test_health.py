"""The launcher's health endpoint."""

from __future__ import annotations

import json
import socket
import struct
import threading
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer

import pytest

from alexnet_server.errors import LaunchError
from alexnet_server.health import Health, health_endpoint


def get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("state", "ready", "live"),
    [
        ("starting", 503, 200),
        ("ready", 200, 200),
        ("unready", 503, 200),
        ("restarting", 503, 200),
        ("stopping", 503, 200),
        ("failed", 503, 503),
    ],
)
def test_each_state_has_its_status_codes(state, ready, live):
    health = Health()
    health.update(state=state, reason="because", restarts=2, models=("alexnet",))
    code, _, body = health.respond("/ready")
    assert code == ready
    found = json.loads(body)
    assert found.pop("last_check_age_s") >= 0
    assert found == {"state": state, "reason": "because", "restarts": 2, "models": ["alexnet"]}
    assert health.respond("/live")[0] == live
    metrics = health.respond("/metrics")[2].decode().splitlines()
    assert f"alexnet_server_ready {float(ready == 200)}" in metrics
    assert "alexnet_server_restarts_total 2.0" in metrics


def test_a_launcher_that_no_longer_checks_its_server_is_neither_ready_nor_live():
    health = Health(stalled_after_s=0)
    health.update(state="ready")
    assert (health.respond("/ready")[0], health.respond("/live")[0]) == (503, 503)


def test_the_endpoint_serves_the_paths_over_http(free_port):
    health, port = Health(), free_port()
    health.update(state="ready")
    with health_endpoint(health, "127.0.0.1", port):
        assert json.loads(get(port, "/ready")[1])["state"] == "ready"
        assert "alexnet_server_ready 1.0" in get(port, "/metrics")[1]
        assert get(port, "/other")[0] == 404


def test_a_port_in_use_is_reported_and_the_endpoint_can_be_disabled(free_port):
    port = free_port()
    with (
        health_endpoint(Health(), "127.0.0.1", port),
        pytest.raises(LaunchError, match=rf"port {port} \(health\).*--health-port"),
        health_endpoint(Health(), "127.0.0.1", port),
    ):
        pass
    with health_endpoint(Health(), "127.0.0.1", None):
        pass


def test_the_metrics_contain_the_expiry_of_certificates():
    metrics = Health({"ca": 4e9, "tls": 3e9}).respond("/metrics")[2].decode()
    assert 'alexnet_server_certificate_expiry_timestamp_seconds{certificate="ca"} 4e+09' in metrics
    assert 'alexnet_server_certificate_expiry_timestamp_seconds{certificate="tls"} 3e+09' in metrics


@pytest.mark.parametrize(("error", "logged"), [(None, False), (ValueError("a bug"), True)])
def test_a_client_that_disconnects_is_ignored_but_a_bug_is_logged(free_port, capsys, monkeypatch, error, logged):
    health, port, disconnected, handled = Health(), free_port(), threading.Event(), threading.Event()
    end = ThreadingHTTPServer.shutdown_request
    monkeypatch.setattr(ThreadingHTTPServer, "shutdown_request", lambda *each: (end(*each), handled.set()))

    def respond(path):
        assert disconnected.wait(60)
        if error is not None:
            raise error
        return 200, "text/plain", b"late" * 1_000_000

    monkeypatch.setattr(health, "respond", respond)
    with health_endpoint(health, "127.0.0.1", port):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /ready HTTP/1.1\r\n\r\n")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
        disconnected.set()
        assert handled.wait(60)
    assert ("Traceback" in capsys.readouterr().err) is logged
