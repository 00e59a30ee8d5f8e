"""How far a student's outputs are from its teacher's: one number per row, zero where they are the same.

Per output, by what it holds (decided on the teacher's values, said in words):

- class scores (logits, or probabilities): KL(teacher ‖ student) over the classes, in nats; a mask of yes/no scores
  (segmentation queries): the Bernoulli KL;
- directions (rows of norm 1): 1 − cos;
- anything else in floating point: the squared error relative to the teacher's mean square;
- integers and booleans, and what a model gives out for its own later use (key/value caches, hidden states beside a
  result computed from them): not counted.

Each is a mean over a row's positions and has no unit, so the outputs of one row are summed with equal weight.
The formulas run on numpy arrays and torch tensors alike, and can be differentiated and vmapped there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.errors import UnsupportedError
from onnxprune.probe.engine import namespace
from onnxprune.probe.output_kinds import BY_SHAPE, against_scores, decided

if TYPE_CHECKING:
    from onnxprune.data import Dataset

Array = Any
"""A numpy array or a torch tensor."""

_VOCABULARY = 8192
"""A last axis at least this long is a vocabulary: hidden states are narrower."""
_UNIT = 1e-3
"""How far from 1 a norm, or a sum of probabilities, may be."""
_FEATURES = re.compile(
    r"hidden|embed|feature|pool|state|encod|repr|vector|box|point|coord|offset|mask|depth", re.IGNORECASE
)
_INTERMEDIATE = re.compile(r"hidden_state|attentions", re.IGNORECASE)
_LAYER = re.compile(r"\d+")
_CACHE = re.compile(r"present|past|cache", re.IGNORECASE)
_MASKS = re.compile(r"mask", re.IGNORECASE)
_SPANS = re.compile(r"^(start|end)", re.IGNORECASE)


class Kind(StrEnum):
    """The measures; the value is what reports call them."""

    KL = "KL"
    PROBABILITY_KL = "KL of probabilities"
    BERNOULLI_KL = "Bernoulli KL"
    COSINE = "1 - cos"
    MSE = "relative squared error"


SCORES = (Kind.KL, Kind.PROBABILITY_KL, Kind.BERNOULLI_KL)
"""Measures of class scores, in nats."""


@dataclass(frozen=True)
class Measure:
    """How one output is compared.

    Attributes:
        output: its name.
        kind: the formula.
        axis: the axis of classes or of vector components (unused by element-wise kinds).
        scale: what a squared error is divided by: the teacher's mean square.
        reason: why this kind, in words.
        single: whether a row has one answer: its output is one vector of scores.
        positional: whether the classes are the row's own tokens (answer spans), so that padding must be left out.
        temperature: what class scores are divided by first, as in distillation; the result is times its square.
    """

    output: str
    kind: Kind
    axis: int = -1
    scale: float = 1.0
    reason: str = ""
    single: bool = False
    positional: bool = False
    temperature: float = 1.0

    def __call__(self, teacher: Array, student: Array, real: Array | None = None) -> Array:
        """Divergence of every row.

        Args:
            teacher, student: [rows, …], of one shape.
            real: [rows, tokens], false where a token is padding; used if the output has a token axis.

        Returns:
            [rows], float64; never negative.
        """
        xp = namespace(teacher)
        teacher, student = _wide(xp, teacher), _wide(xp, student)
        if real is not None and xp is not np:
            real = xp.as_tensor(real, device=teacher.device)
        if self.positional and real is not None and tuple(real.shape) == tuple(teacher.shape):
            teacher, student = xp.where(real, teacher, -1e9), xp.where(real, student, -1e9)
        per_position = _FORMULAS[self.kind](xp, teacher, student, self)
        return _row_mean(xp, per_position, real)


@dataclass(frozen=True)
class Divergence:
    """The measures that count, and why the other outputs do not.

    Attributes:
        measures: one per output that counts.
        excluded: (output, reason).
    """

    measures: tuple[Measure, ...]
    excluded: tuple[tuple[str, str], ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that must be computed."""
        return tuple(m.output for m in self.measures)

    @property
    def description(self) -> str:
        """The choice in one sentence; outputs of every layer are named once, as in present.*.key."""
        said = "; ".join(f"{m.output}: {m.kind} ({m.reason})" for m in self.measures)
        alike: dict[tuple[str, str], list[str]] = {}
        for name, reason in self.excluded:
            alike.setdefault((_LAYER.sub("*", name), reason), []).append(name)
        left = "; ".join(
            f"{names[0] if len(names) == 1 else pattern}: {reason}" for (pattern, reason), names in alike.items()
        )
        return said + (f". Not counted: {left}" if left else "")

    def __call__(self, teacher: Mapping[str, Array], student: Mapping[str, Array], real: Array | None = None) -> Array:
        """Divergence of every row, summed over the outputs that count: [rows]."""
        parts = [m(teacher[m.output], student[m.output], real) for m in self.measures]
        return sum(parts[1:], parts[0])

    def each(
        self, teacher: Mapping[str, Array], student: Mapping[str, Array], real: Array | None = None
    ) -> dict[str, Array]:
        """Divergence of every row by output."""
        return {m.output: m(teacher[m.output], student[m.output], real) for m in self.measures}


