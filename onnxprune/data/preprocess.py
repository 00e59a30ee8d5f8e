"""preprocessor_config.json as one function from an image to pixel values.

The keys are those of the image processors of transformers (`do_resize`, `size`, `resample`, `do_center_crop`,
`crop_size`, `rescale_factor`, `image_mean`, `image_std`, `do_flip_channel_order`). A processor that means
more by them than they say is run itself, from transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.optional_packages import package
from onnxprune.errors import DataError, said

Array = NDArray[Any]

BILINEAR, BICUBIC = 2, 3  # as PIL numbers them
BICUBIC_BY_DEFAULT = frozenset({"CLIP", "ChineseCLIP", "Siglip", "Bit", "DeiT", "Blip", "Beit"})
# Processors whose keys say all they do; a bare number as size is the shortest edge for some of them.
SQUARE = frozenset({"", "ViT", "DeiT", "Beit", "Siglip", "Segformer", "Blip"})
SHORTEST = frozenset({"CLIP", "ChineseCLIP", "ConvNext", "MobileNetV1", "MobileNetV2", "MobileViT", "Bit"})
UNDERSTOOD = (
    *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_flip_channel_order"),
    *("do_reduce_labels", "do_pad", "do_convert_annotations"),
)


@dataclass(frozen=True, eq=False)
class Preprocess:
    """What is done to an image, in this order; steps that are None are left out.

    Attributes:
        channels: 1 (grey), 3 or 4.
        size: ("exact", height, width), ("shortest", edge, edge), before the crop, or ("letterbox", height, width).
        crop: (height, width) of the centre that is kept, filled up with zeros where the image is smaller.
        scale: what 0..255 is multiplied with.
        mean, std: float64 (channels, 1, 1).
        flip: RGB becomes BGR, at last; `bgr`: before the means are subtracted.
        processor: transformers' own processor, which then does all of this.
        reduce_labels: class 0 of a mask is the background, 255, and all others count from 0.
    """

    channels: int
    size: tuple[str, int, int] | None = None
    resample: int = BILINEAR
    crop: tuple[int, int] | None = None
    scale: float | None = None
    mean: Array | None = None
    std: Array | None = None
    flip: bool = False
    bgr: bool = False
    reduce_labels: bool = False
    processor: Any = field(default=None, repr=False)

    def pixels(self, image: Any) -> Array:
        """float64 (channels, height, width) of a PIL image."""
        if image.mode != (mode := {1: "L", 4: "RGBA"}.get(self.channels, "RGB")):
            image = image.convert(mode)
        if self.processor is not None:
            prepared = self.processor(images=image, return_tensors="np")["pixel_values"]
            return np.asarray(prepared[0])
        array = self._placed(image, self.resample)
        array = (array[..., None] if array.ndim == 2 else array).transpose(2, 0, 1).astype(np.float64)
        if self.bgr:
            array = array[::-1]
        if self.scale is not None:
            array = array * self.scale
        if self.mean is not None and self.std is not None:
            array = (array - self.mean) / self.std
        return array[::-1] if self.flip else array

    def mask(self, image: Any) -> Array:
        """int64 (height, width): the classes of a mask image, resized and cropped as its image is."""
        if self.processor is not None:
            raise DataError("masks are not supported with this image processor: give rows of pixel values and labels")
        classes = self._placed(image, resample=0).astype(np.int64)
        if classes.ndim != 2:
            raise DataError(f"a mask must have one channel of class numbers, not {classes.shape[2]}")
        return np.where(classes == 0, 255, classes - 1) if self.reduce_labels else classes

    def _placed(self, image: Any, resample: int) -> Array:
        if self.size is not None:
            kind, height, width = self.size
            if kind == "letterbox":
                return _letterbox(image, height, width, resample)
            if kind == "shortest":
                own = (image.height, image.width)
                short = min(own)
                height, width = (height if side == short else int(height * side / short) for side in own)
                if height * width > MOST_PIXELS:  # of a line of pixels, a strip of gigabytes
                    raise ValueError(f"{image.width} x {image.height} pixels become {width} x {height}")
            if (width, height) != image.size:
                image = image.resize((width, height), resample=resample)
        array = np.asarray(image)
        return array if self.crop is None else _centre(array, *self.crop)


def _centre(array: Array, height: int, width: int) -> Array:
    """The centre of (h, w, ...), filled up with zeros where it is smaller."""
    missing = [max(0, wanted - own) for wanted, own in zip((height, width), array.shape, strict=False)]
    if any(missing):
        before = [-(-m // 2) for m in missing]
        edges = [(b, m - b) for b, m in zip(before, missing, strict=True)]
        array = np.pad(array, edges + [(0, 0)] * (array.ndim - 2))
    top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2
    return array[top : top + height, left : left + width]


def _letterbox(image: Any, height: int, width: int, resample: int) -> Array:
    """The whole image in the middle of (height, width), what is left of it grey; 255, no class, around a mask."""
    share = min(height / image.height, width / image.width)
    inner = max(round(image.height * share), 1), max(round(image.width * share), 1)
    array = np.asarray(image.resize((inner[1], inner[0]), resample=resample))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    edges = [(top, height - inner[0] - top), (left, width - inner[1] - left)]
    grey = 255 if resample == 0 else 114
    return np.pad(array, edges + [(0, 0)] * (array.ndim - 2), constant_values=grey)


def fitted(
    fit: str, height: int, width: int, channels: int, *, scale: float | None, mean: Array, std: Array, bgr: bool
) -> Preprocess:
    """The steps of `image_options.ImageOptions` at a size.

    Args:
        fit: "stretch", "crop" or "letterbox".
        mean, std: float64 (channels or 1, 1, 1).
    """
    size: tuple[str, int, int] = ("letterbox" if fit == "letterbox" else "exact", height, width)
    crop = None
    if fit == "crop":
        edge = round(max(height, width) * 8 / 7)
        size, crop = ("shortest", edge, edge), (height, width)
    return Preprocess(channels, size, crop=crop, scale=scale, mean=mean, std=std, bgr=bgr)


def plain(height: int, width: int, channels: int, *, scale: bool) -> Preprocess:
    """Resized to the graph's size and scaled to 0..1, where nothing better is known."""
    return Preprocess(channels, ("exact", height, width), scale=1 / 255 if scale else None)


