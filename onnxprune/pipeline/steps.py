"""The pipeline step by step, for those who want to look, or put a step of their own, between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxprune import rewrite
from onnxprune.data import READING
from onnxprune.errors import UsageError
from onnxprune.graph import outputs
from onnxprune.graph.model import Model
from onnxprune.graph.outputs import Lasting
from onnxprune.graph.plan import Budget, Plan, Ranking, Structure
from onnxprune.measure.validation import Evidence
from onnxprune.pipeline.in_memory import Source, in_file
from onnxprune.pipeline.job import Job
from onnxprune.pipeline.written import handed_out, write
from onnxprune.refit.solvers.linalg import numpy_on_one_thread
from onnxprune.search.options import Options
from onnxprune.search.planner import Planner

_BUDGETS = ("flops", "params", "size")


@dataclass(frozen=True, eq=False)
class Steps:
    """One model with its rows and a budget: score, search, compensate, rewrite, validate.

        steps = onnxprune.Steps.open("model.onnx", flops=0.6, calibration="rows.jsonl", evaluation="dev.jsonl")
        rankings = steps.score()                      # in which order units would go, group by group
        plan = steps.compensate(steps.search())       # what goes, and what stays refit
        steps.validate(steps.rewrite(plan))           # the graph, and what it costs

    Plans are data: one that `search` gives may be changed (`dataclasses.replace`) before it is carried out. Nothing is
    written; `onnxprune.prune` does all of it, checks the file and reports.
    """

    job: Job
    budget: Budget
    scratch: Lasting | None = None  # what holds the file of a model that was handed over in memory

    @classmethod
    def open(
        cls, source: Source, *, calibration: Any = None, evaluation: Any = None,
        providers: tuple[str, ...] = ("cpu",), progress: Any = None, **options: Any,
    ) -> Steps:  # fmt: skip
        """Load, analyse, and read the rows.

        Args:
            source: a file, a folder, or a model in memory.
            calibration, evaluation: rows, as for `prune`.
            progress: called with (stage, done, of).
            options: one budget (`flops`, `params`, `size`), how rows are read (`columns`, `tokenizer`, `preset`, …),
                `metric`, and fields of `search.options.Options`. Without a budget everything may stay until `search` is
                given one, of FLOPs.

        Raises:
            UsageError: two budgets, or one that is met by measuring the written file.
        """
        for kind in ("latency", "max_drop"):
            if kind in options:
                raise UsageError(f"steps go to a budget of {', '.join(_BUDGETS)}; onnxprune.prune takes {kind}")
        limits = {kind: value for kind in _BUDGETS if (value := options.pop(kind, None)) is not None}
        if len(limits) > 1:
            raise UsageError(f"give one budget, not {' and '.join(limits)}")
        ((kind, value),) = limits.items() or (("flops", None),)
        budget = Budget(kind, 1.0) if value is None else Budget.parse(kind, value)
        asked = {name: options.pop(name) for name in (*READING, "metric") if name in options}
        file, scratch = in_file(source)
        job = Job.open(
            file,
            Options.of(budget, options, (*_BUDGETS, *READING, "metric", "calibration", "evaluation")),
            calibration,
            evaluation,
            providers=providers,
            progress=progress,
            **asked,
        )
        return cls(job, budget, scratch)

    def __repr__(self) -> str:
        return f"<Steps of {self.job.dense.path}: {len(self._planner.sites)} groups of units>"

    @property
    def model(self) -> Model:
        """The dense model."""
        return self.job.dense

    @property
    def structure(self) -> Structure:
        """What can be cut in it."""
        return self.job.structure

    @property
    def _planner(self) -> Planner:
        return self.job.planner

    def score(self) -> Mapping[str, Ranking]:
        """Group id -> the order in which its units stay, first to last, with their scores."""
        with numpy_on_one_thread():
            return self._planner.start.rankings

    def search(self, budget: float | str | None = None) -> Plan:
        """The best plan found within the budget, weights not refit to one another yet.

        Args:
            budget: of the kind that was opened with; that one by default.

        Raises:
            BudgetError: no plan is that cheap.
        """
        asked = self.budget if budget is None else Budget.parse(self.budget.kind, budget)
        with numpy_on_one_thread():
            return self._planner.bare(asked.limit(self._planner.costs.total(asked.kind)))

    def compensate(self, plan: Plan) -> Plan:
        """The plan with the surviving weights refit to the dense model's outputs; itself without calibration rows."""
        with numpy_on_one_thread():
            return self._planner.finished(plan)

    def rewrite(self, plan: Plan) -> ir.Model:
        """The graph with the plan carried out; `onnx_ir.save` writes it."""
        dense = self.job.dense
        return handed_out(dense, rewrite.apply(dense, self.structure, plan.everywhere(self.structure)))

    def validate(self, pruned: ir.Model) -> Evidence | None:
        """What a graph costs on the evaluation rows (or those set aside); None without rows."""
        with outputs.scratch() as scratch:
            return self.job.evidence(write(self.job.dense, pruned, scratch, "pruned.onnx").whole)
