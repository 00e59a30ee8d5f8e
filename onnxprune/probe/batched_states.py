"""Many gated copies of a batch, run as one batch from where their differences are all in the values.

What follows one site is the same graph with the same weights whatever the site's level is: the copies are stacked along
the batch, so that a dozen levels cost a dozen times the arithmetic but one time everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.data import Batch
from onnxprune.graph.plan import Structure
from onnxprune.graph.structure.sites import Site
from onnxprune.probe.forward import Rows, fetch
from onnxprune.probe.gates import Gated
from onnxprune.probe.interpreter import Interpreter

Values = Mapping[str, Any]
Distance = Callable[[int, Values], np.ndarray]
"""distance(batch index, outputs) -> [rows]."""


class Copies:
    """The suffix behind one site, for states that differ in that site alone.

    Args:
        site: whose readers, and whose branch's end, all states differ in.
        base: the state of everything else.
        wanted: outputs.
    """

    def __init__(self, rows: Rows, structure: Structure, site: Site, base: Gated, wanted: Sequence[str]) -> None:
        self.rows, self.structure, self.base, self.wanted = rows, structure, base, tuple(wanted)
        self.join = _join(rows.interpreter, site, self.wanted)
        self.live = rows.interpreter.schedule.live_before(self.join, self.wanted) if self.join else list(self.wanted)

    def distances(self, i: int, values: Values, states: Sequence[Gated], distance: Distance) -> np.ndarray:
        """Every state's divergence on the rows of batch `i`, from values known in front of the site: [states, rows]."""
        batch = self.rows.batches[i]
        heads = [self._run(values, self.live, state) for state in states]
        if not self.join:
            return np.stack([distance(i, head) for head in heads])
        own = len(batch) * max(self.rows.dataset.examples[row].tokens for row in batch.index)
        size = max(1, (self.rows.side_by_side or self.rows.max_tokens) // max(own, 1))
        if self.rows.dataset.max_batch is not None or self.structure.batch is None:
            size = 1
        found: list[np.ndarray] = []
        for start in range(0, len(heads), size):
            found += [distance(i, outputs) for outputs in self._outputs(batch, heads[start : start + size])]
        return np.stack(found)

    def _outputs(self, batch: Batch, heads: Sequence[Values]) -> Iterator[Values]:
        stacked = self._stacked(batch, heads) if len(heads) > 1 else None
        if stacked is None:
            yield from (self._run(head, self.wanted, self.base) for head in heads)
            return
        outputs = self._run(stacked, self.wanted, self.base)
        parts = {name: outputs[name].chunk(len(heads), self._axis(name) or 0) for name in self.wanted}
        yield from ({name: part[k] for name, part in parts.items()} for k in range(len(heads)))

    def _stacked(self, batch: Batch, heads: Sequence[Values]) -> dict[str, Any] | None:
        """The live values of all copies as those of one larger batch; None where the graph does not allow it."""
        import torch

        found: dict[str, Any] = {}
        counted: list[str] = []
        # Rows of inputs that are only looked up in (a mask laid flat) follow one another on an axis of their own.
        stray = any(self._axis(name) is None for name in batch.feeds if name not in self.rows.dataset.shared)
        for name in self.live:
            axis = self._axis(name)
            tensors = [head[name] for head in heads]
            if any(t is None for t in tensors):  # on the side that a condition left out
                if not all(t is None for t in tensors):
                    return None
                found[name] = None
            elif axis is not None:
                found[name] = torch.cat(tensors, axis)
            elif not all(t is tensors[0] or torch.equal(t, tensors[0]) for t in tensors):
                return None  # such as places that each copy chooses on its own
            elif name in batch.feeds:
                found[name] = self._repeated(name, tensors[0], len(heads))
            elif not tensors[0].is_floating_point() or (stray and not self._mixes_batch(name)):
                counted.append(name)  # sizes, and what is made from them: they know how many rows there are
            elif not self._mixes_batch(name):
                found[name] = tensors[0]
            else:
                return None
        if any(self._axis(name) is None for name in self.wanted):
            return None
        if counted:
            place = self.rows.interpreter.place
            feeds = {}
            for name, array in batch.feeds.items():
                feeds[name] = self._repeated(name, place(array), len(heads))
            found |= self._run(feeds, counted, self.base)
        return found

    def _repeated(self, name: str, feed: Any, times: int) -> Any:
        """An input's rows as often as there are copies; what all rows share, once."""
        import torch

        dataset = self.rows.dataset
        return feed if name in dataset.shared else torch.cat([feed] * times, dataset.row_axis(name))

    def _axis(self, name: str) -> int | None:
        """Where rows follow one another: the axis on which the batch is the outermost factor."""
        for axis, layout in enumerate(self.structure.layouts.get(name, ())):
            if len(layout) == 1 and layout[0] and layout[0][0] == self.structure.batch:
                return axis
        return None

    def _mixes_batch(self, name: str) -> bool:
        layouts = self.structure.layouts.get(name, ())
        return any(self.structure.batch in term for layout in layouts for term in layout)

    def _run(self, values: Values, outputs: Sequence[str], state: Gated) -> dict[str, Any]:
        return fetch(self.rows.interpreter, values, outputs, state)


def _join(interpreter: Interpreter, site: Site, wanted: Sequence[str]) -> str:
    """The first node behind all that a site's level changes; "" if there is none."""
    ends = {reader.node for reader in site.group.readers} | ({site.branch.add} if site.branch is not None else set())
    nodes = interpreter.schedule.needed((v.name or "" for v in interpreter.graph.inputs), wanted)
    last = max(i for i, node in enumerate(nodes) if node.name in ends)
    unit = interpreter.flow.unit(nodes[last])  # a loop is run as a whole
    return next((n.name or "" for n in nodes[last + 1 :] if interpreter.flow.unit(n) is not unit), "")
