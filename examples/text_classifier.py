"""A text classifier in Python: export it, prune it, load the result as any optimum model, compare what the two say.

    python examples/text_classifier.py                                     # makes a small BERT of its own, in seconds
    python examples/text_classifier.py path/to/folder --calib rows.jsonl   # yours: a transformers or an optimum folder

The BERT that it makes tells questions from statements by their words: the sentences are those of
calibration/sentences.jsonl, without their last character. Everything stays in examples/output/text.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SENTENCES = ROOT / "calibration" / "sentences.jsonl"


def sentences(path: Path = SENTENCES) -> list[str]:
    """Gives the texts of a JSON Lines file, in its order."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def make_classifier(folder: Path, epochs: int = 10, seed: int = 0) -> Path:
    """Trains a small BERT to tell questions from statements; saves a transformers folder, and its rows beside it."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    texts = sentences()
    labels = torch.tensor([int(text.endswith("?")) for text in texts])
    texts = [text[:-1] for text in texts]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(vocabulary(texts)), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=128)

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
        initializer_range=0.1,
        id2label={0: "statement", 1: "question"},
        label2id={"statement": 0, "question": 1},
    )
    model = BertForSequenceClassification(config).train()
    questions_are_rare = torch.tensor([1.0, float((labels == 0).sum() / (labels == 1).sum())])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for _ in range(epochs):
        for batch in torch.randperm(len(texts)).split(32):
            rows = tokenizer([texts[row] for row in batch], padding=True, truncation=True, return_tensors="pt")
            logits = model(**rows).logits
            loss = torch.nn.functional.cross_entropy(logits, labels[batch], weight=questions_are_rare)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def vocabulary(texts: list[str]) -> list[str]:
    """Gives BERT's special tokens and the words that occur more than once; the others are unknown to the model."""
    counts = Counter(re.findall(r"\w+|[^\w\s]", "\n".join(texts).lower()))
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(word for word, count in counts.items() if count > 1)]


def as_onnx(classifier: Path, folder: Path) -> Path:
    """Exports a transformers folder to `folder`; an optimum folder is what we want already."""
    if any(classifier.glob("*.onnx")):
        return classifier
    from optimum.exporters.onnx import main_export

    logging.getLogger("optimum").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main_export(str(classifier), folder, task="text-classification", do_validation=False)
    return folder


def probabilities(folder: Path, texts: list[str]) -> np.ndarray:
    """What the classifier in an optimum folder says: float32 [texts, classes]."""
    import torch
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    model = ORTModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, return_tensors="pt")
        rows.append(torch.softmax(model(**inputs).logits, -1)[0].numpy())
    return np.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Export, prune and compare a text classifier.")
    parser.add_argument("classifier", nargs="?", type=Path, help="a transformers or optimum folder (default: make one)")
    parser.add_argument("--flops", type=float, default=0.6, help="the share of FLOPs to keep (default: 0.6)")
    parser.add_argument("--calib", type=Path, help="calibration rows, JSON Lines with `text`")
    parser.add_argument("--output", type=Path, default=ROOT / "examples" / "output" / "text")
    options = parser.parse_args()

    import onnxprune

    if options.classifier:
        classifier, rows = options.classifier, options.calib or SENTENCES
        output = options.output / classifier.resolve().name
    else:
        output = options.output / "questions"
        classifier = make_classifier(output / "torch")
        rows = classifier / "rows.jsonl"
    dense, pruned = as_onnx(classifier, output / "dense"), output / "pruned"
    pruned.mkdir(parents=True, exist_ok=True)
    # Tokenizer and configuration go along, so that `pruned` is an optimum folder as `dense` is.
    onnxprune.prune(dense, pruned / "model.onnx", flops=options.flops, calibration=rows, force=True)

    texts = sentences(rows)
    before, after = probabilities(dense, texts), probabilities(pruned, texts)
    agreed = float((before.argmax(-1) == after.argmax(-1)).mean())
    print(f"Dense and pruned give the same class to {agreed:.1%} of the {len(texts)} calibration texts;")
    print(f"their probabilities differ by {np.abs(before - after).max(-1).mean():.4f} on average.")


if __name__ == "__main__":
    main()
