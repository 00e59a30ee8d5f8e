"""Files that rows name, and archives: what lies where rows may reach, and how large what is in them may become."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.documents import regular
from onnxprune.errors import DataError, LimitError, one_line, repeated
from onnxprune.graph import outputs

MOST_BYTES = 4_000_000_000
"""Of an archive's arrays, together."""
MOST_FILE = 1 << 29
"""Bytes of one image or sound."""


def within(value: str | Path, folder: Path | None, where: str, *, allowed: bool) -> Path:
    """The file that a row names.

    Args:
        value: a path, relative to the rows' folder.
        folder: of the rows; None where rows are no file's.
        where: the row, for messages.
        allowed: whether it may lie outside of the folder.

    Raises:
        DataError: there is no such file, it is larger than half a gigabyte, or lies outside.
        UsageError: the run would overwrite it.
    """
    told = one_line(str(value), 120)
    path = (folder or Path()) / value
    try:
        there = path.is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        raise DataError(f"{where}: no file {told}: paths are relative to the file of the rows")
    if folder is not None and not allowed and not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{where}: {told} lies outside the folder of the rows: --allow-outside reads it")
    if (size := regular(path, DataError)) > MOST_FILE:
        raise DataError(f"{where}: {told} has {size / 1e6:.0f} MB; {MOST_FILE / 1e6:.0f} MB are the most")
    outputs.reading(path)
    return path


MOST_ARRAYS = 4096
"""Of a file: a graph has some hundred inputs (caches), and reading a header takes a third of a millisecond."""


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, without objects.

    Raises:
        DataError: an array is not as long as it says, two have one name, they are more than any graph takes, or the
            file is a single array.
        LimitError: together they are larger than `MOST_BYTES`.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: cannot be read as .npz: no such archive: write it with numpy.savez, without objects")
    with zipfile.ZipFile(path) as archive:
        total, members = 0, archive.infolist()
        if len(members) > MOST_ARRAYS:
            raise DataError(
                f"{path}: {len(members):,} arrays; {MOST_ARRAYS:,} are the most: rows lie along an array's first axis"
            )
        if (twice := repeated(m.filename for m in members)) is not None:
            raise DataError(f"{path}: holds {one_line(twice, 60)} twice: write it with numpy.savez")
        for member in members:
            if not member.filename.endswith(".npy"):
                raise DataError(f"{path}: {one_line(member.filename, 60)} is no array: write it with numpy.savez")
            with archive.open(member) as stream:
                claimed, start = _claimed(stream)
            if claimed + start != member.file_size:
                raise DataError(
                    f"{path}: array {one_line(member.filename, 60)} claims {claimed:,} bytes and has "
                    f"{max(member.file_size - start, 0):,}: the file is damaged"
                )
            total += claimed
    if total > MOST_BYTES:
        raise LimitError(
            f"{path}: {total / 1e9:.1f} GB of arrays; {MOST_BYTES / 1e9:.0f} GB are read at once: give fewer rows"
        )
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _claimed(stream: Any) -> tuple[int, int]:
    """(bytes of the array by its header, bytes of the header)."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("an array of objects, which may run code when it is read")
    if any(size < 0 for size in shape):
        raise ValueError(f"an array of shape {list(shape)}")
    return math.prod(shape) * dtype.itemsize, stream.tell()
