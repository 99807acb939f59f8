"""What can go wrong with a serving machine, done to it: each ends in service or in a clear exit, and no answer is wrong."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from alexnet_client import BatchOptions, Client, RetryOptions
from alexnet_client.errors import ClientError

PATIENCE_S = 60
# Each call is a request of its own and made once: what is tested here is the server.
PLAIN = {
    "batching": BatchOptions(max_batch=1, min_in_flight=300, max_in_flight=300),
    "retries": RetryOptions(max_attempts=1),
}
QUICK = ("--probe-interval", "1", "--hang-timeout", "5")


async def until(condition, what: str):
    """The first true value of ``condition``, asked again and again."""
    give_up = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < give_up, f"{what}: not within {PATIENCE_S} s"
        await asyncio.sleep(0.05)
    return found


@asynccontextmanager
async def load(target: str, callers: int = 8):
    """Callers that ask all the time; yields what became of their requests: right, wrong, or an exception's name."""
    images = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3)).astype(np.uint8)
    outcomes: Counter[str] = Counter()
    async with Client(target, timeout_s=5, **PLAIN) as client:
        expected = (await client.infer(images)).logits

        async def call(row: int) -> None:
            row %= len(images)
            while True:
                try:
                    logits = (await client.infer(images[row : row + 1])).logits[0]
                    right = np.allclose(logits, expected[row], atol=1e-4 * np.ptp(expected))
                    outcomes["right" if right else "wrong"] += 1
                except ClientError as error:
                    outcomes[type(error).__name__] += 1
                    await asyncio.sleep(0.02)

        tasks = [asyncio.create_task(call(row)) for row in range(callers)]
        try:
            yield outcomes
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def answers(target: str, outcomes: Counter[str]) -> None:
    before = outcomes["right"]
    await until(lambda: outcomes["right"] > before + 20, f"good answers from {target}")


@pytest.mark.parametrize(
    ("victim", "number", "reason"),
    [
        (lambda server: server.stub("alexnet"), signal.SIGKILL, "of alexnet ended unexpectedly"),
        (lambda server: server.triton(), signal.SIGKILL, "Triton exited with code 137"),
        (lambda server: server.triton(), signal.SIGSTOP, "executed nothing for"),
    ],
    ids=["backend killed", "triton killed", "triton stopped"],
)
async def test_a_process_that_is_killed_or_stopped_is_replaced_and_readiness_tells_the_truth(
    cheap_server, victim, number, reason
):
    with cheap_server(*QUICK) as server:
        assert server.health()[0] == 200
        async with load(server.target) as outcomes:
            await answers(server.target, outcomes)
            victim(server).send_signal(number)
            code, body = await until(lambda: (found := server.health())[0] != 200 and found, "unready")
            assert code == 503
            await until(lambda: server.health()[0] == 200, "ready again")
            await answers(server.target, outcomes)
            assert outcomes["wrong"] == 0, outcomes
        restarts = server.health()[1]["restarts"]
        assert "Serving again alexnet" in server.process.stdout.readline()
        assert server.stop() == 0
        complaint = server.process.stderr.read()
        assert reason in complaint, (complaint, body)
        assert restarts == 1, complaint
        assert "Restarting Triton (1 of 5)" in complaint
        assert "Traceback" not in complaint


async def test_a_stopped_backend_of_an_idle_server_is_found_out_too(cheap_server):
    with cheap_server(*QUICK) as server:
        server.stub("alexnet_decode").send_signal(signal.SIGSTOP)
        await until(lambda: server.health()[0] == 503, "unready")
        await until(lambda: server.health()[1]["restarts"] == 1 and server.health()[0] == 200, "ready again")
        async with Client(server.target) as client:
            assert await client.ready()


async def test_a_server_under_more_load_than_it_can_take_is_left_alone(own_server):
    with own_server(*QUICK) as server:
        pid = server.triton().pid
        async with load(server.target, callers=300):
            for _ in range(20):
                assert server.health()[0] == 200, server.health()
                await asyncio.sleep(0.2)
        assert server.triton().pid == pid


async def test_repeated_failures_end_in_a_clear_exit(cheap_server):
    with cheap_server("--max-restarts", "1") as server:
        server.triton().kill()
        await until(lambda: "Serving again" in server.process.stdout.readline(), "serving again")
        server.triton().kill()
        assert server.process.wait(30) == 1
        complaint = server.process.stderr.read()
    assert "Triton exited with code 137" in complaint
    assert "Not restarted: the limit of 1 restarts in a row is reached (--max-restarts)" in complaint


