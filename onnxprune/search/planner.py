"""From a model and rows to a plan: scored, searched, mended. Everything happens in gated space."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from onnxprune.data import Dataset
from onnxprune.errors import BudgetError
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Plan, Structure
from onnxprune.graph.structure.linear_layers import find_linears, result_of
from onnxprune.measure.tables.costs import LatencyCosts
from onnxprune.measure.tables.landing import Landing, Timing
from onnxprune.refit.compensate import compensate
from onnxprune.refit.linear_stand_ins import mapped
from onnxprune.refit.solvers.schedule import stages
from onnxprune.rewrite.weights import bias_of
from onnxprune.search import by_table
from onnxprune.search.by_rank import ranked
from onnxprune.search.defaults import method_of, why_not_so_little
from onnxprune.search.latency_budget import land, timing
from onnxprune.search.options import Options
from onnxprune.search.problem import Problem, Seen
from onnxprune.search.progress import Clock, Progress
from onnxprune.search.score_cache import Scores
from onnxprune.search.scored_model import Stage, scored
from onnxprune.search.store import Store

logger = logging.getLogger(__name__)

NODE = 512
"""Bytes of a file that a node with a constant takes, but for the numbers."""


class Planner(Problem):
    """Makes plans for one problem; what it measured serves every further budget.

    Args:
        scores, store: a file, and a store, that keep what is measured on the whole model (score_cache.py).
        seen: what a planner for the same rows has seen of them, elsewhere.

    Attributes:
        landing: how the last plan met a latency budget.
        last: whether the next plan is the last: what only further ones would need is let go before it is mended.
    """

    def __init__(
        self,
        model: Model,
        structure: Structure,
        options: Options,
        calibration: Dataset | None,
        bindings: Mapping[str, int],
        clock: Clock | None = None,
        progress: Progress | None = None,
        scores: Path | None = None,
        store: Store | None = None,
        seen: Seen | None = None,
    ) -> None:
        super().__init__(model, structure, options, calibration, bindings, clock, progress, seen, store)
        self.landing: Landing | None = None
        self.last = False
        self.scores = Scores.open(scores, self.key(self.method), store)

    def again(self, options: Options, scores: Path | None = None) -> Planner:
        """A planner on the same rows by other options: what is measured with them is its own, all else is shared.

        Args:
            options: of the same seed, units, shape and provider.
            scores: the file of what is measured by them.
        """
        other = copy.copy(self)
        other.forget()
        other.options, other.method = options, method_of(options, self.calibration)
        other.scores = Scores.open(scores, other.key(other.method), self.scores.store)
        return other

    def release(self) -> None:
        """Forget what only further plans would need: second moments of a large model are gigabytes."""
        self.forget()
        self.moments.clear()

    def forget(self) -> None:
        """Forget what only further plans by these options would need."""
        self.__dict__.pop("start", None)

    def plan(self, budget: float) -> Plan:
        """The best plan found whose cost is at most `budget` (in the budget kind's own unit).

        Raises:
            BudgetError: no plan is that cheap; carries the closest that is.
        """
        plan = self.landed(budget) if self.options.budget.kind == "latency" else self.bare(budget)
        added = self._added(plan)
        if added and self.prices.costs.total(self.options.budget.kind, plan) + added > budget:
            plan = self.bare(budget - added)
        if self.last:
            self.release()
        elif "start" in self.__dict__:
            self.start.forget()
        return self.finished(plan)

    def landed(self, limit: float, choose: Callable[[float], Plan] | None = None, corrections: int = 1) -> Plan:
        """The plan, not mended yet, that comes closest to a latency when it is measured; `landing` says how.

        Args:
            limit: milliseconds by the table.
            choose: the plan within a latency by the table, where it is not this planner's alone.
            corrections: how often it may be chosen anew.
        """
        costs = self.costs
        assert isinstance(costs, LatencyCosts)
        rows = self.calibration.examples[:8] if self.calibration is not None else ()
        table, unread = costs.table, self.options.keep_unread

        def time(plan: Plan) -> Timing:
            with self.clock.stage("latency"):
                return timing(*self.whole, costs, plan, [row.feeds for row in rows], unread)

        relative = self.options.budget.relative
        plan, self.landing = land(costs, table, limit, choose or self.bare, time, relative, corrections)
        return plan

    def bare(self, budget: float) -> Plan:
        """What `plan` chooses, not mended yet."""
        self.require_feasible(budget)
        dense = self.costs.total(self.options.budget.kind)
        stage = self.start
        if self.calibration is None or self.options.search == "rank":
            return self.chosen(ranked(self.sites, stage.rankings, self.prices, budget, self.step), stage)
        targets = stages(budget / dense) if self.options.staged else (budget / dense,)
        for target in targets[:-1]:
            plan = self.chosen(by_table.searched(self, stage, target * dense, self.scores), stage)
            stage = scored(self, self.finished(plan), self.scores)
        return self.chosen(by_table.searched(self, stage, budget, self.scores), stage)

    @cached_property
    def start(self) -> Stage:
        """The model it begins with, scored; what is measured on it serves every budget."""
        return scored(self, self.first, self.scores)

    def chosen(self, counts: Mapping[str, int], stage: Stage) -> Plan:
        """A choice of levels as a plan."""
        plan = stage.thinned(self.sites, counts)
        if self.calibration is None or not self.options.compensate:
            plan = replace(plan, weights=stage.plan.weights)
        return self.completed(plan)

    def require_feasible(self, budget: float) -> None:
        """Refuse what no plan can reach.

        Raises:
            BudgetError: carries the closest that can.
        """
        floor, dense = self.floor(), self.costs.total(self.options.budget.kind)
        if budget < floor:
            raise BudgetError(
                why_not_so_little(self.structure, self.options, budget / dense, floor / dense), closest=floor / dense
            )

    def floor(self) -> float:
        """What is left of the cost when all goes that may."""
        return self.prices.total({s.id: 0 if s.branch else self.step(s) for s in self.begun()})

    # -- mending -----------------------------------------------------------------------------------------------

    def _added(self, plan: Plan) -> float:
        """The most that mending may add to what a budget counts: a bias where there was none, a branch's mean."""
        kind = self.options.budget.kind
        if kind not in ("params", "size"):
            return 0.0
        _, whole = self.whole
        dropped = [name for name in plan.drop if name in plan.rests]
        added = [np.asarray(plan.rests[n]).size for n in dropped for _ in whole.with_twins([n])]
        if self.calibration is not None and self.options.compensate:
            for linear in find_linears(self.model.graph, self.structure, conditional=True):
                if bias_of(result_of(linear.matrix.node)) is None:
                    width = self.weight(linear.weight).size // max(len(linear.matrix.units), 1)
                    added += [width] * (1 + len(whole.mirrors.get(linear.matrix.output, ())))
        numbers = sum(added)
        return float(numbers if kind == "params" else 4 * numbers + NODE * len(added))

    def finished(self, plan: Plan) -> Plan:
        """A chosen plan, mended."""
        if self.calibration is None or not self.options.compensate:
            return plan
        with self.clock.stage("compensate"):
            if plan.maps:
                plan = mapped(self.gates, self.fit, self.select, plan)
            return self.mended(plan)

    def mended(self, plan: Plan) -> Plan:
        """A plan with the surviving weights refit (compensate.py)."""
        linears = find_linears(self.model.graph, self.structure, conditional=True)
        mended, value, steps = compensate(
            self.gates,
            self.mending,
            self.held,
            self.select,
            plan,
            linears,
            weights=self.mending_weights,
            held_weights=self.held_weights,
            progress=lambda d, n: self.progress("compensate", d, n),
            store=self.refits,
        )
        stood = sum(s.kept is not None for s in steps)
        logger.info("compensation: divergence %.5f after %d steps, %d kept", value, len(steps), stood)
        return mended
