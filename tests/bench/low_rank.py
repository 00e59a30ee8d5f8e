"""Low rank as a level: two thin products in a matrix's place, against units cut at the same multiply-accumulates.

    python tests/bench/low_rank.py MODEL.onnx --calib calibration.jsonl

One layer's attention, or feed-forward layer, at a time keeps a share of its MACs: every matrix of it by the best rank
for its inputs (SVD of H^½W, activation-aware), or its heads, dimensions within rotated heads, or neurons cut and what
reads them refit. KL is taken on the rows of the calibration file behind the first `--rows`; a line a layer, and means.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnxprune.graph import model as models
from onnxprune.graph.plan import Budget, Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.linear_layers import Linear, find_linears
from onnxprune.pipeline.rows import read_rows, shape_of
from onnxprune.probe.forward import Rows, forward, grams
from onnxprune.search.options import Options
from onnxprune.search.planner import Planner
from onnxprune.search.scored_model import scored


def kl(rows: Rows, planner: Planner, plan: Plan) -> float:
    """Mean KL of the class scores to the dense model's."""
    import torch

    state, found = planner.gates.gated(plan), []
    (name,) = [v.name or "" for v in rows.interpreter.graph.outputs]
    for batch in rows.batches:
        dense, pruned = (
            torch.log_softmax(forward(rows.interpreter, batch.feeds, [name], s)[name].double(), -1)
            for s in (planner.gates.gated(planner.first), state)
        )
        found.append((dense.exp() * (dense - pruned)).sum(-1))
    return float(torch.cat(found).mean())


def of_rank(weight: np.ndarray, gram: np.ndarray, rank: int) -> np.ndarray:
    """The best approximation of a rank, W [n, m] on inputs with second moments H [n, n]."""
    values, vectors = np.linalg.eigh(gram / np.trace(gram))
    root = np.sqrt(np.maximum(values, 1e-9))
    left, sizes, right = np.linalg.svd((root[:, None] * vectors.T) @ weight, full_matrices=False)
    return (vectors / root) @ (left[:, :rank] * sizes[:rank]) @ right[:rank]


def thin(planner: Planner, linears: list[Linear], moments: Mapping[tuple[str, int], np.ndarray], share: float) -> Plan:
    """Every matrix at a share of its multiply-accumulates."""
    weights = {}
    for linear in linears:
        array = planner.weight(linear.weight)
        matrix = linear.matrix.weight(array).astype(np.float64)
        rank = int(share * matrix.size / sum(matrix.shape))
        found = of_rank(matrix, moments[linear.matrix.usage], rank)
        weights[linear.weight] = linear.matrix.restore(found.astype(np.float32), array.shape)
    return replace(planner.first, weights=weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--unseen", type=int, default=1536)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25])
    asked = parser.parse_args()
    dense = models.load(asked.model)
    options = Options(Budget("flops", 0.5), rows=asked.rows + asked.unseen)
    rows, _ = read_rows(dense, asked.calib, None, options)
    assert rows is not None
    learn, unseen = (replace(rows, examples=p) for p in (rows.examples[: asked.rows], rows.examples[asked.rows :]))
    planner = Planner(dense, analyze(dense), options, learn, shape_of(dense, {}, learn))
    judge, stage = Rows(planner.interpreter, unseen), scored(planner, planner.first, planner.scores)
    linears = [x for x in find_linears(dense.graph, planner.structure) if x.inside is not None]
    found = grams(planner.fit, [x.matrix for x in linears])
    moments = {usage: gram.matrix for usage, gram in found.items()}
    means: dict[str, list[float]] = {}
    for branch in dict.fromkeys(x.inside or "" for x in linears):
        own = [x for x in linears if x.inside == branch]
        sites = [s for s in planner.sites if s.group.branch == branch]
        for share in asked.keep:
            tried = {"low rank": thin(planner, own, moments, share)}
            for name, kinds in (("heads", ("heads",)), ("ranks", ("head_dims",)), ("neurons", ("neurons",))):
                some = [s for s in sites if s.group.kind in kinds]
                counts = {s.id: s.rows * round(share * s.group.size / s.rows) for s in some}
                if some:
                    tried[name] = stage.thinned(some, counts)
            told = {name: kl(judge, planner, plan) for name, plan in tried.items()}
            print(branch, share, {k: round(v, 5) for k, v in told.items()}, flush=True)
            for name, value in told.items():
                means.setdefault(f"{branch.split('.')[0]}, {share:g} of the MACs, {name}", []).append(value)
    for name, values in means.items():
        print(f"{name}: {np.mean(values):.4f}")


if __name__ == "__main__":
    main()
