"""Plans of fleets: their arithmetic, the GPU's roofline, and the page that is made of them."""

from __future__ import annotations

import json
import math
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from alexnet_server.capacity.__main__ import main
from alexnet_server.capacity.costs import PerImage, line_of, read_inputs, through
from alexnet_server.capacity.curves import REQUESTS_EACH, fleets, losses, offered
from alexnet_server.capacity.measured import COMPARED, COSTS, KEPT, NOISE, with_run
from alexnet_server.capacity.page import page
from alexnet_server.capacity.plan import Demand, cheapest, plan, share_of_capacity, spares
from alexnet_server.capacity.roofline import LAYERS, Gpu, connected_share, layers_s, weights_s
from alexnet_server.capacity.tables import about, comparison_table
from alexnet_server.monitoring.slo import SLOS

DEPLOY = Path(__file__).parents[2] / "deploy"
EASY = {0.3: 0.01, 0.6: 0.02, 0.8: 0.05, 0.9: 0.09, 0.95: 0.2}
"""p99 in seconds by the share of the capacity that comes."""
H200 = Gpu(790e12, 4.3e12, 50e9)


@pytest.fixture(scope="module")
def inputs():
    return read_inputs(DEPLOY / "capacity.json")


@pytest.fixture(scope="module")
def cpu(inputs):
    return inputs.cpu_host()


def with_value(inputs, **values):
    raw = deepcopy(inputs.raw)
    for name, value in values.items():
        (group,) = (raw[each] for each in ("measured", "calculated", "assumed", "prices") if name in raw[each])
        group[name]["value"] = value
    return replace(inputs, raw=raw)


def test_the_committed_page_is_current(inputs):
    assert (DEPLOY / "CAPACITY.md").read_text() == page(inputs), "make capacity"


def test_every_input_has_a_source(inputs):
    for group in ("measured", "calculated", "assumed", "prices"):
        for name, entry in inputs.raw[group].items():
            assert entry["source"], name


def test_the_objective_is_the_one_that_alerts_watch(inputs):
    (latency,) = (each for each in SLOS if each.name == "latency")
    assert latency.objective == 0.99
    assert f'le="{inputs["objective_p99_ms"] / 1000:g}"' in latency.good


def test_costs_are_a_line_through_what_was_measured():
    cost = through(200e-6, 80e-6, 54e-6, 150_528)
    assert cost.at(1, 150_528) == pytest.approx(200e-6)
    assert cost.at(32, 150_528) == pytest.approx(80e-6)
    assert cost.at(32, 0) == pytest.approx(54e-6)


def test_noise_in_the_measurements_makes_no_cost_negative():
    cost = through(70e-6, 80e-6, 90e-6, 1000)
    assert cost == PerImage(0.0, 80e-6, 0.0)


def test_the_line_through_the_times_of_batches():
    times = {size: (count, count * (0.003 + 0.002 * size)) for size, count in ((1, 300), (3, 20), (31, 9), (63, 5))}
    assert line_of(times) == pytest.approx((0.003, 0.002))


def test_a_disturbed_large_batch_does_not_spoil_the_line_for_small_ones():
    times = {size: (count, count * (0.003 + 0.002 * size)) for size, count in ((1, 300), (3, 20), (31, 9))}
    fixed_s, per_image_s = line_of(times | {63: (1, 3 * (0.003 + 0.002 * 63))})
    assert fixed_s + per_image_s == pytest.approx(0.005, rel=0.1)
    assert fixed_s + 31 * per_image_s == pytest.approx(0.065, rel=0.2)


@pytest.mark.parametrize("times", [{1: 0.001, 10: 0.02}, {1: 0.02, 10: 0.01}])
def test_no_part_of_the_line_is_negative(times):
    fixed_s, per_image_s = line_of({size: (10, 10 * each) for size, each in times.items()})
    assert min(fixed_s, per_image_s) == 0
    assert max(fixed_s, per_image_s) > 0


def test_the_rooflines_layers_are_torchvisions():
    assert sum(each.weights for each in LAYERS) == 61_100_840
    assert sum(each.multiplications for each in LAYERS) == pytest.approx(714.19e6, rel=1e-4)


@pytest.mark.parametrize(("images", "rate"), [(1, 34e3), (8, 197e3), (64, 477e3), (256, 553e3)])
def test_the_roofline_of_a_batch(images, rate):
    assert images / layers_s(H200, images) == pytest.approx(rate, rel=0.01)


