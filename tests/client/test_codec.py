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

SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)
TENSORS = st.sampled_from(sorted(codec.DTYPES)).flatmap(lambda name: arrays.arrays(codec.DTYPES[name], SHAPES))
PIXELS = arrays.arrays(np.uint8, st.tuples(st.integers(0, 3), st.integers(0, 70), st.integers(1, 3)))


def response_of(datatype, shape, *contents):
    response = service_pb2.ModelInferResponse(raw_output_contents=contents)
    response.outputs.add(name="x", datatype=datatype, shape=shape)
    return response


def encode_and_decode(array):
    request = codec.encode_request("m", {"x": array}, [])
    sent = request.inputs[0]
    return codec.decode_response(response_of(sent.datatype, sent.shape, *request.raw_input_contents))["x"]


@given(TENSORS)
def test_every_tensor_is_encoded_and_decoded_without_loss(array):
    for each in (array, array.T):  # also arrays that are not contiguous
        decoded = encode_and_decode(each)
        assert (decoded.dtype, decoded.shape, decoded.tobytes()) == (each.dtype, each.shape, each.tobytes())


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_files_are_encoded_with_their_lengths_and_decoded(files):
    array = np.array(files, object).reshape(-1, 1)
    assert np.array_equal(encode_and_decode(array), array)
    request = codec.encode_request("m", {"x": np.array([[b"one"], [b""]], object)}, [])
    assert (request.inputs[0].datatype, list(request.inputs[0].shape)) == ("BYTES", [2, 1])
    assert request.raw_input_contents[0] == b"\3\0\0\0one\0\0\0\0"


def test_a_request_contains_model_version_outputs_and_classes():
    request = codec.encode_request("m", {}, ["p", "q"], version="3", classes=5)
    assert (request.model_name, request.model_version) == ("m", "3")
    assert [output.name for output in request.outputs] == ["p", "q"]
    assert all(output.parameters["classification"].int64_param == 5 for output in request.outputs)
    assert not codec.encode_request("m", {}, ["p"]).outputs[0].parameters


@pytest.mark.parametrize("encode", [codec.encode_request, codec.encode_batch])
def test_an_unsupported_dtype_is_bad_input(encode):
    array = np.zeros(2, complex)
    arguments = ({"x": array},) if encode is codec.encode_request else ("x", [array])
    with pytest.raises(BadInput, match="complex128 is not supported by the protocol"):
        encode("m", *arguments, ["y"])


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"),
    [
        ("FP32", [2], [bytes(7)]),
        ("FP32", [3], [bytes(8)]),
        ("FP32", [1], []),
        ("BYTES", [1], [b"\x05\x00\x00\x00abc"]),
        ("BYTES", [1], [b"\x05\x00"]),
        ("BYTES", [2], [b"\x01\x00\x00\x00a"]),
        ("QUATERNION", [1], [bytes(4)]),
    ],
)
def test_an_inconsistent_response_is_a_server_fault(datatype, shape, raw):
    with pytest.raises(ServerFault):
        codec.decode_response(response_of(datatype, shape, *raw))


def test_a_class_has_an_index_and_a_label():
    texts = (b"0.983:7:seven", b"0.5:12", b"1:3:a label: with colons")
    assert [codec.parse_class(each) for each in texts] == [(7, "seven"), (12, "12"), (3, "a label: with colons")]


@pytest.mark.parametrize("text", [b"", b"0.5", b"0.5:seven"])
def test_another_text_is_a_server_fault(text):
    with pytest.raises(ServerFault, match="classification extension"):
        codec.parse_class(text)


def check_batch(array):
    """The bytes of a batch are those of the message of protobuf."""
    encoded = codec.encode_batch("m", "x", [array], ["a", "b"], version="7")
    message = codec.encode_request("m", {"x": array}, ["a", "b"], version="7")
    assert service_pb2.ModelInferRequest.FromString(encoded) == message


@given(PIXELS)
def test_the_bytes_of_a_batch_are_those_of_the_message(array):
    check_batch(array)
    check_batch(array.swapaxes(0, 1))  # not contiguous


def test_a_batch_may_be_large_or_contain_files():
    check_batch(np.arange(300_000, dtype=np.float32).reshape(3, -1))
    check_batch(np.array([[b"one"], [b"two"]], object))


@pytest.mark.parametrize(
    ("next_us", "encoded_us"), [(1000, [1000]), (910, [1000]), (900, [1000, 900]), (1001, [1000, 1001])]
)
def test_a_request_is_encoded_again_only_if_its_timeout_exceeds_the_time_left_by_more_than_a_tenth(next_us, encoded_us):
    calls_us = []

    def encode(*, timeout_us):
        calls_us.append(timeout_us)
        return b"%d" % timeout_us

    payload = codec.PayloadCache(encode)
    assert payload.get(1000) == b"1000"
    for _ in range(2):
        assert payload.get(next_us) == b"%d" % encoded_us[-1]
    assert calls_us == encoded_us
