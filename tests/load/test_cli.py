"""``alexnet-load`` as it is used: tables, one JSON line, exit codes, no traceback for a mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from typer.testing import CliRunner

from alexnet_client.fake import FakeServer
from alexnet_load.__main__ import app
from alexnet_load.results import Record, RunWriter, read_run


@pytest.fixture(scope="module")
def server():
    with FakeServer(max_batch_size=8).in_thread() as running:
        yield running


def called(*arguments):
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def kept(server, tmp_path_factory):
    """What a run of six seconds printed, and the directory it left."""
    output = tmp_path_factory.mktemp("runs") / "a" / "b"
    short = ("--rate", 60, "--duration", 6, "--warm-up", 0.5, "--slo", "p99=2s,errors=1%")
    return called("run", "--target", server.target, "--output", output, *short), output


def test_a_run_prints_a_table_and_last_a_json_line_and_keeps_its_records_and_page(kept):
    result, output = kept
    assert result.exit_code == 0, result.stderr
    assert "response" in result.stdout
    assert "p99 up to 2000 ms, errors up to 1 %: kept" in result.stdout
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["errors"] == {}
    assert found["slo"]["kept"] is True
    assert found["page"] == str(output / "index.html")
    assert sorted(path.name for path in output.iterdir()) == ["index.html", "run.jsonl.gz"]
    records = read_run(output / "run.jsonl.gz").records
    assert found["requests"] == int((records.planned_s >= 0.5).sum())


def test_a_run_is_told_of_again_from_its_file(kept, tmp_path):
    result, output = kept
    again = called("report", output / "run.jsonl.gz", "--output", tmp_path / "page.html", "--json")
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    before, after = json.loads(result.stdout.splitlines()[-1]), json.loads(again.stdout)
    for name in ("response_ms", "service_ms", "lag_ms", "ok_rate", "verdict"):
        assert after[name] == before[name]


def test_a_run_compared_with_itself_is_no_regression(kept):
    file = kept[1] / "run.jsonl.gz"
    result = called("compare", file, file)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["regressed"] is False


def test_a_slower_run_fails_the_gate(kept, tmp_path):
    run = read_run(kept[1] / "run.jsonl.gz")
    with RunWriter(tmp_path / "run.jsonl.gz", run.plan, machine="", started="", version="") as writer:
        times = zip(run.records.planned_s, run.records.sent_s, run.records.ended_s, strict=True)
        writer.write(Record(planned, sent, ended + 0.2, 0.0, 1, "ok") for planned, sent, ended in times)
        writer.finish(run.client, None)
    result = called("compare", kept[1] / "run.jsonl.gz", tmp_path / "run.jsonl.gz")
    assert result.exit_code == 1
    assert "regression" in result.stdout


def test_an_objective_that_is_not_kept_exits_1(server):
    result = called("run", "-t", server.target, "-r", 40, "-d", 0.6, "--warm-up", 0, "--slo", "p50=1us")
    assert result.exit_code == 1
    assert "NOT kept" in result.stdout


def test_a_closed_loop_is_named_as_such(server):
    result = called("run", "-t", server.target, "-c", 2, "-d", 0.5, "--warm-up", 0)
    assert result.exit_code == 0, result.stderr
    assert "closed loop, closed:2" in result.stdout


def test_the_search_for_the_highest_rate_goes_up_to_the_most_allowed(server):
    """So wide an objective that no pause of this machine breaks it; where the search ends if one is broken, test_slo knows."""
    short = ("--start", 20, "--most", 40, "--duration", 0.6, "--warm-up", 0.1, "--repeats", 1)
    result = called("slo", "p50=10s", "-t", server.target, *short)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["rate"] == 40
    assert "more was not asked for" in found["why"]
    assert [each["rate"] for each in found["trials"]] == [20, 40]


def test_a_sweep_draws_its_curve(server, tmp_path):
    options = ("--from", 20, "--to", 80, "--steps", 3, "--duration", 0.5, "--warm-up", 0, "-o", tmp_path / "sweep.html")
    result = called("sweep", "-t", server.target, *options, "--slo", "p99=1s")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert [each["rate"] for each in found["points"]] == pytest.approx([20, 40, 80])
    assert "<svg" in (tmp_path / "sweep.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "--rate", 5, "--concurrency", 2), "exclude each other"),
        (("run", "--arrivals", "sometimes:5"), "arrivals 'sometimes:5'"),
        (("run", "--slo", "p99=soon"), "it is such as p99=50ms"),
        (("run", "--sizes", "0"), "sizes '0'"),
        (("run", "--batch", 4, "--no-batching"), "exclude each other"),
        (("run", "--target", "nowhere"), "not an address of the form host:port"),
        (("run", "--target", "127.0.0.1:1", "--timeout", 0.2), "no server responds"),
        (("run", "--warm-up", 60), "the warm-up"),
        (("slo", "fast"), "objective 'fast'"),
        (("sweep", "--from", 50, "--to", 20), "from a positive rate to a higher one"),
        (("sweep", "--slo", "p95=1s"), "its objective is one of p99"),
        (("sweep", "--output", "/proc/no/sweep.html"), "nothing can be written there"),
        (("report", "/no/such/run.jsonl.gz"), "no such file"),
        (("compare", "/no/such/a.jsonl.gz", "/no/such/b.jsonl.gz"), "no such file"),
        (("tune", "--slo", "p99=1s", "--repository", "/no/such/repository"), "name a Triton model repository"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(arguments, says):
    result = called(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.startswith("alexnet-load: ")
    assert "Traceback" not in result.output


def test_ctrl_c_ends_with_a_report(server, tmp_path):
    command = [sys.executable, "-m", "alexnet_load", "run", "-t", server.target, "-d", "60", "-o", tmp_path]
    with subprocess.Popen(
        [str(each) for each in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while not (tmp_path / "run.jsonl.gz").exists() or (tmp_path / "run.jsonl.gz").stat().st_size < 500:
            assert process.poll() is None, process.stderr.read()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: the senders hear it too
        printed, complained = process.communicate(timeout=30)
    found = json.loads(printed.splitlines()[-1])
    assert process.returncode == 0, complained
    assert found["client"]["interrupted"] is True
    assert "The run was broken off before its time." in printed
    assert found["errors"] == {}


def test_who_is_told_to_end_ends_its_senders(server, tmp_path):
    command = [sys.executable, "-m", "alexnet_load", "run", "-t", server.target, "-d", "60", "-o", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run.jsonl.gz").exists():
            assert process.poll() is None, process.stderr.read()
        senders = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        _, complained = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert senders
    assert psutil.wait_procs(senders, timeout=10)[1] == []
    assert "Traceback" not in complained


@pytest.mark.parametrize("senders", [1, 3])
def test_a_dead_server_is_one_line_however_many_senders_there_are(senders, free_port):
    command = [sys.executable, "-m", "alexnet_load", "run", "-t", f"127.0.0.1:{free_port()}", "--timeout", "0.3"]
    done = subprocess.run([*command, "--senders", str(senders)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("command", ["run", "slo", "sweep", "tune"])
def test_every_command_that_plans_has_the_options_of_a_plan(command):
    helped = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert helped.exit_code == 0
    assert all(option in helped.stdout for option in ("--sizes", "--images", "--senders", "--seed", "--model"))
    assert ("--target" in helped.stdout) == (command != "tune"), "tune starts servers of its own"


def test_what_is_missing_of_the_installation_is_said():
    program = "import sys; sys.modules['hdrh'] = None\nfrom alexnet_load.start import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'alexnet-client[load]'" in done.stderr
    assert "Traceback" not in done.stderr
