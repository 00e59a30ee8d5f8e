"""What a limit of memory refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from onnxprune.errors import LimitError, UsageError
from onnxprune.graph import memory


def test_what_cannot_fit_is_refused_with_both_figures() -> None:
    with memory.limited(2 * 10**9):
        memory.require(2e9, "this")
    with (
        memory.limited(2 * 10**9),
        pytest.raises(LimitError, match=r"about 2\.5 GB .* --max-memory is 2\.0 GB"),
    ):
        memory.require(2.5e9, "this")


def test_a_limit_lasts_as_long_as_what_it_was_stated_for() -> None:
    before = memory.limit()
    assert not memory.stated() and before > 0
    with pytest.raises(LimitError), memory.limited(1000):
        assert memory.stated() and memory.limit() == memory.available() == 1000
        with memory.limited(None):
            assert memory.limit() == before
        memory.require(1001, "this")
    assert not memory.stated() and memory.limit() == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system's accounts are all there is")
def test_what_another_program_held_is_not_counted() -> None:
    """The accounts of a process that was started begin with what the one that started it held."""
    held = bytearray(400_000_000)
    held[:: 1 << 12] = b"1" * len(held[:: 1 << 12])
    program = "from onnxprune.graph import memory; print(memory.peak())"
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert 10**6 < int(told.stdout) < len(held)


def test_what_libraries_take_is_no_room_for_weights() -> None:
    """Of 1 GB, weights in two places, moments and refits have less than what is left of it beside the libraries."""
    for limit in (10**9, 8 * 10**9):
        with memory.limited(limit):
            assert 2 * memory.share() + 2 * memory.small_share() + memory.LIBRARIES <= 0.85 * limit
    with memory.limited(memory.LIBRARIES):
        assert 0 < memory.share() < memory.LIBRARIES // 4


@pytest.mark.parametrize(("text", "size"), [("8GB", 8 * 10**9), ("500mb", 5 * 10**8), ("1.5G", 15 * 10**8), ("7", 7)])
def test_amounts(text: str, size: int) -> None:
    assert memory.parse(text) == size
    for wrong in ("", "x", "-1GB", "0", "8PB", "1e9", "9" * 40):
        with pytest.raises(UsageError):
            memory.parse(wrong)


@pytest.mark.skipif(memory._glibc() is None or not memory.resident(), reason="no glibc, or the system does not tell")
def test_what_was_let_go_is_given_back() -> None:
    """Blocks that lie between others which are still in use are kept by glibc, for as long as nobody asks."""
    blocks = [bytearray(100_000) for _ in range(2000)]
    for block in blocks:
        block[:: 1 << 12] = b"1" * len(block[:: 1 << 12])
    full = memory.resident()
    kept = blocks[::50]
    del block, blocks
    memory.give_back()
    assert full - memory.resident() > 0.8 * 200e6
    assert len(kept) == 40


@pytest.mark.skipif(memory._glibc() is None or not memory.resident(), reason="no glibc, or the system does not tell")
def test_what_was_let_go_is_given_back_once_it_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.give_back()
    asked = []
    monkeypatch.setattr(memory, "give_back", lambda: asked.append(1))
    memory.ease()
    assert not asked
    held = bytearray(memory.SLACK + 2**24)
    held[:: 1 << 12] = b"1" * len(held[:: 1 << 12])
    monkeypatch.setattr(memory, "ROOM", memory.resident() + 2**24)
    memory.ease()
    assert not asked, "a small process keeps what it has"
    monkeypatch.setattr(memory, "ROOM", 0)
    memory.ease()
    assert asked
