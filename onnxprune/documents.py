"""JSON and YAML that other people wrote: read within bounds, and checked against the types that the reader expects.

`read_json` gives plain data or one error that names the file; `built` makes of it a frozen dataclass, field by field
as its annotations say, or one error that names the field.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import stat
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.errors import InputError, OnnxPruneError, one_line, reading, said

UNPACKED_BY = {
    ".gz": "gunzip -k", ".bz2": "bunzip2 -k", ".xz": "unxz -k", ".zst": "unzstd", ".zip": "unzip", ".tar": "tar -xf",
    ".tgz": "tar -xf", ".7z": "7z x",
}  # fmt: skip
"""Suffixes of files that hold others, and what takes these out."""
MOST = 1 << 30
"""Bytes of a document; the largest are tokenizers and reports, of some ten megabytes."""


def regular(path: str | os.PathLike[str], kind: type[OnnxPruneError] = InputError) -> int:
    """The bytes of a file; a pipe or a device, which may never end, is none.

    Raises:
        kind: there is no such file, it cannot be reached, or it is a folder, a pipe or a device.
    """
    try:
        found = Path(path).stat()
    except (OSError, ValueError) as error:
        raise kind(f"{one_line(os.fspath(path))}: cannot be read ({said(error)}): check the path") from error
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise kind(f"{os.fspath(path)}: {what}, where a file is expected")
    return found.st_size


def read_text(path: str | os.PathLike[str], kind: type[OnnxPruneError] = InputError, *, most: int = MOST) -> str:
    """A file's text, UTF-8 with or without a byte-order mark.

    Raises:
        kind: it cannot be read, is larger than `most` bytes, or is not UTF-8.
    """
    if (size := regular(path, kind)) > most:
        raise kind(f"{os.fspath(path)}: {size / 1e6:.0f} MB; files of this kind are read up to {most / 1e6:.0f} MB")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        raise kind(f"{os.fspath(path)}: not UTF-8 text ({where}): save it as UTF-8") from error
    except OSError as error:
        raise kind(f"{os.fspath(path)}: cannot be read ({said(error)})") from error


def utf8(text: str) -> str:
    """Text as a UTF-8 file can hold it.

    Names of files that the locale's encoding lacks come as stand-ins for their bytes, which are put back; what is no
    character at all (half a surrogate pair, in a name or a row) becomes a mark.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")


def read_json(path: str | os.PathLike[str], what: str, kind: type[OnnxPruneError] = InputError) -> Any:
    """The plain data in a JSON file.

    Args:
        what: what the file should be, for the message: "a plan".

    Raises:
        kind: it cannot be read, or holds no JSON.
    """
    text = read_text(path, kind)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise kind(f"{os.fspath(path)}: not {what}: no JSON ({said(error)})") from error


def read_object(path: str | os.PathLike[str], what: str, kind: type[OnnxPruneError] = InputError) -> dict[str, Any]:
    """As `read_json`, where an object is expected.

    Raises:
        kind: as there, or it holds something else.
    """
    held = read_json(path, what, kind)
    if not isinstance(held, dict):
        raise kind(f"{os.fspath(path)}: not {what}: it holds {_named(held)}, not an object")
    return held


def built(expected: Any, value: Any, where: str, kind: type[OnnxPruneError] = InputError) -> Any:
    """Plain data as the annotated type `expected`; keys that a dataclass does not have are left out.

    Numbers stay what they are: a true is no 1, a 1.5 no whole number; null stands for a number that JSON lacks (NaN).

    Args:
        where: names the value in messages: "plan.json: keep".

    Raises:
        kind: a field that is missing or of another kind.
    """
    with reading(where, kind):
        return _built(expected, value, where, kind)


def _built(expected: Any, value: Any, where: str, kind: type[OnnxPruneError]) -> Any:
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _built(next(a for a in arguments if a is not type(None)), value, where, kind)
    if dataclasses.is_dataclass(expected) and isinstance(expected, type):
        return _fields(expected, value, where, kind)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else list(arguments)
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_built(k, held, f"{where}[{i}]", kind) for i, (k, held) in pairs)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        keys = {_built(arguments[0], key, f"{where}: key", kind): key for key in value}
        return {key: _built(arguments[1], value[own], f"{where}.{own}", kind) for key, own in keys.items()}
    if expected is float and (value is None or (isinstance(value, int | float) and not isinstance(value, bool))):
        return math.nan if value is None else float(value)
    if expected in (int, str, bool) and type(value) is expected:
        return value
    raise kind(f"{where}: {_named(value)} is not what belongs there ({_expectation(expected)})")


def _fields(expected: type, value: Any, where: str, kind: type[OnnxPruneError]) -> Any:
    if not isinstance(value, Mapping):
        raise kind(f"{where}: {_named(value)} is not an object")
    hints = typing.get_type_hints(expected)
    given: dict[str, Any] = {}
    for held in dataclasses.fields(expected):
        required = held.default is dataclasses.MISSING and held.default_factory is dataclasses.MISSING
        if held.name in value:
            given[held.name] = _built(hints[held.name], value[held.name], f"{where}.{held.name}", kind)
        elif required:
            raise kind(f"{where}.{held.name} is missing")
    return expected(**given)


def _named(value: Any) -> str:
    """A value for a message."""
    return (
        one_line(json.dumps(value, default=str), 60)
        if isinstance(value, str | int | float | None)
        else _KINDS["object" if isinstance(value, Mapping) else "list" if isinstance(value, Sequence) else "other"]
    )


_KINDS = {"object": "an object", "list": "a list", "other": "something else"}


def _expectation(expected: Any) -> str:
    """A type for a message."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if expected in names:
        return names[expected]
    if typing.get_origin(expected) is not tuple:
        return "an object"
    arguments = typing.get_args(expected)
    return "a list" if arguments[-1] is ... else f"a list of {len(arguments)}"
