"""A plan's two files as anyone could have written them: the types that must stand in plan.json, and its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.documents import regular
from onnxprune.errors import InputError, UsageError, one_line, reading
from onnxprune.graph.outputs import digest, ordinary_mode
from onnxprune.graph.put_away import Arrays, over

KINDS = ("weight", "intercept", "rest", "map")
"""What a tensor of a plan is, in front of the slash in its name."""


@dataclass(frozen=True)
class Written:
    """plan.json as it is written: see `plan.Plan`; `tensors` counts those beside it, in a file of that SHA-256.

    Older plans have no digest.
    """

    digest: str
    keep: Mapping[str, tuple[int, ...]]
    drop: tuple[str, ...]
    tensors: int
    tensors_sha256: str | None = None
    maps: tuple[str, ...] = ()
    sparsity: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    order: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tiles: Mapping[str, tuple[tuple[int, int, int, int], ...]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def tensors_beside(plan: Path) -> Path:
    """Where the tensors of a plan lie.

    Raises:
        UsageError: the plan's path names no file.
    """
    if not plan.name:
        raise UsageError(f"{plan}: is a folder; name a file in it")
    return plan.with_suffix(".safetensors")


def write_tensors(plan: Path, tensors: Mapping[str, Mapping[str, np.ndarray]]) -> str | None:
    """Write kind -> name -> tensor; the file's SHA-256, or None where there are none and no file is written."""
    named = over(*(_renamed(kind, held) for kind, held in tensors.items()))
    if not named:
        return None
    file = tensors_beside(plan)
    _write(file, named)
    ordinary_mode(file)
    return digest(file)


def _renamed(kind: str, held: Mapping[str, np.ndarray]) -> Arrays:
    return Arrays({f"{kind}/{key}": partial(_array, held, key) for key in held})


def _array(held: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    return np.asarray(held[key])


_TYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Element types as a .safetensors file names them."""


def _write(file: Path, named: Mapping[str, np.ndarray]) -> None:
    """A .safetensors file, byte by byte the library's, which would hold all tensors a second time to write them.

    Eight bytes that count those of a JSON header, the header, and the tensors one after another where it says.
    """
    header: dict[str, Any] = {}
    order, place = sorted(named, key=lambda name: (-named[name].dtype.itemsize, name)), 0
    for name in order:
        array = named[name]
        ends = [place, place + array.nbytes]
        header[name] = {"dtype": _TYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": ends}
        place = ends[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            stream.write(named[name].tobytes())


def tensors_of(plan: Path, held: Written) -> dict[str, dict[str, np.ndarray]]:
    """The tensors that belong to a plan: kind -> name -> tensor.

    Raises:
        InputError: they are missing, damaged, or another plan's.
    """
    file = tensors_beside(plan)
    if not held.tensors:
        if held.tensors_sha256 is not None or held.maps:
            raise InputError(f"{plan}: counts no tensors, and tells of some: it was changed; make the plan anew")
        if _of_a_plan(file):
            raise InputError(f"{plan}: has no tensors, and {file.name} beside it is another plan's: move that away")
        return read_tensors(None)
    if not file.exists():
        raise InputError(f"{plan}: its tensors, {file.name}, are missing beside it: copy both files together")
    if held.tensors_sha256 is not None and digest(file) != held.tensors_sha256:
        raise InputError(f"{plan}: {file.name} beside it is another plan's, or damaged: copy both files together")
    found = read_tensors(file)
    count = sum(map(len, found.values()))
    if count != held.tensors or set(found["map"]) != set(held.maps):
        raise InputError(
            f"{plan}: has {held.tensors} tensors, and {file.name} beside it {count}: that is another plan's: copy both "
            "files together"
        )
    return found


def _of_a_plan(file: Path) -> bool:
    try:
        return file.is_file() and any(read_tensors(file).values())
    except InputError:
        return False


def read_tensors(path: Path | None) -> dict[str, dict[str, np.ndarray]]:
    """Kind -> name -> tensor; nothing of no file.

    Raises:
        InputError: there is no such file, it is damaged, or holds what no plan does.
    """
    from safetensors import safe_open

    found: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in KINDS}
    if path is None:
        return found
    regular(path)
    with reading(f"{path}: the tensors of a plan cannot be read"), safe_open(path, framework="numpy") as held:
        tensors: dict[str, np.ndarray] = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        kind, _, key = name.partition("/")
        if kind not in KINDS or not key:
            raise InputError(f"{path}: {one_line(name, 60)!r} is no tensor of a plan")
        number = tensor.dtype.kind == "f" or tensor.dtype.name == "bfloat16"
        if not number or not np.isfinite(tensor).all():
            raise InputError(f"{path}: {one_line(name, 60)} holds what is no finite number: make the plan anew")
        found[kind][key] = tensor
    return found
