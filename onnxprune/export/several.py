"""Several graphs in one exported folder: what each of them is fed, how they hang together, and what all are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from onnxprune import data
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.export import samples
from onnxprune.export.base import Artefact, Workshop
from onnxprune.graph import joined, runtime
from onnxprune.graph.example_feeds import synthesize
from onnxprune.graph.model import InputSpec, Model, Part
from onnxprune.graph.values import dims
from onnxprune.measure.calls import taken
from onnxprune.measure.own_targets import with_targets

SAMPLES = 2
"""Rows that a device can check itself with; what one graph hands to another is large."""

Read = Callable[[Sequence[InputSpec]], Dataset | None]


def refuse(asked: Mapping[str, Any]) -> None:
    """Say what is done for one graph alone.

    Raises:
        UsageError: it was asked for.
    """
    for option, given in asked.items():
        if given:
            raise UsageError(
                f"{option}: is not done for several graphs at once; export the one that it is for by its name"
            )


def rows(model: Model, source: Any, limit: int | None, **reading: Any) -> Dataset:
    """Rows as feeds of all graphs; decoders without a target read the model's own answers."""
    read = data.read(source, model.inputs, outputs=model.outputs, folder=model.folder, limit=limit, **reading)
    return with_targets(model, read) or read


def reader(model: Model, part: Part, known: Callable[[], Dataset | None]) -> Read:
    """Calibration rows as feeds of one graph: what it is given for them by the graphs before it.

    Args:
        known: the rows, as feeds of all; None without any.
    """

    @cache
    def read(inputs: tuple[InputSpec, ...]) -> Dataset | None:
        held = known()
        if held is None:
            return None
        _require_free(part, inputs)
        return _dataset(part, list(taken(model, part, [example.feeds for example in held.examples])))

    return lambda inputs: read(tuple(inputs))


def _require_free(part: Part, inputs: Sequence[InputSpec]) -> None:
    """Refuse to fit rows of several lengths into fixed shapes: what another graph gives cannot be padded."""
    own = {spec.name: spec.shape for spec in part.model.inputs}
    if any(spec.shape != own.get(spec.name) for spec in inputs):
        raise UsageError(
            f"{part.file.name}: ranges of fixed shapes take rows that are padded, and what one graph hands to another "
            "cannot be; choose --quantize fp16 or int8-weights, which take none"
        )


def compared(model: Model, part: Part, known: Callable[[], Dataset | None]) -> Callable[[Sequence[InputSpec]], Dataset]:
    """What a file of one graph is compared on: rows, or where its shapes are fixed, plausible values of these."""

    def read(inputs: Sequence[InputSpec]) -> Dataset:
        own = {spec.name: spec.shape for spec in part.model.inputs}
        if any(spec.shape != own.get(spec.name) for spec in inputs):
            return _dataset(part, [synthesize(inputs, seed=seed) for seed in range(SAMPLES)])
        held = known()
        if held is not None:
            feeds = [example.feeds for example in held.examples[:SAMPLES]]
        else:
            made = samples.rows_for(None, model.inputs, model.folder or Path(), model.outputs)
            feeds = [example.feeds for example in made.examples[:SAMPLES]]
        return _dataset(part, list(taken(model, part, feeds)))

    return read


def _dataset(part: Part, feeds: Sequence[runtime.Feeds]) -> Dataset:
    return data.read([dict(one) for one in feeds], part.model.inputs, outputs=part.model.outputs)


def sizes(model: Model, part: Part, asked: Mapping[str, int]) -> dict[str, int]:
    """The sizes that were asked for, by the names that one graph has for them.

    `inspect` tells the names of all graphs together; those of the graph itself do as well.
    """
    values = {v.name: v for v in model.graph.inputs}
    values |= {v.name: v for node in model.graph for v in node.outputs}
    found: dict[str, int] = {}
    for spec in part.model.inputs:
        there = dims(values[part.wires.inputs[spec.name]]) or ()
        for own, joined_name in zip(spec.shape, there, strict=False):
            if isinstance(own, str) and (size := asked.get(own, asked.get(str(joined_name)))) is not None:
                found.setdefault(own, size)
    return found


def wiring(model: Model) -> dict[str, dict[str, dict[str, str]]]:
    """Graph -> input -> the graph and its output that it comes from, where it comes from one."""
    givers = {name: (part, own) for part in model.parts for own, name in part.wires.outputs.items()}
    found: dict[str, dict[str, dict[str, str]]] = {}
    for part in model.parts:
        fed = {own: givers[name] for own, name in part.wires.inputs.items() if name in givers}
        found[part.file.stem] = {own: {"graph": g.file.stem, "output": o} for own, (g, o) in fed.items()}
    return found


def together(model: Model, shops: Sequence[Workshop], made: Sequence[Artefact], scratch: Path) -> Path | None:
    """The graph that exported files are together; None where a target's files cannot be put together."""
    files = [shops[0].folder / f"{part.file.stem}.onnx" for part in model.parts]
    by_name = {artefact.file: artefact for artefact in made}
    if any(file.name not in by_name or by_name[file.name].fixed for file in files):
        return None
    return joined.open_file(files, [part.wires for part in model.parts], scratch / "together.onnx")
