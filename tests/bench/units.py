"""Kinds of units at equal FLOPs: how far a classifier's outputs move on rows that its plans have not seen.

    python tests/bench/units.py MODEL.onnx --calib calibration.jsonl --units heads,neurons,blocks \
        heads,neurons,blocks,head_ranks --budgets 0.6 0.5 0.4 0.3 0.2 --seeds 0 1 2

KL is taken on the rows of the calibration file behind the first `--rows`, and on those of `--judge`, where given.
Nothing is written. One line of JSON a plan; lines that are in the output file already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data import Batch, Dataset
from onnxprune.graph import model as models
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Budget, Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.pipeline.rows import read_rows, shape_of
from onnxprune.probe.forward import NOTHING, Rows, forward
from onnxprune.probe.gates import Gated
from onnxprune.refit.solvers.linalg import numpy_on_one_thread
from onnxprune.search.options import Options
from onnxprune.search.planner import Planner
from onnxprune.search.units_then_zeros import carry_out


def moved(planner: Planner, dataset: Dataset, plan: Plan, known: list[Any] | None = None) -> dict[str, float]:
    """Mean KL to the dense model's class scores, rows that change class, and points of accuracy against dense.

    Args:
        known: the dense model's scores batch by batch, filled where it is empty: they are the same for every plan.
    """
    import torch

    rows = Rows(planner.interpreter, dataset)
    (name,) = [v.name or "" for v in planner.model.graph.outputs]

    def scores(batch: Batch, gated: Gated) -> Any:
        return torch.log_softmax(forward(rows.interpreter, batch.feeds, [name], gated)[name].double(), -1)

    dense = [] if known is None else known
    if not dense:
        dense += [scores(batch, NOTHING) for batch in rows.batches]
    state = planner.gates.gated(plan)
    kl, flips, right, was = 0.0, 0, 0, 0
    for batch, before in zip(rows.batches, dense, strict=True):
        after = scores(batch, state)
        kl += float((before.exp() * (before - after)).sum())
        chosen, now = before.argmax(-1), after.argmax(-1)
        flips += int((chosen != now).sum())
        labels = torch.tensor([int(dataset.examples[i].label or 0) for i in batch.index])
        was, right = was + int((chosen == labels).sum()), right + int((now == labels).sum())
    count = len(dataset.examples)
    return {"kl": kl / count, "flips": flips / count, "points": 100 * (right - was) / count}


def shapes(plan: Plan, planner: Planner) -> Mapping[str, Sequence[int]]:
    """What each site of a kind keeps."""
    found: dict[str, list[int]] = {}
    for site in planner.sites:
        gone = site.group.branch in plan.drop
        kept = 0 if gone else len(plan.keep.get(site.id, range(site.group.size)))
        inner = site.group.kind == "head_dims"
        name = ("values" if site.matrices else "queries and keys") if inner else site.group.kind
        found.setdefault(name, []).append(kept // site.rows)
    return found


def measured(
    model: Model,
    learn: Dataset,
    judges: Mapping[str, Dataset],
    options: Options,
    budgets: Sequence[float],
    dense: Mapping[str, list[Any]],
) -> Any:
    """A line for each budget, the largest first.

    Args:
        dense: what `moved` knows of the rows of each judge.
    """
    start = time.process_time()
    planner = Planner(model, analyze(model), options, learn, shape_of(model, {}, learn))
    for budget in sorted(budgets, reverse=True):
        with numpy_on_one_thread():
            plan = carry_out(planner, Budget("flops", budget))
        spent, start = time.process_time() - start, time.process_time()
        told = {name: moved(planner, rows, plan, dense[name]) for name, rows in judges.items()}
        yield {
            "units": ",".join(options.units), "budget": budget, "seed": options.seed, "seconds": round(spent),
            "stages": {k: round(v) for k, v in planner.clock.seconds.items()},
            "flops": planner.costs.total("flops", plan) / planner.costs.total("flops"),
            **told, "kept": shapes(plan, planner),
        }  # fmt: skip
        start = time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--judge", type=Path, nargs="*", default=[])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--unseen", type=int, default=1536)
    parser.add_argument("--units", nargs="+", default=["auto"])
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.6, 0.5, 0.4, 0.3, 0.2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--round-to", type=int)
    parser.add_argument("--output", type=Path, default=Path("units.jsonl"))
    asked = parser.parse_args()
    model = models.load(asked.model)
    settings = Options(Budget("flops", 0.5), rows=asked.rows + asked.unseen, round_to=asked.round_to)
    rows, _ = read_rows(model, asked.calib, None, settings)
    assert rows is not None
    learn = replace(rows, examples=rows.examples[: asked.rows])
    judges = {"unseen": replace(rows, examples=rows.examples[asked.rows :])}
    for path in asked.judge:
        more = read_rows(model, None, path, settings)[1]
        assert more is not None
        judges[path.stem] = more
    lines = asked.output.read_text().splitlines() if asked.output.exists() else []
    done = {(x["units"], x["budget"], x["seed"]) for x in map(json.loads, lines)}
    dense: dict[str, list[Any]] = {name: [] for name in judges}
    for seed in asked.seeds:
        for units in asked.units:
            left = [b for b in asked.budgets if (units, b, seed) not in done]
            options = replace(settings, units=tuple(units.split(",")), seed=seed, rows=asked.rows)
            for line in measured(model, learn, judges, options, left, dense) if left else ():
                with asked.output.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(
                    json.dumps({**line, "kept": {k: np.array(v).tolist() for k, v in line["kept"].items()}}), flush=True
                )


if __name__ == "__main__":
    main()
