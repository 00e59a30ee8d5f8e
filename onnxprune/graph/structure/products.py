"""What a node makes of its weight, as one matrix product: y = x W, rows of x by columns of W.

MatMul, Gemm, Einsum, convolutions and recurrences differ in where inputs and outputs stand; scores and solvers see
[inputs, outputs] and [tokens, inputs] only. Groups of a convolution and directions of a recurrence are blocks along
the diagonal: each reads its own inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxprune.graph import ops
from onnxprune.graph.ops.conv import flat_pads, spatial_pads
from onnxprune.graph.ops.linear import equation
from onnxprune.graph.ops.mixture import SECOND
from onnxprune.graph.ops.recurrent import RECURRENCE, WEIGHT
from onnxprune.graph.plan import Reader


class Product(Protocol):
    """How a weight and what it is multiplied with are matrices."""

    @property
    def kernel(self) -> int:
        """Inputs of the matrix for each index of the axis that is read."""

    @property
    def refits(self) -> bool:
        """Whether least squares on `rows` may change the weight: all its inputs reach all its outputs, as they are."""

    @property
    def copies(self) -> int:
        """How often the axis that is read stands in the matrix: once for each expert, for each direction."""

    @property
    def spatial(self) -> bool:
        """Whether its tokens are positions of pictures or signals: many a row, and neighbours are alike."""

    def weight(self, array: np.ndarray) -> np.ndarray:
        """[inputs, outputs] of a weight in its own shape."""

    def restore(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The weight's own shape of [inputs, outputs]."""

    def rows(self, x: Any) -> Any:
        """[tokens, inputs] of what is read."""

    def written(self, y: Any) -> Any:
        """[tokens, outputs] of what is written, in the order of `rows`; None where they do not correspond."""


def product_of(node: ir.Node, reader: Reader) -> Product | None:
    """The matrix product behind a reader, None where there is no such thing."""
    weight, source = _operand(node, reader)
    if weight is None or weight.shape is None or source is None or source.shape is None:
        return None
    shape = weight.shape.numpy()
    operator = ops.lookup(node)
    if node.op_type == "MoE":
        return Experts(shape, (0, 2, 1)) if reader.input == SECOND else None
    if operator is not None and operator.states:
        return Recurrence(node) if reader.input == RECURRENCE else Steps(node)
    if node.op_type in ("Conv", "ConvTranspose"):
        if reader.input != 0:
            return None  # kernels that the graph computes, over a picture that is a constant (StyleGAN's first layer)
        return Convolution(node, shape) if node.op_type == "Conv" else Spread(node, shape)
    if node.op_type == "DeformConv":
        return Deformed(node, shape) if reader.input == 0 else None
    if (node.op_type in ("MatMul", "Gemm") or _turned(node)) and all(size == 1 for size in shape[:-2]):
        # From behind: the stream that a result is added to may have more axes than a Gemm has.
        behind = () if len(shape) == 1 else (-1 if reader.input == 0 else -2,)
        return Contraction((reader.weight_axis,), (reader.axis,), behind)
    if node.op_type == "MatMul" and len(shape) == 3 and reader.weight_axis == 1 and reader.input == 0:
        return Experts(shape)
    return _contraction(node, reader, len(source.shape), shape) if node.op_type == "Einsum" else None


def _turned(node: ir.Node) -> bool:
    """Whether a node is a MatMul whose operands are transposed before, and that is all (ONNX Runtime's FusedMatMul)."""
    others = any(ops.attribute(node, name) for name in ("transBatchA", "transBatchB", "activation"))
    return node.op_type == "FusedMatMul" and ops.attribute(node, "alpha", 1.0) == 1.0 and not others


def _operand(node: ir.Node, reader: Reader) -> tuple[ir.Value | None, ir.Value | None]:
    """The weight of a reader, and what is multiplied with it."""
    weight = next((v for v in node.inputs if v is not None and v.name == reader.weight), None)
    return weight, node.inputs[reader.input]


def _contraction(node: ir.Node, reader: Reader, rank: int, weight: tuple[int, ...]) -> Product | None:
    """An Einsum of one activation and one weight in which every letter is summed over, or passed on from one of them.

    A letter that both have and the result too (each expert its own matrix) makes many products of it.

    Args:
        rank: of the activation.
        weight: its shape.
    """
    if len(node.inputs) != 2:
        return None
    ranks = [rank, len(weight)] if reader.input == 0 else [len(weight), rank]
    terms, result = equation(node, ranks)
    x, w = terms if reader.input == 0 else terms[::-1]
    summed = [letter for letter in w if letter in x and letter not in result]
    passed = [letter for letter in w if letter not in x]
    rest = [letter for letter in x if letter not in summed]
    own = [letter for letter in rest if letter in w and letter in result]
    if len(own) == len(summed) == len(passed) == 1 and set(rest + passed) <= set(result):
        order = w.index(own[0]), w.index(summed[0]), w.index(passed[0])
        return Experts(weight, order, (x.index(own[0]), x.index(summed[0])))
    if sorted(summed + passed) != sorted(w) or not set(passed) | set(rest) <= set(result) or set(w) & set(rest):
        return None
    return Contraction(
        tuple(w.index(i) for i in summed), tuple(x.index(i) for i in summed), tuple(result.index(i) for i in passed)
    )


