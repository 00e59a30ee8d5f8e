"""The package's public names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import onnxprune
from onnxprune import pipeline

PROGRAM = """
import importlib, pkgutil, types
import pytest

import onnxprune
for module in pkgutil.iter_modules(onnxprune.__path__):
    importlib.import_module("onnxprune." + module.name)
print([name for name in onnxprune.__all__ if isinstance(getattr(onnxprune, name), types.ModuleType)])
"""


def test_no_module_takes_the_place_of_a_public_name() -> None:
    """A module that is imported becomes an attribute of its package: it must not be called like a function of it."""
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_public_name_is_there_once_and_described() -> None:
    """`__all__` is the whole surface: each name resolves, and `import *` gives no other."""
    assert onnxprune.__all__ == sorted(set(onnxprune.__all__))
    for name in onnxprune.__all__:
        assert getattr(onnxprune, name).__doc__, name
    scope: dict[str, object] = {}
    exec("from onnxprune import *", scope)
    assert set(onnxprune.__all__) == set(scope) - {"__builtins__"}


def test_the_verbs_go_by_the_name_of_their_room() -> None:
    for name in pipeline.VERBS:
        assert getattr(pipeline, name) is getattr(onnxprune, name)
    with pytest.raises(AttributeError, match="no attribute inspekt"):
        pipeline.inspekt  # noqa: B018


def test_the_rooms_are_those_that_the_readme_names() -> None:
    """The README's picture and CONTRIBUTING's are of the tree that is there."""
    root = Path(__file__).resolve().parents[2]
    rooms = {p.parent.name for p in (root / "onnxprune").glob("*/__init__.py")}
    layout = (root / "README.md").read_text(encoding="utf-8").split("## Layout")[1]
    house = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for room in rooms:
        assert f" {room} " in layout, room
        assert f"  {room}/ " in house, room
    for word in house.replace("`", " ").replace("(", " ").replace(")", " ").replace(",", " ").split():
        if word.endswith(".py") and "/" in word and "NAME" not in word:
            assert (root / word).exists() or (root / "onnxprune" / word).exists(), word


@pytest.mark.parametrize("given", [None, "7"])
@pytest.mark.parametrize(
    ("name", "usual"), [("OMP_WAIT_POLICY", "PASSIVE"), ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")]
)
def test_what_idle_threads_and_compiled_products_take_is_bounded(name: str, usual: str, given: str | None) -> None:
    """Unless it is said otherwise, and before torch is there to read it."""
    environment = {k: v for k, v in os.environ.items() if k != name}
    if given is not None:
        environment[name] = given
    script = f"import onnxprune, os, sys; print(os.environ['{name}'], 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [given or usual, "False"]