def test_a_small_batch_on_a_gpu_is_spent_reading_the_fully_connected_layers():
    assert connected_share(H200, 1) > 0.9
    assert connected_share(H200, 256) < 0.1
    assert weights_s(H200) == pytest.approx(28.4e-6, rel=0.01)


def test_a_gpus_batches_are_no_faster_than_its_roofline(inputs):
    host, gpu = with_value(inputs, gpu_share=1).gpu_host(), inputs.gpu
    for images in (1, 8, 64):
        assert layers_s(gpu, images) <= host.server.batch_s(images) * 1.001 < 1.2 * layers_s(gpu, images)


def test_a_load_is_allowed_up_to_the_first_that_misses_the_objective():
    assert share_of_capacity(EASY, 0.05, 1.0) == 0.8
    assert share_of_capacity(EASY, 1.0, 0.7) == 0.7
    assert share_of_capacity(EASY, 0.005, 1.0) is None
    assert share_of_capacity(EASY | {0.6: 0.3}, 0.05, 1.0) == 0.3


def test_a_few_servers_need_one_spare_and_many_need_more():
    assert spares(3, 0.001, 1e-4) == 1
    assert spares(100, 0.01, 1e-4) > 1
    assert spares(1, 0.0, 1e-4) == 1


def test_spares_are_the_fewest_that_do():
    replicas, down, short = 200, 0.01, 1e-3
    for extra, enough in ((spares(replicas, down, short), True), (spares(replicas, down, short) - 1, False)):
        total = replicas + extra
        more = 1 - sum(math.comb(total, each) * down**each * (1 - down) ** (total - each) for each in range(extra + 1))
        assert (more <= short) == enough


def test_a_plan_has_servers_for_the_demand_and_none_too_many(inputs, cpu):
    found = plan(Demand(100_000), cpu, inputs, images_per_request=1, p99_s=EASY)
    allowed = 0.8 * cpu.server.capacity  # most_of_capacity is less than the 0.9 that keeps the objective
    assert (found.replicas - 1) * allowed < 100_000 <= found.replicas * allowed
    for part in found.parts:
        assert part.of_limit <= 1


def test_money_is_servers_processes_and_bytes(inputs, cpu):
    priced = with_value(
        inputs, cpu_server_per_hour=2, client_process_per_hour=3, network_per_gb=5, image_bytes=1e6, answer_bytes=0
    )
    found = plan(Demand(1000), replace(cpu, price_per_hour=2.0), priced, images_per_request=1, p99_s=EASY)
    assert found.servers_per_hour == 2 * (found.replicas + found.spares)
    assert found.clients_per_hour == 3 * found.processes
    assert found.network_per_hour == pytest.approx(3600 * 5)  # a gigabyte a second


@pytest.mark.parametrize(
    ("scarce", "first"),
    [
        ({"gpu_network_gbit_s": 1}, "network"),
        ({"gpu_pcie_gb_s": 0.1}, "PCIe"),
        ({"gpu_cores": 1}, "cores (messages)"),
        ({"gpu_memory_gb_s": 5}, "batches"),
    ],
)
def test_what_is_scarce_breaks_first(inputs, scarce, first):
    changed = with_value(inputs, **scarce)
    # At so many servers and processes nothing is full by rounding; the clients are as many as they must.
    found = plan(Demand(1e6), changed.gpu_host(), changed, images_per_request=32, p99_s=EASY)
    assert first in [each.name for each in found.first]
    assert {each.name for each in found.first} <= {first, "client"}


def test_a_slow_client_breaks_before_a_server_that_has_little_to_do(inputs):
    slow = with_value(inputs, client_32_us=600, client_1_us=600)
    found = plan(Demand(1000), slow.gpu_host(), slow, images_per_request=1, p99_s=EASY)
    assert [each.name for each in found.first] == ["client"]


def test_decoding_on_the_gpus_host_needs_cores(inputs):
    host = inputs.gpu_host()
    pixels, files = (plan(Demand(1e6, each), host, inputs, images_per_request=32, p99_s=EASY) for each in (False, True))
    assert files.replicas > 5 * pixels.replicas
    assert "cores (decoding)" in [each.name for each in files.first]


def test_large_requests_are_not_planned_where_filling_them_takes_the_objective(inputs, cpu):
    assert plan(Demand(100), cpu, inputs, images_per_request=32, p99_s=EASY) is None
    assert plan(Demand(100), cpu, inputs, images_per_request=1, p99_s=EASY) is not None


