"""The gates again, through the real Triton."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from alexnet_export import checkpoint as checkpoints
from alexnet_export.__main__ import app
from alexnet_export.image_sets import gate_images
from alexnet_export.runners import answers, onnx_runner, served_runner


@pytest.fixture
def saved(checkpoint, tmp_path):
    checkpoints.save(checkpoint, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def verify(saved, repository, server):
    arguments = ("verify", "--checkpoint", saved, "--repository", repository, "--served", server.target)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_what_triton_answers_passes_the_gate_of_its_release(server, repository, saved):
    before = server.metric("nv_inference_count")
    result = verify(saved, repository, server)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["version"], found["answered_by"], found["agreement"]) == (1, server.target, 1.0)
    assert found["max_logit_difference"] <= 1e-4
    assert server.metric("nv_inference_count") - before == found["images"]


def test_a_server_that_answers_with_another_version_than_the_repository_has_is_found(
    server, repository, saved, tmp_path
):
    shutil.copytree(repository, tmp_path / "copy")
    (tmp_path / "copy/alexnet/1").rename(tmp_path / "copy/alexnet/2")
    result = verify(saved, tmp_path / "copy", server)
    assert result.exit_code == 2
    assert "answers with version 1, which" in result.stderr


def test_an_int8_release_is_served_with_the_same_answers_as_in_process(exported_int8, own_server, few_digits):
    release = exported_int8[0].release
    pixels = gate_images(few_digits, few_digits.labels).pixels[:100]
    expected = answers(onnx_runner(release.directory / "model.onnx"), pixels)
    with (
        own_server(repository=release.directory.parent.parent) as server,
        served_runner(server.target, "alexnet") as (run, versions),
    ):
        found = answers(run, pixels)
        assert server.stop() == 0
    assert versions == {"1"}
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected), "the same integers, whatever the batch"
