"""Methods × budgets, and solvers × patterns of zeros: the task metric, divergence from the dense model, CPU seconds.

    python tests/bench/methods.py --assets ../shared/assets --models sst2=exports/sst2 stsb=exports/stsb

Every method has the same rows, search and compensation; only the order of the units differs. The rows of the reported
metric decide nothing. A model is opened once, and what its methods have in common (rows, dense outputs, token weights)
is made once; a method's scores and damage table (in the rest of its first budget) serve all others. The tables grow on
disk row by row; a row that is there already is not measured again, so that the work can be done in parts, and by
several processes.
"""

from __future__ import annotations

import argparse
import copy
import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxprune.errors import OnnxPruneError
from onnxprune.graph.plan import Budget
from onnxprune.pipeline.job import Job
from onnxprune.pipeline.rows import read_rows
from onnxprune.refit.solvers import SOLVERS
from onnxprune.report import Report
from onnxprune.score import METHODS
from onnxprune.search.options import Options

BUDGETS = (0.75, 0.6, 0.5, 0.4, 0.3)
TABLE = ("obs", "optin", "seven", "seven-dyn", "snip", "fisher", "taylor", "platon", "wanda", "magnitude")
PATTERNS = ("2:4", "4:8", "8:16", "16x16:0.5", "pattern:4x4:0.5")
ROOT = Path(__file__).resolve().parents[2]

