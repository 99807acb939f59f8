"""Configurations of the models in the repository: built as Triton's protobuf message, written as text with comments.

``config.pbtxt`` is the CPU default; ``--config-name`` selects one of ``configs/``. ``<model>_decode`` and
``<model>_encoded`` accept image files: a decoding model, and the ensemble of it and the classifier. On a GPU, another
backend (for example DALI with nvJPEG) can replace the decoding model, with the same tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from alexnet_client.images import MAX_PIXELS
from alexnet_export.model import SIDE
from alexnet_export.to_onnx import INPUT, MAX_BATCH_SIZE, OUTPUTS
from alexnet_export.to_tensorrt import PREFERRED_BATCH

ONNXRUNTIME, OPENVINO_F32, OPENVINO_BF16, CUDA = "onnxruntime", "openvino f32", "openvino bf16", "cuda"
"""Engines, by the names of ``alexnet_server.onnxruntime.settings.Settings.engine``."""
CPU_ENGINES = (ONNXRUNTIME, OPENVINO_F32, OPENVINO_BF16)
CAPTURED_BATCHES = (8, 16, 32)
"""Batch sizes with a CUDA graph in the TensorRT backend, in addition to 1 and the largest."""
TENSORRT_CACHE = "/var/cache/alexnet-serving/tensorrt"
TIMEOUT_US = 10_000_000
ENCODED_INPUT = "encoded_image"
MAX_ENCODED_BYTES = 16 * 2**20
VERSION = "1"
"""Version directory of the models without weights."""

_ORDER = (
    *("name", "platform", "backend", "default_model_filename", "max_batch_size", "input", "output", "version_policy"),
    *("instance_group", "dynamic_batching", "optimization", "parameters", "model_warmup", "ensemble_scheduling"),
)
_EXPLICIT_DEFAULTS = {  # protobuf omits zero values; readers should not need to know the defaults
    "dynamic_batching {\n": "  max_queue_delay_microseconds: 0\n",
    "default_queue_policy {\n": "    timeout_action: REJECT\n",
}
_HEADER = "# Written by `alexnet-export export`, which keeps your changes.\n"
_ONNXRUNTIME_HEADER = """\
# The onnxruntime backend is the Python-based one of this project or, in NVIDIA's container, the C++ one of the same name.
"""
_COMMENTS = {
    "input": "RGB pixels, row by row. The graph contains normalisation, layout change and softmax.",
    "output": "The classification extension returns the names in labels.txt.",
    "version_policy": "Triton serves the newest release; `alexnet-export rollback` withdraws it.",
}
_CPU_COMMENTS = {
    "instance_group": """\
One process that uses all CPUs, with one copy of the weights. Throughput with 64 single-image requests in flight, as a
share of the throughput of the model file alone (int8, ONNX Runtime's kernels, 2 CPUs of an AMD EPYC with AVX512-VNNI, as
all figures here): 0.81. Two processes with one thread each: 0.78, and a single request takes 8.8 ms instead of 6.4 ms.
Two processes with all threads each: 0.74.""",
    "dynamic_batching": """\
Batches form while the instance is busy. A queue delay of 2 ms reduces the throughput (0.75) and a single request takes
8.9 ms. A preferred batch size of 32 has no effect (0.82).
There is no queue policy. With any queue policy (size limit or timeout) and one instance, Triton 2.51 does not schedule
batches ahead of time and does not always wake up when the instance becomes free: throughput 0.57, and a burst of eight
requests can take 533 ms instead of 29 ms. Requests whose gRPC deadline has passed, or that were cancelled, are
nevertheless removed from the queue. For a bounded queue, use two instances: configs/bounded.pbtxt (throughput 0.74,
bursts of 36 ms).""",
    "parameters": """\
Idle threads sleep instead of spinning, because Triton and the client need the CPUs too. With spinning: throughput 0.78,
a single request takes 5.6 ms; with two instances 0.63 and 10.2 ms.
The memory pattern is off: planning the memory of a run ahead does not save time (0.97 - 1.00) and uses 86 MB more with
the fp32 network.""",
    "optimization": """\
