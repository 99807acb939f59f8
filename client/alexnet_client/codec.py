"""Converts between numpy arrays and the messages of the KServe V2 inference protocol.

Protocol: https://github.com/kserve/open-inference-protocol, with the raw tensor contents and the
classification extension of Triton.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor

from alexnet_client.errors import BadInput, ServerFault

Array: TypeAlias = npt.NDArray[Any]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Names of the fixed-size types in the protocol; raw contents are little-endian, row-major."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
TIMEOUT_TOLERANCE = 0.1
"""The queue timeout of a reused request may exceed the time left by this share. The call still ends at its deadline, and Triton
removes cancelled requests from the queue. The timeout starts when the request has arrived, so it was never exact: 9.6 MB take
80 ms at 1 Gbit/s."""


def encode_request(
    model: str,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    *,
    version: str = "",
    classes: int | None = None,
) -> service_pb2.ModelInferRequest:
    """Build an inference request.

    Args:
        model: name of the model on the server.
        inputs: tensors by name, batch axis first; an array of Python bytes (dtype object) is sent as BYTES.
        outputs: names of the requested output tensors.
        version: of the model; empty lets the server choose.
        classes: request the best ``classes`` classes as text instead of tensors (classification extension).

    Raises:
        BadInput: the protocol does not support the dtype of a tensor.
    """
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for name, array in inputs.items():
        strings = array.dtype == object
        datatype = "BYTES" if strings else _NAMES.get(array.dtype)
        if datatype is None:
            raise BadInput(
                f"input {name}: dtype {array.dtype} is not supported by the protocol; use one of {', '.join(DTYPES)}"
            )
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(b"".join(_string_pieces(array)) if strings else array.tobytes())
    for name in outputs:
        output = request.outputs.add(name=name)
        if classes is not None:
            output.parameters["classification"].int64_param = classes
    return request


def encode_batch(
    model: str,
    name: str,
    parts: Sequence[Array],
    outputs: Sequence[str],
    *,
    version: str = "",
    timeout_us: int | None = None,
    region: str = "",
) -> bytes:
    """Encode a request for several arrays joined on their first axis, as serialised bytes.

    Each tensor is copied once, to its place in the message; protobuf would copy it three times, after numpy has joined the
    arrays. This works because more fields may be appended to a serialised message: ``encode_request`` creates everything
    else, and the field ``raw_input_contents`` with all parts follows (https://protobuf.dev/programming-guides/encoding).

    Args:
        model: name of the model on the server.
        name: of the input.
        parts: arrays with equal dtype and equal shape except for the first axis; of Python bytes (dtype object) for BYTES.
        outputs: names of the requested output tensors.
        version: of the model; empty lets the server choose.
        timeout_us: time limit in the queue of the server, microseconds; used if the queue policy of the model has
            allow_timeout_override.
        region: shared-memory region that contains the tensor at its start; the message then contains only its name.

    Raises:
        BadInput: the protocol does not support the dtype.
    """
    dtype = parts[0].dtype
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    head = _head(model, version, name, dtype, shape, tuple(outputs))
    if timeout_us is not None:
        request = service_pb2.ModelInferRequest()
        request.parameters["timeout"].int64_param = timeout_us
        head = bytes(request.SerializeToString()) + head
    if region:
        return _with_region(head, region, sum(part.nbytes for part in parts))
    if dtype.hasobject:
        pieces = [piece for part in parts for piece in _string_pieces(part)]
        return b"".join((head, _varint(sum(map(len, pieces))), *pieces))
    arrays = [np.ascontiguousarray(part) for part in parts]
    return b"".join((head, _varint(sum(array.nbytes for array in arrays)), *(array.data for array in arrays)))


class PayloadCache:
    """The request of one batch with its tensor as payload, encoded once for all attempts.

    gRPC accepts only an immutable ``bytes`` object, so another queue timeout requires another copy of the tensor. Such a copy is
    made only if the timeout of the previous one exceeds the time left by more than ``TIMEOUT_TOLERANCE``.

    Args:
        encode: encodes the request with ``timeout_us``.
    """

    def __init__(self, encode: Callable[..., bytes]) -> None:
        self._encode, self._request, self._timeout_us = encode, b"", 0

    def get(self, timeout_us: int) -> bytes:
        """The request for an attempt with ``timeout_us`` microseconds left."""
        if not timeout_us <= self._timeout_us <= (1 + TIMEOUT_TOLERANCE) * timeout_us:
            self._request, self._timeout_us = self._encode(timeout_us=timeout_us), timeout_us
        return self._request


@lru_cache(maxsize=1024)
def _head(
    model: str, version: str, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], outputs: tuple[str, ...]
) -> bytes:
    """The part of a request that is equal for all tensors of this shape, up to the tag of the contents."""
    request = encode_request(model, {name: np.empty(0, dtype)}, outputs, version=version)
    del request.raw_input_contents[:]
    request.inputs[0].shape[:] = shape
    return bytes(request.SerializeToString()) + _RAW_CONTENTS


def _with_region(head: bytes, region: str, nbytes: int) -> bytes:
    """A request with its tensor in shared memory (system shared memory extension of Triton)."""
    request = service_pb2.ModelInferRequest.FromString(head.removesuffix(_RAW_CONTENTS))
    parameters = request.inputs[0].parameters
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = nbytes
    return bytes(request.SerializeToString())


_RAW_CONTENTS = bytes([service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2])
"""Tag of the field: its number, and wire type 2 (length-delimited)."""


def _varint(number: int) -> bytes:
    """Encode a protobuf varint: seven bits per byte, lowest first; the eighth bit is set if more bytes follow."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def decode_response(response: service_pb2.ModelInferResponse) -> dict[str, Array]:
    """Read the tensors of a response, as read-only views of its bytes. BYTES tensors become object arrays.

    Raises:
        ServerFault: the response is inconsistent (sizes, counts, unknown types).
    """
    if len(response.outputs) != len(response.raw_output_contents):
        raise ServerFault(
            f"the response declares {len(response.outputs)} outputs but contains {len(response.raw_output_contents)}"
        )
    return {
        output.name: _decode_tensor(output, raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def _decode_tensor(output: service_pb2.ModelInferResponse.InferOutputTensor, raw: bytes) -> Array:
    shape = tuple(output.shape)
    try:
        if output.datatype == "BYTES":
            strings: Array = deserialize_bytes_tensor(raw)
            return strings.reshape(shape)
        return np.frombuffer(raw, DTYPES[output.datatype]).reshape(shape)
    except KeyError:
        raise ServerFault(f"output {output.name} has the unknown datatype {output.datatype}") from None
    except (ValueError, struct.error) as error:
        raise ServerFault(f"output {output.name}: {len(raw)} bytes do not match {output.datatype} {shape}") from error


def _string_pieces(array: Array) -> Iterator[bytes]:
    """The length of each element (four bytes, little-endian), and its bytes."""
    for each in array.ravel():
        yield len(each).to_bytes(4, "little")
        yield each


def parse_class(text: bytes) -> tuple[int, str]:
    """Index and label of a result of the classification extension: ``value:index`` or ``value:index:label``."""
    parts = text.decode(errors="replace").split(":", 2)
    try:
        index = int(parts[1])
    except (IndexError, ValueError):
        raise ServerFault(f"not a result of the classification extension: {text!r}") from None
    return index, parts[2] if len(parts) == 3 else str(index)
