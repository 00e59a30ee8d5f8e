"""What a model is: its file, its operators, its axes, and what of it can be cut.

In: an `.onnx` file or a folder. Out: an `onnx_ir.Model` whose shapes are known (`model`, `prepare`), the groups of
units in it (`structure`, by the algebra of `axes`), and the types that say what is to go (`plan`). An operator's four
meanings are in `ops`.
"""
