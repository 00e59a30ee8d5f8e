"""Several graphs as their callers run them: each by itself, on what those before it give, as often as it is called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.graph import runtime
from onnxprune.graph.example_feeds import synthesize
from onnxprune.graph.model import Model, Part
from onnxprune.measure import latency


def taken(model: Model, part: Part, rows: Iterable[runtime.Feeds]) -> Iterator[dict[str, np.ndarray]]:
    """What one of several graphs takes: feeds of the whole, and what the dense graphs before it make of them."""
    assert model.path is not None
    session = runtime.session(model.path)
    given = {o.name for o in session.get_outputs()}
    inner = [name for name in dict.fromkeys(part.wires.inputs.values()) if name in given]
    for feeds in rows:
        values = {**feeds, **(runtime.run(session, feeds, inner) if inner else {})}
        yield {name: np.asarray(values[joined]) for name, joined in part.wires.inputs.items()}


def times_of(model: Model, part: Part) -> int:
    """How often a graph runs in what costs are counted over."""
    return model.calls.get(part.file.stem, 1)


def bench(
    model: Model,
    whole: Path,
    alone: Sequence[Path],
    *,
    dims: Mapping[str, int],
    examples: Sequence[runtime.Feeds] = (),
    **asked: Any,
) -> list[latency.LatencyRow]:
    """A model beside the files that it became: a forward pass, of several graphs as many calls of each as are counted.

    Args:
        whole: the file of one graph.
        alone: of several graphs, a file for each, in the order of the model's parts.
        dims, examples, asked: of `latency.bench`.
    """
    assert model.path is not None
    if not model.parts:
        return latency.bench(model.path, whole, dims=dims, examples=examples, **asked)
    feeds = synthesize(model.inputs, dims=dims, examples=examples)
    calls = [
        latency.Call(part.file, file, next(taken(model, part, [feeds])), times_of(model, part))
        for part, file in zip(model.parts, alone, strict=True)
    ]
    return latency.bench_calls(calls, feeds, **asked)
