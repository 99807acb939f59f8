"""A real Prometheus over a real Triton and a client under load: what goes wrong is told, and nothing else pages anybody.

All durations are those of the committed rules, 30 times shorter.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml
from tritonclient.grpc import service_pb2_grpc

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
"""May page with whatever else goes wrong: that is what they are for. They remember what went wrong before, too."""
ELSEWHERE = re.compile(r"nv_gpu_|nv_energy_|instance:triton_gpu|alexnet_(client|server)_certificate_expiry")
"""Metrics that only hosts with a GPU have, and whoever uses TLS (test_tls.py)."""
BROWSER = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (apt-get install prometheus)"
)


def shortened(text: str) -> str:
    """A rule or a query whose windows, offsets and waits are ``SCALE`` times as long."""

    def scaled(found: re.Match[str]) -> str:
        return found[1] + duration(int(found[2]) * UNITS_S[found[3]] * SCALE) + found[4]

    return re.sub(r"(\[|offset |for: )(\d+)(ms|[smhd])(\]|\b)", scaled, text)


def configuration(directory: Path, targets: dict[str, list[int]], receiver: int) -> Path:
    """The committed one, quicker, for other ports."""
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
        content = [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
        (directory / f"targets/{name}.yml").write_text(yaml.safe_dump(content))
    routes = directory / "alertmanager.yml"
    quicker = re.sub(r"(group_(?:wait|interval): )\w+", r"\g<1>200ms", routes.read_text())
    routes.write_text(quicker.replace("127.0.0.1:9094", f"127.0.0.1:{receiver}"))
    return directory


@contextmanager
def receiving() -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """A receiver of the Alertmanager's notifications: its port, and what it was told, as (path, alert)."""
    told: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name is http.server's
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told.extend((self.path, each["labels"]["alertname"]) for each in content["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """No news."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Watched:
    """Prometheus, what it watches, and the alerts seen so far, as (name, state) in the order of their coming."""

    url: str
    server: object
    seen: list[tuple[str, str]] = field(default_factory=list)
    active: dict[str, str] = field(default_factory=dict)

    def ask(self, path: str, **parameters: object):
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as response:
            return json.load(response)["data"]

    def query(self, expr: str, **parameters: object) -> list[dict]:
        return self.ask("query", query=expr, **parameters)["result"]

    def look(self) -> None:
        """Note what has changed."""
        active = [(each["labels"], each["state"]) for each in self.ask("alerts")["alerts"]]
        # A burning budget has several alerts by one name: of its pages, the one that has come furthest is looked at.
        now = {labels["alertname"]: "pending" for labels, _ in active if is_of_interest(labels)}
        now |= {labels["alertname"]: state for labels, state in active if is_of_interest(labels) and state == "firing"}
        for name in sorted(now):
            if self.active.get(name) != now[name]:
                self.seen.append((name, now[name]))
        self.active = now

    def until(self, condition: Callable[[], bool], seconds: float = 25) -> None:
        give_up_s = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up_s, f"seen {self.seen}, active {self.active}"
            time.sleep(0.05)
            self.look()

    def told(self, alert: str, *, pages: set[str]) -> None:
        """Wait until an alert fires; it must have been pending before, and nothing else may have begun to page."""
        self.until(lambda: (alert, "firing") in self.seen)
        assert self.seen.index((alert, "pending")) < self.seen.index((alert, "firing"))
        fired = {name for name, state in self.seen if state == "firing"}
        assert fired & PAGES <= pages | {alert}, self.seen
        self.seen.clear()


def is_of_interest(labels: dict[str, str]) -> bool:
    return labels["severity"] == "page" or labels["alertname"] not in PAGES


@contextmanager
def loading(target: str, port: int, output: Path, *options: str) -> Iterator[subprocess.Popen]:
    """The load tester as a process; it ends with its result when it is told to."""
    command = [sys.executable, "-m", "alexnet_load", "run", "--target", target, "--metrics-port", str(port), "--json"]
    with subprocess.Popen([*command, "-o", str(output), *options], stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(30)


@pytest.fixture
def bounded(cheap, tmp_path) -> Path:
    """The cheap release with a queue that can be filled."""
    copy = tmp_path / "repository"
    shutil.copytree(cheap.repository, copy, ignore=shutil.ignore_patterns(".*"))
    config = copy / "alexnet/configs/bounded.pbtxt"
    config.write_text(re.sub(r"max_queue_size: \d+", "max_queue_size: 64", config.read_text()))
    return copy


def test_each_fault_is_told_by_its_alert_and_every_panel_shows_data(own_server, bounded, free_port, tmp_path):
    client_port, flood_port, port, alertmanager_port = (free_port() for _ in range(4))
    with (
        own_server("--config-name", "bounded", repository=bounded) as server,
        receiving() as (receiver, notified),
    ):
        targets = {
            "triton": [server.metrics_port],
            "launcher": [server.health_port],
            "client": [client_port],
            "prometheus": [port],
            "alertmanager": [alertmanager_port],
        }
        options = MonitorOptions(
            configuration(tmp_path / "prometheus", targets, receiver), tmp_path / "data", port, alertmanager_port
        )
        load = ("--arrivals", "constant:100", "--duration", "120", "--timeout", "3")
        with monitoring(options), loading(server.target, client_port, tmp_path / "load", *load):
            watched = Watched(options.url, server)
            watched.until(lambda: bool(watched.query('alexnet_client_calls_total{outcome="ok"} > 1100')))
            checked_s = time.time()
            all_is_well(watched)
            if BROWSER is not None:
                the_page_shows_graphs(options.status_url, tmp_path)
            slow_inference(watched, server)
            a_full_queue(watched, server, flood_port, options.configuration, tmp_path)
            a_killed_backend_process(watched, server)
            a_stopped_server(watched, server)
            somebody_was_told(watched, notified)
            shown = {
                counter: [
                    shown_rate(watched, counter, checked_s - earlier_s) for earlier_s in (0.0, 0.7, 1.4, 2.1, 2.8)
                ]
                for counter in ('alexnet_client_calls_total{outcome="ok"}', 'nv_inference_count{model="alexnet"}')
            }
        the_load_tester_counted_the_same(shown, tmp_path / "load/run.jsonl.gz")


def all_is_well(watched: Watched) -> None:
    """Every query of every panel has an answer, every name in a rule exists, and no alert is active."""
    watched.until(lambda: watched.active == {})  # before the first scrape there was no server
    watched.seen.clear()
    for panel in (panel for panels in ROWS.values() for panel in panels if not panel.gpu):
        for query in panel.queries:
            assert watched.query(shortened(query.expr)), f"{panel.title}: {query.expr} has no data"
    known = set(watched.ask("label/__name__/values"))
    texts = [json.dumps(yaml.safe_load(path.read_text())) for path in (COMMITTED / "rules").glob("*.yml")]
    texts += [query.expr for panels in ROWS.values() for panel in panels for query in panel.queries] + [RELEASES.expr]
    names = set(
        re.findall(r"\b(?:nv_|alexnet_|prometheus_|[a-z_]+:[a-z_]+:)[a-z0-9_:]+\b", " ".join(texts))
    )
    assert len(names) > 50
    assert {name for name in names - known if not ELSEWHERE.match(name)} == set()
    # Of the same scrape: the backend tells its runs a moment after Triton has counted them.
    for ours, tritons in (("count", "exec_count"), ("sum", "count")):
        (share,) = watched.query(f"alexnet_backend_batch_images_{ours} / on (model) nv_inference_{tritons}")
        assert float(share["value"][1]) == pytest.approx(1, abs=0.01)


def the_page_shows_graphs(url: str, tmp_path: Path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}/browser"]
    command = [BROWSER, *options, "--virtual-time-budget=4000", "--dump-dom", url]

    def seen() -> str:
        page = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        return page.split("<script")[0]

    main = [panel for panels in ROWS.values() for panel in panels if panel.main]
    give_up_s = time.monotonic() + 30
    while "No active alerts." not in (body := seen()):  # one may be pending for a moment: the windows are of seconds
        assert time.monotonic() < give_up_s, re.sub(r"<svg.*?</svg>", "", body, flags=re.DOTALL)
    assert body.count("<figure>") == len(main)
    assert body.count("<svg") == sum(panel.kind == "timeseries" for panel in main)
    assert "Prometheus is unavailable" not in body
    assert re.search(r"p99: [\d.]+ (ms|s|µs)", body)


def a_killed_backend_process(watched: Watched, server) -> None:
    """Its launcher looks away, so that Triton goes on to call itself ready."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        for stub in server.stubs():
            if "/alexnet/" in stub.cmdline()[1]:
                stub.kill()
        with insisting(server.target):
            watched.told("BackendDead", pages=BUDGETS)
    finally:
        server.process.send_signal(signal.SIGCONT)
    watched.until(lambda: ("ServerRestarted", "firing") in watched.seen)
    watched.until(lambda: server.health()[0] == 200)


@contextmanager
def insisting(target: str) -> Iterator[None]:
    """Callers who ask again and again, where our client leaves a failing server alone for seconds."""
    ended = threading.Event()
    request = encode_request("alexnet", {"image": np.zeros((1, 224, 224, 3), np.uint8)}, ("logits",))

    def ask() -> None:
        with grpc.insecure_channel(target) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not ended.wait(0.05):
                with suppress(grpc.RpcError):
                    stub.ModelInfer(request, timeout=5)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def slow_inference(watched: Watched, server) -> None:
    stubs = [each for each in server.stubs() if "/alexnet/" in each.cmdline()[1]]
    ended = threading.Event()

    def stutter() -> None:
        while not ended.is_set():
            for stub in stubs:
                stub.suspend()
            ended.wait(0.3)
            for stub in stubs:
                stub.resume()
            ended.wait(0.05)

    thread = threading.Thread(target=stutter)
    thread.start()
    try:
        watched.told("LatencyBudgetBurn", pages=set())
    finally:
        ended.set()
        thread.join()


def a_full_queue(watched: Watched, server, port: int, configured: Path, tmp_path: Path) -> None:
    """Somebody else sends more than the server takes; who looks is told by that client's metrics."""
    target = configured / "targets/client.yml"
    before = yaml.safe_load(target.read_text())
    target.write_text(yaml.safe_dump([{"targets": [*before[0]["targets"], f"127.0.0.1:{port}"]}]))
    flood = ("--concurrency", "256", "--no-batching", "--duration", "60", "--timeout", "3")
    with loading(server.target, port, tmp_path / "flood", *flood):
        watched.told("RequestsRejected", pages=BUDGETS)
    target.write_text(yaml.safe_dump(before))


def a_stopped_server(watched: Watched, server) -> None:
    server.process.send_signal(signal.SIGTERM)
    watched.told("AllServersDown", pages=BUDGETS)
    assert server.process.wait(30) == 0


def somebody_was_told(watched: Watched, notified: list[tuple[str, str]]) -> None:
    """The Alertmanager's notifications came, pages and tickets each at their receiver, and nothing that follows from a page."""
    watched.until(lambda: ("/page", "AllServersDown") in notified)
    expected = {("/ticket", "BackendDead"), ("/ticket", "RequestsRejected"), ("/page", "LatencyBudgetBurn")}
    assert expected <= set(notified)
    assert all((path == "/page") == (name in PAGES) for path, name in notified if name not in BUDGETS), notified


def shown_rate(watched: Watched, counter: str, at_s: float) -> tuple[float, float, float]:
    """Prometheus' rate of a counter, and the time of the first and of the last scrape that it is made of."""
    (rate,) = watched.query(f"rate({counter}[{WINDOW_S}s])", time=at_s)
    (scraped,) = watched.query(f"{counter}[{WINDOW_S}s]", time=at_s)
    return float(rate["value"][1]), float(scraped["values"][0][0]), float(scraped["values"][-1][0])


def the_load_tester_counted_the_same(shown: Mapping[str, Sequence[tuple[float, float, float]]], path: Path) -> None:
    """Between the same scrapes; the median of five moments, since a machine that pauses in a scrape moves its count."""
    run = read_run(path)
    began_s = datetime.fromisoformat(run.started).timestamp()
    ended_s = run.records.ended_s[run.records.outcome == 0] + began_s
    for counter, rates in shown.items():
        ratios = [
            rate * (last_s - first_s) / np.count_nonzero((ended_s > first_s) & (ended_s <= last_s))
            for rate, first_s, last_s in rates
        ]
        assert np.median(ratios) == pytest.approx(1, abs=0.01), (counter, ratios)
