"""ONNX Runtime's symbolic shape inference, with rules for what it lacks, and going on where it would stop."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache, lru_cache, partial
from types import ModuleType
from typing import Any

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.graph import runtime
from onnxprune.graph.flow import DOMAIN
from onnxprune.graph.intake.attributes import MOST_DIMENSIONS
from onnxprune.graph.prepare import exact_shapes, flow_shapes, operator_shapes

logger = logging.getLogger(__name__)

_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_DOMAINS = ("", "ai.onnx", "com.microsoft", DOMAIN)
"""Where a type of operator means what the rule for it says."""
_LIKE_INPUT = ("Clip", "Dropout", "Mish", "HardSwish", "MoE", "QMoE", "ThresholdedRelu")


def infer_proto(proto: Any, *, assuming: bool = True, conditional: frozenset[str] = frozenset()) -> Any:
    """A model with its values' shapes in value_info; onnx's own inference stands in where the library's fails.

    A node whose outputs stay unknown is left out with everything behind it, so that the rest is still described.

    Args:
        assuming: dimensions that meet are taken for equal. Else a name stands for one size, whatever the graph is run
            on, and nothing is guessed (exact_shapes).
        conditional: outputs of nodes that not every run computes: what must be so where they do need not be elsewhere.
    """
    import onnx

    try:
        rest = onnx.ModelProto()
        rest.CopyFrom(proto)
        while rest.graph.node:
            inference = _inference()(_INT_MAX, assuming, False, 0)
            inference.start(rest, conditional)
            if inference.finished():
                return _of_tensors(inference.out_mp_)
            logger.info("no shape is known behind %s", inference.current)
            _drop_behind(rest.graph, inference.current)
    except Exception as error:
        logger.info("symbolic shape inference failed (%s); falling back to onnx's own", error)
    try:
        return _of_tensors(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    except Exception as second:
        logger.warning("shape inference failed: %s", second)
        return proto


def _of_tensors(proto: Any) -> Any:
    """A model in which no shape has more dimensions than a tensor has: each would be a name, every use a list."""
    for value in (*proto.graph.value_info, *proto.graph.output):
        _forget_dimensions(value)
    return proto


def _forget_dimensions(value: Any) -> None:
    """Of a shape with more dimensions than a tensor has, nothing is known."""
    if len(value.type.tensor_type.shape.dim) > MOST_DIMENSIONS:
        value.type.tensor_type.ClearField("shape")


def _drop_behind(graph: Any, output: str) -> None:
    """Take out the node that writes `output`, with all that depends on it; what is left gives its ends as outputs."""
    import onnx

    lost: set[str] = set()
    kept = []
    for node in graph.node:  # in topological order
        if output in node.output or not lost.isdisjoint(_read(node)):
            lost.update(node.output)
        else:
            kept.append(node)
    read = {name for node in kept for name in _read(node)}
    ends = dict.fromkeys(o for node in kept for o in node.output if o and o not in read)
    stated = {v.name: v for v in graph.output if v.name not in lost}
    outputs = list(({o: onnx.helper.make_empty_tensor_value_info(o) for o in ends} | stated).values())
    for field, values in ((graph.node, kept), (graph.output, outputs)):
        copies = [type(v).FromString(v.SerializeToString()) for v in values]
        del field[:]
        field.extend(copies)


def _read(node: Any) -> set[str]:
    """Names that a node reads, those that its subgraphs capture included."""
    found = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                found |= _read(inner)
    return found - {""}


@cache
def _inference() -> Any:
    """The library's inference with the rules it lacks, in which a node's own failure stops nothing else."""
    import onnx

    library = _symbolic()
    vi = library.helper.make_tensor_value_info

    class Inference(library.SymbolicShapeInference):  # type: ignore[name-defined, misc]
        def __init__(self, int_max: int, assuming: bool, guess_rank: bool, verbose: int, prefix: str = "") -> None:
            self.dispatcher_: dict[str, Callable[[Any], None]]
            super().__init__(int_max, assuming, guess_rank, verbose, prefix)
            self.dispatcher_ |= {f"Reduce{kind}": self._infer_ReduceSum for kind in _REDUCTIONS}
            self.dispatcher_ |= dict.fromkeys(_LIKE_INPUT, self._like_input)
            rules = flow_shapes.RULES | operator_shapes.RULES
            self.dispatcher_ |= {op: partial(rule, self) for op, rule in rules.items()}
            self.dispatcher_["Equal"] = partial(exact_shapes.equal, self)
            bounded = {"Div": exact_shapes.quotient, "Squeeze": exact_shapes.squeeze, "If": exact_shapes.choice}
            if not self.auto_merge_:
                bounded |= {"Slice": exact_shapes.slices, "Resize": exact_shapes.resize}
            self.dispatcher_ |= {op: partial(rule, self, rule=self.dispatcher_[op]) for op, rule in bounded.items()}
            self.dispatcher_ = {op: self._guarded(op, rule) for op, rule in self.dispatcher_.items()}
            self.current = ""
            self.visited = self.named = 0  # names are numbered by node: each round gives the same ones
            self._stated: dict[str, Any] = {}
            self._conditional: frozenset[str] = frozenset()
            self._seen: dict[Any, list[Any]] = {}

        def start(self, proto: Any, conditional: frozenset[str]) -> None:
            self._preprocess(proto)
            self._conditional = conditional
            self._stated = {v.name: v for v in proto.graph.value_info}

        def finished(self) -> bool:
            """Run; whether every node has shapes. Where not, `current` is the output it stopped at."""
            done = False
            tried: set[tuple[str, frozenset[Any]]] = set()
            while self.run_:
                done = self._infer_impl()
                # It starts again with the sizes that it took for equal, be they the same as the last time.
                now = self.current, frozenset(self.suggested_merge_.items())
                if now in tried or len(tried) >= _MOST_ROUNDS:
                    break
                tried.add(now)
            self._update_output_from_vi()
            return bool(done)

        def _infer_impl(self, start_sympy_data: Any = None) -> Any:
            self.visited = 0
            return super()._infer_impl(start_sympy_data)

        def _update_computed_dims(self, shape: Any) -> None:
            """Keep computed sizes by what they are called; one that is merged with another gives way to it."""
            for axis, size in enumerate(shape):
                if library.is_literal(size) or isinstance(size, str):
                    continue
                merged = self.suggested_merge_.get(_printed(size))
                if merged is None:
                    self.symbolic_dims_.setdefault(_printed(size), size)
                elif not library.is_literal(merged):
                    shape[axis] = self.symbolic_dims_[merged]

        def _onnx_infer_single_node(self, node: Any) -> None:
            self.current = next(filter(None, node.output), "")
            self.visited, self.named = self.visited + 1, 0
            self._as_one_before(node)
            ruled = node.op_type in self.dispatcher_ and node.domain in _DOMAINS
            outputs = [o for o in node.output if o]
            typed = all(map(self._is_known, outputs))
            shaped = not any(map(self._lacks_shape, outputs)) or any(map(self._lacks_shape, node.input))
            if not ruled and not (typed and shaped):
                self._ask(node)
            if not self.auto_merge_:
                exact_shapes.name_open(self, node)

        def _as_one_before(self, node: Any) -> None:
            """onnx's inference of a node alone, which is asked once of nodes that differ in their names only."""
            key = self._alike(node)
            if key not in self._seen:
                super()._onnx_infer_single_node(node)
                for output in filter(None, node.output):
                    _forget_dimensions(self.known_vi_[output])
                if key is not None:
                    self._seen[key] = [
                        None if not o else type(self.known_vi_[o]).FromString(self.known_vi_[o].SerializeToString())
                        for o in node.output
                    ]
                return
            for output, found in zip(node.output, self._seen[key], strict=True):
                if output:
                    own = self.out_mp_.graph.value_info.add()
                    own.CopyFrom(found)
                    own.name = output
                    self.known_vi_[output] = own

        def _alike(self, node: Any) -> tuple[Any, ...] | None:
            """All that onnx's inference of a node rests on; None where that is more than operator and types.

            Unsqueeze reads an operand; bodies read what is around them; and of what is known from an earlier round
            the library holds dimensions against each other.
            """
            if node.op_type == "Unsqueeze" or any(o in self.known_vi_ for o in node.output):
                return None
            if any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute):
                return None
            if not all(i in self.known_vi_ for i in node.input if i):
                return None
            kinds = (self.known_vi_[i].type.SerializeToString(deterministic=True) if i else b"" for i in node.input)
            given = (a.SerializeToString(deterministic=True) for a in node.attribute)
            return node.domain, node.op_type, tuple(map(bool, node.output)), tuple(given), tuple(kinds)

        def _broadcast_shapes(self, first: Any, second: Any) -> Any:
            return (
                super()._broadcast_shapes(first, second)
                if self.auto_merge_
                else exact_shapes.broadcast(self, first, second)
            )

        def _check_merged_dims(self, dims: Any, allow_broadcast: bool = True) -> None:
            """Of dimensions that meet; a product's inner ones are equal, wherever it is computed in every run."""
            if self.auto_merge_:
                super()._check_merged_dims(dims, allow_broadcast)
            elif allow_broadcast or self.prefix_ or self.current in self._conditional:
                return
            elif any(library.is_literal(d) for d in dims):
                self._add_suggested_merge(dims)
                self._apply_suggested_merge()

        def _merge_symbols(self, dims: Any) -> Any:
            """Of dimensions that are equal (Concat's other axes), a number where one is."""
            if self.auto_merge_:
                return super()._merge_symbols(dims)
            return next((d for d in dims if library.is_literal(d)), dims[0])

        def _compute_conv_pool_shape(self, node: Any, channels_last: bool = False) -> Any:
            shape = super()._compute_conv_pool_shape(node, channels_last)
            own = exact_shapes.pads_itself(node) and not channels_last
            return exact_shapes.same_padding(self, node, shape, 2) if own else shape

        def _is_known(self, name: str) -> bool:
            kind = self.known_vi_[name].type
            return kind.WhichOneof("value") not in ("tensor_type", None) or bool(kind.tensor_type.elem_type)

        def _lacks_shape(self, name: str) -> bool:
            """Whether all that is known of a tensor is its type."""
            kind = self.known_vi_[name].type if name in self.known_vi_ else None
            return kind is not None and kind.HasField("tensor_type") and not kind.tensor_type.HasField("shape")

        def _ask(self, node: Any) -> None:
            """Outputs that neither library describes: what the file says, else ONNX Runtime, which runs them."""
            described = self._stated
            if not all(
                o in described and described[o].type.tensor_type.HasField("shape") for o in filter(None, node.output)
            ):
                described = self._described_by_runtime(node)
            for output in filter(None, node.output):
                if output in described:
                    self.known_vi_[output].CopyFrom(described[output])

        def _described_by_runtime(self, node: Any) -> dict[str, Any]:
            inputs = [self.known_vi_[i] for i in node.input if i and i not in self.initializers_]
            constants = [self.initializers_[i] for i in node.input if i in self.initializers_]
            outputs = [onnx.helper.make_empty_tensor_value_info(o) for o in node.output if o]
            graph = onnx.helper.make_graph([node], "node", inputs, outputs, constants)
            model = onnx.helper.make_model(
                graph, opset_imports=self.out_mp_.opset_import, ir_version=self.out_mp_.ir_version
            )
            try:
                found = runtime.session(model.SerializeToString()).get_outputs()
            except OnnxPruneError as error:
                logger.debug("ONNX Runtime does not know %s %s either: %s", node.op_type, node.name, error)
                return {}
            types = {f"tensor({name})": code for name, code in _TYPES.items()}
            described = {
                o.name: vi(
                    o.name, types[o.type], [d or str(self._new_symbolic_dim(o.name, i)) for i, d in enumerate(o.shape)]
                )
                for o in found
                if o.type in types and o.shape
            }
            return described or operator_shapes.seen_alone(self, node, model, types)

        def _like_input(self, node: Any) -> None:
            self._write(node, self._get_shape(node, 0), outputs=filter(None, node.output))

        def _write(self, node: Any, shape: Any, outputs: Any = None, kind: int | None = None) -> None:
            """Describe outputs, the first where none are named: their shape, and the first input's element type."""
            told = self.known_vi_[node.input[0]].type.tensor_type.elem_type if kind is None else kind
            for output in node.output[:1] if outputs is None else outputs:
                self.known_vi_[output].CopyFrom(vi(output, told, library.get_shape_from_sympy_shape(shape)))

        def _opset(self) -> int:
            return int(library.get_opset(self.out_mp_))

        def _refuse_dimensions(self, op: str, node: Any) -> None:
            """What a shape of thousands of dimensions gives is unknown: symbols of that many take minutes."""
            place = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}.get(op)
            if place is None or place >= len(node.input):
                return
            given, value = self._try_get_shape(node, place) or (), self._try_get_value(node, place)
            counts = [*(d for d in given[:1] if isinstance(d, int)), np.size(value) if value is not None else 0]
            if max(counts, default=0) > MOST_DIMENSIONS:
                raise ValueError("more dimensions than a tensor has")

        def _guarded(self, op: str, rule: Callable[[Any], None]) -> Callable[[Any], None]:
            def infer(node: Any) -> None:
                try:
                    if node.domain in _DOMAINS:
                        self._refuse_dimensions(op, node)
                        rule(node)
                except Exception as error:
                    logger.debug("shape inference of %s %s failed: %s", op, node.name, error)

            return infer

    library.__dict__["SymbolicShapeInference"] = Inference  # what infers the graphs inside of control flow
    return Inference


