"""Decoders of ten families, each exported four ways, with half of their heads and neurons dead.

By optimum (TorchScript) or torch's own exporter (dynamo), with a cache or without.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoders import GROUPS, HEAD_DIM, HEADS, LAYERS, NEURONS, VOCABULARY, WIDTH, drawn

DEAD_HEADS = ((1, 3), (0, 3))
"""Per layer, the heads whose output nothing reads: one of each group."""


@dataclass(frozen=True)
class Family:
    """How one architecture is made, and where its units are read.

    Attributes:
        model: the transformers class.
        options: of its configuration.
        heads, neurons: patterns of what reads heads, and neurons.
    """

    model: str
    options: dict[str, Any]
    heads: str
    neurons: str


_WIDE = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
_BODY = {**_WIDE, "intermediate_size": NEURONS, "max_position_embeddings": 64}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
_GROUPED = {**_BODY, **_ENDS, "num_key_value_heads": GROUPS, "pad_token_id": 0, "tie_word_embeddings": False}
_GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": NEURONS,
    "n_positions": 64, **_ENDS,
}  # fmt: skip
_OPT = {**_WIDE, **_ENDS, "ffn_dim": NEURONS, "word_embed_proj_dim": WIDTH, "max_position_embeddings": 64}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_O, _DOWN = r"self_attn\.o_proj", r"\.down_proj"

FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT2LMHeadModel", _GPT2, r"attn\.c_proj", r"mlp\.c_proj"),
    "gpt-neox": Family("GPTNeoXForCausalLM", _BODY | _ENDS, r"attention\.dense", r"dense_4h_to_h"),
    "opt": Family("OPTForCausalLM", _OPT, r"self_attn\.out_proj", r"\.fc2"),
    "phi": Family("PhiForCausalLM", _BODY | _ENDS, r"self_attn\.dense", r"mlp\.fc2"),
    "llama": Family("LlamaForCausalLM", _GROUPED, _O, _DOWN),
    "qwen2": Family("Qwen2ForCausalLM", _GROUPED, _O, _DOWN),
    "qwen3": Family("Qwen3ForCausalLM", {**_GROUPED, "head_dim": HEAD_DIM}, _O, _DOWN),
    "gemma": Family("GemmaForCausalLM", {**_GROUPED, "head_dim": HEAD_DIM, "tie_word_embeddings": True}, _O, _DOWN),
    "mistral": Family("MistralForCausalLM", {**_GROUPED, "sliding_window": 8}, _O, _DOWN),
    "qwen3-moe": Family("Qwen3MoeForCausalLM", {**_GROUPED, "head_dim": HEAD_DIM, **_EXPERTS}, _O, _DOWN),
}
EXPORTS = [
    (family, exporter, cache)
    for family in FAMILIES
    for exporter in ("torchscript", "dynamo")
    for cache in (True, False)
    if (family, exporter) not in (("gpt2", "dynamo"), ("qwen3-moe", "dynamo"))  # torch.export does not take them
]


def planted(family: str) -> Any:
    """A module with random weights, half of whose heads and neurons no one reads."""
    import torch

    told = FAMILIES[family]
    model, layer = drawn(told.model, told.options), 0
    with torch.no_grad():
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if weight is None or weight.dim() != 2:
                continue
            weight = weight if family == "gpt2" else weight.T
            if re.search(f"{told.heads}$", name):
                weight.view(HEADS, HEAD_DIM, -1)[list(DEAD_HEADS[layer])] = 0
                layer += 1
            elif re.search(f"{told.neurons}$", name):
                weight[1::2] = 0
    assert layer == LAYERS
    return model


def export(family: str, exporter: str, cache: bool, folder: Path) -> Path:
    """A family's file, named as optimum names what goes in and comes out."""
    model = planted(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            return _by_dynamo(model, cache, folder)
        from optimum.exporters.onnx import onnx_export_from_model

        task = "text-generation-with-past" if cache else "text-generation"
        onnx_export_from_model(model, folder, task=task, do_validation=False)
    return folder / "model.onnx"


def _by_dynamo(model: Any, cache: bool, folder: Path) -> Path:
    import torch
    from transformers import DynamicCache

    places = {} if model.config.model_type == "opt" else {"position_ids"}

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any = None, past: Any = None) -> Any:
            told = {"input_ids": input_ids, "attention_mask": attention_mask}
            if past is None:
                return self.model(**told, use_cache=False).logits
            told |= {"position_ids": position_ids} if places else {}
            found = self.model(**told, past_key_values=DynamicCache.from_legacy_cache(past), use_cache=True)
            return found.logits, [(layer.keys, layer.values) for layer in found.past_key_values.layers]

    batch, length = {0: "batch_size"}, {0: "batch_size", 1: "sequence_length"}
    ids = torch.randint(3, VOCABULARY, (2, 5))
    arguments: tuple[Any, ...] = (ids, torch.ones_like(ids))
    sizes: tuple[Any, ...] = (length, length)
    names, outputs = ["input_ids", "attention_mask"], ["logits"]
    if cache:
        groups = getattr(model.config, "num_key_value_heads", None) or HEADS
        past = tuple((torch.randn(2, groups, 3, HEAD_DIM), torch.randn(2, groups, 3, HEAD_DIM)) for _ in range(LAYERS))
        arguments = (ids, torch.ones(2, 8, dtype=torch.long), torch.arange(3, 8)[None].repeat(2, 1), past)
        whole, held = {0: "batch_size", 1: "total_sequence_length"}, {**batch, 2: "past_sequence_length"}
        sizes = (length, whole, length, tuple((held, held) for _ in range(LAYERS)))
        caches = [f"{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]
        names += ["position_ids", *(f"past_key_values.{name}" for name in caches)]
        outputs += [f"present.{name}" for name in caches]
    torch.onnx.export(
        Decoder(), arguments, folder / "model.onnx", dynamo=True, opset_version=18, input_names=names,
        output_names=outputs, dynamic_shapes=sizes, external_data=False, verbose=False,
    )  # fmt: skip
    return folder / "model.onnx"
