"""Methods × budgets, and solvers × patterns of zeros: the task metric, divergence from the dense model, seconds.

    python tests/bench/methods.py --assets ../shared/assets --models sst2=exports/sst2 stsb=exports/stsb

Every method has the same rows, search and compensation; only the order of the units differs. The rows of the reported
metric decide nothing. One model is scored once per method, and serves all budgets. The tables grow on disk row by row;
a row that is there already is not measured again, so that the work can be done in parts.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxprune.config import Options
from onnxprune.errors import OnnxPruneError
from onnxprune.job import Job
from onnxprune.plan import Budget
from onnxprune.report import Report
from onnxprune.score import METHODS
from onnxprune.solve import SOLVERS

BUDGETS = (0.75, 0.6, 0.5, 0.4, 0.3)
PATTERNS = ("2:4", "8:16")
ROOT = Path(__file__).resolve().parents[2]

UNITS = (
    "| model | method | FLOPs kept | metric | vs dense | KL or 1 − cos to dense | branches dropped | seconds |\n"
    "|---|---|---|---|---|---|---|---|"
)
ZEROS = (
    "| model | solver | pattern | metric | vs dense | KL or 1 − cos to dense | zeros | seconds |\n"
    "|---|---|---|---|---|---|---|---|"
)


def line(name: str, what: str, how_much: str, report: Report, extra: str, seconds: float) -> str:
    """One row. The divergence is the KL in nats where outputs are class scores; otherwise the one that is minimised."""
    accuracy, drift = report.accuracy, report.drift
    assert accuracy is not None and drift is not None
    moved = drift.kl if drift.kl is not None else drift.divergence
    return (
        f"| {name} | {what} | {how_much} | {100 * accuracy.pruned:.2f} | "
        f"{100 * (accuracy.pruned - accuracy.dense):+.2f} | {moved:.4f} | {extra} | {seconds:.0f} |"
    )


@dataclass
class Tables:
    """Both tables as they are on disk: rows by their first three cells, in the order they came."""

    path: Path
    said: dict[str, None] = field(default_factory=dict)
    units: dict[tuple[str, ...], str] = field(default_factory=dict)
    zeros: dict[tuple[str, ...], str] = field(default_factory=dict)

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
                rows[tuple(cell.strip() for cell in text.split("|")[1:4])] = text
        return tables

    def add(self, rows: dict[tuple[str, ...], str], report: Report, text: str) -> None:
        assert report.accuracy is not None
        model = text.split("|")[1].strip()
        self.said[f"- {model}: {report.accuracy.metric}, dense {100 * report.accuracy.dense:.2f}"] = None
        rows[tuple(cell.strip() for cell in text.split("|")[1:4])] = text
        print(text, flush=True)
        blocks = ["\n".join(self.said)]
        blocks += [
            "\n".join([head, *rows.values()]) for head, rows in ((UNITS, self.units), (ZEROS, self.zeros)) if rows
        ]
        self.path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def methods(name: str, source: Path, tables: Tables, options: argparse.Namespace) -> None:
    """Every method at the budgets that are not in the table yet, largest budget first."""
    for method in options.methods:
        wanted = [b for b in sorted(options.budgets, reverse=True) if (name, method, f"{b:g}") not in tables.units]
        if not wanted:
            continue
        settings = Options(
            Budget("flops", wanted[0]), method=method, rows=options.rows, search=options.search,
            compensate=not options.no_compensate,
        )  # fmt: skip
        start = time.perf_counter()
        job = opened(name, source, settings, options)
        for budget in wanted:
            try:
                result = job.run(Budget("flops", budget), None)
            except OnnxPruneError as error:
                print(f"{name} {method} {budget}: {error}", flush=True)
                continue
            spent, start = time.perf_counter() - start, time.perf_counter()
            gone = f"{len(result.plan.drop)} ({len(result.plan.maps)} mapped)"
            tables.add(tables.units, result.report, line(name, method, f"{budget:g}", result.report, gone, spent))


def sparsities(name: str, source: Path, tables: Tables, options: argparse.Namespace) -> None:
    """Every solver at every pattern that is not in the table yet; nothing else is cut."""
    for pattern, solver in pairs(options.patterns, options.solvers):
        if (name, solver, pattern) in tables.zeros:
            continue
        settings = Options(
            Budget("flops", 1.0), sparsity=pattern, solver=solver, rows=options.rows,
            compensate=not options.no_compensate,
        )  # fmt: skip
        start = time.perf_counter()
        report = opened(name, source, settings, options).run(settings.budget, None).report
        assert report.sparsity is not None
        zeros, spent = f"{report.sparsity.zeros:.1%}", time.perf_counter() - start
        tables.add(tables.zeros, report, line(name, solver, pattern, report, zeros, spent))


def pairs(patterns: Sequence[str], solvers: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((pattern, solver) for pattern in patterns for solver in solvers)


def opened(name: str, source: Path, settings: Options, options: argparse.Namespace) -> Job:
    rows = options.assets / "data" / name
    return Job.open(source, settings, rows / "calibration.jsonl", rows / f"{options.split}.jsonl", measure=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare scores at equal budgets, and solvers at equal patterns.")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER", help="sst2=..., stsb=...")
    parser.add_argument(
        "--assets", type=Path, default=Path(os.environ.get("ONNXPRUNE_ASSETS", ROOT.parent / "shared/assets"))
    )
    parser.add_argument("--methods", nargs="*", default=list(METHODS), help="none of them: the second table alone")
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    parser.add_argument("--solvers", nargs="*", default=list(SOLVERS), help="none of them: the first table alone")
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--rows", type=int, default=512, help="calibration rows")
    parser.add_argument("--split", default="dev", help="the rows that are reported on")
    parser.add_argument("--search", default="table", choices=("table", "rank"))
    parser.add_argument("--no-compensate", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("methods.md"))
    options = parser.parse_args()
    tables = Tables.load(options.output)
    for model in options.models:
        name, _, folder = model.partition("=")
        methods(name, Path(folder), tables, options)
        sparsities(name, Path(folder), tables, options)


if __name__ == "__main__":
    main()
