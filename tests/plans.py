"""Random plans, and three ways to compute what one leaves: gated, rewritten, by zeroing rows of the original."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from onnxprune import rewrite
from onnxprune.graph import model as models
from onnxprune.graph.axes import flat_mask
from onnxprune.graph.plan import Plan, Structure, Tile
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.linear_layers import find_linears
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter
from onnxprune.refit.solvers import Tiled
from onnxprune.refit.sparsify import parts_of
from onnxprune.refit.tiles import stream_atom
from onnxprune.rewrite.tile import divisible

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A model with what the analysis found in it."""

    model: models.Model
    structure: Structure

    @classmethod
    def load(cls, path: Path) -> Subject:
        model = models.load(path)
        return cls(model, analyze(model))

    @cached_property
    def interpreter(self) -> Interpreter:
        return Interpreter(self.model.graph)

    @cached_property
    def gates(self) -> Gates:
        return Gates(self.structure, self.interpreter)

    def complete(self, plan: Plan, feeds: Mapping[str, np.ndarray]) -> Plan:
        with torch.inference_mode():
            return self.gates.complete(plan, feeds)

    def dense(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """The interpreter's answer, nothing cut."""
        with torch.inference_mode():
            return {name: found.numpy() for name, found in self.interpreter.run(feeds).items()}

    def gated(self, plan: Plan, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """The interpreter's answer under the plan's gates and weights."""
        with torch.inference_mode():
            gated = self.gates.gated(plan)
            found = self.interpreter.run(feeds, weights=gated.weights, edit=gated.edit)
            return {name: tensor.numpy() for name, tensor in found.items()}

    def rewritten(self, plan: Plan) -> ir.Model:
        return rewrite.apply(self.model, self.structure, plan)

    def written(self, plan: Plan, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """ONNX Runtime's answer from the graph that was cut."""
        return in_runtime(self.rewritten(plan), feeds)

    def zeroed(self, plan: Plan, feeds: Mapping[str, np.ndarray]) -> Arrays | None:
        """ONNX Runtime's answer from the original graph with the reading rows of its weights zeroed.

        None where that does not say it: a unit is read by an activation, or a weight has another reader.
        """
        clone = self.model.clone().ir
        masks = plan.masks(self.structure)
        nodes = {n.name: n for n in clone.graph}
        readers = {r for name in plan.keep for r in self.structure.group(name).readers}
        if plan.drop or plan.weights or plan.intercepts or any(r.weight is None for r in readers):
            return None
        for reader in readers:
            weight = clone.graph.initializers[reader.weight or ""]
            source = nodes[reader.node].inputs[reader.input]
            if source is None or weight.const_value is None or len(weight.uses()) > 1:
                return None
            kept = flat_mask(self.structure.layouts[source.name or ""][reader.axis], masks, self.structure.sizes)
            array = np.moveaxis(weight.const_value.numpy().copy(), reader.weight_axis, -1)
            if array.shape[-1] != len(kept):
                return None
            array[..., ~kept] = 0
            weight.const_value = ir.Tensor(np.moveaxis(array, -1, reader.weight_axis).copy(), name=weight.name)
        return in_runtime(clone, feeds)


def in_runtime(model: ir.Model | Path, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """ONNX Runtime's outputs by name, on one thread; a graph is written to a file first, as the tool does."""
    if isinstance(model, ir.Model):
        with tempfile.TemporaryDirectory() as folder:
            return in_runtime(models.save(model, Path(folder) / "graph.onnx")[0], feeds)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def distance(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The largest difference, relative to each output's scale."""
    assert found.keys() == expected.keys()
    worst = 0.0
    for name, wanted in expected.items():
        assert found[name].shape == wanted.shape, f"{name}: {found[name].shape} instead of {wanted.shape}"
        if wanted.size:
            scale = max(float(np.abs(wanted).max()), 1e-12)
            worst = max(worst, float(np.abs(found[name].astype(float) - wanted.astype(float)).max()) / scale)
    return worst


def random_plan(
    subject: Subject,
    rng: np.random.Generator,
    *,
    kinds: Sequence[str] | None = None,
    drop: float = 0.25,
    refit: float = 0.3,
    tile: float = 0.3,
) -> Plan:
    """A plan nobody would make: random units of most groups, some branches, some new weights and intercepts, tiles.

    Args:
        kinds: groups that may be cut; all by default.
        drop: chance of each residual branch to go.
        refit: chance of each matrix to get other weights, and of each product to get an intercept.
        tile: chance of each matrix to be put in tiles, and of each dimension that has no order to get one.
    """
    structure, graph = subject.structure, subject.model.graph
    keep: dict[str, tuple[int, ...]] = {}
    for group in structure.groups:
        if (kinds is None or group.kind in kinds) and rng.random() < 0.8:
            keep[group.id] = choose(group.shape, int(rng.integers(1, group.shape[-1] + 1)), rng)
    dropped = tuple(b.id for b in structure.branches if rng.random() < drop)
    weights: Arrays = {}
    intercepts: Arrays = {}
    for linear in find_linears(graph, structure, conditional=True):
        tensor = subject.interpreter.weight(linear.weight)
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        if rng.random() < refit:
            weights[linear.weight] = (array * rng.uniform(0.8, 1.2, array.shape)).astype(array.dtype)
        if rng.random() < refit and linear.matrix.reader.input == 0:
            width = array.shape[1 - linear.matrix.reader.weight_axis]
            intercepts[linear.matrix.output] = rng.normal(0, 0.1, width).astype(array.dtype)
    return random_tiles(subject, Plan(structure.digest, keep, dropped, weights, intercepts), rng, tile)


def random_tiles(subject: Subject, plan: Plan, rng: np.random.Generator, chance: float) -> Plan:
    """The plan with random orders, and random tiles of random ranges; outside them the weights are zero."""
    structure, masks = subject.structure, plan.masks(subject.structure)
    linears = find_linears(subject.model.graph, structure, conditional=True)
    atoms = {stream_atom(structure, linear.source): linear.source for linear in linears}
    order = {}
    for atom, source in atoms.items():
        if atom is not None and rng.random() < chance:
            kept = np.flatnonzero(masks[atom].kept) if atom in masks else np.arange(structure.sizes[atom])
            order[source] = tuple(int(u) for u in rng.permutation(kept))
    plan, weights, tiles = replace(plan, order=order), dict(plan.weights), {}
    for part in parts_of(subject.gates, plan, linears):
        if rng.random() >= chance or not divisible(part.linear.matrix.node):
            continue
        name = part.linear.weight
        array = weights[name] if name in weights else subject.gates.weight(plan, name)
        tiles[name] = some_tiles(len(part.rows), len(part.columns), rng)
        matrix = part.take(array)
        weights[name] = part.put(matrix * Tiled(tiles[name]).project(matrix), array).astype(array.dtype)
    return replace(plan, weights=weights, tiles=tiles)


def some_tiles(inputs: int, outputs: int, rng: np.random.Generator) -> tuple[Tile, ...]:
    """Up to four tiles side by side, each with a range of its own."""
    inner = rng.permutation(np.arange(1, outputs))[: rng.integers(4)]
    ends = [0, *sorted(int(e) for e in inner), outputs]
    ranges = [sorted(rng.choice(inputs + 1, 2, replace=False).tolist()) for _ in ends[1:]]
    return tuple(Tile(a, b, *span) for (a, b), span in zip(pairwise(ends), ranges, strict=True))


def choose(shape: Sequence[int], count: int, rng: np.random.Generator) -> tuple[int, ...]:
    """`count` units in every row of a group of this shape, as flat indices."""
    rows = int(np.prod(shape[:-1]))
    return tuple(
        int(row * shape[-1] + unit) for row in range(rows) for unit in np.sort(rng.permutation(shape[-1])[:count])
    )
