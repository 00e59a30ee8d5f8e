"""What rows leave to chance: when one divergence, measured on some rows, is lower than another on the same."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SURE = 2.0
"""Standard errors of the mean difference, over the rows."""


def surely_lower(found: npt.ArrayLike, than: npt.ArrayLike) -> bool:
    """Whether `found` is on average lower than `than` by more than the rows' own differences leave to chance.

    Args:
        found, than: of the same rows, [rows] each; a single number is taken to be exact.
    """
    change = np.atleast_1d(np.asarray(found, dtype=np.float64) - np.asarray(than, dtype=np.float64))
    return bool(change.mean() < -SURE * change.std() / len(change) ** 0.5)
