"""Rows on their way through the dense and the pruned model at once: what a product is fed, and what it should give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.graph.structure.chosen import chosen_values
from onnxprune.graph.structure.linear_layers import Linear
from onnxprune.probe.forward import Rows, Walk, Weights, real_tokens
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
        self._chosen = chosen_values(rows.interpreter.graph)

    def moments(self, linear: Linear, state: Gated, inputs: Any = ALL, outputs: Any = ALL) -> Statistics:
        """Of (the student's inputs, the teacher's outputs) of a product over the tokens.

        Where what the models compute decides which tokens it gets (`chosen_values`), of the teacher's inputs.
        Where it closes a residual branch, the target also makes up for how far the stream has drifted.

        Args:
            state: the student as it is.
            inputs, outputs: indices of those that count.
        """
        found = self.moments_of([linear], state, inputs, [outputs])
        assert found is not None, f"node {linear.node}: no row runs it"
        return found

    def moments_of(
        self, linears: Sequence[Linear], state: Gated, inputs: Any, outputs: Sequence[Any]
    ) -> Statistics | None:
        """The same of several products that read the same, none of which closes a branch: outputs side by side.

        Rows that do not run them, in both models, are left out; of none there are no moments.
        """
        import torch

        first = linears[0]
        skip = [first.branch.skip] if first.branch is not None else []
        chosen = first.source in self._chosen  # the student may have chosen others: nothing of its own belongs beside
        written = [linear.matrix.output for linear in linears]
        # Behind the product, what the teacher has read there is let go: of a feed-forward's, four times what it wrote.
        stop = first.node if chosen else self._behind(written) or first.node
        self.teacher.to(stop, [*skip, *([first.source] if chosen else []), *written])
        self.student.to(first.node, [*skip, first.source], state)
        pairs = Pairs()
        weights = self.weights.get(first.node)
        for i, batch in enumerate(self.rows.batches):
            real = real_tokens(batch)
            teacher, student = self.teacher.values[i], self.student.values[i]
            source = (teacher if chosen else student)[first.source]
            fed = [source, *(teacher[linear.matrix.output] for linear in linears)]
            if any(value is None for value in fed):
                continue  # on the side of a choice that is not taken
            with torch.inference_mode():
                x = first.matrix.rows(source, real).float()
                parts = []
                for linear, some in zip(linears, outputs, strict=True):
                    y = linear.matrix.written(teacher[linear.matrix.output], real).float()
                    for name in [] if chosen else skip:
                        y = y + linear.matrix.written(teacher[name] - student[name], real).float()
                    parts.append(_chosen(y, some))
                y = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
                weight = None if weights is None else weights[i]
                some = drawn(len(x), len(batch), len(self.rows.dataset)) if first.matrix.spatial else None
                if some is not None:
                    x, y, weight = x[some], y[some], None if weight is None else weight[some]
                pairs.add(_chosen(x, inputs), y, weight)
        if not pairs.count:
            return None
        few = pairs.few()
        if few is not None:
            return Tokens.of(*few)
        sxx, sx, sxy, sy, syy = pairs.sums()
        return Moments.from_sums(pairs.count, sx, sy, sxx, sxy, syy, take=True)

    def _behind(self, written: Sequence[str]) -> str | None:
        """The node that comes when some values have been made; None where they are the last, or on no way there."""
        interpreter = self.rows.interpreter
        nodes = interpreter.schedule.needed((v.name or "" for v in interpreter.graph.inputs), self.teacher.wanted)
        made = [i for i, node in enumerate(nodes) if any(v.name in written for v in node.outputs)]
        return next((node.name for node in nodes[made[-1] + 1 :]), None) if made else None

    def alike(self, first: Linear, other: Linear) -> bool:
        """Whether two products are fitted on the same tokens of the same value, so that they can be fitted together."""
        weighed = self.weights.get(first.node) is not None or self.weights.get(other.node) is not None
        closes = first.branch is not None or other.branch is not None
        same = first.source == other.source and first.matrix.reader.axis == other.matrix.reader.axis
        return same and not weighed and not closes and not (first.matrix.spatial or other.matrix.spatial)


def _chosen(values: Any, places: Any) -> Any:
    """Columns of some values [tokens, n]: all of them in their order are not copied."""
    import torch

    if isinstance(places, slice):
        return values[:, places]
    if len(places) == values.shape[1] and np.array_equal(places, np.arange(len(places))):
        return values
    return values.index_select(1, torch.as_tensor(places, device=values.device))
