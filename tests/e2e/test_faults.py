"""Faults of a serving machine: the server recovers or exits with a clear error, and no result is wrong."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest
from servers import Load, run, serve_command
from waiting import until

from alexnet_client import BatchOptions, Client, RetryOptions

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3)).astype(np.uint8)
NO_BATCHING = {
    "batching": BatchOptions(max_batch=1, min_in_flight=300, max_in_flight=300),
    "retries": RetryOptions(max_attempts=1),
}
"""Each call is one request, without retries: these tests are about the server."""


@asynccontextmanager
async def loaded(server, cheap, callers=8):
    async with (
        Client(server.target, timeout_s=5, **NO_BATCHING) as client,
        Load(client, IMAGES, cheap.logits(IMAGES), callers=callers) as load,
    ):
        await load.wait_for_answers(20)
        yield load


def restarts(server):
    return server.health()[1]["restarts"]


async def wait_for_restart(server, number=1):
    await until(lambda: restarts(server) == number and server.health()[0] == 200, f"it is ready after restart {number}")


@pytest.fixture(scope="module")
def recovering(cheap_server):
    with cheap_server("--probe-interval", 1, "--hang-timeout", 3, "--max-restarts", 10) as server:
        yield server


@pytest.mark.parametrize(
    ("victim", "number", "reason"),
    [
        (lambda server: server.stub("alexnet"), signal.SIGKILL, "of alexnet ended unexpectedly"),
        (lambda server: server.triton(), signal.SIGKILL, "Triton exited with code 137"),
        (lambda server: server.triton(), signal.SIGSTOP, "executed nothing for"),
    ],
    ids=["backend killed", "triton killed", "triton stopped"],
)
async def test_a_server_with_a_killed_or_stopped_process_is_not_ready_and_is_restarted(
    recovering, cheap, victim, number, reason
):
    before = restarts(recovering)
    async with loaded(recovering, cheap) as load:
        victim(recovering).send_signal(number)
        code, body = await until(lambda: (found := recovering.health())[0] != 200 and found, "it is not ready")
        assert code == 503
        assert reason in body["reason"]
        await wait_for_restart(recovering, before + 1)
        await load.wait_for_answers(20)
        assert load.outcomes["wrong"] == 0, load.outcomes


async def test_a_stopped_backend_process_of_an_idle_server_is_detected_by_probes(recovering):
    before = restarts(recovering)
    recovering.stub("alexnet_decode").send_signal(signal.SIGSTOP)
    await until(lambda: recovering.health()[0] == 503, "it is not ready")
    await wait_for_restart(recovering, before + 1)
    async with Client(recovering.target) as client:
        assert await client.ready()


async def test_an_overloaded_server_is_not_restarted(cheap_server, cheap):
    with cheap_server("--probe-interval", "0.2", "--hang-timeout", "1") as server:
        triton = server.triton().pid
        async with loaded(server, cheap, callers=300) as load:
            for _ in range(5):
                assert server.health()[0] == 200, server.health()
                await load.wait_for_answers(300)
        assert server.triton().pid == triton


async def test_repeated_failures_end_the_launcher_with_an_error(cheap_server):
    with cheap_server("--max-restarts", "1") as server:
        server.triton().kill()
        await wait_for_restart(server)
        assert "Serving again alexnet" in server.process.stdout.readline()
        server.triton().kill()
        assert server.process.wait(30) == 1
        log = server.process.stderr.read()
    assert "Restarting Triton (1 of 1)" in log
    assert "Triton exited with code 137" in log
    assert "the limit of 1 restarts in a row is reached (--max-restarts)" in log
    assert "Traceback" not in log


async def test_a_model_file_damaged_while_serving_changes_no_result_and_prevents_a_restart(launch, cheap, tmp_path):
    repository = shutil.copytree(cheap.repository, tmp_path / "repository")
    with launch(repository, "--max-restarts", 1) as server:
        async with loaded(server, cheap) as load:
            (repository / "alexnet/1/model.onnx").write_bytes(b"damaged")
            await load.wait_for_answers(20)
            assert set(load.outcomes) == {"correct"}
            server.stub("alexnet").kill()
            assert server.process.wait(30) == 1
            assert load.outcomes["wrong"] == 0
        log = server.process.stderr.read()
    assert "its SHA-256 differs" in log
    assert "roll back (alexnet-export rollback)" in log


async def test_a_full_disk_for_the_log_does_not_stop_the_server(cheap_server, cheap):
    with cheap_server("--log", "/dev/full") as server:
        async with loaded(server, cheap) as load:
            assert set(load.outcomes) == {"correct"}
        assert server.stop() == 0


async def test_a_request_that_crashes_tritons_http_server_causes_one_restart(cheap_server, free_port):
    """CVE-2025-23310: a body of a million one-byte chunks overflows the stack of 2.51. This is why HTTP is off by default."""
    port = free_port()
    with cheap_server("--http-port", str(port)) as server:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(
                b"POST /v2/models/alexnet/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for _ in range(60):
                connection.sendall(b"1\r\nA\r\n" * 20_000)
            connection.sendall(b"0\r\n\r\n")
            connection.recv(100)
        await wait_for_restart(server)
        async with Client(server.target) as client:
            assert await client.ready()
        server.end()
        assert "Triton exited with code 139" in server.process.stderr.read()


SHM_PROBE = """
import asyncio, os, numpy as np, sys
from alexnet_client import BatchOptions, Client, RetryOptions
from alexnet_client.errors import ClientError

async def infer(client, images):
    try:
        return (await client.infer(images)).logits
    except ClientError as error:
        return type(error).__name__

async def main(target):
    images = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3)).astype(np.uint8)
    batching = BatchOptions(max_batch=1, min_in_flight=4, max_in_flight=4)
    async with Client(target, timeout_s=20, batching=batching, retries=RetryOptions(max_attempts=1)) as client:
        expected = await infer(client, images)
        with open("/dev/shm/filler", "wb", buffering=0) as filler:
            try:
                while filler.write(bytes(2**20)):
                    pass
            except OSError as error:
                print(error.strerror)
        for _ in range(3):
            found = await asyncio.gather(*(infer(client, images) for _ in range(4)))
            for each in found:
                print(each if isinstance(each, str) else "correct" if np.allclose(each, expected, atol=1e-3) else "wrong")
        os.unlink("/dev/shm/filler")
        for _ in range(100):
            if not isinstance(await infer(client, images[:1]), str):
                print("serving")
                break
            await asyncio.sleep(0.2)

asyncio.run(main(sys.argv[1]))
"""


def test_full_shared_memory_corrupts_no_result_and_the_server_recovers(cheap, tmp_path, free_port):
    (tmp_path / "probe.py").write_text(SHM_PROBE)
    port = free_port()
    options = ("--grpc-port", port, "--log", tmp_path / "log")
    probe = (sys.executable, tmp_path / "probe.py", f"127.0.0.1:{port}")
    mount = 'mount -t tmpfs -o size=200m tmpfs /dev/shm && exec "$@"'
    own_mounts = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    done = run([*own_mounts, *serve_command(cheap.repository, free_port, *options, "--", *probe)])
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No space left on device" in lines
    assert "wrong" not in lines
    assert lines[-1] == "serving", lines


def test_a_repository_path_with_spaces_is_rejected(cheap, tmp_path, free_port):
    """Triton starts its backend processes through a shell."""
    repository = shutil.copytree(cheap.repository, tmp_path / "two words")
    done = run(serve_command(repository, free_port))
    assert done.returncode == 1
    assert "spaces or other special characters in its path" in done.stderr
