"""Which settings are tried, and which one wins, with scores that are made up and noisy."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from alexnet_load.tuning import Setting, candidates, changes, combined, halve, tune

DEFAULT = Setting(instances=1, threads=0, max_batch=64, queue_delay_us=0, client_batch=32, client_delay_ms=10.0)
VALUES = changes(DEFAULT, processors=2)


def made_up(setting, *, batch=1.3, delay=0.5):
    """Two changes help, a delay harms, the rest is worth nothing."""
    rate = 100.0
    rate *= batch if setting.client_batch == 8 else 1.0
    rate *= 1.2 if (setting.instances, setting.threads) == (2, 1) else 1.0
    return rate * (delay if setting.queue_delay_us else 1.0)


def noisy(share, seed):
    dice = random.Random(seed)
    return lambda setting, rung: made_up(setting) * dice.gauss(1, share / (1 + rung))


def test_no_change_is_the_default_itself():
    assert all(replace(DEFAULT, **change) != DEFAULT for kind in VALUES.values() for change in kind)
    assert {"instances": 2, "threads": 1} in VALUES["instances x threads"]


@pytest.mark.parametrize("count", [2, 8, 30])
def test_the_default_is_among_the_candidates_and_none_comes_twice(count):
    found = candidates(DEFAULT, VALUES, count=count, seed=1)
    assert found[0] == DEFAULT
    assert len(set(found)) == len(found) == count


def test_with_enough_room_each_change_is_tried_alone():
    found = candidates(DEFAULT, VALUES, count=40, seed=1)
    assert all(replace(DEFAULT, **change) in found for kind in VALUES.values() for change in kind)


def test_each_rung_measures_the_better_half_and_always_the_default():
    asked = []

    def score(setting, rung):
        asked.append((rung, setting))
        return -setting.max_batch if setting != DEFAULT else -1000

    settings = [DEFAULT, *(replace(DEFAULT, max_batch=size) for size in range(1, 8))]
    ranked = halve(settings, DEFAULT, score, rungs=3)
    assert [sum(rung == each for rung, _ in asked) for each in range(3)] == [8, 5, 3]
    assert [setting.max_batch for rung, setting in asked if rung == 2] == [1, 2, 64]
    assert ranked[0].setting.max_batch == 1
    assert {each.setting for each in ranked} == set(settings)


def test_the_best_changes_are_put_together_and_the_harmful_are_left_out():
    scored = halve(candidates(DEFAULT, VALUES, count=40, seed=1), DEFAULT, lambda each, rung: made_up(each), rungs=1)
    found = combined(DEFAULT, VALUES, scored)
    assert (found.client_batch, found.instances, found.threads, found.queue_delay_us) == (8, 2, 1, 0)


def test_the_winner_beats_the_default_and_each_change_is_said_to_be_worth_what_it_is():
    tuned = tune(DEFAULT, noisy(0.02, seed=3), values=VALUES, count=20)
    assert (tuned.best.client_batch, tuned.best.instances, tuned.best.threads) == (8, 2, 1)
    assert tuned.ratio == pytest.approx(1.56, rel=0.05)
    assert tuned.low > 1
    assert tuned.worth["client batch"] == pytest.approx(1.3, rel=0.05)
    assert tuned.worth["instances x threads"] == pytest.approx(1.2, rel=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_where_nothing_helps_the_default_stays(seed):
    dice = random.Random(seed)
    tuned = tune(
        DEFAULT, lambda setting, rung: (100 if setting == DEFAULT else 80) * dice.gauss(1, 0.05), values=VALUES
    )
    assert tuned.best == tuned.default == DEFAULT
    assert (tuned.ratio, tuned.worth) == (1.0, {})


def test_a_setting_that_cannot_be_served_loses():
    tuned = tune(DEFAULT, lambda setting, rung: 0.0 if setting != DEFAULT else 50.0, values=VALUES)
    assert tuned.best == DEFAULT


def test_every_setting_that_was_tried_is_told_of_with_the_default():
    tuned = tune(DEFAULT, noisy(0.02, seed=5), values=VALUES, count=10)
    assert DEFAULT in {each.setting for each in tuned.tried}
    assert len({each.setting for each in tuned.tried}) == len(tuned.tried) >= 10


def test_no_batch_is_tried_that_is_smaller_than_an_ensemble_needs():
    sizes = [each["max_batch"] for each in changes(DEFAULT, processors=2, least_batch=64)["max batch"]]
    assert sizes == [128]


def test_against_a_default_that_keeps_the_objective_at_no_rate_any_rate_is_infinitely_better():
    tuned = tune(DEFAULT, lambda setting, rung: 50.0 if setting.client_batch == 8 else 0.0, values=VALUES, count=20)
    assert tuned.best.client_batch == 8
    assert (tuned.ratio, tuned.gain) == (math.inf, "infinitely many times")


def test_where_no_setting_keeps_the_objective_the_default_stays():
    tuned = tune(DEFAULT, lambda setting, rung: 0.0, values=VALUES)
    assert (tuned.best, tuned.ratio) == (DEFAULT, 1.0)
