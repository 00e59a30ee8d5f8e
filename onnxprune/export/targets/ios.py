"""iOS: a graph that Core ML takes whole as an ML Program, and ORT format for the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.export.base import Artefact, Workshop, scheme_for
from onnxprune.export.targets import mobile


class Ios:
    """`model.coreml.*` has fixed shapes and Core ML's operators alone; `model.ort` runs on the CPU."""

    name = "ios"
    summary = "For iOS: ONNX Runtime with Core ML"
    int8 = ("int8-dynamic", "int8-dynamic")

    def build(self, shop: Workshop) -> list[Artefact]:
        return mobile.build(shop, scheme_for(self, shop), provider="CoreML MLProgram", stem="coreml", purpose="Core ML")

    def guide(self, shop: Workshop, artefacts: Sequence[Artefact]) -> str:
        core = next((a.file for a in artefacts if "coreml" in a.file), artefacts[0].file)
        stem, _, suffix = core.rpartition(".")
        return f"""## Load it

`pod 'onnxruntime-objc'`, or the Swift package `onnxruntime-swift-package-manager`; add the models to the bundle.

```swift
let environment = try ORTEnv(loggingLevel: .warning)
let options = try ORTSessionOptions()
try options.appendExecutionProvider("CoreML", providerOptions: [
    "ModelFormat": "MLProgram", "MLComputeUnits": "ALL", "RequireStaticInputShapes": "1",
])
let path = Bundle.main.path(forResource: "{stem}", ofType: "{suffix}")!
let session = try ORTSession(env: environment, modelPath: path, sessionOptions: options)
{mobile.swift_feeds(shop.model.inputs)}
let outputs = try session.run(withInputs: feeds, outputNames: try Set(session.outputNames()), runOptions: nil)
```

Core ML computes in half precision on the GPU and the Neural Engine: compare with `samples.json` to 1e-2 there.
`{artefacts[0].file}` takes any length and runs on the CPU without Core ML.
"""
