"""The Triton configurations of the model: built as Triton's own messages, written as text with the reason of each value.

``config.pbtxt`` is the CPU default; ``configs/gpu.pbtxt`` and ``configs/tensorrt.pbtxt`` are chosen by ``--config-name``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from alexnet_export.to_onnx import INPUT, MAX_BATCH_SIZE, OUTPUTS

SIDE, CHANNELS = 224, 3
PREFERRED_BATCH = 32
CAPTURED_BATCHES = (8, 16, 32)
"""Batch sizes with a CUDA graph of their own in the TensorRT backend, besides 1 and the largest."""
TENSORRT_CACHE = "/var/cache/alexnet-serving/tensorrt"
TIMEOUT_US = 10_000_000

_ORDER = (
    *("name", "platform", "backend", "default_model_filename", "max_batch_size", "input", "output", "version_policy"),
    *("instance_group", "dynamic_batching", "optimization", "parameters", "model_warmup", "ensemble_scheduling"),
)
_SAID_ALL_THE_SAME = {  # protobuf leaves out what is zero; a reader should not have to know the defaults
    "dynamic_batching {\n": "  max_queue_delay_microseconds: 0\n",
    "default_queue_policy {\n": "    timeout_action: REJECT\n",
}
_HEAD = "# Written by `alexnet-export export`; what you change here stays.\n"
_HEAD_OF_ONNXRUNTIME = """\
# The onnxruntime backend is this project's Python-based one or the C++ one of NVIDIA's container, by one name.
"""
_REASONS = {
    "input": "RGB pixels, row by row. Normalisation, layout change and softmax are inside the graph.",
    "output": "The classification extension answers with the names in labels.txt.",
    "version_policy": "The newest release serves; `alexnet-export rollback` withdraws it.",
}
_CPU_REASONS = {
    "instance_group": """\
One process that uses all cores and holds the weights once. Measured on two cores (`make sweep`: int8, as shares of the raw
speed of the same file; 64 single images in flight): 0.81; two processes of one thread each 0.78 and a lone image in 8.8 ms
instead of 6.4; two with all threads each 0.74.""",
    "dynamic_batching": """\
Batches form by themselves while the instance is busy. A delay of 2 ms costs (0.75, a lone image 8.9 ms); a preferred batch
of 32 changes nothing (0.82).
There is no queue policy on purpose. With any (a bound, a timeout) Triton 2.51 stops handing batches to a busy instance
ahead of time and forgets to wake up when it is free: 0.57, and a burst of eight requests could take 533 ms instead of 29.
What nobody waits for any more is dropped all the same: when its gRPC deadline passes or its caller cancels.
A bounded queue is to be had with two instances: configs/bounded.pbtxt (0.74, bursts of 36 ms).""",
    "parameters": """\
The threads of a run sleep when they have nothing to do instead of spinning: Triton and the client need the cores too
(spinning: 0.78, though a lone image takes 5.6 ms; with two instances 0.63 and 10.2 ms).
No memory pattern: planning a run's memory ahead gains nothing here (0.97 - 1.00 of the time without it) and costs the fp32
network 86 MB.""",
    "model_warmup": "The first run of each shape allocates; the model is not ready before both ends have been run.",
}
_BOUNDED_REASONS = _CPU_REASONS | {
    "instance_group": """\
Two processes, each with the weights and with threads for all cores: Triton 2.51 loses time with a bounded queue and one
instance only (config.pbtxt says how).""",
    "dynamic_batching": """\
A request that has waited 10 s is refused instead of answered late; a caller may ask for less.
512 images are about two seconds of work for fp32 on two cores, less than one for int8. Beyond that callers are told at
once.""",
}
_GPU_REASONS = {
    "instance_group": """\
Two instances: one computes while the other copies, and Triton's batcher can stall for 500 ms if a bounded queue has but
one (config.pbtxt says how). Each holds the engine and the weights.""",
    "dynamic_batching": """\
Batches form by themselves while the GPU is busy. A request that has waited 10 s is refused instead of answered late; a
caller may ask for less. 4,096 images are a fraction of a second of work on a data-centre GPU.""",
}
_ONNXRUNTIME_REASONS = _GPU_REASONS | {
    "optimization": """\
TensorRT runs what it can, CUDA the rest. The precision is in the ONNX file (fp16, or explicit Q/DQ), not here: TensorRT
11 has no flags for it. One profile covers every batch size, otherwise each new one would build an engine while its
request waits. Kernel timings are kept, in a directory writable by the server alone: each Triton release wants its own.
Engines are not: ONNX Runtime finds them by the names in the graph, whatever its weights, so the engine of an older
release would answer for a newer one. CUDA graphs stay off: they need the same buffers each time.
use_tf32 0: float32 means float32, as the gates found it.""",
    "parameters": """\
