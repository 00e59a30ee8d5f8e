"""What is asked of the user's file before anything is measured on it, and the shapes at which it is compared.

Everything after this believes that the dense model runs, that its outputs are numbers, that they are the same twice,
and that a row's are its own. What does not hold is refused or said here, where the file can be blamed and no work is
lost.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnxprune.data import Batch, Dataset
from onnxprune.errors import ModelError, OnnxPruneError, UnsupportedError
from onnxprune.graph import runtime, segments
from onnxprune.graph.example_feeds import fitted
from onnxprune.graph.finite import check_weights, first_unusable, require
from onnxprune.graph.model import InputSpec, Model
from onnxprune.graph.providers import CPU, resolve_providers
from onnxprune.measure.equivalence import TOLERANCE, max_distance
from onnxprune.measure.footprint import side_by_side
from onnxprune.probe.forward import forward, forward_together
from onnxprune.probe.interpreter import Interpreter

logger = logging.getLogger(__name__)

ROWS = 16
"""How many rows are run before anything else."""
TOKENS = 4096
"""Of a batch of them."""
_OWN = 10
"""How many times the tolerance a row's outputs may move with its batch before it is said: kernels sum in other orders
for other shapes."""
WIDENED = (
    "ONNX Runtime has no kernels for bfloat16 on this processor: the model is checked, validated and timed in single "
    "precision"
)
"""What is said where the dense file runs in other arithmetic than its own."""
_TWICE = 1e-3
"""How far two runs on the same rows may be apart, relative to the outputs' scale."""


def examine(dense: Model, rows: Dataset | None = None, providers: Sequence[str] = ("cpu",)) -> tuple[str, ...]:
    """Open and run the dense file as the user gave it; what the report should warn of.

    Args:
        rows: some of them are run.
        providers: where it will be validated.

    Raises:
        ModelError: weights or outputs that are not finite, or a file that ONNX Runtime cannot open.
        UnsupportedError: an operator that no provider has, or outputs that differ from run to run.
        DataError: rows that the graph does not take.
        CheckError: a provider that takes none of the nodes.
    """
    check_weights(dense.graph)
    if dense.path is None:
        return ()
    if set(resolve_providers(providers)) - {CPU}:
        runtime.placed(runtime.session(dense.path, providers), "the dense model")
    opened = segments.opened(dense.path)
    told: list[str] = []
    said = [WIDENED] if runtime.in_single_precision(opened) else []
    few = Dataset((), "") if rows is None else rows.take(ROWS, 0)
    for batch, outputs, again in _twice(dense, opened, list(few.batches(max_rows=ROWS, max_tokens=TOKENS))):
        _finite(dense, batch.feeds, outputs, [few.examples[i].source for i in batch.index])
        if (apart := _apart(outputs, again)) > _TWICE:
            raise UnsupportedError(
                f"{dense.path}: two runs on the same rows differ by {apart:.1e} of the outputs' scale: an operator of "
                "it draws random numbers or keeps a state, so nothing measured on it would mean anything"
            )
        if not told and len(batch) > 1:
            told += _company(dense, opened, batch, outputs)
    return (*said, *told)


