"""``alexnet-client compare`` against two fake servers; the class of an image is the red of its first pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from alexnet_client.__main__ import app
from alexnet_client.compare import WARM_UP, parse_endpoint
from alexnet_client.errors import BadInput
from alexnet_client.fake import FakeServer, Step

LABELS = ("cat", "dog", "bird")


@pytest.fixture
def servers():
    with FakeServer(labels=LABELS).in_thread() as a, FakeServer(labels=LABELS).in_thread() as b:
        yield a, b


@pytest.fixture
def images(tmp_path):
    """A directory of four images in two subdirectories."""
    for number in range(4):
        path = tmp_path / "images" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((224, 224, 3), number, np.uint8)).save(path)
    return tmp_path / "images"


def run(a, b, images, *options):
    return CliRunner().invoke(app, ["compare", a, b, "--images", str(images), *map(str, options)])


def results(result):
    return json.loads(result.stdout.splitlines()[-1])


def swap_first_classes(response):
    """Change the top-1 class: the probability of "cat" becomes that of "dog", and vice versa."""
    for index, output in enumerate(response.outputs):
        values = np.frombuffer(response.raw_output_contents[index], np.float32).reshape(output.shape)
        response.raw_output_contents[index] = values[:, [1, 0, 2]].tobytes()


def measured_requests(server):
    return [each for each in server.requests if not each.requests_labels][WARM_UP:]


def test_equal_servers_agree_on_every_image_and_each_image_is_sent_once_to_both(servers, images):
    result = run(servers[0].target, servers[1].target, images, "--min-agreement", 1)
    assert result.exit_code == 0, result.output
    found = results(result)
    assert (found["images"], found["agreement"], found["largest_probability_difference"]) == (4, 1.0, 0.0)
    assert [found[side]["endpoint"] for side in "ab"] == [each.target for each in servers]
    assert all(0 < found[side]["p50_ms"] <= found[side]["p95_ms"] for side in "ab")
    assert [len(measured_requests(each)) for each in servers] == [4, 4]
    assert found["violations"] == []


@pytest.mark.parametrize(("min_agreement", "exit_code"), [(0.75, 0), (0.8, 1)])
def test_a_different_class_lowers_the_agreement_and_may_violate_its_threshold(
    servers, images, min_agreement, exit_code
):
    steps = iter([*[Step()] * (WARM_UP + 2), Step(mangle=swap_first_classes)])  # for the third image, 1.png
    servers[1].choose = lambda received: Step() if received.requests_labels else next(steps, Step())
    result = run(servers[0].target, servers[1].target, images, "--min-agreement", min_agreement)
    assert result.exit_code == exit_code
    found = results(result)
    assert found["agreement"] == 0.75
    assert found["largest_probability_difference"] == pytest.approx((np.exp(5) - 1) / (np.exp(5) + 2), abs=1e-5)
    assert ("agreement 0.75 is below --min-agreement 0.8" in result.stderr) == bool(exit_code)
    assert "1.png:Adog,Bcat" in "".join(result.stdout.split())


def test_a_slower_candidate_violates_max_slowdown(servers, images):
    servers[1].delay_s = 0.1
    result = run(servers[0].target, servers[1].target, images, "--max-slowdown", 1.5)
    assert result.exit_code == 1
    assert "is above --max-slowdown 1.5" in result.stderr
    assert results(result)["b"]["p50_ms"] >= 100
    assert run(servers[1].target, servers[0].target, images, "--max-slowdown", 1.5).exit_code == 0


def test_the_order_of_the_endpoints_changes_with_each_image(servers, images):
    order = []
    for name, server in zip("ab", servers, strict=True):
        server.choose = lambda received, name=name: order.append(name) or Step()
    run(servers[0].target, servers[1].target, images)
    assert "".join(order) == "ab" + "ab" * WARM_UP + "abbaabba", "class names, warm-up, four images"


def test_unreadable_images_are_named_counted_and_skipped(servers, images):
    (images / "broken.png").write_bytes(b"not an image")
    result = run(servers[0].target, servers[1].target, images, "--json")
    assert result.exit_code == 0
    assert "broken.png: not a JPEG, PNG or WebP image" in result.stderr
    assert len(result.stdout.splitlines()) == 1
    assert (results(result)["images"], results(result)["unreadable"]) == (4, 1)


def test_model_and_version_of_an_endpoint_are_requested(servers, images):
    servers[1].version = "3"
    result = run(servers[0].target, f"{servers[1].target}/alexnet/3", images)
    assert result.exit_code == 0, result.output
    assert results(result)["b"]["versions"] == ["3"]
    assert {each.model_version for each in measured_requests(servers[1])} == {"3"}


def test_a_model_that_reads_files_is_compared_with_one_that_reads_pixels(servers, images):
    with FakeServer(labels=LABELS, model="alexnet_encoded", encoded=True).in_thread() as encoded:
        found = results(run(servers[0].target, f"{encoded.target}/alexnet_encoded", images, "--min-agreement", 1))
    assert (found["agreement"], found["largest_probability_difference"]) == (1.0, 0.0)


@pytest.mark.parametrize("endpoint", ["/alexnet/2", "/other", "/alexnet/latest"])
def test_a_wrong_endpoint_is_a_user_error(servers, images, endpoint):
    result = run(servers[0].target, servers[1].target + endpoint, images)
    assert result.exit_code == 2
    assert result.stderr.startswith("alexnet-client: ")


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        (("cat", "dog"), "the classes of A (3) and B (2) differ: bird;"),
        (("cat", "dog", "fish"), "differ: bird, fish;"),
        (("dog", "cat", "bird"), "differ: the order;"),
    ],
)
def test_endpoints_with_different_classes_are_a_user_error(servers, images, labels, error):
    servers[1].labels = labels
    result = run(servers[0].target, servers[1].target, images)
    assert result.exit_code == 2
    assert error in result.stderr


def test_a_directory_without_readable_images_is_a_user_error(tmp_path, servers):
    for message in ("contains no JPEG, PNG or WebP file", "no readable image"):
        result = run(servers[0].target, servers[1].target, tmp_path)
        assert result.exit_code == 2
        assert message in result.stderr
        (tmp_path / "broken.png").touch()


THRESHOLDS = {"--min-agreement": ("nan", "-0.1", "1.1"), "--max-slowdown": ("nan", "0", "-1", "inf")}


@pytest.mark.parametrize(("option", "value"), [(name, value) for name in THRESHOLDS for value in THRESHOLDS[name]])
def test_thresholds_out_of_range_are_rejected(tmp_path, option, value):
    result = run("127.0.0.1:1", "127.0.0.1:1", tmp_path, option, value)
    assert result.exit_code == 2
    assert f"alexnet-client: {option} must be" in result.stderr


def test_an_endpoint_has_a_target_and_optionally_a_model_and_a_version():
    assert parse_endpoint("host:1") == ("host:1", "alexnet", "")
    assert parse_endpoint("host:1,host:2/other") == ("host:1,host:2", "other", "")
    assert parse_endpoint("dns:///name:1/other/12") == ("dns:///name:1", "other", "12")


@pytest.mark.parametrize("text", ["h:1/", "h:1//2", "h:1/m/", "h:1/m/-1", "h:1/m/²", "h:1/m/1/2"])
def test_other_forms_of_an_endpoint_are_rejected(text):
    with pytest.raises(BadInput, match="not an endpoint of the form"):
        parse_endpoint(text)
