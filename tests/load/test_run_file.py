"""Run files: complete and incomplete files can be read, damaged ones are rejected."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from alexnet_client.errors import BadInput
from alexnet_load.run import OK, ClientStatistics, Plan, ServerStatistics
from alexnet_load.run_file import Record, RunWriter, read_run

PLAN = Plan(arrivals="constant:10", sizes=((1, 0.8), (8, 0.2)), batching={"max_batch": 4})
CLIENT = ClientStatistics(
    wall_s=60.5,
    cpu_s=(1.25, 1.5),
    attempts={OK: 9, "deadline_exceeded": 1},
    batches={1: 7, 8: 2},
    errors={"deadline_exceeded": "after 1 s"},
)
SERVER = ServerStatistics(success=9, batches={1: 3, 6: 2}, busy_s=0.5)


def open_writer(path: Path) -> RunWriter:
    return RunWriter(path, PLAN, machine="2 CPUs", started="2026-01-02T03:04:05+00:00", version="1.2.3")


def write_lines(path: Path, *lines: str) -> Path:
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return path


def records(numbers: range) -> list[Record]:
    return [Record(each / 10, each / 10, each / 10 + 0.02, 0.0, 1, OK) for each in numbers]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "run.jsonl.gz"


@pytest.mark.parametrize(("server", "missing"), [(SERVER, ""), (None, "no administration key")])
def test_the_file_contains_one_json_value_per_line_from_which_the_run_is_restored(tmp_path, server, missing):
    path = tmp_path / "a" / "b" / "run.jsonl.gz"
    with open_writer(path) as writer:
        writer.write([Record(0.1, 0.100_2, 0.123_456_7, 0.000_1, 4, "deadline_exceeded")])
        writer.write([Record(0.05, 4000.000_001, 4000.5, 0.0, 1, OK)])
        writer.finish(CLIENT, server, missing)
    head, record, _, end = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    assert head["plan"]["arrivals"] == "constant:10"
    assert record == [100_000, 100_200, 123_457, 100, 4, "deadline_exceeded"]
    assert end["client"]["attempts"] == {OK: 9, "deadline_exceeded": 1}
    run = read_run(path)
    assert (run.plan, run.client, run.server, run.server_missing) == (PLAN, CLIENT, server, missing)
    found = run.records
    assert (found.planned_s.tolist(), found.sent_s.tolist()) == ([0.05, 0.1], [4000.000_001, 0.100_2]), (
        "by planned time"
    )
    assert (found.ended_s.tolist(), found.lag_s.tolist()) == ([4000.5, 0.123_457], [0.0, 0.000_1])
    assert (found.images.tolist(), [found.outcomes[each] for each in found.outcome]) == (
        [1, 4],
        [OK, "deadline_exceeded"],
    )
    assert (run.machine, run.started, run.version) == ("2 CPUs", "2026-01-02T03:04:05+00:00", "1.2.3")


def test_an_incomplete_file_gives_the_records_before_its_end(tmp_path):
    path, cut = tmp_path / "run.jsonl.gz", tmp_path / "cut.jsonl.gz"
    path.write_text("an existing file is replaced")
    with open_writer(path) as writer:
        head = path.stat().st_size
        writer.write(records(range(5)))
        writer.write(records(range(5, 9)))
        before_end = path.stat().st_size
        run = read_run(path)
        assert (len(run.records), run.client, run.server_missing) == (9, None, "the run was interrupted")
        writer.finish(CLIENT, SERVER)
    content, whole, counts = path.read_bytes(), read_run(path).records.planned_s.tolist(), []
    for size in range(head, len(content), 3):
        cut.write_bytes(content[:size])
        run = read_run(cut)
        assert run.records.planned_s.tolist() == whole[: len(run.records)]
        counts.append(len(run.records))
        assert run.client is None or size > before_end
    assert counts == sorted(counts)
    assert {0, 5, 9} <= set(counts)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((each, r"must end with \.jsonl\.gz") for each in ("run.json", "run.gz", "run")),
        ("file/run.jsonl.gz", r"file/run\.jsonl\.gz: cannot be written"),
        ("full.jsonl.gz", "the disk is full"),
    ],
)
def test_a_file_that_cannot_be_written_is_rejected(tmp_path, name, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "full.jsonl.gz").symlink_to("/dev/full")
    with pytest.raises(BadInput, match=message):
        open_writer(tmp_path / name)


HEAD = json.dumps({"format": 1, "plan": {"sizes": [[1, 1.0]]}, "machine": "", "started": "", "version": ""})


@pytest.mark.parametrize(
    "line",
    [
        "[1,2,3,0,1]", '[1,2,3,0,1,"ok",5]', '[1,2,"3",0,1,"ok"]', '[1,2,3.5,0,1,"ok"]', "[1,2,3,0,1,0]",
        '[1,2,3,0,99999999999,"ok"]', '[1,2,3,0,1,["ok"]]', '[1,2,3,0,1,"o', '{"planned": 1}', "",
    ],
)  # fmt: skip
def test_a_damaged_line_is_rejected_with_its_number(path, line):
    with pytest.raises(BadInput, match=r"run\.jsonl\.gz, line 3"):
        read_run(write_lines(path, HEAD, '[1,2,3,0,1,"ok"]', line, '[1,2,3,0,1,"ok"]'))


@pytest.mark.parametrize(
    "lines",
    [
        (HEAD, '{"client": {"batches": []}}'),
        (HEAD, '{"client": {}}'),
        (HEAD, '{"client": {"batches": {"one": 1}}}'),
        ('{"format": 1}',),
        (HEAD.replace("sizes", "colours"),),
        ('{"format": 2}',),
        ("[]",),
        (),
    ],
)
def test_another_format_or_a_damaged_first_or_last_line_is_rejected(path, lines):
    with pytest.raises(BadInput, match=r"run\.jsonl\.gz"):
        read_run(write_lines(path, *lines))


def test_a_missing_file_and_one_that_is_not_compressed_are_rejected(tmp_path):
    with pytest.raises(BadInput, match=r"run\.jsonl\.gz: no such file"):
        read_run(tmp_path / "run.jsonl.gz")
    (tmp_path / "run.jsonl.gz").write_text("planned,sent,ended\n")
    with pytest.raises(BadInput, match="not compressed; use a"):
        read_run(tmp_path / "run.jsonl.gz")


@pytest.mark.parametrize("where", [20, -6])
def test_a_changed_byte_is_reported_as_damage(path, where):
    with open_writer(path) as writer:
        size = path.stat().st_size
        writer.write(records(range(50)))
        writer.finish(CLIENT, SERVER)
    content = bytearray(path.read_bytes())
    content[size + where if where > 0 else where] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"run\.jsonl\.gz, after line \d+: damaged"):
        read_run(path)
