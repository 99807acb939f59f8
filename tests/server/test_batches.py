"""Concatenate the inputs of requests, and split the outputs."""

from __future__ import annotations

import numpy as np

from alexnet_server.onnxruntime.batches import BatchBuffer, split


def rows(*values):
    return {"x": np.array([[value, value] for value in values], np.uint8)}


def test_a_single_request_is_not_copied():
    one = rows(1, 2)
    assert BatchBuffer().concatenate([one])["x"] is one["x"]


def test_the_buffer_is_reused_and_grows_if_a_batch_is_larger():
    buffer = BatchBuffer()
    first = buffer.concatenate([rows(1, 2), rows(3)])["x"]
    smaller = buffer.concatenate([rows(7), rows(8)])["x"]
    assert np.shares_memory(first, smaller)
    assert smaller[:, 0].tolist() == [7, 8]
    larger = buffer.concatenate([rows(1, 2, 3), rows(4, 5)])["x"]
    assert larger[:, 0].tolist() == [1, 2, 3, 4, 5]
    wide = {"x": np.ones((1, 3), np.uint8)}
    assert buffer.concatenate([wide, wide])["x"].shape == (2, 3)


def test_outputs_are_split_without_a_copy():
    outputs = {"a": np.arange(4)}
    first, second = split(outputs, [1, 3])
    assert (first["a"].tolist(), second["a"].tolist()) == ([0], [1, 2, 3])
    assert np.shares_memory(second["a"], outputs["a"])
