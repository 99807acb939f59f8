"""Metrics of the backend, exported on Triton's metrics port with its custom-metrics API: batch sizes, execution time, release.

Each value is sent to Triton's process and confirmed. A separate thread does this, so that requests do not wait for it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from queue import Full, Queue
from typing import Any

import onnxruntime as ort
import triton_python_backend_utils as pb_utils

from alexnet_client.manifest import read_manifest

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
EXECUTION_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_FAMILIES: dict[str, Any] = {}
"""Triton identifies a family by its name; this process creates each only once."""


class BackendMetrics:
    """The metrics of one instance of a model; Triton adds the values of all instances.

    Args:
        model, version: names in Triton.
        release: labels from ``release_labels``.
        engine: what computes, see ``Settings.engine``.
        max_batch_size: value of the configuration; 0 counts as 1.
        queue_size: maximum number of executions that wait to be sent. More are not counted: inference must not wait if
            Triton does not confirm.
        close_timeout_s: maximum time to send the remaining values in ``close``, seconds.
    """

    def __init__(
        self,
        model: str,
        version: str,
        *,
        release: Mapping[str, str],
        engine: str,
        max_batch_size: int,
        queue_size: int = 1000,
        close_timeout_s: float = 5.0,
    ) -> None:
        labels = {"model": model, "version": version}
        info = labels | dict(release) | {"engine": engine, "onnxruntime": ort.__version__}
        self._info = _metric("gauge", "info", "Instances by release, engine and ONNX Runtime version.", info)
        self._instances = _metric("gauge", "instances", "Instances of the model.", labels)
        limit = _metric("gauge", "max_batch_size", "Maximum number of images in a batch.", labels)
        batch = _metric("histogram", "batch_images", "Images in an executed batch.", labels, BATCH_BUCKETS)
        duration = _metric(
            "histogram",
            "execution_duration_seconds",
            "Duration of the execution of a batch.",
            labels,
            EXECUTION_BUCKETS_S,
        )
        limit.set(max(1, max_batch_size))
        for each in (self._info, self._instances):
            each.increment(1)
        self._close_timeout_s = close_timeout_s
        self._executions: Queue[tuple[int, float] | None] = Queue(queue_size)
        self._thread = threading.Thread(target=self._send, args=(batch, duration), name="metrics", daemon=True)
        self._thread.start()

    def observe(self, images: int, seconds: float) -> None:
        """Record the execution of a batch."""
        with suppress(Full):
            self._executions.put_nowait((images, seconds))

    def close(self) -> None:
        """Send the remaining values, and subtract this instance."""
        with suppress(Full):
            self._executions.put(None, timeout=self._close_timeout_s)
            self._thread.join(self._close_timeout_s)
        if self._thread.is_alive():
            return  # Triton does not confirm; the calls below would wait too
        for each in (self._info, self._instances):
            each.increment(-1)

    def _send(self, batch: Any, duration: Any) -> None:
        while (execution := self._executions.get()) is not None:
            batch.observe(execution[0])
            duration.observe(execution[1])


def release_labels(version: Path) -> dict[str, str]:
    """Labels of the release in a version directory: precision, git revision and first digits of the SHA-256; "" if unknown."""
    manifest = read_manifest(version) or {}
    digest = manifest.get("files", {}).get("model.onnx", {}).get("sha256", "")
    return {
        "precision": str(manifest.get("precision", "")),
        "revision": str(manifest.get("git_revision", "")),
        "release": str(digest)[:12],
    }


def _metric(kind: str, name: str, text: str, labels: Mapping[str, str], buckets: tuple[float, ...] = ()) -> Any:
    family = _FAMILIES.get(name)
    if family is None:
        kinds = {"gauge": pb_utils.MetricFamily.GAUGE, "histogram": pb_utils.MetricFamily.HISTOGRAM}
        family = _FAMILIES[name] = _never_destroyed(
            pb_utils.MetricFamily(name=f"alexnet_backend_{name}", description=text, kind=kinds[kind])
        )
    extra = {"buckets": list(buckets)} if buckets else {}
    return _never_destroyed(family.Metric(labels=dict(labels), **extra))


def _never_destroyed(metric: Any) -> Any:
    """Keep a reference for ever: destroying a metric crashes this process at its end, because the stub has already ended.

    Destroying it earlier crashes Triton if other processes use the same metric. Source: issues 8662 and 8663 of Triton server.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(metric))
    return metric
