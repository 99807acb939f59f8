"""What Triton's metrics lack, through its custom-metrics API and so on its own port: batches formed, time of a run, the release.

Each value travels to Triton's process and back. A thread of its own does that, so that no request waits for it.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from queue import Full, Queue
from typing import Any

import onnxruntime as ort
import triton_python_backend_utils as pb_utils

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
RUN_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
MOST_UNTOLD = 1000
"""Runs that wait to be told. Beyond, runs are not counted: were Triton ever not to reply, inference must not wait for it."""
CLOSE_S = 5.0
"""To tell what is left, seconds; an instance that ends does not wait for longer."""
_FAMILIES: dict[str, Any] = {}
"""Triton knows a family by its name; this process makes each once."""


class BackendMetrics:
    """The metrics of one instance of a model; instances add up.

    Args:
        model, version: as Triton names them.
        release: its facts, as labels, see ``release_facts``.
        provider: ONNX Runtime's execution provider.
        max_batch_size: of the configuration; 0 counts as 1.
    """

    def __init__(
        self, model: str, version: str, *, release: Mapping[str, str], provider: str, max_batch_size: int
    ) -> None:
        labels = {"model": model, "version": version}
        info = labels | dict(release) | {"provider": provider, "onnxruntime": ort.__version__}
        self._info = _metric("gauge", "info", "Instances that run a release, and with what.", info)
        self._instances = _metric("gauge", "instances", "Instances of the model that can run at once.", labels)
        most = _metric("gauge", "max_batch_size", "Images that a run may have.", labels)
        batch = _metric("histogram", "batch_images", "Images in a run.", labels, BATCH_BUCKETS)
        run = _metric("histogram", "execution_duration_seconds", "Time of a run.", labels, RUN_BUCKETS_S)
        most.set(max(1, max_batch_size))
        for each in (self._info, self._instances):
            each.increment(1)
        self._ran: Queue[tuple[int, float] | None] = Queue(MOST_UNTOLD)
        self._thread = threading.Thread(target=self._observe, args=(batch, run), name="metrics", daemon=True)
        self._thread.start()

    def ran(self, images: int, seconds: float) -> None:
        """Count a run."""
        with suppress(Full):
            self._ran.put_nowait((images, seconds))

    def close(self) -> None:
        """Count what is left, and that this instance is gone."""
        with suppress(Full):
            self._ran.put(None, timeout=CLOSE_S)
            self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            return  # it waits for Triton, and so would this one
        for each in (self._info, self._instances):
            each.increment(-1)

    def _observe(self, batch: Any, run: Any) -> None:
        while (ran := self._ran.get()) is not None:
            batch.observe(ran[0])
            run.observe(ran[1])


def release_facts(directory: Path) -> dict[str, str]:
    """Labels that say what a version directory holds: precision, revision and a name by its content; "" if unknown."""
    try:
        manifest = json.loads((directory / "manifest.json").read_text())
    except (OSError, ValueError):
        manifest = {}
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
        family = _FAMILIES[name] = _for_ever(
            pb_utils.MetricFamily(name=f"alexnet_backend_{name}", description=text, kind=kinds[kind])
        )
    extra = {"buckets": list(buckets)} if buckets else {}
    return _for_ever(family.Metric(labels=dict(labels), **extra))


def _for_ever(metric: Any) -> Any:
    """Never destroyed, not even when the interpreter ends: Triton's stub has gone by then, and the process would crash.

    Were it destroyed before, other processes that share it would crash Triton. Source: issues 8662 and 8663 of Triton's server.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(metric))
    return metric
