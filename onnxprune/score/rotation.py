"""Heads written in bases in which the dimensions to keep are the first ones, before anything is scored.

Second moments of queries, keys and head outputs are taken in one pass; the closed forms of `solvers.rotation` give each
head (each group of heads that share a key or value head) its basis, which is folded into the weights and biases that
show it. Nothing that the model computes changes, and no operator is added.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.plan import Ranking, Structure
from onnxprune.graph.structure.bases import Basis, Held, Shown, basis_of
from onnxprune.graph.structure.reading_matrices import Matrix
from onnxprune.graph.structure.sites import Site, even
from onnxprune.probe.forward import Rows, Weights, grams
from onnxprune.probe.interpreter import Interpreter, Usage
from onnxprune.probe.second_moments import Gram
from onnxprune.refit.solvers.rotation import Rotation, query_key_rotation, value_rotation
from onnxprune.score.head_moments import meeting_of

logger = logging.getLogger(__name__)

FIRST = np.array([True, False])
"""Of a weight inside an attention operator: queries stand before keys."""


@dataclass(frozen=True, eq=False)
class Rotated:
    """What rotating made of a model.

    Attributes:
        weights: initializer -> its numbers in the new bases, in its own shape.
        rankings: group id -> order of its dimensions, the same in each head: the first are the last to go.
        held: group id -> why its basis stays.
        moments: of what all matrices that were asked about read, in the new bases.
    """

    weights: dict[str, np.ndarray] = field(default_factory=dict)
    rankings: dict[str, Ranking] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    moments: dict[Usage, Gram] = field(default_factory=dict)


def rotated(
    rows: Rows,
    sites: Sequence[Site],
    structure: Structure,
    weight: Callable[[str], np.ndarray],
    token_weights: Weights | None = None,
    read: Sequence[Matrix] = (),
) -> Rotated:
    """The bases of the dimensions within heads, where they are free.

    Args:
        rows: to take moments on.
        sites: of the kind head_dims.
        weight: initializer name -> array.
        token_weights: of what is written at each token, by reader.
        read: matrices whose moments are taken in the same pass.
    """
    found = Rotated()
    bases: dict[str, Basis] = {}
    graph = rows.interpreter.graph
    for site in sites:
        try:
            bases[site.id] = basis_of(graph, structure, site.group)
        except Held as why:
            found.held[site.id] = str(why)
    free = [s for s in sites if s.id in bases]
    meetings = {s.id: meeting_of(s, rows, structure) for s in free if not s.matrices}
    used = {usage: use for meeting in meetings.values() for usage, use in meeting.used.items()}
    every = [*read, *(m for s in free for m in s.matrices)]
    found.moments.update(grams(rows, every, weights=token_weights, also=used) if every or used else {})

    def current(name: str) -> np.ndarray:
        return found.weights[name] if name in found.weights else weight(name)

    for site in free:
        basis = bases[site.id]
        reader = site.group.readers[0]
        try:
            if basis.read is None:
                sides = _queries(rows, site, basis)
                pairs = zip(*meetings[site.id].moments(current), strict=True)
                rotations = [query_key_rotation(queries, keys) for queries, keys in pairs]
                folds = [(shown, which, 1 - which) for shown, which in sides]
            else:
                gram = found.moments[reader.node, reader.input]
                rotations = _of_values(gram, site, basis.read, current(basis.read.weight))
                folds = [(shown, _all(shown), np.zeros(0)) for shown in basis.shown]
        except Held as why:
            found.held[site.id] = str(why)
            continue
        for shown, first, second in folds:
            array = current(shown.weight)
            array = _folded(array, shown, [r.first for r in rotations], first)
            found.weights[shown.weight] = _folded(array, shown, [r.second for r in rotations], second)
        if basis.read is not None:
            found.weights[basis.read.weight] = _folded(
                current(basis.read.weight), basis.read, [r.second for r in rotations], _all(basis.read)
            )
            turn = _turn(len(site.matrices[0].units), basis.read, [r.first for r in rotations])
            found.moments[reader.node, reader.input] = gram.turned(turn)
        found.rankings[site.id] = _ranking(site, rotations)
    return found


def _all(shown: Shown) -> np.ndarray:
    return np.ones(shown.positions.shape[1])


def _turn(width: int, read: Shown, bases: Sequence[np.ndarray]) -> np.ndarray:
    """[width, width], what the bases of all outer units make of what is read."""
    found = np.eye(width)
    for places, basis in zip(read.positions, bases, strict=True):
        for positions in places:
            found[np.ix_(positions, positions)] = basis
    return found


def _of_values(gram: Gram, site: Site, read: Shown, array: np.ndarray) -> list[Rotation]:
    """A basis for each outer unit; several heads that share one are as many samples, and read side by side."""
    (matrix,) = site.matrices
    centred, weight = gram.centred / max(gram.count, 1e-30), matrix.weight(array).astype(np.float64)
    found = []
    for places in read.positions:
        covariance = np.mean([centred[np.ix_(p, p)] for p in places], axis=0)
        found.append(value_rotation(covariance, np.concatenate([weight[p] for p in places], axis=1)))
    return found


def _ranking(site: Site, rotations: Sequence[Rotation]) -> Ranking:
    scores = np.stack([r.lost for r in rotations]).reshape(-1)
    width = site.group.shape[-1]
    order = sorted(range(site.group.size), key=lambda u: (u % width, u))
    return even(site, Ranking(site.id, tuple(order), tuple(scores.tolist())))


def _folded(array: np.ndarray, shown: Shown, bases: Sequence[np.ndarray], copies: np.ndarray) -> np.ndarray:
    """A weight whose axis of dimensions is written in the new bases, in some of its copies.

    Args:
        bases: [new, old] for each outer unit.
        copies: which of the places take them, 1 or 0 each; none where it is empty.
    """
    if not copies.any():
        return array
    moved = np.moveaxis(array.astype(np.float64), shown.axis, 0).copy()
    for places, basis in zip(shown.positions, bases, strict=True):
        for positions in places[copies.astype(bool)]:
            moved[positions] = np.tensordot(basis, moved[positions], 1)
    return np.ascontiguousarray(np.moveaxis(moved, 0, shown.axis)).astype(np.float32)


def _queries(rows: Rows, site: Site, basis: Basis) -> list[tuple[Shown, np.ndarray]]:
    """Which of the places of each weight make queries: 1; the others make keys: 0.

    Told by derivatives: what a weight writes reaches one side of the product.

    Raises:
        Held: one reaches both, or neither.
    """
    interpreter = rows.interpreter
    reader = site.group.readers[0]
    node = next(n for n in interpreter.graph if n.name == reader.node)
    inside = {v.name for v in node.inputs if v is not None and v.const_value is not None}
    reached = [
        _reached(interpreter, rows.batches[0].feeds, node, side, [s for s in basis.shown if s.weight not in inside])
        for side in (0, 1)
    ]
    found = []
    outside = iter(zip(*reached, strict=True))
    for shown in basis.shown:
        first, second = next(outside) if shown.weight not in inside else (FIRST, ~FIRST)
        if not (first ^ second).all():
            raise Held(f"{shown.weight} makes queries and keys with the same numbers")
        found.append((shown, first.astype(np.int64)))
    return found


def _reached(
    interpreter: Interpreter, feeds: Mapping[str, Any], node: ir.Node, side: int, shown: Sequence[Shown]
) -> list[np.ndarray]:
    """[copies] of each weight: whether an operand of a node depends on it."""
    import torch

    if not shown:
        return []
    value = node.inputs[side]
    assert value is not None and value.name
    own = {s.weight: interpreter.weight(s.weight).detach().clone().requires_grad_() for s in shown}
    result = interpreter.run(feeds, outputs=[value.name], weights=own)[value.name]
    generator = torch.Generator(device="cpu").manual_seed(0)
    loss = (result * torch.randn(result.shape, generator=generator).to(result)).sum()
    slopes = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
    by_name = dict(zip(own, slopes, strict=True))
    found = []
    for s in shown:
        slope = by_name[s.weight]
        felt = np.zeros(interpreter.weight(s.weight).shape[s.axis], dtype=bool)
        if slope is not None:
            felt = (
                slope.movedim(s.axis, 0).flatten(1).ne(0).any(1).cpu().numpy()
                if slope.dim() > 1
                else (slope.ne(0).cpu().numpy())
            )
        found.append(felt[s.positions].any(axis=(0, 2)))
    return found
