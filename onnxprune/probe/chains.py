"""Chains of nodes that are done in one call: a product with its bias, a GELU that an exporter wrote out.

What is between their nodes is not written to memory and read again, which for a GELU takes as long as a third of the
product before it. Where a hook acts inside of a chain, or what is in there is asked for, its nodes are done one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxprune.graph import large_products
from onnxprune.graph.quantised_operators import noted

NEAR = 1e-6
"""How far a constant may be from the number that it stands for, relative to that."""


@dataclass(frozen=True, eq=False)
class Chain:
    """Nodes of which nobody else reads what all but the last give.

    Attributes:
        nodes: in an order in which they can run.
        operands: what the call takes: where each is read, as (node, index of its input).
        call: what they come to.
        numbers: initializers whose numbers it rests on.
    """

    nodes: tuple[ir.Node, ...]
    operands: tuple[tuple[ir.Node, int], ...]
    call: Callable[..., Any]
    numbers: tuple[str, ...] = ()


def chains(graph: Iterable[ir.Node]) -> Iterator[Chain]:
    """The chains of a graph; no node is in two."""
    for node in graph:
        if node.domain not in ("", "ai.onnx"):
            continue
        found = _gelu(node) if node.op_type == "Erf" else _linear(node) if node.op_type == "MatMul" else None
        if found is not None:
            yield found


def _linear(node: ir.Node) -> Chain | None:
    """A product with a weight [k, n], and a bias [n] added to it."""
    weight, add = node.inputs[1], _reader(node, "Add")
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2 or add is None:
        return None
    place = _other(add, node.outputs[0])
    bias = add.inputs[place]
    if bias is None or bias.const_value is None or noted(node) is not None or noted(add) is not None:
        return None
    if tuple(bias.const_value.shape) != (weight.const_value.shape[1],):
        return None
    return Chain((node, add), ((node, 0), (node, 1), (add, place)), large_products.linear)


def _gelu(erf: ir.Node) -> Chain | None:
    """x · (1 + erf(x / √2)) / 2, in whatever order it is multiplied."""
    first, add = _producer(erf.inputs[0]), _reader(erf, "Add")
    if first is None or add is None or first.op_type not in ("Div", "Mul") or _reader(first, "Erf") is not erf:
        return None
    scale = _number(first, 1, math.sqrt(2.0)) if first.op_type == "Div" else _number(first, None, math.sqrt(0.5))
    one, times = _number(add, None, 1.0), _reader(add, "Mul")
    if scale is None or one is None or times is None:
        return None
    x = first.inputs[1 - scale]
    other = times.inputs[_other(times, add.outputs[0])]
    half, last = _number(times, None, 0.5), _reader(times, "Mul")
    before = _producer(other)
    used = [(first, scale), (add, one)]
    if other is x and last is not None and (place := _number(last, None, 0.5)) is not None:
        nodes, used = (first, erf, add, times, last), [*used, (last, place)]
    elif half is not None and last is not None and last.inputs[_other(last, times.outputs[0])] is x:
        nodes, used = (first, erf, add, times, last), [*used, (times, half)]
    elif (
        before is not None and before.op_type == "Mul" and _reader(before, "Mul") is times
        and (place := _number(before, None, 0.5)) is not None and before.inputs[1 - place] is x
    ):  # fmt: skip
        nodes, used = (first, erf, add, before, times), [*used, (before, place)]
    else:
        return None
    if any(noted(node) is not None for node in nodes):
        return None
    numbers = [value.name or "" for node, i in used if (value := node.inputs[i]) is not None]
    return Chain(nodes, ((first, 1 - scale),), _torch_gelu, tuple(numbers))


def _torch_gelu(x: Any) -> Any:
    import torch

    return torch.nn.functional.gelu(x)


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _reader(node: ir.Node, op_type: str) -> ir.Node | None:
    """The node of a type that alone reads what a node gives, once."""
    (value, *more), uses = node.outputs, tuple(node.outputs[0].uses())
    if more or len(uses) != 1 or value.is_graph_output():
        return None
    reader = uses[0].node
    return reader if reader.op_type == op_type and reader.domain in ("", "ai.onnx") else None


def _other(node: ir.Node, value: ir.Value) -> int:
    """Which of two operands is not that one."""
    return 1 if node.inputs[0] is value else 0


def _number(node: ir.Node, at: int | None, wanted: float) -> int | None:
    """Which operand of a node is a certain number; `at`: which one it must be, None for either."""
    for i, value in enumerate(node.inputs[:2]):
        held = value.const_value if value is not None and at in (None, i) else None
        if held is not None and held.size == 1 and abs(float(held.numpy().reshape(-1)[0]) - wanted) <= NEAR * wanted:
            return i
    return None
