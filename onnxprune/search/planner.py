"""From a model and rows to a plan: probe, score, search, compensate. Everything happens in gated space."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data import Dataset
from onnxprune.errors import BudgetError, NothingToPruneError
from onnxprune.graph.example_feeds import synthesize
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Plan, Ranking, Structure
from onnxprune.graph.structure.linear_layers import find_linears
from onnxprune.graph.structure.sites import Site, even, find_sites, kept_by, levels
from onnxprune.measure.cost import tokens_at_once, tokens_to_measure
from onnxprune.measure.tables.fast_widths import step
from onnxprune.measure.tables.landing import Landing
from onnxprune.probe.forward import NOTHING, Rows, Weights, sensitivities
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter
from onnxprune.probe.short_graph import brief
from onnxprune.refit.compensate import compensate
from onnxprune.refit.linear_stand_ins import StandIn, mapped, stand_ins, with_stand_ins
from onnxprune.refit.solvers.schedule import stages
from onnxprune.score import METHODS, collect, configured, stepwise
from onnxprune.score.mixture import parse
from onnxprune.score.query_key import pair_rankings
from onnxprune.search.allocate.choices import Level, Module, alike, merged
from onnxprune.search.allocate.knapsack import allocate
from onnxprune.search.allocate.swaps import swaps
from onnxprune.search.by_rank import ranked_within
from onnxprune.search.damage_table import Refitter, damage_table, spread
from onnxprune.search.defaults import device_of, method_of, why_not_so_little, why_nothing
from onnxprune.search.latency_budget import costs_for, land, provider_of
from onnxprune.search.options import Options
from onnxprune.search.progress import Clock, Progress
from onnxprune.search.row_split import Split
from onnxprune.search.score_cache import Scores, key_of
from onnxprune.search.scored_model import Stage, behind

logger = logging.getLogger(__name__)

MAPPED = -1
"""As a level, instead of a number of units: the branch is gone, and a linear map of the stream stands in for it."""


class Planner:
    """Makes plans for one model from one set of rows; what it measured serves every further budget.

    Args:
        calibration: rows to learn from, split by seed into those regressed on and those that decide; None for none.
        scores: a file that keeps what is measured on the whole model (scores.py).

    Attributes:
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
    ) -> None:
        self.model, self.structure, self.options = model, structure, options
        self.clock = clock or Clock()
        self.progress = progress or (lambda stage, done, of: None)
        sites = find_sites(model.graph, structure, options.units, options.include, options.exclude)
        self.sites = [s for s in sites if s.matrices or calibration is not None]  # the others are ordered by data alone
        self.costs = costs_for(model, structure, options, bindings, self.sites, self.clock, self.progress)
        self.landing: Landing | None = None  # how the last plan met a latency budget
        if not self.sites and options.sparsity is None:
            raise NothingToPruneError(why_nothing(structure, options))
        self.method = method_of(options, calibration)
        self.interpreter = Interpreter(model.graph, device_of(options.device))
        short, self.structure = brief(model, structure, self.interpreter)
        self.gates = Gates(self.structure, self.interpreter)
        self.calibration = calibration
        self.last = False
        self.first = Plan(model.digest)  # what every plan begins with (recipe.py)
        self.scores = Scores.open(scores, key_of(model.digest, self.method, options, calibration, version("onnxprune")))
        if calibration is not None:
            sizes = tokens_at_once(self.costs), tokens_to_measure(self.costs)
            split = Split.of(self.interpreter, calibration, options, *sizes, short)
            self.fit, self.held, self.table, self.select = split.fit, split.held, split.table, split.select

    def again(self, options: Options) -> Planner:
        """A planner on the same rows by other options: what is measured with them is its own, token weights are shared.

        Args:
            options: of the same seed, units, shape and provider.
        """
        _ = self.token_weights, self.held_weights
        other = copy.copy(self)
        other.release()
        other.options, other.method = options, method_of(options, self.calibration)
        other.scores = Scores(None, self.scores.key)
        return other

    def release(self) -> None:
        """Forget what only further plans would need: second moments of a large model are gigabytes."""
        self.__dict__.pop("start", None)

    def plan(self, budget: float) -> Plan:
        """The best plan found whose cost is at most `budget` (in the budget kind's own unit).

        Raises:
            BudgetError: no plan is that cheap; carries the closest that is.
        """
        timed = self.options.budget.kind == "latency"
        plan, self.landing = land(self, budget) if timed else (self.bare(budget), None)
        if self.last:
            self.release()
        return self.finished(plan)

    def bare(self, budget: float) -> Plan:
        """What `plan` chooses, not mended yet."""
        self._feasible(budget)
        dense = self.costs.total(self.options.budget.kind)
        if self.calibration is None or self.options.search == "rank":
            return ranked_within(self, budget, self._floor())
        stage = self.start
        targets = stages(budget / dense) if self.options.staged else (budget / dense,)
        for target in targets[:-1]:
            stage = self._stage(self.finished(self.chosen(self._searched(stage, target * dense), stage)))
        return self.chosen(self._searched(stage, budget), stage)

    def chosen(self, counts: Mapping[str, int], stage: Stage) -> Plan:
        """A choice of levels as a plan."""
        plan = self._thinned(stage, counts)
        if self.calibration is None or not self.options.compensate:
            plan = replace(plan, weights=stage.plan.weights)
        return self.completed(plan)

    def finished(self, plan: Plan) -> Plan:
        """A chosen plan, mended."""
        if self.calibration is None or not self.options.compensate:
            return plan
        with self.clock.stage("compensate"):
            if plan.maps:
                plan = mapped(self.gates, self.fit, self.select, plan)
            return self.mended(plan)

    # -- score -------------------------------------------------------------------------------------------------

    @cached_property
    def start(self) -> Stage:
        """The model it begins with, scored; what is measured on it serves every budget."""
        return self._stage(self.first)

    def _stage(self, plan: Plan) -> Stage:
        """Score the units of a plan's model."""
        with self.clock.stage("score"):
            gated = self.gates.gated(plan)

            def weight(name: str) -> np.ndarray:
                tensor = gated.weights.get(name)
                return self.weight(name) if tensor is None else np.asarray(tensor.detach().cpu().numpy())

            known = self._known(plan)
            method = parse("magnitude" if known else self.method, configured(self.options.alpha))
            mending = self.options.compensate or self.options.search == "table"
            read = [s for s in self.sites if s.matrices]
            met = [s for s in self.sites if not s.matrices]
            statistics = collect(
                method,
                self.fit if self.calibration is not None else None,
                read,
                self.structure,
                weight,
                also=("gram",) if mending else (),
                state=gated if plan.keep or plan.drop else NOTHING,
                token_weights=self.token_weights,
                order=lambda gram: stepwise(
                    method, self.fit, read, self.gates, self._share(), plan, Refitter(weight, gram)
                ),
                seed=self.options.seed,
            )
            rankings = dict(known) or (pair_rankings(self.fit, met, self.structure, gated) if met else {})
            for i, site in enumerate(() if known else self.sites):
                ranking = rankings[site.id] if site.id in rankings else method(site, statistics)
                rankings[site.id] = even(site, behind(ranking, plan.keep.get(site.id)))
                self.progress("score", i + 1, len(self.sites))
            if not known and self._keeps(plan):
                self.scores.keep_rankings(rankings)
        refitter = Refitter(weight, statistics.gram if self.options.compensate else {}, rankings)
        return Stage(plan, rankings, refitter)

    def _keeps(self, plan: Plan) -> bool:
        """Whether what is measured on a plan's model holds for every budget, and is worth a file."""
        needs = parse(self.method, METHODS).needs
        return self.calibration is not None and not (plan.keep or plan.drop) and "order" not in needs

    def _known(self, plan: Plan) -> Mapping[str, Ranking]:
        known = self.scores.rankings if self._keeps(plan) else {}
        return known if known.keys() == {s.id for s in self.sites} else {}

    @cached_property
    def token_weights(self) -> Weights | None:
        """How much each token of the fit rows matters to the outputs, mixed with an equal share for all."""
        return self._token_weights(self.fit) if self.calibration is not None else None

    @cached_property
    def held_weights(self) -> Weights | None:
        """The same of the rows that choose how strong refits are."""
        return self._token_weights(self.held)

    def _token_weights(self, rows: Rows) -> Weights | None:
        share = self.options.token_weight
        read = [m for s in self.sites for m in s.matrices]
        if not share or not read:
            return None
        found = sensitivities(rows, read, self.gates.usages, self.options.seed)
        return {node: [share * w + (1 - share) for w in parts] for node, parts in found.items()}

    def weight(self, name: str) -> np.ndarray:
        """A dense weight."""
        tensor = self.model.graph.initializers[name].const_value
        assert tensor is not None
        return np.asarray(tensor.numpy())

    # -- search ------------------------------------------------------------------------------------------------

    def _modules(self, stage: Stage) -> tuple[Module, ...]:
        """The damage table with its costs, at every width that may be chosen; measured once a stage."""
        if stage.modules is None:
            live = self._live(stage)
            grid = {s.id: [*(k for k in self._levels(s) if k < len(units)), len(units)] for s, units in live}
            measured = self._damages(stage, [s for s, _ in live], grid)
            kind = self.options.budget.kind
            stage.stand_ins = self._stand_ins(stage, [s for s, _ in live])
            found = []
            for site, _ in live:
                damage = measured[site.id] - measured[site.id][-1]
                counts, damages = spread(grid[site.id], damage, self.step(site))
                if self._whole(site):
                    counts, damages = counts[[0, -1]], damages[[0, -1]]
                worth = self.costs.offered(site.group, counts.tolist())
                counts, damages = counts[worth], damages[worth]
                costs = self.costs.levels(kind, site.group, counts)
                rows = (Level(int(k), float(c), float(d)) for k, c, d in zip(counts, costs, damages, strict=True))
                found.append(Module(site.id, (*rows, *self._mapped_level(stage, site, float(measured[site.id][-1])))))
            stage.modules = tuple(found)
        return stage.modules

    def _damages(self, stage: Stage, live: Sequence[Site], grid: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
        keeps = self._keeps(stage.plan)
        known = self.scores.measured(grid) if keeps else None
        if known is not None:
            return known
        with self.clock.stage("table"):
            measured = damage_table(
                self.table, self.gates, stage.plan, live, stage.rankings, grid, stage.refitter,
                lambda d, n: self.progress("table", d, n),
            )  # fmt: skip
        if keeps:
            self.scores.keep_table(grid, measured)
        return measured

    def _stand_ins(self, stage: Stage, live: Sequence[Site]) -> dict[str, StandIn]:
        """Linear maps that may take the place of a branch, where the method's modules are whole branches."""
        if not self._modular or not self.options.compensate or self.options.uniform:
            return {}
        branches = [s.branch for s in live if s.branch is not None]
        kind = self.options.budget.kind
        return stand_ins(
            self.gates, self.fit, self.table, self.completed(stage.plan), branches, self.costs, kind, self.completed
        )

    def _mapped_level(self, stage: Stage, site: Site, base: float) -> list[Level]:
        found = None if site.branch is None else stage.stand_ins.get(site.branch.id)
        if found is None or site.branch is None:
            return []
        cost = self.costs.map_cost(self.options.budget.kind, site.branch.id)
        return [Level(MAPPED, cost, max(found.damage - base, 0.0))]

    def _levels(self, site: Site) -> list[int]:
        return [0, site.group.size] if self._whole(site) else levels(site, self.step(site))

    def _whole(self, site: Site) -> bool:
        """Whether a site's branch goes as a whole or stays as it is, because the method knows no smaller module."""
        return self._modular and site.branch is not None and site.group.kind not in ("heads", "query_heads")

    @property
    def _modular(self) -> bool:
        return bool(getattr(parse(self.method, METHODS), "whole", False))

    def _live(self, stage: Stage) -> list[tuple[Site, tuple[int, ...]]]:
        """The sites that are still there, with the units they have."""
        gone = set(stage.plan.drop)
        return [
            (s, stage.plan.keep.get(s.id, tuple(range(s.group.size)))) for s in self.sites if s.group.branch not in gone
        ]

    def _thinned(self, stage: Stage, counts: Mapping[str, int]) -> Plan:
        """A choice of levels as a plan, with the sites' own refit weights."""
        branches = [s.branch.id for s in self.sites if s.branch is not None and counts[s.id] == MAPPED]
        counts = {name: max(count, 0) for name, count in counts.items()}
        keep, drop = kept_by(counts, stage.rankings, self.sites)
        keep, drop = {**stage.plan.keep, **keep}, tuple(dict.fromkeys((*stage.plan.drop, *drop)))
        plan = replace(
            stage.plan, keep=keep, drop=drop, weights={**stage.plan.weights, **stage.weights(self.sites, counts)}
        )
        return with_stand_ins(plan, {b: stage.stand_ins[b] for b in branches})

    def _searched(self, stage: Stage, budget: float) -> dict[str, int]:
        modules = self._modules(stage)
        with self.clock.stage("search"):
            room = budget - self.fixed_cost()
            kinds = {s.id: f"{s.group.kind}x{s.group.size}" for s in self.sites}
            shared = alike(modules, kinds) if self.options.uniform else {m.id: [m] for m in modules}
            tied = [merged(name, members) for name, members in shared.items()]
            chosen = allocate(tied, room)

            def counts_of(allocation: Mapping[str, int]) -> dict[str, int]:
                there = {m.id: m.levels[allocation[name]].kept for name, members in shared.items() for m in members}
                # A site of a branch that left before is gone with it, whoever may drop it now.
                return {s.id: there.get(s.id, 0 if s.branch else s.group.size) for s in self.sites}

            def evaluate(allocation: Mapping[str, int]) -> np.ndarray:
                return self.table.per_row(self.gates.gated(self._thinned(stage, counts_of(allocation))))

            found = swaps(chosen, tied, evaluate, room, evaluations=self.options.swaps, seed=self.options.seed)
        logger.info("search: divergence %.5f, after %d swaps %.5f", found.start, len(found.trials), found.value)
        counts = counts_of(found.levels)
        logger.info("kept: %s", list(counts.values()))
        return counts

    def fixed_cost(self) -> float:
        """What is left of the model it begins with when every unit is gone, in the budget kind's unit."""
        kind = self.options.budget.kind
        begun = self.costs.total(kind, self.first)
        return begun - sum(float(self.costs.levels(kind, s.group, s.group.size)) for s in self.begun())

    def _share(self) -> float:
        """What the budget keeps."""
        dense = self.costs.total(self.options.budget.kind)
        return self.options.budget.limit(dense) / dense

    def begun(self) -> list[Site]:
        """The sites of the model it begins with."""
        return [s for s in self.sites if s.group.branch not in self.first.drop]

    def _feasible(self, budget: float) -> None:
        floor, dense = self._floor(), self.costs.total(self.options.budget.kind)
        if budget < floor:
            raise BudgetError(why_not_so_little(self.options, budget / dense, floor / dense), closest=floor / dense)

    def _floor(self) -> float:
        """What is left of the cost when all goes that may."""
        kind, least = self.options.budget.kind, [(s.group, 0 if s.branch else self.step(s)) for s in self.begun()]
        return self.fixed_cost() + sum(float(self.costs.levels(kind, group, count)) for group, count in least)

    def step(self, site: Site) -> int:
        """How many units of a site go at a time."""
        found = step(site, provider_of(self.options), self.options.round_to)
        return max(found, 2) if site.group.kind == "hidden" else found  # a norm cannot do without one channel alone

    # -- compensate --------------------------------------------------------------------------------------------

    def completed(self, plan: Plan) -> Plan:
        """A plan that says what its dropped branches leave behind."""
        if not plan.drop:
            return plan
        return self.gates.complete(plan, self._any_feeds())

    def _any_feeds(self) -> Mapping[str, Any]:
        if self.calibration is not None:
            return self.fit.batches[0].feeds
        return synthesize(self.model.inputs, dims=self.costs.bindings)

    def mended(self, plan: Plan) -> Plan:
        """A plan with the surviving weights refit (compensate.py)."""
        linears = find_linears(self.model.graph, self.structure)
        mended, value, steps = compensate(
            self.gates,
            self.fit,
            self.held,
            self.select,
            plan,
            linears,
            weights=self.token_weights,
            held_weights=self.held_weights,
            progress=lambda d, n: self.progress("compensate", d, n),
        )
        stood = sum(s.kept is not None for s in steps)
        logger.info("compensation: divergence %.5f after %d steps, %d kept", value, len(steps), stood)
        return mended
