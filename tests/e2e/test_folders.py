"""A folder of several graphs from the command line to what people generate with: rows are texts alone."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from folders import FILES, VOCABULARY, WORDS, folder, rows

from onnxprune.cli.main import cli
from onnxprune.errors import UsageError
from onnxprune.export import export


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
    with pytest.raises(UsageError, match="not done for several graphs at once"):
        said(place, "-o", str(tmp_path / "out"), "--flops", "0.5", "--quantize", "int8-static")
    with pytest.raises(UsageError, match="which go into a folder"):
        said(place, "-o", str(tmp_path / "out.onnx"), "--flops", "0.5")
    assert not list(tmp_path.iterdir())
    shown = json.loads(said("inspect", place, "--json", "--calls", "decoder_with_past_model=8"))
    assert shown["files"] == ["encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"]
    assert sorted(shown["files"]) == sorted(FILES) and shown["shape"]["next_decoder_sequence_length"] == 1
    assert not any("@" in branch["id"] for branch in shown["branches"])


def test_a_folder_is_shipped_with_all_its_graphs(store: Path, tmp_path: Path) -> None:
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    place, out = folder("bart", store), tmp_path / "shipped"
    made = export(place, "server", out, calibration=rows(8), evaluation=rows(8), quantize="int8-static")
    assert sorted(made.graphs) == sorted(FILES) and {a.scheme for a in made.artefacts} == {"int8-static"}
    assert all(a.agreement is not None and a.agreement.max_rel < 0.25 for a in made.artefacts)
    evidence = {id(a.evidence) for a in made.artefacts}  # of all together
    assert len(evidence) == 1 and made.artefacts[0].evidence is not None
    told = json.loads((out / "preprocess.json").read_text(encoding="utf-8"))
    assert told["graphs"]["decoder_model"]["encoder_hidden_states"] == {
        "graph": "encoder_model", "output": "last_hidden_state"
    }  # fmt: skip
    assert "`present.*.decoder.key` of `decoder_model`" in (out / "README.md").read_text(encoding="utf-8")
    checked = subprocess.run([sys.executable, str(out / "check.py")], capture_output=True, text=True, check=True)
    assert all(name in checked.stdout for name in FILES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch

        model = ORTModelForSeq2SeqLM.from_pretrained(out, use_cache=True, use_merged=False)
        prompt = torch.from_numpy(np.random.default_rng(0).integers(3, VOCABULARY, (2, 6)))
        assert model.generate(prompt, max_new_tokens=6, do_sample=False).shape[0] == 2


@pytest.mark.slow
def test_a_phone_gets_every_graph_in_both_forms(store: Path, tmp_path: Path) -> None:
    place = folder("bart", store)
    sizes = {"encoder_sequence_length": 8, "decoder_sequence_length": 5, "past_decoder_sequence_length": 5}
    made = export(place, "android", tmp_path / "phone", quantize="int8", shape=sizes)
    stems = ("encoder_model", "decoder_model", "decoder_with_past_model")
    assert [a.file for a in made.artefacts] == [f"{s}{form}" for s in stems for form in (".ort", ".nnapi.onnx")]
    fixed = {a.file: a.fixed for a in made.artefacts if a.fixed}
    assert fixed["decoder_with_past_model.nnapi.onnx"]["past_decoder_sequence_length"] == 5


def test_what_one_graph_is_shipped_with_is_refused_for_several(store: Path, tmp_path: Path) -> None:
    place = folder("bart", store)
    options: tuple[dict[str, Any], ...] = ({"vocab": tmp_path / "words"}, {"bench": True})
    for option in options:
        with pytest.raises(UsageError, match="not done for several graphs at once"):
            export(place, "android", tmp_path / "other", **option)
    with pytest.raises(UsageError, match="the graphs' dimensions are"):
        export(place, "server", tmp_path / "other", shape={"width": 3})
    assert not (tmp_path / "other").exists()
