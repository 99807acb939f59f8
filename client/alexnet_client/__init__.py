"""Asynchronous gRPC client for an image classifier served by NVIDIA Triton."""

from alexnet_client.answers import BatchAnswer, Classification, Guess, ModelSignature
from alexnet_client.client import Client
from alexnet_client.errors import (
    BadInput,
    ClientError,
    Closed,
    ImageError,
    Overloaded,
    ServerFault,
    TimedOut,
    Unavailable,
)

__all__ = [
    "BadInput",
    "BatchAnswer",
    "Classification",
    "Client",
    "ClientError",
    "Closed",
    "Guess",
    "ImageError",
    "ModelSignature",
    "Overloaded",
    "ServerFault",
    "TimedOut",
    "Unavailable",
]
