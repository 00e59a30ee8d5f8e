"""Least squares, optimal brain surgeon and pattern solvers: numpy in, numpy out, double precision inside.

A weight is always [inputs, outputs] and a Gram matrix XᵀX [inputs, inputs].
"""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.refit.solvers.admm import admm
from onnxprune.refit.solvers.least_squares import (
    INFINITE,
    Fit,
    error,
    fit_each_held_out,
    fit_held_out,
    ridge,
    ridge_path,
    scale_units,
)
from onnxprune.refit.solvers.linalg import Array
from onnxprune.refit.solvers.magnitude import magnitude, wanda
from onnxprune.refit.solvers.nested_refit import NestedRefit, RefitOnTokens, refit
from onnxprune.refit.solvers.obs import ObsPath, Reader, obs_path
from onnxprune.refit.solvers.pair_swaps import Refined, refine
from onnxprune.refit.solvers.patterns import NM, Blocks, Library, Pattern, Tiled, Tiles, parse
from onnxprune.refit.solvers.sparsegpt import sparsegpt
from onnxprune.refit.solvers.statistics import Moments, Statistics, Tokens
from onnxprune.refit.solvers.support import on_support, range_errors

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
    "RefitOnTokens",
    "Statistics",
    "Tiled",
    "Tiles",
    "Tokens",
    "admm",
    "error",
    "fit_each_held_out",
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
