"""The ready-made sets: what their README promises, read by the reader itself."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from onnxprune.data import read
from onnxprune.graph.model import InputSpec

FOLDER = Path(__file__).parents[3] / "calibration"
PIXELS = InputSpec("pixel_values", np.dtype(np.float32), ("batch", 1, 8, 8))


def recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "rows"), [("digits.npz", 512), ("digits-dev.npz", 450)])
def test_digits_are_read(name: str, rows: int) -> None:
    data = read(FOLDER / name, [PIXELS])
    assert len(data) == rows
    assert set(data.labels or ()) == set(range(10))
    (batch,) = data.batches(rows)
    assert batch.feeds["pixel_values"].shape == (rows, 1, 8, 8)
    assert (batch.feeds["pixel_values"].min(), batch.feeds["pixel_values"].max()) == (0, 1)
    assert (FOLDER / name).stat().st_size < 300_000


def test_digits_are_what_the_recipe_gives_and_dev_is_held_out(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    digits = recipe("digits")
    parts = digits.digits()
    assert digits.differing(FOLDER, parts) == []
    assert {name: len(part["label"]) for name, part in parts.items()} == {"train": 1347, "calibration": 512, "dev": 450}
    rows = {name: {image.tobytes() for image in part["pixel_values"]} for name, part in parts.items()}
    assert rows["calibration"] <= rows["train"]
    assert not rows["dev"] & rows["train"]
    other = digits.digits(seed=1)
    for name, file in digits.FILES.items():
        digits.write_npz(tmp_path / file, other[name])
    assert digits.differing(tmp_path, parts) == ["digits.npz", "digits-dev.npz"]


def test_digits_as_images_are_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("PIL")
    digits = recipe("digits")
    part = digits.digits()["dev"]
    digits.write_images(tmp_path, "dev", part)
    data = read(tmp_path / "dev.jsonl", [PIXELS])
    assert data.labels == tuple(part["label"].tolist())
    pixels = np.concatenate([example.feeds["pixel_values"] for example in data.examples])
    np.testing.assert_allclose(pixels, part["pixel_values"], atol=1 / 510)


def test_sentences_keep_their_promises() -> None:
    sentences = recipe("sentences")
    rows = [json.loads(line) for line in sentences.FILE.read_text(encoding="utf-8").splitlines()]
    assert sentences.problems(rows) == []
    assert sentences.problems([*rows, rows[0]]) != []


def test_sentences_are_read(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "the": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    inputs = [InputSpec("input_ids", np.dtype(np.int64), ("batch", "sequence"))]
    for pairs, examples in (("joint", 300), ("separate", 400)):
        path = FOLDER / "sentences.jsonl"
        data = read(path, inputs, tokenizer=tmp_path, pairs=pairs)  # type: ignore[arg-type]
        assert (len(data), data.labels) == (examples, None)
