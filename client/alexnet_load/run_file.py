"""The file of a run: a compressed stream of lines that can be read while it grows and after a crash.

The format is ``*.jsonl.gz`` (readable with ``zcat``). First line: an object with the plan. Then one array per request,
``[planned, sent, ended, lag, images, outcome]``, with times in whole microseconds since the start of the run and ``lag`` as
in ``Records``. Last line: an object with the statistics of client and server. Each write is a complete gzip member, so
everything written remains readable after a crash; the file is written under its final name.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from alexnet_client.errors import BadInput
from alexnet_client.files import reason, writing
from alexnet_load.run import OK, ClientStatistics, Plan, Records, Run, ServerStatistics

FORMAT = 1
SUFFIX = ".jsonl.gz"
COMPRESSION_LEVEL = 1
"""Level 9 takes six times as long and saves a tenth of the space."""
GZIP_WBITS = 31
"""zlib's ``wbits`` for members with gzip's header and checksum."""
MAX_IMAGES = 2**31 - 1
NOT_A_RUN = f"use a {SUFFIX} file written by `alexnet-load run`"
Statistics = TypeVar("Statistics", ClientStatistics, ServerStatistics)


class Record(NamedTuple):
    """One request; times are seconds since the start of the run, as in ``Records``."""

    planned_s: float
    sent_s: float
    ended_s: float
    lag_s: float
    images: int
    outcome: str


class RunWriter:
    """Writes a run while it is in progress; an existing file is replaced. The arguments are those of ``Run``.

    Raises:
        BadInput: the file cannot be written.
    """

    def __init__(self, path: Path, plan: Plan, *, machine: str, started: str, version: str) -> None:
        self._path = path
        if not path.name.endswith(SUFFIX):
            raise BadInput(f"{path}: the name of a run file must end with {SUFFIX}")
        head = {"format": FORMAT, "plan": asdict(plan), "machine": machine, "started": started, "version": version}
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
        self._append(json.dumps(head) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, records: Iterable[Record]) -> None:
        """Add ended requests, in any order.

        Raises:
            BadInput: the disk is full.
        """
        lines = [
            f'[{round(1e6 * planned)},{round(1e6 * sent)},{round(1e6 * ended)},{round(1e6 * lag)},{images},"{outcome}"]\n'
            for planned, sent, ended, lag, images, outcome in records
        ]
        self._append("".join(lines))

    def finish(self, client: ClientStatistics, server: ServerStatistics | None, server_missing: str = "") -> None:
        """Add the statistics, which completes the file.

        Raises:
            BadInput: the disk is full.
        """
        end = {
            "client": asdict(client),
            "server": None if server is None else asdict(server),
            "server_missing": server_missing,
        }
        self._append(json.dumps(end) + "\n")

    def _append(self, text: str) -> None:
        with writing(self._path):
            try:
                self._file.write(gzip.compress(text.encode(), COMPRESSION_LEVEL))
                self._file.flush()
            except OSError:
                with suppress(OSError):  # a later close would write the buffer again and hide this error
                    self._file.close()
                raise


def read_run(path: Path) -> Run:
    """Read a run; an incomplete file gives the requests before its end, and no ``client``.

    Raises:
        BadInput: the file is missing, damaged or has another format; the text names the line.
    """
    lines = _lines(path)
    head = _parse(lines[0] if lines else "", f"{path}, line 1", dict)
    if head.get("format") != FORMAT:
        raise BadInput(f"{path}: not a run file of format {FORMAT}; {NOT_A_RUN}")
    end: dict[str, Any] = {}
    if lines[-1].startswith("{") and len(lines) > 1:
        end = _parse(lines.pop(), f"{path}, last line", dict)
    try:
        return Run(
            plan=_plan(head["plan"]),
            records=_records(lines, path),
            client=_statistics(ClientStatistics, end.get("client")),
            server=_statistics(ServerStatistics, end.get("server")),
            server_missing=end.get("server_missing", "the run was interrupted"),
            machine=head["machine"],
            started=head["started"],
            version=head["version"],
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise BadInput(
            f"{path}: damaged, or written by another version of this tool ({type(error).__name__}: {error}); "
            "repeat the run"
        ) from None


def _lines(path: Path) -> list[str]:
    """Complete lines; an incomplete last line is dropped.

    ``gzip.open`` cannot distinguish a file cut within a member from a damaged one; zlib waits for more input.
    """
    content, member = bytearray(), zlib.decompressobj(GZIP_WBITS)
    try:
        with path.open("rb") as file:
            while rest := file.read(1 << 16):
                while rest:
                    content += member.decompress(rest)
                    rest = member.unused_data
                    if member.eof:
                        member = zlib.decompressobj(GZIP_WBITS)
    except zlib.error as error:
        if not content:
            raise BadInput(f"{path}: not compressed; {NOT_A_RUN}") from None
        lines = content.count(b"\n")
        raise BadInput(f"{path}, after line {lines}: damaged ({error}); copy it again or repeat the run") from None
    except OSError as error:
        raise BadInput(f"{path}: {reason(error)}; choose a readable file") from None
    return content.decode(errors="replace").split("\n")[:-1]


def _records(lines: list[str], path: Path) -> Records:
    """The lines between the first and the last one, sorted by planned time."""
    times: list[tuple[int, int, int, int]] = []
    images, outcome = [], []
    outcomes: dict[str, int] = {OK: 0}
    for number, line in enumerate(lines[1:], 2):
        match _parse(line, f"{path}, line {number}", list):
            case [int(planned), int(sent), int(ended), int(lag), int(size), str(name)] if 0 < size <= MAX_IMAGES:
                times.append((planned, sent, ended, lag))
                images.append(size)
                outcome.append(outcomes.setdefault(name, len(outcomes)))
            case _:
                raise BadInput(
                    f"{path}, line {number}: expected [planned, sent, ended, lag, images, outcome] with times in whole "
                    "microseconds; fix the line or repeat the run"
                )
    columns = np.array(times, np.float64).reshape(-1, 4)
    order = np.argsort(columns[:, 0], kind="stable")
    planned_s, sent_s, ended_s, lag_s = columns[order].T / 1e6
    sizes, codes = np.array(images, np.int32)[order], np.array(outcome, np.int16)[order]
    return Records(planned_s, sent_s, ended_s, lag_s, sizes, codes, tuple(outcomes))


def _parse(line: str, where: str, kind: type[Any]) -> Any:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise BadInput(f"{where}: damaged, or not a run file; {NOT_A_RUN}")
    return value


def _plan(values: dict[str, Any]) -> Plan:
    return Plan(**values | {"sizes": tuple((int(size), float(share)) for size, share in values["sizes"])})


def _statistics(kind: type[Statistics], values: dict[str, Any] | None) -> Statistics | None:
    """Restore what JSON cannot represent: integer keys and tuples."""
    if values is None:
        return None
    known = {each.name for each in fields(kind)}
    kept = {name: value for name, value in values.items() if name in known}
    kept["batches"] = {int(size): count for size, count in kept["batches"].items()}
    if "cpu_s" in kept:
        kept["cpu_s"] = tuple(kept["cpu_s"])
    return kind(**kept)