OpenVINO's kernels, which use AMX and bfloat16. INFERENCE_PRECISION_HINT is the data type of operators that are not quantised;
NVIDIA's container ignores it and uses bf16 if the CPU can. Other properties of OpenVINO's CPU device can be set too
(INFERENCE_NUM_THREADS, NUM_STREAMS). Without this block, ONNX Runtime's own kernels compute. A version is only loaded with an
engine that its manifest names.""",
    "model_warmup": "The first run of each batch size allocates memory. Run the smallest and the largest before the model is ready.",
}
_BOUNDED_COMMENTS = _CPU_COMMENTS | {
    "instance_group": """\
Two processes, each with a copy of the weights and with threads for all CPUs. With a bounded queue and one instance,
Triton 2.51 loses throughput (see config.pbtxt).""",
    "dynamic_batching": """\
A request that has waited 10 s is rejected. A request may set a shorter timeout.
512 images take about two seconds with fp32 on 2 CPUs, and less than one with int8. If the queue is full, requests are
rejected immediately.""",
}
_GPU_COMMENTS = {
    "instance_group": """\
Two instances: one computes while the other copies. With a bounded queue and one instance, Triton's batcher can stall for
500 ms (see config.pbtxt). Each instance holds a copy of the weights.""",
    "dynamic_batching": """\
Batches form while the GPU is busy. A request that has waited 10 s is rejected. A request may set a shorter timeout. 4,096
images take a fraction of a second on a data-centre GPU.""",
}
_ONNXRUNTIME_COMMENTS = _GPU_COMMENTS | {
    "optimization": """\
TensorRT runs the operators that it supports, CUDA the others. The ONNX file determines the precision (fp16, or explicit
Q/DQ nodes), because TensorRT 11 has no flags for it. One profile covers every batch size; otherwise, each new batch size
would build an engine while its request waits. Kernel timings are cached, in a directory that only the server can write:
each Triton release needs its own. Engines are not cached: ONNX Runtime identifies them by the names in the graph and not
by the weights, so the engine of an older release would answer for a newer one. CUDA graphs are off, because they need
fixed buffers. use_tf32 0: fp32 files are computed in float32, as they were validated.""",
    "parameters": """\
The C++ backend ignores these four if they are set in the cuda accelerator.
cudnn_conv_algo_search 1 is heuristic; the exhaustive search would run again for every batch size. arena_extend_strategy 1
extends the arena by the requested size. The arena is limited to 4 GiB. Copies run on the compute stream.""",
    "model_warmup": "Run the smallest, the optimal and the largest batch of the profile before the model is ready.",
}
_TENSORRT_COMMENTS = _GPU_COMMENTS | {
    "dynamic_batching": _GPU_COMMENTS["dynamic_batching"]
    + """
The preferred sizes have a CUDA graph each, as has batch size 1.""",
    "optimization": """\
