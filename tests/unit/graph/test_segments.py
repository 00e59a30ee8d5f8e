"""A file in segments against the same file in one session; weights that stay in their file."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest

from onnxprune.graph import memory, runtime, segments
from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan
from onnxprune.graph.stored import SMALL, Stored, Taken
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure.equivalence import check, equivalence

WIDTH, LAYERS = 160, 6
ONE = WIDTH * WIDTH * 4


@pytest.fixture
def stacked(tmp_path: Path) -> Path:
    """x -> x + relu(x @ w) six times, around an If that reads from outside, with its weights beside it."""
    h, random = onnx.helper, np.random.default_rng(0)
    nodes, weights = [], []
    branch = [
        h.make_graph([h.make_node(op, ["x1"], ["b"])], op, [], [h.make_empty_tensor_value_info("b")])
        for op in ("Abs", "Neg")
    ]
    nodes.append(h.make_node("Constant", [], ["half"], value=h.make_tensor("half", 1, [], [0.5])))
    for i in range(LAYERS):
        array = (random.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(array, f"w{i}"))
        nodes.append(h.make_node("MatMul", [f"x{i}", f"w{i}"], [f"m{i}"]))
        nodes.append(h.make_node("Relu", [f"m{i}"], [f"r{i}"]))
        nodes.append(h.make_node("Add", [f"x{i}", f"r{i}"], [f"x{i + 1}"]))
    nodes.append(h.make_node("ReduceSum", [f"x{LAYERS}"], ["s"], keepdims=0))
    nodes.append(h.make_node("Greater", ["s", "half"], ["which"]))
    nodes.append(h.make_node("If", ["which"], ["old"], then_branch=branch[0], else_branch=branch[1]))
    nodes.append(h.make_node("Mul", ["old", "half"], ["y"]))
    shape: list[str | int | None] = ["n", WIDTH]
    graph = h.make_graph(
        nodes, "stacked", [h.make_tensor_value_info("x0", 1, shape)],
        [h.make_tensor_value_info("y", 1, shape), h.make_tensor_value_info("r1", 1, shape)], weights,
    )  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=1024)
    return tmp_path / "m.onnx"


def test_segments_give_what_a_session_gives(stacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = [{"x0": np.random.default_rng(i).standard_normal((2 + i, WIDTH)).astype(np.float32)} for i in range(2)]
    whole = runtime.session(stacked)
    expected = [runtime.run(whole, one) for one in feeds]
    assert isinstance(segments.opened(stacked), type(whole))
    monkeypatch.setattr(memory, "share", lambda: 4 * ONE)
    opened = segments.opened(stacked)
    assert isinstance(opened, segments.Segments)
    assert len(opened.parts) == LAYERS  # a fourth of the share holds one weight
    for one, should in zip(feeds, expected, strict=True):
        found = runtime.run(opened, one)
        assert found.keys() == should.keys()
        for name, value in should.items():
            np.testing.assert_allclose(found[name], value, atol=1e-5)
    for several, should in zip(opened.run_all(None, feeds), expected, strict=True):
        np.testing.assert_allclose(several[0], should["y"], atol=1e-5)
    assert runtime.coverage(opened).complete
    assert equivalence(stacked, zip(feeds, expected, strict=True)).max_rel < 1e-5


def test_batches_are_compared_in_one_pass_over_the_weights(stacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of a file: every segment is opened once, and every weight read once, whatever the number of batches."""
    monkeypatch.setattr(memory, "share", lambda: 4 * ONE)
    dense = models.load(stacked)
    feeds = [{"x0": np.random.default_rng(i).standard_normal((1 + i, WIDTH)).astype(np.float32)} for i in range(5)]
    opened: list[segments.Part] = []
    read: list[str] = []
    session, mapped = segments.Segments._session, Stored._mapped

    def opening(own: segments.Segments, part: segments.Part) -> runtime.Session:
        opened.append(part)
        return session(own, part)

    def mapping(own: Stored, mode: Literal["r", "c"]) -> np.ndarray:
        read.append(own.name or "")
        return mapped(own, mode)

    monkeypatch.setattr(segments.Segments, "_session", opening)
    monkeypatch.setattr(Stored, "_mapped", mapping)
    monkeypatch.setattr(memory, "small_share", lambda: 20 * ONE)
    found = check(dense, analyze(dense), Plan(dense.digest), stacked, feeds)
    assert found.rows == 15
    assert len(opened) == LAYERS
    assert sorted(set(read)) == sorted(read) == [f"w{i}" for i in range(LAYERS)]
    monkeypatch.setattr(memory, "small_share", lambda: 1)  # what is held of batches is bounded, too
    assert check(dense, analyze(dense), Plan(dense.digest), stacked, feeds).rows == 15
    assert len(opened) == LAYERS * 6


def test_each_segment_reads_its_own_weights_alone(stacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "share", lambda: 4 * ONE)
    monkeypatch.setattr(segments, "_PARTS", 2)
    opened = segments.opened(stacked)
    assert isinstance(opened, segments.Segments)
    held = [[t.name for t in part.weights] for part in opened.parts]
    assert held == [["w0", "w1"], ["w2", "w3"], ["w4", "w5"]]


def test_a_stored_weight_is_not_kept(stacked: Path) -> None:
    tensor = models.read(stacked).graph.initializers["w3"].const_value
    assert isinstance(tensor, Stored) and tensor.nbytes > SMALL
    array = tensor.numpy()
    assert array.shape == (WIDTH, WIDTH) and not array.flags.writeable
    assert tensor.tobytes() == array.tobytes()
    before = _mapped(stacked.with_name("m.data"))
    del array
    gc.collect()
    assert (before, _mapped(stacked.with_name("m.data"))) in ((1, 0), (0, 0))  # 0: nothing tells on this system


def _mapped(file: Path) -> int:
    maps = Path("/proc/self/maps")
    return maps.read_text().count(str(file)) if maps.exists() else 0


def test_taken_indices_are_made_when_they_are_read(stacked: Path) -> None:
    tensor = models.read(stacked).graph.initializers["w0"].const_value
    assert tensor is not None
    rows, columns = np.array([3, 1, 2]), np.arange(0, WIDTH, 2)
    taken = Taken(tensor, [(rows, 0), (columns, 1)], "w0")
    assert tuple(taken.shape.numpy()) == (3, WIDTH // 2)
    assert taken.nbytes == 3 * WIDTH // 2 * 4
    np.testing.assert_array_equal(taken.numpy(), tensor.numpy()[rows][:, columns])
