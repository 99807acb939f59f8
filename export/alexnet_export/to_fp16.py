"""Convert the float32 graph to half precision for GPUs: uint8 in, float16 inside, float32 out.

The file contains the precision, because TensorRT 11 has no flag for it. Pixels are normalised in float32. The scale of
the pixels is not folded into conv1's weights: they would become so small that float16 represents them badly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from alexnet_export.errors import GateFailed
from alexnet_export.graph import array_of, constant, layers, read_model, write_model

LARGEST = 65504.0
"""The largest finite float16."""


def to_fp16(source: Path, target: Path) -> None:
    """Convert a file: all layers become float16, with one Cast before the first and one after the last.

    Args:
        source: the float32 file of the exporter.
        target: written atomically.

    Raises:
        BadInput: ``source`` is not an ONNX file, or ``target`` cannot be written.
        GateFailed: a weight is too large for float16.
    """
    model = read_model(source)
    graph = model.graph
    found = layers(graph)
    for node in found:
        for place in range(1, len(node.inputs)):
            _halve(graph, node, place)
    nodes = list(graph)
    for node in nodes[nodes.index(found[0]) : nodes.index(found[-1]) + 1]:
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    inside = ir.node("Cast", [found[0].inputs[0]], {"to": int(ir.DataType.FLOAT16)}, name="node_to_half")
    inside.outputs[0].name = "half_pixels"
    graph.insert_before(found[0], inside)
    found[0].replace_input_with(0, inside.outputs[0])
    half = found[-1].outputs[0]
    outside = ir.node("Cast", [half], {"to": int(ir.DataType.FLOAT)}, name="node_to_single")
    single = outside.outputs[0]
    half.name, single.name = f"half_{half.name}", half.name
    single.shape, single.type = half.shape, ir.TensorType(ir.DataType.FLOAT)
    for user, place in list(half.uses()):
        if user is not outside:
            user.replace_input_with(place, single)
    graph.insert_after(found[-1], outside)
    graph.outputs[graph.outputs.index(half)] = single
    write_model(model, target)


def _halve(graph: ir.Graph, node: ir.Node, place: int) -> None:
    value = node.inputs[place]
    array = array_of(value)
    name = str(value.name) if value else ""
    if np.abs(array).max() > LARGEST:
        raise GateFailed(f"fp16: a weight of {name} is {np.abs(array).max():.3g}; float16 allows {LARGEST:.0f}")
    graph.initializers.pop(name)
    node.replace_input_with(place, constant(graph, name, array.astype(np.float16)))
