"""ORT format: what minimal builds of ONNX Runtime load, with the list of operators and types such a build needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxprune.export.precision.integer import quiet
from onnxprune.graph import outputs, runtime
from onnxprune.graph.runtime import SavedStyle


def convert(source: Path, target: Path, style: SavedStyle = "fixed") -> Path:
    """Write `source` (.onnx) as `target` (.ort), for ARM processors.

    Args:
        style: `fixed` for the CPU, optimised now; `runtime` for a provider that compiles: what it leaves to the CPU is
            optimised on the device.
    """
    runtime.save_optimized(source, target, style)
    return target


def required_operators(made: Sequence[tuple[Path, SavedStyle, Path]], target: Path) -> Path:
    """Write the configuration that a minimal build is made with: the operators of these files, and their types.

    Args:
        made: (source, style, .ort file) of every model that goes into the app.
    """
    with quiet(), outputs.scratch() as scratch:
        from onnxruntime.tools.ort_format_model import create_config_from_models

        files = [file for *_, file in made]
        for number, (source, style, _) in enumerate(made):
            if style == "runtime":  # the operators that saved optimizations make, where they are replayed
                files.append(convert(source, scratch / f"{number}.ort", "applied"))
        create_config_from_models(files, target, True)
    lines = target.read_text(encoding="utf-8").splitlines()
    named = [f"# {', '.join(file.name for *_, file in made)}", *(line for line in lines if not line.startswith("#"))]
    target.write_text("\n".join(named) + "\n", encoding="utf-8")
    return target
