"""Reading and writing models: the only place that touches ONNX files.

`load` gives a normalised clone of the user's graph (functions inlined, constants folded, shapes inferred) whose
inputs, outputs, names, dynamic axes, opset imports and metadata are the user's own; `save` writes a file that holds
the weights inside, or beside it where the 2 GB limit of protobuf asks for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnx_ir as ir

from onnxprune.errors import ModelError, UnsupportedError, reading
from onnxprune.graph import companions, input_values, intake, memory, model_files, prepare
from onnxprune.graph.model_files import stamp_of
from onnxprune.graph.prepare import caches, older_opsets, optional_inputs, shared_biases
from onnxprune.graph.stored import Taken

read = intake.read
"""The file as it is, checked for what a damaged or hostile one lacks."""
OPSETS = range(11, 27)
_DECODER = re.compile(r"decoder(_model)?(_with_past)?(_model)?(_merged)?(?P<rest>.*)")
"""How exporters name the graphs of one decoder; `rest` tells apart what was made of each ("_quantized")."""
_EMBED_LIMIT = 1_900_000_000
"""Bytes of weights that still fit in one protobuf file (the format's limit is 2 GiB); writing one takes four times its
size of memory, so that it is less where less memory is stated."""


@dataclass(frozen=True)
class InputSpec:
    """One input or output of a graph: its name, element type and shape (int, symbol name, or None where unknown).

    Attributes:
        limit: what the values of an input stay below where they are indices; a number, or the name of a size.
        missing: whether the graph takes NaN for what is not known.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...]
    limit: int | str | None = field(default=None, compare=False)
    missing: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Wires:
    """What the inputs and outputs of one graph of several are called in the graph that they are together.

    Attributes:
        inputs, outputs: own name -> the name there; an input that another graph gives has the name of that output.
        follows: whether it goes on behind the caches of another graph, whose weights are its own.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    follows: bool = False


@dataclass(frozen=True)
class Part:
    """One of several graphs that are cut as one.

    Attributes:
        model: the graph alone, normalised, with its own names.
        wires: its interface among the others.
        shared: own initializer -> the one in the whole that stands for it, where another graph has it too.
        merged: the file that holds it beside another graph, behind an If; None where it has one of its own.
    """

    model: Model
    wires: Wires
    shared: Mapping[str, str] = field(default_factory=dict)
    merged: Path | None = None

    @property
    def file(self) -> Path:
        """A file that holds it alone."""
        assert self.model.path is not None
        return self.model.path

    @property
    def source(self) -> Path:
        """The user's file that it is from."""
        return self.merged or self.file

    @property
    def prefix(self) -> str:
        """Before the names of what lies inside of it."""
        return f"{self.file.stem}/"


