"""What a method needs of the data, gathered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.graph.plan import Ranking, Structure
from onnxprune.graph.structure.sites import Site
from onnxprune.probe.branch_norms import flows
from onnxprune.probe.forward import NOTHING, Rows, Weights, grams
from onnxprune.probe.gate_gradients import gate_gradients
from onnxprune.probe.gates import Gated
from onnxprune.probe.interpreter import Usage
from onnxprune.probe.second_moments import Gram
from onnxprune.probe.trajectory import trajectories
from onnxprune.probe.weight_gradients import seen_through, weight_scores
from onnxprune.score.base import Method, Statistics


def collect(
    method: Method,
    rows: Rows | None,
    sites: Sequence[Site],
    structure: Structure,
    weight: Callable[[str], np.ndarray],
    *,
    also: Collection[str] = (),
    state: Gated = NOTHING,
    token_weights: Weights | None = None,
    known: Mapping[Usage, Gram] | None = None,
    keep: Callable[[Usage, Gram], None] | None = None,
    order: Callable[[Mapping[Usage, Gram]], Mapping[str, Ranking]] | None = None,
    seed: int = 0,
) -> Statistics:
    """The statistics that a method, and whoever comes after it (`also`), needs.

    Args:
        rows: to learn from; None for methods that need none.
        weight: initializer name -> array, as of the state.
        also: further fields of Statistics, for the steps after scoring ("gram").
        state: the gates and weights of the model that is scored; the dense one by default.
        token_weights: of the Gram matrices.
        known: the Gram matrices that have been collected; keep: is handed each of the others.
        order: makes Statistics.order from the Gram matrices that were collected.
    """
    needs = {*method.needs, *also}
    if rows is None or not needs:
        return Statistics(weight)
    seen = rows if state is NOTHING else seen_through(rows, state)
    found: dict[str, Any] = {}
    if "gram" in needs:
        read = [m for s in sites for m in s.matrices]
        found["gram"] = grams(rows, read, state, token_weights, known=known, keep=keep)
    if "gate_grad" in needs:
        found["gate_grad"] = gate_gradients(seen, sites, structure, seed)
    if "trajectory" in needs:
        found["trajectory"] = trajectories(seen, sites, structure, seed=seed)
    if "flow" in needs:
        found["flow"] = flows(seen, sites, structure)
    if "spectral_flow" in needs:
        found["spectral_flow"] = flows(seen, sites, structure, spectral=True)
    if "order" in needs and order is not None:
        found["order"] = order(found.get("gram", {}))
    accumulator = getattr(method, "accumulator", None)
    if "weight_score" in needs and accumulator is not None:
        names = list(dict.fromkeys(m.reader.weight or "" for s in sites for m in s.matrices))
        found["weight_score"] = weight_scores(seen, names, accumulator, seed=seed)
    return Statistics(weight, **found)
