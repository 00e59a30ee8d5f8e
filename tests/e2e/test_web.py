"""The web export as a site: loaded over HTTP by a headless Chromium, in WebAssembly, compared with Python."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser as driver
import numpy as np
import pytest
from browser import Browser, served
from plans import in_runtime
from tokenizers import Tokenizer
from unit.export.test_vocabulary import _trained

from onnxprune import data
from onnxprune.export import export
from onnxprune.graph import model as models

TEXTS = ["a good film, well told", "bad and dull", "the story ended!", "not so bad, and bright"]
ODD = [
    "", "  two  spaces\tand a tab\n", "Ünïcödé ÀÉÎ and naïve café", "ΑΣ ΟΔΟΣ", "数字和汉字 mixed", "it's 1,000$?!",
    "\u200bzero\u200b width\ufeff", "emoji 😀👍🏽 and ñ", "[MASK] the film [SEP]", "a" * 130, "İstanbul straße",
    "don't they'll we've",
]  # fmt: skip


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    if driver.find() is None:
        pytest.skip("no Chromium: install it, or set ONNXPRUNE_CHROMIUM")
    try:
        opened = Browser(str(driver.find()))
    except (OSError, TimeoutError) as error:
        pytest.skip(f"{driver.find()} does not start: {error}")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def web_runtime() -> Path:
    folder = Path(__file__).resolve().parents[1] / "node_modules" / "onnxruntime-web" / "dist"
    named = Path(os.environ.get("ONNXPRUNE_WEB_RUNTIME", folder))
    if not named.is_dir():
        pytest.skip("no onnxruntime-web: npm install --prefix tests, or set ONNXPRUNE_WEB_RUNTIME to its dist folder")
    return named


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS * 3))
    return file


@pytest.fixture(scope="module")
def site(letters_bert: Path, rows: Path, web_runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantised classifier beside its dense original."""
    folder = tmp_path_factory.mktemp("site") / "text"
    export(
        letters_bert, "web", folder, quantize="int8", calibration=rows, dense=letters_bert, web_runtime=web_runtime
    )  # fmt: skip
    return folder


def ready(page: Browser, url: str) -> None:
    page.problems.clear()
    page.open(url)
    page.until("document.body.dataset.state === 'ready' || document.body.dataset.state === 'error'")
    assert page.value("document.body.dataset.state") == "ready", page.value("document.body.innerText")


def test_the_page_compares_dense_and_pruned(page: Browser, site: Path, letters_bert: Path, tmp_path: Path) -> None:
    with served(site) as url:
        ready(page, url)
        assert float(page.value("document.body.dataset.worst")) <= 1e-3  # the samples, as in Python
        text = "a bright and good story, not dull!"
        page.value(f"(() => {{ const t = document.getElementById('text'); t.value = {json.dumps(text)}; "
                   "t.dispatchEvent(new Event('input')); document.getElementById('go').click(); })()")  # fmt: skip
        page.until("document.body.dataset.state === 'done' || document.body.dataset.state === 'error'")
        results, speed = page.value("window.results"), page.value("window.speed")
        shown = page.value("document.querySelector('main').innerText")
        picture = page.picture(tmp_path / "page.png")
    assert [r["name"] for r in results] == ["Dense", "Pruned"]
    ids = Tokenizer.from_file(str(letters_bert / "tokenizer.json")).encode(text).ids
    feeds = {name: np.array([ids if name == "input_ids" else [int(name == "attention_mask")] * len(ids)])
             for name in ("input_ids", "attention_mask", "token_type_ids")}  # fmt: skip
    for result, file in zip(results, (letters_bert / "model.onnx", site / "model.onnx"), strict=True):
        expected = in_runtime(file, feeds)["logits"][0]
        np.testing.assert_allclose(result["values"], expected, atol=1e-3 * np.abs(expected).max())
        assert result["ms"] > 0
        assert abs(sum(result["scores"]) - 1) < 1e-6
    for word in ("Dense", "Pruned", "bad", "fair", "good", " ms", "less to download", "give what they gave in Python"):
        assert word in shown
    assert speed["said"][1:] in shown and f"[{speed['low']:.2f}, {speed['high']:.2f}]" in shown
    assert page.problems == []
    assert picture.stat().st_size > 10_000


