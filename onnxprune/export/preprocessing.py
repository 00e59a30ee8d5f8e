"""`preprocess.json`: how a text or an image becomes the model's inputs, and what its outputs mean, for any language."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.image import Layout, image_input, preparation
from onnxprune.data.labels import class_names
from onnxprune.data.model_info import Files, Graph, Job, role
from onnxprune.data.preprocess import Preprocess
from onnxprune.data.tokenizer import load_tokenizer
from onnxprune.errors import DataError, UsageError
from onnxprune.export.fixed_shapes import image_sizes
from onnxprune.graph.model import InputSpec


def preprocessing(inputs: Sequence[InputSpec], outputs: Sequence[InputSpec], folder: Path) -> dict[str, Any]:
    """What an app must do before and after the model.

    `kind` is `text` (tokenizer.json, its limit and padding), `image` (resize, crop, scale, normalise) or `tensors`.
    """
    job = Job(Graph.of(inputs, outputs), Files(folder))
    told = _text(job) or _image(job) or {"kind": "tensors"}
    names = class_names(job)
    labels = [names[number] for number in range(len(names))] if names and names.keys() == {*range(len(names))} else None
    if labels and all(label.startswith("LABEL_") for label in labels):
        labels = [label.removeprefix("LABEL_") for label in labels]
    described = [{"name": s.name, "type": s.dtype.name, "shape": [d or None for d in s.shape]} for s in inputs]
    first = outputs[0]
    return {
        "format": 1,
        **told,
        "inputs": described,
        "output": {"name": first.name, "scores": "logits" in first.name, "labels": labels},
    }


def _text(job: Job) -> dict[str, Any] | None:
    spec = job.graph.by_role.get("input_ids")
    if spec is None or job.files.find("tokenizer.json") is None:
        return None
    fixed = spec.shape[1] if len(spec.shape) > 1 and isinstance(spec.shape[1], int) else None
    try:
        tokenizer = load_tokenizer(job, fixed=fixed)
    except (DataError, UsageError):
        return None
    return {
        "kind": "text",
        "tokenizer": "tokenizer.json",
        "max_length": tokenizer.max_length,
        "padded_to": {},
        "pad_id": tokenizer.pad_id,
        "pad_side": tokenizer.side,
        "roles": {s.name: role(s.name) for s in job.graph.inputs},
    }


def _image(job: Job) -> dict[str, Any] | None:
    spec = image_input(job.graph)
    if spec is None or len(spec.shape) != 4:
        return None
    # Where the graph leaves an image's size open, the configuration may know it.
    known = image_sizes(job.files)
    shape = tuple(known.get(d, d) if isinstance(d, str) else d for d in spec.shape)
    spec = InputSpec(spec.name, np.dtype(spec.dtype), shape)
    layout = Layout.of(spec)
    try:
        prepare = preparation(spec, layout, job)
    except DataError:
        return None
    if prepare.processor is not None:
        return None  # steps that only the original processor knows
    return {"kind": "image", "input": spec.name, "channels_last": layout.last, **_steps(prepare)}


def _steps(prepare: Preprocess) -> dict[str, Any]:
    def numbers(values: Any) -> list[float] | None:
        return None if values is None else [float(v) for v in values.ravel()]

    size = prepare.size
    return {
        "channels": prepare.channels,
        "resize": None if size is None else {"kind": size[0], "height": size[1], "width": size[2]},
        "resample": {2: "bilinear", 3: "bicubic", 0: "nearest"}.get(prepare.resample, "bilinear"),
        "crop": None if prepare.crop is None else list(prepare.crop),
        "scale": prepare.scale,
        "mean": numbers(prepare.mean),
        "std": numbers(prepare.std),
        "flip_channels": prepare.flip,
    }
