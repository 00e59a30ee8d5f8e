"""What is written where: files that belong together appear together, and nothing that a run reads is ever written.

In: where a result goes, and what the run reads. Out: a folder to write in, whose files take their names all at once.
"""

from onnxprune.graph.outputs.inputs import Inputs
from onnxprune.graph.outputs.manifest import digest
from onnxprune.graph.outputs.output_set import OutputSet, files, folder, refuse, unnamed
from onnxprune.graph.outputs.single_file import ordinary_mode, write_cache

__all__ = ["Inputs", "OutputSet", "digest", "files", "folder", "ordinary_mode", "refuse", "unnamed", "write_cache"]
