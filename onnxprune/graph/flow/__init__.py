"""Control flow as plain nodes: `If`, `Loop` and `Scan` opened into the graph around them, and put back.

What a body holds lies in the graph like anything else, so that it is analysed, run, gated, refit and cut like anything
else. Three nodes say where control flow was:

    Choice(condition, then…, else…) → …     an If: one side's values
    Enter(…) → states, slices …             what a turn of a Loop or Scan begins with, as its node's inputs are
    Leave(states, outputs …, Enter's) → …   what a turn ends with, and what the node gives

Which nodes belong to a side or to a turn is not noted but told by who reads whom (`regions.Flow`): what only one side
of a Choice reads is that side's, what depends on an Enter is done each turn. A rewriter may put in and take out nodes.
"""

from onnxprune.graph.flow.closing import closed
from onnxprune.graph.flow.lists import stack_lists
from onnxprune.graph.flow.nodes import CHOICE, DOMAIN, ENTER, LEAVE, condition, enter_of, holds_flow, is_flow
from onnxprune.graph.flow.opening import choose_known, open_up, widened
from onnxprune.graph.flow.regions import Flow, asks_rows

__all__ = [
    "CHOICE", "DOMAIN", "ENTER", "LEAVE", "Flow", "asks_rows", "choose_known", "closed", "condition", "enter_of",
    "holds_flow", "is_flow", "open_up", "stack_lists", "widened",
]  # fmt: skip
