"""The Triton configurations that let the model read image files: a decoding step, and the ensemble of it and the model.

``alexnet_decode`` is a seam: on a GPU another backend (nvJPEG through DALI) can take its place, with the same tensors.
"""

from __future__ import annotations

from tritonclient.grpc import model_config_pb2 as triton

from alexnet_export.config import CHANNELS, SIDE, config_text
from alexnet_export.to_onnx import INPUT, MAX_BATCH_SIZE, OUTPUTS

ENCODED_INPUT = "encoded_image"
VERSION = "1"
"""Of both models: they have no weights, and come and go with the release beside them."""
MAX_ENCODED_BYTES = 16 * 2**20
MAX_PIXELS = 64_000_000

_DECODE_REASONS = {
    "input": "The bytes of a JPEG, PNG or WebP file.",
    "output": "What the model reads: upright, RGB, resized and cropped as in training.",
    "version_policy": "It has no weights: the version directory is empty.",
    "instance_group": "One process with a thread for each core; decoding never holds up an inference that is running.",
    "dynamic_batching": "Files that arrive together are decoded side by side. Each is answered for itself.",
    "parameters": "A file beyond these limits fails its own request: a small file can unpack to gigabytes.",
}
_ENCODED_REASONS = {
    "input": "The bytes of a JPEG, PNG or WebP file.",
    "ensemble_scheduling": "Each step has its own queue and batches, so images from here and pixels from elsewhere share runs.",
}


def render_encoded_configs(model: str, *, classes: int) -> dict[str, str]:
    """The texts of the configurations of both models, by the models' names."""
    return {
        f"{model}_decode": config_text(decode_config(model), _DECODE_REASONS),
        f"{model}_encoded": config_text(encoded_config(model, classes=classes), _ENCODED_REASONS),
    }


def decode_config(model: str) -> triton.ModelConfig:
    """The decoding step: files in, pixels out."""
    config = triton.ModelConfig(name=f"{model}_decode", backend="image_decoder", max_batch_size=MAX_BATCH_SIZE)
    config.input.add(name=ENCODED_INPUT, data_type=triton.TYPE_STRING, dims=[1])
    config.output.add(name=INPUT, data_type=triton.TYPE_UINT8, dims=[SIDE, SIDE, CHANNELS])
    config.version_policy.latest.num_versions = 1
    config.instance_group.add(kind="KIND_CPU", count=1)
    config.dynamic_batching.SetInParent()
    config.parameters["max_encoded_bytes"].string_value = str(MAX_ENCODED_BYTES)
    config.parameters["max_pixels"].string_value = str(MAX_PIXELS)
    return config


def encoded_config(model: str, *, classes: int) -> triton.ModelConfig:
    """The ensemble: files in, the model's own outputs."""
    config = triton.ModelConfig(name=f"{model}_encoded", platform="ensemble", max_batch_size=MAX_BATCH_SIZE)
    config.input.add(name=ENCODED_INPUT, data_type=triton.TYPE_STRING, dims=[1])
    for name in OUTPUTS:
        config.output.add(name=name, data_type=triton.TYPE_FP32, dims=[classes])
    config.version_policy.latest.num_versions = 1
    config.ensemble_scheduling.step.add(
        model_name=f"{model}_decode",
        model_version=-1,
        input_map={ENCODED_INPUT: ENCODED_INPUT},
        output_map={INPUT: INPUT},
    )
    config.ensemble_scheduling.step.add(
        model_name=model, model_version=-1, input_map={INPUT: INPUT}, output_map={name: name for name in OUTPUTS}
    )
    return config