def softened(divergence: Divergence, temperature: float) -> Divergence:
    """The same with class scores at a temperature, where a row has one answer.

    At 1 the few rows that the teacher is unsure of make up nearly all of a classifier's mean KL, so that its mean over
    a hundred rows says little about other rows; softer, every row has a say (Hinton et al. 2015; OPTIN's KL is at 4).
    """
    hot = tuple(
        replace(m, temperature=temperature) if m.single and m.kind in (Kind.KL, Kind.PROBABILITY_KL) else m
        for m in divergence.measures
    )
    return replace(divergence, measures=hot)


def choose(
    samples: Mapping[str, Sequence[np.ndarray] | np.ndarray], kinds: Mapping[str, tuple[Kind, str]] | None = None
) -> Divergence:
    """Pick the measure of every output from the teacher's values on some rows.

    Args:
        samples: by output name, one array [rows, …] or one per batch; all outputs of the graph, in its order.
        kinds: measures decided elsewhere, with the reason, by output name.

    Raises:
        UnsupportedError: no floating-point output.
    """
    held = {name: _batches(values) for name, values in samples.items()}
    asked = dict(kinds or {})
    excluded: dict[str, str] = {}
    measures: dict[str, Measure] = {}
    for name, arrays in held.items():
        if name in asked:
            kind, reason = asked[name]
            single = kind is Kind.KL and arrays[0].ndim == 2
            measures[name] = Measure(name, kind, scale=_mean_square(arrays), reason=reason, single=single)
        elif arrays[0].dtype.kind != "f" and "float" not in arrays[0].dtype.name:
            excluded[name] = "not floating point"
        elif not sum(a.size for a in arrays):
            excluded[name] = "empty"
        else:
            measures[name] = _measure(name, arrays)
    for name, reason in list(_left_out(measures, held)):
        if name not in asked:
            del measures[name]
            excluded[name] = reason
    if not measures:
        raise UnsupportedError(f"no output can be compared: {'; '.join(f'{n}: {r}' for n, r in excluded.items())}")
    return Divergence(tuple(measures.values()), tuple(excluded.items()))


def choose_for(dataset: Dataset, samples: Mapping[str, Sequence[np.ndarray] | np.ndarray]) -> Divergence:
    """The same, where labels and `--metric` have their say of what the outputs are."""
    first = choose(samples)
    kinds = decided(first, samples, dataset)
    return choose(samples, kinds) if kinds else first


def _batches(values: Sequence[np.ndarray] | np.ndarray) -> list[np.ndarray]:
    return [np.asarray(values)] if isinstance(values, np.ndarray | np.generic) else list(values)


def _measure(name: str, arrays: Sequence[np.ndarray]) -> Measure:
    width = arrays[0].shape[-1] if arrays[0].ndim > 1 else 1
    rank = arrays[0].ndim
    said = "logit" in name.lower()
    if said and rank == 4 and _MASKS.search(name):
        return Measure(name, Kind.BERNOULLI_KL, reason="yes/no scores of masks")
    if said and rank == 4:
        return Measure(name, Kind.KL, axis=1, reason="class scores of pixels")
    if width > 1 and _sums_to_one(arrays):
        return Measure(name, Kind.PROBABILITY_KL, reason="rows are probabilities", single=rank == 2)
    if said and width > 1:
        span = rank == 2 and bool(_SPANS.search(name))
        return Measure(name, Kind.KL, reason="class scores by name", single=rank == 2 and not span, positional=span)
    if width > 1 and _unit_norm(arrays):
        return Measure(name, Kind.COSINE, reason="rows of norm 1")
    reason = "a single score" if width == 1 else "values"
    if width > 1 and not _FEATURES.search(name) and _looks_like_scores(rank, width):
        against = against_scores(arrays) if rank == 2 else None
        if against is None:
            return Measure(name, Kind.KL, reason=f"{BY_SHAPE}: rank {rank}, {width} wide", single=rank == 2)
        reason = against
    return Measure(name, Kind.MSE, scale=_mean_square(arrays), reason=reason)


def _looks_like_scores(rank: int, width: int) -> bool:
    """Class counts are small or odd, or as long as a vocabulary; feature widths are multiples of 64."""
    return width % 64 != 0 if rank == 2 else rank == 3 and (width < 64 or width >= _VOCABULARY)