UNITS = (
    "| model | method | FLOPs kept | metric | vs dense | KL or 1 − cos to dense | branches dropped "
    "| CPU s to score | CPU s for the rest |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
ZEROS = "\n".join(
    (
        "| model | solver | pattern | metric | vs dense | KL or 1 − cos to dense | zeros | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    )
)


def line(name: str, what: str, how_much: str, report: Report, *further: str) -> str:
    """One row. The divergence is the KL in nats where outputs are class scores; otherwise the one that is minimised."""
    accuracy, drift = report.accuracy, report.drift
    assert accuracy is not None and drift is not None
    moved = drift.kl if drift.kl is not None else drift.divergence
    cells = [name, what, how_much, f"{100 * accuracy.pruned:.2f}", f"{100 * (accuracy.pruned - accuracy.dense):+.2f}"]
    return f"| {' | '.join([*cells, f'{moved:.4f}', *further])} |"


Rows = dict[tuple[str, ...], str]
"""Rows of a table by their first three cells."""


@dataclass
class Tables:
    """Both tables as they are on disk."""

    path: Path
    said: dict[str, None] = field(default_factory=dict)
    units: Rows = field(default_factory=dict)
    zeros: Rows = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Tables:
        tables = cls(path)
        rows = tables.units
        for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            if text.startswith("- "):
                tables.said[text] = None
            elif text in (UNITS.splitlines()[0], ZEROS.splitlines()[0]):
                rows = tables.zeros if text == ZEROS.splitlines()[0] else tables.units
            elif text.startswith("| "):
                rows[key(text)] = text
        return tables

    def add(self, report: Report, text: str, *, zeros: bool = False) -> None:
        """A row more, beside those that other processes have written meanwhile."""
        assert report.accuracy is not None
        print(text, flush=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = Tables.load(self.path)
            accuracy = report.accuracy
            said = f"- {key(text)[0]}: {accuracy.metric} on {accuracy.rows:,} rows, dense {100 * accuracy.dense:.2f}"
            found.said[said] = None
            (found.zeros if zeros else found.units)[key(text)] = text
            found.write()

    def write(self) -> None:
        blocks = ["\n".join(self.said)]
        for head, rows, names in ((UNITS, self.units, list(METHODS)), (ZEROS, self.zeros, list(SOLVERS))):
            if rows:
                blocks.append("\n".join([head, *(rows[k] for k in sorted(rows, key=lambda k: place(k, names)))]))
        self.path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def key(text: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in text.split("|")[1:4])


def place(row: tuple[str, ...], names: Sequence[str]) -> tuple[Any, ...]:
    """Where a row belongs: by model, then patterns or methods, as they are listed, then budgets from the largest."""
    model, name, much = row
    place = names.index(name) if name in names else len(names)
    return (model, place, -float(much)) if re.fullmatch(r"[\d.]+", much) else (model, much, place)


def methods(name: str, job: Job, tables: Tables, options: argparse.Namespace) -> None:
    """Every method at the budgets that are not in the table yet, largest budget first."""
    for method in options.methods:
        wanted = [b for b in sorted(options.budgets, reverse=True) if (name, method, f"{b:g}") not in tables.units]
        for i, budget in enumerate(wanted):
            start = time.process_time()
            if i == 0:
                work = asked(job, Budget("flops", budget), method=method)
                _ = work.planner.start  # scores
            scored, start = time.process_time() - start, time.process_time()
            try:
                result = work.run(Budget("flops", budget), None)
            except OnnxPruneError as error:
                print(f"{name} {method} {budget}: {error}", flush=True)
                continue
            spent = time.process_time() - start
            gone = f"{len(result.plan.drop)} ({len(result.plan.maps)} mapped)"
            cells = (gone, f"{scored:.0f}" if i == 0 else "", f"{spent:.0f}")
            tables.add(result.report, line(name, method, f"{budget:g}", result.report, *cells))


def sparsities(name: str, job: Job, tables: Tables, options: argparse.Namespace) -> None:
    """Every solver at every pattern that is not in the table yet; nothing else is cut."""
    for pattern, solver in pairs(options.patterns, options.solvers):
        if (name, solver, pattern) in tables.zeros:
            continue
        start = time.process_time()
        budget = Budget("flops", 1.0)
        report = asked(job, budget, sparsity=pattern, solver=solver).run(budget, None).report
        assert report.sparsity is not None
        zeros, spent = f"{report.sparsity.zeros:.1%}", time.process_time() - start
        tables.add(report, line(name, solver, pattern, report, zeros, f"{spent:.0f}"), zeros=True)


def pairs(patterns: Sequence[str], solvers: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((pattern, solver) for pattern in patterns for solver in solvers)


def opened(name: str, source: Path, options: argparse.Namespace) -> Job:
    """A model with its rows; those of several splits are reported on together."""
    rows = options.assets / "data" / name
    settings = Options(
        Budget("flops", 1.0), rows=options.rows, search=options.search, compensate=not options.no_compensate,
        seed=options.seed,
    )  # fmt: skip
    splits = [rows / f"{split}.jsonl" for split in options.split.split("+")]
    job = Job.open(source, settings, rows / "calibration.jsonl", splits[0], measure=False)
    for path in splits[1:]:
        _, more = read_rows(job.dense, None, path, settings)
        assert job.judge is not None and more is not None
        job.judge = job.judge + more
    return job


def asked(job: Job, budget: Budget, **options: Any) -> Job:
    """The same job with other options: what does not depend on them (rows, dense outputs, token weights) is shared."""
    _ = job.teacher
    found = copy.copy(job)
    found.options = replace(job.options, budget=budget, **options)
    found.planner = job.planner.again(found.options)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare scores at equal budgets, and solvers at equal patterns.")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER", help="sst2=..., stsb=...")
    parser.add_argument(
        "--assets", type=Path, default=Path(os.environ.get("ONNXPRUNE_ASSETS", ROOT.parent / "shared/assets"))
    )
    parser.add_argument("--methods", nargs="*", default=TABLE, help="none of them: the second table alone")
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    parser.add_argument("--solvers", nargs="*", default=list(SOLVERS), help="none of them: the first table alone")
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--rows", type=int, default=512, help="calibration rows")
    parser.add_argument("--split", default="dev+test", help="the rows that are reported on")
    parser.add_argument("--search", default="table", choices=("table", "rank"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compensate", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("methods.md"))
    options = parser.parse_args()
    for model in options.models:
        name, _, folder = model.partition("=")
        job = opened(name, Path(folder), options)
        methods(name, job, Tables.load(options.output), options)
        sparsities(name, job, Tables.load(options.output), options)


if __name__ == "__main__":
    main()
