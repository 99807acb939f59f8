"""Asynchronous gRPC client for an image classifier served by NVIDIA Triton."""

from alexnet_client.batching import BatchOptions
from alexnet_client.blocking import BlockingClient
from alexnet_client.client import Client
from alexnet_client.connection import Connection, Tls
from alexnet_client.errors import (
    BadInput,
    ClientError,
    Closed,
    DeadlineExceeded,
    ImageError,
    Overloaded,
    QueueFull,
    RequestRejected,
    ServerFault,
    Unavailable,
)
from alexnet_client.results import BatchResult, Classification, Prediction
from alexnet_client.retries import RetryOptions
from alexnet_client.signature import ModelSignature

__all__ = [
    "BadInput",
    "BatchOptions",
    "BatchResult",
    "BlockingClient",
    "Classification",
    "Client",
    "ClientError",
    "Closed",
    "Connection",
    "DeadlineExceeded",
    "ImageError",
    "ModelSignature",
    "Overloaded",
    "Prediction",
    "QueueFull",
    "RequestRejected",
    "RetryOptions",
    "ServerFault",
    "Tls",
    "Unavailable",
]
