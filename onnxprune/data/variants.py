"""More rows out of few: parts of texts.

A few hundred rows are few tokens for the hundreds of weights each least squares solves for. The dense model, as the
teacher, can answer any input, so parts of the given rows teach nearly as much as more rows of their kind would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.data.dataset import Dataset, Example

Piece = tuple[bool, np.ndarray]
"""(whether it is framing, positions): special tokens that every row has, or a run of a row's own tokens."""


def variants(dataset: Dataset, count: int, seed: int) -> Dataset:
    """`count` rows, each a part of one that is given, without labels.

    Between two special tokens stays a run of at least half of the tokens there. What every row has (its first and last
    token, the separators of a pair) stays where it is. Empty where rows are not token ids, or are padded.
    """
    rows = _rows(dataset)
    if rows is None:
        return dataset.subset([])
    random = np.random.default_rng(seed)
    made: list[Example] = []
    for i in random.integers(len(rows), size=count):
        source = dataset.examples[int(i)]
        made.append(Example(_part(source, rows[int(i)], random), source=f"part of {source.source}"))
    return Dataset(tuple(made), dataset.kind, dataset.description, dataset.shared, dataset.max_batch)


def _part(example: Example, pieces: Sequence[Piece], random: np.random.Generator) -> dict[str, np.ndarray]:
    chosen = []
    for framing, positions in pieces:
        size = len(positions) if framing else int(random.integers((len(positions) + 1) // 2, len(positions) + 1))
        start = int(random.integers(0, len(positions) - size + 1))
        chosen.append(positions[start : start + size])
    at = np.concatenate(chosen)
    # Positions are counted anew.
    return {
        name: array[:, : len(at)] if (np.diff(array[0]) == 1).all() and array.shape[1] > 2 else array[:, at]
        for name, array in example.feeds.items()
    }


def _rows(dataset: Dataset) -> list[list[Piece]] | None:
    """Every row's pieces, if all inputs are one value a token."""
    examples = dataset.examples
    if dataset.kind not in ("text", "tokens") or len(examples) < 2 or dataset.shared:
        return None
    names = examples[0].feeds.keys()
    for example in examples:
        arrays = list(example.feeds.values())
        if example.feeds.keys() != names or example.real is not None:
            return None
        if any(a.ndim != 2 or a.shape != (1, arrays[0].shape[1]) or a.dtype.kind not in "iu" for a in arrays):
            return None
    ids = _ids(examples)
    if ids is None:
        return None
    framing = np.array(sorted(set.intersection(*(set(e.feeds[ids][0].tolist()) for e in examples))))
    return [_pieces(np.isin(e.feeds[ids][0], framing)) for e in examples]


def _ids(examples: Sequence[Example]) -> str | None:
    """The input with the most different values: the token ids."""
    counts = {name: len(set().union(*(set(e.feeds[name][0].tolist()) for e in examples))) for name in examples[0].feeds}
    name = max(counts, key=lambda n: (n == "input_ids", counts[n]))
    return name if counts[name] > 2 else None


def _pieces(frame: np.ndarray) -> list[Piece]:
    edges = np.flatnonzero(np.diff(frame)) + 1
    return [(bool(frame[part[0]]), part) for part in np.split(np.arange(len(frame)), edges)]