def read_preprocess(config: Mapping[str, Any], path: Path, channels: int) -> Preprocess:
    """The steps that a preprocessor_config.json asks for.

    Raises:
        DataError: it asks for steps that need transformers, which is not installed, or it is damaged.
    """
    name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    family = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", name)
    odd = sorted(k for k, v in config.items() if k.startswith("do_") and v and k not in UNDERSTOOD)
    if (
        family not in SQUARE | SHORTEST
        or odd
        or config.get("do_pad")
        or (config.get("crop_pct") and family != "ConvNext")
    ):
        return Preprocess(channels, processor=_own_processor(config, path, name or ", ".join(odd)))
    try:
        return _steps(config, family, channels)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise DataError(f"{path}: cannot be understood ({said(error)}): copy it again from the model") from error


def _own_processor(config: Mapping[str, Any], path: Path, name: str) -> Any:
    for key, edge in numbers(config):
        if re.search("size|edge|height|width", key) and edge > LARGEST:
            raise DataError(f"{path}: {key} is {edge:.10g}; edges of up to {LARGEST} pixels are possible")
    transformers = package("transformers", f"{path}: the image processor {name} is run")
    try:
        return transformers.AutoImageProcessor.from_pretrained(
            str(path.parent), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a processor class makes of damaged or foreign files
        raise DataError(f"{path}: {name} cannot be loaded: {error}: give rows of pixel values") from error


def numbers(told: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a configuration, by the names that lead to them: "size.height"."""
    for key, value in told.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{name}", number) for name, number in numbers(value))
        else:
            yield from ((key, v) for v in (value if isinstance(value, list) else [value]) if isinstance(v, int | float))


def flag(config: Mapping[str, Any], step: str, default: bool) -> bool:
    """Whether a preprocessor_config.json wants a step.

    Raises:
        ValueError: it says neither.
    """
    value = config.get(step)
    if value not in (None, True, False):
        raise ValueError(f"{step} is {value!r:.40}, neither true nor false")
    return default if value is None else bool(value)


def _steps(config: Mapping[str, Any], family: str, channels: int) -> Preprocess:
    wanted = partial(flag, config)
    mean, std = (_by_channel(config, key, channels) for key in ("image_mean", "image_std"))
    size = (
        _size(config.get("size"), family in SHORTEST) if wanted("do_resize", config.get("size") is not None) else None
    )
    crop = _size(config.get("crop_size") or config.get("size"), False) if wanted("do_center_crop", False) else None
    if family == "ConvNext" and size is not None and size[0] == "shortest":
        edge = size[1]
        size = exact = ("exact", edge, edge)
        if edge < 384:  # resized larger and cropped; from 384 on it is not cropped
            larger = int(edge / (config.get("crop_pct") or 224 / 256))
            size, crop = ("shortest", larger, larger), exact
    normalize = wanted("do_normalize", config.get("image_mean") is not None)
    resample = config.get("resample")
    if resample is not None and (type(resample) is not int or resample not in range(6)):
        raise ValueError(f"resample {resample!r} is no filter")
    scale = config.get("rescale_factor", 1 / 255)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < np.inf:
        raise ValueError(f"rescale_factor {scale!r}")
    return Preprocess(
        channels=channels,
        size=size,
        resample=(BICUBIC if family in BICUBIC_BY_DEFAULT else BILINEAR) if resample is None else int(resample),
        crop=None if crop is None else crop[1:],
        scale=float(scale) if wanted("do_rescale", True) else None,
        mean=mean if normalize else None,
        std=std if normalize else None,
        flip=wanted("do_flip_channel_order", False),
        reduce_labels=wanted("do_reduce_labels", bool(config.get("reduce_labels"))),
    )


LARGEST = 16384
"""Of a prepared image's edges."""
MOST_PIXELS = 100_000_000
"""Of an image, as it is or resized: a few kilobytes can hold billions."""


def _by_channel(config: Mapping[str, Any], key: str, channels: int) -> Array:
    """A mean or a deviation: float64 (channels, 1, 1), or (1, 1, 1) of a single number for all."""
    told = config.get(key)
    values = np.asarray(0.5 if told is None else told, np.float64)
    found = values.reshape(-1, 1, 1)[:channels]
    if values.ndim > 1 or len(found) not in ((channels,) if values.ndim else (1,)) or not np.isfinite(found).all():
        raise ValueError(f"{key} has {values.size} values for {channels} channels")
    if key == "image_std" and not (found > 0).all():
        raise ValueError(f"{key} is not above 0")
    return found


def _size(size: Any, shortest: bool) -> tuple[str, int, int]:
    """A number, {"height", "width"} or {"shortest_edge"}."""
    if isinstance(size, Mapping):
        if size.get("shortest_edge") is not None and size.get("longest_edge") is None:
            return "shortest", _edge(size["shortest_edge"]), _edge(size["shortest_edge"])
        return "exact", _edge(size["height"]), _edge(size["width"])
    if isinstance(size, list | tuple):
        return "exact", _edge(size[0]), _edge(size[1])
    return ("shortest" if shortest else "exact"), _edge(size), _edge(size)


def _edge(value: Any) -> int:
    if isinstance(value, bool) or not 1 <= int(value) <= LARGEST:
        raise ValueError(f"an edge of {value!r} pixels; 1 to {LARGEST} are possible")
    return int(value)
