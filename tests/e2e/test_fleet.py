"""Three real servers, behind HAProxy and with the client's own balancing: they die, hang, restart and change, and no request fails."""

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
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from alexnet_client import BatchOptions, Client
from alexnet_client.events import Attempted, Event
from alexnet_client.retries import RetryOptions
from alexnet_export.publish import publish

RATE = 80.0
"""Requests a second on each of both ways, evenly: less than one server alone can take."""
DEADLINE_S = 10.0
CALM_S, RECOVERED_S, STOPPED_S = 4.0, 10.0, 4.0
EVEN = 0.1
"""By how much a server's share of the requests may be off its third after recovery."""
WORSE = 4.0
"""How many times as long as before the slowest of a hundred may take after recovery."""
HICCUP_MS = 20.0
"""What waits for one of two shared processors may take so long by itself."""
NOTICE = ("--shutdown-delay", "2")
"""HAProxy needs a second to see that a server will stop. Until then it sends it ever more, for refusals are quick."""
CLOSED_S, CALLERS = 3.0, 24
HAPROXY = shutil.which("haproxy")
CONFIGURATION = Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg"
ALONE = BatchOptions(max_batch=1, max_in_flight=64)
"""Each image is a request, so that requests can be counted."""
IMAGES = np.random.default_rng(1).integers(0, 256, (64, 224, 224, 3)).astype(np.uint8)
pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed (apt-get install haproxy)")


