"""A device in this machine's own memory, as strict as a GPU: what mixes its tensors with the CPU's fails.

Tensors of torch's device "meta" hold no numbers; here they do, so that a run on "another device" can be tried, and
compared with one on the CPU bit for bit, where there is no GPU. Scalars and indices may lie on the CPU, as for CUDA,
but not among what is joined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

NAME = "meta"
_MOVES = ("aten._to_copy.default", "aten.copy_.default")
_JOINS = ("aten.cat.default", "aten.stack.default")
_INDEXES = ("aten.index.Tensor", "aten.index_put_.default", "aten.index_put.default", "aten._index_put_impl_.default")


class Elsewhere(torch.Tensor):
    """A tensor of that device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Elsewhere:
        with torch.inference_mode(False):
            made: Elsewhere = torch.Tensor._make_wrapper_subclass(
                cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
                device=torch.device(NAME),
            )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(function, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()

    # Torch would make the index on the tensor's device, where "meta" keeps nothing.
    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_index(index), value)


def _index(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_index, index))
    return torch.as_tensor(index) if isinstance(index, np.ndarray | list) else index


def _compute(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    name = str(function)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, Elsewhere)]
    if there and name not in (*_MOVES, *_INDEXES):
        strangers = [tuple(x.shape) for x in tensors if not isinstance(x, Elsewhere) and (x.ndim or name in _JOINS)]
        if strangers:
            raise RuntimeError(f"{name} of tensors on two devices: {strangers} are on the CPU")
    device = kwargs.get("device")
    asked = None if device is None else torch.device(device).type == NAME
    own, others = tree_map(_held, (args, dict(kwargs)))
    if asked:
        others["device"] = torch.device("cpu")
    with torch.inference_mode(False), torch.no_grad():
        result = function(*own, **others)
    if not (isinstance(args[0], Elsewhere) if name == _MOVES[1] else bool(there) if asked is None else asked):
        return result
    known = {id(x.held): x for x in there}
    return tree_map_only(torch.Tensor, lambda x: known[id(x)] if id(x) in known else Elsewhere(x), result)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, Elsewhere) else x


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes tensors there that are asked for there."""

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(function, args, kwargs or {})


class _Constants(TorchFunctionMode):
    """Brings numbers there that are given as Python's."""

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        made_here = function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None
        if made_here and torch.device(kwargs["device"]).type == NAME:
            return function(*args, **{**kwargs, "device": "cpu"}).to(NAME)
        return function(*args, **kwargs)


@contextmanager
def device() -> Iterator[str]:
    """Where there is another device; gives its name."""
    with _Operators(), _Constants():  # type: ignore[no-untyped-call]
        yield NAME
