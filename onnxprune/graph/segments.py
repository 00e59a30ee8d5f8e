"""A model larger than memory, run by ONNX Runtime one stretch of nodes after another.

A session holds all weights; here each segment is a session of its own that maps the weights it reads from the model's
file, and is closed before the next one is opened. What goes from one to the next are the values that are read there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from onnxprune.errors import ModelError
from onnxprune.graph import memory, patience, runtime
from onnxprune.graph.external_tensors import tensors_elsewhere
from onnxprune.graph.providers import CPU, resolve_providers

_MAPPED = {"session.disable_prepacking": "1"}
"""Weights that are packed for a kernel are copied; mapped ones are pages of their file."""
_FOLDER = "session.model_external_initializers_file_folder_path"
_PARTS = 4
"""Segments that the share of memory of one place could hold: while one closes, the pages of the next come in."""


def opened(
    file: str | os.PathLike[str] | bytes,
    providers: Sequence[str] = (CPU,),
    *,
    threads: int = 1,
    optimization: str = "all",
) -> runtime.Session:
    """A session, or where the model's weights are too many for one on the CPU, `Segments` in its place.

    Raises:
        as `runtime.session`.
    """
    if not isinstance(file, bytes) and set(resolve_providers(providers)) == {CPU}:
        path = Path(file)
        if path.suffix == ".onnx" and path.is_file() and _most(path) > memory.share():
            segments = Segments(path, threads=threads, optimization=optimization)
            if len(segments.parts) > 1 and segments.complete:
                return segments
    return runtime.session(file, providers, threads=threads, optimization=optimization)


def several(opened: runtime.Session) -> bool:
    """Whether several batches are run for less than one after another (`runtime.run_all`)."""
    return isinstance(opened, Segments)


def _most(file: Path) -> int:
    """The most that a model's weights can take; those in its own file are not read for that."""
    own = file.stat().st_size
    if own > memory.share():
        return own
    try:
        return own + sum(map(_nbytes, tensors_elsewhere(file)))
    except Exception:  # a damaged file, of which the session says what is wrong
        return own


@dataclass(frozen=True)
class Part:
    """A stretch of nodes: what it reads of the values before it, what it gives to those after it, its weights."""

    nodes: tuple[Any, ...]
    weights: tuple[Any, ...]
    reads: tuple[str, ...]
    gives: tuple[str, ...]


