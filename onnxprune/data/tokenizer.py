"""The model's own tokenizer, without padding and cut at the model's length."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.data import tokenizer_limits
from onnxprune.data.model_info import Files, Job
from onnxprune.data.optional_packages import package
from onnxprune.documents import regular
from onnxprune.errors import DataError, OnnxPruneError, UsageError, panicked, said

SLOW_FILES = (
    *("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
    *("spm.model", "source.spm", "bpe.codes"),
)
# Their positions start at pad_token_id + 1, as fairseq counted them: two of 514 are never used.
OFFSET_POSITIONS = (
    *("camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta"),
    *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)
UNBOUNDED = 10**9  # transformers writes 1e30 where no limit is known
LONG = 100
"""Characters (or words) for each token that may stay: of what is longer, only as much is tokenised as can stay."""


@dataclass(frozen=True)
class Encoded:
    """What a slow tokenizer gives, under the names of a `tokenizers.Encoding`."""

    ids: list[int]
    type_ids: list[int]
    overflowing: tuple[Any, ...] = ()


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer and the limits it works under.

    Attributes:
        backend: a `tokenizers.Tokenizer`, or a transformers tokenizer that has no fast form.
        max_length: the most tokens of a row, or None where nothing limits them.
        side: "left" or "right": where a graph of fixed length is padded.
        cut: "left" or "right": which end a row that is too long loses.
    """

    backend: Any
    max_length: int | None
    side: str
    cut: str
    pad_id: int | None
    files: Files

    @property
    def fast(self) -> bool:
        return hasattr(self.backend, "encode_batch")

    def encode(self, texts: Sequence[Any], *, words: bool = False, strategy: str = "longest_first") -> list[Any]:
        """Encodings (ids, type_ids, overflowing) of texts, of (text, text) pairs, or of lists of words."""
        most = None if self.max_length is None else 2 * LONG * self.max_length
        pace = tokenizer_limits.PACE if self.fast else tokenizer_limits.SLOW_PACE
        return tokenizer_limits.encoded(lambda: self._encode(texts, words, strategy), texts, most, pace)

    def _encode(self, texts: Sequence[Any], words: bool, strategy: str) -> list[Any]:
        if not self.fast:
            return [self._slow(text) for text in texts]
        self.backend.no_padding()
        self.backend.no_truncation()
        if self.max_length is not None:
            if self.cut == "right":  # cut at the left, where words and answers begin would be counted anew
                texts = [self._bounded(text, words) for text in texts]
            self.backend.enable_truncation(self.max_length, strategy=strategy, direction=self.cut)
        encoded: list[Any] = self.backend.encode_batch(list(texts), is_pretokenized=words)
        return encoded

    def _bounded(self, text: Any, words: bool) -> Any:
        """A text, a pair of them or a list of words, as far as what is beyond cannot matter.

        A text of ten megabytes would take seconds, and gigabytes, of which a few hundred tokens stay. What is taken has
        twice as many tokens as may stay, so that where it ends changes none of those.
        """
        assert self.max_length is not None
        if isinstance(text, tuple) and not words:
            return tuple(self._bounded(part, words) for part in text)
        size = LONG * self.max_length
        while len(text) > size:
            part = text[:size]
            (found,) = self.backend.encode_batch([part], is_pretokenized=words, add_special_tokens=False)
            if len(found.ids) >= 2 * self.max_length:
                return part
            size *= 2
        return text

    def special_tokens(self, pair: bool) -> int:
        """How many tokens are added to every row."""
        return int(self.backend.num_special_tokens_to_add(pair))

    def _slow(self, text: str | tuple[str, str]) -> Encoded:
        first, second = (text, None) if isinstance(text, str) else text
        ids = self.backend(first, second, truncation=False, return_token_type_ids=True, verbose=False)
        if self.max_length is None or len(ids["input_ids"]) <= self.max_length:
            return Encoded(ids["input_ids"], ids["token_type_ids"])
        ids = self.backend(first, second, truncation=True, max_length=self.max_length, return_token_type_ids=True)
        return Encoded(ids["input_ids"], ids["token_type_ids"], overflowing=(None,))


def load_tokenizer(job: Job, *, fixed: int | None = None) -> Tokenizer:
    """The tokenizer that was named, or the one beside the model.

    Args:
        fixed: the sequence length that the graph fixes, or None.

    Raises:
        DataError: there is none, or it cannot be read.
        UsageError: the length asked for holds no text.
    """
    files = Files(job.tokenizer) if job.tokenizer is not None else job.files
    named = job.tokenizer if job.tokenizer is not None and job.tokenizer.is_file() else None
    backend = _backend(files, named, job)
    config = files.json("tokenizer_config.json")
    limit, reason = _limit(config, files, job, fixed)
    tokenizer = Tokenizer(
        backend=backend,
        max_length=limit,
        side=str(config.get("padding_side") or "right"),
        cut=str(config.get("truncation_side") or "right"),
        pad_id=_pad_id(backend, config, job),
        files=files,
    )
    if limit is None:
        job.say("length: rows are not cut, no limit is known (--max-length sets one)")
    elif limit <= tokenizer.special_tokens(pair=True):
        raise UsageError(f"a length of {limit} tokens ({reason}) leaves no room for text: allow more")
    else:
        job.say(f"length: at most {limit} tokens ({reason})")
    return tokenizer


