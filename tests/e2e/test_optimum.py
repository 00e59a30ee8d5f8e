"""A pruned folder is an optimum folder: it loads and predicts with transformers' own tools."""

from __future__ import annotations

import json
import string
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plans import in_runtime

import onnxprune
from onnxprune.errors import UsageError

TEXTS = ["good and bright", "a dull film", "bad", "well made and well told by all", "not so good a story"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT classifier with a tokenizer of letters, exported by optimum."""
    import torch
    from optimum.exporters.onnx import main_export
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    root = tmp_path_factory.mktemp("optimum")
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    vocabulary = [*letters, *("##" + c for c in string.ascii_lowercase)]
    (root / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, num_labels=3, initializer_range=0.3,
    )  # fmt: skip
    BertForSequenceClassification(config).eval().save_pretrained(root / "torch")
    BertTokenizerFast(vocab_file=str(root / "vocab.txt")).save_pretrained(root / "torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main_export(str(root / "torch"), root / "onnx", task="text-classification", do_validation=False)
    return root / "onnx"


def _rows(place: Path) -> Path:
    texts = [f"{text}{end}" for end in ("", " at all", " for me", " and so on", "!", "?") for text in TEXTS]
    place.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return place


def test_a_pruned_folder_loads_in_optimum(exported: Path, tmp_path: Path) -> None:
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer, pipeline

    rows = _rows(tmp_path / "rows.jsonl")
    output = tmp_path / "small" / "model.onnx"
    result = onnxprune.prune(exported, output, flops=0.6, calibration=rows, measure_latency=False)
    assert result.files[0].parent == output.parent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ORTModelForSequenceClassification.from_pretrained(output.parent)
        tokenizer = AutoTokenizer.from_pretrained(output.parent)
        classify: Any = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
        for text in TEXTS:
            feeds = {name: np.asarray(array) for name, array in tokenizer(text, return_tensors="np").items()}
            (logits,) = in_runtime(output, feeds).values()
            expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
            scored: Any = classify([text])[0]
            answers = {entry["label"]: entry["score"] for entry in scored}
            found = [answers[f"LABEL_{i}"] for i in range(3)]
            np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_model_of_optimum_comes_back_smaller(exported: Path, tmp_path: Path) -> None:
    import onnxruntime
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    from onnxprune.optimum import prune

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = ORTModelForSequenceClassification.from_pretrained(exported, session_options=options)
        model.config.id2label = {0: "bad", 1: "so-so", 2: "good"}
        tokenizer = AutoTokenizer.from_pretrained(exported)
        small: Any = prune(model, flops=0.6, calibration=_rows(tmp_path / "rows.jsonl"), measure_latency=False)
        assert type(small) is type(model) and small.config.id2label == model.config.id2label
        assert small.session.get_session_options().intra_op_num_threads == 1
        assert small.path.stat().st_size < model.path.stat().st_size and small.path != model.path
        assert small.pruning_report.flops.ratio <= 0.6 and small.pruning_report.flips is not None
        small.save_pretrained(tmp_path / "kept")
        kept: Any = ORTModelForSequenceClassification.from_pretrained(tmp_path / "kept")
        feeds = tokenizer("not so good", return_tensors="np")
        assert np.array_equal(small(**feeds).logits, kept(**feeds).logits)
        away = small.path
        del small
    assert not away.exists()


def test_what_is_no_model_of_optimum_is_refused() -> None:
    from onnxprune.optimum import prune

    with pytest.raises(UsageError, match="a str is no ORTModelFor"):
        prune("model.onnx", flops=0.5)
