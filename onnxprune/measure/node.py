"""Timing in ONNX Runtime's JavaScript builds: onnxruntime-node, and onnxruntime-web's WASM, both in Node.

They are other builds, with other kernels, than the Python package. The driver beside this file takes both models and
one batch, and runs them turn by turn as `latency.bench` does.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import CheckError, UsageError
from onnxprune.graph.runtime import Feeds

PACKAGES = {"node": "onnxruntime-node", "web": "onnxruntime-web"}
"""What `--ep` calls them -> the npm package."""
_ENTRIES = {"onnxruntime-node": "dist/index.js", "onnxruntime-web": "dist/ort.wasm.min.mjs"}
_TYPES = {"bool_": "bool"}
_SECONDS = 1800


@dataclass(frozen=True)
class Timed:
    """What the driver saw.

    Attributes:
        walls, cpus: milliseconds, each [2, runs]: dense, pruned.
        outputs: float outputs of dense and pruned by name, flat.
    """

    walls: np.ndarray
    cpus: np.ndarray
    outputs: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def time(
    name: str, dense: Path, pruned: Path, feeds: Feeds, *, threads: int = 1, runs: int = 50, warmup: int = 5
) -> Timed:
    """Both models in one Node process, interleaved.

    Args:
        name: a key of PACKAGES.
        threads: inside one operator.

    Raises:
        UsageError: Node or the package is not there.
        CheckError: the runtime refuses one of the models.
    """
    package = PACKAGES[name]
    module = _module(package)
    asked = {
        "package": package,
        "module": os.fspath(module),
        "dense": os.fspath(dense.resolve()),
        "pruned": os.fspath(pruned.resolve()),
        "feeds": [_feed(key, value) for key, value in feeds.items()],
        "threads": threads,
        "runs": runs,
        "warmup": warmup,
    }
    driver = Path(__file__).with_name("drivers") / "bench.mjs"
    try:
        done = subprocess.run(
            [_node(), os.fspath(driver)], input=json.dumps(asked).encode(), capture_output=True, timeout=_SECONDS,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise CheckError(f"{package}: no answer within {_SECONDS // 60} minutes") from error
    if done.returncode:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if "Error" in line]
        raise CheckError(f"{package} cannot run the models: {' '.join(lines[:1]) or 'Node failed without a message'}")
    told = json.loads(done.stdout)
    first, second = ({n: np.frombuffer(base64.b64decode(t), np.float32) for n, t in o.items()} for o in told["outputs"])
    return Timed(np.array(told["walls"]), np.array(told["cpus"]), (first, second))


def _feed(name: str, value: np.ndarray) -> dict[str, Any]:
    kind = _TYPES.get(value.dtype.name, value.dtype.name)
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    return {"name": name, "type": kind, "shape": list(value.shape), "data": data}


def _node() -> str:
    found = shutil.which("node")
    if found is None:
        raise UsageError(
            "--ep node and --ep web run in Node, which is not installed (nodejs.org, or your system's package)"
        )
    return found


@cache
def _module(package: str) -> Path:
    """The package's entry, from the nearest node_modules above the working folder, or on NODE_PATH."""
    for folder in _folders():
        entry = folder / package / _ENTRIES[package]
        if entry.exists():
            return entry
    raise UsageError(
        f"{package} is not installed: npm install {package} in this folder or one above it, or name its node_modules "
        "folder in NODE_PATH"
    )


def _folders() -> Iterator[Path]:
    here = Path.cwd()
    yield from (folder / "node_modules" for folder in (here, *here.parents))
    yield from (Path(p) for p in os.environ.get("NODE_PATH", "").split(os.pathsep) if p)
