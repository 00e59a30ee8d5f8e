"""What a decoder is to say, as the tokens that it reads: the field "target" beside text, audio or an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.data.model_info import Graph, Job, Part, Spec
from onnxprune.data.sources import Row
from onnxprune.data.tokenizer import load_tokenizer
from onnxprune.errors import DataError

NEXT = "next_input_ids"
"""The tokens that a graph behind a cache takes."""


def decoder_ids(graph: Graph) -> Spec | None:
    """The input that a target feeds."""
    return graph.by_role.get("decoder_input_ids")


def encode_targets(rows: Sequence[Row], job: Job) -> list[list[Part]]:
    """A target's tokens behind the start token, but for the last: it is what is to be said behind all others.

    Where a graph goes on behind the cache, the last but one is what it reads.
    """
    spec, further = decoder_ids(job.graph), job.graph.by_role.get(NEXT)
    assert spec is not None
    start = job.files.setting("decoder_start_token_id", "bos_token_id")
    if start is None:
        raise DataError(
            f"{rows[0].source}: field 'target' begins with the decoder's start token, and neither config.json nor "
            "generation_config.json has decoder_start_token_id: add it there, or give decoder_input_ids"
        )
    tokenizer = load_tokenizer(job, fixed=spec.shape[1] if isinstance(spec.shape[1], int) else None)
    texts = [row.need("target") for row in rows]
    for row, text in zip(rows, texts, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{row.source}: field 'target' must be text, not {text!r:.60}")
    parts = []
    for row, encoding in zip(rows, tokenizer.encode(texts), strict=True):
        ids = [int(start), *encoding.ids]
        ids = ids[1:] if ids[:1] == ids[1:2] else ids  # a tokenizer that begins with it, too
        if len(ids) < (3 if further is not None else 2):
            raise DataError(f"{row.source}: field 'target' gives too few tokens: leave the row out")
        read = ids[:-1]
        feeds = {}
        if further is not None:
            feeds[further.name] = np.asarray([read[-1:]]).astype(further.dtype)
            read = read[:-1]
        feeds[spec.name] = np.asarray([read]).astype(spec.dtype)
        parts.append([Part(feeds)])
    return parts
