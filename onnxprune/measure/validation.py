"""Evidence about a written file: does it compute what it should, and what did pruning cost?

Everything here runs in ONNX Runtime from the files themselves, on rows that decided nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.row_axis import output_axes, rows_first
from onnxprune.data.row_doubts import row_doubts
from onnxprune.errors import CheckError, DataError
from onnxprune.graph import memory, runtime
from onnxprune.graph.finite import require
from onnxprune.graph.model import InputSpec
from onnxprune.measure import scoring_sessions
from onnxprune.measure.drift import Drift, DriftTally
from onnxprune.measure.equivalence import Equivalence, equivalence
from onnxprune.measure.flips import Flips, FlipTally
from onnxprune.measure.metric_tally import Accuracy, MetricTally, token_input
from onnxprune.measure.metrics import Metric, choose_metric
from onnxprune.measure.slices import Slice
from onnxprune.probe import divergence as measures
from onnxprune.probe.engine import cores

if TYPE_CHECKING:
    from onnxprune.data import Batch, Dataset

Array = NDArray[Any]
Outputs = dict[str, Array]
__all__ = [
    "Accuracy",
    "Drift",
    "Equivalence",
    "Evidence",
    "Teacher",
    "aligned_outputs",
    "compare",
    "equivalence",
    "validate",
]

ModelFile = str | os.PathLike[str] | bytes

_SAMPLE_BATCHES = 4
"""Batches whose outputs tell what kind they are."""


@dataclass(frozen=True)
class Evidence:
    """What pruning cost, measured on the files.

    Attributes:
        accuracy: the metric that was asked for, or guessed.
        drift: distance between the outputs.
        coverage: where the pruned graph ran; what the provider left ran on the CPU.
        further: more metrics, where several were asked for.
        broken: what makes the pruned model useless, whatever it saves; empty where nothing does.
        warnings: what these rows, their labels and these outputs cannot tell.
        flips: the rows that are answered otherwise; None where rows have no one answer.
        slices: the metric on parts of the rows, by class and by length.
        nothing_left: whether the pruned outputs tell no more of a row than the dense outputs' mean does.
    """

    accuracy: Accuracy
    drift: Drift
    coverage: runtime.Coverage
    further: tuple[Accuracy, ...] = ()
    broken: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    flips: Flips | None = None
    slices: tuple[Slice, ...] = ()
    nothing_left: bool = False


class Teacher:
    """The dense model's outputs on a dataset, computed once for any number of pruned models.

    Outputs are kept in memory up to a limit and computed again beyond it; while all are there, the model is not.

    Args:
        threads: inside one operator; 0 for as many as scoring takes.
    """

    def __init__(
        self,
        model: ModelFile,
        dataset: Dataset,
        *,
        providers: Sequence[str] = ("cpu",),
        threads: int = 0,
        max_rows: int = 32,
        max_tokens: int = 4096,
        keep_bytes: int = 1 << 29,
        divergence: measures.Divergence | None = None,
    ) -> None:
        if not len(dataset):
            raise DataError("there are no rows to evaluate on")
        self.dataset, self.providers, self.threads = dataset, tuple(providers), threads or cores()
        self._model = model
        runtime.placed(self._session, "the dense model")
        self._limits = max_rows, max_tokens
        self._kept: dict[int, Outputs] = {}
        self._room = keep_bytes
        self._given = divergence

    @cached_property
    def _session(self) -> runtime.Session:
        return scoring_sessions.opened(self._model, self.providers, threads=self.threads)

    def remember(self) -> None:
        """Run the model on all rows, and let go of it where all of its outputs are held."""
        if "_session" in self.__dict__ and all(number in self._kept for number, _ in enumerate(self.batches())):
            del self.__dict__["_session"]
            memory.ease()

    @cached_property
    def samples(self) -> dict[str, list[Array]]:
        """All outputs on a few batches."""
        found: dict[str, list[Array]] = {}
        for batch in islice(self._batches(), _SAMPLE_BATCHES):
            outputs = runtime.run(self._session, batch.feeds, scoring_sessions.compared(self._session))
            for name, value in rows_first(outputs, len(batch), self.axes).items():
                found.setdefault(name, []).append(value)
        return found

    @cached_property
    def axes(self) -> Mapping[str, int]:
        """Outputs whose rows are not on the first axis -> their axis."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        named = [InputSpec(i.name, np.dtype(np.float32), tuple(i.shape)) for i in inputs]
        return output_axes(named, {o.name: tuple(o.shape) for o in outputs})

    @cached_property
    def divergence(self) -> measures.Divergence:
        """How the outputs are compared."""
        return self._given or measures.choose_for(self.dataset, self.samples)

    @cached_property
    def causal(self) -> str | None:
        """The input of tokens of which the graph predicts the next ones; None where it does not.

        Where it does, another last token leaves the scores before it as they are.
        """
        output = self.divergence.outputs[0]
        for batch in self._batches():
            feeds = dict(batch.feeds)
            name = token_input(feeds)
            if name is None:
                return None
            if feeds[name].shape[1] > 1:
                return name if self._causal(feeds, name, output) else None
        return None

    def _causal(self, feeds: dict[str, Array], name: str, output: str) -> bool:
        before = runtime.run(self._session, feeds, [output])[output]
        ids = feeds[name]
        if before.ndim != 3 or before.shape[:2] != ids.shape or before.shape[2] <= ids.max():
            return False
        feeds[name] = np.concatenate([ids[:, :-1], np.where(ids[:, -1:] == 1, 0, 1).astype(ids.dtype)], 1)
        after = runtime.run(self._session, feeds, [output])[output]
        return bool(np.abs(after - before)[:, :-1].max() <= 1e-5 * np.abs(before).max())

    def batches(self) -> Iterator[tuple[Batch, Outputs]]:
        """Every batch with the dense model's outputs that count."""
        for number, batch in enumerate(self._batches()):
            outputs = self._kept.get(number)
            if outputs is None:
                outputs = runtime.run(self._session, batch.feeds, self.divergence.outputs)
                outputs = rows_first(outputs, len(batch), self.axes)
                require(outputs, "the dense model", _sources(self.dataset, batch))
                size = sum(value.nbytes for value in outputs.values())
                if size <= self._room:
                    self._kept[number] = outputs
                    self._room -= size
            yield batch, outputs

    def _batches(self) -> Iterator[Batch]:
        return self.dataset.batches(*self._limits)


