"""A model's files on disk, without reading its weights: which they are, how large, whether they are what they were."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

from onnxprune.errors import ModelError, UsageError, said
from onnxprune.graph.external_tensors import tensors_elsewhere


def move(file: Path, target: Path) -> list[Path]:
    """Move a model, whose weights may lie beside it in a file named after it; where its files now are."""
    import onnx

    names = {name: target.name + name.removeprefix(file.name) for name in locations(file) if name.startswith(file.name)}
    if not names:
        return [Path(shutil.move(file, target))]
    proto = onnx.load(file, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = names.get(entry.value, entry.value)
    target.write_bytes(proto.SerializeToString())
    file.unlink()
    return [target, *(Path(shutil.move(file.parent / old, target.parent / new)) for old, new in names.items())]


def size(file: Path) -> int:
    """Bytes of a model file and of the weights that it keeps in other files."""
    held = {file, *(file.parent / name for name in locations(file))} if file.suffix == ".onnx" else {file}
    return sum(f.stat().st_size for f in held if f.exists())


def locations(file: Path) -> frozenset[str]:
    """The files of a model's external tensors, as they are named in it: relative to its folder."""
    return _locations(file, stamp_of(file))


@lru_cache(maxsize=8)
def _locations(file: Path, stamp: tuple[int, ...]) -> frozenset[str]:
    """Of a file as it is by its stamp: whoever asks for its size would parse all weights again."""
    told = (entry for tensor in tensors_elsewhere(file) for entry in tensor.external_data)
    return frozenset(entry.value for entry in told if entry.key == "location")


def stamp_of(file: Path) -> tuple[int, ...]:
    """What tells a file from another of its name, and from itself after it was written to."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


_watched: ContextVar[tuple[Path, dict[Path, tuple[int, ...]]] | None] = ContextVar("watched", default=None)
"""The model that somebody watches, and what the system said of each of its files when it was loaded."""


def watch(file: Path, seen: Mapping[Path, tuple[int, ...]]) -> None:
    """Count the files of a model, with their stamps, among those of which `watched` says whether they changed.

    Args:
        file: the graph's; others than the one that is watched, or a graph in that folder, count nothing.
    """
    source, known = _watched.get() or (None, {})
    if source is not None and source in (file, file.parent, file.parent.parent):
        known.update(seen)


def changed(file: Path, told: str) -> ModelError:
    """Of a file that is not what it was.

    Args:
        told: what came of it.
    """
    return ModelError(
        f"{file}: was changed or taken away while the run read it, {told}; nothing was written: run it again on a file "
        "that stays"
    )


@contextmanager
def watched(source: Path) -> Iterator[None]:
    """Of what fails inside because a model's files were changed or taken away meanwhile, say that.

    Weights are read from their files again and again, and one that is written to may look like any damage.

    Args:
        source: the model's file, or the folder that it is in.

    Raises:
        ModelError: of whatever failed, where a file is not what it was when it was loaded.
    """
    seen: dict[Path, tuple[int, ...]] = {}
    token = _watched.set((source, seen))
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        for file, stamp in seen.items():
            if stamp_of(file) != stamp:
                raise changed(file, f"and so it failed: {said(error)}") from error
        raise
    finally:
        _watched.reset(token)
