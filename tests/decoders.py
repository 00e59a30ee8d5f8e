"""Decoders with caches: tiny exports of real families with units killed before export, and what generates with them.

Exporters hand on the keys and values of every layer: `past_key_values.i.key` in, `present.i.key` out. `genai` is a
graph as onnxruntime-genai's builder writes one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from made_once import made_once
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH, HEADS, GROUPS, HEAD_DIM, NEURONS, LAYERS = 64, 64, 4, 2, 16, 48, 2

DEAD_HEADS = ((1,), (0, 3))
"""Per layer, the query heads whose output nothing reads; in each group of two different ones, or none."""

_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": NEURONS, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
_FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", _COMMON, "o_proj"),
    "qwen3": ("Qwen3ForCausalLM", {**_COMMON, "head_dim": HEAD_DIM}, "o_proj"),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": NEURONS,
         "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2},
        "attn.c_proj",
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {**_COMMON, "head_dim": HEAD_DIM, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        "o_proj",
    ),
}  # fmt: skip


def decoder(family: str, folder: Path) -> Path:
    """The export of a family with its cache, dead query heads in it; made once in `folder`."""

    def make(place: Path) -> None:
        if family == "genai":
            onnx.save(genai(), place / "model.onnx")
        else:
            _export(family, place)

    return made_once(folder / f"decoder-{family}", make) / "model.onnx"


def drawn(name: str, options: Mapping[str, Any]) -> Any:
    """A module of transformers with random weights, at a scale where every unit matters."""
    import torch
    import transformers

    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _export(family: str, folder: Path) -> None:
    import torch
    from optimum.exporters.onnx import onnx_export_from_model

    name, options, reader = _FAMILIES[family]
    model, layer = drawn(name, options), 0
    with torch.no_grad():
        for module_name, module in model.named_modules():
            if module_name.endswith(reader):
                weight = module.weight if family == "gpt2" else module.weight.T
                weight.view(HEADS, HEAD_DIM, -1)[list(DEAD_HEADS[layer])] = 0
                layer += 1
    assert layer == LAYERS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx_export_from_model(model, folder, task="text-generation-with-past", do_validation=False)


def genai() -> onnx.ModelProto:
    """GroupQueryAttention with rotary tables and caches; query heads are dead as `DEAD_IN_GROUPS` says."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {}

    def weight(name: str, *shape: int) -> str:
        weights[name] = (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)
        return name

    def add(kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, outputs, outputs[0], domain=domain, **attributes))
        return outputs[0]

    angles = np.arange(64)[:, None] / 100.0 ** (np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    weights |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    weights |= {"one": np.array([1], dtype=np.int64), "first": np.array(1, dtype=np.int64)}
    add("ReduceSum", ["attention_mask", "one"], ["lengths"], keepdims=0)
    add("Sub", ["lengths", "one"], ["ends"])
    add("Cast", ["ends"], ["seqlens_k"], to=TensorProto.INT32)
    add("Shape", ["attention_mask"], ["mask_shape"])
    add("Gather", ["mask_shape", "first"], ["total"], axis=0)
    add("Cast", ["total"], ["total_length"], to=TensorProto.INT32)
    x = add("Gather", [weight("embed", VOCABULARY, WIDTH), "input_ids"], ["embedded"])
    weights["norm"] = np.ones(WIDTH, dtype=np.float32)
    normed = add("SimplifiedLayerNormalization", [x, "norm"], ["normed"], epsilon=1e-5, axis=-1, stash_type=1)
    caches = []
    for i in range(LAYERS):
        parts = []
        for part, heads in (("q", HEADS), ("k", GROUPS), ("v", GROUPS)):
            parts.append(add("MatMul", [normed, weight(f"{part}.{i}", WIDTH, heads * HEAD_DIM)], [f"{part}_{i}"]))
        past = [f"past_key_values.{i}.{part}" for part in ("key", "value")]
        present = [f"present.{i}.{part}" for part in ("key", "value")]
        caches += [*past, *present]
        inputs = [*parts, *past, "seqlens_k", "total_length", "cos", "sin"]
        y = add(
            "GroupQueryAttention", inputs, [f"attended_{i}", *present], "com.microsoft",
            num_heads=HEADS, kv_num_heads=GROUPS, do_rotary=1, rotary_interleaved=0, scale=HEAD_DIM**-0.5,
        )  # fmt: skip
        name = weight(f"o.{i}", HEADS * HEAD_DIM, WIDTH)
        weights[name].reshape(GROUPS, HEADS // GROUPS, HEAD_DIM, WIDTH)[range(GROUPS), DEAD_IN_GROUPS[i]] = 0
        y = add("MatMul", [y, name], [f"o_{i}"])
        skip = "SkipSimplifiedLayerNormalization"
        add(skip, [x, y, "norm"], [f"mid_{i}", "", "", f"sum_{i}"], "com.microsoft", epsilon=1e-5)
        gate = add("MatMul", [f"mid_{i}", weight(f"gate.{i}", WIDTH, NEURONS)], [f"gate_{i}"])
        up = add("MatMul", [f"mid_{i}", weight(f"up.{i}", WIDTH, NEURONS)], [f"up_{i}"])
        act = add("Mul", [gate, add("Sigmoid", [gate], [f"sigmoid_{i}"])], [f"act_{i}"])
        wide = add("Mul", [act, up], [f"wide_{i}"])
        down = add("MatMul", [wide, weight(f"down.{i}", NEURONS, WIDTH)], [f"down_{i}"])
        outputs = [f"normed_{i}", "", "", f"stream_{i}"][: 4 if i < LAYERS - 1 else 1]
        add(skip, [f"sum_{i}", down, "norm"], outputs, "com.microsoft", epsilon=1e-5)
        x, normed = f"stream_{i}", f"normed_{i}"
    add("MatMul", [normed, weight("head", WIDTH, VOCABULARY)], ["logits"])

    def cache(name: str) -> onnx.ValueInfoProto:
        length = "past_sequence_length" if name.startswith("past") else "total_sequence_length"
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch_size", GROUPS, length, HEAD_DIM])

    tokens = ["batch_size", "sequence_length"]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, tokens),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
            *(cache(name) for name in caches if name.startswith("past")),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*tokens, VOCABULARY]),
            *(cache(name) for name in caches if name.startswith("present")),
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


