"""Files of the program's own that stand for files of the user, which errors are about."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_originals: dict[Path, dict[Path, Path]] = {}
"""A file -> of each that it was made of, the user's, which may hold others beside it."""


def note(file: Path, parts: Mapping[Path, Path]) -> None:
    """Say what a file was put together from.

    Args:
        parts: a file that holds one of the graphs -> the user's file that it is from.
    """
    _originals[file.resolve()] = dict(parts)


def parts_of(file: str | os.PathLike[str]) -> Mapping[Path, Path]:
    """What was said of a file; nothing where it is the user's own."""
    return _originals.get(Path(file).resolve(), {})