@pytest.mark.parametrize("damage", ["removed", "corrupted"])
async def test_a_model_file_that_is_damaged_while_serving_does_no_harm_until_a_restart_which_says_so(
    own_server, cheap, tmp_path, damage
):
    mine = tmp_path / "repository"
    shutil.copytree(cheap.repository, mine)
    with own_server("--max-restarts", "1", repository=mine) as server:
        async with load(server.target) as outcomes:
            model = mine / "alexnet/1/model.onnx"
            model.unlink() if damage == "removed" else model.write_bytes(b"damaged")
            await answers(server.target, outcomes)
            assert set(outcomes) == {"right"}
            server.stub("alexnet").kill()
            assert server.process.wait(30) == 1
            assert outcomes["wrong"] == 0
        complaint = server.process.stderr.read()
    assert (
        "model.onnx: missing" in complaint
        if damage == "removed"
        else "its SHA-256 differs" in complaint
    )
    assert "roll back (alexnet-export rollback)" in complaint


async def test_a_full_disk_below_the_log_does_not_stop_the_service(cheap_server):
    with cheap_server("--log", "/dev/full") as server:
        async with load(server.target) as outcomes:
            await answers(server.target, outcomes)
            assert set(outcomes) == {"right"}
        assert server.stop() == 0


async def test_a_request_that_is_known_to_crash_tritons_http_costs_a_restart(cheap_server, free_port):
    """CVE-2025-23310: a body of a million one-byte chunks overflows the stack of 2.51. It is why HTTP is off by default."""
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
        await until(lambda: server.health()[1]["restarts"] == 1 and server.health()[0] == 200, "ready again")
        async with Client(server.target) as client:
            assert await client.ready()
        assert server.stop() == 0
        assert "Triton exited with code 139" in server.process.stderr.read()


SHM_PROBE = """
import asyncio, numpy as np, sys
from alexnet_client import BatchOptions, Client, RetryOptions
from alexnet_client.errors import ClientError

async def ask(client, images):
    try:
        return (await client.infer(images)).logits
    except ClientError as error:
        return type(error).__name__

async def main(target):
    images = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3)).astype(np.uint8)
    batching = BatchOptions(max_batch=1, min_in_flight=4, max_in_flight=4)
    async with Client(target, timeout_s=20, batching=batching, retries=RetryOptions(max_attempts=1)) as client:
        expected = await ask(client, images)
        with open("/dev/shm/filler", "wb", buffering=0) as filler:
            try:
                while filler.write(bytes(2**20)):
                    pass
            except OSError as error:
                print(error.strerror)
        for _ in range(3):
            found = await asyncio.gather(*(ask(client, images) for _ in range(4)))
            for each in found:
                print(each if isinstance(each, str) else "right" if np.allclose(each, expected, atol=1e-3) else "wrong")
        import os; os.unlink("/dev/shm/filler")
        for _ in range(100):
            if not isinstance(await ask(client, images[:1]), str):
                print("serving")
                break
            await asyncio.sleep(0.2)

asyncio.run(main(sys.argv[1]))
"""


def test_full_shared_memory_harms_no_answer_and_ends_in_service(repository, tmp_path, free_port):
    """In a mount namespace of its own, with a small /dev/shm."""
    (tmp_path / "probe.py").write_text(SHM_PROBE)
    port = free_port()
    serve = [
        *(
            sys.executable,
            "-m",
            "alexnet_server",
            "serve",
            "--repository",
            str(repository),
            "--log",
            str(tmp_path / "log"),
        ),
        *("--grpc-port", str(port), "--metrics-port", str(free_port()), "--health-port", "0", "--"),
        *(sys.executable, str(tmp_path / "probe.py"), f"127.0.0.1:{port}"),
    ]
    inside = 'mount -t tmpfs -o size=200m tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside, "sh", *serve],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=dict(os.environ),
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No space left on device" in lines
    assert "wrong" not in lines
    assert lines[-1] == "serving", lines


def test_too_little_shared_memory_is_told_before_the_start(repository, tmp_path, free_port):
    serve = [
        *(sys.executable, "-m", "alexnet_server", "serve", "--repository", str(repository)),
        *("--grpc-port", str(free_port()), "--metrics-port", str(free_port()), "--health-port", "0"),
    ]
    inside = 'mount -t tmpfs -o size=20m tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside, "sh", *serve],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "shared memory: /dev/shm: 20 MiB free" in done.stderr
    assert "docker run --shm-size=1g" in done.stderr


def test_a_path_that_tritons_shell_would_split_is_refused(repository, tmp_path, free_port):
    spaced = Path(tmp_path, "my models")
    spaced.symlink_to(repository)
    real = tmp_path / "two words"
    shutil.copytree(repository, real)
    command = [sys.executable, "-m", "alexnet_server", "serve", "--repository", str(real), "--health-port", "0"]
    command += ["--grpc-port", str(free_port()), "--metrics-port", str(free_port())]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "spaces or other special characters in its path" in done.stderr
