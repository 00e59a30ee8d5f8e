"""Android: ORT format for the CPU and XNNPACK, and a graph of fixed shapes for NNAPI."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.export import device
from onnxprune.export.base import Artefact, Workshop, scheme_for
from onnxprune.export.targets import mobile


class Android:
    """`model.ort` runs anywhere; `model.nnapi.*` is the form in which NNAPI takes the whole graph."""

    name = "android"
    summary = "For Android: ONNX Runtime with XNNPACK or NNAPI"
    int8 = ("int8-dynamic", "int8-dynamic")

    def build(self, shop: Workshop) -> list[Artefact]:
        scheme = scheme_for(self, shop)
        artefacts = mobile.build(shop, scheme, provider="NNAPI", stem="nnapi", purpose="NNAPI")
        if shop.asked.bench:
            device.write(shop, artefacts)
        return artefacts

    def guide(self, shop: Workshop, artefacts: Sequence[Artefact]) -> str:
        nnapi = next((a.file for a in artefacts if "nnapi" in a.file), None)
        kit = (
            "\n## Measure it\n\n`sh bench/run.sh` with a phone on adb; see `bench/README.md`.\n"
            if shop.asked.bench
            else ""
        )
        provider = f"""
For NNAPI, load `{nnapi}` and add `options.addNnapi(EnumSet.of(NNAPIFlags.USE_FP16))`; its shapes are fixed: pad.
Android 15 deprecates NNAPI; on Qualcomm chips prefer the `qnn` export and the QNN provider.
""" if nnapi else ""  # fmt: skip
        return f"""## Load it

`implementation("com.microsoft.onnxruntime:onnxruntime-android:latest.release")`; put the models in `assets/`.

```kotlin
val environment = OrtEnvironment.getEnvironment()
val options = OrtSession.SessionOptions().apply {{
    setIntraOpNumThreads(2)
    addXnnpack(mapOf("intra_op_num_threads" to "2"))
}}
val session = environment.createSession(assets.open("{artefacts[0].file}").readBytes(), options)
{mobile.kotlin_feeds(shop.model.inputs)}
val result = session.run(feeds)
val output = (result[0].value as Array<*>)[0] as FloatArray      // the first row
```
{provider}
A minimal build of ONNX Runtime needs `required_operators_and_types.config` only:
`./build.sh --android --minimal_build extended --include_ops_by_config required_operators_and_types.config
--enable_reduced_operator_type_support`.
{kit}"""
