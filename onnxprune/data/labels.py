"""Labels as numbers: class names through config.json, numbers from text, token labels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from onnxprune.data.model_info import Job
from onnxprune.errors import DataError, one_line

_COUNT = re.compile(r"[0-9]{1,9}")
_NAME = 80
"""Characters of a class's name that are kept."""
_LARGEST = 2.0**53
"""Of a label: what a float tells from its neighbours."""
IGNORED = -100  # the label of a token that does not count, as in torch's cross entropy


def class_ids(names: Sequence[str], job: Job) -> list[int] | None:
    """Class names as config.json numbers them (case aside), or None where it does not know them all."""
    known = job.files.json("config.json").get("label2id")
    if not isinstance(known, dict) or not all(type(number) is int for number in known.values()):
        return None
    ids = {str(name).casefold(): number for name, number in known.items()}
    folded = [name.casefold() for name in names]
    return [ids[name] for name in folded] if all(name in ids for name in folded) else None


def class_names(job: Job) -> dict[int, str]:
    """Number of a class -> its name: as the rows' folders tell, else id2label or label2id of config.json."""
    found: dict[int, str] = {}
    with suppress(DataError):  # a damaged file is told of where it is needed
        config = job.files.json("config.json")
        by_name, by_number = config.get("label2id"), config.get("id2label")
        if isinstance(by_name, Mapping):
            found |= {number: name for name, number in by_name.items() if type(number) is int}
        if isinstance(by_number, Mapping):
            found |= {int(number): str(name) for number, name in by_number.items() if _COUNT.fullmatch(str(number))}
    return {number: one_line(name, _NAME) for number, name in {**found, **job.classes}.items()}


def resolve(raw: Sequence[Any], job: Job, *, folders: bool = False) -> list[Any]:
    """Labels of all rows as numbers or arrays; None for what has none. What was decided is said.

    Args:
        raw: as read.
        folders: the labels are folder names, which are numbered in sorted order where nothing else numbers them.
    """
    labels = [_plain(label) for label in raw]
    present = [label for label in labels if label is not None]
    odd = (isinstance(old, list | tuple | Mapping) and new is None for old, new in zip(raw, labels, strict=True))
    if lists := sum(odd):
        job.say(f"labels: {lists} lists or objects that do not hold numbers are ignored")
    if not present:
        return labels
    if all(isinstance(label, int) and label == -1 for label in present):
        job.say("labels: none (all are -1, which marks hidden labels)")
        return [None] * len(labels)
    if all(isinstance(label, str) for label in present):
        labels = _named(labels, sorted(set(present)), job, folders)
    elif any(isinstance(label, str) for label in present):
        job.say("labels: ignored, some are text and some are numbers")
        return [None] * len(labels)
    if len({np.ndim(label) for label in labels if label is not None}) > 1:
        job.say("labels: ignored, some are numbers and some are lists")
        return [None] * len(labels)
    count = sum(label is not None for label in labels)
    if 0 < count < len(labels):
        job.say(f"labels: {count} of {len(labels)} rows have one")
    return labels


def _plain(label: Any) -> Any:
    """A label as a Python number, a string, an array, or None (also for an empty cell)."""
    if label is None or (isinstance(label, str) and not label.strip()):
        return None
    if isinstance(label, str):
        return label.strip()
    if isinstance(label, list | tuple):
        array = np.asarray(label) if _rectangular(label) else None
        return array if array is not None and array.dtype.kind in "biuf" else None
    if isinstance(label, Mapping):
        return None
    if isinstance(label, bool | np.bool_):
        return int(label)
    if hasattr(label, "detach"):
        label = label.detach().cpu().numpy()
    if isinstance(label, np.generic) or (isinstance(label, np.ndarray) and label.ndim == 0):
        label = label.item()
    if isinstance(label, int | float) and not math.isnan(label) and abs(label) > _LARGEST:
        raise DataError(f"a label is {one_line(str(label), 40)}: give class numbers or scores")
    return None if isinstance(label, float) and math.isnan(label) else label


def _rectangular(label: Sequence[Any]) -> bool:
    try:
        np.asarray(label)
    except ValueError:
        return False
    return True


def _named(labels: list[Any], names: list[str], job: Job, folders: bool) -> list[Any]:
    numbers = [_number(name) for name in names]
    if None not in numbers:
        table: dict[str, Any] = dict(zip(names, numbers, strict=True))
    elif (ids := class_ids(names, job)) is not None:
        table = dict(zip(names, ids, strict=True))
        job.say("labels: names numbered by label2id of config.json")
    elif folders:
        table = {name: index for index, name in enumerate(names)}
        job.classes.update(enumerate(names))
        job.say(
            f"labels: folder names in sorted order ({', '.join(f'{n}={i}' for n, i in list(table.items())[:5])}"
            f"{', ...' if len(table) > 5 else ''}); config.json does not name them"
        )
    else:
        job.say(f"labels: ignored, label2id of config.json does not know {names[0]!r}; number them to use them")
        return [None] * len(labels)
    return [None if label is None else table[label] for label in labels]


def _number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None
