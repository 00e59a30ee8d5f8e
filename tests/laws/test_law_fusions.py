"""What optimisers fuse in the dense graph they fuse in the pruned one, and what they fuse computes the same."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import zoo as exports
from plans import Subject, distance, in_runtime, random_plan, random_tiles
from zoo import ZooModel

from onnxprune import rewrite
from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan
from onnxprune.graph.values import dims

Build = Callable[..., ZooModel]
Variant = tuple[str, exports.Exporter, exports.Attention]
FAMILIES = {"bert": "bert", "roberta": "bert", "distilbert": "bert", "vit": "vit"}
"""Family -> the optimiser's name for it."""
VARIANTS = list(exports.variants(tuple(FAMILIES)))
FUSED = (
    "Attention", "MultiHeadAttention", "EmbedLayerNormalization", "SkipLayerNormalization", "LayerNormalization",
    "BiasGelu", "Gelu", "FastGelu", "FusedGemm", "FusedMatMul",
)  # fmt: skip
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _silence() -> None:
    logging.getLogger("onnxruntime.transformers").setLevel(logging.ERROR)


def in_session(file: Path, folder: Path) -> Counter[str]:
    """Fused nodes of the graph that a session runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / "session.onnx")
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return counted(folder / "session.onnx")


def by_optimiser(file: Path, kind: str, folder: Path) -> tuple[Counter[str], Path]:
    """Fused nodes that `onnxruntime.transformers.optimizer` makes, and the file it writes."""
    from onnxruntime.transformers import optimizer

    made = optimizer.optimize_model(str(file), model_type=kind, num_heads=0, hidden_size=0, opt_level=0)
    target = folder / "optimised.onnx"
    made.save_model_to_file(str(target))
    return counted(target), target


def counted(file: Path) -> Counter[str]:
    graph = onnx.load(file, load_external_data=False).graph
    found = Counter(node.op_type for node in graph.node if node.op_type in FUSED)
    return Counter({op: n for op, n in found.items() if n})


def norms(found: Counter[str]) -> int:
    return found["SkipLayerNormalization"] + found["LayerNormalization"] + found["EmbedLayerNormalization"]


def plan_of(subject: Subject, model: ZooModel, *kinds: str) -> Plan:
    plan = random_plan(subject, np.random.default_rng(0), kinds=kinds, drop=0, refit=0, tile=0)
    return subject.complete(plan, model.feeds)


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_sessions_fuse_as_much(zoo: Build, variant: Variant, tmp_path: Path) -> None:
    """All but the sums that go into norms: files are written without inner shapes, which that fusion needs and which
    makes a CPU slower (`model.save`)."""
    model = zoo(*variant)
    subject = Subject.load(model.path)
    dense = in_session(model.path, tmp_path)
    for few in (False, True):
        graph = subject.rewritten(plan_of(subject, model, "heads", "neurons"))
        if few:
            rewrite.drop_unread(graph)
        found = in_session(models.save(graph, tmp_path / "cut.onnx")[0], tmp_path)
        assert norms(found) == norms(dense)
        for op in ("BiasGelu", "Gelu", "FusedGemm", "FusedMatMul"):
            assert found[op] >= dense[op], f"{op}: {found} where the dense graph has {dense}"


@pytest.mark.parametrize("variant", [("bert", "torchscript", "sdpa"), ("vit", "dynamo", "sdpa")], ids="-".join)
def test_sessions_fuse_what_surrounds_tiles(zoo: Build, variant: Variant, tmp_path: Path) -> None:
    """The bias is added behind the tiles' Concat, so that it goes into the activation as it did before."""
    model = zoo(*variant)
    subject = Subject.load(model.path)
    dense = in_session(model.path, tmp_path)
    plan = random_tiles(subject, Plan(subject.structure.digest), np.random.default_rng(0), 1.0)
    assert len(plan.tiles) >= 12
    found = in_session(models.save(subject.rewritten(plan), tmp_path / "tiled.onnx")[0], tmp_path)
    assert norms(found) == norms(dense)
    assert all(found[op] >= dense[op] for op in ("BiasGelu", "Gelu")), (found, dense)


@pytest.mark.parametrize("kinds", [("heads", "neurons"), ("head_dims", "neurons")], ids="-".join)
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_the_optimiser_fuses_as_much_and_rightly(
    zoo: Build, variant: Variant, kinds: tuple[str, ...], tmp_path: Path
) -> None:
    """Attention takes one over the root of its width for the scale, whatever the graph says; also where it was cut."""
    model = zoo(*variant)
    subject = Subject.load(model.path)
    dense, _ = by_optimiser(model.path, FAMILIES[model.family], tmp_path)
    graph = subject.rewritten(plan_of(subject, model, *kinds))
    file = models.save(graph, tmp_path / "cut.onnx")[0]
    found, fused = by_optimiser(file, FAMILIES[model.family], tmp_path)
    assert {op: found[op] for op in dense if op != "LayerNormalization"} == {
        op: n for op, n in dense.items() if op != "LayerNormalization"
    }
    assert norms(found) == norms(dense)
    for feeds in (model.feeds, model.sample(batch=3, seed=1)):
        assert distance(in_runtime(fused, feeds), in_runtime(file, feeds)) < TOLERANCE


def test_one_token_costs_the_last_attention_its_fusion_and_no_other(zoo: Build, tmp_path: Path) -> None:
    """A fused Attention has as many queries as keys, so the block that computes one query stays as it is."""
    model = zoo("bert", "torchscript", "sdpa")
    subject = Subject.load(model.path)
    graph = subject.rewritten(plan_of(subject, model, "heads", "neurons"))
    before, _ = by_optimiser(models.save(graph, tmp_path / "cut.onnx")[0], "bert", tmp_path)
    assert rewrite.drop_unread(graph)
    file = models.save(graph, tmp_path / "few.onnx")[0]
    after, fused = by_optimiser(file, "bert", tmp_path)
    assert before - after == Counter(Attention=1)
    assert not after - before
    assert distance(in_runtime(fused, model.feeds), in_runtime(file, model.feeds)) < TOLERANCE


def test_a_cut_width_keeps_its_scale(zoo: Build) -> None:
    """The written constant is one over the root of the new width; the weights of the queries hold the rest."""
    model = zoo("bert", "torchscript", "sdpa")
    subject = Subject.load(model.path)
    plan = plan_of(subject, model, "head_dims")
    graph = subject.rewritten(plan)
    assert distance(in_runtime(graph, model.feeds), subject.gated(plan, model.feeds)) < 1e-4
    found = {}
    for node in graph.graph:
        if (node.name or "").endswith("_scaled_scores"):
            scores, number = node.inputs
            assert scores is not None and number is not None and number.const_value is not None
            product = scores.producer()
            assert product is not None
            width = (dims(product.inputs[0]) or ())[-1]
            assert isinstance(width, int)
            found[product.name] = width
            assert float(number.const_value.numpy()) == pytest.approx(width**-0.5, rel=1e-6)
    assert len(found) == 2 and set(found.values()) != {exports.HEAD_DIM}
