"""Plan and graph to pruned graph, in the order that keeps every step simple."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.errors import UsageError
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Plan, Structure
from onnxprune.rewrite import bypass, cleanup, cut, scales, tile, weights


def apply(model: Model, structure: Structure, plan: Plan) -> ir.Model:
    """Carry out a plan on a clone of the model.

    Args:
        plan: complete (`gates.Gates.complete`): it says what each dropped branch leaves behind.

    Raises:
        UsageError: the plan was made for another model.
    """
    if not plan.digest == structure.digest == model.digest:
        raise UsageError(
            f"the plan was made for a model with digest {plan.digest[:12]}…, this one has {model.digest[:12]}…"
            f"{_which(model, plan)}; make a plan for this model"
        )
    clone = model.clone().normal
    weights.weights(clone, plan)
    bypass.branches(clone, structure, plan)
    done = weights.quantised_intercepts(clone, plan)
    cut.units(clone, structure, plan)
    weights.intercepts(clone, structure, plan, done)
    scales.unify(clone)
    tile.products(clone, plan)
    return cleanup.tidy(clone)


def _which(model: Model, plan: Plan) -> str:
    """Of several files, those that are other ones than the plan was made for."""
    there = model.digests
    other = sorted(name for name in {*there, *plan.files} if there.get(name) != plan.files.get(name))
    return f" (other than the plan's: {', '.join(other)})" if there and plan.files else ""
