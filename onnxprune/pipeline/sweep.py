"""Several budgets of one model, by several methods and seeds: what is measured serves all of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.graph import joined, memory
from onnxprune.graph.outputs import OutputSet
from onnxprune.graph.plan import Budget
from onnxprune.graph.put_away import Arrays, Store
from onnxprune.pipeline import fleet, output_files
from onnxprune.pipeline.debug_bundle import Place
from onnxprune.pipeline.fleet import Fleet
from onnxprune.pipeline.in_memory import takes_models
from onnxprune.pipeline.job import Job
from onnxprune.pipeline.result import Result
from onnxprune.pipeline.written import Product
from onnxprune.search.options import Options, first_provider
from onnxprune.search.plan_store import Filed
from onnxprune.search.store import Store as LastingStore

_Made = tuple[int, int, Filed, Product | None]
"""(a job's index, a budget's, the plan, the file that a worker wrote of it)."""


@dataclass(frozen=True)
class Series:
    """The results of one method and seed; `name` tells its files apart, where there are several."""

    method: str
    seed: int
    name: str


def series_of(methods: Sequence[str], seeds: Sequence[int]) -> list[Series]:
    """Every method with every seed, each once, seeds outermost: rows are split by them."""
    methods, seeds = tuple(dict.fromkeys(methods)), tuple(dict.fromkeys(seeds))
    made = []
    for seed, method in product(seeds, methods):
        parts = [re.sub(r"[^\w.+-]+", "-", method)] if len(methods) > 1 else []
        parts += [f"seed-{seed}"] if len(seeds) > 1 else []
        made.append(Series(method, seed, ".".join(parts)))
    return made


@takes_models
def sweep(
    source: str | os.PathLike[str],
    /,
    budgets: Sequence[float | str],
    folder: str | os.PathLike[str] | None = None,
    *,
    kind: str = "flops",
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
    calibration: Any = None,
    evaluation: Any = None,
    force: bool = False,
    debug_bundle: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    cluster: str | None = None,
    store: str | None = None,
    options: Mapping[str, Any] | None = None,
    reads: Sequence[str | os.PathLike[str]] = (),
    **common: Any,
) -> list[Result]:
    """Several budgets of one model; scores and the damage table are measured once for each method and seed.

    Args:
        budgets: of one kind, as for `prune`.
        folder: where NAME.BUDGET.onnx and its report go, each budget's when it is done (NAME.METHOD.BUDGET.onnx, where
            there are several methods); None writes nothing.
        methods, seeds: all combinations are tried; without any, those of the options.
        force: replace older outputs.
        debug_bundle: as for `prune`; of the first budget whose check fails.
        workers, cluster: where plans are made (`search.workers.opened`); the files are written and timed here.
        store: URL of a folder in which what is measured outlives the run (`search.store.Store`).
        reads: further files that must stay as they are (a recipe).
        common: keyword arguments of `job.Job.open`.

    Returns:
        Method by method, budget by budget.
    """
    asked = [Budget.parse(kind, b) for b in budgets]
    if not asked:
        raise UsageError("a sweep needs at least one budget")
    options = {"provider": first_provider(common.get("providers", ())), **(options or {})}
    tried = series_of(methods or [options.get("method", "auto")], seeds or [options.get("seed", 0)])
    made = [Options.of(asked[0], {**options, "method": one.method, "seed": one.seed}) for one in tried]
    file = joined.find(source)
    inputs = output_files.inputs_of(
        file, calibration, evaluation, options.get("latency_table"), *reads, tokenizer=common.get("tokenizer")
    )
    targets = [None if folder is None else _target(Path(folder), file, one, kind, b) for one in tried for b in asked]
    taken = output_files.taken(*targets, quantize=common.get("quantize"))
    bundle = None if debug_bundle is None else Place.of(debug_bundle, inputs + taken, force=force)
    kept = Path(folder) if folder is not None else None
    common.setdefault("scores", kept if len(tried) == 1 else None)
    with memory.limited(options.get("max_memory")), ExitStack() as stack:
        opened = partial(output_files.opened, quantize=common.get("quantize"), force=force, told=set())
        outs = [stack.enter_context(opened(target, file, inputs)) for target in targets]
        common["store"] = LastingStore(store) if store is not None else None
        fleet_of = stack.enter_context(fleet.opened(file, made[0], workers, cluster))
        results: list[Result] = []
        for seed in dict.fromkeys(one.seed for one in tried):
            first: Job | None = None
            jobs = []
            for one, wanted in zip(tried, made, strict=True):
                if one.seed == seed:
                    first = first or Job.open(source, wanted, calibration, evaluation, **common)
                    scores = kept / f"{file.stem}.{one.name}.scores.json" if kept and one.name else None
                    jobs.append(first.by(one.method, scores) if len(tried) > 1 else first)
                    jobs[-1].debug_bundle, jobs[-1].keep_broken = bundle, True
            places = outs[len(results) : len(results) + len(jobs) * len(asked)]
            results += _results(jobs, asked, places, fleet_of)
        return results


def _results(
    jobs: Sequence[Job],
    budgets: Sequence[Budget],
    outs: Sequence[OutputSet],
    fleet_of: Callable[[Job], Fleet] | None,
) -> list[Result]:
    cells = [(i, k) for i in range(len(jobs)) for k in range(len(budgets))]
    store = Store(memory.small_share() // 4)
    if fleet_of is None:
        made: list[Result] = []
        for (i, k), out in zip(cells, outs, strict=True):
            seed = jobs[i].options.seed
            by = (f", {jobs[i].planner.method}" if len(jobs) > 1 else "") + (f", seed {seed}" if seed else "")
            jobs[i].clock.say(f"{budgets[k]}{by} ({len(made) + 1} of {len(cells)}):")
            made.append(_put_away(jobs[i].run(budgets[k], out), out, store))
            if k == len(budgets) - 1 and i < len(jobs) - 1:
                jobs[i].planner.forget()
        return made
    crew = fleet_of(jobs[0])
    crew.measure(jobs)
    found: dict[tuple[int, int], Result] = {}
    places = dict(zip(cells, outs, strict=True))
    names = {cell: out.first for cell, out in places.items() if out.base is not None}
    plans: Iterable[_Made] = crew.plans(jobs, budgets, names)
    if jobs[0].measure:  # files are timed when all workers are done: nobody else is at work then
        plans = sorted(plans, key=lambda one: one[:2])
    for i, k, plan, there in plans:
        result = jobs[i].finish(plan.read(), budgets[k], places[i, k], there)
        found[i, k] = _put_away(result, places[i, k], store)
    return [found[cell] for cell in cells]


def _put_away(result: Result, out: OutputSet, store: Store) -> Result:
    """A result that holds no more than it must while further budgets are planned: its graph is in a file."""
    weights = result.plan.weights
    plan = replace(result.plan, weights=weights if isinstance(weights, Arrays) else store.kept(weights))
    alone = result.dense is not None and not result.dense.parts
    return replace(result, plan=plan, graph=None if out.base is not None and alone else result.graph)


def _target(folder: Path, file: Path, series: Series, kind: str, budget: Budget) -> Path:
    stem, ending = (file.resolve().name, "") if file.is_dir() else (file.stem, ".onnx")
    name = ".".join(part for part in (stem, series.name, f"{kind}-{budget.value:g}") if part)
    return folder / f"{name}{ending}"
