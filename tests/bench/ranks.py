"""Dimensions within heads: how far outputs move when all layers keep r of each head's, by basis.

    python tests/bench/ranks.py MODEL.onnx --calib calibration.jsonl

Nothing else is cut, nothing is searched; the KL is taken on the rows of the calibration file behind the first `--rows`.
Queries and keys are cut without mending (their order alone, and the basis), values with least squares in what reads
them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from onnxprune.graph import model as models
from onnxprune.graph.plan import Budget, Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.pipeline.rows import read_rows, shape_of
from onnxprune.probe.forward import Rows, forward
from onnxprune.score.rotation import Rotated
from onnxprune.search.options import Options
from onnxprune.search.planner import Planner
from onnxprune.search.scored_model import scored


def kl(rows: Rows, planner: Planner, plan: Plan) -> float:
    """Mean KL of the class scores to the dense model's."""
    import torch

    state, total, count = planner.gates.gated(plan), 0.0, 0
    (name,) = [v.name or "" for v in rows.interpreter.graph.outputs]
    for batch in rows.batches:
        dense = torch.log_softmax(forward(rows.interpreter, batch.feeds, [name])[name].double(), -1)
        found = torch.log_softmax(forward(rows.interpreter, batch.feeds, [name], state)[name].double(), -1)
        total += float((dense.exp() * (dense - found)).sum())
        count += len(dense)
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--unseen", type=int, default=1536, help="rows behind those to take the KL on")
    parser.add_argument("--keep", nargs="+", type=int, default=[24, 16, 8], help="dimensions a head")
    options = parser.parse_args()
    dense = models.load(options.model)
    structure = analyze(dense)
    every = Options(Budget("flops", 0.5), rows=options.rows + options.unseen, units=("head_dims",))
    rows, _ = read_rows(dense, options.calib, None, every)
    assert rows is not None
    learn, unseen = (
        replace(rows, examples=part) for part in (rows.examples[: options.rows], rows.examples[options.rows :])
    )
    for basis, kind in (("chosen", Chosen), ("rotated", Planner)):
        planner = kind(dense, structure, every, learn, shape_of(dense, {}, learn))
        judge = Rows(planner.interpreter, unseen)
        stage = scored(planner, planner.first, planner.scores)
        for side in ("queries and keys", "values"):
            sites = [s for s in planner.sites if bool(s.matrices) == (side == "values")]
            for keep in options.keep:
                plan = stage.thinned(sites, {s.id: s.rows * keep for s in sites})
                print(
                    f"{side}, {keep} of {sites[0].group.shape[-1]}, {basis}: {kl(judge, planner, plan):.4f}", flush=True
                )


class Chosen(Planner):
    """Dimensions in the basis that the model was trained in."""

    def _rotate(self, known: Rotated | None = None) -> None:
        pass


if __name__ == "__main__":
    main()
