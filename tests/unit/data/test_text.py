"""Text, token and question rows: the tokenizer's own ids, no padding, pairs, lengths, aligned labels."""

from __future__ import annotations

import _thread
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxprune.data import Dataset, read, tokenizer, tokenizer_limits
from onnxprune.errors import DataError, LimitError, UsageError
from onnxprune.graph import memory
from onnxprune.graph.model import InputSpec

I64 = np.dtype(np.int64)
WORDS = [
    *("the", "cat", "sat", "on", "a", "mat", "and", "was", "happy", "here"),
    *("who", "what", "where", "no", "yes", "dog", "ran", "far", "away"),
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "##s", "##ed", "jump", "."]
PAD, CLS, SEP = 0, 2, 3


def text_inputs(*names: str, length: int | str = "sequence") -> list[InputSpec]:
    return [
        InputSpec(name, I64, ("batch", length)) for name in names or ("input_ids", "attention_mask", "token_type_ids")
    ]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a WordPiece tokenizer that comes with padding and truncation baked in, as published ones do."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(6)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "model_max_length": int(1e30)}))
    return tmp_path


def ids_of(text: str) -> list[int]:
    return [VOCABULARY.index(word) for word in text.split()]


def text_rows(rows: Any, folder: Path, **options: Any) -> Dataset:
    return read(rows, options.pop("inputs", text_inputs()), folder=folder, **options)


def test_plain_text_is_a_row_a_line(model: Path) -> None:
    (model / "rows.txt").write_text("\ufeffthe cat sat\n\n  on a mat \n", encoding="utf-8")
    data = text_rows(model / "rows.txt", model)
    assert [e.feeds["input_ids"].tolist()[0][1:-1] for e in data.examples] == [
        ids_of("the cat sat"),
        ids_of("on a mat"),
    ]
    assert [e.source for e in data.examples] == [f"{model / 'rows.txt'}:{line}" for line in (1, 3)]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30), min_size=1, max_size=8))
def test_rows_are_the_tokenizers_ids_and_never_padded(model: Path, texts: list[list[str]]) -> None:
    data = text_rows([{"text": " ".join(words)} for words in texts], model)
    for example, words in zip(data.examples, texts, strict=True):
        assert example.feeds["input_ids"].tolist() == [[CLS, *map(VOCABULARY.index, words), SEP]]
        assert (example.feeds["attention_mask"] == 1).all()
        assert (example.feeds["token_type_ids"] == 0).all()
        assert example.real is None
    for batch in data.batches(3):
        assert (batch.feeds["attention_mask"] == 1).all()


@pytest.mark.parametrize(
    "row",
    [
        {"text": "the cat sat " * 800},
        {"text": "the cat", "text_pair": "a  mat " * 800},
        {"text": "cats jumped. " * 140, "text_pair": "who " * 450},
        {"text": " " * 8000 + "where was the cat"},
        {"tokens": ["the", "cat", ""] * 2000},
        {"question": "where", "context": "a mat here " * 800, "answers": ["a mat"]},
    ],
    ids="+".join,
)
def test_a_long_text_is_tokenised_as_far_as_it_counts(
    model: Path, row: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = text_rows([row], model, max_length=16)
    read_of_all: list[int] = []

    def all_of_it(self: Any, text: str, words: int) -> str:
        read_of_all.append(words)
        return text

    monkeypatch.setattr(tokenizer.Tokenizer, "_bounded", all_of_it)
    whole = text_rows([row], model, max_length=16)
    assert read_of_all
    for one, other in zip(found.examples, whole.examples, strict=True):
        assert all(np.array_equal(one.feeds[name], other.feeds[name]) for name in other.feeds)
        assert np.array_equal(one.label, other.label) if other.label is not None else one.label is None
    assert found.description == whole.description


def test_a_text_of_megabytes_takes_no_more_than_its_beginning(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    encode = tokenizer.Tokenizer._bounded

    def noted(self: tokenizer.Tokenizer, text: Any, words: bool) -> Any:
        taken.append(len(found := encode(self, text, words)))
        return found

    monkeypatch.setattr(tokenizer.Tokenizer, "_bounded", noted)
    text_rows([{"text": "the cat sat " * 400_000}], model, max_length=16)
    assert taken == [tokenizer.LONG * 16]


def test_only_what_the_graph_wants(model: Path) -> None:
    example = text_rows([{"text": "the cat"}], model, inputs=text_inputs("input_ids")).examples[0]
    assert list(example.feeds) == ["input_ids"]
    small = [InputSpec("input_ids", np.dtype(np.int32), ("batch", "sequence"))]
    assert text_rows([{"text": "the cat"}], model, inputs=small).examples[0].feeds["input_ids"].dtype == np.int32


def test_length_is_the_least_of_all_limits(model: Path) -> None:
    text = [{"text": "the cat sat on a mat and was happy here"}]

    def length(**options: Any) -> int:
        return text_rows(text, model, **options).examples[0].tokens

    assert length() == 12
    (model / "config.json").write_text(
        json.dumps({"model_type": "roberta", "max_position_embeddings": 12, "pad_token_id": 1})
    )
    data = text_rows(text, model)
    assert data.examples[0].feeds["input_ids"].tolist() == [[CLS, *ids_of("the cat sat on a mat and was"), SEP]]
    assert "length: at most 10 tokens (positions of config.json)" in data.description
    assert "length: 1 of 1 texts were longer and are cut at the right end" in data.description
    (model / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9}))
    assert length() == 9
    (model / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 8, "truncation_side": "left"}))
    assert text_rows(text, model).examples[0].feeds["input_ids"].tolist() == [
        [CLS, *ids_of("a mat and was happy here"), SEP]
    ]
    assert length(max_length=7) == 7
    assert length(max_length=100) == 8
    with pytest.raises(UsageError, match="no room for text"):
        length(max_length=3)


