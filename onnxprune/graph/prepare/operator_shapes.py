"""Shapes that neither library tells right: an Einsum's, and those of operators that only ONNX Runtime can run.

`self` is the library's inference at work.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.graph import runtime
from onnxprune.graph.ops.linear import terms_of
from onnxprune.graph.prepare.exact_shapes import fresh

logger = logging.getLogger(__name__)

_FIRST_PRIMES = (5, 131)
"""Where the sizes of a trial begin: small ones first; what slides a window over an axis wants longer ones."""
_MOST_ELEMENTS = 1 << 22
"""Numbers in an input of a trial."""


def einsum(self: Any, node: Any) -> None:
    """A size for each letter of the result. (The library takes an ellipsis of the last operand, and orders letters
    that are not written out by where they come first; the standard, by the alphabet.)"""
    import onnx

    text = next(a.s.decode() for a in node.attribute if a.name == "equation")
    shapes = [self._get_shape(node, i) for i in range(len(node.input))]
    if any(shape is None for shape in shapes):
        return
    terms, result = terms_of(text, [len(shape) for shape in shapes])
    sizes: dict[str, Any] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            if letter not in sizes or sizes[letter] == 1 or (isinstance(size, int) and size != 1):
                sizes[letter] = size
    kind = self.known_vi_[node.input[0]].type.tensor_type.elem_type
    described = [sizes[letter] for letter in result]
    self.known_vi_[node.output[0]].CopyFrom(onnx.helper.make_tensor_value_info(node.output[0], kind, described))


def stft(self: Any, node: Any) -> None:
    """[rows, frames, bins, 2]; of a real signal's bins half and one by default, which onnx's own rule overlooks."""
    import onnx

    signal = self._get_sympy_shape(node, 0)
    step: Any = self._try_get_value(node, 1)
    length: Any = self._try_get_value(node, 3) if len(node.input) > 3 else None
    if length is None and len(node.input) > 2 and node.input[2]:
        length = self._get_sympy_shape(node, 2)[0]
    onesided = next((a.i for a in node.attribute if a.name == "onesided"), 1)
    unknown = length is None or step is None
    frames = fresh(self) if unknown else (signal[1] - int(length)) // int(step) + 1
    bins = fresh(self) if length is None else int(length) // 2 + 1 if onesided else int(length)
    shape = [signal[0], frames, bins, 2]
    self._update_computed_dims(shape)
    kind = self.known_vi_[node.input[0]].type.tensor_type.elem_type
    described = [
        int(size) if getattr(size, "is_number", True) and not isinstance(size, str) else str(size) for size in shape
    ]
    self.known_vi_[node.output[0]].CopyFrom(onnx.helper.make_tensor_value_info(node.output[0], kind, described))


RULES = {"Einsum": einsum, "STFT": stft}


def seen_alone(self: Any, node: Any, model: Any, types: dict[str, int]) -> dict[str, Any]:
    """What a node's outputs are like in two runs of it alone, on inputs of other sizes: numbers where sizes stay, an
    input's dimension where they follow it, else a new name.

    Args:
        model: the node as a model, its constant operands included.
        types: element types by ONNX Runtime's names.

    Returns:
        Descriptions by name; none where an input is no floating-point tensor of known rank (what an index or a shape
        does cannot be made up), or where the node does not run.
    """
    import onnx

    floats = {1: np.float32, 11: np.float64, 10: np.float16}
    if not self.auto_merge_ or any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute):
        return {}  # two runs prove nothing of all sizes
    shapes = {}
    for value in model.graph.input:
        place = list(node.input).index(value.name)
        kind = value.type.tensor_type
        if kind.elem_type not in floats or not kind.HasField("shape"):
            return {}
        shapes[value.name] = self._get_sympy_shape(node, place)
    names = sorted({str(s) for shape in shapes.values() for d in shape for s in getattr(d, "free_symbols", ())})
    for first in _FIRST_PRIMES:
        primes = _primes(first)  # all sizes differ, in both trials
        trials = [dict(zip(names, islice(primes, len(names)), strict=True)) for _ in range(2)]
        inputs = [{name: [_size(d, trial) for d in shape] for name, shape in shapes.items()} for trial in trials]
        if any(np.prod(shape, dtype=float) > _MOST_ELEMENTS for sizes in inputs for shape in sizes.values()):
            return {}
        kinds = {v.name: floats[v.type.tensor_type.elem_type] for v in model.graph.input}
        feeds = [{n: np.full(s, 0.5, dtype=kinds[n]) for n, s in sizes.items()} for sizes in inputs]
        try:
            session = runtime.session(model.SerializeToString())
            asked = {o.name: types[o.type] for o in session.get_outputs() if o.type in types}
            runs = [runtime.run(session, one, list(asked)) for one in feeds]
        except OnnxPruneError as error:
            logger.debug("%s %s does not run alone: %s", node.op_type, node.name, error)
            continue
        dims = [(d, [_size(d, trial) for trial in trials]) for shape in shapes.values() for d in shape]
        found = {}
        for name, kind in asked.items():
            sizes = [np.shape(run[name]) for run in runs]
            if len(sizes[0]) == len(sizes[1]):
                described = [_follows(self, pair, dims) for pair in zip(*sizes, strict=True)]
                found[name] = onnx.helper.make_tensor_value_info(name, kind, described)
        return found
    return {}


def _follows(self: Any, pair: Sequence[int], dims: Sequence[tuple[Any, list[int]]]) -> Any:
    if pair[0] == pair[1]:
        return int(pair[0])
    return next((str(dim) for dim, sizes in dims if sizes == list(pair)), None) or fresh(self)


def _size(dim: Any, sizes: dict[str, int]) -> int:
    return int(dim.subs({s: sizes[s.name] for s in dim.free_symbols})) if hasattr(dim, "free_symbols") else int(dim)


def _primes(first: int) -> Iterator[int]:
    return (n for n in count(first) if all(n % d for d in range(2, int(n**0.5) + 1)))
