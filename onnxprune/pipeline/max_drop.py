"""The smallest model that stays within a stated drop of the task metric: bisection over budgets.

A budget passes only if the upper end of the drop's interval lies within the limit, so that a lucky draw of few
evaluation rows does not decide.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from onnxprune import rewrite
from onnxprune.errors import BudgetError, UsageError
from onnxprune.graph import model as models
from onnxprune.graph.plan import Budget, Plan
from onnxprune.measure.validation import Accuracy
from onnxprune.pipeline.job import Job

SMALLEST, LARGEST, STEPS = 0.1, 0.95, 6


def smallest_within(job: Job, limit: str) -> tuple[Budget, Plan]:
    """The smallest share of the FLOPs whose plan stays within `limit`, and that plan.

    Args:
        limit: "1pt" (points of every metric, in hundredths) or "1%" (relative to the dense value).

    Raises:
        UsageError: not a limit, or no rows to measure on.
        BudgetError: not even a light cut stays within it.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(pt|%)\s*", limit)
    if not found:
        raise UsageError(f"--max-drop {limit}: give points (1pt) or a relative drop (1%)")
    if job.judge is None:
        raise UsageError(
            "--max-drop needs rows to measure the drop on: --eval, or enough calibration rows to set some aside"
        )
    amount, relative = float(found[1]) / 100, found[2] == "%"
    low, high = SMALLEST, LARGEST
    best: tuple[Budget, Plan] | None = None
    worst = ""
    for _ in range(STEPS):
        middle = high if best is None and not worst else (low + high) / 2
        budget = Budget("flops", round(middle, 3))
        try:
            plan = job.plan(budget)
        except BudgetError:
            low = middle
            continue
        drops = [_bound(a) - amount * (abs(a.dense) if relative else 1.0) for a in _accuracies(job, plan)]
        if max(drops) <= 0:
            best, high = (budget, plan), middle
        else:
            worst = f"at {middle:.0%} of the FLOPs the drop may be {max(drops) + amount:.4f}"
            if best is None:
                break
            low = middle
    if best is None:
        raise BudgetError(
            f"--max-drop {limit}: even a light cut cannot be shown to stay within it ({worst}); give more rows"
        )
    return best


def _bound(accuracy: Accuracy) -> float:
    """The most the drop may be: the upper end of its interval (two-sided 95%, so one-sided 97.5%)."""
    return accuracy.drop if accuracy.confidence_interval is None else accuracy.confidence_interval[1]


def _accuracies(job: Job, plan: Plan) -> tuple[Accuracy, ...]:
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as scratch:
        file = models.save(rewrite.apply(job.dense, job.structure, plan), Path(scratch) / "candidate.onnx")[0]
        evidence = job.evidence(file)
    assert evidence is not None
    return (evidence.accuracy, *evidence.further)