@dataclass(frozen=True)
class Contraction:
    """MatMul, Gemm, Einsum: some axes of the weight meet as many of the activation.

    Attributes:
        axes: of the weight that are read, outermost first; the others, in their order, are the outputs.
        read: the activation's axes that they meet.
        out: the result's axes that are the outputs; none where there is one output, which has no axis.
    """

    axes: tuple[int, ...]
    read: tuple[int, ...]
    out: tuple[int, ...]
    kernel: int = 1
    copies: int = 1
    spatial: bool = False
    refits: bool = True

    def weight(self, array: np.ndarray) -> np.ndarray:
        moved = np.moveaxis(array, self.axes, range(len(self.axes)))
        return moved.reshape(int(np.prod(moved.shape[: len(self.axes)])), -1)

    def restore(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        moved = [shape[a] for a in self.axes] + [size for a, size in enumerate(shape) if a not in self.axes]
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), range(len(self.axes)), self.axes))

    def rows(self, x: Any) -> Any:
        return _last(x, self.read)

    def written(self, y: Any) -> Any:
        return _last(y, self.out) if self.out else y.reshape(-1, 1)


def _last(x: Any, axes: Sequence[int]) -> Any:
    """[everything else, these axes] of a tensor."""
    moved = x.movedim(tuple(axes), tuple(range(-len(axes), 0)))
    return moved.flatten(-len(axes)).reshape(-1, int(np.prod(moved.shape[-len(axes) :])))


def _blocks(blocks: np.ndarray) -> np.ndarray:
    """[g, n, m] -> [g·n, g·m], one block after another along the diagonal."""
    count, n, m = blocks.shape
    whole = np.zeros((count, n, count, m), dtype=blocks.dtype)
    whole[np.arange(count), :, np.arange(count)] = blocks
    return whole.reshape(count * n, count * m)


