"""A run's file: what was written is read again, whatever became of the process; what is damaged is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alexnet_client.errors import BadInput
from alexnet_load.results import Record, RunWriter, merge, read_run
from alexnet_load.run import OK, ClientSide, Plan, Records, ServerSide

PLAN = Plan(arrivals="constant:10", sizes=((1, 0.8), (8, 0.2)), batching={"max_batch": 4})
CLIENT = ClientSide(
    wall_s=60.5,
    cpu_s=(1.25, 1.5),
    attempts={OK: 9, "deadline_exceeded": 1},
    batches={1: 7, 8: 2},
    errors={"deadline_exceeded": "after 1 s"},
)
SERVER = ServerSide(success=9, batches={1: 3, 6: 2}, busy_s=0.5, rejected=0)

micros = st.integers(0, 4_000_000_000)
a_record = st.builds(
    lambda planned, late, took, images, outcome: Record(
        planned / 1e6, (planned + late) / 1e6, (planned + late + took) / 1e6, late / 2e6, images, outcome
    ),
    micros,
    st.integers(0, 1_000_000),
    st.integers(0, 60_000_000),
    st.integers(1, 1024),
    st.sampled_from([OK, "deadline_exceeded", "overloaded", "cancelled"]),
)


def opened(path: Path, plan: Plan = PLAN) -> RunWriter:
    return RunWriter(path, plan, machine="two processors", started="2026-01-02T03:04:05+00:00", version="1.2.3")


def steady(count: int, *, outcome: str = OK) -> list[Record]:
    return [Record(place / 10, place / 10, place / 10 + 0.02, 0.0, 1, outcome) for place in range(count)]


def as_tuples(records: Records) -> list[tuple[int, int, int, int, int, str]]:
    columns = [records.planned_s, records.sent_s, records.ended_s, records.late_s]
    times = np.rint(1e6 * np.stack(columns)).astype(int).T.tolist()
    names = [records.outcomes[code] for code in records.outcome]
    return [(*each, images, name) for each, images, name in zip(times, records.images.tolist(), names, strict=True)]


def in_micros(record: Record) -> tuple[int, int, int, int, int, str]:
    planned, sent, ended, late = (round(1e6 * each) for each in record[:4])
    return planned, sent, ended, late, record.images, record.outcome


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.lists(st.lists(a_record, max_size=6), max_size=5))
def test_every_record_survives_to_the_microsecond_in_the_order_of_planned_times(tmp_path, writes):
    with opened(tmp_path / "run.jsonl.gz") as writer:
        for each in writes:
            writer.write(each)
        writer.finish(CLIENT, SERVER)
    written = [in_micros(each) for records in writes for each in records]
    assert as_tuples(read_run(tmp_path / "run.jsonl.gz").records) == sorted(written, key=lambda each: each[0])


def test_the_plan_and_both_sides_survive_with_their_types(tmp_path):
    with opened(tmp_path / "run.jsonl.gz") as writer:
        writer.finish(CLIENT, SERVER)
    run = read_run(tmp_path / "run.jsonl.gz")
    assert (run.plan, run.client, run.server, run.server_missing) == (PLAN, CLIENT, SERVER, "")
    assert (run.machine, run.started, run.version) == ("two processors", "2026-01-02T03:04:05+00:00", "1.2.3")


def test_the_reason_for_a_missing_server_side_is_kept(tmp_path):
    with opened(tmp_path / "run.jsonl.gz") as writer:
        writer.finish(CLIENT, None, "no administration key")
    run = read_run(tmp_path / "run.jsonl.gz")
    assert run.server is None
    assert run.server_missing == "no administration key"


def test_other_tools_read_the_file_line_by_line(tmp_path):
    with opened(tmp_path / "run.jsonl.gz") as writer:
        writer.write([Record(0.1, 0.100_2, 0.123_456_7, 0.000_1, 4, "deadline_exceeded")])
        writer.finish(CLIENT, SERVER)
    head, record, end = map(json.loads, gzip.decompress((tmp_path / "run.jsonl.gz").read_bytes()).splitlines())
    assert head["plan"]["arrivals"] == "constant:10"
    assert record == [100_000, 100_200, 123_457, 100, 4, "deadline_exceeded"]
    assert end["client"]["attempts"] == {OK: 9, "deadline_exceeded": 1}


def test_what_was_written_is_on_disk_before_the_writer_is_closed(tmp_path):
    with opened(tmp_path / "run.jsonl.gz") as writer:
        writer.write(steady(3))
        run = read_run(tmp_path / "run.jsonl.gz")
    assert len(run.records) == 3
    assert run.client is None
    assert run.server_missing == "the run was cut off"


def test_a_file_cut_anywhere_gives_the_records_before_the_cut(tmp_path):
    path, cut = tmp_path / "run.jsonl.gz", tmp_path / "cut.jsonl.gz"
    with opened(path) as writer:
        head = path.stat().st_size
        writer.write(steady(5))
        writer.write(steady(9)[5:])
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


def test_an_older_run_is_replaced(tmp_path):
    for count in (5, 2):
        with opened(tmp_path / "run.jsonl.gz") as writer:
            writer.write(steady(count))
    assert len(read_run(tmp_path / "run.jsonl.gz").records) == 2


def test_directories_are_made(tmp_path):
    with opened(tmp_path / "a" / "b" / "run.jsonl.gz"):
        pass
    assert len(read_run(tmp_path / "a" / "b" / "run.jsonl.gz").records) == 0


@pytest.mark.parametrize("name", ["run.json", "run.gz", "run"])
def test_a_file_has_the_name_that_says_what_it_is(tmp_path, name):
    with pytest.raises(BadInput, match=r"\*\.jsonl\.gz"):
        opened(tmp_path / name)


def test_a_place_where_nothing_can_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"file/run\.jsonl\.gz: the run cannot be written"):
        opened(tmp_path / "file" / "run.jsonl.gz")


def test_a_full_disk_is_told(tmp_path):
    (tmp_path / "run.jsonl.gz").symlink_to("/dev/full")
    with pytest.raises(BadInput, match="no space left"):
        opened(tmp_path / "run.jsonl.gz")


def test_closing_does_not_hide_that_the_disk_became_full(tmp_path, monkeypatch):
    writer = opened(tmp_path / "run.jsonl.gz")
    writer._file.close()
    with Path("/dev/full").open("wb") as full:
        monkeypatch.setattr(writer, "_file", full)
        with pytest.raises(BadInput, match="no space left"), writer:
            writer.write(steady(1))


def compressed(path: Path, *lines: str) -> Path:
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
def test_a_damaged_line_is_named(tmp_path, line):
    path = compressed(tmp_path / "run.jsonl.gz", HEAD, '[1,2,3,0,1,"ok"]', line, '[1,2,3,0,1,"ok"]')
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
def test_another_format_or_a_damaged_head_or_end_is_refused_with_the_path(tmp_path, lines):
    with pytest.raises(BadInput, match=r"run\.jsonl\.gz"):
        read_run(compressed(tmp_path / "run.jsonl.gz", *lines))


def test_a_file_that_is_not_compressed_is_refused(tmp_path):
    (tmp_path / "run.jsonl.gz").write_text("planned,sent,ended\n")
    with pytest.raises(BadInput, match="not compressed; name a"):
        read_run(tmp_path / "run.jsonl.gz")


@pytest.mark.parametrize("where", [20, -6])
def test_a_flipped_byte_is_damage_and_no_cut(tmp_path, where):
    path = tmp_path / "run.jsonl.gz"
    with opened(path) as writer:
        size = path.stat().st_size
        writer.write(steady(50))
        writer.finish(CLIENT, SERVER)
    content = bytearray(path.read_bytes())
    content[size + where if where > 0 else where] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"run\.jsonl\.gz, after line \d+: damaged"):
        read_run(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"run\.jsonl\.gz: no such file"):
        read_run(tmp_path / "run.jsonl.gz")


def test_merging_unites_the_outcomes_and_orders_by_planned_time():
    def part(planned, codes, outcomes):
        times = np.array(planned, np.float64)
        return Records(
            times,
            times,
            times + 1,
            0 * times,
            np.arange(1, len(times) + 1, dtype=np.int32),
            np.array(codes, np.int16),
            outcomes,
        )

    merged = merge(
        [
            part([0.0, 2.0], [0, 1], (OK, "deadline_exceeded")),
            part([1.0, 3.0], [1, 2], (OK, "overloaded", "deadline_exceeded")),
        ]
    )
    assert merged.outcomes == (OK, "deadline_exceeded", "overloaded")
    assert [merged.outcomes[code] for code in merged.outcome] == [
        OK,
        "overloaded",
        "deadline_exceeded",
        "deadline_exceeded",
    ]
    assert merged.planned_s.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert merged.images.tolist() == [1, 1, 2, 2]
