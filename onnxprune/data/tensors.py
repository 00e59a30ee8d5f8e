"""Values of a row as arrays of the graph's dtype and rank, and right padding taken off again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.labels import IGNORED
from onnxprune.data.model_info import Graph, Job, Part, Spec, describe, role, shape_text
from onnxprune.data.sources import Row, parsed
from onnxprune.errors import DataError

Array = NDArray[Any]


def encode(row: Row, names: list[str], job: Job) -> Part:
    """The fields of a row that are named like graph inputs, as feeds."""
    feeds = {}
    for name in names:
        feeds[name] = as_feed(parsed(row.need(name)), job.graph.by_name[name], row.source, job.graph)
    return _without_padding(feeds, row, job)


def as_feed(value: Any, spec: Spec, where: str, graph: Graph) -> Array:
    """One row's value with a leading batch axis of 1 (inputs without a batch axis: in the graph's own shape).

    Raises:
        DataError: the value is ragged, not a number, does not fit the dtype, or has another rank or size.
    """
    array = as_array(value, spec, where)
    if graph.together > 1 and spec.shape[:1] == (graph.together,):
        return _of_several(array, spec, where)
    axis = graph.row_axis(spec.name)
    one = _one(spec, graph)
    if spec.name not in graph.shared and array.ndim == len(one):
        array = np.expand_dims(array, axis)
    elif array.ndim != len(spec.shape):
        raise _wrong_shape(array, spec, where, graph)
    wanted = spec.shape if spec.name in graph.shared else (*one[:axis], 1, *one[axis:])
    if any(isinstance(dim, int) and dim != size for dim, size in zip(wanted, array.shape, strict=True)):
        raise _wrong_shape(array, spec, where, graph)
    return array


def _of_several(array: Array, spec: Spec, where: str) -> Array:
    """A value where the graph takes several rows at once: a row with a leading 1, or all of them."""
    array = array[None] if array.ndim == len(spec.shape) - 1 else array
    sizes = zip(spec.shape[1:], array.shape[1:], strict=False)
    fits = array.ndim == len(spec.shape) and not any(isinstance(dim, int) and dim != size for dim, size in sizes)
    if not fits or array.shape[0] not in (1, spec.shape[0]):
        one, every = shape_text(spec.shape[1:]), shape_text(spec.shape)
        raise DataError(
            f"{where}: field {spec.name!r} has shape {shape_text(array.shape)}; expected is {one}, one row of "
            f"{every}, or all rows at once"
        )
    return array


def _one(spec: Spec, graph: Graph) -> tuple[int | str | None, ...]:
    """The shape of one row's value."""
    axis = graph.row_axis(spec.name)
    return spec.shape if spec.name in graph.shared else (*spec.shape[:axis], *spec.shape[axis + 1 :])


def _wrong_shape(array: Array, spec: Spec, where: str, graph: Graph) -> DataError:
    expected = shape_text(spec.shape)
    if spec.name not in graph.shared:
        axis = graph.row_axis(spec.name)
        where_1 = "a leading 1" if axis == 0 else f"a 1 on axis {axis}"
        expected = f"{shape_text(_one(spec, graph))} (one example of {expected}), or the same with {where_1}"
    elif not spec.shape:
        expected += (
            ", a single number; should the graph state no shape for it at all, give it one, such as ['batch', 8] "
            "(onnx.tools.update_model_dims)"
        )
    return DataError(f"{where}: field {spec.name!r} has shape {shape_text(array.shape)}; expected is {expected}")


_NARROW = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
"""Numbers that numpy takes for bytes."""


def as_array(value: Any, spec: Spec, where: str) -> Array:
    """A value as an array of the input's dtype, never changing a number (floats are rounded to the dtype)."""
    dtype = np.dtype(spec.dtype)
    if hasattr(value, "detach"):  # a torch tensor that requires grad
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{where}: field {spec.name!r} is not an array: its rows differ in length; expected is {describe(spec)}"
        ) from error
    if array.size == 0 and array.dtype.kind == "f":
        return array.astype(dtype)  # an empty JSON list has no type of its own
    if array.dtype.kind not in "biufV" or (array.dtype.kind == "V" and array.dtype.name not in _NARROW):
        raise DataError(
            f"{where}: field {spec.name!r} holds {array.dtype.name} values, not numbers; expected is {describe(spec)}"
        )
    if array.dtype.kind == "f" and not spec.missing and np.isnan(array).any():
        raise DataError(f"{where}: field {spec.name!r} holds NaN: leave the row out or mend it")
    if dtype.kind in "iub":
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if array.dtype.kind == "f" and not (np.isfinite(array) & (array == np.trunc(array))).all():
            raise DataError(f"{where}: field {spec.name!r} holds fractions; expected is {describe(spec)}")
        if array.size and (array.min() < low or array.max() > high):
            raise DataError(f"{where}: field {spec.name!r} holds values outside of {dtype.name} ({low} to {high})")
    return array.astype(dtype, copy=False)


