"""Model files that anyone could have made: refused in one line before anything is done with them, or read."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import perceptron
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import LimitError, ModelError, OnnxPruneError, UnsupportedError
from onnxprune.graph import model as models
from onnxprune.graph.structure.analyze import analyze

Change = Callable[[onnx.ModelProto], object]


def outside(folder: Path, location: str | None, **entries: object) -> bytes:
    """A model whose first weight lies elsewhere; its bytes."""
    model = perceptron.perceptron()
    tensor = model.graph.initializer[0]
    raw = bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    told = {"location": location, "offset": 0, "length": len(raw), **entries}
    for key, value in told.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    perceptron.write(folder / "model.onnx", model)
    return raw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "deep" / "job"
    place.mkdir(parents=True)
    return place


def test_data_beside_the_model_are_read(folder: Path) -> None:
    raw = outside(folder, "weights/w.bin")
    (folder / "weights").mkdir()
    (folder / "weights" / "w.bin").write_bytes(raw)
    model = models.load(folder / "model.onnx")
    found = model.graph.initializers["up_0"].const_value
    assert found is not None and found.numpy().tobytes() == raw


@pytest.mark.parametrize("location", ["../w.bin", "sub/../../w.bin", "..\\w.bin", "C:\\w.bin", "", ".", None, "a\0b"])
def test_a_location_out_of_the_folder_is_refused(folder: Path, location: str | None) -> None:
    (folder / "sub").mkdir()
    (folder.parent / "w.bin").write_bytes(outside(folder, location))
    with pytest.raises(ModelError, match="up_0"):
        models.read(folder / "model.onnx")


def test_an_absolute_location_a_link_a_pipe_and_a_device_are_refused(folder: Path) -> None:
    target = folder.parent / "target.bin"
    target.write_bytes(outside(folder, str(target)))
    with pytest.raises(ModelError, match="outside"):
        models.read(folder / "model.onnx")
    outside(folder, "w.bin")
    (folder / "w.bin").symlink_to(target)
    with pytest.raises(ModelError, match="link out of"):
        models.read(folder / "model.onnx")
    outside(folder, "linked/target.bin")
    (folder / "linked").symlink_to(folder.parent)
    with pytest.raises(ModelError, match="link out of"):
        models.read(folder / "model.onnx")
    outside(folder, "pipe")
    os.mkfifo(folder / "pipe")
    with pytest.raises(ModelError, match="no regular file"):
        models.read(folder / "model.onnx")


def test_the_cache_of_the_hub_is_links_into_one_folder(folder: Path) -> None:
    raw = outside(folder, "model.onnx_data")
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    shutil.move(folder / "model.onnx", blobs / "one")
    (blobs / "two").write_bytes(raw)
    (snapshot / "model.onnx").symlink_to("../../blobs/one")
    (snapshot / "model.onnx_data").symlink_to("../../blobs/two")
    found = models.load(snapshot / "model.onnx").graph.initializers["up_0"].const_value
    assert found is not None and found.numpy().tobytes() == raw


@pytest.mark.parametrize(
    "entries",
    [{"length": 16}, {"length": 4096}, {"length": -16}, {"offset": -16}, {"offset": 2**62}, {"offset": "abc"},
     {"offset": "9" * 30}, {"offset": 4}],
)  # fmt: skip
def test_bytes_that_are_not_the_tensors_are_refused(folder: Path, entries: dict[str, object]) -> None:
    raw = outside(folder, "w.bin", **entries)
    (folder / "w.bin").write_bytes(raw)
    with pytest.raises(ModelError, match="up_0"):
        models.read(folder / "model.onnx")


def test_tensors_share_bytes_whole_or_not_at_all(folder: Path) -> None:
    model = perceptron.perceptron()
    first, second = (next(t for t in model.graph.initializer if t.name == f"up_{i}") for i in (0, 1))
    raw = bytes(first.raw_data)
    for tensor, offset in ((first, 0), (second, 0)):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", offset), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
    (folder / "w.bin").write_bytes(raw * 2)
    models.read(perceptron.write(folder / "model.onnx", model))
    second.external_data[1].value = "4"
    with pytest.raises(ModelError, match="overlap"):
        models.read(perceptron.write(folder / "model.onnx", model))


@pytest.mark.parametrize("command", ["inspect", "prune", "plan", "apply", "validate", "bench", "profile", "export"])
def test_every_command_refuses_data_outside(
    folder: Path, command: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    (folder.parent / "w.bin").write_bytes(outside(folder, "../w.bin"))
    rows = perceptron.write_rows(folder / "rows.jsonl")
    model, good, new = folder / "model.onnx", perceptron.write(folder / "good.onnx"), folder / "new.onnx"
    plan = folder / "p.json"
    plan.write_text('{"schema_version": 1, "digest": "a", "keep": {}, "drop": [], "tensors": 0}')
    arguments: dict[str, list[object]] = {
        "inspect": [model],
        "prune": [model, "-o", new, "--flops", "0.6"],
        "plan": [model, "-o", folder / "q.json", "--flops", "0.6"],
        "apply": [model, plan, "-o", new],
        "validate": [good, model, "--eval", rows],
        "bench": [good, model],
        "profile": [model, "-o", folder / "t.json"],
        "export": [model, "--target", "server", "-o", folder / "x"],
    }
    before = set(folder.iterdir())
    code, _, err = run(command, *arguments[command])
    assert code == 3 and "outside the model's folder" in err, err
    assert set(folder.iterdir()) == before


def tensor(change: Callable[[TensorProto], object]) -> Change:
    return lambda model: change(model.graph.initializer[0])


def dims(*sizes: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(sizes)

    return change


def put(node: onnx.NodeProto) -> Change:
    """A node of its own in front of the first."""

    def change(model: onnx.ModelProto) -> None:
        nodes = [node, *model.graph.node]
        nodes[1].input[0] = node.output[0]
        model.graph.ClearField("node")
        model.graph.node.extend(nodes)

    return change


REFERENCE = onnx.AttributeProto(name="a", type=onnx.AttributeProto.INT, ref_attr_name="b")
DAMAGED: dict[str, Change] = {
    "bytes missing": tensor(lambda t: setattr(t, "raw_data", t.raw_data[:-4])),
    "bytes too many": tensor(lambda t: setattr(t, "raw_data", t.raw_data + b"1")),
    "no bytes": tensor(lambda t: t.ClearField("raw_data")),
    "values too few": tensor(lambda t: (t.ClearField("raw_data"), t.float_data.extend([1.0] * 5))),
    "negative": dims(-8, -16),
    "huge": dims(2**32, 2**32),
    "two hundred dimensions": dims(*[1] * 198, 8, 16),
    "no type": tensor(lambda t: setattr(t, "data_type", 0)),
    "an unknown type": tensor(lambda t: setattr(t, "data_type", 999)),
    "text as numbers": tensor(lambda t: setattr(t, "data_type", TensorProto.STRING)),
    "one name twice": lambda m: m.graph.initializer.append(m.graph.initializer[0]),
    "a cycle": lambda m: m.graph.node[0].input.__setitem__(0, "stream_1"),
    "a node that reads itself": lambda m: m.graph.node[4].input.__setitem__(0, "stream_0"),
    "a value of nobody": lambda m: m.graph.node[0].input.__setitem__(0, "nowhere"),
    "no operator": lambda m: setattr(m.graph.node[2], "op_type", ""),
    "an attribute twice": lambda m: m.graph.node[10].attribute.extend([helper.make_attribute("transB", 0)] * 2),
    "a reference": lambda m: m.graph.node[10].attribute.append(REFERENCE),
    "a cast to nothing": put(helper.make_node("Cast", ["x"], ["y"], to=999)),
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
def test_what_is_damaged_is_one_error(folder: Path, change: Change) -> None:
    model = perceptron.perceptron()
    change(model)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        models.load(perceptron.write(folder / "model.onnx", model))


def test_a_name_that_is_made_twice_is_told(folder: Path) -> None:
    """torch's exporter calls a Concat's output `cat`, also where an input is called so."""
    model = perceptron.perceptron()
    model.graph.node.append(helper.make_node("Relu", ["logits"], ["x"]))
    with pytest.raises(ModelError, match="Output 'x' is redeclared"):
        models.load(perceptron.write(folder / "model.onnx", model))


@pytest.mark.parametrize("end", ["input", "output"])
def test_lists_are_no_tensors(folder: Path, end: str) -> None:
    """ONNX Runtime takes and gives lists of arrays, which nothing here compares; ZipMap's are other ones."""
    model = perceptron.perceptron()
    made = [helper.make_node("SequenceConstruct", ["logits"], ["many"])] if end == "output" else []
    model.graph.node.extend(made)
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    getattr(model.graph, end).append(helper.make_value_info("many", kind))
    with pytest.raises(UnsupportedError, match=f"{end} many is a sequence of values"):
        models.load(perceptron.write(folder / "model.onnx", model))


