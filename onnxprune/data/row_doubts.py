"""What a set of rows cannot tell, from the rows alone: copies, rows of zeros, tokens that no tokenizer knew."""

from __future__ import annotations

from collections import Counter

import numpy as np

from onnxprune.data.dataset import Dataset, Example

_SOME = 0.01
"""Share of the rows from which on something is worth a word."""
_SAME_TOKEN = 0.5
"""Share of all tokens above which one token is suspected to stand for every unknown word."""
_MADE = ("mask", "type_ids", "position", "past", "cache", "segment")
"""In the names of inputs that say nothing of a row's content."""


def row_doubts(rows: Dataset, name: str) -> tuple[str, ...]:
    """Warnings about one set of rows, which is called `name` ("evaluation")."""
    return tuple(filter(None, (_copies(rows, name), _zeros(rows, name), _unknown(rows, name))))


def overlap(learn: Dataset, judge: Dataset) -> str | None:
    """A warning about rows that both learn and judge; None where there are as good as none."""
    known = set(learn.keys)
    shared = sum(key in known for key in judge.keys)
    if not shared or shared < _SOME * len(judge.keys):
        return None
    which = "all" if shared == len(judge.keys) else f"{shared} of the {len(judge.keys)}"
    return (
        f"{which} evaluation rows are calibration rows, too: the plan was made on them, so that they show less loss "
        "than other rows would"
    )


def _copies(rows: Dataset, name: str) -> str | None:
    keys = rows.keys
    distinct = len(set(keys))
    if len(keys) > 1 and distinct == 1:
        return f"all {len(keys)} {name} rows are the same: what they have in common cannot be told from what varies"
    if len(keys) - distinct < max(_SOME * len(keys), 1):
        return None
    return f"{len(keys)} {name} rows are {distinct} different ones: a copy tells nothing new, and counts as none"


def _zeros(rows: Dataset, name: str) -> str | None:
    empty = sum(_is_zero(example) for example in rows.examples)
    if not empty or empty < _SOME * len(rows):
        return None
    which = f"all {len(rows)}" if empty == len(rows) else f"{empty} of {len(rows)}"
    return f"{which} {name} rows hold nothing but zeros"


def _is_zero(example: Example) -> bool:
    told = [a for n, a in example.feeds.items() if a.ndim and a.size and not any(m in n.lower() for m in _MADE)]
    return bool(told) and not any(np.any(a) for a in told)


def _unknown(rows: Dataset, name: str) -> str | None:
    """Of rows that were tokenised here, or came as ids: one token in the place of most."""
    counts: Counter[int] = Counter()
    for example in rows.examples:
        ids = example.feeds.get("input_ids")
        if ids is None or ids.dtype.kind not in "iu" or ids.ndim != 2:
            return None
        kept = ids if example.real is None or example.real.shape != ids.shape else ids[example.real]
        values, found = np.unique(kept, return_counts=True)
        counts.update(dict(zip(values.tolist(), found.tolist(), strict=True)))
    total = counts.total()
    if not total or len(set(rows.keys)) < 2:
        return None
    token, times = counts.most_common(1)[0]
    if times <= _SAME_TOKEN * total:
        return None
    return (
        f"{times / total:.0%} of all tokens in the {name} rows are the same one (id {token}), as from a tokenizer that "
        "does not know these texts"
    )
