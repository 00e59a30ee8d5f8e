"""Errors: what a reader's boundary turns into which kind, and what is told of what it does not."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from onnxprune.errors import DataError, LimitError, ModelError, OnnxPruneError, UsageError, explained, listed, reading


def test_whatever_a_file_breaks_is_told_of_the_file() -> None:
    told = r"^m.onnx: the graph cannot be understood: KeyError: 'x'$"
    with pytest.raises(ModelError, match=told), reading("m.onnx: the graph cannot be understood", ModelError):
        raise KeyError("x")


def test_a_package_that_cannot_be_imported_is_not_told_of_the_file() -> None:
    with pytest.raises(ModuleNotFoundError) as seen, reading("m.onnx: the graph cannot be understood", DataError):
        raise ModuleNotFoundError("No module named 'secrets'")
    told = explained(seen.value)
    assert type(told) is OnnxPruneError
    assert "No module named 'secrets'" in str(told)
    assert "install onnxprune again" in str(told)


def test_a_system_without_memory_is_no_matter_of_the_disk() -> None:
    refused = OSError(errno.ENOMEM, "Cannot allocate memory", "o.onnx")
    told = explained(refused)
    assert isinstance(told, LimitError) and "more memory" in str(told)
    with pytest.raises(LimitError, match=r"^m.onnx: Cannot allocate memory"), reading("m.onnx", ModelError):
        raise refused


def test_half_a_character_is_the_matter_of_who_wrote_it() -> None:
    with pytest.raises(UnicodeEncodeError) as seen:
        "\ud83d".encode()
    assert isinstance(explained(seen.value), UsageError)


def test_links_in_a_circle_are_the_matter_of_who_named_them(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match="circle"):
        try:
            (tmp_path / "loop" / "o.onnx").resolve()
        except RuntimeError as error:
            raise explained(error) from error
        else:  # from Python 3.13 on nothing is raised here, and the system says it where the file is opened
            raise UsageError("circle")


def test_a_message_lists_as_many_names_as_are_read() -> None:
    assert listed([]) == "" and listed(["a", 1]) == "'a', 1"
    assert len(listed([f"column {i}" for i in range(10**6)])) < 500 and len(listed(["x" * 10**6])) < 100
