"""A real Prometheus scrapes a real Triton and a client under load: each fault fires its alert, and no other alert pages.

The windows of the committed rules are 30 times shorter here.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import yaml
from servers import receiver, with_small_queue
from tritonclient.grpc import service_pb2_grpc
from waiting import wait_until

from alexnet_client.codec import encode_request
from alexnet_load.run_file import read_run
from alexnet_server.monitoring.panels import RELEASES, ROWS
from alexnet_server.monitoring.prometheus import MonitorOptions, monitoring
from alexnet_server.monitoring.slo import duration, slo_rules

SCALE = 1 / 30
SCRAPE = "200ms"
WINDOW_S = 5
UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
COMMITTED = Path(__file__).parents[2] / "deploy/prometheus"
PAGES = {"AllServersDown", "AvailabilityBudgetBurn", "LatencyBudgetBurn", "CertificateExpiring"}
BUDGETS = {"AvailabilityBudgetBurn", "LatencyBudgetBurn"}
"""These may page during every fault, and their windows contain the faults before it."""
ELSEWHERE = re.compile(r"nv_gpu_|nv_energy_|instance:triton_gpu|alexnet_(client|server)_certificate_expiry")
"""Metrics that exist only on hosts with a GPU, or with TLS (test_tls.py)."""
BROWSER = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (apt-get install prometheus)"
)


def shortened(text: str) -> str:
    """A rule or a query with scaled windows, offsets and ``for`` durations."""

    def scaled(found: re.Match[str]) -> str:
        return found[1] + duration(int(found[2]) * UNITS_S[found[3]] * SCALE) + found[4]

    return re.sub(r"(\[|offset |for: )(\d+)(ms|[smhd])(\]|\b)", scaled, text)


def configuration(directory: Path, targets: dict[str, list[int]], receiver_port: int) -> Path:
    """The committed configuration with shorter intervals and other ports."""
    shutil.copytree(COMMITTED, directory)
    path = directory / "prometheus.yml"
    config = yaml.safe_load(path.read_text())
    config["global"] = {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": "250ms"}
    path.write_text(yaml.safe_dump(config))
    for name in ("recording", "causes"):
        rules = directory / f"rules/{name}.yml"
        rules.write_text(shortened(rules.read_text()))
    (directory / "rules/slo.yml").write_text(yaml.safe_dump(slo_rules(scale=SCALE)))
    for name, ports in targets.items():
        write_targets(directory / f"targets/{name}.yml", ports)
    routes = directory / "alertmanager.yml"
    shorter = re.sub(r"(group_(?:wait|interval): )\w+", r"\g<1>200ms", routes.read_text())
    routes.write_text(shorter.replace("127.0.0.1:9094", f"127.0.0.1:{receiver_port}"))
    return directory


def write_targets(path: Path, ports: list[int]) -> None:
    path.write_text(yaml.safe_dump([{"targets": [f"127.0.0.1:{port}" for port in ports]}]))


@dataclass
class Prometheus:
    """A running Prometheus, and the changes of its alerts as (name, state) in their order."""

    url: str
    changes: list[tuple[str, str]] = field(default_factory=list)
    active: dict[str, str] = field(default_factory=dict)

    def get(self, path: str, **parameters: object):
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as response:
            return json.load(response)["data"]

    def query(self, expr: str, **parameters: object) -> list[dict]:
        return self.get("query", query=expr, **parameters)["result"]

    def update(self) -> None:
        """Record the alerts that changed. The tickets of a budget have the same name as its pages and are ignored."""
        active: dict[str, str] = {}
        for each in self.get("alerts")["alerts"]:
            name, severity = each["labels"]["alertname"], each["labels"]["severity"]
            if (severity == "page" or name not in PAGES) and active.get(name) != "firing":
                active[name] = each["state"]
        self.changes += [(name, state) for name, state in sorted(active.items()) if self.active.get(name) != state]
        self.active = active

    def wait_for_alert(self, alert: str, *, pages: set[str] = frozenset()) -> None:
        """Wait until an alert is pending and then fires. Of the other alerts that page, only ``pages`` may have fired."""

        def fires() -> bool:
            self.update()
            return (alert, "firing") in self.changes

        wait_until(fires, f"{alert} fires", every_s=0.1)
        assert self.changes.index((alert, "pending")) < self.changes.index((alert, "firing"))
        fired = {name for name, state in self.changes if state == "firing"}
        assert fired & PAGES <= pages | {alert}, self.changes
        self.changes.clear()

    def wait_until_nothing_is_active(self) -> None:
        def is_quiet() -> bool:
            self.update()
            return not self.active

        wait_until(is_quiet, "no alert is active", every_s=0.1)
        self.changes.clear()


@contextmanager
def load_tester(target: str, port: int, output: Path, *options: str) -> Iterator[None]:
    """The load tester as a process, which is interrupted at the end and then writes its records."""
    command = [sys.executable, "-m", "alexnet_load", "run", "--target", target, "--metrics-port", str(port), "--json"]
    with subprocess.Popen([*command, "-o", str(output), *options], stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(30)


@pytest.mark.slow
def test_each_fault_fires_its_alert_and_every_panel_has_data(launch, cheap, free_port, tmp_path):
    client_port, flood_port, port, alertmanager_port = (free_port() for _ in range(4))
    notifications: list[tuple[str, str]] = []

    def on_post(path: str, content_type: str, body: bytes) -> None:
        notifications.extend((path, each["labels"]["alertname"]) for each in json.loads(body)["alerts"])

    repository = with_small_queue(cheap.repository, tmp_path, 16)
    with launch(repository, "--config-name", "bounded") as server, receiver(on_post) as receiver_port:
        targets = {
            "triton": [server.metrics_port],
            "launcher": [server.health_port],
            "client": [client_port],
            "prometheus": [port],
            "alertmanager": [alertmanager_port],
        }
        options = MonitorOptions(
            configuration(tmp_path / "prometheus", targets, receiver_port), tmp_path / "data", port, alertmanager_port
        )
        load = ("--arrivals", "constant:100", "--duration", "600", "--timeout", "3")
        with monitoring(options), load_tester(server.target, client_port, tmp_path / "load", *load):
            prometheus = Prometheus(options.url)
            wait_until(lambda: prometheus.query('alexnet_client_calls_total{outcome="ok"} > 1000'), "1000 calls")
            checked_s = time.time()
            prometheus.wait_until_nothing_is_active()
            check_that_every_query_has_data(prometheus)
            if BROWSER is not None:
                check_the_status_page(options.status_url, tmp_path)
            with stuttering(backends(server)):
                prometheus.wait_for_alert("LatencyBudgetBurn")
                with flood(server, [client_port, flood_port], options.configuration, tmp_path):
                    prometheus.wait_for_alert("RequestsRejected", pages=BUDGETS)
            with dead_backend(server):
                prometheus.wait_for_alert("BackendDead", pages=BUDGETS)
            wait_until(lambda: server.health()[0] == 200, "the launcher restarts Triton")
            wait_until(lambda: prometheus.query('ALERTS{alertname="ServerRestarted"}'), "ServerRestarted fires")
            prometheus.changes.clear()
            server.process.send_signal(signal.SIGTERM)
            prometheus.wait_for_alert("AllServersDown", pages=BUDGETS)
            assert server.process.wait(30) == 0
            check_notifications(notifications)
            rates = {
                counter: [rate(prometheus, counter, checked_s - earlier_s) for earlier_s in (0.0, 0.5, 1.0, 1.5, 2.0)]
                for counter in ('alexnet_client_calls_total{outcome="ok"}', 'nv_inference_count{model="alexnet"}')
            }
        check_that_the_load_tester_agrees(rates, tmp_path / "load/run.jsonl.gz")


def check_that_every_query_has_data(prometheus: Prometheus) -> None:
    """Every query of every panel has data, and every metric in a rule exists."""
    queries = [(panel, query) for panels in ROWS.values() for panel in panels for query in panel.queries]
    for panel, query in queries:
        if not panel.gpu:
            assert prometheus.query(shortened(query.expr)), f"{panel.title}: {query.expr} has no data"
    known = set(prometheus.get("label/__name__/values"))
    texts = [json.dumps(yaml.safe_load(path.read_text())) for path in (COMMITTED / "rules").glob("*.yml")]
    texts += [query.expr for _, query in queries] + [RELEASES.expr]
    names = set(re.findall(r"\b(?:nv_|alexnet_|prometheus_|[a-z_]+:[a-z_]+:)[a-z0-9_:]+\b", " ".join(texts)))
    assert len(names) > 50
    assert {name for name in names - known if not ELSEWHERE.match(name)} == set()
    # Both sides are from the same scrape, but the backend reports an execution shortly after Triton counts it.
    for ours, tritons in (("count", "exec_count"), ("sum", "count")):
        (share,) = prometheus.query(f"alexnet_backend_batch_images_{ours} / on (model) nv_inference_{tritons}")
        assert float(share["value"][1]) == pytest.approx(1, abs=0.01)


def check_the_status_page(url: str, tmp_path: Path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}/browser"]
    command = [BROWSER, *options, "--virtual-time-budget=4000", "--dump-dom", url]

    page = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    body = page.split("<script")[0]
    assert "No active alerts." in body or 'class="alert pending"' in body  # for a moment: the windows are short
    main = [panel for panels in ROWS.values() for panel in panels if panel.main]
    assert body.count("<figure>") == len(main)
    assert body.count("<svg") == sum(panel.kind == "timeseries" for panel in main)
    assert "Prometheus is unavailable" not in body
    assert re.search(r"p99: [\d.]+ (ms|s|µs)", body)


@contextmanager
def background(action, *, pause_s: float, threads: int = 1) -> Iterator[None]:
    """Repeat an action in threads during the block."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(pause_s):
            action()

    running = [threading.Thread(target=repeat) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in running:
            thread.join()


def backends(server) -> list[psutil.Process]:
    """The backend processes of alexnet, one for each instance."""
    return [each for each in server.stubs() if "/alexnet/" in each.cmdline()[1]]


@contextmanager
def stuttering(processes: list[psutil.Process]) -> Iterator[None]:
    """Stop processes most of the time."""

    def stop_for_a_moment() -> None:
        for each in processes:
            each.suspend()
        time.sleep(0.8)
        for each in processes:
            each.resume()

    with background(stop_for_a_moment, pause_s=0.1):
        yield


@contextmanager
def flood(server, ports: list[int], configured: Path, tmp_path: Path) -> Iterator[None]:
    """A second client, whose metrics are scraped too.

    While the backend processes are stopped, it sends more requests than their batches (64) and the queue (16) hold.
    """
    client, flooding = ports
    write_targets(configured / "targets/client.yml", ports)
    options = ("--arrivals", "constant:250", "--no-batching", "--duration", "600", "--timeout", "3")
    with load_tester(server.target, flooding, tmp_path / "flood", *options):
        yield
    write_targets(configured / "targets/client.yml", [client])


@contextmanager
def dead_backend(server) -> Iterator[None]:
    """A killed backend process under a stopped launcher: Triton reports that it is ready, and all requests fail.

    The callers send requests without a pause, because our client ejects a failing server for seconds.
    """
    request = encode_request("alexnet", {"image": np.zeros((1, 224, 224, 3), np.uint8)}, ("logits",))
    server.process.send_signal(signal.SIGSTOP)
    try:
        for each in backends(server):
            each.kill()
        with grpc.insecure_channel(server.target) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

            def call() -> None:
                with suppress(grpc.RpcError):
                    stub.ModelInfer(request, timeout=5)

            with background(call, pause_s=0.05, threads=4):
                yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def check_notifications(notifications: list[tuple[str, str]]) -> None:
    """The Alertmanager sends pages and tickets to different receivers, and suppresses what follows from a page."""
    expected = {("/ticket", "BackendDead"), ("/ticket", "RequestsRejected"), ("/page", "LatencyBudgetBurn")}
    wait_until(lambda: ("/page", "AllServersDown") in notifications, "the page is sent")
    assert expected <= set(notifications)
    assert all((path == "/page") == (name in PAGES) for path, name in notifications if name not in BUDGETS)


def rate(prometheus: Prometheus, counter: str, at_s: float) -> tuple[float, float, float]:
    """The rate of a counter, and the times of the first and the last scrape in its window."""
    (value,) = prometheus.query(f"rate({counter}[{WINDOW_S}s])", time=at_s)
    (scraped,) = prometheus.query(f"{counter}[{WINDOW_S}s]", time=at_s)
    return float(value["value"][1]), float(scraped["values"][0][0]), float(scraped["values"][-1][0])


def check_that_the_load_tester_agrees(rates: Mapping[str, Sequence[tuple[float, float, float]]], path: Path) -> None:
    """The load tester counted as many calls between the scrapes. The median tolerates a delayed scrape."""
    run = read_run(path)
    began_s = datetime.fromisoformat(run.started).timestamp()
    ended_s = run.records.ended_s[run.records.outcome == 0] + began_s
    for counter, of_counter in rates.items():
        ratios = [
            per_s * (last_s - first_s) / np.count_nonzero((ended_s > first_s) & (ended_s <= last_s))
            for per_s, first_s, last_s in of_counter
        ]
        assert np.median(ratios) == pytest.approx(1, abs=0.01), (counter, ratios)
