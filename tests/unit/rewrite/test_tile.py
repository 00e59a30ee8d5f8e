"""Products in tiles: the sliced graph gives what the matrix with zeros gives, and plans that do not fit are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import quantised_graphs
from graphs import written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plans import Subject, distance, in_runtime, some_tiles
from zoo import ZooModel

from onnxprune.errors import CheckError, UsageError
from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan, Tile
from onnxprune.refit.solvers import Tiled
from onnxprune.rewrite.tile import divisible, read_back

Build = Callable[..., ZooModel]

PRODUCTS = {
    "MatMul": '<ir_version: 8, opset_import: ["" : 17]> g (float[n, t, 9] x) => (float[n, t, 7] y) '
    "{ [first] h = MatMul(x, w) y = Identity(h) }",
    "output": '<ir_version: 8, opset_import: ["" : 17]> g (float[n, t, 9] x) => (float[n, t, 7] y) '
    "{ [first] y = MatMul(x, w) }",
    "Gemm": '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 9] x) => (float[n, 7] y) '
    "{ [first] y = Gemm <alpha: float = 0.5, beta: float = 2.0> (x, w, b) }",
    "flipped Gemm": '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 9] x) => (float[n, 7] y) '
    "{ [first] y = Gemm <transB: int = 1> (x, w) }",
}


def product(folder: Path, kind: str) -> Subject:
    shape = (7, 9) if kind == "flipped Gemm" else (9, 7)
    return Subject.load(written(folder, PRODUCTS[kind], {"w": shape} | ({"b": (7,)} if kind == "Gemm" else {})))


@pytest.mark.parametrize("kind", PRODUCTS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sliced_products_are_the_masked_matrix(tmp_path: Path, kind: str, seed: int) -> None:
    """Random matrices, tiles and ranges; the original graph with the zeros in its weight is what is right."""
    rng = np.random.default_rng(seed)
    subject = product(tmp_path, kind)
    tiles = some_tiles(9, 7, rng)
    mask = Tiled(tiles).project(np.ones((9, 7)))
    masked = rng.normal(size=(9, 7)).astype(np.float32) * mask
    weight = masked.T if kind == "flipped Gemm" else masked
    feeds = {"x": rng.normal(size=(2, 9) if "Gemm" in kind else (2, 3, 9)).astype(np.float32)}
    clone = subject.model.clone().ir
    clone.graph.initializers["w"].const_value = ir.Tensor(np.ascontiguousarray(weight), name="w")
    plan = Plan(subject.structure.digest, weights={"w": weight}, tiles={"w": tiles})
    expected = in_runtime(clone, feeds)
    assert distance(subject.written(plan, feeds), expected) < 1e-5
    assert distance(subject.gated(plan, feeds), expected) < 1e-5
    graph = subject.rewritten(plan)
    assert "w" not in graph.graph.initializers
    (file,) = models.save(graph, tmp_path / "tiled.onnx")
    found = read_back(models.read(file).graph, "first", 9)
    assert tuple(tile for tile, _ in found) == tiles
    assert sum(block.size for _, block in found) == sum(t.area for t in tiles) == int(mask.sum())


def test_what_two_products_read_is_sliced_once(tmp_path: Path) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 8] x) => (float[n, 6] y) '
        "{ h = Relu(x) a = MatMul(h, u) b = MatMul(h, v) y = Add(a, b) }"
    )
    subject = Subject.load(written(tmp_path, text, {"u": (8, 6), "v": (8, 6)}))
    tile = (Tile(0, 6, 2, 5),)
    weights = {n: np.where(np.arange(8)[:, None] // 3 == 1, 0, 0).astype(np.float32) * np.ones((8, 6)) for n in "uv"}
    for array in weights.values():
        array[2:5] = np.random.default_rng(0).normal(size=(3, 6))
    plan = Plan(subject.structure.digest, weights=weights, tiles={"u": tile, "v": tile})
    graph = subject.rewritten(plan).graph
    assert sorted(n.op_type for n in graph) == ["Add", "MatMul", "MatMul", "Relu", "Slice"]
    feeds = {"x": np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)}
    assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-5


@pytest.mark.parametrize(
    "tiles", [(Tile(0, 6, 0, 9),), (Tile(0, 7, 0, 10),), (Tile(0, 3, 0, 9), Tile(4, 7, 0, 9)), (Tile(0, 7, 4, 4),)]
)
def test_tiles_that_do_not_fit_are_refused(tmp_path: Path, tiles: tuple[Tile, ...]) -> None:
    subject = product(tmp_path, "MatMul")
    with pytest.raises(UsageError, match="do not fit its 9 inputs and 7 outputs"):
        subject.rewritten(Plan(subject.structure.digest, tiles={"w": tiles}))


def test_weights_outside_tiles_are_refused(tmp_path: Path) -> None:
    subject = product(tmp_path, "MatMul")
    with pytest.raises(CheckError, match="lie outside the plan's tiles"):
        subject.rewritten(Plan(subject.structure.digest, tiles={"w": (Tile(0, 7, 0, 8),)}))
    with pytest.raises(UsageError, match="no weight of a product"):
        subject.rewritten(Plan(subject.structure.digest, tiles={"nothing": (Tile(0, 7, 0, 8),)}))


def test_a_file_that_reads_other_inputs_is_seen(tmp_path: Path) -> None:
    """A Slice moved by one, or tiles put together in another order, are not what the plan says."""
    subject = product(tmp_path, "MatMul")
    tiles = (Tile(0, 4, 0, 5), Tile(4, 7, 4, 9))
    weight = np.random.default_rng(0).normal(size=(9, 7)).astype(np.float32) * Tiled(tiles).project(np.ones((9, 7)))
    graph = subject.rewritten(Plan(subject.structure.digest, weights={"w": weight}, tiles={"w": tiles})).graph
    assert tuple(t for t, _ in read_back(graph, "first", 9)) == tiles
    joined = next(n for n in graph if n.op_type == "Concat")
    joined.replace_input_with(0, joined.inputs[1])
    with pytest.raises(CheckError, match="put this product together"):
        read_back(graph, "first", 9)
    with pytest.raises(CheckError, match="other"):
        read_back(graph, "other", 9)


def test_orders_change_nothing_but_positions(zoo: Build) -> None:
    """Neurons in reverse: every matrix follows, and the outputs are what they were."""
    model = zoo("bert", "torchscript", "eager")
    subject, feeds = Subject.load(model.path), model.feeds
    group = next(g for g in subject.structure.groups if g.kind == "neurons")
    reader = next(n for n in subject.model.graph if n.name == group.readers[0].node)
    source, weight = (v.name or "" for v in reader.inputs[:2] if v is not None)
    plan = Plan(subject.structure.digest, order={source: tuple(reversed(range(group.size)))})
    before = subject.interpreter.weight(weight).numpy()
    after = subject.rewritten(plan).graph.initializers[weight].const_value
    assert after is not None
    np.testing.assert_array_equal(after.numpy(), before[::-1])
    assert distance(subject.written(plan, feeds), subject.dense(feeds)) < 1e-4
    missing = replace(plan, order={source: tuple(range(group.size - 1))})
    with pytest.raises(UsageError, match="not each of the"):
        subject.rewritten(missing)
    with pytest.raises(UsageError, match="can be put in order"):
        subject.rewritten(replace(plan, order={"no such value": (0,)}))


@pytest.mark.parametrize(("form", "parted"), [("blocks-of-inputs", False), ("output", True)])
def test_what_shares_a_scale_in_blocks_stays_together(tmp_path: Path, form: str, parted: bool) -> None:
    subject = Subject.load(quantised_graphs.mlp(tmp_path / "model.onnx", quantised_graphs.FORMS[form]))
    products = [n for n in subject.model.graph if n.op_type == "MatMul"]
    assert products
    assert all(divisible(node) is parted for node in products)
