"""Rows that anyone could have written: what they name lies where they may reach, and unfolds into no more than fits."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.data import read
from onnxprune.errors import DataError, LimitError, OnnxPruneError


@dataclass(frozen=True)
class Input:
    name: str
    dtype: Any
    shape: tuple[Any, ...]
    limit: int | str | None = None
    missing: bool = False


X = Input("x", np.dtype(np.float32), ("batch", 8))
PIXELS = Input("pixel_values", np.dtype(np.float32), ("batch", 3, 16, 16))
WAVES = Input("input_values", np.dtype(np.float32), ("batch", "samples"))


def rows_of(path: Path, *fields: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(f) + "\n" for f in fields), encoding="utf-8")
    return path


def painted(path: Path, size: tuple[int, int] = (16, 16)) -> Path:
    from PIL import Image

    Image.new("RGB", size).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows").mkdir()
    return tmp_path / "rows"


def test_images_stay_in_the_folder_of_the_rows_unless_allowed(folder: Path) -> None:
    outside = painted(folder.parent / "out.png")
    painted(folder / "in.png")
    (folder / "link.png").symlink_to(outside)
    for name in ("../out.png", str(outside), "link.png"):
        rows = rows_of(folder / "rows.jsonl", {"image": name})
        with pytest.raises(DataError, match="--allow-outside"):
            read(rows, [PIXELS])
        assert len(read(rows, [PIXELS], allow_outside=True)) == 1
    assert len(read(rows_of(folder / "rows.jsonl", {"image": "in.png"}), [PIXELS])) == 1
    assert len(read([{"image": str(outside)}], [PIXELS])) == 1  # a caller's own paths


def test_sounds_stay_in_the_folder_of_the_rows(folder: Path) -> None:
    import wave

    with wave.open(str(folder.parent / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
        sound.writeframes(b"\0\0" * 100)
    with pytest.raises(DataError, match="--allow-outside"):
        read(rows_of(folder / "rows.jsonl", {"audio": "../a.wav"}), [WAVES])


def bomb(path: Path, edge: int) -> Path:
    """A PNG of `edge` x `edge` pixels in a few bytes."""

    def chunk(kind: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


def test_images_that_unfold_or_are_of_other_formats_are_not_decoded(folder: Path) -> None:
    for edge in (13_000, 60_000):
        bomb(folder / "b.png", edge)
        with pytest.raises(DataError, match=r"pixels|limit"):
            read(rows_of(folder / "rows.jsonl", {"image": "b.png"}), [PIXELS])
    (folder / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\nshowpage\n")
    values: list[Any] = ["a.eps", ".", "a\0.png", "a" * 5000, "http://[::1]/a.png", 5, [], {"path": "/etc/passwd"}]
    for value in values:
        with pytest.raises(DataError):
            read(rows_of(folder / "rows.jsonl", {"image": value}), [PIXELS])
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(DataError, match="no file"):
        read(rows_of(folder / "rows.jsonl", {"image": "pipe.png"}), [PIXELS])


STEPS = {
    "do_resize": True, "size": {"height": 16, "width": 16}, "do_normalize": True, "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3, "image_processor_type": "ViTImageProcessor",
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [{"size": {"height": -16, "width": 16}}, {"size": {"height": 0, "width": 16}}, {"size": "big"}, {"size": 10**9},
     {"image_mean": [0.5]}, {"image_mean": "half"}, {"image_std": [0, 0, 0]}, {"resample": 99}, {"resample": "x"},
     {"rescale_factor": None}, {"do_center_crop": True, "crop_size": 10**7}],
)  # fmt: skip
def test_a_preprocessor_that_makes_no_sense_is_said(folder: Path, changed: dict[str, Any]) -> None:
    painted(folder / "in.png")
    rows = rows_of(folder / "rows.jsonl", {"image": "in.png"})
    (folder / "preprocessor_config.json").write_text(json.dumps(STEPS))
    assert len(read(rows, [PIXELS], folder=folder)) == 1
    (folder / "preprocessor_config.json").write_text(json.dumps(STEPS | changed))
    with pytest.raises(DataError):
        read(rows, [PIXELS], folder=folder)


def test_a_line_of_pixels_is_no_strip_of_gigabytes(folder: Path) -> None:
    painted(folder / "line.png", (20_000, 1))
    rows = rows_of(folder / "rows.jsonl", {"image": "line.png"})
    steps = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, "crop_size": 16}
    (folder / "preprocessor_config.json").write_text(json.dumps(steps))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*20000 x 1 pixels become 4480000 x 224"):
        read(rows, [PIXELS], folder=folder)


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ({"image_processor_type": "DonutImageProcessor", "size": {"height": 10**6, "width": 8}}, "size.height"),
        ({"image_processor_type": "DetrImageProcessor", "do_pad": True, "pad_size": [8, 10**5]}, "pad_size"),
    ],
)  # fmt: skip
def test_processors_of_others_make_no_pictures_of_gigabytes(folder: Path, steps: dict[str, Any], says: str) -> None:
    painted(folder / "in.png")
    rows = rows_of(folder / "rows.jsonl", {"image": "in.png"})
    (folder / "preprocessor_config.json").write_text(json.dumps(steps))
    with pytest.raises(DataError, match=re.escape(says) + r" is \d+; edges of up to 16384 pixels"):
        read(rows, [PIXELS], folder=folder)


@pytest.mark.parametrize(
    "changed", [{"chunk_length": 100_000}, {"n_samples": 10**9}, {"n_fft": 10**6}, {"feature_size": 10**9}]
)
def test_sounds_are_not_filled_up_to_gigabytes(folder: Path, changed: dict[str, int]) -> None:
    features = Input("input_features", np.dtype(np.float32), ("batch", 80, "time"))
    rows = rows_of(folder / "rows.jsonl", {"audio": [0.1] * 2000})
    steps = {"feature_extractor_type": "WhisperFeatureExtractor", "sampling_rate": 16_000, "chunk_length": 1, **changed}
    (folder / "preprocessor_config.json").write_text(json.dumps(steps))
    with pytest.raises(DataError, match=f"{next(iter(changed))} is {next(iter(changed.values()))}, which no row needs"):
        read(rows, [features], folder=folder)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


def archive(path: Path, shape: tuple[int, ...], held: bytes) -> Path:
    """An .npz whose array claims a shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("x.npy", header.getvalue() + held)
    return path


