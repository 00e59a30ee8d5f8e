"""How far a pruned model's outputs are from the dense model's, without labels; and what these distances cannot see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.measure.equivalence import max_distance
from onnxprune.measure.metrics.observe import teacher_cosines, teacher_decisions
from onnxprune.measure.metrics.values import ratio
from onnxprune.probe import divergence as measures

Array = NDArray[Any]
Outputs = Mapping[str, Array]

HARDLY = 0.01
"""Outputs that vary by less than this of their size are nearly the same for every row."""
_ROUNDING = 1e-6
"""A spread below this share of the outputs' size is rounding."""
_DIGITS = 9
"""Decimals that do not depend on how rows were batched."""
_STILL = 0.03
"""Outputs whose spread over rows is below this share of the dense outputs' answer every row alike."""
_FOREIGN = 0.5
"""A model that explains less than this of the dense outputs' variance is another model."""
_FLIPPED = 0.8
"""Or one that decides as the dense one on fewer rows than this."""
_NOTHING = 0.005
"""Explained variance that is told as 0%: the dense outputs' mean over the rows explains as much."""
_FAR = 0.05
"""Outputs that vary by less than this of their size are near their mean, whatever a model makes of the rest."""
_TELLING = 8
"""Rows below which luck may explain nothing."""
_DECIDING = 16
"""And decide as one class for all rows would."""


@dataclass(frozen=True)
class Drift:
    """How far the pruned model's outputs are from the dense model's; no labels are used.

    Attributes:
        divergence: mean over rows of the divergence that pruning minimised.
        measure: what that divergence is, in words.
        kl: mean KL(dense ‖ pruned) in nats over class scores; None without such outputs.
        cosine: mean cosine of output vectors; None where rows hold single scores.
        agreement: share of decisions (highest class) that are the same; None without class scores.
        max_abs: largest absolute difference in any output that counts.
        explained_variance: 1 − squared difference / the dense output's variance over rows: what is left of that by
            which one row differs from another, whatever all have in common; of the worst output that varies at all.
            None where none does.
        variation: how much the dense outputs vary over rows: their standard deviation relative to their size (root
            mean square), of the output that varies most; where it is small, cosine and agreement see little.
    """

    divergence: float
    measure: str
    kl: float | None
    cosine: float | None
    agreement: float | None
    max_abs: float
    explained_variance: float | None = None
    variation: float | None = None


