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
    found = json.loads(body)
    assert found.pop("last_check_age_s") >= 0
    assert found == {"state": state, "reason": "because", "restarts": 2, "models": ["alexnet"]}
    assert (code, health.respond("/live")[0]) == (ready, live)
    metrics = health.respond("/metrics")[2].decode().splitlines()
    assert f"alexnet_server_ready {float(ready == 200)}" in metrics
    assert "alexnet_server_restarts_total 2.0" in metrics


def test_a_launcher_that_no_longer_checks_its_server_is_neither_ready_nor_live():
    health = Health(stalled_after_s=0)
    health.update(state="ready")
    assert (health.respond("/ready")[0], health.respond("/live")[0]) == (503, 503)


def test_the_metrics_contain_the_expiry_of_certificates():
    metrics = Health({"ca": 4e9, "tls": 3e9}).respond("/metrics")[2].decode()
    for name, expiry in (("ca", "4e+09"), ("tls", "3e+09")):
        assert f'alexnet_server_certificate_expiry_timestamp_seconds{{certificate="{name}"}} {expiry}' in metrics


def test_the_endpoint_serves_the_paths_over_http(free_port):
    url = f"http://127.0.0.1:{(port := free_port())}"
    with health_endpoint(Health(), "127.0.0.1", port):
        with urllib.request.urlopen(f"{url}/live") as response:
            assert json.load(response)["state"] == "starting"
        with pytest.raises(urllib.error.HTTPError, match="404") as raised:
            urllib.request.urlopen(f"{url}/other")
        raised.value.close()


def test_a_port_in_use_is_reported_and_the_endpoint_can_be_disabled(free_port):
    port = free_port()
    with health_endpoint(Health(), "127.0.0.1", port), health_endpoint(Health(), "127.0.0.1", None):
        second = health_endpoint(Health(), "127.0.0.1", port)
        with pytest.raises(LaunchError, match=rf"port {port} \(health\).*--health-port"), second:
            pass


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
