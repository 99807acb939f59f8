"""``alexnet-server monitor``: errors when Prometheus cannot start."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from alexnet_client.errors import BadInput
from alexnet_server.errors import LaunchError
from alexnet_server.monitoring.prometheus import MonitorOptions, monitoring

CONFIGURATION = Path(__file__).parents[2] / "deploy/prometheus"
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (apt-get install prometheus)"
)


def start(*options):
    with monitoring(MonitorOptions(*options)):
        pytest.fail("Prometheus started")


def test_a_missing_prometheus_is_reported_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"command not found.*apt-get install --no-install-recommends prometheus"):
        start(CONFIGURATION, tmp_path)


@needs_prometheus
def test_directories_and_ports_that_cannot_be_used_are_rejected_with_a_remedy(tmp_path, free_port):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"prometheus\.yml: no such file; choose its directory with --configuration"):
        start(tmp_path, tmp_path / "data")
    with pytest.raises(BadInput, match=r"file: cannot be written .*--data"):
        start(CONFIGURATION, tmp_path / "file", free_port(), free_port())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        expected = rf"port {port} \(Prometheus\).*systemctl disable --now prometheus.*--port"
        with pytest.raises(BadInput, match=expected):
            start(CONFIGURATION, tmp_path, port)


@needs_prometheus
def test_an_error_of_prometheus_contains_its_log(tmp_path, free_port):
    shutil.copytree(CONFIGURATION, tmp_path / "configuration")
    rules = "groups: [{name: invalid, rules: [{record: a, expr: '('}]}]\n"
    (tmp_path / "configuration/rules/invalid.yml").write_text(rules)
    with pytest.raises(LaunchError, match=r"(?s)not ready\n.*invalid\.yml.*\n  complete log: .*prometheus\.log"):
        start(tmp_path / "configuration", tmp_path / "data", free_port(), free_port())
