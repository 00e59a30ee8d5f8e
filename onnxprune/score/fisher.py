"""Fisher information of the gates (Kwon et al., NeurIPS 2022, arXiv 2204.09656): E[(∂L/∂gate)²], sample by sample."""

from __future__ import annotations

import numpy as np

from onnxprune.score.base import Scored, Statistics
from onnxprune.sites import Site


def score(site: Site, statistics: Statistics) -> np.ndarray:
    """Mean over samples of the squared gate gradient. [units]"""
    return np.asarray(np.square(statistics.gate_grad[site.id]).mean(0))


fisher = Scored(score, frozenset({"gate_grad"}))
