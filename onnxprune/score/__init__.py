"""Methods that order units. A new one is a file here and a line in METHODS.

In: what a method asked for in `needs`, gathered by `gather` in one pass. Out: the order in which each group's units go.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.graph.structure.sites import Site
from onnxprune.score.base import Method, Scored, Statistics, per_unit
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

METHODS: dict[str, Method] = {
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


CUSTOM: set[str] = set()
"""Names that `add_method` added: their scores are not kept for later runs, to which a name may mean another score."""


def add_method(
    name: str, score: Callable[[Site, Statistics], np.ndarray], needs: Iterable[str] = (), *, replace: bool = False
) -> None:
    """Make a score of one's own a `method`, alone or in mixtures ("mine+0.5*obs").

        def quiet(site, statistics):                    # [units], the highest stay longest
            total = np.zeros(site.group.size)
            for matrix in site.matrices:                # what reads the units: rows of these matrices are theirs
                weight = matrix.weight(statistics.weight(matrix.reader.weight))
                power = np.diag(statistics.gram[matrix.reader.node, matrix.reader.input].matrix)
                total += onnxprune.per_unit(matrix.units, power * np.abs(weight).sum(1), site.group.size)
            return total

        onnxprune.add_method("quiet", quiet, needs=["gram"])
        onnxprune.prune("model.onnx", flops=0.6, calibration="rows.jsonl", method="quiet")

    Args:
        score: of a site and what was collected (`score.base.Statistics`) to one number per unit.
        needs: fields of `Statistics` that it reads; none for a score of the weights alone.
        replace: whether a method of that name may be replaced.

    Raises:
        UsageError: a name that is taken, or cannot be one, or a field that there is not.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or name == "auto":
        raise UsageError(f"{name!r} cannot be the name of a method: letters, digits and hyphens, and not auto")
    if name in METHODS and not replace:
        raise UsageError(f"there is a method {name} already")
    unknown = sorted(set(needs) - {f.name for f in fields(Statistics)})
    if unknown:
        raise UsageError(
            f"{name} needs {unknown[0]}, which is not collected: {', '.join(f.name for f in fields(Statistics))}"
        )
    METHODS[name] = Scored(score, frozenset(needs))
    CUSTOM.add(name)


def lasting(method: str) -> bool:
    """Whether what a method scored means the same in another process: not if one that was added has a part in it."""
    return not CUSTOM & {term.rpartition("*")[2].strip() for term in method.split("+")}


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
    "add_method",
    "collect",
    "configured",
    "connection",
    "dynamic",
    "lasting",
    "near_identity",
    "per_unit",
    "stepwise",
]
