"""config.pbtxt, the CPU default: the text with its reasons, filled in for a count of classes."""

from __future__ import annotations

from alexnet_export.to_onnx import MAX_BATCH_SIZE

_TEMPLATE = """\
# Written by `alexnet-export publish` (export/alexnet_export/config.py); the CPU default.
# The same file serves the Python-based onnxruntime backend of this project and the C++ one of NVIDIA's container.
name: "{model}"
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: {max_batch_size}

input [
  {{
    # RGB pixels, row by row. Normalisation, layout change and softmax are inside the graph.
    name: "image"
    data_type: TYPE_UINT8
    dims: [ 224, 224, 3 ]
  }}
]

output [
  {{
    name: "logits"
    data_type: TYPE_FP32
    dims: [ {classes} ]
  }},
  {{
    # The classification extension answers with the names in labels.txt.
    name: "probabilities"
    data_type: TYPE_FP32
    dims: [ {classes} ]
    label_filename: "labels.txt"
  }}
]

# The newest release serves; removing its directory rolls back.
version_policy {{ latest {{ num_versions: 1 }} }}

# One process with all cores: two with two threads each lose a third to oversubscription on two cores.
instance_group [ {{ kind: KIND_CPU count: 1 }} ]

dynamic_batching {{
  # Batches form by themselves while the instance is busy; a delay of 2 ms halves the speed of a lone request.
  max_queue_delay_microseconds: 0
  default_queue_policy {{
    # A request that has waited 10 s is refused instead of answered late; a caller may ask for less.
    timeout_action: REJECT
    default_timeout_microseconds: 10000000
    allow_timeout_override: true
    # About two seconds of work for fp32 on two cores. Beyond that callers are told at once.
    max_queue_size: 512
  }}
}}

# The first run of each shape allocates; the model is not ready before both ends have been run.
model_warmup [
  {{
    name: "one image"
    batch_size: 1
    inputs {{ key: "image" value {{ data_type: TYPE_UINT8 dims: [ 224, 224, 3 ] zero_data: true }} }}
  }},
  {{
    name: "largest batch"
    batch_size: {max_batch_size}
    inputs {{ key: "image" value {{ data_type: TYPE_UINT8 dims: [ 224, 224, 3 ] zero_data: true }} }}
  }}
]
"""


def render_config(model: str, *, classes: int) -> str:
    """The text of config.pbtxt for a model of so many classes."""
    return _TEMPLATE.format(model=model, classes=classes, max_batch_size=MAX_BATCH_SIZE)
