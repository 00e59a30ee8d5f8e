"""Stages behind the check: whatever fails there, the file is whole, and the report says what it lacks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from onnxprune.errors import OnnxPruneError

logger = logging.getLogger(__name__)


@contextmanager
def kept(lacks: str, said: list[str], *, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Go on where the block fails, and say why.

    Args:
        lacks: what there will not be, as the warning begins: "no latency".
        said: where the warning goes.
        but: what is an error all the same.
    """
    try:
        yield
    except but:
        raise
    except Exception as error:  # anything: hours of work are behind, and the file is checked
        logger.debug("%s", lacks, exc_info=True)
        reason = str(error) if isinstance(error, OnnxPruneError) else f"{type(error).__name__}: {error}"
        said.append(f"{lacks}: {' '.join(reason.split())[:400]}")
