"""Least squares, optimal brain surgeon and pattern solvers: numpy in, numpy out, double precision inside.

A weight is always [inputs, outputs] and a Gram matrix XᵀX [inputs, inputs].
"""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.solve.admm import admm
from onnxprune.solve.baseline import magnitude, wanda
from onnxprune.solve.least_squares import (
    INFINITE,
    Fit,
    error,
    fit_held_out,
    ridge,
    ridge_path,
    scale_units,
)
from onnxprune.solve.linalg import Array
from onnxprune.solve.moments import Moments
from onnxprune.solve.obs import NestedRefit, ObsPath, Reader, obs_path, refit
from onnxprune.solve.pattern import NM, Blocks, Library, Pattern, Tiled, Tiles, parse
from onnxprune.solve.refine import Refined, refine
from onnxprune.solve.sparsegpt import sparsegpt
from onnxprune.solve.support import on_support, range_errors

SOLVERS: dict[str, Callable[..., Array]] = {
    "admm": admm,
    "sparsegpt": sparsegpt,
    "wanda": wanda,
    "magnitude": magnitude,
}
"""What `--solver` names: solve(weight [n, m], gram [n, n], pattern) -> weight [n, m]."""

ON_SUPPORT = frozenset({"admm"})
"""Those that choose a mask and end with least squares on it."""

__all__ = [
    "INFINITE",
    "NM",
    "ON_SUPPORT",
    "SOLVERS",
    "Blocks",
    "Fit",
    "Library",
    "Moments",
    "NestedRefit",
    "ObsPath",
    "Pattern",
    "Reader",
    "Refined",
    "Tiled",
    "Tiles",
    "admm",
    "error",
    "fit_held_out",
    "magnitude",
    "obs_path",
    "on_support",
    "parse",
    "range_errors",
    "refine",
    "refit",
    "ridge",
    "ridge_path",
    "scale_units",
    "sparsegpt",
    "wanda",
]
