"""Quantised graphs written as the file had them: integers, and the operators that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.ops.base import attribute
from onnxprune.graph.prepare.quantised.fused import KINDS, shaped
from onnxprune.graph.prepare.quantised.integers import Integers
from onnxprune.graph.prepare.quantised.linear import kind_of
from onnxprune.graph.prepare.quantised.packed import repacked
from onnxprune.graph.quantised import Parts, Quantised
from onnxprune.graph.quantised_operators import Note, noted
from onnxprune.graph.values import succeed


def written(model: ir.Model) -> ir.Model:
    """The graph as a file has it: quantised weights are integers again, with the operators that read them.

    Returns:
        A clone, or the graph itself where it has none.
    """
    weights = any(isinstance(v.const_value, Quantised) for v in model.graph.initializers.values())
    if not weights and not any(noted(n) for n in model.graph):
        return model
    clone = model.clone()
    _Writer(clone).run()
    return clone


class _Writer(Integers):
    """Puts back the operators that read integers, and the weights that none of them reads by nodes of their own."""

    def __init__(self, model: ir.Model) -> None:
        super().__init__(model)
        self._rounded: dict[ir.Value, ir.Node] = {}

    def run(self) -> None:
        for node in self.graph:
            if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.inputs) > 2:
                _align_bias(node)
        for node in list(self.graph):
            note = noted(node)
            if note is not None:
                write = _WRITE.get(note.operator, _Writer._linear)
                write(self, node, note)
        for name, value in list(self.graph.initializers.items()):
            tensor = value.const_value
            if isinstance(tensor, Quantised):
                del self.graph.initializers[name]
                if value.uses():
                    self._read(value, tensor)
        if self._made:
            self.graph.insert_before(self.graph[0], self._made)

    # -- operators that read integers ------------------------------------------------------------------------------

    def _picked(self, node: ir.Node, note: Note) -> None:
        """A Gather of codes, dequantised afterwards."""
        table, index = node.inputs[:2]
        if table is None or index is None or not isinstance(table.const_value, Quantised):
            return
        codes, scale, zero = self._parts(table.const_value, table.name or "")
        name = node.outputs[0].name or ""
        gather = self._beside(node, "Gather", [codes, index], note.name, note.names["codes"] or f"{name}_codes")
        gather.attributes.update(node.attributes)
        operands = [v for v in (gather.outputs[0], scale, zero) if v is not None]
        self._end(node, self._beside(node, "DequantizeLinear", operands, note.names["reader"], f"{name}_numbers"))

    def _dynamic(self, node: ir.Node, note: Note) -> None:
        """DynamicQuantizeLinear, a product of integers, and two Mul."""
        source, weight = node.inputs[:2]
        if source is None or weight is None or not isinstance(weight.const_value, Quantised):
            return
        codes, scale, zero = self._parts(weight.const_value, weight.name or "", note.attributes["shape"])
        name, names = node.outputs[0].name or "", note.names
        whole, own, point = self._rounding(node, source, note)
        operands = [whole, codes, point] + ([] if zero is None else [zero])
        product = self._beside(node, note.operator, operands, note.name, f"{name}_integers")
        product.attributes.update(node.attributes)
        cast = self._beside(node, "Cast", [product.outputs[0]], names["cast"], f"{name}_cast")
        cast.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        assert scale is not None
        if "scales" in names:
            both = self._beside(node, "Mul", [own, scale], names["scales"], f"{name}_scales")
            last = [cast.outputs[0], both.outputs[0]]
        else:
            first = self._beside(node, "Mul", [cast.outputs[0], own], names["apart"], f"{name}_of_source")
            last = [first.outputs[0], scale]
        self._end(node, self._beside(node, "Mul", last, names["last"], f"{name}_numbers"))

    def _fused_whole(self, node: ir.Node, note: Note) -> None:
        """QAttention and its like: codes of the activation, which may be rounded here, and of weights."""
        kind, source = KINDS[note.operator], node.inputs[0]
        assert source is not None
        places: dict[int, ir.Value | None] = {0: source}
        if kind.source is not None:
            found = self._rounding(node, source, note) if "rounding" in note.names else self._integers(source)
            if found is None:
                return
            places = dict(zip(kind.source, found, strict=True))
        for place, value in zip(kind.operands, node.inputs[1:], strict=False):
            if not isinstance(place, tuple):
                places[place] = value
                continue
            tensor = value.const_value if value is not None else None
            if not isinstance(tensor, Quantised) or value is None:
                return
            found = self._fused_parts(tensor, value.name or "", note.attributes["ranks"][place[0]], kind.axes)
            places |= dict(zip(place, found, strict=True))
        bias, last = self._bias(node, note)
        if bias is not None and kind.bias is not None:
            places[kind.bias] = bias
        made = self._fused(node, note, [places.get(i) for i in range(max(places) + 1)], {})
        made.attributes.update(node.attributes)
        for old, new in zip(node.outputs[1:], made.outputs[1:], strict=True):
            new.name = f"{old.name}_made" if old.name else old.name
        self._end(last, made)
        if "rounding" not in note.names:
            self._leave_out([source.producer()])

    def _rounding(self, node: ir.Node, source: ir.Value, note: Note) -> tuple[ir.Value, ir.Value, ir.Value]:
        """(codes, scale, zero point) of what is rounded by its own range: one node for all that read it."""
        if source not in self._rounded:
            self._rounded[source] = self._beside(
                node, "DynamicQuantizeLinear", [source], note.names["rounding"], f"{source.name}_codes", outputs=3
            )
        codes, scale, zero = self._rounded[source].outputs
        return codes, scale, zero

    def _fused_parts(
        self, tensor: Quantised, name: str, ranks: tuple[int, int], axes: tuple[int, ...]
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """(codes, scale, zero point) of a weight, in the shapes that an operator of `fused` takes."""
        form, parts, zero = tensor.form, tensor.parts, None
        codes = self._tensor(parts.codes, form.names.codes or f"{name}_codes")
        scale = self._constant(shaped(parts.scale, ranks[0], axes), form.names.scale or f"{name}_scale")
        if parts.zero is not None:
            title = form.names.zero or f"{name}_zero_point"
            points = shaped(parts.zero, ranks[1], axes).astype(parts.codes.dtype.numpy())
            zero = self._tensor(ir.Tensor(points, dtype=parts.codes.dtype, name=title), title)
        return codes, scale, zero

    def _packed(self, node: ir.Node, note: Note) -> None:
        """MatMulNBits."""
        source, weight = node.inputs[:2]
        if weight is None or not isinstance(weight.const_value, Quantised):
            return
        parts, form, name = weight.const_value.parts, weight.const_value.form, weight.name or ""
        bits, block = int(form.attributes["bits"]), int(form.attributes["block_size"])
        outputs, inputs = parts.shape
        count = -(-inputs // block)
        # Bytes that lie beyond the inputs are read, and multiplied with nothing.
        bytes_ = repacked(parts.codes.numpy(), bits, count * block)
        codes = self._constant(bytes_.reshape(outputs, count, -1), form.names.codes or f"{name}_codes")
        scales = parts.scale.reshape(-1) if form.ranks[0] == 1 else parts.scale
        scale = self._constant(scales, form.names.scale or f"{name}_scales")
        operands: list[ir.Value | None] = [source, codes, scale]
        if "zero" not in form.unwritten and parts.zero is not None:
            points = parts.zero if parts.between else repacked(np.asarray(parts.zero.astype(np.uint8)), bits, count)
            points = points.reshape(-1) if form.ranks[1] == 1 else points
            operands.append(self._constant(points, form.names.zero or f"{name}_zero_points"))
        if "order" in note.names:
            order = (np.arange(inputs) // block if parts.owners is None else parts.owners).astype(np.int32)
            operands += [None] * (4 - len(operands)) + [self._constant(order, note.names["order"])]
        bias, last = self._bias(node, note)
        if bias is not None:
            operands += [None] * (5 - len(operands)) + [bias]
        self._end(last, self._fused(node, note, operands, {**note.attributes, "K": inputs, "N": outputs}))

    def _looked_up(self, node: ir.Node, note: Note) -> None:
        """GatherBlockQuantized."""
        table, index = node.inputs[:2]
        if table is None or not isinstance(table.const_value, Quantised):
            return
        parts, form, name = table.const_value.parts, table.const_value.form, table.name or ""

        def stored(array: np.ndarray) -> ir.TensorProtocol:
            if not form.attributes["packed"]:
                return ir.Tensor(array.astype(parts.codes.dtype.numpy(), copy=False), dtype=parts.codes.dtype)
            flat = np.asarray(array.reshape(-1, array.shape[-1]).astype(np.uint8))
            return ir.Tensor(repacked(flat, form.attributes["bits"], flat.shape[1]).reshape(*array.shape[:-1], -1))

        codes = self._tensor(stored(parts.codes.numpy()), form.names.codes or f"{name}_codes")
        scale = self._constant(parts.scale, form.names.scale or f"{name}_scales")
        operands: list[ir.Value | None] = [codes, index, scale]
        if "zero" not in form.unwritten and parts.zero is not None:
            operands.append(self._tensor(stored(parts.zero), form.names.zero or f"{name}_zero_points"))
        self._end(node, self._fused(node, note, operands, note.attributes))

    def _bias(self, node: ir.Node, note: Note) -> tuple[ir.Value | None, ir.Node]:
        """The bias that a fused operator takes, and the node whose result it then gives."""
        uses = list(node.outputs[0].uses())
        if "bias" not in note.names or len(uses) != 1 or uses[0][0].op_type != "Add":
            return None, node
        add, place = uses[0]
        bias = add.inputs[1 - place]
        fits = bias is not None and bias.const_value is not None and len(bias.const_value.shape) == 1
        return (bias, add) if fits else (None, node)

    def _fused(
        self, node: ir.Node, note: Note, operands: Sequence[ir.Value | None], attributes: Mapping[str, Any]
    ) -> ir.Node:
        while operands and operands[-1] is None:
            operands = operands[:-1]
        made = ir.node(
            note.operator, operands, attributes, domain=note.domain, name=self._title(note.name, node),
            num_outputs=len(node.outputs),
        )  # fmt: skip
        made.outputs[0].name = f"{node.outputs[0].name}_made"
        return made

    def _linear(self, node: ir.Node, note: Note) -> None:
        """QLinearConv and its like, where they still stand between integers."""
        kind = kind_of(note, len(node.inputs))
        uses = list(node.outputs[0].uses())
        if kind is None or len(uses) != 1 or uses[0][0].op_type != "QuantizeLinear" or uses[0][1]:
            return
        plain, rest = node.inputs[: len(kind.plain)], list(node.inputs[len(kind.plain) :])
        found = [self._integers(v) for v in rest[: len(kind.operands)]]
        if any(v is None for v in found):
            return
        last = uses[0][0]
        scale, zero = last.inputs[1], last.inputs[2] if len(last.inputs) > 2 else None
        places: dict[int, ir.Value | None] = dict(zip(kind.plain, plain, strict=True))
        for place, values in zip(kind.operands, found, strict=True):
            places |= dict(zip(place, values or (), strict=True))
        places |= {kind.result[0]: scale, kind.result[1]: zero}
        bias = rest[len(kind.operands)] if len(rest) > len(kind.operands) else None
        if bias is not None and kind.bias is not None:
            if not isinstance(bias.const_value, Quantised):
                return
            places[kind.bias] = self._tensor(bias.const_value.parts.codes, bias.const_value.form.names.codes)
        operands = [places.get(i) for i in range(max(places) + 1)]
        made = self._fused(node, note, operands, note.attributes)
        made.attributes.update(node.attributes)
        sources = [v.producer() for v in rest if v is not None]
        self._end(last, made)
        self._leave_out(sources)

    def _leave_out(self, nodes: Iterable[ir.Node | None]) -> None:
        """Take out DequantizeLinear that no one reads any more."""
        for node in dict.fromkeys(n for n in nodes if n is not None and n.op_type == "DequantizeLinear"):
            if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
                self.graph.remove(node, safe=True)

    def _integers(self, value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None, ir.Value | None] | None:
        """(codes, scale, zero point) of an operand; None where it is made of anything else."""
        if value is not None and isinstance(value.const_value, Quantised):
            return self._parts(value.const_value, value.name or "")
        source = value.producer() if value is not None else None
        if source is None or source.op_type != "DequantizeLinear":
            return None
        return source.inputs[0], source.inputs[1], source.inputs[2] if len(source.inputs) > 2 else None

    def _beside(
        self, node: ir.Node, op_type: str, inputs: Sequence[ir.Value], title: str, name: str, outputs: int = 1
    ) -> ir.Node:
        """A node in front of another one."""
        made = ir.node(
            op_type, inputs, num_outputs=outputs, name=self._title(title or name, node), version=self.version
        )
        for i, value in enumerate(made.outputs):
            value.name = self._free(name if not i else f"{name}_{i}")
        node.prepend(made)
        return made

    def _end(self, node: ir.Node, made: ir.Node) -> None:
        """Put a node's last part in its place."""
        sources = [v.producer() for v in node.inputs if v is not None]
        succeed(node, [made])
        for source in sources:  # the product whose bias it was
            if source is not None and noted(source) and not source.outputs[0].uses():
                self.graph.remove(source, safe=True)


