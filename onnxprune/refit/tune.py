"""Self-distillation of what is left: the pruned graph learns from the dense one, on the calibration rows, no labels.

Least squares mends one product after another; here all of them move at once, by gradients of what the outputs and the
residual stream differ in. It is the cut graph that learns, which is as much faster as it is smaller, and what it learns
is written back into the plan, in the shapes that weights had. The rows that judge decide whether it stands.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import rewrite
from onnxprune.graph.axes import Layout, flat_order
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Plan, Structure
from onnxprune.graph.quantised import Quantised
from onnxprune.probe.engine import cast
from onnxprune.probe.forward import Evaluator, Rows, forward, real_tokens
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter

logger = logging.getLogger(__name__)

RATE = 1e-5
"""Adam's rate at its highest. A few hundred rows are soon known by heart: at more, mended weights only get worse on
other rows."""
WARM = 0.05
"""Share of the time in which the rate rises; it falls to nothing over the rest."""
STEP_TOKENS = 512
"""Tokens that a step learns from, at least."""
LOOKS = 8
"""How often the held-out rows are asked while there is time."""
FEATURES = 2**28
"""Bytes of the dense model's residual stream that are kept to be learnt from; of more, some of its values are."""

MATRICES = frozenset(("MatMul", "Gemm", "Conv"))
VECTORS = MATRICES | {"Add", "Mul", "LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization"}
"""Operators whose constant operands learn: matrices of the first, vectors (biases, gains) of both."""


@dataclass(frozen=True)
class Tuned:
    """What tuning did.

    Attributes:
        plan: the tuned plan, or the one given where the rows that judge do not bear it out.
        steps: of the optimiser.
        before, after: divergence on the rows that judge, of the plan given and of this one.
    """

    plan: Plan
    steps: int
    before: float
    after: float