def _backend(files: Files, named: Path | None, job: Job) -> Any:
    path = named or files.find("tokenizer.json")
    if path is not None and path.suffix == ".json":
        backend = opened(path, "text rows are read", job.say)
        job.say(f"tokenizer: {path}")
        return backend
    folder = next((f for f in files.folders if any((f / name).is_file() for name in SLOW_FILES)), None)
    if folder is None:
        looked = ", ".join(map(str, files.folders)) or "no folder was given"
        raise DataError(
            f"text rows need the model's tokenizer, and none was found (looked for tokenizer.json in: {looked}): name "
            "it with --tokenizer, or give rows of the graph's own inputs"
        )
    return _converted(folder, job)


def opened(file: Path, purpose: str, say: Callable[[str], object] = lambda _: None) -> Any:
    """The `tokenizers.Tokenizer` of a tokenizer.json, which gives the same tokens for a text each time.

    Args:
        purpose: what it is for, where the library is missing.
        say: takes what the user should know of it.

    Raises:
        DataError: it is none, or one that gives up on any text.
    """
    library = package("tokenizers", purpose).Tokenizer
    regular(file, DataError)
    try:
        tokenizer = library.from_file(str(file))
        tokenizer_limits.require_bounded(tokenizer, file)
        if getattr(tokenizer.model, "dropout", None):  # BPE, which leaves out merges by chance: meant for training
            tokenizer.model.dropout = None
            say(f"tokenizer: {file} leaves out merges by chance (dropout), which is switched off")
        padding = tokenizer.padding
        tokenizer.no_padding()  # to as many tokens as the file likes
        with contextlib.suppress(Exception):  # of this text alone, which is none of the rows
            tokenizer.encode("")
        if padding is not None:
            tokenizer.enable_padding(**padding)
    except OnnxPruneError:
        raise
    except BaseException as error:  # the library raises bare Exception, and where it gives up none at all
        if not isinstance(error, Exception) and not panicked(error):
            raise
        raise DataError(f"{file}: not a tokenizer.json: {said(error)}: copy it again from the model") from error
    return tokenizer


def _converted(folder: Path, job: Job) -> Any:
    """A tokenizer of which only the slow files exist, in its fast form if it has one."""
    transformers = package("transformers", f"{folder}: has no tokenizer.json, and the other tokenizer files are read")
    try:
        slow: Any = transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a tokenizer class makes of damaged or foreign files
        raise DataError(f"{folder}: the tokenizer cannot be read: {error}: name another with --tokenizer") from error
    job.say(f"tokenizer: {folder} ({type(slow).__name__})")
    return slow.backend_tokenizer if slow.is_fast else slow


def _limit(config: dict[str, Any], files: Files, job: Job, fixed: int | None) -> tuple[int | None, str]:
    """The least of all limits on a row's length, and which one it is."""
    positions = job.files.setting("max_position_embeddings", "n_positions")
    if positions is not None and job.files.setting("model_type") in OFFSET_POSITIONS:
        padding = job.files.setting("pad_token_id")
        positions -= (1 if padding is None else padding) + 1
    candidates = {
        "--max-length": job.max_length,
        "fixed by the graph": fixed,
        "tokenizer_config.json": _number(config, "model_max_length", "tokenizer_config.json"),
        "sentence_bert_config.json": _number(
            files.json("sentence_bert_config.json"), "max_seq_length", "sentence_bert_config.json"
        ),
        "positions of config.json": positions,
    }
    known = {reason: int(n) for reason, n in candidates.items() if n is not None and 0 < n < UNBOUNDED}
    if not known:
        return None, ""
    reason = min(known, key=lambda key: known[key])
    return known[reason], reason


def _number(config: dict[str, Any], key: str, file: str) -> int | float | None:
    """A number of a configuration file, or None where it has none."""
    value = config.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value)):
        raise DataError(f"{file}: {key} is {value!r:.40}, not a number: copy the file again from the model")
    return value


def _pad_id(backend: Any, config: dict[str, Any], job: Job) -> int | None:
    """The id of the padding token: of the tokenizer, or of config.json."""
    token = config.get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token is not None and not isinstance(token, str):
        raise DataError(f"tokenizer_config.json: pad_token is {token!r:.40}, not text: copy the file again")
    if hasattr(backend, "token_to_id"):
        found = backend.token_to_id(token) if token is not None else (backend.padding or {}).get("pad_id")
    else:
        found = backend.pad_token_id
    if found is None:
        found = job.files.setting("pad_token_id")
    return None if found is None else int(found)