PAIRS = [{"text": "the cat", "text_pair": "a dog ran", "label": 1}, {"text": "no", "text_pair": "yes", "label": 0}]


def test_a_joint_pair_is_one_sequence(model: Path) -> None:
    data = text_rows(PAIRS, model, pairs="joint")
    assert data.examples[0].feeds["input_ids"].tolist() == [[CLS, *ids_of("the cat"), SEP, *ids_of("a dog ran"), SEP]]
    assert data.examples[0].feeds["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert (data.labels, data.pairs) == ((1, 0), ())
    assert "pairs: joint (as asked)" in data.description


def test_a_separate_pair_is_two_examples(model: Path) -> None:
    rows = [{"text": "here"}, *PAIRS, {"text": "far", "text_pair": ""}]
    data = text_rows(rows, model, pairs="separate")
    assert [example.pair for example in data.examples] == [None, 0, 0, 1, 1, None]
    assert data.pairs == ((1, 2, 1), (3, 4, 0))
    assert data.examples[2].feeds["input_ids"].tolist() == [[CLS, *ids_of("a dog ran"), SEP]]


@pytest.mark.parametrize(
    ("outputs", "inputs", "files", "how", "reason"),
    [
        (["logits"], 3, {}, "joint", "takes token_type_ids and ends in logits"),
        (["logits"], 2, {}, "joint", "graph ends in logits"),
        (["token_embeddings", "sentence_embedding"], 3, {}, "separate", "graph gives sentence_embedding"),
        (["last_hidden_state"], 3, {"modules.json": []}, "separate", "modules.json is beside"),
        (["out"], 3, {"config.json": {"architectures": ["BertModel"]}}, "separate", "BertModel"),
        (["out"], 2, {"config.json": {"architectures": ["BertForSequenceClassification"]}}, "joint", "Classification"),
        (["last_hidden_state"], 3, {}, "separate", "last_hidden_state and no logits"),
        (["out"], 3, {}, "joint", "graph takes token_type_ids"),
        (["out"], 2, {}, "separate", "no token_type_ids"),
    ],
)
def test_how_pairs_are_fed_is_guessed_and_said(
    *, model: Path, outputs: list[str], inputs: int, files: dict[str, Any], how: str, reason: str
) -> None:
    for name, content in files.items():
        (model / name).write_text(json.dumps(content))
    data = text_rows(PAIRS, model, inputs=text_inputs()[:inputs], outputs=outputs)
    (note,) = (note for note in data.description if note.startswith("pairs: "))
    assert note.startswith(f"pairs: {how} (")
    assert reason in note
    assert len(data.pairs) == (2 if how == "separate" else 0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_fixed_length_is_padded_and_told_apart(model: Path, side: str) -> None:
    (model / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "[PAD]"}, "padding_side": side}))
    data = text_rows([{"text": "the cat"}, {"text": "a dog ran far away here"}], model, inputs=text_inputs(length=6))
    first, second = data.examples
    ids, mask = [CLS, *ids_of("the cat"), SEP], [1, 1, 1, 1]
    wanted = ([*ids, PAD, PAD], [*mask, 0, 0]) if side == "right" else ([PAD, PAD, *ids], [0, 0, *mask])
    assert (first.feeds["input_ids"].tolist(), first.feeds["attention_mask"].tolist()) == ([wanted[0]], [wanted[1]])
    assert second.feeds["input_ids"].shape == (1, 6)
    assert second.real is None
    (batch,) = data.batches()
    assert batch.real is not None
    np.testing.assert_array_equal(batch.real, batch.feeds["attention_mask"] == 1)


