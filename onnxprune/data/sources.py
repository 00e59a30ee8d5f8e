"""Where rows come from: files, image folders and Python iterables, each as an iterator of `Row`."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.model_info import Graph, Job
from onnxprune.data.optional_packages import package
from onnxprune.data.outside import read_arrays
from onnxprune.documents import UNPACKED_BY, read_text
from onnxprune.errors import DataError, OnnxPruneError, UsageError, listed, near_file, one_line, repeated, said
from onnxprune.graph.companions import COMPANIONS

LONGEST = 64_000_000
"""Characters of a row in a file of lines."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


@dataclass(frozen=True, eq=False)
class Row:
    """One row as it was found.

    Attributes:
        source: "file:row", for messages: the line in text files, else counted from 1.
        fields: name -> value.
        folder: what relative paths in it are relative to; None where rows are no file's, and paths are the caller's.
    """

    source: str
    fields: Mapping[str, Any]
    folder: Path | None

    def need(self, field: str) -> Any:
        """The value of a field.

        Raises:
            DataError: the row does not have it.
        """
        if (value := self.fields.get(field)) is None:
            has = listed(self.fields) or "none"
            raise DataError(f"{self.source}: no field {field!r}; the row has {has}: add it, or leave the row out")
        return value


def open_rows(source: Any, job: Job, columns: Mapping[str, str] | None, limit: int | None) -> list[Row]:
    """The first `limit` rows of a source (of a folder: a random `limit`), with columns renamed.

    Raises:
        DataError: the source does not exist, is of no known kind, is damaged or empty.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            rows = _media_folder(path, job, limit)
        elif not path.is_file():
            raise DataError(f"{source}: no such file or folder: check the path{near_file(source)}")
        elif (reader := READERS.get(path.suffix.lower())) is None:
            raise _unread(path)
        else:
            rows = _decoded(path, reader(path, job.graph))
    else:
        rows = _python(source, job.graph)
    read = list(islice(rows, limit))
    if not read:
        name = source if isinstance(source, str | Path) else type(source).__name__
        raise DataError(f"{name}: holds no rows: give at least one")
    return [_renamed(row, columns) for row in read] if columns else read


def _unread(path: Path) -> DataError:
    """What to do about a file of no kind that is read."""
    suffix = path.suffix.lower()
    if suffix in UNPACKED_BY:
        how = f"{UNPACKED_BY[suffix]} {shlex.quote(path.name)}"
        return DataError(f"{path}: holds other files, packed: take them out ({how}), and give those")
    if suffix in (*IMAGE_SUFFIXES, *AUDIO_SUFFIXES):
        return DataError(f"{path}: one file is one row: give the folder that it lies in")
    known = f"rows are read from {', '.join(READERS)} or a folder of images or sounds"
    if suffix == ".arrow":
        return DataError(f"{path}: {known}: {_REWRITE}")
    return DataError(f"{path}: {path.suffix or 'no'} suffix; {known}")


_REWRITE = 'write the data set as one of these: datasets.load_from_disk(…)["train"].to_parquet("rows.parquet")'
"""For what the datasets library saves."""


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """`columns` maps our field names to the source's."""
    for field, column in columns.items():
        if column not in row.fields:
            raise DataError(
                f"{row.source}: no column {column!r} to read as {field!r}; the row has "
                f"{listed(row.fields)}: correct --columns {field}={column}"
            )
    kept = {name: value for name, value in row.fields.items() if name not in columns.values()}
    return replace(row, fields=kept | {field: row.fields[column] for field, column in columns.items()})


