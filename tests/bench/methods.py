"""Methods × budgets: the task metric, the divergence from the dense model, and seconds, as measured.

    python tests/bench/methods.py --assets ../shared/assets --models sst2=exports/sst2 stsb=exports/stsb

Every method has the same rows, search and compensation; only the order of the units differs. The rows of the reported
metric decide nothing. One model is scored once per method, and serves all budgets. The table grows on disk row by row.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

from onnxprune.config import Options
from onnxprune.errors import OnnxPruneError
from onnxprune.job import Job
from onnxprune.plan import Budget
from onnxprune.score import METHODS

BUDGETS = (0.75, 0.6, 0.5, 0.4, 0.3)
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    """One run. `kl` is in nats where outputs are class scores; otherwise the divergence that is minimised."""

    model: str
    method: str
    budget: float
    metric: str
    dense: float
    pruned: float
    kl: float
    branches: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"| {self.model} | {self.method} | {self.budget:g} | {100 * self.pruned:.2f} | "
            f"{100 * (self.pruned - self.dense):+.2f} | {self.kl:.4f} | {self.branches} | {self.seconds:.0f} |"
        )


HEADER = (
    "| model | method | FLOPs kept | metric | vs dense | KL or 1 − cos to dense | branches dropped | seconds |\n"
    "|---|---|---|---|---|---|---|---|"
)


def measure(name: str, source: Path, assets: Path, method: str, options: argparse.Namespace) -> list[Row]:
    """A method at all budgets on one model, largest budget first."""
    rows = assets / "data" / name
    settings = Options(
        Budget("flops", max(options.budgets)), method=method, rows=options.rows, search=options.search,
        compensate=not options.no_compensate,
    )  # fmt: skip
    found = []
    start = time.perf_counter()
    job = Job.open(source, settings, rows / "calibration.jsonl", rows / f"{options.split}.jsonl", measure=False)
    for budget in sorted(options.budgets, reverse=True):
        try:
            result = job.run(Budget("flops", budget), None)
        except OnnxPruneError as error:
            print(f"{name} {method} {budget}: {error}", flush=True)
            continue
        report = result.report
        assert report.accuracy is not None and report.drift is not None
        kl = report.drift.kl if report.drift.kl is not None else report.drift.divergence
        spent, start = time.perf_counter() - start, time.perf_counter()
        found.append(
            Row(
                name, method, budget, report.accuracy.metric, report.accuracy.dense, report.accuracy.pruned, kl,
                len(result.plan.drop), spent,
            )
        )  # fmt: skip
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the scores at equal budgets.")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER", help="sst2=..., stsb=...")
    parser.add_argument(
        "--assets", type=Path, default=Path(os.environ.get("ONNXPRUNE_ASSETS", ROOT.parent / "shared/assets"))
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    parser.add_argument("--rows", type=int, default=512, help="calibration rows")
    parser.add_argument("--split", default="dev", help="the rows that are reported on")
    parser.add_argument("--search", default="table", choices=("table", "rank"))
    parser.add_argument("--no-compensate", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("methods.md"))
    options = parser.parse_args()
    rows: list[Row] = []
    for model in options.models:
        name, _, folder = model.partition("=")
        for method in options.methods:
            rows += measure(name, Path(folder), options.assets, method, options)
            said = dict.fromkeys(f"{r.model}: {r.metric}, dense {100 * r.dense:.2f}" for r in rows)
            lines = [*(f"- {s}" for s in said), "", HEADER, *map(str, rows)]
            options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
