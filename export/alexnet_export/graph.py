"""Basic operations on ONNX graphs, on top of onnx_ir: files, copies, constants, chains of nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from alexnet_client.errors import BadInput
from alexnet_client.files import replace_file

Array = npt.NDArray[Any]
LAYERS = ("Conv", "Gemm")
"""The operators with weights."""


def read_model(path: Path) -> ir.Model:
    """Read an ONNX file.

    Raises:
        BadInput: the file is missing or invalid, or its weights are in another file that is missing.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        return ir.from_proto(onnx.load(path))
    except Exception as error:  # protobuf, onnx and the file system have no common base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"{path}: not a complete ONNX file ({reason})") from error


def to_bytes(model: ir.Model) -> bytes:
    """Content of the ONNX file of a model."""
    serialized: bytes = ir.to_proto(model).SerializeToString()
    return serialized


def write_model(model: ir.Model, path: Path) -> None:
    """Check the model and write it to one file with all weights, atomically. Raises ``BadInput``."""
    content = to_bytes(model)
    onnx.checker.check_model(content, full_check=True)
    with replace_file(path) as temporary:
        temporary.write_bytes(content)


def copy(model: ir.Model) -> ir.Model:
    """A copy of the graph that can be changed independently; the weights are shared."""
    return ir.Model(
        model.graph.clone(),
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        metadata_props=dict(model.metadata_props),
    )


def constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Add an initializer."""
    kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def array_of(value: ir.Value | None) -> Array:
    """Content of an initializer."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def layers(graph: ir.Graph) -> list[ir.Node]:
    """Nodes with weights, in order of execution."""
    return [node for node in graph if node.op_type in LAYERS]


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The node that reads a value; None unless there is exactly one."""
    consumers = value.consumers()
    return consumers[0] if len(consumers) == 1 and not value.is_graph_output() else None


def chain_from(value: ir.Value, *operators: str) -> list[ir.Node] | None:
    """The nodes that follow a value, if they are exactly these operators and no other node reads between them."""
    found: list[ir.Node] = []
    for operator in operators:
        node = only_consumer(value)
        if node is None or node.op_type != operator:
            return None
        found.append(node)
        value = node.outputs[0]
    return found


def bypass(node: ir.Node) -> None:
    """Remove a node and connect its users to its input."""
    source = node.inputs[0]
    assert source is not None
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    node.outputs[0].replace_all_uses_with(source)
    graph.remove(node, safe=True)


def sweep(model: ir.Model) -> None:
    """Remove unused nodes and initializers."""
    RemoveUnusedNodesPass()(model)
