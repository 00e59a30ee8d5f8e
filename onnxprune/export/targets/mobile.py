"""What the two phones share: one file for the CPU, one for the provider, and the forms the graph goes through."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from onnxprune.export import ort_format, usability
from onnxprune.export.base import Artefact, Workshop, literal
from onnxprune.export.lower import finite_masks, lower, narrow_integers
from onnxprune.graph import model as models
from onnxprune.graph.model import InputSpec

STORED = ("fp16", "int8-weights")
"""Schemes whose weights become single precision when a full build loads the file: a compiling provider sees those."""


FAMILIES = {"NNAPI": ("NNAPI",), "CoreML MLProgram": ("CoreML MLProgram", "CoreML NeuralNetwork")}
"""A provider and its other forms, which the report compares it with."""


def build(shop: Workshop, scheme: str, *, provider: str, stem: str, purpose: str) -> list[Artefact]:
    """`model.ort` of free shapes for the CPU, and the provider's own form; the required operators of both.

    Args:
        scheme: of the CPU's file. The provider's file holds weights in as few bits where it can: half precision and
            8-bit weights; a provider that lacks dynamic quantisation gets QDQ, or 8-bit weights without rows.
        provider: a key of the usability lists.
        stem: what the provider's file has behind its name.
        purpose: of it, for the user.
    """
    base = shop.file
    if scheme:
        base = shop.quantized(shop.file, scheme, shop.scratch / "cpu.onnx")
    cpu = ort_format.convert(base, shop.folder / f"{shop.stem}.ort")
    shop.stored.append((base, "fixed", cpu))
    artefacts = [Artefact(cpu.name, "CPU, XNNPACK" if provider == "NNAPI" else "CPU", scheme)]

    file, sizes = provider_form(shop, provider)
    own = _provider_scheme(scheme)
    if own:
        file = shop.quantized(file, own, shop.scratch / "provider.quantized.onnx")
    if own in STORED:
        # Only a full build folds the weights back before the provider sees them, and it takes .onnx as well.
        target = shop.folder / f"{shop.stem}.{stem}.onnx"
        target.write_bytes(file.read_bytes())
    else:
        target = ort_format.convert(file, shop.folder / f"{shop.stem}.{stem}.ort", "runtime")
        shop.stored.append((file, "runtime", target))
    ort_format.required_operators(shop.stored, shop.folder / "required_operators_and_types.config")
    return [*artefacts, Artefact(target.name, purpose, own, sizes)]


def provider_form(shop: Workshop, provider: str) -> tuple[Path, dict[str, int]]:
    """The graph as the provider takes it, and the sizes that were fixed; each form's coverage goes into the report."""
    given = shop.scratch / "given.onnx"
    models.save(shop.model.normal, given)
    shop.survey(usability.survey(given, "as given", FAMILIES[provider]))
    model, sizes = shop.fixed()
    masks = finite_masks(model)
    fixed = shop.scratch / "fixed.onnx"
    models.save(model, fixed)
    shop.survey(usability.survey(fixed, "fixed shapes", FAMILIES[provider]))
    replaced = lower(model, usability.supported_operators(provider))
    narrow_integers(model)
    lowered = shop.scratch / "lowered.onnx"
    models.save(model, lowered)
    shop.survey(usability.survey(lowered, "equivalents", [provider]))
    if replaced:
        listed = ", ".join(f"{count} {op}" for op, count in sorted(replaced.items()))
        shop.say(f"{provider} lacks {listed}: written in operators it has")
    if masks:
        shop.say("attention masks add -100 where they added numbers that half precision cannot hold")
    return lowered, sizes


def _provider_scheme(scheme: str) -> str:
    return {"fp16-compute": "", "int8-dynamic": "int8-weights"}.get(scheme, scheme)


def kotlin_feeds(inputs: Sequence[InputSpec]) -> str:
    """The map of tensors in Kotlin; ids and masks are LongArrays, images FloatArrays."""
    buffers = {"int64": "LongBuffer", "int32": "IntBuffer", "float32": "FloatBuffer"}
    lines = []
    for s in inputs:
        buffer, name = buffers.get(s.dtype.name, "ByteBuffer"), _camel(s.name)
        key = literal(s.name).replace("$", "\\$")
        lines.append(f"    {key} to OnnxTensor.createTensor(environment, {buffer}.wrap({name}), {name}Shape),")
    return "\n".join(["val feeds = mapOf(", *lines, ")"])


def swift_feeds(inputs: Sequence[InputSpec]) -> str:
    """The dictionary of tensors in Swift; the data are NSMutableData of the numbers."""
    types = {"int64": ".int64", "int32": ".int32", "float32": ".float"}
    lines = [
        f"    {literal(s.name)}: try ORTValue(tensorData: {_camel(s.name)}, "
        f"elementType: {types.get(s.dtype.name, '.uInt8')}, shape: {_camel(s.name)}Shape),"
        for s in inputs
    ]
    return "\n".join(["let feeds: [String: ORTValue] = [", *lines, "]"])


def _camel(name: str) -> str:
    first, *rest = re.sub(r"\W+", "_", name).strip("_").split("_")
    made = first + "".join(part.capitalize() for part in rest)
    return made if made.isidentifier() else f"input{made}"
