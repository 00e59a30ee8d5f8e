"""The families of the zoo: how each architecture is made, and where its units are read. A new one is one entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Exporter = Literal["torchscript", "dynamo"]
Attention = Literal["eager", "sdpa"]

OPSETS: dict[Exporter, int] = {"torchscript": 17, "dynamo": 18}
ATTENTIONS: tuple[Attention, ...] = ("eager", "sdpa")
VOCABULARY = 100
ORDINARY_TOKENS = 5  # ids below it are padding, start or end in one family or another
HEAD_DIM = 8  # in every configuration
DIMENSIONS: dict[str, dict[int, str]] = {  # dynamic axes after the batch, named as optimum names them
    "input_ids": {1: "sequence_length"},
    "attention_mask": {1: "sequence_length"},
    "decoder_input_ids": {1: "decoder_sequence_length"},
    "input_values": {1: "sequence_length"},
}


@dataclass(frozen=True)
class Family:
    """How one architecture is made, and where its units are read.

    Attributes:
        model: the transformers class; its configuration class is taken from it.
        options: what makes the configuration tiny.
        heads: pattern of the attention output projections, whose input columns are heads side by side; or None.
        neurons: pattern of the readers of hidden units: FFN down projections, or what reads a convolution's channels.
        beside: (pattern, replacement) that make a reader's name that of another module with the same input columns.
        example: sizes of one example: (tokens,), (channels, height, width) or (samples,).
        inputs: the names of the inputs; `example` is about the first.
        kv_groups: planted heads are spread evenly over this many groups (grouped-query attention).
        eager_only: transformers has no sdpa implementation of it.
        optimum: options of optimum's exporter, for those that torch.onnx's TorchScript exporter cannot export by itself
            (their masks are made with vmap: "unordered_map::at"); None for the others.
    """

    model: str
    options: dict[str, Any]
    heads: str | None
    neurons: str
    beside: tuple[str, str] | None = None
    example: tuple[int, ...] = (7,)
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    kv_groups: int = 1
    eager_only: bool = False
    optimum: dict[str, Any] | None = None

    @property
    def output(self) -> str:
        """The name of the (first) output."""
        return "logits" if "For" in self.model else "last_hidden_state"


_BODY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_TEXT = {**_BODY, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
_VISION = {**_BODY, "image_size": 16, "patch_size": 4}
_IMAGE: dict[str, Any] = {"example": (3, 16, 16), "inputs": ("pixel_values",)}
_LARGE: dict[str, Any] = {"example": (3, 32, 32), "inputs": ("pixel_values",)}
_SEQ2SEQ: dict[str, Any] = {
    **{f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in (("layers", 2), ("ffn_dim", 48))},
    **{"d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": VOCABULARY},
}
_CAUSAL: dict[str, Any] = {"optimum": {"task": "text-generation"}}

_OWN: dict[str, Any] = {"vocabulary": VOCABULARY, "width": 32, "heads": 4, "neurons": 48, "layers": 2}
_SPEECH: dict[str, Any] = {
    **_BODY,
    **{"conv_dim": [16, 16], "conv_stride": [4, 4], "conv_kernel": [8, 4], "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16, "vocab_size": 32},
}
_DENSE, _OUTPUT = r"attention\.output\.dense", r"\d\.output\.dense"
_OUT_PROJ, _FC2, _DOWN = r"self_attn\.(o|out)_proj", r"\.fc2", r"mlp\.down_proj"

FAMILIES: dict[str, Family] = {
    "bert": Family("BertForSequenceClassification", _TEXT, _DENSE, _OUTPUT),
    "roberta": Family("RobertaForSequenceClassification", _TEXT, _DENSE, _OUTPUT),
    "xlm-roberta": Family("XLMRobertaForSequenceClassification", _TEXT, _DENSE, _OUTPUT),
    "distilbert": Family(
        "DistilBertForSequenceClassification",
        {
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
        },
        r"attention\.out_lin",
        r"ffn\.lin2",
    ),
    "electra": Family(
        "ElectraForSequenceClassification", _TEXT | {"embedding_size": 16}, _DENSE, _OUTPUT, eager_only=True
    ),
    "mpnet": Family("MPNetForSequenceClassification", _TEXT, r"attention\.attn\.o", _OUTPUT, eager_only=True),
    "albert": Family(
        "AlbertForSequenceClassification", _TEXT | {"embedding_size": 16}, r"attention\.dense", "ffn_output"
    ),
    "deberta-v2": Family(
        "DebertaV2ForSequenceClassification",
        _TEXT
        | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16, "share_att_key": True}
        | {"position_biased_input": False, "norm_rel_ebd": "layer_norm"},
        _DENSE,
        _OUTPUT,
        eager_only=True,
    ),
    "mobilebert": Family(
        "MobileBertForSequenceClassification",
        _TEXT
        | {"hidden_size": 64, "embedding_size": 16, "true_hidden_size": 32, "intra_bottleneck_size": 32}
        | {"num_feedforward_networks": 2},
        _DENSE,
        _OUTPUT,
        eager_only=True,
    ),
    "modernbert": Family(
        "ModernBertForSequenceClassification",
        _TEXT | {"global_attn_every_n_layers": 2, "local_attention": 8, "pad_token_id": 0},
        r"attn\.Wo",
        r"mlp\.Wo",
    ),
    "clip-text": Family("CLIPTextModel", _TEXT, _OUT_PROJ, _FC2),
    "t5-encoder": Family(
        "T5EncoderModel",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": HEAD_DIM, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        r"SelfAttention\.o",
        r"DenseReluDense\.wo",
        eager_only=True,
    ),
    "bart": Family(
        "BartForConditionalGeneration",
        _SEQ2SEQ | {"max_position_embeddings": 64},
        r"attn\.out_proj",
        _FC2,
        inputs=("input_ids", "attention_mask", "decoder_input_ids"),
    ),
    "whisper": Family(
        "WhisperForConditionalGeneration",
        _SEQ2SEQ | {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 64, "pad_token_id": 0},
        r"attn\.out_proj",
        _FC2,
        example=(8, 20),
        inputs=("input_features", "decoder_input_ids"),
        optimum={"task": "automatic-speech-recognition", "monolith": True, "feature_size": 8, "nb_max_frames": 20},
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "vocab_size": VOCABULARY, "n_positions": 64},
        r"attn\.c_proj",
        r"mlp\.c_proj",
        **_CAUSAL,
    ),
    "opt": Family(
        "OPTForCausalLM",
        _TEXT | {"ffn_dim": 48, "word_embed_proj_dim": 32},
        _OUT_PROJ,
        _FC2,
        **_CAUSAL,
    ),
    "llama": Family("LlamaForCausalLM", _TEXT | {"num_key_value_heads": 2}, _OUT_PROJ, _DOWN, kv_groups=2, **_CAUSAL),
    "qwen2": Family("Qwen2ForCausalLM", _TEXT | {"num_key_value_heads": 2}, _OUT_PROJ, _DOWN, kv_groups=2, **_CAUSAL),
    "vit": Family("ViTForImageClassification", _VISION, _DENSE, _OUTPUT, **_IMAGE),
    "deit": Family("DeiTForImageClassification", _VISION, _DENSE, _OUTPUT, **_IMAGE),
    "beit": Family("BeitForImageClassification", _VISION, _DENSE, _OUTPUT, **_IMAGE),
    "dinov2": Family("Dinov2ForImageClassification", _VISION | {"mlp_ratio": 2}, _DENSE, _FC2, **_IMAGE),
    "swin": Family(
        "SwinForImageClassification",
        {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2}
        | {"mlp_ratio": 2},
        _DENSE,
        _OUTPUT,
        eager_only=True,
        **_IMAGE,
    ),
    "segformer": Family(
        "SegformerForSemanticSegmentation",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [3, 3],
        }
        | {"strides": [2, 2], "num_attention_heads": [2, 4], "mlp_ratios": [2, 2], "decoder_hidden_size": 16},
        _DENSE,
        r"mlp\.dense2",
        eager_only=True,
        **_LARGE,
    ),
    "clip-vision": Family("CLIPVisionModel", _VISION, _OUT_PROJ, _FC2, **_IMAGE),
    "siglip": Family("SiglipVisionModel", _VISION, _OUT_PROJ, r"layers\.\d\.mlp\.fc2", **_IMAGE),
    "resnet": Family(
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [2, 2], "layer_type": "bottleneck"},
        None,
        r"\.layer\.[12]\.convolution",
        eager_only=True,
        **_LARGE,
    ),
    "convnext": Family(
        "ConvNextForImageClassification",
        {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [2, 2], "patch_size": 2},
        None,
        "pwconv2",
        eager_only=True,
        **_LARGE,
    ),
    "mobilenet-v2": Family(
        "MobileNetV2ForImageClassification",
        {"image_size": 32, "depth_multiplier": 0.25},
        None,
        r"reduce_1x1\.convolution",
        eager_only=True,
        **_LARGE,
    ),
    "wav2vec2": Family(
        "Wav2Vec2ForSequenceClassification",
        _SPEECH,
        r"attention\.out_proj",
        r"feed_forward\.output_dense",
        example=(400,),
        inputs=("input_values",),
    ),
    **{
        f"packed-{way}": Family(
            "PackedEncoder", _OWN | {"way": way}, r"attention\.out", r"\.down", inputs=("input_ids",), eager_only=True
        )
        for way in ("split", "slice", "gather", "interleaved", "einsum")
    },
    "rms-sdpa": Family(
        "PackedEncoder",
        _OWN | {"way": "sdpa", "norm": "RMSNorm"},
        r"attention\.out",
        r"\.down",
        inputs=("input_ids",),
        eager_only=True,
    ),
    **{
        f"torch-{order}-first": Family(
            "TorchEncoder",
            _OWN | {"batch_first": order == "batch"},
            None,  # the projection is no module that runs
            r"linear2",
            inputs=("input_ids",),
            eager_only=True,
        )
        for order in ("batch", "sequence")
    },
    "mobilenet-v3": Family(
        "MobileNetV3",
        {"width": 16, "wide": 32, "neurons": 48},
        None,
        r"\.project",
        beside=(r"\.project$", ".squeeze.1"),
        eager_only=True,
        **_LARGE,
    ),
    "gpt-neox": Family(
        "GPTNeoXForCausalLM", _TEXT | {"rotary_pct": 0.5}, r"attention\.dense", r"dense_4h_to_h", **_CAUSAL
    ),
    "bloom": Family(
        "BloomForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        r"self_attention\.dense",
        r"dense_4h_to_h",
        eager_only=True,
        **_CAUSAL,
    ),
    "hubert": Family(
        "HubertForSequenceClassification",
        _SPEECH,
        r"attention\.out_proj",
        r"feed_forward\.output_dense",
        example=(400,),
        inputs=("input_values",),
    ),
    "efficientnet": Family(
        "EfficientNetForImageClassification",
        {"image_size": 32, "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}
        | {"kernel_sizes": [3, 5, 3], "expand_ratios": [1, 4, 4], "strides": [1, 2, 1], "num_block_repeats": [1, 1, 2]}
        | {"in_channels": [32, 8, 16], "out_channels": [8, 16, 16]},
        None,
        r"project_conv",
        beside=(r"\.projection\.project_conv$", ".squeeze_excite.reduce"),
        eager_only=True,
        **_LARGE,
    ),
    "mobilevit": Family(
        "MobileViTForImageClassification",
        {"image_size": 32, "hidden_sizes": [32, 32, 32], "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32]}
        | {"num_attention_heads": 4, "expand_ratio": 2.0},
        _DENSE,
        r"layer\.\d\.output\.dense",
        eager_only=True,
        **_LARGE,
    ),
    "detr": Family(
        "DetrForObjectDetection",
        {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "num_queries": 6}
        | {"backbone_config": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}}
        | {k: v for k, v in _SEQ2SEQ.items() if k != "vocab_size"},
        r"attn\.out_proj",
        _FC2,
        eager_only=True,
        **_LARGE,
    ),
    "mask2former": Family(
        "Mask2FormerForUniversalSegmentation",
        {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 48}
        | {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 4, "dim_feedforward": 48, "num_queries": 6}
        | {"common_stride": 4, "feature_strides": [4, 8, 16, 32], "num_labels": 3}
        | {
            "backbone_config": {"model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1]}
            | {"num_heads": [1, 2, 4, 8], "window_size": 2, "patch_size": 4}
            | {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
        },
        r"self_attn\.out_proj",
        _FC2,
        example=(3, 64, 64),
        inputs=("pixel_values",),
        eager_only=True,
    ),
}

EVERYDAY = (
    "bert", "roberta", "distilbert", "vit", "deit", "gpt2", "llama", "albert", "mobilebert", "modernbert", "deberta-v2",
    "t5-encoder", "bart", "swin", "segformer", "resnet", "mobilenet-v2", "wav2vec2", "mpnet", "convnext",
    "packed-gather", "packed-interleaved", "packed-einsum", "gpt-neox", "mobilenet-v3",
)  # fmt: skip
"""The families that everyday tests look at: one for each mechanism. The others are for the slow ones."""

BROKEN: dict[tuple[str, Exporter, Attention], str] = {
    ("torch-batch-first", "torchscript", "eager"): "writes the example's length into the graph",
    (
        "torch-sequence-first",
        "torchscript",
        "eager",
    ): "writes the example's length into the graph",
    ("bart", "dynamo", "eager"): "the size of tensor a (s0) must match the size of tensor b (s0 + 1) at dimension 3",
}
"""Combinations that do not export, with the exporter's words."""