def test_names_that_are_no_text(folder: Path) -> None:
    for name in (b"wide_0", b"MatMul", b"up_0"):
        raw = perceptron.perceptron().SerializeToString().replace(name, b"\xff" * len(name))
        with pytest.raises(ModelError):
            models.load(perceptron.write(folder / "model.onnx", raw))


def functions(count: int, *, closed: bool) -> Change:
    """Functions that call the one before twice; closed: the first calls the last."""

    def change(model: onnx.ModelProto) -> None:
        own, base = helper.make_opsetid("mine", 1), helper.make_opsetid("", 17)
        for k in range(count):
            before = count - 1 if closed and not k else k - 1
            calls = [helper.make_node(f"F{before}", [a], [b], domain="mine") for a, b in (("a", "c"), ("c", "b"))]
            nodes = calls if k or closed else [helper.make_node("Tanh", ["a"], ["b"])]
            model.functions.append(helper.make_function("mine", f"F{k}", ["a"], ["b"], nodes, [base, own]))
        model.opset_import.append(own)
        put(helper.make_node(f"F{count - 1}", ["x"], ["y"], domain="mine"))(model)

    return change


def loop(turns: int | None, *, ends: bool) -> Change:
    def change(model: onnx.ModelProto) -> None:
        told = [
            helper.make_tensor_value_info(n, t, [])
            for n, t in (("i", TensorProto.INT64), ("c", TensorProto.BOOL), ("v", TensorProto.FLOAT))
        ]
        results = [
            helper.make_tensor_value_info(n, t, []) for n, t in (("c2", TensorProto.BOOL), ("v2", TensorProto.FLOAT))
        ]
        last = helper.make_node("Less", ["i", "most"], ["c2"]) if ends else helper.make_node("Identity", ["c"], ["c2"])
        body = helper.make_graph([last, helper.make_node("Identity", ["v"], ["v2"])], "body", told, results)
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "go"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(3), "most"))
        if turns is not None:
            model.graph.initializer.append(numpy_helper.from_array(np.array(turns), "turns"))
        put(helper.make_node("Loop", ["turns" if turns is not None else "", "go", "x"], ["y"], body=body))(model)

    return change


