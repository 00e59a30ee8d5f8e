"""Tokenizers that anyone could have made: what grows without bound is refused, what does not end is not waited for.

A tokenizer.json is a program of rules and patterns. Rules that replace a letter by ten, one after another, make
terabytes of a word; some patterns take longer for each further letter than for all before it.
"""

from __future__ import annotations

import _thread
import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from onnxprune.errors import DataError, LimitError
from onnxprune.graph import memory

MOST_GROWTH = 10_000.0
"""Characters that the rules may make of one; none that we know of makes more than a few."""
MOST_ADDED = 4096
"""Tokens, and parts of a template, that may be put around a row: longer than most rows are."""
SECONDS = 8.0
"""Of processor time, for whatever is encoded, and a second more for each"""
PACE = 200_000
"""characters of it: tokenizers do a million or more,"""
SLOW_PACE = 20_000
"""those written in Python a tenth of that."""
GROWTH = 4
"""Of what may be used, the part by which encoding may grow."""
BIRTH = 5.0
"""Seconds in which a thread that was started begins."""
_Result = TypeVar("_Result")


def require_bounded(tokenizer: Any, file: Path) -> None:
    """Refuse rules that make far more of a text than it is.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.

    Raises:
        DataError: names what grows.
    """
    grown = _growth(_rules(tokenizer.normalizer))
    if grown > MOST_GROWTH:
        raise DataError(f"{file}: its normalizer makes up to {grown:.3g} characters of one: use the model's own file")
    parts = _parts(_rules(tokenizer.post_processor))
    added = max(parts, tokenizer.num_special_tokens_to_add(False), tokenizer.num_special_tokens_to_add(True))
    if added > MOST_ADDED:
        raise DataError(f"{file}: its template puts {added:,} parts around a row: use the model's own file")


def encoded(
    work: Callable[[], _Result], texts: Sequence[Any], most_of_one: int | None = None, pace: int = PACE
) -> _Result:
    """What some work gives that encodes texts, if it comes within the time and the memory that these may take.

    A call of the library cannot be stopped: one that takes longer is left behind.

    Args:
        most_of_one: characters (or words) of a text that are encoded at most; None for all.
        pace: characters that a second of processor time allows.

    Raises:
        LimitError: it takes longer, or more memory.
    """
    found: list[_Result] = []
    failed: list[BaseException] = []
    claim, done = threading.Lock(), threading.Event()

    def run() -> None:
        if not claim.acquire(blocking=False):
            return
        try:
            found.append(work())
        except BaseException as error:  # a panic of the library is no Exception
            failed.append(error)
        finally:
            done.set()

    allowed, most = SECONDS + _characters(texts, most_of_one) / pace, memory.limit() / GROWTH
    until, before = time.process_time() + allowed, memory.resident()
    born = time.monotonic() + BIRTH
    try:
        _thread.start_new_thread(run, ())
    except (RuntimeError, MemoryError):  # the system has no room for another
        return work()
    while not done.wait(0.1):
        if time.monotonic() > born and claim.acquire(blocking=False):  # one without memory at birth never says so
            return work()
        large = memory.resident() - before > most
        if large or time.process_time() > until:
            told = f"more than {memory.shown(most)} of memory" if large else f"more than {allowed:.0f} s"
            raise LimitError(f"the tokenizer takes {told} for {len(texts)} texts: is it the model's own, and the rows?")
    if failed:
        raise failed[0]
    return found[0]


def _characters(texts: Sequence[Any], most: int | None) -> int:
    sizes = (len(text) if isinstance(text, str) else _characters(text, most) for text in texts)
    return sum(size if most is None else min(size, most) for size in sizes)


def _rules(component: Any) -> Mapping[str, Any]:
    """A part of a tokenizer as its file has it."""
    if component is None:
        return {}
    told = json.loads(component.__getstate__())
    return told if isinstance(told, dict) else {}


def _growth(rule: Mapping[str, Any]) -> float:
    """Characters that a rule of a normalizer makes of one, at most."""
    kind = rule.get("type")
    if kind == "Sequence":
        return math.prod(_growth(one) for one in rule.get("normalizers", ()))
    if kind != "Replace":
        return 1.0
    pattern = rule.get("pattern", {})
    if "String" in pattern:
        return max(len(rule.get("content", "")) / max(len(pattern["String"]), 1), 1.0)
    return len(rule.get("content", "")) + 1.0  # a pattern may match nothing, before each letter


def _parts(rule: Mapping[str, Any]) -> int:
    """Parts of the templates of a post-processor, all together."""
    inner = sum(_parts(one) for one in rule.get("processors", ()))
    return inner + sum(len(rule[key]) for key in ("single", "pair") if isinstance(rule.get(key), list))
