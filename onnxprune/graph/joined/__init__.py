"""Several graphs of one folder, or of one merged file, as one: an encoder with its decoders, two towers.

What one graph gives another is one value, what both hold is one tensor, so that whatever is asked of a graph (what must
be cut together, what a unit costs, what its loss does to the outputs) is asked of all at once. `split` takes the graphs
apart again, each with the interface of its file.
"""

from onnxprune.graph.joined.folder import alone, find, gathered, is_job, load, open_file, opened, written
from onnxprune.graph.joined.split import nodes_of, owners, split

__all__ = [
    "alone",
    "find",
    "gathered",
    "is_job",
    "load",
    "nodes_of",
    "open_file",
    "opened",
    "owners",
    "split",
    "written",
]
