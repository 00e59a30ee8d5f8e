"""Calibration and evaluation rows: files, folders and iterables read as the feeds a graph takes.

    sources   where rows come from: JSON Lines, CSV, Parquet, npz, image folders, iterables
    text, image, audio, tensors   what a row holds, as arrays for the graph's inputs
    image_options   how images are prepared where no file says it
    filled_inputs   what only the graph wants (position_ids, empty past_key_values, ...)
    excerpts  what a person recognises a row by
    labels    class names and numbers as labels
    dataset   Example, Batch, Dataset
    row_axis  where rows stand in inputs and outputs
    more_rows  more rows out of few
    row_doubts  what rows cannot tell
    reader    read(): the above, in that order

A batch holds rows of one shape only, so nothing is padded (a graph that fixes its sequence length is the one
exception; `Batch.real` then says which tokens are real). Every guess is said in `Dataset.description`.
"""

from __future__ import annotations

from onnxprune.data.dataset import Batch, Dataset, Example
from onnxprune.data.excerpts import picture
from onnxprune.data.more_rows import variants
from onnxprune.data.reader import READING, read
from onnxprune.data.row_axis import output_axes, rows_first
from onnxprune.data.row_doubts import overlap, row_doubts

__all__ = [
    "READING",
    "Batch",
    "Dataset",
    "Example",
    "output_axes",
    "overlap",
    "picture",
    "read",
    "row_doubts",
    "rows_first",
    "variants",
]
