"""Image rows as pixel values, prepared as is stated, or as the model's preprocessor_config.json says."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.image_options import ImageOptions
from onnxprune.data.model_info import Graph, Job, Part, Spec, describe
from onnxprune.data.optional_packages import package
from onnxprune.data.outside import within
from onnxprune.data.preprocess import MOST_PIXELS, Preprocess, fitted, plain, read_preprocess
from onnxprune.data.sources import Row
from onnxprune.errors import DataError, OnnxPruneError, UsageError, reading, said

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """Where a graph's image input has its channels and what size it wants."""

    channels: int | None
    height: int | None
    width: int | None
    last: bool  # channels are the last axis

    @classmethod
    def of(cls, spec: Spec, sizes: Mapping[str, int] | None = None, last: bool | None = None) -> Layout:
        """Args:
        sizes: of symbolic dimensions, as stated.
        last: whether channels are the last axis, as stated; None for what the shape tells.
        """
        known = sizes or {}
        dims = [dim if isinstance(dim, int) else known.get(dim or "") for dim in spec.shape]
        if last is None:
            last = dims[1] not in (1, 3, 4) and dims[3] in (1, 3, 4)
        _, a, b, c = dims
        return cls(c, a, b, True) if last else cls(a, b, c, False)


def image_input(graph: Graph) -> Spec | None:
    """The input that takes the image: `pixel_values`, or the only one of rank 4 that is not a cache."""
    if (named := graph.by_role.get("pixel_values")) is not None:
        return named
    candidates = [s for s in graph.inputs if len(s.shape) == 4 and not s.name.startswith("past_key_values")]
    return candidates[0] if len(candidates) == 1 else None


def encode_images(rows: Sequence[Row], job: Job) -> list[list[Part]]:
    """{"image", "mask"?}: one part a row; a mask becomes the label, at the image's size."""
    spec = image_input(job.graph)
    if spec is None:
        raise DataError(
            f"image rows need one image input; the graph takes {job.graph.listing}: give rows of its own inputs"
        )
    if len(spec.shape) != 4:
        raise DataError(f"the graph's image input {describe(spec)} is not of rank 4: give rows of its own inputs")
    layout = Layout.of(spec, job.shape, job.images.last if job.images else None)
    prepare = preparation(spec, layout, job)
    return [[_part(row, spec, layout, prepare, outside=job.allow_outside)] for row in rows]


def preparation(spec: Spec, layout: Layout, job: Job) -> Preprocess:
    """What is stated, else preprocessor_config.json if it is there, else the plainest that the size allows; said.

    Raises:
        DataError: nothing says the size, or the configuration is damaged.
        UsageError: what is stated does not fit the graph's channels.
    """
    integers = np.dtype(spec.dtype).kind in "iu"
    if job.images is not None:
        return _stated(job.images, spec, layout, job)
    path = job.files.find("preprocessor_config.json")
    if path is not None and not integers:
        job.say(f"images: prepared as {path} says")
        channels = layout.channels or job.files.setting("num_channels") or 3
        return read_preprocess(job.files.load(path), path, channels)
    height, width = _size(spec, layout, None)
    values = "left at 0..255" if integers else "scaled to 0..1"
    reason = "the graph takes integers" if integers else "no preprocessor_config.json beside the model"
    more = "" if integers else "; --preset, --mean and --std say more"
    job.say(f"images: resized to {height} x {width} and {values} ({reason}{more})")
    return plain(height, width, layout.channels or 3, scale=not integers)


def _size(spec: Spec, layout: Layout, edge: int | None) -> tuple[int, int]:
    """Height and width: those of the graph or of --shape, else a preset's."""
    height, width = layout.height or edge, layout.width or edge
    if height is None or width is None:
        at = (1, 2) if layout.last else (2, 3)
        names = [str(spec.shape[axis]) for axis in at if not isinstance(spec.shape[axis], int)]
        raise DataError(
            f"image rows: nothing says the size for {describe(spec)}: state it with --shape "
            f"{','.join(f'{name}=224' for name in names)}, or put preprocessor_config.json beside the model"
        )
    return height, width


