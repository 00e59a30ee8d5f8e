"""Speech and vision: models trained here in minutes, pruned by the command line's defaults; the metric by budget.

    python tests/bench/senses.py FOLDER --methods auto,optin --budgets 0.7,0.6,0.5
    python tests/bench/senses.py FOLDER --table

No photographs or labelled speech come with this repository, so rows are made: scikit-learn's handwritten digits on
coloured backgrounds, one to be named, or several to be found pixel by pixel; and words of three gliding syllables, by
voices of any pitch and tempo, in noise. Models are transformers' own classes at a size that two cores train: they are
small, and so is what can be spared in them. Rows that are judged by come from digits and voices that taught nothing.
FOLDER keeps models and reports; what is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]
LEARN, CALIBRATE, JUDGE = 12000, 512, 2000
"""Rows that the model is trained on; those of them that are given to the pruner, without labels; those judged by."""
BATCH = 32
RATE, LENGTH = 8000, 4000
"""Samples of a second of sound, and of a row."""
MELS, HOP, WINDOW = 40, 80, 256
"""Bands of a spectrogram; samples from one of its frames to the next, and in one."""

Rows = tuple[np.ndarray, np.ndarray]
"""What a model reads, and labels."""


# -- rows ------------------------------------------------------------------------------------------------------


def handwritten(held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Grey levels [digits, 8, 8] in 0..1, and what they are; a quarter of them is held out."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    chosen = order[:450] if held_out else order[450:]
    return data.images[chosen] / 16, data.target[chosen]


def scene(rng: np.random.Generator, size: int, most: int, held_out: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """(picture [3, size, size] around 0, mask [size, size] of digit + 1 or 0, the last digit): 1 to `most` digits."""
    from PIL import Image

    images, names = handwritten_of(held_out)
    coarse = rng.random((4, 4, 3)) * 120  # dark, and ink is bright
    picture = np.asarray(Image.fromarray(coarse.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC))
    picture, mask, name = picture / 255.0, np.zeros((size, size), np.int64), 0
    for _ in range(int(rng.integers(1, most + 1))):
        one = int(rng.integers(len(images)))
        side = int(rng.integers(size // 3, size // 2) if most > 1 else rng.integers(size // 2, size * 7 // 8))
        drawn = Image.fromarray((images[one] * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        ink = np.asarray(drawn) / 255.0
        top, left = rng.integers(0, size - side + 1, 2)
        area = (slice(top, top + side), slice(left, left + side))
        colour, alpha = rng.uniform(0.6, 1, 3), ink[..., None]
        picture[area] = picture[area] * (1 - alpha) + colour * alpha
        mask[area] = np.where(ink > 0.4, names[one] + 1, mask[area])
        name = int(names[one])
    picture = picture + rng.normal(0, 0.05, picture.shape)
    return (picture.transpose(2, 0, 1) - 0.5).astype(np.float32), mask, name


def handwritten_of(held_out: bool, known: dict[bool, Any] = {}) -> tuple[np.ndarray, np.ndarray]:  # noqa: B006
    """`handwritten`, read once."""
    if held_out not in known:
        known[held_out] = handwritten(held_out)
    found: tuple[np.ndarray, np.ndarray] = known[held_out]
    return found


def written(count: int, held_out: bool) -> Rows:
    """Single digits as they are, moved by a pixel at most: [1, 8, 8]."""
    rng = np.random.default_rng(6 + int(held_out))
    images, names = handwritten_of(held_out)
    chosen = rng.integers(0, len(images), count)
    around = np.pad(images[chosen], ((0, 0), (1, 1), (1, 1)))
    down, right = rng.integers(0, 3, (2, count))
    moved = np.stack([x[d : d + 8, r : r + 8] for x, d, r in zip(around, down, right, strict=True)])
    return moved[:, None].astype(np.float32), names[chosen]


def named(size: int) -> Callable[[int, bool], Rows]:
    """One digit on a background, to be named."""

    def rows(count: int, held_out: bool) -> Rows:
        rng = np.random.default_rng(int(held_out))
        made = [scene(rng, size, 1, held_out) for _ in range(count)]
        return np.stack([m[0] for m in made]), np.array([m[2] for m in made])

    return rows


def found(size: int) -> Callable[[int, bool], Rows]:
    """One or two digits, to be told from the background and each other, pixel by pixel."""

    def rows(count: int, held_out: bool) -> Rows:
        rng = np.random.default_rng(2 + int(held_out))
        made = [scene(rng, size, 2, held_out) for _ in range(count)]
        return np.stack([m[0] for m in made]), np.stack([m[1] for m in made])

    return rows


SYLLABLES = np.array([[300, 2200, 1.0], [700, 1200, 1.0], [500, 900, 0.8], [350, 800, 1.25], [600, 1800, 1.2]])
"""Two formants in Hz, and what the pitch goes to by the end, as a ratio."""
_WORDS = (102, 120, 103, 130, 240, 204, 314, 341, 423, 432)
WORDS = np.array([[int(syllable) for syllable in str(word)] for word in _WORDS])
"""Ten words of syllables."""


def word(rng: np.random.Generator, number: int) -> np.ndarray:
    """A word by some voice, in noise: [LENGTH] samples of unit deviation."""
    pitch, tempo, tract = rng.uniform(90, 280), rng.uniform(0.75, 1.25), rng.uniform(0.85, 1.15)
    length, spoken = int(RATE * 0.11 * tempo), []
    for low, high, glide in SYLLABLES[WORDS[number]]:
        cycle = 2 * np.pi * np.cumsum(np.linspace(pitch, pitch * glide * rng.uniform(0.95, 1.05), length)) / RATE
        harmonics = np.arange(1, int(3600 / pitch))
        at = harmonics * pitch
        loud = sum(np.exp(-(((at - f * tract) / 180) ** 2)) for f in (low, high)) + 0.02
        spoken.append((loud[:, None] * np.sin(harmonics[:, None] * cycle)).sum(0) * np.hanning(length))
    sound = np.concatenate(spoken)
    sound = sound / sound.std()
    row = rng.normal(0, 10 ** (-rng.uniform(-5, 15) / 20), LENGTH)
    start = int(rng.integers(0, LENGTH - len(sound) + 1))
    row[start : start + len(sound)] += sound
    return (row / row.std()).astype(np.float32)


def heard(spectrum: bool) -> Callable[[int, bool], Rows]:
    """Words, as waveforms [LENGTH] or as logarithmic spectrograms [MELS, frames]."""

    def rows(count: int, held_out: bool) -> Rows:
        rng = np.random.default_rng(4 + int(held_out))
        labels = rng.integers(0, len(WORDS), count)
        waves = np.stack([word(rng, int(label)) for label in labels])
        return (spectrogram(waves) if spectrum else waves), labels

    return rows


def spectrogram(waves: np.ndarray) -> np.ndarray:
    """[rows, samples] -> [rows, MELS, samples / HOP], as Whisper's extractor has them: logarithms, about 0."""
    padded = np.pad(waves, ((0, 0), (WINDOW // 2, WINDOW // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, 1)[:, ::HOP][:, : LENGTH // HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW))) ** 2
    mel = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), MELS + 2) / 2595) - 1)
    hertz = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rise, fall = (hertz - mel[:-2, None]) / np.diff(mel)[:-1, None], (mel[2:, None] - hertz) / np.diff(mel)[1:, None]
    bands = np.log10(power @ np.clip(np.minimum(rise, fall), 0, None).T + 1e-4)
    return ((bands - bands.mean()) / bands.std()).transpose(0, 2, 1).astype(np.float32)


