"""What the layers of a model are called, from the names of the nodes that read its units."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxprune.report.schema import Units

_NUMBER = re.compile(r"(?:^|[._])\d+$")
"""What ends the name of one of several layers: layers.1, layer_1, 1."""
_PARTS = 2
"""Parts of a scope that are shown, where they tell the layers apart."""


def layer_names(units: Sequence[Units]) -> Mapping[int, str]:
    """Layer -> the scope that its nodes have in common, without what all layers share: "layer.0", "encoder/layers/3".

    Exporters that name nodes by number have no scopes: there the map is empty.
    """
    names: dict[int, list[str]] = defaultdict(list)
    for held in units:
        if held.name:
            names[held.layer].append(held.name)
    scopes = {layer: common([_scope(name) for name in held]) for layer, held in names.items()}
    again = Counter(scopes.values())
    for layer, scope in scopes.items():
        if again[scope] > 1:  # kinds that are counted apart share no scope: the first one names the layer
            scopes[layer] = _scope(names[layer][0])
    if not scopes or not all(scopes.values()):
        return {}
    shared = common(list(scopes.values())) if len(scopes) > 1 else scopes[min(scopes)][:-1]
    own = {layer: scope[len(shared) :] for layer, scope in scopes.items()}
    short = {layer: scope[-_PARTS:] for layer, scope in own.items()}
    told = short if len(set(short.values())) == len(set(own.values())) else own
    return {layer: "/".join(scope) for layer, scope in told.items()}


def by_name(units: Sequence[Units]) -> Sequence[Units]:
    """The units with the rows of a map as their `layer`.

    Kinds are counted apart: where a decoder has two attentions a layer, the third heads and the third neurons are of
    different layers. Where the nodes' names tell (`decoder/layers.1`), rows are theirs; elsewhere units stay as they
    are.
    """
    owners = [_owner(held.name) for held in units]
    named: dict[int, set[tuple[str, ...]]] = defaultdict(set)
    first: dict[tuple[str, ...], int] = {}
    for held, owner in zip(units, owners, strict=True):
        named[held.layer].add(owner)
        first[owner] = min(held.layer, first.get(owner, held.layer))
    if () in first or all(len(several) == 1 for several in named.values()):
        return units
    rows = {owner: row for row, owner in enumerate(sorted(first, key=lambda owner: first[owner]))}
    return [replace(held, layer=rows[owner]) for held, owner in zip(units, owners, strict=True)]


def _owner(name: str) -> tuple[str, ...]:
    """ "/m/decoder/layers.1/self_attn/MatMul" -> ("m", "decoder", "layers.1"); the scope where no part has a number."""
    scope = _scope(name)
    at = next((i for i, part in enumerate(scope) if _NUMBER.search(part)), len(scope))
    return scope[: at + 1]


def _scope(name: str) -> tuple[str, ...]:
    """ "/vit/encoder/layer.0/attention/MatMul" -> ("vit", "encoder", "layer.0", "attention")."""
    return tuple(part for part in re.split(r"[/:]+", name) if part)[:-1]


def common(scopes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The parts that all begin with."""
    shared = []
    for parts in zip(*scopes, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return tuple(shared)