def test_a_fixed_length_needs_a_padding_token(model: Path) -> None:
    (model / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<none>"}))
    with pytest.raises(DataError, match="no padding token is known"):
        text_rows([{"text": "the cat"}], model, inputs=text_inputs(length=6))
    (model / "config.json").write_text(json.dumps({"pad_token_id": 0}))
    data = text_rows([{"text": "the cat"}], model, inputs=text_inputs("input_ids", length=6))
    assert any("it reads the padding" in line for line in data.description)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text_pair": "a"}, "no field 'text'"),
        ({"text": 3}, "field 'text' must be text, not int"),
        ({"text": None}, "no field 'text'"),
    ],
)
def test_rows_without_text(model: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match="list:2: ") as caught:
        text_rows([{"text": "the cat"}, row], model)
    assert says in str(caught.value)


def test_text_without_tokens(model: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    plain = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    plain.post_processor = None
    plain.save(str(model / "plain.json"))
    with pytest.raises(DataError, match="list:1: the text gives no tokens"):
        text_rows([{"text": " "}], model, tokenizer=model / "plain.json")


def test_a_tokenizer_of_another_model_is_noticed(model: Path) -> None:
    with pytest.raises(DataError, match=r"list:2: 'input_ids' holds token id 7, .*tokenizer of this model"):
        text_rows([{"text": "the"}, {"text": "on"}], model, vocab_size=7)


def test_where_the_tokenizer_is_found(model: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    row = [{"text": "the cat"}]
    bare = tmp_path_factory.mktemp("bare")
    with pytest.raises(DataError, match="--tokenizer"):
        text_rows(row, bare)
    with pytest.raises(DataError, match="no folder was given"):
        read(row, text_inputs())
    with pytest.raises(DataError, match="no such tokenizer"):
        text_rows(row, bare, tokenizer=bare / "none")
    for named in (model, model / "tokenizer.json", str(model)):
        assert text_rows(row, bare, tokenizer=named).examples[0].feeds["input_ids"].shape == (1, 4)
    (model / "onnx").mkdir()
    assert len(text_rows(row, model / "onnx")) == 1
    (bare / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        text_rows(row, bare)


def test_a_tokenizer_that_gives_up_on_any_text(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is the tokenizer's fault, not a row's; what the library in Rust prints for each text is not waited for."""
    file = model / "tokenizer.json"
    held = json.loads(file.read_text(encoding="utf-8"))
    del held["post_processor"]["special_tokens"]["[SEP]"]
    file.write_text(json.dumps(held), encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer\.json: no entry found"):
        text_rows([{"text": "the cat"}] * 8, model)
    assert capfd.readouterr().err.count("panicked at") == 1


def changed(folder: Path, **parts: Any) -> None:
    """Other parts in a tokenizer.json."""
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | parts), encoding="utf-8")


TENFOLD = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
PADDED = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [TENFOLD] * 12}}, "makes up to 1e\\+12 characters of one"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "a*"}, "content": "b" * 20_000}}, "2e\\+04 "),
        ({"post_processor": {
            "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 5000,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {},
        }}, "puts 5,002 parts around a row"),
        ({"post_processor": {
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 100,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"x": {"id": "x", "ids": [2] * 1000, "tokens": ["x"] * 1000}},
        }}, "puts 100,000 parts around a row"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_makes_far_more_of_a_text_than_it_is(model: Path, parts: dict[str, Any], says: str) -> None:
    changed(model, **parts)
    with pytest.raises(DataError, match=rf"tokenizer\.json: its .*{says}.*the model's own file"):
        text_rows([{"text": "the cat sat"}], model)


def test_how_far_a_tokenizer_pads_is_its_own_affair(model: Path) -> None:
    changed(model, padding={"strategy": {"Fixed": 10**12}, **PADDED})
    assert text_rows([{"text": "the cat"}], model).examples[0].feeds["input_ids"].tolist() == [
        [CLS, *ids_of("the cat"), SEP]
    ]


def test_merges_are_left_out_by_chance_in_training_alone(model: Path) -> None:
    words = {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "ab": 4, "abab": 5}
    merges = [["a", "b"], ["ab", "ab"]]
    changed(model, post_processor=None, model={
        "type": "BPE", "vocab": words, "merges": merges, "dropout": 0.5, "unk_token": "[UNK]",
        "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
    })  # fmt: skip
    data = text_rows([{"text": "abab"}] * 50, model)
    assert {tuple(e.feeds["input_ids"].ravel().tolist()) for e in data.examples} == {(5,)}
    assert any("leaves out merges by chance" in line for line in data.description)


def test_a_text_that_takes_for_ever_is_not_waited_for(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WordPiece looks at every part of a word, from every place that a token ends at."""
    monkeypatch.setattr(tokenizer_limits, "SECONDS", 0.1)
    vocabulary = {word: i for i, word in enumerate([*VOCABULARY, "##a"])}
    changed(model, model={
        "type": "WordPiece", "vocab": vocabulary, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 10**9,
    })  # fmt: skip
    assert text_rows([{"text": "aaa the"}], model).examples[0].feeds["input_ids"].shape == (1, 6)
    with pytest.raises(LimitError, match=r"the tokenizer takes more than \d s for 2 texts: is it the model's own"):
        text_rows([{"text": "a" * 2500}] * 2, model)


def test_what_a_tokenizer_takes_of_memory_is_bounded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([0, 10**15])
    monkeypatch.setattr(memory, "resident", lambda: next(held))
    with pytest.raises(LimitError, match=r"the tokenizer takes more than .* of memory for 3 texts"):
        tokenizer_limits.encoded(lambda: time.sleep(0.5), ["a", "b", ("c", "d")])
    held = iter([0])
    assert tokenizer_limits.encoded(lambda: 7, ["a"]) == 7


def test_where_no_other_thread_begins_this_one_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_limits, "BIRTH", 0.0)
    monkeypatch.setattr(_thread, "start_new_thread", lambda *_: 1)
    assert tokenizer_limits.encoded(lambda: 7, ["a"]) == 7

    def none(*_: Any) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", none)
    assert tokenizer_limits.encoded(lambda: 7, ["a"]) == 7


def test_slow_tokenizer_files(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    data = text_rows([{"text": "The cat jumps."}], tmp_path)
    assert data.examples[0].feeds["input_ids"].tolist() == [[CLS, *ids_of("the cat jump ##s ."), SEP]]
    assert any("BertTokenizer" in line for line in data.description)


def test_tokenizers_without_a_fast_form(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "vocab.json").write_text(json.dumps({"<unk>": 0, "a": 1, "b": 2, "<pad>": 3, " ": 4}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CanineTokenizer", "model_max_length": 5})
    )
    data = text_rows([{"text": "ab"}, {"text": "abababab"}], tmp_path)
    assert data.examples[0].feeds["input_ids"].shape == (1, 4)  # Canine's tokens are characters
    assert data.examples[1].feeds["input_ids"].shape == (1, 5)
    assert any("1 of 2 texts were longer" in line for line in data.description)
    with pytest.raises(DataError, match="no fast form"):
        text_rows([{"tokens": ["a"]}], tmp_path)


def test_token_labels_stay_with_their_words(model: Path) -> None:
    rows = [{"tokens": ["cats", "jumped", "here"], "labels": [4, 5, 6]}]
    example = text_rows(rows, model).examples[0]
    assert example.feeds["input_ids"].tolist() == [[CLS, *ids_of("cat ##s jump ##ed here"), SEP]]
    assert example.label.tolist() == [-100, 4, -100, 5, -100, 6, -100]
    padded = text_rows(rows, model, inputs=text_inputs(length=9)).examples[0]
    assert padded.label.tolist() == [*example.label.tolist(), -100, -100]
    cut = text_rows(rows, model, max_length=5).examples[0]
    assert cut.label.tolist() == [-100, 4, -100, 5, -100]


def test_token_labels_by_name_and_from_csv(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"label2id": {"O": 0, "B-PER": 1}}))
    path = model / "rows.csv"
    path.write_text('tokens,labels\n"[""the"", ""cat""]","[""O"", ""B-PER""]"\n')
    data = text_rows(path, model)
    assert data.examples[0].label.tolist() == [-100, 0, 1, -100]
    data = text_rows([{"tokens": ["the", "cat"], "labels": ["O", "B-LOC"]}], model)
    assert data.labels is None
    assert any("does not know all of B-LOC, O" in line for line in data.description)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"tokens": ["the", "cat"], "labels": [1]}, "one label for each of the 2 tokens, not 1"),
        ({"tokens": "the cat"}, "must be a list of words"),
        ({"tokens": []}, "must be a list of words"),
        ({"tokens": ["the", 3]}, "must be a list of words"),
    ],
)
def test_bad_token_rows(model: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match="list:2: ") as caught:
        text_rows([{"tokens": ["the"], "labels": [0]}, row], model)
    assert says in str(caught.value)


