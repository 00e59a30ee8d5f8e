"""On which axis of an input or output the rows stand: states of recurrences and outputs of them have theirs inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.data.model_info import Spec, batch_of


def output_axes(inputs: Sequence[Spec], outputs: Mapping[str, Sequence[int | str | None]]) -> dict[str, int]:
    """Output name -> the axis of its rows, where its shape tells that it is not the first.

    It is the axis that is called as the batch is; where the graph fixes a batch of 1, the first that is 1.
    """
    batch = batch_of(inputs)
    if batch is None or (isinstance(batch, int) and batch != 1):
        return {}
    return {n: list(shape).index(batch) for n, shape in outputs.items() if batch in shape and shape[0] != batch}


def rows_first(values: Mapping[str, Any], rows: int, axes: Mapping[str, int]) -> dict[str, Any]:
    """Outputs (numpy arrays or torch tensors) of `rows` rows with these on the first axis.

    Where no shape told the axis, it is the one that is as long as there are rows, if only one is; what one row alone
    gives, with no axis of 1, is that row's.
    """
    return {name: _first(value, rows, axes.get(name)) for name, value in values.items()}


def _first(value: Any, rows: int, axis: int | None) -> Any:
    if axis is None:
        if not value.ndim or value.shape[0] == rows:
            return value
        fitting = [a for a, size in enumerate(value.shape) if size == rows]
        if not fitting:
            return value[None] if rows == 1 else value
        if len(fitting) > 1 and rows > 1:
            return value
        axis = fitting[0]
    moved = np.moveaxis(value, axis, 0) if isinstance(value, np.ndarray) else value.movedim(axis, 0)
    return moved
