"""A budget in milliseconds: the costs that a planner searches by then, and the way to the target."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from onnxprune import rewrite
from onnxprune.errors import UsageError
from onnxprune.graph import joined, outputs
from onnxprune.graph import model as models
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Plan, Structure
from onnxprune.graph.providers import SHORT_NAMES, resolve_providers
from onnxprune.graph.structure.sites import Site
from onnxprune.measure import calls, latency
from onnxprune.measure.cost import Costs
from onnxprune.measure.tables import source, timing_script
from onnxprune.measure.tables.costs import LatencyCosts
from onnxprune.measure.tables.fast_widths import measured
from onnxprune.measure.tables.landing import Landing, Seen, Timing, landed
from onnxprune.measure.tables.micro_models import Cutter, Micro
from onnxprune.measure.tables.table import LatencyTable
from onnxprune.search.options import Options
from onnxprune.search.progress import Clock, Progress

logger = logging.getLogger(__name__)

RUNS = 70
"""Pairs of runs that a plan is judged by."""


def costs_for(
    model: Model,
    structure: Structure,
    options: Options,
    bindings: Mapping[str, int],
    sites: Sequence[Site],
    clock: Clock,
    progress: Progress,
) -> Costs:
    """Counted costs; with those of a latency table where the budget is one, or a table is given."""
    if options.budget.kind != "latency" and options.latency_table is None:
        return Costs(model, structure, bindings)
    picky = options.budget.kind == "latency" or options.round_to is None
    provider = provider_of(options)
    if options.latency_table is not None:
        table = source.chosen(Path(options.latency_table), provider, bindings)
        known = partial(source.widths_in, table)
        return LatencyCosts(
            model, structure, bindings, sites, known, lambda cutter, needed: table, picky, options.keep_unread
        )
    (provider,) = resolve_providers(provider)

    def obtain(cutter: Cutter, needed: Sequence[Micro]) -> LatencyTable:
        told = partial(progress, "latency table")
        with clock.stage("profile"):
            return source.obtained(cutter, needed, provider, options.latency_threads, progress=told)

    timed = partial(measured, provider=provider, round_to=options.round_to)
    return LatencyCosts(model, structure, bindings, sites, timed, obtain, picky, options.keep_unread)


def provider_of(options: Options) -> str:
    """The full name of the provider that a run is about."""
    return SHORT_NAMES.get(options.provider.lower(), options.provider)


def land(
    costs: LatencyCosts,
    table: LatencyTable,
    limit: float,
    choose: Callable[[float], Plan],
    time: Callable[[Plan], Timing],
    relative: bool,
    corrections: int = 1,
) -> tuple[Plan, Landing]:
    """The plan, not mended yet, that comes closest to a latency (milliseconds by the table) when it is measured.

    Args:
        choose: the plan within a latency by the table.
        time: what a plan's file takes (`timing`).
        relative: whether the budget is a share of the dense model's time.
        corrections: how often the plan may be chosen anew.

    Raises:
        BudgetError: no plan is that fast by the table.
    """
    dense = costs.total("latency")
    timings: list[tuple[Plan, Timing]] = []

    def cost(plan: Plan) -> float:
        return costs.total("latency", plan)

    def seen_of(plan: Plan) -> Seen:
        found = time(plan)
        timings.append((plan, found))
        # A share of the dense model's time holds whatever else the machine does; milliseconds are what they are.
        whole = dense if relative else found.dense_ms
        return found.ratio * whole, (found.interval[0] * whole, found.interval[1] * whole)

    reason = why_not_here(table)
    if reason:
        plan, corrected = choose(limit), 0
        logger.warning("latency: %s", reason)
    else:
        plan, corrected = landed(choose, cost, seen_of, limit, corrections=corrections)
    seen = next((found for made, found in timings if made is plan), None)
    measured, interval = (seen.ratio, seen.interval) if seen else (None, None)
    return plan, Landing(
        limit / dense, cost(plan) / dense, measured, interval, dense, corrected,
        table.provider, table.threads, table.shape, table.machine, reason,
    )  # fmt: skip


def timing(
    model: Model,
    structure: Structure,
    costs: LatencyCosts,
    plan: Plan,
    examples: Sequence[Mapping[str, Any]],
    keep_unread: bool,
) -> Timing:
    """The real file of a plan, interleaved with the dense one, as the table was measured.

    Args:
        examples: feeds of some rows.
    """
    pruned = rewrite.apply(model, structure, plan.everywhere(structure))
    if not keep_unread:
        rewrite.drop_unread(pruned)
    with outputs.scratch() as scratch:
        alone = [models.save(joined.split(pruned, part), scratch / part.file.name)[0] for part in model.parts]
        whole = scratch / "plan.onnx"
        if not alone:
            models.save(pruned, whole)
        (row,) = calls.bench(
            model, whole, alone, providers=(costs.table.provider,), dims=costs.bindings, threads=costs.table.threads,
            examples=examples, runs=RUNS,
        )  # fmt: skip
    return timing_of(row)


def timing_of(row: latency.LatencyRow) -> Timing:
    """What the pruned model takes of the dense one's time."""
    low, high = row.speedup_interval
    return Timing(1 / row.speedup, (1 / high, 1 / low), row.dense_ms.p50)


def verified(landing: Landing, rows: Sequence[latency.LatencyRow]) -> Landing:
    """A landing with what the finished file takes, where that was measured at the table's place."""
    row = next((r for r in rows if (r.provider, r.threads) == (landing.provider, landing.threads)), None)
    if row is None or landing.measured is None:
        return landing
    seen = timing_of(row)
    return replace(landing, measured=seen.ratio, interval=seen.interval)


def why_not_here(table: LatencyTable) -> str:
    """Why a table's latencies cannot be measured on this machine; empty if they can."""
    if table.machine != timing_script.machine():
        return f"predicted by a table of another machine ({table.machine}), not measured; measure the file there"
    try:
        resolve_providers(table.provider)
    except UsageError as error:
        return f"predicted by the table, not measured: {error}"
    return ""
