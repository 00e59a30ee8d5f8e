"""A convolution as a matrix product: the rows it reads times its weight are what it writes, however it is padded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graphs import agreed, written
from onnx import TensorProto, helper
from plans import Subject

import onnxprune
from onnxprune.graph import model as models
from onnxprune.graph.plan import Reader
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.products import product_of
from onnxprune.graph.structure.reading_matrices import _real, matrices
from onnxprune.probe.interpreter import Interpreter

PADDINGS = [
    pytest.param(
        {"auto_pad": how, "strides": strides, "dilations": dilations},
        kernel,
        id=f"{how}-{kernel}-{strides}-{dilations}",
    )
    for how in ("SAME_UPPER", "SAME_LOWER", "VALID")
    for kernel, strides, dilations in (
        (3, [1, 1], [1, 1]),
        (3, [2, 1], [1, 1]),
        (3, [1, 1], [2, 2]),
        (1, [2, 2], [1, 1]),
    )
] + [
    pytest.param({"pads": [1, 0, 2, 1], "strides": [2, 2]}, 3, id="pads"),
    pytest.param({"pads": [1, 1, 1, 1], "strides": [2, 1]}, 1, id="pads-of-one-position"),
]


@pytest.mark.parametrize(("attributes", "kernel"), PADDINGS)
def test_rows_times_weight_is_what_a_convolution_writes(
    attributes: dict[str, Any], kernel: int, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    weights = [random.normal(size=size).astype(np.float32) for size in ((6, 3, 1, 1), (4, 6, kernel, kernel))]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "first"], ["wide"], "wide"),
            helper.make_node("Relu", ["wide"], ["live"], "live"),
            helper.make_node("Conv", ["live", "second"], ["y"], "reader", **attributes),
        ],
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 7])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor(name, 1, w.shape, w.ravel()) for name, w in zip(("first", "second"), weights, strict=True)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx"
    )
    model = models.load(tmp_path / "model.onnx")
    structure = analyze(model)
    (group,) = structure.groups
    found = matrices(model.graph, structure, group)
    assert found is not None
    (matrix,) = found
    feeds = {"x": random.normal(size=(2, 3, 8, 7)).astype(np.float32)}
    values = Interpreter(model.graph).run(feeds, outputs=["live", "y"])
    product = matrix.rows(values["live"]) @ torch.from_numpy(matrix.weight(weights[1]))
    torch.testing.assert_close(product, matrix.written(values["y"]), atol=1e-5, rtol=1e-5)


def test_a_gemm_s_outputs_are_the_last_axis_of_the_stream_too() -> None:
    """Tokens are flattened for a Gemm (GPT-2), not in the stream that its result is added to."""
    for trans in (0, 1):
        shape = (3, 5) if trans else (5, 3)
        nodes = [
            helper.make_node("Relu", ["x"], ["h"]),
            helper.make_node("Gemm", ["h", "w"], ["y"], "reader", transB=trans),
        ]
        graph = onnx.helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 5])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 3])],
            [onnx.numpy_helper.from_array(np.ones(shape, dtype=np.float32), "w")],
        )
        model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
        model.graph[0].outputs[0].shape = ir.Shape([4, 5])
        product = product_of(model.graph[1], Reader("reader", 0, 1, "w", 1 if trans else 0))
        assert product is not None
        stream = torch.arange(24.0).reshape(2, 4, 3)
        assert torch.equal(product.written(stream), stream.reshape(8, 3))


EXPERTS = """
<ir_version: 9, opset_import: ["" : 17]>
experts (float[N, 6, 8] x, float[4, 8, 5] up, float[4, 5, 8] down) => (float[N, 4, 6, 8] y) {
    axis = Constant<value_ints = [1]>()
    wide = Unsqueeze(x, axis)
    h = MatMul(wide, up)
    a = Relu(h)
    y = MatMul(a, down)
}
"""


def test_experts_in_one_weight_are_blocks(tmp_path: Path) -> None:
    """One matrix an expert: its rows times the block-diagonal weight are what the experts write, one after another."""
    subject = Subject.load(written(tmp_path, EXPERTS, {"up": (4, 8, 5), "down": (4, 5, 8)}))
    (group,) = subject.structure.groups
    assert (group.kind, group.shape) == ("neurons", (5,))
    found = matrices(subject.model.graph, subject.structure, group)
    assert found is not None
    (matrix,) = found
    assert matrix.units.tolist() == [*range(5)] * 4
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 6, 5)).astype(np.float32), rng.standard_normal((4, 5, 8)).astype(np.float32)
    rows, blocks = matrix.rows(torch.from_numpy(x)).numpy(), matrix.weight(w)
    assert blocks.shape == (20, 32)
    per_expert = (rows @ blocks).reshape(4, 2, 6, 4, 8)  # expert, batch, token, and the block that it wrote to
    for expert in range(4):
        np.testing.assert_allclose(per_expert[expert, :, :, expert], x[:, expert] @ w[expert], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(matrix.restore(blocks, w.shape), w)
    agreed(subject, {"x": rng.standard_normal((3, 6, 8)).astype(np.float32)})


EINSUM_EXPERTS = """
<ir_version: 9, opset_import: ["" : 17]>
experts (float[N, 6, 8] x, float[4, 8, 5] up, float[4, 8, 5] down) => (float[N, 6, 4, 8] y) {
    h = Einsum<equation = "bsd,edf->besf">(x, up)
    a = Relu(h)
    y = Einsum<equation = "besf,edf->bsed">(a, down)
}
"""


def test_experts_of_an_einsum_are_blocks(tmp_path: Path) -> None:
    """The same, whatever the order of the weight's axes."""
    subject = Subject.load(written(tmp_path, EINSUM_EXPERTS, {"up": (4, 8, 5), "down": (4, 8, 5)}))
    (group,) = subject.structure.groups
    found = matrices(subject.model.graph, subject.structure, group)
    assert found is not None
    (matrix,) = found
    assert matrix.units.tolist() == [*range(5)] * 4
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 6, 5)).astype(np.float32), rng.standard_normal((4, 8, 5)).astype(np.float32)
    rows, blocks = matrix.rows(torch.from_numpy(x)).numpy(), matrix.weight(w)
    per_expert = (rows @ blocks).reshape(4, 2, 6, 4, 8)
    for expert in range(4):
        np.testing.assert_allclose(per_expert[expert, :, :, expert], x[:, expert] @ w[expert].T, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(matrix.restore(blocks, w.shape), w)
    agreed(subject, {"x": rng.standard_normal((3, 6, 8)).astype(np.float32)})


@pytest.mark.parametrize(
    ("result", "up", "down"), [("N, T, 4", (1, 8, 12), (1, 12, 4)), ("N, T", (8, 12), (12,))], ids=["lone", "vector"]
)
def test_weights_of_one_matrix_or_of_one_column(
    result: str, up: tuple[int, ...], down: tuple[int, ...], tmp_path: Path
) -> None:
    """Axes of length 1 in front of a weight are no experts, and a vector is a matrix of one output."""
    first, second = (", ".join(map(str, shape)) for shape in (up, down))
    text = f"""<ir_version: 9, opset_import: ["" : 17]>
one (float[N, T, 8] x, float[{first}] up, float[{second}] down) => (float[{result}] y) {{
    h = MatMul(x, up)
    a = Relu(h)
    y = MatMul(a, down)
}}"""
    subject = Subject.load(written(tmp_path, text, {"up": up, "down": down}))
    (group,) = subject.structure.groups
    found = matrices(subject.model.graph, subject.structure, group)
    assert found is not None
    (matrix,) = found
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 5, 12)).astype(np.float32), rng.standard_normal(down).astype(np.float32)
    y = torch.from_numpy(x) @ torch.from_numpy(w)
    product = matrix.rows(torch.from_numpy(x)) @ torch.from_numpy(matrix.weight(w).copy())
    torch.testing.assert_close(product, matrix.written(y), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(matrix.restore(matrix.weight(w), w.shape), w)
    agreed(subject, {"x": rng.standard_normal((2, 5, 8)).astype(np.float32)})
    rows = [{"x": rng.standard_normal((1, 5, 8)).astype(np.float32)} for _ in range(16)]
    result_of = onnxprune.prune(tmp_path / "model.onnx", flops=0.6, calibration=rows, round_to=1, measure_latency=False)
    assert 0.4 < result_of.report.flops.ratio <= 0.6


def test_a_constant_under_kernels_that_the_graph_computes_is_no_weight() -> None:
    """StyleGAN's first layer: a learned picture, and a kernel for every sample."""
    for op in ("Conv", "ConvTranspose"):
        node = onnx.helper.make_node(op, ["picture", "kernel"], ["y"], name="first", group=4)
        graph = onnx.helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("kernel", TensorProto.FLOAT, [4, 4, 3, 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [onnx.numpy_helper.from_array(np.ones((1, 16, 4, 4), dtype=np.float32), "picture")],
        )
        model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
        assert product_of(model.graph[0], Reader("first", 1, 0, "picture", 1)) is None


def test_what_has_no_padding_is_not_copied() -> None:
    flat, real = torch.arange(60.0).reshape(12, 5), torch.ones(2, 6, dtype=torch.bool)
    assert _real(flat, real) is flat and _real(flat, None) is flat and _real(flat, real[:1]) is flat
    real[1, 3:] = False
    assert torch.equal(_real(flat, real), flat[real.reshape(-1)])


@pytest.mark.parametrize("turned", ["transA = 1", "transA = 0, transB = 1", "transA = 1, transB = 1"])
def test_products_whose_operands_are_turned_before_are_matrices(tmp_path: Path, turned: str) -> None:
    """ONNX Runtime's optimiser puts a Transpose into the product behind it."""
    width = (3, 24) if "transB = 1" in turned else (24, 3)
    before = "wide" if "transA = 1" in turned else "Transpose <perm = [0, 2, 1]> (wide)"
    before = before if before != "wide" else "Identity (wide)"
    text = f"""<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>
    net (float[n, 8, t] x) => (float[n, t, 3] y) {{
        up = Conv (x, w)
        wide = Relu (up)
        read = {before}
        y = com.microsoft.FusedMatMul <alpha = 1.0, {turned}> (read, v)
    }}"""
    subject = Subject.load(written(tmp_path, text, {"w": (24, 8, 1), "v": width}, check=False))
    (group,) = subject.structure.groups
    found = matrices(subject.model.graph, subject.structure, group)
    assert group.shape == (24,) and found is not None
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 8, 5)).astype(np.float32)}
    agreed(subject, feeds)
    (matrix,) = found
    source = subject.model.graph[-1].inputs[0]
    assert source is not None
    names = [source.name or "", "y"]
    seen = subject.interpreter.run(feeds, outputs=names)
    weight = subject.interpreter.weight("v").numpy()
    wanted = matrix.rows(seen[names[0]]).numpy() @ matrix.weight(weight)
    assert np.allclose(matrix.written(seen["y"]).numpy(), wanted, atol=1e-4)
