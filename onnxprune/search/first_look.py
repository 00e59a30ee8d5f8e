"""What the rows say of the dense model, in a store (store.py), block by block as it is known.

Second moments of what each weight reads are an object each: the pass over a large model takes hours, and writes one
after the other where its weights are not all held. They count in the bases that heads had when they were taken, which
are an object too; so is how much each token weighs. Numbers alone are written, with a digest before them.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from onnxprune.graph import memory, put_away
from onnxprune.graph.plan import Ranking
from onnxprune.probe.engine import to_numpy
from onnxprune.probe.forward import Rows, Weights
from onnxprune.probe.interpreter import Usage
from onnxprune.probe.second_moments import Gram
from onnxprune.score.rotation import Rotated
from onnxprune.search.store import Store

logger = logging.getLogger(__name__)

_TOLD = "told"


@dataclass(eq=False)
class FirstLook:
    """What has been seen of some rows.

    Attributes:
        store: None keeps nothing.
        key: what it counts for: model, rows, options, and how rows lie in batches.
        bases: those that moments are taken in; none until they are known.
    """

    store: Store | None
    key: str
    bases: str = "as-they-are"

    def rotated(self) -> Rotated | None:
        """The bases of heads."""
        found = self._get("bases")
        if found is None:
            return None
        arrays, told = found
        rankings = {k: Ranking(k, tuple(order), tuple(scores)) for k, (order, scores) in told["rankings"].items()}
        self.bases = told["digest"]
        return Rotated(dict(arrays), rankings, told["held"])

    def keep_rotated(self, found: Rotated) -> None:
        """The bases, behind the moments that were taken with them; more are kept in these bases from now on."""
        if self.store is None:
            return
        digest = hashlib.sha256()
        for name, array in sorted(found.weights.items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        self.bases = digest.hexdigest()
        for usage, gram in found.moments.items():
            self.keep(usage, gram)
        rankings = {k: (r.order, r.scores) for k, r in found.rankings.items()}
        self._put("bases", found.weights, {"digest": self.bases, "rankings": rankings, "held": found.held})

    def moments(self, usages: Sequence[Usage]) -> dict[Usage, Gram]:
        """Of those inputs of nodes of which they are known."""
        found: dict[Usage, Gram] = {}
        place = put_away.Store(memory.small_share())
        for usage in usages if self.store is not None else ():
            if (held := self._get(self._place(usage))) is not None:
                found[usage] = Gram.of(held[0])
                found[usage].put_away(place)
        if found:
            logger.info("second moments of %d inputs from the store", len(found))
        return found

    def keep(self, usage: Usage, gram: Gram) -> None:
        """Moments of an input, as soon as they are complete."""
        if self.store is not None:
            self._put(self._place(usage), gram.arrays(), {})

    def weighed(self, rows: str) -> tuple[Weights | None] | None:
        """How much tokens of some rows (`Seen.weighed`) matter, where it is known: nothing may be what is known."""
        found = self._get(f"tokens.{rows}")
        if found is None:
            return None
        arrays, told = found
        if told["nodes"] is None:
            return (None,)
        import torch

        parts = {node: [torch.from_numpy(arrays[f"{n}.{i}"]) for i in range(of)] for n, (node, of) in told["nodes"]}
        return (parts,)

    def keep_weighed(self, rows: str, weights: Weights | None) -> None:
        """The same, once it is known."""
        if self.store is None:
            return
        nodes = None if weights is None else [(n, (node, len(w))) for n, (node, w) in enumerate(weights.items())]
        every = enumerate(() if weights is None else weights.values())
        arrays = {f"{n}.{i}": to_numpy(part) for n, parts in every for i, part in enumerate(parts)}
        self._put(f"tokens.{rows}", arrays, {"nodes": nodes})

    def _place(self, usage: Usage) -> str:
        node, which = usage
        return f"{self.bases}/{quote(node, safe='')}.{which}"

    def _put(self, name: str, arrays: Mapping[str, np.ndarray], told: Mapping[str, Any]) -> None:
        if self.store is None:
            return
        held = io.BytesIO()
        np.savez(held, **{_TOLD: np.frombuffer(json.dumps(told).encode(), np.uint8)}, **_named(arrays))  # type: ignore[arg-type]
        data = held.getvalue()
        self.store.put(f"seen/{self.key}/{name}", hashlib.sha256(data).digest() + data)

    def _get(self, name: str) -> tuple[dict[str, np.ndarray], Any] | None:
        held = self.store.get(f"seen/{self.key}/{name}") if self.store is not None else None
        if held is None:
            return None
        if hashlib.sha256(held[32:]).digest() != held[:32]:
            logger.info("%s in the store is damaged: looked at anew", name)
            return None
        with np.load(io.BytesIO(held[32:]), allow_pickle=False) as read:
            arrays = {k.removeprefix("of."): read[k] for k in read.files if k != _TOLD}
            return arrays, json.loads(read[_TOLD].tobytes())


def _named(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names that `savez` takes for no argument of its own."""
    return {f"of.{name}": array for name, array in arrays.items()}


def lying(*parts: Rows) -> list[Any]:
    """How rows lie in batches: what tokens weigh counts for these alone."""
    return [[(b.index.tolist(), {k: v.shape for k, v in b.feeds.items()}) for b in rows.batches] for rows in parts]
