"""What a run would do: everything that is read, counted and decided before any scoring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune.graph import memory
from onnxprune.graph.plan import Budget
from onnxprune.pipeline import output_files
from onnxprune.pipeline.job import Job
from onnxprune.search.options import Options

GLANCE = 16
"""Rows that are run: what can be cut shows in a few."""


@dataclass(frozen=True)
class Preview:
    """What a run would do.

    Attributes:
        model: the file that would be pruned.
        output: the file that would be written.
        budget: kind, what was asked for, and in the budget's own unit what the dense model costs, what would be
            allowed, and the least that can be left; the last three are None where they are measured first.
        method: what orders the units.
        units: kind -> how many may go.
        branches: residual branches that may go as a whole.
        shape: where costs are counted.
        rows: numbers of rows to learn from, and to judge by.
        sparsity: the pattern of zeros; None for none.
        said: what the run would warn of by now.
    """

    model: str
    output: str
    budget: Mapping[str, Any]
    method: str
    units: Mapping[str, int]
    branches: int
    shape: Mapping[str, int]
    rows: Mapping[str, int]
    sparsity: str | None
    said: tuple[str, ...]


def preview(
    file: Path,
    target: Path,
    budget: Budget,
    max_drop: str | None,
    inputs: Any,
    options: Mapping[str, Any],
    calibration: Any,
    evaluation: Any,
    *,
    force: bool,
    quantize: str | None,
    **common: Any,
) -> Preview:
    """Read the model and the rows, ask about the files that would be written, and stop.

    Args:
        budget, options: as for the run; a latency is not measured here.
        common: keyword arguments of `job.Job.open`.

    Raises:
        BudgetError: no plan would be that cheap.
    """
    asked = Options.of(budget, options)
    measured = budget.kind == "latency"
    settled = replace(asked, budget=Budget("flops", 1.0)) if measured else asked
    with (
        memory.limited(asked.max_memory),
        output_files.opened(target, file, inputs, quantize=quantize, force=force),
    ):
        job = Job.open(file, settled, calibration, evaluation, quantize=quantize, scores=None, glance=GLANCE, **common)
    planner, costs = job.planner, job.planner.costs
    told: dict[str, Any] = {"kind": budget.kind, "asked": budget.value, "dense": None, "allowed": None, "least": None}
    if max_drop is not None:
        told |= {"kind": "max_drop", "asked": max_drop}
    elif not measured:
        dense = costs.total(budget.kind)
        told |= {"dense": dense, "allowed": budget.limit(dense), "least": planner.floor()}
        if asked.sparsity is None:
            planner.require_feasible(budget.limit(dense))
    counts: Counter[str] = Counter()
    for site in planner.sites:
        counts[site.group.kind] += site.group.size
    rows = {"learn": job.learn, "judge": job.judge}
    return Preview(
        str(file), str(target), told, planner.method, dict(counts), len(planner.structure.branches), costs.bindings,
        {name: len(held) for name, held in rows.items() if held is not None}, asked.sparsity, job.said,
    )  # fmt: skip
