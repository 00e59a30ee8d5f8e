"""What people hand over in place of an ONNX model, told by how the file begins, and what makes a model of it."""

from __future__ import annotations

import re
import shlex
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

from onnxprune.documents import UNPACKED_BY
from onnxprune.errors import near_file, one_line

_EXPORT = "export it first, by torch.onnx.export(…, dynamo=True) or optimum-cli export onnx"


def _packed(by: str, suffix: str) -> str:
    return f"packed by {by}: {UNPACKED_BY[suffix]} {{name}}, and give what comes out"


_BEGINNINGS: Mapping[bytes, str] = {
    b"version https://git-lfs": "Git LFS's pointer to a file, not the file: git lfs pull brings it",
    b"\x1f\x8b": _packed("gzip", ".gz"),
    b"BZh": _packed("bzip2", ".bz2"),
    b"\xfd7zXZ": _packed("xz", ".xz"),
    b"\x28\xb5\x2f\xfd": _packed("Zstandard", ".zst"),
    b"\x89HDF": "an HDF5 file, as Keras keeps its models: export it first, by tf2onnx or model.export(format='onnx')",
    b"GGUF": "a GGUF file, weights without a graph: export the model that it was made from",
    b"\x80\x02": f"a pickle, as PyTorch keeps its models: {_EXPORT}",
}
_LATER: Mapping[bytes, str] = {
    b"TFL3": "a TensorFlow Lite file: convert it first, by tf2onnx --tflite",
    b"ORTM": "a file in ORT format, which cannot be rewritten: give the .onnx it was made from",
}
"""Of bytes 4 to 8."""
_MARKUP = re.compile(rb"\s*<(!doctype|html|\?xml|svg)", re.I)
_HEAD = 256


def told(file: Path) -> str:
    """What a file is that is no ONNX model, with a way out; empty where that is not known."""
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD)
        found = next((said for start, said in _BEGINNINGS.items() if head.startswith(start)), _LATER.get(head[4:8], ""))
        if head.startswith(b"PK\x03\x04"):
            found = _archive(file)
        elif _MARKUP.match(head):
            found = "a web page or other markup, as a failed download leaves it: look into it, and fetch the file anew"
        elif head[8:9] == b"{" and 0 < struct.unpack("<Q", head[:8])[0] < file.stat().st_size:
            found = f"a safetensors file, weights without a graph: {_EXPORT}"
    except (OSError, ValueError, zipfile.BadZipFile):
        return ""
    return found.format(name=shlex.quote(file.name))


def _archive(file: Path) -> str:
    with zipfile.ZipFile(file) as opened:
        names = opened.namelist()
    inside = next((name for name in names if name.endswith(".onnx")), None)
    if inside is not None:
        shown = one_line(inside, 80).replace("{", "{{").replace("}", "}}")
        return f"a zip archive: {UNPACKED_BY['.zip']} {{name}}, and give {shown}"
    if any(name.endswith("data.pkl") for name in names):
        return f"a PyTorch file: {_EXPORT}"
    if any(name.endswith(".weights.h5") for name in names):
        return "a Keras file: export it first, by model.export(format='onnx')"
    return "a zip archive without an .onnx file in it"


def absent(path: Path) -> str:
    """What to add where a model is not there: a name that is near, or that a model elsewhere is fetched first."""
    near = near_file(path)
    if near:
        return near
    if re.match(r"\w+:/", str(path)):
        return "; nothing is downloaded: fetch it first, and give the file"
    if path.suffix == "" and len(path.parts) <= 2 and not path.is_absolute() and set(str(path)) & {"/", "-"}:
        return f"; a model of a hub is exported first: optimum-cli export onnx --model {shlex.quote(str(path))} FOLDER"
    return ""


def no_graph(folder: Path) -> str:
    """What to add where a folder holds no `.onnx` file: that its model is exported first, or where others are."""
    if any(any(folder.glob(f"*{suffix}")) for suffix in (".safetensors", ".bin", ".pt", ".pth")):
        command = f"optimum-cli export onnx --model {shlex.quote(str(folder))} FOLDER"
        return f", but a model's weights: {command} exports them"
    below = next(iter(sorted(folder.glob("*/*.onnx"))), None)
    return f"; did you mean {below.parent}?" if below is not None else ""
