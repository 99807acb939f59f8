"""Classify a folder of labelled images (one directory per class) and compute the accuracy."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import track

from alexnet_client.client import Client
from alexnet_client.errors import BadInput, ImageError
from alexnet_client.images import find_images, load_pixels
from alexnet_client.results import Classification


@dataclass(frozen=True)
class EvaluatedImage:
    """One image with its true class (the name of its directory), its result, and the latency of the request, seconds."""

    path: Path
    truth: str
    result: Classification
    latency_s: float

    @property
    def correct(self) -> bool:
        return self.result.label == self.truth


@dataclass(frozen=True)
class Evaluation:
    """The results for a folder; ``unreadable`` contains an error message for each skipped file."""

    images: list[EvaluatedImage]
    unreadable: list[str]
    triton_version: str

    @property
    def correct(self) -> int:
        """Number of images whose most probable class is the true one."""
        return sum(each.correct for each in self.images)

    def summary(self) -> dict[str, Any]:
        """The metrics for the JSON line; latencies are of single requests, one after the other."""
        latencies = sorted(each.latency_s * 1000 for each in self.images)
        return {
            "accuracy": round(self.correct / len(self.images), 4),
            "images": len(self.images),
            "unreadable": len(self.unreadable),
            "p50_ms": round(statistics.median(latencies), 2),
            "p99_ms": round(latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))], 2),
            "model_version": self.images[-1].result.model_version,
            "triton_version": self.triton_version,
        }


async def evaluate_folder(client: Client, folder: Path, *, show_progress: bool = False) -> Evaluation:
    """Classify every image in the directories of ``folder``, one request at a time. The name of a directory is the class.

    Raises:
        BadInput: the folder does not exist, contains no readable image, or a class that the model does not have.
        ClientError: a request failed.
    """
    files = {path: path.relative_to(folder).parts[0] for path in find_images(folder) if path.parent != folder}
    unknown = set(files.values()) - set(await client.labels())
    if unknown:
        raise BadInput(
            f"{folder}: the model has no class {', '.join(sorted(unknown))}; "
            "`alexnet-client metadata` prints the classes"
        )
    images, unreadable = [], []
    for path, truth in track(files.items(), "Classifying", disable=not show_progress):
        try:
            pixels = await asyncio.to_thread(load_pixels, path)
        except ImageError as error:
            unreadable.append(str(error))
            continue
        started = time.perf_counter()
        result = await client.classify(pixels)
        images.append(EvaluatedImage(path, truth, result, time.perf_counter() - started))
    if not images:
        raise BadInput(f"{folder}: no readable image; it must contain one directory of images per class")
    return Evaluation(images, unreadable, await client.server_version())
