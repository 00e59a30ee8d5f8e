"""A small decoder trained on the docstrings of Python's standard library: perplexity before and after, by budget.

    python tests/bench/perplexity.py make FOLDER    # trained in minutes, exported to FOLDER/onnx, rows beside it
    python tests/bench/perplexity.py run FOLDER --budgets 0.8 0.6

The text is what every Python brings along. Modules are split three ways by their names: those that teach the model,
those whose texts calibrate (a part of the former), and those that are reported on, which decided nothing.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import resource
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY, TOKENS, LAYERS, HEADS, GROUPS, WIDTH, HIDDEN = 1024, 128, 4, 8, 4, 160, 432
"""A Llama of 1.5 million weights."""
HELD_OUT, CALIBRATION, EVALUATION = 10, 256, 256
"""One module in so many is reported on; rows that calibrate, and that are reported on."""


def docstrings() -> Iterator[tuple[int, str]]:
    """(number of the module, text) of every docstring of more than a line, in the order of the modules' names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p for p in root.rglob("*.py") if not {"site-packages", "test", "tests", "idlelib"} & set(p.parts))
    for number, file in enumerate(files):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else None
            if text is not None and len(text) > 80:
                yield number, text


def make(folder: Path, steps: int, batch: int) -> None:
    """Train, export, and write rows."""
    import torch
    import transformers
    from optimum.exporters.onnx import onnx_export_from_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = list(docstrings())
    taught = [text for number, text in texts if number % HELD_OUT]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(taught, trainer)
    stream = np.concatenate([[1, *tokenizer.encode(text).ids, 2] for text in taught])
    print(f"{len(texts)} docstrings; {len(stream)} tokens to learn from")

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=GROUPS, max_position_embeddings=TOKENS,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    rng, begun = np.random.default_rng(0), time.process_time()
    for step in range(steps):
        starts = rng.integers(0, len(stream) - TOKENS, batch)
        ids = torch.from_numpy(np.stack([stream[i : i + TOKENS] for i in starts]))
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(
                f"step {step + 1}: perplexity {math.exp(loss.item()):.1f}, {time.process_time() - begun:.0f} s",
                flush=True,
            )
    onnx_export_from_model(model.eval(), folder / "onnx", task="text-generation-with-past", do_validation=False)
    tokenizer.save(str(folder / "onnx" / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": TOKENS, "pad_token": "<pad>"}
    (folder / "onnx" / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    unseen = [text for number, text in texts if not number % HELD_OUT]
    for name, found, count in (("calibration", taught, CALIBRATION), ("evaluation", unseen, EVALUATION)):
        chosen = np.random.default_rng(1).permutation(len(found))[:count]
        rows = (json.dumps({"text": found[i]}) for i in chosen)
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def run(folder: Path, budgets: Sequence[float], seeds: Sequence[int]) -> None:
    """Prune to every budget, and write what it costs in a table."""
    import onnxprune

    print(
        "| FLOPs kept | seed | perplexity | KL to dense | processor seconds | GB |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    for seed in seeds:
        for budget in budgets:
            begun = time.process_time()
            result: Any = onnxprune.prune(
                folder / "onnx", flops=budget, calibration=folder / "calibration.jsonl",
                evaluation=folder / "evaluation.jsonl", metric="perplexity", seed=seed, measure_latency=False,
            )  # fmt: skip
            report, spent = result.report, time.process_time() - begun
            accuracy, memory = report.accuracy, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                f"| {report.flops.ratio:.2f} | {seed} | {accuracy.dense:.2f} → {accuracy.pruned:.2f} "
                f"| {report.drift.kl:.4f} | {spent:.0f} | {memory:.1f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.8, 0.6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args()
    if asked.what == "make":
        make(asked.folder, asked.steps, asked.batch)
    else:
        run(asked.folder, asked.budgets, asked.seeds)


if __name__ == "__main__":
    main()
