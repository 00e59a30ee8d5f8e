"""Every kind of source gives the same rows; every damaged one says file, row and what to do. Labels become numbers."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.data import Dataset, read
from onnxprune.errors import DataError
from onnxprune.graph.model import InputSpec

IDS = InputSpec("input_ids", np.dtype(np.int64), ("batch", "sequence"))
ROWS = [
    {"input_ids": [1, 2, 3], "label": 1},
    {"input_ids": [4, 5, 6], "label": 0},
    {"input_ids": [7, 8, 9], "label": 1},
]


def table(delimiter: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(["input_ids", "label"])
    writer.writerows([[json.dumps(row["input_ids"]), row["label"]] for row in ROWS])
    return text.getvalue()


WRITERS = {
    "rows.jsonl": lambda: "\n".join(json.dumps(row) for row in ROWS),
    "rows.ndjson": lambda: "\ufeff" + "\n\n".join(json.dumps(row) for row in ROWS) + "\n",
    "rows.json": lambda: json.dumps(ROWS),
    "rows.csv": lambda: table(","),
    "rows.tsv": lambda: table("\t"),
}


def same(data: Dataset) -> None:
    assert [example.feeds["input_ids"].tolist() for example in data.examples] == [[row["input_ids"]] for row in ROWS]
    assert data.labels == (1, 0, 1)
    assert data.kind == "tensors"


@pytest.mark.parametrize("name", WRITERS)
def test_text_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(WRITERS[name](), encoding="utf-8")
    same(read(path, [IDS]))
    assert len(read(str(path), [IDS], limit=2)) == 2


def test_sources_are_named_by_line_or_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_text(WRITERS["rows.ndjson"](), encoding="utf-8")
    assert [e.source for e in read(path, [IDS]).examples] == [f"{path}:{line}" for line in (1, 3, 5)]
    path = tmp_path / "rows.csv"
    path.write_text(WRITERS["rows.csv"](), encoding="utf-8")
    assert [e.source for e in read(path, [IDS]).examples] == [f"{path}:{line}" for line in (2, 3, 4)]


@pytest.mark.parametrize("label", ["label", "labels"])
def test_npz_and_columns(label: str, tmp_path: Path) -> None:
    columns = {"input_ids": np.array([row["input_ids"] for row in ROWS]), label: np.array([1, 0, 1])}
    np.savez(tmp_path / "rows.npz", **columns)  # type: ignore[arg-type]
    same(read(tmp_path / "rows.npz", [IDS]))
    same(read(columns, [IDS]))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    same(read(path, [IDS]))
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(path, [IDS])


def test_parquet_without_pyarrow_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="pip install pyarrow"):
        read(tmp_path / "rows.parquet", [IDS])


class Reader:
    """As `onnxruntime.quantization.CalibrationDataReader` is."""

    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self.feeds: Iterator[dict[str, Any]] = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def test_iterables_and_calibration_readers() -> None:
    same(read(ROWS, [IDS]))
    same(read((row for row in ROWS), [IDS]))
    same(read(Reader(ROWS), [IDS]))
    assert read(Reader(ROWS), [IDS]).examples[1].source == "Reader:2"
    with pytest.raises(DataError, match="list:1: a row must be an object"):
        read([([1, 2], 0)], [IDS])


def test_batched_feeds_are_taken_apart() -> None:
    batch = {"input_ids": np.array([row["input_ids"] for row in ROWS]), "label": np.array([1, 0, 1])}
    same(read(Reader([batch]), [IDS]))
    assert [e.source for e in read([batch, ROWS[0]], [IDS]).examples] == [
        "list:1[0]",
        "list:1[1]",
        "list:1[2]",
        "list:2",
    ]
    assert len(read([batch, batch], [IDS], limit=4)) == 4


BROKEN = {
    "a.jsonl": ('{"input_ids": [1]}\n{"input_ids": \n', "a.jsonl:2: not JSON"),
    "b.jsonl": ("[{}]", "goes into a .json file"),
    "c.jsonl": ('{"input_ids": [1]}\n7\n', "c.jsonl:2: a row must be an object"),
    "d.json": ('{"input_ids": [1]}', "not a list of rows"),
    "e.json": ('{"input_ids": [1]}\n{"input_ids": [2]}', ".jsonl file"),
    "f.json": ("[1]", "f.json:1: a row must be an object"),
    "g.csv": ("input_ids,label\n[1],0\n[2]\n", "g.csv:3: 1 columns, the header has 2"),
    "h.csv": ('input_ids,label\n"[1]"x,0\n', "h.csv:2: cannot be parsed"),
    "i.jsonl": ("", "holds no rows"),
    "j.json": ("", "holds no rows"),
    "k.csv": ("input_ids,label\n", "holds no rows"),
    "l.npz": ("no archive", "cannot be read as .npz"),
    "m.rtf": ("a line", ".rtf suffix; rows are read from .jsonl"),
    "m.jsonl.gz": ("\x1f", "m.jsonl.gz: holds other files, packed: take them out (gunzip -k m.jsonl.gz)"),
    "m.zip": ("PK", "(unzip m.zip)"),
    "m.arrow": ("ARROW", 'to_parquet("rows.parquet")'),
    "m.wav": ("RIFF", "one file is one row: give the folder"),
    "m.csv": ("input_ids;label\n[1];0\n", "columns are separated by ',', not ';'"),
    "m.tsv": ("input_ids,label\n[1],0\n", "columns are separated by '\\t', not ','"),
    "n": ("a line", "no suffix"),
    "o.jsonl": ('{"input_ids": [1]}\n{"ids": [1]}\n', "o.jsonl:2: no field 'input_ids'; the row has 'ids'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_say_where_and_what(name: str, tmp_path: Path) -> None:
    text, says = BROKEN[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(tmp_path / name, [IDS])
    assert says in str(caught.value)
    assert name in str(caught.value)


def test_missing_file_foreign_encoding_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.jsonl", [IDS])
    (tmp_path / "latin.jsonl").write_bytes('{"text": "café"}'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read(tmp_path / "latin.jsonl", [IDS])
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="no images"):
        read(tmp_path / "folder", [IDS])
    with pytest.raises(DataError, match="list: holds no rows"):
        read([], [IDS])


def test_folders_of_what_is_rows_themselves(tmp_path: Path) -> None:
    """A data set as repositories keep it, one as the datasets library saves it, and the folder of a model."""
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"in this folder or below it$"):
        read(tmp_path, [IDS])
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"a file of rows is named itself, as in .*data.train\.parquet$"):
        read(tmp_path, [IDS])
    (tmp_path / "data/train.arrow").write_bytes(b"ARROW")
    with pytest.raises(DataError, match=r"load_from_disk.*to_parquet"):
        read(tmp_path, [IDS])


def test_npz_arrays_must_agree(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", input_ids=np.ones((3, 2), int), label=np.ones(2, int))
    with pytest.raises(DataError, match=r"differ in their number of rows \(input_ids 3, label 2\)"):
        read(tmp_path / "a.npz", [IDS])
    np.savez(tmp_path / "b.npz", input_ids=np.array(3))
    with pytest.raises(DataError, match="leading row axis"):
        read(tmp_path / "b.npz", [IDS])
    np.savez(tmp_path / "c.npz", input_ids=np.array([[1], [2, 3]], object), allow_pickle=True)
    with pytest.raises(DataError, match="without objects"):
        read(tmp_path / "c.npz", [IDS])


def test_tsv_with_plain_quotation_marks(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('input_ids\tnote\n[1]\t"begun and not ended\n[2]\tan "inner" one\n', encoding="utf-8")
    data = read(path, [IDS])
    assert [e.feeds["input_ids"].tolist() for e in data.examples] == [[[1]], [[2]]]
    path.write_text('input_ids\tnote\n"[1, 2]"\t"two\nlines"\n', encoding="utf-8")
    assert read(path, [IDS]).examples[0].feeds["input_ids"].tolist() == [[1, 2]]


def test_columns_are_renamed(tmp_path: Path) -> None:
    rows = [{"ids": [1, 2], "gold": 4, "input_ids": [9, 9, 9]}]
    data = read(rows, [IDS], columns={"input_ids": "ids", "label": "gold"})
    assert data.examples[0].feeds["input_ids"].tolist() == [[1, 2]]
    assert data.labels == (4,)
    with pytest.raises(DataError, match="no column 'tokens' to read as 'input_ids'; the row has 'ids', 'gold'"):
        read(rows, [IDS], columns={"input_ids": "tokens"})


def test_columns_of_text_are_suggested_and_paths_are_none() -> None:
    with pytest.raises(DataError, match="as in --columns text=sentence"):
        read([{"sentence": "a film"}], [IDS])
    with pytest.raises(DataError) as caught:
        read([{"image": "my pictures/a.png"}], [IDS])
    assert "--columns" not in str(caught.value)


def test_fields_that_are_not_read_are_said() -> None:
    data = read([{"input_ids": [1], "idx": 3, "label": 0}], [IDS])
    assert "fields not used: idx" in data.description
    data = read([{"input_ids": [1], "gold": 3}], [IDS])
    assert "fields not used: gold; --columns label=NAME reads labels from one" in data.description


def labelled(labels: list[Any], folder: Path | None = None) -> Dataset:
    return read([{"input_ids": [1], "label": label} for label in labels], [IDS], folder=folder)


@pytest.mark.parametrize(
    ("labels", "become"),
    [
        ([1, 0, None], (1, 0, None)),
        ([3.5, 0.0], (3.5, 0.0)),
        (["1", "0"], (1, 0)),
        (["2.5", ""], (2.5, None)),
        ([True, False], (1, 0)),
        ([np.int64(3), np.array(2)], (3, 2)),
        ([-1, -1], None),
        ([-1, 1], (-1, 1)),
        (["good", "bad"], None),
        (["good", 1], None),
        ([None, float("nan")], None),
    ],
)
def test_labels(labels: list[Any], become: tuple[Any, ...] | None) -> None:
    assert labelled(labels).labels == become


def test_class_names_are_numbered_by_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"label2id": {"NEGATIVE": 0, "POSITIVE": 1}}))
    data = labelled(["positive", "Negative"], tmp_path)
    assert data.labels == (1, 0)
    assert any("label2id" in note for note in data.description)
    data = labelled(["positive", "neutral"], tmp_path)
    assert data.labels is None
    assert any("labels: ignored" in note and "'neutral'" in note for note in data.description)


def test_several_labels_a_row() -> None:
    labels = labelled([[0, 1, 1], [1, 0, 0]]).labels
    assert labels is not None
    assert [label.tolist() for label in labels] == [[0, 1, 1], [1, 0, 0]]


def test_damaged_configuration_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json: not a file of the model .*: no JSON"):
        read(ROWS, [IDS], folder=tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(DataError, match="it holds a list, not an object"):
        read(ROWS, [IDS], folder=tmp_path)


def test_labels_of_several_shapes_are_ignored() -> None:
    rows = [{**row, "label": label} for row, label in zip(ROWS, (1, [0, 1], 0), strict=True)]
    data = read(rows, [IDS])
    assert data.labels is None
    assert "labels: ignored, some are numbers and some are lists" in data.description
