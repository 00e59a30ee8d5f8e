"""What the reader needs to know of a graph: its inputs by role, its batch axis, the files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from onnxprune.data.image_options import ImageOptions
from onnxprune.documents import read_object
from onnxprune.errors import DataError, one_line
from onnxprune.graph import companions
from onnxprune.graph.dimensions import hold_graphs, row_axis

Pairs = Literal["joint", "separate"]

ALIASES = {"input_mask": "attention_mask", "segment_ids": "token_type_ids"}  # names that TensorFlow exports use


class Spec(Protocol):
    """A graph input or output: `onnxprune.graph.model.InputSpec`, or anything of its shape."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int | str | None, ...]: ...
    @property
    def limit(self) -> int | str | None: ...
    @property
    def missing(self) -> bool: ...


def role(name: str) -> str:
    """What an input is for, whatever the exporter called it: `segment_ids:0` is `token_type_ids`."""
    base = name.removesuffix(":0")
    return ALIASES.get(base, base)


def shape_text(shape: Sequence[int | str | None]) -> str:
    """`[batch, 3, ?]`."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def describe(spec: Spec) -> str:
    """`input_ids (int64 [batch, sequence])`, for messages."""
    return f"{spec.name} ({np.dtype(spec.dtype).name} {shape_text(spec.shape)})"


def _main(inputs: Sequence[Spec]) -> Spec:
    """The input that rows are counted by."""
    return next((spec for spec in inputs if len(spec.shape) > 1), inputs[0])


def batch_of(inputs: Sequence[Spec]) -> int | str | None:
    """How many rows there are at once: a number, a name, or None.

    It is the size on the row axis of the input that rows are counted by.
    """
    shape = _main(inputs).shape if inputs else ()
    return shape[row_axis(shape)] if shape else None


@dataclass(frozen=True, eq=False)
class Graph:
    """The inputs and outputs of a graph as a reader of rows sees them.

    Attributes:
        inputs: in the graph's order.
        outputs: names.
        shared: inputs without a batch axis: all of them where a row is a graph, whose edges name its nodes.
        max_batch: 1 where the graph fixes its batch size, else None.
        inside: inputs whose rows are not on the first axis (states: [layers, batch, width]) -> their axis.
        together: the rows that the graph takes at once, where it fixes them at several (`fixed_batches`).
        whole: whether no input has an axis of rows, so that every row gives all of them.
    """

    inputs: tuple[Spec, ...]
    outputs: tuple[str, ...]
    shared: frozenset[str]
    max_batch: int | None
    inside: Mapping[str, int] = field(default_factory=dict)
    together: int = 1
    whole: bool = False

    @classmethod
    def of(cls, inputs: Sequence[Spec], outputs: Sequence[Spec | str] | None) -> Graph:
        """Find the batch axis.

        Raises:
            DataError: the graph has no inputs.
        """
        if not inputs:
            raise DataError("the graph has no inputs: there is nothing to feed")
        names = tuple(out if isinstance(out, str) else out.name for out in outputs or ())
        main = _main(inputs)
        if hold_graphs(inputs):
            return cls(tuple(inputs), names, frozenset(spec.name for spec in inputs), 1, whole=True)
        first = {spec.name: spec.shape[0] if spec.shape else 0 for spec in inputs}
        rows = batch_of(inputs) if main.shape else 0
        inside = {
            spec.name: spec.shape.index(rows)
            for spec in inputs
            if isinstance(rows, str) and rows in spec.shape[1:] and rows != first[spec.name]
        }
        for spec in inputs:  # one symbolic axis is the batch's or, as cache_position's, the sequence's
            if len(spec.shape) == 1 and spec.shape[0] not in (None, rows):
                first[spec.name] = 0
        free = isinstance(rows, str) or any(not isinstance(dim, int) for dim in first.values())
        if not free and first[main.name] != 1:
            every = frozenset(spec.name for spec in inputs)
            return cls(tuple(inputs), names, every, 1, together=int(first[main.name] or 0), whole=True)
        shared = {name for name, dim in first.items() if (isinstance(dim, int) if free else dim != 1)} - inside.keys()
        return cls(tuple(inputs), names, frozenset(shared), None if free else 1, inside)

    def row_axis(self, name: str) -> int:
        """The axis on which an input's rows stand."""
        return self.inside.get(name, 0)

    @cached_property
    def by_name(self) -> Mapping[str, Spec]:
        return {spec.name: spec for spec in self.inputs}

    @cached_property
    def by_role(self) -> Mapping[str, Spec]:
        return {role(spec.name): spec for spec in self.inputs}

    @cached_property
    def listing(self) -> str:
        """All inputs, for messages."""
        return ", ".join(describe(spec) for spec in self.inputs)


