"""Commands on a model that takes a moment, and what is in their folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Run = Callable[..., tuple[int, str, str]]

ROWS = ["--calib", "rows.jsonl", "-q"]
QUICK = ["--flops", "0.6", "--no-latency", "--no-compensate", *ROWS]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