class Segments:
    """What is used of a session, for a model file in segments."""

    def __init__(self, file: Path, *, threads: int = 1, optimization: str = "all") -> None:
        self.file, self.threads, self.optimization = file, threads, optimization
        self.proto = _weightless(file)
        # Opened whole, so that what no session takes is said as ever; nothing of the weights is read.
        whole = runtime.session(file, threads=threads, optimization="none", config=_MAPPED)
        self._inputs, self._outputs = ([_told(v) for v in vs] for vs in (whole.get_inputs(), whole.get_outputs()))
        self.parts = list(_parts(self.proto, memory.share() // _PARTS))
        self._types: dict[str, Any] = {i.name: i for i in self._inputs}

    @property
    def complete(self) -> bool:
        """Whether the parts make every output: it is neither a weight nor a constant, and no weight is sparse."""
        made = {name for part in self.parts for name in part.gives} | {i.name for i in self._inputs}
        return not self.proto.graph.sparse_initializer and all(o.name in made for o in self._outputs)

    def get_inputs(self) -> list[Any]:
        return list(self._inputs)

    def get_outputs(self) -> list[Any]:
        return list(self._outputs)

    def get_providers(self) -> list[str]:
        return [CPU]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        """Every node on the CPU, as `runtime.coverage` reads it."""
        nodes = list(self.proto.graph.node)
        return [SimpleNamespace(ep_name=CPU, get_nodes=lambda: nodes)]

    def run(self, wanted: Sequence[str] | None, feeds: runtime.Feeds, options: Any = None) -> list[Any]:
        """As a session's."""
        return self.run_all(wanted, [feeds])[0]

    def run_all(self, wanted: Sequence[str] | None, batches: Sequence[runtime.Feeds]) -> list[list[Any]]:
        """Several batches, each segment opened once for all of them."""
        import onnxruntime as ort

        names = [o.name for o in self._outputs] if wanted is None else list(wanted)
        values = [{k: ort.OrtValue.ortvalue_from_numpy(np.asarray(v)) for k, v in f.items()} for f in batches]
        for part, done in zip(self.parts, self._done, strict=True):
            session = self._session(part)
            for own in values:
                found = patience.run(session, list(part.gives), {k: own[k] for k in part.reads}, values=True)
                own.update(zip(part.gives, found, strict=True))
                for name in done - set(names):
                    own.pop(name, None)
            del session
        return [[own[name].numpy() for name in names] for own in values]

    @cached_property
    def _done(self) -> list[set[str]]:
        """Per segment, what no later one reads."""
        later: set[str] = set()
        found: list[set[str]] = []
        seen = {name for part in self.parts for name in (*part.reads, *part.gives)}
        for part in reversed(self.parts):
            found.append(seen - later)
            later |= set(part.reads)
        return found[::-1]

    def _session(self, part: Part) -> runtime.Session:
        """A segment's session; the types of what it gives are known from then on."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(_shell(self.proto))
        model.graph.name = self.proto.graph.name
        model.graph.node.extend(part.nodes)
        model.graph.initializer.extend(part.weights)
        model.graph.input.extend(_described(self._types[name]) for name in part.reads)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in part.gives)
        session = runtime.session(
            model.SerializeToString(),
            threads=self.threads,
            optimization=self.optimization,
            config={**_MAPPED, _FOLDER: str(self.file.parent.resolve())},
        )
        self._types.update({o.name: _told(o) for o in session.get_outputs()})
        return session


def _told(known: Any) -> Any:
    """What a session says of a value; its own object would keep the session, and the weights."""
    return SimpleNamespace(name=known.name, type=known.type, shape=list(known.shape))


def _weightless(file: Path) -> Any:
    import onnx

    return onnx.load(file, load_external_data=False)


def _shell(proto: Any) -> Any:
    """A model without its graph."""
    import onnx

    shell = onnx.ModelProto()
    shell.ir_version = proto.ir_version
    shell.opset_import.extend(proto.opset_import)
    shell.functions.extend(proto.functions)
    return shell


def _described(known: Any) -> Any:
    """A graph input of the type that a session told of a value.

    Raises:
        ModelError: it is no tensor.
    """
    import onnx

    if not known.type.startswith("tensor("):
        raise ModelError(f"{known.name} is a {known.type}: the model cannot be run in segments; give more memory")
    kind = onnx.TensorProto.DataType.Value(known.type.removeprefix("tensor(").removesuffix(")").upper())
    # A session tells the same of a scalar as of a value whose shape it does not know.
    return onnx.helper.make_tensor_value_info(known.name, kind, list(known.shape) or None)


def _parts(proto: Any, most: int) -> Iterator[Part]:
    """The graph's nodes in stretches whose weights take at most `most` bytes, or one node each."""
    graph = proto.graph
    weights = {t.name: t for t in graph.initializer}
    constants = {n.output[0]: n for n in graph.node if n.op_type == "Constant" and not n.input}
    fed = [v.name for v in graph.input if v.name not in weights]
    stretches: list[list[Any]] = [[]]
    held: set[str] = set()
    size = 0
    for node in graph.node:
        if node.output and node.output[0] in constants:
            continue
        new = {n for n in _reads(node) if n in weights} - held
        more = sum(_nbytes(weights[n]) for n in new)
        if stretches[-1] and size + more > most:
            stretches.append([])
            held, size = set(), 0
            new = {n for n in _reads(node) if n in weights}
            more = sum(_nbytes(weights[n]) for n in new)
        stretches[-1].append(node)
        held, size = held | new, size + more
    read = [{name for node in nodes for name in _reads(node)} for nodes in stretches]
    made = [{name for node in nodes for name in node.output if name} for nodes in stretches]
    outputs = {v.name for v in graph.output}
    before = set(fed)
    for i, nodes in enumerate(stretches):
        later = set().union(*read[i + 1 :]) | outputs
        own = [constants[n] for n in sorted(read[i] & constants.keys())]
        yield Part(
            (*own, *nodes),
            tuple(weights[n] for n in sorted(read[i] & weights.keys())),
            tuple(sorted(read[i] & before)),
            tuple(sorted(made[i] & later)),
        )
        before |= made[i]


def _reads(node: Any) -> set[str]:
    """Every name that a node reads, those of the bodies in it too."""
    found: set[str] = set()
    open_nodes = [node]
    while open_nodes:
        one = open_nodes.pop()
        found.update(name for name in one.input if name)
        for attribute in one.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                found.update(v.name for v in body.output)
                open_nodes.extend(body.node)
    return found


def _nbytes(tensor: Any) -> int:
    """Bytes of a TensorProto's contents, wherever they lie."""
    import onnx_ir as ir

    return -(-int(np.prod(tensor.dims, dtype=np.int64)) * ir.DataType(tensor.data_type).bitwidth // 8)