KINDS: Mapping[str, tuple[type, ...]] = {
    "model_type": (str,), "id2label": (dict,), "label2id": (dict,), "image_size": (int, list, dict)
}  # fmt: skip
"""Settings that are no whole numbers."""
_LARGEST = 2**31


def _checked(name: str, value: Any, file: Path | None) -> Any:
    """A setting of the kind that it should be."""
    kinds = KINDS.get(name, (int,))
    if not isinstance(value, kinds) or isinstance(value, bool) or (isinstance(value, int) and abs(value) > _LARGEST):
        wanted = {int: "a whole number", str: "text", dict: "an object"}[kinds[0]]
        told = one_line(repr(value), 40)
        raise DataError(f"{file}: {name} is {told}, not {wanted}: copy the file again from the model")
    return value


@dataclass(frozen=True, eq=False)
class Files:
    """The configuration files beside a model; a model in a folder called `onnx` also finds those of its parent."""

    folder: Path | None
    _read: dict[Path, dict[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def folders(self) -> tuple[Path, ...]:
        if self.folder is None:
            return ()
        folder = self.folder.parent if self.folder.is_file() else self.folder
        return companions.folders(folder)

    def find(self, name: str) -> Path | None:
        """The path of a file beside the model, or None."""
        return next((folder / name for folder in self.folders if (folder / name).is_file()), None)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object beside the model; empty where there is none.

        Raises:
            DataError: the file is not a JSON object.
        """
        path = self.find(name)
        return {} if path is None else self.load(path)

    def load(self, path: Path) -> dict[str, Any]:
        """A JSON object, read once.

        Raises:
            DataError: the file is not a JSON object.
        """
        if path not in self._read:
            self._read[path] = read_object(path, "a file of the model (copy it again)", DataError)
        return self._read[path]

    def setting(self, *names: str) -> Any:
        """The first of these that config.json (or the text model in it) or generation_config.json sets, or None.

        Raises:
            DataError: it is not of the kind that it should be (`KINDS`; a whole number where that names none).
        """
        config = self.json("config.json")
        places = [config, config.get("text_config"), self.json("generation_config.json")]
        for place in filter(None, (p if isinstance(p, dict) else None for p in places)):
            for name in names:
                if (value := place.get(name)) is not None:
                    return _checked(name, value, self.find("config.json") or self.find("generation_config.json"))
        return None


@dataclass(frozen=True, eq=False)
class Job:
    """What one `read` was asked for. `notes` collects what is said to the user.

    Attributes:
        tokenizer: a tokenizer.json or a folder that has one, in place of the one beside the model.
        pairs: how a text pair is fed, or None to guess.
        max_length: the most tokens of a row, or None for the model's own limit.
        allow_outside: files that rows name may lie outside the folder of the rows.
        shape: sizes of the graph's symbolic dimensions, as stated.
        images: how images are prepared, as stated; None for what lies beside the model.
        classes: number of a class -> its name, where the rows themselves tell (folders of images).
    """

    graph: Graph
    files: Files
    tokenizer: Path | None = None
    pairs: Pairs | None = None
    max_length: int | None = None
    seed: int = 0
    allow_outside: bool = False
    shape: Mapping[str, int] = field(default_factory=dict)
    images: ImageOptions | None = None
    notes: list[str] = field(default_factory=list)
    classes: dict[int, str] = field(default_factory=dict)

    def say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


@dataclass(frozen=True, eq=False)
class Part:
    """What an encoder makes of a row: some feeds (leading axis 1), perhaps a label, which tokens are real, and what
    text they stand for (`Example.pieces`).
    """

    feeds: Mapping[str, np.ndarray[Any, Any]]
    label: Any = None
    real: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    pieces: tuple[str, ...] = ()
