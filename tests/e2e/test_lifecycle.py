"""Start, graceful shutdown, and every other end of a server: no accepted request is lost and no process remains."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import psutil
import pytest
from servers import run, serve_command
from waiting import until, wait_until

from alexnet_client import BatchOptions, BlockingClient, Client, RetryOptions, Unavailable
from alexnet_client.golden import GOLDEN, Golden, read_golden
from alexnet_export.publish import publish
from alexnet_server.onnxruntime.providers import ConfigError
from alexnet_server.onnxruntime.session import openvino_device
from alexnet_server.triton_process import DRAINED

IN_FLIGHT = 24
"""Requests of 16 images. Triton rejects requests that wait longer than 10 s, also on a slow machine."""


def shared_memory_of(launcher):
    return list(Path("/dev/shm").glob(f"alexnet_{launcher.pid}_*"))


@contextmanager
def nothing_remains(server):
    """Check that the block ends all processes of a server and deletes its shared memory."""
    processes = psutil.Process(server.process.pid).children(recursive=True)
    assert len(processes) >= 2, "tritonserver and a backend process"
    yield
    assert not psutil.wait_procs(processes, timeout=20)[1]
    assert not shared_memory_of(server.process)


async def test_a_graceful_shutdown_under_load_loses_no_accepted_request(launch, repository):
    success, pending = "nv_inference_request_success", "nv_inference_pending_request_count"
    images = np.zeros((16, 224, 224, 3), np.uint8)
    no_batching = BatchOptions(max_batch=1, min_in_flight=IN_FLIGHT, max_in_flight=IN_FLIGHT)
    with launch(repository) as server, nothing_remains(server):
        async with Client(
            server.target, timeout_s=60, batching=no_batching, retries=RetryOptions(max_attempts=1)
        ) as client:
            await client.infer(images)
            before = server.metric(success)
            tasks = [asyncio.create_task(client.infer(images)) for _ in range(IN_FLIGHT)]

            def accepted():
                """A lower bound: Triton counts a request that is being executed as neither pending nor successful."""
                return server.metric(success) - before + server.metric(pending)

            await until(lambda: accepted() >= IN_FLIGHT / 2, "half of the requests are accepted")
            accepted_at_least = accepted()
            completed_before = sum(task.done() for task in tasks)
            server.process.send_signal(signal.SIGTERM)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            with pytest.raises(Unavailable):
                await client.infer(images)
        assert completed_before < IN_FLIGHT, "the signal came after the last answer"
        rejected = [result for result in results if isinstance(result, BaseException)]
        assert all(isinstance(error, Unavailable) for error in rejected), rejected
        answered = [result for result in results if not isinstance(result, BaseException)]
        assert len(answered) >= accepted_at_least, rejected
        assert all(result.logits.shape == (16, 10) for result in answered)
        server.process.send_signal(signal.SIGTERM)  # a second SIGTERM changes nothing
        assert server.stop() == 0


def test_ctrl_c_is_a_graceful_shutdown_with_exit_code_0(cheap_server):
    with cheap_server() as server:
        with nothing_remains(server):
            assert server.stop(signal.SIGINT) == 0
        assert "Triton stopped." in server.process.stdout.read()
        assert "Fatal Python error" not in server.log.read_text(), "a backend process crashed during the shutdown"


def test_a_crash_after_the_last_accepted_request_is_reported_and_exits_with_0(cheap_server):
    with cheap_server() as server:
        triton = server.triton()
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: DRAINED in server.log.read_bytes(), "Triton is drained", every_s=0.01)
        triton.send_signal(signal.SIGSEGV)
        assert server.process.wait(30) == 0
        log = server.process.stderr.read()
    assert "crashed or hung while it unloaded its models; no request was lost" in log
    assert f'"exit_code": {128 + signal.SIGSEGV}' in log


def test_a_crash_before_the_last_accepted_request_is_an_error(cheap_server):
    with cheap_server() as server:
        triton = server.triton()
        triton.suspend()  # it cannot log that it is drained
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.health()[1]["state"] == "stopping", "the launcher stops")
        triton.send_signal(signal.SIGKILL)
        assert server.process.wait(30) == 128 + signal.SIGKILL


def test_triton_ends_with_a_killed_launcher(cheap_server):
    with cheap_server() as server:
        processes = psutil.Process(server.process.pid).children(recursive=True)
        server.process.kill()
        server.process.wait(10)
        assert not psutil.wait_procs(processes, timeout=20)[1]
        for region in shared_memory_of(server.process):
            region.unlink()


async def test_during_the_shutdown_delay_a_server_is_not_ready_and_serves_until_a_second_ctrl_c_kills_it(cheap_server):
    image = np.zeros((1, 224, 224, 3), np.uint8)
    with cheap_server("--shutdown-delay", "600") as server, nothing_remains(server):
        async with Client(server.target) as client:
            await client.infer(image)
            server.process.send_signal(signal.SIGINT)
            await until(lambda: server.health()[1]["state"] == "stopping", "the launcher stops")
            assert server.health()[0] == 503
            await client.infer(image)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 128 + signal.SIGKILL


def test_an_invalid_model_file_is_a_clear_error(cheap, tmp_path, free_port):
    repository = tmp_path / "repository"
    # Without a manifest, like a model of another tool: the launcher would reject ours before Triton reads it.
    shutil.copytree(cheap.repository, repository, ignore=shutil.ignore_patterns("model.onnx", "manifest.json"))
    (repository / "alexnet/1/model.onnx").write_bytes(b"not a model")
    done = run(serve_command(repository, free_port, "--log", tmp_path / "log"))
    assert done.returncode == 1
    assert "Triton exited during startup" in done.stderr
    assert "cannot load model.onnx" in done.stderr


@pytest.fixture
def republished(cheap, digits, tmp_path):
    """Publishes the cheap release again: the repository."""

    def publish_again(*, validated="onnxruntime", selected="onnxruntime", scale=1):
        repository = shutil.copytree(cheap.repository, tmp_path / "repository")
        golden = read_golden(repository / "alexnet/1")
        Golden(golden.images, scale * golden.logits).write(tmp_path / GOLDEN)
        files = {"model.onnx": repository / "alexnet/1/model.onnx", GOLDEN: tmp_path / GOLDEN}
        variant = {"name": "fp32", "engine": validated, "gate": "passed"}
        publish(repository, files, digits.labels, {"precision": "fp32", "engine": selected, "variants": [variant]})
        return repository

    return publish_again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 2}, "version 2 gives wrong answers with onnxruntime"),
        ({"validated": "openvino f32"}, "version 2 (fp32) was validated with 'openvino f32'"),
    ],
)
def test_a_release_that_answers_otherwise_than_validated_or_needs_another_engine_is_not_served(
    republished, tmp_path, free_port, change, message
):
    done = run(serve_command(republished(**change), free_port, "--log", tmp_path / "log"))
    assert done.returncode == 1
    assert message in done.stderr


def test_openvino_serves_where_its_plugin_has_a_device_and_is_a_clear_error_elsewhere(
    cheap, republished, launch, tmp_path, free_port
):
    images = read_golden(cheap.repository / "alexnet/1").images
    repository = republished(validated="openvino f32", selected="openvino f32")
    missing = ""
    try:
        openvino_device()
    except ConfigError as error:
        missing = str(error)
    if missing:
        done = run(serve_command(repository, free_port, "--log", tmp_path / "log"))
        assert done.returncode == 1
        assert missing in json.loads(done.stderr)["message"]
        return
    with launch(repository) as server, BlockingClient(server.target) as client:
        assert np.allclose(client.infer(images).logits, cheap.logits(images), atol=1e-3)
        assert 'engine="openvino f32"' in urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics").read().decode()


def test_a_command_runs_while_triton_serves_and_its_exit_code_is_returned(cheap, tmp_path, free_port):
    port = free_port()
    options = ("--grpc-port", port, "--log", tmp_path / "log")
    health = f"{sys.executable} -m alexnet_client health --target 127.0.0.1:{port}"
    done = run(serve_command(cheap.repository, free_port, *options, "--", "sh", "-c", f"{health} && exit 7"))
    assert done.returncode == 7, done.stderr
    assert "alexnet is ready" in done.stdout
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "Triton still listens after the end of the command"


def test_a_signal_ends_the_command_and_triton(cheap, tmp_path, free_port):
    command = ("--log", tmp_path / "log", "--", "sh", "-c", "echo on; exec sleep 60")
    arguments = [str(part) for part in serve_command(cheap.repository, free_port, *command)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"on\n"
        processes = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert not psutil.wait_procs(processes, timeout=10)[1]


def running_in_group(group):
    """Names of the processes of a group, without zombies."""
    found = []
    for process in psutil.process_iter(["pid", "name", "status"]):
        with suppress(ProcessLookupError):
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.info["pid"]) == group:
                found.append(process.info["name"])
    return found


def test_a_signal_while_triton_starts_leaves_no_process_and_no_shared_memory(cheap, tmp_path, free_port):
    log = tmp_path / "log"
    arguments = [str(part) for part in serve_command(cheap.repository, free_port, "--log", log)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: log.exists() and "loading: alexnet" in log.read_text(), "Triton loads the models")
        group = next(each.pid for each in psutil.Process(process.pid).children())
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    if "Serving" in output:  # Triton was ready before the signal
        assert process.returncode == 0
    else:
        assert process.returncode == 1
        assert json.loads(errors)["message"] == "stopped before Triton was ready"
    wait_until(lambda: not running_in_group(group), "all processes end")
    assert not shared_memory_of(process)


def test_without_a_terminal_every_log_line_is_json_and_tritons_lines_keep_their_level(cheap, free_port, tmp_path):
    port = free_port()
    command = serve_command(
        cheap.repository, free_port, "--grpc-port", port, "--", "sh", "-c", "cat $XDG_RUNTIME_DIR/*/*"
    )
    (tmp_path / "runtime").mkdir(mode=0o700)
    done = run(command, XDG_RUNTIME_DIR=str(tmp_path / "runtime"))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {each["logger"] for each in lines} == {"alexnet_server", "triton"}
    serving = next(each for each in lines if each["message"].startswith("Serving"))
    assert "alexnet" in serving["models"]
    assert serving["ports"]["gRPC"] == port
    of_triton = {(each["level"], each.get("source", "").split(":")[0]) for each in lines if each["logger"] == "triton"}
    assert ("INFO", "server.cc") in of_triton
    assert any(level == "WARNING" for level, _ in of_triton)
    key = done.stdout.strip().splitlines()[-1]
    assert len(key) >= 40
    assert key not in done.stderr
