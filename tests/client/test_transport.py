"""Conversion of gRPC status codes to exceptions."""

from __future__ import annotations

import grpc
import pytest

from alexnet_client.errors import (
    BadInput,
    ClientError,
    DeadlineExceeded,
    Overloaded,
    RequestRejected,
    ServerFault,
    Unavailable,
)
from alexnet_client.transport import error_from_status

S = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        (S.INVALID_ARGUMENT, "unexpected shape for input 'image'", BadInput),
        (S.NOT_FOUND, "Request for unknown model: 'm' is not found", RequestRejected),
        (S.NOT_FOUND, "Request for unknown model: 'm' has no available versions", Unavailable),
        (S.RESOURCE_EXHAUSTED, "message larger than max", BadInput),
        (S.UNAUTHENTICATED, "no certificate", RequestRejected),
        (S.UNIMPLEMENTED, "", RequestRejected),
        (S.UNAVAILABLE, "[request id: <id_unknown>] Exceeds maximum queue size", Overloaded),
        (S.UNAVAILABLE, "Request timeout expired", Overloaded),
        (S.UNAVAILABLE, "This protocol is restricted, expecting header 'triton-grpc-protocol-admin'", RequestRejected),
        (S.UNAVAILABLE, "Server is stopping, scheduler for model has stopped accepting new requests", Unavailable),
        (S.UNAVAILABLE, "failed to connect to all addresses", Unavailable),
        (S.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineExceeded),
        (S.INTERNAL, "inference failed", ServerFault),
        (S.UNKNOWN, "", ServerFault),
    ],
)
def test_each_status_becomes_the_matching_exception(code, details, expected):
    assert type(error_from_status(code, details, "host:1", 2.0)) is expected


@pytest.mark.parametrize("code", list(S))
def test_every_status_becomes_an_error_that_names_the_server(code):
    error = error_from_status(code, "", "host:1", 2.0)
    assert isinstance(error, ClientError)
    assert str(error).startswith("host:1: ")
