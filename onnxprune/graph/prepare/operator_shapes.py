"""Shapes that neither library tells, or tells right: a rule an operator, and for those that only ONNX Runtime can run
what it does with them.

`self` is the library's inference at work (`shape_inference`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.graph import runtime
from onnxprune.graph.ops.linear import terms_of
from onnxprune.graph.prepare.exact_shapes import fresh

logger = logging.getLogger(__name__)

_INT, _STRING = 2, 3
"""Kinds of attributes, as files number them."""
_FLOAT = 1
"""Single precision, the same."""

_FIRST_PRIMES = (5, 131)
"""Where the sizes of a trial begin: small ones first; what slides a window over an axis wants longer ones."""
_MOST_ELEMENTS = 1 << 22
"""Numbers in an input of a trial."""


def attention(self: Any, node: Any) -> None:
    """Of the standard's own: heads on an axis, or beside one another in the last one."""
    if node.domain == "com.microsoft":
        self._infer_Attention(node)
        return
    q, k, v = (self._get_sympy_shape(node, i) for i in range(3))
    counts = {a.name: a.i for a in node.attribute}
    if len(q) == 3:
        heads, groups = counts["q_num_heads"], counts["kv_num_heads"]
        self._write(node, [q[0], q[1], v[2] // groups * heads])
        k, v = ([x[0], groups, x[1], x[2] // groups] for x in (k, v))
    else:
        self._write(node, [*q[:3], v[3]])
    past = self._get_sympy_shape(node, 4)[2] if len(node.input) > 4 and node.input[4] else 0
    for output, x in zip(node.output[1:3], (k, v), strict=False):
        if output:
            total = [x[0], x[1], past + x[2], x[3]]
            self._update_computed_dims(total)
            self._write(node, total, outputs=[output])


def shape(self: Any, node: Any) -> None:
    """From `start` to `end` (opset 15): ONNX Runtime 1.24's own rule takes the whole shape."""
    start, end = (next((a.i for a in node.attribute if a.name == name), None) for name in ("start", "end"))
    self.sympy_data_[node.output[0]] = self._get_sympy_shape(node, 0)[start:end]


def flatten(self: Any, node: Any) -> None:
    """A matrix: dimensions up to `axis` by those from it on, names multiplied out."""
    shape = self._get_sympy_shape(node, 0)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    axis += len(shape) if axis < 0 else 0
    self._write(node, [math.prod(shape[:axis]), math.prod(shape[axis:])])


def resize(self: Any, node: Any) -> None:
    """Sizes as they are given, or scaled. The library's own rule simplifies every product, which takes longer
    with every layer (most of a detector's time to load); a whole number times a size needs none of that."""
    shape = self._get_sympy_shape(node, 0)
    versioned = self._opset() > 10
    scales = self._try_get_value(node, 2 if versioned else 1)
    sizes = self._try_get_value(node, 3) if versioned else None
    axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), list(range(len(shape))))
    modes = {a.name: a.s for a in node.attribute if a.type == _STRING}
    cropped = modes.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
    bounded = modes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch"
    found = list(shape)
    if sizes is not None and len(sizes) == len(axes) and not bounded:
        for axis, size in zip(axes, sizes, strict=True):
            found[axis] = size
    elif scales is not None and len(scales) == len(axes) and not cropped:
        for axis, scale in zip(axes, scales, strict=True):
            found[axis] = _scaled(shape[axis], float(scale))
    else:
        found = self._new_symbolic_shape(len(shape), node)
    self._update_computed_dims(found)
    self._write(node, found)


def skip_norm(self: Any, node: Any) -> None:
    """The norm, its two statistics (in full precision, whatever the norm is in), and the sum."""
    shape = self._get_sympy_shape(node, 0)
    for place, output in enumerate(node.output):
        if output and place in (1, 2):
            self._write(node, [*shape[:-1], 1], outputs=[output], kind=_FLOAT)
        elif output:
            self._write(node, shape, outputs=[output])


def arranged_product(self: Any, node: Any) -> None:
    """FusedMatMul: the operands' matrices may lie in other axes than the last two, or transposed."""
    flags = {a.name: a.i for a in node.attribute if a.type == _INT}
    sides = []
    for index, side in enumerate("AB"):
        shape = self._get_sympy_shape(node, index)
        if flags.get(f"transBatch{side}"):
            shape = [*shape[1:-1], shape[0], shape[-1]]
        sides.append([*shape[:-2], *shape[:-3:-1]] if flags.get(f"trans{side}") and len(shape) > 1 else shape)
    left, right = sides
    batch = self._broadcast_shapes(left[:-2], right[:-2])
    self._write(node, [*batch, *left[-2:-1], *(right[-1:] if len(right) > 1 else [])])


def einsum(self: Any, node: Any) -> None:
    """A size for each letter of the result. (The library takes an ellipsis of the last operand, and orders letters
    that are not written out by where they come first; the standard, by the alphabet.)"""
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
    self._write(node, [sizes[letter] for letter in result])


def stft(self: Any, node: Any) -> None:
    """[rows, frames, bins, 2]; of a real signal's bins half and one by default, which onnx's own rule overlooks."""
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
    self._write(node, shape)


RULES = {
    "Attention": attention,
    "Einsum": einsum,
    "Flatten": flatten,
    "Resize": resize,
    "STFT": stft,
    "Shape": shape,
    **dict.fromkeys(("FusedMatMul", "TransposeMatMul"), arranged_product),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), skip_norm),
}
"""Operator -> rule(inference, node)."""


def _scaled(size: Any, scale: float) -> Any:
    """floor(size · scale), of a number or a symbol."""
    import sympy

    if scale.is_integer():
        return size * int(scale)
    return sympy.floor(size * sympy.Rational(*scale.as_integer_ratio()))


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
