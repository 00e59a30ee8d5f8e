"""Second moments of queries and keys where they meet: in a MatMul, or inside an operator that is all of attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxprune.graph.plan import Reader, Structure
from onnxprune.graph.structure.bases import Held, positions
from onnxprune.graph.structure.sites import Site
from onnxprune.probe.forward import Rows
from onnxprune.probe.interpreter import Usage
from onnxprune.probe.second_moments import Gram
from onnxprune.score.unweighted import Side

Weight = Callable[[str], np.ndarray]
Moments = tuple[np.ndarray, np.ndarray]
"""([outer units, n, n], the same): E[q qᵀ] of queries, and the covariance of keys: what all keys have in common adds
the same to a query's scores, which the softmax over them ignores."""


class Meeting(Protocol):
    """A product of queries and keys whose operands are watched."""

    @property
    def used(self) -> Mapping[Usage, Callable[[Any, Any], None]]:
        """What is told of the operands: usage -> (tensor, which of its tokens are real)."""

    def moments(self, weight: Weight) -> Moments:
        """What was seen, with the weights inside the operator as they are."""


def meeting_of(site: Site, rows: Rows, structure: Structure) -> Meeting:
    """What watches the product in which a site's dimensions meet."""
    reader = site.group.readers[0]
    node = next(n for n in rows.interpreter.graph if n.name == reader.node)
    if node.op_type == "Attention" and node.domain == "com.microsoft":
        return _Packed(site, node, structure)
    shown = node.inputs[0]
    assert shown is not None
    if node.op_type in ("Attention", "MultiHeadAttention") and len(structure.layouts[shown.name or ""]) == 3:
        return _Flat(site, node, structure)
    return _Apart(site, reader, rows, structure)


class _Apart:
    """Queries and keys whose heads and dimensions are axes of their own.

    Beside a group's dimensions others may stand on the axis, such as those that positions turn: they are left out.
    """

    def __init__(self, site: Site, reader: Reader, rows: Rows, structure: Structure) -> None:
        self.queries, self.keys = (Side(site, reader, side, rows, structure) for side in (0, 1))
        self.used = {(reader.node, 0): self.queries.add, (reader.node, 1): self.keys.add}

    def moments(self, weight: Weight) -> Moments:
        return _own(self.queries, self.queries.second_moments()), _own(self.keys, self.keys.covariances())


def _own(side: Side, moments: np.ndarray) -> np.ndarray:
    """[outer units, n, n] of a group's own dimensions, out of those of all positions on the axis."""
    if (side.member.sum(0) != 1).any():
        raise Held("a dimension stands at several places of what queries and keys meet in")
    places = side.member.argmax(0)
    return moments[:, places][:, :, places]


class _Flat:
    """Heads and dimensions in one axis; MultiHeadAttention adds a bias inside."""

    def __init__(self, site: Site, node: ir.Node, structure: Structure) -> None:
        operands = [v for v in node.inputs[:2] if v is not None]
        layouts = [structure.layouts[v.name or ""][2] for v in operands]
        self.places = [positions(layout, site.group, structure.sizes) for layout in layouts]
        self.grams = Gram(), Gram()
        self.used = {(node.name or "", side): _adder(gram) for side, gram in enumerate(self.grams)}
        biased = node.op_type == "MultiHeadAttention" and len(node.inputs) > 3
        self.bias = node.inputs[3] if biased else None

    def moments(self, weight: Weight) -> Moments:
        queries, keys = self.grams
        matrix, mean = queries.matrix / queries.count, queries.mean
        if self.bias is not None:
            bias = weight(self.bias.name or "")[: len(mean)].astype(np.float64)
            matrix = matrix + np.outer(mean, bias) + np.outer(bias, mean) + np.outer(bias, bias)
        return _blocks(matrix, self.places[0]), _blocks(keys.centred / keys.count, self.places[1])


class _Packed:
    """com.microsoft Attention, which makes queries and keys itself: x is seen, and what its weights make of it."""

    def __init__(self, site: Site, node: ir.Node, structure: Structure) -> None:
        packed = node.inputs[1]
        assert packed is not None
        self.weight = packed.name or ""
        self.bias = node.inputs[2] if len(node.inputs) > 2 else None
        self.places = positions(structure.layouts[self.weight][1], site.group, structure.sizes)
        self.gram = Gram()
        self.used = {(node.name or "", 0): _adder(self.gram)}

    def moments(self, weight: Weight) -> Moments:
        array = weight(self.weight).astype(np.float64)
        bias = np.zeros(array.shape[1]) if self.bias is None else weight(self.bias.name or "").astype(np.float64)
        queries, keys = self.places[:, 0], self.places[:, 1]
        matrix, mean = self.gram.matrix / self.gram.count, self.gram.mean
        found = []
        for places in queries:
            made, middle = array[:, places], array[:, places].T @ mean
            about = made.T @ (matrix - np.outer(mean, mean)) @ made
            found.append(about + np.outer(middle + bias[places], middle + bias[places]))
        centred = matrix - np.outer(mean, mean)
        return np.array(found), np.array([array[:, p].T @ centred @ array[:, p] for p in keys])


def _blocks(matrix: np.ndarray, places: np.ndarray) -> np.ndarray:
    """[outer units, n, n]: of each, the mean over its copies. places [outer units, copies, n]"""
    return np.array([np.mean([matrix[np.ix_(p, p)] for p in copies], axis=0) for copies in places])


def _adder(gram: Gram) -> Callable[[Any, Any], None]:
    def add(x: Any, real: Any) -> None:
        flat = x.reshape(-1, x.shape[-1])
        gram.add(flat[real.reshape(-1)] if real is not None and real.numel() == len(flat) else flat)

    return add
