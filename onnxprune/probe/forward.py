"""Running calibration rows through the interpreter: activations at readers, gradients, and cached cuts.

Everything a method may need of the data comes from here; no method runs a model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from onnxprune.data import Batch, Dataset, output_axes, rows_first
from onnxprune.graph import memory
from onnxprune.graph.finite import require
from onnxprune.graph.model import spec
from onnxprune.graph.put_away import Store
from onnxprune.graph.scores_behind import scores_behind
from onnxprune.graph.structure.reading_matrices import Matrix
from onnxprune.graph.values import dims, numeric_outputs
from onnxprune.probe import threads
from onnxprune.probe.divergence import Divergence, choose_for
from onnxprune.probe.engine import to_numpy
from onnxprune.probe.gates import Gated
from onnxprune.probe.interpreter import Interpreter, Usage
from onnxprune.probe.second_moments import Gram, drawn

NOTHING = Gated({}, {})


def forward(
    interpreter: Interpreter, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, state: Gated = NOTHING
) -> dict[str, Any]:
    """`Interpreter.run` of a gated state, where nothing is differentiated."""
    with interpreter.engine.forward():
        return interpreter.run(feeds, outputs=outputs, weights=state.weights, edit=state.edit)


def forward_together(
    interpreter: Interpreter,
    batches: Sequence[Mapping[str, Any]],
    outputs: Sequence[str] | None = None,
    state: Gated = NOTHING,
) -> list[dict[str, Any]]:
    """`forward` of several batches in one pass, in which each weight is read once."""
    with interpreter.engine.forward():
        edits = [state.edit] * len(batches)
        return interpreter.run_all(batches, outputs=outputs, weights=state.weights, edits=edits)


TOGETHER = 16
"""Batches that go through a graph side by side, where its weights are read for each pass anew."""


def side_by_side(interpreter: Interpreter, count: int) -> list[range]:
    """Which of some batches run together: each alone where all weights are held, several where they are not."""
    step = TOGETHER if interpreter.streams else 1
    return [range(i, min(i + step, count)) for i in range(0, count, step)]


def forward_all(
    interpreter: Interpreter, batches: Sequence[Mapping[str, Any]], outputs: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """`forward` of the graph as it is on several batches, each weight read as seldom as can be."""
    groups = side_by_side(interpreter, len(batches))

    def run(k: int) -> list[dict[str, Any]]:
        return forward_together(interpreter, [batches[i] for i in groups[k]], outputs)

    return [found for group in threads.each(interpreter, len(groups), run) for found in group]


def fetch(
    interpreter: Interpreter, values: Mapping[str, Any], names: Sequence[str], state: Gated = NOTHING
) -> dict[str, Any]:
    """Values by name: those that are known already, and the others computed from them."""
    missing = [n for n in names if n not in values or interpreter.schedule.repeats(n)]
    made = forward(interpreter, values, missing, state) if missing else {}
    return {n: made[n] if n in made else values[n] for n in names}


@dataclass
class Rows:
    """A set of rows, batched by length, with the dense model's outputs on them.

    Args:
        interpreter: of the dense graph.
        dataset: the rows.
        max_tokens: the most tokens in a batch; what bounds memory.
        given: the divergence to measure by, where other rows have chosen it.
        max_rows: the most rows in a batch.
        side_by_side: the most tokens of gated copies of a batch that run as one; as many as in a batch by default.
        fill: what shorter rows of a batch are filled up with (filling.py); None where rows of one length go together.
    """

    interpreter: Interpreter
    dataset: Dataset
    max_tokens: int = 4096
    given: Divergence | None = None
    max_rows: int = 64
    side_by_side: int | None = None
    fill: Mapping[str, int] | None = None

    @cached_property
    def batches(self) -> list[Batch]:
        if self.fill is not None:
            return list(self.dataset.filled_batches(self.fill, self.max_rows, self.max_tokens))
        return list(self.dataset.batches(max_rows=self.max_rows, max_tokens=self.max_tokens))

    @cached_property
    def outputs(self) -> list[dict[str, Any]]:
        """The dense model's outputs that count, batch by batch."""
        wanted = self.divergence.outputs
        run = forward_all(self.interpreter, [batch.feeds for batch in self.batches], wanted)
        found = [self.by_row(batch, outputs) for batch, outputs in zip(self.batches, run, strict=True)]
        for batch, outputs in zip(self.batches, found, strict=True):
            rows = [self.dataset.examples[i].source for i in batch.index]
            require({k: _array(v) for k, v in outputs.items()}, "the dense model", rows)
        return found

    @cached_property
    def _axes(self) -> Mapping[str, int]:
        graph = self.interpreter.graph
        inputs = [spec(v) for v in graph.inputs if v.name not in graph.initializers]
        return output_axes(inputs, {v.name or "": dims(v) or () for v in graph.outputs})

    def by_row(self, batch: Batch, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """A batch's outputs with its rows on the first axis."""
        return rows_first(outputs, len(batch), self._axes)

    @cached_property
    def divergence(self) -> Divergence:
        """How far outputs are from the dense ones; chosen by what they are, on some batches."""
        if self.given is not None:
            return self.given
        first = self.batches[:8]
        behind = scores_behind(self.interpreter.graph).values()
        names = [v.name or "" for v in behind] or numeric_outputs(self.interpreter.graph)
        run = forward_all(self.interpreter, [b.feeds for b in first], names)
        samples = [self.by_row(batch, outputs) for batch, outputs in zip(first, run, strict=True)]
        return choose_for(self.dataset, {n: [_array(found[n]) for found in samples] for n in names})


def _array(tensor: Any) -> np.ndarray:
    return to_numpy(tensor, single=True)


class Evaluator:
    """Mean divergence from the dense model over a set of rows, for any gated state.

    `from_here` starts from cached values in front of a node, so that only what follows runs.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __call__(self, gated: Gated) -> float:
        """Divergence per row, averaged."""
        return float(self.per_row(gated).mean())

    def per_row(self, gated: Gated) -> np.ndarray:
        """Divergence of every row, in batch order."""
        batches, _ = self.rows.batches, self.rows.outputs  # made once, before threads would each make them

        def run(i: int) -> np.ndarray:
            return self.from_here(i, batches[i].feeds, gated)

        return np.concatenate(threads.each(self.rows.interpreter, len(batches), run))

    def from_here(self, batch: int, values: Mapping[str, Any], gated: Gated) -> np.ndarray:
        """Divergence of a batch's rows when it runs gated from cached values."""
        return self.distance(batch, forward(self.rows.interpreter, values, self.wanted, gated))

    @cached_property
    def wanted(self) -> tuple[str, ...]:
        """The outputs that count."""
        return self.rows.divergence.outputs

    def distance(self, batch: int, found: Mapping[str, Any]) -> np.ndarray:
        """Divergence of a batch's rows, from the outputs that count."""
        import torch

        real = self.rows.batches[batch].real
        mask = None if real is None else torch.from_numpy(real)
        found = self.rows.by_row(self.rows.batches[batch], found)
        return np.asarray(self.rows.divergence(self.rows.outputs[batch], found, mask).double().cpu().numpy())


class Walk:
    """Rows on their way through a graph: per batch, the values that are known in front of one node after another."""

    def __init__(self, rows: Rows, wanted: Sequence[str]) -> None:
        self.rows = rows
        self.wanted = wanted
        place = rows.interpreter.place
        self.values: list[dict[str, Any]] = [{k: place(v) for k, v in b.feeds.items()} for b in rows.batches]
        self._start = list(self.values)

    def to(self, stop: str, extra: Sequence[str] = (), state: Gated = NOTHING) -> None:
        """Run on to just before a node; `extra` values are kept too, if they are behind it."""
        interpreter = self.rows.interpreter
        schedule = interpreter.schedule
        aside = not schedule.leads(stop, self.wanted)
        live = schedule.read_by(stop) if aside else schedule.live_before(stop, self.wanted)
        names = list(dict.fromkeys([*live, *extra]))

        def run(i: int) -> None:
            if aside:  # what it reads may have been passed by
                self.values[i] = {**self.values[i], **fetch(interpreter, self._start[i], names, state)}
            else:
                self.values[i] = fetch(interpreter, self.values[i], names, state)

        threads.each(interpreter, len(self.values), run)

    def peek(self, batch: int, name: str, state: Gated = NOTHING) -> Any:
        """A value a little further on, without moving there."""
        return fetch(self.rows.interpreter, self.values[batch], [name], state)[name]


def real_tokens(batch: Batch) -> Any:
    """A batch's mask of what is no padding [rows, tokens], as a tensor; None where nothing is."""
    import torch

    return None if batch.real is None else torch.from_numpy(batch.real)


Observer = Callable[[Any, Any], None]
"""Takes a tensor, and the mask of real tokens or None: once a batch, in a loop each turn, behind a choice or not."""


def record(
    rows: Rows,
    usages: Mapping[Usage, Observer],
    state: Gated = NOTHING,
    states: Mapping[str, Observer] | None = None,
) -> None:
    """One forward pass, node by node over all batches where weights are not held; functions get the tensor read there.

    They are called batch by batch and one at a time, also where several batches run at once.

    Args:
        states: the same of states of recurrences (`ops.states_of`).
    """
    import torch

    nodes = {node for node, _ in usages}
    ends = [next((v.name for v in n.outputs if v.name), "") for n in rows.interpreter.graph if n.name in nodes]
    wanted = (*ends, *(states or {}))
    groups = side_by_side(rows.interpreter, len(rows.batches))
    at_once = min(threads.count(rows.interpreter), len(groups)) == 1

    def run(k: int) -> list[Callable[[], None]]:
        waiting: list[Callable[[], None]] = []
        batches = [rows.batches[i] for i in groups[k]]
        edits = []
        for batch in batches:
            real = real_tokens(batch)
            told = {u: _observed(use, state.edit.get(u), real, at_once, waiting) for u, use in usages.items()}
            edits.append({**state.edit, **told})
        feeds = [batch.feeds for batch in batches]
        with torch.inference_mode():
            found = rows.interpreter.run_all(feeds, outputs=wanted, weights=state.weights, edits=edits)
        for values in found:
            for name, use in (states or {}).items():
                if values[name] is not None:  # a side of a choice that was not taken
                    waiting.append(partial(use, values[name], None))
        return waiting

    def take(waiting: list[Callable[[], None]]) -> None:
        with torch.inference_mode():
            while waiting:
                waiting.pop(0)()

    threads.pipelined(rows.interpreter, len(groups), run, take)


def _observed(
    use: Observer, before: Callable[[Any], Any] | None, real: Any, at_once: bool, waiting: list[Callable[[], None]]
) -> Callable[[Any], Any]:
    def edit(x: Any) -> Any:
        x = x if before is None else before(x)
        if at_once:
            use(x, real)
        else:
            waiting.append(partial(use, x, real))
        return x

    return edit


Weights = Mapping[str, Sequence[Any]]
"""Reader node -> per batch, [tokens] weights: how much an error written at that token matters."""


def grams(
    rows: Rows,
    matrices: Sequence[Matrix],
    state: Gated = NOTHING,
    weights: Weights | None = None,
    also: Mapping[Usage, Observer] | None = None,
    known: Mapping[Usage, Gram] | None = None,
    keep: Callable[[Usage, Gram], None] | None = None,
) -> dict[Usage, Gram]:
    """Gram matrices of what every reader reads, in one forward pass; tokens weighted where weights are given.

    Args:
        also: who else is told of what is read, in the same pass.
        known: those that need not be taken; there is no pass where nothing is left to take.
        keep: is handed each of the others as soon as it is complete.
    """
    known = known or {}
    every = {m.usage: m for m in matrices}
    matrices = [m for usage, m in every.items() if usage not in known]
    found = {m.usage: Gram() for m in matrices}
    if not matrices and not also:
        return {usage: known[usage] for usage in every}
    store = Store(memory.small_share())

    def adder(matrix: Matrix) -> Callable[[Any, Any], None]:
        gram = found[matrix.usage]
        own = weights.get(matrix.reader.node) if weights is not None and matrix.states is None else None
        once = rows.interpreter.schedule.once(matrix.node)
        left = len(rows.batches)
        sizes = [len(batch) for batch in rows.batches]
        seen = iter(range(len(sizes)))

        def add(x: Any, real: Any) -> None:
            nonlocal left
            # What a loop or a choice runs is seen many times or never: whose batch it is does not matter then.
            i = next(seen) if once else 0
            flat, weight = matrix.rows(x, real), own[i] if own is not None else None
            some = drawn(len(flat), sizes[i], len(rows.dataset)) if matrix.spatial else None
            gram.add(flat if some is None else flat[some], weight if some is None or weight is None else weight[some])
            left -= 1
            if not left and once:
                if keep is not None:
                    keep(matrix.usage, gram)
                gram.put_away(store)

        return add

    recurrences = {m.states: adder(m) for m in matrices if m.states is not None}
    used: dict[Usage, Observer] = {m.usage: adder(m) for m in matrices if m.states is None}
    for usage, use in (also or {}).items():
        used[usage] = _both(used[usage], use) if usage in used else use
    record(rows, used, state, recurrences)
    for matrix in matrices:
        if not rows.interpreter.schedule.once(matrix.node):
            found[matrix.usage].settle(len(matrix.units))
            if keep is not None:
                keep(matrix.usage, found[matrix.usage])
    return {usage: known[usage] if usage in known else found[usage] for usage in every}


def _both(first: Observer, second: Observer) -> Observer:
    def use(x: Any, real: Any) -> None:
        first(x, real)
        second(x, real)

    return use
