"""Law 1: the graph that was cut gives what the original gives with the removed units gated at their readers.

Checked with plans nobody would make, over every kind of unit, dropped branch, refit weight and intercept: the written
file in ONNX Runtime against the gated interpreter, and, where a plan can be said that way, against the original graph
in ONNX Runtime with the reading rows of its weights zeroed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import zoo as exports
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plans import Subject, distance, random_plan
from zoo import ZooModel
from zoo_families import OPSETS

Build = Callable[..., ZooModel]
Variant = tuple[str, exports.Exporter, exports.Attention]

TOLERANCE = 1e-4
FAMILIES = ("bert", "roberta", "distilbert", "vit", "deit", "gpt2", "llama")
EVERYDAY = ("bert", "vit", "gpt2", "llama")  # the others are made of what these are made of
MECHANISMS: tuple[Variant, ...] = (
    ("albert", "torchscript", "eager"),  # one set of weights for all layers
    ("mobilebert", "torchscript", "eager"),  # branches whose width is cut outside
    ("modernbert", "dynamo", "sdpa"),  # fused QKV, gated FFN
    ("deberta-v2", "torchscript", "eager"),  # an If whose conditions are data; batch and heads in one axis
    ("packed-interleaved", "torchscript", "eager"),  # a head's queries, keys and values side by side
    ("packed-einsum", "torchscript", "eager"),  # projections of rank 3
    ("gpt-neox", "torchscript", "eager"),  # attention and FFN side by side
    ("mobilenet-v3", "torchscript", "eager"),  # squeeze and excitation
    ("t5-encoder", "dynamo", "eager"),  # one position bias for all layers
    ("bart", "torchscript", "sdpa"),  # cross attention
    ("swin", "torchscript", "eager"),  # windows, shifts, merged patches
    ("segformer", "dynamo", "eager"),  # convolutions inside attention and FFN
    ("resnet", "torchscript", "eager"),  # channels, batch norms, strides
    ("mobilenet-v2", "torchscript", "eager"),  # depthwise convolutions
    ("wav2vec2", "torchscript", "eager"),  # grouped convolutions over samples
)
SAMPLED = settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

load = cache(Subject.load)


def names(variant: object) -> str:
    return "-".join(variant) if isinstance(variant, tuple) else str(variant)


def check(path: Path, model: ZooModel, seed: int) -> None:
    subject, feeds = load(path), model.sample(seed=seed)
    plan = subject.complete(random_plan(subject, np.random.default_rng(seed)), feeds)
    gated = subject.gated(plan, feeds)
    assert distance(subject.written(plan, feeds), gated) < TOLERANCE
    # Other sizes of the dynamic axes: nothing of the example was written into the graph.
    other = model.sample(batch=3, tokens={"input_ids": 11, "input_values": 600}.get(model.inputs[0]), seed=seed + 1)
    assert distance(subject.written(plan, other), subject.gated(plan, other)) < TOLERANCE


@pytest.mark.parametrize("variant", [*exports.variants(EVERYDAY), *MECHANISMS], ids=names)
@given(seed=st.integers(0, 2**32 - 1))
@SAMPLED
def test_cut_is_gated(zoo: Build, variant: Variant, seed: int) -> None:
    model = zoo(*variant)
    check(model.path, model, seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", [v for v in exports.variants() if v[0] not in EVERYDAY and v not in MECHANISMS], ids=names
)
@given(seed=st.integers(0, 2**32 - 1))
@SAMPLED
def test_cut_is_gated_in_every_other_export(zoo: Build, variant: Variant, seed: int) -> None:
    model = zoo(*variant)
    check(model.path, model, seed)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("exporter", list(OPSETS))
def test_cut_is_the_original_with_zeroed_rows(zoo: Build, family: str, exporter: exports.Exporter) -> None:
    """Heads and neurons are read by weights alone, so that the original file itself can say what is left."""
    model = zoo(family, exporter, "eager")
    subject, feeds = load(model.path), model.feeds
    for seed in range(3):
        rng = np.random.default_rng(seed)
        plan = random_plan(subject, rng, kinds=("heads", "neurons", "query_heads"), drop=0, refit=0, tile=0)
        zeroed = subject.zeroed(plan, feeds)
        assert zeroed is not None
        assert distance(subject.written(plan, feeds), zeroed) < TOLERANCE
        assert distance(subject.gated(plan, feeds), zeroed) < TOLERANCE
        assert distance(zeroed, subject.dense(feeds)) > 1e-3, "the plan removed nothing that matters"


def test_plans_reach_every_kind_of_unit(zoo: Build) -> None:
    """The law is about something: all kinds are found, with contexts, and cutting makes a difference."""
    found: dict[str, set[str]] = {}
    for variant in (("bert", "torchscript", "eager"), ("llama", "dynamo", "sdpa"), ("resnet", "torchscript", "eager")):
        structure = load(zoo(*variant).path).structure
        found[variant[0]] = {g.kind for g in structure.groups}
        if variant[0] == "bert":
            assert all(len(g.context) == 1 for g in structure.groups if g.kind == "head_dims")
    assert found["bert"] == {"heads", "neurons", "head_dims"}
    assert found["llama"] == {"heads", "query_heads", "neurons", "head_dims"}
    assert found["resnet"] == {"channels"}


def test_a_wrong_cut_is_seen(zoo: Build) -> None:
    """Keeping other units than the plan says is far outside the tolerance."""
    model = zoo("bert", "torchscript", "eager")
    subject, feeds = load(model.path), model.feeds
    group = next(g for g in subject.structure.groups if g.kind == "heads")
    plan = replace(
        random_plan(subject, np.random.default_rng(0), kinds=(), drop=0, refit=0, tile=0), keep={group.id: (0, 1)}
    )
    other = replace(plan, keep={group.id: (2, 3)})
    assert distance(subject.written(plan, feeds), subject.gated(other, feeds)) > 10 * TOLERANCE
