"""Two models on the same rows, each named as a user names it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from onnxprune import data
from onnxprune.errors import unexpected
from onnxprune.export import shipped_files
from onnxprune.graph import joined
from onnxprune.measure import validation
from onnxprune.measure.own_targets import with_targets
from onnxprune.measure.validation import Evidence
from onnxprune.pipeline.in_memory import Source, in_file, takes_models
from onnxprune.pipeline.rows import vocabulary
from onnxprune.search.progress import Clock, Progress, quiet

_ASKED = (*data.READING, "shape")


@takes_models
def validate(
    source: str | os.PathLike[str],
    /,
    pruned: Source,
    evaluation: Any,
    *,
    providers: Sequence[str] = ("cpu",),
    metric: str | Sequence[str] | None = None,
    flips: int = 0,
    progress: Progress | None = None,
    **asked: Any,
) -> Evidence:
    """Compare a pruned model with its dense original: task metric with its interval, and how far the outputs moved.

    Args:
        source: the dense model: a file, a folder, or a model in memory.
        pruned: the other one; it may be quantised, of fixed shape, in ORT format, or an exported folder.
        evaluation: rows that decided nothing in pruning, with labels or without (`data.read` says in which forms).
        providers: execution providers by priority.
        metric: of the task, or several; guessed when None, with the reason in the result.
        flips: how many of the rows that are answered otherwise are given, with the beginning of their text or a small
            picture; all are counted.
        progress: called with ("validate", rows done, rows); told how rows are read if it has a method `say`.
        asked: how rows are read (columns, pairs, tokenizer, max_length, preset, mean, …, shape), as for `data.read`.

    Raises:
        OnnxPruneError: what cannot be read, run or compared.
    """
    for name in asked:
        if name not in _ASKED:
            raise unexpected(name, _ASKED)
    if hasattr(evaluation, "get_next"):
        evaluation = iter(evaluation.get_next, None)
    if isinstance(evaluation, Iterator):
        evaluation = list(evaluation)  # the other file may take the same rows otherwise: they are read twice
    dense = joined.load(source)
    assert dense.path is not None
    rows = data.read(
        evaluation, dense.inputs, outputs=dense.outputs, folder=dense.folder, vocab_size=vocabulary(dense), **asked
    )
    rows = with_targets(dense, rows) or rows
    place, _scratch = in_file(pruned)
    several = joined.opened(place) if joined.is_job(Path(place)) else None
    file = several.file if several is not None else shipped_files.find(Path(place))
    again = {name: value for name, value in asked.items() if name not in ("tokenizer", "max_length")}
    own = None if several is not None else shipped_files.own_rows(
        file, dense.inputs, dense.folder, evaluation, len(rows), outputs=dense.outputs, **again
    )  # fmt: skip
    clock = Clock(progress=progress or quiet)
    for line in rows.description:
        clock.say(line)
    evidence = validation.validate(
        dense.path, file, rows, providers=providers, metric=metric, rows=own, flips=flips,
        progress=None if progress is None else partial(progress, "validate"),
    )  # fmt: skip
    if not metric:
        clock.say(f"metric: {evidence.accuracy.metric} ({evidence.accuracy.reason}); --metric says otherwise")
    return evidence