_INT_MAX = 2**31 - 1
_MOST_ROUNDS = 64
"""Rounds in which sizes are taken for equal; each takes as long as the graph is."""


@lru_cache(maxsize=1 << 14)
def _printed(size: Any) -> str:
    """A symbolic size in words. Printing takes most of the time that shapes of convolutions take, and most are old."""
    return str(size)


_TYPES = {
    "float": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10,
    "double": 11, "uint32": 12, "uint64": 13, "bfloat16": 16,
}  # fmt: skip
"""Element types as ONNX Runtime writes them."""


@cache
def _symbolic() -> ModuleType:
    """`onnxruntime.tools.symbolic_shape_infer`, loaded by file: importing its package pulls in torch (2.4 s)."""
    package = importlib.util.find_spec("onnxruntime")
    assert package is not None and package.submodule_search_locations
    file = f"{package.submodule_search_locations[0]}/tools/symbolic_shape_infer.py"
    spec = importlib.util.spec_from_file_location("onnxprune._symbolic_shape_infer", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.logger.setLevel(logging.ERROR)

    def described(shape: Any) -> list[Any]:
        return [None if s is None else int(s) if module.is_literal(s) else _printed(s) for s in shape]

    module.get_shape_from_sympy_shape = described  # type: ignore[attr-defined]
    return module
