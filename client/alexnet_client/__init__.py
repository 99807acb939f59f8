"""Asynchronous gRPC client for an image classifier served by NVIDIA Triton."""

from alexnet_client.answers import BatchAnswer, Classification, Guess, ModelSignature
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
from alexnet_client.retries import RetryOptions

__all__ = [
    "BadInput",
    "BatchAnswer",
    "BatchOptions",
    "BlockingClient",
    "Classification",
    "Client",
    "ClientError",
    "Closed",
    "Connection",
    "DeadlineExceeded",
    "Guess",
    "ImageError",
    "ModelSignature",
    "Overloaded",
    "QueueFull",
    "RequestRejected",
    "RetryOptions",
    "ServerFault",
    "Tls",
    "Unavailable",
]
