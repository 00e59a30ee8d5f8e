"""Our recipe against others at equal budgets: accuracy, divergence, seconds and peak memory, as measured.

    python tests/bench/peers.py exports/sst2 --data ../shared/assets/data/sst2 [--onnxsim ENV/bin/python]

Every run is a process of its own, the recipes interleaved budget by budget, on the same rows. Kwon's recipe is this
code base's: Fisher information of gates with labels, search by score, rearrangement, least squares. onnxsim is the
published package (0.8.1, in an environment of its own with onnxruntime): Wanda on heads and channels of the graph that
ONNX Runtime's transformer optimizer fuses, and its ridge refit. Latency is not measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

RECIPES: dict[str, list[str]] = {
    "onnxprune": [],
    "kwon": ["--method", "fisher", "--search", "rank"],
    "wanda": ["--method", "wanda", "--search", "rank", "--no-compensate"],
    "magnitude": ["--method", "magnitude", "--search", "rank", "--no-compensate"],
}
HEADER = (
    "| budget | recipe | FLOPs kept | metric | vs dense | KL to dense | seconds | peak GB |\n"
    "|---|---|---|---|---|---|---|---|"
)

ONNXSIM = """
import json, sys
import numpy as np, onnx, onnxsim
from onnxsim.finetune import apply_pruning_finetune
from onnxsim.pruning import apply_attention_head_wanda_pruning, apply_structured_wanda_pruning
fused, rows, target, sparsity = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
flat = np.load(rows)
names = json.loads(str(flat["names"]))
data = [{n: flat[f"{i}/{n}"] for n in names} for i in range(int(flat["count"]))]
dense = onnx.load(fused)
small = apply_attention_head_wanda_pruning(dense, data, sparsity=sparsity)
small = apply_structured_wanda_pruning(small, data, sparsity=sparsity)
onnx.save(apply_pruning_finetune(dense, small, data), target)
"""


def run(command: list[str]) -> tuple[str, float, float]:
    """(standard output, seconds, peak memory in GB) of a process; it is an error if it fails."""
    before = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = _wait(process.pid)
        process.returncode = status
    if status:
        raise SystemExit(f"{command[:4]} … exit status {status}")
    return said, time.perf_counter() - before, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _wait(pid: int) -> tuple[int, int, resource.struct_rusage]:
    done, status, used = os.wait4(pid, 0)
    return done, os.waitstatus_to_exitcode(status), used


def ours(recipe: str, budget: float, options: argparse.Namespace) -> str:
    """One run of the command line, evaluation left out of its seconds."""
    calibration = options.data / "calibration.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "onnxprune.cli.main", str(options.model), "-o", f"{folder}/small.onnx",
            "--flops", str(budget), "--calib", str(calibration), "--rows", str(options.rows), "--eval",
            str(options.data / options.split),
            "--no-latency", "--json", "--seed", str(options.seed), *RECIPES[recipe],
        ]  # fmt: skip
        said, _, _ = run(command)
    report = json.loads(said)
    seconds = sum(v for k, v in report["seconds"].items() if k != "validate")
    kept = report["flops"]["pruned"] / report["flops"]["dense"]
    return line(budget, recipe, kept, report["accuracy"], report["drift"], seconds, report["peak_memory_bytes"] / 1e9)


def line(
    budget: float,
    recipe: str,
    kept: float,
    accuracy: dict[str, Any],
    drift: dict[str, Any],
    seconds: float,
    memory: float,
) -> str:
    """A row of the table."""
    change = 100 * (accuracy["pruned"] - accuracy["dense"])
    return (
        f"| {budget:g} | {recipe} | {kept:.3f} | {100 * accuracy['pruned']:.2f} | {change:+.2f} | "
        f"{drift['kl'] if drift['kl'] is not None else float('nan'):.4f} | {seconds:.0f} | {memory:.2f} |"
    )


def onnxsim(budget: float, options: argparse.Namespace, fused: Path) -> str:
    """The same share of heads and of channels taken out of the fused graph, refit, and judged as ours are."""
    from onnxprune import data, load, validate
    from onnxprune.measure.operator_profile import profiled_macs

    dense = load(options.model)
    assert dense.path is not None
    common: dict[str, Any] = {
        "inputs": dense.inputs, "outputs": dense.outputs, "folder": dense.folder, "seed": options.seed,
    }  # fmt: skip
    rows = data.read(options.data / "calibration.jsonl", limit=options.rows, **common)
    with tempfile.TemporaryDirectory() as folder:
        batches = [b.feeds for b in rows.batches(max_rows=32)]
        arrays = {f"{i}/{name}": array for i, feeds in enumerate(batches) for name, array in feeds.items()}
        file, target = Path(folder) / "rows.npz", Path(folder) / "small.onnx"
        described = {"names": np.array(json.dumps(list(batches[0]))), "count": np.array(len(batches))}
        np.savez(file, allow_pickle=False, **described, **arrays)
        command = [str(options.onnxsim), "-c", ONNXSIM, str(fused), str(file), str(target), str(1 - budget)]
        _, seconds, memory = run(command)
        found = validate(dense.path, target, data.read(options.data / options.split, **common))
        example = batches[len(batches) // 2]
        before, after = (sum(profiled_macs(file, example).values()) for file in (dense.path, target))
    return line(budget, "onnxsim 0.8.1", after / before, asdict(found.accuracy), asdict(found.drift), seconds, memory)


def fuse(options: argparse.Namespace, folder: str) -> Path:
    """What onnxsim needs to find the heads: the graph with MultiHeadAttention nodes."""
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    config = json.loads((options.model / "config.json").read_text())
    wanted = FusionOptions("bert")
    wanted.use_multi_head_attention = True
    found = optimizer.optimize_model(
        str(options.model / "model.onnx"), "bert", num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"], opt_level=0, optimization_options=wanted,
    )  # fmt: skip
    target = Path(folder) / "fused.onnx"
    found.save_model_to_file(str(target))
    return target


def table(options: argparse.Namespace, folder: str) -> Iterator[str]:
    fused = fuse(options, folder) if options.onnxsim else None
    for budget in options.budgets:
        for recipe in options.recipes:
            yield ours(recipe, budget, options)
        if fused is not None:
            yield onnxsim(budget, options, fused)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare with other recipes at equal budgets.")
    parser.add_argument("model", type=Path, help="an optimum folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with calibration.jsonl and the split")
    parser.add_argument("--split", default="dev.jsonl")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.6, 0.5, 0.4, 0.3])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--onnxsim", type=Path, help="Python of an environment with onnxsim and onnxruntime")
    options = parser.parse_args()
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for row in table(options, folder):
            print(row, flush=True)


if __name__ == "__main__":
    main()
