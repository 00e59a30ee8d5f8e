"""Neighbouring layers replaced by one linear map, merged into the product in front of them (ReplaceMe, 2505.02819).

    python tests/bench/replaced_blocks.py MODEL.onnx --calib calibration.jsonl --layers 1 2

Every run of so many layers is left out: by dropping it and keeping means, or with the last product before it refit so
that what it adds brings the stream to where the run would have left it, as a map of what it gave (`merged`) or with all
its inputs (`refit`). Norms that stay are inverted on the way. The run that is best by the rows that choose is mended by
the usual sweep behind it, and compared with the default search at the same FLOPs, by the KL on the rows of the
calibration file behind the first `--rows`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.graph import model as models
from onnxprune.graph.plan import Branch, Budget, Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.linear_layers import Linear, find_linears
from onnxprune.pipeline.rows import read_rows, shape_of
from onnxprune.probe.forward import Rows, forward
from onnxprune.refit.compensate import compensate
from onnxprune.refit.solvers import Moments, ridge
from onnxprune.refit.solvers.linalg import numpy_on_one_thread
from onnxprune.search.options import Options
from onnxprune.search.planner import Planner

STRENGTHS = (1e-2, 1e-1, 1.0)
"""Of the ridge, relative to the inputs' mean energy; the rows that choose choose."""
Array = np.ndarray


@dataclass(frozen=True)
class Norm:
    """A layer normalisation between two additions."""

    gain: Array
    shift: Array


@dataclass(frozen=True, eq=False)
class Run:
    """Branches that go, and the product in front of them, which closes the branch `before`.

    Attributes:
        norms: between the additions of `before` and of the last that goes, in order; none where the stream runs on.
    """

    before: Branch
    product: Linear
    gone: tuple[Branch, ...]
    norms: tuple[Norm | None, ...]


def runs(planner: Planner, layers: int) -> list[Run]:
    """Every run of so many whole layers behind a feed-forward layer."""
    graph = planner.model.graph
    place = {n.name or "": i for i, n in enumerate(graph)}
    branches = sorted(planner.structure.branches, key=lambda b: place[b.add])
    closing = {x.branch.id: x for x in find_linears(graph, planner.structure) if x.branch is not None}
    found = []
    for i, before in enumerate(branches):
        gone = branches[i + 1 : i + 1 + 2 * layers]
        if before.kind != "attention" and before.id in closing and len(gone) == 2 * layers:
            norms = tuple(_norm(planner, branch) for branch in gone)
            found.append(Run(before, closing[before.id], tuple(gone), norms))
    return found


def _norm(planner: Planner, branch: Branch) -> Norm | None:
    """What lies between the addition before a branch and its own."""
    value = next(v for n in planner.model.graph for v in n.outputs if v.name == branch.skip)
    node = value.producer()
    if node is None or node.op_type != "LayerNormalization":
        return None
    gain, shift = (planner.weight(v.name or "").astype(np.float64) for v in node.inputs[1:3] if v is not None)
    return Norm(gain, shift)


def standard(x: Array) -> Array:
    """Rows of mean 0 and deviation 1."""
    centred = x - x.mean(1, keepdims=True)
    return centred / np.maximum(centred.std(1, keepdims=True), 1e-12)


def target(run: Run, seen: dict[str, Array]) -> Array:
    """What the stream should be behind `before`, for the norms that stay to make of it what the run makes."""
    sums = [seen[run.before.skip] + seen[run.before.value], *(seen[b.skip] + seen[b.value] for b in run.gone)]
    wanted = sums[-1]
    for branch, norm, own in zip(reversed(run.gone), reversed(run.norms), reversed(sums[:-1]), strict=True):
        if norm is not None:  # the norm behind it makes a token's own scale and mean no matter: they are the dense ones
            skip = seen[branch.skip]
            scaled = standard(wanted) * skip.std(1, keepdims=True) + skip.mean(1, keepdims=True)
            unit = standard((scaled - norm.shift) / norm.gain)
            wanted = unit * own.std(1, keepdims=True) + own.mean(1, keepdims=True)
    return wanted


