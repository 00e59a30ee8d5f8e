"""Landing on a latency target: choose by the table, measure the real file, and correct once if it missed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from onnxprune.errors import BudgetError

logger = logging.getLogger(__name__)

MISS = 0.02
"""A file is corrected that takes this much more or less than its target, relatively, and surely not as long as it."""

Choice = TypeVar("Choice")

Seen = tuple[float, tuple[float, float]]
"""What was measured, and its interval."""


@dataclass(frozen=True)
class Timing:
    """What a file takes, as a share of the dense model's time, interleaved with it.

    Attributes:
        ratio: the median over pairs of neighbouring runs; `interval`: its 95% interval.
        dense_ms: the dense model's median.
    """

    ratio: float
    interval: tuple[float, float]
    dense_ms: float


@dataclass(frozen=True)
class Landing:
    """How a latency budget was met.

    Attributes:
        target, predicted, measured: shares of the dense model's latency.
        interval: 95%, of the measured one; None, like `measured`, where the provider is not on this machine.
        dense_ms: the dense model's latency in the table.
        corrected: how many times the search was repeated.
        provider: full name.
        threads, shape, machine: of the table.
        said: what the user must know.
    """

    target: float
    predicted: float
    measured: float | None
    interval: tuple[float, float] | None
    dense_ms: float
    corrected: int
    provider: str
    threads: int
    shape: Mapping[str, int]
    machine: str
    said: str = ""


def landed(
    choose: Callable[[float], Choice],
    cost: Callable[[Choice], float],
    time: Callable[[Choice], Seen],
    limit: float,
    miss: float = MISS,
    corrections: int = 1,
) -> tuple[Choice, int]:
    """The choice that comes closest to a limit when it is measured.

    What the table says of a choice and what it takes differ by a factor that nearby choices share: the limit is
    rescaled by it and the choice made anew, which costs no new scores.

    Args:
        choose: the best choice whose cost by the table is at most what it is given.
        cost: by the table.
        time: measured, in the same unit, with its interval.
        limit: in that unit.

    Returns:
        The choice, and how many corrections were tried.
    """
    best = choose(limit)
    taken, (low, high) = time(best)
    for tried in range(corrections):
        if abs(taken / limit - 1) <= miss or low <= limit <= high:
            return best, tried
        rescaled = min(cost(best), limit) * limit / taken
        logger.info("latency: measured %.4f for a target of %.4f; searching again for %.4f", taken, limit, rescaled)
        try:
            other = choose(rescaled)
        except BudgetError as error:
            logger.info("latency: the correction cannot be reached: %s", error)
            return best, tried
        other_taken, (low, high) = time(other)
        if abs(other_taken - limit) < abs(taken - limit):
            best, taken = other, other_taken
    return best, corrections
