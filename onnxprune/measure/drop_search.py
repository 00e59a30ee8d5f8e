"""How a size was found by what it costs in accuracy: every try, and how sure all of them are together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DropTry:
    """One size that was tried.

    Attributes:
        kept: share of the FLOPs that was asked for.
        metric: the one that came closest to its limit.
        drop: as measured, in the metric's unit.
        bound: the most it may be: the upper end of its interval at the search's level.
        allowed: its limit, in the same unit.
    """

    kept: float
    metric: str
    drop: float
    bound: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the drop is shown to stay within the limit."""
        return self.bound <= self.allowed


@dataclass(frozen=True)
class DropSearch:
    """The smallest size whose drop stays within a limit.

    Attributes:
        limit: as asked, "1pt" or "1%".
        rows: evaluation rows that chose among the tries.
        level: of each try's interval, so that all of them hold together at 95%.
        tries: in order; the smallest that passed was taken.
    """

    limit: str
    rows: int
    level: float
    tries: tuple[DropTry, ...]

    @property
    def chosen(self) -> DropTry:
        """The try that was taken."""
        return min((t for t in self.tries if t.passed), key=lambda t: t.kept)
