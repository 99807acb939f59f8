"""``BlockingClient``: the same results without an event loop, from any number of threads."""

from __future__ import annotations

import inspect
import itertools
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from waiting import wait_until

from alexnet_client import BadInput, BatchOptions, BlockingClient, Client, Closed, ImageError
from alexnet_client.fake import Step

THREADS = 12


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "alexnet-client"]


@pytest.fixture
def server(threaded_server):
    return threaded_server


@pytest.fixture
def client(server):
    with BlockingClient(server.target) as client:
        yield client


def test_the_results_are_those_of_the_asynchronous_client(client, image):
    result = client.classify(image(1), top=2)
    assert (result.label, len(result.top), result.model_version) == ("dog", 2, "1")
    assert client.infer(np.stack([image(2), image(0)])).probabilities.argmax(1).tolist() == [2, 0]
    assert client.labels() == ("cat", "dog", "bird: small")
    assert client.ready()


def test_classify_many_has_the_parameters_of_the_asynchronous_one():
    ours, theirs = (inspect.signature(each.classify_many).parameters.values() for each in (BlockingClient, Client))
    assert [(each.name, each.default) for each in ours] == [(each.name, each.default) for each in theirs]


def test_images_of_several_threads_share_requests(server, client, image):
    client.labels()
    server.requests.clear()
    server.delay_s = 0.05  # the first image is sent alone, the others share batches meanwhile
    barrier = threading.Barrier(THREADS)

    def classify(number: int) -> int:
        barrier.wait()
        return client.classify(image(number % 3)).top[0].index

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(classify, range(THREADS))) == [number % 3 for number in range(THREADS)]
    assert sum(not each.requests_labels for each in server.requests) < THREADS


def test_a_stream_has_the_order_of_the_images_and_reads_at_most_window_images_ahead(client, image):
    taken = received = ahead = 0

    def images():
        nonlocal taken, ahead
        assert threading.current_thread() is threading.main_thread()
        for taken in range(1, 101):
            ahead = max(ahead, taken - received)
            yield image(taken % 3)

    for received, result in enumerate(client.classify_many(images(), window=5), 1):
        assert result.top[0].index == received % 3
    assert received == 100
    assert ahead <= 5


def test_an_error_in_a_stream_is_raised_or_yielded_in_its_place(client, image):
    images = [image(0), b"no image", image(1)]
    results = client.classify_many(images)
    assert next(results).label == "cat"
    with pytest.raises(ImageError):
        next(results)
    first, error, last = client.classify_many(images, return_errors=True)
    assert isinstance(error, ImageError)
    assert (first.label, last.label) == ("cat", "dog")


def test_closing_a_stream_early_cancels_its_requests(server, image):
    images_sent = itertools.count()
    server.choose = lambda received: Step(hang=not received.requests_labels and next(images_sent) > 0)
    with BlockingClient(server.target, batching=BatchOptions(max_batch=1)) as client:
        results = client.classify_many(image(number) for number in range(9))
        assert next(results).label == "cat"
        wait_until(lambda: server.working > 0, "a request hangs")
        results.close()
        wait_until(lambda: server.working == 0, "the requests are cancelled")


async def test_it_is_rejected_inside_an_event_loop(client, image):
    for use in (BlockingClient, client.ready, lambda: next(client.classify_many([image(0)]))):
        with pytest.raises(BadInput, match="use Client with await there"):
            use()


@pytest.fixture
def sigint():
    """The default handler of SIGINT; a shell starts background processes with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_cancels_only_the_interrupted_call(server, client, image, sigint):
    def interrupt(_) -> Step:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return Step(hang=True)

    client.labels()
    server.choose = interrupt
    with pytest.raises(KeyboardInterrupt):
        client.classify(image(1))
    wait_until(lambda: server.working == 0, "the request is cancelled")
    server.choose = lambda received: Step()
    assert client.classify(image(1)).label == "dog"


def test_closing_fails_calls_of_other_threads_and_later_calls(server, image):
    server.hang = True
    client = BlockingClient(server.target)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(client.classify, image(0)), pool.submit(client.labels)]
        wait_until(lambda: server.working == 2, "both requests are at the server")
        client.close()
        client.close()
        for call in calls:
            assert isinstance(call.exception(60), Closed)
    for use in (client.ready, lambda: client.classify(image(0)), lambda: list(client.classify_many([image(0)]))):
        with pytest.raises(Closed):
            use()


def test_its_thread_ends_with_it_and_after_invalid_arguments(server):
    before = client_threads()
    with BlockingClient(server.target):
        assert len(client_threads()) == len(before) + 1
    assert client_threads() == before
    with pytest.raises(BadInput, match="timeout_s must be positive"):
        BlockingClient(server.target, timeout_s=0)
    with pytest.raises(TypeError, match="timeout_h"):
        BlockingClient(server.target, timeout_h=1)
    wait_until(lambda: client_threads() == before, "the thread ends")


def test_a_program_that_does_not_close_it_ends(server):
    program = f"import alexnet_client; assert alexnet_client.BlockingClient({server.target!r}).ready()"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
