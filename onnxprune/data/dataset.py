"""One example, a batch of examples of equal shapes, and a dataset of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.model_info import Spec
from onnxprune.errors import DataError

Array = NDArray[Any]
ENOUGH = 256
"""Tokens from which on a larger batch computes a token no faster."""
FILLED = (0.25, 0.0625)
"""How much of a batch may be filling: of one that has fewer tokens, and of others."""


@dataclass(frozen=True, eq=False)
class Example:
    """One row (or one side of a pair) as the graph's feeds.

    Attributes:
        feeds: graph input name -> array with a leading batch axis of 1 (inputs without a batch axis: their own shape).
        label: a class id, a score, an array, or None. Token labels are int64 (tokens,) with -100 where none counts;
            answers are int64 (answers, 2), first and last token; segmentation masks are int64 (height, width).
        pair: which pair this is a side of, where a pair is two separate inputs; otherwise None.
        source: "file:row", the row as an editor counts lines, or counted from 1.
        real: bool (1, tokens), which tokens are not padding; None where all are real.
        excerpt: what a person recognises the row by (`excerpts.excerpt`).
        pieces: the text of every token, with the space before it, empty of those that the tokenizer adds; empty
            altogether where answers are no tokens.
    """

    feeds: Mapping[str, Array]
    label: Any = None
    pair: int | None = None
    source: str = ""
    real: NDArray[np.bool_] | None = None
    excerpt: str = ""
    pieces: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Length of the row: the longest second axis of its integer feeds of rank 2; 1 where there are none."""
        return max((a.shape[1] for a in self.feeds.values() if a.ndim == 2 and a.dtype.kind in "iu"), default=1) or 1


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples of equal shapes, stacked on the batch axis.

    Attributes:
        feeds: graph input name -> array (rows, ...).
        index: int64 (rows,), the examples' positions in the dataset.
        real: bool (rows, tokens), which tokens are not padding; None where there is no padding.
    """

    feeds: Mapping[str, Array]
    index: NDArray[np.int64]
    real: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples for one graph, in the order of their source.

    Attributes:
        examples: the rows.
        kind: what the rows hold: "text", "tokens", "qa", "image", "audio", "tensors" or "random".
        description: what was read and every guess that was made, for the user.
        shared: graph inputs that have no batch axis and are fed once per batch (`use_cache_branch`).
        max_batch: the most rows a batch may have (1 where the graph fixes its batch size), or None.
        inside: graph inputs whose rows are not on the first axis -> their axis.
        together: rows of the source that each example holds, where the graph fixes a batch of several.
        copies: how many rows were left out, because they feed what another one feeds.
        asked: metrics that were asked for, which say how outputs on these rows are to be read.
        classes: number of a class -> its name, as far as they are known.
    """

    examples: tuple[Example, ...]
    kind: str
    description: tuple[str, ...] = ()
    shared: frozenset[str] = frozenset()
    max_batch: int | None = None
    copies: int = 0
    inside: Mapping[str, int] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    classes: Mapping[int, str] = field(default_factory=dict)
    together: int = 1

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def labels(self) -> tuple[Any, ...] | None:
        """The label of every example, None where it has none; None altogether where no example has one."""
        labels = tuple(example.label for example in self.examples)
        return None if all(label is None for label in labels) else labels

    @property
    def pairs(self) -> tuple[tuple[int, int, Any], ...]:
        """(first, second, label) of every pair of separate inputs, as positions in `examples`."""
        units = (unit for unit in self._units() if len(unit) == 2)
        return tuple((first, second, self.examples[first].label) for first, second in units)

    @property
    def digest(self) -> str:
        """SHA-256 of all feeds and labels, in order, and of `asked`: the key of whatever is cached for these rows."""
        digest = hashlib.sha256()
        for example in self.examples:
            for name in sorted(example.feeds):
                array = np.ascontiguousarray(example.feeds[name])
                digest.update(f"{name}:{array.dtype}:{array.shape}:".encode())
                digest.update(array.tobytes())
            label = example.label
            digest.update(label.tobytes() if isinstance(label, np.ndarray) else repr(label).encode())
        if self.asked:
            digest.update(repr(self.asked).encode())
        return digest.hexdigest()

    @cached_property
    def keys(self) -> tuple[bytes, ...]:
        """What tells rows apart: one key a row (a pair is one), equal where all feeds are."""
        return tuple(self._key(unit) for unit in self._units())

    def _key(self, unit: Sequence[int]) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for position in unit:
            for name, array in sorted(self.examples[position].feeds.items()):
                digest.update(f"{name}:{array.dtype}:{array.shape}:".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.digest()

    def read_by(self, metric: str | Sequence[str] | None) -> Dataset:
        """The same rows, on which outputs are read as a metric reads them, or several."""
        return replace(self, asked=(metric,) if isinstance(metric, str) else tuple(metric or ()))

    def distinct(self) -> Dataset:
        """Every row once: copies tell nothing new, and one that is learnt from must not judge."""
        units = self._units()
        first = dict(zip(reversed(self.keys), reversed(units), strict=True))  # the first of each remains
        if len(first) == len(units):
            return self
        kept = self.subset(sorted(position for unit in first.values() for position in unit))
        copies = len(units) - len(first)
        said = f"rows: {copies} of {len(units)} left out, they feed what another one feeds"
        return replace(kept, copies=copies, description=(*self.description, said))

    def batches(self, max_rows: int = 32, max_tokens: int | None = None) -> Iterator[Batch]:
        """Every example exactly once, in batches of equal shapes: shorter rows first, then by position.

        Args:
            max_rows: the most rows in a batch.
            max_tokens: the most tokens in a batch (rows x `Example.tokens`); one longer row is still a batch.
        """
        if max_rows < 1 or (max_tokens is not None and max_tokens < 1):
            raise ValueError(f"max_rows and max_tokens must be at least 1, not {max_rows} and {max_tokens}")
        groups: dict[tuple[Any, ...], list[int]] = {}
        for position, example in enumerate(self.examples):
            groups.setdefault(self._shapes(example), []).append(position)
        for positions in sorted(groups.values(), key=lambda group: (self.examples[group[0]].tokens, group[0])):
            rows = min(max_rows, self.max_batch or max_rows)
            if max_tokens is not None:
                rows = max(1, min(rows, max_tokens // self.examples[positions[0]].tokens))
            for start in range(0, len(positions), rows):
                yield self._stack(positions[start : start + rows])

    @property
    def fillable(self) -> Mapping[str, int] | None:
        """Graph input -> what rows are filled up with behind their last token; None where that cannot be told.

        It can where all inputs are integers for each token, one of them a mask of ones.
        """
        first = self.examples[0].feeds
        if self.shared or self.inside or self.max_batch is not None or self.together > 1:
            return None
        if not any("mask" in name for name in first):
            return None
        for example in self.examples:
            for name, array in example.feeds.items():
                if array.dtype.kind not in "iu" or array.shape != (1, example.tokens):
                    return None
                if "mask" in name and (array != 1).any():
                    return None
            if example.real is not None or example.feeds.keys() != first.keys():
                return None
        return dict.fromkeys(first, 0)

    def filled_batches(
        self, fill: Mapping[str, int], max_rows: int = 32, max_tokens: int | None = None
    ) -> Iterator[Batch]:
        """As `batches`, of nearly equal lengths: rows are filled up to the longest of theirs, and `Batch.real` tells.

        Args:
            fill: as `fillable`.
        """
        lengths = [example.tokens for example in self.examples]
        group: list[int] = []
        for position in sorted(range(len(lengths)), key=lambda p: (lengths[p], p)):
            longest = lengths[position]
            area = (len(group) + 1) * longest
            spare = area - sum(lengths[p] for p in group) - longest
            allowed = FILLED[0] if group and len(group) * lengths[group[-1]] < ENOUGH else FILLED[1]
            over = max_tokens is not None and area > max_tokens
            if group and (len(group) == max_rows or over or spare > allowed * area):
                yield self.filled(group, fill)
                group = []
            group.append(position)
        if group:
            yield self.filled(group, fill)

    def filled(self, positions: Sequence[int], fill: Mapping[str, int]) -> Batch:
        """Some rows as one batch, filled up to the longest of them."""
        rows = [self.examples[p] for p in positions]
        lengths = np.array([row.tokens for row in rows])
        longest = int(lengths.max())
        feeds = {}
        for name, value in fill.items():
            feeds[name] = np.full((len(rows), longest), value, rows[0].feeds[name].dtype)
            for i, row in enumerate(rows):
                feeds[name][i, : lengths[i]] = row.feeds[name][0]
        real = np.arange(longest) < lengths[:, None]
        return Batch(feeds, np.asarray(positions, np.int64), None if real.all() else real)

    def split(self, shares: Mapping[str, float], seed: int) -> dict[str, Dataset]:
        """Parts drawn at random, each row in exactly one of them; a pair's two sides stay together.

        Args:
            shares: part -> its share of the rows, relative to the shares' sum. A part may come out empty where
                there are fewer rows than parts.
            seed: the same seed gives the same parts.
        """
        if not shares or any(share <= 0 for share in shares.values()):
            raise ValueError(f"shares must be positive, not {dict(shares)}")
        units = self._units()
        order = np.random.default_rng(seed).permutation(len(units))
        total = sum(shares.values())
        bounds = [round(len(units) * end / total) for end in np.cumsum(list(shares.values()))]
        parts: dict[str, Dataset] = {}
        for name, start, end in zip(shares, [0, *bounds], bounds, strict=False):
            parts[name] = self.subset(sorted(p for u in order[start:end] for p in units[u]))
        return parts

    def take(self, n: int, seed: int) -> Dataset:
        """At most `n` rows drawn at random, in their original order; a pair counts as one row."""
        if n < 0:
            raise ValueError(f"n must not be negative, not {n}")
        units = self._units()
        if n >= len(units):
            return self
        chosen = np.random.default_rng(seed).permutation(len(units))[:n]
        return self.subset(sorted(p for u in chosen for p in units[u]))

    def mean_shape(self, inputs: Sequence[Spec]) -> dict[str, int]:
        """The size of each symbolic dimension of the graph's inputs: 1 for the batch, else the rows' mean, rounded up.

        Raises:
            DataError: the dataset is empty.
        """
        if not self.examples:
            raise DataError("no rows: the mean shape of an empty dataset is not defined")
        sizes: dict[str, int] = {}
        for spec in inputs:
            for axis, dim in enumerate(spec.shape):
                if not isinstance(dim, str) or dim in sizes or spec.name not in self.examples[0].feeds:
                    continue
                total = sum(example.feeds[spec.name].shape[axis] for example in self.examples)
                counts_rows = axis == self.row_axis(spec.name) and spec.name not in self.shared
                sizes[dim] = 1 if counts_rows else -(-total // len(self.examples))
        return sizes

    def _units(self) -> list[list[int]]:
        """Positions that belong together: one, or the two sides of a pair."""
        units: dict[tuple[str, int], list[int]] = {}
        for position, example in enumerate(self.examples):
            key = ("row", position) if example.pair is None else ("pair", example.pair)
            units.setdefault(key, []).append(position)
        return list(units.values())

    def __add__(self, other: Dataset) -> Dataset:
        """These rows and those of another dataset for the same graph; pairs stay pairs, under numbers of their own."""
        used = 1 + max((e.pair for e in self.examples if e.pair is not None), default=-1)
        more = tuple(e if e.pair is None else replace(e, pair=e.pair + used) for e in other.examples)
        return replace(self, examples=self.examples + more)

    def subset(self, positions: Sequence[int]) -> Dataset:
        return replace(self, examples=tuple(self.examples[p] for p in positions))

    def row_axis(self, name: str) -> int:
        """The axis of a graph input on which rows follow one another, where it has rows."""
        return self.inside.get(name, 0)

    def _without_rows(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = self.row_axis(name)
        return (*shape[:axis], *shape[axis + 1 :])

    def _shapes(self, example: Example) -> tuple[Any, ...]:
        """What examples of one batch must have in common: all shapes, and the values of shared inputs."""
        return tuple(
            (name, array.shape, array.tobytes())
            if name in self.shared
            else (name, self._without_rows(name, array.shape))
            for name, array in sorted(example.feeds.items())
        )

    def _stack(self, positions: Sequence[int]) -> Batch:
        rows = [self.examples[p] for p in positions]
        feeds = {
            name: array
            if name in self.shared
            else np.concatenate([row.feeds[name] for row in rows], self.row_axis(name))
            for name, array in rows[0].feeds.items()
        }
        real = None
        shape = next((row.real.shape for row in rows if row.real is not None), None)
        if shape is not None:
            real = np.concatenate([np.ones(shape, bool) if row.real is None else row.real for row in rows])
        return Batch(feeds, np.asarray(positions, np.int64), real)
