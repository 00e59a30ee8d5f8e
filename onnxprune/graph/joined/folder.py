"""The graphs of one folder, or of one file: which of them are one job, and the graph that they are together."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.graph import model as models
from onnxprune.graph import prepare, stand_ins
from onnxprune.graph.joined.join import join
from onnxprune.graph.joined.merged import BEHIND, FIRST, apart, branch_of, mentions, together
from onnxprune.graph.joined.split import split
from onnxprune.graph.joined.wiring import Interface, running_order, wire
from onnxprune.graph.model import Model, Part, Wires
from onnxprune.graph.outputs import Lasting
from onnxprune.graph.values import is_matrix

_MERGED = re.compile(r"_merged$")
_VARIANT = re.compile(r"_(quantized|fp16(-\w+)?|int8(-\w+)?|uint8|q4|q4f16|q8|bnb4|optimized|O[1-4])$")
"""What exporters, and `--quantize`, append to the names of files in another precision."""
_ALONE = "decoder_model", "decoder_with_past_model"
"""What the two graphs of a merged file are called that is given alone, whatever its name."""


def is_folder(path: Path) -> bool:
    """Whether a path is a folder of several graphs, of which none is the model alone."""
    return path.is_dir() and not (path / "model.onnx").exists() and len(list(path.glob("*.onnx"))) > 1


def is_job(path: Path) -> bool:
    """Whether a path stands for several graphs: such a folder, or a file that two decoders were merged in."""
    path = models.graphs_of(path)
    if is_folder(path):
        return True
    file = next(iter(path.glob("*.onnx")), path) if path.is_dir() and not (path / "model.onnx").exists() else path
    return file.is_file() and mentions(file) and branch_of(models.read(file)) is not None


def members(path: Path) -> tuple[list[Path], tuple[str, ...]]:
    """(the files that are cut as one, what is said of the others).

    Args:
        path: one that is a job.

    Raises:
        UnsupportedError: the files are one graph in several forms.
    """
    if not is_folder(path):
        return [models.find(path)], ()
    files = sorted(path.glob("*.onnx"))
    stems = {f.stem for f in files}
    plain = [f for f in files if not ((found := _VARIANT.search(f.stem)) and f.stem[: found.start()] in stems)]
    said = (
        [f"{', '.join(f.name for f in files if f not in plain)}: the same graphs in another precision, left out"]
        if len(plain) < len(files)
        else []
    )
    for file in [f for f in plain if _MERGED.search(f.stem)]:
        beside = [name for name in _names(file) if name in stems]
        if len(beside) == 1:  # the merged file holds that one, too
            plain = [f for f in plain if f.stem not in beside]
            said.append(f"{beside[0]}.onnx: is not cut, and not written: {file.name} holds it once more")
        elif beside:
            plain.remove(file)
            said.append(
                f"{file.name}: is not cut, and not written: it holds the two decoders beside it once more; merge the "
                "pruned ones with optimum.onnx.merge_decoders"
            )
    if len(plain) < 2:
        raise UnsupportedError(f"{path}: its files are one graph in several forms; give one of them")
    return plain, tuple(said)


def _names(merged: Path) -> tuple[str, str]:
    """What the two graphs of a merged file are called: the first one, and the one behind a cache."""
    first = _MERGED.sub("", merged.stem)
    stem = first.removesuffix("_model")
    return first, f"{stem}_with_past{'_model' if stem != first else ''}"


def alone(files: Sequence[Path], scratch: Lasting) -> dict[str, tuple[Path, Path | None]]:
    """Name of a graph -> (a file with it alone, the merged file that it is from, if it is from one).

    Raises:
        UnsupportedError: a merged file of another form.
    """
    found: dict[str, tuple[Path, Path | None]] = {}
    for file in files:
        if len(files) > 1 and not _MERGED.search(file.stem):
            found[file.stem] = file, None
            continue
        model = models.read(file)
        if branch_of(model) is None:
            raise UnsupportedError(
                f"{file}: two graphs in one file, in a form that is not known; export them as files of their own "
                "(optimum-cli export onnx … --no-post-process, or post_process=False), prune the folder, and merge the "
                "pruned ones with optimum.onnx.merge_decoders"
            )
        names = _names(file) if len(files) > 1 else _ALONE
        for name, which in zip(names, (FIRST, BEHIND), strict=True):
            found[name] = models.write(apart(model, which), scratch.path / f"{name}.onnx")[0], file
    return found


def written(dense: Model, whole: ir.Model) -> dict[str, ir.Model]:
    """Name of the dense file -> what goes into it, of several graphs that are one; merged ones are merged again."""
    return gathered(dense, [split(whole, part) for part in dense.parts])


def gathered(dense: Model, graphs: Sequence[ir.Model]) -> dict[str, ir.Model]:
    """Name of the dense file -> what goes into it, of a graph for each part, which are used up."""
    found: dict[str, ir.Model] = {}
    for file in dense.files:
        parts = [graph for graph, part in zip(graphs, dense.parts, strict=True) if part.source == file]
        found[file.name] = parts[0] if len(parts) == 1 else together(models.read(file), *parts)
    return found


def find(path: str | os.PathLike[str]) -> Path:
    """The folder of several graphs, or the file, that a path stands for.

    Raises:
        ModelError, UnsupportedError: as `models.find`.
    """
    place = models.graphs_of(Path(path))
    return place if is_folder(place) else models.find(place)


def load(path: str | os.PathLike[str], calls: Mapping[str, int] | None = None) -> Model:
    """A model: one file's graph, or those of a folder (of a merged file) as one, normalised each on its own.

    Args:
        calls: how often each file's graph runs, where costs are counted; once by default.

    Raises:
        ModelError, UnsupportedError: as `models.load`, and where the graphs are not of one model.
        UsageError: calls of a graph that is not there.
    """
    folder = models.graphs_of(Path(path))
    if not is_job(folder):
        if calls:
            raise UsageError("--calls weighs several graphs against one another, and this is one")
        return models.load(path)
    files, said = members(folder)
    scratch = Lasting()
    single = alone(files, scratch)
    loaded = {name: models.load(file) for name, (file, _) in single.items()}
    order, wires = _wired(list(loaded.values()))
    loaded = {name: loaded[name] for name in order}
    whole, shared = join({name: one.normal.clone() for name, one in loaded.items()}, wires)
    parts = tuple(_part(one, wires[name], shared[name], single[name][1]) for name, one in loaded.items())
    _own_nothing(parts)
    digests = {p.source.name: p.model.digest for p in parts}
    told = "".join(f"{name}:{held}\n" for name, held in digests.items())
    digest = hashlib.sha256(told.encode()).hexdigest() if len(files) > 1 else digests[files[0].name]
    path = open_file(
        [p.file for p in parts], [p.wires for p in parts], scratch.path / _together(folder), [p.source for p in parts]
    )
    notes = tuple(f"{p.file.name}: {line}" for p in parts for line in p.model.said)
    return Model(prepare.stamp(whole), path, digest, (*said, *notes), parts, _calls(calls or {}, parts), scratch)


def _part(model: Model, wires: Wires, shared: Mapping[str, str], merged: Path | None) -> Part:
    """A graph with the digest of the user's file."""
    if merged is not None:
        model = replace(model, digest=models.digest_of(merged))
    return Part(model, wires, shared, merged)