# -- models ----------------------------------------------------------------------------------------------------


def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            image_size=8, patch_size=2, num_channels=1, hidden_size=192, num_hidden_layers=4, num_attention_heads=6,
            intermediate_size=768, initializer_range=0.07, num_labels=10,
        )
    )  # fmt: skip


def whisper() -> Any:
    from transformers import WhisperConfig, WhisperForAudioClassification

    return WhisperForAudioClassification(
        WhisperConfig(
            num_mel_bins=MELS, d_model=128, encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=512,
            decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=8, vocab_size=16, pad_token_id=0,
            max_source_positions=LENGTH // HOP // 2, init_std=0.06, classifier_proj_size=64, num_labels=10,
        )
    )  # fmt: skip


def wav2vec2() -> Any:
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    return Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(
            hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512, vocab_size=16,
            conv_dim=(64, 64, 96, 128), conv_kernel=(10, 4, 4, 4), conv_stride=(5, 4, 4, 2), layerdrop=0.0,
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=8, apply_spec_augment=False,
            num_feat_extract_layers=4, classifier_proj_size=64, num_labels=10,
        )
    )  # fmt: skip


def segformer() -> Any:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(
        SegformerConfig(
            num_encoder_blocks=2, depths=[2, 2], sr_ratios=[2, 1], hidden_sizes=[32, 96], patch_sizes=[5, 3],
            strides=[2, 2], num_attention_heads=[1, 3], mlp_ratios=[4, 4], decoder_hidden_size=96,
            hidden_dropout_prob=0.0, classifier_dropout_prob=0.0, drop_path_rate=0.0, num_labels=11,
        )
    )  # fmt: skip


