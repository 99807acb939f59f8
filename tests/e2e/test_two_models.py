"""A second model under load in the same server: it does not starve the first, and shares can be set."""

from __future__ import annotations

import asyncio
import shutil

import numpy as np
import pytest

from alexnet_client import BatchOptions, Client

EXECUTIONS = 40
IN_FLIGHT, BATCH = 4, 8
ALL_AT_ONCE = BatchOptions(max_batch=1, min_in_flight=IN_FLIGHT, max_in_flight=IN_FLIGHT)
LIMITER = 'instance_group {{\n  rate_limiter {{\n    resources {{ name: "turn" count: 1 }}\n    priority: {}\n  }}\n'


def two_models(repository, directory, priorities=()):
    """A repository with the release twice, as alexnet and as other; each request is an execution of its own."""
    both = directory / "both"
    shutil.copytree(repository / "alexnet", both / "alexnet")
    shutil.copytree(repository / "alexnet", both / "other", ignore=shutil.ignore_patterns("manifest.json", "configs"))
    for place, model in enumerate(("alexnet", "other")):
        config = both / model / "config.pbtxt"
        # Requests that were joined would leave a model without any while its callers read the answers.
        text = config.read_text().replace('name: "alexnet"', f'name: "{model}"').replace("size: 64", f"size: {BATCH}")
        if priorities:
            text = text.replace("instance_group {\n", LIMITER.format(priorities[place]))
        config.write_text(text)
    return both


async def executions_side_by_side(server) -> tuple[float, float]:
    """How often each model was run while both had all the requests they could take."""
    images = np.zeros((BATCH, 224, 224, 3), np.uint8)

    def counts():
        return [server.metric("nv_inference_exec_count", model) for model in ("alexnet", "other")]

    async with (
        Client(server.target, timeout_s=120, batching=ALL_AT_ONCE) as mine,
        Client(server.target, model="other", timeout_s=120, batching=ALL_AT_ONCE) as other,
    ):
        await asyncio.gather(mine.infer(images), other.infer(images))

        async def call(client):
            while True:
                await client.infer(images)

        tasks = [asyncio.create_task(call(client)) for client in (mine, other) for _ in range(IN_FLIGHT)]
        await asyncio.sleep(1)
        before = counts()
        while sum(counts()) - sum(before) < EXECUTIONS:  # noqa: ASYNC110  the server's counters signal nothing
            await asyncio.sleep(0.2)
        after = counts()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return after[0] - before[0], after[1] - before[1]


async def test_a_second_model_under_load_leaves_the_first_its_share(own_server, repository, tmp_path):
    with own_server(repository=two_models(repository, tmp_path)) as server:
        mine, others = await executions_side_by_side(server)
    assert mine >= others / 3, f"{mine} executions beside {others}"


@pytest.mark.parametrize("priorities", [(1, 4)])
async def test_the_rate_limiter_gives_the_important_model_the_larger_share(
    own_server, repository, tmp_path, priorities
):
    with own_server("--rate-limit", repository=two_models(repository, tmp_path, priorities)) as server:
        mine, others = await executions_side_by_side(server)
    assert others > 0, "nobody starves"
    assert mine >= 2 * others, f"{mine} executions beside {others}"
