"""The load tester with real servers: latency from planned send times, counts that agree with Triton, output files."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import replace

import pytest
from PIL import Image
from servers import CHEAP_GRAPH, publish_graph, run_command
from waiting import wait_until

from alexnet_client.errors import BadInput
from alexnet_load import tune
from alexnet_load.bottleneck import compare_counts
from alexnet_load.run import NO_BATCHING, Plan
from alexnet_load.runner import run_plan
from alexnet_load.slo import parse_slo
from alexnet_load.summary import percentile_ms, summarize
from alexnet_load.tune import Tuned

STALL_S = 1.5
FAULTY_GREY = 77


def test_latency_from_the_planned_send_times_shows_a_stall_that_the_service_time_hides(cheap_server):
    """Triton is stopped during a quarter of the run. At most two requests are in flight, the others wait in the client."""
    with cheap_server("--probe-interval", 0) as server:
        triton = server.triton()

        def stall():
            wait_until(lambda: server.metric("nv_inference_request_success", "alexnet") > 100, "the load runs")
            triton.suspend()
            time.sleep(STALL_S)
            triton.resume()

        stalling = threading.Thread(target=stall)
        stalling.start()
        batching = {"min_in_flight": 2, "max_in_flight": 2}
        plan = Plan(server.target, arrivals="constant:100", duration_s=6.0, warm_up_s=0.5, batching=batching)
        summary = summarize(run_plan(plan))
        stalling.join()
    assert summary.errors == {}
    response_ms, service_ms = (percentile_ms(each, 99) for each in (summary.response, summary.service))
    assert response_ms > 750 * STALL_S
    assert service_ms < response_ms / 4


FAULT = f"""
    sums = MatMul(row, weights)
    grey = Constant<value = uint8 {{{FAULTY_GREY}}}>()
    first = Constant<value_ints = [0, 0, 0]>()
    second = Constant<value_ints = [1, 1, 1]>()
    places = Constant<value_ints = [1, 2, 3]>()
    column = Constant<value_ints = [-1, 1]>()
    table = Constant<value_floats = [0.0]>()
    pixel = Slice(image, first, second, places)
    found = Equal(pixel, grey)
    index = Cast<to = 7>(found)
    zero = Gather(table, index)
    zero_column = Reshape(zero, column)
    logits = Add(sums, zero_column)
"""
"""An image that starts with a certain grey causes an index error."""


def test_counts_agree_with_triton_if_requests_fail_in_the_backend(launch, cheap, digits, tmp_path):
    graph = CHEAP_GRAPH.replace("logits = MatMul(row, weights)", FAULT)
    faulty = publish_graph(tmp_path, graph, cheap.weights, digits.labels)
    (tmp_path / "images").mkdir()
    for grey in (10, 200, FAULTY_GREY):
        Image.new("RGB", (300, 300), (grey,) * 3).save(tmp_path / "images" / f"{grey}.png")
    with launch(faulty) as server:
        plan = Plan(
            server.target, arrivals="poisson:80", duration_s=2.0, images=str(tmp_path / "images"), batching=NO_BATCHING
        )
        run = run_plan(plan)
    outcomes = [run.records.outcomes[each] for each in run.records.outcome]
    ok, failed = outcomes.count("ok"), outcomes.count("server_fault")
    assert ok + failed == len(outcomes)
    assert failed >= len(outcomes) // 3, "every third image fails, and each image in the same execution"
    assert run.client.attempts == {"ok": ok, "server_fault": failed}
    counted = run.server.success, run.server.failure, run.server.inferences
    assert counted == (ok + failed, 0, ok + failed), (
        "Triton 2.51 counts an error of a Python-based backend as a success"
    )
    assert f"counts agree: {ok:,} requests answered, {failed:,} answered with an error" in compare_counts(
        run.client, run.server
    )


def test_counts_agree_with_triton_for_an_ensemble_where_triton_counts_a_failure_twice(server, tmp_path):
    Image.new("RGB", (300, 300)).save(tmp_path / "whole.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    plan = Plan(
        server.target,
        model="alexnet_encoded",
        arrivals="constant:40",
        duration_s=1.5,
        images=str(tmp_path),
        batching=NO_BATCHING,
    )
    run = run_plan(plan)
    assert run.client.attempts == {"ok": 30, "bad_input": 30}
    assert (run.server.success, run.server.inferences, run.server.failure) == (30, 30, 2 * 30)
    assert run.server.executions > 0
    assert "counts agree: 30 requests answered, 30 images" in compare_counts(run.client, run.server)


def test_batch_sizes_and_executions_agree_with_triton(server):
    plan = Plan(server.target, arrivals="poisson:80", duration_s=1.5, sizes=((1, 0.7), (4, 0.3)), senders=2)
    run = run_plan(plan)
    assert run.server.inferences == run.client.images == int(run.records.images.sum())
    assert run.server.success == run.client.attempts["ok"] == sum(run.client.batches.values())
    assert sum(size * count for size, count in run.server.batches.items()) == run.server.inferences
    assert sum(run.server.batches.values()) == run.server.executions
    assert 0 < run.server.busy_s < run.server.wall_s * run.server.instances


def test_the_metrics_endpoint_replaces_statistics_that_need_the_key(server):
    plan = Plan(server.target, arrivals="constant:40", duration_s=1.0, batching=NO_BATCHING)
    run = run_plan(plan, metrics=f"127.0.0.1:{server.metrics_port}")
    assert (run.server.success, run.server.inferences, run.server.batches) == (40, 40, {})
    assert run.server.infer_s > 0


def test_tune_serves_and_measures_a_setting(cheap):
    plan = Plan(duration_s=0.5, warm_up_s=0.0)
    default = tune.setting_of(tune.read_config(cheap.repository, "alexnet"))
    setting = replace(default, instances=2, threads=1, queue_delay_us=500, preferred_batch=8)
    rate = tune.measure_setting(cheap.repository, setting, plan, parse_slo("p50=10s"), start_rate=40, max_rate=40)
    assert rate == 40


def test_tune_writes_a_configuration_that_can_be_served(cheap, launch, tmp_path):
    repository = tmp_path / "repository"
    shutil.copytree(cheap.repository, repository)
    default = tune.setting_of(tune.read_config(repository, "alexnet"))
    best = replace(default, instances=2, queue_delay_us=500, preferred_batch=8)
    tuned = Tuned(best, default, 1.25, 1.2, 1.3, ((best, 50.0), (default, 40.0)))
    path = tune.write_configuration(repository, "alexnet", tuned, "tuned", parse_slo("p99=50ms"))
    assert "# Changed: instances 2, queue delay us 500, preferred batch 8. Measured at p99" in path.read_text()
    assert "speed-up 1.25 (1.20 - 1.30)" in path.read_text()
    with launch(repository, "--config-name", "tuned") as server:
        run = run_plan(Plan(server.target, arrivals="constant:20", duration_s=0.5))
    assert (run.server.instances, run.server.failure, run.server.success) == (2, 0, 10)


def test_the_command_writes_only_into_the_output_directory(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--rate", 30, "--duration", 1, "--warm-up", 0.5, "--output", "load", "--slo", "p99=60s")
    done = run_command("alexnet_load", "run", "--target", server.target, *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["server"]["success"] == found["client"]["attempts"]["ok"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["index.html", "load", "run.jsonl.gz"]


@pytest.mark.parametrize("name", ["../evil", "", "a b"])
def test_tune_rejects_a_configuration_name_that_is_not_a_file_name(cheap, name):
    with pytest.raises(BadInput, match="invalid configuration name"):
        tune.configuration_path(cheap.repository, "alexnet", name)