CONTEXT = "the cat sat on a mat and was happy here"
ANSWERS: list[Any] = [
    {"text": ["a mat"], "answer_start": [15]},
    [{"text": " a mat ", "answer_start": 14}],
    ["a mat"],
    "a mat",
    json.dumps({"text": ["a mat"], "answer_start": [15]}),
]


@pytest.mark.parametrize("answers", ANSWERS)
def test_answers_become_token_spans(model: Path, answers: Any) -> None:
    data = text_rows([{"question": "where was the cat", "context": CONTEXT, "answers": answers}], model)
    example = data.examples[0]
    ((first, last),) = example.label.tolist()
    assert example.feeds["input_ids"][0, first : last + 1].tolist() == ids_of("a mat")
    assert example.feeds["token_type_ids"][0, first] == 1
    assert data.kind == "qa"


def test_answers_that_are_none_cut_or_wrong(model: Path) -> None:
    row = {"question": "where", "context": CONTEXT, "answers": {"text": [], "answer_start": []}}
    assert text_rows([row], model).examples[0].label.tolist() == [[0, 0]]
    late = row | {"answers": ["here"]}
    data = text_rows([late], model, max_length=8)
    assert data.examples[0].label.tolist() == [[0, 0]]
    assert data.examples[0].feeds["input_ids"][0, :3].tolist() == [CLS, *ids_of("where"), SEP]
    assert any("1 of 1 rows lose theirs" in line for line in data.description)
    for answers in ({"text": ["dog"], "answer_start": [0]}, ["dog"]):
        with pytest.raises(DataError, match="does not stand in the context"):
            text_rows([row | {"answers": answers}], model)
    with pytest.raises(DataError, match="of equal lengths"):
        text_rows([row | {"answers": {"text": ["here"], "answer_start": []}}], model)
    with pytest.raises(DataError, match="list:2: cannot be tokenised"):
        text_rows([row, row | {"question": "the cat " * 9}], model, max_length=12)


