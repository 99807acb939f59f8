"""The launcher's own health endpoint."""

from __future__ import annotations

import json
import socket
import struct
import threading
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer

import pytest

from alexnet_server import health as module
from alexnet_server.errors import LaunchError
from alexnet_server.health import Health, serving


def ask(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


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
def test_each_state_has_its_answers(free_port, state, ready, live):
    health, port = Health(), free_port()
    health.say(state=state, reason="because", restarts=2, models=("alexnet",))
    with serving(health, "127.0.0.1", port):
        code, body = ask(port, "/ready")
        assert code == ready
        assert (body["state"], body["reason"], body["restarts"], body["models"]) == (state, "because", 2, ["alexnet"])
        assert ask(port, "/live")[0] == live
        assert ask(port, "/other")[0] == 404


def test_a_launcher_that_no_longer_looks_is_neither_ready_nor_live(monkeypatch):
    health = Health()
    health.say(state="ready")
    assert (health.answer("/ready")[0], health.answer("/live")[0]) == (200, 200)
    monkeypatch.setattr(module, "STALLED_AFTER_S", 0)
    assert (health.answer("/ready")[0], health.answer("/live")[0]) == (503, 503)


def test_a_taken_port_is_told_and_none_is_allowed(free_port):
    port = free_port()
    with (
        serving(Health(), "127.0.0.1", port),
        pytest.raises(LaunchError, match=rf"port {port} \(health\).*--health-port"),
        serving(Health(), "127.0.0.1", port),
    ):
        pass
    with serving(Health(), "127.0.0.1", None):
        pass


def test_prometheus_is_told_the_same(free_port):
    health, port = Health(), free_port()
    with serving(health, "127.0.0.1", port):
        for state, ready in (("ready", 1), ("restarting", 0)):
            health.say(state=state, restarts=3)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
                lines = response.read().decode().splitlines()
            assert f"alexnet_server_ready {ready:.1f}" in lines
            assert "alexnet_server_restarts_total 3.0" in lines


def test_it_says_when_certificates_expire():
    told = Health({"ca": 4e9, "tls": 3e9}).answer("/metrics")[2].decode()
    assert 'alexnet_server_certificate_expiry_timestamp_seconds{certificate="ca"} 4e+09' in told
    assert 'alexnet_server_certificate_expiry_timestamp_seconds{certificate="tls"} 3e+09' in told


@pytest.mark.parametrize(("fault", "told"), [(None, False), (ValueError("of ours"), True)])
def test_a_prober_that_goes_away_is_not_told_and_a_fault_of_ours_is(free_port, capsys, monkeypatch, fault, told):
    health, port, gone, over = Health(), free_port(), threading.Event(), threading.Event()
    end = ThreadingHTTPServer.shutdown_request
    monkeypatch.setattr(ThreadingHTTPServer, "shutdown_request", lambda *each: (end(*each), over.set()))

    def answer(path):
        assert gone.wait(10)
        if fault is not None:
            raise fault
        return 200, "text/plain", b"late" * 1_000_000

    monkeypatch.setattr(health, "answer", answer)
    with serving(health, "127.0.0.1", port):
        with socket.create_connection(("127.0.0.1", port)) as prober:
            prober.sendall(b"GET /ready HTTP/1.1\r\n\r\n")
            prober.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )  # a reset, not an orderly end
        gone.set()
        assert over.wait(10)
    assert ("Traceback" in capsys.readouterr().err) is told
