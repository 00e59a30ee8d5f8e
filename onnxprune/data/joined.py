"""Longer rows out of short ones: texts put one after the other, so that a model is also calibrated at length.

Calibration rows are often shorter than what a model meets later, and attention over few tokens tells little about
attention over many. Two rows of text make a third that the dense model, as the teacher, can answer too.
"""

from __future__ import annotations

import numpy as np

from onnxprune.data.dataset import Dataset, Example


def joined(dataset: Dataset, count: int, seed: int) -> Dataset:
    """At most `count` rows, each two rows of `dataset` joined: the first without its end, the second without its start.

    None are longer than the longest row there is. Empty where rows cannot be joined: not token ids between the same two
    special tokens, or with further inputs that differ from token to token.
    """
    ids = _ids(dataset)
    examples = dataset.examples
    if ids is None or len(examples) < 2:
        return dataset.subset([])
    longest = max(e.tokens for e in examples)
    random = np.random.default_rng(seed)
    made: list[Example] = []
    for _ in range(4 * count):
        first, second = (examples[int(i)] for i in random.integers(len(examples), size=2))
        if first.tokens + second.tokens - 2 <= longest and len(made) < count:
            feeds = {k: np.concatenate([first.feeds[k][:, :-1], second.feeds[k][:, 1:]], axis=1) for k in first.feeds}
            made.append(Example(feeds, source=f"{first.source} + {second.source}"))
    return Dataset(tuple(made), dataset.kind, dataset.description, dataset.shared, dataset.max_batch)


def _ids(dataset: Dataset) -> str | None:
    """The one input that varies, if all rows start and end it with the same ids and every other input is constant."""
    if dataset.kind not in ("text", "tokens") or not dataset.examples or dataset.shared:
        return None
    names = dataset.examples[0].feeds.keys()
    if any(e.feeds.keys() != names for e in dataset.examples):
        return None
    varying = []
    for name in names:
        arrays = [e.feeds[name] for e in dataset.examples]
        if any(a.ndim != 2 or a.shape[0] != 1 or a.shape[1] < 3 or a.dtype.kind not in "iu" for a in arrays):
            return None
        first = arrays[0][0, 0]
        if not all((a == first).all() for a in arrays):
            varying.append(name)
    if len(varying) != 1 or any(e.real is not None for e in dataset.examples):
        return None
    ends = {(int(e.feeds[varying[0]][0, 0]), int(e.feeds[varying[0]][0, -1])) for e in dataset.examples}
    return varying[0] if len(ends) == 1 else None
