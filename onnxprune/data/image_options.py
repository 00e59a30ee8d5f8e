"""How images are prepared where no preprocessor_config.json says it: what is stated, over a framework's usual way.

A preset is what a framework's own example code does to an image before the graph. Whatever is stated beside it
(mean, std, scale, layout) takes the place of that part of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.errors import UsageError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of the channels, red first, of pixels in 0..1."""


@dataclass(frozen=True)
class ImageOptions:
    """Attributes:
    fit: how an image comes to the graph's size: "stretch", "crop" (its centre, after its shorter edge was made an
        eighth longer than the size) or "letterbox" (whole, the rest grey).
    edge: pixels of both edges where neither the graph nor --shape says them; None for asking.
    scale: what 0..255 is multiplied with; None for the plainest: 1/255 for floats, 1 for integers.
    mean, std: of each channel, in the graph's order of them, or one number for all; None for none.
    bgr: blue is the first channel.
    last: channels are the last axis; None for what the graph's shape tells.
    named: what was asked for, to be said; "" for nothing.
    """

    fit: str = "stretch"
    edge: int | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bgr: bool = False
    last: bool | None = None
    named: str = ""


PRESETS = {
    "torchvision": ImageOptions("crop", 224, 1 / 255, *IMAGENET),
    "ultralytics": ImageOptions("letterbox", 640, 1 / 255),
    "paddle": ImageOptions("stretch", None, 1 / 255, *IMAGENET, bgr=True),
    "paddle-text": ImageOptions("stretch", None, 1 / 255, (0.5,), (0.5,), bgr=True),
}
"""Classifiers of torchvision and timm; YOLO of ultralytics; PaddleOCR's detectors, and its recognisers and angle
classifiers (its readers hand over blue first, and subtract ImageNet's means in their own order)."""


def image_options(
    preset: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    scale: float | str | None = None,
    layout: Sequence[str] | str | None = None,
) -> ImageOptions | None:
    """What is stated of the preparation of images; None where nothing is.

    Args:
        preset: a name of `PRESETS`.
        scale: a number, or a fraction as text: "1/255".
        layout: any of "nchw", "nhwc", "rgb", "bgr".

    Raises:
        UsageError: a name, number or combination that has no meaning.
    """
    words = [w for w in re.split(r"[,\s]+", layout.lower()) if w] if isinstance(layout, str) else list(layout or ())
    given: dict[str, str | float | Sequence[float] | None] = {
        "preset": preset,
        "mean": mean,
        "std": std,
        "scale": scale,
        "layout": ",".join(words) or None,
    }
    if all(value is None for value in given.values()):
        return None
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"--preset {preset}: there are {', '.join(PRESETS)} (YOLO's is ultralytics)")
    found = PRESETS[preset] if preset is not None else ImageOptions()
    if mean is not None:
        found = replace(found, mean=_numbers("mean", mean))
    if std is not None:
        found = replace(found, std=_numbers("std", std))
    if scale is not None:
        found = replace(found, scale=_scale(scale))
    if unknown := sorted(set(words) - {"nchw", "nhwc", "rgb", "bgr"}):
        raise UsageError(f"--layout {unknown[0]}: give nchw or nhwc, and rgb or bgr")
    if {"nchw", "nhwc"} <= set(words) or {"rgb", "bgr"} <= set(words):
        raise UsageError(f"--layout {','.join(words)}: one of nchw and nhwc, one of rgb and bgr")
    if "nchw" in words or "nhwc" in words:
        found = replace(found, last="nhwc" in words)
    if "rgb" in words or "bgr" in words:
        found = replace(found, bgr="bgr" in words)
    said = ", ".join(f"{name} {_text(value)}" for name, value in given.items() if value is not None)
    return replace(found, named=said)


def _text(value: str | float | Sequence[float]) -> str:
    return value if isinstance(value, str) else ",".join(f"{v:g}" for v in np.ravel(value))


def _numbers(name: str, values: Sequence[float]) -> tuple[float, ...]:
    found = tuple(float(v) for v in np.ravel(values))
    if len(found) not in (1, 3, 4) or not np.isfinite(found).all():
        raise UsageError(f"--{name}: give one number, or one for each channel")
    if name == "std" and min(found) <= 0:
        raise UsageError("--std: deviations are above 0")
    return found


def _scale(told: float | str) -> float:
    parts = str(told).split("/")
    try:
        found = float(parts[0]) / float(parts[1]) if len(parts) == 2 else float(told)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--scale {told}: give a number such as 1/255 or 0.0039") from None
    if not np.isfinite(found) or found <= 0:
        raise UsageError(f"--scale {told}: give a number above 0")
    return found
