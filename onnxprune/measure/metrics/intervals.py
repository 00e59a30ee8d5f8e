"""How sure one can be of a drop: paired intervals that hold at small counts, too.

A bootstrap knows only what it has seen: where no row changed its answer, its interval has no width, though one row in
fifty may change among those not drawn. Here every draw weighs the rows at random (the Bayesian bootstrap, Rubin 1981)
and counts one further row that hurts as much as a row may: for a mean of bounded values that is Gaffke's bound (2005;
Learned-Miller and Thomas 2019; Phan, Thomas and Learned-Miller 2021), and for rows that are right or wrong it is
exact where changes go one way (Clopper and Pearson 1934).

Where rows change by degrees, their own changes say how much a row may hurt: the further row hurts as much as the worst
of the m rows that changed, and as much as is possible at all with a share of 1 / (m + 1), the odds of the next one
exceeding all those before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.measure.metrics.values import ranks

Array = NDArray[Any]
Drop = Callable[[Array, Array, Array], Array]
"""(statistics of the dense and the pruned model [rows, k], weights [draws, rows]) -> how much worse it is, [draws]."""

_DRAWS = 2000
_IN_TAIL = 25
"""Draws that lie beyond an end, at least; as many more are made as a high level takes."""
_EXACT_DRAWS = 100_000
_AT_ONCE = 1 << 20
"""Weights in memory at once."""
_SAME = 1e-12
"""A row whose loss differs by less is as it was."""


def _never(rows: Array) -> bool:
    return False


@dataclass(frozen=True)
class Family:
    """What an interval must know of a kind of statistics.

    Attributes:
        loss: statistics [rows, k] -> how wrong each row is, [rows]; 0 for right and 1 for wrong where there is no more.
        worst: statistics of both models -> candidates (dense row, pruned row), each [k], for what hurts the pruned
            model as much as is possible: right before, wrong after.
        mean: statistics -> whether the metric is the mean of 1 − loss over these rows.
    """

    loss: Callable[[Array], Array]
    worst: Callable[[Array, Array], list[tuple[Array, Array]]]
    mean: Callable[[Array], bool] = _never


def drop_interval(
    family: Family,
    drop: Drop,
    dense: Array,
    pruned: Array,
    *,
    teacher: bool = False,
    groups: Array | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Interval of how much worse the pruned model is.

    Args:
        family: the kind of statistics.
        drop: how much worse the pruned model is on weighted rows.
        dense, pruned: statistics of the same rows, [rows, k].
        teacher: whether the dense model is right by definition, so that the pruned one cannot be better.
        groups: [rows], equal for rows that are copies of each other and count as one; None where all are their own.
        level: the probability that the interval holds the true drop; (1 − level) / 2 that it lies beyond either end.
        seed: the same seed gives the same interval.

    Returns:
        (low, high), or None for fewer than two rows.
    """
    if len(dense) < 2:
        return None
    tail = (1 - level) / 2
    here = float(drop(dense, pruned, np.ones((1, len(dense))))[0])
    members = np.arange(len(dense)) if groups is None else np.unique(groups, return_inverse=True)[1]
    changes = _changes(family, dense, pruned) if len(np.unique(members)) == len(dense) else None
    if changes is not None:
        (worse, better), rng = changes, np.random.default_rng(seed)
        high = _exact(worse, better, len(dense), tail, rng)
        low = -_exact(better, worse, len(dense), tail, rng, further=not teacher)
    else:
        high = _drawn(family, drop, dense, pruned, members, tail, seed, further=True)
        low = -_drawn(
            family, lambda p, d, w: -drop(d, p, w), pruned, dense, members, tail, seed, further=not teacher
        )  # fmt: skip
    return min(low, here) + 0.0, max(high, here)  # no minus before nothing


def rows_to_show(limit: float, tail: float) -> int:
    """Rows that it takes to show that a share of wrong answers is at most `limit`, if no row changes its answer.

    Args:
        limit: above 0.
        tail: the probability of being wrong.
    """
    return 1 if limit >= 1 else int(np.ceil(np.log(tail) / np.log1p(-limit) - 1e-9))


def _changes(family: Family, dense: Array, pruned: Array) -> tuple[int, int] | None:
    """(rows that went wrong, rows that came right) where every row is right or wrong and all count alike."""
    before, after = family.loss(dense), family.loss(pruned)
    if not family.mean(dense) or not np.isin(np.concatenate([before, after]), (0.0, 1.0)).all():
        return None
    return int((after > before).sum()), int((after < before).sum())


