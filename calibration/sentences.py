"""Checks sentences.jsonl and prints its histogram of lengths: python calibration/sentences.py

The sentences are written by hand, so there is nothing to generate; what can be checked is that the file keeps its
promises: 200 single sentences and 100 pairs, no label, 3 to 60 words each, no row twice, and no two rows of the same
pattern.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

FILE = Path(__file__).with_name("sentences.jsonl")
SINGLES, PAIRS = 200, 100
WORDS = range(3, 61)
ALIKE = 0.6  # two single sentences share fewer than this part of their words


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return re.findall(r"[\w'-]+", text.casefold())


def problems(rows: list[dict[str, str]]) -> list[str]:
    """What the rows break of the above; empty if nothing."""
    found = []
    singles = [row["text"] for row in rows if "text_pair" not in row]
    pairs = [row for row in rows if "text_pair" in row]
    if (len(singles), len(pairs)) != (SINGLES, PAIRS):
        found.append(f"{len(singles)} single sentences and {len(pairs)} pairs, not {SINGLES} and {PAIRS}")
    for number, row in enumerate(rows, 1):
        if set(row) - {"text", "text_pair"}:
            found.append(f"row {number}: fields {sorted(row)}")
        for text in row.values():
            if len(text.split()) not in WORDS:
                found.append(f"row {number}: {len(text.split())} words")
    counts = Counter(tuple(" ".join(words(text)) for text in row.values()) for row in rows)
    found += [f"twice: {row}" for row, count in counts.items() if count > 1]
    for first, second in combinations(singles, 2):
        ours, theirs = set(words(first)), set(words(second))
        if len(ours & theirs) >= ALIKE * len(ours | theirs):
            found.append(f"alike: {first!r} and {second!r}")
    starts = Counter(" ".join(words(text)[:3]) for text in singles)
    found += [f"{count} sentences begin with {start!r}" for start, count in starts.items() if count > 2]
    return found


def main() -> int:
    """Print the histogram and what is wrong; the exit code."""
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    lengths = Counter((len(text.split()) - 1) // 5 for row in rows for text in row.values())
    for bucket in sorted(lengths):
        print(f"{5 * bucket + 1:3}-{5 * bucket + 5:<3} words  {'#' * (lengths[bucket] // 2)} {lengths[bucket]}")
    found = problems(rows)
    print("\n".join(found) or f"{len(rows)} rows, as promised")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
