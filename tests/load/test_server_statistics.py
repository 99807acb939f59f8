"""Differences of snapshots, and servers whose counters cannot be read."""

from __future__ import annotations

import io

import pytest

from alexnet_client.errors import BadInput, ServerFault, Unavailable
from alexnet_load.server_statistics import PHASES, Snapshot, StatisticsRecorder, difference

METRICS = """# TYPE nv_inference_request_success counter
nv_inference_request_success{{model="alexnet",version="1"}} {success}
nv_inference_request_success{{model="other",version="1"}} 99
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{{model="alexnet",reason="BACKEND",version="1"}} 1
nv_inference_request_failure{{model="alexnet",reason="OTHER",version="1"}} 2
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{{model="alexnet",version="1"}} 3
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{{model="alexnet",version="1"}} 2500000
"""


def snapshot(at_s, *, batches, **counts):
    zero = dict.fromkeys((*PHASES, "success", "failure", "inferences", "executions", "request_s", "busy_s"), 0.0)
    return Snapshot(at_s, 3, zero | counts, batches)


def test_the_statistics_are_the_increase_of_the_counters():
    found = difference(
        snapshot(1.0, success=10, inferences=40, queue_s=1.0, batches={4: 10}),
        snapshot(21.0, success=25, inferences=90, queue_s=1.5, busy_s=3.0, batches={4: 10, 8: 5}),
    )
    assert (found.success, found.inferences, found.queue_s, found.busy_s) == (15, 50, 0.5, 3.0)
    assert (found.batches, found.wall_s, found.instances) == ({8: 5}, 20.0, 3)


@pytest.mark.parametrize("after", [snapshot(2.0, success=3, batches={4: 2}), snapshot(2.0, success=20, batches={4: 1})])
def test_a_restart_of_a_server_is_reported(after):
    with pytest.raises(ServerFault, match="restarted during the run"):
        difference(snapshot(1.0, success=10, batches={4: 2}), after)


@pytest.fixture
def recorder(monkeypatch):
    """Builds a recorder whose readings of the metrics have the given numbers of successful requests."""

    def build(model, *values):
        pages = (io.BytesIO(METRICS.format(success=each).encode()) for each in values)
        monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: next(pages))
        return StatisticsRecorder("127.0.0.1:1", model, metrics="127.0.0.1:8002")

    return build


async def test_metrics_of_one_model_are_summed_over_versions_and_reasons(recorder):
    found = (await recorder("alexnet", 10).read()).counts
    assert (found["success"], found["failure"], found["executions"], found["queue_s"]) == (10, 3, 3, 2.5)
    with pytest.raises(BadInput, match="contains no metrics of model resnet"):
        await recorder("resnet", 10).read()


def test_the_last_reading_waits_until_the_counters_are_complete(recorder):
    metrics = recorder("alexnet", 10, 12, 18, 25, 25)
    metrics.start()
    statistics, missing = metrics.finish(expected_requests=15)
    assert (statistics.success, missing) == (15, "")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:abc", "127.0.0.1:99999"])
async def test_metrics_that_cannot_be_read_are_reported(address):
    with pytest.raises(Unavailable, match=r"cannot be read .*check --metrics"):
        await StatisticsRecorder("127.0.0.1:1", "alexnet", metrics=address).read()


def test_the_reason_for_missing_statistics_is_kept(free_port):
    recorder = StatisticsRecorder(f"127.0.0.1:{free_port()}", "alexnet")
    recorder.start()
    statistics, missing = recorder.finish(expected_requests=None)
    assert statistics is None
    assert "no administration key" in missing
