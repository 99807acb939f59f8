"""Run files: complete and incomplete files can be read, damaged ones are rejected."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alexnet_client.errors import BadInput
from alexnet_load.run import OK, ClientStatistics, Plan, Records, ServerStatistics
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

MICROS = st.integers(0, 4_000_000_000)
A_RECORD = st.builds(
    lambda planned, lag, took, images, outcome: Record(
        planned / 1e6, (planned + lag) / 1e6, (planned + lag + took) / 1e6, lag / 2e6, images, outcome
    ),
    MICROS,
    st.integers(0, 1_000_000),
    st.integers(0, 60_000_000),
    st.integers(1, 1024),
    st.sampled_from([OK, "deadline_exceeded", "overloaded", "cancelled"]),
)


def open_writer(path: Path, plan: Plan = PLAN) -> RunWriter:
    return RunWriter(path, plan, machine="2 CPUs", started="2026-01-02T03:04:05+00:00", version="1.2.3")


def records(count: int, *, outcome: str = OK) -> list[Record]:
    return [Record(place / 10, place / 10, place / 10 + 0.02, 0.0, 1, outcome) for place in range(count)]


def as_tuples(records: Records) -> list[tuple[int, int, int, int, int, str]]:
    columns = [records.planned_s, records.sent_s, records.ended_s, records.lag_s]
    times = np.rint(1e6 * np.stack(columns)).astype(int).T.tolist()
    names = [records.outcomes[code] for code in records.outcome]
    return [(*each, images, name) for each, images, name in zip(times, records.images.tolist(), names, strict=True)]


def in_micros(record: Record) -> tuple[int, int, int, int, int, str]:
    planned, sent, ended, lag = (round(1e6 * each) for each in record[:4])
    return planned, sent, ended, lag, record.images, record.outcome


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.lists(st.lists(A_RECORD, max_size=6), max_size=5))
def test_records_are_restored_to_the_microsecond_in_the_order_of_planned_times(tmp_path, writes):
    with open_writer(tmp_path / "run.jsonl.gz") as writer:
        for each in writes:
            writer.write(each)
        writer.finish(CLIENT, SERVER)
    written = [in_micros(each) for records in writes for each in records]
    assert as_tuples(read_run(tmp_path / "run.jsonl.gz").records) == sorted(written, key=lambda each: each[0])


@pytest.mark.parametrize(("server", "missing"), [(SERVER, ""), (None, "no administration key")])
def test_the_plan_and_the_statistics_are_restored_with_their_types(tmp_path, server, missing):
    with open_writer(tmp_path / "a" / "b" / "run.jsonl.gz") as writer:
        writer.finish(CLIENT, server, missing)
    run = read_run(tmp_path / "a" / "b" / "run.jsonl.gz")
    assert (run.plan, run.client, run.server, run.server_missing) == (PLAN, CLIENT, server, missing)
    assert (run.machine, run.started, run.version) == ("2 CPUs", "2026-01-02T03:04:05+00:00", "1.2.3")


def test_the_file_contains_one_json_value_per_line(tmp_path):
    with open_writer(tmp_path / "run.jsonl.gz") as writer:
        writer.write([Record(0.1, 0.100_2, 0.123_456_7, 0.000_1, 4, "deadline_exceeded")])
        writer.finish(CLIENT, SERVER)
    head, record, end = map(json.loads, gzip.decompress((tmp_path / "run.jsonl.gz").read_bytes()).splitlines())
    assert head["plan"]["arrivals"] == "constant:10"
    assert record == [100_000, 100_200, 123_457, 100, 4, "deadline_exceeded"]
    assert end["client"]["attempts"] == {OK: 9, "deadline_exceeded": 1}


def test_written_records_can_be_read_before_the_file_is_closed(tmp_path):
    with open_writer(tmp_path / "run.jsonl.gz") as writer:
        writer.write(records(3))
        run = read_run(tmp_path / "run.jsonl.gz")
    assert len(run.records) == 3
    assert run.client is None
    assert run.server_missing == "the run was interrupted"


def test_an_incomplete_file_gives_the_records_before_its_end(tmp_path):
    path, cut = tmp_path / "run.jsonl.gz", tmp_path / "cut.jsonl.gz"
    with open_writer(path) as writer:
        head = path.stat().st_size
        writer.write(records(5))
        writer.write(records(9)[5:])
        before_end = path.stat().st_size
        writer.finish(CLIENT, SERVER)
    content, counts = path.read_bytes(), []
    for size in range(head, len(content)):
        cut.write_bytes(content[:size])
        run = read_run(cut)
        assert as_tuples(run.records) == as_tuples(read_run(path).records)[: len(run.records)]
        counts.append(len(run.records))
        assert run.client is None or size > before_end
    assert counts == sorted(counts)
    assert {0, 5, 9} <= set(counts)


def test_an_existing_file_is_replaced(tmp_path):
    for count in (5, 2):
        with open_writer(tmp_path / "run.jsonl.gz") as writer:
            writer.write(records(count))
    assert len(read_run(tmp_path / "run.jsonl.gz").records) == 2


@pytest.mark.parametrize("name", ["run.json", "run.gz", "run"])
def test_a_file_name_with_another_suffix_is_rejected(tmp_path, name):
    with pytest.raises(BadInput, match=r"must end with \.jsonl\.gz"):
        open_writer(tmp_path / name)


def test_a_path_that_cannot_be_written_is_rejected(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"file/run\.jsonl\.gz: cannot be written"):
        open_writer(tmp_path / "file" / "run.jsonl.gz")


def test_a_full_disk_is_reported(tmp_path):
    (tmp_path / "run.jsonl.gz").symlink_to("/dev/full")
    with pytest.raises(BadInput, match="the disk is full"):
        open_writer(tmp_path / "run.jsonl.gz")


def write_lines(path: Path, *lines: str) -> Path:
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return path


HEAD = json.dumps({"format": 1, "plan": {"sizes": [[1, 1.0]]}, "machine": "", "started": "", "version": ""})


@pytest.mark.parametrize(
    "line",
    [
        "[1,2,3,0,1]",
        '[1,2,3,0,1,"ok",5]',
        '[1,2,"3",0,1,"ok"]',
        '[1,2,3.5,0,1,"ok"]',
        "[1,2,3,0,1,0]",
        '[1,2,3,0,99999999999,"ok"]',
        '[1,2,3,0,1,["ok"]]',
        '[1,2,3,0,1,"o',
        '{"planned": 1}',
        "",
    ],
)
def test_a_damaged_line_is_rejected_with_its_number(tmp_path, line):
    path = write_lines(tmp_path / "run.jsonl.gz", HEAD, '[1,2,3,0,1,"ok"]', line, '[1,2,3,0,1,"ok"]')
    with pytest.raises(BadInput, match=r"run\.jsonl\.gz, line 3"):
        read_run(path)


@pytest.mark.parametrize(
    "lines",
    [
        (HEAD, '{"client": {"batches": []}}'),
        (HEAD, '{"client": {}}'),
        (HEAD, '{"client": {"batches": {"one": 1}}}'),
        ('{"format": 1}',),
        ('{"format": 1, "plan": {"sizes": [[1, 1.0]], "colour": "red"}, "machine": "", "started": "", "version": ""}',),
        ('{"format": 2}',),
        ("[]",),
        (),
    ],
)
def test_another_format_or_a_damaged_first_or_last_line_is_rejected(tmp_path, lines):
    with pytest.raises(BadInput, match=r"run\.jsonl\.gz"):
        read_run(write_lines(tmp_path / "run.jsonl.gz", *lines))


def test_a_file_that_is_not_compressed_is_rejected(tmp_path):
    (tmp_path / "run.jsonl.gz").write_text("planned,sent,ended\n")
    with pytest.raises(BadInput, match="not compressed; use a"):
        read_run(tmp_path / "run.jsonl.gz")


@pytest.mark.parametrize("where", [20, -6])
def test_a_changed_byte_is_reported_as_damage(tmp_path, where):
    path = tmp_path / "run.jsonl.gz"
    with open_writer(path) as writer:
        size = path.stat().st_size
        writer.write(records(50))
        writer.finish(CLIENT, SERVER)
    content = bytearray(path.read_bytes())
    content[size + where if where > 0 else where] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"run\.jsonl\.gz, after line \d+: damaged"):
        read_run(path)


def test_a_missing_file_is_rejected_with_its_path(tmp_path):
    with pytest.raises(BadInput, match=r"run\.jsonl\.gz: no such file"):
        read_run(tmp_path / "run.jsonl.gz")