def _align_bias(node: ir.Node) -> None:
    """Round a bias of 32 bits to the product of the scales of what it is added to.

    Kernels on integers take it for that, whatever scale stands beside it; refits may have changed the weight's.
    """
    source, weight, bias = (None if v is None else v for v in node.inputs[:3])
    rounding = source.producer() if source is not None else None
    if weight is None or bias is None or rounding is None or rounding.op_type != "DequantizeLinear":
        return
    held, tensor, scale = bias.const_value, weight.const_value, rounding.inputs[1]
    if (
        not isinstance(held, Quantised)
        or not isinstance(tensor, Quantised)
        or scale is None
        or scale.const_value is None
    ):
        return
    own, parts = tensor.parts.scale.reshape(-1), held.parts
    if parts.codes.dtype != ir.DataType.INT32 or own.size not in (1, parts.codes.size) or scale.const_value.size > 1:
        return
    factor = np.float32(attribute(node, "alpha", 1.0)) if node.op_type == "Gemm" else np.float32(1)
    wanted = (scale.const_value.numpy().reshape(()) * own * factor).astype(parts.scale.dtype)
    if np.allclose(wanted, parts.scale.reshape(-1), rtol=1e-5, atol=0):
        return
    codes = np.clip(np.round(parts.numbers().astype(np.float64) / wanted), -(2**31), 2**31 - 1).astype(np.int32)
    form = held.form if wanted.size == parts.scale.size else replace(held.form, ranks=(1, held.form.ranks[1]), axis=0)
    zero = None if parts.zero is None else np.zeros(wanted.shape, parts.zero.dtype)
    moved = Parts(ir.Tensor(codes, name=parts.codes.name), wanted, zero)
    bias.const_value = Quantised(moved, form, held.dtype, held.name, held.perm)


_WRITE: Mapping[str, Callable[[_Writer, ir.Node, Note], None]] = {
    "Gather": _Writer._picked,
    "MatMulInteger": _Writer._dynamic,
    "ConvInteger": _Writer._dynamic,
    **dict.fromkeys(KINDS, _Writer._fused_whole),
    "MatMulNBits": _Writer._packed,
    "GatherBlockQuantized": _Writer._looked_up,
}
