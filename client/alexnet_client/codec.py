"""Between numpy arrays and the messages of the KServe V2 inference protocol. Pure: no network, no clock.

Protocol: https://github.com/kserve/open-inference-protocol, with Triton's raw tensor contents and its
classification extension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

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
"""The protocol's names of fixed-size types; raw contents are little-endian, row-major."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


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
        model: its name on the server.
        inputs: tensors by name, the batch axis first; an array of Python bytes (dtype object) is sent as BYTES.
        outputs: names of the tensors wanted back.
        version: of the model; empty leaves the choice to the server.
        classes: ask for the best ``classes`` answers as text instead of tensors (classification extension).

    Raises:
        BadInput: a tensor has a dtype the protocol lacks.
    """
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for name, array in inputs.items():
        strings = array.dtype == object
        datatype = "BYTES" if strings else _NAMES.get(array.dtype)
        if datatype is None:
            raise BadInput(f"input {name}: dtype {array.dtype} cannot be sent, the protocol has {', '.join(DTYPES)}")
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(_encode_strings(array) if strings else array.tobytes())
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
    """A request for several arrays joined on their first axis, as its bytes on the wire.

    Each tensor is copied once, to its place in the message; protobuf would copy it three times, after numpy has joined
    them. A serialised message may be followed by more of its fields: what ``encode_request`` makes of everything else,
    then the field ``raw_input_contents`` with the memory of all parts. (https://protobuf.dev/programming-guides/encoding)

    Args:
        model: its name on the server.
        name: of the input.
        parts: arrays of one dtype and one shape but for the first axis; of Python bytes for BYTES.
        outputs: names of the tensors wanted back.
        version: of the model; empty lets the server choose.
        timeout_us: how long the request may wait in the server's queue, microseconds, if the model's queue policy
            allows callers to say (allow_timeout_override).
        region: shared memory at whose beginning the tensor lies; the message then says so and carries none.

    Raises:
        BadInput: the tensor has a dtype the protocol lacks.
    """
    dtype = parts[0].dtype
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    head = _head(model, version, name, dtype, shape, tuple(outputs))
    if timeout_us is not None:
        request = service_pb2.ModelInferRequest()
        request.parameters["timeout"].int64_param = timeout_us
        head = bytes(request.SerializeToString()) + head
    if region:
        return _placed(head, region, sum(part.nbytes for part in parts))
    if dtype.hasobject:
        contents = [_encode_strings(part) for part in parts]
        return b"".join((head, _varint(sum(map(len, contents))), *contents))
    arrays = [np.ascontiguousarray(part) for part in parts]
    return b"".join((head, _varint(sum(array.nbytes for array in arrays)), *(array.data for array in arrays)))


@lru_cache(maxsize=1024)
def _head(
    model: str, version: str, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], outputs: tuple[str, ...]
) -> bytes:
    """All of a request that is the same for every tensor of that shape, up to the tag of its contents."""
    request = encode_request(model, {name: np.empty(0, dtype)}, outputs, version=version)
    del request.raw_input_contents[:]
    request.inputs[0].shape[:] = shape
    return bytes(request.SerializeToString()) + _RAW_CONTENTS


def _placed(head: bytes, region: str, nbytes: int) -> bytes:
    """The request whose tensor is in shared memory (Triton's extension of that name)."""
    request = service_pb2.ModelInferRequest.FromString(head.removesuffix(_RAW_CONTENTS))
    place = request.inputs[0].parameters
    place["shared_memory_region"].string_param = region
    place["shared_memory_byte_size"].int64_param = nbytes
    return bytes(request.SerializeToString())


_RAW_CONTENTS = bytes([service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2])
"""The field's tag: its number, and wire type 2, a length and that many bytes."""


def _varint(number: int) -> bytes:
    """Protobuf's variable-length integer: seven bits a byte, the lowest first, the eighth says that more follow."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def decode_response(response: service_pb2.ModelInferResponse) -> dict[str, Array]:
    """Read the tensors of an answer; they are read-only views of its bytes. BYTES tensors become object arrays.

    Raises:
        ServerFault: the answer contradicts itself (sizes, counts, unknown types).
    """
    if len(response.outputs) != len(response.raw_output_contents):
        raise ServerFault(
            f"the answer announces {len(response.outputs)} outputs and carries {len(response.raw_output_contents)}"
        )
    return {
        output.name: _decode_tensor(output, raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def _decode_tensor(output: service_pb2.ModelInferResponse.InferOutputTensor, raw: bytes) -> Array:
    shape = tuple(output.shape)
    try:
        if output.datatype == "BYTES":
            return np.array(_decode_strings(raw), dtype=object).reshape(shape)
        return np.frombuffer(raw, DTYPES[output.datatype]).reshape(shape)
    except KeyError:
        raise ServerFault(f"output {output.name} has an unknown datatype {output.datatype}") from None
    except ValueError as error:
        raise ServerFault(f"output {output.name}: {len(raw)} bytes do not make {output.datatype} {shape}") from error


def _encode_strings(array: Array) -> bytes:
    """Each element as its length, four bytes little-endian, then its bytes."""
    return b"".join(len(each).to_bytes(4, "little") + each for each in array.ravel())


def _decode_strings(raw: bytes) -> list[bytes]:
    """Each element is its length, four bytes little-endian, then that many bytes."""
    strings, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if at + 4 > len(raw) or end > len(raw):
            raise ValueError("truncated")
        strings.append(raw[at + 4 : end])
        at = end
    return strings


def parse_class(text: bytes) -> tuple[int, str]:
    """Index and label of one answer of the classification extension: ``value:index`` or ``value:index:label``."""
    parts = text.decode(errors="replace").split(":", 2)
    try:
        index = int(parts[1])
    except (IndexError, ValueError):
        raise ServerFault(f"not an answer of the classification extension: {text!r}") from None
    return index, parts[2] if len(parts) == 3 else str(index)