def _twice(
    dense: Model, opened: runtime.Session, batches: Sequence[Batch]
) -> Iterator[tuple[Batch, dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Every batch with its outputs, and with those of another run."""
    left = iter(batches)
    for group in side_by_side(dense, [batch.feeds for batch in batches]):
        found = iter(runtime.run_all(opened, [feeds for one in group for feeds in (one, one)]))
        yield from ((next(left), next(found), next(found)) for _ in group)


def _finite(dense: Model, feeds: runtime.Feeds, outputs: Mapping[str, np.ndarray], where: Sequence[str]) -> None:
    try:
        require(outputs, f"{dense.path}: the dense model", where)
    except ModelError as error:
        interpreter = Interpreter(dense.graph)
        names = [v.name for n in dense.graph for v in n.outputs if v.name]
        node = first_unusable(forward(interpreter, feeds, names), dense.graph)
        where = f"; it begins at node {node.name} ({node.op_type})" if node is not None else ""
        raise ModelError(f"{error}{where}") from error


def require_finite(dense: Model, several: Sequence[runtime.Feeds]) -> None:
    """Refuse a model that has nothing to compare with on some feeds: without rows, nothing ran it before.

    Raises:
        ModelError: names output and node.
    """
    assert dense.path is not None
    opened = segments.opened(dense.path)
    for feeds in several:
        _finite(dense, feeds, runtime.run_all(opened, [feeds])[0], ())


def _company(dense: Model, opened: runtime.Session, batch: Batch, outputs: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """A row alone against the same row among others."""
    rows = len(batch)
    try:
        alone = runtime.run(opened, {k: v[:1] if np.ndim(v) and len(v) == rows else v for k, v in batch.feeds.items()})
    except OnnxPruneError:  # the graph takes no single row
        return ()
    among = {k: v[:1] for k, v in outputs.items() if np.ndim(v) and len(v) == rows and len(alone[k]) == 1}
    apart = _apart(among, {k: alone[k] for k in among})
    types = {v.dtype.name.lower() for v in dense.graph.initializers.values() if v.dtype is not None}
    if apart <= _OWN * max((limit for name, limit in TOLERANCE.items() if name in types), default=1e-4):
        return ()
    return (
        f"the dense model's outputs for a row depend on the rows beside it: alone and among {rows} they differ by "
        f"{apart:.1%} of their scale; what is measured here holds for the batches it was measured in",
    )


def _apart(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> float:
    """The largest difference between two runs in any floating-point output, relative to its scale."""
    found = 0.0
    for name, one in first.items():
        other = second[name]
        if np.asarray(one).dtype.kind == "f" and np.shape(one) == np.shape(other) and np.size(one):
            finite = np.abs(one[np.isfinite(one)])
            found = max(found, max_distance(other, one) / (float(finite.max(initial=0.0)) or 1.0))
    return found


def shapes_to_check(dense: Model, feeds: Sequence[runtime.Feeds]) -> list[runtime.Feeds]:
    """Feeds with some more of other sizes, made of the same rows: one row alone, several at once, another length.

    A size that was written into a graph shows only at another one. What the dense file does not take is left out, and
    what only one of ONNX Runtime and the interpreter takes (a picture smaller than a pool's window).
    """
    made = list(feeds)
    extra = [*_other_batches(dense.inputs, made), *_other_lengths(dense.inputs, made)]
    if not extra or dense.path is None:
        return made
    opened, interpreter = segments.opened(dense.path), Interpreter(dense.graph)

    def running(several: Sequence[runtime.Feeds]) -> list[runtime.Feeds]:
        try:
            for outputs in runtime.run_all(opened, several):
                require(outputs, "the dense model")
            forward_together(interpreter, several)
        except OnnxPruneError as error:
            if len(several) > 1:
                return [one for alone in several for one in running([alone])]
            logger.debug("not checked at %s: %s", {k: np.shape(v) for k, v in several[0].items()}, error)
            return []
        return list(several)

    return made + [one for group in side_by_side(dense, extra) for one in running(group)]


def _other_batches(inputs: Sequence[InputSpec], feeds: Sequence[runtime.Feeds]) -> list[runtime.Feeds]:
    named = {spec.shape[0] for spec in inputs if spec.shape}
    if not feeds or not named or not all(isinstance(batch, str) for batch in named):
        return []  # exporters may call one batch by several names: what cannot be run so is left out

    def rows(one: runtime.Feeds) -> int:
        return max((len(v) for v in one.values() if np.ndim(v)), default=1)

    counts = {rows(one) for one in feeds}
    found: list[runtime.Feeds] = []
    if 1 not in counts:
        found.append({k: v[:1] if np.ndim(v) else v for k, v in feeds[0].items()})
    if counts == {1}:
        first, *others = [feeds[i % len(feeds)] for i in range(3)]
        like = {k: [v, *(fitted(o[k], np.shape(v)) for o in others)] for k, v in first.items()}
        found.append({k: np.concatenate(vs) if np.ndim(vs[0]) else vs[0] for k, vs in like.items()})
    return found


def _other_lengths(inputs: Sequence[InputSpec], feeds: Sequence[runtime.Feeds]) -> list[runtime.Feeds]:
    """The first feeds, shorter and longer, where all have one size along dimensions that are free."""
    named = [(s.name, axis, d) for s in inputs for axis, d in enumerate(s.shape) if isinstance(d, str)]
    batches = {d for _, axis, d in named if axis == 0}
    found: list[runtime.Feeds] = []
    sizes: dict[int, set[str]] = {}
    for name, axis, dim in named:
        seen = {one[name].shape[axis] for one in feeds if name in one}
        if dim not in batches and re.fullmatch(r"\w+", dim) and len(seen) == 1 and not _in_sums(dim, named):
            sizes.setdefault(seen.pop(), set()).add(dim)
    for size, dims in sizes.items():
        if size < 1:
            continue
        for other in {max(size // 2, 1), size + 3} - {size}:
            found.append(_at(feeds[0], named, dims, other))
    return found


def _in_sums(dim: str, named: Sequence[tuple[str, int, str]]) -> bool:
    return any(dim != other and dim in re.findall(r"\w+", other) for _, _, other in named)


def _at(
    feeds: runtime.Feeds, named: Sequence[tuple[str, int, str]], dims: set[str], size: int
) -> dict[str, np.ndarray]:
    made = {k: np.asarray(v) for k, v in feeds.items()}
    for name, axis, dim in named:
        if dim in dims and name in made:
            shape = list(made[name].shape)
            shape[axis] = size
            longer = size > made[name].shape[axis]
            made[name] = fitted(made[name], shape)
            if longer:
                made[name] = _apart_where_repeated(made[name])
    return made


def _apart_where_repeated(values: np.ndarray) -> np.ndarray:
    """Numbers a little apart, as no two positions of a row are equal: between equal ones the last digit of a sum
    decides which a TopK takes, in one engine so and in another so. Whole numbers (masks, counts) stay."""
    if values.dtype.kind != "f" or not np.any(values % 1):
        return values
    return np.asarray(values * (1 + 0.01 * np.random.default_rng(0).standard_normal(values.shape)), values.dtype)
