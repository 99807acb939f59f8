"""Joining the rows of requests and taking the answers apart."""

from __future__ import annotations

import numpy as np
import pytest

from alexnet_server.onnxruntime.batches import Gather, split


def rows(*values):
    return {"x": np.array([[value, value] for value in values], np.uint8)}


def test_rows_are_joined_in_order():
    assert Gather().join([rows(1), rows(2, 3), rows(4)])["x"][:, 0].tolist() == [1, 2, 3, 4]


def test_a_lone_request_is_not_copied():
    one = rows(1, 2)
    assert Gather().join([one])["x"] is one["x"]


def test_the_buffer_is_used_again_and_grows_when_it_must():
    gather = Gather()
    first = gather.join([rows(1, 2), rows(3)])["x"]
    smaller = gather.join([rows(7), rows(8)])["x"]
    assert np.shares_memory(first, smaller)
    assert smaller[:, 0].tolist() == [7, 8]
    larger = gather.join([rows(1, 2, 3), rows(4, 5)])["x"]
    assert not np.shares_memory(first, larger)
    assert larger[:, 0].tolist() == [1, 2, 3, 4, 5]


def test_another_shape_gets_another_buffer():
    gather = Gather()
    gather.join([rows(1), rows(2)])
    wide = {"x": np.ones((1, 3), np.uint8)}
    assert gather.join([wide, wide])["x"].shape == (2, 3)


def test_arrays_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="must match exactly"):
        Gather().join([rows(1), {"x": np.ones((1, 3), np.uint8)}])


def test_answers_are_taken_apart_without_a_copy():
    outputs = {"a": np.arange(4), "b": np.arange(8).reshape(4, 2)}
    first, second = split(outputs, [1, 3])
    assert (first["a"].tolist(), first["b"].tolist()) == ([0], [[0, 1]])
    assert (second["a"].tolist(), second["b"].tolist()) == ([1, 2, 3], [[2, 3], [4, 5], [6, 7]])
    assert np.shares_memory(second["b"], outputs["b"])


def test_rows_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="output a has 4 rows for 3 of input"):
        split({"a": np.arange(4)}, [1, 2])
