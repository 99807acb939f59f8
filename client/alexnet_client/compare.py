"""``alexnet-client compare``: send the same images to two endpoints and compare their answers and latencies."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.progress import track
from rich.table import Table

from alexnet_client.client import Client
from alexnet_client.connection import Connection
from alexnet_client.errors import BadInput, ClientError, ImageError
from alexnet_client.images import find_images, load_pixels, read_file
from alexnet_client.logs import EventLog
from alexnet_client.resolver import DNS
from alexnet_client.terminal import FAILED, complain, console, errors_reported, print_json

PROGRAM = "alexnet-client"
WARM_UP = 5
"""Requests to each endpoint before the first measured one: they open connections and fetch the model's metadata."""


@dataclass
class Endpoint:
    """One side of the comparison: its client and what was measured."""

    name: str
    client: Client
    versions: set[str] = field(default_factory=set)
    latencies_ms: list[float] = field(default_factory=list)

    async def infer(self, content: bytes, pixels: npt.NDArray[np.uint8], *, measured: bool) -> npt.NDArray[np.float32]:
        """Send one image, as a file or as pixels [224, 224, 3], and return its probabilities [classes]."""
        encoded = (await self.client.signature()).encoded
        batch = np.array([[content]], object) if encoded else pixels[np.newaxis]
        started_s = time.perf_counter()
        answer = await self.client.infer(batch)
        if measured:
            self.latencies_ms.append(1000 * (time.perf_counter() - started_s))
            self.versions.add(answer.model_version)
        probabilities: npt.NDArray[np.float32] = answer.probabilities[0]
        return probabilities

    def summary(self) -> dict[str, Any]:
        p50_ms, p95_ms = (round(float(each), 3) for each in np.percentile(self.latencies_ms, (50, 95)))
        return {"endpoint": self.name, "versions": sorted(self.versions), "p50_ms": p50_ms, "p95_ms": p95_ms}


@dataclass
class Comparison:
    """Results: the path and both labels of each image with different top-1 classes, and errors of unreadable files."""

    a: Endpoint
    b: Endpoint
    labels: tuple[str, ...]
    images: int = 0
    unreadable: list[str] = field(default_factory=list)
    different: list[tuple[Path, str, str]] = field(default_factory=list)
    largest_difference: float = 0.0

    def add(self, path: Path, of_a: npt.NDArray[np.float32], of_b: npt.NDArray[np.float32]) -> None:
        """Record the probabilities [classes] of one image."""
        self.images += 1
        self.largest_difference = max(self.largest_difference, float(np.abs(of_a - of_b).max()))
        if (top_a := of_a.argmax()) != (top_b := of_b.argmax()):
            self.different.append((path, self.labels[top_a], self.labels[top_b]))

    def summary(self) -> dict[str, Any]:
        """The JSON line; ``latency_ratio`` is the p50 of B divided by that of A."""
        return {
            "a": self.a.summary(),
            "b": self.b.summary(),
            "images": self.images,
            "unreadable": len(self.unreadable),
            "agreement": round(1 - len(self.different) / self.images, 6),
            "largest_probability_difference": round(self.largest_difference, 6),
            "latency_ratio": round(float(np.median(self.b.latencies_ms) / np.median(self.a.latencies_ms)), 4),
        }


def parse_endpoint(text: str) -> tuple[str, str, str]:
    """Split an endpoint into target, model ("alexnet" by default) and version ("" by default).

    Raises:
        BadInput: the text has another form.
    """
    prefix = DNS if text.startswith(DNS) else ""
    target, *rest = text.removeprefix(prefix).split("/")
    model, version = rest[0] if rest else "alexnet", rest[1] if len(rest) > 1 else ""
    if len(rest) > 2 or not model or (len(rest) == 2 and not (version.isascii() and version.isdecimal())):
        raise BadInput(f"{text}: not an endpoint of the form TARGET, TARGET/MODEL or TARGET/MODEL/VERSION")
    return prefix + target, model, version


async def compare_endpoints(a: Endpoint, b: Endpoint, directory: Path, *, show_progress: bool = False) -> Comparison:
    """Send each image below ``directory`` to both endpoints, one request in flight; the order alternates.

    Raises:
        BadInput: the directory has no readable image, or the endpoints have different classes.
        ClientError: a request failed.
    """
    files = await asyncio.to_thread(find_images, directory)
    sides = (a, b)
    result = Comparison(a, b, _common_classes(await a.client.labels(), await b.client.labels()))
    for path in track(files, "Comparing", disable=not show_progress, console=console):
        try:
            content, pixels = await asyncio.to_thread(_read_image, path)
        except ImageError as error:
            result.unreadable.append(str(error))
            continue
        for side in () if result.images else sides * WARM_UP:
            await side.infer(content, pixels, measured=False)
        first = result.images % 2
        answers = {each: await sides[each].infer(content, pixels, measured=True) for each in (first, 1 - first)}
        result.add(path, answers[0], answers[1])
    if not result.images:
        raise BadInput(f"{directory}: no readable image; the first error is: {result.unreadable[0]}")
    return result


