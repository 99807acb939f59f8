"""From a float graph to one whose layers compute in 8-bit integers: explicit QuantizeLinear and DequantizeLinear nodes.

Two schemes: for ONNX Runtime's CPU kernels uint8 activations times int8 weights; for TensorRT int8 times int8, both
symmetric. Weights have a scale for each filter. The pixels are activations with the scale 1 already.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from alexnet_client.errors import BadInput
from alexnet_export.graph import Array, array_of, bypass, constant, copy, layers, only_consumer, sweep

INTEGER_OPERATORS = ("QLinearConv", "QGemm")
FLOAT_OPERATORS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul")
_KEEPS_RANGE = ("MaxPool", "AveragePool", "Reshape")


@dataclass(frozen=True)
class Scheme:
    """How numbers become integers.

    Attributes:
        unsigned: activations are uint8 from 0, so that the ReLU is done by the clipping; else int8, symmetric.
        weight_limit: the largest weight; 64 where the CPU adds pairs of products in 16 bits and would overflow.
    """

    unsigned: bool
    weight_limit: int

    def activation(self, limit: float) -> tuple[np.float32, Array]:
        """Scale and zero point of an activation from 0 to ``limit``."""
        if self.unsigned:
            return np.float32(limit / 255), np.array(0, np.uint8)
        return np.float32(limit / 127), np.array(0, np.int8)

    def pixel(self, zero: int) -> tuple[np.float32, Array]:
        """Scale and zero point of ``pixel - zero``: exact for uint8, and for int8 where ``zero`` is 128."""
        if self.unsigned:
            return np.float32(1), np.array(zero, np.uint8)
        return np.float32(max(zero, 255 - zero) / (128 if zero == 128 else 127)), np.array(0, np.int8)


CPU = Scheme(unsigned=True, weight_limit=127)
CPU_WITHOUT_VNNI = Scheme(unsigned=True, weight_limit=64)
TENSORRT = Scheme(unsigned=False, weight_limit=127)


@dataclass(frozen=True)
class IntegerWeights:
    """int8 weights and a scale for each of ``axis``; float32 bias."""

    values: Array
    scales: Array
    axis: int
    bias: Array


def quantize_weights(model: ir.Model, scheme: Scheme) -> dict[str, IntegerWeights]:
    """The weights of every layer by its node's name. The costly part, done once for many tries."""
    found = {}
    for node in layers(model.graph):
        weight = array_of(node.inputs[1])
        transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
        axis = 1 if node.op_type == "Gemm" and not transposed else 0
        others = tuple(each for each in range(weight.ndim) if each != axis)
        largest = np.abs(weight).max(axis=others)
        scales = (np.where(largest > 0, largest, 1) / scheme.weight_limit).astype(np.float32)
        shape = [-1 if each == axis else 1 for each in range(weight.ndim)]
        values = np.rint(weight / scales.reshape(shape)).astype(np.int8)
        bias = array_of(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(len(scales), np.float32)
        found[str(node.name)] = IntegerWeights(values, scales, axis, bias)
    return found


def quantize(
    model: ir.Model,
    weights: Mapping[str, IntegerWeights],
    limits: Mapping[str, float],
    scheme: Scheme,
    *,
    keep_float: Collection[str] = (),
) -> ir.Model:
    """Quantise every layer but those of ``keep_float``.

    Args:
        model: the float model after ``rewrites.FLOAT``; left as it is.
        weights: of ``quantize_weights``.
        limits: the largest value of each activation, see ``calibrate``.
        scheme: for whose kernels.
        keep_float: names of layers (nodes) that stay in float32.

    Raises:
        BadInput: a layer reads something whose range is not known.

    Returns:
        A new model. Its logits are float32, straight from the last layer's 32-bit sums.
    """
    result = copy(model)
    graph = result.graph
    chosen = [node for node in layers(graph) if node.name not in keep_float]
    _drop_border(graph)
    marked: set[str] = set()
    for node in chosen:
        assert node.inputs[0] is not None
        marked |= set(_same_range(node.inputs[0]))
        relu = only_consumer(node.outputs[0])
        if relu is not None and relu.op_type == "Relu":
            marked.add(str(relu.outputs[0].name))
            if scheme.unsigned:
                name = str(relu.outputs[0].name)
                bypass(relu)
                node.outputs[0].name = name  # the limits go by the ReLU's name
    scales = _quantize_activations(graph, marked, limits, scheme)
    for node in chosen:
        _quantize_layer(graph, node, weights[str(node.name)], scales, scheme)
    for node in layers(graph):
        if node not in chosen:
            _shield(graph, node)
    sweep(result)
    return result


def _drop_border(graph: ir.Graph) -> None:
    """Leave out the border map of imported weights: integers have no room for it, and the accuracy gate consents or not."""
    for node in [node for node in graph if node.name == "node_conv1_border"]:
        bypass(node)


def _shield(graph: ir.Graph, node: ir.Node) -> None:
    """Keep a layer in float that ONNX Runtime would quantise by itself, with one scale for all its filters.

    Its WeightBiasQuantization takes any layer between DequantizeLinear and QuantizeLinear. A ReLU in between, which does
    nothing to values that are not negative, breaks the pattern.
    """
    source = node.inputs[0]
    producer = source.producer() if source else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        shield = ir.node("Relu", [source], name=f"{node.name}_stays_float")
        shield.outputs[0].name = f"{node.name}_float_input"
        graph.insert_before(node, shield)
        node.replace_input_with(0, shield.outputs[0])


def _same_range(value: ir.Value) -> list[str]:
    """The names of a value and of those before it that pools and reshapes made it from."""
    names = [str(value.name)]
    node = value.producer()
    while node is not None and node.op_type in _KEEPS_RANGE:
        assert node.inputs[0] is not None
        names.append(str(node.inputs[0].name))
        node = node.inputs[0].producer()
    return names


def _quantize_activations(
    graph: ir.Graph, marked: set[str], limits: Mapping[str, float], scheme: Scheme
) -> dict[str, np.float32]:
    """Put a pair of nodes behind each marked value; give the scale of each dequantised value by its name."""
    parameters: dict[str, tuple[np.float32, Array]] = {}
    scales: dict[str, np.float32] = {}
    for node in list(graph):
        value = node.outputs[0]
        name = str(value.name)
        source = node.inputs[0] if node.inputs else None
        if node.op_type in _KEEPS_RANGE and source is not None and str(source.name) in scales:
            before = source.producer()
            assert before is not None
            parameters[name] = parameters[str(before.inputs[0].producer().inputs[0].name)]  # type: ignore[union-attr]
        elif name not in marked:
            continue
        elif node.op_type == "Sub":  # the pixels, see rewrites.fold_normalization
            parameters[name] = scheme.pixel(int(array_of(node.inputs[1]).item()))
        elif name in limits:
            parameters[name] = scheme.activation(limits[name])
        else:
            raise BadInput(
                f"int8: {name} ({node.op_type}) is neither the pixels nor behind a ReLU, its range is not known; "
                "teach calibrate.py and quantize.py this graph, or publish with PRECISION=fp32"
            )
        scale, zero = parameters[name]
        pair = [constant(graph, f"{name}_scale", np.asarray(scale)), constant(graph, f"{name}_zero_point", zero)]
        quantized = ir.node("QuantizeLinear", [value, *pair], name=f"{name}_quantize")
        quantized.outputs[0].name = f"{name}_quantized"
        dequantized = ir.node("DequantizeLinear", [quantized.outputs[0], *pair], name=f"{name}_dequantize")
        dequantized.outputs[0].name = f"{name}_dequantized"
        for user, place in list(value.uses()):
            if user is not quantized:
                user.replace_input_with(place, dequantized.outputs[0])
        graph.insert_after(node, [quantized, dequantized])
        scales[str(dequantized.outputs[0].name)] = scale
    return scales


def _quantize_layer(
    graph: ir.Graph, node: ir.Node, weights: IntegerWeights, scales: Mapping[str, np.float32], scheme: Scheme
) -> None:
    assert node.inputs[0] is not None
    name = str(node.name)
    # The bias is int32 in units of activation times weight: a filter with hardly any weight must not push it over.
    smallest = np.abs(weights.bias) / (scales[str(node.inputs[0].name)] * 2**30)
    weight_scales = np.maximum(weights.scales, smallest).astype(np.float32)
    values = weights.values
    for channel in np.flatnonzero(weight_scales > weights.scales):
        index = (slice(None),) * weights.axis + (channel,)
        values = values.copy() if values is weights.values else values
        values[index] = np.rint(values[index] * (weights.scales[channel] / weight_scales[channel]))
    _dequantized_input(graph, node, 1, f"{name}_weight", values, weight_scales, weights.axis)
    if scheme.unsigned:  # TensorRT wants the bias in float
        unit = (weight_scales * scales[str(node.inputs[0].name)]).astype(np.float32)
        integers = np.rint(weights.bias / unit).astype(np.int32)
        node.resize_inputs(3)
        _dequantized_input(graph, node, 2, f"{name}_bias", integers, unit, 0)


def _dequantized_input(
    graph: ir.Graph, node: ir.Node, place: int, name: str, values: Array, scales: Array, axis: int
) -> None:
    inputs = [
        constant(graph, f"{name}_quantized", values),
        constant(graph, f"{name}_scale", scales),
        constant(graph, f"{name}_zero_point", np.zeros(scales.shape, values.dtype)),
    ]
    dequantize = ir.node("DequantizeLinear", inputs, {"axis": axis}, name=f"{name}_dequantize")
    dequantize.outputs[0].name = f"{name}_dequantized"
    graph.insert_before(node, dequantize)
    node.replace_input_with(place, dequantize.outputs[0])
