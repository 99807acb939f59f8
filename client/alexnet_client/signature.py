"""What a server says of a model, and reading its answers by that: names, shapes, classes, labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from alexnet_client import codec
from alexnet_client.answers import BatchAnswer, ModelSignature
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, ServerFault
from alexnet_client.transport import Transport

LOGITS, PROBABILITIES = OUTPUTS = ("logits", "probabilities")


async def ask_signature(transport: Transport, model: str, deadline: Deadline) -> ModelSignature:
    """Ask for the model's metadata and configuration.

    Raises:
        BadInput: it is no image classifier of this project.
        ClientError: the server does not say.
    """
    metadata = await transport.model_metadata(model, deadline)
    config = (await transport.model_config(model, deadline)).config
    outputs = {output.name: tuple(output.shape) for output in metadata.outputs}
    if len(metadata.inputs) != 1 or PROBABILITIES not in outputs or LOGITS not in outputs:
        raise BadInput(
            f"{transport.target}: model {model} is not an image classifier of this project, it has inputs "
            f"{[tensor.name for tensor in metadata.inputs]} and outputs {list(outputs)}"
        )
    return ModelSignature(
        input_name=metadata.inputs[0].name,
        input_shape=tuple(metadata.inputs[0].shape),
        classes=outputs[PROBABILITIES][-1],
        max_batch_size=config.max_batch_size,
        versions=tuple(metadata.versions),
        datatype=metadata.inputs[0].datatype,
    )


async def ask_labels(
    transport: Transport, model: str, signature: ModelSignature, version: str, deadline: Deadline
) -> tuple[str, tuple[str, ...]]:
    """The release that answers, and its class names: the protocol gives names only with an answer, so a blank is sent.

    Raises:
        ClientError: the server does not answer.
    """
    inputs = {signature.input_name: signature.blank()}
    request = codec.encode_request(model, inputs, (PROBABILITIES,), version=version, classes=signature.classes)
    response = await transport.infer(request, deadline)
    named = dict(codec.parse_class(text) for text in codec.decode_response(response)[PROBABILITIES].ravel())
    return str(response.model_version), tuple(named.get(index, str(index)) for index in range(signature.classes))


def read_answer(
    response: service_pb2.ModelInferResponse, signature: ModelSignature, images: int, target: str
) -> BatchAnswer:
    """The tensors of an answer.

    Raises:
        ServerFault: one is missing, or has another shape or type than it must have.
    """
    tensors: dict[str, npt.NDArray[Any]] = codec.decode_response(response)
    expected = (images, signature.classes)
    for name in OUTPUTS:
        if name not in tensors or tensors[name].shape != expected or tensors[name].dtype != np.float32:
            raise ServerFault(f"{target}: the answer lacks {name} as float32 {list(expected)}")
    return BatchAnswer(tensors[LOGITS], tensors[PROBABILITIES], response.model_version)
