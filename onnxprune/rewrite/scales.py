"""The scale of attention's scores, where optimisers look for it: one constant behind the product of queries and keys.

PyTorch's `scaled_dot_product_attention` is exported with the root of the scale on either side, which ONNX Runtime's
transformer optimiser recognises only while it is computed from a shape; folded, the same attention is left unfused.
And the operator it fuses to takes one over the root of the heads' width for granted: where that is not the scale (the
width was cut), what is left of it goes into the weights that make the queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxprune.graph.quantised import Quantised
from onnxprune.graph.values import constant, dims
from onnxprune.rewrite.weights import replace

_BEFORE_SOFTMAX = ("Add", "Mul", "Div", "Where", "Softmax")
_FAR = 4
"""Nodes between the scores and their softmax: a scale, a mask, a bias, a softmax."""


def unify(model: ir.Model) -> None:
    """Write every attention's scale as one constant behind the product, and as one that optimisers expect; in place."""
    for product in [n for n in model.graph if n.op_type == "MatMul" and n.domain == ""]:
        # In half precision the factors stay where they are: without them the product may overflow.
        if product.outputs[0].dtype == ir.DataType.FLOAT and _scores(product):
            _gather(model, product)
            _expected(model, product)


def _scores(product: ir.Node) -> bool:
    """Whether a product of two activations goes into a softmax."""
    if any(v is None or v.const_value is not None for v in product.inputs):
        return False
    node = product
    for _ in range(_FAR):
        following = _only_reader(node.outputs[0])
        if following is None or following.op_type not in _BEFORE_SOFTMAX:
            return False
        if following.op_type == "Softmax":
            return True
        node = following
    return False


def _gather(model: ir.Model, product: ir.Node) -> None:
    """Move constant factors of the operands behind the product."""
    found = [(i, scaled) for i, v in enumerate(product.inputs) if (scaled := _scaled(v)) is not None]
    if not found:
        return
    for index, (node, _) in found:
        product.replace_input_with(index, node.inputs[1 - list(node.inputs).index(_number_of(node))])
        model.graph.remove(node, safe=True)
    factor = math.prod(number for _, (_, number) in found)
    after = _following(product)
    if after is not None:
        _write(model, after, factor * _number(after))
        return
    scores = product.outputs[0]
    readers = list(scores.uses())
    number = constant(model, np.array(factor, dtype=np.float32), f"{product.name}_scale")
    made = ir.node("Mul", [scores, number], name=f"{product.name}_scaled_scores", version=product.version)
    result = made.outputs[0]
    result.name, result.type, result.shape = f"{made.name}_output", scores.type, scores.shape
    product.append(made)
    for reader, index in readers:
        reader.replace_input_with(index, result)


def _expected(model: ir.Model, product: ir.Node) -> None:
    """Make the constant one over the root of the width, where the projection of the queries can take the rest."""
    after, width = _following(product), (dims(product.inputs[0]) or (None,))[-1]
    if after is None or not isinstance(width, int):
        return
    usual = 1 / math.sqrt(width)
    rest = _number(after) / usual
    if math.isclose(rest, 1, rel_tol=1e-5):
        return
    weights = list(_projection(product.inputs[0]))
    if not weights:
        return
    for value in weights:
        assert value.const_value is not None
        if isinstance(value.const_value, Quantised):
            value.const_value = value.const_value.times(rest)
        else:
            replace(value, value.const_value.numpy() * rest)
    _write(model, after, usual)


def _projection(value: ir.Value | None) -> Iterator[ir.Value]:
    """Weight and bias that make a value: a product, a bias, and then only changes of its shape; none if otherwise."""
    found: list[ir.Value] = []
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        constants = [v for v in node.inputs if v is not None and v.const_value is not None] if node is not None else []
        if node is None or any(len(v.uses()) > 1 for v in constants if node.op_type in ("Add", "MatMul")):
            return
        if node.op_type in ("Transpose", "Reshape"):
            value = node.inputs[0]
        elif node.op_type == "Add" and len(constants) == 1 and not found:
            found += constants
            value = next(v for v in node.inputs if v is not constants[0])
        elif node.op_type == "MatMul" and node.inputs[1] in constants:
            yield from (*found, *constants)
            return
        else:
            return


def _scaled(value: ir.Value | None) -> tuple[ir.Node, float] | None:
    """(the node that scales, by what), where a value is another times a constant number and read once."""
    node = value.producer() if value is not None and _only_reader(value) is not None else None
    return (node, _number(node)) if node is not None and _scales(node) else None


def _following(product: ir.Node) -> ir.Node | None:
    """The Mul or Div by one constant number that alone reads a product."""
    after = _only_reader(product.outputs[0])
    return after if after is not None and _scales(after) else None


def _scales(node: ir.Node) -> bool:
    """Whether a node is a Mul or Div by one constant number."""
    number = _number_of(node) if node.op_type in ("Mul", "Div") and node.domain == "" else None
    return number is not None and (node.op_type == "Mul" or number is node.inputs[1])


def _number_of(node: ir.Node) -> ir.Value | None:
    return next(
        (v for v in node.inputs if v is not None and v.const_value is not None and v.const_value.size == 1), None
    )


def _number(node: ir.Node) -> float:
    """The factor that a Mul or Div by a number is."""
    held = _number_of(node)
    assert held is not None and held.const_value is not None
    number = float(held.const_value.numpy().reshape(()))
    return number if node.op_type == "Mul" else 1 / number


def _write(model: ir.Model, node: ir.Node, factor: float) -> None:
    held = _number_of(node)
    assert held is not None and held.const_value is not None
    number = np.full(held.const_value.shape.numpy(), factor if node.op_type == "Mul" else 1 / factor, dtype=np.float32)
    node.replace_input_with(list(node.inputs).index(held), constant(model, number, f"{held.name}_scale"))


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0][0] if len(uses) == 1 and not value.is_graph_output() else None
