"""The same run with scores from the CPU and from CUDA: seconds by stage, whether the plans agree, and what CUDA times.

    python tests/bench/cuda.py exports/sst2 --calib rows.jsonl --eval dev.jsonl --flops 0.5,0.3
    python tests/bench/cuda.py exports/sst2 --calib rows.jsonl --eval dev.jsonl --providers cuda,cpu

One process and machine, first a short run on each device that pays what only the first run pays. Validation and latency
are by the providers named, which onnxruntime-gpu brings.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import onnxprune
from onnxprune.graph.plan import Plan

DEVICES = ("cpu", "cuda")


def agreement(a: Plan, b: Plan) -> str:
    """How many kept units two plans share, of those that either keeps, and how far their weights are apart."""
    pairs = [(set(a.keep.get(g, ())), set(b.keep.get(g, ()))) for g in a.keep.keys() | b.keep.keys()]
    common, either = (sum(len(f(x, y)) for x, y in pairs) for f in (set.intersection, set.union))
    same = [n for n in a.weights.keys() & b.weights.keys() if a.weights[n].shape == b.weights[n].shape]
    apart = [float(np.linalg.norm(a.weights[n] - b.weights[n]) / np.linalg.norm(a.weights[n])) for n in same]
    return f"{common} of {either} units in common, refit weights apart by {max(apart, default=0.0):.1e} at most"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--flops", default="0.5")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--providers", default="cpu", help="of the validation and, beyond the CPU, of the latency")
    args = parser.parse_args()
    providers = args.providers.split(",")

    def run(device: str, flops: float, rows: int) -> tuple[onnxprune.Result, float]:
        start = time.perf_counter()
        result = onnxprune.prune(
            args.model, calibration=args.calib, evaluation=args.eval, flops=flops, rows=rows, device=device,
            method=args.method, providers=providers, measure_latency=providers != ["cpu"] and device == "cuda",
        )  # fmt: skip
        return result, time.perf_counter() - start

    for device in DEVICES:
        run(device, 0.9, 16)
    for flops in map(float, args.flops.split(",")):
        found = {device: run(device, flops, args.rows) for device in DEVICES}
        print(f"--flops {flops:g}: {agreement(found['cpu'][0].plan, found['cuda'][0].plan)}")
        for device, (result, seconds) in found.items():
            report = result.report
            stages = ", ".join(f"{name} {taken:.1f}" for name, taken in report.seconds.items() if taken >= 0.05)
            metric = "" if report.accuracy is None else f"{report.accuracy.metric} {report.accuracy.pruned:.4f}"
            print(f"  {device:>4} {seconds:6.1f} s  KL {report.drift.divergence if report.drift else 0:.4f}  {metric}")
            print(f"       {stages}")
            for row in report.latency:
                print(f"       {row}")


if __name__ == "__main__":
    main()