@dataclass(frozen=True)
class Model:
    """A normalised graph and where it came from.

    Attributes:
        normal: the graph as it is worked on: control flow is opened, weights in fewer bits are numbers, every
            initializer of rank <= 1 has one reader, every node and value a unique name.
        path: the file it was read from; of several graphs, one of them all, for sessions.
        digest: sha256 of that file and its external data, in hex; plans are bound to it. Of several, of their digests.
        said: what was done to the graph that its user may not expect.
        parts: the graphs of a folder that it is made of; none where it is one file's.
        calls: how often each part runs, where its cost is counted; by file name, once where it is not named.
        scratch: what holds the file of several graphs.
        seen: what the system said of each of its files when it was read.
    """

    normal: onnx_ir.Model
    path: Path | None
    digest: str
    said: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    calls: Mapping[str, int] = field(default_factory=dict)
    scratch: Any = None
    seen: Mapping[Path, tuple[int, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<onnxprune.Model {self.path or 'in memory'}: {len(self.graph)} nodes, opset {self.opset}>"

    @property
    def ir(self) -> onnx_ir.Model:
        """The model as a file has it: what sessions take, and other tools."""
        return prepare.written(self.normal)

    @property
    def graph(self) -> onnx_ir.Graph:
        """The normalised graph."""
        return self.normal.graph

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return self.normal.opset_imports.get("", 0)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return tuple(
            replace(spec(v), limit=input_values.limit(v), missing=input_values.may_be_missing(v))
            for v in self.graph.inputs
            if v.name not in self.graph.initializers
        )

    @property
    def outputs(self) -> tuple[InputSpec, ...]:
        return tuple(spec(v) for v in self.graph.outputs)

    @property
    def home(self) -> Path | None:
        """What the user named: the file, or the folder of several."""
        return self.files[0].parent if self.several else self.files[0] if self.files else None

    @property
    def several(self) -> bool:
        """Whether it was read from several files, and is written as several."""
        return len(self.files) > 1

    @property
    def folder(self) -> Path | None:
        """Where tokenizer and configuration files are looked for."""
        return self.files[0].parent if self.files else None

    @property
    def files(self) -> tuple[Path, ...]:
        """What it was read from."""
        return tuple(dict.fromkeys(p.source for p in self.parts)) or ((self.path,) if self.path else ())

    @property
    def digests(self) -> dict[str, str]:
        """Of several graphs, file name -> digest."""
        return {part.source.name: part.model.digest for part in self.parts}

    def clone(self) -> Model:
        """A copy whose graph can be mutated; weights are shared."""
        return replace(self, normal=prepare.stamp(self.normal.clone()))


def graphs_of(path: Path) -> Path:
    """A path as it is; of a folder without graphs, the `onnx` below it, if there are some there."""
    inner = path / companions.GRAPHS
    return inner if path.is_dir() and not any(path.glob("*.onnx")) and any(inner.glob("*.onnx")) else path


def find(path: str | os.PathLike[str]) -> Path:
    """The `.onnx` file behind a path that may be an optimum folder, or a repository with its graphs in `onnx`.

    Raises:
        ModelError: nothing there.
        UnsupportedError: an ORT-format file, or a folder of several graphs.
    """
    path = graphs_of(Path(path))
    if path.is_dir():
        files = sorted(path.glob("*.onnx"))
        if not files:
            raise ModelError(f"{path}: the folder holds no .onnx file{intake.foreign.no_graph(path)}")
        if len(files) > 1 and not (path / "model.onnx").exists():
            listed = "".join(f"\n  {f.name} ({f.stat().st_size / 1e6:.1f} MB)" for f in files)
            raise UnsupportedError(
                f"{path}: holds several graphs:{listed}\nall commands take the folder as one; what was asked for "
                f"is done to one graph: give it by its name, as in {files[0]}"
            )
        return path / "model.onnx" if (path / "model.onnx").exists() else files[0]
    if not path.exists():
        raise ModelError(f"{path}: no such file{intake.foreign.absent(path)}")
    if path.suffix == ".ort":
        raise UnsupportedError(f"{path}: an ORT-format file cannot be rewritten; give the .onnx it was made from")
    return path


def relatives(file: Path) -> list[Path]:
    """Graphs beside a decoder's that are the same decoder: with a cache, without one, or merged of both."""
    found = _DECODER.match(file.stem)
    if found is None:
        return []
    return [
        f
        for f in sorted(file.parent.glob("*.onnx"))
        if f != file and (other := _DECODER.match(f.stem)) and other["rest"] == found["rest"]
    ]


def find_sound(path: str | os.PathLike[str]) -> Path:
    """As `find`, for a file that a session opens as it is: `read` has nothing against it.

    Raises:
        ModelError, UnsupportedError, LimitError: as `find` and `read`.
    """
    file = find(path)
    read(file)
    return file


def load(path: str | os.PathLike[str]) -> Model:
    """Read and normalise a model.

    Args:
        path: a `.onnx` file (external data beside it) or an optimum folder with one graph.

    Raises:
        ModelError: missing, truncated, not ONNX, or its external data is missing.
        UnsupportedError: an opset outside 7–26, or one before 11 that cannot be converted.
    """
    file = find(path)
    seen = {file: stamp_of(file)}
    model = read(file)
    seen |= {data: stamp_of(data) for data in {Path(t.path) for t in _external(model)}}
    model_files.watch(file, seen)
    version = model.opset_imports.get("", 0)
    if version not in OPSETS and version not in range(older_opsets.OLDEST, OPSETS[0]):
        raise UnsupportedError(
            f"{file}: opset {version} of the default domain; {older_opsets.OLDEST} to {OPSETS[-1]} are supported"
        )
    digest = _digest(file, _external(model))
    said: tuple[str, ...] = ()
    if version < OPSETS[0]:
        model = older_opsets.converted(model, file)
        said = (f"opset {version} was brought to {older_opsets.TARGET} by onnx's converter; what is written has that",)
    with reading(f"{file}: the graph cannot be understood", ModelError):
        prepare.normalise(model)
        shared_biases.index_sides(model)
        caches.index_caches(model)
        prepare.unique_names(model)  # a file that was pruned has nodes of the names that these were given
    return Model(model, file, digest, said, seen=seen)


def require_unchanged(model: Model) -> None:
    """Refuse what was measured on files that were exchanged meanwhile: sessions open them again and again.

    Raises:
        ModelError: a file of the model is gone, or is another than it was.
    """
    for one in [part.model for part in model.parts] or [model]:
        changed = [file for file, stamp in one.seen.items() if stamp_of(file) != stamp]
        if not changed or one.path is None:
            continue
        with contextlib.suppress(OSError, ModelError):
            if digest_of(one.path) == one.digest:  # it was but touched, or copied anew
                continue
        raise model_files.changed(changed[0], "so that what was measured is not all of one model")


def save(model: ir.Model, path: str | os.PathLike[str]) -> list[Path]:
    """Write a graph; weights go into `NAME.data` beside it when they do not fit in one file. Returns the files.

    Shapes of inner values are left out: ONNX Runtime infers them, and where they are written it fuses residual
    additions with their LayerNormalization, which its CPU kernel computes slower than the two apart (1.14 times the
    whole model's time, measured on a 6-layer encoder with ONNX Runtime 1.31).
    """
    model = prepare.written(model)
    with prepare.forgotten(model), optional_inputs.restored(model):
        return write(model, Path(path))


def write(model: ir.Model, path: Path) -> list[Path]:
    """Write a graph as it stands. Returns the files."""
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    data = path.with_name(path.name + ".data")
    if apart(size):
        ir.save(model, path, external_data=data.name)
    else:
        _internalise(model)
        ir.save(model, path)
    intake.maps.put_back(model, path)
    return [path, data] if apart(size) else [path]


def apart(nbytes: int) -> bool:
    """Whether weights of so many bytes are written to a file beside the graph's."""
    return nbytes > (min(_EMBED_LIMIT, memory.share()) if memory.stated() else _EMBED_LIMIT)


def _external(model: ir.Model) -> list[ir.ExternalTensor]:
    tensors = (v.const_value for v in model.graph.initializers.values())
    return [t for t in tensors if isinstance(t, ir.ExternalTensor)]


def _internalise(model: ir.Model) -> None:
    """Bring weights that are read from elsewhere into memory, so that the file written stands alone."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, (ir.ExternalTensor, Taken)):
            value.const_value = ir.Tensor(
                value.const_value.numpy().copy(), name=value.name, dtype=value.const_value.dtype
            )


def files_of(file: Path) -> tuple[Path, ...]:
    """A model's file and those that its weights lie in, as far as can be told before it is loaded."""
    try:
        if not intake.data_apart(file):
            return (file,)
        model = read(file)
    except Exception:  # `load` says what is wrong with it
        return (file,)
    return (file, *sorted({Path(t.path) for t in _external(model)}))


def digest_of(file: Path) -> str:
    """What `load` would give as the model's digest, without normalising it."""
    try:
        apart = intake.data_apart(file)
    except Exception:  # `read` says what is wrong with it
        apart = True
    return _digest(file, _external(read(file)) if apart else ())


def _digest(file: Path, weights: Iterable[ir.ExternalTensor]) -> str:
    hashed = hashlib.sha256()
    for part in (file, *sorted({Path(t.path) for t in weights})):
        with part.open("rb") as stream:
            while block := stream.read(1 << 22):
                hashed.update(block)
    return hashed.hexdigest()


def spec(value: ir.Value) -> InputSpec:
    """Name, type and shape of a graph input or output."""
    known = value.dtype not in (None, ir.DataType.UNDEFINED)
    dtype = value.dtype.numpy() if value.dtype is not None and known else np.dtype(object)
    dims = () if value.shape is None else value.shape
    return InputSpec(value.name or "", np.dtype(dtype), tuple(d if isinstance(d, int) else d.value for d in dims))
