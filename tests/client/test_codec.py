"""Conversion between numpy arrays and protocol messages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.grpc import service_pb2

from alexnet_client import codec
from alexnet_client.errors import BadInput, ServerFault

NUMERIC = sorted(codec.DTYPES)


def response_of(name: str, datatype: str, shape: list[int], raw: bytes) -> service_pb2.ModelInferResponse:
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name=name, datatype=datatype, shape=shape)
    response.raw_output_contents.append(raw)
    return response


def echo(request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
    sent = request.inputs[0]
    return response_of(sent.name, sent.datatype, list(sent.shape), request.raw_input_contents[0])


@given(
    st.sampled_from(NUMERIC).flatmap(
        lambda name: arrays.arrays(
            codec.DTYPES[name], arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)
        )
    )
)
def test_every_tensor_is_encoded_and_decoded_without_loss(array):
    decoded = codec.decode_response(echo(codec.encode_request("m", {"x": array}, [])))["x"]
    assert decoded.dtype == array.dtype
    assert decoded.shape == array.shape
    assert decoded.tobytes() == array.tobytes()


def test_a_tensor_that_is_not_contiguous_is_sent_in_row_major_order():
    array = np.arange(12, dtype=np.int32).reshape(3, 4).T
    decoded = codec.decode_response(echo(codec.encode_request("m", {"x": array}, [])))["x"]
    assert np.array_equal(decoded, array)


def test_a_request_contains_model_version_outputs_and_classes():
    request = codec.encode_request("m", {"x": np.zeros(1, np.uint8)}, ["p", "q"], version="3", classes=5)
    assert (request.model_name, request.model_version) == ("m", "3")
    assert [output.name for output in request.outputs] == ["p", "q"]
    assert all(output.parameters["classification"].int64_param == 5 for output in request.outputs)
    without_classes = codec.encode_request("m", {"x": np.zeros(1, np.uint8)}, ["p"])
    assert not without_classes.outputs[0].parameters


def test_an_unsupported_dtype_is_bad_input():
    with pytest.raises(BadInput, match="complex128 is not supported by the protocol"):
        codec.encode_request("m", {"x": np.zeros(1, complex)}, [])
    with pytest.raises(BadInput, match="complex128 is not supported by the protocol"):
        codec.encode_batch("m", "x", [np.zeros(2, complex)], ["y"])


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_strings_are_split_by_their_lengths(strings):
    raw = b"".join(len(text).to_bytes(4, "little") + text for text in strings)
    decoded = codec.decode_response(response_of("s", "BYTES", [len(strings)], raw))["s"]
    assert list(decoded) == strings


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"),
    [
        ("FP32", [2], bytes(7)),
        ("FP32", [3], bytes(8)),
        ("BYTES", [1], b"\x05\x00\x00\x00abc"),
        ("BYTES", [1], b"\x05\x00"),
        ("BYTES", [2], b"\x01\x00\x00\x00a"),
        ("QUATERNION", [1], bytes(4)),
    ],
)
def test_an_inconsistent_response_is_a_server_fault(datatype, shape, raw):
    with pytest.raises(ServerFault):
        codec.decode_response(response_of("x", datatype, shape, raw))


def test_a_response_with_missing_contents_is_a_server_fault():
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="x", datatype="FP32", shape=[1])
    with pytest.raises(ServerFault, match="declares 1 outputs but contains 0"):
        codec.decode_response(response)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"0.983:7:seven", (7, "seven")),
        (b"0.5:12", (12, "12")),
        (b"1:3:a label: with colons", (3, "a label: with colons")),
    ],
)
def test_a_class_has_an_index_and_a_label(text, expected):
    assert codec.parse_class(text) == expected


@pytest.mark.parametrize("text", [b"", b"0.5", b"0.5:seven"])
def test_another_text_is_a_server_fault(text):
    with pytest.raises(ServerFault, match="classification extension"):
        codec.parse_class(text)


def test_files_are_encoded_with_their_lengths_and_decoded():
    array = np.array([[b"one"], [b""]], object)
    request = codec.encode_request("m", {"file": array}, ["y"])
    assert (request.inputs[0].datatype, list(request.inputs[0].shape)) == ("BYTES", [2, 1])
    assert request.raw_input_contents[0] == b"\3\0\0\0one\0\0\0\0"
    response = service_pb2.ModelInferResponse(raw_output_contents=request.raw_input_contents)
    response.outputs.add(name="file", datatype="BYTES", shape=[2, 1])
    assert codec.decode_response(response)["file"].tolist() == array.tolist()


@given(arrays.arrays(np.uint8, st.tuples(st.integers(0, 3), st.integers(0, 70), st.integers(1, 3))), st.booleans())
def test_the_bytes_of_a_batch_are_those_of_the_message(array, swapped):
    array = array.swapaxes(0, 1) if swapped else array  # also arrays that are not contiguous
    message = codec.encode_request("m", {"image": array}, ["a", "b"])
    assert service_pb2.ModelInferRequest.FromString(codec.encode_batch("m", "image", [array], ["a", "b"])) == message


@pytest.mark.parametrize(
    "array",
    [np.arange(300_000, dtype=np.float32).reshape(3, -1), np.array([[b"one"], [b"two"]], object)],
    ids=["large", "files"],
)
def test_a_batch_may_be_large_or_contain_files(array):
    message = codec.encode_request("m", {"x": array}, ["y"], version="7")
    encoded = codec.encode_batch("m", "x", [array], ["y"], version="7")
    assert service_pb2.ModelInferRequest.FromString(encoded) == message
