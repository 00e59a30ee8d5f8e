"""Files of other kinds in the place of a model are named, with what makes a model of them."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import pytest

from onnxprune.errors import ModelError
from onnxprune.graph import model as models


def archive(*names: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as opened:
        for name in names:
            opened.writestr(name, "x")
    return held.getvalue()


FOREIGN = {
    "gzip": (gzip.compress(b"x"), r"packed by gzip: gunzip -k 'a model\.onnx'"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull brings it"),
    "page": (b"\n<!DOCTYPE html><html>404</html>", "a web page or other markup"),
    "OpenVINO": (b'<?xml version="1.0"?><net></net>', "a web page or other markup"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file, as Keras keeps"),
    "Keras 3": (archive("config.json", "model.weights.h5"), "a Keras file"),
    "PyTorch": (archive("model/data.pkl", "model/data/0"), r"a PyTorch file: export it first, by torch\.onnx\.export"),
    "pickle": (b"\x80\x02}q\x00.", "a pickle, as PyTorch"),
    "zip": (archive("readme", "deep/{a}.onnx"), r"a zip archive: unzip 'a model\.onnx', and give deep/\{a\}\.onnx"),
    "empty zip": (archive("readme"), r"a zip archive without an \.onnx file"),
    "TFLite": (b"\x1c\0\0\0TFL3" + bytes(50), "a TensorFlow Lite file"),
    "ORT": (b"\x1c\0\0\0ORTM" + bytes(50), r"ORT format, .* give the \.onnx it was made from"),
    "safetensors": (b"\x08" + bytes(7) + b"{}      ", "a safetensors file, weights without a graph"),
    "text": (b"no model\n", "or a damaged one"),
    "half a zip": (b"PK\x03\x04", "or a damaged one"),
    "empty": (b"", "or a damaged one"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_of_other_kinds(kind: str, tmp_path: Path) -> None:
    content, says = FOREIGN[kind]
    (tmp_path / "a model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=rf"a model\.onnx: not an ONNX file.* {says}"):
        models.load(tmp_path / "a model.onnx")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("https://host/model.onnx", "nothing is downloaded: fetch it first"),
        ("user/model", "optimum-cli export onnx --model user/model FOLDER"),
        ("encoder-base", "optimum-cli export onnx --model encoder-base FOLDER"),
        ("word", r"no such file$"),
        ("modle.onnx", r"did you mean model\.onnx\?"),
        ("vision.onnx", r"no such file$"),
    ],
)
def test_models_that_are_elsewhere(name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=says):
        models.load(name)


def test_folders_without_a_graph(tmp_path: Path) -> None:
    (tmp_path / "onnx files").mkdir()
    (tmp_path / "onnx files/model.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"holds no \.onnx file; did you mean .*onnx files\?"):
        models.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"a model's weights: optimum-cli export onnx --model .* exports them"):
        models.load(tmp_path)
