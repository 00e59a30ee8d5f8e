"""What a decoder says of its own accord: rows without a target get the dense model's greedy answer.

Behind the start token alone a decoder shows one token of what it does, and refits would be fitted to that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.data import Dataset, Example
from onnxprune.data.model_info import Files
from onnxprune.data.target import NEXT
from onnxprune.graph import runtime, segments
from onnxprune.graph.model import Model, Part

MOST = 24
"""Tokens of an answer."""
_IDS, _SCORES = "decoder_input_ids", "logits"
_ROWS, _TOKENS = 32, 4096

Array = NDArray[np.int64]


def with_targets(dense: Model, rows: Dataset | None) -> Dataset | None:
    """The rows, each with the model's own answer where none has more than a start token to read.

    They are as they were where the model is no encoder with a decoder in files of their own, or its decoder takes a
    fixed number of tokens.
    """
    part = next((p for p in dense.parts if _IDS in p.wires.inputs.values() and _SCORES in p.wires.outputs), None)
    if rows is None or part is None or not rows.examples or dense.path is None:
        return rows
    spec = next(s for s in dense.inputs if s.name == _IDS)
    if isinstance(spec.shape[1], int) or any(e.feeds[_IDS].shape[1] > 1 for e in rows.examples):
        return rows
    ends = Files(dense.folder).setting("eos_token_id")
    found = list(rows.examples)
    whole, decoder = segments.opened(dense.path), segments.opened(part.file)
    for batch in rows.batches(max_rows=_ROWS, max_tokens=_TOKENS):
        answers = _answers(whole, decoder, part, batch.feeds, ends)
        for place, ids in zip(batch.index.tolist(), answers, strict=True):
            found[place] = _with(found[place], ids)
    longest = max(e.feeds[_IDS].shape[1] for e in found)
    said = (
        f"targets: none are given; the model's own answers stand in, of up to {longest} tokens ('target' gives others)"
    )
    return replace(rows, examples=tuple(found), description=(*rows.description, said))


def _answers(
    whole: runtime.Session, decoder: runtime.Session, part: Part, feeds: runtime.Feeds, ends: int | None
) -> list[Array]:
    """Greedy decoding without a cache, [tokens] of each row, its end token among them."""
    inner = [name for name in part.wires.inputs.values() if name not in feeds]
    known: Mapping[str, np.ndarray] = {**feeds, **(runtime.run(whole, feeds, inner) if inner else {})}
    taken = {own: np.asarray(known[name]) for own, name in part.wires.inputs.items()}
    own = next(own for own, name in part.wires.inputs.items() if name == _IDS)
    ids = taken[own]
    for _ in range(MOST):
        scores = runtime.run(decoder, {**taken, own: ids}, [_SCORES])[_SCORES]
        ids = np.concatenate([ids, scores[:, -1:].argmax(-1).astype(ids.dtype)], 1)
        if ends is not None and (ids[:, 1:] == ends).any(1).all():
            break
    return [row[: _length(row, ends)] for row in ids]


def _length(row: Array, ends: int | None) -> int:
    """Of an answer with its start and end tokens; at least three tokens, to read one behind another."""
    at: Sequence[int] = np.flatnonzero(row[1:] == ends).tolist() if ends is not None else []
    return max(at[0] + 2, 3) if len(at) else len(row)


def _with(example: Example, ids: Array) -> Example:
    feeds = dict(example.feeds)
    read = ids
    if NEXT in feeds:
        feeds[NEXT], read = ids[None, -1:].astype(feeds[NEXT].dtype), ids[:-1]
    feeds[_IDS] = read[None].astype(feeds[_IDS].dtype)
    return replace(example, feeds=feeds)
