"""Inference in this process: the baseline of serving."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from alexnet_client.cpus import cpu_flags, usable_cpus
from alexnet_export.runners import engine_settings
from alexnet_export.to_onnx import INPUT
from alexnet_export.triton_config import ONNXRUNTIME
from alexnet_server.onnxruntime.providers import OPENVINO
from alexnet_server.onnxruntime.session import make_session

HAS_AMX = "amx_int8" in cpu_flags()
"""Some goals require a CPU with these instructions."""


class InProcess:
    """A model file in this process, with the fastest of several assignments of threads to sessions.

    Args:
        model: the ONNX file.
        engine: what computes; the engine of the release, or "onnxruntime".
        images: uint8 [64, 224, 224, 3].
        batches: batch sizes to try.
    """

    def __init__(self, model: Path, engine: str, images: np.ndarray, batches: Sequence[int] = (32, 64)) -> None:
        self._images = images
        cpus = usable_cpus()
        self._session = _session(model, engine, threads=cpus)
        sessions = {
            f"1 session with {cpus} threads": [self._session],
            f"{cpus} sessions with 1 thread": [_session(model, engine, threads=1) for _ in range(cpus)],
        }
        if engine != ONNXRUNTIME:  # sessions of OpenVINO may pin their threads to the same CPU, streams do not
            sessions[f"1 session with {cpus} streams"] = [_session(model, engine, threads=cpus, streams=cpus)] * cpus
        self._setups = {f"{name}, batch {batch}": (each, batch) for name, each in sessions.items() for batch in batches}
        self.fastest = max(self._setups, key=lambda name: self.throughput(2.0, name))

    def throughput(self, seconds: float, setup: str = "") -> float:
        """Images per second of the fastest setup, or of the named one."""
        sessions, batch = self._setups[setup or self.fastest]
        started = time.perf_counter()

        def call(session: ort.InferenceSession) -> int:
            runs = 0
            while time.perf_counter() < started + seconds:
                session.run(None, {INPUT: self._images[:batch]})
                runs += 1
            return runs

        with ThreadPoolExecutor(len(sessions)) as pool:
            runs = sum(pool.map(call, sessions))
        return runs * batch / (time.perf_counter() - started)

    def latencies_s(self, seconds: float) -> list[float]:
        """Latency of consecutive single images, seconds, with the number of threads that the server uses."""
        found: list[float] = []
        end = time.perf_counter() + seconds
        while (started := time.perf_counter()) < end:
            self._session.run(None, {INPUT: self._images[:1]})
            found.append(time.perf_counter() - started)
        return found


def _session(model: Path, engine: str, *, threads: int, streams: int = 1) -> ort.InferenceSession:
    """The session of the server, with another number of threads."""
    settings = engine_settings(engine)
    ((provider, options),) = settings.providers
    if provider == OPENVINO:
        options = {**options, "INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": str(streams)}
    return make_session(model, replace(settings, intra_op_threads=threads, providers=[(provider, options)]))