def resnet() -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32, hidden_sizes=[32, 64, 128], depths=[2, 2, 2], layer_type="basic", num_labels=10,
            downsample_in_first_stage=False,
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A model of the table.

    Attributes:
        input: name of what it reads.
        build: the untrained model; None for the one of `onnxprune demo`, which comes along with its rows.
        rows: (how many, whether of digits and voices that are held out) -> rows.
        steps: of training, of `BATCH` rows each.
    """

    name: str
    input: str
    build: Callable[[], Any] | None
    rows: Callable[[int, bool], Rows]
    steps: int = 0
    rate: float = 2e-3


MODELS = {
    "digits": Trained("ViT, 4 × 96, digits", "pixel_values", None, written),
    "vit": Trained("ViT, 4 × 192, digits", "pixel_values", vit, written, 900, 1e-3),
    "resnet": Trained("ResNet, 3 stages, a digit on a background", "pixel_values", resnet, named(24), 1500),
    "segformer": Trained("SegFormer, 2 stages, digits in scenes", "pixel_values", segformer, found(24), 1400),
    "whisper": Trained("Whisper encoder, 4 × 128, words", "input_features", whisper, heard(True), 800),
    "wav2vec2": Trained("wav2vec2, 4 × 128, words", "input_values", wav2vec2, heard(False), 1200, 5e-4),
}


def train(model: Trained, inputs: np.ndarray, labels: np.ndarray, seed: int = 0) -> torch.nn.Module:
    """AdamW on a one-cycle schedule; the cross entropy of what each row (or pixel) is."""
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    assert model.build is not None
    network = model.build().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=model.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, model.rate, total_steps=model.steps, pct_start=0.15)
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    for _ in range(model.steps):
        chosen = torch.randint(0, len(x), (BATCH,))
        scores = network(x[chosen]).logits
        if y.ndim > 1:
            scores = functional.interpolate(scores, size=y.shape[1:], mode="bilinear", align_corners=False)
        rare = torch.ones(scores.shape[1])
        rare[0] = 1.0 if y.ndim == 1 else 0.2  # most of a scene is background
        loss = functional.cross_entropy(scores, y[chosen], weight=rare)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def export(network: torch.nn.Module, name: str, row: np.ndarray, path: Path) -> None:
    """The scores alone, for any number of rows."""
    import torch

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.network(rows).logits
            return found

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Scores().eval(), (torch.from_numpy(row[:2]),), path, input_names=[name], output_names=["logits"],
            dynamic_axes={name: {0: "batch"}, "logits": {0: "batch"}}, dynamo=False, opset_version=17,
        )  # fmt: skip


def make(model: Trained, folder: Path) -> None:
    """Train a model, and write it with the rows it is pruned and judged by."""
    import torch

    torch.set_num_threads(1)  # on cores that others use, two that wait for each other take five times as long
    folder.mkdir(parents=True, exist_ok=True)
    if model.build is None:
        for name, source in (("calibration", "digits"), ("judge", "digits-dev")):
            shutil.copy(ROOT / "calibration" / f"{source}.npz", folder / f"{name}.npz")
        shutil.copy(ROOT / "examples/digits/model.onnx", folder)
        return
    start = time.perf_counter()
    inputs, labels = model.rows(LEARN, False)
    print(f"{model.name}: {LEARN} rows made in {time.perf_counter() - start:.0f} s", flush=True)
    network = train(model, inputs, labels)
    print(f"{model.name}: trained in {time.perf_counter() - start:.0f} s", flush=True)
    given: dict[str, Any] = {model.input: inputs[:CALIBRATE]}
    np.savez(folder / "calibration.npz", **given)
    inputs, labels = model.rows(JUDGE, True)
    given = {model.input: inputs, "label": labels}
    np.savez(folder / "judge.npz", **given)
    export(network, model.input, inputs, folder / "model.onnx")


# -- the table -------------------------------------------------------------------------------------------------


def prune(folder: Path, budgets: str, methods: str, seed: int) -> None:
    """One curve a method, by the command line."""
    for method in methods.split(","):
        out = folder / f"{method}-{seed}"
        if out.exists() and len(list(out.glob("*.report.json"))) >= len(budgets.split(",")):
            continue
        command = [
            sys.executable, "-m", "onnxprune.cli", "sweep", str(folder / "model.onnx"), "--flops", budgets,
            "--calib", str(folder / "calibration.npz"), "--eval", str(folder / "judge.npz"), "--method", method,
            "-o", str(out), "--seed", str(seed), "--force",
        ]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, check=True)
        (out / "seconds").write_text(f"{time.perf_counter() - start:.0f}\n", encoding="utf-8")


def lines(model: Trained, folder: Path) -> str:
    """A model's lines of the table: its metric, and what is lost of it in points."""
    text = ""
    for out in sorted(path for path in folder.iterdir() if path.is_dir()):
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob("*.report.json")]
        reports.sort(key=lambda r: -r["flops"]["pruned"])
        dense, metric = reports[0]["accuracy"]["dense"], reports[0]["accuracy"]["metric"]
        cells = [model.name, f"{metric} {100 * dense:.2f}", out.name.rpartition("-")[0]]
        for report in reports:
            timed = next(iter(report["latency"]), None)
            speed = "" if timed is None else f", {timed['speedup']:.2f}×"
            cells.append(f"{100 * (report['accuracy']['pruned'] - dense):+.2f}{speed}")
        text += f"| {' | '.join([*cells, (out / 'seconds').read_text().strip()])} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--budgets", default="0.7,0.6,0.5")
    parser.add_argument("--methods", default="auto,optin")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", action="store_true", help="make the models, and prune nothing")
    parser.add_argument("--table", action="store_true", help="write down what is there, and make nothing")
    asked = parser.parse_args()
    for name in asked.models.split(","):
        folder = asked.folder / name
        if not asked.table and not (folder / "model.onnx").exists():
            make(MODELS[name], folder)
        if not asked.table and not asked.train:
            prune(folder, asked.budgets, asked.methods, asked.seed)
        if not asked.train and folder.exists():
            print(lines(MODELS[name], folder), end="", flush=True)


if __name__ == "__main__":
    main()
