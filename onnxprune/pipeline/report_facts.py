"""The report of a run: what was measured, the units, what to be warned of, what the run depends on."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune import report
from onnxprune.data import Dataset, overlap, row_doubts
from onnxprune.graph import memory, model_files
from onnxprune.graph.model import Model, relatives
from onnxprune.graph.plan import Budget, Plan, Structure
from onnxprune.measure.cost import Costs
from onnxprune.measure.drop_search import DropSearch
from onnxprune.measure.latency import LatencyRow
from onnxprune.pipeline.findings import Findings
from onnxprune.pipeline.written import Written
from onnxprune.report.text import TEACHER, UNITS
from onnxprune.search.latency_budget import verified
from onnxprune.search.planner import Planner

if TYPE_CHECKING:
    from onnxprune.pipeline.job import Job

ACCELERATED = {"2:4": ("TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")}
"""Patterns of zeros that some provider computes faster."""
COPIES = 0.1
"""Share of the calibration rows from which on it is worth a word that they were copies."""


def report_of(
    job: Job,
    plan: Plan,
    budget: Budget,
    made: Written,
    place: Path,
    found: Findings,
    timed: Sequence[LatencyRow],
) -> report.Report:
    """What was measured, with what a report says beside it.

    Args:
        made, place: the pruned files, and where they will be.
        found, timed: about them, and by the clock.
    """
    evidence = found.evidence
    costs, most = job.planner.costs, memory.peak()
    assert job.dense.path is not None
    landing = job.planner.landing and verified(job.planner.landing, timed)
    before, after = costs.total(budget.kind), costs.total(budget.kind, plan)
    if landing is not None and landing.measured is not None:
        after = landing.measured * before
    elif budget.kind == "size":
        after = made.size
    unit = "kept" if budget.relative else UNITS[budget.kind]
    pruned_by_op = costs.by_op(plan)
    by_op = {op: report.Change(2 * macs, 2 * pruned_by_op.get(op, 0)) for op, macs in costs.by_op().items()}
    named = {"calibration": job.learn, "report": job.judge}
    said = {
        name: {"rows": len(d), "digest": d.digest, "said": list(d.description)}
        for name, d in named.items()
        if d is not None
    }
    divergence = "none: no calibration rows" if job.learn is None else job.planner.select.rows.divergence.description
    broken = (*emptied(job.planner.structure, plan), *(evidence.broken if evidence else ()))
    return report.Report(
        model=report.ModelInfo(str(job.home.absolute()), job.dense.digest, job.dense.opset, str(place.absolute())),
        budget=(
            report.Budget(budget.kind, budget.value, after / before if budget.relative else after, unit)
            if job.drop_search is None
            else drop_budget(job.drop_search)
        ),
        drop_search=job.drop_search,
        flops=report.Flops(2 * costs.macs(), 2 * costs.macs(plan), by_op, costs.bindings),
        params=report.Change(int(costs.total("params")), costs.params(plan)),
        size_bytes=report.Change(sum(map(model_files.size, job.dense.files)), made.size),
        units=units_of(job.planner.structure, plan, job.planner),
        recipe={
            "options": replace(job.options, budget=budget).to_json(),
            "sources": {
                **job.sources,
                "ep": job.providers,
                "metric": job.metric,
                "no_latency": not job.measure,
                "quantize": job.quantize,
                "flips": job.flips,
                "keep_broken": job.keep_broken,
                "max_drop": job.drop_search and job.drop_search.limit,
            },
            "method": job.planner.method,
            "versions": versions(),
            "data": said,
            "divergence": divergence,
        },
        equivalence=found.equivalence,
        layers=found.layers,
        accuracy=evidence.accuracy if evidence else None,
        further=evidence.further if evidence else (),
        drift=evidence.drift if evidence else None,
        flips=evidence.flips if evidence else None,
        slices=evidence.slices if evidence else (),
        latency=tuple(timed),
        landing=landing,
        warnings=(
            *broken,
            *(evidence.warnings if evidence else ()),
            *warnings_of(job.learn, job.judge, job.drop_search, evidence.accuracy.metric if evidence else None),
            *([landing.said] if landing and landing.said else ()),
            *above(most),
        ),
        broken=broken,
        seconds=dict(job.clock.seconds),
        peak_memory_bytes=most,
    )


def above(peak: int) -> tuple[str, ...]:
    """That the process has held more memory than was stated, if it has."""
    if not memory.stated() or peak <= memory.limit():
        return ()
    return (
        f"the process has held {memory.shown(peak)}, more than --max-memory allows ({memory.shown(memory.limit())})",
    )


def units_of(structure: Structure, plan: Plan, planner: Planner) -> tuple[report.Units, ...]:
    """What every site and branch keeps; dimensions within heads count as of the layer of their heads."""
    found = []
    heads: dict[str | None, int] = {g.branch: g.layer for g in structure.groups if g.kind == "heads" and g.branch}
    for site in planner.sites:
        group = site.group
        gone = group.branch is not None and group.branch in plan.drop
        kept = () if gone else plan.keep.get(group.id, tuple(range(group.size)))
        layer = heads.get(group.branch, group.layer) if group.kind == "head_dims" else group.layer
        found.append(report.Units(group.id, group.kind, layer, group.size, len(kept), tuple(kept), group.name))
    for branch in structure.branches:
        there = int(branch.id not in plan.drop)
        index = (0,) if there else ()
        found.append(report.Units(branch.id, "blocks", branch.layer, 1, there, index, branch.add, branch.kind))
    return tuple(found)


def sparsity_of(plan: Plan, zeros: float | None, costs: Costs) -> report.Sparsity | None:
    """The pattern of zeros, their share, and who computes it faster; None where there is none."""
    if zeros is None:
        return None
    pattern = ", ".join(dict.fromkeys(plan.sparsity.values()))
    skipped = None
    if plan.tiles:
        skipped = report.Change(2 * costs.macs(replace(plan, tiles={})), 2 * costs.macs(plan))
    return report.Sparsity(pattern, zeros, ACCELERATED.get(pattern, ()), skipped)


def emptied(structure: Structure, plan: Plan) -> tuple[str, ...]:
    """What a plan leaves too little of to be a model."""
    blocks = len(structure.branches)
    if not blocks or len({b.id for b in structure.branches} & set(plan.drop)) < blocks:
        return ()
    return (f"all {blocks} blocks are gone: what is left is the embedding and the head. Keep more",)


def drop_budget(found: DropSearch) -> report.Budget:
    """A largest drop as the budget it is: its limit, and the most that the drop may be."""
    return report.Budget("max_drop", 100 * found.chosen.allowed, 100 * found.chosen.bound, "points")


def warnings_of(
    learn: Dataset | None, judge: Dataset | None, searched: DropSearch | None = None, metric: str | None = None
) -> tuple[str, ...]:
    """What a reader should know of the rows, the metric being what they were judged by."""
    said = []
    if learn is None:
        said.append(
            "no calibration rows: units were ranked by magnitude alone and nothing was mended; "
            "accuracy is likely to suffer"
        )
    elif learn.kind == "random":
        said.append("calibration rows are random: scores and compensation mean little on real inputs")
    else:
        said += _learning(learn)
    if judge is None:
        said.append("no evaluation rows: what pruning cost in accuracy was not measured")
    elif judge.labels is None and (metric is None or metric in TEACHER):
        said.append(
            "the evaluation rows have no labels: the dense model is the teacher, and agreement with it is reported"
        )
    if searched is not None:
        said.append(
            f"the evaluation rows chose the size, in {len(searched.tries)} tries: their interval is corrected for them "
            f"(to {searched.level:.2%} each), the drop itself may be a lucky one"
        )
    if learn is not None and judge is not None and (shared := overlap(learn, judge)):
        said.append(shared)
    return tuple(said)


def left_behind(dense: Model) -> tuple[str, ...]:
    """Graphs beside the model's that hold the same weights and are not cut with it."""
    file = None if dense.several else dense.home
    others = [] if file is None else [f.name for f in relatives(file)]
    if not others:
        return ()
    return (
        f"{', '.join(others)}: the same decoder as {file.name if file else ''}, and not cut with it; what reads the "
        "caches of the other gives neither model's answers, without a sign of it: prune the folder, which is one job, "
        "or use the pruned graph alone",
    )


def _learning(learn: Dataset) -> list[str]:
    said = list(row_doubts(learn, "calibration"))
    if learn.copies and learn.copies >= COPIES * (len(learn.keys) + learn.copies):
        said.append(f"{learn.copies} calibration rows were copies of others and taught nothing: they were left out")
    labels = [label for label in learn.labels or () if isinstance(label, int)]
    if len(labels) > 1 and len(set(labels)) == 1:
        said.append(f"all calibration rows that have a label have the same one ({labels[0]}): other classes may suffer")
    return said


def versions() -> dict[str, str]:
    """What a run depends on."""
    found = {"python": platform.python_version()}
    for name in ("onnxprune", "onnx", "onnx-ir", "onnxruntime", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
