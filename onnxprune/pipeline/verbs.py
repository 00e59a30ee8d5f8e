"""The whole job, as functions: prune, plan, apply, inspect (a sweep is in its own file).

`prune` reads as the pipeline does: load, analyze, plan (probe, score, search, compensate), rewrite, check, validate,
report; `job.Job` holds what several budgets share.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from typing import Any

from onnxprune import data, rewrite
from onnxprune.errors import ModelError, UsageError
from onnxprune.graph import joined, memory, plan_fit
from onnxprune.graph import model as models
from onnxprune.graph.companions import add_companions
from onnxprune.graph.example_feeds import synthesize
from onnxprune.graph.finite import check_weights
from onnxprune.graph.model import Model
from onnxprune.graph.outputs import Inputs, OutputSet
from onnxprune.graph.plan import Budget, Plan, Structure
from onnxprune.graph.prepare import optional_inputs
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure import uncounted
from onnxprune.measure.cost import Costs, symbols
from onnxprune.measure.dense_file import examine
from onnxprune.measure.equivalence import Equivalence
from onnxprune.measure.flips import SHOWN
from onnxprune.measure.own_targets import with_targets
from onnxprune.measure.runnable_sizes import runnable
from onnxprune.pipeline import fleet, output_files
from onnxprune.pipeline.debug_bundle import Place
from onnxprune.pipeline.in_memory import takes_models
from onnxprune.pipeline.job import Job
from onnxprune.pipeline.max_drop import Limit, smallest_within
from onnxprune.pipeline.preview import Preview, preview
from onnxprune.pipeline.proof import prove
from onnxprune.pipeline.result import Result
from onnxprune.pipeline.rows import require_memory, require_there, shape_of, vocabulary
from onnxprune.pipeline.written import listed, write
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter
from onnxprune.refit.sparsify import zeros_in
from onnxprune.search import units_then_zeros
from onnxprune.search.defaults import require_engine
from onnxprune.search.options import Options, first_provider
from onnxprune.search.planner import Planner
from onnxprune.search.progress import Progress
from onnxprune.search.store import Store

logger = logging.getLogger(__name__)

_LARGEST = 4096
"""Size of a dimension that a plan may ask a check to run at."""


@takes_models
def prune(
    source: str | os.PathLike[str],
    /,
    output: str | os.PathLike[str] | None = None,
    *,
    flops: float | str | None = None,
    params: float | str | None = None,
    size: float | str | None = None,
    latency: float | str | None = None,
    max_drop: str | None = None,
    calibration: Any = None,
    evaluation: Any = None,
    providers: Sequence[str] = ("cpu",),
    metric: str | Sequence[str] | None = None,
    measure_latency: bool = True,
    quantize: str | None = None,
    flips: int = SHOWN,
    force: bool = False,
    keep_broken: bool = False,
    debug_bundle: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str] | None = None,
    pairs: Any = None,
    tokenizer: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    allow_outside: bool = False,
    workers: int | None = None,
    cluster: str | None = None,
    store: str | None = None,
    progress: Progress | None = None,
    reads: Sequence[str | os.PathLike[str]] = (),
    **options: Any,
) -> Result:
    """Prune a model to a budget and measure what it cost.

    Args:
        source: a `.onnx` file, an `onnx.ModelProto`, an `onnx_ir.Model`, or an optimum folder; several graphs in it
            (encoder and decoders, two towers) are one job.
        output: file to write, with its report and plan beside it, or the folder of several graphs; a name that ends in
            a slash is a folder for NAME.pruned.onnx. None writes nothing.
        flops, params, size, latency: the fraction to keep (0.6, "60%") or an amount ("6GMAC", "30M", "25MB", "8ms");
            a latency is that of the first provider, measured here unless `latency_table` names a file.
        max_drop: instead of a size: the smallest model that stays within "1pt" (points of the metric) or "1%"
            (relative) on the evaluation rows. Exactly one of the five is given.
        calibration: rows to learn from (`data.read` says in which forms); without them only data-free methods work.
        evaluation: rows for the report; without them some calibration rows are set aside for it.
        providers: execution providers to validate and time on.
        metric: of the task; guessed and said when None.
        quantize: also write the pruned model in fewer bits (`precision` lists the schemes), and measure each step.
        flips: how many of the evaluation rows that are answered otherwise the report shows, with the beginning of their
            text or a small picture; 0 keeps rows out of it.
        force: replace an older output: the model, and its plan, report and tokenizer with it.
        keep_broken: write a model of whose outputs nothing is left, too; else it is refused (`refuse_ruin`).
        workers, cluster: where units are ordered and damages measured (`search.workers.opened`); None for here.
        store: URL of a folder in which what is measured outlives the run (`search.store.Store`).
        progress: called with (stage, done, of) as the run goes on (`search.progress`).
        reads: further files that must stay as they are (a recipe).
        debug_bundle: a zip file to write what reproduces it to, should the check of the written file fail.
        options: fields of `search.options.Options`, and how images are prepared (preset, mean, std, scale, layout).

    Raises:
        OnnxPruneError: see `errors`; nothing is written then.
    """
    asked = {"columns": columns, "pairs": pairs, "tokenizer": tokenizer, "max_length": max_length}
    asked |= {name: options.pop(name) for name in data.READING if name in options}
    common: dict[str, Any] = {
        "providers": providers, "metric": metric, "quantize": quantize, "flips": flips, "progress": progress, **asked,
    }  # fmt: skip
    limits = {"flops": flops, "params": params, "size": size, "latency": latency}
    options.setdefault("provider", first_provider(providers))
    Options.require(options, signature(prune).parameters)  # a budget's name may be among what is misspelt
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is called with (stage, done, of); {progress!r:.60} cannot be called")
    budget = _budget(limits, max_drop, options)
    asked_options = Options.of(budget, options)
    file = joined.find(source)
    target = None if output is None else output_files.target_of(output, file)
    inputs = _inputs(file, calibration, evaluation, tokenizer, options, reads)
    taken = inputs + output_files.taken(target, quantize=quantize)
    bundle = None if debug_bundle is None else Place.of(debug_bundle, taken, force=force)
    with (
        memory.limited(options.get("max_memory")),
        output_files.opened(target, file, inputs, quantize=quantize, force=force) as out,
    ):
        with fleet.opened(file, asked_options, workers, cluster) as fleet_of:
            job = Job.open(
                source, asked_options, calibration, evaluation, measure=measure_latency,
                scores=target.parent if target else None, store=None if store is None else Store(store),
                allow_outside=allow_outside, **common,
            )  # fmt: skip
            if fleet_of is not None:
                fleet_of(job).measure([job])
        if max_drop is not None:
            budget, plan = smallest_within(job, max_drop)
        else:
            job.planner.last = True
            plan = job.plan(budget)
        job.planner.release()
        job.debug_bundle, job.keep_broken = bundle, keep_broken
        return job.finish(plan, budget, out)


def dry_run(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    flops: float | str | None = None,
    params: float | str | None = None,
    size: float | str | None = None,
    latency: float | str | None = None,
    max_drop: str | None = None,
    calibration: Any = None,
    evaluation: Any = None,
    providers: Sequence[str] = ("cpu",),
    tokenizer: str | os.PathLike[str] | None = None,
    quantize: str | None = None,
    force: bool = False,
    reads: Sequence[str | os.PathLike[str]] = (),
    metric: str | Sequence[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Preview:
    """What `prune` would do with the same arguments: all is read and asked about, nothing scored, cut or written.

    Args:
        options: fields of `search.options.Options`, and how rows are read (`data.READING`).

    Raises:
        OnnxPruneError: as `prune` would, as far as that is known by then.
    """
    options.setdefault("provider", first_provider(providers))
    limits = {"flops": flops, "params": params, "size": size, "latency": latency}
    budget = _budget(limits, max_drop, options)
    file = joined.find(source)
    inputs = _inputs(file, calibration, evaluation, tokenizer, options, reads)
    prepared = {name: options.pop(name) for name in (*data.READING, "flips") if name in options}
    return preview(
        file, output_files.target_of(output, file), budget, max_drop, inputs, options,
        calibration, evaluation, force=force, quantize=quantize, providers=providers, metric=metric, progress=progress,
        tokenizer=tokenizer, **prepared,
    )  # fmt: skip


def _budget(limits: Mapping[str, float | str | None], max_drop: str | None, options: Mapping[str, Any]) -> Budget:
    if max_drop is None:
        return budget_of(**limits, whole=needs_no_budget(options))
    Limit.parse(max_drop)
    if any(limit is not None for limit in limits.values()):
        raise UsageError("--max-drop finds the size itself; give it alone, without another budget")
    return Budget("flops", 0.5)


def _inputs(
    file: Path, calibration: Any, evaluation: Any, tokenizer: Any, options: Mapping[str, Any], reads: Sequence[Any]
) -> Inputs:
    table = options.get("latency_table")
    return output_files.inputs_of(file, calibration, evaluation, table, *reads, tokenizer=tokenizer)


def budget_of(*, whole: bool = False, **asked: float | str | None) -> Budget:
    """The one budget that was asked for; `whole`: without one, everything may stay."""
    given = {kind: value for kind, value in asked.items() if value is not None}
    if whole and not given:
        return Budget("flops", 1.0)
    if len(given) != 1:
        got = ", ".join(f"--{k}" for k in given) or "none"
        raise UsageError(
            f"give exactly one budget ({', '.join(f'--{k}' for k in asked)}, or --max-drop), as in --flops 0.6; "
            f"got {got}"
        )
    ((kind, value),) = given.items()
    return Budget.parse(kind, value)


def needs_no_budget(options: Mapping[str, Any]) -> bool:
    """Whether options say by themselves what goes."""
    return options.get("sparsity") is not None or options.get("snip_threshold") is not None


@takes_models
def make_plan(
    source: str | os.PathLike[str],
    /,
    calibration: Any,
    options: Options,
    progress: Callable[..., None] | None = None,
    **asked: Any,
) -> Plan:
    """The plan alone: `apply` carries it out later, without data."""
    with memory.limited(options.max_memory):
        return _make_plan(source, calibration, options, progress, **asked)


def _make_plan(
    source: str | os.PathLike[str],
    calibration: Any,
    options: Options,
    progress: Callable[..., None] | None,
    **asked: Any,
) -> Plan:
    require_engine(options, calibration)
    require_there(calibration)
    dense = joined.load(source, options.calls)
    learn = None
    if calibration is not None:
        learn = data.read(
            calibration,
            dense.inputs,
            outputs=dense.outputs,
            folder=dense.folder,
            vocab_size=vocabulary(dense),
            seed=options.seed,
            limit=options.rows,
            shape=options.shape,
            **asked,
        ).distinct()
        learn = with_targets(dense, learn)
    structure = analyze(dense, hidden="hidden" in options.units)
    require_memory(dense, options, learn)
    said, bindings = examine(dense, learn), shape_of(dense, options.shape, learn)
    examples = [e.feeds for e in learn.examples[:8]] if learn is not None else []
    for line in (*said, *uncounted.said(uncounted.find(dense, bindings, examples))):
        logger.warning("%s", line)
    planner = Planner(dense, structure, options, learn, bindings, progress=progress)
    plan = units_then_zeros.carry_out(planner, options.budget)
    models.require_unchanged(dense)
    landed = {} if planner.landing is None else {"latency": asdict(planner.landing)}
    return replace(plan, notes={"shape": bindings, **landed})


@takes_models
def apply(
    source: str | os.PathLike[str],
    plan: Plan,
    output: str | os.PathLike[str],
    *,
    force: bool = False,
    keep_unread: bool = False,
    debug_bundle: str | os.PathLike[str] | None = None,
    reads: Sequence[str | os.PathLike[str]] = (),
) -> tuple[list[Path], Equivalence]:
    """Carry out a plan made earlier, check the file, and write it.

    Args:
        force: replace an older output; its plan and report go too, being another model's.
        debug_bundle: as for `prune`.
        reads: further files that must stay as they are (the plan's).
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan is a Plan, not of type {type(plan).__name__}: Plan.load(path) reads one from its file")
    file = joined.find(source)
    target, read = output_files.target_of(output, file), output_files.inputs_of(file, *reads)
    bundle = None if debug_bundle is None else Place.of(debug_bundle, read + output_files.taken(target), force=force)
    with output_files.opened(target, file, read, force=force, writes_plan=False) as out:
        found = _apply(source, plan, out, keep_unread=keep_unread, bundle=bundle)
        return out.commit(), found


def _apply(
    source: str | os.PathLike[str], plan: Plan, out: OutputSet, *, keep_unread: bool, bundle: Place | None
) -> Equivalence:
    dense = joined.load(source)
    structure = analyze(dense, hidden=any(name.startswith("hidden.") for name in plan.keep))
    assert dense.folder is not None
    said = [*dense.said, *examine(dense)]
    # Sizes that the graph takes are those at which the plan was priced.
    known = {name: size for name, size in _sizes(plan).items() if name in symbols(dense)}
    feeds = synthesize(dense.inputs, dims=runnable(dense, known, 8, told=True))
    if plan.digest == dense.digest:
        plan_fit.require(plan, dense.graph, structure)
        plan = Gates(structure, Interpreter(dense.graph)).complete(plan, feeds)
    pruned = rewrite.apply(dense, structure, plan)
    if not keep_unread:
        rewrite.drop_unread(pruned)
    made = write(dense, pruned, out.folder, out.first)
    found, more = prove(dense, structure, plan, made, [feeds], {}, bundle)
    for line in (*said, *more, *filter(None, [optional_inputs.changes(pruned)])):
        logger.warning("%s", line)
    zeros_in(made.whole, dense, structure, plan)
    add_companions(dense.folder, out)
    listed(out, dense, {}, made.files)
    models.require_unchanged(dense)
    return found


def _sizes(plan: Plan) -> dict[str, int]:
    """The shape that a plan's notes state: a file's, which may hold anything."""
    noted = plan.notes.get("shape")
    held = noted.items() if isinstance(noted, Mapping) else ()
    return {str(name): size for name, size in held if isinstance(size, int) and 0 < size <= _LARGEST}


@takes_models
def inspect(
    source: str | os.PathLike[str], shape: Mapping[str, int] | None = None, calls: Mapping[str, int] | None = None
) -> tuple[Model, Structure, Costs]:
    """What can be cut, what it costs, and what is pinned; needs no data and no torch.

    Dimensions that are not stated count as 128, or as another size that the graph runs with, the batch as 1, and so do
    tokens behind a cache. Weights that are not finite are said: a cut will be refused for them.
    """
    dense = joined.load(source, calls)
    try:
        check_weights(dense.graph)
    except ModelError as error:
        logger.warning("%s", error)
    structure = analyze(dense)
    return dense, structure, Costs(dense, structure, runnable(dense, shape or {}, 128))
