"""Checkpoints on disk: round trip, damage, and failed writes."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import re
import resource
import signal
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
    assert replace(loaded, state_dict={}) == replace(checkpoint, state_dict={})
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


def save_with_limited_files(checkpoint, directory, message):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    try:
        checkpoints.save(checkpoint, directory)
    except BadInput as error:
        message.put(str(error))


def test_a_write_that_the_kernel_aborts_keeps_the_old_checkpoint(checkpoint, saved):
    before = {path.name for path in saved.iterdir()}
    fork = multiprocessing.get_context("fork")
    message = fork.SimpleQueue()
    process = fork.Process(target=save_with_limited_files, args=(checkpoint, saved, message))
    process.start()
    process.join(60)
    expected = r"could not be written completely, its disk has [\d,]+ MB free; free some space"
    assert re.search(expected, message.get())
    assert {path.name for path in saved.iterdir()} == before
    checkpoints.load(saved)


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
def test_a_damaged_card_is_rejected(tmp_path, card):
    (tmp_path / "checkpoint.json").write_bytes(card)
    with pytest.raises(BadInput, match="not a valid checkpoint card"):
        checkpoints.load(tmp_path)


def test_a_card_with_another_number_of_classes_is_rejected(saved):
    card = json.loads((saved / "checkpoint.json").read_text())
    (saved / "checkpoint.json").write_text(json.dumps({**card, "labels": card["labels"][:7]}))
    with pytest.raises(BadInput, match=r"not an AlexNet with 7 classes: classifier\.6\.weight has shape \[10, \d+\]"):
        checkpoints.load(saved)


def test_a_file_without_a_state_dict_is_rejected_and_code_in_it_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    torch.save([1, 2, 3], tmp_path / "list.pt")
    for name, message in (("bomb.pt", "not a PyTorch state dict"), ("list.pt", "contains no state dict")):
        with pytest.raises(BadInput, match=message):
            checkpoints.read_state_dict(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xd8\xff\xe0JFIF", b"PK\x03\x04", bytes(100)])
def test_any_other_file_is_rejected_without_unsafe_advice(tmp_path, content):
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(BadInput, match="not a PyTorch state dict") as rejected:
        checkpoints.read_state_dict(tmp_path / "other.pth")
    assert "weights_only" not in str(rejected.value)
