"""The signature of a model on a server (names, shapes, classes, labels), and reading results that match it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from alexnet_client import codec
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, ServerFault
from alexnet_client.images import BLANK_FILE
from alexnet_client.results import BatchResult
from alexnet_client.transport import Transport

LOGITS, PROBABILITIES = OUTPUTS = ("logits", "probabilities")


@dataclass(frozen=True)
class ModelSignature:
    """Input, number of classes and largest batch of a model.

    Attributes:
        input_name: name of the only input tensor.
        input_shape: shape of the input, batch axis first; -1 for any size.
        classes: number of classes.
        max_batch_size: images that one request may contain.
        versions: versions that the server serves.
        datatype: the protocol's name of the input type: "UINT8" for pixels, "BYTES" for image files.
    """

    input_name: str
    input_shape: tuple[int, ...]
    classes: int
    max_batch_size: int
    versions: tuple[str, ...]
    datatype: str = "UINT8"

    @property
    def encoded(self) -> bool:
        """Whether the input is image files instead of pixels."""
        return self.datatype == "BYTES"

    def check(self, images: npt.NDArray[Any]) -> None:
        """Raise ``BadInput`` for a batch that does not match the input; the server would reject the whole request."""
        wanted = [size if size > 0 else "N" for size in self.input_shape]
        dtype = np.dtype(object) if self.encoded else codec.DTYPES.get(self.datatype)
        shape_fits = images.ndim == len(wanted) and all(
            size in ("N", found) for size, found in zip(wanted, images.shape, strict=True)
        )
        if not shape_fits or not len(images) or images.dtype != dtype:
            kind = "file contents (dtype object)" if self.encoded else self.datatype.lower()
            raise BadInput(f"a batch must be {kind} {wanted}, this one is {images.dtype} {list(images.shape)}")

    def blank(self) -> npt.NDArray[Any]:
        """A batch of one blank image."""
        if self.encoded:
            return np.array([[BLANK_FILE]], object)
        return np.zeros([max(1, size) for size in self.input_shape], np.uint8)


async def fetch_signature(transport: Transport, model: str, deadline: Deadline) -> ModelSignature:
    """Request the metadata and the configuration of a model.

    Raises:
        BadInput: the model is not an image classifier of this project.
        ClientError: the request failed.
    """
    metadata = await transport.model_metadata(model, deadline)
    config = (await transport.model_config(model, deadline)).config
    outputs = {output.name: tuple(output.shape) for output in metadata.outputs}
    if len(metadata.inputs) != 1 or PROBABILITIES not in outputs or LOGITS not in outputs:
        raise BadInput(
            f"{transport.target}: model {model} is not an image classifier of this project; its inputs are "
            f"{[tensor.name for tensor in metadata.inputs]} and its outputs {list(outputs)}"
        )
    return ModelSignature(
        input_name=metadata.inputs[0].name,
        input_shape=tuple(metadata.inputs[0].shape),
        classes=outputs[PROBABILITIES][-1],
        max_batch_size=config.max_batch_size,
        versions=tuple(metadata.versions),
        datatype=metadata.inputs[0].datatype,
    )


async def fetch_labels(
    transport: Transport, model: str, signature: ModelSignature, version: str, deadline: Deadline
) -> tuple[str, tuple[str, ...]]:
    """Request the class names of a version, and return them with the version that responded.

    The protocol returns class names only with an inference result, so a blank image is sent. Raises ``ClientError``.
    """
    inputs = {signature.input_name: signature.blank()}
    request = codec.encode_request(model, inputs, (PROBABILITIES,), version=version, classes=signature.classes)
    response = await transport.infer(request, deadline)
    labels = dict(codec.parse_class(text) for text in codec.decode_response(response)[PROBABILITIES].ravel())
    return str(response.model_version), tuple(labels.get(index, str(index)) for index in range(signature.classes))


def read_result(
    response: service_pb2.ModelInferResponse, signature: ModelSignature, images: int, target: str
) -> BatchResult:
    """Read the tensors of a response.

    Raises:
        ServerFault: a tensor is missing, or has the wrong shape or type.
    """
    tensors: dict[str, npt.NDArray[Any]] = codec.decode_response(response)
    expected = (images, signature.classes)
    for name in OUTPUTS:
        if name not in tensors or tensors[name].shape != expected or tensors[name].dtype != np.float32:
            raise ServerFault(f"{target}: the response does not contain {name} as float32 {list(expected)}")
    return BatchResult(tensors[LOGITS], tensors[PROBABILITIES], response.model_version)
