"""Text, token and question rows as token ids, through the model's own tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.labels import IGNORED, class_ids
from onnxprune.data.model_info import Job, Pairs, Part
from onnxprune.data.optional_packages import package
from onnxprune.data.sources import Row, parsed
from onnxprune.data.tokenizer import Tokenizer, load_tokenizer
from onnxprune.errors import DataError, OnnxPruneError

ENCODER_OUTPUTS = (
    *("sentence_embedding", "sentence_embeddings", "token_embeddings", "text_embeds"),
    *("embeddings", "embedding", "pooler_output"),
)
ENCODER_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")


def encode_text(rows: Sequence[Row], job: Job) -> list[list[Part]]:
    """{"text", "text_pair"?}: one part a row, or two where a pair is two separate inputs."""
    tokenizer = _tokenizer(job)
    pairs = [(_text(row, "text"), _text(row, "text_pair", optional=True)) for row in rows]
    separate = any(second for _, second in pairs) and _how(job) == "separate"
    texts: list[Any] = []
    owners: list[Row] = []
    for row, (first, second) in zip(rows, pairs, strict=True):
        own = [first] if not second else [first, second] if separate else [(first, second)]
        texts += own
        owners += [row] * len(own)
    encoded = iter(_encoded(tokenizer, texts, owners, job))
    return [
        [_part(next(encoded), tokenizer, row, job) for _ in range(2 if separate and second else 1)]
        for row, (_, second) in zip(rows, pairs, strict=True)
    ]


def encode_tokens(rows: Sequence[Row], job: Job) -> list[list[Part]]:
    """{"tokens", "labels"?}: words already split; a label goes to the first sub-token of its word."""
    tokenizer = _tokenizer(job, "token rows")
    _separate_words(tokenizer)
    words = [_words(row) for row in rows]
    encoded = _encoded(tokenizer, words, rows, job, words=True)
    labels = _word_labels(rows, words, job)
    parts = []
    for row, own, encoding, numbers in zip(rows, words, encoded, labels, strict=True):
        part = _part(encoding, tokenizer, row, job)
        part = replace(part, pieces=_pieces(part, tokenizer, encoding, own, words=True))
        if numbers is None:
            parts.append([part])
            continue
        aligned = np.full(len(encoding.ids), IGNORED, np.int64)
        for position, (word, before) in enumerate(zip(encoding.word_ids, [None, *encoding.word_ids], strict=False)):
            if word is not None and word != before:
                aligned[position] = numbers[word]
        parts.append([replace(part, label=_padded(aligned, tokenizer, job, IGNORED))])
    return parts


def encode_questions(rows: Sequence[Row], job: Job) -> list[list[Part]]:
    """{"question", "context", "answers"?}: one joint sequence, the context cut; answers as token spans."""
    tokenizer = _tokenizer(job, "question rows")
    texts = [(_text(row, "question").strip(), _text(row, "context")) for row in rows]
    encoded = _encoded(tokenizer, texts, rows, job, strategy="only_second")
    parts, lost = [], 0
    for row, (question, context), encoding in zip(rows, texts, encoded, strict=True):
        part = _part(encoding, tokenizer, row, job)
        part = replace(part, pieces=_pieces(part, tokenizer, encoding, (question, context), words=False))
        answers = _answers(row, context)
        if answers is None:
            parts.append([part])
            continue
        spans = [span for answer in answers if (span := _span(encoding, *answer, context)) is not None]
        lost += bool(answers) and not spans
        offset = _offset(part, encoding, tokenizer)
        # No answer is the first token, as SQuAD 2.0 models are trained to say it.
        label = np.asarray(spans or [(0, 0)], np.int64) + offset
        parts.append([replace(part, label=label)])
    if lost:
        job.say(
            f"answers: {lost} of {len(rows)} rows lose theirs where the context is cut; the first token stands for none"
        )
    return parts


def _tokenizer(job: Job, only_fast: str = "") -> Tokenizer:
    length = job.graph.by_role["input_ids"].shape[1:2]
    fixed = length[0] if length and isinstance(length[0], int) else None
    tokenizer = load_tokenizer(job, fixed=fixed)
    if only_fast and not tokenizer.fast:
        raise DataError(
            f"{only_fast} need a tokenizer.json, and this tokenizer has no fast form: give rows of token ids"
        )
    if fixed is not None:
        if tokenizer.pad_id is None:
            raise DataError(
                f"the graph fixes its sequence at {fixed} tokens and no padding token is known: set pad_token in "
                "tokenizer_config.json, or export with a dynamic sequence axis"
            )
        seen = (
            ""
            if "attention_mask" in job.graph.by_role
            else "; the graph takes no attention_mask, so it reads the padding"
        )
        job.say(f"padding: to the {fixed} tokens that the graph fixes, on the {tokenizer.side}{seen}")
    return tokenizer


def _encoded(tokenizer: Tokenizer, texts: list[Any], rows: Sequence[Row], job: Job, **options: Any) -> list[Any]:
    try:
        encoded = tokenizer.encode(texts, **options)
    except OnnxPruneError:
        raise
    except Exception as error:  # the library raises bare Exception and does not say for which text
        for text, row in zip(texts, rows, strict=True):
            try:
                tokenizer.encode([text], **options)
            except Exception as own:
                raise DataError(f"{row.source}: cannot be tokenised: {own}: shorten or leave out the row") from own
        raise DataError(f"the rows cannot be tokenised: {error}") from error
    if cut := sum(bool(encoding.overflowing) for encoding in encoded):
        job.say(f"length: {cut} of {len(encoded)} texts were longer and are cut at the {tokenizer.cut} end")
    return encoded


def _part(encoding: Any, tokenizer: Tokenizer, row: Row, job: Job) -> Part:
    """The feeds that the graph wants of what a tokenizer gives."""
    if not encoding.ids:
        raise DataError(f"{row.source}: the text gives no tokens: leave the row out")
    ids = np.asarray(encoding.ids)
    columns = {
        "input_ids": (ids, tokenizer.pad_id),
        "attention_mask": (np.ones_like(ids), 0),
        "token_type_ids": (np.asarray(encoding.type_ids), 0),
    }
    feeds = {}
    for name, (column, padding) in columns.items():
        if (spec := job.graph.by_role.get(name)) is not None:
            feeds[spec.name] = _padded(column, tokenizer, job, padding)[None].astype(spec.dtype)
    real = _padded(np.ones(len(ids), bool), tokenizer, job, False)[None]
    return Part(feeds, None, None if real.all() else real)


def _padded(column: NDArray[Any], tokenizer: Tokenizer, job: Job, value: Any) -> NDArray[Any]:
    """A column at the length that the graph fixes; as it is where the graph fixes none."""
    length = job.graph.by_role["input_ids"].shape[1]
    if not isinstance(length, int) or len(column) >= length:
        return column
    padding = np.full(length - len(column), value, column.dtype)
    return np.concatenate([padding, column] if tokenizer.side == "left" else [column, padding])


def _offset(part: Part, encoding: Any, tokenizer: Tokenizer) -> int:
    """How many padding tokens stand before the row."""
    return 0 if part.real is None or tokenizer.side != "left" else part.real.shape[1] - len(encoding.ids)


def _pieces(part: Part, tokenizer: Tokenizer, encoding: Any, texts: Sequence[str], *, words: bool) -> tuple[str, ...]:
    """The text of every token of `part`, with the space before it.

    Args:
        texts: what the encoding's offsets count in: words that came split, or the texts that were joined.
        words: which of the two.
    """
    told, ends = [], dict[int, int]()
    for owner, (start, end) in zip(
        encoding.word_ids if words else encoding.sequence_ids, encoding.offsets, strict=True
    ):
        if owner is None:  # the tokenizer's own
            told.append("")
            continue
        space = " " if words and owner not in ends else ""
        told.append(sys.intern(space + texts[owner][min(ends.get(owner, 0), start) : end]))
        ends[owner] = end
    missing = 0 if part.real is None else part.real.shape[1] - len(told)
    return (*[""] * missing, *told) if tokenizer.side == "left" else (*told, *[""] * missing)


def _text(row: Row, field: str, *, optional: bool = False) -> str:
    if optional and row.fields.get(field) is None:
        return ""
    value = row.need(field)
    if not isinstance(value, str):
        raise DataError(f"{row.source}: field {field!r} must be text, not {type(value).__name__}")
    return value


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else parsed(value)


def _words(row: Row) -> list[str]:
    words = _listed(row.need("tokens"))
    if not isinstance(words, list | tuple) or not words or not all(isinstance(word, str) for word in words):
        raise DataError(f"{row.source}: field 'tokens' must be a list of words, not {words!r:.60}")
    return list(words)


def _word_labels(rows: Sequence[Row], words: Sequence[Sequence[str]], job: Job) -> list[list[int] | None]:
    """One number a word, for the rows that have labels; names through config.json."""
    raw = [_listed(row.fields.get("labels", row.fields.get("label"))) for row in rows]
    for row, labels, own in zip(rows, raw, words, strict=True):
        if labels is not None and (not isinstance(labels, list | tuple) or len(labels) != len(own)):
            count = len(labels) if isinstance(labels, list | tuple) else repr(labels)
            raise DataError(
                f"{row.source}: field 'labels' must hold one label for each of the {len(own)} tokens, not {count}"
            )
    names = sorted({label for labels in raw for label in labels or () if isinstance(label, str)})
    ids = class_ids(names, job) if names else []
    if ids is None:
        job.say(f"labels: ignored, label2id of config.json does not know all of {', '.join(names[:8])}")
        return [None] * len(rows)
    table: dict[Any, int] = dict(zip(names, ids, strict=True))
    try:
        return [None if ls is None else [table[x] if isinstance(x, str) else int(x) for x in ls] for ls in raw]
    except (TypeError, ValueError) as error:
        raise DataError(f"{rows[0].source} and after: token labels must be numbers or names: {error}") from error


def _separate_words(tokenizer: Tokenizer) -> None:
    """Byte-level BPE marks the start of a word by its space; words that come split have lost theirs."""
    byte_level = package("tokenizers.pre_tokenizers", "text rows are read").ByteLevel
    if isinstance(tokenizer.backend.pre_tokenizer, byte_level):
        tokenizer.backend.pre_tokenizer = byte_level(add_prefix_space=True)


def _answers(row: Row, context: str) -> list[tuple[int, int]] | None:
    """Answers as character spans, from SQuAD's {"text": [...], "answer_start": [...]}, a list of such, or of texts."""
    value = parsed(row.fields.get("answers"))
    if value is None:
        return None
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        texts = [texts] if isinstance(texts, str) else texts
        starts = [starts] if isinstance(starts, int) else starts
        if not isinstance(texts, list) or (starts is not None and len(starts) != len(texts)):
            raise DataError(
                f'{row.source}: field \'answers\' must be {{"text": [...], "answer_start": [...]}} of equal lengths'
            )
        value = [{"text": t, "answer_start": s} for t, s in zip(texts, starts or [None] * len(texts), strict=True)]
    spans = []
    for answer in [value] if isinstance(value, str) else value:
        text = answer.get("text") if isinstance(answer, dict) else answer
        start = answer.get("answer_start") if isinstance(answer, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                f"{row.source}: field 'answers' holds {answer!r:.60}: every answer is a text of the context"
            )
        start = context.find(text) if start is None else int(start)
        if context[start : start + len(text)] != text:
            raise DataError(
                f"{row.source}: the answer {text!r:.60} does not stand in the context at {start}: mend answer_start"
            )
        spans.append((start, start + len(text)))
    return spans


