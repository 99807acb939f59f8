"""Start, stop, and everything that ends a server: nothing accepted is lost and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from alexnet_client import BatchOptions, Client, RetryOptions, Unavailable
from alexnet_server.triton_process import DRAINED

IN_FLIGHT = 24  # of 16 images: a slow machine must not keep one waiting for the 10 s after which Triton refuses it


async def ask(target: str) -> np.ndarray:
    async with Client(target, timeout_s=60) as client:
        return (await client.infer(np.full((1, 224, 224, 3), 99, np.uint8))).logits


async def wait_for(condition, what: str, timeout_s: float = 20) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"{what}: not within {timeout_s} s"
        await asyncio.sleep(0.05)


def running_in_group(group: int) -> list[str]:
    """Names of the processes of a group that still run; the dead ones that nobody has reaped do not count."""
    found = []
    for process in psutil.process_iter(["pid", "name", "status"]):
        with suppress(ProcessLookupError):
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.info["pid"]) == group:
                found.append(process.info["name"])
    return found


async def test_a_stop_under_load_loses_no_accepted_request(own_server):
    with own_server() as server:
        success, pending = "nv_inference_request_success", "nv_inference_pending_request_count"
        images = np.zeros((16, 224, 224, 3), np.uint8)
        no_batching = BatchOptions(max_batch=1, min_in_flight=IN_FLIGHT, max_in_flight=IN_FLIGHT)
        once = RetryOptions(max_attempts=1)
        async with Client(server.target, timeout_s=60, batching=no_batching, retries=once) as client:
            await client.infer(images)
            before = server.metric(success)
            tasks = [asyncio.create_task(client.infer(images)) for _ in range(IN_FLIGHT)]

            def accepted() -> float:
                """At least so many has Triton accepted, by its own counters; those that run now are in neither."""
                return server.metric(success) - before + server.metric(pending)

            await wait_for(lambda: accepted() >= IN_FLIGHT / 2, "half of the requests accepted")
            promised = accepted()
            answered_before_the_signal = sum(task.done() for task in tasks)
            server.process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            with pytest.raises(Unavailable):
                await client.infer(images)
        assert answered_before_the_signal < IN_FLIGHT, "the signal came under load"
        # What Triton had not accepted is refused, in so many words or by a closed port; what it had is answered.
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert all(isinstance(error, Unavailable) for error in refused), refused
        answered = [answer for answer in answers if not isinstance(answer, BaseException)]
        assert len(answered) >= promised, refused
        assert all(answer.logits.shape == (16, 10) for answer in answered)
        server.process.send_signal(signal.SIGTERM)  # an impatient supervisor changes nothing
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_orderly_stop_exits_with_zero_and_leaves_no_process(cheap_server, number):
    with cheap_server() as server:
        family = psutil.Process(server.process.pid).children(recursive=True)
        assert len(family) >= 2, "tritonserver and a backend process"
        assert server.stop(number) == 0
        assert "Triton stopped." in server.process.stdout.read()
        _gone, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert not list(Path("/dev/shm").glob(f"alexnet_{server.process.pid}_*"))
    assert "Fatal Python error" not in server.log.read_text(), "a backend process crashed at its end"


def test_a_crash_after_everything_was_answered_is_told_and_ends_well(cheap_server):
    with cheap_server() as server:
        triton = server.triton()
        server.process.send_signal(signal.SIGTERM)
        while DRAINED not in server.log.read_bytes():
            time.sleep(0.01)
        triton.send_signal(signal.SIGSEGV)
        assert server.process.wait(30) == 0
        said = server.process.stderr.read()
    assert (
        "Triton completed all requests, then crashed or hung while it unloaded its models; no request was lost" in said
    )
    assert f'"exit_code": {128 + signal.SIGSEGV}' in said


def test_a_crash_before_everything_was_answered_is_an_error(cheap_server):
    with cheap_server() as server:
        triton = server.triton()
        triton.suspend()  # it cannot say that nothing is left
        server.process.send_signal(signal.SIGTERM)
        while server.health()[1]["state"] != "stopping":
            time.sleep(0.02)
        triton.send_signal(signal.SIGKILL)
        assert server.process.wait(30) == 128 + signal.SIGKILL


def test_a_second_ctrl_c_waits_for_nothing_and_leaves_no_process(cheap_server):
    with cheap_server() as server:
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.process.send_signal(signal.SIGINT)
        while server.health()[1]["state"] != "stopping":
            time.sleep(0.02)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 128 + signal.SIGKILL
        _gone, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert not list(Path("/dev/shm").glob(f"alexnet_{server.process.pid}_*"))


async def test_a_restart_on_the_same_ports_serves_the_same_answers(cheap_server, free_port):
    port = free_port()
    answers = []
    for _ in range(2):
        with cheap_server("--grpc-port", str(port)) as server:
            answers.append(await ask(f"127.0.0.1:{port}"))
            assert server.stop() == 0
    assert np.array_equal(*answers)


def test_triton_dies_with_a_launcher_that_is_killed(cheap_server):
    with cheap_server() as server:
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.process.kill()
        server.process.wait(10)
        _gone, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def test_a_taken_port_is_told_with_its_owner_before_anything_starts(server, repository, free_port):
    port = server.target.split(":")[1]
    command = [sys.executable, "-m", "alexnet_server", "serve", "--repository", str(repository), "--grpc-port", port]
    command += ["--metrics-port", str(free_port()), "--health-port", "0"]
    started = time.monotonic()
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"port {port} (gRPC): in use by tritonserver (pid {server.triton().pid})" in done.stderr
    assert "choose another port (--grpc-port" in done.stderr
    assert time.monotonic() - started < 15


def test_a_broken_model_file_ends_in_a_clear_error(repository, tmp_path, free_port):
    broken = tmp_path / "repository"
    # Without a manifest, as somebody's own model: ours would be refused before Triton sees it.
    shutil.copytree(repository, broken, ignore=shutil.ignore_patterns("model.onnx", "manifest.json"))
    (broken / "alexnet/1/model.onnx").write_bytes(b"not a model")
    command = [
        *(sys.executable, "-m", "alexnet_server", "serve", "--repository", str(broken), "--log", str(tmp_path / "log")),
        *("--grpc-port", str(free_port()), "--metrics-port", str(free_port()), "--health-port", "0"),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Triton exited during startup" in done.stderr
    assert "cannot load model.onnx" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_runs_while_triton_serves_and_its_exit_code_is_passed_on(cheap, tmp_path, free_port):
    port, metrics = free_port(), free_port()

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable, "-m", "alexnet_server", "serve", "--repository", str(cheap.repository)]
        options = [
            "--grpc-port",
            str(port),
            "--metrics-port",
            str(metrics),
            "--health-port",
            "0",
            "--log",
            str(tmp_path / "log"),
            "--",
        ]
        return subprocess.run([*launcher, *options, *command], check=False, capture_output=True, text=True, timeout=90)

    health = [sys.executable, "-m", "alexnet_client", "health", "--target", f"127.0.0.1:{port}"]
    good = run(*health)
    assert (good.returncode, "alexnet is ready" in good.stdout) == (0, True)
    assert run("sh", "-c", "exit 7").returncode == 7
    missing = run("no-such-program")
    assert missing.returncode == 2
    assert "no-such-program: command not found; Triton was not started" in missing.stderr
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "Triton is stopped when the command has ended"


def test_a_signal_while_a_command_runs_ends_the_command_and_triton(cheap, tmp_path, free_port):
    launcher = [sys.executable, "-m", "alexnet_server", "serve", "--repository", str(cheap.repository)]
    options = [
        "--grpc-port",
        str(free_port()),
        "--metrics-port",
        str(free_port()),
        "--health-port",
        "0",
        "--log",
        str(tmp_path / "log"),
        "--",
    ]
    with subprocess.Popen(
        [*launcher, *options, "sh", "-c", "echo on; exec sleep 60"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"on\n"
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert not psutil.wait_procs(family, timeout=10)[1]


@pytest.mark.parametrize("delay_s", [0.0, 0.5])
def test_a_signal_while_triton_starts_leaves_no_process_and_no_shared_memory(repository, tmp_path, free_port, delay_s):
    launcher = [sys.executable, "-m", "alexnet_server", "serve", "--repository", str(repository)]
    options = [
        "--grpc-port",
        str(free_port()),
        "--metrics-port",
        str(free_port()),
        "--health-port",
        "0",
        "--log",
        str(tmp_path / "log"),
    ]
    with subprocess.Popen([*launcher, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "log").exists() or "loading: alexnet" not in (tmp_path / "log").read_text():
            time.sleep(0.02)
        group = next(each.pid for each in psutil.Process(process.pid).children())
        time.sleep(delay_s)
        process.send_signal(signal.SIGTERM)
        said, complained = process.communicate(timeout=60)
    if "Serving" in said:  # a fast machine was ready before the signal came
        assert process.returncode == 0
    else:
        assert process.returncode == 1
        assert json.loads(complained)["message"] == "stopped before Triton was ready"
    time.sleep(0.2)
    assert not running_in_group(group)
    assert not list(Path("/dev/shm").glob(f"alexnet_{process.pid}_*"))


def test_without_a_terminal_every_line_is_json_and_tritons_keep_their_levels(cheap, free_port, tmp_path):
    ports = [str(free_port()) for _ in range(3)]
    command = [
        sys.executable,
        "-m",
        "alexnet_server",
        "serve",
        "--repository",
        cheap.repository,
        "--grpc-port",
        ports[0],
    ]
    command += ["--metrics-port", ports[1], "--health-port", ports[2], "--", "sh", "-c", "cat $XDG_RUNTIME_DIR/*/*"]
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {each["logger"] for each in lines} == {"alexnet_server", "triton"}
    serving = next(each for each in lines if each["message"].startswith("Serving"))
    assert "alexnet" in serving["models"]
    assert serving["ports"]["gRPC"] == int(ports[0])
    from_triton = {
        (each["level"], each.get("source", "").split(":")[0]) for each in lines if each["logger"] == "triton"
    }
    assert ("INFO", "server.cc") in from_triton
    assert any(level == "WARNING" for level, _ in from_triton)
    key = done.stdout.strip().splitlines()[-1]
    assert len(key) >= 40
    assert key not in done.stderr


async def test_with_notice_it_says_that_it_will_stop_and_goes_on_serving_for_a_while(cheap_server):
    image = np.zeros((1, 224, 224, 3), np.uint8)
    with cheap_server("--shutdown-delay", "2") as server:
        async with Client(server.target) as client:
            await client.infer(image)
            server.process.send_signal(signal.SIGTERM)
            await wait_for(lambda: server.health()[1]["state"] == "stopping", "it says so")
            assert server.health()[0] == 503
            await client.infer(image)
        assert server.process.wait(30) == 0