@dataclass
class Way:
    """How requests travel, and what came of each: (second of its beginning, seconds it took, version that answered)."""

    name: str
    client: Client
    expected: np.ndarray
    answers: list[tuple[float, float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def ask(self, number: int) -> None:
        place, began_s = number % len(IMAGES), time.monotonic()
        try:
            answer = await self.client.infer(IMAGES[place : place + 1])
        except Exception as error:  # noqa: BLE001  any is one too many
            self.failures.append(f"{self.name}: {error}")
            return
        if not np.allclose(answer.logits[0], self.expected[place], atol=1e-3):
            self.failures.append(f"{self.name}: a wrong answer")
        self.answers.append((began_s, time.monotonic() - began_s, answer.model_version))

    def p99_ms(self, since_s: float, until_s: float) -> float:
        return 1000 * float(np.percentile([took for began, took, _ in self.answers if since_s <= began < until_s], 99))


@asynccontextmanager
async def constantly(*ways: Way):
    """Both ways' requests leave on time, whatever becomes of those before."""
    ended, calls = asyncio.Event(), set()

    async def send(way: Way) -> None:
        began_s, number = time.monotonic(), 0
        while not ended.is_set():
            calls.add(asyncio.create_task(way.ask(number)))
            number += 1
            await asyncio.sleep(max(0.0, began_s + number / RATE - time.monotonic()))

    sending = [asyncio.create_task(send(way)) for way in ways]
    try:
        yield
    finally:
        ended.set()
        await asyncio.gather(*sending)
        await asyncio.gather(*calls)


class Place:
    """One server's ports and repository; it can be started there again."""

    def __init__(self, repository: Path, directory: Path, ports) -> None:
        self.repository, self._directory, self._ports = repository, directory, [ports() for _ in range(3)]
        self._entered = None
        self.server = None

    def start(self, launch) -> None:
        ports = iter(self._ports)
        self._entered = launch(self.repository, self._directory, lambda: next(ports), "--probe-interval", "1", *NOTICE)
        self.server = self._entered.__enter__()

    def stop(self) -> None:
        """As an operator stops it: it answers what it has accepted."""
        assert self.server.stop() == 0
        self.end()

    def end(self) -> None:
        if self._entered is not None:
            self._entered.__exit__(None, None, None)
            self._entered = None

    def publish(self, labels, directory: Path) -> None:
        shutil.copy(self.repository / "alexnet/1/model.onnx", directory / "next.onnx")
        facts = {"precision": "fp32", "max_batch_size": 64}
        assert publish(self.repository, {"model.onnx": directory / "next.onnx"}, labels, facts).version == 2

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def health_port(self) -> int:
        return self._ports[2]


@pytest.fixture
def places(cheap, tmp_path, free_port, launch):
    found = []
    for name in ("first", "second", "third"):
        repository = tmp_path / name / "repository"
        shutil.copytree(cheap.repository, repository)
        found.append(Place(repository, tmp_path / name, free_port))
    try:
        for each in found:
            each.start(launch)
        yield found
    finally:
        for each in found:
            each.end()


@dataclass
class Proxy:
    """A running HAProxy, and what it says of its servers."""

    target: str
    socket: Path

    def requests(self) -> dict[str, int]:
        """Requests that each server was given so far."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.socket))
            connection.sendall(b"show stat\n")
            text = b"".join(iter(lambda: connection.recv(65_536), b"")).decode().removeprefix("# ")
        return {row["svname"]: int(row["stot"]) for row in csv.DictReader(io.StringIO(text)) if row["type"] == "2"}


@pytest.fixture
def proxy(places, tmp_path, free_port) -> Iterator[Proxy]:
    port, stats = free_port(), tmp_path / "haproxy.sock"
    variables = {"PORT": port, "STATS": stats}
    for name, place in zip(("FIRST", "SECOND", "THIRD"), places, strict=True):
        variables |= {name: place.target, f"{name}_HEALTH": place.health_port}
    with running([HAPROXY, "-f", CONFIGURATION, "-db"], variables):
        deadline_s = time.monotonic() + 10
        while time.monotonic() < deadline_s:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield Proxy(f"127.0.0.1:{port}", stats)


@contextmanager
def running(command, variables) -> Iterator[None]:
    environment = {name: str(value) for name, value in variables.items()}
    process = subprocess.Popen([str(part) for part in command], env=environment, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


async def until(condition, what, seconds=60):
    give_up_s = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < give_up_s, what
        await asyncio.sleep(0.1)


def serves(place: Place) -> bool:
    with suppress(OSError):
        return place.server.health()[0] == 200
    return False


async def killed(place: Place, launch) -> None:
    """Triton is gone in the midst of its work; the launcher starts another one."""
    before = place.server.health()[1]["restarts"]
    place.server.triton().kill()
    await until(lambda: place.server.health()[1]["restarts"] > before and serves(place), "the launcher starts it again")


async def hung(place: Place, launch) -> None:
    """It accepts everything and says nothing, for less than the launcher's patience."""
    triton = place.server.triton()
    triton.send_signal(signal.SIGSTOP)
    await asyncio.sleep(STOPPED_S)
    triton.send_signal(signal.SIGCONT)
    await until(lambda: serves(place), "it serves again")


async def used_by(client: Client) -> None:
    """The next one is touched once callers use this one again, who leave a dead one alone for up to 4 s: as minReadySeconds does."""
    await until(lambda: len(client._fleet.replicas.usable) == 3, "all are in use")


async def restarted(place: Place, launch) -> None:
    await asyncio.to_thread(place.stop)
    await asyncio.to_thread(place.start, launch)


async def test_no_request_fails_while_servers_are_killed_hang_restart_and_are_upgraded(
    places, proxy, cheap, digits, launch, tmp_path, fleet_figures
):
    await how_it_grows(places, fleet_figures)
    attempts: Counter[str] = Counter()

    def count(event: Event) -> None:
        if isinstance(event, Attempted):
            attempts[event.replica] += 1

    retries = RetryOptions(hedge_quantile=0.99, burst=50)
    all_of_them = ",".join(each.target for each in places)
    expected = cheap.logits(IMAGES)
    async with (
        Client(all_of_them, timeout_s=DEADLINE_S, batching=ALONE, retries=retries, listeners=[count]) as own,
        Client(proxy.target, timeout_s=DEADLINE_S, batching=ALONE, retries=RetryOptions(burst=100)) as proxied,
    ):
        ways = Way("direct", own, expected), Way("HAProxy", proxied, expected)
        async with constantly(*ways):
            calm_s = time.monotonic()
            await asyncio.sleep(CALM_S)
            trouble_s = time.monotonic()
            for happens in (killed, hung, restarted):
                for place in places:
                    await happens(place, launch)
                    await used_by(own)
            for place in places:
                place.publish(list(digits.labels), tmp_path)
                await restarted(place, launch)
                await used_by(own)
            recovered_s, given = time.monotonic(), Counter(proxy.requests())
            attempts.clear()
            await asyncio.sleep(RECOVERED_S)
            ended_s, given = time.monotonic(), Counter(proxy.requests()) - given
        assert [each for way in ways for each in way.failures] == []
        for way in ways:
            assert {version for began_s, _, version in way.answers if began_s > recovered_s} == {"2"}
            before_ms, after_ms = way.p99_ms(calm_s, trouble_s), way.p99_ms(recovered_s, ended_s)
            fleet_figures(
                f"{way.name}: {len(way.answers):,} requests, none failed; p99 {before_ms:.0f} ms before, "
                f"{way.p99_ms(trouble_s, recovered_s):.0f} ms while servers went and came, {after_ms:.0f} ms after"
            )
            assert after_ms < WORSE * max(before_ms, HICCUP_MS)
        for name, requests in (("direct", attempts), ("HAProxy", given)):
            fleet_figures(f"{name}: {even(requests)}")


def even(requests: Counter[str]) -> str:
    """Every server has its third, within ``EVEN``; what each has, in words."""
    shares = [count / requests.total() for count in requests.values()]
    assert len(shares) == 3
    assert all(abs(3 * share - 1) <= EVEN for share in shares), requests
    return "after recovery " + ", ".join(f"{share:.1%}" for share in shares) + f" of {requests.total():,} requests"


async def together(client: Client, seconds: float = CLOSED_S) -> list[float]:
    """Callers who ask again as soon as they are answered; seconds of each answer."""
    took: list[float] = []
    ended_s = time.monotonic() + seconds

    async def ask(caller: int) -> None:
        while (began_s := time.monotonic()) < ended_s:
            await client.infer(IMAGES[caller : caller + 1])
            took.append(time.monotonic() - began_s)

    await asyncio.gather(*(ask(caller) for caller in range(CALLERS)))
    return took


async def how_it_grows(places: list[Place], tell) -> None:
    """Answers a second and their p99 with one, two and three servers: on two processors they share, it cannot be thrice."""
    for count in (1, 2, 3):
        targets = ",".join(each.target for each in places[:count])
        async with Client(targets, timeout_s=DEADLINE_S, batching=ALONE) as client:
            await together(client, 0.5)
            took = await together(client)
        assert took
        tell(
            f"{count} servers: {len(took) / CLOSED_S:,.0f} answers a second, p99 {1000 * np.percentile(took, 99):.0f} ms"
        )
