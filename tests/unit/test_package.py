"""The package's public names."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, types
import onnxprune
for module in pkgutil.iter_modules(onnxprune.__path__):
    importlib.import_module("onnxprune." + module.name)
print([name for name in onnxprune.__all__ if isinstance(getattr(onnxprune, name), types.ModuleType)])
"""


def test_no_module_takes_the_place_of_a_public_name() -> None:
    """A module that is imported becomes an attribute of its package: it must not be called like a function of it."""
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
