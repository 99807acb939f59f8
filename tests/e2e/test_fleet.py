"""Three real servers behind HAProxy and behind the client's load balancing: no call fails while they are killed, stopped and upgraded."""

from __future__ import annotations

import asyncio
import csv
import io
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from waiting import until, wait_until

from alexnet_client import BatchOptions, Client
from alexnet_client.events import Attempted
from alexnet_client.retries import RetryOptions
from alexnet_export.publish import publish

RATE = 25.0
"""Requests per second on each route: fewer than one server can execute."""
STOPPED_S = 4.0
"""Longer than HAProxy's `timeout server`, shorter than the launcher's `--hang-timeout`."""
NAMES = ("first", "second", "third")
HAPROXY = shutil.which("haproxy")
CONFIGURATION = Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg"
NO_BATCHING = BatchOptions(max_batch=1, max_in_flight=64)
IMAGES = np.random.default_rng(1).integers(0, 256, (64, 224, 224, 3)).astype(np.uint8)
pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed (apt-get install haproxy)")


@dataclass
class Route:
    """A route from the caller to the servers, the versions that answered, and the failed calls."""

    name: str
    client: Client
    expected: np.ndarray
    versions: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def call(self, number: int) -> None:
        row = number % len(IMAGES)
        try:
            answer = await self.client.infer(IMAGES[row : row + 1])
        except Exception as error:  # noqa: BLE001  no call may fail
            self.failures.append(f"{self.name}: {error!r}")
            return
        if not np.allclose(answer.logits[0], self.expected[row], atol=1e-3):
            self.failures.append(f"{self.name}: a wrong result")
        self.versions.append(answer.model_version)


@asynccontextmanager
async def constant_load(*routes):
    """Requests at a constant rate that does not depend on the answers."""
    ended, calls = asyncio.Event(), set()

    async def send(route):
        started_s, number = time.monotonic(), 0
        while not ended.is_set():
            calls.add(asyncio.create_task(route.call(number)))
            number += 1
            await asyncio.sleep(max(0.0, started_s + number / RATE - time.monotonic()))

    senders = [asyncio.create_task(send(route)) for route in routes]
    try:
        yield
    finally:
        ended.set()
        await asyncio.gather(*senders)
        await asyncio.gather(*calls)


class Place:
    """The ports and the repository of one server, which can be restarted there."""

    def __init__(self, name, repository, ports, launch):
        self.name, self.repository, self._ports, self._launch = name, repository, ports, launch
        self.target, self.health_port = f"127.0.0.1:{ports[0]}", ports[2]
        self._running, self.server = ExitStack(), None

    def start(self):
        # HAProxy needs about a second to see that a server is going to stop.
        options = ("--probe-interval", "1", "--shutdown-delay", "2")
        ports = iter(self._ports)
        self.server = self._running.enter_context(
            self._launch(self.repository, self.repository.parent, lambda: next(ports), *options)
        )

    def restart(self):
        assert self.server.stop() == 0
        self.end()
        self.start()

    def end(self):
        self._running.close()

    def is_ready(self):
        with suppress(OSError):
            return self.server.health()[0] == 200
        return False


@pytest.fixture
def places(cheap, tmp_path, free_port, launch):
    """Three servers, each with its own copy of the repository."""
    found = []
    with ExitStack() as stack:
        for name in NAMES:
            repository = shutil.copytree(cheap.repository, tmp_path / name / "repository")
            found.append(Place(name, repository, [free_port() for _ in range(3)], launch))
            stack.callback(found[-1].end)
            found[-1].start()
        yield found


@dataclass
class Proxy:
    """A running HAProxy."""

    target: str
    statistics: Path

    def requests(self) -> Counter[str]:
        """The number of requests that each server got."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.statistics))
            connection.sendall(b"show stat\n")
            text = b"".join(iter(lambda: connection.recv(65_536), b"")).decode().removeprefix("# ")
        rows = csv.DictReader(io.StringIO(text))
        return Counter({row["svname"]: int(row["stot"]) for row in rows if row["type"] == "2"})

    def listens(self) -> bool:
        host, port = self.target.split(":")
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return True
        return False


@contextmanager
def haproxy(places, directory, port):
    environment = {"PORT": str(port), "STATS": str(directory / "haproxy.sock")}
    for place in places:
        environment |= {place.name.upper(): place.target, f"{place.name.upper()}_HEALTH": str(place.health_port)}
    command = [HAPROXY, "-f", str(CONFIGURATION), "-db"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        proxy = Proxy(f"127.0.0.1:{port}", directory / "haproxy.sock")
        try:
            wait_until(proxy.listens, "HAProxy listens")
            yield proxy
        finally:
            process.terminate()


async def kill(place):
    """Triton is killed; the launcher restarts it."""
    before = place.server.health()[1]["restarts"]
    place.server.triton().kill()
    await until(lambda: place.server.health()[1]["restarts"] > before, "the launcher restarts Triton")


async def hang(place):
    """Triton accepts requests and does not answer."""
    triton = place.server.triton()
    triton.send_signal(signal.SIGSTOP)
    await asyncio.sleep(STOPPED_S)
    triton.send_signal(signal.SIGCONT)


async def upgrade(place, model, labels):
    """Version 2 is published and the launcher is restarted."""
    published = publish(place.repository, {"model.onnx": model}, labels, {"precision": "fp32", "max_batch_size": 64})
    assert published.version == 2
    await asyncio.to_thread(place.restart)


@pytest.mark.slow
async def test_no_call_fails_while_servers_are_killed_hang_and_are_upgraded_one_by_one(
    places, cheap, digits, free_port, tmp_path
):
    events, expected = [], cheap.logits(IMAGES)
    model = shutil.copy(cheap.repository / "alexnet/1/model.onnx", tmp_path / "next.onnx")
    hedged = RetryOptions(hedge_quantile=0.99, burst=50)
    targets = ",".join(each.target for each in places)
    with haproxy(places, tmp_path, free_port()) as proxy:

        async def wait_until_used(place):
            """As minReadySeconds in Kubernetes: the next server is touched when this one gets requests again."""
            await until(place.is_ready, f"{place.name} is ready")
            now, before = len(events), proxy.requests()[place.name]
            await until(lambda: Attempted(place.target, "ok") in events[now:], f"the client uses {place.name}")
            await until(lambda: proxy.requests()[place.name] > before, f"HAProxy uses {place.name}", every_s=0.1)

        async with (
            Client(targets, timeout_s=10, batching=NO_BATCHING, retries=hedged, listeners=[events.append]) as balancing,
            Client(proxy.target, timeout_s=10, batching=NO_BATCHING, retries=RetryOptions(burst=100)) as proxied,
        ):
            routes = Route("client", balancing, expected), Route("HAProxy", proxied, expected)
            async with constant_load(*routes):
                for place in places:
                    await wait_until_used(place)
                await kill(places[0])
                await wait_until_used(places[0])
                await hang(places[1])
                await wait_until_used(places[1])
                for place in places:
                    await upgrade(place, Path(model), list(digits.labels))
                    await wait_until_used(place)
                events.clear()
                before = proxy.requests()
                for route in routes:
                    route.versions.clear()
                await until(lambda: all(len(route.versions) > 200 for route in routes), "requests after the upgrade")
                through_haproxy = proxy.requests() - before
        assert [failure for route in routes for failure in route.failures] == []
        for route in routes:
            assert set(route.versions) == {"2"}
        through_client = Counter(each.replica for each in events if isinstance(each, Attempted))
        for requests in (through_client, through_haproxy):
            assert len(requests) == 3
            assert min(requests.values()) > 0.2 * requests.total(), requests