DEAD_IN_GROUPS = ((1, 0), (0, 1))
"""Per layer, the dead query head of each group."""


def feeds_of(path: Path, tokens: np.ndarray, past: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """What a decoder takes for some tokens behind a cache (an empty one by default)."""
    inputs = {v.name: v for v in onnx.load(path, load_external_data=False).graph.input}
    batch, length = tokens.shape
    found: dict[str, np.ndarray] = {"input_ids": tokens}
    for name, value in inputs.items():
        if name.startswith("past"):
            dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
            empty = np.zeros((batch, dims[1], 0, dims[3]), dtype=np.float32)
            found[name] = empty if past is None else past[name]
    before = next(v.shape[2] for k, v in found.items() if k.startswith("past"))
    found["attention_mask"] = np.ones((batch, before + length), dtype=np.int64)
    if "position_ids" in inputs:
        found["position_ids"] = np.tile(np.arange(before, before + length, dtype=np.int64), (batch, 1))
    return found


def generated(path: Path, tokens: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, their logits) that a decoder writes greedily, a token a step through its cache."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [v.name for v in session.get_outputs()]
    past, written, logits = None, [], []
    for _ in range(steps + 1):
        outputs = dict(zip(names, session.run(names, feeds_of(path, tokens, past)), strict=True))
        past = {k.replace("present", "past_key_values"): v for k, v in outputs.items() if k.startswith("present")}
        logits.append(outputs["logits"][:, -1])
        tokens = logits[-1].argmax(-1)[:, None]
        written.append(tokens)
    return np.concatenate(written, 1), np.stack(logits, 1)
