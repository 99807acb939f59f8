"""``alexnet-server monitor``: what it says when it cannot watch."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from alexnet_server.errors import LaunchError
from alexnet_server.monitoring.prometheus import MonitorOptions, monitoring

COMMITTED = Path(__file__).parents[2] / "deploy/prometheus"
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (apt-get install prometheus)"
)


def start(options):
    with monitoring(options):
        pytest.fail("it started")


def test_without_prometheus_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match=r"no such program.*apt-get install --no-install-recommends prometheus"):
        start(MonitorOptions(COMMITTED, tmp_path))


@needs_prometheus
def test_a_directory_without_a_configuration_is_named(tmp_path):
    with pytest.raises(LaunchError, match=r"prometheus\.yml: no such file; name its directory with --configuration"):
        start(MonitorOptions(tmp_path, tmp_path / "data"))


@needs_prometheus
def test_a_taken_port_is_told_with_the_packages_own_service_in_mind(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        says = rf"port {port} \(Prometheus\): in use by .*systemctl disable --now prometheus.*--port"
        with pytest.raises(LaunchError, match=says):
            start(MonitorOptions(COMMITTED, tmp_path, port))


@needs_prometheus
def test_a_place_that_cannot_be_written_is_named(tmp_path, free_port):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(LaunchError, match=r"data: cannot be written .*--data"):
        start(MonitorOptions(COMMITTED, tmp_path / "data", free_port(), free_port()))


@needs_prometheus
def test_what_prometheus_refuses_is_told_in_its_own_words(tmp_path, free_port):
    shutil.copytree(COMMITTED, tmp_path / "configuration")
    (tmp_path / "configuration/rules/broken.yml").write_text(
        "groups: [{name: broken, rules: [{record: a, expr: '('}]}]\n"
    )
    with pytest.raises(LaunchError, match=r"(?s)no answer\n.*broken\.yml.*\n  the whole log: .*prometheus\.log"):
        start(MonitorOptions(tmp_path / "configuration", tmp_path / "data", free_port(), free_port()))
