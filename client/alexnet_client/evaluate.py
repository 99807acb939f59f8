"""Classify a folder of images whose truth is known (one directory a class) and count what was right."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import track

from alexnet_client.answers import Classification
from alexnet_client.client import Client
from alexnet_client.errors import BadInput, ImageError
from alexnet_client.images import SUFFIXES, load_pixels


@dataclass(frozen=True)
class Answered:
    """One image: its truth (the name of its directory), the answer, and the seconds from pixels to answer."""

    path: Path
    truth: str
    answer: Classification
    latency_s: float

    @property
    def right(self) -> bool:
        return self.answer.label == self.truth


@dataclass(frozen=True)
class Evaluation:
    """What a folder's images were answered; ``unreadable`` has a line for each file that was skipped."""

    answered: list[Answered]
    unreadable: list[str]
    triton_version: str

    @property
    def right(self) -> int:
        """How many answers equal the truth."""
        return sum(one.right for one in self.answered)

    def summary(self) -> dict[str, Any]:
        """The figures, for the JSON line: latencies are of lone requests, one after the other."""
        latencies = sorted(one.latency_s * 1000 for one in self.answered)
        return {
            "accuracy": round(self.right / len(self.answered), 4),
            "images": len(self.answered),
            "unreadable": len(self.unreadable),
            "p50_ms": round(statistics.median(latencies), 2),
            "p99_ms": round(latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))], 2),
            "model_version": self.answered[-1].answer.model_version,
            "triton_version": self.triton_version,
        }


def find_images(folder: Path) -> list[Path]:
    """Image files of a directory with one subdirectory a class, sorted; empty if there is no such directory."""
    return [
        path
        for directory in sorted(folder.iterdir() if folder.is_dir() else ())
        if directory.is_dir()
        for path in sorted(directory.iterdir())
        if path.suffix.lower() in SUFFIXES
    ]


async def evaluate_folder(client: Client, folder: Path, *, show_progress: bool = False) -> Evaluation:
    """Classify every image below ``folder``, one at a time.

    Raises:
        BadInput: the folder is missing, holds no image, no readable one, or classes the model does not know.
        ClientError: a request failed.
    """
    files = find_images(folder)
    if not files:
        raise BadInput(f"{folder}: no images there; it should hold one directory of JPEG, PNG or WebP files a class")
    unknown = {path.parent.name for path in files} - set(await client.labels())
    if unknown:
        raise BadInput(f"{folder}: the model knows no class {', '.join(sorted(unknown))}; see alexnet-client metadata")
    answered, unreadable = [], []
    for path in track(files, "Classifying over gRPC", disable=not show_progress):
        try:
            pixels = await asyncio.to_thread(load_pixels, path)
        except ImageError as error:
            unreadable.append(str(error))
            continue
        started = time.perf_counter()
        answer = await client.classify(pixels)
        answered.append(Answered(path, path.parent.name, answer, time.perf_counter() - started))
    if not answered:
        raise BadInput(f"{folder}: none of its {len(files)} images could be read")
    return Evaluation(answered, unreadable, await client.server_version())
