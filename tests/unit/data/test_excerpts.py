"""What a person recognises a row by."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxprune.data.excerpts import excerpt, picture
from onnxprune.data.sources import Row


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"text": "Two\n lines ", "label": 1}, "Two lines"),
        ({"text": "first", "text_pair": "second"}, "first / second"),
        ({"question": "Where?", "context": "In Rome."}, "Where? / In Rome."),
        ({"tokens": ["Ann", "lives"]}, "Ann lives"),
        ({"tokens": np.array(["Ann", "lives"])}, "Ann lives"),
        ({"tokens": '["Ann", "lives"]'}, "Ann lives"),
        ({"image": "pictures/cat.png"}, "cat.png"),
        ({"audio": Path("a/b.wav")}, "b.wav"),
        ({"image": b"\x89PNG", "label": 3}, ""),
        ({"x": [1.0, 2.0]}, ""),
        ({"tokens": [1, 2]}, ""),
        ({"text": "word " * 1000}, ("word " * 48)[:-1] + "…"),
    ],
)
def test_rows_are_recognised_by_their_texts_or_the_names_of_their_files(fields: dict[str, Any], shown: str) -> None:
    assert excerpt(Row("rows:1", fields, None)) == shown


def decoded(uri: str) -> Image.Image:
    head, _, data = uri.partition(";base64,")
    assert head in ("data:image/png", "data:image/jpeg")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_pictures_are_small_and_stretched_over_what_can_be_shown() -> None:
    ramp = np.linspace(-2, 2, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    small = decoded(picture({"x": ramp}))
    assert small.size == (8, 8) and np.asarray(small).min() == 0 and np.asarray(small).max() == 255
    wide = np.zeros((1, 3, 100, 400), np.float32)
    wide[:, 0, :, 200:] = 1
    for array in (wide, wide.transpose(0, 2, 3, 1), (wide * 255).astype(np.uint8)):
        large = decoded(picture({"pixel_values": array, "past_key_values.0": np.zeros((1, 3, 16, 16), np.float32)}))
        assert large.size == (96, 24)
        red = np.asarray(large)[12, :, 0]
        assert red[:40].max() < 30 and red[-40:].min() > 225


@pytest.mark.parametrize(
    "feeds",
    [
        {"input_ids": np.ones((1, 8), np.int64)},
        {"x": np.zeros((1, 5, 32, 32), np.float32)},
        {"x": np.zeros((1, 3, 4, 4), np.float32)},
        {"x": np.full((1, 3, 32, 32), np.nan, np.float32)},
        {"a": np.zeros((1, 3, 32, 32), np.float32), "b": np.zeros((1, 3, 32, 32), np.float32)},
    ],
)
def test_what_is_no_picture_shows_none(feeds: dict[str, np.ndarray]) -> None:
    assert picture(feeds) == ""
