"""A cache of tensors by their bytes: weights that a graph reads again, as far as memory holds them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any


class LastRead:
    """The tensors read last, as many as a number of bytes holds.

    Args:
        limit: bytes. A tensor that is larger alone is not kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._tensors: OrderedDict[str, Any] = OrderedDict()

    def get(self, name: str) -> Any:
        """A tensor, if it is still there."""
        if name in self._tensors:
            self._tensors.move_to_end(name)
        return self._tensors.get(name)

    def put(self, name: str, tensor: Any) -> Any:
        """Keep a tensor, in the place of those that were not read for longest; returns it."""
        size = _nbytes(tensor)
        while self._tensors and self.size + size > self.limit:
            self.size -= _nbytes(self._tensors.popitem(last=False)[1])
        if size <= self.limit:
            self._tensors[name] = tensor
            self.size += size
        return tensor


def _nbytes(tensor: Any) -> int:
    return int(tensor.nbytes)
