"""The difference of two looks, and what cannot be looked at."""

from __future__ import annotations

import http.server
import threading

import pytest

from alexnet_client.errors import BadInput, ServerFault, Unavailable
from alexnet_load.server_side import Look, Observer, difference

METRICS = """# HELP nv_inference_request_success Number of successful inference requests
# TYPE nv_inference_request_success counter
nv_inference_request_success{{model="alexnet",version="1"}} {success}
nv_inference_request_success{{model="other",version="1"}} 99
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{{model="alexnet",reason="BACKEND",version="1"}} 1
nv_inference_request_failure{{model="alexnet",reason="OTHER",version="1"}} 2
# TYPE nv_inference_count counter
nv_inference_count{{model="alexnet",version="1"}} {success}
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{{model="alexnet",version="1"}} 3
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{{model="alexnet",version="1"}} 2500000
"""


def look(at_s, **counts):
    names = ("success", "failure", "inferences", "executions", "queue_s", "input_s", "infer_s", "output_s", "request_s")
    batches = counts.pop("batches", {})
    return Look(at_s, 2, 3, {**dict.fromkeys((*names, "busy_s"), 0.0), **counts}, batches)


def test_what_was_counted_before_is_no_part_of_the_run():
    side = difference(
        look(1.0, success=10, inferences=40, queue_s=1.0, batches={4: 10}),
        look(21.0, success=25, inferences=90, queue_s=1.5, busy_s=3.0, batches={4: 10, 8: 5}),
    )
    assert (side.success, side.inferences, side.queue_s, side.busy_s) == (15, 50, 0.5, 3.0)
    assert (side.batches, side.wall_s, side.servers, side.instances) == ({8: 5}, 20.0, 2, 3)


@pytest.mark.parametrize("after", [look(2.0, success=3), look(2.0, success=20, batches={4: 1})])
def test_a_server_that_was_started_again_is_said(after):
    with pytest.raises(ServerFault, match="started again during the run"):
        difference(look(1.0, success=10, batches={4: 2}), after)


@pytest.fixture
def metrics():
    """Address of an endpoint, and how many successes it tells of at each look."""
    told = [10, 25, 25]

    class Endpoint(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = METRICS.format(success=told.pop(0) if len(told) > 1 else told[0]).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", told
        server.shutdown()


async def test_metrics_are_summed_over_versions_and_reasons_for_the_one_model(metrics):
    found = await Observer("127.0.0.1:1", "alexnet", metrics=metrics[0]).look()
    assert (found.counts["success"], found.counts["failure"], found.counts["executions"]) == (10, 3, 3)
    assert found.counts["queue_s"] == 2.5


async def test_the_last_look_waits_until_the_counters_have_caught_up_and_stand_still(metrics):
    address, told = metrics
    observer = Observer("127.0.0.1:1", "alexnet", metrics=address)
    told[:] = [10, 12, 18, 25, 25]
    before = await observer.look()
    after = await observer.settled_look(before, expected_requests=15)
    assert after.counts["success"] - before.counts["success"] == 15


async def test_a_model_that_metrics_do_not_know_is_a_mistake(metrics):
    with pytest.raises(BadInput, match="nothing is said of a model resnet"):
        await Observer("127.0.0.1:1", "resnet", metrics=metrics[0]).look()


async def test_metrics_that_nobody_serves_are_said(free_port):
    with pytest.raises(Unavailable, match="no metrics there"):
        await Observer("127.0.0.1:1", "alexnet", metrics=f"127.0.0.1:{free_port()}").look()


@pytest.mark.parametrize("address", ["localhost:abc", "127.0.0.1:99999"])
async def test_an_address_of_metrics_that_is_none_is_said(address):
    with pytest.raises(Unavailable, match="no metrics there"):
        await Observer("127.0.0.1:1", "alexnet", metrics=address).look()


async def test_without_the_administration_key_statistics_are_closed(free_port):
    with pytest.raises(BadInput, match="no administration key"):
        await Observer(f"127.0.0.1:{free_port()}", "alexnet").look()
