"""What things cost: the inputs of ``deploy/capacity.json``, and from them the cost of an image by its request and bytes.

Owns the file's form and the lines through the measured points. Knows no fleet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_server.capacity.fleet import Server
from alexnet_server.capacity.roofline import Gpu, layers_s, weights_s

GROUPS = ("measured", "calculated", "assumed", "prices")
LARGEST_REQUEST = 32
"""Images in the requests whose cost was measured; beyond, nothing is known."""
AT_REST = 1024
"""Images in a batch so large that its weights cost no time beside the arithmetic."""


@dataclass(frozen=True)
class PerImage:
    """Processor time of an image: ``request_s / k + image_s + byte_s * bytes``, in a request of k images.

    Attributes:
        request_s: of a request, seconds of a core.
        image_s: of an image, seconds of a core.
        byte_s: of each of its bytes on the wire, seconds of a core.
    """

    request_s: float
    image_s: float
    byte_s: float

    def at(self, images: int, image_bytes: float) -> float:
        """Seconds of a core for each image of requests of so many."""
        return self.request_s / images + self.image_s + self.byte_s * image_bytes


def through(one_s: float, many_s: float, many_shared_s: float, image_bytes: float) -> PerImage:
    """The line through three measurements of an image: alone, among 32 in a request, and 32 through shared memory.

    What shared memory saves is taken for the cost of the bytes: it is what sending them costs more than one copy. A
    negative part (noise) counts as 0, and the others still meet the figure for 32.
    """
    byte_s = max(0.0, many_s - many_shared_s) / image_bytes
    request_s = max(0.0, one_s - many_s) / (1 - 1 / LARGEST_REQUEST)
    image_s = max(0.0, many_s - byte_s * image_bytes - request_s / LARGEST_REQUEST)
    return PerImage(request_s, image_s, byte_s)


def line_of(batches: Mapping[int, tuple[int, float]]) -> tuple[float, float]:
    """Seconds of a batch whatever is in it, and of each image, from what Triton counted.

    Least squares of the relative error over the sizes, each by how often it ran: the noise of a shared machine stretches
    times, so that a few large batches that were disturbed would otherwise count for more than all small ones.

    Args:
        batches: executions and their seconds in all, by images.
    """
    sizes = np.array(sorted(batches))
    counts, seconds = np.array([batches[size] for size in sizes.tolist()]).T
    means = seconds / counts
    slope, start = np.polyfit(sizes, means, 1, w=np.sqrt(counts) / means)
    if start < 0 or slope < 0:  # noise: then all of it is the other part
        weights = counts / means**2
        slope = float((weights * sizes * means).sum() / (weights * sizes**2).sum()) if start < 0 else 0.0
        start = 0.0 if start < 0 else float((weights * means).sum() / weights.sum())
    return float(start), float(slope)


@dataclass(frozen=True)
class Host:
    """A kind of server.

    Attributes:
        name: for people.
        measured: whether anybody has; else it is a calculated bound.
        server: its batches.
        server_files: the same when it decodes image files itself.
        cores: processors.
        messages: what gRPC, protobuf and copies cost on them.
        decode_s: of an image file, seconds of a core, where that is not part of a batch's time; 0 where it is.
        network_bytes_s: payload, bytes a second.
        link_bytes_s: from memory to the GPU, bytes a second; infinite without one.
        price_per_hour: money.
    """

    name: str
    measured: bool
    server: Server
    server_files: Server
    cores: int
    messages: PerImage
    decode_s: float
    network_bytes_s: float
    link_bytes_s: float
    price_per_hour: float


@dataclass(frozen=True)
class Inputs:
    """The content of the file; ``raw`` as it stands there."""

    raw: dict[str, Any]

    def __getitem__(self, name: str) -> float:
        return float(self.entry(name)["value"])

    def entry(self, name: str) -> dict[str, Any]:
        """Value and source of an input.

        Raises:
            KeyError: there is none of that name.
        """
        for group in GROUPS:
            if name in self.raw[group]:
                return dict(self.raw[group][name])
        raise KeyError(name)

    @property
    def scales(self) -> list[int]:
        """Images a second to plan for."""
        return list(self.raw["scales"])

    @property
    def client(self) -> PerImage:
        """What this project's client costs."""
        return self._per_image("client")

    def _per_image(self, side: str) -> PerImage:
        one_s, many_s, shared_s = (1e-6 * self[f"{side}_{kind}_us"] for kind in ("1", "32", "32_shared"))
        return through(one_s, many_s, shared_s, self["image_bytes"])

    def cpu_host(self) -> Host:
        """The two cores that were measured. What messages cost is part of their batches' time: they share the cores."""
        noise = tuple(map(float, self.entry("batch_noise")["value"]))
        fixed_s, per_image_s, outside_s, decode_s = (
            1e-6 * self[f"{name}_us"] for name in ("batch_fixed", "batch_per_image", "outside", "decode")
        )
        cores = int(self["cpu_cores"])
        return Host(
            f"{cores} CPU cores",
            measured=True,
            server=Server(fixed_s, per_image_s, outside_s=outside_s, noise=noise),
            server_files=Server(fixed_s, per_image_s + decode_s / cores, outside_s=outside_s, noise=noise),
            cores=cores,
            messages=self._per_image("triton"),
            decode_s=0.0,
            network_bytes_s=self._network("cpu"),
            link_bytes_s=float("inf"),
            price_per_hour=self["cpu_server_per_hour"],
        )

    @property
    def gpu(self) -> Gpu:
        """The GPU's roofline in fp16."""
        return Gpu(1e12 * self["gpu_tflops"], 1e9 * self["gpu_memory_gb_s"], 1e9 * self["gpu_pcie_gb_s"])

    def gpu_host(self) -> Host:
        """One GPU with its host, calculated: weights once a batch, arithmetic and activations for each image."""
        share, gpu = self["gpu_share"], self.gpu
        fixed_s = weights_s(gpu) / share
        per_image_s = layers_s(gpu, AT_REST) / AT_REST / share
        server = Server(fixed_s, per_image_s, outside_s=1e-6 * self["outside_us"])
        return Host(
            "one H200 GPU",
            measured=False,
            server=server,
            server_files=server,
            cores=int(self["gpu_cores"]),
            messages=self._per_image("triton"),
            decode_s=1e-6 * self["decode_us"],
            network_bytes_s=self._network("gpu"),
            link_bytes_s=gpu.link_bytes_s,
            price_per_hour=self["gpu_server_per_hour"],
        )

    def _network(self, host: str) -> float:
        return 1e9 / 8 * self[f"{host}_network_gbit_s"] * self["network_share"]


def read_inputs(path: Path) -> Inputs:
    """The inputs of a file."""
    return Inputs(json.loads(path.read_text()))
