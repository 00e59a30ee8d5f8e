"""Sizes that a graph can run with, where nobody stated any: the first of a few that it takes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product

from onnxprune.errors import OnnxPruneError
from onnxprune.graph import model_files, segments
from onnxprune.graph.dimensions import evaluate
from onnxprune.graph.example_feeds import synthesize
from onnxprune.graph.joined.wiring import NEXT
from onnxprune.graph.model import Model
from onnxprune.graph.runtime import run
from onnxprune.measure.cost import default_bindings, symbols
from onnxprune.measure.footprint import footprint

logger = logging.getLogger(__name__)

TRIED = (64, 256, 224, 512, 640, 576, 1024, 16000, 32, 16, 8, 1)
"""Of every open dimension, after the one that was asked for: lengths, edges of images, samples."""
LARGEST = 400_000_000
"""Bytes of a file that is run to find out; one of more takes the first."""

MOST = 1 << 25
"""Numbers that are made up for all inputs to find out: a length of 16,000 is one of samples, not of pixels' edges."""
MOST_SUMMED = 4
"""Open dimensions of which one is tried as the sum of the others."""
HELD = 2_000_000_000
"""Bytes of values at one time up to which a size is tried: a graph may fix a batch of a million rows."""


def runnable(dense: Model, stated: Mapping[str, int], first: int, *, told: bool = False) -> dict[str, int]:
    """Every symbolic dimension of the inputs with a size: as stated, the batch 1, and the others one that runs.

    What the graph does not take is said, with the sizes it is counted at instead; where none of those tried runs, the
    first is taken, and said, too.

    Args:
        first: what to try first.
        told: nothing is counted at them, or the caller says what they are: others that were tried are not said.
    """
    whole = _filled(dense, stated, first)
    missing = [name for name in symbols(dense) if name not in default_bindings(dense, stated)]
    if not missing or dense.parts or dense.path is None or model_files.size(dense.path) > LARGEST:
        return whole
    named = [name for name in missing if name.isidentifier()] or missing  # sums of names follow them
    with suppress(OnnxPruneError):
        opened = segments.opened(dense.path)
        for whole_of, size in _candidates(named, first):
            sizes = {} if whole_of is None else {whole_of: (len(named) - 1) * size}
            found = _filled(dense, {**stated, **sizes}, size)
            if (size != first and _values(dense, found) > MOST) or footprint(dense, found).activations > HELD:
                continue
            with suppress(OnnxPruneError):
                run(opened, synthesize(dense.inputs, dims=found))
                if whole_of is not None and not told:
                    logger.warning(
                        "the graph cannot run with %s=%d: counted with %s=%d, the sum of the others, at %d each; state "
                        "others with --shape", ", ".join(named), first, whole_of, sizes[whole_of], size,
                    )  # fmt: skip
                elif size != first and not told:
                    logger.warning(
                        "the graph cannot run with %s=%d: counted at %d; state others with --shape",
                        ", ".join(named), first, size,
                    )  # fmt: skip
                return found
    logger.warning(
        "the graph ran at none of the sizes tried for %s: state them with --shape %s",
        ", ".join(named), ",".join(f"{name}={first}" for name in named),
    )  # fmt: skip
    return whole


def _candidates(names: Sequence[str], first: int) -> Iterator[tuple[str | None, int]]:
    """(the name that is the sum of all the others, or None, the size of the others); 1 last, as it fits beside any.

    A mask over a cache and what is new may have a length of its own name.
    """
    several = (first, *(size for size in TRIED if size > 1))
    yield from ((None, size) for size in several)
    if 3 <= len(names) <= MOST_SUMMED:
        yield from product(names, several[:2])
    yield None, 1


def _values(dense: Model, sizes: Mapping[str, int]) -> int:
    """Numbers of all inputs at these sizes."""
    shapes = ([sizes.get(d or "", 1) if not isinstance(d, int) else d for d in spec.shape] for spec in dense.inputs)
    return sum(math.prod(shape) for shape in shapes)


def _filled(dense: Model, stated: Mapping[str, int], size: int) -> dict[str, int]:
    """As stated, the batch 1, one token behind a cache, names `size`; sums of names follow their parts."""
    found = default_bindings(dense, dict(stated))
    names = symbols(dense)
    ahead = {d for spec in dense.inputs for d in spec.shape if spec.name.startswith(NEXT)}
    found |= {name: 1 for name in names if name not in found and name in ahead and name.startswith(NEXT)}
    for name in names:
        if name.isidentifier() or "." in name:
            found.setdefault(name, size)
    for name in names:
        if name not in found:
            with suppress(KeyError, ValueError, TypeError, ArithmeticError):
                found[name] = evaluate(name, found)
            found.setdefault(name, size)
    return found
