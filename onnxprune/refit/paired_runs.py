"""Rows on their way through the dense and the pruned model at once: what a product is fed, and what it should give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxprune.graph.structure.linear_layers import Linear
from onnxprune.probe.forward import Rows, Walk, Weights
from onnxprune.probe.gates import Gated
from onnxprune.probe.second_moments import Pairs, drawn
from onnxprune.refit.solvers import Moments, Statistics, Tokens

ALL = slice(None)


class SideBySide:
    """The dense model (the teacher) and the pruned one (the student) in front of one product after another.

    Args:
        wanted: the outputs that the walks must still be able to reach.
        weights: of the rows' tokens, for the products that have some.
    """

    def __init__(self, rows: Rows, wanted: Sequence[str], weights: Weights | None = None) -> None:
        self.rows, self.weights = rows, weights or {}
        self.teacher, self.student = Walk(rows, wanted), Walk(rows, wanted)

    def moments(self, linear: Linear, state: Gated, inputs: Any = ALL, outputs: Any = ALL) -> Statistics:
        """Of (the student's inputs, the teacher's outputs) of a product over the tokens.

        Where it closes a residual branch, the target also makes up for how far the stream has drifted.

        Args:
            state: the student as it is.
            inputs, outputs: indices of those that count.
        """
        import torch

        skip = [linear.branch.skip] if linear.branch is not None else []
        self.teacher.to(linear.node, [*skip, linear.matrix.output])
        self.student.to(linear.node, [*skip, linear.source], state)
        pairs = Pairs()
        weights = self.weights.get(linear.node)
        for i, batch in enumerate(self.rows.batches):
            real = None if batch.real is None else torch.from_numpy(batch.real)
            teacher, student = self.teacher.values[i], self.student.values[i]
            with torch.inference_mode():
                x = linear.matrix.rows(student[linear.source], real).float()
                y = linear.matrix.written(teacher[linear.matrix.output], real).float()
                for name in skip:
                    y = y + linear.matrix.written(teacher[name] - student[name], real).float()
                weight = None if weights is None else weights[i]
                some = drawn(len(x), len(batch), len(self.rows.dataset)) if linear.matrix.spatial else None
                if some is not None:
                    x, y, weight = x[some], y[some], None if weight is None else weight[some]
                pairs.add(x[:, inputs], y[:, outputs], weight)
        few = pairs.few()
        if few is not None:
            return Tokens.of(*few)
        sxx, sx, sxy, sy, syy = pairs.sums()
        return Moments.from_sums(pairs.count, sx, sy, sxx, sxy, syy)
