"""Models that are handed over in memory: the functions of Python take them where they take a file."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar, cast

import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.graph import model as models
from onnxprune.graph import model_files
from onnxprune.graph.outputs import Lasting
from onnxprune.pipeline.result import Result

P = ParamSpec("P")
T = TypeVar("T")
Source: TypeAlias = str | os.PathLike[str] | onnx.ModelProto | ir.Model
"""What stands for a model."""


def takes_models(
    function: Callable[Concatenate[str | os.PathLike[str], P], T],
) -> Callable[Concatenate[Source, P], T]:
    """Let a function's first argument, a path, be an `onnx.ModelProto` or an `onnx_ir.Model` too.

    The model is written to a temporary file, which lives as long as the results do; it is not changed.
    """

    def call(source: Source, *args: P.args, **kwargs: P.kwargs) -> T:
        file, scratch = in_file(source)
        with model_files.watched(Path(file)):
            made: Any = function(file, *args, **kwargs)
        if scratch is None:
            unchanged: T = made
            return unchanged
        if isinstance(made, Result):
            made = replace(made, scratch=scratch)
        elif isinstance(made, list):
            made = [replace(one, scratch=scratch) if isinstance(one, Result) else one for one in made]
        kept: T = made
        return kept

    functools.update_wrapper(call, function)
    return cast("Callable[Concatenate[Source, P], T]", call)  # by keyword it works too, which types cannot say


def in_file(source: Source) -> tuple[str | os.PathLike[str], Lasting | None]:
    """(the path that stands for a model, what holds the file if it was written for that).

    Raises:
        TypeError: it is no model.
        ModelError: it cannot be written.
    """
    if isinstance(source, str | os.PathLike):
        return source, None
    if not isinstance(source, onnx.ModelProto | ir.Model):
        raise TypeError(
            f"a model is a path, an onnx.ModelProto or an onnx_ir.Model, not of type {type(source).__name__}"
            + ("; onnx.load_model_from_string reads bytes" if isinstance(source, bytes) else "")
        )
    scratch = Lasting()
    return written(source, scratch.path), scratch


def written(model: onnx.ModelProto | ir.Model, folder: Path) -> Path:
    """The model as a file in a folder.

    Raises:
        ModelError: it cannot be written.
    """
    file = folder / "model.onnx"
    try:
        if isinstance(model, ir.Model):
            models.write(model.clone(), file)
        else:
            models.write(ir.from_proto(model), file)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"the model that was handed over cannot be written: {error}") from error
    return file
