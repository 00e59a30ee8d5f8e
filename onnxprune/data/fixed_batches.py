"""Graphs that fix a batch of several rows: that many rows are one example, which the graph is fed whole.

Rows that fill no batch are filled up by the first ones once more, whose labels do not count there. A row that is as
large as the input is fed as it is: it is a batch already, or the number was no batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onnxprune.data.dataset import Example
from onnxprune.data.labels import IGNORED
from onnxprune.data.model_info import Job
from onnxprune.errors import DataError, LimitError
from onnxprune.graph import memory

MOST_ROWS = 1 << 16
"""Of a batch: more than exporters fix; a damaged file may ask for a million millions."""


def gathered(examples: Sequence[Example], job: Job) -> list[Example]:
    """Examples as the graph takes them; each as it is where the graph fixes no batch of several rows.

    Raises:
        DataError: rows are pairs of two inputs, which would be in one batch.
        LimitError: a batch is of more rows, or takes more memory, than there can be.
    """
    rows = job.graph.together
    single = [e for e in examples if _single(e, job)] if rows > 1 else []
    if not single:
        return list(examples)
    if any(e.pair is not None for e in single):
        raise DataError(
            f"{single[0].source}: the graph takes {rows} rows at once, and two texts are two of them: export the model "
            "with a dynamic batch axis, or with a batch of 1"
        )
    if rows > MOST_ROWS:
        raise LimitError(
            f"{single[0].source}: the graph takes {rows:,} rows at once; {MOST_ROWS:,} are the most that are put "
            "together: export the model with a dynamic batch axis, or give rows as large as its input"
        )
    taken = rows * sum(array.nbytes for array in single[0].feeds.values())
    memory.require(taken, f"{single[0].source}: what the graph takes at once, {rows:,} rows,")
    alike: dict[tuple[Any, ...], list[Example]] = {}
    for example in single:
        alike.setdefault(tuple(array.shape for array in example.feeds.values()), []).append(example)
    found, again = [], 0
    for members in alike.values():
        for start in range(0, len(members), rows):
            own = members[start : start + rows]
            again += rows - len(own)
            found.append(_batch(own, [members[i % len(members)] for i in range(rows - len(own))], job))
    filled = f", {again} of them once more to fill the last" if again else ""
    job.say(f"rows: {rows} at once, as the graph fixes it{filled}")
    return found


def _single(example: Example, job: Job) -> bool:
    """Whether it is one row of a batch, not a batch."""
    return any(array.shape[:1] == (1,) for name, array in _of_rows(example, job))


def _of_rows(example: Example, job: Job) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Its feeds of inputs that hold a row beside the other."""
    by_name = job.graph.by_name
    return ((n, a) for n, a in example.feeds.items() if by_name[n].shape[:1] == (job.graph.together,))


def _batch(own: Sequence[Example], more: Sequence[Example], job: Job) -> Example:
    every = [*own, *more]
    stacked = {name for name, array in _of_rows(own[0], job) if array.shape[0] == 1}
    feeds = {
        name: np.concatenate([e.feeds[name] for e in every]) if name in stacked else array
        for name, array in own[0].feeds.items()
    }
    told = [e.label for e in own]
    label = None
    if all(isinstance(t, int | np.integer) for t in told):
        label = np.array([*told, *[IGNORED] * len(more)], dtype=np.int64)
    elif any(t is not None for t in told):
        job.say("labels: not used, several rows are fed at once, and only classes are told apart in them")
    shape = next((e.real.shape for e in every if e.real is not None), None)
    real = (
        None if shape is None else np.concatenate([np.ones(shape, bool) if e.real is None else e.real for e in every])
    )
    return Example(feeds, label, None, own[0].source, real, own[0].excerpt)
