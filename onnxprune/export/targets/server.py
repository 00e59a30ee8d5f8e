"""Servers: CPU, OpenVINO, CUDA, TensorRT, from Python or any other language ONNX Runtime speaks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.resources import files

from onnxprune.export.base import Artefact, Workshop, literal, scheme_for


class Server:
    """One `.onnx` of free shapes, as all server providers take it, and a script that checks it where it will run.

    On a 6-layer classifier cut to half its FLOPs, on one thread with VNNI: int8-dynamic is 3.4 to 4.7 times as fast as
    the dense model in single precision and 0.050 nats from it, int8-static 2.9 to 3.2 times and 0.061 nats.
    """

    name = "server"
    summary = "For servers: CPU, OpenVINO, CUDA, TensorRT"
    int8 = ("int8-dynamic", "int8-dynamic")

    def build(self, shop: Workshop) -> list[Artefact]:
        target = shop.folder / f"{shop.stem}.onnx"
        scheme = scheme_for(self, shop)
        if scheme:
            shop.quantized(shop.file, scheme, target)
        else:
            shop.copy_model(target)
        check = files("onnxprune.export") / "templates" / "check.py"
        shutil.copyfile(str(check), shop.folder / "check.py")
        return [Artefact(target.name, "CPU, OpenVINO, CUDA, TensorRT", scheme)]

    def guide(self, shop: Workshop, artefacts: Sequence[Artefact]) -> str:
        inputs = ", ".join(f"{literal(s.name)}: …" for s in shop.model.inputs)
        return f"""## Load it

```python
import onnxruntime as ort

options = ort.SessionOptions()
options.intra_op_num_threads = 1                       # per request; raise it where requests are few
session = ort.InferenceSession(
    "{artefacts[0].file}", options,
    providers=["CPUExecutionProvider"],                # or OpenVINOExecutionProvider, CUDAExecutionProvider,
)                                                      # TensorrtExecutionProvider, each from its own package
outputs = session.run(None, {{{inputs}}})
```

`python check.py` compares this folder with its samples; `python check.py --ep OpenVINOExecutionProvider` does it on
another provider, and needs nothing but onnxruntime and numpy.

8-bit numbers pay on CPUs with VNNI or AMX, where ranges found at run time were both faster and closer than fixed ones;
OpenVINO and TensorRT want `--quantize int8-static`; on CUDA use `--quantize fp16-compute`; the other two
choose half precision themselves.
"""