def test_answers_behind_left_padding(model: Path) -> None:
    (model / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "padding_side": "left"}))
    rows = [{"question": "where", "context": CONTEXT, "answers": ["a mat"]}]
    example = text_rows(rows, model, inputs=text_inputs(length=20)).examples[0]
    ((first, last),) = example.label.tolist()
    assert example.feeds["input_ids"][0, first : last + 1].tolist() == ids_of("a mat")


def test_byte_level_words_keep_their_space(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {token: index for index, token in enumerate(["a", "b", "Ġ", "Ġa", "Ġb"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("Ġ", "a"), ("Ġ", "b")]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    example = text_rows([{"tokens": ["a", "b"]}], tmp_path).examples[0]
    assert example.feeds["input_ids"].tolist() == [[3, 4]]


def test_arrays_go_before_text(model: Path) -> None:
    data = text_rows([{"text": "the cat", "input_ids": [5, 6, 7]}], model)
    assert data.examples[0].feeds["input_ids"].tolist() == [[5, 6, 7]]
    assert "fields not used: text" in data.description


def test_the_real_tokenizer_agrees_with_transformers(assets: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path, rows = assets / "sst2-minilm", assets / "data" / "stsb" / "dev.jsonl"
    reference = transformers.AutoTokenizer.from_pretrained(path)
    data = read(rows, text_inputs(), outputs=["logits"], folder=path, max_length=24, limit=200)
    for example, line in zip(data.examples, rows.read_text().splitlines(), strict=False):
        row = json.loads(line)
        wanted = reference(row["text"], row["text_pair"], truncation=True, max_length=24)
        assert {name: feed[0].tolist() for name, feed in example.feeds.items()} == dict(wanted)
        assert example.label == row["label"]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", ["sequence", 12])
def test_tokens_of_words_and_questions_have_their_text(model: Path, length: int | str, side: str) -> None:
    (model / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "padding_side": side}))
    inputs = text_inputs(length=length)
    tagged = text_rows([{"tokens": ["the", "cats", "jumped"]}], model, inputs=inputs).examples[0]
    asked = text_rows([{"question": "where", "context": "the  cats sat"}], model, inputs=inputs).examples[0]
    for example, told in ((tagged, " the cats jumped"), (asked, "wherethe  cats sat")):
        assert len(example.pieces) == example.feeds["input_ids"].shape[1]
        assert "".join(example.pieces) == told
        for piece, own in zip(example.pieces, example.feeds["input_ids"][0], strict=True):
            assert VOCABULARY[own].removeprefix("##") == piece.strip() or (not piece and own in (PAD, CLS, SEP)), piece
    assert text_rows([{"text": "the cat"}], model, inputs=inputs).examples[0].pieces == ()