def _without_padding(feeds: dict[str, Array], row: Row, job: Job) -> Part:
    """Rows that come padded on the right lose their padding where the graph lets the length vary.

    Whatever else the mask hides stays (cutting it would change positions) and `Part.real` tells it apart.
    """
    spec = job.graph.by_role.get("attention_mask")
    mask = feeds.get(spec.name) if spec is not None else None
    if spec is None or mask is None or mask.ndim != 2 or not np.isin(mask, (0, 1)).all() or (mask == 1).all():
        return Part(feeds)  # nothing is hidden, or the mask is of another kind (added to the scores)
    real = mask != 0
    if not real.any():
        if mask.dtype.kind == "f":
            return Part(feeds)  # added to the scores, and hiding nothing
        raise DataError(f"{row.source}: field {spec.name!r} hides every token: leave the row out")
    length, full = int(np.flatnonzero(real[0])[-1]) + 1, mask.shape[1]
    label = parsed(row.fields.get("label", row.fields.get("labels")))
    if not isinstance(spec.shape[1], int) and length < full:
        job.say("padding: taken off the right of the rows")
        feeds = {
            name: _cut(array, job.graph.by_name[name], spec.shape[1], full, length) for name, array in feeds.items()
        }
        real = real[:, :length]
        if np.ndim(label) == 1 and len(label) == full:  # one label a token
            return Part(feeds, np.asarray(label)[:length], None if real.all() else real)
    elif np.ndim(label) == 1 and len(label) == full:
        return Part(feeds, np.where(real[0], np.asarray(label), IGNORED), real)
    return Part(feeds, None, None if real.all() else real)


def _cut(array: Array, spec: Spec, symbol: int | str | None, full: int, length: int) -> Array:
    """`array` with every token axis cut: axes of the mask's own symbol, and second axes of its length that have none.

    A symbol that an exporter counted out (s12, unk__7) is no name: torch gives every input its own for the same tokens.
    """
    for axis in range(1, array.ndim):
        dim = spec.shape[axis]
        nameless = _nameless(dim) or (_nameless(symbol) and not isinstance(dim, int))
        same = dim == symbol if symbol is not None and not nameless else axis == 1 and not isinstance(dim, int)
        if array.shape[axis] == full and same and not (dim != symbol and role(spec.name).startswith("decoder")):
            array = array.take(range(length), axis=axis)
    return array


_COUNTED_OUT = re.compile(r"(?:[a-z]|unk_*|dim_*|\w*_dim_|DynamicDimension\W?|\w*dynamic_axes_)\d+", re.IGNORECASE)


def _nameless(symbol: int | str | None) -> bool:
    return symbol is None or (isinstance(symbol, str) and bool(_COUNTED_OUT.fullmatch(symbol)))


def check_feeds(feeds: Mapping[str, Array], where: str, graph: Graph) -> None:
    """A whole row against the graph: ranks, fixed sizes, one size for each symbolic dimension, and at least one token.

    Raises:
        DataError: naming the row and the input.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for spec in graph.inputs:
        array = feeds[spec.name]
        fits = array.ndim == len(spec.shape) and all(
            dim == size for dim, size in zip(spec.shape, array.shape, strict=True) if isinstance(dim, int)
        )
        if not fits:
            raise DataError(
                f"{where}: {spec.name!r} came out as {shape_text(array.shape)}; the graph takes {describe(spec)}"
            )
        if role(spec.name) == "input_ids" and not array.size:
            raise DataError(f"{where}: {spec.name!r} holds no tokens: leave the row out")
        for dim, size in zip(spec.shape, array.shape, strict=True):
            if isinstance(dim, str) and sizes.setdefault(dim, (size, spec.name))[0] != size:
                known, other = sizes[dim]
                raise DataError(
                    f"{where}: {dim!r} is {size} in {spec.name!r} and {known} in {other!r}: give both the same length"
                )


def check_ids(feeds: Mapping[str, Array], where: str, graph: Graph, vocab_size: int) -> None:
    """Token ids must index the embedding.

    Raises:
        DataError: an id is negative or at least `vocab_size`.
    """
    for name, array in feeds.items():
        if role(name) not in ("input_ids", "decoder_input_ids") or not array.size:
            continue
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= vocab_size:
            raise DataError(
                f"{where}: {name!r} holds token id {low if low < 0 else high}, the vocabulary ends at {vocab_size - 1}"
                ": is this the tokenizer of this model?"
            )
