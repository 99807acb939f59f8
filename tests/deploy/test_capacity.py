"""`deploy/capacity.py`: the plan follows from the measured server, and the page from the inputs."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
from capacity import (
    INPUTS,
    PAGE,
    Inputs,
    client_processes,
    gpu_bounds,
    main,
    network_gbit_s,
    page,
    rounded,
    servers,
    with_benchmark,
)

from alexnet_client.errors import BadInput

RAW = json.loads(INPUTS.read_text())


def inputs_with(**values: float) -> Inputs:
    raw = deepcopy(RAW)
    for name, value in values.items():
        group = "measured" if name in raw["measured"] else "assumed"
        raw[group][name]["value"] = value
    return Inputs(raw)


def test_the_committed_page_is_current():
    assert page(Inputs(RAW)) == PAGE.read_text(), "run `make capacity` and commit the page"


def test_the_slo_is_the_one_of_the_alerts():
    rules = (PAGE.parent / "prometheus/rules/slo.yml").read_text()
    assert f'le="{RAW["assumed"]["slo_p99_ms"]["value"] / 1000:g}"' in rules


@pytest.mark.parametrize(
    ("p99_ms", "limit"), [((10, 20, 30), 0.8), ((10, 200, 300), 0.3), ((10, 100, 100.1), 0.6), ((10, 200, 30), 0.3)]
)
def test_the_load_limit_is_the_largest_load_below_the_first_slo_violation(p99_ms, limit):
    values = dict(zip(("p99_ms_at_30", "p99_ms_at_60", "p99_ms_at_80"), p99_ms, strict=True))
    assert inputs_with(slo_p99_ms=100, **values).load_limit == limit


def test_a_server_that_violates_the_slo_at_every_load_has_no_limit():
    with pytest.raises(BadInput, match="no measured load meets the SLO of 5 ms"):
        _ = inputs_with(slo_p99_ms=5).load_limit


def test_servers_are_the_fewest_that_stay_within_the_limit():
    inputs = inputs_with(throughput=100, p99_ms_at_30=50, p99_ms_at_60=150)
    assert [servers(inputs, demand, 100) for demand in (30, 31, 300)] == [1, 2, 10]


def test_decoding_on_the_server_takes_time_from_inference():
    inputs = inputs_with(throughput=100, decode_us=20_000, cpus=2)
    assert inputs.throughput_files == pytest.approx(1 / (0.010 + 0.010))


def test_client_processes_and_network_grow_with_the_demand():
    inputs = inputs_with(client_us=200, client_utilisation=0.5, image_bytes=150_000, answer_bytes=100_000)
    assert client_processes(inputs, 10_000) == 4
    assert network_gbit_s(inputs, 1000, "image_bytes") == pytest.approx(2.0)


def test_the_bounds_of_a_gpu_server_follow_from_its_hardware():
    bounds = list(
        gpu_bounds(inputs_with(gpu_memory_gb_s=117.26, gpu_network_gbit_s=1, gpu_cpus=1, decode_us=1000)).values()
    )
    assert bounds[1] == pytest.approx(1000, rel=0.001)  # 117.26 MB of weights
    assert bounds[2] == 32 * bounds[1]
    assert bounds[3] == pytest.approx(1e9 / 8 / 150_528)
    assert bounds[7] == pytest.approx(1000)


def result(name: str, median: float) -> dict:
    return {"name": name, "median": median, "low": 1, "high": 2, "rounds": 5, "unit": "ms", "details": "measured"}


REPORT = {
    "machine": {"name": "Machine", "cpus": 4},
    "results": [
        result("capacity: throughput", 500.04),
        result("capacity: p50_ms_at_50", 5),
        result("capacity: p99_ms_at_50", 20),
        result("capacity: mean_batch_at_50", 2),
        result("serving: other", 1),
    ],
}


def test_a_benchmark_replaces_the_measured_inputs_and_all_latencies():
    inputs = Inputs(with_benchmark(RAW, REPORT))
    assert (inputs["throughput"], inputs["cpus"], inputs.loads, inputs.load_limit) == (500, 4, [0.5], 0.5)
    assert inputs["client_us"] == RAW["measured"]["client_us"]["value"]
    assert "Machine, 4 CPUs" in page(inputs)
    assert "serving: other" not in inputs.entries


def test_the_command_writes_the_results_of_a_benchmark_and_the_page(tmp_path):
    inputs, output, bench = (tmp_path / name for name in ("capacity.json", "CAPACITY.md", "bench.json"))
    inputs.write_text(json.dumps(RAW))
    bench.write_text(json.dumps(REPORT))
    assert main(["--bench", str(bench)], inputs=inputs, output=output) == 0
    assert json.loads(inputs.read_text())["measured"]["throughput"]["value"] == 500
    assert "| 50% | 250 | 5 | 20 | 2 | met |" in output.read_text()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "no such file or directory"),
        ("{", "not a JSON file"),
        ('{"results": []}', "the report has no capacity results"),
    ],
)
def test_an_unusable_benchmark_is_a_user_error_and_changes_nothing(content, error, tmp_path, capsys):
    inputs, bench = tmp_path / "capacity.json", tmp_path / "bench.json"
    inputs.write_text(json.dumps(RAW))
    if content is not None:
        bench.write_text(content)
    assert main(["--bench", str(bench)], inputs=inputs, output=tmp_path / "CAPACITY.md") == 2
    assert error in capsys.readouterr().err
    assert json.loads(inputs.read_text()) == RAW


@pytest.mark.parametrize(
    ("value", "shown"), [(1234, "1,200"), (0.0123, "0.012"), (5.0, "5"), (57.07, "57"), (5.7, "5.7")]
)
def test_numbers_are_shown_with_two_significant_digits(value, shown):
    assert rounded(value) == shown
