"""Which value of one graph is which of another, among the graphs of one folder, by what they are called.

An encoder's result goes into its decoder, a decoder's caches into the decoder that goes on behind them, and inputs
that are called alike are one. Every graph's own names become names that are unique in the graph which they are
together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from onnxprune.errors import ModelError, UnsupportedError
from onnxprune.graph.model import InputSpec, Wires

NEXT = "next_"
"""Before the names of a graph that takes a token more, behind the caches of another."""
DECODER = "decoder_"
_ENCODED = ("encoder_hidden_states", "encoder_outputs")
"""What a decoder calls the result of its encoder."""
_RESULTS = ("last_hidden_state", "encoder_hidden_states", "hidden_states")
"""What an encoder calls it."""
_OWN = re.compile(r"(input_ids|inputs_embeds|attention_mask|position_ids|cache_position|token_type_ids)")
"""Inputs that encoder and decoder both have, each its own."""
_PAST = re.compile(r"past(_key_values?|_key|_value)?", re.IGNORECASE)
_PRESENT = re.compile(r"present(_key_values?)?", re.IGNORECASE)


@dataclass(frozen=True)
class Interface:
    """What a graph takes and gives; `name` is its file's, without the ending."""

    name: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[InputSpec, ...]

    @property
    def takes(self) -> dict[str, InputSpec]:
        return {spec.name: spec for spec in self.inputs}

    @property
    def gives(self) -> dict[str, InputSpec]:
        return {spec.name: spec for spec in self.outputs}


def cache_key(name: str) -> str | None:
    """What is left of a cache's name without the word for its time; None for what is no cache."""
    for word in (_PRESENT, _PAST):
        if word.search(name):
            return word.sub("", name).strip("._")
    return None


def wire(graphs: Sequence[Interface]) -> list[Wires]:
    """How the graphs of a folder hang together; in the order given, which is not always the one in which they run.

    Raises:
        UnsupportedError: a name that two graphs give and a third takes, or graphs that wait for one another.
        ModelError: what one graph gives does not fit what another takes.
    """
    fed = {graph.name: _fed(graph, graphs) for graph in graphs}
    inputs: dict[str, InputSpec] = {}
    given: set[str] = set()
    found: dict[str, Wires] = {}
    for graph in _in_order(graphs, fed):
        follows = _follows(fed[graph.name])
        decodes = follows or any(name in graph.takes for name in _ENCODED)
        names: dict[str, str] = {}
        for spec in graph.inputs:
            if spec.name in fed[graph.name]:
                source, value = fed[graph.name][spec.name]
                _fits(graph, spec, source, source.gives[value])
                names[spec.name] = found[source.name].outputs[value]
                continue
            name = _called(spec.name, decodes=decodes, follows=follows, inputs=inputs)
            if name in given or not _alike(inputs.get(name, spec), spec):
                name = _free(name, graph.name, given | inputs.keys())
            inputs.setdefault(name, spec)
            names[spec.name] = name
        outputs: dict[str, str] = {}
        for spec in graph.outputs:
            wanted = f"{NEXT}{spec.name}" if follows else spec.name
            outputs[spec.name] = _free(wanted, graph.name, given | inputs.keys())
            given.add(outputs[spec.name])
        found[graph.name] = Wires(names, outputs, follows)
    return [found[graph.name] for graph in graphs]


def running_order(graphs: Sequence[Interface]) -> list[Interface]:
    """The graphs, each behind those whose results it takes."""
    return _in_order(graphs, {graph.name: _fed(graph, graphs) for graph in graphs})


Fed = Mapping[str, tuple[Interface, str]]
"""Input -> (the graph that gives it, the name of its output)."""


def _fed(graph: Interface, graphs: Sequence[Interface]) -> dict[str, tuple[Interface, str]]:
    """What a graph takes of the others."""
    found: dict[str, tuple[Interface, str]] = {}
    for spec in graph.inputs:
        others = [other for other in graphs if other is not graph]
        key = cache_key(spec.name)
        if key is not None and _PAST.search(spec.name):
            givers = [(o, n) for o in others if not _continues(o) for n in o.gives if cache_key(n) == key]
        elif spec.name in _ENCODED:
            givers = [
                (o, n)
                for o in others
                if not any(e in o.takes for e in _ENCODED)
                for n in [next((r for r in (spec.name, *_RESULTS) if r in o.gives), None)]
                if n is not None
            ]
        else:
            givers = [(o, spec.name) for o in others if spec.name in o.gives]
        if len(givers) > 1:
            named = " and ".join(f"{other.name}.onnx" for other, _ in givers)
            raise UnsupportedError(
                f"{graph.name}.onnx takes {spec.name}, which {named} give: which of them is not told by the names; put "
                "the graphs of one model into a folder of their own"
            )
        if givers:
            found[spec.name] = givers[0]
    return found


def _continues(graph: Interface) -> bool:
    """Whether a graph goes on behind a past."""
    return any(_PAST.search(spec.name) and cache_key(spec.name) is not None for spec in graph.inputs)


def _follows(fed: Fed) -> bool:
    """Whether its past is what another graph gives."""
    return any(cache_key(name) is not None and _PAST.search(name) for name in fed)


def _in_order(graphs: Sequence[Interface], fed: Mapping[str, Fed]) -> list[Interface]:
    left, done = list(graphs), [graph for graph in graphs if not fed[graph.name]]
    left = [graph for graph in graphs if graph not in done]
    while left:
        ready = next((g for g in left if all(source in done for source, _ in fed[g.name].values())), None)
        if ready is None:
            named = ", ".join(f"{graph.name}.onnx" for graph in left)
            raise UnsupportedError(f"{named}: each takes what another of them gives; they cannot run one by one")
        done.append(ready)
        left.remove(ready)
    return done


def _called(name: str, *, decodes: bool, follows: bool, inputs: Mapping[str, InputSpec]) -> str:
    """What an input that no other graph gives is called among all."""
    if follows and not name.startswith("encoder_"):
        return f"{NEXT}{name}"
    if name == "encoder_attention_mask" and "attention_mask" in inputs:
        return "attention_mask"
    return f"{DECODER}{name}" if decodes and _OWN.fullmatch(name) else name


def _alike(one: InputSpec, other: InputSpec) -> bool:
    """Whether one input may stand for both."""
    return (
        one.dtype == other.dtype
        and len(one.shape) == len(other.shape)
        and all(
            a == b or not (isinstance(a, int) and isinstance(b, int))
            for a, b in zip(one.shape, other.shape, strict=True)
        )
    )


def _free(name: str, graph: str, taken: Set[str]) -> str:
    free = name if name not in taken else f"{graph}_{name}"
    while free in taken:
        free += "_"
    return free


def _fits(graph: Interface, spec: InputSpec, source: Interface, given: InputSpec) -> None:
    if not _alike(spec, given):
        raise ModelError(
            f"{source.name}.onnx gives {given.name} as {given.dtype.name} {list(given.shape)}, and {graph.name}.onnx "
            f"takes {spec.name} as {spec.dtype.name} {list(spec.shape)}: they are not of one model"
        )
