"""A reader as a matrix product: its weight as [inputs, outputs], what it reads as rows, and whose rows they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph import ops
from onnxprune.graph.axes import atoms_of, index_of
from onnxprune.graph.ops.normalize import narrows
from onnxprune.graph.plan import Group, Reader, Structure
from onnxprune.graph.structure.products import Contraction, Product, product_of


@dataclass(frozen=True)
class Matrix:
    """One reader of one group, in matrix form.

    Attributes:
        units: int64 [inputs]: the unit that owns each input row; -1 for rows of no unit of the group.
        along: the same along the axis that is read.
        output: name of the value the reader writes.
    """

    reader: Reader
    node: ir.Node
    units: np.ndarray
    along: np.ndarray
    output: str
    product: Product

    @property
    def usage(self) -> tuple[str, int]:
        """Where the reader reads: (node, input)."""
        return self.reader.node, self.reader.input

    @property
    def refits(self) -> bool:
        """Whether least squares on `rows` may change the weight."""
        return self.product.refits

    @property
    def spatial(self) -> bool:
        """Whether its tokens are the positions of pictures or signals: many a row, and neighbours are alike."""
        return self.product.spatial

    @cached_property
    def states(self) -> str | None:
        """Of an operator that reads what it made itself, what the interpreter calls that."""
        operator = ops.lookup(self.node)
        own = operator is not None and self.reader.input == operator.states > 0
        return ops.states_of(self.node) if own else None

    def weight(self, array: np.ndarray) -> np.ndarray:
        """The weight as [inputs, outputs]."""
        return self.product.weight(array)

    def restore(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A matrix back in the weight's own shape."""
        return self.product.restore(matrix, shape)

    def rows(self, x: Any, real: Any = None) -> Any:
        """What the reader reads, [tokens, inputs]; padding left out."""
        return _real(self.product.rows(x), real)

    def written(self, y: Any, real: Any = None) -> Any:
        """What the reader writes, [tokens, outputs], in the same order as `rows`; None where the two do not match."""
        rows = self.product.written(y)
        return None if rows is None else _real(rows, real)


def _real(flat: Any, real: Any) -> Any:
    if real is None or real.numel() != flat.shape[0] or bool(real.all()):  # rows of one length have none: no copy
        return flat
    return flat[real.reshape(-1)]


def matrices(graph: ir.Graph, structure: Structure, group: Group) -> list[Matrix] | None:
    """Every reader of a group that has a weight as a matrix, or None where there is no telling them by those.

    Beside matrices, norms read the width of the stream, and products of two activations (a decoder's states against an
    encoder's) or sums of squares read neurons: they have nothing to be scored or refit by. Where nothing else reads
    (query and key dimensions), or heads share the units, there is none.
    """
    nodes = {n.name: n for n in graph}
    found = []
    beside = group.kind in ("neurons", "channels") and not group.context
    weighted = any(reader.weight is not None for reader in group.readers)
    for reader in group.readers:
        node = nodes[reader.node]
        if reader.weight is None and (narrows(node) or (beside and weighted)):
            continue
        product = product_of(node, reader) if reader.weight is not None else None
        source = node.inputs[reader.input]
        if product is None or source is None:
            return None
        layouts = structure.layouts[source.name or ""]
        atoms = (*group.context, group.atom)
        axes = product.read if isinstance(product, Contraction) else (reader.axis,)
        if not atoms_of(layouts[reader.axis]).issuperset(atoms):
            return None  # units that several axes tell together are gated along none of them
        units = {axis: _units(structure, group, layouts[axis]) for axis in axes}
        whole = np.full(1, -1)
        for axis in axes:
            whole = np.maximum(whole[:, None], units[axis]).reshape(-1)
        whole = np.tile(whole, product.copies)
        found.append(
            Matrix(
                reader,
                node,
                np.repeat(whole, product.kernel),
                units[reader.axis],
                next((v.name for v in node.outputs if v.name), ""),
                product,
            )
        )
    return found


def _units(structure: Structure, group: Group, layout: Any) -> np.ndarray:
    """The unit that each position of an axis belongs to; -1 where it is none of the group's."""
    index = [index_of(layout, atom, structure.sizes) for atom in (*group.context, group.atom)]
    units = np.ravel_multi_index([np.maximum(i, 0) for i in index], group.shape)
    return np.where(np.min(index, axis=0) < 0, -1, units)
