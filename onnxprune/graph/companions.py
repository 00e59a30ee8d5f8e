"""The tokenizer and configuration files that belong to a model and go where it goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onnxprune.errors import ModelError, UsageError
from onnxprune.graph.outputs import Inputs, OutputSet, digest
from onnxprune.graph.outputs.manifest import MANIFEST

COMPANIONS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "vocab.json", "vocab.txt", "merges.txt",
    "spiece.model", "sentencepiece.bpe.model", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    "added_tokens.json", "source.spm", "target.spm", "normalizer.json", "processor_config.json", "chat_template.jinja",
)  # fmt: skip
"""Files of a model folder."""
GRAPHS = "onnx"
"""The folder that repositories of models keep their graphs in, below what belongs to them."""


def folders(place: Path) -> tuple[Path, ...]:
    """Where what belongs to a model lies: in its folder, and of one called `onnx` in the one above, too."""
    return (place, place.parent) if place.resolve().name == GRAPHS else (place,)


def beside(folder: Path) -> list[Path]:
    """The companions of the models in a folder; a file of it names the folder.

    Raises:
        ModelError: one is a link to a file elsewhere. What belongs to a model is copied and shipped with it, and a
            folder that others made could name any file of the user's.
    """
    place = folder if folder.is_dir() else folder.parent
    found = named(place)
    for file in found:
        if file.is_symlink() and not _inside(file, place):
            raise ModelError(
                f"{file}: is a link out of the model's folder, and is not followed, as it would be copied to where the "
                "model goes; put the file itself there"
            )
    return found


def named(place: Path) -> list[Path]:
    """The same of a folder that the user named for them (--tokenizer), which may hold links."""
    return [file for name in COMPANIONS if (file := _of(place, name)) is not None]


def _inside(file: Path, place: Path) -> bool:
    """Whether a link leads to its own folder or, as in the Hugging Face cache, to where those of the graphs lead."""
    real = file.resolve()
    if real.is_relative_to(file.parent.resolve()):
        return True
    return any(graph.is_symlink() and graph.resolve().parent == real.parent for graph in place.glob("*.onnx"))


def _of(place: Path, name: str) -> Path | None:
    return next((folder / name for folder in folders(place) if (folder / name).is_file()), None)


def differences(source: Path, target: Path, *, force: bool) -> list[str]:
    """What the user should know where a model comes into a folder that has companions of another one.

    Raises:
        UsageError: one of them is not the model's own, and `force` is off.
    """
    if source.resolve() == target.resolve():
        return []
    stay, replaced = [], []
    for name in COMPANIONS:
        ours, theirs = _of(source, name), target / name
        if not theirs.is_file():
            continue
        if ours is None:
            stay.append(name)
        elif digest(ours) != digest(theirs):
            if not force:
                raise UsageError(
                    f"{theirs} is another model's: it differs from {ours}. Name another folder with -o, so that "
                    "neither model is read with what belongs to the other; --force replaces it"
                )
            replaced.append(name)
    said = []
    if stay:
        said.append(f"{', '.join(stay)} in {target}: there is no such file beside the model; is it this model's?")
    if replaced:
        said.append(f"{', '.join(replaced)} in {target}: replaced by the model's own, which differs")
    return said


def add_companions(source: Path, out: OutputSet) -> None:
    """Put companions into a set: those that its folder lacks, and, where the set replaces, those that differ there.

    A set that is a folder of its own has them all.
    """
    if out.first == MANIFEST:
        copy_companions(source, out.folder)
        return
    if out.base is None or source.resolve() == out.base.resolve():
        return
    for file in _wanted(source, out.base, force=out.force):
        if out.inputs.clash(out.base / file.name) is None:  # what was named with --tokenizer is never written
            out.add(file, file.name)


def copy_companions(source: Path, target: Path) -> None:
    """Copy companions into a folder that is being put together."""
    for file in beside(source):
        (target / file.name).write_bytes(file.read_bytes())


def read_with(model: Path) -> Inputs:
    """A model's companions as inputs."""
    return Inputs.of(beside(model))


def _wanted(source: Path, target: Path, *, force: bool) -> Iterator[Path]:
    for file in beside(source):
        there = target / file.name
        if not there.exists() or (force and digest(file) != digest(there)):
            yield file