@pytest.mark.parametrize("change", [functions(40, closed=False), loop(2**60, ends=False), loop(None, ends=False)])
def test_what_never_ends_is_refused(folder: Path, change: Change) -> None:
    model = perceptron.perceptron()
    change(model)
    with pytest.raises(LimitError, match=r"turns|never ends|written out"):
        models.read(perceptron.write(folder / "model.onnx", model))


def nested(*turns: int) -> Change:
    """Loops in loops, the outermost first."""

    def change(model: onnx.ModelProto) -> None:
        value = helper.make_tensor_value_info
        inner: list[onnx.NodeProto] = []
        for depth in reversed(range(len(turns))):
            ends = [value(f"{n}{depth}", t, []) for n, t in (("i", 7), ("c", 9), ("v", 1))]
            last = inner or [helper.make_node("Identity", [f"v{depth}"], [f"w{depth}"])]
            steps = [helper.make_node("Identity", [f"c{depth}"], [f"d{depth}"]), *last]
            body = helper.make_graph(steps, "body", ends, [value(f"d{depth}", 9, []), value(f"w{depth}", 1, [])])
            source, result = ("x", "y") if not depth else (f"v{depth - 1}", f"w{depth - 1}")
            inner = [helper.make_node("Loop", [f"turns{depth}", "go", source], [result], body=body)]
            model.graph.initializer.append(numpy_helper.from_array(np.array(turns[depth]), f"turns{depth}"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "go"))
        put(inner[0])(model)

    return change


def _body(*nodes: onnx.NodeProto, gives: str = "b") -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", [], [helper.make_tensor_value_info(gives, 1, None)])


@pytest.mark.parametrize(
    ("then", "told"),
    [
        (_body(helper.make_node("Abs", ["nothing"], ["b"])), "reads nothing, which nothing makes"),
        (_body(gives="x"), "which nothing in its body makes"),
        (
            _body(helper.make_node("If", ["c"], ["b"], then_branch=_body(helper.make_node("Abs", ["q"], ["b"])),
                                   else_branch=_body(helper.make_node("Abs", ["x"], ["b"])))),
            "reads q, which nothing makes",
        ),
    ],
)  # fmt: skip
def test_what_a_body_reads_or_gives_is_made_somewhere(folder: Path, then: onnx.GraphProto, told: str) -> None:
    model = perceptron.perceptron()
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    other = _body(helper.make_node("Neg", ["x"], ["b"]))
    model.graph.node.append(helper.make_node("If", ["c"], ["spare"], then_branch=then, else_branch=other))
    perceptron.write(folder / "model.onnx", model)
    with pytest.raises(ModelError, match=told):
        models.load(folder / "model.onnx")


def test_turns_of_loops_in_loops_are_multiplied(folder: Path) -> None:
    model = perceptron.perceptron()
    nested(1000, 1000, 1000)(model)
    with pytest.raises(LimitError, match="1,000,000,000 turns in all"):
        models.read(perceptron.write(folder / "model.onnx", model))
    model = perceptron.perceptron()
    nested(100, 100, 100)(model)
    models.read(perceptron.write(folder / "model.onnx", model))


