"""The download: an embedding table and its tokenizer without the tokens that are not needed, together.

Exact for every text whose tokens are all kept: it is split into the same pieces, which look up the same rows.

- WordPiece takes the longest piece that it knows; pieces that go were not it.
- BPE merges by rank; of every kept token all merges that build it stay, in their order, and no other merge of a text
  whose tokens are kept was ever applied.
- Unigram takes the best-scoring split; it is still there, and no new one is. The lowest score stays, because the
  penalty of an unknown letter is counted from it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data.tokenizer import opened
from onnxprune.data.tokenizer_limits import encoded
from onnxprune.documents import read_object, read_text, utf8
from onnxprune.errors import DataError, UnsupportedError, reading
from onnxprune.graph.companions import copy_companions
from onnxprune.graph.model import Model
from onnxprune.graph.quantised import Quantised
from onnxprune.graph.values import constant

_HELD_OUT = 10
"""Every tenth line is left out once, to tell what share of lines that were not seen is covered."""
_CONFIGS = ("config.json", "generation_config.json")


def trim(model: Model, folder: Path, texts: Path, target: Path) -> tuple[Model, dict[str, Any]]:
    """A model and a tokenizer with the tokens that a corpus uses.

    Args:
        model: with one table that `input_ids` look up.
        folder: with its tokenizer.json.
        texts: a text file, one text a line.
        target: a folder for the new tokenizer and configuration.

    Returns:
        The model, and what was done in numbers: `tokens`, `kept`, `covered` (share of the corpus's tokens),
        `covered_unseen` (of lines that were left out of the count), `lines`, `bytes_saved`.

    Raises:
        DataError: no tokenizer.json, or an empty corpus.
        UnsupportedError: ids are used in another way than to look up rows, the vocabulary is also an output, or the
            tokenizer is of a kind whose exactness is not known.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise DataError(f"{folder}: no tokenizer.json, without which the vocabulary cannot be trimmed")
    told = read_object(file, "a tokenizer.json", DataError)
    lines = [line for line in read_text(texts, DataError).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{texts}: holds no lines of text")
    with reading(f"{file}: not a tokenizer.json (copy it again from the model)", DataError):
        return _trimmed(model, told, file, lines, target)


def _trimmed(
    model: Model, told: dict[str, Any], file: Path, lines: list[str], target: Path
) -> tuple[Model, dict[str, Any]]:
    folder = file.parent
    counts = _counts(file, lines)
    table, size = _table(model)
    assert table.const_value is not None
    kept = _closure(told, set(sum(counts, Counter())))
    renumbered = _renumber(told, kept, size)
    smaller = cut(model, renumbered)
    copy_companions(folder, target)
    _write(told, renumbered, target)
    before, after = size, len(renumbered)
    total = sum(counts, Counter())
    return smaller, {
        "tokens": before,
        "kept": after,
        "lines": len(lines),
        "covered": _share(total, renumbered),
        "covered_unseen": _unseen(told, counts),
        "bytes_saved": (before - after) * (table.const_value.nbytes // size),
    }


def _counts(file: Path, lines: list[str]) -> list[Counter[int]]:
    """How often each line uses each token."""
    tokenizer = opened(file, "the vocabulary is trimmed")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [Counter(encoding.ids) for encoding in encoded(lambda: tokenizer.encode_batch(lines), lines)]


def _share(counts: Mapping[int, int], kept: Collection[int]) -> float:
    total = sum(counts.values())
    return sum(count for token, count in counts.items() if token in kept) / max(total, 1)


def _unseen(told: Mapping[str, Any], counts: list[Counter[int]]) -> float:
    """The share of held-out tokens that the other lines' tokens cover."""
    held = sum(counts[::_HELD_OUT], Counter[int]())
    seen = sum((c for i, c in enumerate(counts) if i % _HELD_OUT), Counter[int]())
    return _share(held, _closure(told, set(seen)))


# ---- which tokens stay


def _closure(told: Mapping[str, Any], used: set[int]) -> set[int]:
    """What is used, what is special, the alphabet, and what those are built from."""
    kind = told["model"]["type"]
    rule = _RULES.get(kind)
    if rule is None or told["model"].get("byte_fallback"):
        raise UnsupportedError(f"a {kind} tokenizer cannot be trimmed; WordPiece, BPE and Unigram can")
    special = {token["id"] for token in told.get("added_tokens") or ()}
    return rule(told["model"], used) | special


def _word_piece(told: Mapping[str, Any], used: set[int]) -> set[int]:
    """The alphabet is ASCII and the letters of what is kept, alone and inside a word."""
    prefix = told.get("continuing_subword_prefix") or "##"
    alphabet = set("".join(token.removeprefix(prefix) for token, i in told["vocab"].items() if i in used))
    letters = {
        i
        for token, i in told["vocab"].items()
        if len(piece := token.removeprefix(prefix)) == 1 and (piece.isascii() or piece in alphabet)
    }
    return used | letters | {told["vocab"][told["unk_token"]]}


def _bpe(told: Mapping[str, Any], used: set[int]) -> set[int]:
    vocab = told["vocab"]
    ranks = {pair: rank for rank, pair in enumerate(_merges(told))}
    made = {left + right for left, right in ranks}
    kept = set(used) | {i for token, i in vocab.items() if token not in made}
    names = {i: token for token, i in vocab.items()}
    todo = [names[i] for i in kept if i in names]
    while todo:
        for part in _pieces(todo.pop(), ranks):
            if part in vocab and vocab[part] not in kept:
                kept.add(vocab[part])
                todo.append(part)
    return kept


def _merges(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (m.split(" ", 1) if isinstance(m, str) else m for m in told["merges"])
    return [(left, right) for left, right in pairs]


def _pieces(token: str, ranks: Mapping[tuple[str, str], int]) -> Iterable[str]:
    """Everything that merging the token's own letters makes on the way."""
    current = list(token)
    while len(current) > 1:
        ranked = [(ranks[pair], i) for i, pair in enumerate(pairwise(current)) if pair in ranks]
        if not ranked:
            break
        _, at = min(ranked)
        current[at : at + 2] = [current[at] + current[at + 1]]
        yield current[at]


def _unigram(told: Mapping[str, Any], used: set[int]) -> set[int]:
    pieces = told["vocab"]
    letters = {i for i, (piece, _) in enumerate(pieces) if len(piece) == 1}
    lowest = min(range(len(pieces)), key=lambda i: pieces[i][1])
    unknown = {told["unk_id"]} if told.get("unk_id") is not None else set()
    return used | letters | {lowest} | unknown


_RULES: dict[str, Callable[[Mapping[str, Any], set[int]], set[int]]] = {
    "WordPiece": _word_piece,
    "BPE": _bpe,
    "Unigram": _unigram,
}


def _renumber(told: Mapping[str, Any], kept: set[int], size: int) -> dict[int, int]:
    """Old id -> new id. Special tokens keep theirs where they fit: graphs know the padding token's by heart."""
    kept = {i for i in kept if i < size}
    special = {token["id"] for token in told.get("added_tokens") or ()} & kept
    fixed = {i for i in special if i < len(kept)}
    free = (i for i in range(len(kept)) if i not in fixed)
    new = {i: i for i in fixed} | {i: next(free) for i in sorted(kept - fixed)}
    return dict(sorted(new.items(), key=lambda item: item[1]))


# ---- the graph


def _table(model: Model) -> tuple[ir.Value, int]:
    """The embedding table of `input_ids`, and its rows.

    Raises:
        UnsupportedError: see `trim`.
    """
    ids = next((v for v in model.graph.inputs if v.name == "input_ids"), None)
    if ids is None:
        raise UnsupportedError("the graph takes no input_ids: there is no vocabulary to trim")
    tables: list[ir.Value] = []
    for node, index in ids.uses():
        table = node.inputs[0]
        if node.op_type == "Gather" and index == 1 and table is not None and table.const_value is not None:
            tables.append(table)
        elif node.op_type != "Shape":
            raise UnsupportedError(
                f"node {node.name} ({node.op_type}) reads input_ids themselves: it may know ids by heart, which "
                "trimming would change"
            )
    if len({id(t) for t in tables}) != 1:
        raise UnsupportedError("input_ids look up no table, or several: the vocabulary cannot be trimmed")
    table = tables[0]
    if any(node.op_type != "Gather" for node, _ in table.uses()):
        raise UnsupportedError(
            "the embedding table also gives the scores of the output (a language model): trimming it would change those"
        )
    assert table.const_value is not None
    return table, int(table.const_value.shape.numpy()[0])


def cut(model: Model, renumbered: Mapping[int, int]) -> Model:
    """A model whose table has some rows only, in their order. renumbered: old id -> new id."""
    copy = model.clone()
    table, _ = _table(copy)
    assert table.const_value is not None
    rows, name = np.asarray(list(renumbered)), table.name or "embeddings"
    if isinstance(table.const_value, Quantised):
        table.const_value = table.const_value.take([(rows, 0)], name)
        table.shape = ir.Shape(table.const_value.shape.numpy())
        return copy
    smaller = constant(copy.normal, np.ascontiguousarray(table.const_value.numpy()[rows]), name)
    for node, index in list(table.uses()):
        node.replace_input_with(index, smaller)
    del copy.graph.initializers[table.name or ""]
    return copy


# ---- the files


def _write(told: dict[str, Any], renumbered: Mapping[int, int], folder: Path) -> None:
    """tokenizer.json and what repeats its ids."""
    model = told["model"]
    names = _names(model)
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][old] for old in renumbered]
        if model.get("unk_id") is not None:
            model["unk_id"] = renumbered[model["unk_id"]]
    else:
        model["vocab"] = {token: renumbered[i] for token, i in model["vocab"].items() if i in renumbered}
        model["vocab"] = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    if model["type"] == "BPE":
        known = set(model["vocab"])
        model["merges"] = [[a, b] for a, b in _merges(model) if {a, b, a + b} <= known]
    for token in told.get("added_tokens") or ():
        names.setdefault(token["id"], token["content"])
        token["id"] = renumbered.get(token["id"], token["id"])
    _processor(told.get("post_processor"), renumbered)
    if (told.get("padding") or {}).get("pad_id") is not None:
        told["padding"]["pad_id"] = renumbered.get(told["padding"]["pad_id"], told["padding"]["pad_id"])
    _dump(folder / "tokenizer.json", told)
    _settings(folder, renumbered)
    if (folder / "vocab.txt").is_file():
        text = "".join(names[old] + "\n" for old in renumbered)
        (folder / "vocab.txt").write_text(utf8(text), encoding="utf-8")
    for stale in ("vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "added_tokens.json"):
        (folder / stale).unlink(missing_ok=True)  # they would still say the old ids


def _names(model: Mapping[str, Any]) -> dict[int, str]:
    if model["type"] == "Unigram":
        return {i: piece for i, (piece, _) in enumerate(model["vocab"])}
    return {i: token for token, i in model["vocab"].items()}


def _processor(told: Any, renumbered: Mapping[int, int]) -> None:
    """Ids in the post-processor, wherever it holds them."""
    if not isinstance(told, dict):
        return
    for part in told.get("processors") or ():
        _processor(part, renumbered)
    for special in (told.get("special_tokens") or {}).values():
        special["ids"] = [renumbered[i] for i in special["ids"]]
    for name in ("cls", "sep"):
        if isinstance(told.get(name), list):
            told[name][1] = renumbered[told[name][1]]


def _settings(folder: Path, renumbered: Mapping[int, int]) -> None:
    """Every `…_token_id` and the vocabulary's size, in the configuration files."""
    for name in _CONFIGS:
        file = folder / name
        if not file.is_file():
            continue
        told = read_object(file, "a file of the model (copy it again)", DataError)
        for key, value in told.items():
            if key.endswith("_token_id") and isinstance(value, int):
                told[key] = renumbered.get(value, value)
        if "vocab_size" in told:
            told["vocab_size"] = len(renumbered)
        _dump(file, told)
    file = folder / "tokenizer_config.json"
    if file.is_file():
        told = read_object(file, "a file of the model (copy it again)", DataError)
        added = told.get("added_tokens_decoder") or {}
        if added:
            told["added_tokens_decoder"] = {
                str(renumbered[int(i)]): t for i, t in added.items() if int(i) in renumbered
            }
        _dump(file, told)


def _dump(file: Path, told: Any) -> None:
    file.write_text(utf8(json.dumps(told, indent=1, ensure_ascii=False)) + "\n", encoding="utf-8")
