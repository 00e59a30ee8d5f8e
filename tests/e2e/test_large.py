"""A decoder of a gigabyte, pruned within an amount of memory that does not hold it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

WIDTH, INNER, LAYERS, WORDS = 1024, 8192, 10, 500
LIMIT = 1_000_000_000


def _write(folder: Path) -> Path:
    """Layers of x + down(silu(gate(norm x)) · up(norm x)), with their weights beside the graph."""
    h, random, nodes, weights, place = onnx.helper, np.random.default_rng(0), [], [], 0
    with (folder / "m.data").open("wb") as data:

        def weight(name: str, *shape: int) -> str:
            nonlocal place
            array = random.standard_normal(shape, dtype=np.float32) / np.float32(shape[0] ** 0.5)
            data.write(array.tobytes())
            tensor = onnx.TensorProto(name=name, data_type=1, dims=shape, data_location=onnx.TensorProto.EXTERNAL)
            for key, value in (("location", "m.data"), ("offset", str(place)), ("length", str(array.nbytes))):
                tensor.external_data.add(key=key, value=value)
            place += array.nbytes
            weights.append(tensor)
            return name

        def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
            nodes.append(h.make_node(op, inputs, [output], **attributes))
            return output

        x = node("Gather", [weight("words", WORDS, WIDTH), "input_ids"], "x")
        for i in range(LAYERS):
            weights.append(onnx.numpy_helper.from_array(np.ones(WIDTH, np.float32), f"g{i}"))
            n = node("SimplifiedLayerNormalization", [x, f"g{i}"], f"n{i}", axis=-1, epsilon=1e-6, stash_type=1)
            gate = node("MatMul", [n, weight(f"gate{i}", WIDTH, INNER)], f"a{i}")
            silu = node("Mul", [gate, node("Sigmoid", [gate], f"s{i}")], f"l{i}")
            product = node("Mul", [silu, node("MatMul", [n, weight(f"up{i}", WIDTH, INNER)], f"u{i}")], f"p{i}")
            x = node("Add", [x, node("MatMul", [product, weight(f"down{i}", INNER, WIDTH)], f"d{i}")], f"x{i}")
        node("MatMul", [x, weight("head", WIDTH, WORDS)], "logits")
    graph = h.make_graph(
        nodes, "large", [h.make_tensor_value_info("input_ids", 7, ["batch_size", "sequence_length"])],
        [h.make_tensor_value_info("logits", 1, ["batch_size", "sequence_length", WORDS])], weights,
    )  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


@pytest.mark.slow
def test_a_decoder_that_memory_does_not_hold(tmp_path: Path) -> None:
    source, target = _write(tmp_path), tmp_path / "small.onnx"
    assert source.with_name("m.data").stat().st_size > LIMIT
    command = [
        sys.executable, "-m", "onnxprune.cli", str(source), "-o", str(target), "--flops", "0.7", "--method",
        "magnitude", "--shape", "sequence_length=16", "--max-memory", "1GB", "--quiet",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    report = json.loads((tmp_path / "small.report.json").read_text(encoding="utf-8"))
    assert report["flops"]["ratio"] <= 0.7
    assert report["peak_memory_bytes"] <= LIMIT
    assert report["equivalence"]["max_rel"] <= 1e-4
    assert any("timing both models side by side" in said for said in report["warnings"])
