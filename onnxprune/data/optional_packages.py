"""Packages that only some rows need, imported at the first such row."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from onnxprune.errors import DataError

DISTRIBUTIONS = {"PIL": "pillow"}  # where the package's name is not what is installed


def package(name: str, use: str) -> Any:
    """The module `name`.

    Args:
        use: what it is needed for, as the start of a sentence: "data.parquet: .parquet files are read".

    Raises:
        DataError: it is not installed; says what to install.
    """
    try:
        return import_module(name)
    except ImportError as error:
        top = name.partition(".")[0]
        distribution = DISTRIBUTIONS.get(top, top)
        raise DataError(f"{use} with the package {distribution}: pip install {distribution}") from error
