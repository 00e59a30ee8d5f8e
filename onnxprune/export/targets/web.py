"""Browsers: one `.onnx` for onnxruntime-web, a module that loads it, and a page to try it on."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.export.base import Artefact, Workshop, scheme_for
from onnxprune.export.targets import web_page


class Web:
    """Free shapes and standard operators: WASM, WebGPU and WebNN take the same file."""

    name = "web"
    summary = "For browsers: onnxruntime-web with WASM, WebGPU or WebNN"
    int8 = ("int8-static", "int8-dynamic")

    def build(self, shop: Workshop) -> list[Artefact]:
        target = shop.folder / f"{shop.stem}.onnx"
        scheme = scheme_for(self, shop)
        if scheme:
            # Browsers without half precision on their GPU read no half-precision table: it is unpacked at load.
            shop.quantized(shop.file, scheme, target, by_row=False)
        else:
            shop.copy_model(target)
        if shop.part is None:
            web_page.write(shop, scheme)
        return [Artefact(target.name, "WASM, WebGPU, WebNN", scheme)]

    def guide(self, shop: Workshop, artefacts: Sequence[Artefact]) -> str:
        return web_page.guide(shop) if shop.part is None else web_page.guide_of_several(shop)
