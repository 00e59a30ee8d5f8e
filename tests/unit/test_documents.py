"""What other people's JSON may hold: one error that names the file and the field, or the right types."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from onnxprune.documents import built, read_object
from onnxprune.errors import DataError, InputError


@dataclass(frozen=True)
class Held:
    name: str
    units: tuple[int, ...]
    by: Mapping[str, float] = field(default_factory=dict)
    pair: tuple[int, int] | None = None


GOOD: dict[str, Any] = {"name": "a", "units": [1, 2], "by": {"x": 1}, "pair": [3, 4], "unknown": 5}


def test_plain_data_becomes_what_the_annotations_say() -> None:
    assert built(Held, GOOD, "file") == Held("a", (1, 2), {"x": 1.0}, (3, 4))


@pytest.mark.parametrize("wrong", [None, True, 1.5, "a", [], {}, [None], ["1"], [1.5], [True], [[1]], {"a": 1}, 2**70])
@pytest.mark.parametrize("key", ["name", "units", "by", "pair"])
def test_a_wrong_type_is_one_error_that_names_the_field(key: str, wrong: Any) -> None:
    try:
        held = built(Held, {**GOOD, key: wrong}, "file")
    except InputError as error:
        assert str(error).startswith(f"file.{key}")
        return
    assert isinstance(held.name, str) and all(type(unit) is int for unit in held.units)
    assert all(type(size) is float for size in held.by.values())
    assert held.pair is None or len(held.pair) == 2


def test_a_missing_field_is_named() -> None:
    with pytest.raises(DataError, match=r"file\.units is missing"):
        built(Held, {"name": "a"}, "file", DataError)


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"5", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{}", b"\0" * 100, b'{"a": 1']
)
def test_what_is_no_object_is_one_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"plan\.json"):
        read_object(file, "a plan")


def test_pipes_and_folders_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for file in (tmp_path, tmp_path / "pipe.json", tmp_path / "none.json", tmp_path / ("a" * 300), Path("a\0b")):
        with pytest.raises(InputError):
            read_object(file, "a plan")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a": "é"}), encoding="utf-8-sig")
    assert read_object(tmp_path / "a.json", "a file") == {"a": "é"}
