"""``Client``: classify images on a Triton server. The asyncio shell over codec, deadline and transport."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from alexnet_client import codec
from alexnet_client.answers import BatchAnswer, Classification, Guess, ModelSignature
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, ServerFault
from alexnet_client.images import ImageSource, load_pixels, read_file
from alexnet_client.transport import Transport

DEFAULT_TARGET = "127.0.0.1:8001"
LOGITS, PROBABILITIES = "logits", "probabilities"


class Client:
    """An image classifier on a Triton server.

        async with Client("127.0.0.1:8001") as client:
            answer = await client.classify("photo.jpg")

    Names of tensors and classes come from the server: a model of other classes needs no change here.

    Args:
        target: host:port of the server's gRPC endpoint.
        model: its name there.
        timeout_s: deadline of a call that names none, seconds; it covers everything the call does.
    """

    def __init__(self, target: str = DEFAULT_TARGET, *, model: str = "alexnet", timeout_s: float = 10.0) -> None:
        if not 0 < timeout_s < math.inf:
            raise BadInput(f"timeout_s must be positive and finite, got {timeout_s}")
        host, _, port = target.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise BadInput(f"{target}: not an address of the form host:port")
        self.target, self.model, self.timeout_s = target, model, timeout_s
        self._transport = Transport(target)
        self._asking = asyncio.Lock()  # many callers at once ask for signature and labels once
        self._signature: ModelSignature | None = None
        self._labels: dict[str, tuple[str, ...]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        await self._transport.close()

    async def classify(self, image: ImageSource, *, top: int = 5, timeout_s: float | None = None) -> Classification:
        """Classify one image.

        Args:
            image: path, bytes of a JPEG, PNG or WebP file, PIL image, or uint8 [224, 224, 3]; a model that reads
                files is sent the file as it is, so it takes a path or bytes.
            top: how many guesses to name.
            timeout_s: deadline of this call, seconds, over decoding, waiting and the answer.

        Raises:
            ImageError: the image cannot be read.
            ClientError: its subclasses say what to do.
        """
        if top < 1:
            raise BadInput(f"top must be at least 1, got {top}")
        deadline = self._deadline(timeout_s)
        signature = await self._signature_by(deadline)
        if isinstance(image, np.ndarray) and not signature.encoded:
            batch = load_pixels(image)[np.newaxis]
        elif signature.encoded:
            batch = np.array([[await asyncio.to_thread(read_file, image)]], object)
        else:
            batch = (await asyncio.to_thread(load_pixels, image))[np.newaxis]
        answer = await self._infer(batch, deadline)
        labels = await self._labels_of(answer.model_version, deadline)
        probabilities = answer.probabilities[0]
        best = np.argsort(-probabilities, kind="stable")[:top]
        guesses = tuple(Guess(labels[index], int(index), float(probabilities[index])) for index in best)
        return Classification(guesses, answer.logits[0], probabilities, answer.model_version)

    async def infer(self, images: npt.NDArray[Any], *, timeout_s: float | None = None) -> BatchAnswer:
        """Run one batch as it is: uint8 [N, 224, 224, 3], N up to the server's largest batch.

        A model that reads files takes an array [N, 1] of their bytes (dtype object).

        Raises:
            BadInput: the server refuses its shape, dtype or size.
            ClientError: its other subclasses say what to do.
        """
        return await self._infer(images, self._deadline(timeout_s))

    async def signature(self, *, timeout_s: float | None = None) -> ModelSignature:
        """What the server says of the model; asked once, then remembered."""
        return await self._signature_by(self._deadline(timeout_s))

    async def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether the server and the model are ready, proved by an inference.

        Raises:
            ClientError: they say so, but do not answer.
        """
        deadline = self._deadline(timeout_s)
        if not await self._transport.ready(deadline) or not await self._transport.model_ready(self.model, deadline):
            return False
        await self._ask_labels("", deadline)  # Triton 2.51 stays "ready" with a dead backend; an answer is proof
        return True

    async def server_version(self, *, timeout_s: float | None = None) -> str:
        """Triton's version, such as "2.51.0"."""
        return str((await self._transport.server_metadata(self._deadline(timeout_s))).version)

    async def labels(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """Class names of the release that serves now, in the order of the logits."""
        deadline = self._deadline(timeout_s)
        return self._labels[await self._ask_labels("", deadline)]

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline.after(self.timeout_s if timeout_s is None else timeout_s)

    async def _infer(self, images: npt.NDArray[Any], deadline: Deadline) -> BatchAnswer:
        if not isinstance(images, np.ndarray):
            raise BadInput(f"a batch is uint8 [N, 224, 224, 3], not a {type(images).__name__}")
        signature = await self._signature_by(deadline)
        request = codec.encode_pixels(self.model, signature.input_name, images, (LOGITS, PROBABILITIES))
        response = await self._transport.infer(request, deadline)
        tensors = codec.decode_response(response)
        expected = (len(images), signature.classes)
        for name in (LOGITS, PROBABILITIES):
            if name not in tensors or tensors[name].shape != expected or tensors[name].dtype != np.float32:
                raise ServerFault(f"{self.target}: the answer lacks {name} as float32 {list(expected)}")
        return BatchAnswer(tensors[LOGITS], tensors[PROBABILITIES], response.model_version)

    async def _signature_by(self, deadline: Deadline) -> ModelSignature:
        if self._signature is not None:
            return self._signature
        async with self._asking:
            if self._signature is None:
                self._signature = await self._ask_signature(deadline)
            return self._signature

    async def _ask_signature(self, deadline: Deadline) -> ModelSignature:
        metadata = await self._transport.model_metadata(self.model, deadline)
        config = (await self._transport.model_config(self.model, deadline)).config
        outputs = {output.name: tuple(output.shape) for output in metadata.outputs}
        if len(metadata.inputs) != 1 or PROBABILITIES not in outputs or LOGITS not in outputs:
            raise BadInput(
                f"{self.target}: model {self.model} is not an image classifier of this project, it has inputs "
                f"{[tensor.name for tensor in metadata.inputs]} and outputs {list(outputs)}"
            )
        return ModelSignature(
            input_name=metadata.inputs[0].name,
            input_shape=tuple(metadata.inputs[0].shape),
            classes=outputs[PROBABILITIES][-1],
            max_batch_size=config.max_batch_size,
            versions=tuple(metadata.versions),
            encoded=metadata.inputs[0].datatype == "BYTES",
        )

    async def _labels_of(self, version: str, deadline: Deadline) -> tuple[str, ...]:
        if version not in self._labels:
            await self._signature_by(deadline)
            async with self._asking:
                if version not in self._labels:
                    await self._ask_labels(version, deadline)
        return self._labels[version]

    async def _ask_labels(self, version: str, deadline: Deadline) -> str:
        """Ask for the names with a blank image (the protocol gives names only with an answer); the release's version."""
        signature = self._signature or await self._signature_by(deadline)
        request = codec.encode_request(
            self.model,
            {signature.input_name: signature.blank()},
            (PROBABILITIES,),
            version=version,
            classes=signature.classes,
        )
        response = await self._transport.infer(request, deadline)
        named = dict(codec.parse_class(text) for text in codec.decode_response(response)[PROBABILITIES].ravel())
        self._labels[response.model_version] = tuple(named.get(index, str(index)) for index in range(signature.classes))
        return str(response.model_version)
