"""The class Triton's Python stub calls: one concatenation, one run, one split for each batch of requests.

One bad or cancelled request never fails its batch mates. Nothing of an input is kept after ``execute``: the arrays
lie in shared memory that Triton uses again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

from alexnet_server.onnxruntime.settings import ConfigError, Settings, read_settings

Array = npt.NDArray[Any]
Tensors = dict[str, Array]


class TritonPythonModel:
    """One instance of a model: an ONNX Runtime session and the names and shapes it was configured with."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load ``<model>/<version>/<default_model_filename>``.

        Raises:
            pb_utils.TritonModelException: the configuration or the file is wrong; Triton shows the text.
        """
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
        self._run_options = ort.RunOptions()
        if settings.arena_shrinkage:
            self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", settings.arena_shrinkage)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request, in order: with its own rows, or with its own error."""
        answers: list[Any] = [None] * len(requests)
        good: list[tuple[int, Tensors]] = []
        for place, request in enumerate(requests):
            try:
                good.append((place, self._inputs_of(request)))
            except RequestRefused as refused:
                answers[place] = refused.response()
        for batch in [good] if self._batched and good else [[one] for one in good]:
            self._answer(batch, requests, answers)
        return answers

    def finalize(self) -> None:
        """Free the session before the process ends."""
        del self._session

    def _answer(self, batch: list[tuple[int, Tensors]], requests: Sequence[Any], answers: list[Any]) -> None:
        """Run a batch; if that fails, each of it alone, so that only the guilty one gets the error."""
        wanted = [requests[place].requested_output_names() for place, _ in batch]
        names = [name for name in self._outputs if any(name in names for names in wanted)]
        try:
            rows = self._run([inputs for _, inputs in batch], names)
        except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions have no common base
            if len(batch) > 1:
                for one in batch:
                    self._answer([one], requests, answers)
                return
            answers[batch[0][0]] = _error(f"inference failed: {error}", pb_utils.TritonError.INTERNAL)
            return
        for (place, _), tensors, asked in zip(batch, rows, wanted, strict=True):
            outputs = [pb_utils.Tensor(name, tensors[name]) for name in names if name in asked]
            answers[place] = pb_utils.InferenceResponse(output_tensors=outputs)

    def _run(self, batch: list[Tensors], names: list[str]) -> list[Tensors]:
        """The outputs of each request, as views of the outputs of the batch."""
        # A lone request runs on the very tensor that Triton shared.
        joined = (
            batch[0] if len(batch) == 1 else {name: np.concatenate([each[name] for each in batch]) for name in batch[0]}
        )
        outputs = self._session.run(names, joined, self._run_options)
        if not self._batched:
            return [dict(zip(names, outputs, strict=True))]
        ends = np.cumsum([len(next(iter(inputs.values()))) for inputs in batch])
        for name, output in zip(names, outputs, strict=True):
            if len(output) != ends[-1]:
                raise RuntimeError(f"output {name} has {len(output)} rows for {ends[-1]} of input")
        split = [np.split(output, ends[:-1]) for output in outputs]
        return [dict(zip(names, rows, strict=True)) for rows in zip(*split, strict=True)]

    def _inputs_of(self, request: Any) -> Tensors:
        if request.is_cancelled():
            raise RequestRefused("the caller cancelled this request", pb_utils.TritonError.CANCELLED)
        inputs: Tensors = {}
        for name, dtype in self._dtypes.items():
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                raise RequestRefused(f"input {name} is missing", pb_utils.TritonError.INVALID_ARG)
            inputs[name] = tensor.as_numpy()
            if inputs[name].dtype != dtype:
                raise RequestRefused(
                    f"input {name} is {inputs[name].dtype}, the model reads {np.dtype(dtype)}",
                    pb_utils.TritonError.INVALID_ARG,
                )
        if self._batched and len({len(array) for array in inputs.values()}) != 1:
            raise RequestRefused("the inputs have different batch sizes", pb_utils.TritonError.INVALID_ARG)
        return inputs


class RequestRefused(Exception):
    """One request cannot be run; the others of its batch can."""

    def __init__(self, text: str, code: Any) -> None:
        super().__init__(text)
        self.text, self.code = text, code

    def response(self) -> Any:
        return _error(self.text, self.code)


def make_session(path: Path, settings: Settings) -> ort.InferenceSession:
    """Create the session.

    Raises:
        ConfigError: ONNX Runtime refuses the file or a setting.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = {
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }[settings.graph_level]
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if settings.parallel else ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = settings.intra_op_threads
    options.inter_op_num_threads = settings.inter_op_threads
    if settings.mem_arena is not None:
        options.enable_cpu_mem_arena = settings.mem_arena
    if settings.mem_pattern is not None:
        options.enable_mem_pattern = settings.mem_pattern
    for key, value in settings.session_entries.items():
        options.add_session_config_entry(key, value)
    providers = [(name, dict(provider_options)) for name, provider_options in settings.providers]
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise ConfigError(f"ONNX Runtime {ort.__version__} cannot load {path.name}: {error}") from error


def check_names(session: ort.InferenceSession, inputs: Mapping[str, Any], outputs: Sequence[str]) -> None:
    """Refuse a configuration whose tensors are not the graph's.

    Raises:
        ConfigError: naming what differs.
    """
    graph_inputs = {each.name for each in session.get_inputs()}
    graph_outputs = {each.name for each in session.get_outputs()}
    if set(inputs) != graph_inputs:
        raise ConfigError(f"config.pbtxt has inputs {sorted(inputs)}, the graph has {sorted(graph_inputs)}")
    if not set(outputs) <= graph_outputs:
        raise ConfigError(f"config.pbtxt has outputs {sorted(outputs)}, the graph has {sorted(graph_outputs)}")


def usable_cpus(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processors this process may use: its affinity, limited by the cgroup's quota, rounded up."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cpus, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return cpus


def _error(text: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(text, code))
