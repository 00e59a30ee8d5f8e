"""How much of what is cut is felt: speed-up × share of FLOPs kept, interleaved, on one thread; 1 is the limit.

    python tests/bench/efficiency.py --dense exports/sst2 --pruned small.onnx few.onnx
    python tests/bench/efficiency.py --base --share 0.6

Every pruned file is timed against the dense one at every shape, turn by turn. The share is counted twice: what the
written graph computes, by ONNX Runtime's own account at that shape (1 is the limit of a graph of fewer
multiplications), and what the budget counted, where positions that no output reads come on top. `--base` makes a
BERT-base-sized classifier with random weights (12 layers, 768 wide) and cuts it with magnitudes. Run it alone; where
that cannot be, `--clock cpu` takes the time that the process itself was computing, on its one thread.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from onnxprune.graph import model as models
from onnxprune.graph import runtime
from onnxprune.graph.example_feeds import synthesize
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure import latency
from onnxprune.measure.cost import Costs
from onnxprune.measure.operator_profile import profiled_macs
from onnxprune.pipeline.verbs import prune


def base(folder: Path, layers: int = 12) -> Path:
    """A classifier of BERT-base's size with random weights, exported."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    module = BertForSequenceClassification(BertConfig(num_hidden_layers=layers, attn_implementation="eager")).eval()
    file = folder / "base.onnx"
    ids = torch.ones(1, 16, dtype=torch.int64)
    axes = {0: "batch_size", 1: "sequence_length"}
    names = ["input_ids", "attention_mask"]
    torch.onnx.export(
        module, (ids, ids), file, input_names=names, output_names=["logits"], opset_version=17, dynamo=False,
        dynamic_axes=dict.fromkeys(names, axes) | {"logits": {0: "batch_size"}},
    )  # fmt: skip
    return file


def cut(dense: Path, share: float, folder: Path) -> Iterator[Path]:
    """The model cut by magnitudes, every position computed and only those that are read."""
    for keep in (True, False):
        file = folder / f"{share:g}-{'whole' if keep else 'read'}.onnx"
        shape = {"batch_size": 1, "sequence_length": 128}
        prune(dense, file, flops=share, method="magnitude", shape=shape, measure_latency=False, keep_unread=keep)
        yield file


def planned(dense: models.Model, file: Path, batch: int, tokens: int) -> float | None:
    """The share that a file's plan keeps, at a shape; None where there is no plan beside it."""
    plan = file.with_name(file.name.removesuffix(".onnx") + ".plan.json")
    if not plan.exists():
        return None
    costs = Costs(dense, analyze(dense), {"batch_size": batch, "sequence_length": tokens})
    return costs.macs(Plan.load(plan)) / costs.macs()


def timed(dense: Path, file: Path, feeds: runtime.Feeds, runs: int, clock: str) -> latency.LatencyRow:
    """Dense against pruned on one thread, by the wall's clock or the process's own."""
    pair = latency._Pair(*(runtime.session(f) for f in (dense, file)))
    walls, cpus = latency._timed([(pair, feeds, 1)], runs, 5)
    shown = walls if clock == "wall" else cpus
    return latency.row(pair.coverage[0].provider, feeds, 1, shown, cpus, pair.coverage, 0)


def measure(dense: Path, files: Sequence[Path], shapes: Sequence[tuple[int, int]], runs: int, clock: str) -> None:
    """A line per file and shape."""
    loaded = models.load(dense)
    print("| file | shape | dense ms | pruned ms | speed-up | computed | efficiency | planned | efficiency |")
    print("|---|---|---|---|---|---|---|---|---|")
    for file in files:
        for batch, tokens in shapes:
            feeds = synthesize(loaded.inputs, batch=batch, sequence=tokens)
            before, after = (sum(profiled_macs(f, feeds).values()) for f in (models.find(dense), file))
            row = timed(models.find(dense), file, feeds, runs, clock)
            low, high = row.speedup_interval
            shares = (after / before, planned(loaded, file, batch, tokens))
            cells = [
                f"{share:.4f} | {row.speedup * share:.3f} [{low * share:.3f}, {high * share:.3f}]" if share else " | "
                for share in shares
            ]
            times = f"{row.dense_ms.p50:.2f} | {row.pruned_ms.p50:.2f}"
            speedup = f"{row.speedup:.3f} [{low:.3f}, {high:.3f}]"
            print(f"| {file.stem} | {batch} × {tokens} | {times} | {speedup} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", type=Path, help="file or optimum folder")
    parser.add_argument("--pruned", type=Path, nargs="*", default=[], help="files to time against it")
    parser.add_argument("--base", action="store_true", help="a BERT-base-sized classifier instead")
    parser.add_argument("--layers", type=int, default=12, help="of --base")
    parser.add_argument("--share", type=float, nargs="*", default=[], help="budgets to cut to by magnitudes first")
    parser.add_argument("--runs", type=int, default=61)
    parser.add_argument("--shapes", nargs="*", default=["1x128", "8x64"], help="batch x tokens")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--keep", type=Path, help="folder for what is made; default: a temporary one")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        dense = asked.dense
        if asked.base:
            dense = folder / "base.onnx"
            dense = dense if dense.exists() else base(folder, asked.layers)
        files = [*asked.pruned, *(file for share in asked.share for file in cut(dense, share, folder))]
        shapes = [(int(b), int(s)) for b, s in (shape.split("x") for shape in asked.shapes)]
        measure(dense, files, shapes, asked.runs, asked.clock)


if __name__ == "__main__":
    main()