@dataclass(frozen=True)
class Opened:
    """What sessions open of a path.

    Attributes:
        file: the one named; of a folder of several graphs, the graph that they are together.
        scratch: what holds the latter.
    """

    file: Path
    scratch: Lasting | None = None


def opened(path: str | os.PathLike[str]) -> Opened:
    """The file, sound, that sessions open of a path as it is; of a folder of several graphs, of all together.

    Raises:
        ModelError, UnsupportedError, LimitError: as `models.find_sound`, and where the graphs are not of one model.
    """
    folder = models.graphs_of(Path(path))
    if not is_job(folder):
        return Opened(models.find_sound(path))
    files, _ = members(folder)
    scratch = Lasting()
    single = alone(files, scratch)
    order, wires = _wired([Model(models.read(file), file, "") for file, _ in single.values()])
    by_name = {name: (file, merged or file) for name, (file, merged) in single.items()}
    own, sources = zip(*(by_name[name] for name in order), strict=True)
    return Opened(open_file(own, [wires[n] for n in order], scratch.path / _together(folder), sources), scratch)


def _together(path: Path) -> str:
    """What the graph that several are together is called."""
    return path.name if path.suffix == ".onnx" else f"{path.resolve().name}.onnx"


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


def _own_nothing(parts: Sequence[Part]) -> None:
    """Refuse a graph that goes on behind another one's caches with weights which that one does not have."""
    for part in parts:
        if not part.wires.follows:
            continue
        alone = [
            name
            for name, value in part.model.graph.initializers.items()
            if name not in part.shared and _matrix(value.const_value)
        ]
        if alone:
            raise UnsupportedError(
                f"{part.file.name} goes on behind the caches of another graph, and {len(alone)} of its matrices are "
                f"not among that one's ({', '.join(alone[:3])}{', …' if len(alone) > 3 else ''}): what is refit in one "
                "would not be in the other; export both from one model, with the same options"
            )


def _matrix(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.dtype.is_floating_point() and is_matrix(tensor)


def _calls(asked: Mapping[str, int], parts: Sequence[Part]) -> dict[str, int]:
    known = {part.file.stem for part in parts}
    for name in asked:
        if name.removesuffix(".onnx") not in known:
            raise UsageError(f"--calls {name}: the folder's graphs are {', '.join(sorted(known))}")
    return {name.removesuffix(".onnx"): count for name, count in asked.items()}


def open_file(
    files: Sequence[Path], wires: Sequence[Wires], target: Path, sources: Sequence[Path] | None = None
) -> Path:
    """The graph that some files are together, as they are, in a file that sessions open.

    Args:
        files: each behind those whose results it takes.
        sources: the user's files that they are from, where they are others: what is wrong with them is said of those.
    """
    whole, _ = join(
        {file.stem: models.read(file) for file in files}, {f.stem: w for f, w in zip(files, wires, strict=True)}
    )
    stand_ins.note(target, dict(zip(files, sources or files, strict=True)))
    for value in (v for node in whole.graph.all_nodes() for v in node.outputs):
        if not value.is_graph_output():
            value.shape = None
    return models.write(whole, target)[0]
