"""The class that Triton's Python stub calls to decode images. The files of all requests are decoded in parallel."""

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
from alexnet_server.rejection import RequestRejected, reject_cancelled


class TritonPythonModel:
    """A pool of decoding threads; Pillow releases the GIL while it decodes."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the limits and the names of the tensors.

        Raises:
            pb_utils.TritonModelException: a limit is not a positive integer.
        """
        config = json.loads(args["model_config"])
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        self._max_bytes = _limit(config, "max_encoded_bytes", MAX_FILE_BYTES)
        self._max_pixels = _limit(config, "max_pixels", MAX_PIXELS)
        self._pool = ThreadPoolExecutor(usable_cpus(), thread_name_prefix="decode")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return pixels for each request, uint8 [N, 224, 224, 3], or the error of its first invalid file."""
        started: list[list[Future[Pixels | str]] | RequestRejected] = []
        for request in requests:
            try:
                reject_cancelled(request)
                started.append([self._pool.submit(self._decode, file) for file in self._files_of(request)])
            except RequestRejected as rejected:
                started.append(rejected)
        return [each.response() if isinstance(each, RequestRejected) else self._respond(each) for each in started]

    def finalize(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _respond(self, futures: Sequence[Future[Pixels | str]]) -> Any:
        pixels: list[Pixels] = []
        for number, future in enumerate(futures, start=1):
            decoded = future.result()
            if isinstance(decoded, str):
                name = f"image {number} of {len(futures)}" if len(futures) > 1 else "image"
                return RequestRejected(f"{name}: {decoded}", pb_utils.TritonError.INVALID_ARG).response()
            pixels.append(decoded)
        tensor = pb_utils.Tensor(self._output, pixels[0][np.newaxis] if len(pixels) == 1 else np.stack(pixels))
        return pb_utils.InferenceResponse(output_tensors=[tensor])

    def _files_of(self, request: Any) -> list[bytes]:
        tensor = pb_utils.get_input_tensor_by_name(request, self._input)
        files = [] if tensor is None else list(tensor.as_numpy().ravel())
        if not files:
            raise RequestRejected(f"input {self._input} is missing or empty", pb_utils.TritonError.INVALID_ARG)
        return files

    def _decode(self, file: bytes) -> Pixels | str:
        """Return the pixels, or the text of the error.

        An exception stored in a future would keep its frames, with the partially decoded image, until the next garbage
        collection; after 30,000 damaged files that was 107 MB.
        """
        try:
            return load_pixels(file, max_bytes=self._max_bytes, max_pixels=self._max_pixels)
        except ImageError as error:
            return str(error).removeprefix("image: ")


def _limit(config: Mapping[str, Any], key: str, default: int) -> int:
    text = config.get("parameters", {}).get(key, {}).get("string_value", str(default))
    if not text.isdecimal() or int(text) < 1:
        raise pb_utils.TritonModelException(f"parameter {key} must be a positive integer, got {text!r}")
    return int(text)
