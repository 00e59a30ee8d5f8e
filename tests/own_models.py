"""Small models of the kinds that people bring, as bare `.onnx` files: pictures, sounds, a detector with its head."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

_HEADER = '<ir_version: 8, opset_import: ["" : 17]> '


def picture_classifier(path: Path, edge: int = 8) -> Path:
    """Three convolutions and two classes, over pictures [batch, 3, edge, edge]."""
    lines = [*_convolutions("image", [3, 8, 8, 8], strides=[1, 1, 1]), "p = GlobalAveragePool (r2)", "f = Flatten (p)"]
    lines.append("logits = MatMul (f, head)")
    shapes = {**_weights([3, 8, 8, 8], (3, 3)), "head": (8, 2)}
    return _written(path, f"float[batch, 3, {edge}, {edge}] image", "float[batch, 2] logits", lines, shapes)


def sound_classifier(path: Path) -> Path:
    """Convolutions over the waveform, and three classes; input [batch, samples] of any length."""
    wide = [1, 16, 24, 24]
    lines = ["wave = Unsqueeze (input_values, one)", *_convolutions("wave", wide, [4, 4, 2], (9,))]
    lines += ["p = GlobalAveragePool (r2)", "f = Flatten (p)", "logits = MatMul (f, head)"]
    shapes = {**_weights(wide, (9,)), "head": (24, 3)}
    return _written(path, "float[batch, samples] input_values", "float[batch, 3] logits", lines, shapes)


def detector(path: Path, edge: int = 64, classes: int = 4) -> Path:
    """A detector as YOLO's exporters write them: a backbone, two scales that meet, boxes beside scores.

    images [1, 3, edge, edge] -> output0 [1, 4 + classes, cells of both scales].
    """
    wide = [3, 12, 16, 24]
    lines = _convolutions("images", wide, [2, 2, 2])
    lines += [
        "up = Resize <mode = \"nearest\"> (r2, , twice)", "both = Concat <axis = 1> (up, r1)",
        "n0 = Conv <pads = [1, 1, 1, 1]> (both, neck)", "g0 = Sigmoid (n0)", "near = Mul (n0, g0)",
    ]  # fmt: skip
    shapes = {**_weights(wide, (3, 3)), "neck": (16, 40, 3, 3)}
    for name, source, width in (("near", "near", 16), ("far", "r2", 24)):
        lines += [
            f"{name}_b = Conv ({source}, {name}_box)", f"{name}_c = Conv ({source}, {name}_class)",
            f"{name}_s = Sigmoid ({name}_c)", f"{name}_a = Concat <axis = 1> ({name}_b, {name}_s)",
            f"{name}_o = Reshape ({name}_a, cells)",
        ]  # fmt: skip
        shapes |= {f"{name}_box": (4, width, 1, 1), f"{name}_class": (classes, width, 1, 1)}
    lines.append("output0 = Concat <axis = 2> (near_o, far_o)")
    count = (edge // 4) ** 2 + (edge // 8) ** 2
    held = {"twice": np.array([1, 1, 2, 2], np.float32), "cells": np.array([1, 4 + classes, -1])}
    given = f"float[1, {4 + classes}, {count}] output0"
    return _written(path, f"float[1, 3, {edge}, {edge}] images", given, lines, shapes, held)


def pictures(folder: Path, classes: Sequence[str] = ("",), each: int = 12, edge: int = 12) -> Path:
    """Noisy gradients as PNG files, in a sub-folder a class where classes have names."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        slope = np.linspace(0, 120, edge)[:, None, None] if i % 2 else np.linspace(0, 120, edge)[None, :, None]
        for k in range(each):
            pixels = np.clip(slope + rng.integers(0, 100, (edge, edge, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


def sounds(folder: Path, classes: Sequence[str], each: int = 12, samples: int = 1600, rate: int = 16000) -> Path:
    """Tones in noise as .wav files of 16 bits, a pitch a class, in a sub-folder each."""
    import wave

    rng = np.random.default_rng(0)
    time = np.arange(samples) / rate
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(each):
            tone = 0.5 * np.sin(2 * np.pi * 300 * 2**i * time) + 0.1 * rng.standard_normal(samples)
            with wave.open(str(folder / name / f"{k}.wav"), "wb") as file:
                file.setparams((1, 2, rate, 0, "NONE", ""))
                file.writeframes((np.clip(tone, -1, 1) * 32000).astype("<i2").tobytes())
    return folder


def _convolutions(
    source: str, wide: Sequence[int], strides: Sequence[int], kernel: Sequence[int] = (3, 3)
) -> list[str]:
    """Conv and Relu in a row: r0, r1, …"""
    ints = ", ".join(str(k // 2) for k in (*kernel, *kernel))
    made = []
    for i in range(len(wide) - 1):
        steps = ", ".join([str(strides[i])] * len(kernel))
        taken = f"{source if not i else f'r{i - 1}'}, w{i}"
        made += [f"c{i} = Conv <pads = [{ints}], strides = [{steps}]> ({taken})", f"r{i} = Relu (c{i})"]
    return made


def _weights(wide: Sequence[int], kernel: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"w{i}": (made, taken, *kernel) for i, (taken, made) in enumerate(itertools.pairwise(wide))}


def _written(
    path: Path,
    takes: str,
    gives: str,
    lines: Sequence[str],
    shapes: dict[str, tuple[int, ...]],
    held: dict[str, np.ndarray] | None = None,
) -> Path:
    """The graph with random weights of these shapes, at a scale where every unit matters."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(f"{_HEADER}small ({takes}) => ({gives}) {{\n" + "\n".join(lines) + "\n}")
    made = {"one": np.array([1]), **(held or {})}
    for name, shape in shapes.items():
        spread = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 2 else 1.0
        made[name] = rng.normal(0, spread, shape).astype(np.float32)
    read = {name for node in model.graph.node for name in node.input}
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in made.items() if name in read]
    model.graph.initializer.extend(tensors)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path