class DriftTally:
    """Sums over rows of every distance between two models' outputs.

    Args:
        divergence: how outputs are compared.
        samples: outputs of some batches, by name.
    """

    def __init__(self, divergence: measures.Divergence, samples: Mapping[str, Sequence[Array]]) -> None:
        self.divergence = divergence
        self.scores = {
            m.output: m.axis for m in divergence.measures if m.kind in (measures.Kind.KL, measures.Kind.PROBABILITY_KL)
        }
        vectors = [n for n in divergence.outputs if samples[n][0].ndim > 1 and samples[n][0].shape[-1] > 1]
        self.kl_outputs = [m.output for m in divergence.measures if m.kind in measures.SCORES]
        self.observers = {}
        if self.scores:
            self.observers["agreement"] = teacher_decisions(self.scores)
        if vectors:
            self.observers["cosine"] = teacher_cosines(vectors)
        self.rows: dict[str, list[Array]] = {"divergence": [], "kl": [], **{name: [] for name in self.observers}}
        self.max_abs = 0.0
        self.count = 0
        self.dense, self.pruned = ({name: Spread() for name in divergence.outputs} for _ in range(2))
        self.residual = dict.fromkeys(divergence.outputs, 0.0)
        self.decided: tuple[set[int], set[int]] = (set(), set())
        self.chosen: dict[str, Counter[int]] = {name: Counter() for name in self.scores}

    def add(self, expected: Outputs, found: Outputs, real: Array | None) -> None:
        """Both models' outputs for one batch; `real` [rows, tokens] tells what is no padding."""
        each = self.divergence.each(expected, found, real)
        self.rows["divergence"].append(np.sum(list(each.values()), axis=0))
        if self.kl_outputs:
            self.rows["kl"].append(np.sum([each[name] for name in self.kl_outputs], axis=0))
        for name, observe in self.observers.items():
            self.rows[name].append(observe(found, expected, real))
        self.max_abs = max(self.max_abs, *(max_distance(found[name], expected[name]) for name in expected))
        self.count += len(next(iter(each.values())))
        for name in expected:
            before, after = (real_part(outputs[name], real) for outputs in (expected, found))
            self.dense[name].add(before)
            self.pruned[name].add(after)
            self.residual[name] += float(np.square(after - before).sum())
        for name, axis in self.scores.items():
            # Scores beside padding count for little: what is asked is whether one class is chosen nearly always.
            self.chosen[name].update(expected[name].argmax(axis).ravel().tolist())
            if expected[name].ndim == 2:
                for seen, outputs in zip(self.decided, (expected, found), strict=True):
                    seen.update(np.unique(outputs[name].argmax(axis)).tolist())

    def result(self) -> Drift:
        """The distances over all rows."""
        gathered = {name: np.concatenate(rows) for name, rows in self.rows.items() if rows}
        explained = [1 - self.residual[n] / s.total for n, s in self.dense.items() if s.varies]
        variation = [s.relative for s in self.dense.values()]
        return Drift(
            divergence=float(gathered["divergence"].mean()),
            measure=self.divergence.description,
            kl=float(gathered["kl"].mean()) if "kl" in gathered else None,
            cosine=ratio(gathered["cosine"]) if "cosine" in gathered else None,
            agreement=ratio(gathered["agreement"]) if "agreement" in gathered else None,
            max_abs=self.max_abs,
            explained_variance=round(min(explained), _DIGITS) if explained and self.count > 1 else None,
            variation=round(max(variation), _DIGITS) if self.count > 1 else None,
        )

    def broken(self, drift: Drift) -> tuple[str, ...]:
        """What makes the pruned model useless, whatever it saves."""
        said = []
        varied = [n for n, s in self.dense.items() if s.varies]
        still = [n for n in varied if self._still(n)]
        if self.count > 1 and still:
            said.append(
                f"the pruned model's outputs no longer vary over the rows ({', '.join(still)}): it answers every one "
                "of them alike. Keep more"
            )
        elif min(map(len, self.decided)) == 1 < len(self.decided[0]):
            said.append(
                f"the pruned model decides for class {next(iter(self.decided[1]))} on every row, the dense one for "
                f"{len(self.decided[0])} different classes. Keep more"
            )
        explained, agreement = drift.explained_variance, drift.agreement
        told = []
        if explained is not None and explained < _FOREIGN and drift.max_abs > 0:
            told.append(f"{max(explained, 0):.0%} of the dense outputs' variance over the rows is left")
        if agreement is not None and agreement < _FLIPPED:
            told.append(f"{1 - agreement:.0%} of its decisions are other than the dense model's")
        if told and not said:
            said.append(f"the pruned model computes something else: {', and '.join(told)}. Keep more")
        return tuple(said)

    def _still(self, name: str) -> bool:
        """Whether an output of the pruned model hardly varies, beside the dense one's."""
        return self.pruned[name].total < _STILL**2 * self.dense[name].total

    def nothing_left(self, drift: Drift) -> bool:
        """Whether no output keeps anything of what the dense model tells of a row.

        None varies any more; or the dense outputs' own mean over the rows is as close to each of them, where that is
        not close anyway. Decisions, where there are any, agree no more often than one class for all rows would. Not
        told of few rows.
        """
        varied = [n for n, s in self.dense.items() if s.varies]
        explained = [1 - self.residual[n] / self.dense[n].total for n in varied]
        if self.count < _TELLING or not varied or max(explained) >= _NOTHING:
            return False
        if (drift.variation or 0) < _FAR and not all(self._still(n) for n in varied):
            return False
        if drift.agreement is None:
            return True
        if self.count < _DECIDING:
            return False
        return drift.agreement <= max(max(c.values()) / c.total() for c in self.chosen.values() if c)

    def doubts(self, drift: Drift) -> tuple[str, ...]:
        """What the distances cannot see on these rows."""
        if self.count < 2:
            return ("there is one row to compare on: how outputs vary from row to row cannot be told",)
        if not any(s.varies for s in self.dense.values()):
            return ("the dense model's outputs are the same for all rows: nothing that is measured here can tell",)
        if drift.variation is not None and drift.variation < HARDLY:
            return (
                f"the dense model's outputs hardly vary over the rows (by {drift.variation:.2%} of their size): "
                "cosine, agreement and divergence see little of what pruning does, explained variance does",
            )
        if len(self.decided[0]) == 1 and self.count >= 8:
            return (
                f"the dense model decides for class {next(iter(self.decided[0]))} on every row: agreement with it "
                "tells little",
            )
        return ()


class Spread:
    """The sum of squares about the mean over rows, of every element of an output on its own.

    Where rows are of several lengths, the elements along that axis share one mean.
    """

    def __init__(self) -> None:
        self._sum: Array | None = None
        self._count = 0  # values behind every element's mean
        self._squares = 0.0
        self._elements = 0
        self._pivot = 0.0  # what is subtracted first, so that a common offset costs no digits

    def add(self, values: Array) -> None:
        """[rows, …] float64."""
        if not values.size:
            return
        if self._sum is None:
            self._sum, self._pivot = np.zeros(values.shape[1:]), float(values.mean())
        shifted = values - self._pivot
        self._squares += float(np.square(shifted).sum())
        self._elements += values.size
        count, summed = len(values), shifted.sum(0)
        for axis in range(summed.ndim):
            own, other = self._sum.shape[axis], summed.shape[axis]
            if own != other:
                self._sum, summed = self._sum.sum(axis, keepdims=True), summed.sum(axis, keepdims=True)
                self._count, count = self._count * own, count * other
        self._sum = self._sum + summed
        self._count += count

    @property
    def total(self) -> float:
        """Squared distances from the mean, summed."""
        if self._sum is None or not self._count:
            return 0.0
        return max(self._squares - float(np.square(self._sum).sum()) / self._count, 0.0)

    @property
    def relative(self) -> float:
        """The standard deviation over the root mean square."""
        if self._sum is None:
            return 0.0
        size = self._squares + 2 * self._pivot * float(self._sum.sum()) + self._elements * self._pivot**2
        return float(np.sqrt(self.total / size)) if size > 0 else 0.0

    @property
    def varies(self) -> bool:
        """By more than rounding."""
        return self.relative > _ROUNDING


def real_part(values: Array, real: Array | None) -> Array:
    """[rows, tokens, …] -> [real tokens, 1, …] where some are padding; everything else as it is; float64."""
    wide = np.asarray(values, np.float64)
    if real is None or real.all() or wide.ndim < 2 or wide.shape[:2] != real.shape:
        return wide
    return np.asarray(wide[np.asarray(real, bool)][:, None])