A CUDA graph launches the dozen kernels of a batch at once; with small batches, the launches take most of the time. With
pinned memory and a separate stream for outputs, the copies of one batch overlap with the computation of the next.""",
    "model_warmup": "Run every batch size that has a CUDA graph.",
}
_DECODE_COMMENTS = {
    "input": "Content of a JPEG, PNG or WebP file.",
    "output": "Input of the classifier: upright, RGB, resized and cropped as in training.",
    "version_policy": "The model has no weights; its version directory is empty.",
    "instance_group": "One process with one thread for each CPU. Decoding never blocks inference.",
    "dynamic_batching": "The files of a batch are decoded in parallel. An invalid file only fails its own request.",
    "parameters": "A file beyond these limits fails its request: a small file can decompress to gigabytes.",
}
_ENCODED_COMMENTS = {
    "input": "Content of a JPEG, PNG or WebP file.",
    "ensemble_scheduling": "Each step has its own queue; requests with files and requests with pixels share batches.",
}


def render_configs(model: str, *, classes: int, engine: str = ONNXRUNTIME) -> dict[str, str]:
    """Text of all configurations of the classifier, by path in the model directory; on the CPU, with this engine."""
    return {
        "config.pbtxt": config_text(cpu_config(model, classes=classes, engine=engine), _CPU_COMMENTS),
        "configs/bounded.pbtxt": config_text(bounded_config(model, classes=classes, engine=engine), _BOUNDED_COMMENTS),
        "configs/gpu.pbtxt": config_text(gpu_config(model, classes=classes), _ONNXRUNTIME_COMMENTS),
        "configs/tensorrt.pbtxt": config_text(tensorrt_config(model, classes=classes), _TENSORRT_COMMENTS),
    }


def engine_config(engine: str) -> triton.ModelConfig:
    """A configuration that runs a classifier with this engine."""
    if engine != CUDA:
        return cpu_config("model", classes=1, engine=engine)
    config = gpu_config("model", classes=1)
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    del accelerators[next(number for number, each in enumerate(accelerators) if each.name == "tensorrt")]
    return config


def cpu_config(model: str, *, classes: int, engine: str = ONNXRUNTIME) -> triton.ModelConfig:
    """ONNX Runtime on the CPU, with its own kernels or OpenVINO's."""
    config = _config(model, classes, backend="onnxruntime", kind="KIND_CPU", warm=(1, MAX_BATCH_SIZE))
    config.parameters["session.intra_op.allow_spinning"].string_value = "0"
    config.parameters["enable_mem_pattern"].string_value = "0"
    if engine != ONNXRUNTIME:
        precision = {"INFERENCE_PRECISION_HINT": engine.removeprefix("openvino ")}
        accelerators = config.optimization.execution_accelerators.cpu_execution_accelerator
        accelerators.add(name="openvino", parameters=precision)
    return config


def bounded_config(model: str, *, classes: int, engine: str = ONNXRUNTIME) -> triton.ModelConfig:
    """ONNX Runtime on the CPU with a bounded queue."""
    config = cpu_config(model, classes=classes, engine=engine)
    _bound_queue(config, queue=512)
    return config


def gpu_config(model: str, *, classes: int) -> triton.ModelConfig:
    """ONNX Runtime on the GPU, with TensorRT and CUDA as execution providers."""
    warm = (1, PREFERRED_BATCH, MAX_BATCH_SIZE)
    config = _config(model, classes, backend="onnxruntime", kind="KIND_GPU", warm=warm)
    _bound_queue(config, queue=4096)
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    shapes = {"min": 1, "opt": PREFERRED_BATCH, "max": MAX_BATCH_SIZE}
    profile = {f"trt_profile_{end}_shapes": f"{INPUT}:{batch}x{SIDE}x{SIDE}x3" for end, batch in shapes.items()}
    cache = {
        "trt_engine_cache_enable": "0",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": TENSORRT_CACHE,
    }
    accelerators.add(name="tensorrt", parameters={**profile, **cache})
    accelerators.add(name="cuda", parameters={"use_tf32": "0"})
    values = {
        "cudnn_conv_algo_search": "1",
        "arena_extend_strategy": "1",
        "gpu_mem_limit": str(4 * 2**30),
        "do_copy_in_default_stream": "1",
    }
    for key, value in values.items():
        config.parameters[key].string_value = value
    return config


def tensorrt_config(model: str, *, classes: int) -> triton.ModelConfig:
    """Triton's TensorRT backend with the engine that the export built."""
    warm = (1, *CAPTURED_BATCHES, MAX_BATCH_SIZE)
    config = _config(model, classes, backend="tensorrt", kind="KIND_GPU", warm=warm)
    _bound_queue(config, queue=4096)
    config.dynamic_batching.preferred_batch_size.extend((*CAPTURED_BATCHES, MAX_BATCH_SIZE))
    config.optimization.cuda.graphs = True
    config.optimization.cuda.output_copy_stream = True
    config.optimization.input_pinned_memory.enable = True
    config.optimization.output_pinned_memory.enable = True
    return config


