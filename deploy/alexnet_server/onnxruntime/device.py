"""Runs on a GPU with I/O binding: inputs in device memory are not copied, and CUDA graphs replay whole batches.

Outputs are bound to host memory: they are a few floats for each image, and the server sends them over the network next.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from alexnet_server.onnxruntime.batches import Array

NO_GRAPH = "-1"  # value of ONNX Runtime's gpu_graph_id that disables CUDA graphs for a run

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}


@dataclass(frozen=True)
class _Captured:
    """Tensors and number of a captured CUDA graph; the graph refers to the addresses of the tensors."""

    binding: ort.IOBinding
    inputs: Mapping[str, ort.OrtValue]
    graph: str


class DeviceRunner:
    """Binds inputs and outputs of each run; for batch sizes with a CUDA graph, always to the same device memory.

    Args:
        session: session on the device.
        device: ONNX Runtime's name of the device, "cuda"; "cpu" works too.
        device_id: number of the device.
        graph_batches: batch sizes that are captured as a CUDA graph in their first run. Requires the provider option
            ``enable_cuda_graph``.
    """

    def __init__(
        self, session: ort.InferenceSession, device: str, device_id: int, graph_batches: Collection[int] = ()
    ) -> None:
        self._session, self._device, self._device_id = session, device, device_id
        self._graph_batches = frozenset(graph_batches)
        self._captured: dict[tuple[int, tuple[str, ...]], _Captured] = {}

    def run(self, names: Sequence[str], inputs: Mapping[str, Array | ort.OrtValue]) -> list[Array]:
        """Return the named outputs. An input is an array, or a tensor in device memory."""
        values = {name: self._to_device(value) for name, value in inputs.items()}
        rows = next(iter(values.values())).shape()[0]
        if rows in self._graph_batches:
            return self._replay(rows, tuple(names), values)
        binding = self._session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding, self._options(NO_GRAPH))
        return [value.numpy() for value in binding.get_outputs()]

    def _replay(self, rows: int, names: tuple[str, ...], values: Mapping[str, ort.OrtValue]) -> list[Array]:
        captured = self._captured.get((rows, names))
        if captured is None:
            captured = self._captured[rows, names] = self._capture(rows, names, values)
        for name, value in values.items():
            if captured.inputs[name] is not value:
                captured.inputs[name].update_inplace(value.numpy())
        self._session.run_with_iobinding(captured.binding, self._options(captured.graph))
        return [value.numpy() for value in captured.binding.get_outputs()]

    def _capture(self, rows: int, names: tuple[str, ...], values: Mapping[str, ort.OrtValue]) -> _Captured:
        binding = self._session.io_binding()
        kept = {name: self._to_device(value.numpy()) for name, value in values.items()}  # Triton reuses its own memory
        for name, value in kept.items():
            binding.bind_ortvalue_input(name, value)
        graph_outputs = {output.name: output for output in self._session.get_outputs()}
        for name in names:
            shape, dtype = [rows, *graph_outputs[name].shape[1:]], _DTYPES[graph_outputs[name].type]
            value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self._device, self._device_id)
            binding.bind_ortvalue_output(name, value)
        return _Captured(binding, kept, str(len(self._captured) + 1))

    def _to_device(self, value: Array | ort.OrtValue) -> ort.OrtValue:
        if isinstance(value, ort.OrtValue):
            return value
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), self._device, self._device_id)

    def _options(self, graph: str) -> ort.RunOptions:
        options = ort.RunOptions()
        if self._graph_batches:
            options.add_run_config_entry("gpu_graph_id", graph)
        return options
