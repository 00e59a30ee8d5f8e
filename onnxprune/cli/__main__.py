"""`python -m onnxprune.cli`: the command line without its entry point."""

from onnxprune.cli import main

if __name__ == "__main__":  # a tool that imports every module runs nothing
    main()
