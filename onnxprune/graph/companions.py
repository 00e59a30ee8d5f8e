"""The tokenizer and configuration files that belong to a model and go where it goes."""

from __future__ import annotations

import shutil
from pathlib import Path

COMPANIONS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "vocab.json", "vocab.txt", "merges.txt",
    "spiece.model", "sentencepiece.bpe.model", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    "added_tokens.json",
)  # fmt: skip
"""Files of a model folder."""


def copy_companions(source: Path, target: Path, *, force: bool = False) -> list[Path]:
    """Copy tokenizer and configuration files beside the output: where none are yet, or over those of another model."""
    copied = []
    if source.resolve() != target.resolve():
        for name in COMPANIONS:
            if (source / name).exists() and (force or not (target / name).exists()):
                shutil.copy2(source / name, target / name)
                copied.append(target / name)
    return copied
