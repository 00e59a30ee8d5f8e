"""A folder of several graphs from the command line to what people generate with: rows are texts alone."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from folders import FILES, VOCABULARY, WORDS, folder, rows

from onnxprune.cli.main import cli
from onnxprune.errors import UsageError


def said(*arguments: str) -> str:
    found = CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    return found.output


def test_texts_prune_a_folder_that_generates_as_before(store: Path, tmp_path: Path) -> None:
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    place, out = folder("bart", store), tmp_path / "small"
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": row["text"]}) for row in rows()), encoding="utf-8")
    said(
        str(place), "-o", str(out), "--flops", "0.75", "--calib", str(texts), "--no-compensate", "--round-to", "1",
        "--units", "heads,neurons", "--no-latency", "--quiet",
    )  # fmt: skip
    told = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert told["flops"]["pruned"] <= 0.75 * told["flops"]["dense"]
    assert told["flops"]["shape"]["decoder_sequence_length"] > 1  # the model's own answers
    assert any("own answers" in line for line in told["recipe"]["data"]["calibration"]["said"])
    prompt = np.random.default_rng(0).integers(3, VOCABULARY, (2, len(WORDS) // 2))
    answers = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch

        for source in (place, out):
            model = ORTModelForSeq2SeqLM.from_pretrained(source, use_cache=True, use_merged=False)
            answers.append(model.generate(torch.from_numpy(prompt), max_new_tokens=16, do_sample=False).tolist())
    assert answers[0] == answers[1]


@pytest.mark.parametrize("merged", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_loaded_encoder_with_its_decoders_comes_back_smaller(merged: bool, store: Path, tmp_path: Path) -> None:
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    from onnxprune.optimum import prune

    texts = [{"text": row["text"]} for row in rows()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = ORTModelForSeq2SeqLM.from_pretrained(
            folder("bart", store, merged=merged), use_cache=True, use_merged=merged
        )
        small: Any = prune(
            model, tmp_path / "small", flops=0.75, calibration=texts, compensate=False, round_to=1,
            units=("heads", "neurons"), measure_latency=False,
        )  # fmt: skip
        assert small.encoder.path.parent == tmp_path / "small"
        assert {p.path.name for p in small.parts} == {p.path.name for p in model.parts}
        assert all(small_.path.stat().st_size < dense.path.stat().st_size for small_, dense in _pairs(small, model))
        assert small.can_use_cache and small.generation_config.use_cache
        import torch

        prompt = torch.from_numpy(np.random.default_rng(0).integers(3, VOCABULARY, (2, 8)))
        assert small.generate(prompt, max_new_tokens=8, do_sample=False).shape[0] == 2


def _pairs(small: Any, dense: Any) -> list[tuple[Any, Any]]:
    by_name = {part.path.name: part for part in dense.parts}
    return [(part, by_name[part.path.name]) for part in small.parts]


def test_what_is_done_to_one_graph_is_refused_for_a_folder_in_one_line(store: Path, tmp_path: Path) -> None:
    place = str(folder("bart", store))
    for asked in (
        ("--flops", "0.5", "--quantize", "int8-static"),
        ("--latency", "0.5"),
    ):
        with pytest.raises(UsageError, match="not done for several graphs at once"):
            said(place, "-o", str(tmp_path / "out"), *asked)
    with pytest.raises(UsageError, match="which go into a folder"):
        said(place, "-o", str(tmp_path / "out.onnx"), "--flops", "0.5")
    assert not list(tmp_path.iterdir())
    shown = json.loads(said("inspect", place, "--json", "--calls", "decoder_with_past_model=8"))
    assert shown["files"] == ["encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"]
    assert sorted(shown["files"]) == sorted(FILES) and shown["shape"]["next_decoder_sequence_length"] == 1
    assert not any("@" in branch["id"] for branch in shown["branches"])
