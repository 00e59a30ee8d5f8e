"""A decoder's next step: what is checked behind a past that is not empty, and where its costs are counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from decoders import VOCABULARY, decoder, feeds_of
from onnx import helper
from plans import in_runtime

import onnxprune
from onnxprune.graph import model as models
from onnxprune.measure.continuations import caches, continued
from onnxprune.pipeline.rows import shape_of


@pytest.mark.parametrize("family", ["gpt2", "genai"])
def test_the_next_token_stands_behind_the_caches_of_the_others(family: str, store: Path) -> None:
    path = decoder(family, store)
    dense = models.load(path)
    assert caches(dense)["past_key_values.1.value"] == "present.1.value"
    feeds = feeds_of(path, np.random.default_rng(0).integers(3, VOCABULARY, (2, 6)))
    (step,) = continued(dense, [feeds])
    assert {v.shape[2] for k, v in step.items() if k.startswith("past")} == {6}
    assert step["attention_mask"].shape == (2, 7)
    whole = np.concatenate([feeds["input_ids"], feeds["input_ids"][:, -1:]], 1)
    wanted = in_runtime(path, feeds_of(path, whole))["logits"][:, -1]
    assert np.abs(in_runtime(path, step)["logits"][:, -1] - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_a_graph_without_caches_has_no_next_step(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["past"], ["present"])
    spec = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 4]) for n in ("past", "present")]
    graph = helper.make_graph([node], "g", spec[:1], spec[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "m.onnx")
    dense = models.load(tmp_path / "m.onnx")
    assert continued(dense, [{"past": np.ones((2, 4), np.float32)}]) == []


def test_costs_are_counted_behind_a_past(store: Path, tmp_path: Path) -> None:
    path = decoder("gpt2", store)
    sizes = shape_of(models.load(path), {"past_sequence_length": 20, "sequence_length": 1}, None)
    assert sizes["past_sequence_length + sequence_length"] == 21
    macs = []
    for past in (0, 20):
        result = onnxprune.prune(
            path, flops=0.9, shape={"past_sequence_length": past, "sequence_length": 1}, measure_latency=False
        )
        macs.append(result.report.flops.dense)
    assert macs[1] - macs[0] == 2 * 2 * 2 * 20 * 64  # layers, products of attention; two operations each


def test_the_written_file_is_checked_behind_a_past(store: Path, tmp_path: Path) -> None:
    path = decoder("llama", store)
    rows = [{"input_ids": np.random.default_rng(i).integers(3, VOCABULARY, (5,))} for i in range(8)]
    onnxprune.prune(path, tmp_path / "cut.onnx", flops=0.9, calibration=rows, measure_latency=False)
    report = json.loads((tmp_path / "cut.report.json").read_text())
    assert report["equivalence"]["rows"] > len(rows)
