"""What a worker does: it becomes a planner for a model and its rows once, and measures, or plans, by it.

`Brief` travels once to every worker, with the rows in it; the model by its path where the worker sees the same file, as
bytes otherwise; what is known by then, once a stage. What a task brings along is small: which part, by which options.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data import Dataset
from onnxprune.errors import ModelError, UnsupportedError
from onnxprune.graph import joined, memory, outputs
from onnxprune.graph import model as models
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Budget, Plan, Ranking, Structure
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure.validation import Teacher, compare
from onnxprune.pipeline.findings import Findings, drift_by_layer, here, rows_to_check
from onnxprune.pipeline.proof import prove
from onnxprune.pipeline.written import Product, Written, produce
from onnxprune.search import by_table, units_then_zeros
from onnxprune.search.damage_table import Row, TableWalk
from onnxprune.search.options import Options
from onnxprune.search.plan_store import Filed
from onnxprune.search.planner import Planner
from onnxprune.search.problem import Seen

Files = Mapping[str, np.ndarray]
"""A model's files, the graph's first: name -> bytes [n]."""


@dataclass(frozen=True, eq=False)
class Brief:
    """What makes a planner elsewhere.

    Attributes:
        key: tells briefs apart.
        model: the file, or the folder of several, where it lies for who asks; digest: what it must hold.
        options: of the planner that was made first; others differ in the method alone.
        desk: a folder of who asks, with a file named after the key in it: what a worker who sees it writes is there.
        calibration, bindings: of `planner.Planner`.
        judge: rows that finished plans are measured on; None for none.
        providers, metric, level, flips: how.
        seen: what the first planner saw of the rows; None where that is too much to send.
    """

    key: str
    model: Path
    digest: str
    desk: Path
    options: Options
    calibration: Dataset | None
    bindings: Mapping[str, int]
    judge: Dataset | None = None
    providers: tuple[str, ...] = ("cpu",)
    metric: Any = None
    level: float = 0.95
    flips: int = 0
    seen: Seen | None = None


@dataclass(frozen=True)
class Known:
    """What has been measured of a model by one method: `score_cache.Scores`, as far as it is known."""

    rankings: Mapping[str, Ranking] = field(default_factory=dict)
    table: Mapping[str, tuple[list[int], Row]] = field(default_factory=dict)


Scores = Mapping[str, Known]
"""By method: what need not be measured."""


@dataclass(frozen=True)
class Lacking:
    """Instead of a result: the worker does not see the model's file; its bytes must come with the task."""


@dataclass(frozen=True)
class Task:
    """A part of the work by some options.

    Attributes:
        method: of the options.
        site: of `row`, whose row of the table is measured.
        budget: of `plan`.
        name: what the file of `plan` is called; none where who asks does without it.
    """

    method: str
    site: str = ""
    budget: Budget | None = None
    name: str = ""


@dataclass(frozen=True, eq=False)
class Planned:
    """A finished plan.

    Attributes:
        plan: in a file on the desk of who asked, where the worker sees it; tens of megabytes would go through pipes, or
            a scheduler, otherwise.
        written: `Written.known` of the file that it gives.
        findings: what was found out about that file; None where who asked must find out why it could not be.
        seconds: what the worker took, by stage.
        product: the file, where it lies on the desk of who asked.
    """

    plan: Plan | Filed
    written: str
    findings: Findings | None
    seconds: Mapping[str, float]
    product: Product | None = None


@dataclass(frozen=True)
class Early:
    """What a worker can do before there is a brief.

    Attributes:
        model: as in `Brief`.
        calls, hidden, max_memory: of the options.
    """

    model: Path
    calls: Mapping[str, int]
    hidden: bool
    max_memory: int | None

    @classmethod
    def of(cls, model: Path, options: Options) -> Early:
        """Of a run by these options."""
        return cls(model.resolve(), options.calls, "hidden" in options.units, options.max_memory)


