"""`python -m onnxprune`: the command line."""

from onnxprune.cli import main

if __name__ == "__main__":  # a tool that imports every module runs nothing
    main()