def _stated(asked: ImageOptions, spec: Spec, layout: Layout, job: Job) -> Preprocess:
    height, width = _size(spec, layout, asked.edge)
    channels = layout.channels or 3
    counts = {len(v) for v in (asked.mean, asked.std) if v is not None}
    if wrong := counts - {1, channels}:
        raise UsageError(f"--mean and --std: {max(wrong)} values for the {channels} channels of {describe(spec)}")
    integers = np.dtype(spec.dtype).kind in "iu"
    scale = asked.scale
    if scale is None:  # means of more than 1 are of pixels in 0..255
        scale = None if integers or max(asked.mean or (0.0,)) > 1 else 1 / 255
    job.say(f"images: {asked.fit} to {height} x {width}, as stated ({asked.named})")
    mean, std = (np.reshape(v if v is not None else (d,), (-1, 1, 1)) for v, d in ((asked.mean, 0.0), (asked.std, 1.0)))
    return fitted(asked.fit, height, width, channels, scale=scale, mean=mean, std=std, bgr=asked.bgr)


def _part(row: Row, spec: Spec, layout: Layout, prepare: Preprocess, *, outside: bool) -> Part:
    image = open_image(row, "image", outside=outside)
    with reading(f"{row.source}: the image cannot be prepared", DataError), np.errstate(all="ignore"):
        pixels = prepare.pixels(image)
        held = pixels.astype(spec.dtype)
    if not _fits(pixels, held):
        raise DataError(
            f"{row.source}: the image is prepared as numbers of {np.min(pixels):.3g} to {np.max(pixels):.3g}, which "
            f"{describe(spec)} does not hold: look at the means, deviations and scale that are stated or in "
            "preprocessor_config.json"
        )
    if layout.last:
        held = held.transpose(1, 2, 0)
    wanted, got = (layout.height, layout.width), held.shape[:2] if layout.last else held.shape[1:]
    if any(w is not None and w != g for w, g in zip(wanted, got, strict=True)):
        raise DataError(
            f"{row.source}: the image is prepared as {got[0]} x {got[1]}, and the graph takes {describe(spec)}: is "
            "this its own preprocessor_config.json?"
        )
    label = None
    if row.fields.get("mask") is not None:
        mask = open_image(row, "mask", outside=outside)
        if mask.size != image.size:
            raise DataError(
                f"{row.source}: the mask is {mask.size} and the image {image.size} pixels large: make them equal"
            )
        try:
            label = prepare.mask(mask)
        except DataError as error:
            raise DataError(f"{row.source}: {error}") from error
    return Part({spec.name: held[None]}, label)


def _fits(pixels: NDArray[Any], held: NDArray[Any]) -> bool:
    """Whether numbers came through as numbers: a narrower float makes infinities of large ones, an integer any."""
    if held.dtype.kind in "iu":
        limits = np.iinfo(held.dtype)
        return bool(limits.min <= np.min(pixels) and np.max(pixels) <= limits.max)
    return bool(np.isfinite(held.astype(np.float64)).all())


FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""What is decoded: `sources.IMAGE_SUFFIXES`. Others run interpreters or have decoders that few have looked at."""


def open_image(row: Row, field: str, *, outside: bool = False) -> Any:
    """A PIL image: of a path relative to the row's file, of bytes, of an 8-bit array, or as it is.

    Args:
        outside: whether a path may lead out of the folder of the rows.

    Raises:
        DataError: there is none, it is of no known format, or has too many pixels.
    """
    pil = package("PIL.Image", f"{row.source}: images are read")
    transpose = package("PIL.ImageOps", f"{row.source}: images are read").exif_transpose
    value = row.need(field)
    if isinstance(value, Mapping):  # how Parquet files of the datasets library hold an image
        value = value.get("bytes") or value.get("path")
    try:
        if isinstance(value, str | Path | bytes):
            if not isinstance(value, bytes):
                value = within(value, row.folder, row.source, allowed=outside).read_bytes()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of bombs, for which our own limit follows, and of damaged tags
                image = pil.open(io.BytesIO(value), formats=FORMATS)
        elif isinstance(value, pil.Image):
            image = value
        else:
            image = pil.fromarray(np.asarray(value, np.uint8) if isinstance(value, list) else value)
        if not 0 < image.width * image.height <= MOST_PIXELS:
            told = f"{image.width} x {image.height} pixels; 1 to {MOST_PIXELS // 1_000_000} million are read"
            raise DataError(f"{row.source}: field {field!r} has {told}")
        image.load()
    except OnnxPruneError:
        raise
    except Exception as error:  # decoders raise whatever damaged bytes make them
        raise DataError(f"{row.source}: field {field!r} cannot be read as an image: {said(error)}") from error
    if image.mode.startswith(("I", "F")) and field == "image":
        raise DataError(f"{row.source}: the image has {image.mode} pixels: convert it to 8 bits a channel")
    return transpose(image)
