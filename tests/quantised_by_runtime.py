"""Small graphs in quantised operators of ONNX Runtime's own, and what its tools make of float files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from quantised_graphs import INT4, RANGES, UINT8, drawn, save, tensor


def looked_up(path: Path, kind: int, bits: int, *, zero: bool = False, width: int = 64, block: int = 16) -> Path:
    """Rows of a table of GatherBlockQuantized by [batch, tokens] ids, and two products behind it."""
    rng = np.random.default_rng(5)
    table = drawn(rng, 20, width).reshape(20, -1, block)
    low, high = RANGES[INT4] if kind == INT4 else (0, 2**bits - 1)
    least, most = np.minimum(table.min(2), 0), np.maximum(table.max(2), 0)
    scale = ((most - least) / (high - low)).astype(np.float32)
    middle = 2 ** (bits - 1) if kind == UINT8 else 0
    point = np.round(low - least / scale) if zero else np.full(scale.shape, middle)
    codes = np.clip(np.round(table / scale[..., None] + point[..., None]), low, high).reshape(20, -1)

    def stored(array: np.ndarray, name: str) -> onnx.TensorProto:
        if kind == UINT8:
            shifts = np.arange(8 // bits) * bits
            array = (array.astype(np.uint8).reshape(len(array), -1, len(shifts)) << shifts).sum(2)
        return tensor(array, kind, name)

    held = [stored(codes, "table_q"), numpy_helper.from_array(scale, "table_s")]
    held += [stored(point, "table_z")] if zero else []
    held += [
        numpy_helper.from_array(drawn(rng, width, 32) * 2, "up"),
        numpy_helper.from_array(drawn(rng, 32, 8), "down"),
    ]
    told: dict[str, Any] = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    inputs = ["table_q", "input_ids", "table_s", *(["table_z"] if zero else [])]
    nodes = [
        helper.make_node("GatherBlockQuantized", inputs, ["rows"], "look_up", domain="com.microsoft", **told),
        helper.make_node("MatMul", ["rows", "up"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "down"], ["y"]),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    return save(
        path, nodes, held, [ids], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "tokens", 8])]
    )


def packed(
    path: Path, out: Path, *, bits: int, zero: str = "", order: str = "", block: int = 16, only: Sequence[str] = ()
) -> Path:
    """A float file whose products are MatMulNBits.

    Args:
        zero: "codes" or "floats" for zero points; else none.
        order: "plain" or "mixed": which block an input belongs to is told (g_idx), one by one.
        only: the weights that are written so; else all.
    """
    model, rng = onnx.load(path), np.random.default_rng(4)
    held = {t.name: t for t in model.graph.initializer}
    shifts = np.arange(8 // bits) * bits
    for node in model.graph.node:
        if node.op_type != "MatMul" or (only and node.input[1] not in only):
            continue
        tensor = held[node.input[1]]
        w = numpy_helper.to_array(tensor).T
        groups = np.arange(w.shape[1]) // block
        groups = rng.permutation(groups) if order == "mixed" else groups
        parts = np.stack([w[:, groups == i] for i in range(groups.max() + 1)], 1)
        least, most = np.minimum(parts.min(2), 0), np.maximum(parts.max(2), 0)
        scale = (most - least if zero else 2 * np.abs(parts).max(2)) / (2**bits - 1)
        points = {"": np.full(scale.shape, 2.0 ** (bits - 1)), "codes": np.round(-least / scale)}.get(
            zero, -least / scale
        )
        codes = np.clip(np.round(w / scale[:, groups] + points[:, groups]), 0, 2**bits - 1).astype(np.uint8)
        name = node.input[1]
        stored = (codes.reshape(len(w), -1, len(shifts)) << shifts).sum(2).astype(np.uint8)
        made = [numpy_helper.from_array(stored.reshape(len(w), -1, block * bits // 8), f"{name}_q")]
        made.append(numpy_helper.from_array(scale.astype(np.float32).reshape(-1), f"{name}_s"))
        inputs = [node.input[0], f"{name}_q", f"{name}_s"]
        if zero == "codes":
            width = -(-points.shape[1] // len(shifts)) * len(shifts)
            wide = np.pad(points.astype(np.uint8), ((0, 0), (0, width - points.shape[1])))
            points = (wide.reshape(len(w), -1, len(shifts)) << shifts).sum(2).astype(np.uint8).reshape(-1)
        if zero:
            kept = points if zero == "codes" else points.astype(np.float32)
            made.append(numpy_helper.from_array(kept, f"{name}_z"))
            inputs.append(f"{name}_z")
        if order:
            made.append(numpy_helper.from_array(groups.astype(np.int32), f"{name}_g"))
            inputs += [""] * (4 - len(inputs)) + [f"{name}_g"]
        told = {"K": w.shape[1], "N": len(w), "bits": bits, "block_size": block}
        node.CopyFrom(helper.make_node("MatMulNBits", inputs, node.output, node.name, domain="com.microsoft", **told))
        model.graph.initializer.remove(tensor)
        model.graph.initializer.extend(made)
    onnx.save(model, out)
    return out


def fused(path: Path) -> Path:
    """What ONNX Runtime makes of a file at its extended level."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path.with_name(f"{path.stem}.fused.onnx"))
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return path.with_name(f"{path.stem}.fused.onnx")


class _Rows:
    """Calibration rows as ONNX Runtime's quantiser wants them."""

    def __init__(self, rows: Sequence[dict[str, np.ndarray]]) -> None:
        self._rows = iter(rows)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def by_runtime(how: str, path: Path, rows: Sequence[dict[str, np.ndarray]]) -> Path:
    """A float model, quantised by ONNX Runtime's own tools.

    Args:
        how: "dynamic", "qdq", "integers" (QLinear operators), each with "-channels" or "-unsigned"; "nbits",
            "nbits-zero" (MatMulNBits), "nbits-qdq".
    """
    from onnxruntime import quantization as tools
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.disable(logging.WARNING)
    out = path.with_name(f"{path.stem}.{how}.onnx")
    channels = how.endswith("channels")
    try:
        if how.startswith("nbits"):
            shape = tools.QuantFormat.QDQ if how == "nbits-qdq" else tools.QuantFormat.QOperator
            found = MatMulNBitsQuantizer(
                onnx.load(path), block_size=16, is_symmetric=how != "nbits-zero", quant_format=shape
            )
            found.process()
            found.model.save_model_to_file(str(out))
        elif how.startswith("dynamic"):
            # Seven bits of eight: products of eight saturate on processors that add them in 16.
            tools.quantize_dynamic(
                path, out, weight_type=tools.QuantType.QInt8, per_channel=channels, reduce_range=True,
                op_types_to_quantize=["MatMul", "Gather", "Conv", "Attention", "LSTM"],
                extra_options={"DefaultTensorType": TensorProto.FLOAT},
            )  # fmt: skip
        else:
            shape = tools.QuantFormat.QDQ if how.startswith("qdq") else tools.QuantFormat.QOperator
            tools.quantize_static(
                path, out, _Rows(rows), quant_format=shape, per_channel=channels, weight_type=tools.QuantType.QInt8,
                activation_type=tools.QuantType.QUInt8 if how.endswith("unsigned") else tools.QuantType.QInt8,
                reduce_range=True,
            )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    return out
