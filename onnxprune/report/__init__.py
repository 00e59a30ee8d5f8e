"""What pruning did, for people and for programs.

schema     Report: frozen data, to and from JSON (`schema_version`)
text       numbers as people read them; a speed-up is never worded without its interval
advice     what to do next
terminal   tables for a terminal, plain text for a pipe
html       one self-contained page
"""

from __future__ import annotations

from onnxprune.report.schema import SCHEMA_VERSION, Budget, Change, Flops, ModelInfo, Report, Sparsity, Units

__all__ = ["SCHEMA_VERSION", "Budget", "Change", "Flops", "ModelInfo", "Report", "Sparsity", "Units"]
