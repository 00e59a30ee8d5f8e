"""The smallest model that stays within a stated drop of the task metric: bisection over budgets.

A budget passes only if the upper end of the drop's interval lies within the limit, so that a lucky draw of few
evaluation rows does not decide. Several tries are several chances to be lucky: each interval is as much wider as it
takes for all of them to hold together (Bonferroni). The tries of a bisection that never errs are the same whatever the
rows are, and only one of them can be the first to err; so it is the number of steps that counts, not that of budgets
that might have been tried.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune import rewrite
from onnxprune.errors import BudgetError, UsageError
from onnxprune.graph import outputs
from onnxprune.graph.plan import Budget, Plan
from onnxprune.measure.drop_search import DropSearch, DropTry
from onnxprune.measure.metrics.intervals import rows_to_show
from onnxprune.measure.validation import Accuracy, unchanged
from onnxprune.pipeline.job import Job
from onnxprune.pipeline.written import write

SMALLEST, LARGEST, STEPS = 0.1, 0.95, 6
TAIL = 0.025 / STEPS
"""The probability that one try's drop lies above its interval."""
LEVEL = 1 - 2 * TAIL


@dataclass(frozen=True)
class Limit:
    """How far a metric may fall: `amount` in its own unit, or relative to the dense model's value."""

    text: str
    amount: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read "1pt" or "1%".

        Raises:
            UsageError: neither.
        """
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(pt|%)\s*", text)
        if not found or not 0 < float(found[1]) < 100:
            raise UsageError(f"--max-drop {text}: give points (1pt) or a relative drop (1%), above 0 and below 100")
        return cls(text.strip(), float(found[1]) / 100, found[2] == "%")

    def allowed(self, accuracy: Accuracy) -> float:
        """In the metric's own unit."""
        return self.amount * (abs(accuracy.dense) if self.relative else 1.0)


def smallest_within(job: Job, limit: str) -> tuple[Budget, Plan]:
    """The smallest share of the FLOPs whose plan stays within `limit`, and that plan; the job knows of the search.

    Args:
        limit: "1pt" (points of every metric, in hundredths) or "1%" (relative to the dense value).

    Raises:
        UsageError: not a limit, or no rows to measure on.
        BudgetError: the rows are too few to show it of any model (before anything is scored), or not even a light cut
            stays within it.
    """
    asked = Limit.parse(limit)
    if job.judge is None or job.teacher is None:
        raise UsageError(
            "--max-drop needs rows to measure the drop on: --eval, or enough calibration rows to set some aside"
        )
    job.level = LEVEL
    _enough(asked, unchanged(job.teacher, metric=job.metric, seed=job.options.seed, level=LEVEL))
    low, high = SMALLEST, LARGEST
    best: tuple[Budget, Plan] | None = None
    tries: list[DropTry] = []
    rows = 0
    for step in range(STEPS):
        middle = high if step == 0 else (low + high) / 2
        budget = Budget("flops", round(middle, 3))
        try:
            plan = job.plan(budget)
        except BudgetError:
            low = middle
            continue
        found = _accuracies(job, plan)
        rows = found[0].rows
        tries.append(_worst(asked, budget, found))
        if tries[-1].passed:
            best, high = (budget, plan), middle
        elif best is None:
            break
        else:
            low = middle
    if best is None:
        raise BudgetError(_why_not(asked, tries, rows))
    job.drop_search = DropSearch(asked.text, rows, LEVEL, tuple(tries))
    return best


def _worst(limit: Limit, budget: Budget, found: Sequence[Accuracy]) -> DropTry:
    tried = [DropTry(budget.value, a.metric, a.drop, _bound(a), limit.allowed(a)) for a in found]
    return max(tried, key=lambda t: t.bound - t.allowed)


def _bound(accuracy: Accuracy) -> float:
    """The most the drop may be; without an interval, anything."""
    return math.inf if accuracy.confidence_interval is None else accuracy.confidence_interval[1]


def _enough(limit: Limit, same: Sequence[Accuracy]) -> None:
    """Refuse rows that could not show the limit of a model that answers all of them as the dense one does."""
    for found in same:
        allowed = limit.allowed(found)
        if _bound(found) <= allowed:
            continue
        if allowed <= 0:
            raise BudgetError(f"--max-drop {limit.text}: the dense model's {found.metric} is 0: nothing can fall")
        needed = rows_to_show(allowed, TAIL)
        if found.distinct:
            needed = max(needed, math.ceil(found.distinct * min(_bound(found), 1.0) / allowed))
        copies = "" if found.distinct == found.rows else f" ({found.distinct} different ones)"
        raise BudgetError(
            f"--max-drop {limit.text} cannot be shown on {found.rows} evaluation rows{copies}: even of a model that "
            f"answers all of them as before, {found.metric} may be lower by {min(_bound(found), 1.0) * 100:.1f} points "
            f"on other rows; it takes at least {needed} different rows"
        )


def _why_not(limit: Limit, tries: Sequence[DropTry], rows: int) -> str:
    said = f"--max-drop {limit.text}: "
    if not tries:
        return f"{said}the model cannot be cut at all between {SMALLEST:.0%} and {LARGEST:.0%} of its FLOPs"
    last = tries[-1]
    said += f"even at {last.kept:.0%} of the FLOPs it cannot be shown: {last.metric} falls by {last.drop * 100:.2f} "
    said += f"points on {rows} rows, and may fall by {last.bound * 100:.2f}"
    if last.drop >= last.allowed:
        return f"{said}; allow more"
    needed = math.ceil(rows * ((last.bound - last.drop) / (last.allowed - last.drop)) ** 2)
    return f"{said}; about {needed} rows would show it, if the drop is what it seems"


def _accuracies(job: Job, plan: Plan) -> tuple[Accuracy, ...]:
    with outputs.scratch() as scratch:
        made = write(job.dense, rewrite.apply(job.dense, job.structure, plan), scratch, "candidate.onnx")
        evidence = job.evidence(made.whole)
    assert evidence is not None
    return (evidence.accuracy, *evidence.further)
