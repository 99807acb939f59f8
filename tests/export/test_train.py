"""Training: it learns, is reproducible and resumable."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from alexnet_client.errors import BadInput
from alexnet_export.__main__ import app
from alexnet_export.curves import training_svg, write_png
from alexnet_export.data import DataSet
from alexnet_export.model import Widths
from alexnet_export.options import Evaluated, StepDone, TrainOptions
from alexnet_export.train import train

SMALL = Widths(channels=(16, 48, 96, 64, 64), hidden=256)
SHORT = TrainOptions(
    steps=4, batch_size=2, evaluate_every=2, evaluation_limit=4, dropout=0.5, precision="fp32", widths=SMALL
)
ONE_STEP = replace(SHORT, steps=1, learning_rate=1e-12, weight_decay=0.0, evaluation_limit=2)


@pytest.fixture(scope="module")
def few(digits, first) -> DataSet:
    """Eight canvases that are the same in every epoch."""
    eight = first(digits.validation, 8)
    return DataSet("few digits", digits.labels, eight, eight, first(digits.test, 4))


@pytest.fixture(scope="module")
def uninterrupted(few, tmp_path_factory):
    """The checkpoint and the events of a run."""
    events = []
    return train(few, SHORT, tmp_path_factory.mktemp("uninterrupted"), on_event=events.append), events


def same(left, right) -> bool:
    return all(torch.equal(left.state_dict[key], value) for key, value in right.state_dict.items())


@pytest.mark.slow
def test_it_memorises_eight_digits(few, tmp_path):
    losses = []
    options = replace(SHORT, steps=40, batch_size=8, learning_rate=5e-4, dropout=0.0, evaluate_every=40)
    checkpoint = train(few, options, tmp_path, on_event=lambda event: losses.append(event.loss))
    assert losses[0] > 1.5
    assert checkpoint.made_by["validation_accuracy"] == 1.0


def test_weights_depend_on_the_seed_only(few, uninterrupted, tmp_path):
    assert same(uninterrupted[0], train(few, SHORT, tmp_path / "again"))
    assert not same(uninterrupted[0], train(few, replace(SHORT, seed=1), tmp_path / "other"))


def interrupt(few, directory):
    def kill(event):
        if event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(few, SHORT, directory, on_event=kill)


def test_a_resumed_run_ends_with_the_same_weights(few, uninterrupted, tmp_path):
    interrupt(few, tmp_path)
    assert not (tmp_path / "checkpoint.json").exists()
    steps = []
    resumed = train(few, SHORT, tmp_path, resume=True, on_event=lambda event: steps.append(event.step))
    assert steps == [3, 4, 4]
    assert same(uninterrupted[0], resumed)
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [record["step"] for record in history if record["event"] == "StepDone"] == [1, 2, 3, 4]
    assert not (tmp_path / "resume.pt").exists()


def test_a_run_is_not_resumed_with_other_options_or_data_or_from_a_damaged_file(few, tmp_path):
    interrupt(few, tmp_path)
    for dataset, options in ((few, replace(SHORT, batch_size=3)), (replace(few, name="other digits"), SHORT)):
        with pytest.raises(BadInput, match="was written with other options or data"):
            train(dataset, options, tmp_path, resume=True)
    (tmp_path / "resume.pt").write_bytes(b"half a file")
    with pytest.raises(BadInput, match="damaged"):
        train(few, SHORT, tmp_path, resume=True)


def test_every_step_and_evaluation_is_an_event_and_the_best_weights_are_kept(uninterrupted):
    checkpoint, events = uninterrupted
    assert [type(event) for event in events] == [StepDone, StepDone, Evaluated] * 2
    evaluations = [event for event in events if isinstance(event, Evaluated)]
    assert evaluations[0].best
    assert checkpoint.made_by["validation_accuracy"] == max(event.accuracy for event in evaluations)
    rates = [event.learning_rate for event in events if isinstance(event, StepDone)]
    assert len(set(rates)) == 4, "the schedule changes the rate in every step"
    assert max(rates) <= SHORT.learning_rate


def test_fine_tuning_starts_from_the_given_weights_and_normalisation(few, checkpoint, tmp_path):
    tuned = train(few, ONE_STEP, tmp_path, start_from=checkpoint)
    assert tuned.normalization == checkpoint.normalization
    for key, value in checkpoint.state_dict.items():
        assert torch.allclose(tuned.state_dict[key], value, atol=1e-6)


def test_fine_tuning_for_other_classes_initialises_the_last_layer(digits, first, checkpoint, tmp_path):
    class Modulo(first):
        def sample(self, index, epoch):
            pixels, label = super().sample(index, epoch)
            return pixels, label % 3

    three = DataSet("three", ("a", "b", "c"), *(Modulo(digits.train, 4) for _ in range(3)))
    tuned = train(three, ONE_STEP, tmp_path, start_from=checkpoint)
    assert tuned.state_dict["classifier.6.weight"].shape == (3, checkpoint.widths.hidden)
    assert torch.allclose(tuned.state_dict["features.0.weight"], checkpoint.state_dict["features.0.weight"], atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "--steps must be positive"),
        ({"dropout": 1.0}, r"--dropout must be in \[0, 1\)"),
        ({"precision": "fp8"}, "--precision fp8: unknown; choose one of auto, fp32, bf16"),
        ({"seed": -1}, "--seed must not be negative"),
        ({"learning_rate": float("nan")}, "--learning-rate must be positive"),
    ],
)
def test_invalid_options_are_rejected(wrong, message):
    with pytest.raises(BadInput, match=message):
        TrainOptions(**wrong)


def test_a_split_without_a_readable_image_is_rejected(few, digits, first, tmp_path):
    broken = replace(few, validation=first(digits.train, 4, unreadable_every=1))
    with pytest.raises(BadInput, match="the split has no readable image"):
        train(broken, SHORT, tmp_path)


def test_the_chart_is_drawn_from_the_history(tmp_path):
    history = tmp_path / "history.jsonl"
    records = [{"event": "StepDone", "step": step, "loss": 2 / step} for step in range(1, 21)]
    records.append({"event": "Evaluated", "step": 20, "loss": 0.2, "accuracy": 0.97})
    history.write_text("".join(json.dumps(record) + "\n" for record in records))
    write_png(history, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "Validation accuracy" in training_svg(history)
    assert training_svg(tmp_path / "missing.jsonl") is None


@dataclass(frozen=True)
class SmallNetwork(TrainOptions):
    widths: Widths = SMALL


def test_the_command_trains_on_a_folder_and_prints_a_json_line(tmp_path, monkeypatch):
    monkeypatch.setattr("alexnet_export.options.TrainOptions", SmallNetwork)
    for number, name in enumerate(("train/a", "train/b", "val/a", "val/b")):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (256, 256), (50 * number, 0, 0)).save(tmp_path / name / "1.png")
    options = ("--epochs", "2", "--batch-size", "2", "--data", "folder", "--data-dir", str(tmp_path))
    done = CliRunner().invoke(app, ["train", "-o", str(tmp_path / "out"), *options])
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 2
    assert (tmp_path / "out/curves.png").exists()
