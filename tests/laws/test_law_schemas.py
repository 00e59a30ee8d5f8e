"""Law: what a schema says that an operator's result depends on is read where it is computed, or refused there.

Attributes and inputs of every registered operator, by the schemas of onnx and of ONNX Runtime, against what the code
behind `run` names: constants of its functions, and of those that they call. A new version of either library that adds
an attribute fails here until it is read, refused or listed.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from functools import cache
from typing import Any

import onnx
import pytest

from onnxprune.graph import ops
from onnxprune.graph.model import OPSETS

PARTS = ("activation_", "trans", "transBatch")
"""Beginnings of names that are put together where they are read."""

TRAINING = "for training"
NARROW = "the type to compute in, or how to round into one of eight bits: no other number in wider types"
WEIGHTS = "a size of the weights, which are there"
NO_TENSOR = "a Constant without a number is refused"
CHANGES_NOTHING: dict[tuple[str, str], str] = {
    ("*", "kernel_shape"): WEIGHTS,
    ("*", "stash_type"): NARROW,
    ("*", "saturate"): NARROW,
    ("*", "round_mode"): NARROW,
    ("QuantizeLinear", "precision"): NARROW,
    ("Dropout", "seed"): TRAINING,
    ("Dropout", "ratio"): TRAINING,
    ("GRU", "hidden_size"): WEIGHTS,
    ("LSTM", "hidden_size"): WEIGHTS,
    ("RNN", "hidden_size"): WEIGHTS,
    ("Split", "num_outputs"): "the number of its outputs, which are there",
    ("Constant", "sparse_value"): NO_TENSOR,
    ("Constant", "value_string"): NO_TENSOR,
    ("Constant", "value_strings"): NO_TENSOR,
    ("TopK", "sorted"): "an order that no one may count on",
    ("Attention", "rotary_embedding_dim"): "with do_rotary, which is refused",
    ("GroupQueryAttention", "qk_norm_epsilon"): "with q_norm_weight, which is refused",
    ("GroupQueryAttention", "q_norm_epsilon"): "with q_norm_weight, which is refused",
    ("GroupQueryAttention", "k_norm_epsilon"): "with k_norm_weight, which is refused",
    ("GroupQueryAttention", "kv_cache_bit_width"): "with k_quant_type, which is refused",
    ("EmbedLayerNormalization", "mask_index_type"): "for shape inference, as its schema says",
    ("RotaryEmbedding", "scale"): "which ONNX Runtime's kernels do not read",
}
"""(operator, attribute) -> why its result does not depend on it. * is every operator."""

SWALLOWED = {
    "GRU": 6, "LSTM": 8, "RNN": 6, "Slice": 5, "Dropout": 3,
    "GroupQueryAttention": 17, "MoE": 8, "MultiHeadAttention": 10,
}  # fmt: skip
"""Operators whose functions take any number of operands -> how many they know, to read or to refuse."""


@cache
def schemas() -> dict[tuple[str, str], list[Any]]:
    """The registered operators' schemas: every version in force in an operator set that is read."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    versions: dict[str, dict[int, Any]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            versions.setdefault(schema.name, {})[schema.since_version] = schema
    found: dict[tuple[str, str], list[Any]] = {}
    for name, known in versions.items():
        first = max((v for v in known if v <= OPSETS[0]), default=OPSETS[0])
        found["", name] = [schema for v, schema in known.items() if first <= v <= OPSETS[-1] and not schema.deprecated]
    for schema in get_all_operator_schema():
        if schema.domain == "com.microsoft":
            found["com.microsoft", schema.name] = [schema]
    return {key: found[key] for key in sorted(ops.registered()) if found.get(key)}


def _functions(run: Any) -> Iterator[Any]:
    """A function and all of this project's that it may call."""
    seen: set[int] = set()
    stack = [run]
    while stack:
        found = stack.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, types.CodeType):
            yield found
            stack += [c for c in found.co_consts if isinstance(c, types.CodeType)]
        elif inspect.isfunction(found):
            stack += [cell.cell_contents for cell in found.__closure__ or ()]
            if found.__module__.startswith("onnxprune"):
                code, names = found.__code__, set()
                for inner in _codes(code):
                    names |= set(inner.co_names)
                stack += [code, *(found.__globals__[n] for n in names if n in found.__globals__)]
        elif inspect.isclass(found) and found.__module__.startswith("onnxprune"):
            stack += [v.fget if isinstance(v, property) else v for v in vars(found).values()]
        elif isinstance(found, dict | tuple | list | set | frozenset):
            yield found
            stack += found.values() if isinstance(found, dict) else found


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _codes(inner)


def _named(run: Any) -> set[str]:
    """Every string that the code behind an operator holds, but for what it says of itself."""
    found: set[str] = set()
    for part in _functions(run):
        if isinstance(part, types.CodeType):
            texts = [c for c in part.co_consts if not isinstance(c, types.CodeType)]
            flat = [t for c in texts for t in (c if isinstance(c, tuple | frozenset) else (c,))]
            found |= {t for t in flat if isinstance(t, str) and " " not in t}
        else:
            found |= {t for t in part if isinstance(t, str)}
    return found


def _told(key: tuple[str, str]) -> set[str]:
    return {name for schema in schemas()[key] for name in schema.attributes}


@pytest.mark.parametrize("key", schemas(), ids="::".join)
def test_attributes_are_read(key: tuple[str, str]) -> None:
    operator = ops.base._TABLE[key]
    named = _named(operator.run)
    parts = [part for part in PARTS if part in named]
    missing = {
        name
        for name in _told(key) - named
        if not any(name.startswith(part) for part in parts) and not {(key[1], name), ("*", name)} & set(CHANGES_NOTHING)
    }
    assert not missing


def test_what_is_listed_is_there_and_not_read() -> None:
    for op_type, name in CHANGES_NOTHING:
        keys = [key for key in schemas() if op_type in (key[1], "*") and name in _told(key)]
        assert keys, f"{op_type} has no {name}"
        assert any(name not in _named(ops.base._TABLE[key].run) for key in keys), f"{op_type} reads {name}"


@pytest.mark.parametrize("key", schemas(), ids="::".join)
def test_inputs_are_taken(key: tuple[str, str]) -> None:
    """An operand more than a function takes is a TypeError, which is told; one that `*rest` swallows is not."""
    operator = ops.base._TABLE[key]
    if isinstance(operator.run, str):
        return  # torch's own function: element by element, or a product of two
    parameters = list(inspect.signature(operator.run).parameters.values())
    many = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    known = SWALLOWED.get(key[1]) if many else len(parameters) - 2
    for schema in schemas()[key]:
        variadic = any("Variadic" in str(getattr(given, "option", "")) for given in schema.inputs)
        assert variadic or (known is not None and len(schema.inputs) <= known)
