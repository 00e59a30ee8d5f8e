"""What a person recognises a row by: the beginning of its text, the name of its file, a small picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.optional_packages import package
from onnxprune.data.sources import Row, parsed

_LENGTH = 240
"""Characters of an excerpt."""
_EDGE = 96
"""Pixels of a picture's longer side."""
_SMALLEST = 8
"""Pixels of a side from which on an input of rank 4 is taken for a picture."""
_TEXTS = ("text", "text_pair", "question", "context", "target")
_FILES = ("image", "audio")


def excerpt(row: Row) -> str:
    """The texts of a row, cut; the name of its picture or sound without any; empty for numbers."""
    said = [value for name in _TEXTS if isinstance(value := row.fields.get(name), str) and value.strip()]
    words = row.fields.get("tokens")
    words = words.tolist() if isinstance(words, np.ndarray) else parsed(words)
    if not said and isinstance(words, list | tuple) and all(isinstance(word, str) for word in words):
        said = [" ".join(words)]
    if not said:
        said = [Path(v).name for name in _FILES if isinstance(v := row.fields.get(name), str | Path)]
    return _cut(" / ".join(" ".join(text[: 4 * _LENGTH].split()) for text in said))


def _cut(text: str) -> str:
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 1].rstrip()}…"


def picture(feeds: Mapping[str, NDArray[Any]]) -> str:
    """The one picture among a row's feeds, small, as a data URI; empty where there is none.

    Pixels are as the graph gets them, stretched over what can be shown: how they were scaled does not matter.
    """
    found = [p for name, array in feeds.items() if "past" not in name and (p := _pixels(array)) is not None]
    if len(found) != 1:
        return ""
    image = package("PIL.Image", "pictures are shown").fromarray(found[0])
    large = max(image.size) > _EDGE
    if large:
        image.thumbnail((_EDGE, _EDGE))
    held = io.BytesIO()
    form = "JPEG" if large else "PNG"
    image.save(held, format=form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(held.getvalue()).decode()}"


def _pixels(array: NDArray[Any]) -> NDArray[np.uint8] | None:
    """[1, channels, height, width], or channels last -> [height, width] or [height, width, 3]; None of all else."""
    if array.ndim != 4 or len(array) != 1 or array.dtype.kind not in "fiu":
        return None
    if array.shape[1] in (1, 3):
        image = array[0].transpose(1, 2, 0)
    elif array.shape[3] in (1, 3):
        image = array[0]
    else:
        return None
    if min(image.shape[:2]) < _SMALLEST:
        return None
    wide = image.astype(np.float32)
    if not np.isfinite(wide).all():
        return None
    low, high = float(wide.min()), float(wide.max())
    shown: NDArray[np.uint8] = ((wide - low) * (255 / ((high - low) or 1.0))).astype(np.uint8)
    return shown.squeeze(2) if shown.shape[2] == 1 else shown
