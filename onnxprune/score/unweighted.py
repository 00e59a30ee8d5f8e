"""Units that no weight reads: what queries and keys share within a head, and what sums add up.

Queries and keys meet each other. Without the dimensions R, the product of a query with a key changes by q_R · k_R. Over
queries and keys of any tokens its mean square is 1ᵀ F 1 over R, with F = E[q qᵀ] ∘ E[k kᵀ]: dimensions go one after
another, each the one that adds least. The scale of the scores stays what it was. A sum without the terms R changes by
what they add up to, whose mean square is 1ᵀ F 1, too, with F = E[x xᵀ].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from onnxprune.graph.axes import atoms_of, index_of
from onnxprune.graph.plan import Ranking, Reader, Structure
from onnxprune.graph.structure.sites import Site, summed
from onnxprune.probe.forward import NOTHING, Rows, record
from onnxprune.probe.gates import Gated, places
from onnxprune.probe.interpreter import Usage
from onnxprune.score.base import ranking

TERMS = {"ReduceL1": "abs", "ReduceL2": "square", "ReduceSumSquare": "square"}
"""What a reduction makes of its operand before it adds up."""


def unweighted_rankings(
    rows: Rows, sites: Sequence[Site], structure: Structure, state: Gated = NOTHING
) -> dict[str, Ranking]:
    """Orders of the sites without matrices: group id -> Ranking; one pass over the rows for all."""
    added = [site for site in sites if summed(rows.interpreter.graph, site.group)]
    met = [site for site in sites if site not in added]
    sides = sides_of(met, rows, structure) | terms_of(added, rows, structure)
    used: dict[Usage, Callable[[Any, Any], None]] = {usage: side.add for usage, side in sides.items()}
    if used:
        record(rows, used, state)
    return {site.id: _ranking(site, sides) for site in met} | {site.id: _sum_ranking(site, sides) for site in added}


def sides_of(sites: Sequence[Site], rows: Rows, structure: Structure) -> dict[Usage, Side]:
    """Both operands of every product in which dimensions meet."""
    return {
        (reader.node, side): Side(site, reader, side, rows, structure)
        for site in sites
        for reader in site.group.readers
        for side in (0, 1)
    }


def terms_of(sites: Sequence[Site], rows: Rows, structure: Structure) -> dict[Usage, Side]:
    """What every sum adds up."""
    return {
        (reader.node, reader.input): Side(site, reader, reader.input, rows, structure)
        for site in sites
        for reader in site.group.readers
    }


class Side:
    """Second moments of one operand of a product, for every outer unit that chooses its own dimensions.

    Attributes:
        moments: [outer units, positions, positions], sums over tokens.
        sums: [outer units, positions], of what is read itself; tokens: [outer units], how many there were.
    """

    def __init__(self, site: Site, reader: Reader, side: int, rows: Rows, structure: Structure) -> None:
        node = next(n for n in rows.interpreter.graph if n.name == reader.node)
        self.term = TERMS.get(node.op_type)
        value = node.inputs[side]
        assert value is not None
        self.layouts = structure.layouts[value.name or ""]
        # A MatMul takes keys transposed, one with a scale as it says, an operator that is all of attention as they are.
        held = [axis for axis, layout in enumerate(self.layouts) if site.group.atom in atoms_of(layout)]
        self.axis = reader.axis if side == reader.input or reader.axis in held or not held else held[0]
        self.structure, self.group, self.rows = structure, site.group, site.rows
        owner = index_of(self.layouts[self.axis], site.group.atom, structure.sizes)
        width = site.group.shape[-1]
        self.member = (owner[:, None] == np.arange(width)).astype(np.float64)
        self.moments = np.zeros((site.rows, len(owner), len(owner)))
        self.sums = np.zeros((site.rows, len(owner)))
        self.tokens = np.zeros(site.rows)

    def add(self, x: Any, real: Any) -> None:
        moved = x.movedim(self.axis, -1)
        moved = moved if self.term is None else getattr(moved, self.term)()
        around = [layout for axis, layout in enumerate(self.layouts) if axis != self.axis]
        chosen = places(around, self.group.context, self.structure.sizes, moved.shape[:-1])
        if real is not None and moved.dim() == 4 and (moved.shape[0], moved.shape[2]) == tuple(real.shape):
            chosen = np.where(real.numpy()[:, None, :], chosen, -1)  # no padding
        elif real is not None and tuple(moved.shape[:-1]) == tuple(real.shape):
            chosen = np.where(real.numpy(), chosen, -1)
        flat = moved.reshape(-1, moved.shape[-1]).float()
        chosen = np.broadcast_to(chosen, moved.shape[:-1]).reshape(-1)
        order = np.argsort(chosen, kind="stable")
        ends = np.searchsorted(chosen[order], np.arange(self.rows + 1))
        self.tokens += np.diff(ends)
        if len(set(np.diff(ends).tolist())) == 1:  # as many of each, as there are but where some are padding
            parts = [(slice(None), flat[order[ends[0] :]].reshape(self.rows, -1, flat.shape[-1]))]
        else:
            parts = [(slice(r, r + 1), flat[order[a:b]][None]) for r, (a, b) in enumerate(pairwise(ends))]
        for rows, members in parts:
            self.moments[rows] += (members.mT @ members).double().cpu().numpy()
            self.sums[rows] += members.double().sum(1).cpu().numpy()

    @property
    def count(self) -> float:
        """Tokens of all outer units."""
        return float(self.tokens.sum())

    def second_moments(self) -> np.ndarray:
        """[outer units, positions, positions], means over tokens."""
        return self.moments / np.maximum(self.tokens, 1)[:, None, None]

    def covariances(self) -> np.ndarray:
        """The same about the means."""
        means = self.sums / np.maximum(self.tokens, 1)[:, None]
        return self.second_moments() - means[:, :, None] * means[:, None, :]


def _ranking(site: Site, sides: Mapping[Usage, Side]) -> Ranking:
    width = site.group.shape[-1]
    scores = np.zeros((site.rows, width))
    forms = np.zeros((site.rows, width, width))
    for reader in site.group.readers:
        query, key = sides[reader.node, 0], sides[reader.node, 1]
        together = query.moments * key.moments / max(query.count * key.count, 1)
        forms += np.einsum("pu,rpq,qv->ruv", query.member, together, key.member)
    for row, form in enumerate(forms):
        order, added = _greedy((form + form.T) / 2)
        scores[row, order] = np.maximum.accumulate(added)
    return ranking(site, scores.reshape(-1))


def _sum_ranking(site: Site, sides: Mapping[Usage, Side]) -> Ranking:
    width = site.group.shape[-1]
    scores = np.zeros((site.rows, width))
    for row in range(site.rows):
        terms = (sides[reader.node, reader.input] for reader in site.group.readers)
        order, added = _greedy(sum(t.member.T @ t.second_moments()[row] @ t.member for t in terms))
        scores[row, order] = np.maximum.accumulate(added)
    return ranking(site, scores.reshape(-1))


def _greedy(form: np.ndarray) -> tuple[list[int], list[float]]:
    """Units in the order in which they go, and what each adds to the quadratic form of those that are gone."""
    left, cost = list(range(len(form))), np.diagonal(form).copy()
    order, added = [], []
    while left:
        unit = min(left, key=cost.__getitem__)
        order.append(unit)
        added.append(float(cost[unit]))
        left.remove(unit)
        cost += 2 * form[:, unit]
    return order, added
