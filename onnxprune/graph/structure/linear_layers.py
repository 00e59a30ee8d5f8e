"""Every matrix of a graph that an activation is multiplied with, as something that can be refit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph.flow import Flow
from onnxprune.graph.plan import Branch, Structure
from onnxprune.graph.structure.branches import reader_of
from onnxprune.graph.structure.products import product_of
from onnxprune.graph.structure.reading_matrices import Matrix


@dataclass(frozen=True)
class Linear:
    """One matrix product y = xW.

    Attributes:
        source: name of the value it reads.
        branch: the residual branch it closes (its output, plus constants, is what is added to the stream), if any.
        inside: the branch it belongs to, if any.
    """

    matrix: Matrix
    source: str
    branch: Branch | None
    inside: str | None

    @property
    def node(self) -> str:
        return self.matrix.reader.node

    @property
    def weight(self) -> str:
        return self.matrix.reader.weight or ""


def find_linears(
    graph: ir.Graph, structure: Structure, widest: int = 8192, *, conditional: bool = False
) -> list[Linear]:
    """MatMul and Gemm with a weight of their own, in graph order.

    Vocabularies (outputs above `widest`) are left out.

    Args:
        conditional: with those that only one side of a choice does: not every row shows what they are fed.
    """
    closes = {b.reader.node: b for b in structure.branches if b.reader is not None and _adds_only(graph, b)}
    inside = {n: b.id for b in structure.branches for n in b.nodes}
    uses: dict[str, int] = {}
    for node in graph:
        for value in node.inputs:
            if value is not None and value.const_value is not None:
                uses[value.name or ""] = uses.get(value.name or "", 0) + 1
    found, flow = [], Flow(graph)
    apart = {n for n in flow.sides if not conditional or n in flow.home}
    for node in graph:
        if node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2 or node in apart:
            continue
        moving = [i for i in (0, 1) if (v := node.inputs[i]) is not None and v.const_value is None]
        reader = reader_of(node, moving[0]) if len(moving) == 1 else None
        if reader is None or reader.weight is None or uses[reader.weight] > 1 or reader.input != 0:
            continue
        tensor = graph.initializers[reader.weight].const_value
        if tensor is None or len(tensor.shape) != 2 or tensor.shape.numpy()[1 - reader.weight_axis] > widest:
            continue
        rows = tensor.shape.numpy()[reader.weight_axis]
        product = product_of(node, reader)
        if product is None:
            continue
        matrix = Matrix(reader, node, np.full(rows, -1), np.full(rows, -1), result_of(node).name or "", product)
        source = node.inputs[0]
        assert source is not None
        found.append(Linear(matrix, source.name or "", closes.get(node.name or ""), inside.get(node.name or "")))
    return found


def result_of(node: ir.Node) -> ir.Value:
    """What a product gives to those who read it: where it is quantised, what it is afterwards.

    A bias lies behind that, but for a Gemm's own; so does an intercept that is to be added to it.
    """
    value = node.outputs[0]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return value
    for op_type in ("QuantizeLinear", "DequantizeLinear"):
        uses = list(value.uses())
        if len(uses) != 1 or uses[0][0].op_type != op_type or uses[0][1] != 0 or value.is_graph_output():
            return node.outputs[0]
        value = uses[0][0].outputs[0]
    return value


def _adds_only(graph: ir.Graph, branch: Branch) -> bool:
    """Whether only constants are added between a branch's last product and its end: no scale, no normalisation."""
    assert branch.reader is not None
    names = set(branch.nodes)
    nodes: Mapping[str, ir.Node] = {n.name or "": n for n in graph if n.name in names}
    value = nodes[branch.reader.node].outputs[0]
    while value.name != branch.value:
        users: Sequence[tuple[ir.Node, int]] = list(value.uses())
        if len(users) != 1 or users[0][0].op_type not in (
            "Add",
            "Reshape",
            "Identity",
            "Dropout",
            "Cast",
            "QuantizeLinear",
            "DequantizeLinear",
        ):
            return False
        value = users[0][0].outputs[0]
    return True
