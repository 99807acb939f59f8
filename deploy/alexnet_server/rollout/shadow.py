"""The same requests to the release that serves and to the one that may take its place, and what comes of it."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from alexnet_client import codec
from alexnet_client.deadline import Deadline
from alexnet_client.errors import Overloaded
from alexnet_client.transport import Transport
from alexnet_load.workload import Workload

TIMEOUT_S = 30.0
BUSY_S = 0.05
T = TypeVar("T")


@dataclass(frozen=True)
class Comparison:
    """What both said.

    Attributes:
        requests: sent to each, one image in each.
        agreement: share of images with the same best class.
        largest_difference: of any class's probability for any image.
        serving_ms, candidate_ms: median latency of lone requests, milliseconds.
    """

    requests: int
    agreement: float
    largest_difference: float
    serving_ms: float
    candidate_ms: float

    @property
    def slower(self) -> float:
        """How many times as long the candidate takes."""
        return self.candidate_ms / self.serving_ms

    def faults(self, *, agreement: float, slower: float) -> list[str]:
        """Why the candidate shall not serve: less ``agreement``, or more times as slow, than wanted; empty if it shall."""
        found = []
        if self.agreement < agreement:
            found.append(
                f"{self.agreement:.1%} of its answers are those of the release that serves, less than {agreement:.1%}"
            )
        if self.slower > slower:
            found.append(f"it takes {self.slower:.2f} times as long as the release that serves, more than {slower:.2f}")
        return found

    def as_json(self) -> dict[str, Any]:
        """For the JSON line."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


async def answers(ask: Callable[[Deadline], Awaitable[T]]) -> T:
    """What a server answers that may have too much to do: it is asked again until the deadline, for it is not worse for that.

    Raises:
        ClientError: it failed, or was busy all the time.
    """
    deadline = Deadline.after(TIMEOUT_S)
    while True:
        try:
            return await ask(deadline)
        except Overloaded:
            deadline.remaining_s("waiting for a server with too much to do")
            await asyncio.sleep(BUSY_S)


async def compare(
    transport: Transport, serving: str, candidate: str, workload: Workload, *, requests: int
) -> Comparison:
    """Ask both models the same, in turns; who is asked first alternates, so that neither profits.

    Args:
        transport: to the server of both.
        serving: name of the model that serves.
        candidate: name of the other one.
        workload: images.
        requests: to each.

    Raises:
        ClientError: one of them failed.
    """
    metadata = await transport.model_metadata(serving, Deadline.after(TIMEOUT_S))
    tensor, outputs = metadata.inputs[0].name, [each.name for each in metadata.outputs]

    async def ask(model: str, image: codec.Array) -> tuple[codec.Array, float]:
        request = codec.encode_request(model, {tensor: image}, outputs)
        began_s = time.perf_counter()
        answer = codec.decode_response(await answers(lambda deadline: transport.infer(request, deadline)))
        return answer["probabilities"][0], time.perf_counter() - began_s

    await ask(candidate, workload.request(0, 1))  # its first run makes its memory
    same, largest = 0, 0.0
    seconds: dict[str, list[float]] = {serving: [], candidate: []}
    for number in range(requests):
        image, said = workload.request(number, 1), {}
        for model in (serving, candidate) if number % 2 else (candidate, serving):
            said[model], took_s = await ask(model, image)
            seconds[model].append(took_s)
        same += int(np.argmax(said[serving]) == np.argmax(said[candidate]))
        largest = max(largest, float(np.abs(said[serving] - said[candidate]).max()))
    medians = [1000 * statistics.median(seconds[model]) for model in (serving, candidate)]
    return Comparison(requests, same / requests, largest, *medians)
