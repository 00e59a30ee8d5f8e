"""A decoder one step further: what it takes behind the keys and values that it gave itself.

Rows start from an empty cache. A graph that is right there may still be wrong behind a past, so that the written file
is checked a step further too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.graph import runtime
from onnxprune.graph.joined.wiring import cache_key
from onnxprune.graph.model import InputSpec, Model, Wires


def caches(dense: Model) -> dict[str, str]:
    """Input -> the output that continues it: past_key_values.0.key -> present.0.key; empty where one has none."""
    taken = [spec for spec in dense.inputs if _is_cache(spec) and "past" in spec.name.lower()]
    found = _continued(dense)
    return found if len(found) == len(taken) else {}


def _continued(dense: Model) -> dict[str, str]:
    """The same of those caches that have one."""
    given = {
        cache_key(spec.name): spec.name for spec in dense.outputs if _is_cache(spec) and "present" in spec.name.lower()
    }
    taken = {
        spec.name: cache_key(spec.name) for spec in dense.inputs if _is_cache(spec) and "past" in spec.name.lower()
    }
    return {name: given[key] for name, key in taken.items() if key in given}


def _is_cache(spec: InputSpec) -> bool:
    return spec.dtype.kind == "f" and len(spec.shape) >= 4


def continued(dense: Model, feeds: Sequence[runtime.Feeds], most: int = 2) -> list[runtime.Feeds]:
    """Some batches again, each with a token more behind the caches that the dense file writes for it.

    The token is the row's last one. Nothing where the graph has no caches, or takes something that this does not know.
    """
    pairs = caches(dense)
    if not pairs or dense.path is None:
        return []
    try:
        session = runtime.session(dense.path)
        steps = [_step(dense, batch, runtime.run(session, batch), pairs) for batch in feeds[:most]]
    except OnnxPruneError:  # the dense file cannot be run so: the rows themselves are what is checked
        return []
    return [step for step in steps if step is not None]


def going_on(model: Model, feeds: runtime.Feeds, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """A batch with a token more behind the caches that a graph gave for it; those that it does not give stay.

    Returns:
        feeds; None where the graph has no caches, or takes something that this does not know.
    """
    pairs = _continued(model)
    return dict(found) if pairs and (found := _step(model, feeds, outputs, pairs)) is not None else None


def _step(
    dense: Model, feeds: runtime.Feeds, outputs: Mapping[str, np.ndarray], pairs: Mapping[str, str]
) -> runtime.Feeds | None:
    found: dict[str, np.ndarray] = {}
    for spec in dense.inputs:
        value, role = np.asarray(feeds[spec.name]), spec.name.removeprefix("decoder_")
        if spec.name in pairs:
            found[spec.name] = outputs[pairs[spec.name]]
        elif role == "input_ids":
            found[spec.name] = value[:, -1:]
        elif role == "attention_mask" and value.ndim == 2:
            found[spec.name] = np.concatenate([value, np.ones_like(value[:, -1:])], 1)
        elif role in ("position_ids", "cache_position"):
            found[spec.name] = value[..., -1:] + 1
        elif any(isinstance(dim, str) for dim in spec.shape[1:]) and "encoder" not in spec.name:
            return None
        else:
            found[spec.name] = value
    return found


def disagreement(dense: Model, file: Path, rows: Sequence[runtime.Feeds]) -> float:
    """How far a decoder behind a cache is from the one before it, which reads the same tokens at once.

    Args:
        dense: several graphs, with one that follows another; else there is nothing to compare.
        file: all of them, or what was made of all of them, in one.
        rows: a token behind others in each.

    Returns:
        the largest difference, relative to an output's scale.
    """
    behind = next((part.wires for part in dense.parts if part.wires.follows), None)
    before = next((p.wires for p in dense.parts if behind is not None and _leads(p.wires, behind)), None)
    if behind is None or before is None:
        return 0.0
    session, worst = runtime.session(file), 0.0
    pairs = [(before.outputs[own], name) for own, name in behind.outputs.items() if own in before.outputs]
    for feeds in rows:
        longer = dict(feeds)
        for own, name in behind.inputs.items():
            there = before.inputs.get(own)
            if there is not None and name in feeds and there in feeds and name != there:
                first, more = np.asarray(feeds[there]), np.asarray(feeds[name])
                longer[there] = more if more.shape[-1] > first.shape[-1] else np.concatenate([first, more], -1)
        steps = runtime.run(session, feeds, [name for _, name in pairs])
        whole = runtime.run(session, longer, [name for name, _ in pairs])
        for name, step in pairs:
            found, should = steps[step], whole[name]
            for axis, size in enumerate(found.shape):
                should = should.take(range(should.shape[axis] - size, should.shape[axis]), axis)
            worst = max(
                worst, float(np.abs(found - should).max(initial=0.0) / (np.abs(should).max(initial=0.0) or 1.0))
            )
    return worst


def _leads(wires: Wires, behind: Wires) -> bool:
    return (
        not wires.follows and bool({*wires.outputs.values()} & {*behind.inputs.values()}) and "logits" in wires.outputs
    )
