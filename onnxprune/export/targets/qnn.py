"""Qualcomm's NPU: fixed shapes, QDQ with 16-bit activations, compiled ahead of time where the provider is installed."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.errors import OnnxPruneError
from onnxprune.export.base import Artefact, Workshop, scheme_for
from onnxprune.export.lower import finite_masks
from onnxprune.graph import model as models
from onnxprune.graph import runtime
from onnxprune.graph.providers import resolve_providers

PROVIDER = "QNNExecutionProvider"


class Qnn:
    """`model.onnx` for the HTP; with the QNN provider installed its placement is checked in Qualcomm's simulator."""

    name = "qnn"
    summary = "For Qualcomm NPUs: ONNX Runtime with QNN"
    int8 = ("a16w8", "a16w8")

    def build(self, shop: Workshop) -> list[Artefact]:
        scheme = scheme_for(self, shop)
        if not scheme and shop.part is None and shop.read(shop.model.inputs) is not None:
            scheme = "a16w8"
            shop.say("the NPU gets 16-bit activations and 8-bit weights; --quantize a8w8 or fp16 says otherwise")
        if scheme in ("fp16", "fp16-compute"):
            scheme = ""  # the HTP computes float graphs in half precision by itself
        model, sizes = shop.fixed()
        finite_masks(model)
        fixed = shop.scratch / "qnn.onnx"
        models.save(model, fixed)
        target = shop.folder / f"{shop.stem}.onnx"
        if scheme:
            shop.quantized(fixed, scheme, target)
        else:
            target.write_bytes(fixed.read_bytes())
        placement = self._place(shop)
        return [Artefact(target.name, "QNN HTP", scheme, sizes, placement=placement)]

    def _place(self, shop: Workshop) -> str:
        """What the simulator takes, in words; and a context compiled for the chip, where that works."""
        try:
            resolve_providers("qnn")
        except OnnxPruneError as missing:
            shop.say(f"placement was not checked: {missing}")
            return ""
        file = shop.folder / f"{shop.stem}.onnx"
        try:
            found = runtime.coverage(runtime.session(file, ("qnn",)))
        except OnnxPruneError as error:
            shop.say(f"the simulator does not take the model: {error}")
            return "refused"
        try:
            runtime.session(file, ("qnn",), config={"session.disable_cpu_ep_fallback": "1"})
            complete = True
        except OnnxPruneError:
            complete = False
        try:
            runtime.compile_ahead(file, shop.folder / f"{shop.stem}_ctx.onnx", "qnn")
        except OnnxPruneError as error:
            shop.say(f"no compiled context was written: {error}")
        share = "all nodes" if complete else f"{found.nodes_on_provider} of {found.nodes} nodes"
        return f"{share} in {found.partitions} partition{'s' * (found.partitions != 1)} on the HTP simulator"

    def guide(self, shop: Workshop, artefacts: Sequence[Artefact]) -> str:
        context = (shop.folder / f"{shop.stem}_ctx.onnx").exists()
        said = (
            f"`{shop.stem}_ctx.onnx` is the same model compiled for SoC model 57 with this SDK: it opens in a fraction "
            "of the time, on that chip; compile your own on the device with `ep.context_enable`.\n" if context else ""
        )  # fmt: skip
        fixed = ", ".join(f"{k} = {v}" for k, v in artefacts[0].fixed.items())
        return f"""## Load it

`implementation("com.microsoft.onnxruntime:onnxruntime-android-qnn:latest.release")` on Android; `pip install
onnxruntime-qnn` beside onnxruntime on Windows on Snapdragon.

```kotlin
val environment = OrtEnvironment.getEnvironment()
val options = OrtSession.SessionOptions().apply {{
    addQnn(mapOf("backend_type" to "htp", "htp_performance_mode" to "burst", "enable_htp_fp16_precision" to "1"))
    addConfigEntry("session.disable_cpu_ep_fallback", "1")      // refuse rather than be slow
}}
val session = environment.createSession(modelPath, options)
```

```python
import onnxruntime as ort, onnxruntime_qnn

ort.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
devices = [d for d in ort.get_ep_devices() if d.ep_name == "QNNExecutionProvider"]
options = ort.SessionOptions()
options.add_provider_for_devices(devices[:1], {{"backend_type": "htp"}})
session = ort.InferenceSession("{artefacts[0].file}", options)
```

Shapes are fixed ({fixed or "as exported"}): pad the rows as `preprocess.json` says.
{said}"""
