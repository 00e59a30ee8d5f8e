"""Methods that order units. A new one is a file here and a line in METHODS.

In: what a method asked for in `needs`, gathered by `gather` in one pass. Out: the order in which each group's units go.
"""

from collections.abc import Mapping
from dataclasses import replace

from onnxprune.score.base import Method, Statistics
from onnxprune.score.fisher import Fisher, fisher
from onnxprune.score.gather import collect
from onnxprune.score.magnitude import magnitude
from onnxprune.score.mixture import Mixture, stepwise
from onnxprune.score.obs import obs
from onnxprune.score.optin import Optin, optin
from onnxprune.score.platon import Platon, platon
from onnxprune.score.seven import Seven, seven
from onnxprune.score.seven_dyn import Dynamic, dynamic
from onnxprune.score.snip import Snip, near_identity, snip
from onnxprune.score.taylor import connection, taylor
from onnxprune.score.wanda import wanda

METHODS: Mapping[str, Method] = {
    "obs": obs,
    "optin": optin,
    "seven": seven,
    "seven-signed": Seven(signed=True),
    "seven-weights": Seven(weights=True),
    "seven-dyn": Dynamic(),
    "seven-dyn-signed": Dynamic(Seven(signed=True)),
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


def configured(alpha: tuple[float, float]) -> Mapping[str, Method]:
    """METHODS with SEVEN's decays α₁ and α₂."""
    first, second = alpha

    def made(method: Method) -> Method:
        if isinstance(method, Seven):
            return replace(method, alpha1=first, alpha2=second)
        if isinstance(method, Dynamic):
            return replace(method, accumulator=replace(method.accumulator, alpha1=first, alpha2=second))
        return method

    return {name: made(method) for name, method in METHODS.items()}


__all__ = [
    "METHODS",
    "Dynamic",
    "Fisher",
    "Method",
    "Mixture",
    "Optin",
    "Platon",
    "Seven",
    "Snip",
    "Statistics",
    "collect",
    "configured",
    "connection",
    "dynamic",
    "near_identity",
    "stepwise",
]
