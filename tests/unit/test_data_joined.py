"""Rows joined into longer ones."""

from __future__ import annotations

import numpy as np

from onnxprune.data import Dataset, Example, joined


def _rows(*bodies: list[int], extra: dict[str, int] | None = None) -> Dataset:
    examples = []
    for body in bodies:
        ids = np.array([[1, *body, 2]], dtype=np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        feeds |= {name: np.full_like(ids, value) for name, value in (extra or {}).items()}
        examples.append(Example(feeds))
    return Dataset(tuple(examples), "text")


def test_joined_rows_hold_two_bodies_between_the_same_ends() -> None:
    source = _rows([5, 6], [7], [8, 9, 10, 11, 12, 13], extra={"token_type_ids": 0})
    bodies = [e.feeds["input_ids"][0, 1:-1].tolist() for e in source.examples]
    made = joined(source, 20, seed=0)
    assert len(made) > 5
    for example in made.examples:
        ids = example.feeds["input_ids"][0].tolist()
        assert (ids[0], ids[-1]) == (1, 2)
        assert any(ids[1:-1] == a + b for a in bodies for b in bodies)
        assert len(ids) <= 8
        assert all(array.shape == (1, len(ids)) for array in example.feeds.values())


def test_the_seed_decides() -> None:
    source = _rows([5, 6], [7], [8, 9, 10, 11, 12, 13])

    def texts(seed: int) -> list[list[int]]:
        return [e.feeds["input_ids"][0].tolist() for e in joined(source, 6, seed).examples]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_rows_that_cannot_be_joined_are_left_alone() -> None:
    different_ends = Dataset((*_rows([5, 6]).examples, Example({"input_ids": np.array([[3, 4, 9, 8]])})), "text")
    positions = _rows([5, 6], [7, 8])
    counted = tuple(Example({**e.feeds, "position_ids": np.arange(e.tokens)[None]}) for e in positions.examples)
    images = Dataset((Example({"pixel_values": np.zeros((1, 3, 4, 4), np.float32)}),) * 3, "image")
    for source in (different_ends, Dataset(counted, "text"), images):
        assert len(joined(source, 4, seed=0)) == 0