def ready(task: Early) -> None:
    """What takes a worker long once: this module with all that it imports, the engines, the model and what it is."""
    global _early  # noqa: PLW0603 -- what a worker process remembers between tasks
    for name in ("onnxruntime", "torch"):
        with suppress(ImportError):
            import_module(name)
    with suppress(Exception), memory.limited(task.max_memory):  # who asks reads it too, and says what is wrong
        dense = joined.load(task.model, task.calls)
        _early = task, dense, analyze(dense, hidden=task.hidden)


def order(task: Task, brief: Brief, known: Scores, files: Files | None = None) -> Mapping[str, Ranking] | Lacking:
    """The order of the units of every site."""
    with _at(brief, task, files) as place:
        if place is None:
            return Lacking()
        return place.planner(task, known).start.rankings


def row(task: Task, brief: Brief, known: Scores, files: Files | None = None) -> Row | Lacking:
    """A site's row of the damage table, by orders that are known."""
    with _at(brief, task, files) as place:
        if place is None:
            return Lacking()
        return place.row(place.planner(task, known), task.site)


def plan(task: Task, brief: Brief, known: Scores, files: Files | None = None) -> Planned | Lacking:
    """A finished plan within a budget, and what is found out about the file that it gives."""
    with _at(brief, task, files) as place:
        if place is None:
            return Lacking()
        planner = place.planner(task, known)
        assert task.budget is not None
        before = dict(planner.clock.seconds)
        made = units_then_zeros.carry_out(planner, task.budget)
        desk = place.desk()
        # Several graphs are held together by a file that would not go along.
        handed = None if desk is None or not task.name or place.dense.parts else desk / "files"
        with outputs.scratch() as scratch:
            with planner.clock.stage("rewrite"):
                product = produce(
                    place.dense, place.structure, made, planner.costs.sizes, handed or scratch,
                    task.name or "plan.onnx", keep_unread=planner.options.keep_unread,
                )  # fmt: skip
            findings = place.findings(planner, made, product.made)
            seconds = {k: s - before.get(k, 0.0) for k, s in planner.clock.seconds.items()}
            if handed is not None:
                product = replace(product, made=replace(product.made, name=handed.parent.name), graph=None)
            return Planned(
                made if desk is None else Filed.of(made, desk), product.made.known(), findings, seconds,
                None if handed is None else product,
            )  # fmt: skip


class _Place:
    """One model with its rows, in a worker."""

    def __init__(self, brief: Brief, dense: Model, structure: Structure) -> None:
        self.brief, self.dense, self.structure = brief, dense, structure
        self._planners: dict[str, Planner] = {}
        self._walk: tuple[Planner, int, TableWalk] | None = None

    @cached_property
    def _first(self) -> Planner:
        brief = self.brief
        return Planner(self.dense, self.structure, brief.options, brief.calibration, brief.bindings, seen=brief.seen)

    def planner(self, task: Task, known: Scores) -> Planner:
        """The planner by a task's method, that knows what is known."""
        if task.method not in self._planners:
            options = replace(self._first.options, method=task.method)
            self._planners[task.method] = self._first.again(options)
        made = self._planners[task.method]
        given = known.get(task.method, Known())
        made.scores.rankings = made.scores.rankings or dict(given.rankings)
        made.scores.table = {**given.table, **made.scores.table}
        return made

    def row(self, planner: Planner, name: str) -> Row:
        """A site's row of the table. One that is behind the last goes on from there, another begins anew."""
        index, site = next((i, s) for i, s in enumerate(planner.sites) if s.id == name)
        held, last, walk = self._walk or (None, 0, None)
        if walk is None or held is not planner or index < last:
            walk = by_table.walk_of(planner, planner.start)
        self._walk = None  # what fails halfway is nothing to go on from
        ((_, found),) = by_table.rows_of(planner, walk, [site], by_table.whole_grid(planner))
        self._walk = planner, index, walk
        return found

    def desk(self) -> Path | None:
        """A new folder for what is written, among the files of who asked; None where they are out of sight."""
        if not (self.brief.desk / self.brief.key).is_file():
            return None
        made = self.brief.desk / uuid.uuid4().hex
        (made / "files").mkdir(parents=True)
        return made

    @cached_property
    def _teacher(self) -> Teacher | None:
        brief, file = self.brief, self.dense.path
        assert file is not None
        return None if brief.judge is None else Teacher(file, brief.judge, providers=brief.providers)

    def findings(self, planner: Planner, plan: Plan, made: Written) -> Findings | None:
        """What can be told of a file; None where who asked must find out why it cannot."""
        brief, judge = self.brief, self.brief.judge
        try:
            with planner.clock.stage("check"):
                feeds = rows_to_check(self.dense, judge or brief.calibration, brief.bindings)
                equal, said = prove(self.dense, self.structure, plan, made, feeds, planner.options.to_json(), None)
            if judge is None or self._teacher is None:
                return Findings(equal, None, (), tuple(said), here())
            with planner.clock.stage("validate"):
                evidence = compare(
                    self._teacher, made.whole, metric=brief.metric, seed=brief.options.seed, level=brief.level,
                    flips=brief.flips,
                )  # fmt: skip
                layers = drift_by_layer(planner, self.structure, plan, judge, brief.options.seed)
            return Findings(equal, evidence, layers, tuple(said), here())
        except Exception:
            return None


