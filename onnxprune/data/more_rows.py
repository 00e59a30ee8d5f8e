"""More rows out of few: parts of texts, and texts joined.

A few hundred rows are few tokens for the hundreds of weights each least squares solves for. The dense model, as the
teacher, can answer any input, so parts of the given rows teach nearly as much as more rows of their kind would. Parts
alone would be shorter than what the model is for: some rows are joined, so that the mean length stays.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

import numpy as np

from onnxprune.data.dataset import Dataset, Example

Piece = tuple[bool, np.ndarray]
"""(whether it is framing, positions): special tokens that every row has, or a run of a row's own tokens."""

Run = tuple[Example, np.ndarray]
"""(a row, positions in it)."""

JOINED = 0.2
"""Share of rows that are two joined, twice as long as one: parts are three quarters as long on average."""


def variants(dataset: Dataset, count: int, seed: int) -> Dataset:
    """`count` rows, each a part of one that is given or two of them joined, without labels.

    Of a part, between two special tokens stays a run of at least half of the tokens there. What every row has (its
    first and last token, the separators of a pair) stays where it is; rows are joined between them, and cut to the
    length of the longest. Empty where rows are not token ids, or are padded.
    """
    rows = _rows(dataset)
    if rows is None:
        return dataset.subset([])
    random = np.random.default_rng(seed)
    longest = max(example.tokens for example in dataset.examples)
    counted = _counted(dataset.examples)
    made: list[Example] = []
    for i in random.integers(len(rows), size=count).tolist():
        first, other = dataset.examples[i], int(random.integers(len(rows))) if random.random() < JOINED else None
        if other is not None and _alike(rows[i], rows[other]):
            second = dataset.examples[other]
            runs, source = _joined(first, rows[i], second, rows[other], longest), f"{first.source} and {second.source}"
        else:
            runs, source = _part(first, rows[i], random), f"part of {first.source}"
        made.append(Example(_row(runs, counted), source=source))
    return replace(dataset, examples=tuple(made), copies=0)


def _part(example: Example, pieces: Sequence[Piece], random: np.random.Generator) -> list[Run]:
    runs = []
    for framing, positions in pieces:
        size = len(positions) if framing else int(random.integers((len(positions) + 1) // 2, len(positions) + 1))
        start = int(random.integers(0, len(positions) - size + 1))
        runs.append((example, positions[start : start + size]))
    return runs


def _joined(first: Example, pieces: Sequence[Piece], second: Example, more: Sequence[Piece], longest: int) -> list[Run]:
    """One row with another's tokens behind its own, up to the special token that follows, as many as there is room."""
    room = longest - first.tokens
    runs = []
    for (framing, own), (_, others) in zip(pieces, more, strict=True):
        taken = others[: 0 if framing else room]
        room -= len(taken)
        runs += [(first, own), (second, taken)]
    return runs


def _alike(pieces: Sequence[Piece], others: Sequence[Piece]) -> bool:
    """Whether special tokens and others follow one another alike in two rows."""
    return [framing for framing, _ in pieces] == [framing for framing, _ in others]


def _row(runs: Sequence[Run], counted: Set[str]) -> dict[str, np.ndarray]:
    """The tokens of these runs, one behind the other; positions are counted anew."""
    tokens = sum(len(at) for _, at in runs)
    return {
        name: array[:, :1] + np.arange(tokens, dtype=array.dtype)
        if name in counted
        else np.concatenate([example.feeds[name][:, at] for example, at in runs], axis=1)
        for name, array in runs[0][0].feeds.items()
    }


def _counted(examples: Sequence[Example]) -> Set[str]:
    """The inputs that say where a token stands: one more with every token, from one start."""

    def counts(array: np.ndarray, start: int) -> bool:
        return bool((array[0] == start + np.arange(array.shape[1])).all())

    return {n for n, first in examples[0].feeds.items() if all(counts(e.feeds[n], first[0, 0]) for e in examples)}


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
