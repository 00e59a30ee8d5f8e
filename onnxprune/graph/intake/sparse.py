"""Sparse initializers as the dense ones that they stand for: no operator here, and few anywhere, reads them sparse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import ModelError, UnsupportedError, one_line
from onnxprune.graph import memory


def made_dense(graph: Any, file: Path) -> None:
    """Put every sparse initializer of a GraphProto among its dense ones, in place.

    Indices are [numbers], positions in the flattened tensor, or [numbers, rank].

    Raises:
        ModelError: indices that lie outside, or are not as many as the values.
        UnsupportedError: values in a file of their own.
        LimitError: the dense tensor is more than may be held.
    """
    from onnx import TensorProto, helper, numpy_helper

    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        where = f"{file}: sparse initializer {one_line(name, 80)}"
        if TensorProto.EXTERNAL in (sparse.values.data_location, sparse.indices.data_location):
            raise UnsupportedError(f"{where}: its values are in a file of their own: write it as a dense one")
        shape = tuple(sparse.dims)
        if not shape or min(shape) < 0:
            raise ModelError(f"{where}: its shape is {list(shape)}: the file is damaged")
        try:
            values, indices = numpy_helper.to_array(sparse.values).ravel(), numpy_helper.to_array(sparse.indices)
        except (ValueError, TypeError) as error:
            raise ModelError(f"{where}: {one_line(str(error), 120)}: the file is damaged") from error
        memory.require(math.prod(shape) * values.dtype.itemsize, where)
        flat = _flat(indices, shape)
        if flat is None or len(flat) != len(values):
            raise ModelError(f"{where}: its indices do not fit its values and its shape: the file is damaged")
        dense = np.zeros(math.prod(shape), dtype=values.dtype)
        dense[flat] = values
        tensor = helper.make_tensor(name, sparse.values.data_type, shape, dense.tobytes(), raw=True)
        graph.initializer.append(tensor)
    del graph.sparse_initializer[:]


def _flat(indices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Positions in the flattened tensor; None where they lie outside."""
    if indices.dtype.kind not in "iu":
        return None
    if indices.ndim == 2 and indices.shape[1] == len(shape):
        if not ((indices >= 0) & (indices < np.array(shape))).all():
            return None
        return np.asarray(np.ravel_multi_index(tuple(indices.T), shape))
    inside = indices.ndim == 1 and bool(((indices >= 0) & (indices < math.prod(shape))).all())
    return indices if inside else None