def validate(
    dense: ModelFile,
    pruned: ModelFile,
    dataset: Dataset,
    *,
    providers: Sequence[str] = ("cpu",),
    metric: str | Sequence[str] | None = None,
    seed: int = 0,
    threads: int = 0,
    rows: Dataset | None = None,
    flips: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evidence:
    """Compare a pruned file with its dense original on rows with or without labels.

    Args:
        dense, pruned: files, or serialised models.
        dataset: rows that decided nothing in pruning.
        providers: execution providers by priority.
        metric: one of `metrics.NAMES`, several, or None to guess (the reason is in the result).
        seed: of the intervals' draws.
        threads: threads inside one operator; 0 for as many as scoring takes.
        rows: the same rows as the pruned file takes them, where it takes them otherwise: padded to a fixed shape, or
            with a vocabulary of its own.
        flips: how many of the rows that are answered otherwise are given, with the beginning of their text or a small
            picture; all are counted.
        progress: called with (rows done, rows).

    Raises:
        DataError: no rows, or rows that do not fit the graph or the metric.
        UsageError: an unknown metric or provider.
        UnsupportedError: no output can be compared.
        CheckError: the provider takes none of the nodes.
    """
    teacher = Teacher(dense, dataset.read_by(metric), providers=providers, threads=threads)
    return compare(teacher, pruned, metric=metric, seed=seed, rows=rows, flips=flips, progress=progress)


def compare(
    teacher: Teacher,
    pruned: ModelFile,
    *,
    metric: str | Sequence[str] | None = None,
    seed: int = 0,
    rows: Dataset | None = None,
    flips: int = 0,
    progress: Callable[[int, int], None] | None = None,
    level: float = 0.95,
) -> Evidence:
    """`validate` with a teacher that is kept between several pruned models; `level` is that of the intervals."""
    tallies = [MetricTally(teacher.dataset, chosen) for chosen in _metrics(teacher, metric)]
    drift = DriftTally(teacher.divergence, teacher.samples)
    flipped = FlipTally(teacher.dataset, teacher.divergence, flips)
    teacher.remember()  # not both models in memory at once
    session = scoring_sessions.opened(pruned, teacher.providers, threads=teacher.threads)
    coverage = runtime.placed(session, "the pruned model")
    done = 0
    for batch, expected in teacher.batches():
        if rows is None:
            found = runtime.run(session, batch.feeds, teacher.divergence.outputs)
            found = rows_first(found, len(batch), teacher.axes)
        else:
            found = aligned_outputs(session, rows, batch.index, expected, teacher.axes)
        require(found, "the pruned model", _sources(teacher.dataset, batch), CheckError)
        drift.add(expected, found, batch.real)
        flipped.add(batch, expected, found)
        for tally in tallies:
            tally.add(batch, expected, found)
        done += len(batch)
        if progress:
            progress(done, len(teacher.dataset))
    accuracies = tuple(tally.result(seed, level) for tally in tallies)
    moved = drift.result()
    doubts = [*row_doubts(teacher.dataset, "evaluation"), *drift.doubts(moved)]
    doubts += [said for tally in tallies for said in tally.doubts]
    return Evidence(
        accuracies[0], moved, coverage, accuracies[1:], drift.broken(moved), tuple(dict.fromkeys(doubts)),
        flipped.result(), tallies[0].slices(seed, level), drift.nothing_left(moved),
    )  # fmt: skip


def unchanged(
    teacher: Teacher, *, metric: str | Sequence[str] | None = None, seed: int = 0, level: float = 0.95
) -> tuple[Accuracy, ...]:
    """What these rows show of a model whose answers are all the dense one's: the narrowest their intervals can be.

    Only of metrics that count answers; of others, changes by degrees tell more than none at all.
    """
    tallies = [MetricTally(teacher.dataset, chosen) for chosen in _metrics(teacher, metric)]
    for batch, expected in teacher.batches():
        for tally in tallies:
            tally.add(batch, expected, expected)
    return tuple(tally.result(seed, level) for tally in tallies if tally.counts_answers)


def _sources(rows: Dataset, batch: Batch) -> list[str]:
    return [rows.examples[i].source for i in batch.index]


def aligned_outputs(
    session: runtime.Session, rows: Dataset, index: Array, expected: Outputs, axes: Mapping[str, int]
) -> Outputs:
    """Outputs for rows that were read for this file, one by one, without what only padding added.

    Args:
        axes: outputs whose rows are not on the first axis -> their axis.
    """
    gathered: dict[str, list[Array]] = {name: [] for name in expected}
    for position in index:
        example = rows.examples[position]
        for name, value in rows_first(runtime.run(session, example.feeds, list(expected)), 1, axes).items():
            gathered[name].append(
                _unpadded(value, expected[name].shape[1:], example.real, f"{name} of {example.source}")
            )
    return {name: np.concatenate(values) for name, values in gathered.items()}


def _unpadded(value: Array, shape: tuple[int, ...], real: Array | None, where: str) -> Array:
    """[1, padded, …] -> [1, real, …], on every axis that is longer than what is expected."""
    for axis, (own, wanted) in enumerate(zip(value.shape[1:], shape, strict=False), start=1):
        if own != wanted and real is not None and own == real.shape[1] and wanted == int(real.sum()):
            value = np.compress(real[0], value, axis)
    if value.shape[1:] != shape:
        raise DataError(
            f"output {where} has shape {value.shape[1:]} where the dense model gives {shape}: the row is cut, or split "
            "into other tokens, and cannot be compared"
        )
    return value


def _metrics(teacher: Teacher, names: str | Sequence[str] | None) -> list[Metric]:
    dataset = teacher.dataset
    pairs = dataset.pairs
    labels = [label for *_, label in pairs] if pairs else dataset.labels
    samples = {name: arrays[0] for name, arrays in teacher.samples.items()}
    wanted: Sequence[str | None] = [names] if isinstance(names, str) or names is None else names or [None]
    unlabelled = labels is None or all(label is None for label in labels)
    return [
        choose_metric(
            teacher.divergence,
            samples,
            None if unlabelled else labels,
            pairs=bool(pairs),
            causal=teacher.causal if unlabelled and not pairs else None,
            together=dataset.together > 1,
            name=name,
        )
        for name in wanted
    ]
