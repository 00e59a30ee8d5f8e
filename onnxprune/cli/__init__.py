"""The command line: one file a command, on click. It parses, calls the pipeline, and prints.

In: what a user typed. Out: files, tables on stdout, logs on stderr, and the exit code of `errors`.
"""

from onnxprune.cli.main import main

__all__ = ["main"]
