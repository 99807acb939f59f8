"""Checkpoints on disk."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys

import pytest
import torch

from alexnet_client.errors import BadInput
from alexnet_export import checkpoint as checkpoints
from alexnet_export import model
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.model import UNIFORM


@pytest.fixture
def saved(checkpoint, tmp_path):
    checkpoints.save(checkpoint, tmp_path)
    return tmp_path


def weights_of(directory):
    return directory / json.loads((directory / "checkpoint.json").read_text())["weights"]


def test_what_is_saved_is_loaded(checkpoint, saved):
    loaded = checkpoints.load(saved)
    assert loaded.labels == checkpoint.labels
    assert loaded.normalization == checkpoint.normalization
    assert loaded.made_by == {"made_for": "tests"}
    assert all(torch.equal(loaded.state_dict[key], value) for key, value in checkpoint.state_dict.items())


def test_a_second_save_replaces_the_first_and_leaves_no_litter(checkpoint, saved):
    changed = {**checkpoint.state_dict, "classifier.6.bias": torch.ones(10)}
    checkpoints.save(Checkpoint(changed, checkpoint.labels, UNIFORM), saved)
    assert torch.equal(checkpoints.load(saved).state_dict["classifier.6.bias"], torch.ones(10))
    assert sorted(path.suffix for path in saved.iterdir()) == [".json", ".pt"]


def test_a_failed_save_leaves_the_old_checkpoint(checkpoint, saved, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    before = {path.name for path in saved.iterdir()}
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(BadInput, match="the disk is full"):
        checkpoints.save(checkpoint, saved)
    assert {path.name for path in saved.iterdir()} == before
    checkpoints.load(saved)


def test_a_write_the_system_cuts_off_leaves_the_old_checkpoint_and_says_why(saved):
    before = {path.name for path in saved.iterdir()}
    program = f"""
import resource, signal
from pathlib import Path
from alexnet_export import checkpoint, model
from alexnet_client.errors import BadInput
model.CHANNELS, model.HIDDEN = {model.CHANNELS}, {model.HIDDEN}
loaded = checkpoint.load(Path({str(saved)!r}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    checkpoint.save(loaded, Path({str(saved)!r}))
except BadInput as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert re.search(r"could not be written whole, its disk has [\d,]+ MB free; free some space", done.stdout)
    assert {path.name for path in saved.iterdir()} == before
    checkpoints.load(saved)


def test_a_missing_checkpoint_says_how_to_make_one(tmp_path):
    with pytest.raises(BadInput, match="no checkpoint there; `make train` makes one"):
        checkpoints.load(tmp_path / "nowhere")


def test_truncated_weights_are_refused(saved):
    weights = weights_of(saved)
    with weights.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BadInput, match=r"truncated or altered.*train again"):
        checkpoints.load(saved)


def test_missing_weights_are_named(saved):
    weights_of(saved).unlink()
    with pytest.raises(BadInput, match=r"weights-\w+\.pt: missing"):
        checkpoints.load(saved)


@pytest.mark.parametrize("card", [b"", b"{}", b"[]", b'{"weights": 3}', b"\xff\xfe\x00"])
def test_a_damaged_card_is_refused(saved, card):
    (saved / "checkpoint.json").write_bytes(card)
    with pytest.raises(BadInput, match="not a checkpoint card"):
        checkpoints.load(saved)


def test_a_card_of_another_class_count_is_refused(saved):
    card = json.loads((saved / "checkpoint.json").read_text())
    card["labels"] = card["labels"][:7]
    (saved / "checkpoint.json").write_text(json.dumps(card))
    with pytest.raises(BadInput, match=r"not an AlexNet of 7 classes, classifier\.6\.weight has shape \[10, \d+\]"):
        checkpoints.load(saved)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(BadInput, match="not a PyTorch state dict"):
        checkpoints.read_state_dict(tmp_path / "bomb.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"hello", b"\xff\xd8\xff\xe0JFIF", b"PK\x03\x04", bytes(100)])
def test_any_other_file_is_refused_without_bad_advice(tmp_path, content):
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(BadInput, match="not a PyTorch state dict") as refused:
        checkpoints.read_state_dict(tmp_path / "other.pth")
    assert "weights_only" not in str(refused.value)


def test_a_file_without_a_state_dict_is_refused(tmp_path):
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(BadInput, match="holds no state dict"):
        checkpoints.read_state_dict(tmp_path / "list.pt")
