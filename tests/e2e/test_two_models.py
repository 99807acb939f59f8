"""Two models under load in one server: neither starves, and the rate limiter sets their shares."""

from __future__ import annotations

import asyncio
import shutil

import numpy as np
from waiting import until

from alexnet_client import BatchOptions, Client

EXECUTIONS = 40
IN_FLIGHT, BATCH = 4, 8
NO_BATCHING = BatchOptions(max_batch=1, min_in_flight=IN_FLIGHT, max_in_flight=IN_FLIGHT)
LIMITER = 'instance_group {{\n  rate_limiter {{\n    resources {{ name: "turn" count: 1 }}\n    priority: {}\n  }}\n'


def two_models(repository, directory, priorities=()):
    """A repository with the release as alexnet and as other, in which each request is one execution."""
    both = directory / "both"
    shutil.copytree(repository / "alexnet", both / "alexnet")
    shutil.copytree(repository / "alexnet", both / "other", ignore=shutil.ignore_patterns("manifest.json", "configs"))
    for place, model in enumerate(("alexnet", "other")):
        config = both / model / "config.pbtxt"
        # If Triton combined requests, a model would have none while its callers read the results.
        text = config.read_text().replace('name: "alexnet"', f'name: "{model}"').replace("size: 64", f"size: {BATCH}")
        if priorities:
            text = text.replace("instance_group {\n", LIMITER.format(priorities[place]))
        config.write_text(text)
    return both


async def executions(server) -> tuple[float, float]:
    """Executions of alexnet and of other while both have requests all the time."""
    images = np.zeros((BATCH, 224, 224, 3), np.uint8)

    def counts():
        return np.array([server.metric("nv_inference_exec_count", model) for model in ("alexnet", "other")])

    async with (
        Client(server.target, timeout_s=120, batching=NO_BATCHING) as first,
        Client(server.target, model="other", timeout_s=120, batching=NO_BATCHING) as other,
    ):

        async def call(client):
            while True:
                await client.infer(images)

        tasks = [asyncio.create_task(call(client)) for client in (first, other) for _ in range(IN_FLIGHT)]
        await until(lambda: counts().sum() > 2 * IN_FLIGHT, "both models have requests", every_s=0.1)
        before = counts()
        await until(lambda: (counts() - before).sum() >= EXECUTIONS, f"{EXECUTIONS} executions", every_s=0.1)
        after = counts()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return tuple(after - before)


async def test_a_model_keeps_its_share_when_another_model_is_under_load(launch, repository, tmp_path):
    with launch(two_models(repository, tmp_path)) as server:
        first, other = await executions(server)
    assert first >= other / 3


async def test_the_rate_limiter_gives_the_model_with_priority_the_larger_share(launch, repository, tmp_path):
    with launch(two_models(repository, tmp_path, priorities=(1, 4)), "--rate-limit") as server:
        first, other = await executions(server)
    assert first >= 2 * other > 0
