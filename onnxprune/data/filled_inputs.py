"""Inputs that no row holds because only the graph wants them: one entry a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.model_info import Graph, Job, Spec, describe, role
from onnxprune.errors import DataError

Array = NDArray[Any]
Maker = Callable[[Spec, Mapping[str, Array], Job], Array]
"""(the input, the row's feeds by role so far, the job) -> its value with a leading batch axis of 1."""


def _length(feeds: Mapping[str, Array], *roles: str) -> int:
    found = next((feeds[name] for name in roles if name in feeds and feeds[name].ndim > 1), None)
    if found is None:
        raise LookupError(f"its length is that of {' or '.join(roles)}")
    return int(found.shape[1])


SEQUENCE = ("input_ids", "inputs_embeds", "input_values", "attention_mask")
DECODER = ("decoder_input_ids", "decoder_inputs_embeds")


def _ones(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    return np.ones((1, _length(feeds, *SEQUENCE)))


def _zeros(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    return np.zeros((1, _length(feeds, *SEQUENCE)))


def _positions(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    return np.arange(_length(feeds, *SEQUENCE, *DECODER))[None]


def _cache_position(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    return np.arange(_length(feeds, *SEQUENCE, *DECODER))


def _decoder_start(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    start = job.files.setting("decoder_start_token_id", "bos_token_id")
    if start is None:
        raise LookupError("config.json has no decoder_start_token_id")
    length = spec.shape[1]
    if isinstance(length, int) and length != 1:
        raise LookupError(f"the graph fixes it at {length} tokens")
    return np.full((1, 1), int(start))


def _decoder_ones(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    return np.ones((1, _length(feeds, *DECODER)))


def _encoder_ones(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    return np.ones((1, _length(feeds, "encoder_hidden_states", *SEQUENCE)))


def _last_token(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    """What goes on behind a cache: the last token before it, once more."""
    found = next((feeds[name] for name in ("decoder_input_ids", "input_ids") if name in feeds), None)
    if found is None:
        raise LookupError("it goes on behind decoder_input_ids")
    return found[:, -1:]


def _behind(feeds: Mapping[str, Array]) -> int:
    """Tokens in the cache that a graph goes on behind."""
    return _length(feeds, *DECODER, *SEQUENCE)


def _next_ones(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    return np.ones((1, _behind(feeds) + 1))


def _next_position(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    return np.full([1] * len(spec.shape), _behind(feeds))


def _first_global(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    """Longformer: the classification token attends to all."""
    mask = np.zeros((1, _length(feeds, *SEQUENCE)))
    mask[0, 0] = 1
    return mask


def _image_ones(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    if "pixel_values" not in feeds:
        raise LookupError("its size is that of pixel_values")
    fixed = [dim if isinstance(dim, int) else None for dim in spec.shape[-2:]]
    own = feeds["pixel_values"].shape[-2:]
    return np.ones((1, *(dim if dim is not None else size for dim, size in zip(fixed, own, strict=True))))


def _empty_cache(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    """(1, key/value heads, 0, head size): no token has been read yet."""
    dims: list[int | str | None] = [1, *spec.shape[1:]]
    if len(dims) != 4:
        raise LookupError("a cache of rank 4 can be made empty")
    heads = job.files.setting(
        "num_key_value_heads", "num_attention_heads", "n_head", "decoder_attention_heads", "num_heads"
    )
    if not isinstance(dims[1], int):
        dims[1] = heads
    if not isinstance(dims[3], int):
        width = job.files.setting("hidden_size", "n_embd", "d_model")
        queries = job.files.setting("num_attention_heads", "n_head", "decoder_attention_heads", "num_heads")
        dims[3] = job.files.setting("head_dim", "d_kv") or (width // queries if width and queries else None)
    if isinstance(dims[2], int) and dims[2] > 0:
        raise LookupError(f"the graph fixes its cache at {dims[2]} tokens")
    dims[2] = 0
    if not all(isinstance(dim, int) for dim in dims):
        raise LookupError("config.json does not say its heads and their size")
    return np.zeros([dim for dim in dims if isinstance(dim, int)])


def _no_cache(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    return np.zeros([dim if isinstance(dim, int) else 1 for dim in spec.shape])


RATE = 16000
"""Samples a second of practically every speech model."""
RATES = "sr"
STATES = ("state", "states", "state_in", "in_state", "h", "c", "h0", "c0", "h_0", "c_0", "hx", "cx", "init_state")


def _rate(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    rate = job.files.json("preprocessor_config.json").get("sampling_rate") or RATE
    return np.full([1] * len(spec.shape), rate)


def _no_state(spec: Spec, feeds: Mapping[str, Array], job: Job) -> Array:
    """A recurrence before its first step: zeros, of sizes that the graph fixes."""
    own = None if spec.name in job.graph.shared else job.graph.row_axis(spec.name)
    sizes = [1 if axis == own else job.shape.get(str(dim), dim) for axis, dim in enumerate(spec.shape)]
    if not all(isinstance(size, int) for size in sizes):
        raise LookupError(f"the graph does not fix its sizes: state them with --shape, as {spec.shape} names them")
    return np.zeros([size for size in sizes if isinstance(size, int)])


MAKERS: dict[str, Maker] = {
    "decoder_input_ids": _decoder_start,
    "attention_mask": _ones,
    "token_type_ids": _zeros,
    "position_ids": _positions,
    "cache_position": _cache_position,
    "global_attention_mask": _first_global,
    "decoder_attention_mask": _decoder_ones,
    "encoder_attention_mask": _encoder_ones,
    "pixel_mask": _image_ones,
    "past_key_values.*": _empty_cache,
    "past_key_values_*": _empty_cache,
    "use_cache_branch": _no_cache,
    "next_input_ids": _last_token,
    "next_attention_mask": _next_ones,
    "next_position_ids": _next_position,
    "next_cache_position": _next_position,
    "num_logits_to_keep": _no_cache,  # 0 keeps the logits of all tokens
    RATES: _rate,
    **dict.fromkeys(STATES, _no_state),
}


@cache
def maker_of(name: str) -> str | None:
    """The table's entry for an input name, or None."""
    return next((pattern for pattern in MAKERS if fnmatchcase(role(name), pattern)), None)


def make_missing(feeds: Mapping[str, Array], where: str, job: Job) -> dict[str, Array]:
    """All feeds of a row, in the graph's order; what the row does not give is made.

    Raises:
        DataError: an input is neither given nor in the table, or cannot be made of what is there.
    """
    graph: Graph = job.graph
    missing = [spec for spec in graph.inputs if spec.name not in feeds]
    by_role = {role(name): array for name, array in feeds.items()}
    for spec in missing:
        if maker_of(spec.name) is None:
            raise DataError(
                f"{where}: the graph also takes {describe(spec)}, which cannot be made of the row: add a field "
                f"{spec.name!r}"
            )
    made = dict(feeds)
    for pattern, maker in MAKERS.items():  # in the table's order: later ones may read earlier ones
        for spec in (spec for spec in missing if maker_of(spec.name) == pattern):
            try:
                value = maker(spec, by_role, job).astype(spec.dtype)
            except LookupError as reason:
                raise DataError(
                    f"{where}: the graph also takes {describe(spec)}, which cannot be made: {reason.args[0]}: add a "
                    f"field {spec.name!r}"
                ) from reason
            made[spec.name] = by_role[role(spec.name)] = value
    if missing:
        patterns = dict.fromkeys(str(maker_of(spec.name)) for spec in missing)
        job.say(f"made by the reader: {', '.join(patterns)}")
    return {spec.name: made[spec.name] for spec in graph.inputs}