def test_the_cheapest_size_of_request_is_taken_among_those_that_keep_the_objective(inputs):
    host = inputs.gpu_host()
    assert cheapest(Demand(1e6), host, inputs, {1: EASY, 32: EASY}).images_per_request == 32
    assert cheapest(Demand(1e6), host, inputs, {1: EASY, 32: {0.3: 9.0}}).images_per_request == 1
    assert cheapest(Demand(1e6), host, inputs, {32: {0.3: 9.0}}) is None


def test_what_the_page_says_of_choosing_holds_for_its_figures(cpu):
    p99 = {
        name: offered(fleet, 0.7, requests=REQUESTS_EACH * (2 if fleet.replicas > 1 else 1)).percentile_s(99)
        for name, fleet in fleets(cpu.server).items()
    }
    chance, knowing, each_its_own, in_turn = p99.values()
    assert knowing < each_its_own < chance
    assert in_turn == pytest.approx(each_its_own, rel=0.25)


def test_what_the_page_says_of_a_dead_server_holds_for_its_figures(cpu):
    half, more, nearly_full, bounded, alone = (each.outcome for each in losses(cpu.server))
    assert half.rejected == more.rejected == nearly_full.rejected == 0
    assert nearly_full.percentile_s(50) > 10 * more.percentile_s(50)
    assert bounded.rejected > 0
    assert bounded.percentile_s(99) < nearly_full.percentile_s(99)
    assert alone.rejected > 0


@pytest.fixture
def report():
    values = dict(zip(COSTS.values(), (3100.0, 1900.0, 1300.0, 260.0, 55.5, 21.0), strict=True))
    rows = [row(name, value) for name, value in values.items()]
    rows.append(row(NOISE, 1.0, figures="0.900 1.000 1.100"))
    rows.append(row(f"capacity: p50 at 30 % of capacity, {COMPARED[0]}", 1.05, figures="9.1 and 8.7 ms"))
    rows.append(
        row(f"capacity: p50, by which factor {COMPARED[1]} at the worst load", 1.3, goal=1.25, verdict="missed")
    )
    return {"machine": {"name": "A machine"}, "rows": rows}


def row(name, ratio, *, figures="", goal=None, verdict=""):
    known = {"low": 0.9 * ratio, "high": 1.1 * ratio, "runs": 5, "unit": "", "goal": goal, "verdict": verdict}
    return {"name": name, "ratio": ratio, "figures": figures, "sides": "", "at_most": True, **known}


def test_a_run_of_the_bench_becomes_inputs(inputs, report):
    new = replace(inputs, raw=with_run(inputs.raw, report))
    server = new.cpu_host().server
    assert (server.fixed_s, server.per_image_s, server.outside_s) == pytest.approx((3100e-6, 1900e-6, 1300e-6))
    assert server.noise == (0.9, 1.0, 1.1)
    assert new["triton_32_us"] == 55.5
    assert new["client_32_us"] == inputs["client_32_us"]
    assert set(new.raw["comparison"]["rows"][0]) == set(KEPT)


def test_the_comparison_shows_what_was_missed(inputs, report):
    table = comparison_table(with_run(inputs.raw, report)["comparison"])
    assert "A machine, 5 rounds" in table
    assert "| 1.30 (1.17 - 1.43) | 1.25 at most, missed |" in table
    assert "9.1 and 8.7 ms" in table
    assert comparison_table(None).startswith("Not measured yet")


def test_a_run_without_the_capacity_part_is_refused(inputs, report):
    del report["rows"][0]
    with pytest.raises(ValueError, match="no run of `make bench` with its capacity part"):
        with_run(inputs.raw, report)


def test_the_command_puts_a_run_into_the_inputs_and_writes_the_page(tmp_path, monkeypatch, report):
    (tmp_path / "capacity.json").write_text((DEPLOY / "capacity.json").read_text())
    (tmp_path / "bench.json").write_text(json.dumps(report))
    monkeypatch.setattr("alexnet_server.capacity.__main__.page", lambda inputs: f"a = {inputs['batch_fixed_us']:g}")
    monkeypatch.setattr(sys, "argv", ["capacity", str(tmp_path), "--bench", str(tmp_path / "bench.json")])
    main()
    assert (tmp_path / "CAPACITY.md").read_text() == "a = 3100"
    assert json.loads((tmp_path / "capacity.json").read_text())["comparison"]["machine"] == "A machine"


@pytest.mark.parametrize(
    ("value", "shown"), [(1234, "1,200"), (0.0123, "0.012"), (5.0, "5"), (57.07, "57"), (5.7, "5.7"), (math.inf, "-")]
)
def test_figures_are_shown_with_two_digits(value, shown):
    assert about(value) == shown
