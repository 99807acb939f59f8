"""The choice among ways of quantising: by accuracy, with the worst layers back in float until the budget holds."""

from __future__ import annotations

import numpy as np
import pytest

from alexnet_export import int8, rewrites
from alexnet_export.errors import GateFailed
from alexnet_export.gates import Comparison, Loss
from alexnet_export.graph import layers, read_model, to_bytes
from alexnet_export.image_sets import Images
from alexnet_export.quantize import CPU_WITHOUT_VNNI as CPU  # exact on every processor
from alexnet_export.runners import operators_that_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(exported):
    folded = read_model(exported)
    for rewrite in rewrites.FLOAT:
        rewrite(folded)
    return folded


@pytest.fixture(scope="module")
def images(digits):
    samples = [digits.train.sample(index, 0) for index in range(24)]
    return Images(np.stack([pixels for pixels, _ in samples]), np.array([label for _, label in samples]), ())


@pytest.fixture(scope="module")
def chosen(model, images):
    counted = []
    found = int8.choose(model, images, images, CPU, on_step=lambda: counted.append(1))
    assert len(counted) == int8.steps(model)
    return found


def losing(points):
    return Comparison(1000, 1000, 0.9, 0.9, Loss(points, points - 0.1, points + 0.1), 0.99, 0.1)


def test_every_method_is_tried_and_the_one_that_changes_least_is_taken(chosen):
    assert {trial.method for trial in chosen.trials} == {"minmax", "percentile", "squared error", "entropy"}
    within = [trial for trial in chosen.trials if int8._holds(trial.comparison)]
    assert chosen.trial.logit_error == min(trial.logit_error for trial in within or chosen.trials)


def test_every_layer_is_ranked(chosen, model):
    assert [each.layer for each in chosen.harm] == [node.name for node in layers(model.graph)]
    assert all(0 < each.logit_error < 0.1 for each in chosen.harm)
    assert chosen.harm[0].weights.startswith("network.features.0.weight")


def test_the_finished_model_runs_in_integers_and_reads_pixels(chosen):
    counts = operators_that_run(to_bytes(int8.finish(chosen, CPU)))
    assert (counts["QLinearConv"], counts["QGemm"], counts["Pad"]) == (5, 3, 1)


def test_the_worst_layers_go_back_to_float_until_the_budget_holds(model, images, monkeypatch):
    harmful = {"node_conv2d_2": 0.09, "node_linear_2": 0.08}

    def harm(graph_model, *others):
        return [
            int8.LayerHarm(str(node.name), "", harmful.get(str(node.name), 0.01)) for node in layers(graph_model.graph)
        ]

    # As if accuracy were lost until the two worst layers are out of the way: judged after 4 methods and 2 tries.
    verdicts = iter([losing(1.0)] * 5 + [losing(0.1)])
    monkeypatch.setattr(int8, "compare", lambda *arguments: next(verdicts))
    monkeypatch.setattr(int8, "_harm", harm)
    found = int8.choose(model, images, images, CPU)
    assert found.trial.float_layers == ("node_conv2d_2", "node_linear_2")
    counts = operators_that_run(to_bytes(int8.finish(found, CPU)))
    assert counts["QLinearConv"] + counts["QGemm"] == 6


def test_if_half_of_the_layers_in_float_do_not_hold_the_budget_it_says_so(model, images, monkeypatch):
    monkeypatch.setattr(int8, "compare", lambda *arguments: losing(3.0))
    monkeypatch.setattr(
        int8,
        "_harm",
        lambda graph_model, *others: [int8.LayerHarm(str(n.name), "", 0.1) for n in layers(graph_model.graph)],
    )
    with pytest.raises(GateFailed, match=r"with 4 of 8 layers in float the loss is still up to 3\.10 points"):
        int8.choose(model, images, images, CPU)


def test_a_layer_that_would_run_in_float_by_accident_is_found(chosen, monkeypatch):
    from dataclasses import replace

    pretended = replace(chosen, trial=replace(chosen.trial, float_layers=("node_linear",)))
    with pytest.raises(GateFailed, match="8 layers run as integers where 7 should, 0 run in float"):
        int8.finish(pretended, CPU)
