"""How far to go at each step towards a target."""

from __future__ import annotations

import math

from onnxprune.errors import UsageError

FIRST_STAGE = 0.8
ONE_GO = 0.7
LARGEST_STEP = 0.15


def cubic(step: int, total: int, final: float) -> float:
    """The share kept after step `step` (from 0) of `total`: r + (1 − r)(1 − (t + 1)/T)³, fast at first, then slow.

    Zhu & Gupta 2017, as in SEVEN (Xiao et al. 2024). `final` is r, reached exactly at the last step.
    """
    _check(final)
    if not 0 <= step < total:
        raise ValueError(f"step {step} of {total}")
    return final + (1.0 - final) * (1.0 - way(step, total))


def way(step: int, total: int) -> float:
    """The share of the way that is behind after step `step` (from 0) of `total`: 1 − (1 − (t + 1)/T)³."""
    return 1.0 - (1.0 - (step + 1) / total) ** 3


def stages(target: float, *, current: float = 1.0) -> tuple[float, ...]:
    """The budgets (shares kept) on the way to `target`, with re-scoring at each: 0.5 -> (0.8, 0.65, 0.5).

    From 0.7 up, one go is as good. Below, the first stage is 0.8 and the rest are equal steps of at most 0.15. Stages
    at or above `current`, the share that is left already, are passed over.
    """
    _check(target)
    if target >= ONE_GO:
        return (target,)
    # A hair less, so that 0.3 / 0.15 is two steps in floating point too.
    count = math.ceil((FIRST_STAGE - target) / LARGEST_STEP - 1e-9)
    path = [FIRST_STAGE - (FIRST_STAGE - target) * i / count for i in range(count)] + [target]
    return tuple(share for share in path if share < current) or (target,)


def _check(share: float) -> None:
    if not 0 < share <= 1:
        raise UsageError(f"target {share} is the share kept: more than 0, at most 1")
