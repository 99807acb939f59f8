"""``BlockingClient``: the same answers without an event loop, from any number of threads."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from alexnet_client import BadInput, BatchOptions, BlockingClient, Client, Closed, ImageError
from alexnet_client.fake import Step

THREADS = 12


def image(kind: int) -> np.ndarray:
    return np.full((224, 224, 3), kind, np.uint8)


def until(condition) -> None:
    given_up_s = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < given_up_s
        time.sleep(0.002)


def living() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "alexnet-client"]


@pytest.fixture
def server(scripted_elsewhere):
    return scripted_elsewhere[0]


@pytest.fixture
def client(server):
    with BlockingClient(server.target) as client:
        yield client


def test_a_caller_that_waits_gets_what_one_that_awaits_gets(client):
    answer = client.classify(image(1), top=2)
    assert (answer.label, len(answer.top), answer.model_version) == ("dog", 2, "1")
    assert client.infer(np.stack([image(2), image(0)])).probabilities.argmax(1).tolist() == [2, 0]
    assert client.labels() == ("cat", "dog", "bird: small")
    assert client.ready()


@pytest.mark.parametrize("name", ["classify", "infer", "labels", "ready", "classify_many"])
def test_each_method_takes_what_the_asynchronous_one_takes(name):
    ours, theirs = (inspect.signature(getattr(each, name)).parameters for each in (BlockingClient, Client))
    assert [(each.name, each.default) for each in ours.values()] == [
        (each.name, each.default) for each in theirs.values()
    ]


def test_images_of_several_threads_share_requests(server, client):
    client.labels()
    server.requests.clear()
    server.delay_s = 0.05  # the first image goes alone, the others find each other meanwhile
    together = threading.Barrier(THREADS)

    def classify(number: int) -> int:
        together.wait()
        return client.classify(image(number % 3)).top[0].index

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(classify, range(THREADS))) == [number % 3 for number in range(THREADS)]
    work = [request.images for request in server.requests if not request.asks_labels]
    assert sum(work) == THREADS
    assert len(work) < THREADS


def test_a_stream_is_answered_in_order_and_no_more_is_taken_than_the_window_holds(client):
    taken = given = most = 0

    def images():
        nonlocal taken, most
        for taken in range(1, 101):
            most = max(most, taken - given)
            yield image(taken % 3)

    for given, answer in enumerate(client.classify_many(images(), window=5), 1):
        assert answer.top[0].index == given % 3
    assert given == 100
    assert most <= 5


def test_images_are_taken_in_the_thread_of_the_caller(client):
    def images():
        yield image(threading.get_ident() == threading.main_thread().ident)

    (answer,) = client.classify_many(images())
    assert answer.label == "dog"


def test_a_broken_image_raises_in_its_place(client):
    answers = client.classify_many([image(0), b"no image", image(1)])
    assert next(answers).label == "cat"
    with pytest.raises(ImageError):
        next(answers)


def test_errors_are_given_in_their_place_to_who_asks_for_them(client):
    first, error, last = client.classify_many([image(0), b"no image", image(1)], return_errors=True)
    assert isinstance(error, ImageError)
    assert (first.label, last.label) == ("cat", "dog")


def test_a_stream_that_is_closed_early_cancels_what_is_under_way(server):
    def after_the_first(received) -> Step:
        return Step(hang=not received.asks_labels and sum(not each.asks_labels for each in server.requests) > 1)

    server.choose = after_the_first
    with BlockingClient(server.target, batching=BatchOptions(max_batch=1)) as client:
        answers = client.classify_many(image(number) for number in range(9))
        assert next(answers).label == "cat"
        until(lambda: server.working > 0)
        answers.close()
        until(lambda: server.working == 0)


async def test_inside_an_event_loop_it_is_refused(client):
    with pytest.raises(BadInput, match="use Client there"):
        BlockingClient()
    with pytest.raises(BadInput, match="use Client there"):
        client.ready()
    with pytest.raises(BadInput, match="use Client there"):
        next(client.classify_many([image(0)]))


@pytest.fixture
def interruptible():
    """What a shell starts in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_cancels_the_call_that_it_interrupts_and_no_other(server, client, interruptible):
    def interrupt(_) -> Step:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return Step(hang=True)

    client.labels()
    server.choose = interrupt
    with pytest.raises(KeyboardInterrupt):
        client.classify(image(1))
    until(lambda: server.working == 0)
    server.choose = lambda received: Step()
    assert client.classify(image(1)).label == "dog"


def test_closing_twice_is_fine_and_a_closed_client_says_so(server):
    client = BlockingClient(server.target)
    client.close()
    client.close()
    for use in (client.ready, client.labels, lambda: client.classify(image(0))):
        with pytest.raises(Closed):
            use()
    with pytest.raises(Closed):
        list(client.classify_many([image(0)]))


def test_calls_of_other_threads_are_told_that_it_was_closed(server):
    server.hang = True
    client = BlockingClient(server.target)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(client.classify, image(0)), pool.submit(client.labels)]
        until(lambda: server.working == 2)
        client.close()
        for call in calls:
            assert isinstance(call.exception(5), Closed)


def test_its_thread_ends_with_it_and_does_not_begin_for_nonsense(server):
    before = living()
    with BlockingClient(server.target):
        assert len(living()) == len(before) + 1
    assert living() == before
    with pytest.raises(BadInput, match="timeout_s must be positive"):
        BlockingClient(server.target, timeout_s=0)
    with pytest.raises(TypeError, match="timeout_h"):
        BlockingClient(server.target, timeout_h=1)
    until(lambda: living() == before)


def test_a_program_that_forgets_to_close_it_ends_all_the_same(server):
    program = f"import alexnet_client; assert alexnet_client.BlockingClient({server.target!r}).ready()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], check=False, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
