"""The simulation of a fleet, against what queueing theory knows exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alexnet_server.capacity.fleet import Failure, Fleet, Server
from alexnet_server.capacity.plan import mean_batch
from alexnet_server.capacity.simulate import poisson_s, simulate

SERVER = Server(fixed_s=0.003, per_image_s=0.002)


def mean_s(outcome, skip=0):
    return float(np.nanmean(outcome.latencies_s[skip:]))


@pytest.mark.parametrize("busy", [0.3, 0.5, 0.8])
def test_single_images_wait_as_in_a_queue_with_constant_service_times(busy):
    # M/D/1, Pollaczek and Khinchine: the mean time is D + busy * D / (2 (1 - busy)).
    found = simulate(Fleet(Server(fixed_s=0.0, per_image_s=2.0, max_batch=1)), poisson_s(busy / 2.0, 60_000, seed=3))
    assert mean_s(found) == pytest.approx(2.0 + busy * 2.0 / (2 * (1 - busy)), rel=0.05)
    assert found.busy == pytest.approx(busy, rel=0.02)
    assert found.mean_batch == 1


@pytest.mark.parametrize("rate", [0.5, 2.0, 10.0])
def test_batches_of_any_size_grow_as_theory_says_when_each_takes_the_same_time(rate):
    # M/D[inf]/1 with D = 1: a batch is what came during the last one, or one if nothing came; sizes are independent.
    found = simulate(Fleet(Server(fixed_s=1.0, per_image_s=0.0, max_batch=1000)), poisson_s(rate, 40_000))
    mean = rate + math.exp(-rate)
    assert found.mean_batch == pytest.approx(mean, rel=0.02)
    assert found.busy == pytest.approx(rate / mean, rel=0.02)
    assert mean_s(found) == pytest.approx(1 + rate / mean / 2, rel=0.02)


def test_the_choice_of_the_better_of_two_shortens_queues_as_mitzenmacher_found():
    # Exponential service, 100 servers that are 90 % busy: the sum of 0.9 ** (2 ** i - 2); by chance it would be 10.
    places = (np.arange(1000) + 0.5) / 1000
    server = Server(fixed_s=0.0, per_image_s=1.0, max_batch=1, noise=tuple((-np.log(places)).tolist()))
    found = simulate(Fleet(server, replicas=100), poisson_s(90.0, 80_000))
    assert mean_s(found, skip=20_000) == pytest.approx(sum(0.9 ** (2**i - 2) for i in range(1, 10)), rel=0.05)


def test_many_clients_that_know_only_their_own_requests_choose_worse_than_one():
    arrivals_s = poisson_s(0.7 * 8 * SERVER.capacity, 20_000)
    one, many = (simulate(Fleet(SERVER, replicas=8, clients=clients), arrivals_s) for clients in (1, 200))
    assert one.percentile_s(99) < many.percentile_s(99)


@pytest.mark.parametrize("max_batch", [1, 8, 64])
def test_a_full_server_does_as_much_as_its_largest_batches(max_batch):
    server = Server(fixed_s=0.003, per_image_s=0.002, max_batch=max_batch)
    found = simulate(Fleet(server), np.zeros(64 * 50))
    assert server.capacity == pytest.approx(max_batch / (0.003 + 0.002 * max_batch))
    # All but the first one, which comes before the others, finds a full batch waiting.
    assert 64 * 50 / np.max(found.latencies_s) == pytest.approx(server.capacity, rel=0.02)
    assert found.busy == pytest.approx(1)


def test_a_second_instance_doubles_what_a_full_server_does():
    found = simulate(Fleet(Server(fixed_s=0.003, per_image_s=0.002, instances=2)), np.zeros(6400))
    assert 6400 / np.max(found.latencies_s) == pytest.approx(2 * SERVER.capacity, rel=0.02)


def test_requests_are_taken_in_order_until_one_does_not_fit():
    # One image starts alone; then 40 and 20 fit together, 10 more do not, although they are smaller than what was left at 40.
    server = Server(fixed_s=1.0, per_image_s=0.0)
    found = simulate(Fleet(server), np.array([0.0, 0.1, 0.2, 0.3]), np.array([1, 40, 20, 10]))
    assert found.latencies_s.tolist() == pytest.approx([1.0, 1.9, 1.8, 2.7])
    assert (found.executions, found.images) == (3, 71)


def test_what_happens_outside_the_batch_is_added_to_each_latency():
    arrivals_s = poisson_s(100, 500)
    plain, outside = (simulate(Fleet(Server(0.003, 0.002, outside_s=each)), arrivals_s) for each in (0.0, 0.5))
    assert outside.latencies_s - plain.latencies_s == pytest.approx(0.5)


def test_every_request_is_answered_once_or_rejected():
    server = Server(fixed_s=0.003, per_image_s=0.002, queue_requests=20)
    sizes = np.random.default_rng(1).integers(1, 17, 5000)
    failures = (Failure(0, 1.0, 3.0), Failure(1, 4.0, 6.0), Failure(0, 5.0, 8.0))
    fleet = Fleet(server, replicas=2, detection_s=0.2, failures=failures)
    found = simulate(fleet, poisson_s(150, 5000), sizes)
    assert found.answered + found.rejected == 5000
    assert found.rejected > 0
    assert found.images == sizes[np.isfinite(found.latencies_s)].sum()


def test_the_mean_number_of_requests_within_is_the_rate_times_the_mean_latency():
    # Little's law, with the number within counted at moments of its own.
    arrivals_s = poisson_s(300, 30_000)
    found = simulate(Fleet(SERVER), arrivals_s)
    ends_s = np.sort(arrivals_s + found.latencies_s)
    moments_s = np.linspace(0, arrivals_s[-1], 20_000)
    within = np.searchsorted(arrivals_s, moments_s) - np.searchsorted(ends_s, moments_s)
    assert within.mean() == pytest.approx(300 * mean_s(found), rel=0.03)


def test_a_dead_server_loses_nothing_when_there_is_another():
    fleet = Fleet(SERVER, replicas=2, detection_s=0.5, failures=(Failure(0, 2.0, 6.0),))
    found = simulate(fleet, poisson_s(0.6 * SERVER.capacity, 4000))
    assert found.rejected == 0
    assert found.retried > 0
    # What it owed waited for the detection, and then for a batch or two of the other.
    assert 0.5 < np.max(found.latencies_s) < 1.0


def test_without_another_server_what_comes_after_the_detection_is_rejected_until_it_is_back():
    fleet = Fleet(SERVER, detection_s=0.5, failures=(Failure(0, 2.0, 6.0),))
    arrivals_s = poisson_s(100, 1000)
    found = simulate(fleet, arrivals_s)
    assert np.isfinite(found.latencies_s[(arrivals_s < 1.9) | (arrivals_s > 6.0)]).all()
    assert np.isnan(found.latencies_s[(arrivals_s > 2.0) & (arrivals_s < 6.0)]).all()


def test_a_server_that_is_back_gets_its_share_again():
    arrivals_s = poisson_s(600, 12_000)
    failed, whole = (
        simulate(Fleet(SERVER, replicas=2, detection_s=0.1, failures=failures), arrivals_s)
        for failures in ((Failure(0, 2.0, 4.0),), ())
    )
    late = arrivals_s > 10
    assert np.percentile(failed.latencies_s[late], 99) == pytest.approx(
        np.percentile(whole.latencies_s[late], 99), rel=0.1
    )


def test_a_bound_of_the_queue_rejects_instead_of_letting_wait():
    arrivals_s = poisson_s(1.5 * SERVER.capacity, 5000)
    bounded, unbounded = (
        simulate(Fleet(Server(0.003, 0.002, queue_requests=bound)), arrivals_s) for bound in (100, None)
    )
    assert unbounded.rejected == 0
    assert bounded.rejected == pytest.approx(5000 / 3, rel=0.1)
    assert np.nanmax(bounded.latencies_s) < 4 * SERVER.batch_s(64) < np.nanmax(unbounded.latencies_s)


@pytest.mark.parametrize("choice", ["two choices", "round robin"])
def test_more_servers_are_never_slower_in_the_mean(choice):
    arrivals_s = poisson_s(0.8 * SERVER.capacity, 8000)
    means = [mean_s(simulate(Fleet(SERVER, replicas=each, choice=choice), arrivals_s)) for each in (1, 2, 3, 4, 8)]
    assert means == sorted(means, reverse=True)


def test_noise_makes_the_tail_longer_and_leaves_the_mean_of_a_batch():
    noisy = Server(0.003, 0.002, noise=(0.5, 0.5, 0.5, 2.5))
    arrivals_s = poisson_s(0.5 * SERVER.capacity, 10_000)
    quiet, loud = (simulate(Fleet(each), arrivals_s) for each in (SERVER, noisy))
    assert loud.percentile_s(99) > 1.5 * quiet.percentile_s(99)


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    fleet = Fleet(SERVER, replicas=3, clients=5)
    arrivals_s = poisson_s(800, 2000)
    runs = [simulate(fleet, arrivals_s, seed=seed).latencies_s.tolist() for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_the_formula_for_the_mean_batch_agrees_with_the_simulation():
    for size, share in [(1, 0.3), (1, 0.6), (1, 0.85), (8, 0.5), (8, 0.8)]:
        rate = share * SERVER.capacity
        found = simulate(Fleet(SERVER), poisson_s(rate / size, 20_000), size)
        assert mean_batch(SERVER, rate, size) == pytest.approx(found.mean_batch, rel=0.15), (size, share)


def test_no_arrivals_are_no_work():
    found = simulate(Fleet(SERVER), np.zeros(0))
    assert (found.answered, found.rejected, found.busy, found.mean_batch) == (0, 0, 0, 0)
    assert math.isnan(found.percentile_s(99))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Server(-0.1, 0.1),
        lambda: Server(0.0, 0.0),
        lambda: Server(0.1, 0.1, queue_requests=0),
        lambda: Fleet(SERVER, replicas=0),
        lambda: Fleet(SERVER, failures=(Failure(1, 0.0, 1.0),)),
        lambda: Fleet(SERVER, failures=(Failure(0, 0.0, 2.0), Failure(0, 1.0, 3.0))),
        lambda: Fleet(SERVER, detection_s=2.0, failures=(Failure(0, 0.0, 1.0),)),
        lambda: simulate(Fleet(SERVER), np.array([1.0, 0.5])),
        lambda: simulate(Fleet(SERVER), np.array([1.0]), 65),
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=r"\w"):
        wrong()
