"""Rewrites of the graph around the quantiser, so that the first convolution reads the pixels as they are.

Pixels are 8-bit activations already, but the float graph converts, transposes and normalises them first. A pass changes an
``ir.Model`` in place, and returns whether it found its pattern: other networks are quantised without it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from alexnet_export.graph import array_of, bypass, chain_from, constant, sweep
from alexnet_export.model import SIDE

PIXEL_SCALE = np.array(1 / 64, np.float32)
"""Scale of the pixels in the quantised graph; the weights of conv1 contain its inverse. OpenVINO removes a scale of 1, no longer
recognises the layer as quantised, and computes it in float."""


def drop_identity_pool(model: ir.Model) -> bool:
    """Remove pools with a window of one pixel: with images of 224 pixels, the 6 x 6 adaptive pool has no effect."""
    found = [
        node
        for node in model.graph
        if node.op_type in ("AveragePool", "MaxPool")
        and set(node.attributes["kernel_shape"].as_ints()) == {1}
        and set(_ints(node, "strides", [1])) == {1}
        and set(_ints(node, "pads", [0])) == {0}
    ]
    for node in found:
        bypass(node)
    return bool(found)


def fold_normalization(model: ir.Model) -> bool:
    """Fold ``(pixel - mean) * scale`` into conv1, which then reads padded pixels in blocks.

    The scale becomes part of the weights and the mean part of the bias. Zero padding of normalised pixels becomes padding with
    the mean; if the channels have different means, it is their rounded mean, and the answers change at the border.

    With a stride of four, four neighbouring pixels of a row are read as one pixel of 12 channels, and the stride along the
    row becomes one. The memory stays as it is. The weights get the same order, and zeros for the missing columns. This is 9 %
    more arithmetic, but kernels read 12 bytes for each tap instead of 3.
    """
    graph = model.graph
    found = chain_from(graph.inputs[0], "Cast", "Transpose", "Sub", "Mul", "Conv")
    if found is None:
        return False
    cast, transpose, subtract, multiply, conv = found
    mean, scale = (array_of(each.inputs[1]).astype(np.float64).reshape(-1) for each in (subtract, multiply))
    weight = array_of(conv.inputs[1]).astype(np.float64) * scale.reshape(1, -1, 1, 1)
    bias = array_of(conv.inputs[2]) if len(conv.inputs) > 2 else np.zeros(len(weight))
    filters, channels, height, width = weight.shape
    top, left, bottom, right = _ints(conv, "pads", [0] * 4)
    stride, block = _ints(conv, "strides", [1, 1])
    taps = -(-width // block)
    blocks = (SIDE + left + right - width) // block + taps
    right = blocks * block - SIDE - left
    padding = conv.attributes.get("auto_pad")
    if right < 0 or _ints(conv, "group", [1]) != [1] or set(_ints(conv, "dilations", [1])) != {1}:
        return False
    if padding is not None and padding.as_string() != "NOTSET":
        return False
    wide = np.zeros((filters, channels, height, taps * block))
    wide[..., :width] = weight
    wide = wide.reshape(filters, channels, height, taps, block).transpose(0, 4, 1, 2, 3)
    wide = wide.reshape(filters, block * channels, height, taps)
    for node in (multiply, subtract):
        bypass(node)
    pads = constant(graph, "pixel_pads", np.array([0, top, left, 0, 0, bottom, right, 0], np.int64))
    border = constant(graph, "pixel_border", np.array(np.rint(mean.mean()), np.float32))
    pad = ir.node("Pad", [cast.outputs[0], pads, border], name="node_pad_pixels")
    shape = constant(graph, "pixel_blocks", np.array([0, SIDE + top + bottom, blocks, block * channels], np.int64))
    reshape = ir.node("Reshape", [pad.outputs[0], shape], name="node_pixel_blocks")
    for node, name in ((pad, "padded_pixels"), (reshape, "blocks_of_pixels")):
        node.outputs[0].name, node.outputs[0].type = name, cast.outputs[0].type
    graph.insert_before(transpose, [pad, reshape])
    transpose.replace_input_with(0, reshape.outputs[0])
    transpose.outputs[0].shape = None
    name = str(conv.inputs[1].name) if conv.inputs[1] else "conv1"
    conv.resize_inputs(3)
    conv.replace_input_with(1, constant(graph, f"{name}.folded", np.ascontiguousarray(wide, np.float32)))
    folded_bias = bias - (weight * mean.reshape(1, -1, 1, 1)).sum((1, 2, 3))
    conv.replace_input_with(2, constant(graph, f"{name}.folded_bias", folded_bias.astype(np.float32)))
    for attribute, value in (("kernel_shape", [height, taps]), ("strides", [stride, 1]), ("pads", [0] * 4)):
        conv.attributes[attribute] = ir.AttrInt64s(attribute, value)
    sweep(model)
    return True


def read_uint8(model: ir.Model) -> bool:
    """After quantisation: pad and rearrange the pixels as uint8, and let conv1 read them as activations without rounding."""
    graph = model.graph
    found = chain_from(
        graph.inputs[0], "Cast", "QuantizeLinear", "DequantizeLinear", "Pad", "Reshape", "Transpose", "Conv"
    )
    if found is None:
        return False
    cast, quantize, dequantize, pad, reshape, transpose, conv = found
    weight = conv.inputs[1].producer() if conv.inputs[1] else None
    if weight is None or array_of(dequantize.inputs[2]).dtype != np.uint8 or array_of(dequantize.inputs[2]).item():
        return False
    for node in (dequantize, quantize, cast):
        bypass(node)
    border = array_of(pad.inputs[2]).astype(np.uint8)
    pad.replace_input_with(2, constant(graph, "uint8_border", border))
    for node in (pad, reshape):
        node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)  # a new one: copies of a graph share the old
    parameters = [
        constant(graph, "pixel_scale", PIXEL_SCALE),
        constant(graph, "pixel_zero_point", np.array(0, np.uint8)),
    ]
    pixels = ir.node("DequantizeLinear", [reshape.outputs[0], *parameters], name="node_dequantize_pixels")
    pixels.outputs[0].name = "dequantized_pixels"
    graph.insert_after(reshape, pixels)
    transpose.replace_input_with(0, pixels.outputs[0])
    scales = array_of(weight.inputs[1]) / PIXEL_SCALE
    weight.replace_input_with(1, constant(graph, "conv1_scale", scales))
    for node in (pad, reshape, transpose):
        node.outputs[0].shape = None  # of the float graph, possibly of one batch size
    sweep(model)
    return True


def make_signed(model: ir.Model) -> bool:
    """After quantisation: int8 activations with the same range. TensorRT's ONNX parser only replaces the type of uint8."""
    graph = model.graph
    unsigned = [
        node
        for node in graph
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and array_of(node.inputs[2]).dtype == np.uint8
    ]
    for node in unsigned:
        scale = constant(graph, f"{node.name}.scale", (array_of(node.inputs[1]) * (255 / 127)).astype(np.float32))
        node.replace_input_with(1, scale)
        node.replace_input_with(2, constant(graph, f"{node.name}.zero_point", np.array(0, np.int8)))
        if node.op_type == "QuantizeLinear":
            node.outputs[0].type = ir.TensorType(ir.DataType.INT8)
    sweep(model)
    return bool(unsigned)


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return [attribute.as_int()] if attribute.type == ir.AttributeType.INT else list(attribute.as_ints())
