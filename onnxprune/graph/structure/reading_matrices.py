"""A reader as a matrix product: its weight as [inputs, outputs], what it reads as rows, and whose rows they are.

MatMul, Gemm and convolutions differ in layout only; scores and solvers see none of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph import ops
from onnxprune.graph.axes import index_of
from onnxprune.graph.ops.conv import flat_pads, spatial_pads
from onnxprune.graph.ops.normalize import narrows
from onnxprune.graph.plan import Group, Reader, Structure


@dataclass(frozen=True)
class Matrix:
    """One reader of one group, in matrix form.

    Attributes:
        units: int64 [inputs]: the unit that owns each input row; -1 for rows of no unit of the group.
        output: name of the value the reader writes.
        kernel: positions a convolution reads per channel; 1 otherwise.
    """

    reader: Reader
    node: ir.Node
    units: np.ndarray
    output: str
    kernel: int

    def weight(self, array: np.ndarray) -> np.ndarray:
        """The weight as [inputs, outputs]."""
        if self.kernel > 1:  # [out, in, *k] -> [in·k, out]
            return array.reshape(array.shape[0], -1).T
        moved = np.moveaxis(array, self.reader.weight_axis, 0)
        return moved.reshape(moved.shape[0], -1)

    def restore(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A matrix back in the weight's own shape."""
        if self.kernel > 1:
            return np.ascontiguousarray(matrix.T).reshape(shape)
        axis = self.reader.weight_axis
        moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), 0, axis))

    def rows(self, x: Any, real: Any = None) -> Any:
        """What the reader reads, [tokens, inputs]; padding left out."""
        if self.node.op_type == "Conv":
            return self._patches(x)
        return self._real(x.movedim(self.reader.axis, -1), real)

    def written(self, y: Any, real: Any = None) -> Any:
        """What the reader writes, [tokens, outputs], in the same order as `rows`."""
        if self.node.op_type == "Conv":
            return y.movedim(1, -1).reshape(-1, y.shape[1])
        if self.node.op_type == "MatMul" and self.reader.input == 1:
            y = y.movedim(-2, -1)
        return self._real(y, real)

    def _real(self, x: Any, real: Any) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        return flat[real.reshape(-1)] if real is not None and real.numel() == flat.shape[0] else flat

    def _patches(self, x: Any) -> Any:
        import torch

        rank = x.dim() - 2
        strides = tuple(ops.attribute(self.node, "strides", [1] * rank))
        dilations = tuple(ops.attribute(self.node, "dilations", [1] * rank))
        kernel = tuple(self.node.inputs[1].shape[2:])  # type: ignore[union-attr, index]
        pads = spatial_pads(self.node, tuple(x.shape[2:]), kernel, strides, dilations)
        x = torch.nn.functional.pad(x, flat_pads(pads))
        if self.kernel == 1:
            x = x[(slice(None), slice(None), *(slice(None, None, s) for s in strides))]
            return x.movedim(1, -1).reshape(-1, x.shape[1])
        if rank == 1:
            x, strides, dilations, kernel = x.unsqueeze(-1), (*strides, 1), (*dilations, 1), (*kernel, 1)
        unfolded = torch.nn.functional.unfold(x, kernel, dilations, 0, strides)
        return unfolded.movedim(1, -1).reshape(-1, unfolded.shape[1])


def matrices(graph: ir.Graph, structure: Structure, group: Group) -> list[Matrix] | None:
    """Every reader of a group as a matrix, or None where one has no weight (query and key dimensions).

    Norms read the width of the stream beside its matrices; they have nothing to be scored or refit by.
    """
    nodes = {n.name: n for n in graph}
    found = []
    for reader in group.readers:
        node = nodes[reader.node]
        if reader.weight is None and narrows(node):
            continue
        if reader.weight is None or node.op_type not in ("MatMul", "Gemm", "Conv"):
            return None
        weight, source = graph.initializers[reader.weight], node.inputs[reader.input]
        assert weight.const_value is not None and source is not None
        if node.op_type != "Conv" and len(weight.const_value.shape) != 2:
            return None
        kernel = int(np.prod(weight.const_value.shape.numpy()[2:])) if node.op_type == "Conv" else 1
        if node.op_type == "Conv" and len(weight.const_value.shape) > 4:
            return None
        layout = structure.layouts[source.name or ""][reader.axis]
        index = [index_of(layout, atom, structure.sizes) for atom in (*group.context, group.atom)]
        units = np.ravel_multi_index([np.maximum(i, 0) for i in index], group.shape)
        units = np.where(np.min(index, axis=0) < 0, -1, units)
        found.append(Matrix(reader, node, np.repeat(units, kernel), node.outputs[0].name or "", kernel))
    return found
