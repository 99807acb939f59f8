"""`deploy/capacity.py`: the plan follows from the measured server, and the page from the inputs."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
from capacity import INPUTS, PAGE, Inputs, client_processes, gpu_bounds, main, network_gbit_s, page, servers

from alexnet_client.errors import BadInput

RAW = json.loads(INPUTS.read_text())
RESULTS = {"throughput": 500.04, "p50_ms_at_50": 5, "p99_ms_at_50": 20, "mean_batch_at_50": 2}
REPORT = {
    "machine": {"name": "Machine", "cpus": 4},
    "results": [
        {"name": name, "median": median, "low": 1, "high": 2, "rounds": 5, "unit": "ms", "details": "measured"}
        for name, median in {"serving: other": 1, **{f"capacity: {key}": RESULTS[key] for key in RESULTS}}.items()
    ],
}


def inputs_with(**values: float) -> Inputs:
    raw = deepcopy(RAW)
    for name, value in values.items():
        raw["measured" if name in raw["measured"] else "assumed"][name]["value"] = value
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
    with pytest.raises(BadInput, match="no measured load meets the SLO of 5 ms"):
        _ = inputs_with(slo_p99_ms=5, **values).load_limit


def test_servers_client_processes_and_network_grow_with_the_demand():
    inputs = inputs_with(throughput=100, p99_ms_at_30=50, p99_ms_at_60=150, decode_us=20_000, cpus=2)
    assert [servers(inputs, demand, 100) for demand in (30, 31, 300)] == [1, 2, 10]
    assert inputs.throughput_files == pytest.approx(1 / (0.010 + 0.010))
    inputs = inputs_with(client_us=200, client_utilisation=0.5, image_bytes=150_000, answer_bytes=100_000)
    assert client_processes(inputs, 10_000) == 4
    assert network_gbit_s(inputs, 1000, "image_bytes") == pytest.approx(2.0)


def test_the_bounds_of_a_gpu_server_follow_from_its_hardware():
    inputs = inputs_with(
        gpu_memory_gb_s=117.26, gpu_network_gbit_s=1, gpu_cpus=1, decode_us=1000
    )  # 117.26 MB of weights
    _, weights, weights_of_32, images, *_, decoding = gpu_bounds(inputs).values()
    assert (weights, weights_of_32) == pytest.approx((1000, 32_000), rel=0.001)
    assert (images, decoding) == pytest.approx((1e9 / 8 / 150_528, 1000))


def test_the_command_replaces_the_measured_inputs_by_a_benchmark_and_writes_the_page(tmp_path):
    inputs, output, bench = (tmp_path / name for name in ("capacity.json", "CAPACITY.md", "bench.json"))
    inputs.write_text(json.dumps(RAW))
    bench.write_text(json.dumps(REPORT))
    assert main(["--bench", str(bench)], inputs=inputs, output=output) == 0
    new = Inputs(json.loads(inputs.read_text()))
    assert (new["throughput"], new["cpus"], new.loads) == (500, 4, [0.5])
    assert new["client_us"] == RAW["measured"]["client_us"]["value"]
    assert "serving: other" not in new.entries
    assert "| 50% | 250 | 5 | 20 | 2 | met |" in output.read_text()
    assert "Machine, 4 CPUs" in output.read_text()


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
