"""The class Triton's Python stub calls to decode: the files of all requests side by side, each answered for itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from alexnet_client.cpus import usable_cpus
from alexnet_client.errors import ImageError
from alexnet_client.images import MAX_FILE_BYTES, MAX_PIXELS, Pixels, load_pixels
from alexnet_server.refusal import RequestRejected, refuse_cancelled


class TritonPythonModel:
    """A pool of threads that decode; Pillow lets go of the interpreter while it does."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the limits and the names of the tensors.

        Raises:
            pb_utils.TritonModelException: a limit is no positive whole number.
        """
        config = json.loads(args["model_config"])
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        self._max_bytes = _limit(config, "max_encoded_bytes", MAX_FILE_BYTES)
        self._max_pixels = _limit(config, "max_pixels", MAX_PIXELS)
        self._pool = ThreadPoolExecutor(usable_cpus(), thread_name_prefix="decode")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Pixels for each request, uint8 [N, 224, 224, 3], or the reason why one of its files has none."""
        started: list[list[Future[Pixels | str]] | RequestRejected] = []
        for request in requests:
            try:
                refuse_cancelled(request)
                started.append([self._pool.submit(self._decode, file) for file in self._files_of(request)])
            except RequestRejected as refused:
                started.append(refused)
        return [each.response() if isinstance(each, RequestRejected) else self._answer(each) for each in started]

    def finalize(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _answer(self, decoding: Sequence[Future[Pixels | str]]) -> Any:
        pixels: list[Pixels] = []
        for place, each in enumerate(decoding, start=1):
            found = each.result()
            if isinstance(found, str):
                which = f"image {place} of {len(decoding)}" if len(decoding) > 1 else "image"
                return RequestRejected(f"{which}: {found}", pb_utils.TritonError.INVALID_ARG).response()
            pixels.append(found)
        tensor = pb_utils.Tensor(self._output, pixels[0][np.newaxis] if len(pixels) == 1 else np.stack(pixels))
        return pb_utils.InferenceResponse(output_tensors=[tensor])

    def _files_of(self, request: Any) -> list[bytes]:
        tensor = pb_utils.get_input_tensor_by_name(request, self._input)
        files = [] if tensor is None else list(tensor.as_numpy().ravel())
        if not files:
            raise RequestRejected(f"input {self._input} is missing or empty", pb_utils.TritonError.INVALID_ARG)
        return files

    def _decode(self, file: bytes) -> Pixels | str:
        """The pixels, or why there are none.

        As a text: an exception that waits in a future keeps its frames, and the half-decoded image in them, until the
        garbage collector comes by; after 30,000 damaged files that was 107 MB.
        """
        try:
            return load_pixels(file, max_bytes=self._max_bytes, max_pixels=self._max_pixels)
        except ImageError as error:
            return str(error).removeprefix("image: ")


def _limit(config: Mapping[str, Any], key: str, default: int) -> int:
    text = config.get("parameters", {}).get(key, {}).get("string_value", str(default))
    if not text.isdecimal() or int(text) < 1:
        raise pb_utils.TritonModelException(f"parameter {key} must be a positive whole number, got {text!r}")
    return int(text)
