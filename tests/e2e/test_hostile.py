"""Hostile input: the server neither ends nor leaks, and the next valid request gets the correct result."""

from __future__ import annotations

import gzip
import http.client
import json
import random
import resource
import socket
import struct
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc
from waiting import wait_until

from alexnet_client.codec import decode_response, encode_request

GOLDEN = Path(__file__).parent.parent / "golden"
IMAGES = [(GOLDEN / name).read_bytes() for name in ("photo.jpg", "grey.png", "narrow.webp")]
METHOD = "/inference.GRPCInferenceService/ModelInfer"
CALL_S = 20
MAX_NEW_BYTES = 150 * 2**20
MAX_NEW_DESCRIPTORS = 40
RELEASED_AFTER_S = 150
"""gRPC closes a connection without a handshake after 120 s."""
MUTANTS = 300
CONNECTIONS = 1000
pytestmark = pytest.mark.usefixtures("unharmed")


@pytest.fixture(scope="module")
def target(cheap_server, free_port):
    """A server with all endpoints, which is not restarted."""
    http = free_port()
    with cheap_server("--http-port", http, "--max-restarts", 0) as server:
        yield server, http
        assert server.stop() == 0


@pytest.fixture(scope="module")
def channel(target):
    with grpc.insecure_channel(target[0].target, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield channel


def valid_request(channel) -> np.ndarray:
    """The logits of an image."""
    pixels = np.full((1, 224, 224, 3), 99, np.uint8)
    request = encode_request("alexnet", {"image": pixels}, ["logits"])
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    return decode_response(stub.ModelInfer(request, timeout=CALL_S))["logits"]


@pytest.fixture
def unharmed(target, channel):
    """Check that a test changes no process, no result, and neither descriptors nor memory by much."""
    server = target[0]
    triton = server.triton()
    expected, processes = valid_request(channel), [triton, *server.stubs()]

    def usage() -> np.ndarray:
        return np.array([(each.num_fds(), each.memory_info().rss) for each in processes])

    def is_released() -> bool:
        return bool((usage() - before <= (MAX_NEW_DESCRIPTORS, MAX_NEW_BYTES)).all())

    before = usage()
    yield
    wait_until(is_released, "descriptors and memory are released", timeout_s=RELEASED_AFTER_S)
    assert np.array_equal(valid_request(channel), expected)
    assert server.triton().pid == triton.pid


def send(channel, body: bytes) -> str:
    """Send raw bytes as an inference request; return "OK" or the name of the status code."""
    call = channel.unary_unary(METHOD, request_serializer=bytes, response_deserializer=bytes)
    try:
        call(body, timeout=CALL_S)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def mutate(content: bytes, rng: random.Random, *, span: int | None = None) -> bytes:
    """One to eight changes within the first ``span`` bytes: replaced, deleted, doubled, inserted, or truncated."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(min(span or len(changed), len(changed)) or 1)
        match rng.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at : at + rng.randint(1, 16)]
            case 2:
                changed[at:at] = changed[at : at + rng.randint(1, 16)]
            case 3:
                changed[at:at] = rng.randbytes(rng.randint(1, 16))
            case 4:
                del changed[rng.randrange(len(changed)) if changed else 0 :]
    return bytes(changed)


def infer_request(model: str, image: bytes = IMAGES[0]) -> service_pb2.ModelInferRequest:
    if model == "alexnet":
        return encode_request(model, {"image": np.zeros((1, 224, 224, 3), np.uint8)}, ["logits"])
    return encode_request(model, {"encoded_image": np.array([[image]], object)}, ["logits"])


@pytest.mark.parametrize("model", ["alexnet", "alexnet_encoded"])
def test_mutated_protobuf_messages_do_not_harm_the_server(channel, model):
    rng = random.Random(2012)
    whole = infer_request(model).SerializeToString()
    outcomes = {send(channel, mutate(whole, rng, span=120)) for _ in range(MUTANTS)}
    assert "UNAVAILABLE" not in outcomes


EXTREME = st.sampled_from([0, 1, -1, 2, 65, 224, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)])
PARAMETERS = st.dictionaries(
    st.sampled_from(
        ["timeout", "priority", "sequence_id", "sequence_start", "classification", "binary_data_size", "triton_x", ""]
    )
    | st.text(max_size=8),
    st.one_of(
        st.booleans().map(lambda value: {"bool_param": value}),
        EXTREME.map(lambda value: {"int64_param": value}),
        st.floats(allow_nan=True, allow_infinity=True).map(lambda value: {"double_param": value}),
        st.text(max_size=20).map(lambda value: {"string_param": value}),
        st.integers(0, 2**64 - 1).map(lambda value: {"uint64_param": value}),
    ),
    max_size=4,
)


@settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    model=st.sampled_from(["alexnet", "alexnet_encoded", "alexnet_decode", "../alexnet", "", "a" * 5000, "alexnet\0"]),
    version=st.sampled_from(["", "1", "-1", "999999999999999999999", "x", "../1"]),
    name=st.sampled_from(["image", "encoded_image", "", "logits", "i" * 3000]),
    datatype=st.sampled_from(["UINT8", "FP32", "BYTES", "", "NONSENSE", "BF16"]),
    shape=st.lists(EXTREME, max_size=6) | st.just([1, 224, 224, 3]) | st.just([1, 1]),
    content=st.lists(
        st.sampled_from([b"", b"\0" * 10, b"\xff" * 150_528, struct.pack("<I", 2**32 - 1), IMAGES[0]]), max_size=3
    ),
    output=st.sampled_from(["logits", "probabilities", "nothing", ""]),
    request_parameters=PARAMETERS,
    tensor_parameters=PARAMETERS,
    memory=st.booleans(),
)
def test_well_formed_invalid_requests_do_not_harm_the_server(
    channel, model, version, name, datatype, shape, content, output, request_parameters, tensor_parameters, memory
):
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, raw_input_contents=content)
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    wanted = request.outputs.add(name=output)
    for owner, given_parameters in (
        (request.parameters, request_parameters),
        (tensor.parameters, tensor_parameters),
        (wanted.parameters, tensor_parameters),
    ):
        for key, value in given_parameters.items():
            owner[key].MergeFrom(service_pb2.InferParameter(**value))
    if memory:
        tensor.parameters["shared_memory_region"].string_param = "unknown"
        tensor.parameters["shared_memory_byte_size"].int64_param = 2**62
    assert send(channel, request.SerializeToString()) != "UNAVAILABLE"


@pytest.mark.parametrize("image", IMAGES, ids=["JPEG", "PNG", "WebP"])
def test_mutated_image_files_are_invalid_arguments(channel, image):
    rng = random.Random(len(image))
    outcomes = {
        send(channel, infer_request("alexnet_encoded", mutate(image, rng)).SerializeToString())
        for _ in range(MUTANTS // 3)
    }
    assert outcomes <= {"OK", "INVALID_ARGUMENT"}
    assert "INVALID_ARGUMENT" in outcomes


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7fabc", b"\0\0\0\0" * 5, b"\5\0\0\0ab", struct.pack("<I", 3) + b"abcde"],
)
def test_strings_with_wrong_lengths_are_rejected(channel, raw):
    request = service_pb2.ModelInferRequest(model_name="alexnet_encoded", raw_input_contents=[raw])
    request.inputs.add(name="encoded_image", datatype="BYTES", shape=[1, 1])
    assert send(channel, request.SerializeToString()) in ("INVALID_ARGUMENT", "INTERNAL")


def test_truncated_and_invalid_streams_do_not_harm_the_server(target):
    rng = random.Random(7)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
    get = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"
    server, http_port = target
    grpc_port = int(server.target.split(":")[1])
    for port, start in ((grpc_port, preface), (http_port, get), (server.metrics_port, get), (server.health_port, get)):
        for _ in range(30):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                connection.sendall(mutate(start, rng) + rng.randbytes(rng.randrange(200)))
                if rng.random() < 0.5:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset


@contextmanager
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, CONNECTIONS + 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_half_open_connections_do_not_stop_the_server(target, channel):
    server, http_port = target
    ports = [int(server.target.split(":")[1]), http_port]
    opened = 0
    with many_descriptors(), ExitStack() as stack:
        for place in range(CONNECTIONS):
            connection = stack.enter_context(socket.socket())
            connection.settimeout(2)
            with suppress(OSError):
                connection.connect(("127.0.0.1", ports[place % 2]))
                connection.sendall(b"P" if place % 3 else b"")
                opened += 1
        assert valid_request(channel).shape == (1, 10), "no result while the connections are open"
    assert opened > CONNECTIONS * 0.9


def test_slow_writers_and_clients_that_never_read_do_not_stop_the_server(target, channel):
    server, http_port = target
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", http_port), timeout=2)) for _ in range(50)]
        unread = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=2))
            for port in [server.metrics_port, server.health_port] * 25
        ]
        for connection in unread:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        for letter in b"POST /v2/models/alexnet/infer HTTP/1.1\r\nContent-":
            for connection in slow:
                with suppress(OSError):  # Triton may close the connection
                    connection.sendall(bytes([letter]))
        assert valid_request(channel).shape == (1, 10), "no result while the connections are open"


def http_bodies(rng: random.Random):
    whole = json.dumps(
        {"inputs": [{"name": "encoded_image", "shape": [1, 1], "datatype": "BYTES", "data": ["x"]}], "outputs": []}
    ).encode()
    for _ in range(MUTANTS):
        yield mutate(whole, rng), {}
    for length in ("-1", "0", "99999999999999999999", "10", "x", "", "1e3", "2147483648"):
        yield whole, {"Inference-Header-Content-Length": length}
    for encoding in ("gzip", "deflate", "br", "gzip, gzip"):
        yield whole, {"Content-Encoding": encoding}
        yield gzip.compress(bytes(2**24)), {"Content-Encoding": encoding}
    for key, value in (("classification", 2**31), ("binary_data_size", -1), ("binary_data_size", 2**62)):
        document = json.loads(whole)
        document["inputs"][0]["parameters"] = {key: value}
        document["outputs"] = [{"name": "logits", "parameters": {key: value}}]
        yield json.dumps(document).encode(), {"Inference-Header-Content-Length": "300"}
    yield b'{"inputs":' + b"[" * 2000 + b"]" * 2000 + b"}", {}
    yield b'{"inputs": [{"name": "image", "shape": [1e400, NaN], "datatype": "UINT8", "data": [NaN]}]}', {}


def test_invalid_http_requests_do_not_harm_the_server(target):
    for count, (body, headers) in enumerate(http_bodies(random.Random(3))):
        connection = http.client.HTTPConnection("127.0.0.1", target[1], timeout=CALL_S)
        with suppress(OSError, http.client.HTTPException):
            path = "/v2/models/alexnet_encoded/infer" if count % 2 else "/v2/models/alexnet/infer"
            connection.request("POST", path, body, headers)
            connection.getresponse().read()
        connection.close()
