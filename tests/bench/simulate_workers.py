"""What a sweep takes on 1 to 1,000 workers, for models of 110 M to 70 B parameters, by task times that were measured.

    python tests/bench/workers.py exports/sst2 --calib rows.jsonl --times times.json
    python tests/bench/simulate_workers.py times.json

Every task's processor time on the measured model is split into what grows with parameters × tokens (products, forward
and backward) and what grows with width³ (factorisations), by counting both; the rates that come out are taken to hold
for larger models. Then the tasks of a sweep are handed out as `pipeline.fleet` does: orders of units, one a method;
rows of the damage table, one a site and method; plans, one a budget and method, behind which the files are written one
by one, where the sweep was started. What is assumed, and not measured, are the constants below.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

NETWORK = 1.25e9
"""Bytes a second that one machine sends or receives: ten gigabit."""
SHARED = 10e9
"""Bytes a second that a shared file system, or an object store, hands out in all."""
CORES = 16
"""Of a worker's machine, each as fast as the measured one, together 0.8 times that."""
SPEED = 0.8 * CORES
LEVELS = 10
"""Of a row of the damage table, on average; each runs half of the graph."""
ROW_TOKENS = (512, 2048, 9e10)
"""Fewest and most tokens of a level, and the products that it may cost (measure.batch_sizes)."""
START = 6.0
"""Seconds until a process is there and its libraries are imported."""


@dataclass(frozen=True)
class Shape:
    """A model's sizes: parameters of its layers, layers, their width and the inner width; bytes of its file."""

    name: str
    params: float
    layers: int
    width: int
    inner: int
    nbytes: float


SHAPES = (
    Shape("110 M", 85e6, 12, 768, 3072, 0.44e9),
    Shape("1.1 B", 0.97e9, 22, 2048, 5632, 4.4e9),
    Shape("7 B", 6.5e9, 32, 4096, 11008, 27e9),
    Shape("70 B", 69e9, 80, 8192, 28672, 280e9),
)
WORKERS = (1, 2, 4, 10, 30, 100, 300, 1000)


@dataclass(frozen=True)
class Tasks:
    """Seconds of a sweep's tasks on one worker.

    Attributes:
        load: making a planner of a model that is there: once a worker.
        moments: second moments and token weights of the dense model: once a worker.
        order: one method's.
        row: one site's; plan: one budget's, with its validation; finish: its file, checked and written.
    """

    load: float
    moments: float
    order: float
    row: float
    plan: float
    finish: float
    rows: int


def cubes(layers: int, width: int, inner: int) -> float:
    """Multiplications of factorising what every layer's matrices read."""
    return layers * (3 * width**3 + inner**3)


def scaled(told: dict[str, Any], shape: Shape, tokens: float) -> Tasks:
    """Tasks of a larger model on as many tokens to learn from.

    Args:
        told: what `workers.py --times` wrote.
    """
    small = Shape("measured", told["macs"] / told["tokens_of_shape"], told["layers"], 384, 1536, told["bytes"])
    before = told["fit_tokens"]
    per_product = told["order"][0] / (small.params * before)  # forward, backward and moments: seconds a product
    # Of a plan, products take what a scoring without its backward pass does; the rest are factorisations.
    products = 0.5 * per_product * small.params * before
    per_cube = max(mean(told["plan"]) - products, 0.1) / cubes(small.layers, small.width, small.inner)
    moved = per_product * shape.params
    fewest, most, macs = ROW_TOKENS
    of_level = min(max(macs / shape.params, fewest), most)
    small_level = min(max(macs / small.params, fewest), most)
    row = mean(told["row"]) * (shape.params * of_level) / (small.params * min(small_level, told["rows"] * 13 * 0.2))
    heavier = shape.nbytes / small.nbytes
    return Tasks(
        load=told["open"] * shape.layers / small.layers / 2 + shape.nbytes / NETWORK,
        moments=moved * tokens / SPEED,
        order=0.3 * moved * tokens / SPEED,
        row=(row + per_cube * (shape.inner**3 + shape.width**3) / 4) / SPEED,
        plan=(0.5 * moved * tokens + per_cube * cubes(shape.layers, shape.width, shape.inner)) / SPEED,
        finish=mean(told["finish"]) * heavier / SPEED + 2 * shape.nbytes / NETWORK,
        rows=2 * shape.layers,
    )


def waves(seconds: Sequence[float], free: list[float]) -> list[float]:
    """When tasks end that are handed to whichever worker is free first; `free` is moved on."""
    ends = []
    heapq.heapify(free)
    for taken in seconds:
        end = heapq.heappop(free) + taken
        heapq.heappush(free, end)
        ends.append(end)
    return ends


def sweep(
    tasks: Tasks, shape: Shape, workers: int, methods: int, budgets: int
) -> tuple[float, float, dict[str, float]]:
    """(wall time, bytes moved, seconds of each phase)."""
    most = methods * tasks.rows
    begun = min(workers, max(most, methods * budgets))  # who gets no task loads nothing
    arrive = START + max(shape.nbytes / NETWORK, begun * shape.nbytes / SHARED) + tasks.load - shape.nbytes / NETWORK
    free = [arrive] * begun
    # Whoever is first at a method also collects the moments, which every later task of that worker has.
    orders = waves([tasks.order + tasks.moments] * min(methods, begun) + [tasks.order] * max(methods - begun, 0), free)
    free = [max(t, *orders) for t in free]
    fresh = max(begun - methods, 0)
    free = sorted(free)[: begun - fresh] + [t + tasks.moments for t in sorted(free)[begun - fresh :]]
    rows = waves([tasks.row] * most, free)
    free = [max(t, *rows) for t in free]
    plans = sorted(waves([tasks.plan] * (methods * budgets), free))
    moved = begun * shape.nbytes + methods * budgets * shape.nbytes
    written = 0.0
    for end in plans:  # a plan's weights are received, and its file written, one after another
        written = max(written, end) + tasks.finish
    phases = {
        "start": arrive, "orders": max(orders) - arrive, "rows": max(rows) - max(orders),
        "plans": plans[-1] - max(rows), "writing": written - plans[-1],
    }  # fmt: skip
    return written, moved, phases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", type=Path)
    parser.add_argument("--tokens", type=float, default=16384, help="To learn from: rows × their length.")
    parser.add_argument("--methods", type=int, default=3)
    parser.add_argument("--budgets", type=int, default=5)
    args = parser.parse_args()
    told = json.loads(args.times.read_text())
    print("| parameters | workers | wall time | × one worker | moved | start, orders, rows, plans, writing (%) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for shape in SHAPES:
        tasks = scaled(told, shape, args.tokens)
        alone = sweep(tasks, shape, 1, args.methods, args.budgets)[0]
        for workers in WORKERS:
            wall, moved, phases = sweep(tasks, shape, workers, args.methods, args.budgets)
            shares = ", ".join(f"{100 * s / wall:.0f}" for s in phases.values())
            print(f"| {shape.name} | {workers} | {_time(wall)} | {alone / wall:.1f} | {_size(moved)} | {shares} |")


def _time(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _size(count: float) -> str:
    return f"{count / 1e12:.1f} TB" if count >= 1e12 else f"{count / 1e9:.0f} GB"


if __name__ == "__main__":
    main()
