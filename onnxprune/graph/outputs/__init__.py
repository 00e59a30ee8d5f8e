"""What is written where: files that belong together appear together, and nothing that a run reads is ever written.

In: where a result goes, and what the run reads. Out: a folder to write in, whose files take their names all at once.
"""

from onnxprune.graph.outputs.inputs import Inputs
from onnxprune.graph.outputs.manifest import digest
from onnxprune.graph.outputs.output_set import OutputSet, files, folder, reading, refuse, unnamed
from onnxprune.graph.outputs.single_file import ordinary_mode, write_cache
from onnxprune.graph.outputs.temporary import Lasting, Scratch, everything, scratch

__all__ = [
    "Inputs", "Lasting", "OutputSet", "Scratch", "digest", "everything", "files", "folder", "ordinary_mode", "reading",
    "refuse", "scratch", "unnamed", "write_cache",
]  # fmt: skip
