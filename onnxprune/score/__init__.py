"""Methods that order units. A new one is a file here and a line in METHODS."""

from collections.abc import Mapping

from onnxprune.score.base import Method, Statistics
from onnxprune.score.fisher import fisher
from onnxprune.score.magnitude import magnitude
from onnxprune.score.obs import obs
from onnxprune.score.wanda import wanda

METHODS: Mapping[str, Method] = {"obs": obs, "fisher": fisher, "wanda": wanda, "magnitude": magnitude}
"""What `--method` names."""

__all__ = ["METHODS", "Method", "Statistics"]
