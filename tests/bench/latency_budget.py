"""Whether `--latency` lands: the target against the interleaved ratio, at several shapes; run it on a quiet machine.

    python tests/bench/latency_budget.py MODEL --calib rows.jsonl [--latency 0.5] [--shape 1,128 --shape 8,64]

Tables are measured anew. What is measured afterwards decided nothing; beside its interval stands the ratio of the
processor's time, which a machine that is not quiet disturbs less.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxprune
from onnxprune.graph import model as models
from onnxprune.measure import latency

WITHIN = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--latency", default="0.5")
    parser.add_argument("--shape", action="append", help="batch,tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--no-compensate", action="store_true")
    parser.add_argument("--runs", type=int, default=100, help="pairs of runs in the last measurement")
    asked = parser.parse_args()
    dense = models.find(asked.model)
    columns = ("batch × tokens", "target", "predicted", "in the run", "corrections", "afterwards, interleaved",
               "processor time", "off", "seconds")  # fmt: skip
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    missed = []
    for shape in asked.shape or ["1,128", "8,64"]:
        batch, tokens = map(int, shape.split(","))
        dims = {"batch_size": batch, "sequence_length": tokens}
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder
            begun = time.perf_counter()
            file = Path(folder) / "small.onnx"
            options: dict[str, Any] = {
                "rows": asked.rows,
                "compensate": not asked.no_compensate,
                "latency_threads": asked.threads,
            }
            made = onnxprune.prune(
                asked.model, file, latency=asked.latency, calibration=asked.calib, shape=dims, **options
            )
            seconds = time.perf_counter() - begun
            (row,) = latency.bench(dense, file, dims=dims, threads=asked.threads, runs=asked.runs, warmup=3)
        held = made.report.landing
        assert held is not None and held.measured is not None and held.interval is not None
        ratio, (low, high) = 1 / row.speedup, (1 / row.speedup_interval[1], 1 / row.speedup_interval[0])
        off = ratio / held.target - 1
        missed += [shape] if abs(off) > WITHIN else []
        print(
            f"| {batch} × {tokens} | {held.target:.3f} | {held.predicted:.3f} | "
            f"{held.measured:.3f} [{held.interval[0]:.3f}, {held.interval[1]:.3f}] | {held.corrected} | "
            f"{ratio:.3f} [{low:.3f}, {high:.3f}] | {row.pruned_ms.cpu / row.dense_ms.cpu:.3f} | "
            f"{off:+.1%} | {seconds:.0f} |",
            flush=True,
        )
    raise SystemExit(f"missed by more than {WITHIN:.0%}: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
