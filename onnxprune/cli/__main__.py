"""`python -m onnxprune.cli`: the command line without its entry point."""

from onnxprune.cli import main

main()
