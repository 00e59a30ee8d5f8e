"""Random small networks as ONNX, with dead units planted: chains, U-Nets, dense and residual nets, transformers, MLPs.

A unit is dead if everything that reads it has zeros there. Every network has a twin that never had its dead units, so
that what they cost is known without this package's own counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FAMILIES = ("mlp", "chain", "unet", "densenet", "resnet", "grouped", "transformer")


@dataclass(frozen=True, eq=False)
class Flow:
    """A value on its way through the network, with its channels: which of them live."""

    name: str
    live: np.ndarray


@dataclass(eq=False)
class Net:
    """A graph in the making.

    Args:
        dead: share of the units of every group that is dead.
        twin: whether dead units are left out instead of planted.
    """

    rng: np.random.Generator
    dead: float = 0.0
    twin: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    names: int = 0

    def name(self, kind: str) -> str:
        self.names += 1
        return f"{kind}{self.names}"

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        out = self.name(kind.lower())
        self.nodes.append(helper.make_node(kind, inputs, [out], name=f"node_{out}", **attributes))
        return out

    def weight(self, array: np.ndarray) -> str:
        name = self.name("w")
        self.weights[name] = array.astype(np.float32)
        return name

    def units(self, count: int, *, all_live: bool = False) -> np.ndarray:
        """Which of some new units live; at least one does."""
        live = np.ones(count, dtype=bool)
        if not all_live and self.dead:
            live[self.rng.permutation(count)[: min(round(self.dead * count), count - 1)]] = False
        return live

    def matrix(self, inputs: np.ndarray, outputs: np.ndarray, *kernel: int) -> np.ndarray:
        """[outputs, inputs, *kernel]; dead inputs are not read, in a twin neither they nor dead outputs are there."""
        full = (
            self.rng.standard_normal((len(outputs), len(inputs), *kernel))
            * (2 / (inputs.sum() * np.prod(kernel))) ** 0.5
        )
        full[:, ~inputs] = 0
        return np.asarray(full[outputs][:, inputs] if self.twin else full)

    def vector(self, outputs: np.ndarray) -> np.ndarray:
        full = self.rng.standard_normal(len(outputs)) * 0.1
        return full[outputs] if self.twin else full

    # -- layers ------------------------------------------------------------------------------------------------

    def conv(self, x: Flow, outputs: np.ndarray, kernel: int = 3, stride: int = 1) -> Flow:
        weight = self.weight(self.matrix(x.live, outputs, kernel, kernel))
        bias = self.weight(self.vector(outputs))
        pad = kernel // 2
        return Flow(self.node("Conv", [x.name, weight, bias], pads=[pad] * 4, strides=[stride] * 2), outputs)

    def depthwise(self, x: Flow) -> Flow:
        full = self.rng.standard_normal((len(x.live), 1, 3, 3)) / 3
        kept = full[x.live] if self.twin else full
        return Flow(self.node("Conv", [x.name, self.weight(kept)], pads=[1] * 4, group=len(kept)), x.live)

    def linear(self, x: Flow, outputs: np.ndarray) -> Flow:
        product = self.node("MatMul", [x.name, self.weight(self.matrix(x.live, outputs).T)])
        return Flow(self.node("Add", [product, self.weight(self.vector(outputs))]), outputs)

    def act(self, x: Flow, kind: str = "Relu") -> Flow:
        return Flow(self.node(kind, [x.name]), x.live)

    def add(self, x: Flow, y: Flow) -> Flow:
        return Flow(self.node("Add", [x.name, y.name]), x.live)

    def concat(self, *parts: Flow, axis: int = 1) -> Flow:
        return Flow(self.node("Concat", [p.name for p in parts], axis=axis), np.concatenate([p.live for p in parts]))

    def norm(self, x: Flow) -> Flow:
        width = len(x.live)
        scale, shift = self.weight(1 + 0.1 * self.rng.standard_normal(width)), self.weight(np.zeros(width))
        return Flow(self.node("LayerNormalization", [x.name, scale, shift], axis=-1), x.live)

    def width(self, low: int = 8, high: int = 40) -> np.ndarray:
        return self.units(int(self.rng.integers(low, high)))


def _mlp(net: Net, x: Flow) -> Flow:
    for _ in range(int(net.rng.integers(2, 6))):
        x = net.act(net.linear(x, net.width(16, 64)))
    return net.linear(x, net.units(5, all_live=True))


def _head(net: Net, x: Flow) -> Flow:
    pooled = net.node("GlobalAveragePool", [x.name])
    return net.linear(Flow(net.node("Flatten", [pooled]), x.live), net.units(5, all_live=True))


def _chain(net: Net, x: Flow) -> Flow:
    for i in range(int(net.rng.integers(2, 6))):
        x = net.act(net.conv(x, net.width(), stride=2 if i == 1 else 1))
    return _head(net, x)


def _unet(net: Net, x: Flow) -> Flow:
    skips = []
    for _ in range(2):
        x = net.act(net.conv(x, net.width(8, 24)))
        skips.append(x)
        x = Flow(net.node("MaxPool", [x.name], kernel_shape=[2, 2], strides=[2, 2]), x.live)
    x = net.act(net.conv(x, net.width(8, 32)))
    for skip in reversed(skips):
        sizes = net.weight(np.array([1.0, 1.0, 2.0, 2.0]))
        x = Flow(net.node("Resize", [x.name, "", sizes], mode="nearest", nearest_mode="floor",
                          coordinate_transformation_mode="asymmetric"), x.live)  # fmt: skip
        x = net.act(net.conv(net.concat(x, skip), net.width(8, 24)))
    return net.conv(x, net.units(3, all_live=True), kernel=1)


def _densenet(net: Net, x: Flow) -> Flow:
    x = net.conv(x, net.width(8, 24))
    for _ in range(int(net.rng.integers(2, 5))):
        x = net.concat(x, net.act(net.conv(net.act(net.conv(x, net.width(), kernel=1)), net.width(4, 12))))
    return _head(net, x)


def _resnet(net: Net, x: Flow) -> Flow:
    x = net.act(net.conv(x, net.units(int(net.rng.integers(8, 24)), all_live=True)))
    for _ in range(int(net.rng.integers(1, 4))):
        inner = net.conv(net.act(net.conv(x, net.width())), x.live)
        x = net.act(net.add(x, inner))
    return _head(net, net.act(net.conv(x, net.width())))


def _grouped(net: Net, x: Flow) -> Flow:
    x = net.act(net.conv(x, net.width()))
    for _ in range(int(net.rng.integers(1, 4))):
        wide = net.act(net.conv(x, net.width(12, 48), kernel=1))
        x = net.conv(net.act(net.depthwise(wide)), net.width(), kernel=1)
    return _head(net, x)


def _transformer(net: Net, x: Flow) -> Flow:
    heads, dim = int(net.rng.integers(2, 6)), 8
    x = net.linear(x, net.units(16, all_live=True))
    for _ in range(int(net.rng.integers(1, 4))):
        live = net.units(heads)
        inner, own = np.repeat(live, dim), np.ones(heads * dim, dtype=bool)
        there = int(live.sum()) if net.twin else heads
        y = net.norm(x)
        q, k, v = (net.linear(y, inner if net.twin else own) for _ in range(3))
        shape = net.name("shape")
        net.weights[shape] = np.array([0, 0, there, dim], dtype=np.int64)
        flat = net.name("shape")
        net.weights[flat] = np.array([0, 0, there * dim], dtype=np.int64)
        q, k, v = (Flow(net.node("Reshape", [t.name, shape]), t.live) for t in (q, k, v))
        qt = net.node("Transpose", [q.name], perm=[0, 2, 1, 3])
        kt = net.node("Transpose", [k.name], perm=[0, 2, 3, 1])
        vt = net.node("Transpose", [v.name], perm=[0, 2, 1, 3])
        scores = net.node("Mul", [net.node("MatMul", [qt, kt]), net.weight(np.array(dim**-0.5))])
        mixed = net.node("MatMul", [net.node("Softmax", [scores], axis=-1), vt])
        joined = net.node("Reshape", [net.node("Transpose", [mixed], perm=[0, 2, 1, 3]), flat])
        x = net.add(x, net.linear(Flow(joined, inner), x.live))
        x = net.add(x, net.linear(net.act(net.linear(net.norm(x), net.width(16, 64)), "Gelu"), x.live))
    return net.linear(net.norm(x), net.units(5, all_live=True))


_MAKERS: dict[str, tuple[Callable[[Net, Flow], Flow], tuple[int | str, ...], int]] = {
    "mlp": (_mlp, ("N", 12), 1),
    "chain": (_chain, ("N", 3, 8, 8), 1),
    "unet": (_unet, ("N", 3, 8, 8), 1),
    "densenet": (_densenet, ("N", 3, 8, 8), 1),
    "resnet": (_resnet, ("N", 3, 8, 8), 1),
    "grouped": (_grouped, ("N", 3, 8, 8), 1),
    "transformer": (_transformer, ("N", 6, 12), 2),
}


def build(family: str, seed: int, dead: float = 0.0, *, twin: bool = False) -> onnx.ModelProto:
    """A network of a family; the same seed gives the same shape, and the twin's is that without its dead units."""
    make, shape, channels = _MAKERS[family]
    net = Net(np.random.default_rng(seed), dead, twin)
    result = make(net, Flow("x", np.ones(int(shape[channels]), dtype=bool)))
    net.nodes[-1].output[0] = "y"
    assert result.name == net.nodes[-1].name.removeprefix("node_")
    rank = 2 if family == "mlp" or (len(shape) == 4 and family != "unet") else len(shape)
    graph = helper.make_graph(
        net.nodes,
        family,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *[None] * (rank - 1)])],
        [numpy_helper.from_array(a, n) for n, a in net.weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def sample(family: str, rows: int, seed: int = 0) -> np.ndarray:
    """Inputs of a family: [rows, …]."""
    _, shape, _ = _MAKERS[family]
    return np.random.default_rng(seed).standard_normal((rows, *shape[1:])).astype(np.float32)  # type: ignore[arg-type]


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path