def _diagonal(matrix: np.ndarray, count: int) -> np.ndarray:
    """[g·n, g·m] -> [g, n, m]: the blocks along the diagonal."""
    n, m = (size // count for size in matrix.shape)
    found: np.ndarray = matrix.reshape(count, n, count, m)[np.arange(count), :, np.arange(count)]
    return found


@dataclass(frozen=True)
class Convolution:
    """Conv: every position of the output reads a patch of the input, [in·kernel]. shape: [out, in / groups, *kernel]"""

    node: ir.Node
    shape: tuple[int, ...]
    copies: int = 1
    spatial: bool = True

    @property
    def groups(self) -> int:
        return int(ops.attribute(self.node, "group", 1))

    @property
    def kernel(self) -> int:
        return int(np.prod(self.shape[2:]))

    @property
    def refits(self) -> bool:
        return self.groups == 1

    def weight(self, array: np.ndarray) -> np.ndarray:
        if self.groups == 1:
            return array.reshape(array.shape[0], -1).T
        blocks = array.reshape(self.groups, array.shape[0] // self.groups, -1)
        return _blocks(blocks.transpose(0, 2, 1))

    def restore(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        blocks = matrix[None] if self.groups == 1 else _diagonal(matrix, self.groups)
        return np.ascontiguousarray(blocks.transpose(0, 2, 1)).reshape(shape)

    def rows(self, x: Any) -> Any:
        import torch

        kernel, rank = self.shape[2:], len(self.shape) - 2
        strides = ops.attribute(self.node, "strides", [1] * rank)
        dilations = ops.attribute(self.node, "dilations", [1] * rank)
        x = torch.nn.functional.pad(
            x, flat_pads(spatial_pads(self.node, tuple(x.shape[2:]), kernel, strides, dilations))
        )
        for axis, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True), start=2):
            x = x.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
        return x.movedim(1, 1 + rank).flatten(1 + rank).reshape(-1, x.shape[1] * self.kernel)

    def written(self, y: Any) -> Any:
        return y.movedim(1, -1).reshape(-1, y.shape[1])


@dataclass(frozen=True)
class Deformed(Convolution):
    """DeformConv, scored as though its kernel looked straight: where it does look is another operand's to say."""

    @property
    def refits(self) -> bool:
        return False

    def written(self, y: Any) -> Any:
        return None


@dataclass(frozen=True)
class Experts:
    """A product by a weight for each index of an axis (experts), [tokens, in] of each by its own [in, out]; blocks.

    Attributes:
        shape: of the weight.
        order: the weight's axes of experts, inputs and outputs; a MatMul's by default, an Einsum's may stand anywhere.
        read: the activation's axes of experts and inputs.
    """

    shape: tuple[int, ...]
    order: tuple[int, int, int] = (0, 1, 2)
    read: tuple[int, int] = (-3, -1)
    kernel: int = 1
    spatial: bool = False
    refits: bool = False

    @property
    def copies(self) -> int:
        return self.shape[self.order[0]]

    def weight(self, array: np.ndarray) -> np.ndarray:
        return _blocks(array.transpose(self.order))

    def restore(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return np.ascontiguousarray(_diagonal(matrix, self.copies).transpose(np.argsort(self.order)))

    def rows(self, x: Any) -> Any:
        """[tokens of all experts, experts·in]: each token's own expert's beside zeros for the others."""
        import torch

        x = x if x.dim() > 2 else x[None]
        moved = x.movedim(self.read, (0, -1))
        parts = moved.expand(self.copies, *moved.shape[1:]).reshape(self.copies, -1, moved.shape[-1])
        found = parts.new_zeros(self.copies, parts.shape[1], self.copies, parts.shape[2])
        found[torch.arange(self.copies), :, torch.arange(self.copies)] = parts
        return found.reshape(-1, self.copies * parts.shape[2])

    def written(self, y: Any) -> Any:
        return None


@dataclass(frozen=True)
class Spread:
    """ConvTranspose: every position of the input writes a patch of the output. shape: [in, out / groups, *kernel]"""

    node: ir.Node
    shape: tuple[int, ...]
    kernel: int = 1
    copies: int = 1
    spatial: bool = True
    refits: bool = False  # patches overlap: what is written is a sum of several rows'

    @property
    def groups(self) -> int:
        return int(ops.attribute(self.node, "group", 1))

    def weight(self, array: np.ndarray) -> np.ndarray:
        return _blocks(array.reshape(self.groups, array.shape[0] // self.groups, -1))

    def restore(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return np.ascontiguousarray(_diagonal(matrix, self.groups)).reshape(shape)

    def rows(self, x: Any) -> Any:
        return x.movedim(1, -1).reshape(-1, x.shape[1])

    def written(self, y: Any) -> Any:
        return None


@dataclass(frozen=True)
class Steps:
    """What a recurrence makes of its input: every gate of every direction reads it, a step of a row at a time."""

    node: ir.Node
    kernel: int = 1
    copies: int = 1
    spatial: bool = False
    refits: bool = True

    @property
    def _batch_first(self) -> bool:
        return bool(ops.attribute(self.node, "layout", 0))

    def weight(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(-1, array.shape[-1]).T

    def restore(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return np.ascontiguousarray(matrix.T).reshape(shape)

    def rows(self, x: Any) -> Any:
        x = x if self._batch_first else x.movedim(0, 1)
        return x.reshape(-1, x.shape[-1])

    def written(self, y: Any) -> Any:
        """The states of each step, where all are an output; the gates themselves are seen by no one."""
        if not self.node.outputs[0].name:
            return None
        y = y if self._batch_first else y.movedim(0, 2).movedim(0, -2)
        return y.reshape(-1, y.shape[-2] * y.shape[-1])


@dataclass(frozen=True)
class Recurrence:
    """What a recurrence makes of its own states; directions are blocks. What it errs in comes back a step later."""

    node: ir.Node
    kernel: int = 1
    spatial: bool = False
    refits: bool = False

    @property
    def copies(self) -> int:
        weight = self.node.inputs[WEIGHT]
        assert weight is not None and weight.shape is not None
        return int(weight.shape.numpy()[0])

    def weight(self, array: np.ndarray) -> np.ndarray:
        return _blocks(array.transpose(0, 2, 1))

    def restore(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return np.ascontiguousarray(_diagonal(matrix, shape[0]).transpose(0, 2, 1))

    def rows(self, x: Any) -> Any:
        """[D·tokens, D·H] of the states that were read, [S, B, D·H]: each direction's beside zeros for the others."""
        import torch

        directions, width = self.copies, x.shape[-1]
        own = torch.arange(width, device=x.device) // (width // directions)
        return torch.cat([x.reshape(-1, width) * (own == d).to(x.dtype) for d in range(directions)])

    def written(self, y: Any) -> Any:
        return None
