"""Folders of several graphs: tiny encoders and decoders as optimum exports them, with units killed before export."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from made_once import made_once

VOCABULARY, WIDTH, HEADS, NEURONS = 64, 32, 4, 24
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "and", "runs", "away", "from", "every", "cat")
ENCODER, DECODER, BEHIND = "encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"
FILES = (DECODER, BEHIND, ENCODER)

_BART = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 2,
    "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "encoder_ffn_dim": NEURONS,
    "decoder_ffn_dim": NEURONS, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "decoder_start_token_id": 2,
}  # fmt: skip
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("BartForConditionalGeneration", _BART),
    "marian": ("MarianMTModel", {**_BART, "decoder_vocab_size": VOCABULARY}),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": WIDTH // HEADS, "d_ff": NEURONS, "num_layers": 1,
         "num_decoder_layers": 2, "num_heads": HEADS, "decoder_start_token_id": 0, "pad_token_id": 0,
         "eos_token_id": 1},
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        {**_BART, "num_mel_bins": 80, "max_source_positions": 1500, "max_target_positions": 64,
         "suppress_tokens": None, "begin_suppress_tokens": None},
    ),
}  # fmt: skip


def folder(family: str, store: Path, *, merged: bool = False) -> Path:
    """The export of a family: an encoder, a decoder, and the decoder behind its cache; made once in `store`."""
    name = f"folder-{family}{'-merged' if merged else ''}"
    return made_once(store / name, lambda place: _export(family, place, merged))


def _export(family: str, place: Path, merged: bool) -> None:
    import torch
    import transformers
    from optimum.exporters.onnx import onnx_export_from_model

    name, options = _FAMILIES[family]
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for module_name, module in model.named_modules():
            leaf = module_name.rpartition(".")[2]
            if leaf in ("out_proj", "o"):  # heads 1 and 3 are read by nobody
                module.weight.view(len(module.weight), HEADS, -1)[:, 1::2] = 0
            elif leaf in ("fc2", "wo"):
                module.weight[:, 1::2] = 0
    task = "automatic-speech-recognition" if family == "whisper" else "text2text-generation"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx_export_from_model(model, place, task=f"{task}-with-past", do_validation=False, no_post_process=not merged)
    tokenizer(place)


def tokenizer(place: Path) -> None:
    """One of `WORDS`, written into a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    named = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    for word in WORDS:
        named.setdefault(word, len(named))
    made = Tokenizer(models.WordLevel(named, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(place / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "model_max_length": 32}
    (place / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")


def rows(count: int = 24, seed: int = 0) -> list[dict[str, str]]:
    """Texts with what is to be said of them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 9, (count, 2))
    return [{"text": " ".join(rng.choice(WORDS, a)), "target": " ".join(rng.choice(WORDS, b))} for a, b in lengths]


def generated(place: Path, steps: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, scores by the cache, scores of the same tokens at once) of greedy decoding through a folder's files."""
    encoder, decoder, behind = (_session(place / name) for name in (ENCODER, DECODER, BEHIND))
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {
        "input_ids": rng.integers(3, VOCABULARY, (2, 9)),
        "attention_mask": np.ones((2, 9), np.int64),
        "input_features": rng.standard_normal((2, 80, 3000), dtype=np.float32),
    }
    hidden = run(encoder, feeds)["last_hidden_state"]
    known = {"encoder_hidden_states": hidden, "encoder_attention_mask": np.ones(hidden.shape[:2], np.int64)}
    prompt = np.full((2, 3), 2)
    found = run(decoder, {**known, "input_ids": prompt})
    scores, tokens, past = [found.pop("logits")[:, -1]], [], found
    for _ in range(steps):
        tokens.append(scores[-1].argmax(-1))
        cache = {k.replace("present", "past_key_values"): v for k, v in past.items()}
        found = run(behind, {**known, **cache, "input_ids": tokens[-1][:, None]})
        scores.append(found.pop("logits")[:, -1])
        past = {**past, **found}
    told = np.stack(tokens, 1)
    whole = run(decoder, {**known, "input_ids": np.concatenate([prompt, told], 1)})["logits"]
    return told, np.stack(scores, 1), whole[:, -steps - 1 :]


def _session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {v.name: feeds[v.name] for v in session.get_inputs()}), strict=True))


def interface(file: Path) -> list[list[tuple[str, Any, str]]]:
    session = _session(file)
    return [[(v.name, v.shape, v.type) for v in side] for side in (session.get_inputs(), session.get_outputs())]