_place: _Place | None = None
"""Where this worker is: one model and its rows at a time."""
_early: tuple[Early, Model, Structure] | None = None
"""What it read before it was told of rows."""


@contextmanager
def _at(brief: Brief, task: Task, files: Files | None) -> Iterator[_Place | None]:
    """The place of a brief, made where it is not there yet; None without a way to the model."""
    global _place  # noqa: PLW0603 -- what a worker process remembers between tasks
    with memory.limited(brief.options.max_memory):
        if _place is None or _place.brief.key != brief.key:
            before, _place = _place, None
            if before is not None and before.brief.digest == brief.digest:
                _place = _Place(brief, before.dense, before.structure)
            elif (found := _read_early(brief)) is not None:
                _place = _Place(brief, *found)
            elif (dense := _model(brief, files)) is not None:
                _place = _Place(brief, dense, analyze(dense, hidden="hidden" in brief.options.units))
        yield _place


def _read_early(brief: Brief) -> tuple[Model, Structure] | None:
    """What was read before there was a brief, where it is what the brief is of."""
    global _early
    early, _early = _early, None
    if early is None:
        return None
    task, dense, structure = early
    same = dense.digest == brief.digest and task == Early.of(task.model, brief.options)
    return (dense, structure) if same else None


def _model(brief: Brief, files: Files | None) -> Model | None:
    """The model, from where it lies for who asked, or from a copy that was sent; None where there is neither yet."""
    held = Path(tempfile.gettempdir()) / f"onnxprune-{brief.digest[:32]}"
    copy = held if brief.model.suffix != ".onnx" else held / brief.model.name
    for file in (brief.model, copy):
        with suppress(ModelError, UnsupportedError):  # nothing there, or something else
            if (found := joined.load(file, brief.options.calls)).digest == brief.digest:
                return found
    if files is None:
        return None
    held.mkdir(mode=0o700, exist_ok=True)
    receive(files, held)
    found = joined.load(copy, brief.options.calls)
    if found.digest != brief.digest:
        raise ModelError(f"{copy}: is not what was sent to this worker; remove it there, and run again")
    return found


def receive(files: Files, folder: Path) -> None:
    """A model's files, as they were sent, into a folder; each is whole, or not there."""
    for name, sent in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".onnxprune-", delete=False) as part:
            sent.tofile(part)
        Path(part.name).replace(place)


def bytes_of(files: Sequence[Path], root: Path) -> Files:
    """Graphs and what their weights lie in, as they are sent: by their place below a folder."""
    parts = dict.fromkeys(part for file in files for part in models.files_of(file))
    return {part.relative_to(root).as_posix(): np.fromfile(part, dtype=np.uint8) for part in parts}
