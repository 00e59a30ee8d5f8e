"""New nodes in front of an old one, and the old one's place taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.values import constant, dims


class Builder:
    """Makes nodes in front of `node`, with shapes and types inferred where one operator tells them.

    Attributes:
        model: the graph that is changed.
        node: where the new nodes go.
    """

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.model, self.node = model, node
        self._made = 0

    def op(self, kind: str, *inputs: ir.Value | None, dtype: ir.DataType | None = None, **attributes: Any) -> ir.Value:
        """One more node of the default domain; its result has `dtype`, or its first input's."""
        self._made += 1
        name = f"{self.node.name}/{kind}_{self._made}"
        new = ir.node(kind, list(inputs), attributes, name=name)
        new.version = self.model.opset_imports.get("", 18)
        result = new.outputs[0]
        result.name = f"{name}_output"
        first = inputs[0]
        result.type = ir.TensorType(dtype) if dtype is not None else None if first is None else first.type
        self.node.prepend(new)
        return result

    def number(self, value: float | list[int], like: ir.Value | None = None) -> ir.Value:
        """A constant: int64 for a list (axes, bounds); else a scalar of `like`'s type, float32 by default."""
        if isinstance(value, list):
            return constant(self.model, np.array(value, np.int64), f"{self.node.name}_numbers")
        dtype = like.dtype.numpy() if like is not None and like.dtype is not None else np.dtype(np.float32)
        return constant(self.model, np.array(value, dtype), f"{self.node.name}_number")

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return value if value.dtype == dtype else self.op("Cast", value, dtype=dtype, to=int(dtype))

    def reduce_mean(self, value: ir.Value, axes: list[int], *, keep: bool = True) -> ir.Value:
        """ReduceMean in the form of the model's opset: axes are an operand from 18 on."""
        if self.model.opset_imports.get("", 18) >= 18:
            return self.op("ReduceMean", value, self.number(axes), keepdims=int(keep))
        return self.op("ReduceMean", value, axes=axes, keepdims=int(keep))

    def unsqueeze(self, value: ir.Value, axes: list[int]) -> ir.Value:
        if self.model.opset_imports.get("", 18) >= 13:
            return self.op("Unsqueeze", value, self.number(axes))
        return self.op("Unsqueeze", value, axes=axes)

    def squeeze(self, value: ir.Value, axes: list[int]) -> ir.Value:
        if self.model.opset_imports.get("", 18) >= 13:
            return self.op("Squeeze", value, self.number(axes))
        return self.op("Squeeze", value, axes=axes)

    def take_over(self, value: ir.Value) -> None:
        """`value` stands wherever the node's first result stood; the node goes."""
        old = self.node.outputs[0]
        graph = self.node.graph
        assert graph is not None
        if value.shape is None and (found := dims(old)) is not None:
            value.shape = ir.Shape(found)
        if old.is_graph_output():
            if value.is_graph_output() or value.is_graph_input() or value.const_value is not None:
                value = self.op("Identity", value)
            outputs = graph.outputs
            outputs[outputs.index(old)] = value
            old.name, value.name, value.shape, value.type = None, old.name, old.shape, old.type
        old.replace_all_uses_with(value)
        graph.remove(self.node, safe=True)


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """A constant's numbers; None for what is computed."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def scalar_of(value: ir.Value | None) -> float | None:
    """The number of a constant that holds one."""
    found = array_of(value)
    return None if found is None or found.size != 1 else float(found.reshape(()))


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value, or its default."""
    held = node.attributes.get(name)
    return default if held is None else held.value