def tune(
    model: Model,
    structure: Structure,
    gates: Gates,
    rows: Rows,
    held: Rows,
    judge: Evaluator,
    plan: Plan,
    seconds: float,
    *,
    seed: int = 0,
    rate: float = RATE,
    progress: Callable[[int, int], None] | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Tuned:
    """The plan with its surviving weights, biases and gains tuned for some time.

    Args:
        model, structure: the dense one.
        gates: of the dense model, in the bases that the plan counts in.
        rows: to learn from.
        held: stop it early: of what they were asked about, the best is taken.
        judge: over rows that did neither; whether it is taken at all.
        plan: complete.
        now: seconds that have passed since some time or other.
    """
    import torch

    student = _Student(model, structure, gates, plan)
    stream = _Stream(rows, student)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(list(student.leaves.values()), lr=rate)
    best, lowest = student.learnt(), student.divergence(held)
    start, looked, steps = now(), 0, 0
    loss = _Loss(rows, student, stream)
    for batches in _rounds(rows, generator):
        share = (now() - start) / max(seconds, 1e-9)
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * pace(share)
        optimizer.zero_grad()
        for i in batches:
            (loss.of(i) / len(batches)).backward()
        optimizer.step()
        steps += 1
        if progress is not None:
            progress(min(int(100 * share), 99), 100)
        if share * LOOKS >= looked + 1:
            looked = int(share * LOOKS)
            best, lowest = student.better(held, best, lowest)
    best, lowest = student.better(held, best, lowest)
    found = student.plan(best)
    before, after = (judge.per_row(gates.gated(p)) for p in (plan, found))
    logger.info("tuning: divergence %.5f, after %d steps %.5f", before.mean(), steps, after.mean())
    worse = not after.mean() < before.mean()
    if worse:
        found, after = plan, before
    return Tuned(found, steps, float(before.mean()), float(after.mean()))


def pace(share: float) -> float:
    """Of the highest rate, what is left at a share of the time: a short rise, and a fall to nothing. [0, 1]"""
    return min(share / WARM, (1 - share) / (1 - WARM))


class _Student:
    """The graph that a plan makes, and those of its weights that learn.

    Attributes:
        leaves: initializer of the cut graph -> tensor that learns.
    """

    def __init__(self, model: Model, structure: Structure, gates: Gates, plan: Plan) -> None:
        self.structure, self.gates, self.start = structure, gates, plan
        graph = rewrite.apply(model, structure, plan).graph
        self.interpreter = Interpreter(graph, gates.interpreter.device)
        self.values = {v.name for n in graph for v in n.outputs}
        added = {f"{name}_intercept": name for name in plan.intercepts}
        self.intercepts = {n: added[n] for n in graph.initializers if n in added}
        names = [n for n, v in graph.initializers.items() if _learns(v) and (n in structure.layouts or n in added)]
        self.first = {n: self.interpreter.weight(n).detach().float().clone() for n in names}
        self.leaves = {n: tensor.clone().requires_grad_() for n, tensor in self.first.items()}

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """With the weights as they are; gradients reach them."""
        weights = {n: cast(leaf, self.interpreter.weight(n)) for n, leaf in self.leaves.items()}
        return self.interpreter.run(feeds, outputs=outputs, weights=weights)

    def divergence(self, rows: Rows) -> float:
        """Mean over rows."""
        import torch

        found = []
        with torch.no_grad():
            for i, batch in enumerate(rows.batches):
                outputs = rows.by_row(batch, self.run(batch.feeds, rows.divergence.outputs))
                found.append(rows.divergence(rows.outputs[i], outputs, real_tokens(batch)))
        return float(torch.cat(found).mean())

    def learnt(self) -> dict[str, Any]:
        """How far the weights have moved."""
        return {n: (leaf.detach() - self.first[n]) for n, leaf in self.leaves.items()}

    def better(self, held: Rows, best: dict[str, Any], lowest: float) -> tuple[dict[str, Any], float]:
        """The best so far, and its divergence on held-out rows."""
        value = self.divergence(held)
        return (self.learnt(), value) if value < lowest else (best, lowest)

    def plan(self, learnt: Mapping[str, Any]) -> Plan:
        """The plan given, with what was learnt put where it belongs in the weights' own shapes."""
        masks, orders = self.start.masks(self.structure), self.start.orders(self.structure)
        weights, intercepts = dict(self.start.weights), dict(self.start.intercepts)

        def places(layouts: Sequence[Layout]) -> tuple[np.ndarray, ...]:
            return tuple(flat_order(layout, masks, orders, self.structure.sizes) for layout in layouts)

        for name, change in learnt.items():
            moved = change.cpu().numpy()
            if name in self.intercepts:
                value = self.intercepts[name]
                vector = np.array(intercepts[value], dtype=np.float32)
                last = self.structure.layouts[value][-1:]  # of the other axes no size is known
                vector[places(last)] += moved.reshape(-1)
                intercepts[value] = vector
                continue
            array = np.array(self.gates.weight(self.start, name), dtype=np.float32)
            array[np.ix_(*places(self.structure.layouts[name]))] += moved
            weights[name] = array
        return replace(self.start, weights=weights, intercepts=intercepts)


class _Stream:
    """The dense model's residual stream on the rows, where branches end in the student's graph, too.

    Attributes:
        names: of its values, as many as memory allows, spread over the depth.
    """

    def __init__(self, rows: Rows, student: _Student) -> None:
        graph = rows.interpreter.graph
        ends = {b.add for b in student.structure.branches}
        masks = student.start.masks(student.structure)
        names = [v.name or "" for n in graph if n.name in ends for v in n.outputs[:1] if v.name in student.values]
        names = [n for n in names if not _narrowed(student.structure, masks, n)]
        self.targets: list[dict[str, Any]] = [{} for _ in rows.batches]
        if not names:
            self.names: tuple[str, ...] = ()
            return
        one = forward(rows.interpreter, rows.batches[0].feeds, names)
        share = len(rows.batches[0]) / max(len(rows.dataset), 1)
        each = max(t.nbytes for t in one.values()) / max(share, 1e-9)
        stride = -(-len(names) * int(each) // FEATURES) or 1
        self.names = tuple(names[::-1][:: max(stride, 1)][::-1])
        for i, batch in enumerate(rows.batches):
            found = forward(rows.interpreter, batch.feeds, self.names)
            self.targets[i] = {n: found[n].float().clone() for n in self.names}  # gradients may pass by copies alone


class _Loss:
    """What is made small: the outputs' divergence and the stream's distance, each relative to what it is at first."""

    def __init__(self, rows: Rows, student: _Student, stream: _Stream) -> None:
        import torch

        self.rows, self.student, self.stream = rows, student, stream
        with torch.no_grad():
            parts = [self._parts(i) for i in range(min(len(rows.batches), LOOKS))]
        self.first = [max(float(sum(p[k] for p in parts)) / len(parts), 1e-12) for k in (0, 1)]

    def of(self, batch: int) -> Any:
        """Of one batch."""
        outputs, features = self._parts(batch)
        return outputs / self.first[0] + features / self.first[1]

    def _parts(self, i: int) -> tuple[Any, Any]:
        rows, batch, names = self.rows, self.rows.batches[i], self.stream.names
        found = self.student.run(batch.feeds, (*rows.divergence.outputs, *names))
        outputs = rows.by_row(batch, {n: found[n] for n in rows.divergence.outputs})
        own = rows.divergence(rows.outputs[i], outputs, real_tokens(batch)).mean()
        far = [_distance(self.stream.targets[i][n], found[n], batch) for n in names]
        return own, sum(far) / max(len(far), 1) if far else own.detach() * 0


def _distance(dense: Any, found: Any, batch: Any) -> Any:
    """Relative squared distance of two streams, padding left out."""
    real = real_tokens(batch)
    found = found.float()
    if real is not None and tuple(dense.shape[:2]) == tuple(real.shape):
        dense, found = dense[real], found[real]
    return (dense - found).square().sum() / dense.square().sum().clamp_min(1e-12)


def _rounds(rows: Rows, generator: Any) -> Iterator[list[int]]:
    """Batches by their numbers, some for each step, in an order that is drawn anew every time all have been there."""
    import torch

    if not rows.batches:
        return
    while True:
        step, tokens = [], 0
        for i in torch.randperm(len(rows.batches), generator=generator).tolist():
            step.append(i)
            tokens += sum(rows.dataset.examples[row].tokens for row in rows.batches[i].index)
            if tokens >= STEP_TOKENS:
                yield step
                step, tokens = [], 0
        if step:
            yield step


def _learns(value: ir.Value) -> bool:
    """Whether an initializer is a matrix, a bias or a gain: what a layer learns, and no table and no constant."""
    tensor = value.const_value
    if tensor is None or isinstance(tensor, Quantised) or not tensor.dtype.is_floating_point() or tensor.size < 2:
        return False
    kinds = {node.op_type for node, _ in value.uses()}
    return bool(kinds) and kinds <= (MATRICES if len(tensor.shape) > 1 else VECTORS)


def _narrowed(structure: Structure, masks: Mapping[int, Any], name: str) -> bool:
    return any(
        len(flat_order(layout, masks, {}, structure.sizes)) != size
        for layout in structure.layouts.get(name, ())[-1:]
        if (size := len(flat_order(layout, {}, {}, structure.sizes))) < 10**9
    )
