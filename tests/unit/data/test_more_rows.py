"""Rows made of parts of others, and of two joined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.data import Dataset, Example, variants


def _row(ids: list[int], **extra: list[int]) -> Example:
    feeds = {"input_ids": ids, "attention_mask": [1] * len(ids), **extra}
    return Example({k: np.array([v], dtype=np.int64) for k, v in feeds.items()})


def _rows(*bodies: list[int]) -> Dataset:
    return Dataset(tuple(_row([1, *body, 2]) for body in bodies), "text")


def _is_joined(row: list[int], bodies: Sequence[list[int]]) -> bool:
    return any(row[: len(a)] == a and row[len(a) :] == b[: len(row) - len(a)] for a in bodies for b in bodies)


def _is_part(part: list[int], whole: list[int]) -> bool:
    starts = range(len(whole) - len(part) + 1)
    return 2 * len(part) >= len(whole) and any(whole[i : i + len(part)] == part for i in starts)


BODIES = ([5, 6], [7], [8, 9, 10, 11, 12, 13], [14, 15, 16, 17])


def test_made_rows_are_parts_or_joined_between_the_same_ends() -> None:
    made = variants(_rows(*BODIES), 40, seed=0)
    assert len(made) == 40
    for example in made.examples:
        ids = example.feeds["input_ids"][0].tolist()
        assert (ids[0], ids[-1]) == (1, 2)
        assert any(_is_part(ids[1:-1], body) for body in BODIES) or _is_joined(ids[1:-1], BODIES)
        assert len(ids) <= 2 + max(map(len, BODIES))
        assert example.label is None
        assert all(array.shape == (1, len(ids)) for array in example.feeds.values())
    assert len({e.tokens for e in made.examples}) > 3


def test_made_rows_are_as_long_as_given_ones_on_average() -> None:
    random = np.random.default_rng(0)
    rows = _rows(*(random.integers(5, 100, size=n).tolist() for n in [*random.integers(4, 20, size=100), 40]))
    made = variants(rows, 1000, seed=0)
    given, now = (np.mean([e.tokens for e in d.examples]) for d in (rows, made))
    assert abs(now / given - 1) < 0.05
    assert max(e.tokens for e in made.examples) <= 42
    alone = [e.feeds["input_ids"][0, 1:-1].tolist() for e in rows.examples]
    joined = [ids for e in made.examples if " and " in e.source and (ids := e.feeds["input_ids"][0, 1:-1].tolist())]
    assert len(joined) > 100
    assert all(_is_joined(ids, alone) for ids in joined[:20])


def test_the_seed_decides() -> None:
    def texts(seed: int) -> list[list[int]]:
        return [e.feeds["input_ids"][0].tolist() for e in variants(_rows(*BODIES), 6, seed).examples]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_both_parts_of_a_pair_stay_on_their_sides() -> None:
    pairs = Dataset(
        tuple(
            _row([1, *a, 2, *b, 2], token_type_ids=[0] * (len(a) + 2) + [1] * (len(b) + 1))
            for a, b in (([5, 6, 7], [18]), ([8, 9], [19, 20]), ([10, 11, 12, 13], [21, 22, 23]))
        ),
        "text",
    )
    made = variants(pairs, 20, seed=0)
    assert len(made) == 20
    for example in made.examples:
        ids, types = example.feeds["input_ids"][0], example.feeds["token_type_ids"][0]
        first, second = np.split(ids, [np.flatnonzero(ids == 2)[0]])
        assert first[0] == 1
        assert (first[1:] < 18).all()
        assert (second[1:-1] >= 18).all()
        assert types.tolist() == [0] * (len(first) + 1) + [1] * (len(second) - 1)


def test_rows_without_special_tokens_give_parts_too() -> None:
    rows = Dataset(tuple(Example({"input_ids": np.array([list(b)])}) for b in BODIES), "tokens")
    made = variants(rows, 20, seed=0)
    assert len(made) == 20
    assert len({e.tokens for e in made.examples}) > 2


def test_positions_are_counted_anew() -> None:
    rows = _rows(*BODIES)
    counted = tuple(Example({**e.feeds, "position_ids": np.arange(e.tokens)[None] + 2}) for e in rows.examples)
    for example in variants(Dataset(counted, "text"), 20, seed=0).examples:
        assert example.feeds["position_ids"][0].tolist() == list(range(2, example.tokens + 2))


def test_rows_that_have_no_parts_are_left_alone() -> None:
    images = Dataset((Example({"pixel_values": np.zeros((1, 3, 4, 4), np.float32)}),) * 3, "image")
    padded = Dataset(tuple(Example(e.feeds, real=np.array([True] * e.tokens)) for e in _rows(*BODIES).examples), "text")
    for source in (images, padded):
        assert len(variants(source, 4, seed=0)) == 0
