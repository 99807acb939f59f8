"""The class Triton's Python stub calls: one concatenation, one run, one split for each batch of requests.

One bad or cancelled request never fails its batch mates. Nothing of an input is kept after ``execute``: the arrays
lie in shared memory that Triton uses again.
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
from alexnet_server.onnxruntime.batches import Array, Gather, Tensors, split
from alexnet_server.onnxruntime.device import DeviceRunner
from alexnet_server.onnxruntime.metrics import BackendMetrics, release_facts
from alexnet_server.onnxruntime.providers import ConfigError
from alexnet_server.onnxruntime.session import check_names, make_session
from alexnet_server.onnxruntime.settings import Settings, read_settings
from alexnet_server.refusal import RequestRejected, refuse_cancelled


class TritonPythonModel:
    """One instance of a model: an ONNX Runtime session and the names and shapes it was configured with."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load ``<model>/<version>/<default_model_filename>``.

        Raises:
            pb_utils.TritonModelException: the configuration or the file is wrong; Triton shows the text.
        """
        faulthandler.enable(file=2)  # a crash tells Triton's log where, and so does `kill -USR1`
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
            self._session = make_session(path, settings)
            self._outputs = [output["name"] for output in config["output"]]
            self._dtypes = {
                each["name"]: pb_utils.triton_string_to_numpy(each["data_type"]) for each in config["input"]
            }
            check_names(self._session, self._dtypes, self._outputs)
        except ConfigError as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error
        for line in settings.ignored:
            pb_utils.Logger.log_warn(f"{args['model_name']}: {line}")
        self._batched = config["max_batch_size"] > 0
        self._gather = Gather()
        self._run = self._runner(settings, config)
        self._metrics = BackendMetrics(
            args["model_name"],
            args["model_version"],
            release=release_facts(path.parent),
            provider=self._session.get_providers()[0],
            max_batch_size=config["max_batch_size"],
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request, in order: with its own rows, or with its own error."""
        answers: list[Any] = [None] * len(requests)
        good: list[tuple[int, Tensors]] = []
        for place, request in enumerate(requests):
            try:
                good.append((place, self._inputs_of(request, alone=len(requests) == 1)))
            except RequestRejected as refused:
                answers[place] = refused.response()
        for batch in [good] if self._batched and good else [[one] for one in good]:
            self._answer(batch, requests, answers)
        return answers

    def finalize(self) -> None:
        """Free the session before the process ends."""
        self._metrics.close()
        del self._run, self._session

    def _runner(self, settings: Settings, config: Mapping[str, Any]) -> Callable[[list[str], Tensors], list[Array]]:
        """What runs a batch: the session itself on the CPU, I/O binding on a GPU."""
        if settings.device_id is not None:
            warm = {int(sample["batch_size"]) for sample in config.get("model_warmup", [])} - {0}
            return DeviceRunner(self._session, "cuda", settings.device_id, warm if settings.cuda_graphs else ()).run
        session, options = self._session, ort.RunOptions()
        if settings.arena_shrinkage:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", settings.arena_shrinkage)
        return lambda names, inputs: session.run(names, inputs, options)

    def _answer(self, batch: list[tuple[int, Tensors]], requests: Sequence[Any], answers: list[Any]) -> None:
        """Run a batch; if that fails, each of it alone, so that only the guilty one gets the error."""
        wanted = [requests[place].requested_output_names() for place, _ in batch]
        names = [name for name in self._outputs if any(name in names for names in wanted)]
        try:
            rows = self._rows([inputs for _, inputs in batch], names)
        except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions have no common base
            if len(batch) > 1:
                for one in batch:
                    self._answer([one], requests, answers)
                return
            refused = RequestRejected(f"inference failed: {error}", pb_utils.TritonError.INTERNAL)
            answers[batch[0][0]] = refused.response()
            return
        for (place, _), tensors, asked in zip(batch, rows, wanted, strict=True):
            outputs = [pb_utils.Tensor(name, tensors[name]) for name in names if name in asked]
            answers[place] = pb_utils.InferenceResponse(output_tensors=outputs)

    def _rows(self, batch: list[Tensors], names: list[str]) -> list[Tensors]:
        """The outputs of each request, from one run of all."""
        joined = self._gather.join(batch)
        began_s = time.perf_counter()
        outputs = dict(zip(names, self._run(names, joined), strict=True))
        took_s = time.perf_counter() - began_s
        rows = [_rows_in(inputs) for inputs in batch] if self._batched else [1]
        self._metrics.ran(sum(rows), took_s)
        return split(outputs, rows) if self._batched else [outputs]

    def _inputs_of(self, request: Any, *, alone: bool) -> Tensors:
        refuse_cancelled(request)
        inputs: Tensors = {}
        for name, dtype in self._dtypes.items():
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                raise RequestRejected(f"input {name} is missing", pb_utils.TritonError.INVALID_ARG)
            inputs[name] = tensor.as_numpy() if tensor.is_cpu() else _from_device(tensor, keep=alone)
            if not isinstance(inputs[name], ort.OrtValue) and inputs[name].dtype != dtype:
                raise RequestRejected(
                    f"input {name} is {inputs[name].dtype}, the model reads {np.dtype(dtype)}",
                    pb_utils.TritonError.INVALID_ARG,
                )
        if self._batched and len({_rows_in({name: value}) for name, value in inputs.items()}) != 1:
            raise RequestRejected("the inputs have different batch sizes", pb_utils.TritonError.INVALID_ARG)
        return inputs


def _from_device(tensor: Any, *, keep: bool) -> Any:
    """A tensor on the GPU, where it is if it is run alone; to be joined with others it comes to the host."""
    value = ort.OrtValue.from_dlpack(tensor)
    return value if keep else value.numpy()


def _rows_in(inputs: Mapping[str, Any]) -> int:
    value = next(iter(inputs.values()))
    return int(value.shape()[0]) if isinstance(value, ort.OrtValue) else len(value)
