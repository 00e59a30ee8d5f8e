"""Quantised weights put into a graph as a file has them: integers, scales, and the nodes that make numbers of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.quantised import Form, Parts, Quantised


class Integers:
    """Puts integers in the place of their numbers, in one graph."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.version = model.opset_imports.get("", 1)
        self._taken = {v.name for n in model.graph.all_nodes() for v in n.outputs}
        self._taken |= {v.name for v in model.graph.inputs}
        self._taken |= {n for n, v in model.graph.initializers.items() if not isinstance(v.const_value, Quantised)}
        self._nodes = {n.name for n in model.graph.all_nodes()}
        self._held: dict[str, ir.Value] = {}
        self._made: list[ir.Node] = []

    def _parts(
        self, tensor: Quantised, name: str, shape: Sequence[int] | None = None
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """(codes, scale, zero point) of a weight; scales in a shape of their own, -1 where they are several."""
        form, parts = tensor.form, tensor.parts
        codes = self._tensor(parts.codes, form.names.codes or f"{name}_codes")
        scales = _ranked(parts.scale, form.ranks[0])
        if shape is not None:
            scales = scales.reshape(shape if scales.size > 1 else [1] * len(shape))
        scale = self._constant(scales, form.names.scale or f"{name}_scale")
        zero = None if parts.zero is None else self._zero(parts, form, form.names.zero or f"{name}_zero_point")
        return codes, scale, zero

    def _title(self, title: str, node: ir.Node | None = None) -> str:
        """A node's name that no other has but the one it takes the place of."""
        unique, count = title, 0
        while unique in self._nodes and (node is None or unique != node.name):
            count += 1
            unique = f"{title}_{count}"
        self._nodes.add(unique)
        return unique

    def _free(self, name: str) -> str:
        unique, count = name, 0
        while unique in self._taken:
            count += 1
            unique = f"{name}_{count}"
        self._taken.add(unique)
        return unique

    def _read(self, value: ir.Value, tensor: Quantised) -> None:
        """The nodes that compute a quantised weight, in its initializer's place."""
        name, value.name = value.name or "", None
        plain = tensor.perm == tuple(range(len(tensor.perm)))
        result = self._numbers(tensor, name if plain else f"{name}_stored")
        if not plain:
            result = self._node(
                "Transpose", [result], name, f"{name}_turned", {"perm": list(tensor.perm)}, tensor.dtype
            )
        result.shape, result.type = ir.Shape(tensor.shape), ir.TensorType(tensor.dtype)
        value.replace_all_uses_with(result)

    def _numbers(self, tensor: Quantised, name: str) -> ir.Value:
        form, parts = tensor.form, tensor.parts
        names, node = form.names, form.names.node or f"{name}_dequantize"
        zero = parts.zero
        if parts.half and (parts.scale == 1).all():
            codes = self._tensor(parts.codes, names.codes or f"{name}_codes")
            return self._node("Cast", [codes], name, node, {"to": int(tensor.dtype)}, tensor.dtype)
        scale = self._constant(_ranked(parts.scale, form.ranks[0]), names.scale or f"{name}_scale")
        if form.operators == "Cast":
            codes = self._tensor(parts.codes, names.codes or f"{name}_codes")
            number = self._node(
                "Cast", [codes], f"{name}_cast", f"{node}_cast", {"to": int(tensor.dtype)}, tensor.dtype
            )
            if zero is not None:
                kind = tensor.dtype.numpy()
                shift = self._constant(_ranked(zero.astype(kind), form.ranks[1]), names.zero or f"{name}_zero")
                number = self._node("Sub", [number, shift], f"{name}_centred", f"{node}_centre", {}, tensor.dtype)
            return self._node("Mul", [number, scale], name, node, {}, tensor.dtype)
        points = [] if zero is None else [self._zero(parts, form, names.zero or f"{name}_zero_point")]
        more = form.attributes if form.operators == "DequantizeLinear" else {}
        placed = {} if form.axis is None else {"axis": form.axis}
        placed |= {"block_size": parts.block} if parts.block else {}
        if form.operators == "QuantizeLinear":
            numbers = self._constant(parts.numbers().astype(parts.scale.dtype), names.codes or f"{name}_numbers")
            told = (
                {}
                if zero is not None or parts.codes.dtype == ir.DataType.UINT8
                else {"output_dtype": int(parts.codes.dtype)}
            )
            codes = self._node(
                "QuantizeLinear",
                [numbers, scale, *points],
                f"{name}_codes",
                f"{node}_quantize",
                placed | told,
                parts.codes.dtype,
            )
        else:
            codes = self._tensor(parts.codes, names.codes or f"{name}_codes")
        return self._node("DequantizeLinear", [codes, scale, *points], name, node, placed | more, tensor.dtype)

    def _zero(self, parts: Parts, form: Form, name: str) -> ir.Value:
        assert parts.zero is not None
        kind = parts.codes.dtype
        array = _ranked(parts.zero.astype(kind.numpy()), form.ranks[1])
        return self._tensor(ir.Tensor(array, dtype=kind, name=name), name)

    def _constant(self, array: np.ndarray, name: str) -> ir.Value:
        return self._tensor(ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name), name)

    def _tensor(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """An initializer; the same contents under the same name stand once."""
        unique, count = name, 0
        while unique in self._taken and not self._same(unique, tensor):
            count += 1
            unique = f"{name}_{count}"
        if unique in self._held:
            return self._held[unique]
        if unique in self.graph.initializers:
            return self.graph.initializers[unique]
        self._taken.add(unique)
        tensor = _named(tensor, unique)
        value = ir.Value(
            name=unique, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        self._held[unique] = value
        return value

    def _same(self, name: str, tensor: ir.TensorProtocol) -> bool:
        value = self._held.get(name) or self.graph.initializers.get(name)
        held = value.const_value if value is not None else None
        if held is None or isinstance(held, Quantised):
            return False
        return held is tensor or (
            held.dtype == tensor.dtype and held.shape == tensor.shape and held.tobytes() == tensor.tobytes()
        )

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        title: str,
        attributes: dict[str, Any],
        dtype: ir.DataType,
    ) -> ir.Value:
        made = ir.node(op_type, inputs, attributes, name=self._title(title), version=self.version)
        made.outputs[0].name, made.outputs[0].dtype = name, dtype
        self._made.append(made)
        return made.outputs[0]


def _ranked(parameter: np.ndarray, rank: int) -> np.ndarray:
    """A scale or zero point with as many axes as the file gave it."""
    if parameter.size == 1 or (rank == 0 and (parameter == parameter.flat[0]).all()):
        return parameter.reshape(-1)[:1].reshape([1] * rank)
    if rank < 2:
        return parameter.reshape(-1)
    return parameter.reshape(parameter.shape[parameter.ndim - rank :])


def _named(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """A tensor under a name of its own, as bytes: a file may hold codes as wider numbers."""
    if isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor)) or (
        isinstance(tensor, ir.Tensor) and tensor.name == name
    ):
        return tensor
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
