"""A pruned model's files: one, or one for each graph of a folder, and the file that sessions open for all of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune import rewrite
from onnxprune.export.precision import quantize
from onnxprune.graph import joined, model_files, prepare
from onnxprune.graph import model as models
from onnxprune.graph.model import Model
from onnxprune.graph.outputs import Lasting, OutputSet, manifest, scratch
from onnxprune.graph.plan import Plan, Structure
from onnxprune.graph.prepare import optional_inputs
from onnxprune.measure.cost import Costs


@dataclass(frozen=True)
class Written:
    """What was written of a pruned model.

    Attributes:
        files: one a graph, but for those that are merged.
        alone: files with one graph each, in the order of the model's parts; none where it has none.
        whole: what sessions open: the file; of several graphs, the graph that these files are together.
        scratch: what holds the latter.
        name: tells it from all else that other processes wrote in this run; none where this one did.
    """

    files: tuple[Path, ...]
    whole: Path
    alone: tuple[Path, ...] = ()
    scratch: Any = None
    name: str = ""

    def known(self) -> str:
        """What is found out about it goes by this: its name, or the digest of what it holds."""
        return self.name or models.digest_of(self.whole)

    @property
    def size(self) -> int:
        """Bytes, weights beside the files included."""
        return sum(map(model_files.size, self.files))


@dataclass(frozen=True)
class Product:
    """What a plan makes of a model, and what that costs.

    Attributes:
        made: its files.
        spent: "flops" (multiply-accumulates) and "params", before positions that nothing reads are left out.
        unread: multiply-accumulates that go with those.
        said: what a caller who overrides initializers must know; None where nobody can.
        graph: what was written; None where another process wrote it.
    """

    made: Written
    spent: Mapping[str, float]
    unread: int
    said: str | None
    graph: ir.Model | None

    def moved(self, folder: Path) -> Product:
        """The same with its file, and what lies beside it, in another folder. Not for several graphs."""
        (file,) = self.made.files
        for part in file.parent.iterdir():
            shutil.move(part, folder / part.name)
        return replace(self, made=replace(self.made, files=(folder / file.name,), whole=folder / file.name))


def produce(
    dense: Model,
    structure: Structure,
    plan: Plan,
    bindings: Mapping[str, int],
    folder: Path,
    name: str,
    *,
    keep_unread: bool = False,
) -> Product:
    """Carry out a plan, and write what it gives into a folder.

    Args:
        bindings: symbol -> size, at which costs are counted.
        name: of the file; several files have the names of those they come from.
        keep_unread: also compute positions that nothing reads.
    """
    pruned = rewrite.apply(dense, structure, plan)

    def costs() -> Costs:
        return Costs(replace(dense, normal=pruned), structure, bindings)

    macs, params = costs().macs(), costs().params()
    unread = 0
    if not keep_unread and rewrite.drop_unread(pruned):
        unread = macs - costs().macs()
    said = optional_inputs.changes(pruned)
    spent = {"flops": float(macs), "params": float(params)}
    return Product(write(dense, pruned, folder, name), spent, unread, said, pruned)


def write(dense: Model, pruned: ir.Model, folder: Path, name: str) -> Written:
    """Write a pruned graph into a folder.

    Args:
        name: of the file; several files have the names of those they come from.
    """
    if not dense.parts:
        file = models.save(pruned, folder / name)[0]
        return Written((file,), file)
    graphs = joined.written(dense, pruned)
    files = tuple(models.save(graph, folder / (n if dense.several else name))[0] for n, graph in graphs.items())
    scratch = Lasting()
    single = joined.alone(files, scratch)
    parts = tuple(single[part.file.stem][0] for part in dense.parts)
    assert dense.path is not None
    whole = joined.open_file(parts, [part.wires for part in dense.parts], scratch.path / dense.path.name)
    return Written(files, whole, parts, scratch)


def handed_out(dense: Model, pruned: ir.Model) -> ir.Model:
    """A pruned graph as a file has it, for who asked for it; several graphs are parted when they are written."""
    return pruned if dense.parts else prepare.written(pruned)


def in_fewer_bits(dense: Model, made: Written, asked: str, scheme: str, out: OutputSet) -> None:
    """Write files of several graphs in fewer bits beside them, each graph by itself.

    Args:
        asked: what the user calls the scheme, which is in the names: decoder_model_int8.onnx.
        scheme: one that takes no calibration rows.
    """
    with scratch() as place:
        alone = [models.read(quantize(file, place / file.name, scheme, ())) for file in made.alone]
        for name, graph in joined.gathered(dense, alone).items():
            target = f"{Path(name).stem}_{asked}.onnx" if dense.several else name_of(out, f"{asked}.onnx")
            models.write(graph, out.folder / target)


def name_of(out: OutputSet, kind: str) -> str:
    """What a file beside the model is called: NAME.report.json, or report.json in a folder of its own."""
    if out.first == manifest.MANIFEST:
        return kind
    return f"{out.first.removesuffix('.onnx')}.{kind}"


def listed(out: OutputSet, dense: Model, told: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Write the manifest of a folder that holds several graphs; nothing where a set is no folder."""
    if out.first == manifest.MANIFEST:
        manifest.write(out.folder, **told, model=str(dense.home), models=[f.name for f in files])