def test_functions_in_a_circle_are_refused_and_loops_that_end_are_not(folder: Path) -> None:
    model = perceptron.perceptron()
    functions(1500, closed=True)(model)
    with pytest.raises(ModelError, match="calls itself"):
        models.read(perceptron.write(folder / "model.onnx", model))
    for change in (functions(5, closed=False), loop(2**60, ends=True), loop(10, ends=False)):
        model = perceptron.perceptron()
        change(model)
        models.read(perceptron.write(folder / "model.onnx", model))


GROWING: dict[str, list[Any]] = {
    "ConstantOfShape": [np.array([5000, 5000, 1000])],
    "Expand": [np.ones(1, np.float32), np.array([2**30, 2**30])],
    "Tile": [np.ones((1, 1), np.float32), np.array([5_000_000, 5000])],
    "Range": [np.float32(0), np.float32(1e11), np.float32(1)],
    "Pad": [np.ones((1, 1), np.float32), np.array([0, 0, 5_000_000, 5000])],
    "MatMul": [np.ones((60_000, 1), np.float32), np.ones((1, 60_000), np.float32)],
    "OneHot": [np.array([1]), np.array(2**45), np.array([0, 1], np.float32)],
    "Gather": [np.ones((2, 1_000_000), np.float32), np.zeros(10_000, np.int64)],
}


@pytest.mark.parametrize("operator", GROWING)
def test_constants_that_would_be_large_are_not_computed(folder: Path, operator: str) -> None:
    model = perceptron.perceptron()
    operands = GROWING[operator]
    for i, operand in enumerate(operands):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(operand), f"operand_{i}"))
    nodes = [
        helper.make_node(operator, [f"operand_{i}" for i in range(len(operands))], ["grown"]),
        helper.make_node("ReduceMax", ["grown"], ["most"], keepdims=0),
        helper.make_node("Add", ["x", "most"], ["moved"]),
        *model.graph.node,
    ]
    nodes[3].input[0] = "moved"
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    try:
        models.load(perceptron.write(folder / "model.onnx", model))
    except OnnxPruneError as error:
        assert "memory" not in str(error)


def test_a_graph_may_be_deep(folder: Path) -> None:
    model = perceptron.perceptron(layers=250)
    chain = [helper.make_node("Tanh", [f"t{i}" if i else "x"], [f"t{i + 1}"]) for i in range(2000)]
    nodes = [*chain, *model.graph.node]
    nodes[2000].input[0] = "t2000"
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    structure = analyze(models.load(perceptron.write(folder / "model.onnx", model)))
    assert sum(g.kind == "neurons" for g in structure.groups) == 250


def test_nodes_have_what_their_operator_takes(folder: Path) -> None:
    for change, said in (
        (lambda m: m.graph.node[0].input.append("x"), r"\(MatMul, opset 17\) has 3 inputs, and the operator 2:"),
        (lambda m: m.graph.node[-1].input.__delitem__(slice(1, 3)), r"has 1 inputs, and the operator 2 to 3"),
        (lambda m: m.graph.node[0].output.append("more"), "has 2 outputs, and the operator 1"),
        (lambda m: m.graph.node[-1].attribute.append(helper.make_attribute("alpha", "a")), "alpha is of another type"),
        (lambda m: m.graph.node.append(helper.make_node("Einsum", ["x"], ["y"], equation=7)), "of another type"),
        (lambda m: m.graph.node.append(helper.make_node("Concat", ["x"], ["y"])), r"\(Concat, opset 17\) lacks axis"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 0), "input x has no known element type"),
        (lambda m: m.graph.input[0].ClearField("type"), "input x has no known element type"),
    ):
        model = perceptron.perceptron()
        change(model)
        with pytest.raises(ModelError, match=said):
            models.read(perceptron.write(folder / "model.onnx", model))


@pytest.mark.parametrize("operator", ["Reshape", "Expand", "ConstantOfShape"])
@pytest.mark.parametrize("known", [True, False])
def test_shapes_of_thousands_of_dimensions_are_not_worked_out(folder: Path, operator: str, known: bool) -> None:
    """Each would be a symbol, and their product one of thousands: what is done is as much as of a short shape."""
    model = perceptron.perceptron()
    shape = np.ones(20_000, np.int64)
    if known:
        model.graph.initializer.append(numpy_helper.from_array(shape, "shape"))
    else:
        model.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [len(shape)]))
    put(helper.make_node(operator, (["x"] if operator != "ConstantOfShape" else []) + ["shape"], ["y"]))(model)
    file = perceptron.write(folder / "model.onnx", model)
    models.load(perceptron.write(folder / "before.onnx", perceptron.perceptron()))  # imports and caches
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        with contextlib.suppress(OnnxPruneError):
            models.load(file)
    finally:
        sys.setprofile(None)
    assert calls < 1_000_000  # of two dozen values with 20,000 dimensions each, several millions