def test_no_file_is_asked_for_that_is_not_there(
    page: Browser, site: Path, letters_bert: Path, web_runtime: Path, tmp_path: Path
) -> None:
    """After `npm install`, too: a browser shows each as an error."""
    export(letters_bert, "web", tmp_path / "bare", web_runtime=None)
    modules = tmp_path / "bare" / "node_modules" / "onnxruntime-web"
    if not (tmp_path / "bare" / "runtime").exists():
        modules.mkdir(parents=True)
        (modules / "dist").symlink_to(web_runtime)
    for folder in (tmp_path / "bare", site):
        with served(folder) as url:
            ready(page, url)
        assert page.problems == []


def test_a_sample_is_one_click(page: Browser, site: Path) -> None:
    with served(site) as url:
        ready(page, url)
        assert page.value("[...document.querySelectorAll('#samples button')].map(b => b.textContent)") == TEXTS
        page.value("document.querySelector('#samples button').click()")
        page.until("document.body.dataset.state === 'done' || document.body.dataset.state === 'error'")
        assert page.value("document.getElementById('text').value") == TEXTS[0]
        assert page.value("document.querySelectorAll('.ms').length") == 2


@pytest.mark.parametrize("scheme", ["fp16", "int8-weights", "int8-static"])
def test_fewer_bits_agree_with_python(
    scheme: str, page: Browser, letters_bert: Path, rows: Path, web_runtime: Path, tmp_path: Path
) -> None:
    export(letters_bert, "web", tmp_path / "s", quantize=scheme, calibration=rows, web_runtime=web_runtime)
    with served(tmp_path / "s") as url:
        ready(page, url)
        assert float(page.value("document.body.dataset.worst")) <= 1e-3
        assert page.value("document.querySelectorAll('.side').length") == 1  # no dense model is known