def _span(encoding: Any, start: int, end: int, context: str) -> tuple[int, int] | None:
    """First and last token of a character span of the second sequence, or None where it was cut off."""
    while start < end and context[start].isspace():
        start += 1
    while end > start and context[end - 1].isspace():
        end -= 1
    first, last = encoding.char_to_token(start, 1), encoding.char_to_token(end - 1, 1)
    return None if first is None or last is None else (int(first), int(last))


def _how(job: Job) -> Pairs:
    """Whether a text pair is one joint sequence or two inputs: as asked, or guessed and said."""
    if job.pairs is not None:
        job.say(f"pairs: {job.pairs} (as asked)")
        return job.pairs
    how, reason = _guess(job)
    job.say(f"pairs: {how} ({reason}; --pairs {'separate' if how == 'joint' else 'joint'} for the other way)")
    return how


def _guess(job: Job) -> tuple[Pairs, str]:
    outputs = job.graph.outputs
    types = "token_type_ids" in job.graph.by_role
    if any("logits" in name for name in outputs):
        return "joint", f"graph {'takes token_type_ids and ' if types else ''}ends in logits"
    if found := next((name for name in ENCODER_OUTPUTS if name in outputs), None):
        return "separate", f"graph gives {found}"
    if found := next((name for name in ENCODER_FILES if job.files.find(name) is not None), None):
        return "separate", f"{found} is beside the model"
    named = job.files.json("config.json").get("architectures")
    for architecture in named if isinstance(named, list) else ():
        if "For" in str(architecture):
            return "joint", f"config.json says {architecture}"
        return "separate", f"config.json says {architecture}, an encoder without a head"
    if "last_hidden_state" in outputs:
        return "separate", "graph gives last_hidden_state and no logits"
    return ("joint", "graph takes token_type_ids") if types else ("separate", "graph takes no token_type_ids")
