"""What the interpreter computes with: torch, or where it is not installed ONNX Runtime, one node at a time.

Torch gives gradients and takes levels as one batch, which scoring and mending need. Applying a plan, checking a file
and cutting by weights need values alone: those come from ONNX Runtime as well, as numpy arrays, on the CPU.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.graph import memory, ops
from onnxprune.graph.ops.quantize import rounded_dynamically
from onnxprune.graph.quantised_operators import noted
from onnxprune.graph.single_nodes import Foreign
from onnxprune.graph.stored import Held, Stored
from onnxprune.probe.chains import Chain, chains

EXTRA = "pip install 'onnxprune[torch]'"
"""What brings torch."""


def has_torch() -> bool:
    """Whether torch is installed; it is not imported for that."""
    try:
        return importlib.util.find_spec("torch") is not None
    except (ImportError, ValueError):
        return False


def cores() -> int:
    """How many cores scoring takes, so that what compares models may take as many: torch's threads, or what it would
    have."""
    if "torch" in sys.modules and has_torch():
        import torch

        return int(torch.get_num_threads())
    told = os.environ.get("OMP_NUM_THREADS", "")
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(told) if told.isdecimal() and 0 < int(told) <= there else there


def require_torch(what: str) -> None:
    """Refuse what only torch computes, where it is not installed.

    Args:
        what: the beginning of the sentence: "learning from rows (--calib)".

    Raises:
        UsageError: names the extra that brings it.
    """
    if not has_torch():
        raise UsageError(
            f"{what} computes with PyTorch, which is not installed: {EXTRA}; without it, `--method magnitude` without "
            "--calib cuts by the weights alone"
        )


class Engine(Protocol):
    """Arrays of one kind, and what computes them."""

    def array(self, given: Any, *, place: bool = True) -> Any:
        """A numpy array as one of these, sharing its memory where it can; these as they are.

        Args:
            place: bring it to the engine's device.
        """

    def load(self, tensor: ir.TensorProtocol) -> Any:
        """An initializer."""

    def empty_like(self, array: Any) -> Any:
        """No elements, of the type of an array of these."""

    def call(self, node: ir.Node, opsets: Mapping[str, int]) -> Callable[..., Any]:
        """What computes a node from its operands: one array, or a tuple with states in front (`ops.states_of`)."""

    def chains(self, graph: ir.Graph) -> Iterable[Chain]:
        """The chains of nodes that are one call."""

    def forward(self) -> AbstractContextManager[Any]:
        """A context in which nothing is kept for gradients."""

    def lasting(self) -> AbstractContextManager[Any]:
        """A context whose arrays may enter gradients later, wherever it is opened."""


def engine_for(device: str) -> Engine:
    """The engine for a device: torch where it is installed."""
    return Torch(device) if has_torch() else NodeByNode()


class Torch:
    """Torch tensors on a device."""

    def __init__(self, device: str) -> None:
        self.device = device
        memory.keep_freed()

    def array(self, given: Any, *, place: bool = True) -> Any:
        import torch

        if isinstance(given, np.ndarray) and given.dtype.name == "bfloat16":
            given = torch.from_numpy(np.array(given, np.float32)).to(torch.bfloat16)
        elif isinstance(given, np.ndarray):
            given = torch.from_numpy(np.ascontiguousarray(given).reshape(np.shape(given)))
        return given.to(self.device) if place else given

    def load(self, tensor: ir.TensorProtocol) -> Any:
        import torch

        if tensor.dtype == ir.DataType.BFLOAT16:
            return torch.from_numpy(np.array(tensor.numpy()).astype(np.float32)).to(torch.bfloat16)
        array = computable(tensor)
        flags = array.flags
        return torch.from_numpy(array if flags.writeable and flags.c_contiguous and flags.aligned else array.copy())

    def empty_like(self, array: Any) -> Any:
        return array.new_empty(0)

    def call(self, node: ir.Node, opsets: Mapping[str, int]) -> Callable[..., Any]:
        import torch

        return _of_rounded(node, self._call(node, opsets), torch)

    def chains(self, graph: ir.Graph) -> Iterable[Chain]:
        return chains(graph)

    def _call(self, node: ir.Node, opsets: Mapping[str, int]) -> Callable[..., Any]:
        import torch

        operator = ops.lookup(node)
        if operator is None:
            return self._foreign(Foreign(node, dict(opsets)))
        run = operator.run
        if isinstance(run, str):
            found: Any = torch
            for name in run.split("."):
                found = getattr(found, name)
            call: Callable[..., Any] = found
            return call
        function = run
        return lambda *xs: function(torch, node, *xs)

    def _foreign(self, run: Foreign) -> Callable[..., Any]:
        def call(*tensors: Any) -> tuple[Any, ...]:
            outputs = run(*(None if t is None else to_numpy(t) for t in tensors))
            device = next((t.device for t in tensors if t is not None), "cpu")
            return tuple(None if o is None else self.array(np.array(o), place=False).to(device) for o in outputs)

        return call

    def forward(self) -> AbstractContextManager[Any]:
        import torch

        return torch.inference_mode()

    def lasting(self) -> AbstractContextManager[Any]:
        import torch

        return torch.inference_mode(False)


class NodeByNode:
    """Numpy arrays, computed by ONNX Runtime on the CPU. There are no gradients, and no states of recurrences."""

    def array(self, given: Any, *, place: bool = True) -> Any:
        return given

    def load(self, tensor: ir.TensorProtocol) -> Any:
        if tensor.dtype == ir.DataType.BFLOAT16:
            raise UnsupportedError(f"tensor {tensor.name}: bfloat16 is computed with PyTorch only: {EXTRA}")
        return computable(tensor)

    def empty_like(self, array: Any) -> Any:
        return np.empty(0, array.dtype)

    def call(self, node: ir.Node, opsets: Mapping[str, int]) -> Callable[..., Any]:
        operator, run = ops.lookup(node), Foreign(node, dict(opsets))
        if operator is None or not operator.states:
            return _of_rounded(node, run)
        return lambda *xs: (None, *run(*xs))

    def chains(self, graph: ir.Graph) -> Iterable[Chain]:
        return ()

    def forward(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def lasting(self) -> AbstractContextManager[Any]:
        return nullcontext()


def _of_rounded(node: ir.Node, call: Callable[..., Any], torch: Any = None) -> Callable[..., Any]:
    """What computes a node; of one that rounds what it reads by its own range, after that."""
    note = noted(node)
    if note is None or not note.dynamic:
        return call
    return lambda x, *rest: call(rounded_dynamically(x, torch), *rest)


def computable(tensor: ir.TensorProtocol) -> np.ndarray:
    """An initializer's numbers.

    Raises:
        UnsupportedError: there are none that an interpreter computes with.
    """
    array = tensor.private() if isinstance(tensor, Held | Stored) else tensor.numpy()
    if array.dtype.kind not in "biufc":
        raise UnsupportedError(f"tensor {tensor.name}: elements of type {tensor.dtype.name} are not computed with")
    return np.asarray(array)


# -- arrays of either kind -----------------------------------------------------------------------------------------


def namespace(array: Any) -> Any:
    """numpy, or torch if the array is its own (which it then has been imported for)."""
    if isinstance(array, np.ndarray | np.generic):
        return np
    import torch

    return torch


def cast(array: Any, like: Any) -> Any:
    """An array in the element type of another."""
    return array.astype(like.dtype) if isinstance(array, np.ndarray | np.generic) else array.to(like.dtype)


def wide(array: Any) -> Any:
    """An array in single precision."""
    return array.astype(np.float32) if isinstance(array, np.ndarray | np.generic) else array.float()


def to_numpy(array: Any, *, single: bool = False) -> np.ndarray:
    """An array of either kind as numpy's, detached from gradients.

    Args:
        single: floating point becomes float32.
    """
    if isinstance(array, np.ndarray | np.generic):
        held = np.asarray(array)
        return held.astype(np.float32) if single and held.dtype.kind == "f" else held
    held = array.detach().cpu()
    return np.asarray((held.float() if single and held.is_floating_point() else held).numpy())
