"""The class that Triton's Python stub calls: for each batch, it concatenates the requests, runs the model and splits the outputs.

An invalid or cancelled request does not fail the other requests of its batch. No reference to an input is kept after
``execute``, because Triton reuses the shared memory of the arrays.
"""

from __future__ import annotations

import faulthandler
import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

from alexnet_client.cpus import usable_cpus
from alexnet_client.errors import BadInput
from alexnet_server.onnxruntime.batches import Array, BatchBuffer, Tensors, split
from alexnet_server.onnxruntime.device import DeviceRunner
from alexnet_server.onnxruntime.metrics import BackendMetrics, release_labels
from alexnet_server.onnxruntime.providers import ConfigError
from alexnet_server.onnxruntime.session import check_engine, check_golden, check_names, make_session
from alexnet_server.onnxruntime.settings import Settings, read_settings
from alexnet_server.rejection import RequestRejected, reject_cancelled


class TritonPythonModel:
    """One instance of a model: an ONNX Runtime session, and the names and data types of its configuration."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load ``<model>/<version>/<default_model_filename>``.

        Raises:
            pb_utils.TritonModelException: the configuration or the file is invalid; Triton logs the text.
        """
        faulthandler.enable(file=2)  # a crash and `kill -USR1` write stack traces to Triton's log
        faulthandler.register(signal.SIGUSR1, file=2)
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"], args["model_version"], config["default_model_filename"] or "model.onnx")
        if not path.is_file():
            raise pb_utils.TritonModelException(f"{path}: no such file; `make export` publishes a version")
        try:
            settings = read_settings(
                config,
                kind=args["model_instance_kind"],
                device_id=int(args["model_instance_device_id"]),
                available=ort.get_available_providers(),
                cpus=usable_cpus(),
            )
            check_engine(path.parent, settings)
            self._session = make_session(path, settings)
            check_golden(path.parent, self._session, settings)
            self._outputs = [output["name"] for output in config["output"]]
            self._dtypes = {
                each["name"]: pb_utils.triton_string_to_numpy(each["data_type"]) for each in config["input"]
            }
            check_names(self._session, self._dtypes, self._outputs)
        except (BadInput, ConfigError) as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error
        for line in settings.ignored:
            pb_utils.Logger.log_warn(f"{args['model_name']}: {line}")
        self._batched = config["max_batch_size"] > 0
        self._buffer = BatchBuffer()
        self._run = self._runner(settings, config)
        self._metrics = BackendMetrics(
            args["model_name"],
            args["model_version"],
            release=release_labels(path.parent),
            engine=settings.engine,
            max_batch_size=config["max_batch_size"],
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return one response for each request, in order: its rows of the outputs, or its error."""
        responses: list[Any] = [None] * len(requests)
        valid: list[tuple[int, Tensors]] = []
        for index, request in enumerate(requests):
            try:
                valid.append((index, self._inputs_of(request, alone=len(requests) == 1)))
            except RequestRejected as rejected:
                responses[index] = rejected.response()
        for batch in [valid] if self._batched and valid else [[one] for one in valid]:
            self._respond(batch, requests, responses)
        return responses

    def finalize(self) -> None:
        """Free the session before the process ends."""
        self._metrics.close()
        del self._run, self._session

    def _runner(self, settings: Settings, config: Mapping[str, Any]) -> Callable[[list[str], Tensors], list[Array]]:
        """Function that runs a batch: the session on the CPU, I/O binding on a GPU."""
        if settings.device_id is not None:
            sizes = {int(sample["batch_size"]) for sample in config.get("model_warmup", [])} - {0}
            return DeviceRunner(self._session, "cuda", settings.device_id, sizes if settings.cuda_graphs else ()).run
        session, options = self._session, ort.RunOptions()
        if settings.arena_shrinkage:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", settings.arena_shrinkage)
        return lambda names, inputs: session.run(names, inputs, options)

    def _respond(self, batch: list[tuple[int, Tensors]], requests: Sequence[Any], responses: list[Any]) -> None:
        """Run a batch. If it fails, run each request alone, so that only the request that causes the error gets it."""
        requested = [requests[index].requested_output_names() for index, _ in batch]
        names = [name for name in self._outputs if any(name in names for names in requested)]
        try:
            rows = self._rows([inputs for _, inputs in batch], names)
        except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions have no common base
            if len(batch) > 1:
                for one in batch:
                    self._respond([one], requests, responses)
                return
            rejected = RequestRejected(f"inference failed: {error}", pb_utils.TritonError.INTERNAL)
            responses[batch[0][0]] = rejected.response()
            return
        for (index, _), tensors, own_names in zip(batch, rows, requested, strict=True):
            outputs = [pb_utils.Tensor(name, tensors[name]) for name in names if name in own_names]
            responses[index] = pb_utils.InferenceResponse(output_tensors=outputs)

    def _rows(self, batch: list[Tensors], names: list[str]) -> list[Tensors]:
        """Run all requests together, and return the outputs of each."""
        inputs = self._buffer.concatenate(batch)
        start_s = time.perf_counter()
        outputs = dict(zip(names, self._run(names, inputs), strict=True))
        duration_s = time.perf_counter() - start_s
        rows = [_row_count(each) for each in batch] if self._batched else [1]
        self._metrics.observe(sum(rows), duration_s)
        return split(outputs, rows) if self._batched else [outputs]

    def _inputs_of(self, request: Any, *, alone: bool) -> Tensors:
        reject_cancelled(request)
        inputs: Tensors = {}
        for name, dtype in self._dtypes.items():
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                raise RequestRejected(f"input {name} is missing", pb_utils.TritonError.INVALID_ARG)
            inputs[name] = tensor.as_numpy() if tensor.is_cpu() else _from_device(tensor, on_device=alone)
            if not isinstance(inputs[name], ort.OrtValue) and inputs[name].dtype != dtype:
                raise RequestRejected(
                    f"input {name} has data type {inputs[name].dtype}, expected {np.dtype(dtype)}",
                    pb_utils.TritonError.INVALID_ARG,
                )
        if self._batched and len({_row_count({name: value}) for name, value in inputs.items()}) != 1:
            raise RequestRejected("the inputs have different batch sizes", pb_utils.TritonError.INVALID_ARG)
        return inputs


def _from_device(tensor: Any, *, on_device: bool) -> Any:
    """A tensor in GPU memory; as an array in host memory if it must be concatenated with others."""
    value = ort.OrtValue.from_dlpack(tensor)
    return value if on_device else value.numpy()


def _row_count(inputs: Mapping[str, Any]) -> int:
    value = next(iter(inputs.values()))
    return int(value.shape()[0]) if isinstance(value, ort.OrtValue) else len(value)
