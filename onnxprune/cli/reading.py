"""Options of how rows are read: which, from where, and how texts and images are prepared."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli.options import MOST, Pairs, together

OUTSIDE = click.option(
    "--allow-outside", is_flag=True, help="Read images and sounds that lie outside of the rows' folder, too."
)


def numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Comma-separated numbers."""
    try:
        return None if value is None else tuple(float(v) for v in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not of the form 0.485,0.456,0.406") from None


IMAGES = (
    click.option(
        "--preset",
        metavar="NAME",
        help="How images are prepared: torchvision, ultralytics, paddle, paddle-text; default: as "
        "preprocessor_config.json says, else resized and scaled to 0..1.",
    ),
    click.option("--mean", callback=numbers, metavar="NUMBERS", help="Of the images' channels: 0.485,0.456,0.406."),
    click.option("--std", callback=numbers, metavar="NUMBERS", help="Deviations of the images' channels."),
    click.option("--scale", metavar="NUMBER", help="What pixels of 0..255 are multiplied with: 1/255."),
    click.option("--layout", metavar="WORDS", help="Of images: nchw or nhwc, rgb or bgr."),
)


images = together(*IMAGES)
"""How images are prepared."""


calibration = together(
    click.option(
        "--calib",
        "calibration",
        metavar="ROWS",
        help="Rows to learn from: .jsonl, .json, .csv, .tsv, .parquet, .txt, .npz, a folder of images or sounds, or "
        "`random`.",
    ),
    click.option("--columns", type=Pairs(str), help="Rename columns: text=sentence1,label=gold."),
    click.option(
        "--pairs",
        type=click.Choice(["joint", "separate"]),
        help="Two texts as one input, or as two; guessed and said.",
    ),
    click.option(
        "--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json or a folder, if not beside the model."
    ),
    click.option("--max-length", type=click.IntRange(1, MOST), help="The most tokens of a row."),
    *IMAGES,
    OUTSIDE,
)
"""What rows to learn from, and how they are read."""
