"""Tuning with synthetic measurements."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from google.protobuf import text_format

from alexnet_client.errors import BadInput
from alexnet_load.tune import Config, Setting, apply, changes, read_config, setting_of, tune

DEFAULT = Setting(instances=1, threads=0, queue_delay_us=0, preferred_batch=0)
BEST = replace(DEFAULT, instances=2, threads=1, preferred_batch=8)
VALUES = changes(cpus=2, max_batch=64)


def measured(setting):
    """Two changes help, a queue delay harms."""
    rate = 120.0 if (setting.instances, setting.threads) == (2, 1) else 100.0
    rate *= 1.3 if setting.preferred_batch == 8 else 1.0
    return rate * (0.5 if setting.queue_delay_us else 1.0)


@pytest.mark.parametrize(
    ("cpus", "max_batch", "shapes", "sizes"),
    [
        (1, 16, [(1, 0), (2, 0), (1, 1)], [0, 8, 16]),
        (2, 4, [(1, 0), (2, 0), (2, 1)], [0]),
        (12, 64, [(1, 0), (2, 0), (2, 6), (4, 3), (8, 1), (12, 1)], [0, 8, 16, 32, 64]),
    ],
)
def test_instances_divide_the_cpus_and_batches_do_not_exceed_the_maximum(cpus, max_batch, shapes, sizes):
    values = changes(cpus=cpus, max_batch=max_batch)
    assert [(each["instances"], each["threads"]) for each in values["instances x threads"]] == shapes
    assert [each["preferred_batch"] for each in values["preferred batch size"]] == sizes


def test_the_best_values_are_combined():
    rng = random.Random(3)
    tuned = tune(DEFAULT, lambda setting: measured(setting) * rng.gauss(1, 0.02), VALUES)
    assert tuned.best == tuned.tried[0][0] == BEST
    assert tuned.speedup == pytest.approx(1.56, rel=0.05)
    assert 1 < tuned.low <= tuned.speedup <= tuned.high
    assert DEFAULT in dict(tuned.tried)


def test_no_setting_is_measured_twice_before_the_comparison_with_the_default():
    seen = []
    tune(DEFAULT, lambda setting: seen.append(setting) or 1.0, VALUES)
    assert len(seen) == len(set(seen)) == 1 + 2 + 3 + 4


def test_the_default_stays_if_nothing_helps_or_the_best_setting_loses_one_comparison():
    rng = random.Random(3)
    for _ in range(10):
        tuned = tune(DEFAULT, lambda setting: (100 if setting == DEFAULT else 80) * rng.gauss(1, 0.05), VALUES)
        assert (tuned.best, tuned.speedup) == (DEFAULT, 1.0)
    rates = iter([1.0, *[5.0] * 9, 5.0, 1.0, 1.0, 5.0, 5.0, 1.0])
    assert tune(DEFAULT, lambda setting: next(rates), VALUES).best == DEFAULT


@pytest.mark.parametrize(("rate", "met", "best"), [(0.0, False, DEFAULT), (50.0, True, BEST)])
def test_a_default_that_violates_the_slo_has_no_finite_speedup(rate, met, best):
    tuned = tune(DEFAULT, lambda setting: rate if setting == BEST else rate / 2 if setting.threads else 0.0, VALUES)
    assert (tuned.slo_met, tuned.best) == (met, best)
    assert tuned.speedup == (math.inf if met else 1.0)
    assert ("violates the SLO" in str(tuned)) == met


CONFIG = "dynamic_batching {} instance_group { count: 1 } parameters { key: 'x' value { string_value: '1' } }"


@pytest.mark.parametrize("setting", [BEST, replace(DEFAULT, queue_delay_us=500)])
def test_a_setting_is_written_into_a_configuration_and_read_from_it(setting):
    config = text_format.Parse(CONFIG, Config())
    for each in (replace(BEST, threads=7), setting):
        apply(each, config)
        assert setting_of(config) == each
    assert config.parameters["x"].string_value == "1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file.*choose a Triton model repository"),
        ("max_batch_size: many", "config.pbtxt: 1:"),
        ("instance_group { count: 1 }", "supports only dynamic batching"),
        ("dynamic_batching {} instance_group {} instance_group {}", "one instance group"),
        ("dynamic_batching { preferred_batch_size: [4, 8] } instance_group {}", "at most one preferred batch size"),
    ],
)
def test_a_model_that_cannot_be_tuned_is_rejected(tmp_path, content, message):
    (tmp_path / "alexnet").mkdir()
    if content is not None:
        (tmp_path / "alexnet/config.pbtxt").write_text(content)
    with pytest.raises(BadInput, match=message):
        read_config(tmp_path, "alexnet")