These four must be here: the C++ backend overwrites them when they are given inside the cuda accelerator.
Heuristic choice (1) of cuDNN's algorithms: the exhaustive search runs again for every batch size. The arena grows by what
is asked for (1) and stays below 4 GiB; copies run on the compute stream.""",
    "model_warmup": "The smallest, the best and the largest batch of the profile, before the model is ready.",
}
_TENSORRT_REASONS = _GPU_REASONS | {
    "dynamic_batching": _GPU_REASONS["dynamic_batching"]
    + """
The preferred sizes are those with a CUDA graph of their own, besides 1 and the largest.""",
    "optimization": """\
CUDA graphs replay a batch's dozen kernels as one launch: at small batches the launches are most of the time. Pinned
memory and a stream for outputs let the copies of one batch hide behind the work of the next.""",
    "model_warmup": "Every size that has a CUDA graph.",
}


def render_configs(model: str, *, classes: int) -> dict[str, str]:
    """The texts of all configurations of a model of so many classes, by their paths below the model's directory."""
    return {
        "config.pbtxt": render_config(model, classes=classes),
        "configs/bounded.pbtxt": config_text(bounded_config(model, classes=classes), _BOUNDED_REASONS),
        "configs/gpu.pbtxt": config_text(gpu_config(model, classes=classes), _ONNXRUNTIME_REASONS),
        "configs/tensorrt.pbtxt": config_text(tensorrt_config(model, classes=classes), _TENSORRT_REASONS),
    }


def render_config(model: str, *, classes: int) -> str:
    """The text of config.pbtxt, the CPU default."""
    return config_text(cpu_config(model, classes=classes), _CPU_REASONS)


def cpu_config(model: str, *, classes: int) -> triton.ModelConfig:
    """ONNX Runtime on the CPU, whatever the precision of the file; ours here, the C++ backend in NVIDIA's container."""
    config = _config(model, classes, backend="onnxruntime", kind="KIND_CPU", warm=(1, MAX_BATCH_SIZE))
    config.parameters["session.intra_op.allow_spinning"].string_value = "0"
    config.parameters["enable_mem_pattern"].string_value = "0"
    return config


def bounded_config(model: str, *, classes: int) -> triton.ModelConfig:
    """The same with a bounded queue."""
    config = cpu_config(model, classes=classes)
    _bound(config, queue=512)
    return config


def gpu_config(model: str, *, classes: int) -> triton.ModelConfig:
    """ONNX Runtime on the GPU, with TensorRT and CUDA as execution providers."""
    warm = (1, PREFERRED_BATCH, MAX_BATCH_SIZE)
    config = _config(model, classes, backend="onnxruntime", kind="KIND_GPU", warm=warm)
    _bound(config, queue=4096)
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    shapes = {"min": 1, "opt": PREFERRED_BATCH, "max": MAX_BATCH_SIZE}
    profile = {
        f"trt_profile_{end}_shapes": f"{INPUT}:{batch}x{SIDE}x{SIDE}x{CHANNELS}" for end, batch in shapes.items()
    }
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
    """Triton's TensorRT backend, with the engine that the export built."""
    warm = (1, *CAPTURED_BATCHES, MAX_BATCH_SIZE)
    config = _config(model, classes, backend="tensorrt", kind="KIND_GPU", warm=warm)
    _bound(config, queue=4096)
    config.dynamic_batching.preferred_batch_size.extend((*CAPTURED_BATCHES, MAX_BATCH_SIZE))
    config.optimization.cuda.graphs = True
    config.optimization.cuda.output_copy_stream = True
    config.optimization.input_pinned_memory.enable = True
    config.optimization.output_pinned_memory.enable = True
    return config


def _bound(config: triton.ModelConfig, *, queue: int) -> None:
    """A bounded queue, and the two instances that Triton's batcher needs with one."""
    config.instance_group[0].count = 2
    policy = config.dynamic_batching.default_queue_policy
    policy.timeout_action = triton.ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds, policy.max_queue_size = TIMEOUT_US, queue
    policy.allow_timeout_override = True


def _config(model: str, classes: int, *, backend: str, kind: str, warm: Sequence[int]) -> triton.ModelConfig:
    dims = [SIDE, SIDE, CHANNELS]
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


def config_text(config: triton.ModelConfig, reasons: Mapping[str, str]) -> str:
    """A configuration as text, each field under the comment that says why; protobuf itself knows no comments."""
    reasons = _REASONS | dict(reasons)
    parts = [_HEAD, _HEAD_OF_ONNXRUNTIME if config.backend == "onnxruntime" else ""]
    missing = {field.name for field, _ in config.ListFields()} - set(_ORDER)
    assert not missing, missing
    for name in _ORDER:
        alone = triton.ModelConfig()
        alone.CopyFrom(config)
        for field, _ in config.ListFields():
            if field.name != name:
                alone.ClearField(field.name)
        text = text_format.MessageToString(alone, use_short_repeated_primitives=True)
        for opening, zero in _SAID_ALL_THE_SAME.items():
            text = text.replace(opening, opening + zero)
        if text and name in reasons:
            parts.append("\n" + "".join(f"# {line}\n" for line in reasons[name].splitlines()))
        elif name == "parameters" and text:
            parts.append("\n")
        parts.append(text)
    return "".join(parts)