def test_the_page_says_what_is_missing(page: Browser, site: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(site, tmp_path / "copy")
    shutil.rmtree(copy / "runtime")
    with served(copy) as url:
        page.open(url)
        page.until("document.body.dataset.state === 'error'")
        assert "npm install" in page.value("document.getElementById('status').textContent")


@pytest.mark.parametrize("kind", ["letters", "WordPiece", "BPE", "Unigram"])
def test_the_tokenizer_splits_as_in_python(
    kind: str, page: Browser, site: Path, letters_bert: Path, tmp_path: Path
) -> None:
    if kind == "letters":
        shutil.copy(letters_bert / "tokenizer.json", tmp_path)
    else:
        _trained(kind, tmp_path)
    known = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    known.no_truncation()
    texts = [t for t in [*TEXTS, *ODD] if kind != "Unigram" or t]
    with served(site) as url:
        page.open(url)
        told = (tmp_path / "tokenizer.json").read_text()
        found = page.value(
            f"import('{url}tokenizer.mjs').then(({{ Tokenizer }}) => {{"
            f"const t = new Tokenizer({told}, {{ max_length: null, pad_id: 0, pad_side: 'right' }});"
            f"return {json.dumps(texts)}.map(text => t.encode(text).ids); }})"
        )
    for text, ids in zip(texts, found, strict=True):
        assert ids == known.encode(text).ids, text


def test_an_unknown_tokenizer_is_refused(page: Browser, site: Path) -> None:
    told = {"model": {"type": "BPE", "vocab": {}, "merges": [], "byte_fallback": True}}
    with served(site) as url:
        page.open(url)
        answer = page.value(
            f"import('{url}tokenizer.mjs').then(({{ Tokenizer }}) => new Tokenizer({json.dumps(told)}, {{}}))"
            ".then(() => 'taken', error => error.message)"
        )
    assert "BPE" in answer


@pytest.mark.parametrize("config", [
    {"do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2, "do_rescale": True, "do_normalize": False},
    {"do_resize": True, "size": {"shortest_edge": 10}, "resample": 3, "do_center_crop": True,
     "crop_size": {"height": 8, "width": 8}, "do_rescale": True, "do_normalize": True, "image_mean": [0.4],
     "image_std": [0.3], "image_processor_type": "CLIPImageProcessor"},
])  # fmt: skip
def test_an_image_becomes_the_same_pixels(
    config: dict[str, Any], page: Browser, digits_vit: Path, web_runtime: Path, tmp_path: Path
) -> None:
    from PIL import Image

    folder = shutil.copytree(digits_vit, tmp_path / "model")
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    noise = np.kron(rng.integers(0, 255, (12, 9, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, format="png")
    (tmp_path / "image.png").write_bytes(stream.getvalue())
    rows = [{"image": str(tmp_path / "image.png")}]
    dense = models.load(folder)
    feeds = data.read(rows, dense.inputs, outputs=dense.outputs, folder=folder).examples[0].feeds
    export(folder, "web", tmp_path / "site", calibration=rows, web_runtime=web_runtime)
    with served(tmp_path / "site") as url:
        ready(page, url)
        png = base64.b64encode(stream.getvalue()).decode()
        found = page.value(
            f"(async () => {{ const {{ load }} = await import('{url}model.mjs'); const model = await load();"
            f"const blob = await (await fetch('data:image/png;base64,{png}')).blob();"
            "const feeds = await model.feeds(blob); const answer = await model.predict(blob);"
            "return [Array.from(feeds.pixel_values.data), feeds.pixel_values.dims, answer.values]; })()"
        )
    pixels = np.array(found[0], np.float32).reshape(found[1])
    assert pixels.shape == feeds["pixel_values"].shape
    step = 1.01 / 255 / (config.get("image_std") or [1.0])[0]  # one of 256 levels: rounding may differ
    assert np.abs(pixels - feeds["pixel_values"]).max() <= step
    assert np.abs(pixels - feeds["pixel_values"]).mean() <= step / 20
    logits = in_runtime(dense.path or folder, {"pixel_values": pixels})["logits"][0]
    np.testing.assert_allclose(found[2], logits, atol=1e-3 * np.abs(logits).max())


@pytest.mark.parametrize(
    ("provider", "there"),
    [
        ("webgpu", "navigator.gpu ? navigator.gpu.requestAdapter().then(Boolean) : false"),
        ("webnn", "navigator.ml ? navigator.ml.createContext().then(Boolean, () => false) : false"),
    ],
)
def test_other_providers_agree_where_there_are_any(
    page: Browser, letters_bert: Path, web_runtime: Path, tmp_path: Path, provider: str, there: str
) -> None:
    export(letters_bert, "web", tmp_path / "site", web_runtime=web_runtime)
    with served(tmp_path / "site") as url:
        ready(page, url)
        if not page.value(there):
            pytest.skip(f"this Chromium has no {provider}")
        if not (tmp_path / "site" / "runtime" / "ort.webgpu.min.mjs").exists():
            pytest.skip("this onnxruntime-web was installed without its WebGPU and WebNN build")
        page.value(f"(() => {{ const p = document.getElementById('provider'); p.value = '{provider}';"
                   "p.dispatchEvent(new Event('change')); })()")  # fmt: skip
        page.until("document.body.dataset.state === 'ready' || document.body.dataset.state === 'error'")
        assert page.value("document.body.dataset.state") == "ready", page.value("document.body.innerText")
        assert float(page.value("document.body.dataset.worst")) <= 1e-3


def test_node_agrees_with_python(site: Path, web_runtime: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node")
    script = Path(__file__).with_name("node_check.mjs")
    done = subprocess.run([node, script, site, web_runtime], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["samples"] == 4
    assert told["worst"] <= 1e-3
