"""A run's rows, and the shape at which its costs are counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune import data
from onnxprune.data import Dataset
from onnxprune.errors import DataError, UsageError, near_file
from onnxprune.export.precision import SCHEMES
from onnxprune.export.precision.apply import scheme_of
from onnxprune.graph.dimensions import evaluate
from onnxprune.graph.example_feeds import require_dimensions
from onnxprune.graph.flow import asks_rows
from onnxprune.graph.model import Model
from onnxprune.measure import footprint
from onnxprune.measure.cost import default_bindings
from onnxprune.measure.own_targets import with_targets
from onnxprune.measure.runnable_sizes import runnable
from onnxprune.search.options import Options


def read_rows(
    dense: Model, calibration: Any, evaluation: Any, options: Options, **asked: Any
) -> tuple[Dataset | None, Dataset | None]:
    """(rows to learn from, each once, rows to report on). Report rows decide nothing.

    Where conditions of the graph look at what is in a row, rows run one by one.
    """
    common = dict(
        inputs=dense.inputs,
        outputs=dense.outputs,
        folder=dense.folder,
        seed=options.seed,
        vocab_size=vocabulary(dense),
        shape=options.shape,
        **asked,
    )
    learn = data.read(calibration, limit=options.rows, **common).distinct() if calibration is not None else None
    learn = _apart(dense, with_targets(dense, learn))
    if evaluation is not None:
        return learn, _apart(dense, with_targets(dense, data.read(evaluation, **common)))
    if learn is None or len(learn) < 20:
        return learn, None
    parts = learn.split({"learn": 0.8, "report": 0.2}, options.seed)
    return parts["learn"], parts["report"]


def _apart(dense: Model, rows: Dataset | None) -> Dataset | None:
    return replace(rows, max_batch=1) if rows is not None and asks_rows(dense.graph) else rows


def require_one_graph(dense: Model, quantize: str | None) -> None:
    """Refuse for several graphs what is done to one only.

    Raises:
        UsageError: names what was asked for.
    """
    if dense.parts and quantize is not None and SCHEMES[scheme_of(quantize)].rows:
        raise UsageError(
            f"--quantize {quantize}, with ranges from rows of each graph: is not done for several graphs at once "
            f"({dense.home}); choose one that takes none ({', '.join(n for n, s in SCHEMES.items() if not s.rows)})"
        )


def require_there(*sources: Any) -> None:
    """Say that rows do not exist before a model is opened for them.

    Raises:
        DataError: a path leads nowhere.
    """
    for source in sources:
        if isinstance(source, str | Path) and str(source) != "random" and not Path(source).exists():
            raise DataError(f"{source}: no such file or folder: check the path{near_file(source)}")


def require_memory(dense: Model, options: Options, *rows: Dataset | None) -> None:
    """Refuse rows (without any: the stated shape) whose forward pass takes more memory than may be used.

    Raises:
        LimitError: with the figures.
    """
    weights = any(dataset is not None for dataset in rows)
    for dataset in rows:
        if dataset is not None and dataset.examples:
            largest = max(dataset.examples, key=lambda e: sum(a.size for a in e.feeds.values()))
            footprint.require(dense, footprint.sizes_of(dense, largest.feeds), largest.source, weights=weights)
    if not weights:
        sizes = default_bindings(dense, dict(options.shape))
        footprint.require(dense, sizes, "the model at the stated shape", weights=False)


def vocabulary(dense: Model) -> int | None:
    """Rows of the table that `input_ids` index, so that ids out of range are refused with their row."""
    value = next((v for v in dense.graph.inputs if v.name == "input_ids"), None)
    for node, index in value.uses() if value is not None else ():
        table = node.inputs[0]
        if node.op_type == "Gather" and index == 1 and table is not None and table.const_value is not None:
            return int(table.const_value.shape.numpy()[0])
    return None


def shape_of(dense: Model, shape: Mapping[str, int], rows: Dataset | None) -> dict[str, int]:
    """Where FLOPs are counted: as stated, else batch 1 and the rows' mean."""
    known = require_dimensions(dense.inputs, shape)
    found = {**(rows.mean_shape(dense.inputs) if rows is not None else {}), **shape}
    found = _summed(found, shape, known)
    empty = {name: 0 for name, size in found.items() if not size and name not in shape}  # as rows have it
    found = {**default_bindings(dense, {n: s for n, s in found.items() if n not in empty}), **empty}
    unknown = sorted(known - found.keys())
    missing = [name for name in unknown if name.isidentifier()] or unknown  # sums of names follow them
    if missing:
        sizes = runnable(dense, found, 128, told=True)
        stated = ",".join(f"{name}={sizes[name]}" for name in missing)
        raise UsageError(
            f"the size of {', '.join(missing)} is not known without calibration rows: give some, --calib ROWS, or "
            f"state it: --shape {stated}"
        )
    return found


def _summed(sizes: Mapping[str, int], stated: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """Sizes in which dimensions that are named by a sum of others (a past and what is new) follow what was stated."""
    found = dict(sizes)
    parts = {name: size for name, size in sizes.items() if name.isidentifier()}
    for name in names:
        if name not in stated and not name.isidentifier():
            with suppress(KeyError):
                found[name] = evaluate(name, parts)
    return found
