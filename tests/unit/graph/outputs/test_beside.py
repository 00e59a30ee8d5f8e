"""Work beside a block: it ends with the block, and a thread that is never born is not waited for."""

from __future__ import annotations

import _thread
import threading
from typing import Any

import pytest

from onnxprune.graph.outputs import interrupts
from onnxprune.graph.outputs.beside import beside


def test_work_ends_with_the_block() -> None:
    seen: list[str] = []
    begun = threading.Event()

    def work(over: threading.Event) -> None:
        begun.set()
        over.wait()
        seen.append("done")

    with beside(work, lambda: seen.append("woken")):
        assert begun.wait(10) and not seen
    assert sorted(seen) == ["done", "woken"]


def _stillborn(*_: Any) -> int:
    """As a thread that finds no memory when it begins."""
    return 0


def _no_room(*_: Any) -> int:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("start", [_stillborn, _no_room])
def test_a_thread_that_never_begins_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    monkeypatch.setattr(_thread, "start_new_thread", start)
    monkeypatch.setattr(threading.Thread, "start", lambda _: pytest.fail("this waits for ever for such a thread"))
    done = []

    def call() -> None:
        with interrupts.heard():
            done.append(True)

    call()
    assert done