def _bound_queue(config: triton.ModelConfig, *, queue: int) -> None:
    """Bound the queue, and use the two instances that Triton's batcher then needs."""
    config.instance_group[0].count = 2
    policy = config.dynamic_batching.default_queue_policy
    policy.timeout_action = triton.ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds, policy.max_queue_size = TIMEOUT_US, queue
    policy.allow_timeout_override = True


def _config(model: str, classes: int, *, backend: str, kind: str, warm: Sequence[int]) -> triton.ModelConfig:
    dims = [SIDE, SIDE, 3]
    config = triton.ModelConfig(
        name=model,
        backend=backend,
        default_model_filename="model.plan" if backend == "tensorrt" else "model.onnx",
        max_batch_size=MAX_BATCH_SIZE,
    )
    config.input.add(name=INPUT, data_type=triton.TYPE_UINT8, dims=dims)
    for name in OUTPUTS:
        labels = "labels.txt" if name == "probabilities" else ""
        config.output.add(name=name, data_type=triton.TYPE_FP32, dims=[classes], label_filename=labels)
    config.version_policy.latest.num_versions = 1
    config.instance_group.add(kind=kind, count=1)
    config.dynamic_batching.SetInParent()
    for batch in warm:
        sample = config.model_warmup.add(name=f"batch of {batch}", batch_size=batch)
        sample.inputs[INPUT].MergeFrom(triton.ModelWarmup.Input(data_type=triton.TYPE_UINT8, dims=dims, zero_data=True))
    return config


def config_text(config: triton.ModelConfig, comments: Mapping[str, str]) -> str:
    """Write a configuration as text with a comment above each field."""
    comments = _COMMENTS | dict(comments)
    parts = [_HEADER, _ONNXRUNTIME_HEADER if config.backend == "onnxruntime" else ""]
    missing = {field.name for field, _ in config.ListFields()} - set(_ORDER)
    assert not missing, missing
    for name in _ORDER:
        alone = triton.ModelConfig()
        alone.CopyFrom(config)
        for field, _ in config.ListFields():
            if field.name != name:
                alone.ClearField(field.name)
        text = text_format.MessageToString(alone, use_short_repeated_primitives=True)
        for opening, zero in _EXPLICIT_DEFAULTS.items():
            text = text.replace(opening, opening + zero)
        if text and name in comments:
            parts.append("\n" + "".join(f"# {line}\n" for line in comments[name].splitlines()))
        elif name == "parameters" and text:
            parts.append("\n")
        parts.append(text)
    return "".join(parts)


def render_encoded_configs(model: str, *, classes: int) -> dict[str, str]:
    """Text of the configurations of the decoding model and the ensemble, by model name."""
    return {
        f"{model}_decode": config_text(decode_config(model), _DECODE_COMMENTS),
        f"{model}_encoded": config_text(encoded_config(model, classes=classes), _ENCODED_COMMENTS),
    }


def decode_config(model: str) -> triton.ModelConfig:
    """The decoding model: files in, pixels out."""
    config = triton.ModelConfig(name=f"{model}_decode", backend="image_decoder", max_batch_size=MAX_BATCH_SIZE)
    config.input.add(name=ENCODED_INPUT, data_type=triton.TYPE_STRING, dims=[1])
    config.output.add(name=INPUT, data_type=triton.TYPE_UINT8, dims=[SIDE, SIDE, 3])
    config.version_policy.latest.num_versions = 1
    config.instance_group.add(kind="KIND_CPU", count=1)
    config.dynamic_batching.SetInParent()
    config.parameters["max_encoded_bytes"].string_value = str(MAX_ENCODED_BYTES)
    config.parameters["max_pixels"].string_value = str(MAX_PIXELS)
    return config


def encoded_config(model: str, *, classes: int) -> triton.ModelConfig:
    """The ensemble: files in, outputs of the classifier."""
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
