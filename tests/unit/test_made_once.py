"""What is slow to make may be made by two processes at once."""

from __future__ import annotations

from pathlib import Path

from made_once import made_once


def test_whoever_is_second_takes_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "found"

    def make(place: Path) -> None:
        (place / "name").write_text("mine")
        made_once(folder, lambda other: (other / "name").write_text("another's"))

    for _ in range(2):
        assert made_once(folder, make) == folder
        assert (folder / "name").read_text() == "another's"
    assert [p.name for p in folder.parent.iterdir()] == ["found"]
