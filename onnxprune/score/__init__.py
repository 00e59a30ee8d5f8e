"""Methods that order units. A new one is a file here and a line in METHODS."""

from collections.abc import Mapping

from onnxprune.score.base import Method, Statistics
from onnxprune.score.collect import collect
from onnxprune.score.dynamic import dynamic
from onnxprune.score.fisher import Fisher, fisher
from onnxprune.score.magnitude import magnitude
from onnxprune.score.mixture import Mixture
from onnxprune.score.obs import obs
from onnxprune.score.optin import Optin, optin
from onnxprune.score.platon import Platon, platon
from onnxprune.score.seven import Seven, seven
from onnxprune.score.snip import Snip, near_identity, snip
from onnxprune.score.taylor import connection, taylor
from onnxprune.score.wanda import wanda

METHODS: Mapping[str, Method] = {
    "obs": obs,
    "optin": optin,
    "seven": seven,
    "seven-signed": Seven(signed=True),
    "seven-weights": Seven(weights=True),
    "snip": snip,
    "snip-spectral": Snip(spectral=True),
    "fisher": fisher,
    "fisher-diagonal": Fisher(rearrange=False),
    "taylor": taylor,
    "connection": connection,
    "platon": platon,
    "wanda": wanda,
    "magnitude": magnitude,
}
"""What `--method` names; weighted mixtures as `optin+0.5*seven` (`mixture.parse`)."""

__all__ = [
    "METHODS",
    "Fisher",
    "Method",
    "Mixture",
    "Optin",
    "Platon",
    "Seven",
    "Snip",
    "Statistics",
    "collect",
    "connection",
    "dynamic",
    "near_identity",
]
