"""What tiles bring, as measured: their speed on an FFN, and their accuracy against plain cuts at equal latency.

    python tests/bench/tiles.py ffn
    python tests/bench/tiles.py accuracy exports/sst2 --data ../shared/assets/data/sst2 --folder tiles

`ffn` prunes the FFN of a 768-wide model to `tiles:0.5` and times it against the dense one, turn by turn in one process
on one thread; it ends with exit status 1 below 1.6 times. `accuracy` prunes a classifier to several budgets, by units
alone and by units and tiles together, times all files turn by turn, and compares each with tiles to what units alone
reach at its latency (between two budgets: on the line through both).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

import onnxprune
from onnxprune.graph import runtime
from onnxprune.graph.example_feeds import synthesize
from onnxprune.graph.model import load
from onnxprune.measure import latency
from onnxprune.report import Report

WANTED = 1.6
FFN = """<ir_version: 9, opset_import: ["" : 20]>
ffn (float[1, rows, 768] x) => (float[1, rows, 768] y) {
  normed = LayerNormalization <axis: int = -1> (x, gamma, beta)
  product = MatMul (normed, up)
  biased = Add (product, up_bias)
  active = Gelu (biased)
  written = MatMul (active, down)
  added = Add (written, down_bias)
  y = Add (x, added)
}"""
SHAPES = {
    "gamma": (768,),
    "beta": (768,),
    "up": (768, 3072),
    "up_bias": (3072,),
    "down": (3072, 768),
    "down_bias": (768,),
}


def ffn(target: Path) -> Path:
    """The FFN of a BERT-base: random weights of the size that such a model begins with."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(FFN)
    for name, shape in SHAPES.items():
        array = np.ones(shape) if name == "gamma" else rng.normal(0, 0.02, shape)
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(model, target)
    return target


def stream(rows: int, seed: int) -> dict[str, np.ndarray]:
    """A stream with the decaying spectrum that real ones have."""
    mix = np.linalg.qr(np.random.default_rng(0).normal(size=(768, 768)))[0] * np.arange(1, 769) ** -0.5
    return {"x": (np.random.default_rng(seed).normal(size=(1, rows, 768)) @ mix.T).astype(np.float32)}


def speed(options: argparse.Namespace) -> int:
    """Tiles at a half on the FFN, dense and tiled turn by turn."""
    with tempfile.TemporaryDirectory() as scratch:
        file, tiled = ffn(Path(scratch) / "ffn.onnx"), Path(scratch) / "tiled.onnx"
        made = onnxprune.prune(
            file, tiled, calibration=[stream(128, seed) for seed in range(24)], sparsity=options.sparsity,
            shape={"rows": 128}, measure_latency=False,
        )  # fmt: skip
        flops = made.report.flops
        print(f"{options.sparsity}: {flops.pruned / flops.dense:.3f} of the FLOPs kept", flush=True)
        fast = True
        for rows in (128, 512):
            (found,) = latency.bench(file, tiled, dims={"rows": rows}, runs=options.runs)
            low, high = found.speedup_interval
            dense, pruned = found.dense_ms.p50, found.pruned_ms.p50
            print(f"{rows} rows: {dense:.2f} ms -> {pruned:.2f} ms, {found.speedup:.2f}x ({low:.2f} to {high:.2f})")
            fast &= found.speedup >= WANTED
    print(f"{'at least' if fast else 'NOT at least'} {WANTED} times as fast")
    return 0 if fast else 1


@dataclass(frozen=True)
class Point:
    """One pruned file: what it keeps, how good it is, and how long it takes (median, milliseconds)."""

    recipe: str
    flops: float
    accuracy: float
    kl: float
    file: Path
    milliseconds: float = 0.0


