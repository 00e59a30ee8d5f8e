"""One model with its rows: everything that is the same for every budget, and the way from a plan to checked files."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from onnxprune import report as reports
from onnxprune.data import Dataset
from onnxprune.errors import BudgetError, CheckError, UsageError
from onnxprune.export.precision import Step, measure_steps
from onnxprune.export.precision.apply import scheme_of
from onnxprune.graph import joined, memory, model_files, outputs
from onnxprune.graph import model as models
from onnxprune.graph.companions import add_companions
from onnxprune.graph.dimensions import independent
from onnxprune.graph.example_feeds import require_dimensions
from onnxprune.graph.model import Model
from onnxprune.graph.outputs import Inputs, OutputSet
from onnxprune.graph.plan import Budget, Plan, Structure
from onnxprune.graph.providers import CPU, resolve_providers
from onnxprune.graph.quantised_operators import is_quantised
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure import calls, latency, uncounted
from onnxprune.measure.cost import Costs
from onnxprune.measure.dense_file import examine
from onnxprune.measure.drop_search import DropSearch
from onnxprune.measure.flips import SHOWN
from onnxprune.measure.layer_drift import LayerDrift
from onnxprune.measure.metrics import require_known
from onnxprune.measure.uncounted import Uncounted
from onnxprune.measure.validation import Evidence, Teacher, compare
from onnxprune.pipeline import output_files, report_facts
from onnxprune.pipeline.debug_bundle import Place
from onnxprune.pipeline.findings import Findings, drift_by_layer, here, refuse_ruin, rows_to_check
from onnxprune.pipeline.late import kept
from onnxprune.pipeline.proof import prove, prove_valid
from onnxprune.pipeline.result import Result
from onnxprune.pipeline.rows import (
    read_rows,
    require_memory,
    require_one_graph,
    require_there,
    shape_of,
)
from onnxprune.pipeline.written import Product, Written, handed_out, in_fewer_bits, listed, name_of, produce
from onnxprune.refit.sparsify import zeros_in
from onnxprune.report import html
from onnxprune.search import plan_store, units_then_zeros
from onnxprune.search.defaults import require_engine, settled
from onnxprune.search.options import Options
from onnxprune.search.planner import Planner
from onnxprune.search.progress import Clock, Progress, quiet
from onnxprune.search.store import Store

logger = logging.getLogger(__name__)

_ALIKE = (
    "refits took all tokens for equally important: what each weighs takes gradients, for which --max-memory would have "
    "to be four times the weights"
)

CALIBRATION_ROWS = 128
"""Rows that the ranges of 8-bit activations are taken from."""


@dataclass(eq=False)
class Job:
    """A model, its rows, and a planner that remembers what it measured.

    Attributes:
        learn: rows that decide; None without calibration.
        judge: rows for the report, which decide nothing but the size under a largest drop; None without any.
        providers, metric: of validation and timing.
        measure: whether to time the models.
        quantize: a scheme of `precision`, for a second file in fewer bits; None for none.
        flips: how many of the rows that are answered otherwise the report shows, with their text or picture.
        sources: where the rows come from and how they are read, by the command line's names: what repeats the run.
        said: what is to be warned of in the dense file.
        debug_bundle: where to write what reproduces a failed check; None for nowhere.
        level: of the intervals of drops.
        drop_search: how the size was found, where the evaluation rows chose it.
        found: digest of a file -> what a worker found out about it.
        keep_broken: write a model of whose outputs nothing is left, too; a curve shows where that begins.
    """

    dense: Model
    structure: Structure
    planner: Planner
    options: Options
    learn: Dataset | None
    judge: Dataset | None
    clock: Clock
    providers: tuple[str, ...] = ("cpu",)
    metric: str | Sequence[str] | None = None
    measure: bool = True
    quantize: str | None = None
    flips: int = SHOWN
    sources: Mapping[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    debug_bundle: Place | None = None
    level: float = 0.95
    drop_search: DropSearch | None = None
    found: dict[str, Findings] = field(default_factory=dict)
    keep_broken: bool = False

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str],
        options: Options,
        calibration: Any,
        evaluation: Any,
        *,
        providers: Sequence[str] = ("cpu",),
        metric: str | Sequence[str] | None = None,
        measure: bool = True,
        quantize: str | None = None,
        flips: int = SHOWN,
        progress: Progress | None = None,
        scores: Path | None = None,
        store: Store | None = None,
        glance: int | None = None,
        **asked: Any,
    ) -> Job:
        """Load, analyze, and read the rows (`asked`: columns, pairs, tokenizer, max_length).

        Args:
            scores: folder in which what is measured on the model is kept for further budgets; None keeps no file.
            store: keeps it, too, and finished plans.
            glance: rows to look at where nothing is to be learnt from them; None for all.
        """
        clock = Clock(progress=progress or quiet)
        resolve_providers(providers)  # what is not there is said before anything is measured
        require_engine(options, calibration)
        require_known(metric)
        if quantize is not None:
            scheme_of(quantize)
        require_there(calibration, evaluation)
        with clock.stage("load"):
            dense = joined.load(source, options.calls)
            require_one_graph(dense, quantize)
            require_dimensions(dense.inputs, options.shape)
            if quantize is not None and is_quantised(dense.graph):
                raise UsageError(
                    f"--quantize {quantize}: {dense.path} is quantised already, and so will the pruned file be; "
                    "leave the option out"
                )
        with clock.stage("read"):  # before the analysis: what is wrong with rows is told at once
            learn, judge = (
                rows and rows.read_by(metric) for rows in read_rows(dense, calibration, evaluation, options, **asked)
            )
        for line in dict.fromkeys(line for rows in (learn, judge) if rows is not None for line in rows.description):
            clock.say(line)
        with clock.stage("analyze"):
            structure = analyze(dense, hidden="hidden" in options.units)
        bindings = shape_of(dense, options.shape, learn or judge)
        options = settled(options, structure, lambda: Costs(dense, structure, bindings))
        require_memory(dense, options, learn, judge)
        with clock.stage("examine"):
            said = (*dense.said, *examine(dense, learn or judge, providers), *report_facts.left_behind(dense))
        if bindings and not set(bindings) <= set(options.shape):
            clock.say(f"costs are counted at {shown(bindings)}; --shape says otherwise")
        assert dense.path is not None
        kept = None if scores is None else scores / f"{dense.path.stem}.scores.json"
        looked = learn if glance is None or learn is None else learn.take(glance, options.seed)
        planner = Planner(dense, structure, options, looked, bindings, clock, progress, kept, store)
        if learn is not None and options.token_weight and planner.interpreter.streams:
            said = (*said, _ALIKE)
        sources = {"calibration": _path(calibration), "evaluation": _path(evaluation), **asked}
        if asked.get("tokenizer") is not None:
            sources["tokenizer"] = _path(asked["tokenizer"])
        return cls(
            dense, structure, planner, options, learn, judge, clock, tuple(providers), metric, measure, quantize,
            flips, sources, said,
        )  # fmt: skip

    def plan(self, budget: Budget) -> Plan:
        """A plan within a budget of the options' kind, from the store where an earlier run made it."""
        known = plan_store.kept(self.planner, budget)
        if known is not None:
            return known
        plan = units_then_zeros.carry_out(self.planner, budget)
        plan_store.keep(self.planner, budget, plan)
        return plan

    def by(self, method: str, scores: Path | None = None) -> Job:
        """The same job by another method; `scores`: the file of what is measured by it."""
        other = copy.copy(self)
        other.options = replace(self.options, method=method)
        other.planner = self.planner.again(other.options, scores)
        return other

    def run(self, budget: Budget, out: OutputSet | None = None) -> Result:
        """Plan, rewrite, check, measure, and write, where there is a place; nothing where the check fails."""
        if out is None:
            assert self.dense.path is not None
            with output_files.opened(None, self.home, Inputs()) as nowhere:
                return self.run(budget, nowhere)
        return self.finish(self.plan(budget), budget, out)

    def finish(self, plan: Plan, budget: Budget, out: OutputSet, product: Product | None = None) -> Result:
        """From a plan to files: written to a staging place, checked and measured there, and only then named.

        Args:
            product: what the plan gives, where a worker wrote it; its file is taken from there.
        """
        assert self.dense.path is not None
        self.planner.interpreter.release()
        with self.clock.stage("rewrite"):
            product = product.moved(out.folder) if product is not None else self._produced(plan, out)
        made = product.made
        self._refuse_excess({**product.spent, "size": made.size}, budget)
        report = self._measured(plan, budget, made, out.base or out.folder if self.dense.several else out.target)
        if out.base is None:  # what is thrown away has no place
            report = replace(report, model=replace(report.model, pruned_path=""))
        report = replace(report, flops=replace(report.flops, unread=2 * product.unread))
        lacking = [product.said] if product.said else []
        with kept("no file in fewer bits", lacking):
            report = replace(report, steps=self._fewer_bits(made, out))
        replace(plan, notes={**plan.notes, "shape": dict(self.planner.costs.bindings)}).save(
            out.folder / name_of(out, "plan.json")
        )
        assert self.dense.folder is not None
        add_companions(self.dense.folder, out)
        report = replace(report, warnings=(*report.warnings, *out.said))
        with kept("no page", lacking):
            (out.folder / name_of(out, "report.html")).write_text(html.render(report), encoding="utf-8")
        report = replace(report, warnings=(*report.warnings, *lacking), files=output_files.digests(out.folder))
        report.save(out.folder / name_of(out, "report.json"))
        listed(out, self.dense, {}, made.files)
        models.require_unchanged(self.dense)
        graph = None if product.graph is None else handed_out(self.dense, product.graph)
        return Result(graph, plan, report, tuple(out.commit()), self.dense)

    @property
    def home(self) -> Path:
        """What was pruned, as the user named it."""
        assert self.dense.home is not None
        return self.dense.home

    def _refuse_excess(self, spent: Mapping[str, float], budget: Budget) -> None:
        """The budget's promise, on the graph that was written (a latency's is measured, and said).

        Raises:
            BudgetError: it costs more than was allowed.
        """
        if budget.kind not in spent:
            return
        dense = self.planner.costs.total(budget.kind)
        if spent[budget.kind] > budget.limit(dense) * (1 + 1e-9):
            kept = spent[budget.kind] / dense
            raise BudgetError(
                f"--{budget.kind}: the graph that was written keeps {kept:.4f} of the dense model's where "
                f"{budget.limit(dense) / dense:.4f} was allowed, so it was not kept; ask for a little less",
                closest=kept,
            )

    def _produced(self, plan: Plan, out: OutputSet) -> Product:
        return produce(
            self.dense, self.structure, plan, self.planner.costs.sizes, out.folder, out.first,
            keep_unread=self.options.keep_unread,
        )  # fmt: skip

    def evidence(self, file: Path) -> Evidence | None:
        """What a file costs on the rows for the report."""
        if self.teacher is None:
            return None
        with self.clock.stage("validate"):
            found = compare(
                self.teacher, file, metric=self.metric, seed=self.options.seed, level=self.level, flips=self.flips,
                progress=partial(self.planner.progress, "validate"),
            )  # fmt: skip
        if self.metric is None:
            self.clock.say(f"metric: {found.accuracy.metric} ({found.accuracy.reason}); --metric says otherwise")
        return found

    @cached_property
    def teacher(self) -> Teacher | None:
        """The dense model's outputs on the rows for the report."""
        assert self.dense.path is not None
        return None if self.judge is None else Teacher(self.dense.path, self.judge, providers=self.providers)

    @cached_property
    def uncounted(self) -> tuple[Uncounted, ...]:
        """What the FLOPs leave out."""
        rows = self.judge or self.learn
        examples = [e.feeds for e in rows.examples[:8]] if rows is not None else []
        return uncounted.find(self.dense, self.planner.costs.bindings, examples)

    def _found_out(self, plan: Plan, made: Written, lacking: list[str]) -> Findings:
        """What there is to say of a file; what a worker found out about the same bytes is not looked for again.

        Args:
            lacking: what the report should warn of is added.

        Raises:
            CheckError: it is not what was planned.
        """
        options = self.options.to_json()
        with self.clock.stage("check"):
            known = self.found.get(made.known()) if self.found else None
            if known is not None:
                lacking += known.warnings
                if known.where != here():
                    said = prove_valid(self.dense, self.structure, plan, made, options, self.debug_bundle)
                    lacking += [line for line in said if line not in known.warnings]
                return known
            feeds = rows_to_check(self.dense, self.judge or self.learn, self.planner.costs.bindings)
            equivalence, said = prove(
                self.dense, self.structure, plan, made, feeds, options, self.debug_bundle,
                partial(self.planner.progress, "check"),
            )  # fmt: skip
            lacking += said
        evidence: Evidence | None = None
        layers: tuple[LayerDrift, ...] = ()
        with kept("accuracy and drift are not known", lacking, but=(CheckError,)):
            evidence = self.evidence(made.whole)
        if self.judge is not None:
            with kept("drift by layer is not known", lacking), self.clock.stage("validate"):
                layers = drift_by_layer(self.planner, self.structure, plan, self.judge, self.options.seed)
                self.planner.interpreter.release()
        return Findings(equivalence, evidence, layers, tuple(said), here())

    def _measured(self, plan: Plan, budget: Budget, made: Written, place: Path) -> reports.Report:
        assert self.dense.path is not None
        file, bindings = made.whole, self.planner.costs.bindings
        rows = self.judge or self.learn
        lacking: list[str] = []
        found = self._found_out(plan, made, lacking)
        if not self.keep_broken and self.judge is not None:
            refuse_ruin(found, self.judge, budget)
        zeros = zeros_in(file, self.dense, self.structure, plan)
        timed: list[latency.LatencyRow] = []
        if self.measure:
            with kept("no latency", lacking), self.clock.stage("latency"):
                memory.require(
                    model_files.size(self.dense.path) + model_files.size(file), "timing both models side by side"
                )
                examples = [e.feeds for e in rows.examples[:8]] if rows is not None else []
                timed = calls.bench(
                    self.dense, file, made.alone, providers=self.providers, dims=bindings, examples=examples,
                    threads=self.options.latency_threads, progress=partial(self.planner.progress, "latency"),
                )  # fmt: skip
        report = report_facts.report_of(self, plan, budget, made, place, found, timed)
        return replace(
            report,
            uncounted=self.uncounted,
            warnings=(
                *report.warnings,
                *self.said,
                *(f"speed-up: {row.said}" for row in timed if row.said),
                *uncounted.said(self.uncounted),
                *lacking,
            ),
            sparsity=report_facts.sparsity_of(plan, zeros, self.planner.costs),
        )

    def _fewer_bits(self, made: Written, out: OutputSet) -> tuple[Step, ...]:
        """The files in fewer bits, and what pruning, fewer bits and both together cost."""
        if self.quantize is None:
            return ()
        assert self.dense.path is not None
        dense = self.dense.path
        rows = [] if self.learn is None else [e.feeds for e in self.learn.take(CALIBRATION_ROWS, 0).examples]
        ranges = rows and set(self.providers) - {"cpu", CPU} and not self.dense.parts
        scheme = scheme_of(self.quantize, "int8-static" if ranges else "int8-dynamic")

        def timed(step: Path) -> latency.LatencyRow:
            examples = [dict(feeds) for feeds in rows[:8]]
            bindings = self.planner.costs.bindings
            return latency.bench(dense, step, providers=self.providers, dims=bindings, examples=examples)[0]

        with self.clock.stage("quantize"), outputs.scratch() as scratch:
            steps = measure_steps(
                self.teacher, dense, made.whole, scheme, rows, scratch, metric=self.metric, seed=self.options.seed,
                time=timed if self.measure else None,
            )  # fmt: skip
            if self.dense.parts:
                in_fewer_bits(self.dense, made, self.quantize, scheme, out)
            else:
                model_files.move(scratch / "pruned.onnx", out.folder / name_of(out, f"{self.quantize}.onnx"))
        return tuple(steps)


def shown(sizes: Mapping[str, int]) -> str:
    """ "batch_size=1,sequence_length=26": as --shape takes it."""
    return ",".join(f"{name}={size}" for name, size in independent(sizes).items())


def _path(source: Any) -> str | None:
    """Where something lies, as an absolute path, so that a report means the same from anywhere; None for no file."""
    if not isinstance(source, str | os.PathLike):
        return None
    return "random" if source == "random" else str(Path(source).resolve())