def _exact(worse: int, better: int, rows: int, tail: float, rng: np.random.Generator, *, further: bool = True) -> float:
    """The upper end of the share of rows that went wrong less that of those that came right.

    The shares are Dirichlet with the counts, one further row among those that went wrong (or that stay).
    """
    gone, back, stay = worse + further, better, rows - worse - better + (not further)
    if not gone:
        return 0.0 if not back else -_smallest(back, stay, tail, rng)
    if gone == 1 and not back:
        return float(1 - tail ** (1 / stay)) if stay else 1.0
    changed = rng.beta(gone + back, stay, _EXACT_DRAWS) if stay else np.ones(_EXACT_DRAWS)
    share = rng.beta(gone, back, _EXACT_DRAWS) if back else np.ones(_EXACT_DRAWS)
    return float(np.quantile(changed * (2 * share - 1), 1 - tail))


def _smallest(changed: int, stay: int, tail: float, rng: np.random.Generator) -> float:
    """The lower end of a share."""
    return float(np.quantile(rng.beta(changed, stay, _EXACT_DRAWS), tail)) if stay else 1.0


def _drawn(
    family: Family, drop: Drop, dense: Array, pruned: Array, members: Array, tail: float, seed: int, *, further: bool
) -> float:
    """The upper end of a drop over random weights of the rows (of each group of copies) and of one further row."""
    groups = int(members.max()) + 1
    change = family.loss(pruned) - family.loss(dense)
    changed = len(np.unique(members[np.abs(change) > _SAME]))
    if further:
        seen = int(change.argmax())
        extra = [(dense[seen], pruned[seen]), _most_harmful(drop, dense, pruned, family.worst(dense, pruned))]
        shares = np.array([changed, 1]) / (changed + 1)
    else:  # nothing can hurt: the further row is right in both
        extra, shares = [(pruned[0], pruned[0])], np.ones(1)
    first, second = _with(dense, pruned, extra)
    shares *= len(dense) / groups  # as heavy as a group of copies is on average
    rng = np.random.default_rng(seed)
    draws = max(_DRAWS, int(np.ceil(_IN_TAIL / tail)))
    at_once = max(1, _AT_ONCE // len(first))
    found = []
    for start in range(0, draws, at_once):
        drawn = rng.standard_exponential((min(at_once, draws - start), groups + 1))
        found.append(drop(first, second, np.concatenate([drawn[:, members], drawn[:, -1:] * shares], 1)))
    return float(np.quantile(np.concatenate(found), 1 - tail))


def _most_harmful(
    drop: Drop, dense: Array, pruned: Array, candidates: list[tuple[Array, Array]]
) -> tuple[Array, Array]:
    """The candidate that, as one more row, makes the drop largest."""
    one = np.ones((1, len(dense) + 1))
    return max(candidates, key=lambda pair: float(drop(*_with(dense, pruned, [pair]), one)[0]))


def _with(dense: Array, pruned: Array, extra: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    return (
        np.concatenate([dense, [pair[0] for pair in extra]]),
        np.concatenate([pruned, [pair[1] for pair in extra]]),
    )


# ---- kinds of statistics


def _hit_loss(rows: Array) -> Array:
    return np.asarray(1 - rows[:, 0], np.float64)


def _ratio_loss(rows: Array) -> Array:
    return np.asarray(1 - rows[:, 0] / np.maximum(rows[:, 1], 1e-300), np.float64)


def _worst_ratio(dense: Array, pruned: Array) -> list[tuple[Array, Array]]:
    count = dense[:, 1].mean()
    return [(np.array([count, count]), np.array([0.0, count]))]


def _decision_loss(rows: Array) -> Array:
    return np.asarray(rows[:, 0] != rows[:, 1], np.float64)


_CLASSES = 32
"""Classes that a wrong answer is tried with: of many classes, the rarest and the most frequent."""


def _worst_decisions(dense: Array, pruned: Array) -> list[tuple[Array, Array]]:
    """Rows that were right and are wrong, of every class; the wrong answer is the most frequent other one."""
    seen, counts = np.unique(dense[:, 1], return_counts=True)
    order = seen[np.argsort(-counts, kind="stable")].tolist()
    if len(order) == 1:
        order.append(1.0 - order[0] if order[0] in (0.0, 1.0) else order[0] + 1)
    picked = order if len(order) <= _CLASSES else order[: _CLASSES // 2] + order[-_CLASSES // 2 :]
    return [(np.array([c, c]), np.array([order[1] if c == order[0] else order[0], c])) for c in picked]


def _score_loss(rank: bool) -> Callable[[Array], Array]:
    """Squared difference of both columns at mean 0 and variance 1: a correlation is 1 less half its mean."""

    def loss(rows: Array) -> Array:
        columns = [ranks(c) if rank else c.astype(np.float64) for c in rows[:, :2].T]
        x, y = ((c - c.mean()) / (c.std() or 1.0) for c in columns)
        return np.asarray((x - y) ** 2)

    return loss


def _worst_scores(dense: Array, pruned: Array) -> list[tuple[Array, Array]]:
    """Scores that agreed with their labels and now lie at the other end."""
    (x, y), z = dense[:, :2].T, pruned[:, 0]
    return [
        (np.array([x.max(), y.max()]), np.array([z.min(), y.max()])),
        (np.array([x.min(), y.min()]), np.array([z.max(), y.min()])),
    ]


def _likelihood_loss(rows: Array) -> Array:
    return np.asarray(rows[:, 0] / np.maximum(rows[:, 1], 1e-300), np.float64)


def _worst_likelihood(dense: Array, pruned: Array) -> list[tuple[Array, Array]]:
    tokens = dense[:, 1].mean()
    low, high = _likelihood_loss(dense).min(), _likelihood_loss(np.concatenate([dense, pruned])).max()
    return [(np.array([low * tokens, tokens]), np.array([high * tokens, tokens]))]


def _count_loss(rows: Array) -> Array:
    wrong = rows[:, 1] + rows[:, 2]
    return np.asarray(wrong / np.maximum(2 * rows[:, 0] + wrong, 1e-300), np.float64)


def _worst_counts(dense: Array, pruned: Array) -> list[tuple[Array, Array]]:
    there = (dense[:, 0] + dense[:, 2]).mean()
    return [(np.array([there, 0, 0]), np.array([0, there, there]))]


def _overlap_loss(rows: Array) -> Array:
    intersection, union = np.split(rows, 2, axis=1)
    return np.asarray(1 - intersection.sum(1) / np.maximum(union.sum(1), 1e-300), np.float64)


def _worst_overlap(dense: Array, pruned: Array) -> list[tuple[Array, Array]]:
    union = np.split(dense, 2, axis=1)[1].mean(0)
    return [(np.concatenate([union, union]), np.concatenate([0 * union, union]))]


def _residual(rows: Array) -> Array:
    return np.asarray(rows[:, 0], np.float64)


def _worst_residual(dense: Array, pruned: Array) -> list[tuple[Array, Array]]:
    """The row farthest from the mean, met before and missed by twice as much after."""
    target = dense[:, 2:]
    apart = np.square(target - target.mean(0)).sum(1)
    far = dense[apart.argmax()]
    return [(np.concatenate([[0.0], far[1:]]), np.concatenate([[4 * apart.max()], far[1:]]))]


def _worst_hits(dense: Array, pruned: Array) -> list[tuple[Array, Array]]:
    return [(np.ones(dense.shape[1]), np.zeros(dense.shape[1]))]


def _always(rows: Array) -> bool:
    return True


def _counted_alike(rows: Array) -> bool:
    return bool(np.ptp(rows[:, 1]) == 0)


HITS = Family(_hit_loss, _worst_hits, _always)
"""(share of a row that is right,)."""
RATIOS = Family(_ratio_loss, _worst_ratio, _counted_alike)
"""(right, counted)."""
DECISIONS = Family(_decision_loss, _worst_decisions)
"""(prediction, label)."""
ANSWERS = Family(_decision_loss, _worst_decisions, _always)
"""The same, of which only whether they are equal counts."""
SCORES = Family(_score_loss(False), _worst_scores)
"""(score, label)."""
RANKS = Family(_score_loss(True), _worst_scores)
"""The same, of which only the order counts."""
LIKELIHOODS = Family(_likelihood_loss, _worst_likelihood)
"""(nats, tokens)."""
COUNTS = Family(_count_loss, _worst_counts)
"""(true positive, false positive, false negative)."""
OVERLAPS = Family(_overlap_loss, _worst_overlap)
"""[intersections of every class, unions of every class]."""
EXPLAINED = Family(_residual, _worst_residual)
"""(squared distance, squared norm of the target, target …)."""
