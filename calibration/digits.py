"""The digits set: 1,797 grey images of 8 x 8 pixels, out of scikit-learn (BSD-3-Clause), split by seed.

    python calibration/digits.py                    write digits.npz and digits-dev.npz beside this file
    python calibration/digits.py --check            compare the files with the recipe; exit code 1 if they differ
    python calibration/digits.py --train train.npz  also the 1,347 training images (calibration: the first 512)
    python calibration/digits.py --images FOLDER    the same rows as PNG files with a .jsonl each, to try image rows on

450 images are held out (dev) and are in neither the training nor the calibration part.
Arrays: pixel_values float32 (rows, 1, 8, 8) in 0..1, label int64 (rows,).
Needs numpy and scikit-learn; --images also Pillow.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED, HELD_OUT, CALIBRATION = 0, 450, 512
LEVELS = 16  # the set's pixels are counts from 0 to 16
FILES = {"calibration": "digits.npz", "dev": "digits-dev.npz"}

Part = dict[str, NDArray[Any]]


def digits(seed: int = SEED) -> dict[str, Part]:
    """The parts "train", "calibration" (its first 512 rows) and "dev", as arrays by name."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = (data.images / LEVELS).astype(np.float32)[:, None]
    labels = data.target.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    dev, train = order[:HELD_OUT], order[HELD_OUT:]
    rows = {"train": train, "calibration": train[:CALIBRATION], "dev": dev}
    return {name: {"pixel_values": pixels[index], "label": labels[index]} for name, index in rows.items()}


def write_npz(path: Path, part: Part) -> None:
    """As numpy.savez_compressed, but the same bytes every time: no time of writing."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in part.items():
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def write_images(folder: Path, name: str, part: Part) -> None:
    """FOLDER/name/0001.png ... and FOLDER/name.jsonl."""
    from PIL import Image

    (folder / name).mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as lines:
        for number, (pixels, label) in enumerate(zip(part["pixel_values"], part["label"], strict=True), 1):
            image = f"{name}/{number:04}.png"
            Image.fromarray(np.round(pixels[0] * 255).astype(np.uint8)).save(folder / image)
            lines.write(json.dumps({"image": image, "label": int(label)}) + "\n")


def differing(folder: Path, parts: dict[str, Part]) -> list[str]:
    """The files that are not what the recipe gives."""
    wrong = []
    for name, file in FILES.items():
        with np.load(folder / file) as stored:
            same = set(stored.files) == set(parts[name]) and all(
                np.array_equal(stored[key], array) and stored[key].dtype == array.dtype
                for key, array in parts[name].items()
            )
        if not same:
            wrong.append(file)
    return wrong


def main() -> int:
    """Run the recipe; the exit code."""
    parser = argparse.ArgumentParser(description="Write the digits calibration and evaluation rows.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the .npz files")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--train", type=Path, help="also write the training images to this .npz file")
    parser.add_argument("--images", type=Path, help="write PNG files and .jsonl rows to this folder instead")
    options = parser.parse_args()
    parts = digits(options.seed)
    if options.check:
        wrong = differing(options.out, parts)
        print(f"differ from the recipe: {', '.join(wrong)}" if wrong else "as the recipe gives them")
        return int(bool(wrong))
    for name, file in FILES.items():
        if options.images is not None:
            write_images(options.images, name, parts[name])
        else:
            write_npz(options.out / file, parts[name])
    if options.train is not None:
        write_npz(options.train, parts["train"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
