"""What every target is given, what it gives back, and the protocol between."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from onnxprune.data import Dataset
from onnxprune.export.fixed_shapes import SEQUENCE, fix, sizes_for
from onnxprune.export.precision import SCHEMES, Step, quantize
from onnxprune.export.precision.apply import scheme_of
from onnxprune.export.precision.integer import Feeds
from onnxprune.export.usability import Usability
from onnxprune.graph import model as models
from onnxprune.graph.model import InputSpec, Model, Part
from onnxprune.graph.runtime import SavedStyle
from onnxprune.measure.equivalence import Equivalence
from onnxprune.measure.runnable_sizes import runnable
from onnxprune.measure.validation import Evidence

Rows = Callable[[Sequence[InputSpec]], Dataset | None]


@dataclass(frozen=True)
class Artefact:
    """One model file of an exported folder.

    Attributes:
        file: its name in the folder.
        purpose: what loads it.
        scheme: how it is quantised; empty for single precision.
        fixed: sizes of the dimensions that were fixed; empty where shapes are free.
        bytes: its size.
        agreement: against the model that was exported, in ONNX Runtime on the CPU, on the samples.
        evidence: against the dense original, on the evaluation rows; None without any.
        placement: what a provider that runs here takes of it, in words.
    """

    file: str
    purpose: str
    scheme: str = ""
    fixed: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0
    agreement: Equivalence | None = None
    evidence: Evidence | None = None
    placement: str = ""


@dataclass(frozen=True)
class Exported:
    """What an export gives.

    Attributes:
        target: its name.
        folder: where everything lies.
        artefacts: the model files, the first one is what most apps load.
        usability: what mobile providers make of the graph, form by form.
        advice: what helped, and what else would.
        steps: accuracy of each step alone and together; empty without evaluation rows.
        vocabulary: what trimming the vocabulary did, in numbers; None where it was not trimmed.
        source_bytes, dense_bytes: sizes of the model that was exported and of its dense original (0 if unknown).
        said: what was guessed or left out.
        seconds: the whole export.
        graphs: the first file of each graph.
    """

    target: str
    folder: Path
    artefacts: tuple[Artefact, ...]
    usability: tuple[Usability, ...] = ()
    advice: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    vocabulary: Mapping[str, Any] | None = None
    source_bytes: int = 0
    dense_bytes: int = 0
    said: tuple[str, ...] = ()
    seconds: float = 0.0
    graphs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What the user asked of an export.

    Attributes:
        quantize: a scheme of `precision`, `int8` for the target's own, or None.
        shape: sizes of dimensions, by the graph's names.
        bench: add the device kit.
        runtime: folder of onnxruntime-web's files, for the web page; None to look for it.
    """

    quantize: str | None = None
    shape: Mapping[str, int] = field(default_factory=dict)
    bench: bool = False
    runtime: Path | None = None


@dataclass(eq=False)
class Workshop:
    """What a target works with.

    Attributes:
        model: the normalised graph.
        file: the same as a file, in single precision.
        companions: the folder with its tokenizer and configuration.
        folder: where the export is put together.
        scratch: for what is not shipped.
        asked: the user's options.
        read: calibration rows as feeds for given inputs; None without any.
        compared: a few rows as feeds for given inputs: what files are compared on, and a device checks itself with.
        dense: the dense original, where it is known.
        part: of several graphs, the one that is made here.
        stored: every ORT-format file: (source, style, file).
    """

    model: Model
    file: Path
    companions: Path
    folder: Path
    scratch: Path
    asked: Asked
    read: Rows
    compared: Callable[[Sequence[InputSpec]], Dataset]
    dense: Path | None = None
    part: Part | None = None
    usability: list[Usability] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    stored: list[tuple[Path, SavedStyle, Path]] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """What the files are called."""
        return "model" if self.part is None else self.part.file.stem

    def say(self, line: str) -> None:
        told = line if self.part is None else f"{self.stem}: {line}"
        if told not in self.said:
            self.said.append(told)

    def survey(self, found: Sequence[Usability]) -> None:
        """Note what mobile providers make of a form of the graph."""
        named = found if self.part is None else [replace(u, stage=f"{self.stem}, {u.stage}") for u in found]
        self.usability += named

    def rows(self, inputs: Sequence[InputSpec]) -> list[Feeds]:
        """Calibration rows as feeds; empty without any."""
        found = self.read(inputs)
        return [] if found is None else [example.feeds for example in found.examples]

    def quantized(self, source: Path, scheme: str, target: Path, *, by_row: bool = True) -> Path:
        """`source` in fewer bits; ranges come from the calibration rows. `by_row` is that of `precision.quantize`."""
        model = models.read(source)
        inputs = tuple(models.spec(v) for v in model.graph.inputs if v.name not in model.graph.initializers)
        rows = self.rows(inputs) if SCHEMES[scheme_of(scheme)].rows else ()
        return quantize(source, target, scheme, rows, by_row=by_row)

    def copy_model(self, target: Path) -> None:
        """The model in single precision, weights inside the file where they fit."""
        model = models.read(self.file)
        models.save(model, target)

    def sizes(self) -> dict[str, int]:
        """A size for every symbolic dimension: as asked, as rows have it, or one that the graph runs with."""
        rows = self.read(self.model.inputs)
        found = sizes_for(self.model.inputs, self.asked.shape, rows, self.companions)
        guessed = [d for s in self.model.inputs for d in s.shape if isinstance(d, str) and found.get(d) == SEQUENCE]
        if rows is not None or self.part is not None or not set(guessed) - self.asked.shape.keys():
            return found
        known = {name: size for name, size in found.items() if name not in guessed} | dict(self.asked.shape)
        return found | runnable(self.model, known, SEQUENCE)

    def fixed(self) -> tuple[ir.Model, dict[str, int]]:
        """A copy of the graph with every size fixed, and the sizes."""
        copy = self.model.clone()
        symbols = {d for spec in self.model.inputs for d in spec.shape if isinstance(d, str)}
        sizes = self.sizes()
        guessed = {name: size for name, size in sizes.items() if name not in self.asked.shape and name in symbols}
        if guessed:
            said = ", ".join(f"{name}={size}" for name, size in guessed.items())
            self.say(f"shapes are fixed at {said}; --shape {said.replace(', ', ',')} says otherwise")
        return fix(copy.normal, sizes), {name: size for name, size in sizes.items() if name in symbols}


class Target(Protocol):
    """A place that models are shipped to.

    Attributes:
        name: on the command line.
        summary: one line for the user.
        int8: the scheme that plain `--quantize int8` means there, with and without calibration rows.
    """

    name: str
    summary: str
    int8: tuple[str, str]

    def build(self, shop: Workshop) -> list[Artefact]:
        """Write the model files into the shop's folder."""
        ...

    def guide(self, shop: Workshop, artefacts: Sequence[Artefact]) -> str:
        """The part of the README that loads them: the sections after the introduction."""
        ...


def scheme_for(target: Target, shop: Workshop) -> str:
    """The scheme that was asked for, as this target means it; empty for none."""
    asked = shop.asked.quantize
    if asked is None:
        return ""
    return scheme_of(asked, target.int8[0 if shop.read(shop.model.inputs) is not None else 1])


def literal(text: str) -> str:
    """A text as a string of the languages that guides are in: names of a graph may hold anything."""
    return json.dumps(text, ensure_ascii=False)
