"""A trimmed vocabulary is exact: the same pieces, the same rows, the same outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plans import in_runtime
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as kinds

from onnxprune.errors import DataError, UnsupportedError
from onnxprune.export.vocabulary import trim
from onnxprune.graph import model as models

TEXTS = [
    "the film is a warm and funny story about the sea", "a dull film without a story", "what a story it tells",
    "the sea was never so bright and so blue", "funny without being warm", "tell the story of the blue sea again",
    "naïve café stories told again and again", "1999 was the year of the film, they say!",
]  # fmt: skip
CORPUS = TEXTS[:4]
WORDS = sorted({word for text in CORPUS for word in text.split()})


def _trained(kind: str, folder: Path) -> Tokenizer:
    """A tokenizer of each kind, with the parts that such tokenizers come with."""
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    if kind == "WordPiece":
        made = Tokenizer(kinds.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=160, special_tokens=special)
    elif kind == "BPE":
        made = Tokenizer(kinds.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet)
    else:
        made = Tokenizer(kinds.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    made.train_from_iterator(TEXTS, trainer)
    ids = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    made.save(str(folder / "tokenizer.json"))
    config = {"vocab_size": made.get_vocab_size(), "pad_token_id": 0, "bos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return made


def _encoder(rows: int, folder: Path, *extra: onnx.NodeProto) -> Path:
    """Rows of a table, summed: every token counts."""
    rng = np.random.default_rng(0)
    table = onnx.numpy_helper.from_array(rng.normal(size=(rows, 16)).astype(np.float32), "table")
    axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
    weight = onnx.numpy_helper.from_array(rng.normal(size=(16, 4)).astype(np.float32), "w")
    nodes = [
        onnx.helper.make_node("Gather", ["table", "input_ids"], ["rows"], "look_up"),
        onnx.helper.make_node("ReduceSum", ["rows", "axes"], ["sum"], "sum", keepdims=0),
        onnx.helper.make_node("MatMul", ["sum", "w"], ["logits"], "head"),
        *extra,
    ]
    ids = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch", "sequence"])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 4])
    graph = onnx.helper.make_graph(nodes, "g", [ids], [logits], [table, axes, weight])
    file = folder / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]), file)
    return file


@pytest.fixture(scope="module", params=["WordPiece", "BPE", "Unigram"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tokenizer and a model, whole and trimmed."""
    folder, target = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("trimmed")
    before = _trained(request.param, folder)
    file = _encoder(before.get_vocab_size(), folder)
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join([*CORPUS, "", "   "]))
    smaller, told = trim(models.load(file), folder, corpus, target)
    made = models.save(smaller.ir, target / "model.onnx")[0]
    after = Tokenizer.from_file(str(target / "tokenizer.json"))
    return {"before": before, "after": after, "file": file, "made": made, "told": told, "target": target}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.sampled_from([*WORDS, *(w[:3] for w in WORDS), "sea.", "Film"]), min_size=1, max_size=12))
def test_texts_within_the_kept_vocabulary_are_split_alike(both: dict[str, Any], words: list[str]) -> None:
    text = " ".join(words)
    before, after = both["before"].encode(text), both["after"].encode(text)
    kept = set(both["after"].get_vocab())
    if not set(before.tokens) <= kept or "<unk>" in before.tokens:
        return  # a text that needs what was cut
    assert after.tokens == before.tokens
    expected = in_runtime(both["file"], {"input_ids": np.array([before.ids])})["logits"]
    found = in_runtime(both["made"], {"input_ids": np.array([after.ids])})["logits"]
    np.testing.assert_array_equal(found, expected)


def test_the_corpus_is_covered_and_told(both: dict[str, Any]) -> None:
    told = both["told"]
    for text in CORPUS:
        assert both["after"].encode(text).tokens == both["before"].encode(text).tokens
    assert told["covered"] == 1.0
    assert 0 < told["covered_unseen"] <= 1
    assert told["kept"] == both["after"].get_vocab_size() < told["tokens"] == both["before"].get_vocab_size()
    assert told["lines"] == len(CORPUS)
    rows = {i.name: i.dims for i in onnx.load(both["made"]).graph.initializer}
    assert [told["kept"], 16] in [list(dims) for dims in rows.values()]
    assert told["bytes_saved"] == (told["tokens"] - told["kept"]) * 64
    config = json.loads((both["target"] / "config.json").read_text())
    assert config == {"vocab_size": told["kept"], "pad_token_id": 0, "bos_token_id": 2}


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (onnx.helper.make_node("Cast", ["input_ids"], ["number"], "reader", to=1), "knows? ids by heart"),
        (onnx.helper.make_node("MatMul", ["logits", "table"], ["scores"], "tied"), "scores of the output"),
    ],
)
def test_a_graph_that_knows_ids_is_refused(extra: onnx.NodeProto, says: str, tmp_path: Path) -> None:
    tokenizer = _trained("WordPiece", tmp_path)
    file = _encoder(tokenizer.get_vocab_size(), tmp_path, extra)
    model = onnx.load(file)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(extra.output[0]))
    if extra.op_type == "MatMul":
        model.graph.node[-1].input[0] = "turned"
        model.graph.node.insert(3, onnx.helper.make_node("Concat", ["logits"] * 4, ["four"], "four", axis=1))
        turned = onnx.helper.make_node("MatMul", ["four", "square"], ["turned"], "turn")
        model.graph.node.insert(4, turned)
        square = np.ones((16, tokenizer.get_vocab_size()), np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(square, "square"))
    onnx.save(model, file)
    (tmp_path / "corpus.txt").write_text("the sea")
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedError, match=says):
        trim(models.load(file), tmp_path, tmp_path / "corpus.txt", tmp_path / "out")


def test_no_tokenizer_and_no_corpus_are_said(tmp_path: Path) -> None:
    file = _encoder(20, tmp_path)
    (tmp_path / "corpus.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        trim(models.load(file), tmp_path, tmp_path / "corpus.txt", tmp_path)
    _trained("BPE", tmp_path)
    with pytest.raises(DataError, match="no lines"):
        trim(models.load(file), tmp_path, tmp_path / "corpus.txt", tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        trim(models.load(file), tmp_path, tmp_path / "absent.txt", tmp_path)
