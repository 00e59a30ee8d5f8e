"""The main job from the training on, with nothing to download: train a small vision transformer, export it, prune it.

The data are scikit-learn's 1,797 handwritten digits (8×8 grey levels). The model is a ViT of 450,000 parameters. It is
exported with optimum, as a user would, and goes through the command line: 60% of its FLOPs are kept.

    python examples/digits_vit.py                     # about a minute on two cores
    python examples/digits_vit.py --flops 0.4         # another budget; the trained model is kept
    python examples/digits_vit.py --ship              # stores it for `onnxprune demo`, and prunes nothing

Everything stays in examples/output/digits to play with: the model, the calibration and evaluation rows, the pruned
model and its report.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import shutil
import subprocess
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from transformers import ViTForImageClassification

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = 450  # rows of calibration/digits-dev.npz: never trained on


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gives training images, training labels, held-out images, held-out labels.

    Images are float32 [rows, 1, 8, 8] from 0 to 1. The split is that of calibration/digits.npz, whose rows are training
    rows, and calibration/digits-dev.npz, whose rows are the held-out ones.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images[:, None] / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    held_out, training = order[:HELD_OUT], order[HELD_OUT:]
    return images[training], data.target[training], images[held_out], data.target[held_out]


def train(epochs: int = 40, seed: int = 0) -> ViTForImageClassification:
    """Trains the ViT: AdamW on a one-cycle schedule, images shifted by up to one pixel."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    # With the default initializer_range of 0.02 a model this narrow barely trains.
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=6,
        intermediate_size=384,
        initializer_range=0.1,
        num_labels=10,
    )
    model = ViTForImageClassification(config)
    images, labels = (torch.from_numpy(array) for array in digits()[:2])
    batch, steps = 64, epochs * -(-len(images) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(batch):
            loss = model(pixel_values=_shift(images[rows]), labels=labels[rows]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _shift(images: torch.Tensor) -> torch.Tensor:
    """Moves every image by −1, 0 or 1 pixel each way."""
    import torch

    windows = torch.nn.functional.pad(images, (1, 1, 1, 1)).unfold(2, 8, 1).unfold(3, 8, 1)  # [rows, 1, 3, 3, 8, 8]
    down, right = torch.randint(0, 3, (2, len(images)))
    return windows[torch.arange(len(images)), :, down, right]


def accuracy(model: ViTForImageClassification) -> float:
    """The share of held-out images that are classified right."""
    import torch

    images, labels = (torch.from_numpy(array) for array in digits()[2:])
    with torch.no_grad():
        return float((model(pixel_values=images).logits.argmax(-1) == labels).float().mean())


def export(model: ViTForImageClassification, folder: Path) -> Path:
    """Writes `folder/model.onnx` and its configuration with optimum's exporter."""
    from optimum.exporters.onnx import onnx_export_from_model

    logging.getLogger("optimum").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx_export_from_model(model, folder, task="image-classification", do_validation=False)
    return folder / "model.onnx"


def ship(model: Path, target: Path) -> None:
    """Writes a copy whose weights are stored in half precision: half the bytes in the repository and the package."""
    import onnx_ir as ir

    from onnxprune.export.precision.storage import store_half

    held = ir.load(model)
    store_half(held)
    ir.save(held, target)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, export and prune a small vision transformer.")
    parser.add_argument("--flops", default="0.6", help="the share of FLOPs to keep (default: 0.6)")
    parser.add_argument("--epochs", type=int, default=40, help="training epochs (default: 40)")
    parser.add_argument("--output", type=Path, default=ROOT / "examples" / "output" / "digits")
    parser.add_argument("--ship", action="store_true", help="store the trained model for `onnxprune demo`, and stop")
    options = parser.parse_args()

    folder: Path = options.output
    model = folder / "model.onnx"
    if not model.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"Training a ViT on {1797 - HELD_OUT} digits for {options.epochs} epochs …", flush=True)
        start = time.perf_counter()
        trained = train(options.epochs)
        print(f"{accuracy(trained):.1%} of {HELD_OUT} held-out digits right after {time.perf_counter() - start:.0f} s.")
        export(trained, folder)
    if options.ship:
        ship(model, ROOT / "examples" / "digits" / "model.onnx")
        return
    for name in ("digits.npz", "digits-dev.npz"):
        shutil.copy(ROOT / "calibration" / name, folder)
    command = ["onnxprune", model, "--flops", options.flops, "--calib", folder / "digits.npz"]
    command += ["--eval", folder / "digits-dev.npz", "--force"]
    print("$", shlex.join(map(str, command)), flush=True)
    raise SystemExit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
