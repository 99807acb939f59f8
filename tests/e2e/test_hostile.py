"""Hostile input: whatever is sent, the server neither dies nor leaks, and the next good request is answered right."""

from __future__ import annotations

import gzip
import http.client
import json
import random
import resource
import socket
import struct
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc

from alexnet_client.codec import decode_response, encode_request

GOLDEN = Path(__file__).parent.parent / "golden"
IMAGES = [(GOLDEN / name).read_bytes() for name in ("photo.jpg", "grey.png", "narrow.webp")]
METHOD = "/inference.GRPCInferenceService/ModelInfer"
CALL_S = 20
LEAK_BYTES = 150 * 2**20
LEAK_DESCRIPTORS = 40
MUTANTS = 300
CONNECTIONS = 2000


@pytest.fixture(scope="module")
def target(repository, tmp_path_factory, free_port, launch):
    """A server with everything open that can be; ``--max-restarts 0``: it has one life."""
    http = free_port()
    options = ("--http-port", str(http), "--max-restarts", "0")
    with launch(repository, tmp_path_factory.mktemp("hostile"), free_port, *options) as server:
        yield server, http
        assert server.stop() == 0


@pytest.fixture(scope="module")
def channel(target):
    with grpc.insecure_channel(target[0].target, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield channel


def good_answer(channel) -> np.ndarray:
    pixels = np.full((1, 224, 224, 3), 99, np.uint8)
    request = encode_request("alexnet", {"image": pixels}, ["logits"])
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    return decode_response(stub.ModelInfer(request, timeout=CALL_S))["logits"]


@pytest.fixture
def unharmed(target, channel, tried):
    """Around a test: same process, about as many descriptors and as much memory, and the same answer afterwards."""
    server = target[0]
    triton = server.triton()
    expected, family = good_answer(channel), [triton, *server.stubs()]
    before = [(each.num_fds(), each.memory_info().rss) for each in family]
    yield tried
    give_up = time.monotonic() + 150  # gRPC itself gives up a connection that never greets after 120 s
    while True:
        assert np.array_equal(good_answer(channel), expected)
        after = [(each.num_fds(), each.memory_info().rss) for each in family]
        leaked = [
            (now[0] - then[0], now[1] - then[1])
            for now, then in zip(after, before, strict=True)
            if now[0] - then[0] > LEAK_DESCRIPTORS or now[1] - then[1] > LEAK_BYTES
        ]
        if not leaked or time.monotonic() > give_up:
            break
        time.sleep(0.5)
    assert not leaked, f"descriptors and bytes more than before: {leaked}"
    assert server.triton().pid == triton.pid


def send(channel, body: bytes) -> str:
    """What became of raw bytes sent as an inference request: OK, or gRPC's code."""
    call = channel.unary_unary(METHOD, request_serializer=bytes, response_deserializer=bytes)
    try:
        call(body, timeout=CALL_S)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def mutate(content: bytes, chance: random.Random, *, span: int | None = None) -> bytes:
    """One to eight bytes changed, cut out, doubled or put in, within the first ``span`` bytes."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(min(span or len(changed), len(changed)) or 1)
        match chance.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del changed[at : at + chance.randint(1, 16)]
            case 2:
                changed[at:at] = changed[at : at + chance.randint(1, 16)]
            case 3:
                changed[at:at] = chance.randbytes(chance.randint(1, 16))
            case 4:
                del changed[chance.randrange(len(changed)) if changed else 0 :]
    return bytes(changed)


def infer_request(model: str = "alexnet") -> service_pb2.ModelInferRequest:
    if model == "alexnet":
        return encode_request(model, {"image": np.zeros((1, 224, 224, 3), np.uint8)}, ["logits"])
    return encode_request(model, {"encoded_image": np.array([[IMAGES[0]]], object)}, ["logits"])


@pytest.mark.parametrize("model", ["alexnet", "alexnet_encoded"])
def test_mutated_protobuf_messages(unharmed, channel, model):
    chance = random.Random(2012)
    whole = infer_request(model).SerializeToString()
    outcomes = {send(channel, mutate(whole, chance, span=120)) for _ in range(MUTANTS)}
    assert "UNAVAILABLE" not in outcomes, "the server went away"
    unharmed(f"mutated protobuf messages to {model}", MUTANTS)


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
counted = {"requests": 0}


@settings(
    max_examples=400,
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
def hostile_request(
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
        tensor.parameters["shared_memory_region"].string_param = "somebody_elses"
        tensor.parameters["shared_memory_byte_size"].int64_param = 2**62
    counted["requests"] += 1
    assert send(channel, request.SerializeToString()) != "UNAVAILABLE"


def test_requests_that_are_well_formed_and_wrong(unharmed, channel):
    counted["requests"] = 0
    hostile_request(channel)
    assert counted["requests"] >= 400
    unharmed("well-formed wrong requests", counted["requests"])


@pytest.mark.parametrize("image", IMAGES, ids=["JPEG", "PNG", "WebP"])
def test_mutated_image_files(unharmed, channel, image):
    chance = random.Random(len(image))
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    codes = set()
    for _ in range(MUTANTS // 3):
        broken = np.array([[mutate(image, chance)]], object)
        try:
            stub.ModelInfer(encode_request("alexnet_encoded", {"encoded_image": broken}, ["logits"]), timeout=CALL_S)
        except grpc.RpcError as error:
            codes.add(error.code())
    assert codes <= {grpc.StatusCode.INVALID_ARGUMENT}, "a damaged file is its sender's mistake"
    unharmed("mutated image files", MUTANTS // 3)


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7fabc", b"\0\0\0\0" * 5, b"\5\0\0\0ab", struct.pack("<I", 3) + b"abcde"],
)
def test_strings_whose_lengths_lie(unharmed, channel, raw):
    request = service_pb2.ModelInferRequest(model_name="alexnet_encoded", raw_input_contents=[raw])
    request.inputs.add(name="encoded_image", datatype="BYTES", shape=[1, 1])
    assert send(channel, request.SerializeToString()) in ("INVALID_ARGUMENT", "INTERNAL")
    unharmed("strings whose lengths lie", 1)


def test_truncated_and_garbled_streams(unharmed, target):
    chance = random.Random(7)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
    get = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"
    server, http_port = target
    grpc_port = int(server.target.split(":")[1])
    count = 0
    for port, start in ((grpc_port, preface), (http_port, get), (server.metrics_port, get), (server.health_port, get)):
        for _ in range(30):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                connection.sendall(mutate(start, chance) + chance.randbytes(chance.randrange(200)))
                if chance.random() < 0.5:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            count += 1
    unharmed("truncated and garbled streams", count)


@contextmanager
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, CONNECTIONS + 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_thousands_of_half_open_connections(unharmed, target, channel):
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
        assert good_answer(channel).shape == (1, 10), "while they are open"
    assert opened > CONNECTIONS * 0.9
    unharmed("half-open connections", opened)


def test_slow_writers_and_readers_who_never_read(unharmed, target, channel):
    server, http_port = target
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", http_port), timeout=2)) for _ in range(50)]
        deaf = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=2))
            for port in [server.metrics_port, server.health_port] * 25
        ]
        for connection in deaf:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        for letter in b"POST /v2/models/alexnet/infer HTTP/1.1\r\nContent-":
            for connection in slow:
                with suppress(OSError):  # Triton may lose its patience
                    connection.sendall(bytes([letter]))
        assert good_answer(channel).shape == (1, 10), "while they dawdle"
    unharmed("slow writers and deaf readers", 100)


def http_bodies(chance: random.Random):
    whole = json.dumps(
        {"inputs": [{"name": "encoded_image", "shape": [1, 1], "datatype": "BYTES", "data": ["x"]}], "outputs": []}
    ).encode()
    for _ in range(MUTANTS):
        yield mutate(whole, chance), {}
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


def test_hostile_http_requests(unharmed, target):
    count = 0
    for body, headers in http_bodies(random.Random(3)):
        connection = http.client.HTTPConnection("127.0.0.1", target[1], timeout=CALL_S)
        with suppress(OSError, http.client.HTTPException):
            path = "/v2/models/alexnet_encoded/infer" if count % 2 else "/v2/models/alexnet/infer"
            connection.request("POST", path, body, headers)
            connection.getresponse().read()
        connection.close()
        count += 1
    unharmed("hostile HTTP requests", count)
