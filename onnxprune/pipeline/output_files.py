"""What a run writes, by name, and what it reads: asked about before any work."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.graph import companions, outputs
from onnxprune.graph import model as models
from onnxprune.graph.outputs import Inputs, OutputSet
from onnxprune.graph.outputs.manifest import MANIFEST

logger = logging.getLogger(__name__)


def beside(target: Path, quantize: str | None = None) -> list[str]:
    """The names that may stand beside a pruned model, and belong to it."""
    stem = target.name.removesuffix(".onnx")
    fewer = [f"{stem}.{quantize}.onnx", f"{stem}.{quantize}.onnx.data"] if quantize else []
    names = [f"{target.name}.data", *(f"{stem}.{kind}" for kind in _KINDS), *fewer]
    return [name for name in dict.fromkeys(names) if name != target.name]


def taken(*targets: Path | None, quantize: str | None = None) -> Inputs:
    """Pruned models and what may stand beside them: what nothing else of the run may be called."""
    return Inputs.of([[t, *(t.parent / name for name in beside(t, quantize))] for t in targets if t is not None])


_KINDS = ("plan.json", "plan.safetensors", "report.json", "report.html")


def inputs_of(file: Path, *others: Any, tokenizer: Any = None) -> Inputs:
    """Everything that a run on a model reads: the model, its weights, its companions, and what else is named.

    Args:
        file: the model's, or the folder of several graphs.
        others: paths (rows, a table, a recipe); what is no path counts nothing.
        tokenizer: a file, or a folder with several.
    """
    own = [] if tokenizer is None else [tokenizer] if Path(tokenizer).is_file() else companions.named(Path(tokenizer))
    graphs = sorted(file.glob("*.onnx")) if file.is_dir() else [file]
    return Inputs.of(
        [f for graph in graphs for f in models.files_of(graph)],
        companions.beside(file),
        own,
        *(_rows(o) for o in others),
    )


@contextmanager
def opened(
    target: Path | None,
    source: Path,
    inputs: Inputs,
    *,
    quantize: str | None = None,
    force: bool = False,
    writes_plan: bool = True,
    told: set[str] | None = None,
) -> Iterator[OutputSet]:
    """The set of files of one pruned model, with what its folder has of other models said.

    Args:
        target: the model file to write, or the folder for several graphs; None for a set that is thrown away.
        source: the dense model's file, or the folder of several graphs.
        writes_plan: whether a plan and a report are written. Where they are not, one that is read stays (a plan that
            was made under the output's name), and older ones go.
        told: what other sets of the same run have said already.
    """
    if target is None:
        with outputs.unnamed(MANIFEST if source.is_dir() else f"{source.stem}.pruned.onnx") as out:
            yield out
        return
    if source.is_dir():
        if target.suffix == ".onnx":
            raise UsageError(f"{target}: {source} holds several graphs, which go into a folder: name one with -o")
        with outputs.folder(target, inputs=inputs, force=force) as out:
            yield out
        return
    names = beside(target, quantize)
    if force:
        names += [n for n in _vouched(target) if n not in names and inputs.clash(target.parent / n) is None]
    if not writes_plan:
        names = [name for name in names if name.endswith(".data") or inputs.clash(target.parent / name) is None]
    with outputs.files(target, names, inputs=inputs, force=force) as out:
        for line in companions.differences(source.parent, target.parent, force=force):
            out.said.append(line)
            if told is None or line not in told:
                logger.warning("%s", line)
        if told is not None:
            told.update(out.said)
        yield out


_FOLDERS = tuple(sep + end for sep in (os.sep, os.altsep) if sep for end in ("", os.curdir))
"""Ends of a name that only a folder has."""


def placed(asked: str | os.PathLike[str], name: str) -> Path:
    """Where a file goes: where it was asked for; under `name` where that says a folder, be it there yet or not."""
    said, place = os.fspath(asked), Path(asked)
    return place / name if said.endswith(_FOLDERS) and str(place) != place.anchor else place


def target_of(asked: str | os.PathLike[str] | None, source: Path) -> Path:
    """Where a pruned model goes, the file or the folder of several graphs; None asks for `default_target`."""
    default = default_target(source)
    if asked is None:
        return default
    return Path(asked) if source.is_dir() else placed(asked, default.name)


def name_after(source: Path, kind: str) -> str:
    """NAME.KIND, of a model's file or of the folder of several graphs."""
    return f"{source.resolve().name if source.is_dir() else source.stem}.{kind}"


def default_target(source: Path) -> Path:
    """Where a pruned model goes that nobody named a place for: NAME.pruned.onnx, or FOLDER.pruned."""
    if source.is_dir():
        return source.resolve().with_name(f"{source.resolve().name}.pruned")
    return source.with_name(f"{source.stem}.pruned.onnx")


def digests(folder: Path, names: Sequence[str] = ()) -> dict[str, str]:
    """Name -> SHA-256 of the files that are put together in a folder."""
    return {f.name: outputs.digest(f) for f in sorted(folder.iterdir()) if not names or f.name in names}


def _vouched(target: Path) -> list[str]:
    """Further files that the report of an older set names and that are still as it says."""
    report = target.parent / f"{target.name.removesuffix('.onnx')}.report.json"
    try:
        told = json.loads(report.read_text(encoding="utf-8"))["files"].items()
        return [
            name
            for name, digest in told
            if Path(name).name == name != target.name
            and name not in companions.COMPANIONS
            and (target.parent / name).is_file()
            and outputs.digest(target.parent / name) == digest
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def _rows(source: Any) -> Any:
    """Where rows lie; `random` are made."""
    return None if isinstance(source, str) and source == "random" else source