def points(options: argparse.Namespace, recipe: str, settings: Mapping[str, Any]) -> list[Point]:
    """The files of a recipe at every budget; those that are in the folder already are not made again."""
    folder = options.folder / recipe.replace(":", "-")
    wanted = [b for b in options.budgets if not (folder / f"model.flops-{b:g}.onnx").exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if wanted:
        onnxprune.sweep(
            options.model, wanted, folder, calibration=options.data / "calibration.jsonl",
            evaluation=options.data / options.split, options={"rows": options.rows, "seed": options.seed, **settings},
            measure=False,
        )  # fmt: skip
    found = []
    for budget in options.budgets:
        file = folder / f"model.flops-{budget:g}.onnx"
        report = Report.load(file.with_suffix(".report.json"))
        assert report.accuracy is not None and report.drift is not None and report.drift.kl is not None
        kept = (report.flops.pruned - report.flops.unread) / report.flops.dense
        found.append(Point(recipe, kept, report.accuracy.pruned or 0.0, report.drift.kl, file))
    return found


def times(files: Sequence[Path], shape: tuple[int, int], runs: int) -> list[float]:
    """Median milliseconds of each file, one thread, all of them turn by turn in changing order."""
    sessions = [runtime.session(file, ("cpu",), threads=1) for file in files]
    feeds = synthesize(load(files[0]).inputs, batch=shape[0], sequence=shape[1])
    rng, taken = np.random.default_rng(0), np.zeros((runs + 3, len(files)))
    for turn in range(runs + 3):
        for i in rng.permutation(len(files)):
            begun = time.perf_counter()
            sessions[i].run(None, feeds)
            taken[turn, i] = 1e3 * (time.perf_counter() - begun)
    return [float(ms) for ms in np.median(taken[3:], axis=0)]


def accuracy(options: argparse.Namespace) -> int:
    """Units alone and with tiles, at equal measured latency."""
    made = points(options, "units", {})
    for sparsity in options.sparsities:
        made += points(options, sparsity, {"sparsity": sparsity})
    dense = load(options.model).path
    assert dense is not None
    taken = times([dense, *(p.file for p in made)], (1, options.tokens), options.runs)
    made = [Point(p.recipe, p.flops, p.accuracy, p.kl, p.file, ms) for p, ms in zip(made, taken[1:], strict=True)]
    print(f"dense: {taken[0]:.2f} ms at (1, {options.tokens})\n")
    print("| recipe | FLOPs kept | ms | accuracy | KL to dense |\n|---|---|---|---|---|")
    for p in made:
        print(f"| {p.recipe} | {p.flops:.3f} | {p.milliseconds:.2f} | {100 * p.accuracy:.2f} | {p.kl:.4f} |")
    alone = sorted((p for p in made if p.recipe == "units"), key=lambda p: p.milliseconds)
    axis = [p.milliseconds for p in alone]
    print()
    for p in made:
        if p.recipe == "units":
            continue
        score, kl = (np.interp(p.milliseconds, axis, [getattr(q, name) for q in alone]) for name in ("accuracy", "kl"))
        beyond = "" if axis[0] <= p.milliseconds <= axis[-1] else " (the nearest; it lies beyond)"
        print(
            f"at {p.milliseconds:.2f} ms: {p.recipe} {100 * p.accuracy:.2f}%, KL {p.kl:.4f}; units alone{beyond} "
            f"{100 * score:.2f}%, KL {kl:.4f}: tiles are {'not ' if p.accuracy >= score else ''}less accurate"
        )
    return 0


def main() -> None:
    asked = argparse.ArgumentParser(description="What tiles bring.")
    commands = asked.add_subparsers(dest="command", required=True)
    fast = commands.add_parser("ffn")
    fast.add_argument("--sparsity", default="tiles:0.5")
    fast.add_argument("--runs", type=int, default=35)
    good = commands.add_parser("accuracy")
    good.add_argument("model", type=Path, help="an optimum folder")
    good.add_argument("--data", type=Path, required=True, help="folder with calibration.jsonl and the split")
    good.add_argument("--split", default="dev.jsonl")
    good.add_argument(
        "--folder", type=Path, required=True, help="where the pruned files go; what is there is used again"
    )
    good.add_argument("--budgets", nargs="+", type=float, default=[0.5, 0.4, 0.3])
    good.add_argument("--sparsities", nargs="+", default=["tiles:0.75"])
    good.add_argument("--tokens", type=int, default=128)
    good.add_argument("--rows", type=int, default=512)
    good.add_argument("--runs", type=int, default=35)
    good.add_argument("--seed", type=int, default=0)
    options = asked.parse_args()
    sys.exit(speed(options) if options.command == "ffn" else accuracy(options))


if __name__ == "__main__":
    main()
