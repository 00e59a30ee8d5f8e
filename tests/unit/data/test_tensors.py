"""Rows of arrays: ranks, dtypes, padding, inputs made by the reader, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.data import Dataset, read
from onnxprune.errors import DataError, UsageError
from onnxprune.graph.model import InputSpec

I64, F32, BOOL = np.dtype(np.int64), np.dtype(np.float32), np.dtype(bool)
IDS = InputSpec("input_ids", I64, ("batch", "sequence"))
MASK = InputSpec("attention_mask", I64, ("batch", "sequence"))
TYPES = InputSpec("token_type_ids", I64, ("batch", "sequence"))
PIXELS = InputSpec("pixel_values", F32, ("batch", 1, 2, 2))


def refused(rows: list[dict[str, Any]], *inputs: InputSpec, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(rows, inputs, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "value", [[7, 8, 9], [[7, 8, 9]], np.array([7, 8, 9]), np.array([[7, 8, 9]], np.int32), [7.0, 8.0, 9.0]]
)
def test_one_example_with_or_without_its_batch_axis(value: Any) -> None:
    example = read([{"input_ids": value}], [IDS]).examples[0]
    feed = example.feeds["input_ids"]
    assert example.source == "list:1"
    assert feed.dtype == np.int64
    assert feed.tolist() == [[7, 8, 9]]


def test_torch_tensors_are_arrays_too() -> None:
    torch = pytest.importorskip("torch")
    value = torch.ones(1, 2, 2, requires_grad=True)
    assert read([{"pixel_values": value}], [PIXELS]).examples[0].feeds["pixel_values"].shape == (1, 1, 2, 2)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([[[1]]], "has shape [1, 1, 1]; expected is [sequence] (one example of [batch, sequence])"),
        (3, "has shape []; expected is [sequence]"),
        ([[1, 2], [3, 4]], "has shape [2, 2]; expected is [sequence]"),
        ([[1, 2], [3]], "rows differ in length"),
        (["a", "b"], "not numbers"),
        ([1, None], "not numbers"),
        ([1.5, 2.0], "holds fractions"),
        ([], "holds no tokens"),
    ],
)
def test_wrong_values_name_row_field_and_expected_shape(value: Any, says: str) -> None:
    message = refused([{"input_ids": [1, 2]}, {"input_ids": value}], IDS)
    assert message.startswith("list:2: ")
    assert "'input_ids'" in message
    assert says in message


def test_wrong_fixed_size_nan_and_overflow() -> None:
    assert "expected is [1, 2, 2]" in refused([{"pixel_values": np.zeros((1, 2, 3))}], PIXELS)
    assert "NaN" in refused([{"pixel_values": np.full((1, 2, 2), np.nan)}], PIXELS)
    small = InputSpec("input_ids", np.dtype(np.int32), ("batch", "sequence"))
    assert "outside of int32" in refused([{"input_ids": [2**40]}], small)
    flags = InputSpec("flags", BOOL, ("batch", "n"))
    assert "outside of bool" in refused([{"flags": [2, 0]}], flags)


def test_half_precision_inputs_are_rounded_to_it() -> None:
    spec = InputSpec("x", np.dtype(np.float16), ("batch", "n"))
    feed = read([{"x": [0.1, 3]}], [spec]).examples[0].feeds["x"]
    assert feed.dtype == np.float16
    assert feed.tolist() == [[np.float16(0.1), 3.0]]


def test_missing_field_and_nothing_to_read() -> None:
    two = InputSpec("other", F32, ("batch", "n"))
    assert "list:2: no field 'other'" in refused([{"input_ids": [1], "other": [1]}, {"input_ids": [1]}], IDS, two)
    message = refused([{"input_ids": [1]}], IDS, two)
    assert "the graph also takes other (float32 [batch, n])" in message
    assert "add a field 'other'" in message
    message = refused([{"sentence": "two words"}], IDS)
    assert "none of the fields 'sentence'" in message
    assert "--columns text=sentence" in message


def test_one_symbol_has_one_size() -> None:
    message = refused([{"input_ids": [1, 2, 3], "attention_mask": [1, 1]}], IDS, MASK)
    assert "'sequence' is 2 in 'attention_mask' and 3 in 'input_ids'" in message


def test_ids_outside_of_the_vocabulary(tmp_path: Path) -> None:
    rows = [{"input_ids": [1, 2]}, {"input_ids": [3, 30]}]
    message = refused(rows, IDS, vocab_size=30)
    assert message.startswith("list:2: ")
    assert "token id 30, the vocabulary ends at 29" in message
    assert "token id -1" in refused([{"input_ids": [-1]}], IDS, vocab_size=30)
    assert len(read(rows, [IDS], vocab_size=31)) == 2
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 30}}))
    assert "token id 30" in refused(rows, IDS, folder=tmp_path)


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(0, 6))
def test_right_padding_is_taken_off(length: int, padding: int) -> None:
    row = {
        "input_ids": [5] * length + [0] * padding,
        "attention_mask": [1] * length + [0] * padding,
        "labels": [2] * length + [-100] * padding,
    }
    example = read([row], [IDS, MASK, TYPES]).examples[0]
    assert example.real is None
    assert list(example.feeds) == ["input_ids", "attention_mask", "token_type_ids"]
    assert {feed.shape for feed in example.feeds.values()} == {(1, length)}
    assert (example.feeds["input_ids"] == 5).all()
    assert example.label.tolist() == [2] * length


def test_padding_that_cannot_go_is_told_apart() -> None:
    left = {"input_ids": [0, 5, 6], "attention_mask": [0, 1, 1]}
    example = read([left], [IDS, MASK]).examples[0]
    assert example.real is not None
    assert example.real.tolist() == [[False, True, True]]
    fixed = [InputSpec(name, I64, ("batch", 3)) for name in ("input_ids", "attention_mask")]
    right = {"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0], "labels": [1, 2, 3]}
    example = read([right], fixed).examples[0]
    assert example.real is not None
    assert example.real.tolist() == [[True, True, False]]
    assert example.label.tolist() == [1, 2, -100]
    assert "hides every token" in refused([{"input_ids": [1], "attention_mask": [0]}], IDS, MASK)


def test_masks_of_floats() -> None:
    mask = InputSpec("attention_mask", F32, ("batch", "sequence"))
    for values, length in (([1, 1, 0], 2), ([0, 0, 0], 3), ([0, 0, -1e9], 3)):
        example = read([{"input_ids": [5, 6, 7], "attention_mask": values}], [IDS, mask]).examples[0]
        assert example.feeds["input_ids"].shape == (1, length)
        assert example.real is None


def test_padding_comes_off_every_axis_of_the_masks_symbol() -> None:
    bias = InputSpec("bias", F32, ("batch", 2, "sequence", "sequence"))
    row = {"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0], "bias": np.arange(18.0).reshape(2, 3, 3)}
    feed = read([row], [IDS, MASK, bias]).examples[0].feeds["bias"]
    np.testing.assert_array_equal(feed[0], np.arange(18.0).reshape(2, 3, 3)[:, :2, :2])


def seq2seq(tmp_path: Path) -> tuple[list[InputSpec], Path]:
    (tmp_path / "config.json").write_text(
        json.dumps({"decoder_start_token_id": 2, "num_key_value_heads": 3, "num_attention_heads": 6, "hidden_size": 48})
    )
    cache = ("batch", "heads", "past", "size")
    specs = [
        IDS,
        MASK,
        InputSpec("position_ids", I64, ("batch", "sequence")),
        InputSpec("decoder_input_ids", I64, ("batch", "decoder")),
        InputSpec("decoder_attention_mask", F32, ("batch", "decoder")),
        InputSpec("past_key_values.0.key", F32, ("batch", 4, "past", 5)),
        InputSpec("past_key_values.0.decoder.value", F32, cache),
        InputSpec("use_cache_branch", BOOL, (1,)),
        InputSpec("cache_position", I64, ("sequence",)),
        InputSpec("num_logits_to_keep", I64, ()),
    ]
    return specs, tmp_path


def test_what_only_the_graph_wants_is_made(tmp_path: Path) -> None:
    specs, folder = seq2seq(tmp_path)
    data = read([{"input_ids": [7, 8, 9]}], specs, folder=folder)
    feeds = data.examples[0].feeds
    assert list(feeds) == [spec.name for spec in specs]
    assert all(feeds[spec.name].dtype == spec.dtype for spec in specs)
    assert feeds["attention_mask"].tolist() == [[1, 1, 1]]
    assert feeds["position_ids"].tolist() == [[0, 1, 2]]
    assert feeds["decoder_input_ids"].tolist() == [[2]]
    assert feeds["decoder_attention_mask"].tolist() == [[1.0]]
    assert feeds["past_key_values.0.key"].shape == (1, 4, 0, 5)
    assert feeds["past_key_values.0.decoder.value"].shape == (1, 3, 0, 8)
    assert feeds["use_cache_branch"].tolist() == [False]
    assert feeds["num_logits_to_keep"].shape == ()
    assert feeds["cache_position"].tolist() == [0, 1, 2]
    (made,) = (note for note in data.description if note.startswith("made by the reader: "))
    assert "past_key_values.*, use_cache_branch" in made
    assert data.mean_shape(specs)["past"] == 0


def test_given_inputs_are_not_made_again() -> None:
    position = InputSpec("position_ids", I64, ("batch", "sequence"))
    feeds = read([{"input_ids": [7, 8], "position_ids": [4, 5]}], [IDS, position]).examples[0].feeds
    assert feeds["position_ids"].tolist() == [[4, 5]]


def test_pixel_mask_global_attention_and_tensorflow_names() -> None:
    pixels = InputSpec("pixel_values", F32, ("batch", 3, "h", "w"))
    mask = InputSpec("pixel_mask", I64, ("batch", "h", "w"))
    feeds = read([{"pixel_values": np.zeros((3, 4, 5))}], [pixels, mask]).examples[0].feeds
    assert feeds["pixel_mask"].tolist() == np.ones((1, 4, 5)).tolist()
    names = ("input_ids:0", "input_mask:0", "segment_ids:0", "global_attention_mask")
    specs = [InputSpec(name, I64, ("batch", "sequence")) for name in names]
    feeds = read([{"input_ids:0": [3, 4, 5]}], specs).examples[0].feeds
    assert [feeds[name].tolist() for name in names[1:]] == [[[1, 1, 1]], [[0, 0, 0]], [[1, 0, 0]]]


def test_what_cannot_be_made_says_why(tmp_path: Path) -> None:
    start = InputSpec("decoder_input_ids", I64, ("batch", "decoder"))
    assert "no decoder_start_token_id" in refused([{"input_ids": [1]}], IDS, start)
    cache = InputSpec("past_key_values.0.key", F32, ("batch", "heads", "past", "size"))
    assert "does not say its heads" in refused([{"input_ids": [1]}], IDS, cache)
    fixed = InputSpec("past_key_values.0.key", F32, ("batch", 2, 16, 4))
    assert "fixes its cache at 16 tokens" in refused([{"input_ids": [1]}], IDS, fixed)


def test_random_rows_are_seeded_in_range_and_say_so(tmp_path: Path) -> None:
    inputs = [IDS, MASK, TYPES]
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 11}))

    def drawn(seed: int) -> Dataset:
        return read("random", inputs, folder=tmp_path, limit=20, seed=seed, max_length=9)

    data = drawn(0)
    assert (len(data), data.kind, data.examples[0].feeds["input_ids"].shape) == (20, "random", (1, 9))
    ids = np.concatenate([example.feeds["input_ids"] for example in data.examples])
    assert (ids.min(), ids.max()) == (0, 10)
    assert "RANDOM" in data.description[0]
    assert data.digest == drawn(0).digest != drawn(1).digest


def test_random_pixels_and_unknown_ranges() -> None:
    data = read("random", [PIXELS], limit=200)
    values = np.concatenate([example.feeds["pixel_values"] for example in data.examples])
    assert abs(values.mean()) < 0.15 and abs(values.std() - 1) < 0.15
    with pytest.raises(DataError, match="range of input_ids"):
        read("random", [IDS])


def test_random_rows_where_the_graph_leaves_sizes_open(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"image_size": [6, 8], "num_channels": 1, "hidden_size": 5}))
    pixels = InputSpec("pixel_values", F32, ("batch", "channels", "height", "width"))
    features = InputSpec("features", F32, ("batch", "frames", "width_of_features"))
    flags = InputSpec("flags", BOOL, ("batch", "frames"))
    sound = InputSpec("sound", np.dtype(np.float16), ("batch", "samples"))
    raw = InputSpec("raw", np.dtype(np.uint8), ("batch", None))
    data = read("random", [pixels, features, flags, sound, raw], folder=tmp_path, limit=1)
    feeds = data.examples[0].feeds
    assert feeds["pixel_values"].shape == (1, 1, 6, 8)
    assert feeds["features"].shape == (1, 64, 5)
    assert feeds["flags"].shape == (1, 64) and feeds["flags"].all()
    assert feeds["sound"].shape == (1, 16000) and feeds["sound"].dtype == np.float16
    assert feeds["raw"].dtype == np.uint8 and feeds["raw"].max() > 200


def test_options_that_make_no_sense() -> None:
    for options in ({"pairs": "both"}, {"limit": 0}, {"max_length": 0}):
        with pytest.raises(UsageError):
            read([{"input_ids": [1]}], [IDS], **options)
    with pytest.raises(UsageError, match="give a path"):
        read(3, [IDS])
    with pytest.raises(DataError, match="no inputs"):
        read([{}], [])


@pytest.mark.parametrize(("mask", "ids"), [("s12", "s21"), ("s12", None), ("sequence", "s21"), ("unk__3", "x_dim_1")])
def test_padding_goes_from_inputs_whose_symbols_were_counted_out(mask: str, ids: str | None) -> None:
    """torch gives every input its own symbols for the same tokens."""
    inputs = [
        InputSpec("input_ids", I64, ("s10", ids)),
        InputSpec("bbox", I64, ("s10", ids, 4)),
        InputSpec("attention_mask", I64, ("s86", mask)),
        InputSpec("decoder_input_ids", I64, ("s10", "s99")),
    ]
    row = {
        "input_ids": [[5, 6, 7, 0]],
        "bbox": np.ones((1, 4, 4), np.int64),
        "attention_mask": [[1, 1, 1, 0]],
        "decoder_input_ids": [[1, 2, 3, 4]],
    }
    feeds = read([row], inputs).examples[0].feeds
    assert {name: array.shape[1] for name, array in feeds.items()} == {
        "input_ids": 3, "bbox": 3, "attention_mask": 3, "decoder_input_ids": 4
    }  # fmt: skip


def test_names_that_mean_something_are_kept_apart() -> None:
    inputs = [InputSpec("attention_mask", I64, ("batch", "sequence")), InputSpec("other_ids", I64, ("batch", "words"))]
    feeds = read([{"attention_mask": [[1, 1, 0]], "other_ids": [[7, 8, 9]]}], inputs).examples[0].feeds
    assert (feeds["attention_mask"].shape, feeds["other_ids"].shape) == ((1, 2), (1, 3))


def test_an_input_of_which_the_graph_states_no_shape_is_told() -> None:
    said = refused([{"x": [1.0, 2.0]}], InputSpec("x", F32, ()))
    assert "has shape [2]; expected is [], a single number; should the graph state no shape for it at all" in said