def _left_out(measures: Mapping[str, Measure], held: Mapping[str, Sequence[np.ndarray]]) -> Iterator[tuple[str, str]]:
    """Outputs that others are computed from: counting them would reward keeping what nobody reads."""
    rank = {name: arrays[0].ndim for name, arrays in held.items()}
    pooled = [n for n, m in measures.items() if m.kind is Kind.COSINE and rank[n] == 2]
    results = pooled + [n for n, m in measures.items() if m.kind in SCORES]
    rows = Counter(held[n][0].shape[0] for n in measures if rank[n]).most_common(1)
    for name, measure in measures.items():
        others = [n for n in results if n != name]
        if not rank[name] or held[name][0].shape[0] != rows[0][0]:
            yield name, "not one value per row"
        elif _CACHE.search(name) and len(measures) > 1:
            yield name, "a cache for later calls"
        elif _INTERMEDIATE.search(name) and others:
            yield name, f"an intermediate beside {others[0]}"
        elif pooled and rank[name] > 2 and measure.kind not in SCORES:
            yield name, f"an intermediate beside {pooled[0]}"


def _sums_to_one(arrays: Sequence[np.ndarray]) -> bool:
    return all((a >= 0).all() and np.allclose(a.sum(-1, dtype=np.float64), 1, atol=_UNIT) for a in arrays if a.size)


def _unit_norm(arrays: Sequence[np.ndarray]) -> bool:
    return all(np.allclose(np.linalg.norm(a.astype(np.float64), axis=-1), 1, atol=_UNIT) for a in arrays if a.size)


def _mean_square(arrays: Sequence[np.ndarray]) -> float:
    total = sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays)
    return total / max(sum(a.size for a in arrays), 1) or 1.0


def _wide(xp: Any, array: Array) -> Array:
    """Double precision: a divergence is the square of a difference, and small ones decide, too."""
    return np.asarray(array, dtype=np.float64) if xp is np else array.double()


def _log_softmax(xp: Any, scores: Array, axis: int) -> Array:
    if xp is not np:
        return xp.log_softmax(scores, axis)
    shifted = scores - scores.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def _kl(xp: Any, teacher: Array, student: Array, measure: Measure) -> Array:
    hot = measure.temperature
    p, q = _log_softmax(xp, teacher / hot, measure.axis), _log_softmax(xp, student / hot, measure.axis)
    return hot**2 * _relative_entropy(xp, p, q).sum(axis=measure.axis)


def _relative_entropy(xp: Any, p: Array, q: Array) -> Array:
    """The terms of KL(p ‖ q) of log-probabilities, each as eᵖ·(eʳ − 1 − r) with r = q − p.

    What is added to eᵖ·(p − q) sums to nothing, and makes every term positive: nothing cancels.
    """
    r = q - p
    near = xp.clip(r, -1.0, 1.0)  # farther apart nothing cancels
    terms = xp.where(xp.abs(r) < 1, xp.exp(p) * (xp.expm1(near) - near), xp.exp(q) - xp.exp(p) * (1 + r))
    return xp.clip(terms, 0.0, None)


def _probability_kl(xp: Any, teacher: Array, student: Array, measure: Measure) -> Array:
    # A probability that underflowed to zero would cost infinitely much: the smallest normal float32 stands in.
    p, q = (xp.log(xp.clip(x, 1.2e-38, None)) for x in (teacher, student))
    return _kl(xp, p, q, measure)


def _bernoulli_kl(xp: Any, teacher: Array, student: Array, measure: Measure) -> Array:
    def log_sigmoid(x: Array) -> Array:
        return -xp.log1p(xp.exp(-xp.abs(x))) - xp.clip(-x, 0, None)

    yes, no = log_sigmoid(teacher), log_sigmoid(-teacher)
    return _relative_entropy(xp, yes, log_sigmoid(student)) + _relative_entropy(xp, no, log_sigmoid(-student))


def _one_minus_cosine(xp: Any, teacher: Array, student: Array, measure: Measure) -> Array:
    """1 − cos as half the squared distance of the directions: exact where 1 − t·s would cancel."""

    def direction(x: Array) -> Array:
        # Clipped before the root, whose slope at 0 is infinite.
        return x / xp.sqrt(xp.clip((x * x).sum(axis=measure.axis, keepdims=True), 1e-24, None))

    return ((direction(teacher) - direction(student)) ** 2).sum(axis=measure.axis) / 2


def _relative_squared_error(xp: Any, teacher: Array, student: Array, measure: Measure) -> Array:
    error = (teacher - student) ** 2 / measure.scale
    return error.mean(axis=-1) if error.ndim > 1 else error


_FORMULAS = {
    Kind.KL: _kl,
    Kind.PROBABILITY_KL: _probability_kl,
    Kind.BERNOULLI_KL: _bernoulli_kl,
    Kind.COSINE: _one_minus_cosine,
    Kind.MSE: _relative_squared_error,
}


def _row_mean(xp: Any, values: Array, real: Array | None) -> Array:
    """[rows, positions…] -> [rows]; positions that are padding do not count."""
    if values.ndim < 2:
        return values
    flat = values.reshape(values.shape[0], values.shape[1], -1).mean(axis=-1)
    if real is None or tuple(real.shape) != tuple(flat.shape):
        return flat.mean(axis=-1)
    kept = xp.where(real, flat, 0.0)
    return kept.sum(axis=-1) / xp.clip(xp.where(real, 1.0, 0.0).sum(axis=-1), 1, None)
