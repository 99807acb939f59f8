"""How large each activation gets on real images, and from its histogram the limit that 8 bits should stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from alexnet_export.graph import copy, layers, to_bytes
from alexnet_export.runners import open_session

BINS = 2048
LEVELS = 256
BATCH_SIZE = 32
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Histogram:
    """Counts int64 [BINS] of activations over equal bins from 0 to ``maximum``; zeros, which cost nothing, left out."""

    counts: npt.NDArray[np.int64]
    maximum: float

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """The middle of each bin."""
        return (np.arange(BINS) + 0.5) * (self.maximum / BINS)


def activations(graph: ir.Graph) -> list[str]:
    """The tensors to watch: what comes out of the ReLU behind a layer."""
    behind = {id(node.outputs[0]) for node in layers(graph)}
    borders = {id(node.outputs[0]) for node in graph if node.op_type == "Add" and id(node.inputs[0]) in behind}
    return [
        str(node.outputs[0].name) for node in graph if node.op_type == "Relu" and id(node.inputs[0]) in behind | borders
    ]


def observe(model: ir.Model, images: Pixels) -> dict[str, Histogram]:
    """Run the float model over ``images`` uint8 [N, 224, 224, 3] twice: for the maxima, then for the histograms."""
    watched = copy(model)
    names = activations(watched.graph)
    watched.graph.outputs.extend(node.outputs[0] for node in watched.graph if node.outputs[0].name in names)
    session = open_session(to_bytes(watched))
    maxima = dict.fromkeys(names, 0.0)
    for tensors in _batches(session, names, images):
        maxima = {name: max(maxima[name], float(tensors[name].max())) for name in names}
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    for tensors in _batches(session, names, images):
        for name in names:
            values = tensors[name].reshape(-1)
            if maxima[name] > 0:
                bins = (values[values > 0] * np.float32(BINS / maxima[name])).astype(np.int32)
                counts[name] += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)
    return {name: Histogram(counts[name], maxima[name]) for name in names}


def _batches(session: object, names: list[str], images: Pixels) -> Iterator[Mapping[str, npt.NDArray[np.float32]]]:
    for start in range(0, len(images), BATCH_SIZE):
        outputs = session.run(names, {"image": images[start : start + BATCH_SIZE]})  # type: ignore[attr-defined]
        yield dict(zip(names, outputs, strict=True))


def minmax(histogram: Histogram) -> float:
    """The largest value seen: nothing is clipped."""
    return histogram.maximum


def percentile(histogram: Histogram, share: float = 0.9999) -> float:
    """What ``share`` of the values that are not zero stay below."""
    total = np.cumsum(histogram.counts)
    return float((np.searchsorted(total, share * total[-1]) + 1) * histogram.maximum / BINS)


def squared_error(histogram: Histogram) -> float:
    """The limit whose rounding and clipping have the smallest mean squared error together."""
    centers, counts = histogram.centers, histogram.counts
    best = (np.inf, histogram.maximum)
    for limit in np.linspace(0.2, 1.0, 81) * histogram.maximum:
        step = limit / (LEVELS - 1)
        rounded = np.clip(np.rint(centers / step), 0, LEVELS - 1) * step
        best = min(best, (float(((centers - rounded) ** 2 * counts).sum()), float(limit)))
    return best[1]


def entropy(histogram: Histogram) -> float:
    """The limit whose 8-bit distribution differs least from the clipped one (Kullback-Leibler; Migacz, GTC 2017)."""
    counts = histogram.counts.astype(np.float64)
    best = (np.inf, BINS)
    for bins in range(LEVELS, BINS + 1, 16):
        clipped = counts[:bins].copy()
        clipped[-1] += counts[bins:].sum()
        coarse = (np.arange(bins) * LEVELS) // bins
        filled = counts[:bins] > 0
        per_level = np.bincount(coarse, weights=counts[:bins], minlength=LEVELS)
        members = np.bincount(coarse, weights=filled, minlength=LEVELS)
        spread = np.where(filled, per_level[coarse] / np.maximum(members[coarse], 1), 0)
        p, q = clipped / clipped.sum(), spread / spread.sum()
        both = (p > 0) & (q > 0)
        divergence = float((p[both] * np.log(p[both] / q[both])).sum()) + (np.inf if p[~both].sum() > 1e-3 else 0)
        best = min(best, (divergence, bins))
    return best[1] * histogram.maximum / BINS


METHODS: Mapping[str, Callable[[Histogram], float]] = {
    "minmax": minmax,
    "percentile": percentile,
    "squared error": squared_error,
    "entropy": entropy,
}


def limits(histograms: Mapping[str, Histogram], method: str) -> dict[str, float]:
    """The limit of each tensor; a tensor that was zero on every image gets 1."""
    return {
        name: METHODS[method](histogram) if histogram.counts.any() else 1.0 for name, histogram in histograms.items()
    }
