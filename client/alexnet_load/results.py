"""A run's file: a stream of lines, compressed, readable again while it grows and after a crash.

``*.jsonl.gz``, for people too (``zcat``): first an object with the plan; then an array a request, ``[planned, sent, ended,
late, images, outcome]``, times in whole microseconds since the run began, ``late`` as in ``Records``; at the end an object
with what both sides counted. Each write is a gzip member of its own, so what was written is readable whatever becomes of the
process: the file is written in place, under its final name. It owns the format, and knows neither sockets nor the event loop.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from alexnet_client.errors import BadInput
from alexnet_load.run import OK, ClientSide, Plan, Records, Run, ServerSide

FORMAT = 1
SUFFIX = ".jsonl.gz"
LEVEL = 1
"""Of compression: level 9 takes six times as long for a tenth less."""
GZIP = 31
"""zlib's name (``wbits``) for members with gzip's header and checksum."""
MOST_IMAGES = 2**31 - 1
Side = TypeVar("Side", ClientSide, ServerSide)


class Record(NamedTuple):
    """One request; seconds since the run began."""

    planned_s: float
    sent_s: float
    ended_s: float
    late_s: float
    images: int
    outcome: str


class RunWriter:
    """Writes a run as it goes on.

    Args:
        path: of the file; an older one is replaced.
        plan: what was asked.
        machine: where the senders run, in words.
        started: when, ISO 8601.
        version: of this package.

    Raises:
        BadInput: nothing can be written there.
    """

    def __init__(self, path: Path, plan: Plan, *, machine: str, started: str, version: str) -> None:
        self._path = path
        if not path.name.endswith(SUFFIX):
            raise BadInput(f"{path}: the file of a run is named *{SUFFIX}")
        head = {"format": FORMAT, "plan": asdict(plan), "machine": machine, "started": started, "version": version}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
        except OSError as error:
            raise self._refused(error) from None
        self._append(json.dumps(head) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, records: Iterable[Record]) -> None:
        """Add what has ended, in any order; on disk when this returns.

        Raises:
            BadInput: the disk refuses.
        """
        lines = [
            f'[{round(1e6 * planned)},{round(1e6 * sent)},{round(1e6 * ended)},{round(1e6 * late)},{images},"{outcome}"]\n'
            for planned, sent, ended, late, images, outcome in records
        ]
        self._append("".join(lines))

    def finish(self, client: ClientSide, server: ServerSide | None, server_missing: str = "") -> None:
        """Add what both sides counted: the run is complete.

        Raises:
            BadInput: the disk refuses.
        """
        end = {
            "client": asdict(client),
            "server": None if server is None else asdict(server),
            "server_missing": server_missing,
        }
        self._append(json.dumps(end) + "\n")

    def _append(self, text: str) -> None:
        try:
            self._file.write(gzip.compress(text.encode(), LEVEL))
            self._file.flush()
        except OSError as error:
            with suppress(OSError):  # or closing would try what is left in the buffer again, and hide the reason
                self._file.close()
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> BadInput:
        return BadInput(f"{self._path}: the run cannot be written ({(error.strerror or str(error)).lower()})")


def read_run(path: Path) -> Run:
    """Read a run; one that was cut off is read as far as it goes, and has no ``client`` then.

    Raises:
        BadInput: there is none, or it is damaged, or of another format; the text names the line.
    """
    lines = _lines(path)
    head = _parse(lines[0] if lines else "", f"{path}, line 1", dict)
    if head.get("format") != FORMAT:
        raise BadInput(f"{path}: no run of format {FORMAT}; name a {SUFFIX} file that `alexnet-load run` has written")
    end: dict[str, Any] = {}
    if lines[-1].startswith("{") and len(lines) > 1:
        end = _parse(lines.pop(), f"{path}, last line", dict)
    try:
        return Run(
            plan=_plan(head["plan"]),
            records=_records(lines, path),
            client=_side(ClientSide, end.get("client")),
            server=_side(ServerSide, end.get("server")),
            server_missing=end.get("server_missing", "the run was cut off"),
            machine=head["machine"],
            started=head["started"],
            version=head["version"],
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise BadInput(
            f"{path}: damaged, or of another version of this tool ({type(error).__name__}: {error}); make the run again"
        ) from None


def merge(parts: Sequence[Records]) -> Records:
    """The records of one or more as one, in the order of their planned times; nothing is lost or counted twice."""
    outcomes = tuple(dict.fromkeys([OK, *(name for part in parts for name in part.outcomes)]))
    renamed = [np.array([outcomes.index(name) for name in part.outcomes], np.int16)[part.outcome] for part in parts]
    planned_s = np.concatenate([part.planned_s for part in parts])
    order = np.argsort(planned_s, kind="stable")
    return Records(
        planned_s=planned_s[order],
        sent_s=np.concatenate([part.sent_s for part in parts])[order],
        ended_s=np.concatenate([part.ended_s for part in parts])[order],
        late_s=np.concatenate([part.late_s for part in parts])[order],
        images=np.concatenate([part.images for part in parts])[order],
        outcome=np.concatenate(renamed)[order],
        outcomes=outcomes,
    )


def _lines(path: Path) -> list[str]:
    """Whole lines; what a cut has left of the last one is dropped.

    ``gzip.open`` cannot tell a cut within a member's first bytes from damage; zlib waits for more.
    """
    content, member = bytearray(), zlib.decompressobj(GZIP)
    try:
        with path.open("rb") as file:
            while rest := file.read(1 << 16):
                while rest:
                    content += member.decompress(rest)
                    rest = member.unused_data
                    if member.eof:
                        member = zlib.decompressobj(GZIP)
    except zlib.error as error:
        if not content:
            raise BadInput(
                f"{path}: not compressed; name a {SUFFIX} file that `alexnet-load run` has written"
            ) from None
        lines = content.count(b"\n")
        raise BadInput(f"{path}, after line {lines}: damaged ({error}); copy it again, or make the run again") from None
    except OSError as error:
        raise BadInput(f"{path}: {(error.strerror or str(error)).lower()}; name a file that can be read") from None
    return content.decode(errors="replace").split("\n")[:-1]


def _records(lines: list[str], path: Path) -> Records:
    """The lines between head and end."""
    times: list[tuple[int, int, int, int]] = []
    sizes, outcome = [], []
    names: dict[str, int] = {OK: 0}
    for number, line in enumerate(lines[1:], 2):
        match _parse(line, f"{path}, line {number}", list):
            case [int(planned), int(sent), int(ended), int(late), int(images), str(name)] if 0 < images <= MOST_IMAGES:
                times.append((planned, sent, ended, late))
                sizes.append(images)
                outcome.append(names.setdefault(name, len(names)))
            case _:
                raise BadInput(
                    f"{path}, line {number}: a record is [planned, sent, ended, late, images, outcome], times in whole "
                    "microseconds; mend it, or make the run again"
                )
    planned_s, sent_s, ended_s, late_s = np.array(times, np.float64).reshape(-1, 4).T / 1e6
    kinds = np.array(outcome, np.int16)
    found = Records(planned_s, sent_s, ended_s, late_s, np.array(sizes, np.int32), kinds, tuple(names))
    return merge([found])


def _parse(line: str, where: str, kind: type[Any]) -> Any:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise BadInput(f"{where}: damaged, or no file of a run; name one that `alexnet-load run` has written")
    return value


def _plan(values: dict[str, Any]) -> Plan:
    return Plan(**values | {"sizes": tuple((int(size), float(share)) for size, share in values["sizes"])})


def _side(kind: type[Side], values: dict[str, Any] | None) -> Side | None:
    """JSON has no integer keys and no tuples."""
    if values is None:
        return None
    known = {each.name for each in fields(kind)}
    kept = {name: value for name, value in values.items() if name in known}
    kept["batches"] = {int(size): count for size, count in kept["batches"].items()}
    if "cpu_s" in kept:
        kept["cpu_s"] = tuple(kept["cpu_s"])
    return kind(**kept)
