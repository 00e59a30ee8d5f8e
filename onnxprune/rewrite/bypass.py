"""Leaving out whole residual branches: `y = x + f(x)` becomes `y = x`, or `x` plus what f leaves behind.

That is a constant, and where the plan has one a linear map of x.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.errors import UsageError
from onnxprune.graph import ops
from onnxprune.graph.axes import Mask, atoms_of, flat_order
from onnxprune.graph.plan import Branch, Plan, Structure
from onnxprune.graph.values import constant, hand_over


def branches(model: ir.Model, structure: Structure, plan: Plan) -> None:
    """Take every dropped branch out; its nodes go with the clean-up."""
    nodes = {n.name: n for n in model.graph}
    masks, orders = plan.masks(structure), plan.orders(structure)
    ending = Counter(structure.branch(name).add for name in plan.drop)
    for name in plan.drop:
        branch = structure.branch(name)
        if name not in plan.rests:
            raise UsageError(f"{name}: the plan does not say what the branch leaves behind; complete it first")
        add = nodes[branch.add]
        rest = np.asarray(plan.rests[name])
        layouts = structure.layouts[branch.value]
        for axis, layout in enumerate(layouts[len(layouts) - rest.ndim :]):
            if rest.shape[axis] > 1 and atoms_of(layout) & (masks.keys() | orders.keys()):
                rest = rest.take(flat_order(layout, masks, orders, structure.sizes), axis)
        if add.domain == "com.microsoft":
            add = _parted(add)
        skip, result = add.inputs[1 - branch.operand], add.outputs[0]
        assert skip is not None and result.dtype is not None
        if name in plan.maps:
            matrix = _cut(np.asarray(plan.maps[name]), structure, branch, masks, orders)
            rest = rest.reshape(-1) + matrix[0]
            weight = constant(model, matrix[1:].astype(result.dtype.numpy()), f"{branch.value}_map")
            product = ir.node("MatMul", [skip, weight], name=f"{branch.add}_map", version=add.version)
            product.outputs[0].name = f"{branch.value}_mapped"
            left = constant(model, rest.astype(result.dtype.numpy()), f"{branch.value}_rest")
            shifted = ir.node("Add", [product.outputs[0], left], name=f"{branch.add}_rest", version=add.version)
            shifted.outputs[0].name = f"{branch.value}_shifted"
            for value in (product.outputs[0], shifted.outputs[0]):
                value.shape, value.type = skip.shape, result.type
            add.prepend([product, shifted])
            add.replace_input_with(branch.operand, shifted.outputs[0])
        elif np.any(rest) or result.is_graph_output() or ending[branch.add] > 1:
            # One number per channel at the end is a plain bias, which every runtime fuses.
            if all(size == 1 for size in rest.shape[:-1]):
                rest = rest.reshape(-1)
            left = constant(model, rest.astype(result.dtype.numpy()), f"{branch.value}_rest")
            add.replace_input_with(branch.operand, left)
        else:
            result.replace_all_uses_with(skip)


def _cut(
    matrix: np.ndarray,
    structure: Structure,
    branch: Branch,
    masks: Mapping[int, Mask],
    orders: Mapping[int, tuple[int, ...]],
) -> np.ndarray:
    """A map [1 + d, d] with the rows and columns of the stream's channels that stay, in order."""
    rows, columns = (
        flat_order(structure.layouts[name][-1], masks, orders, structure.sizes) for name in (branch.skip, branch.value)
    )
    return np.asarray(matrix[np.concatenate([[0], 1 + rows])][:, columns])


def _parted(norm: ir.Node) -> ir.Node:
    """Part a fused sum and norm into Add nodes and the norm alone; returns the first Add.

    The fused operators take no operand that is one vector for all tokens, which is what a branch leaves behind.
    """
    simplified = "Simplified" in norm.op_type
    found = list(norm.inputs) + [None] * (5 - len(norm.inputs))
    gamma, beta, bias = (found[2], None, found[3]) if simplified else found[2:5]
    outputs = list(norm.outputs) + [None] * (4 - len(norm.outputs))
    first = _node(norm, "Add", found[:2], "added")
    last = first if bias is None else _node(norm, "Add", [first.outputs[0], bias], "biased")
    operands = [last.outputs[0], gamma] if beta is None else [last.outputs[0], gamma, beta]
    kept = {"axis": -1, "epsilon": ops.attribute(norm, "epsilon", 1e-5 if simplified else 1e-12)}
    plain = _node(norm, "SimplifiedLayerNormalization" if simplified else "LayerNormalization", operands, "norm", kept)
    for old, new in ((outputs[0], plain.outputs[0]), (outputs[3], last.outputs[0])):
        if old is not None:
            hand_over(old, new)
    assert norm.graph is not None
    norm.graph.remove(norm, safe=True)
    return first


def _node(
    norm: ir.Node, op_type: str, inputs: list[ir.Value | None], role: str, attributes: Mapping[str, Any] | None = None
) -> ir.Node:
    # The graph's own opset may be older than the standard's LayerNormalization; ONNX Runtime has it in every one.
    assert norm.graph is not None
    version = norm.graph.opset_imports.get("")
    made = ir.node(op_type, inputs, dict(attributes or {}), name=f"{norm.name}_{role}", version=version)
    made.outputs[0].name = f"{made.name}_output"
    made.outputs[0].shape, made.outputs[0].type = norm.outputs[0].shape, norm.outputs[0].type
    norm.prepend(made)
    return made
