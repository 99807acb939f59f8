"""``alexnet-load`` from the command line: tables, one JSON line, exit codes, no traceback for a user error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner
from waiting import wait_until

from alexnet_client.terminal import EXIT_CODES
from alexnet_load.cli import app
from alexnet_load.run import ClientStatistics, Plan
from alexnet_load.run_file import Record, RunWriter, read_run
from alexnet_load.slo_search import SearchResult


def called(*arguments):
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def last_json(result):
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_run_prints_a_table_and_a_json_line_and_writes_the_run_and_its_page(server, tmp_path):
    output = tmp_path / "a" / "b"
    options = ("--rate", 60, "--duration", 1, "--warm-up", 0.5, "--slo", "p99=20s,errors=1%", "--max-batch", 4)
    result = called("run", "--target", server.target, "--output", output, *options)
    assert result.exit_code == 0, result.stderr
    assert "response" in result.stdout
    assert "SLO met: p99 <= 20000 ms, errors <= 1 %" in result.stdout
    found = last_json(result)
    assert (found["errors"], found["slo"]["met"], found["page"]) == ({}, True, str(output / "index.html"))
    assert found["plan"]["batching"] == {"max_batch": 4}
    assert sorted(path.name for path in output.iterdir()) == ["index.html", "run.jsonl.gz"]
    records = read_run(output / "run.jsonl.gz").records
    assert found["requests"] == int((records.planned_s >= 0.5).sum())

    again = called("report", output / "run.jsonl.gz", "--output", tmp_path / "page.html", "--json")
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    for name in ("response_ms", "service_ms", "lag_ms", "ok_rate", "bottleneck"):
        assert json.loads(again.stdout)[name] == found[name]


@pytest.mark.slow
def test_run_exits_1_if_the_slo_is_violated_and_shows_the_kind_of_loop(server):
    result = called("run", "-t", server.target, "-c", 2, "-d", 0.5, "--warm-up", 0, "--slo", "p50=1us")
    assert result.exit_code == 1
    assert "SLO violated" in result.stdout
    assert "closed loop, closed:2" in result.stdout


@pytest.mark.parametrize(("slower_s", "exit_code"), [(0.0, 0), (0.2, 1)])
def test_compare_exits_1_if_the_second_run_is_slower(tmp_path, slower_s, exit_code):
    for name, took_s in (("a", 0.01), ("b", 0.01 + slower_s)):
        plan = Plan(arrivals="constant:50", duration_s=10, warm_up_s=0)
        with RunWriter(tmp_path / f"{name}.jsonl.gz", plan, machine="", started="", version="") as writer:
            writer.write(Record(time, time, time + took_s, 0.0, 1, "ok") for time in np.arange(500) / 50)
            writer.finish(ClientStatistics(), None)
    result = called("compare", tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz")
    assert result.exit_code == exit_code, result.stderr
    assert ("regression" in result.stdout) == bool(exit_code)
    assert last_json(result)["regressed"] is bool(exit_code)


@pytest.mark.slow
def test_slo_finds_the_highest_rate(server):
    options = ("--start-rate", 40, "--max-rate", 40, "--duration", 0.3, "--warm-up", 0.1, "--repeats", 1)
    result = called("slo", "p50=10s", "-t", server.target, *options)
    assert result.exit_code == 0, result.stderr
    assert "SLO met up to 40 requests/s" in result.stdout
    assert (last_json(result)["rate"], last_json(result)["violated_at"]) == (40, None)


def test_slo_exits_1_if_no_rate_meets_the_slo(monkeypatch):
    monkeypatch.setattr("alexnet_load.slo_search.search", lambda *_, **__: SearchResult(0.0, 0.02, (), "", ""))
    result = called("slo", "p50=1us")
    assert result.exit_code == 1
    assert "SLO violated at all rates" in result.stdout


@pytest.mark.slow
def test_sweep_writes_its_curve(server, tmp_path):
    options = ("--from", 20, "--to", 40, "--steps", 2, "--duration", 0.5, "--warm-up", 0, "-o", tmp_path / "sweep.html")
    result = called("sweep", "-t", server.target, *options, "--slo", "p99=1s")
    assert result.exit_code == 0, result.stderr
    assert [each["rate"] for each in last_json(result)["points"]] == pytest.approx([20, 40])
    assert "<svg" in (tmp_path / "sweep.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--rate", 5, "--concurrency", 2), "exclude each other"),
        (("run", "--arrivals", "sometimes:5"), "arrivals 'sometimes:5'"),
        (("run", "--sizes", "0"), "sizes '0'"),
        (("run", "--max-batch", 4, "--no-batching"), "exclude each other"),
        (("run", "--target", "nowhere"), "nowhere"),
        (("run", "--warm-up", 60), "the warm-up must be shorter than the run"),
        (("slo", "fast"), "invalid SLO 'fast'"),
        (("slo", "p99=1s", "--start-rate", 0), "a search needs a start rate above 0"),
        (("sweep", "--from", 50, "--to", 20), "needs a positive rate, a higher one"),
        (("sweep", "--slo", "p95=1s"), "its SLO must limit the p99"),
        (("sweep", "--output", "/proc/no/sweep.html"), "cannot be written"),
        (("report", "/no/such/run.jsonl.gz"), "no such file"),
        (("tune", "--slo", "p99=1s", "--repository", "/no/such/repository"), "choose a Triton model repository"),
    ],
)
def test_a_user_error_is_one_line_and_exits_2(arguments, message):
    result = called(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("alexnet-load: ")
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_an_unreachable_server_is_one_line_and_exits_1():
    command = [sys.executable, "-m", "alexnet_load", "run", "-t", "127.0.0.1:1", "--timeout", "0.3"]
    done = subprocess.run([*command, "--senders", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["ctrl-c", "sigterm"])
def test_ctrl_c_ends_a_run_with_a_report_and_sigterm_ends_the_senders(server, tmp_path, stop):
    command = [sys.executable, "-m", "alexnet_load", "run", "-t", server.target, "-d", "60", "-o", str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True) as process:
        file = tmp_path / "run.jsonl.gz"
        wait_until(lambda: process.poll() is not None or (file.exists() and file.stat().st_size > 500), "it sends")
        senders = psutil.Process(process.pid).children(recursive=True)
        if stop == "ctrl-c":
            os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the senders, too
        else:
            process.terminate()
        stdout, stderr = process.communicate(timeout=60)
    assert senders
    assert psutil.wait_procs(senders, timeout=60)[1] == []
    assert "Traceback" not in stderr
    if stop == "ctrl-c":
        assert process.returncode == 0, stderr
        found = json.loads(stdout.splitlines()[-1])
        assert (found["client"]["interrupted"], found["errors"]) == (True, {})
        assert "The run was interrupted." in stdout
    else:
        assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("command", ["run", "report", "compare", "slo", "sweep", "tune"])
def test_every_help_page_contains_the_exit_codes(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert EXIT_CODES in result.stdout
    if command not in ("report", "compare"):
        assert all(option in result.stdout for option in ("--sizes", "--images", "--senders", "--seed", "--model"))
        assert ("--target" in result.stdout) == (command != "tune"), "tune starts its own servers"


PROGRAM = """
import sys
sys.modules["hdrh"] = None
from alexnet_load.__main__ import main
try:
    main()
except SystemExit as end:
    del sys.modules["hdrh"]
    import alexnet_load.cli
    print(end.code, "matplotlib" in sys.modules)
"""


def test_a_missing_package_is_reported_with_its_remedy_and_the_commands_do_not_import_matplotlib():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "2 False\n"), done.stderr
    assert "pip install 'alexnet-client[load]'" in done.stderr
    assert "Traceback" not in done.stderr
