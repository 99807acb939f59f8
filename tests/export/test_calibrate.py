"""From a histogram of activations to the limit that 8 bits stand for."""

from __future__ import annotations

import numpy as np
import pytest

from alexnet_export.calibrate import BINS, METHODS, Histogram, activations, limits, observe
from alexnet_export.graph import copy, read_model, to_bytes
from alexnet_export.runners import open_session


def histogram_of(values):
    counts, _ = np.histogram(values, BINS, (0, values.max()))
    return Histogram(counts, float(values.max()))


UNIFORM = histogram_of(np.random.default_rng(0).uniform(0, 8, 200_000))
OUTLIER = histogram_of(np.append(np.abs(np.random.default_rng(0).normal(0, 1, 500_000)), 40.0))


def test_minmax_clips_nothing():
    assert METHODS["minmax"](OUTLIER) == 40.0


def test_a_percentile_leaves_the_rarest_values_out():
    assert METHODS["percentile"](OUTLIER) == pytest.approx(3.89, abs=0.05), "99.99 % of |N(0, 1)|"


@pytest.mark.parametrize(("method", "below"), [("percentile", 5), ("entropy", 20), ("squared error", 26)])
def test_a_lone_outlier_does_not_decide(method, below):
    # By hand, the squared error of clipping 40 to L in one of 500,001, and of steps of L / 255, is least at L = 24.4.
    assert METHODS[method](OUTLIER) < below


@pytest.mark.parametrize("method", METHODS)
def test_values_spread_evenly_keep_their_range(method):
    assert METHODS[method](UNIFORM) == pytest.approx(8, rel=0.03)


def test_the_squared_error_has_its_minimum_there():
    def error(limit):
        step = limit / 255
        rounded = np.clip(np.rint(OUTLIER.centers / step), 0, 255) * step
        return ((OUTLIER.centers - rounded) ** 2 * OUTLIER.counts).sum()

    best = METHODS["squared error"](OUTLIER)
    assert error(best) < error(40.0)
    assert error(best) <= min(error(0.9 * best), error(1.1 * best))


def test_a_tensor_that_is_always_zero_gets_a_limit_all_the_same():
    dead = Histogram(np.zeros(BINS, np.int64), 0.0)
    assert [limits({"dead": dead}, method)["dead"] for method in METHODS] == [1.0] * len(METHODS)


def test_what_is_observed_is_what_the_network_computes(exported, digits):
    model = read_model(exported)
    pixels = np.stack([digits.train.sample(index, 0)[0] for index in range(40)])
    names = activations(model.graph)
    assert names == ["relu", *(f"relu_{number}" for number in range(1, 7))]
    found = observe(model, pixels)
    watched = copy(model)
    watched.graph.outputs.extend(node.outputs[0] for node in watched.graph if node.outputs[0].name == "relu_2")
    values = open_session(to_bytes(watched)).run(["relu_2"], {"image": pixels})[0]
    assert found["relu_2"].maximum == values.max()
    assert found["relu_2"].counts.sum() == (values > 0).sum()
    expected, _ = np.histogram(values[values > 0], BINS, (0, values.max()))
    assert np.abs(found["relu_2"].counts - expected).sum() <= 0.001 * expected.sum(), "but for rounding at the edges"
