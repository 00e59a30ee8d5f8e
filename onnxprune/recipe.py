"""From a budget and options to a plan: units by the planner first, then zeros in what is left."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial

import numpy as np

from onnxprune.config import MASKS
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.finetune import finetune
from onnxprune.flow import flows
from onnxprune.linears import Linear, find_linears
from onnxprune.maps import cheaper, mapped
from onnxprune.plan import Budget, Plan
from onnxprune.planning import Planner
from onnxprune.score import near_identity
from onnxprune.solve import Pattern, parse
from onnxprune.sparsify import parts_of, sparsify
from onnxprune.worth import worth

logger = logging.getLogger(__name__)


def carry_out(planner: Planner, budget: Budget) -> Plan:
    """The plan that a planner's options ask for, within a budget.

    Raises:
        BudgetError: no plan is that cheap.
        NothingToPruneError: a pattern of zeros is asked for, and there is no matrix for it.
    """
    if planner.options.snip_threshold is not None and not planner.first.drop:
        planner.first = begun(planner, planner.options.snip_threshold)
    limit = budget.limit(planner.costs.total(budget.kind))
    # What takes no longer than it may by a table is still to be measured.
    if budget.kind == "latency" or planner.costs.total(budget.kind, planner.first) > limit:
        plan = planner.plan(limit)
    else:
        plan = _mended(planner, planner.first)
    return plan if planner.options.sparsity is None else sparse(planner, plan)


def begun(planner: Planner, threshold: float) -> Plan:
    """The plan in which every residual branch that writes less than a threshold has left (SNIP); nothing else has.

    Its mean stays, or a linear map of the stream where that is cheaper than the branch and lowers the divergence.
    """
    if planner.calibration is None:
        raise UsageError("--snip-threshold measures what branches write on calibration rows: give some with --calib")
    with planner.clock.stage("score"):
        norms = flows(planner.fit, planner.sites, planner.structure, spectral=planner.options.snip_spectral)
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
    pattern = parse(options.sparsity)
    linears = chosen(planner)
    solver = _solver(planner)
    learns = planner.calibration is not None
    mends = learns and options.compensate
    with planner.clock.stage("sparsify"):
        made = sparsify(
            planner.gates, planner.fit if learns else None, plan, linears, pattern, solver,
            scores=_worth(planner, plan, linears, pattern) if solver in MASKS else None,
            evaluator=planner.select if mends else None,
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


def _worth(planner: Planner, plan: Plan, linears: list[Linear], pattern: Pattern) -> Mapping[str, np.ndarray]:
    options = planner.options
    return worth(options.solver, planner.gates, planner.fit, plan, linears, pattern, options.alpha, options.seed)
