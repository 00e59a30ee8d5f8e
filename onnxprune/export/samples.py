"""Sample inputs with the outputs they should give, so that a device can check itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import data
from onnxprune.data import Dataset
from onnxprune.data.model_info import Files, Graph, Job
from onnxprune.data.sources import open_rows
from onnxprune.export.base import Artefact
from onnxprune.export.fixed_shapes import image_sizes
from onnxprune.graph import runtime
from onnxprune.graph.example_feeds import synthesize
from onnxprune.graph.model import InputSpec, Model
from onnxprune.measure.cost import symbols
from onnxprune.measure.runnable_sizes import runnable

COUNT = 4
LENGTH = 16
"""Of what is made up, where nothing says it."""
EXACT, QUANTISED = 1e-3, 0.15
"""How far a device may be off, relative to the output's scale. Kernels for few bits round differently from processor to
processor, and one step early in a network grows on its way: 0.10 was seen between two runtimes on the same machine."""

_SHOWN = ("text", "text_pair", "question", "context", "tokens")


def sizes_of(model: Model, folder: Path, stated: Mapping[str, int]) -> dict[str, int]:
    """Sizes that a graph runs with, for what is made up: as stated, as its configuration has them, else found."""
    known = {**image_sizes(Files(folder)), **stated}
    return runnable(model, {name: known[name] for name in symbols(model) if name in known}, LENGTH)


def rows_for(
    source: Any,
    inputs: Sequence[InputSpec],
    folder: Path,
    outputs: Sequence[InputSpec],
    sizes: Mapping[str, int] | None = None,
    **asked: Any,
) -> Dataset:
    """A few rows as feeds: the source's first ones; else made-up ids, or feeds of plausible values.

    Args:
        sizes: of dimensions, for values that are made up: what the graph runs with.
    """
    if source is not None:
        return data.read(source, inputs, outputs=outputs, folder=folder, limit=COUNT, **asked)
    found = {d: 1 if axis == 0 else LENGTH for s in inputs for axis, d in enumerate(s.shape) if isinstance(d, str)}
    told = {**image_sizes(Files(folder)), **(sizes or {})}
    found |= {name: size for name, size in told.items() if name in found}
    made = [synthesize(inputs, dims=found, seed=seed) for seed in range(COUNT)]
    return data.read(made, inputs, outputs=outputs, folder=folder)


def fields_of(source: Any, inputs: Sequence[InputSpec], folder: Path, columns: Mapping[str, str] | None) -> list[Any]:
    """What the rows say in words, where they do: shown on a page, or compared with a device's own tokenizer."""
    if source is None:
        return [{} for _ in range(COUNT)]
    rows = open_rows(source, Job(Graph.of(inputs, None), Files(folder)), columns, COUNT)
    return [{k: row.fields[k] for k in _SHOWN if isinstance(row.fields.get(k), str | list)} for row in rows]


def write(folder: Path, artefacts: Sequence[Artefact], rows: Mapping[str, Dataset], fields: Sequence[Any]) -> Path:
    """`samples.json`: for every model file, feeds and what ONNX Runtime made of them here.

    Tensors are base64 of little-endian numbers, row by row.
    """
    told: dict[str, Any] = {"format": 1, "tolerance": {}, "models": {}}
    for artefact in artefacts:
        session = runtime.session(folder / artefact.file)
        found = []
        for example, said in zip(rows[artefact.file].examples, _told(rows[artefact.file], fields), strict=True):
            outputs = runtime.run(session, example.feeds)
            found.append({
                **({"row": said} if said else {}),
                "feeds": {name: tensor(value) for name, value in example.feeds.items()},
                "expected": {name: tensor(value) for name, value in outputs.items()},
            })  # fmt: skip
        told["models"][artefact.file] = found
        told["tolerance"][artefact.file] = QUANTISED if artefact.scheme.startswith(("int8-", "a")) else EXACT
    file = folder / "samples.json"
    file.write_text(json.dumps(told) + "\n", encoding="utf-8")
    return file


def _told(rows: Dataset, fields: Sequence[Any]) -> list[Any]:
    """What each example's row says; the two sides of a pair have a text each."""
    told: list[Any] = []
    number, before = -1, None
    for example in rows.examples:
        second = example.pair is not None and example.pair == before
        number, before = number + (not second), example.pair
        row = fields[number] if number < len(fields) else {}
        if example.pair is not None:
            text = row.get("text_pair" if second else "text")
            row = {"text": text} if text else {}
        told.append(row)
    return told


def tensor(value: NDArray[Any]) -> dict[str, Any]:
    """A tensor as JSON: type, shape, base64 of its little-endian bytes."""
    held = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"), copy=False)
    return {
        "type": value.dtype.name,
        "shape": list(value.shape),
        "data": base64.b64encode(held.tobytes()).decode("ascii"),
    }


def array(told: Mapping[str, Any]) -> NDArray[Any]:
    """The tensor that `tensor` wrote."""
    flat = np.frombuffer(base64.b64decode(told["data"]), np.dtype(told["type"]).newbyteorder("<"))
    return flat.reshape(told["shape"]).astype(told["type"])
