"""Tests of which value of one graph is which of another."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import ModelError, UnsupportedError
from onnxprune.graph.joined.wiring import Interface, running_order, wire
from onnxprune.graph.model import InputSpec


def ids(name: str, *shape: int | str) -> InputSpec:
    return InputSpec(name, np.dtype(np.int64), shape or ("batch", "sequence"))


def values(name: str, *shape: int | str) -> InputSpec:
    return InputSpec(name, np.dtype(np.float32), shape or ("batch", "sequence", 64))


ENCODER = Interface("encoder_model", (ids("input_ids"), ids("attention_mask")), (values("last_hidden_state"),))
DECODER = Interface(
    "decoder_model",
    (ids("input_ids"), values("encoder_hidden_states"), ids("encoder_attention_mask")),
    (values("logits"), values("present.0.decoder.key"), values("present.0.encoder.key")),
)
BEHIND = Interface(
    "decoder_with_past_model",
    (ids("input_ids"), values("past_key_values.0.decoder.key"), values("past_key_values.0.encoder.key")),
    (values("logits"), values("present.0.decoder.key")),
)


def test_what_an_encoder_gives_its_decoder_takes_and_caches_go_on() -> None:
    behind, decoder, encoder = wire([BEHIND, DECODER, ENCODER])
    assert [g.name for g in running_order([BEHIND, DECODER, ENCODER])] == [
        "encoder_model", "decoder_model", "decoder_with_past_model"
    ]  # fmt: skip
    assert encoder.inputs == {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    assert decoder.inputs == {
        "input_ids": "decoder_input_ids",
        "encoder_hidden_states": "last_hidden_state",
        "encoder_attention_mask": "attention_mask",
    }
    assert behind.follows and not decoder.follows
    assert behind.inputs == {
        "input_ids": "next_input_ids",
        "past_key_values.0.decoder.key": "present.0.decoder.key",
        "past_key_values.0.encoder.key": "present.0.encoder.key",
    }
    assert behind.outputs == {"logits": "next_logits", "present.0.decoder.key": "next_present.0.decoder.key"}


def test_towers_share_nothing_but_names_that_are_told_apart() -> None:
    text = Interface("text_model", (ids("input_ids"),), (values("text_embeds", "b", 8), values("last_hidden_state")))
    image = Interface(
        "vision_model", (values("pixel_values"),), (values("image_embeds", "b", 8), values("last_hidden_state"))
    )
    first, second = wire([text, image])
    assert first.outputs["last_hidden_state"] == "last_hidden_state"
    assert second.outputs["last_hidden_state"] == "vision_model_last_hidden_state"


def test_inputs_that_are_called_alike_are_one_where_they_can_be() -> None:
    one = Interface("query", (ids("input_ids"),), (values("query"),))
    other = Interface("document", (ids("input_ids"),), (values("document"),))
    unlike = Interface("image", (values("input_ids"),), (values("image"),))
    assert [w.inputs["input_ids"] for w in wire([one, other, unlike])] == ["input_ids", "input_ids", "image_input_ids"]


def test_a_name_that_two_give_is_not_guessed_at() -> None:
    again = Interface("encoder_again", ENCODER.inputs, ENCODER.outputs)
    with pytest.raises(
        UnsupportedError, match=r"encoder_hidden_states, which encoder_model\.onnx and encoder_again\.onnx"
    ):
        wire([ENCODER, again, DECODER])


def test_graphs_of_other_models_do_not_fit() -> None:
    wide = Interface("encoder_model", ENCODER.inputs, (values("last_hidden_state", "batch", "sequence", 128),))
    with pytest.raises(ModelError, match="not of one model"):
        wire([wide, DECODER])


def test_graphs_that_wait_for_one_another_are_refused() -> None:
    one = Interface("one", (values("b"),), (values("a"),))
    other = Interface("other", (values("a"),), (values("b"),))
    with pytest.raises(UnsupportedError, match="cannot run one by one"):
        wire([one, other])
