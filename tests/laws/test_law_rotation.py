"""Heads in another basis: nothing that a model computes changes, and a cut of the rotated model is its gated graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import zoo as exports
from plans import Subject, distance, random_plan
from zoo import ZooModel

from onnxprune import data
from onnxprune.graph.structure.sites import find_sites
from onnxprune.probe.forward import Rows, grams
from onnxprune.score.rotation import Rotated, rotated

Build = Callable[..., ZooModel]
Variant = tuple[str, exports.Exporter, exports.Attention]

WAYS = (("torchscript", "eager"), ("dynamo", "sdpa"))
MECHANISMS: tuple[Variant, ...] = (
    ("bart", "torchscript", "sdpa"),  # cross attention
    ("gpt-neox", "torchscript", "eager"),  # rotary positions turn a part of each head, the rest is free
    ("deberta-v2", "torchscript", "eager"),  # positions have keys and queries of their own: values alone
    ("mpnet", "torchscript", "eager"),  # a bias on the scores
    ("packed-einsum", "torchscript", "eager"),  # projections of rank 3: one basis for all heads
    ("t5-encoder", "dynamo", "eager"),  # no scale, no biases
)
EVERYDAY = [v for v in exports.variants(("bert", "vit", "gpt2", "llama")) if v[1:] in WAYS]
HELD = {"llama": 2, "deberta-v2": 2, "gpt-neox": 2}
"""Groups that keep their basis: rotary positions turn pairs, in each layer; products that share queries."""

load = cache(Subject.load)


def names(variant: object) -> str:
    return "-".join(variant) if isinstance(variant, tuple) else str(variant)


def rows_of(model: ZooModel, subject: Subject) -> data.Dataset:
    examples = [model.sample(1, seed=i) for i in range(12)]
    return data.read(examples, subject.model.inputs, outputs=subject.model.outputs)


def turned(path: Path, model: ZooModel) -> tuple[Subject, Rotated]:
    subject = load(path)
    rows = Rows(subject.interpreter, rows_of(model, subject))
    sites = find_sites(subject.model.graph, subject.structure, ("head_dims",))
    return subject, rotated(rows, sites, subject.structure, lambda n: subject.interpreter.weight(n).float().numpy())


@pytest.mark.parametrize("variant", [*EVERYDAY, *MECHANISMS], ids=names)
def test_rotated_heads_compute_the_same(zoo: Build, variant: Variant) -> None:
    model = zoo(*variant)
    subject, found = turned(model.path, model)
    assert len(found.held) == HELD.get(variant[0], 0)
    assert found.rankings, "no head was rotated"
    dense, feeds = subject.dense(model.feeds), model.feeds
    empty = random_plan(subject, np.random.default_rng(0), kinds=(), drop=0, refit=0, tile=0)
    whole = replace(empty, weights=found.weights)
    changed = [
        name for name, array in found.weights.items() if not np.allclose(array, subject.gates.weight(empty, name))
    ]
    assert changed == list(found.weights), "a basis is what it was"
    assert distance(subject.gated(whole, feeds), dense) < 1e-5
    # Law 1, of the rotated model; half of each head's dimensions are the first ones.
    keep = {g: found.rankings[g].keep(len(found.rankings[g].order) // 2) for g in found.rankings}
    plan = replace(whole, keep=keep)
    assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-4


def test_the_first_dimensions_keep_more_than_others(zoo: Build) -> None:
    """Cut to half, heads in their new bases move outputs less than in those that they were trained in."""
    model = zoo("bert", "torchscript", "eager")
    subject, found = turned(model.path, model)
    empty = random_plan(subject, np.random.default_rng(0), kinds=(), drop=0, refit=0, tile=0)
    dense, feeds = subject.dense(model.feeds), model.feeds
    keep = {g: r.keep(len(r.order) // 2) for g, r in found.rankings.items()}
    new, old = (
        distance(subject.gated(replace(empty, keep=keep, weights=w), feeds), dense) for w in (found.weights, {})
    )
    assert new < 0.8 * old


def test_moments_in_the_new_bases_are_those_of_the_rotated_model(zoo: Build) -> None:
    """What reads the heads is collected once, before they are rotated, and written in their bases."""
    model = zoo("bert", "torchscript", "eager")
    subject = Subject.load(model.path)
    rows = Rows(subject.interpreter, rows_of(model, subject))
    inner = find_sites(subject.model.graph, subject.structure, ("head_dims",))
    read = [m for s in find_sites(subject.model.graph, subject.structure, ("heads", "neurons")) for m in s.matrices]
    found = rotated(rows, inner, subject.structure, lambda n: subject.interpreter.weight(n).float().numpy(), read=read)
    assert found.moments.keys() == {m.usage for m in read}
    subject.interpreter.replace(found.weights)
    for usage, gram in grams(rows, read).items():
        scale = np.abs(gram.matrix).max()
        np.testing.assert_allclose(found.moments[usage].matrix, gram.matrix, atol=1e-5 * scale)
        np.testing.assert_allclose(found.moments[usage].mean, gram.mean, atol=1e-5 * np.abs(gram.mean).max())
        assert found.moments[usage].count == gram.count
