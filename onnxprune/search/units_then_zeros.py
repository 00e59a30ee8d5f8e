"""From a budget and options to a plan: units by the planner first, then zeros in what is left."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial

import numpy as np

from onnxprune.data import variants
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.graph.plan import Budget, Plan
from onnxprune.graph.structure.linear_layers import Linear, find_linears
from onnxprune.probe.branch_norms import flows
from onnxprune.refit.finetune import finetune
from onnxprune.refit.linear_stand_ins import cheaper, mapped
from onnxprune.refit.solvers import Tiled, Tiles, parse
from onnxprune.refit.solvers.linalg import numpy_on_one_thread
from onnxprune.refit.solvers.patterns import NARROWEST
from onnxprune.refit.sparsify import Patterns, parts_of, sparsify
from onnxprune.refit.tiles import arrange, emptied
from onnxprune.refit.tune import tune
from onnxprune.score import near_identity
from onnxprune.search.options import MASKS
from onnxprune.search.planner import Planner
from onnxprune.search.weight_scores import worth

logger = logging.getLogger(__name__)

TRIES = 4
"""Plans of units that are made to find the one that tiles bring to the budget."""

MADE = 1.5
"""Rows made of the texts, to each that teaches already, that tuning learns from besides: more are less soon known by
heart."""

NEAR, AIM = 0.99, 0.998
"""Of a budget: what is near enough, and what a further plan aims at."""


def carry_out(planner: Planner, budget: Budget) -> Plan:
    """The plan that a planner's options ask for, within a budget: for every graph of the model.

    Raises:
        BudgetError: no plan is that cheap.
        NothingToPruneError: a pattern of zeros is asked for, and there is no matrix for it.
    """
    with numpy_on_one_thread():
        if planner.options.snip_threshold is not None and not planner.first.drop:
            planner.first = begun(planner, planner.options.snip_threshold)
        limit = budget.limit(planner.costs.total(budget.kind))
        pattern = None if planner.options.sparsity is None else parse(planner.options.sparsity)
        if isinstance(pattern, Tiles):
            plan = sparse(planner, tiled(planner, pattern, budget.kind, limit))
        else:
            plan = structured(planner, budget.kind, limit)
            plan = plan if pattern is None else sparse(planner, plan)
        if planner.options.tune:
            plan = tuned(planner, plan)
    model, structure = planner.whole
    return replace(planner.based(plan).everywhere(structure), files=model.digests)


def tuned(planner: Planner, plan: Plan) -> Plan:
    """The plan with all that is left of the model tuned, for as long as the options say.

    Raises:
        UsageError: there are no rows to learn from, or the weights are more than memory holds.
    """
    if planner.calibration is None:
        raise UsageError("--tune learns from the dense model on calibration rows: give some with --calib")
    if planner.interpreter.streams:
        raise UsageError("--tune takes gradients, which hold all weights: give --max-memory more")
    with planner.clock.stage("tune"):
        dataset = planner.fit.dataset
        made = variants(dataset, round(MADE * len(dataset)), planner.options.seed + 1)
        found = tune(
            planner.model, planner.structure, planner.gates, replace(planner.fit, dataset=dataset + made),
            planner.held, planner.select,
            planner.completed(planner.based(plan)), 60 * planner.options.tune,
            seed=planner.options.seed, progress=partial(planner.progress, "tune"),
        )  # fmt: skip
    if found.after == found.before:
        logger.warning("tuning: nothing that was learnt holds on other rows; weights stay as they were mended")
    return found.plan


def structured(planner: Planner, kind: str, limit: float) -> Plan:
    """The plan of units alone, at a cost of at most `limit`."""
    # What takes no longer than it may by a table is still to be measured.
    if kind == "latency" or planner.costs.total(kind, planner.first) > limit:
        return planner.plan(limit)
    return _mended(planner, planner.first)


def tiled(planner: Planner, pattern: Tiles, kind: str, limit: float) -> Plan:
    """Units first, then tiles in what is left, so that both together come to `limit`; zeros are not solved for yet.

    What tiles take away depends on the units that are left: the units' own limit is found in a few steps.
    """
    if pattern.width is not None and pattern.width < NARROWEST:
        logger.warning("tiles of %d outputs are narrow: below %d they seldom run faster", pattern.width, NARROWEST)
    units, plan = (_timed if kind == "latency" else _counted)(planner, pattern, kind, limit)
    whole = _mended(planner, units) if units is planner.first else planner.finished(units)
    return replace(whole, keep=plan.keep, order=plan.order, tiles=plan.tiles, sparsity=plan.sparsity)


def _counted(planner: Planner, pattern: Tiles, kind: str, limit: float) -> tuple[Plan, Plan]:
    """(the plan of units, the same with tiles) that come closest to a limit that is counted, from below."""
    dense = room = planner.costs.total(kind)
    best: tuple[Plan, Plan] | None = None
    reached, seen = 0.0, (0.0, 0.0)
    for _ in range(TRIES):
        units = planner.bare(room) if planner.costs.total(kind, planner.first) > room else planner.first
        plan = _arranged(planner, units, pattern)
        point = planner.costs.total(kind, units), planner.costs.total(kind, plan)
        logger.info("tiles: units %.3f, with tiles %.3f of the limit", point[0] / limit, point[1] / limit)
        if reached < point[1] <= limit:
            best, reached = (units, plan), point[1]
        if point[1] <= limit and (point[1] >= NEAR * limit or room >= dense):
            break
        # Along the line through this plan and the one before it; through nothing, of the first.
        slope = (point[1] - seen[1]) / (point[0] - seen[0]) if point[0] != seen[0] else point[1] / point[0]
        aimed = point[0] + (AIM * limit - point[1]) / max(slope, 0.1)
        room, seen = min(max(aimed, limit), dense), point
    if best is None:
        units = planner.bare(limit)
        best = units, _arranged(planner, units, pattern)
    return best


def _timed(planner: Planner, pattern: Tiles, kind: str, limit: float) -> tuple[Plan, Plan]:
    """The same of a latency: tables know nothing of tiles, so what files with them take is measured."""
    made: list[tuple[Plan, Plan]] = []

    def choose(room: float) -> Plan:
        units = planner.bare(min(room, planner.costs.total(kind)))
        made.append((units, emptied(planner.gates, _arranged(planner, units, pattern), chosen(planner))))
        return made[-1][1]

    plan = planner.landed(limit, choose, corrections=2)
    return next(pair for pair in made if pair[1] is plan)


def _arranged(planner: Planner, plan: Plan, pattern: Tiles) -> Plan:
    options = planner.options
    assert options.sparsity is not None
    if options.solver not in ("auto", "magnitude"):
        raise UsageError(
            f"--solver {options.solver} chooses single weights; what tiles read is chosen by optimal brain surgeon, "
            "or by magnitude without calibration rows: leave it at auto"
        )
    learns = planner.calibration is not None and options.solver != "magnitude"
    with planner.clock.stage("tile"):
        return arrange(
            planner.gates, planner.fit if learns else None, plan, chosen(planner), pattern, options.sparsity,
            centred=options.compensate, progress=partial(planner.progress, "tile"),
        )  # fmt: skip


def begun(planner: Planner, threshold: float) -> Plan:
    """The plan in which every residual branch that writes less than a threshold has left (SNIP); nothing else has.

    Its mean stays, or a linear map of the stream where that is cheaper than the branch and lowers the divergence.
    """
    if planner.calibration is None:
        raise UsageError("--snip-threshold measures what branches write on calibration rows: give some with --calib")
    read = [s for s in planner.sites if s.matrices]
    with planner.clock.stage("score"):
        norms = flows(planner.fit, read, planner.structure, spectral=planner.options.snip_spectral)
    drop = near_identity(norms, planner.structure, threshold)
    logger.info("branches below %g: %s", threshold, ", ".join(drop) or "none")
    plan = planner.completed(Plan(planner.model.digest, drop=drop))
    if not drop or not planner.options.compensate:
        return plan
    with planner.clock.stage("compensate"):
        allowed = cheaper(planner.costs, planner.options.budget.kind, drop)
        return mapped(planner.gates, planner.fit, planner.select, plan, allowed)


def _mended(planner: Planner, plan: Plan) -> Plan:
    if not plan.drop or planner.calibration is None or not planner.options.compensate:
        return plan
    with planner.clock.stage("compensate"):
        return planner.mended(plan)


def sparse(planner: Planner, plan: Plan) -> Plan:
    """A plan with the zeros that the options ask for in its matrices, and a bias that makes up for them."""
    options = planner.options
    assert options.sparsity is not None
    linears = [x for x in chosen(planner) if not plan.tiles or x.weight in plan.tiles]
    pattern: Patterns = {w: Tiled(tiles) for w, tiles in plan.tiles.items()} or parse(options.sparsity)
    solver = _solver(planner)
    learns = planner.calibration is not None
    mends = learns and options.compensate
    with planner.clock.stage("sparsify"):
        made = sparsify(
            planner.gates, planner.fit if learns else None, plan, linears, pattern, solver,
            scores=_worth(planner, plan, linears) if solver in MASKS else None,
            held=planner.held if mends else None,
            progress=partial(planner.progress, "sparsify"),
        )  # fmt: skip
    if options.finetune:
        if not learns:
            raise UsageError("--finetune learns from the dense model on calibration rows: give some with --calib")
        with planner.clock.stage("finetune"):
            made = finetune(
                planner.gates, planner.fit, planner.select, made, linears, pattern, options.finetune, seed=options.seed
            )
    names = [part.linear.weight for part in parts_of(planner.gates, made, linears)]
    return replace(made, sparsity=dict.fromkeys(names, options.sparsity))


def chosen(planner: Planner) -> list[Linear]:
    """The matrices that get zeros: those of residual branches (all, where there are none), by --include, --exclude."""
    include, exclude = planner.options.include, planner.options.exclude
    found = find_linears(planner.model.graph, planner.structure)
    inside = [x for x in found if x.inside is not None] or found
    kept = [
        x
        for x in inside
        if (not include or any(fnmatch(n, g) for n in (x.node, x.weight) for g in include))
        and not any(fnmatch(n, g) for n in (x.node, x.weight) for g in exclude)
    ]
    if not kept:
        raise NothingToPruneError(
            "--sparsity: no matrix to prune: the graph has no MatMul or Gemm with a weight of its own"
            + (" that --include and --exclude let through" if inside else "")
        )
    return kept


def _solver(planner: Planner) -> str:
    solver = planner.options.solver
    if planner.calibration is None and solver not in ("auto", "magnitude"):
        raise UsageError(f"--solver {solver} needs calibration rows (--calib); magnitude is the one that needs none")
    return solver if solver != "auto" else "admm" if planner.calibration is not None else "magnitude"


def _worth(planner: Planner, plan: Plan, linears: list[Linear]) -> Mapping[str, np.ndarray]:
    options = planner.options
    assert options.sparsity is not None
    pattern = parse(options.sparsity)
    return worth(options.solver, planner.gates, planner.fit, plan, linears, pattern, options.alpha, options.seed)
