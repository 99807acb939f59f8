"""Readiness and liveness of a server by inference, because Triton 2.51 still reports ready after a backend process ended."""

from __future__ import annotations

import asyncio
import http.client
import re
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from alexnet_client import codec
from alexnet_client.connection import Connection
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, ClientError, DeadlineExceeded, Overloaded, ServerFault, Unavailable
from alexnet_client.golden import GOLDEN, read_golden
from alexnet_client.images import BLANK_FILE
from alexnet_client.transport import Transport
from alexnet_server.command import ServerOptions

POLL_INTERVAL_S = 0.1
SCRAPE_INTERVAL_S = 1.0
TIMEOUT_S = 2.0
FAILURE_THRESHOLD = 2
"""Failed probes in a row until a model counts as failed."""
_SAMPLE = re.compile(r'^nv_inference_(exec_count|pending_request_count){model="([^"]*)".*} (\S+)$', re.MULTILINE)


async def probe_model(transport: Transport, model: str, deadline: Deadline) -> None:
    """Send one blank image to a model. A model that rejects the blank image as invalid is alive too.

    Raises:
        ClientError: there was no response, or the model failed.
    """
    if not await transport.model_ready(model, deadline):
        raise Unavailable(f"{transport.target}: {model} is not ready")
    metadata = await transport.model_metadata(model, deadline)
    if any(tensor.datatype not in (*codec.DTYPES, "BYTES") for tensor in metadata.inputs):
        return  # numpy does not support the data type
    inputs = {tensor.name: _blank(tensor.datatype, tensor.shape) for tensor in metadata.inputs}
    request = codec.encode_request(model, inputs, [tensor.name for tensor in metadata.outputs])
    with suppress(BadInput):  # a model of the user may expect other bytes than an image
        codec.decode_response(await transport.infer(request, deadline))


async def compare_golden(transport: Transport, model: Path, deadline: Deadline) -> None:
    """Compare the answers of a server with the golden answers in the directory of a model.

    Raises:
        ServerFault: they differ.
        BadInput: the directory has no golden answers of a version that the server has, or they are damaged.
        ClientError: there was no response.
    """
    metadata = await transport.model_metadata(model.name, deadline)
    for version in metadata.versions:
        golden = read_golden(model / version)
        if golden is None:
            raise BadInput(f"{model / version / GOLDEN}: missing; publish again: make export")
        for batch in golden.batches():
            images = {metadata.inputs[0].name: batch.images}
            request = codec.encode_request(model.name, images, ["logits"], version=version)
            answers = codec.decode_response(await transport.infer(request, deadline))
            if mismatch := batch.mismatch(answers["logits"]):
                raise ServerFault(
                    f"{transport.target}: {model.name} version {version} gives wrong answers on this machine: {mismatch}. "
                    "Publish a release for it (make export)"
                )


def _blank(datatype: str, shape: Sequence[int]) -> codec.Array:
    """Zeros; for a model that reads bytes, an image file."""
    sizes = [max(1, size) for size in shape]
    return np.full(sizes, BLANK_FILE, object) if datatype == "BYTES" else np.zeros(sizes, codec.DTYPES[datatype])


async def wait_until_ready(
    target: str, models: Sequence[str], *, timeout_s: float, running: Callable[[], bool], connection: Connection
) -> bool:
    """Wait until every model answered a probe. Return False if ``running``, called before each attempt, returned False.

    Raises:
        DeadlineExceeded: the models were not ready in time.
        ClientError: a model failed.
    """
    deadline = Deadline.after(timeout_s)
    transport = Transport(target, connection)
    try:
        while running():
            try:
                for model in models:
                    await probe_model(transport, model, deadline)
                return True
            except (Unavailable, DeadlineExceeded):
                deadline.remaining_s(f"waiting until {', '.join(models)} are ready")
                await asyncio.sleep(POLL_INTERVAL_S)
        return False
    finally:
        await transport.close()


class LivenessMonitor:
    """Reads the number of executions of each model from Triton's metrics, and probes idle models.

    Args:
        options: how the server is started.
        models: names of the models that execute something; ensembles only wait for their steps.
        probe_after_s: idle time after which a model is probed, seconds; 0 disables probes.
    """

    def __init__(self, options: ServerOptions, models: Sequence[str], probe_after_s: float) -> None:
        self._options, self._models, self._probe_after_s = options, models, probe_after_s
        self._executions: dict[str, float] = {}
        self._active_s = dict.fromkeys(models, time.monotonic())
        self._queued: set[str] = set()
        self._unanswered: set[str] = set()
        self._failed: dict[str, list[str]] = {}

    @property
    def stalled(self) -> set[str]:
        """Models that have waiting requests and execute nothing."""
        return self._queued | self._unanswered

    @property
    def faults(self) -> dict[str, str]:
        """Errors of models that failed ``FAILURE_THRESHOLD`` probes in a row."""
        return {model: texts[-1] for model, texts in self._failed.items() if len(texts) >= FAILURE_THRESHOLD}

    async def run(self) -> None:
        """Monitor until cancelled."""
        transport = Transport(self._options.target, self._options.connection)
        try:
            while True:
                self._update(await asyncio.to_thread(scrape, self._options))
                for model in self._models:
                    idle_s = time.monotonic() - self._active_s[model]
                    if self._probe_after_s and idle_s >= self._probe_after_s:
                        await self._probe(transport, model)
                await asyncio.sleep(SCRAPE_INTERVAL_S)
        finally:
            await transport.close()

    def _update(self, samples: Mapping[str, Mapping[str, float]]) -> None:
        self._queued = set()
        for model in self._active_s.keys() & samples.get("exec_count", {}).keys():
            executions = samples["exec_count"][model]
            active = self._executions.get(model) != executions
            self._executions[model] = executions
            if active:
                self._active_s[model] = time.monotonic()
                self._unanswered.discard(model)
            elif samples.get("pending_request_count", {}).get(model):
                self._queued.add(model)

    async def _probe(self, transport: Transport, model: str) -> None:
        self._unanswered.add(model)
        try:
            await probe_model(transport, model, Deadline.after(TIMEOUT_S))
        except (DeadlineExceeded, Unavailable, Overloaded):
            return  # the number of executions shows whether the model is busy or hangs
        except ClientError as error:
            self._failed.setdefault(model, []).append(str(error))
            return
        self._unanswered.discard(model)
        self._failed.pop(model, None)
        self._active_s[model] = time.monotonic()


def scrape(options: ServerOptions) -> dict[str, dict[str, float]]:
    """Executions and queued requests by metric and model, from Triton's metrics; empty if they are not available."""
    url = f"http://{options.address}:{options.metrics_port}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            text = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return {}
    samples: dict[str, dict[str, float]] = {}
    for metric, model, value in _SAMPLE.findall(text):
        by_model = samples.setdefault(metric, {})
        by_model[model] = by_model.get(model, 0.0) + float(value)
    return samples
