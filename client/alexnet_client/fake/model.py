"""The fake model: the class of an image is the red value of its first pixel. It never imports ``codec``, which tests check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from alexnet_client.fake.script import CLASSES
from alexnet_client.images import load_pixels


def respond(request: Any, *, version: str, labels: Sequence[str]) -> Any:
    """The ``ModelInferResponse``: logits are 5 for the image's class and 0 for the others.

    Raises:
        ValueError, struct.error, ImageError: the contents do not match the tensor.
    """
    reds = _reds(request)
    logits = np.zeros((len(reds), len(labels)), np.float32)
    logits[np.arange(len(reds)), reds % len(labels)] = 5
    tensors = {"logits": logits, "probabilities": np.exp(logits) / np.exp(logits).sum(1, keepdims=True)}
    response = pb.ModelInferResponse(model_name=request.model_name, model_version=version)
    for output in request.outputs:
        values: npt.NDArray[Any] = tensors[output.name].astype("<f4")
        datatype, contents = "FP32", values.tobytes()
        if CLASSES in output.parameters:
            values = _class_texts(values, output.parameters[CLASSES].int64_param, labels)
            datatype, contents = "BYTES", serialize_byte_tensor(values).item()
        response.outputs.add(name=output.name, datatype=datatype, shape=values.shape)
        response.raw_output_contents.append(contents)
    return response


def _reds(request: Any) -> npt.NDArray[np.intp]:
    """The red value of the first pixel of each image."""
    tensor, contents = request.inputs[0], request.raw_input_contents[0]
    if tensor.datatype == "BYTES":
        first = np.array([load_pixels(file)[0, 0] for file in deserialize_bytes_tensor(contents)])
    else:
        first = np.frombuffer(contents, np.uint8).reshape(tuple(tensor.shape))[:, 0, 0]
    return first.reshape(tensor.shape[0], 3)[:, 0].astype(np.intp)


def _class_texts(values: npt.NDArray[np.float32], count: int, labels: Sequence[str]) -> npt.NDArray[np.object_]:
    """The best ``count`` classes of each row in Triton's format: ``value:index:label``."""
    best = np.argsort(-values, axis=1, kind="stable")[:, :count]
    rows = zip(values, best, strict=True)
    return np.array(
        [[f"{row[each]:f}:{each}:{labels[each]}".encode() for each in order] for row, order in rows], object
    )
