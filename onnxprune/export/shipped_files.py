"""Files as they are shipped: ORT format, quantised, of fixed shape, with a vocabulary of their own.

What such a file takes may differ from what its dense original takes, so that the same rows are read for it anew, by its
own inputs and its own tokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune import data
from onnxprune.data import Dataset
from onnxprune.data.model_info import Files
from onnxprune.documents import read_object
from onnxprune.errors import DataError, one_line, reading
from onnxprune.graph import model as models
from onnxprune.graph.model import InputSpec
from onnxprune.measure import latency


def find(path: Path) -> Path:
    """A file that ONNX Runtime runs: `.onnx`, `.ort`, the first model of an exported folder, or an optimum folder."""
    manifest = path / "manifest.json"
    if manifest.is_file():
        told = read_object(manifest, "a manifest that export wrote (export again)", DataError)
        with reading(f"{manifest}: not a manifest that export wrote (export again)", DataError):
            named = Path(str(told["models"][0]["file"]))
        if named.name != str(named):
            raise DataError(
                f"{manifest}: names {one_line(str(named), 60)}, which is no file of its folder: export again"
            )
        return path / named
    return path if path.suffix == ".ort" and path.is_file() else models.find_sound(path)


def own_rows(
    file: Path, dense_inputs: Sequence[InputSpec], dense_folder: Path | None, source: Any, expected: int, **asked: Any
) -> Dataset | None:
    """The rows as this file takes them; None where it takes them as the dense model does.

    Args:
        file: a file that ONNX Runtime runs.
        dense_inputs, dense_folder: of the original.
        source: the rows, read again if need be.
        expected: rows that the original's reading gave.
        asked: further arguments of `data.read`.

    Raises:
        DataError: the two readings differ in their number of rows.
    """
    inputs = latency.graph_inputs(file)
    if _alike(inputs, dense_inputs) and _vocabulary(file.parent) in (None, _vocabulary(dense_folder)):
        return None
    own = file.parent if _vocabulary(file.parent) is not None or dense_folder is None else dense_folder
    rows = data.read(source, inputs, folder=own, **{"vocab_size": None} | asked)
    if len(rows) != expected:
        raise DataError(f"{file} reads {len(rows)} examples from rows that the dense model reads {expected} from")
    return rows


def _alike(own: Sequence[InputSpec], dense: Sequence[InputSpec]) -> bool:
    """Whether the inputs are of the same names, types and fixed sizes."""

    def fixed(specs: Sequence[InputSpec]) -> Mapping[str, Any]:
        return {s.name: (s.dtype, tuple(d if isinstance(d, int) else None for d in s.shape)) for s in specs}

    return fixed(own) == fixed(dense)


def _vocabulary(folder: Path | None) -> str | None:
    """What tells two tokenizers apart; None where there is none."""
    file = Files(folder).find("tokenizer.json") if folder is not None else None
    return None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()
