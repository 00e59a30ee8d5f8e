"""What the web export adds to a model: the modules that load it, a page to try it on, and onnxruntime-web itself."""

from __future__ import annotations

import json
import re
import shutil
from importlib.resources import files
from pathlib import Path, PurePosixPath

from onnxprune.errors import UsageError
from onnxprune.export.base import Workshop
from onnxprune.export.preprocessing import preprocessing
from onnxprune.graph import model as models
from onnxprune.graph import model_files
from onnxprune.graph.companions import copy_companions
from onnxprune.measure import latency

VERSION = "1.30.0"
"""The onnxruntime-web this was tried with."""
_FILES = (
    "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm",
)  # fmt: skip
"""The first three run WASM; the others WebGPU and WebNN."""
_PLACES = 'const PLACES = ["runtime/", "node_modules/onnxruntime-web/dist/"];'
_AFTER_NPM = 'const PLACES = ["node_modules/onnxruntime-web/dist/", "runtime/"];'
_NAMELESS = re.compile(
    r"(onnx|models?|model_optimized|model\.pruned|pruned|out(put)?s?|exports?|build|dist|dense|\d*|tmp\w*)", re.I
)
"""Names of files and folders that say nothing of the model."""


def write(shop: Workshop, scheme: str) -> None:
    """Page, modules, package.json; onnxruntime-web in `runtime/` where it is found; the dense model in `demo/`."""
    found = _runtime(shop)
    templates = files("onnxprune.export") / "templates" / "web"
    for template in templates.iterdir():
        text = template.read_text(encoding="utf-8")
        # A browser logs an error for every file that is not there: it asks first where the runtime is, or will be.
        text = text.replace(_PLACES, _PLACES if found is not None else _AFTER_NPM)
        (shop.folder / template.name).write_text(text, encoding="utf-8")
    package = {"private": True, "dependencies": {"onnxruntime-web": VERSION}}
    (shop.folder / "package.json").write_text(json.dumps(package, indent=1) + "\n", encoding="utf-8")
    own = shop.folder / "model.onnx"
    shown = [{"name": "Pruned", "base": "./", "bytes": model_files.size(own), "numbers": scheme or "fp32"}]
    if shop.dense is not None:
        _dense(shop)
        size = model_files.size(shop.folder / "demo" / "model.onnx")
        shown.insert(0, {"name": "Dense", "base": "./demo/", "bytes": size, "numbers": "fp32"})
    else:
        shop.say("the page shows this model alone: --dense names the original to compare it with")
    about = {"name": _title(shop), "models": shown}
    (shop.folder / "page.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    if found is None:
        shop.say(
            "onnxruntime-web was not found: `npm install` in the folder brings it, or name its folder: --web-runtime"
        )
        return
    (shop.folder / "runtime").mkdir()
    for name in _FILES:
        if (found / name).is_file():
            shutil.copyfile(found / name, shop.folder / "runtime" / name)


def _dense(shop: Workshop) -> None:
    """The dense original as the page loads it, with its own tokenizer."""
    assert shop.dense is not None
    demo = shop.folder / "demo"
    demo.mkdir()
    dense = models.read(shop.dense)
    models.save(dense, demo / "model.onnx")
    copy_companions(shop.dense.parent, demo)
    told = preprocessing(latency.graph_inputs(demo / "model.onnx"), latency.graph_outputs(demo / "model.onnx"), demo)
    (demo / "preprocess.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _title(shop: Workshop) -> str:
    """What the model is called: by its configuration, its file, or the nearest folder whose name says something."""
    source = (shop.dense or shop.file).absolute()
    told = _configured(source.with_name("config.json"))
    for name in (told, source.stem, *(folder.name for folder in source.parents)):
        if name and not _NAMELESS.fullmatch(name):
            return name
    return "model"


def _configured(config: Path) -> str:
    """The last part of a configuration's `_name_or_path`, which exporters keep; empty where there is none."""
    try:
        held = json.loads(config.read_text(encoding="utf-8")).get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        return ""
    return PurePosixPath(held).name if isinstance(held, str) else ""


def _runtime(shop: Workshop) -> Path | None:
    """onnxruntime-web's `dist` folder: as named, or in a node_modules of the working folder or above it.

    Raises:
        UsageError: the folder that was named does not hold it.
    """
    named = shop.asked.runtime
    if named is not None:
        for place in (named, named / "dist", named / "onnxruntime-web" / "dist"):
            if (place / _FILES[0]).is_file():
                return place
        raise UsageError(f"--web-runtime {named}: no {_FILES[0]} there; name the folder `dist` of onnxruntime-web")
    here = Path.cwd()
    places = (folder / "node_modules" / "onnxruntime-web" / "dist" for folder in (here, *here.parents))
    return next((place for place in places if (place / _FILES[0]).is_file()), None)


def guide_of_several(shop: Workshop) -> str:
    """How a browser runs one of several graphs; which feeds which is the app's loop."""
    return f"""## Load it

`npm install onnxruntime-web@{VERSION}`, then a session a graph:

```js
import * as ort from "onnxruntime-web";

const session = await ort.InferenceSession.create("{shop.stem}.onnx", {{ executionProviders: ["wasm"] }});
```

`samples.json` holds feeds and what each graph should give for them. There is no page to try it on: what calls the
graphs, token by token, is the app's.
"""


def guide(shop: Workshop) -> str:
    """How to serve it, and how to use it from an app."""
    first = "a warm, funny film" if (shop.folder / "tokenizer.json").exists() else "image"
    example = f'"{first}"' if first != "image" else first
    have = (shop.folder / "runtime").exists()
    install = "" if have else "npm install                     # brings onnxruntime-web\n"
    return f"""## Try it

```bash
{install}python3 -m http.server 8000
```

Open http://localhost:8000/: `index.html` is a page that runs this model, and the dense one beside it if `demo/` is
there. Nothing is sent anywhere. `index.html`, `app.mjs`, `page.json` and `demo/` are for trying: a site needs none
of them.

## Load it

```js
import {{ load, selfCheck, json }} from "./model.mjs";

const model = await load({{ provider: "wasm" }});               // or "webgpu", "webnn"
const {{ scores, labels, values }} = await model.predict({example});

const samples = (await json("samples.json")).models["model.onnx"];
console.log("off by", await selfCheck(model, samples));        // once, on a new browser
```

`model.mjs`, `tokenizer.mjs` and `image.mjs` are all the code there is, and onnxruntime-web its only dependency. With
that alone: `ort.InferenceSession.create("model.onnx", {{ executionProviders: ["wasm"] }})`.

Threads need the headers `Cross-Origin-Opener-Policy: same-origin` and `Cross-Origin-Embedder-Policy: require-corp`.
8-bit numbers are fast on WASM; WebGPU and WebNN want fp16 or fp32. Serve `.onnx` and `.wasm` compressed.
"""