def _read_image(path: Path) -> tuple[bytes, npt.NDArray[np.uint8]]:
    return read_file(path), load_pixels(path)


def _common_classes(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of both endpoints; raises ``BadInput`` if they differ."""
    if a != b:
        different = ", ".join(sorted(set(a) ^ set(b))[:5]) or "the order"
        raise BadInput(
            f"the classes of A ({len(a)}) and B ({len(b)}) differ: {different}; compare models of equal classes"
        )
    return a


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="reference: TARGET, TARGET/MODEL or TARGET/MODEL/VERSION")],
    b: Annotated[str, typer.Argument(metavar="B", help="candidate, in the same form")],
    images: Annotated[Path, typer.Option(help="directory of images; subdirectories are included")],
    min_agreement: Annotated[
        float | None, typer.Option(help="smallest accepted share of images with equal top-1 classes, 0 to 1")
    ] = None,
    max_slowdown: Annotated[
        float | None, typer.Option(help="largest accepted latency ratio: p50 of B divided by p50 of A")
    ] = None,
    timeout: Annotated[float, typer.Option(help="deadline of each call, seconds")] = 10.0,
    tls: Annotated[
        Path | None, typer.Option(help="mutual TLS with ca.crt, tls.crt and tls.key from this directory")
    ] = None,
    tls_name: Annotated[str, typer.Option(help="name in the servers' certificates, if it differs from the host")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print only the JSON line")] = False,
) -> None:
    """Compare two servers, models or versions: send the same images to both, and compare answers and latencies.

    A target is host:port, a comma-separated list of these, or dns:///name:port. The default model is "alexnet".
    Without a version, the server chooses one; a version in A or B must be loaded on the server.
    Examples: 127.0.0.1:8001, 127.0.0.1:8001/alexnet/3.

    After a warm-up, requests alternate between A and B, one in flight. Unreadable images are reported and skipped.
    The exit code is 1 if --min-agreement or --max-slowdown is violated.
    """

    async def run() -> Comparison:
        async with AsyncExitStack() as stack:

            async def connect(text: str) -> Endpoint:
                target, model, version = parse_endpoint(text)
                client = Client(
                    target,
                    model=model,
                    version=version,
                    timeout_s=timeout,
                    connection=Connection.secured(tls, tls_name),
                    listeners=[EventLog()],
                )
                return Endpoint(text, await stack.enter_async_context(client))

            show_progress = not as_json and console.is_terminal
            return await compare_endpoints(await connect(a), await connect(b), images, show_progress=show_progress)

    with errors_reported(PROGRAM, ClientError):
        if min_agreement is not None and not 0 <= min_agreement <= 1:
            raise BadInput(f"--min-agreement must be between 0 and 1, got {min_agreement:g}")
        if max_slowdown is not None and not 0 < max_slowdown < math.inf:
            raise BadInput(f"--max-slowdown must be positive and finite, got {max_slowdown:g}")
        result = asyncio.run(run())
    summary, violations = result.summary(), []
    if min_agreement is not None and summary["agreement"] < min_agreement:
        violations.append(f"agreement {summary['agreement']:g} is below --min-agreement {min_agreement:g}")
    if max_slowdown is not None and summary["latency_ratio"] > max_slowdown:
        violations.append(f"latency ratio {summary['latency_ratio']:g} is above --max-slowdown {max_slowdown:g}")
    if not as_json:
        _print_tables(result, summary)
    for line in (*result.unreadable, *violations):
        complain(PROGRAM, line)
    print_json(summary | {"violations": violations})
    raise typer.Exit(FAILED if violations else 0)


def _print_tables(result: Comparison, summary: dict[str, Any]) -> None:
    table = Table("endpoint", "version", "p50", "p95")
    for name, side in (("A", summary["a"]), ("B", summary["b"])):
        latencies = [f"{side[each]:.2f} ms" for each in ("p50_ms", "p95_ms")]
        table.add_row(f"{name}: {side['endpoint']}", ", ".join(side["versions"]), *latencies)
    console.print(table)
    console.print(f"Images: {result.images} compared, {len(result.unreadable)} unreadable")
    console.print(f"Agreement (equal top-1 classes): {summary['agreement']:.2%}")
    console.print(f"Largest probability difference: {summary['largest_probability_difference']:.4f}")
    console.print(f"Latency ratio (p50 of B / p50 of A): {summary['latency_ratio']:.2f}")
    for path, label_a, label_b in result.different[:10]:
        console.print(f"Different: {str(path).encode(errors='replace').decode()}: A {label_a}, B {label_b}")
