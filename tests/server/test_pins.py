"""Which version serves, written into configurations; and when a candidate shall not serve."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from alexnet_server.errors import LaunchError
from alexnet_server.rollout.pins import configurations, kept_on_failure, pin, pinned, with_pin
from alexnet_server.rollout.shadow import Comparison

LATEST = """# Ours.
name: "alexnet"
version_policy {
  latest {
    num_versions: 1
  }
}
max_batch_size: 64  # stays
"""


def policy(text):
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    return config.version_policy.WhichOneof("policy_choice"), list(config.version_policy.specific.versions), config


@pytest.mark.parametrize(
    "text",
    [
        LATEST,
        LATEST.replace("version_policy {", "version_policy: {"),
        LATEST.replace("latest {\n    num_versions: 1\n  }", "specific { versions: [1, 2] }"),
        LATEST.replace("  latest {\n    num_versions: 1\n  }\n", "all { }\n"),
        'name: "alexnet"\nmax_batch_size: 64  # Ours. stays\n',
    ],
    ids=["latest", "colon", "several", "all", "none"],
)
def test_one_version_takes_the_place_of_any_policy_and_the_rest_stays(text):
    choice, versions, config = policy(with_pin(text, 7))
    assert (choice, versions) == ("specific", [7])
    assert (config.name, config.max_batch_size) == ("alexnet", 64)
    assert "Ours." in with_pin(text, 7)
    assert "stays" in with_pin(text, 7)


def test_a_pin_takes_the_place_of_a_pin():
    twice = with_pin(with_pin(LATEST, 3), 4)
    assert policy(twice)[1] == [4]
    assert twice == with_pin(LATEST, 4)


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "alexnet"
    (directory / "configs").mkdir(parents=True)
    (directory / "config.pbtxt").write_text(LATEST)
    (directory / "configs/gpu.pbtxt").write_text(LATEST)
    return directory


def test_all_configurations_of_a_model_are_pinned_and_nothing_is_left_beside_them(model):
    (model / "config.pbtxt").chmod(0o640)
    assert [pinned(each) for each in configurations(model)] == [None, None]
    pin(model, 5)
    assert [pinned(each) for each in configurations(model)] == [5, 5]
    assert (model / "config.pbtxt").stat().st_mode & 0o777 == 0o640
    assert {path.name for path in model.rglob("*")} == {"config.pbtxt", "configs", "gpu.pbtxt"}


@pytest.mark.parametrize(
    "policy", ["specific { versions: [5, 6] }", "all { }", "latest { num_versions: 2 }"], ids=["named", "all", "latest"]
)
def test_a_model_of_which_several_versions_serve_is_left_alone(model, policy):
    (model / "config.pbtxt").write_text(f'name: "alexnet" version_policy {{ {policy} }}')
    with pytest.raises(LaunchError, match="serves several versions"):
        pinned(model / "config.pbtxt")


def test_the_newest_serves_again_once_the_pin_is_taken_away(model):
    pin(model, 5)
    pin(model, None)
    assert [each.read_text() for each in configurations(model)] == [LATEST, LATEST]


def test_if_one_configuration_is_damaged_none_is_changed(model):
    (model / "configs/gpu.pbtxt").write_text("name: alexnet {")
    with pytest.raises(LaunchError, match=r"gpu\.pbtxt: not a configuration"):
        pin(model, 5)
    assert (model / "config.pbtxt").read_text() == LATEST


def test_what_fails_leaves_the_configurations_as_they_were(model):
    def fail():
        with kept_on_failure(model):
            pin(model, 5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [each.read_text() for each in configurations(model)] == [LATEST, LATEST]


def test_a_missing_model_is_told(tmp_path):
    with pytest.raises(LaunchError, match="check --repository"):
        pin(tmp_path / "nothing", 1)


@pytest.mark.parametrize(
    ("agreement", "candidate_ms", "said"),
    [
        (0.98, 15.0, []),
        (0.97, 15.0, ["97.0% of its answers"]),
        (0.98, 15.1, ["1.51 times as long"]),
        (0.0, 99.0, ["0.0% of its answers", "9.90 times as long"]),
    ],
)
def test_a_candidate_must_agree_and_be_in_time(agreement, candidate_ms, said):
    found = Comparison(100, agreement, 0.1, 10.0, candidate_ms).faults(agreement=0.98, slower=1.5)
    assert len(found) == len(said)
    assert all(text in line for text, line in zip(said, found, strict=True))
