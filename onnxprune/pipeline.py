"""The whole job: load, analyze, plan (probe, score, search, compensate), rewrite, check, validate, report.

Each step is a function that can be called alone; `prune` is all of them in order.
"""

from __future__ import annotations

import logging
import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import data, latency, rewrite
from onnxprune import model as models
from onnxprune import report as reports
from onnxprune.config import Options
from onnxprune.cost import Costs, default_bindings
from onnxprune.data import Dataset
from onnxprune.equivalence import Equivalence, equivalence
from onnxprune.errors import UsageError
from onnxprune.gates import Gates
from onnxprune.interpret import Interpreter
from onnxprune.model import Model
from onnxprune.plan import Budget, Plan, Structure
from onnxprune.planning import Clock, Planner, Progress
from onnxprune.report import html
from onnxprune.structure import analyze
from onnxprune.validate import Evidence, validate

logger = logging.getLogger(__name__)

TOLERANCE = {"float16": 1e-2, "bfloat16": 4e-2}
"""How far the written file may be from the plan, relative to the outputs' scale; 1e-4 in single precision."""

CHECK_ROWS = 64

COMPANIONS = ("config.json", "generation_config.json", "preprocessor_config.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
              "sentencepiece.bpe.model", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json")  # fmt: skip
"""Files that belong to a model folder and go with the pruned one."""


@dataclass(frozen=True)
class Result:
    """What a run gives.

    Attributes:
        model: the pruned graph.
        plan: what was cut, with refit weights.
        report: everything measured.
        files: what was written; empty until `save`, if `prune` was not given an output.
    """

    model: ir.Model
    plan: Plan
    report: reports.Report
    files: tuple[Path, ...] = ()

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> list[Path]:
        """Write the model (weights beside it where they do not fit in one file)."""
        models.refuse_overwrite(Path(path), force=force)
        return models.save(self.model, path)


def prune(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    flops: float | str | None = None,
    params: float | str | None = None,
    size: float | str | None = None,
    calibration: Any = None,
    evaluation: Any = None,
    providers: Sequence[str] = ("cpu",),
    metric: str | Sequence[str] | None = None,
    measure_latency: bool = True,
    force: bool = False,
    columns: Mapping[str, str] | None = None,
    pairs: Any = None,
    tokenizer: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Prune a model to a budget and measure what it cost.

    Args:
        source: a `.onnx` file or an optimum folder.
        output: file to write, with its report and plan beside it; None writes nothing.
        flops, params, size: exactly one: the fraction to keep (0.6, "60%") or an amount ("6GMAC", "30M", "25MB").
        calibration: rows to learn from (`data.read` says in which forms); without them only data-free methods work.
        evaluation: rows for the report; without them some calibration rows are set aside for it.
        providers: execution providers to validate and time on.
        metric: of the task; guessed and said when None.
        options: fields of `config.Options`.

    Raises:
        OnnxPruneError: see `errors`; nothing is written then.
    """
    settings = Options(budget_of(flops=flops, params=params, size=size), **options)
    target = Path(output) if output is not None else None
    if target is not None:
        models.refuse_overwrite(target, force=force, inputs=(models.find(source),))
    clock = Clock()
    with clock.stage("load"):
        dense = models.load(source)
    with clock.stage("analyze"):
        structure = analyze(dense)
    with clock.stage("read"):
        asked = dict(columns=columns, pairs=pairs, tokenizer=tokenizer, max_length=max_length)
        learn, judge = read_rows(dense, calibration, evaluation, settings, **asked)
    bindings = shape_of(dense, settings.shape, learn or judge)
    planner = Planner(dense, structure, settings, learn, bindings, clock, progress)
    plan = planner.plan(settings.budget.limit(planner.costs.total(settings.budget.kind)))
    with clock.stage("rewrite"):
        pruned = rewrite.apply(dense, structure, plan)
    return _finish(
        dense,
        structure,
        plan,
        pruned,
        planner,
        judge,
        settings,
        target,
        clock,
        tuple(providers),
        metric,
        measure_latency,
        force,
        learn,
    )


def budget_of(**asked: float | str | None) -> Budget:
    """The one budget that was asked for."""
    given = {kind: value for kind, value in asked.items() if value is not None}
    if len(given) != 1:
        raise UsageError(
            f"give exactly one budget ({', '.join('--' + k for k in asked)}); {'none was' if not given else 'got ' + ', '.join('--' + k for k in given)}"
        )
    ((kind, value),) = given.items()
    return Budget.parse(kind, value)


def read_rows(
    dense: Model, calibration: Any, evaluation: Any, options: Options, **asked: Any
) -> tuple[Dataset | None, Dataset | None]:
    """(rows to learn from, rows to report on). Report rows decide nothing."""
    common = dict(
        inputs=dense.inputs,
        outputs=dense.outputs,
        folder=dense.folder,
        seed=options.seed,
        vocab_size=vocabulary(dense),
        **asked,
    )
    learn = data.read(calibration, limit=options.rows, **common) if calibration is not None else None
    if evaluation is not None:
        return learn, data.read(evaluation, **common)
    if learn is None or len(learn) < 20:
        return learn, None
    parts = learn.split({"learn": 0.8, "report": 0.2}, options.seed)
    return parts["learn"], parts["report"]


def vocabulary(dense: Model) -> int | None:
    """Rows of the table that `input_ids` index, so that ids out of range are refused with their row."""
    value = next((v for v in dense.graph.inputs if v.name == "input_ids"), None)
    for node, index in value.uses() if value is not None else ():
        table = node.inputs[0]
        if node.op_type == "Gather" and index == 1 and table is not None and table.const_value is not None:
            return int(table.const_value.shape[0])
    return None


def shape_of(dense: Model, shape: Mapping[str, int], rows: Dataset | None) -> dict[str, int]:
    """Where FLOPs are counted: as stated, else batch 1 and the rows' mean."""
    known = {spec_dim for spec in dense.inputs for spec_dim in spec.shape if isinstance(spec_dim, str)}
    unknown = [name for name in shape if name not in known]
    if unknown:
        raise UsageError(f"--shape {unknown[0]}: the graph's dimensions are {', '.join(sorted(known)) or 'all fixed'}")
    found = {**(rows.mean_shape(dense.inputs) if rows is not None else {}), **shape}
    found = default_bindings(dense, found)
    missing = sorted(known - found.keys())
    if missing:
        raise UsageError(
            f"the size of {', '.join(missing)} is not known without calibration rows; state it with --shape {missing[0]}=128"
        )
    return found


def check(
    dense: Model, structure: Structure, plan: Plan, file: Path, rows: Sequence[Mapping[str, np.ndarray]]
) -> Equivalence:
    """Law 1: the written file, in ONNX Runtime, gives what the original gives with the plan's gates and weights.

    Raises:
        CheckError: it does not.
    """
    import torch

    interpreter = Interpreter(dense.graph)
    gated = Gates(structure, interpreter).gated(plan)
    expected = []
    for feeds in rows:
        with torch.inference_mode():
            found = interpreter.run(feeds, weights=gated.weights, edit=gated.edit)
        expected.append(
            (dict(feeds), {k: v.float().numpy() if v.is_floating_point() else v.numpy() for k, v in found.items()})
        )
    types = {v.dtype.name.lower() for v in dense.graph.initializers.values() if v.dtype is not None}
    tolerance = max((limit for name, limit in TOLERANCE.items() if name in types), default=1e-4)
    return equivalence(file, expected, tolerance)


def _finish(
    dense: Model, structure: Structure, plan: Plan, pruned: ir.Model, planner: Planner, judge: Dataset | None, options: Options,
    target: Path | None, clock: Clock, providers: tuple[str, ...], metric: Any, measure: bool, force: bool, learn: Dataset | None,
) -> Result:  # fmt: skip
    """Write to a staging place, check, measure, and only then give the files their names."""
    import tempfile

    assert dense.path is not None
    place = target or Path(tempfile.mkdtemp(prefix="onnxprune-")) / f"{dense.path.stem}.pruned.onnx"
    with models.staged(place, force=force, inputs=(dense.path,)) as folder:
        file = models.save(pruned, folder / place.name)[0]
        with clock.stage("check"):
            found = check(dense, structure, plan, file, _check_rows(dense, judge or learn, planner))
        evidence: Evidence | None = None
        rows: list[latency.LatencyRow] = []
        if judge is not None:
            with clock.stage("validate"):
                evidence = validate(dense.path, file, judge, providers=providers, metric=metric, seed=options.seed)
        if measure:
            with clock.stage("latency"):
                feeds = [e.feeds for e in (judge or learn).examples[:8]] if (judge or learn) is not None else []  # type: ignore[union-attr]
                rows = latency.bench(dense.path, file, providers=providers, dims=planner.costs.bindings, examples=feeds)
        report = _report(
            dense, structure, plan, file, place, planner, options, clock, found, evidence, rows, learn, judge
        )
        files: tuple[Path, ...] = ()
        if target is not None:
            stem = place.name.removesuffix(".onnx")
            plan.save(folder / f"{stem}.plan.json")
            report.save(folder / f"{stem}.report.json")
            (folder / f"{stem}.report.html").write_text(html.render(report))
            copy_companions(dense.path.parent, target.parent)
            files = tuple(target.parent / f.name for f in sorted(folder.iterdir()))
    if target is None:
        shutil.rmtree(place.parent, ignore_errors=True)
    return Result(pruned, plan, report, files)


def _check_rows(dense: Model, rows: Dataset | None, planner: Planner) -> list[Mapping[str, np.ndarray]]:
    if rows is None:
        return [latency.synthesize(dense.inputs, dims=planner.costs.bindings)]
    return [b.feeds for b in rows.take(CHECK_ROWS, 0).batches(max_rows=16)]


def copy_companions(source: Path, target: Path) -> list[Path]:
    """Copy tokenizer and configuration files beside the output, where none are yet."""
    copied = []
    if source.resolve() != target.resolve():
        for name in COMPANIONS:
            if (source / name).exists() and not (target / name).exists():
                shutil.copy2(source / name, target / name)
                copied.append(target / name)
    return copied


def _report(
    dense: Model, structure: Structure, plan: Plan, file: Path, place: Path, planner: Planner, options: Options, clock: Clock,
    found: Equivalence, evidence: Evidence | None, rows: Sequence[latency.LatencyRow], learn: Dataset | None, judge: Dataset | None,
) -> reports.Report:  # fmt: skip
    costs, budget = planner.costs, options.budget
    assert dense.path is not None
    before, after = costs.total(budget.kind), costs.total(budget.kind, plan)
    unit = "kept" if budget.relative else {"flops": "MAC", "params": "parameters", "size": "bytes"}[budget.kind]
    by_op = {op: reports.Change(2 * macs, 2 * costs.by_op(plan).get(op, 0)) for op, macs in costs.by_op().items()}
    sources = [(d, name) for d, name in ((learn, "calibration"), (judge, "report")) if d is not None]
    return reports.Report(
        model=reports.ModelInfo(str(dense.path), dense.digest, dense.opset, str(place)),
        budget=reports.Budget(budget.kind, budget.value, after / before if budget.relative else after, unit),
        flops=reports.Flops(2 * costs.macs(), 2 * costs.macs(plan), by_op, costs.bindings),
        params=reports.Change(costs.params(), costs.params(plan)),
        size_bytes=reports.Change(_size(dense.path), _size(file)),
        units=units_of(structure, plan, planner),
        recipe={
            "options": options.to_json(), "method": planner.method, "versions": versions(),
            "data": {name: {"rows": len(d), "digest": d.digest, "said": list(d.description)} for d, name in sources},
            "divergence": planner.select.rows.divergence.description if learn is not None else "none: no calibration rows",
        },
        equivalence=found,
        accuracy=evidence.accuracy if evidence else None,
        further=evidence.further if evidence else (),
        drift=evidence.drift if evidence else None,
        latency=tuple(rows),
        warnings=_warnings(learn, judge),
        seconds=dict(clock.seconds),
        peak_memory_bytes=peak_memory(),
    )  # fmt: skip


def units_of(structure: Structure, plan: Plan, planner: Planner) -> tuple[reports.Units, ...]:
    """What every site and branch keeps."""
    found = []
    for site in planner.sites:
        group = site.group
        gone = group.branch is not None and group.branch in plan.drop
        kept = () if gone else plan.keep.get(group.id, tuple(range(group.size)))
        found.append(reports.Units(group.id, group.kind, group.layer, group.size, len(kept), tuple(kept)))
    for branch in structure.branches:
        there = int(branch.id not in plan.drop)
        found.append(reports.Units(branch.id, "blocks", branch.layer, 1, there, (0,) if there else ()))
    return tuple(found)


def _warnings(learn: Dataset | None, judge: Dataset | None) -> tuple[str, ...]:
    said = []
    if learn is None:
        said.append(
            "no calibration rows: units were ranked by magnitude alone and nothing was mended; accuracy is likely to suffer"
        )
    elif learn.kind == "random":
        said.append("calibration rows are random: scores and compensation mean little on real inputs")
    if judge is None:
        said.append("no evaluation rows: what pruning cost in accuracy was not measured")
    elif judge.labels is None:
        said.append(
            "the evaluation rows have no labels: the dense model is the teacher, and agreement with it is reported"
        )
    return tuple(said)


def _size(file: Path) -> int:
    return sum(
        f.stat().st_size for f in file.parent.glob(file.name + "*") if f.name in (file.name, file.name + ".data")
    )


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """What a run depends on."""
    found = {"python": platform.python_version()}
    for name in ("onnxprune", "onnx", "onnx-ir", "onnxruntime", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def make_plan(
    source: str | os.PathLike[str],
    calibration: Any,
    options: Options,
    progress: Callable[..., None] | None = None,
    **asked: Any,
) -> Plan:
    """The plan alone: `apply` carries it out later, without data."""
    dense = models.load(source)
    structure = analyze(dense)
    learn = None
    if calibration is not None:
        where = dict(outputs=dense.outputs, folder=dense.folder, vocab_size=vocabulary(dense))
        learn = data.read(calibration, dense.inputs, seed=options.seed, limit=options.rows, **where, **asked)
    planner = Planner(dense, structure, options, learn, shape_of(dense, options.shape, learn), progress=progress)
    return planner.plan(options.budget.limit(planner.costs.total(options.budget.kind)))


def apply(
    source: str | os.PathLike[str], plan: Plan, output: str | os.PathLike[str], *, force: bool = False
) -> tuple[list[Path], Equivalence]:
    """Carry out a plan made earlier, check the file, and write it."""
    dense = models.load(source)
    structure = analyze(dense)
    assert dense.path is not None
    feeds = latency.synthesize(dense.inputs, dims=dict.fromkeys(_open(dense), 8))
    if plan.digest == dense.digest:
        plan = Gates(structure, Interpreter(dense.graph)).complete(plan, feeds)
    pruned = rewrite.apply(dense, structure, plan)
    target = Path(output)
    with models.staged(target, force=force, inputs=(dense.path,)) as folder:
        file = models.save(pruned, folder / target.name)[0]
        found = check(dense, structure, plan, file, [feeds])
        copy_companions(dense.path.parent, target.parent)
        names = [target.parent / f.name for f in sorted(folder.iterdir())]
    return names, found


def _open(dense: Model) -> list[str]:
    return sorted({d for spec in dense.inputs for d in spec.shape if isinstance(d, str)})


def inspect(source: str | os.PathLike[str], shape: Mapping[str, int] | None = None) -> tuple[Model, Structure, Costs]:
    """What can be cut, what it costs, and what is pinned; needs no data and no torch.

    Dimensions that are not stated count as 128, the batch as 1.
    """
    dense = models.load(source)
    bindings = default_bindings(dense, dict(shape or {}))
    for name in _open(dense):
        bindings.setdefault(name, 128)
    structure = analyze(dense)
    return dense, structure, Costs(dense, structure, bindings)
