"""What the deploy check reads of files that are no Kubernetes objects: Dockerfiles, compose files, quantities, PromQL."""

from __future__ import annotations

import pytest
import yaml

from alexnet_server.deployment.images import PLACEHOLDER, compose_images, dockerfile_images
from alexnet_server.deployment.queries import adapter_names
from alexnet_server.deployment.workloads import option, quantity
from alexnet_server.monitoring.kubernetes import metrics_of

DIGEST = "@sha256:" + 64 * "a"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("FROM debian:12-slim\n", ":1: debian:12-slim has no digest"),
        ("# FROM comment\nFROM debian\n", ":2: debian is whatever is the latest"),
        ("FROM --platform=linux/amd64 python:3.11 AS build\n", ":1: python:3.11 has no digest"),
        ("ARG BASE\nFROM $BASE\n", ":2: $BASE: which image is left to the caller"),
        ("ARG BASE=python:3.11\nFROM ${BASE}\n", ":2: python:3.11 has no digest"),
        (
            f"ARG RELEASE=24.10\nFROM nvcr.io/nvidia/tritonserver:${{RELEASE}}-py3{DIGEST}\n",
            "24.10 of Triton has published",
        ),
        (f"FROM a{DIGEST}\nCOPY --from=ghcr.io/b:1 /x /y\n", ":2: ghcr.io/b:1 has no digest"),
        (f"FROM a{DIGEST} AS one\nRUN a && \\\n  b\nFROM c:1\n", ":4: c:1 has no digest"),
    ],
)
def test_a_dockerfiles_moving_image_is_found_at_its_line(content, says, tmp_path):
    path = tmp_path / "a.Dockerfile"
    path.write_text(content)
    (finding,) = dockerfile_images(path, release=False)
    assert says in str(finding)


@pytest.mark.parametrize(
    "content",
    [
        f"FROM debian:12{DIGEST}\n",
        f"ARG DIGEST={DIGEST[1:]}\nFROM nvcr.io/nvidia/tritonserver:26.06-py3@${{DIGEST}} AS server\nFROM server\n",
        f'ARG BASE="a{DIGEST}"\nFROM $BASE AS one\nFROM scratch\nCOPY --from=one /x /y\nCOPY --from=0 /x /y\n',
        "FROM debian@" + PLACEHOLDER + "\n",
    ],
)
def test_a_dockerfile_whose_images_stay_is_let_pass(content, tmp_path):
    path = tmp_path / "a.Dockerfile"
    path.write_text(content)
    assert list(dockerfile_images(path, release=False)) == []


def test_a_placeholder_in_a_dockerfile_is_a_mistake_before_an_apply(tmp_path):
    path = tmp_path / "a.Dockerfile"
    path.write_text(f"FROM debian@{PLACEHOLDER}\n")
    (finding,) = dockerfile_images(path, release=True)
    assert "placeholder" in str(finding)


@pytest.mark.parametrize(
    ("service", "says"),
    [
        ({"image": "prom/prometheus:v3.0.0"}, "one: prom/prometheus:v3.0.0 has no digest"),
        ({"image": "${IMAGE:-grafana/grafana:latest}"}, "one: grafana/grafana:latest is whatever is the latest"),
        ({"image": "${IMAGE}"}, "one: ${IMAGE}: which image is left to the caller"),
        ({"command": "run"}, "one: has no image"),
        ({"image": f"prom/prometheus:v3.0.0{DIGEST}"}, None),
        ({"image": f"${{IMAGE:-prom/prometheus:v3.0.0{DIGEST}}}"}, None),
        ({"image": "alexnet-server", "build": {"context": ".."}}, None),
        ({"build": ".."}, None),
        ({"extends": {"service": "two"}}, None),
        ({"image": "built-by-two"}, None),
    ],
)
def test_a_compose_service_runs_an_image_that_stays_or_is_built_here(service, says, tmp_path):
    path = tmp_path / "compose.yml"
    path.write_text(yaml.safe_dump({"services": {"one": service, "two": {"image": "built-by-two", "build": ".."}}}))
    said = [str(finding) for finding in compose_images(path, release=False)]
    assert (says is None and said == []) or (len(said) == 1 and says in said[0])


@pytest.mark.parametrize(
    ("text", "number"), [("500m", 0.5), ("2", 2), ("1Gi", 2**30), ("64Mi", 2**26), ("1.5G", 1.5e9), (3, 3)]
)
def test_a_quantity_is_read_as_kubernetes_does(text, number):
    assert quantity(text) == number


def test_what_is_no_quantity_is_refused():
    with pytest.raises(ValueError, match="1 GB: not a quantity"):
        quantity("1 GB")


@pytest.mark.parametrize(
    ("container", "value"),
    [
        ({"args": ["exec", "--grpc-port=9000"]}, "9000"),
        ({"command": ["a", "exec", "--grpc-port", "9000"]}, "9000"),
        ({"args": ["exec", "--grpc-port"]}, None),
        ({}, None),
    ],
)
def test_an_option_is_found_in_both_ways_to_write_it(container, value):
    assert option(container, "--grpc-port") == value


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        ('up{job="triton"} == 1', {"up"}),
        ("sum by (job, le) (rate(a_total[5m] offset 1h)) / on (job) group_left (model) b:c:rate5m > 1e6", {"a_total", "b:c:rate5m"}),
        ('absent(a{x="sum(b)"}) or vector(0)', {"a"}),
        ("sum by (<<.GroupBy>>) (rate(a{<<.LabelMatchers>>}[2m])) / clamp_min(b, 1)", {"a", "b"}),
        ("a and on (instance) b unless c", {"a", "b", "c"}),
        ("time() - 14 * 86400 < bool a", {"a"}),
    ],
)  # fmt: skip
def test_names_of_metrics_are_told_from_functions_labels_and_keywords(expr, names):
    assert metrics_of(expr) == names


def test_a_delta_of_a_counter_is_found():
    rule = {"seriesQuery": "a", "metricsQuery": "delta(a[2m])", "name": {"as": "b"}}
    (finding,) = adapter_names("values.yaml", {"rules": {"custom": [rule]}}, frozenset("a"))
    assert str(finding).startswith("values.yaml: b: takes the delta of a counter, which a restart makes negative; ")
