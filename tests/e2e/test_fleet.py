"""Three real servers behind HAProxy and behind the client's load balancing: no call fails while they are killed, stopped and upgraded."""

from __future__ import annotations

import asyncio
import csv
import io
import shutil
import signal
import socket
import subprocess
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from servers import Load
from waiting import until, wait_until

from alexnet_client import BatchOptions, Client
from alexnet_client.events import Attempted
from alexnet_client.retries import RetryOptions
from alexnet_export.publish import publish

STOPPED_S = 4.0
"""Longer than HAProxy's `timeout server`, shorter than the launcher's `--hang-timeout`."""
NAMES = ("first", "second", "third")
HAPROXY = shutil.which("haproxy")
CONFIGURATION = Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg"
NO_BATCHING = BatchOptions(max_batch=1, max_in_flight=64)
IMAGES = np.random.default_rng(1).integers(0, 256, (64, 224, 224, 3)).astype(np.uint8)
pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed (apt-get install haproxy)")


class Place:
    """The ports and the repository of one server, which can be restarted there."""

    def __init__(self, name, repository, ports, launch):
        self.name, self.repository, self._ports, self._launch = name, repository, ports, launch
        self.target, self.health_port = f"127.0.0.1:{ports[0]}", ports[2]
        self._running, self.server = ExitStack(), None

    def start(self):
        # HAProxy needs about a second to see that a server is going to stop.
        options = ("--probe-interval", "1", "--shutdown-delay", "2")
        self.server = self._running.enter_context(
            self._launch(self.repository, *options, ports=iter(self._ports).__next__)
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


def requests_of(statistics):
    """The number of requests that each server got from HAProxy."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(statistics))
        connection.sendall(b"show stat\n")
        text = b"".join(iter(lambda: connection.recv(65_536), b"")).decode().removeprefix("# ")
    rows = csv.DictReader(io.StringIO(text))
    return Counter({row["svname"]: int(row["stot"]) for row in rows if row["type"] == "2"})


@contextmanager
def haproxy(places, port, statistics):
    environment = {"PORT": str(port), "STATS": str(statistics)}
    for place in places:
        environment |= {place.name.upper(): place.target, f"{place.name.upper()}_HEALTH": str(place.health_port)}
    command = [HAPROXY, "-f", str(CONFIGURATION), "-db"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(statistics.exists, "HAProxy runs")
            yield
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
    targets, statistics, port = ",".join(each.target for each in places), tmp_path / "haproxy.sock", free_port()

    async def wait_until_used(place):
        """As minReadySeconds in Kubernetes: the next server is touched when this one gets requests again."""
        await until(place.is_ready, f"{place.name} is ready")
        now, before = len(events), requests_of(statistics)[place.name]
        await until(lambda: Attempted(place.target, "ok") in events[now:], f"the client uses {place.name}")
        await until(lambda: requests_of(statistics)[place.name] > before, f"HAProxy uses {place.name}", every_s=0.1)

    with haproxy(places, port, statistics):
        async with (
            Client(targets, timeout_s=10, batching=NO_BATCHING, retries=hedged, listeners=[events.append]) as balancing,
            Client(f"127.0.0.1:{port}", timeout_s=10, batching=NO_BATCHING, retries=RetryOptions(burst=100)) as proxied,
            Load(balancing, IMAGES, expected, pause_s=0.3) as direct,
            Load(proxied, IMAGES, expected, pause_s=0.3) as through_haproxy,
        ):
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
            before = requests_of(statistics)
            for load in (direct, through_haproxy):
                load.versions.clear()
                await load.wait_for_answers(200)
            of_client = Counter(each.replica for each in events if isinstance(each, Attempted))
            of_haproxy = requests_of(statistics) - before
        for load in (direct, through_haproxy):
            assert set(load.outcomes) == {"correct"}
            assert set(load.versions) == {"2"}
        for requests in (of_client, of_haproxy):
            assert len(requests) == 3
            assert min(requests.values()) > 0.2 * requests.total(), requests