def values(rows: Rows, names: Sequence[str]) -> dict[str, Array]:
    """[tokens, n] of some values of the dense model."""
    found: dict[str, list[Array]] = {name: [] for name in names}
    for batch in rows.batches:
        made = forward(rows.interpreter, batch.feeds, names)
        for name in names:
            found[name].append(np.asarray(made[name].double()).reshape(-1, made[name].shape[-1]))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def replaced(planner: Planner, run: Run) -> dict[str, Plan]:
    """The run left out: with means in its place, or the product before it refit to make up for it."""
    bare = planner.completed(Plan(planner.model.digest, drop=tuple(b.id for b in run.gone)))
    ends = [run.before, *run.gone]
    names = [run.product.source, run.product.matrix.output, *(n for b in ends for n in (b.skip, b.value))]
    seen = values(planner.fit, list(dict.fromkeys(names)))
    wanted, x, y = target(run, seen), seen[run.product.source], seen[run.product.matrix.output]
    added = wanted - seen[run.before.skip] - (seen[run.before.value] - y)
    array = planner.weight(run.product.weight)
    weight = run.product.matrix.weight(array).astype(np.float64)
    tried: dict[str, list[Plan]] = {"merged": [], "refit": []}
    for strength in STRENGTHS:
        square = ridge(Moments.of(y, added), np.arange(y.shape[1]), np.eye(y.shape[1]), strength)
        whole = ridge(Moments.of(x, added), np.arange(x.shape[1]), weight, strength)
        for name, made, bias in (
            ("merged", weight @ square.weight, square.bias),
            ("refit", whole.weight, whole.bias),
        ):
            restored = run.product.matrix.restore(made.astype(np.float32), array.shape)
            intercepts = {run.product.matrix.output: bias.astype(np.float32)}
            tried[name].append(replace(bare, weights={run.product.weight: restored}, intercepts=intercepts))
    best = {name: min(plans, key=lambda p: planner.table(planner.gates.gated(p))) for name, plans in tried.items()}
    return {"dropped": bare, **best}


def mended(planner: Planner, run: Run, plan: Plan, *, all_of_it: bool) -> Plan:
    """The usual sweep, over everything or over what lies behind the run."""
    linears = find_linears(planner.model.graph, planner.structure)
    behind = linears if all_of_it else linears[1 + [x.node for x in linears].index(run.product.node) :]
    gone = {b.id for b in run.gone}
    behind = [x for x in behind if all_of_it or x.inside not in gone]
    found, _, _ = compensate(
        planner.gates, planner.fit, planner.held, planner.select, plan, behind, weights=planner.token_weights,
        held_weights=planner.held_weights, store=planner.refits,
    )  # fmt: skip
    return found


def kl(rows: Rows, planner: Planner, plan: Plan) -> float:
    """Mean KL of the class scores to the dense model's."""
    import torch

    states, total = (planner.gates.gated(planner.first), planner.gates.gated(plan)), 0.0
    (name,) = [v.name or "" for v in rows.interpreter.graph.outputs]
    for batch in rows.batches:
        dense, found = (
            torch.log_softmax(forward(rows.interpreter, batch.feeds, [name], s)[name].double(), -1) for s in states
        )
        total += float((dense.exp() * (dense - found)).sum())
    return total / len(rows.dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--unseen", type=int, default=1536)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    dense = models.load(asked.model)
    options = Options(Budget("flops", 0.5), rows=asked.rows + asked.unseen, seed=asked.seed)
    rows, _ = read_rows(dense, asked.calib, None, options)
    assert rows is not None
    learn, unseen = (replace(rows, examples=p) for p in (rows.examples[: asked.rows], rows.examples[asked.rows :]))
    planner = Planner(dense, analyze(dense), options, learn, shape_of(dense, {}, learn))
    judge, whole = Rows(planner.interpreter, unseen), planner.costs.total("flops")

    def told(*what: Any) -> None:
        print(" | ".join(f"{x:.4f}" if isinstance(x, float) else str(x) for x in what), flush=True)

    with numpy_on_one_thread():
        for layers in asked.layers:
            best: dict[str, tuple[float, Run, Plan]] = {}
            for run in runs(planner, layers):
                for name, plan in replaced(planner, run).items():
                    found = planner.table(planner.gates.gated(plan)), run, plan
                    told(layers, run.before.id, name, "rows that choose", found[0])
                    best[name] = min(best.get(name, found), found, key=lambda f: f[0])
            for name, (_, run, plan) in best.items():
                share = planner.costs.total("flops", plan) / whole
                after = mended(planner, run, plan, all_of_it=name == "dropped")
                told(layers, run.before.id, name, f"{share:.3f}", kl(judge, planner, plan), kl(judge, planner, after))
            chosen = planner.plan(share * whole)
            told(
                layers,
                "default search",
                f"{planner.costs.total('flops', chosen) / whole:.3f}",
                kl(judge, planner, chosen),
            )


if __name__ == "__main__":
    main()
