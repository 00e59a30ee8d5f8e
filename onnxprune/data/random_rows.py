"""Random rows, for when they are asked for: they say nothing about the data a model will see."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.filled_inputs import maker_of
from onnxprune.data.image import image_input
from onnxprune.data.model_info import Job, Part, Spec, describe, role
from onnxprune.data.sources import Row
from onnxprune.errors import DataError

TOKENS, SAMPLES, PIXELS = 64, 16000, 224  # where the graph leaves the size open


def invent(job: Job, rows: int, vocab_size: Any) -> tuple[list[Row], list[list[Part]]]:
    """`rows` rows of random ids and normal floats, all of one shape.

    Raises:
        DataError: the graph takes integers and their range is not known.
    """
    generator = np.random.default_rng(job.seed)
    specs = [spec for spec in job.graph.inputs if maker_of(spec.name) is None]
    sizes: dict[str, int] = {}
    shapes = {spec.name: _shape(spec, sizes, job) for spec in specs}
    parts = [
        [
            Part(
                {
                    spec.name: _values(spec, shapes[spec.name], generator, _below(spec, sizes, vocab_size))
                    for spec in specs
                }
            )
        ]
        for _ in range(rows)
    ]
    listing = ", ".join(f"{name} {list(shape[1:])}" for name, shape in shapes.items())
    job.say(
        f"rows: {rows} RANDOM ones, as asked ({listing}; seed {job.seed}): scores from them say little about real data"
    )
    return [Row(f"random:{n + 1}", {}, Path()) for n in range(rows)], parts


def _shape(spec: Spec, sizes: dict[str, int], job: Job) -> tuple[int, ...]:
    """The input's shape with a batch of 1; the same symbol has the same size everywhere."""
    shape = []
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, int):
            shape.append(dim)
        elif axis == job.graph.row_axis(spec.name) and spec.name not in job.graph.shared:
            shape.append(1)
        elif dim is not None and dim in job.shape:
            shape.append(job.shape[dim])
        else:
            size = _open_size(spec, axis, job)
            shape.append(size if dim is None else sizes.setdefault(dim, size))
    return tuple(shape)


def _open_size(spec: Spec, axis: int, job: Job) -> int:
    image = image_input(job.graph)
    if image is not None and spec.name == image.name:
        if axis == 1:
            return int(job.files.setting("num_channels") or 3)
        size = job.files.setting("image_size")
        size = size[axis - 2] if isinstance(size, list) else size
        return int(size or PIXELS)
    if len(spec.shape) == 2 and np.dtype(spec.dtype).kind not in "iub":
        return SAMPLES
    if axis > 1:
        return int(job.files.setting("hidden_size", "d_model") or TOKENS)
    positions = job.files.setting("max_position_embeddings", "n_positions") or 2 * TOKENS
    return min(TOKENS, job.max_length or TOKENS, int(positions) // 2)


def _below(spec: Spec, sizes: Mapping[str, int], vocab_size: Any) -> int | None:
    """What an input's integers stay below, by what the graph looks up with them, and by the vocabulary."""
    table = sizes.get(spec.limit) if isinstance(spec.limit, str) else spec.limit
    vocabulary = int(vocab_size) if vocab_size is not None and "ids" in role(spec.name) else None
    return min((bound for bound in (table, vocabulary) if bound is not None), default=None)


def _values(spec: Spec, shape: tuple[int, ...], generator: np.random.Generator, below: int | None) -> NDArray[Any]:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        if dtype == np.uint8:
            return generator.integers(0, 256, shape).astype(dtype)
        if below is None:
            raise DataError(
                f"random rows: the range of {describe(spec)} is not known (the graph looks nothing up with it): "
                "give real rows"
            )
        return generator.integers(0, below, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)