def test_archives_claim_what_they_hold(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "c.npz"
    for shape in ((10**12, 8), (10**9, 8), (-5, 8), (3, 8)):
        with pytest.raises(DataError):
            read(archive(path, shape, b"\0" * 64), [X])
    monkeypatch.setattr("onnxprune.data.outside.MOST_BYTES", 1000)
    with pytest.raises(LimitError, match="GB"):
        read(archive(path, (100, 8), b"\0" * 3200), [X])
    monkeypatch.undo()
    with path.open("wb") as single:
        np.save(single, np.zeros((30, 8), np.float32))
    with pytest.raises(DataError):
        read(path, [X])
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError):
        read(path, [X])
    for array in (np.array([Evil()] * 3, dtype=object), np.zeros(3, [("a", "f4")]), np.zeros((3, 8), "V4"),
                  np.zeros((3, 8), "M8[s]"), np.zeros((3, 8), np.complex64), np.array([["a"] * 8] * 3)):  # fmt: skip
        np.savez(path, x=array)
        with pytest.raises(DataError):
            read(path, [X])
    assert not Path("pwned").exists()


def test_a_column_is_named_once(folder: Path) -> None:
    """The last one was taken, in silence."""
    for suffix, between in (("csv", ","), ("tsv", "\t")):
        path = folder / f"c.{suffix}"
        path.write_text(between.join(["label", "", "label", ""]) + "\n" + between.join("1234") + "\n", encoding="utf-8")
        with pytest.raises(DataError, match="names the column 'label' twice"):
            read(path, [X])
    table = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    table.write_table(arrow.table([[1], [2]], names=["label", "label"]), folder / "c.parquet")
    with pytest.raises(DataError, match="names the column 'label' twice"):
        read(folder / "c.parquet", [X])


def test_archives_hold_what_a_graph_takes_once(folder: Path) -> None:
    path = folder / "c.npz"
    header = io.BytesIO()
    np.save(header, np.zeros((1, 8), np.float32))
    with zipfile.ZipFile(path, "w") as made:
        for name in range(5000):
            made.writestr(f"{name}.npy", header.getvalue())
    with pytest.raises(DataError, match=r"5,000 arrays; 4,096 are the most"):
        read(path, [X])
    with zipfile.ZipFile(path, "w") as made, warnings.catch_warnings(action="ignore"):
        for _ in range(2):
            made.writestr("x.npy", header.getvalue())
    with pytest.raises(DataError, match=r"holds x\.npy twice"):
        read(path, [X])


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "txt"])
@pytest.mark.parametrize(
    "content",
    [b'{"x":' + b"[" * 100_000, b"[" * 100_000, b'x\n"' + b"[" * 100_000 + b'"\n', b"\xff\xfe\0", b"\0" * 1000, b"",
     b'{"x": [1e999, 1' + b"0" * 400 + b"]}", b'{"x": ' + b"9" * 5000 + b"}", b"null", b'{"x": "\\ud800"}', b"x\n\0\n"],
)  # fmt: skip
def test_text_files_of_any_content_are_rows_or_one_error(folder: Path, suffix: str, content: bytes) -> None:
    path = folder / f"rows.{suffix}"
    path.write_bytes(content)
    with pytest.raises(OnnxPruneError):
        read(path, [X])


def test_a_line_without_end_is_not_read_to_its_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.data.sources.LONGEST", 1000)
    for name in ("rows.jsonl", "rows.txt"):
        path = folder / name
        path.write_text('{"x": [' + "0.5, " * 1000)
        with pytest.raises(DataError, match="a line of more than"):
            read(path, [X])


@pytest.mark.parametrize("label", [{"a": 1}, [{"a": 1}], 10**60, float("inf"), 1e300, [[1], [2, 3]], "a"])
def test_labels_of_any_kind_are_numbers_or_said(folder: Path, label: Any) -> None:
    rows = rows_of(folder / "rows.jsonl", *[{"x": [0.5] * 8, "label": label}] * 3)
    try:
        found = read(rows, [X]).labels
    except DataError:
        return
    assert found is None


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.json", {"vocab_size": "many"}), ("config.json", {"max_position_embeddings": [1]}),
     ("config.json", {"model_type": 5, "max_position_embeddings": 64}),
     ("tokenizer_config.json", {"model_max_length": "x"}),
     ("tokenizer_config.json", {"pad_token": {"content": [1]}}), ("tokenizer_config.json", [])],
)  # fmt: skip
def test_settings_of_the_wrong_kind_name_their_file(folder: Path, file: str, content: Any) -> None:
    words = {"[UNK]": 0, "a": 1}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "model": model})
    )
    (folder / file).write_text(json.dumps(content))
    rows = rows_of(folder / "rows.jsonl", {"text": "a a"})
    ids = Input("input_ids", np.dtype(np.int64), ("batch", "tokens"))
    with pytest.raises(DataError, match=file.replace(".", r"\.")):
        read(rows, [ids], folder=folder)
