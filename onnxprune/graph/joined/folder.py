"""The graphs of one folder: which of them are one job, and the graph that they are together."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.graph import model as models
from onnxprune.graph import prepare
from onnxprune.graph.joined.join import join
from onnxprune.graph.joined.wiring import Interface, running_order, wire
from onnxprune.graph.model import Model, Part, Wires

_MERGED = re.compile(r"_merged\b|_merged$")
_VARIANT = re.compile(r"_(quantized|fp16|int8|uint8|q4|q4f16|q8|bnb4|optimized|O[1-4])$")
"""What exporters append to the names of files in another precision."""


class Scratch:
    """A folder that lasts as long as this does."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="onnxprune-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def is_job(path: Path) -> bool:
    """Whether a path is a folder of several graphs, of which none is the model alone."""
    return path.is_dir() and not (path / "model.onnx").exists() and len(list(path.glob("*.onnx"))) > 1


def members(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """(the files that are cut as one, what is said of the others).

    Raises:
        UnsupportedError: the files are one graph in several forms, or hold two graphs each.
    """
    files = sorted(folder.glob("*.onnx"))
    stems = {f.stem for f in files}
    plain = [f for f in files if not ((found := _VARIANT.search(f.stem)) and f.stem[: found.start()] in stems)]
    said = (
        [f"{', '.join(f.name for f in files if f not in plain)}: the same graphs in another precision, left out"]
        if len(plain) < len(files)
        else []
    )
    merged = [f for f in plain if _MERGED.search(f.stem)]
    single = [f for f in plain if f not in merged]
    for file in merged:
        if not {file.stem.replace("_merged", ""), file.stem.replace("_model_merged", "_with_past_model")} <= stems:
            raise UnsupportedError(
                f"{file}: two graphs in one file, behind an If, which are not cut; export them as files of their own "
                "(optimum-cli export onnx … --no-post-process, or post_process=False), prune the folder, and merge the "
                "pruned ones with optimum.onnx.merge_decoders"
            )
        said.append(
            f"{file.name}: is not cut, and not written: it holds the two decoders beside it once more; merge the "
            "pruned ones with optimum.onnx.merge_decoders"
        )
    if len(single) < 2:
        raise UnsupportedError(f"{folder}: its files are one graph in several forms; give one of them")
    return single, tuple(said)


def find(path: str | os.PathLike[str]) -> Path:
    """The folder of several graphs, or the file, that a path stands for.

    Raises:
        ModelError, UnsupportedError: as `models.find`.
    """
    return Path(path) if is_job(Path(path)) else models.find(path)


def load(path: str | os.PathLike[str], calls: Mapping[str, int] | None = None) -> Model:
    """A model: one file's graph, or the graphs of a folder as one, normalised each on its own.

    Args:
        calls: how often each file's graph runs, where costs are counted; once by default.

    Raises:
        ModelError, UnsupportedError: as `models.load`, and where the graphs are not of one model.
        UsageError: calls of a graph that is not there.
    """
    folder = Path(path)
    if not is_job(folder):
        if calls:
            raise UsageError("--calls weighs the graphs of a folder against one another, and this is one graph")
        return models.load(path)
    files, said = members(folder)
    loaded = {file.stem: models.load(file) for file in files}
    order, wires = _wired(list(loaded.values()))
    loaded = {name: loaded[name] for name in order}
    whole, shared = join({name: one.ir.clone() for name, one in loaded.items()}, wires)
    parts = tuple(Part(one, wires[name], shared[name]) for name, one in loaded.items())
    _own_nothing(parts, whole)
    digest = hashlib.sha256("".join(f"{p.file.name}:{p.model.digest}\n" for p in parts).encode()).hexdigest()
    scratch = Scratch()
    path = open_file([p.file for p in parts], [p.wires for p in parts], scratch.path / f"{folder.resolve().name}.onnx")
    told = tuple(f"{p.file.name}: {line}" for p in parts for line in p.model.said)
    return Model(prepare.stamp(whole), path, digest, (*said, *told), parts, _calls(calls or {}, parts), scratch)


@dataclass(frozen=True)
class Opened:
    """What sessions open of a path.

    Attributes:
        file: the one named; of a folder of several graphs, the graph that they are together.
        scratch: what holds the latter.
    """

    file: Path
    scratch: Scratch | None = None


def opened(path: str | os.PathLike[str]) -> Opened:
    """The file, sound, that sessions open of a path as it is; of a folder of several graphs, of all together.

    Raises:
        ModelError, UnsupportedError, LimitError: as `models.find_sound`, and where the graphs are not of one model.
    """
    folder = Path(path)
    if not is_job(folder):
        return Opened(models.find_sound(path))
    files, _ = members(folder)
    order, wires = _wired([Model(models.read(file), file, "") for file in files])
    scratch = Scratch()
    by_name = {file.stem: file for file in files}
    target = scratch.path / f"{folder.resolve().name}.onnx"
    return Opened(open_file([by_name[n] for n in order], [wires[n] for n in order], target), scratch)


def _wired(loaded: Sequence[Model]) -> tuple[list[str], dict[str, Wires]]:
    graphs = [Interface(m.path.stem, m.inputs, m.outputs) for m in loaded if m.path is not None]
    _refuse_variants(graphs)
    found = dict(zip([g.name for g in graphs], wire(graphs), strict=True))
    return [g.name for g in running_order(graphs)], found


def _refuse_variants(graphs: Sequence[Interface]) -> None:
    seen: dict[tuple[frozenset[str], frozenset[str]], str] = {}
    for graph in graphs:
        key = frozenset(graph.takes), frozenset(graph.gives)
        first = seen.setdefault(key, graph.name)
        if first != graph.name:
            raise UnsupportedError(
                f"{first}.onnx and {graph.name}.onnx take and give the same: they are one graph in two forms, not two "
                "of one model; give one of them by its name"
            )


def _own_nothing(parts: Sequence[Part], whole: ir.Model) -> None:
    """Refuse a graph that goes on behind another one's caches with weights which that one does not have."""
    for part in parts:
        if not part.wires.follows:
            continue
        alone = [
            name
            for name, value in part.model.graph.initializers.items()
            if name not in part.shared and value.const_value is not None and _matrix(value)
        ]
        if alone:
            raise UnsupportedError(
                f"{part.file.name} goes on behind the caches of another graph, and {len(alone)} of its matrices are "
                f"not among that one's ({', '.join(alone[:3])}{', …' if len(alone) > 3 else ''}): what is refit in one "
                "would not be in the other; export both from one model, with the same options"
            )


def _matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.dtype.is_floating_point() and sum(s != 1 for s in tensor.shape.numpy()) > 1


def _calls(asked: Mapping[str, int], parts: Sequence[Part]) -> dict[str, int]:
    known = {part.file.stem for part in parts}
    for name in asked:
        if name.removesuffix(".onnx") not in known:
            raise UsageError(f"--calls {name}: the folder's graphs are {', '.join(sorted(known))}")
    return {name.removesuffix(".onnx"): count for name, count in asked.items()}


def open_file(files: Sequence[Path], wires: Sequence[Wires], target: Path) -> Path:
    """The graph that some files are together, as they are, in a file that sessions open.

    Args:
        files: each behind those whose results it takes.
    """
    whole, _ = join(
        {file.stem: models.read(file) for file in files}, {f.stem: w for f, w in zip(files, wires, strict=True)}
    )
    for value in (v for node in whole.graph.all_nodes() for v in node.outputs):
        if not value.is_graph_output():
            value.shape = None
    return models.write(whole, target)[0]
