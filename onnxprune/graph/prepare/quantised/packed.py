"""MatMulNBits as MatMul with a weight of few bits: codes packed into bytes, in blocks along the inputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph.ops.base import attribute, operand
from onnxprune.graph.prepare.quantised.weights import Known, constant
from onnxprune.graph.quantised import Form, Names, Parts, Quantised
from onnxprune.graph.quantised_operators import Note, noted
from onnxprune.graph.values import succeed

KINDS = {2: ir.DataType.UINT2, 4: ir.DataType.UINT4, 8: ir.DataType.UINT8}


def fold(model: ir.Model) -> None:
    """Write every MatMulNBits whose weight is a constant as a MatMul, and an Add where it has a bias; in place."""
    known = Known(model)
    for node in list(model.graph):
        if node.domain != "com.microsoft" or node.op_type != "MatMulNBits":
            continue
        tensor = _weight(node)
        source, codes = node.inputs[0], node.inputs[1]
        if tensor is None or source is None or codes is None:
            continue
        result = node.outputs[0]
        weight = known.value(tensor, f"{codes.name}_numbers")
        made = [ir.node("MatMul", [source, weight], name=node.name or f"{result.name}_matmul")]
        note = Note("MatMulNBits", node.domain, node.name or "", {}, {n: attribute(node, n) for n in node.attributes})
        bias = operand(node, 5)
        if bias is not None:
            made[0].outputs[0].name = f"{result.name}_unshifted"
            made.append(ir.node("Add", [made[0].outputs[0], bias], name=f"{made[0].name}_bias"))
            note.names["bias"] = bias.name or ""
        if (order := operand(node, 4)) is not None:
            note.names["order"] = order.name or ""
        noted(made[0], note)
        succeed(node, made)


def _weight(node: ir.Node) -> Quantised | None:
    """[K, N] of a MatMulNBits; None where it is not told what its numbers are."""
    codes, scale, zero, order = (operand(node, i) for i in range(1, 5))
    bits, block = int(attribute(node, "bits", 4)), int(attribute(node, "block_size", 0))
    inputs, outputs = int(attribute(node, "K", 0)), int(attribute(node, "N", 0))
    if bits not in KINDS or attribute(node, "weight_prepacked", 0) or not block:
        return None
    if not constant(codes) or not constant(scale) or (zero is not None and not constant(zero)):
        return None
    assert codes is not None and scale is not None and codes.const_value is not None and scale.const_value is not None
    count = -(-inputs // block)
    owners = np.arange(inputs) // block if order is None else _owners(node, order, zero, count)
    if owners is None:
        return None
    mixed = not np.array_equal(owners, np.arange(inputs) // block)
    held = codes.const_value.numpy().reshape(outputs, -1)
    kind = KINDS[bits]
    whole = ir.Tensor(unpacked(held, bits)[:, :inputs].astype(kind.numpy()), dtype=kind, name=codes.name)
    scales = scale.const_value.numpy().reshape(outputs, count)
    points, rank = np.full(scales.shape, 2 ** (bits - 1)), 0
    if zero is not None and zero.const_value is not None:
        held, rank = zero.const_value.numpy(), len(zero.const_value.shape)
        packed = zero.const_value.dtype == ir.DataType.UINT8
        points = unpacked(held.reshape(outputs, -1), bits)[:, :count] if packed else held.reshape(outputs, count)
    names = Names(codes.name or "", scale.name or "", "" if zero is None else zero.name or "")
    ranks, left = (len(scale.const_value.shape), rank), () if zero is not None else ("zero",)
    kept = {"bits": bits, "block_size": block}
    form = Form("MatMulNBits", names, ranks, None, kept, fixed_block=True, unwritten=left, told=order is not None)
    points = points if points.dtype.kind == "f" else points.astype(kind.numpy())
    parts = Parts(whole, scales, points, *((block, 1) if count > 1 else (0, 0)), owners if mixed else None)
    return Quantised(parts, form, scale.const_value.dtype, None, (1, 0))


def _owners(node: ir.Node, order: ir.Value, zero: ir.Value | None, count: int) -> np.ndarray | None:
    """The block of each input as `g_idx` says it, all `count` of them in use; None where that is not what is computed.

    With packed zero points beside it, ONNX Runtime's kernel computes something else; only four bits are read so.
    """
    if order.const_value is None or attribute(node, "bits", 4) != 4:
        return None
    if zero is not None and (zero.const_value is None or zero.const_value.dtype == ir.DataType.UINT8):
        return None
    told = order.const_value.numpy().reshape(-1).astype(np.int64)
    fits = len(told) == int(attribute(node, "K", 0)) and np.array_equal(np.unique(told), np.arange(count))
    return told if fits else None


def unpacked(held: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [rows, bytes] -> [rows, codes], the lowest bits first."""
    per = 8 // bits
    shifts = np.arange(per, dtype=np.uint8) * bits
    return np.asarray((held[..., None] >> shifts) & (2**bits - 1)).reshape(len(held), -1)


def repacked(codes: np.ndarray, bits: int, width: int) -> np.ndarray:
    """[rows, codes] -> uint8 [rows, bytes] for `width` codes; what is missing is 0."""
    per = 8 // bits
    whole = np.zeros((len(codes), -(-width // per) * per), dtype=np.uint8)
    whole[:, : codes.shape[1]] = codes.astype(np.uint8)
    shifts = np.arange(per, dtype=np.uint8) * bits
    return np.asarray((whole.reshape(len(codes), -1, per) << shifts).sum(axis=-1), dtype=np.uint8)
