"""Random graphs with control flow: layers behind an If, in the turns of a Loop or of a Scan, and within one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

WIDTH = 6


class Builder:
    """Puts layers together; all streams are [n, s, WIDTH]."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.weights: list[Any] = []
        self.hidden: list[int] = []
        self._count = 0
        self._widths = list(range(7, 40))
        self.rng.shuffle(self._widths)

    def name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"

    def width(self) -> int:
        """One that no other layer has, so that what was found can be told."""
        self.hidden.append(int(self._widths.pop()))
        return self.hidden[-1]

    def weight(self, nodes: list[Any], *shape: int, scale: float = 0.3) -> str:
        """A weight of the outermost graph, or a constant beside what reads it."""
        name = self.name("w")
        array = (self.rng.standard_normal(shape) * scale).astype(np.float32)
        if self.rng.random() < 0.5:
            self.weights.append(nh.from_array(array, name))
        else:
            nodes.append(h.make_node("Constant", [], [name], value=nh.from_array(array, name)))
        return name

    def constant(self, nodes: list[Any], array: Any) -> str:
        name = self.name("c")
        nodes.append(h.make_node("Constant", [], [name], value=nh.from_array(np.asarray(array), name)))
        return name

    def node(self, nodes: list[Any], op: str, inputs: list[str], **attributes: Any) -> str:
        name = self.name("v")
        nodes.append(h.make_node(op, inputs, [name], name=self.name(op), **attributes))
        return name

    def layer(self, nodes: list[Any], x: str) -> str:
        """x + W₂ relu(W₁ x + b₁)."""
        width = self.width()
        up, down = self.weight(nodes, WIDTH, width), self.weight(nodes, width, WIDTH, scale=0.2)
        bias = self.weight(nodes, width)
        inner = self.node(nodes, "Relu", [self.node(nodes, "Add", [self.node(nodes, "MatMul", [x, up]), bias])])
        return self.node(nodes, "Add", [x, self.node(nodes, "MatMul", [inner, down])])

    def choice(self, nodes: list[Any], x: str, depth: int) -> str:
        """One layer or another; the condition looks at the input. What it chooses may be as wide as it likes."""
        wide = self.node(nodes, "ReduceSum", ["x"], keepdims=0)
        asked = self.node(nodes, "Greater", [wide, self.constant(nodes, np.float32(0))])
        width = self.width()
        into, out = self.weight(nodes, WIDTH, width), self.weight(nodes, width, WIDTH, scale=0.2)
        before = self.node(nodes, "MatMul", [x, into])
        sides = []
        for kind in ("Tanh", "Sigmoid"):
            inside: list[Any] = []
            seen = self.node(inside, kind, [before])
            if depth and self.rng.random() < 0.7:
                mixed = self.weight(inside, width, WIDTH)
                back = self.weight(inside, WIDTH, width)
                deeper = self.piece(inside, self.node(inside, "MatMul", [seen, mixed]), depth - 1)
                seen = self.node(inside, "Add", [seen, self.node(inside, "MatMul", [deeper, back])])
            sides.append(h.make_graph(inside, kind, [], [h.make_tensor_value_info(seen, T.FLOAT, None)]))
        chosen = self.node(nodes, "If", [asked], then_branch=sides[0], else_branch=sides[1])
        return self.node(nodes, "Add", [x, self.node(nodes, "MatMul", [chosen, out])])

    def loop(self, nodes: list[Any], x: str, depth: int) -> str:
        """Some turns over a stream of its own width, of which all are kept, too."""
        width = self.width()
        inside: list[Any] = []
        into, out = self.weight(nodes, WIDTH, width), self.weight(nodes, width, WIDTH, scale=0.2)
        start = self.node(nodes, "MatMul", [x, into])
        most = self.constant(nodes, np.int64(3))
        i, going, state = self.name("i"), self.name("k"), self.name("s")
        inner = self.width()
        up, down = self.weight(inside, width, inner), self.weight(inside, inner, width, scale=0.2)
        moved = self.node(
            inside, "MatMul", [self.node(inside, "Relu", [self.node(inside, "MatMul", [state, up])]), down]
        )
        after = self.node(inside, "Tanh", [self.node(inside, "Add", [state, moved])])
        if depth and self.rng.random() < 0.7:
            narrow, wide = self.weight(inside, width, WIDTH), self.weight(inside, WIDTH, width)
            deeper = self.piece(inside, self.node(inside, "MatMul", [after, narrow]), depth - 1)
            after = self.node(inside, "Add", [after, self.node(inside, "MatMul", [deeper, wide])])
        on, kept = self.node(inside, "Identity", [going]), self.node(inside, "Identity", [after])
        given = [h.make_tensor_value_info(n, t, ()) for n, t in ((i, T.INT64), (going, T.BOOL))]
        given.append(h.make_tensor_value_info(state, T.FLOAT, None))
        ends = [h.make_tensor_value_info(on, T.BOOL, None)]
        ends += [h.make_tensor_value_info(v, T.FLOAT, None) for v in (after, kept)]
        body = h.make_graph(inside, "turn", given, ends)
        last, every = self.name("v"), self.name("v")
        nodes.append(h.make_node("Loop", [most, "", start], [last, every], name=self.name("Loop"), body=body))
        mean = self.node(nodes, "ReduceMean", [every], axes=[0], keepdims=0)
        both = self.node(nodes, "Add", [last, mean])
        return self.node(nodes, "Add", [x, self.node(nodes, "MatMul", [both, out])])

    def scan(self, nodes: list[Any], x: str, depth: int) -> str:
        """A recurrence along s, forwards or backwards."""
        width, back = self.width(), int(self.rng.integers(2))
        inside: list[Any] = []
        part, state = self.name("p"), self.name("s")
        mean = self.node(nodes, "ReduceMean", [x], axes=[1], keepdims=0)
        start = self.node(nodes, "MatMul", [mean, self.weight(nodes, WIDTH, width)])
        own = self.node(inside, "MatMul", [part, self.weight(inside, WIDTH, width)])
        past = self.node(inside, "MatMul", [state, self.weight(inside, width, width, scale=0.3)])
        after = self.node(inside, "Tanh", [self.node(inside, "Add", [own, past])])
        given = self.node(inside, "MatMul", [after, self.weight(inside, width, WIDTH)])
        ends = [
            [h.make_tensor_value_info(v, T.FLOAT, ["n", size]) for v, size in pair]
            for pair in (((state, width), (part, WIDTH)), ((after, width), (given, WIDTH)))
        ]
        body = h.make_graph(inside, "turn", ends[0], ends[1])
        last, every = self.name("v"), self.name("v")
        nodes.append(
            h.make_node(
                "Scan", [start, x], [last, every], name=self.name("Scan"), body=body, num_scan_inputs=1,
                scan_input_axes=[1], scan_input_directions=[back], scan_output_axes=[1], scan_output_directions=[back],
            )
        )  # fmt: skip
        end = self.node(nodes, "MatMul", [last, self.weight(nodes, width, WIDTH)])
        spread = self.node(nodes, "Unsqueeze", [end, self.constant(nodes, np.array([1]))])
        return self.node(nodes, "Add", [x, self.node(nodes, "Add", [every, spread])])

    def piece(self, nodes: list[Any], x: str, depth: int) -> str:
        kind = self.rng.choice(("layer", "choice", "loop", "scan"))
        if kind == "layer":
            return self.layer(nodes, x)
        made: str = getattr(self, str(kind))(nodes, x, depth)
        return made


def graph(folder: Path, seed: int, kinds: tuple[str, ...] = ()) -> tuple[Path, list[int]]:
    """A file and the widths that are free in it; with `kinds` these pieces one after another, else random ones."""
    made = Builder(seed)
    nodes: list[Any] = []
    x = made.layer(nodes, "x")
    for kind in kinds or ("", ""):
        x = getattr(made, kind)(nodes, x, 1) if kind else made.piece(nodes, x, 2)
    nodes.append(h.make_node("Identity", [x], ["y"]))
    shape: list[str | int | None] = ["n", "s", WIDTH]
    model = h.make_model(
        h.make_graph(
            nodes, "g", [h.make_tensor_value_info("x", T.FLOAT, shape)],
            [h.make_tensor_value_info("y", T.FLOAT, shape)], made.weights,
        ),
        opset_imports=[h.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.checker.check_model(model)
    path = folder / f"flow{seed}.onnx"
    onnx.save(model, path)
    return path, made.hidden
