"""Readiness by a real inference: an open port, and even Triton's own "ready", say less (a dead backend stays "ready")."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from alexnet_client import codec
from alexnet_client.connection import Connection
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, ClientError, DeadlineExceeded, Unavailable
from alexnet_client.images import BLANK_FILE
from alexnet_client.transport import Transport

POLL_S = 0.1
ASK_S = 2.0


async def wait_until_serving(
    target: str,
    models: Sequence[str],
    *,
    timeout_s: float,
    alive: Callable[[], bool],
    connection: Connection | None = None,
) -> bool:
    """Wait until every model has answered a blank request.

    Args:
        target: host:port of the gRPC endpoint.
        models: their names.
        timeout_s: how long to wait, seconds.
        alive: whether the server process still runs; asked between attempts.
        connection: how the server is reached.

    Returns:
        False if the process ended meanwhile.

    Raises:
        DeadlineExceeded: the models did not answer in time.
        ClientError: one answered with an error that waiting does not mend.
    """
    deadline = Deadline.after(timeout_s)
    transport = Transport(target, connection)
    try:
        while alive():
            try:
                for model in models:
                    await probe(transport, model, deadline)
                return True
            except (Unavailable, DeadlineExceeded):
                deadline.remaining_s(f"waiting for {', '.join(models)} to answer")
                await asyncio.sleep(POLL_S)
        return False
    finally:
        await transport.close()


async def version_unloaded(target: str, connection: Connection, model: str, version: str) -> bool | None:
    """Whether Triton says that it does not serve that version; None if it says nothing."""
    transport = Transport(target, connection)
    try:
        return not await transport.model_ready(model, Deadline.after(ASK_S), version=version)
    except ClientError:
        return None
    finally:
        await transport.close()


async def probe(transport: Transport, model: str, deadline: Deadline) -> None:
    """Have the model answer one blank request; that it refuses the blank for what it is proves its life as well.

    Raises:
        ClientError: it did not answer, or failed.
    """
    if not await transport.model_ready(model, deadline):
        raise Unavailable(f"{transport.target}: {model} is not ready")
    metadata = await transport.model_metadata(model, deadline)
    if any(tensor.datatype not in (*codec.DTYPES, "BYTES") for tensor in metadata.inputs):
        return  # numpy has no such type, so its word must do
    inputs = {tensor.name: _blank(tensor.datatype, tensor.shape) for tensor in metadata.inputs}
    request = codec.encode_request(model, inputs, [tensor.name for tensor in metadata.outputs])
    with suppress(BadInput):  # somebody's model may read bytes that are no image
        codec.decode_response(await transport.infer(request, deadline))


def _blank(datatype: str, shape: Sequence[int]) -> codec.Array:
    """Zeros; where bytes are read, an image file with nothing on it."""
    sizes = [max(1, size) for size in shape]
    return np.full(sizes, BLANK_FILE, object) if datatype == "BYTES" else np.zeros(sizes, codec.DTYPES[datatype])
