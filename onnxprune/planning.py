"""From a model and rows to a plan: probe, score, search, compensate. Everything happens in gated space."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.compensate import compensate
from onnxprune.config import Options
from onnxprune.cost import Costs
from onnxprune.damage import Refitter, damage_table, spread
from onnxprune.data import Dataset
from onnxprune.errors import BudgetError, NothingToPruneError, UsageError
from onnxprune.gates import Gates
from onnxprune.interpret import Interpreter
from onnxprune.linears import find_linears
from onnxprune.model import Model
from onnxprune.plan import Plan, Ranking, Structure
from onnxprune.probe import Evaluator, Rows, gate_gradients, grams
from onnxprune.score import METHODS, Statistics
from onnxprune.search.knapsack import allocate
from onnxprune.search.module import Level, Module
from onnxprune.search.rank import Kind, rank, rank_pair
from onnxprune.search.swaps import swaps
from onnxprune.sites import Site, find_sites, kept_by, levels

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""progress(stage, done, of)."""


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


class Planner:
    """Makes plans for one model from one set of rows; what it measured serves every further budget.

    Args:
        calibration: rows to learn from, split by seed into those regressed on and those that decide; None for none.
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
    ) -> None:
        self.model, self.structure, self.options = model, structure, options
        self.clock = clock or Clock()
        self.progress = progress or (lambda stage, done, of: None)
        self.costs = Costs(model, structure, bindings)
        self.sites = find_sites(model.graph, structure, options.units, options.include, options.exclude)
        if not self.sites:
            raise NothingToPruneError(_why_nothing(structure, options))
        self.method = _method(options, calibration)
        self.interpreter = Interpreter(model.graph, _device(options.device))
        self.gates = Gates(structure, self.interpreter)
        self.calibration = calibration
        if calibration is not None:
            if len(calibration) < 8:
                raise UsageError(
                    f"{len(calibration)} calibration rows are too few to learn from and to decide by; give at least 8 (some hundreds are usual)"
                )
            parts = calibration.split({"fit": 0.75, "select": 0.25}, options.seed)
            self.fit = Rows(self.interpreter, parts["fit"])
            self.select = Evaluator(Rows(self.interpreter, parts["select"]))
            self.table = Evaluator(Rows(self.interpreter, by_quantiles(parts["select"])))
        self._rankings: dict[str, Ranking] | None = None
        self._modules: tuple[Module, ...] | None = None

    def plan(self, budget: float) -> Plan:
        """The best plan found whose cost is at most `budget` (in the budget kind's own unit).

        Raises:
            BudgetError: no plan is that cheap; carries the closest that is.
        """
        self._feasible(budget)
        with self.clock.stage("score"):
            rankings = self.rankings()
        if self.options.search == "rank" or self.calibration is None:
            counts = self._ranked(rankings, budget)
        else:
            with self.clock.stage("table"):
                modules = self.modules(rankings)
            with self.clock.stage("search"):
                counts = self._searched(modules, rankings, budget)
        keep, drop = kept_by(counts, rankings, self.sites)
        plan = Plan(self.model.digest, keep, drop)
        if self.calibration is None:
            return self._completed(plan)
        plan = self._completed(
            replace(plan, weights=self._weights(counts, rankings)) if self.options.compensate else plan
        )
        if self.options.compensate:
            with self.clock.stage("compensate"):
                plan = self._mended(plan)
        return plan

    # -- score -------------------------------------------------------------------------------------------------

    def rankings(self) -> dict[str, Ranking]:
        """group id -> order of its units by the chosen method; computed once."""
        if self._rankings is None:
            method = METHODS[self.method]
            needs = set(method.needs)
            if self.calibration is not None and (self.options.compensate or self.options.search == "table"):
                needs.add("gram")
            self.statistics = Statistics(
                self.weight,
                grams(self.fit, [m for s in self.sites for m in s.matrices]) if "gram" in needs else {},
                gate_gradients(self.fit, self.sites, self.structure, self.options.seed) if "gate_grad" in needs else {},
            )
            found = {}
            for i, site in enumerate(self.sites):
                found[site.id] = method(site, self.statistics)
                self.progress("score", i + 1, len(self.sites))
            self._rankings = found
            self.refitter = Refitter(self.weight, self.statistics.gram if self.options.compensate else {})
            self._fitted: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        return self._rankings

    def weight(self, name: str) -> np.ndarray:
        """A dense weight."""
        tensor = self.model.graph.initializers[name].const_value
        assert tensor is not None
        return np.asarray(tensor.numpy())

    # -- search ------------------------------------------------------------------------------------------------

    def modules(self, rankings: Mapping[str, Ranking]) -> tuple[Module, ...]:
        """The damage table with its costs, at every width that may be chosen; measured once."""
        if self._modules is None:
            grid = {s.id: levels(s, self._step(s)) for s in self.sites}
            base = Plan(self.model.digest)
            measured = damage_table(
                self.table,
                self.gates,
                base,
                self.sites,
                rankings,
                grid,
                self.refitter,
                lambda d, n: self.progress("table", d, n),
            )
            kind = self.options.budget.kind
            found = []
            for site in self.sites:
                counts, damages = spread(grid[site.id], measured[site.id], self._step(site))
                unit = self.costs.unit_costs(kind, site.group)
                found.append(
                    Module(
                        site.id,
                        tuple(Level(int(k), unit * int(k), float(d)) for k, d in zip(counts, damages, strict=True)),
                    )
                )
            self._modules = tuple(found)
        return self._modules

    def _searched(self, modules: Sequence[Module], rankings: Mapping[str, Ranking], budget: float) -> dict[str, int]:
        fixed = self._fixed_cost()
        shared = _uniform(modules, self.sites) if self.options.uniform else {m.id: [m] for m in modules}
        merged = [_merged(name, members) for name, members in shared.items()]
        chosen = allocate(merged, budget - fixed)

        def counts_of(allocation: Mapping[str, int]) -> dict[str, int]:
            return {m.id: m.levels[allocation[name]].kept for name, members in shared.items() for m in members}

        def evaluate(allocation: Mapping[str, int]) -> float:
            counts = counts_of(allocation)
            keep, drop = kept_by(counts, rankings, self.sites)
            return self.table(self.gates.gated(Plan(self.model.digest, keep, drop, self._weights(counts, rankings))))

        found = swaps(chosen, merged, evaluate, budget - fixed, evaluations=24, seed=self.options.seed)
        logger.info("search: divergence %.5f, after %d swaps %.5f", found.start, len(found.trials), found.value)
        return counts_of(found.levels)

    def _weights(self, counts: Mapping[str, int], rankings: Mapping[str, Ranking]) -> dict[str, np.ndarray]:
        """Refit weights of every thinned site at its level, kept for reuse."""
        weights: dict[str, np.ndarray] = {}
        for site in self.sites:
            key = (site.id, counts[site.id])
            if key not in self._fitted:
                self._fitted[key] = self.refitter(site, rankings[site.id].keep(counts[site.id]))
            weights.update(self._fitted[key])
        return weights

    def _ranked(self, rankings: Mapping[str, Ranking], budget: float) -> dict[str, int]:
        """The papers' search: every unit has one score, comparable within its kind."""
        by_kind: dict[str, list[Site]] = defaultdict(list)
        for site in self.sites:
            by_kind[site.group.kind].append(site)
        kinds = []
        for members in by_kind.values():
            total = sum(float(np.sum(rankings[s.id].scores)) for s in members) or 1.0
            scores = {s.id: np.array(rankings[s.id].scores) / total for s in members}
            costs = {s.id: self.costs.unit_costs(self.options.budget.kind, s.group) for s in members}
            kinds.append(
                Kind(
                    scores,
                    costs,
                    round_to=min(self._step(s) for s in members),
                    at_least=0 if all(s.branch for s in members) else 1,
                )
            )
        room = budget - self._fixed_cost()
        kept = rank_pair(kinds[0], kinds[1], room) if len(kinds) == 2 else rank(kinds, room)
        return {s.id: len(kept[s.id]) for s in self.sites}

    def _fixed_cost(self) -> float:
        kind = self.options.budget.kind
        return self.costs.total(kind) - sum(self.costs.unit_costs(kind, s.group) * s.group.size for s in self.sites)

    def _feasible(self, budget: float) -> None:
        kind = self.options.budget.kind
        floor = self._fixed_cost() + sum(
            self.costs.unit_costs(kind, s.group) * (0 if s.branch else self._step(s)) for s in self.sites
        )
        dense = self.costs.total(kind)
        if budget < floor:
            raise BudgetError(
                f"--{kind}: {budget / dense:.3f} of the model cannot be reached; the units that may go leave at least {math.ceil(floor / dense * 1000) / 1000:.3f} "
                f"({', '.join(self.options.units)}); raise the budget, or allow more kinds with --units",
                closest=floor / dense,
            )

    def _step(self, site: Site) -> int:
        """Widths that run fast: FFN rows in multiples of 32 where they are many, whole heads."""
        if self.options.round_to is not None:
            return 1 if site.group.kind == "heads" else min(self.options.round_to, site.group.size)
        if site.group.kind in ("heads", "query_heads"):
            return 1
        size = site.group.size
        return 32 if size >= 512 else 16 if size >= 128 else 8 if size >= 64 else 1

    # -- compensate --------------------------------------------------------------------------------------------

    def _completed(self, plan: Plan) -> Plan:
        if not plan.drop:
            return plan
        return self.gates.complete(plan, self._any_feeds())

    def _any_feeds(self) -> Mapping[str, Any]:
        if self.calibration is not None:
            return self.fit.batches[0].feeds
        from onnxprune.latency import synthesize

        return synthesize(self.model.inputs, dims=self.costs.bindings)

    def _mended(self, plan: Plan) -> Plan:
        linears = find_linears(self.model.graph, self.structure)
        mended, value, steps = compensate(
            self.gates, self.fit, self.select, plan, linears, progress=lambda d, n: self.progress("compensate", d, n)
        )
        logger.info(
            "compensation: divergence %.5f after %d steps, %d kept",
            value,
            len(steps),
            sum(s.kept is not None for s in steps),
        )
        return mended


def by_quantiles(dataset: Dataset, bins: int = 8, rows: int = 10) -> Dataset:
    """A small sample in few batches: rows of about `bins` lengths spread over the lengths there are."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, example in enumerate(dataset.examples):
        groups[example.tokens].append(i)
    if len(groups) <= bins:
        return (
            dataset
            if len(dataset) <= bins * rows
            else Dataset(
                tuple(dataset.examples[i] for g in groups.values() for i in g[: bins * rows // len(groups)]),
                dataset.kind,
                dataset.description,
                dataset.shared,
                dataset.max_batch,
            )
        )
    lengths = sorted(e.tokens for e in dataset.examples)
    picked: list[int] = []
    for b in range(bins):
        target = lengths[int((b + 0.5) / bins * len(lengths))]
        free = [n for n in groups if groups[n][0] not in picked]
        best = min(free, key=lambda n: (abs(n - target) - 0.5 * min(len(groups[n]), rows), n))
        picked += groups[best][:rows]
    return Dataset(
        tuple(dataset.examples[i] for i in sorted(picked)),
        dataset.kind,
        dataset.description,
        dataset.shared,
        dataset.max_batch,
    )


def _merged(name: str, members: Sequence[Module]) -> Module:
    """Modules that must be at the same level, as one."""
    rows = zip(*(m.levels for m in members), strict=True)
    return Module(name, tuple(Level(r[0].kept, sum(x.cost for x in r), sum(x.damage for x in r)) for r in rows))


def _uniform(modules: Sequence[Module], sites: Sequence[Site]) -> dict[str, list[Module]]:
    shared: dict[str, list[Module]] = defaultdict(list)
    for module, site in zip(modules, sites, strict=True):
        shared[f"{site.group.kind}x{site.group.size}:{len(module.levels)}"].append(module)
    return dict(shared)


def _method(options: Options, calibration: Dataset | None) -> str:
    if options.method == "auto":
        return "obs" if calibration is not None else "magnitude"
    if METHODS[options.method].needs and calibration is None:
        raise UsageError(
            f"--method {options.method} needs calibration rows (--calib); magnitude is the one that needs none"
        )
    return options.method


def _device(wanted: str) -> str:
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError("--device cuda: this torch sees no CUDA device")
    return "cuda" if available and wanted != "cpu" else "cpu"


def _why_nothing(structure: Structure, options: Options) -> str:
    other = sorted({g.kind for g in structure.groups} - set(options.units))
    hint = f" It has {', '.join(other)}: name them with --units." if other else ""
    reasons = sorted({why for pin in structure.pins for why in pin.reasons})[:6]
    return (
        f"nothing to prune: no {', '.join(u for u in options.units if u != 'blocks')} are free to be cut.{hint} "
        f"What pins the dimensions: {'; '.join(reasons) or 'there are no matrices with a free dimension'}. `onnxprune inspect` lists them."
    )
