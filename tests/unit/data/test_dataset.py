"""Laws of Example, Batch and Dataset, on datasets of any mixture of lengths and pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.data import Dataset, Example, read
from onnxprune.errors import DataError
from onnxprune.graph.model import InputSpec

IDS = InputSpec("input_ids", np.dtype(np.int64), ("batch", "sequence"))
MASK = InputSpec("attention_mask", np.dtype(np.int64), ("batch", "sequence"))


def dataset(lengths: list[int], paired: list[bool] | None = None) -> Dataset:
    """Rows of these lengths, each of ids that occur nowhere else; `paired` rows are two examples of one pair."""
    examples, pairs, start = [], 0, 0
    for row, length in enumerate(lengths):
        sides = 2 if paired is not None and paired[row] else 1
        for side in range(sides):
            ids = np.arange(start, start + length + side)[None]
            start += length + side
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            examples.append(Example(feeds, label=row, pair=pairs if sides == 2 else None, source=f"rows:{row + 1}"))
        pairs += sides == 2
    return Dataset(tuple(examples), "tensors")


mixtures = st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=40)


def mixed(rows: list[tuple[int, bool]]) -> Dataset:
    return dataset([length for length, _ in rows], [pair for _, pair in rows])


@given(mixtures, st.integers(1, 7), st.none() | st.integers(1, 40))
def test_batches_hold_every_example_once_unpadded_and_within_limits(
    rows: list[tuple[int, bool]], max_rows: int, max_tokens: int | None
) -> None:
    data = mixed(rows)
    batches = list(data.batches(max_rows, max_tokens))
    assert sorted(p for batch in batches for p in batch.index) == list(range(len(data)))
    for batch in batches:
        assert batch.real is None
        assert 1 <= len(batch) <= max_rows
        assert max_tokens is None or len(batch) == 1 or batch.feeds["input_ids"].size <= max_tokens
        for name, stacked in batch.feeds.items():
            for one, position in zip(stacked, batch.index, strict=True):
                np.testing.assert_array_equal(one[None], data.examples[position].feeds[name])


@given(mixtures, st.randoms(use_true_random=False))
def test_batches_are_deterministic_and_their_sizes_do_not_depend_on_the_order(
    rows: list[tuple[int, bool]], random: object
) -> None:
    data = mixed(rows)
    order = np.random.default_rng(len(rows)).permutation(len(data))
    shuffled = replace(data, examples=tuple(data.examples[p] for p in order))

    def shapes(d: Dataset) -> Counter[tuple[int, ...]]:
        return Counter(batch.feeds["input_ids"].shape for batch in d.batches(4))

    assert shapes(data) == shapes(shuffled)
    first, again = (list(data.batches(4)) for _ in range(2))
    assert all((a.index == b.index).all() for a, b in zip(first, again, strict=True))


def test_shorter_rows_come_first_then_the_order_of_the_rows() -> None:
    batches = list(dataset([5, 2, 5, 2, 5]).batches(2))
    assert [batch.index.tolist() for batch in batches] == [[1, 3], [0, 2], [4]]


@given(mixtures, st.integers(0, 3), st.lists(st.floats(0.05, 1), min_size=1, max_size=4))
def test_split_is_a_seeded_partition_that_keeps_pairs(
    rows: list[tuple[int, bool]], seed: int, weights: list[float]
) -> None:
    data = mixed(rows)
    shares = {f"part{i}": weight for i, weight in enumerate(weights)}
    parts = data.split(shares, seed)
    assert list(parts) == list(shares)
    sources = [id(example) for part in parts.values() for example in part.examples]
    assert sorted(sources) == sorted(id(example) for example in data.examples)
    assert sum(len(part.pairs) for part in parts.values()) == len(data.pairs)
    again = data.split(shares, seed)
    assert all([e.source for e in parts[n].examples] == [e.source for e in again[n].examples] for n in shares)
    for name, part in parts.items():
        units = len(part) - len(part.pairs)
        assert abs(units - len(rows) * shares[name] / sum(weights)) <= 1


def test_split_depends_on_the_seed_and_refuses_empty_shares() -> None:
    data = dataset([3] * 50)
    chosen = [{e.source for e in data.split({"a": 1, "b": 1}, seed)["a"].examples} for seed in (0, 1)]
    assert chosen[0] != chosen[1]
    with pytest.raises(ValueError, match="positive"):
        data.split({"a": 1, "b": 0}, 0)


@given(mixtures, st.integers(0, 50), st.integers(0, 3))
def test_take_draws_rows_in_order_with_both_sides_of_a_pair(rows: list[tuple[int, bool]], n: int, seed: int) -> None:
    data = mixed(rows)
    taken = data.take(n, seed)
    assert len(taken) - len(taken.pairs) == min(n, len(rows))
    positions = [data.examples.index(example) for example in taken.examples]
    assert positions == sorted(positions)
    assert [e.source for e in data.take(n, seed).examples] == [e.source for e in taken.examples]


@given(mixtures, mixtures)
def test_rows_of_two_datasets_keep_their_pairs(first: list[tuple[int, bool]], second: list[tuple[int, bool]]) -> None:
    """Both number their pairs from zero: two sides of one are still two sides of one, and of no other."""
    a, b = mixed(first), mixed(second)
    both = a + b
    assert len(both) == len(a) + len(b)
    shifted = [(i + len(a), j + len(a), label) for i, j, label in b.pairs]
    assert sorted(both.pairs) == sorted([*a.pairs, *shifted])


def test_pairs_give_positions_and_the_label_also_after_a_split() -> None:
    data = dataset([3, 4, 5], [False, True, True])
    assert data.pairs == ((1, 2, 1), (3, 4, 2))
    for part in data.split({"a": 1, "b": 1}, 3).values():
        for first, second, label in part.pairs:
            assert part.examples[first].source == part.examples[second].source == f"rows:{label + 1}"


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_mean_shape_is_the_rows_mean_rounded_up(lengths: list[int]) -> None:
    shape = dataset(lengths).mean_shape([IDS, MASK])
    assert shape == {"batch": 1, "sequence": int(np.ceil(np.mean(lengths)))}


def test_mean_shape_of_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="empty dataset"):
        Dataset((), "tensors").mean_shape([IDS])


def test_limits_below_one_are_refused() -> None:
    for limits in ((0, None), (4, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            list(dataset([3]).batches(*limits))
    with pytest.raises(ValueError, match="negative"):
        dataset([3]).take(-1, 0)


def test_inputs_without_a_batch_axis_are_fed_once() -> None:
    branch = InputSpec("use_cache_branch", np.dtype(bool), (1,))
    data = read([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5, 6]}], [IDS, branch])
    (batch,) = data.batches(8)
    assert batch.feeds["input_ids"].shape == (2, 3)
    assert batch.feeds["use_cache_branch"].tolist() == [False]


def test_positions_without_a_batch_axis_do_not_grow_with_the_batch() -> None:
    position = InputSpec("cache_position", np.dtype(np.int64), ("sequence",))
    data = read([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}, {"input_ids": [4, 5]}], [IDS, position])
    shapes = [(b.feeds["input_ids"].shape, b.feeds["cache_position"].tolist()) for b in data.batches(8)]
    assert shapes == [((2, 2), [0, 1]), ((1, 3), [0, 1, 2])]
    assert data.mean_shape([IDS, position]) == {"batch": 1, "sequence": 3}


def test_rows_that_differ_in_a_shared_input_are_not_batched_together() -> None:
    branch = InputSpec("flag", np.dtype(bool), (1,))
    data = read([{"input_ids": [1], "flag": [flag]} for flag in (True, False, True)], [IDS, branch])
    assert [(b.index.tolist(), b.feeds["flag"].tolist()) for b in data.batches(8)] == [([0, 2], [True]), ([1], [False])]


def test_a_graph_of_batch_one_is_fed_one_row_at_a_time() -> None:
    fixed = InputSpec("input_ids", np.dtype(np.int64), (1, 3))
    data = read([{"input_ids": [1, 2, 3]}] * 4, [fixed])
    assert [len(batch) for batch in data.batches(16)] == [1, 1, 1, 1]


def test_real_tokens_of_a_batch() -> None:
    ids = np.ones((1, 4), np.int64)
    padded = Example({"input_ids": ids}, real=np.array([[True, True, False, False]]))
    (batch,) = Dataset((padded, Example({"input_ids": ids})), "text").batches()
    assert batch.real is not None
    assert batch.real.tolist() == [[True, True, False, False], [True] * 4]


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=10))
def test_digest_tells_rows_and_labels_apart(lengths: list[int]) -> None:
    data = dataset(lengths)
    assert data.digest == dataset(lengths).digest
    first = data.examples[0]
    other = replace(first, feeds={**first.feeds, "input_ids": first.feeds["input_ids"] + 1})
    for changed in (other, replace(first, label="other")):
        assert replace(data, examples=(changed, *data.examples[1:])).digest != data.digest


def test_examples_and_datasets_are_frozen() -> None:
    data = dataset([2])
    with pytest.raises(FrozenInstanceError):
        data.kind = "text"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        data.examples[0].label = 1  # type: ignore[misc]
