"""External data: bytes beside a model file, at the place that the file names. No place outside its folder is read.

What `huggingface_hub` keeps is allowed: a model file and its data that are links, side by side, into one folder of
blobs.
"""

from __future__ import annotations

import stat
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx_ir as ir

from onnxprune.errors import ModelError, one_line
from onnxprune.graph.stored import Stored


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie.

    Attributes:
        tensor: its name.
        file: the real file, without links.
        start, stop: of its bytes.
    """

    tensor: str
    file: Path
    start: int
    stop: int


def place_of(file: Path, tensor: Any, nbytes: int) -> Place:
    """Where the bytes of an external tensor lie.

    Args:
        file: the model's.
        tensor: a TensorProto whose data are external.
        nbytes: that it must have.

    Raises:
        ModelError: they lie outside the model's folder, or not wholly in a file there.
    """
    told = {entry.key: entry.value for entry in tensor.external_data}
    name = one_line(tensor.name, 80)
    location = told.get("location", "")
    where = f"{file}: external data of tensor {name}"
    start, length = (
        _number(told.get(key), default, f"{where}: {key}") for key, default in (("offset", 0), ("length", nbytes))
    )
    if length != nbytes:
        raise ModelError(f"{where}: {length} bytes, and its type and shape take {nbytes}: the file is damaged")
    data = _inside(file, location, where)
    if start + length > data.stat().st_size:
        raise ModelError(f"{file}: its external data {one_line(location, 80)} is truncated (tensor {name})")
    return Place(tensor.name, data, start, start + length)


def _number(text: str | None, default: int, where: str) -> int:
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ModelError(f"{where} is {one_line(text, 40)!r}, no number of bytes: the file is damaged")
    return int(text)


def _inside(file: Path, location: str, where: str) -> Path:
    """The real file behind a location, below the model's folder.

    Raises:
        ModelError: there is none, or it lies elsewhere.
    """
    told = one_line(location, 80)
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    if not location or "\0" in location:
        raise ModelError(f"{where}: no location is named: the file is damaged")
    if ".." in parts or PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor:
        raise ModelError(
            f"{where} lie outside the model's folder ({told}): they are not read; put them beside the model"
        )
    path = file.parent / location
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except FileNotFoundError:
        raise ModelError(
            f"{file}: its external data {told} is missing beside it (tensor {where.rsplit(' ', 1)[-1]})"
        ) from None
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError
        raise ModelError(f"{where}: {told} cannot be read ({error})") from error
    if not stat.S_ISREG(mode):
        raise ModelError(f"{where}: {told} is no regular file")
    home = file.parent.resolve()
    if real.is_relative_to(home):
        return real
    if file.is_symlink() and path.is_symlink() and real.parent == file.resolve().parent:
        return real  # a cache: both are links into one folder
    raise ModelError(f"{where}: {told} is a link out of the model's folder: it is not followed; put the data beside it")


def check_overlaps(file: Path, places: Sequence[Place]) -> None:
    """Tensors may share their bytes whole; any other overlap is damage, or a small file that stands for a large one.

    Raises:
        ModelError: two overlap in part.
    """
    by_file: dict[Path, list[Place]] = defaultdict(list)
    for place in places:
        by_file[place.file].append(place)
    for own in by_file.values():
        last: Place | None = None
        for place in sorted(own, key=lambda p: (p.start, p.stop)):
            if last is not None and place.start < last.stop and (place.start, place.stop) != (last.start, last.stop):
                names = " and ".join(one_line(p.tensor, 80) for p in (last, place))
                raise ModelError(f"{file}: the external data of {names} overlap: the file is damaged")
            last = place if place.stop > place.start else last


def place(model: ir.Model, file: Path, places: Mapping[str, Place]) -> None:
    """Let a model's external tensors be read from where they really lie, in place; `places` is by their names."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            found = places[value.name or ""]
            linked = found.file != file.parent.resolve() / tensor.location
            value.const_value = Stored(
                found.file.name if linked else tensor.location,
                found.start,
                found.stop - found.start,
                tensor.dtype,
                shape=ir.Shape(tensor.shape),
                name=tensor.name or "",
                base_dir=found.file.parent if linked else file.parent,
            )
