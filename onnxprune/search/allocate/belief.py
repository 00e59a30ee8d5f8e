"""What measured moves teach about a damage table: Bayesian linear regression, asked by sampling.

A module's share in the divergence of a whole plan goes, near that plan, as a mixture of its damage d (squared errors
that stand alone) and of √d (an error that adds to the errors of all other modules). The table is the prior: factor 1
for d, 0 for √d; every measured move corrects the factors of the modules it moved. A plan is proposed from a sample
of the factors (Thompson sampling), so that what is uncertain gets tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

PRIOR = (0.5, 1.0)
"""Standard deviations of the two factors before any measurement."""

STEP = 1e-6
"""Of the largest step: what is no step."""

NOISE = 1.0
"""Of a measured change about the linear prediction, in typical steps of the table."""


class Belief:
    """Factors of every module's damage, and how sure they are."""

    def __init__(self, damages: Sequence[Array]) -> None:
        finite = [np.where(np.isfinite(damage), damage, 0.0) for damage in damages]
        roots = [np.sqrt(np.maximum(damage, 0.0)) for damage in finite]
        self.step = _typical(finite)
        # √d in units in which its typical step is that of d, so that both factors mean the same.
        scale = self.step / _typical(roots)
        self.features = [np.stack([d, scale * r], axis=1) for d, r in zip(finite, roots, strict=True)]
        size = len(damages)
        self.precision = np.diag(np.tile(1.0 / np.square(PRIOR), size))
        self.moment = self.precision @ np.tile((1.0, 0.0), size)

    def mean(self) -> list[Array]:
        """The table as it is believed now: [levels] per module."""
        return self._table(np.linalg.solve(self.precision, self.moment))

    def sample(self, random: np.random.Generator) -> list[Array]:
        """A table that could be the true one."""
        covariance = np.linalg.inv(self.precision)
        return self._table(
            covariance @ self.moment + _root((covariance + covariance.T) / 2) @ random.standard_normal(len(self.moment))
        )

    def observe(self, changes: Iterable[tuple[int, int, int]], measured: float) -> None:
        """That moving modules (index, level before, level after) changed the divergence by `measured`."""
        row = np.zeros(len(self.moment))
        for module, before, after in changes:
            row[2 * module : 2 * module + 2] += self.features[module][after] - self.features[module][before]
        noise = NOISE * self.step
        self.precision += np.outer(row, row) / noise**2
        self.moment += row * (measured / noise**2)

    def _table(self, factors: Array) -> list[Array]:
        return [values @ factors[2 * i : 2 * i + 2] for i, values in enumerate(self.features)]


def _root(covariance: Array) -> Array:
    """A matrix whose square is a covariance, also where that has no digits left in some direction."""
    try:
        return np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def _typical(tables: Sequence[Array]) -> float:
    """The median size of a step between neighbouring levels, of those that are steps at all.

    Levels that damage alike differ by hints of what scores say; such steps would make every measurement look exact.
    """
    steps = np.concatenate([np.abs(np.diff(np.sort(table))) for table in tables])
    steps = steps[steps > STEP * steps.max(initial=0.0)]
    return float(np.median(steps)) if len(steps) else 1.0