def _decoded(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """The same rows, with what a file's bytes can do wrong as a DataError."""
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def parsed(value: Any) -> Any:
    """A list or object that CSV could only hold as JSON text; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _json_lines(path: Path, graph: Graph) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        number = 0
        while line := lines.readline(LONGEST + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > LONGEST:
                raise _too_long(where)
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                told = said(error)
                raise DataError(f"{where}: not JSON: {told}: put one object on each line{_hint(line)}") from error
            yield Row(where, _object(fields, where), path.parent)


def _json_list(path: Path, graph: Graph) -> Iterator[Row]:
    text = read_text(path, DataError)
    try:
        rows = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        hint = "one object on each line goes into a .jsonl file" if "Extra data" in str(error) else "mend the file"
        raise DataError(f"{path}: not JSON: {said(error)}: {hint}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a JSON {type(rows).__name__}, not a list of rows: write [{{...}}, {{...}}]")
    for number, fields in enumerate(rows, 1):
        yield Row(f"{path}:{number}", _object(fields, f"{path}:{number}"), path.parent)


def _object(fields: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(fields, Mapping):
        hint = _hint("[") if isinstance(fields, list) else ""
        raise DataError(
            f'{where}: a row must be an object such as {{"text": "..."}}, not {type(fields).__name__}{hint}'
        )
    return fields


def _hint(line: str) -> str:
    return " (a JSON list of rows goes into a .json file)" if line.lstrip().startswith("[") else ""


def _texts(path: Path, graph: Graph) -> Iterator[Row]:
    """Plain text: every line that is not blank is the text of a row."""
    with path.open(encoding="utf-8-sig") as lines:
        number = 0
        while line := lines.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise _too_long(f"{path}:{number}")
            if line.strip():
                yield Row(f"{path}:{number}", {"text": line.strip()}, path.parent)


def _too_long(where: str) -> DataError:
    return DataError(f"{where}: a line of more than {LONGEST // 1_000_000} MB: rows are read up to that length")


def _csv(path: Path, graph: Graph) -> Iterator[Row]:
    """Comma-separated, quoted as in RFC 4180, with a header line."""
    return _separated(path, ",", csv.QUOTE_MINIMAL)


def _tsv(path: Path, graph: Graph) -> Iterator[Row]:
    """Tab-separated. Files of two kinds have this suffix; one that is not well quoted has plain quotation marks."""
    try:
        rows = list(_separated(path, "\t", csv.QUOTE_MINIMAL))
    except DataError:
        rows = list(_separated(path, "\t", csv.QUOTE_NONE))
    return iter(rows)


def _separated(path: Path, delimiter: str, quoting: Any) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        try:
            header = next(reader, [])
            _once(header, path)
            if len(header) == 1 and (other := next((c for c in ";\t|," if c in header[0] and c != delimiter), None)):
                raise DataError(
                    f"{path}: its header is the one column {one_line(repr(header[0]), 60)}: columns are separated by "
                    f"{delimiter!r}, not {other!r}: write it so"
                )
            for cells in reader:
                if not cells:
                    continue
                where = f"{path}:{reader.line_num}"
                if len(cells) != len(header):
                    raise DataError(
                        f"{where}: {len(cells)} columns, the header has {len(header)}: mend or quote the row"
                    )
                yield Row(where, dict(zip(header, cells, strict=True)), path.parent)
        except csv.Error as error:
            raise DataError(
                f"{path}:{reader.line_num}: cannot be parsed: {error}: check its quotation marks"
            ) from error


def _once(columns: Sequence[str], path: Path) -> None:
    """Refuse a table that names a column twice: nobody can say which is meant. Those without a name are not read."""
    if (twice := repeated(filter(None, columns))) is not None:
        raise DataError(f"{path}: names the column {one_line(repr(twice), 60)} twice: rename one")


def _parquet(path: Path, graph: Graph) -> Iterator[Row]:
    parquet = package("pyarrow.parquet", f"{path}: .parquet files are read")
    try:
        number, file = 0, parquet.ParquetFile(path)
        _once(file.schema_arrow.names, path)
        for batch in file.iter_batches(batch_size=256):
            for fields in batch.to_pylist():
                number += 1
                yield Row(f"{path}:{number}", fields, path.parent)
    except (ValueError, OSError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise DataError(f"{path}: cannot be read as Parquet: {error}: write it again") from error


def _npz(path: Path, graph: Graph) -> Iterator[Row]:
    try:
        arrays = read_arrays(path)
    except OnnxPruneError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        told = said(error)
        raise DataError(
            f"{path}: cannot be read as .npz: {told}: write it with numpy.savez, without objects"
        ) from error
    return _columnar(arrays, str(path), path.parent, graph)


def _columnar(columns: Mapping[str, Any], where: str, folder: Path | None, graph: Graph) -> Iterator[Row]:
    """Columns with a leading row axis; an input without a batch axis is the same for all rows."""
    common = {name: column for name, column in columns.items() if name in graph.shared and not graph.whole}
    ours = {name: column for name, column in columns.items() if name not in common}
    for name, column in ours.items():
        if isinstance(column, str) or not hasattr(column, "__len__") or np.ndim(column) == 0:
            raise DataError(f"{where}: {name!r} is a single value; a leading row axis is expected")
    ours = {name: _row_first(column, name, graph) for name, column in ours.items()}
    lengths = {name: len(column) for name, column in ours.items()}
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"{where}: the arrays differ in their number of rows ({listing}): the first axis is the row")
    for index in range(next(iter(lengths.values()), 0)):
        fields = {name: column[index] for name, column in ours.items()}
        yield Row(f"{where}:{index + 1}", common | fields, folder)


def _row_first(column: Any, name: str, graph: Graph) -> Any:
    """A column that stacks its rows on the axis where the graph has them, with that axis first."""
    axis = graph.inside.get(name)
    if axis is None or not hasattr(column, "shape") or len(column.shape) != len(graph.by_name[name].shape):
        return column
    before = graph.by_name[name].shape[:axis]
    stacked = all(not isinstance(d, int) or d == size for d, size in zip(before, column.shape, strict=False))
    return np.moveaxis(np.asarray(column), axis, 0) if stacked else column


def _media_folder(path: Path, job: Job, limit: int | None) -> Iterator[Row]:
    """Images in a folder, or sounds where there are no images; the name of a sub-folder is the label of all in it."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    images, sounds = ([p for p in files if p.suffix.lower() in s] for s in (IMAGE_SUFFIXES, AUDIO_SUFFIXES))
    found, field = (images, "image") if images else (sounds, "audio")
    if not found:
        raise _nothing_in(path, files)
    if limit is not None and limit < len(found):
        chosen = np.random.default_rng(job.seed).permutation(len(found))[:limit]
        found = [found[i] for i in sorted(chosen)]  # the first ones would all be of one label
        job.say(f"rows: a random {limit} of the folder's {field} files (seed {job.seed})")
    for file in found:
        parts = file.relative_to(path).parts
        label = {"label": parts[0]} if len(parts) > 1 else {}
        yield Row(str(file), {field: str(file.resolve()), **label}, path)


def _nothing_in(path: Path, files: Sequence[Path]) -> DataError:
    """What to do about a folder without pictures and sounds: what it holds may be rows of another kind."""
    known = ", ".join((*IMAGE_SUFFIXES, *AUDIO_SUFFIXES))
    told = f"{path}: no images or sounds ({known}) in this folder or below it"
    if any(f.suffix == ".arrow" for f in files):
        return DataError(f"{told}: {_REWRITE}")
    tables = [f for f in files if f.suffix.lower() in READERS and f.name not in COMPANIONS]
    if tables:
        more = f" (or one of {len(tables) - 1} others)" if len(tables) > 1 else ""
        return DataError(f"{told}: a file of rows is named itself, as in {tables[0]}{more}")
    return DataError(told)


def _python(source: Any, graph: Graph) -> Iterator[Row]:
    """Feeds or rows from Python: an iterable of mappings, columns, or an ORT CalibrationDataReader."""
    name = type(source).__name__
    if isinstance(source, Mapping):
        yield from _columnar(source, name, None, graph)
        return
    items: Iterable[Any]
    if hasattr(source, "get_next"):
        items = iter(source.get_next, None)
    elif isinstance(source, Iterable):
        items = source
    else:
        raise UsageError(f"rows of type {name}: give a path, an iterable of dicts, or a CalibrationDataReader")
    for number, fields in enumerate(items, 1):
        yield from _unbatched(Row(f"{name}:{number}", _object(fields, f"{name}:{number}"), None), graph)


def _unbatched(row: Row, graph: Graph) -> Iterator[Row]:
    """Feeds with several rows on the batch axis, as one row each: what a data loader hands out is often a batch."""
    batched = {
        name: value
        for name, value in row.fields.items()
        if name in graph.by_name
        and name not in graph.shared
        and hasattr(value, "shape")
        and len(value.shape) == len(graph.by_name[name].shape)
    }
    sizes = {value.shape[graph.row_axis(name)] for name, value in batched.items()}
    if len(sizes) != 1 or sizes == {1}:
        yield row
        return
    (size,) = sizes
    labels = {
        name: row.fields[name] for name in ("label", "labels") if name in row.fields and np.ndim(row.fields[name]) > 0
    }
    for index in range(size):
        one = {
            name: value[(*[slice(None)] * graph.row_axis(name), slice(index, index + 1))]
            for name, value in batched.items()
        }
        one |= {name: value[index] for name, value in labels.items() if len(value) == size}
        yield Row(f"{row.source}[{index}]", {**row.fields, **one}, row.folder)


READERS: dict[str, Callable[[Path, Graph], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_list,
    ".csv": _csv,
    ".tsv": _tsv,
    ".txt": _texts,
    ".parquet": _parquet,
    ".npz": _npz,
}
