"""Gradients of weights, mini-batch by mini-batch, for scores that watch them over calibration steps.

The loss is the one of `probe.gate_gradients`: cross-entropy with the label, or with one drawn from the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from onnxprune.probe.forward import Rows
from onnxprune.probe.gate_gradients import gradients_of, sample_loss
from onnxprune.probe.gates import Gated
from onnxprune.probe.interpreter import Interpreter, Usage

STEP_ROWS = 16
"""The most calibration rows in a step."""


class Accumulator(Protocol):
    """A score of weights (or gates) that grows with every step; numpy arrays or torch tensors."""

    def add(self, weight: Any, gradient: Any) -> None:
        """Take in a step: weights and their gradient, of one shape."""

    @property
    def score(self) -> Any:
        """The score so far, in the weights' shape."""


def weight_gradients(
    rows: Rows, names: Sequence[str], *, seed: int = 0, epochs: int = 1
) -> Iterator[dict[str, tuple[Any, Any]]]:
    """Per step, weight name -> (weight, gradient of the mean loss of a mini-batch); steps in random order.

    A step has at most `STEP_ROWS` rows, and there are at least two where there are two rows: what scores learn from is
    how gradients vary.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    size = max(1, min(STEP_ROWS, len(rows.dataset) // 2))
    batches = list(rows.dataset.batches(max_rows=size, max_tokens=rows.max_tokens))
    for _ in range(epochs):
        for i in torch.randperm(len(batches), generator=generator).tolist():
            batch = batches[i]
            base = {n: rows.interpreter.weight(n) for n in names}
            free = {n: w.detach().float().requires_grad_() for n, w in base.items()}
            outputs = rows.interpreter.run(
                batch.feeds,
                outputs=rows.divergence.outputs,
                weights={n: w.to(base[n].dtype) for n, w in free.items()},
            )
            labels = [rows.dataset.examples[j].label for j in batch.index]
            loss: Any = sum(
                sample_loss(torch, outputs[m.output], str(m.kind), labels, generator) for m in rows.divergence.measures
            )
            found = gradients_of(loss / len(batch), list(free.values()))
            yield {
                n: (w.detach(), torch.zeros_like(w) if g is None else g)
                for (n, w), g in zip(free.items(), found, strict=True)
            }


def weight_scores(
    rows: Rows, names: Sequence[str], accumulator: Callable[[], Accumulator], *, seed: int = 0, epochs: int = 1
) -> dict[str, np.ndarray]:
    """What an accumulator makes of every weight: initializer name -> scores in the weight's own shape."""
    found = {n: accumulator() for n in names}
    for step in weight_gradients(rows, names, seed=seed, epochs=epochs):
        for name, (weight, gradient) in step.items():
            found[name].add(weight, gradient)
    return {n: np.asarray(a.score.double().cpu().numpy()) for n, a in found.items()}


def seen_through(rows: Rows, state: Gated) -> Rows:
    """The same rows for the model in a gated state: what runs on them has the state's weights and hooks."""
    return Rows(_Gated(rows.interpreter, state), rows.dataset, rows.max_tokens, rows.divergence)


class _Gated(Interpreter):
    """An interpreter that always computes as if a plan were carried out."""

    def __init__(self, dense: Interpreter, state: Gated) -> None:
        vars(self).update(vars(dense))  # the same graph, weights and schedules
        self._state = state

    def weight(self, name: str) -> Any:
        return self._state.weights[name] if name in self._state.weights else super().weight(name)

    def run(self, feeds: Any, *, outputs: Any = None, weights: Any = None, edit: Any = None) -> dict[str, Any]:
        merged = {**self._state.weights, **(weights or {})}
        hooks: dict[Usage, Callable[[Any], Any]] = dict(self._state.edit)
        for usage, then in (edit or {}).items():
            hooks[usage] = _then(hooks[usage], then) if usage in hooks else then
        return super().run(feeds, outputs=outputs, weights=merged, edit=hooks)


def _then(first: Callable[[Any], Any], then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: then(first(x))
