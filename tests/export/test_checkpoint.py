"""Checkpoints on disk: round trip, damage, and failed writes."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alexnet_client.errors import BadInput
from alexnet_export import checkpoint as checkpoints


@pytest.fixture
def saved(checkpoint, tmp_path):
    checkpoints.save(checkpoint, tmp_path)
    return tmp_path


def test_a_saved_checkpoint_is_loaded(checkpoint, saved):
    loaded = checkpoints.load(saved)
    assert loaded.labels == checkpoint.labels
    assert loaded.normalization == checkpoint.normalization
    assert loaded.widths == checkpoint.widths
    assert loaded.made_by == {"made_for": "tests"}
    assert all(torch.equal(loaded.state_dict[key], value) for key, value in checkpoint.state_dict.items())


def test_a_second_save_replaces_the_first_and_its_weights(checkpoint, saved):
    changed = {**checkpoint.state_dict, "classifier.6.bias": torch.ones(10)}
    checkpoints.save(replace(checkpoint, state_dict=changed), saved)
    assert torch.equal(checkpoints.load(saved).state_dict["classifier.6.bias"], torch.ones(10))
    assert sorted(path.suffix for path in saved.iterdir()) == [".json", ".pt"]


def test_a_failed_save_keeps_the_old_checkpoint(checkpoint, saved, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    before = {path.name for path in saved.iterdir()}
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(BadInput, match="the disk is full"):
        checkpoints.save(checkpoint, saved)
    assert {path.name for path in saved.iterdir()} == before
    checkpoints.load(saved)


def test_a_write_that_the_kernel_aborts_keeps_the_old_checkpoint(checkpoint, saved, with_limited_files):
    before = {path.name for path in saved.iterdir()}
    message = with_limited_files(1_000_000, checkpoints.save, checkpoint, saved)
    assert re.search(r"could not be written completely, its disk has [\d,]+ MB free; free some space", message)
    assert {path.name for path in saved.iterdir()} == before
    checkpoints.load(saved)


def test_the_error_for_a_missing_checkpoint_names_the_command_to_create_one(tmp_path):
    with pytest.raises(BadInput, match="no checkpoint found; create one with `make train`"):
        checkpoints.load(tmp_path / "nowhere")


def truncate(path):
    with path.open("r+b") as file:
        file.truncate(1000)


@pytest.mark.parametrize(
    ("damage", "message"),
    [(truncate, r"truncated or altered.*train again"), (Path.unlink, r"weights-\w+\.pt: missing")],
)
def test_truncated_and_missing_weights_are_rejected(saved, damage, message):
    damage(saved / json.loads((saved / "checkpoint.json").read_text())["weights"])
    with pytest.raises(BadInput, match=message):
        checkpoints.load(saved)


@pytest.mark.parametrize("card", [b"", b"{}", b"[]", b'{"weights": 3}', b"\xff\xfe\x00"])
def test_a_damaged_card_is_rejected(saved, card):
    (saved / "checkpoint.json").write_bytes(card)
    with pytest.raises(BadInput, match="not a valid checkpoint card"):
        checkpoints.load(saved)


def test_a_card_with_another_number_of_classes_is_rejected(saved):
    card = json.loads((saved / "checkpoint.json").read_text())
    card["labels"] = card["labels"][:7]
    (saved / "checkpoint.json").write_text(json.dumps(card))
    with pytest.raises(BadInput, match=r"not an AlexNet with 7 classes: classifier\.6\.weight has shape \[10, \d+\]"):
        checkpoints.load(saved)


def test_a_pickle_with_code_is_rejected_and_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(BadInput, match="not a PyTorch state dict"):
        checkpoints.read_state_dict(tmp_path / "bomb.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"hello", b"\xff\xd8\xff\xe0JFIF", b"PK\x03\x04", bytes(100)])
def test_any_other_file_is_rejected_without_unsafe_advice(tmp_path, content):
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(BadInput, match="not a PyTorch state dict") as rejected:
        checkpoints.read_state_dict(tmp_path / "other.pth")
    assert "weights_only" not in str(rejected.value)


def test_a_file_without_a_state_dict_is_rejected(tmp_path):
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(BadInput, match="contains no state dict"):
        checkpoints.read_state_dict(tmp_path / "list.pt")
