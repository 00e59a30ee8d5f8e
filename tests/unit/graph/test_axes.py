"""The axis solver: what it ties can be cut, in whatever way tensors were reshaped, joined and cut apart before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.graph.axes import (
    DYNAMIC,
    ONE,
    Layout,
    Mask,
    Solver,
    atoms_of,
    flat_mask,
    index_of,
    kept_ratio,
    repeated,
    symbol_size,
)


@dataclass
class Program:
    """Tensors made from one another, on paper (layouts) and for real (every element its own number).

    Attributes:
        layouts: per tensor, its dimensions.
        steps: per tensor, how it is made from earlier ones; sources have none.
    """

    solver: Solver = field(default_factory=Solver)
    layouts: list[tuple[Layout, ...]] = field(default_factory=list)
    steps: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    arrays: list[np.ndarray] = field(default_factory=list)

    def source(self, shape: Sequence[int]) -> None:
        start = sum(a.size for a in self.arrays)
        self._add("source", (), (), np.arange(start, start + math.prod(shape), dtype=np.float64).reshape(shape))

    def reshape(self, tensor: int, shape: Sequence[int]) -> None:
        made = self._add("reshape", (tensor,), (), self.arrays[tensor].reshape(shape))
        self.solver.flat(self.layouts[tensor], self.layouts[made])

    def transpose(self, tensor: int, order: Sequence[int]) -> None:
        made = self._add("transpose", (tensor,), tuple(order), self.arrays[tensor].transpose(order))
        for axis, source in enumerate(order):
            self.solver.same(self.layouts[tensor][source], self.layouts[made][axis])

    def concat(self, tensors: Sequence[int], axis: int) -> None:
        made = self._add("concat", tuple(tensors), (axis,), np.concatenate([self.arrays[t] for t in tensors], axis))
        self.solver.same(self.layouts[made][axis], tuple(term for t in tensors for term in self.layouts[t][axis]))
        for tensor in tensors:
            for other, layout in enumerate(self.layouts[tensor]):
                if other != axis:
                    self.solver.same(layout, self.layouts[made][other])

    def split(self, tensor: int, axis: int, first: int) -> None:
        parts = np.split(self.arrays[tensor], [first], axis)
        made = [self._add("split", (tensor,), (axis, i), part) for i, part in enumerate(parts)]
        self.solver.same(self.layouts[tensor][axis], tuple(term for t in made for term in self.layouts[t][axis]))
        for part in made:
            for other, layout in enumerate(self.layouts[part]):
                if other != axis:
                    self.solver.same(layout, self.layouts[tensor][other])

    def add(self, a: int, b: int) -> None:
        made = self._add("add", (a, b), (), self.arrays[a] + 1000 * self.arrays[b])
        for left, right, result in zip(self.layouts[a], self.layouts[b], self.layouts[made], strict=True):
            self.solver.same(left, result)
            self.solver.same(right, result)

    def kept(self, tensor: int, masks: dict[int, Mask]) -> list[np.ndarray]:
        return [flat_mask(self.solver.resolve(d), masks, self.solver.sizes) for d in self.layouts[tensor]]

    def cut(self, tensor: int, masks: dict[int, Mask]) -> np.ndarray:
        array = self.arrays[tensor]
        for axis, kept in enumerate(self.kept(tensor, masks)):
            array = array.compress(kept, axis)
        return array

    def again(self, tensor: int, masks: dict[int, Mask]) -> np.ndarray:
        """A tensor's own step, done on what was cut."""
        kind, operands, options = self.steps[tensor]
        inputs = [self.cut(t, masks) for t in operands]
        if kind == "reshape":
            return inputs[0].reshape([int(kept.sum()) for kept in self.kept(tensor, masks)])
        if kind == "transpose":
            return inputs[0].transpose(options)
        if kind == "concat":
            return np.concatenate(inputs, options[0])
        if kind == "add":
            return inputs[0] + 1000 * inputs[1]
        axis, part = options
        size = int(self.kept(tensor, masks)[axis].sum())
        rest = inputs[0].shape[axis] - size
        return np.split(inputs[0], [size if part == 0 else rest], axis)[part]

    def free(self) -> list[int]:
        found = {a for dims in self.layouts for d in dims for a in atoms_of(self.solver.resolve(d))}
        return sorted(a for a in found if a not in self.solver.pins and self.solver.sizes[a] > 1)

    def _add(self, kind: str, operands: tuple[int, ...], options: tuple[int, ...], array: np.ndarray) -> int:
        self.steps.append((kind, operands, options))
        self.arrays.append(array)
        self.layouts.append(tuple(self.solver.new(size) for size in array.shape))
        return len(self.arrays) - 1


def factorings(size: int) -> list[tuple[int, ...]]:
    """Shapes with this many elements, of up to four dimensions."""
    found: set[tuple[int, ...]] = {(size,)}
    for a in range(1, size + 1):
        if size % a == 0:
            found.add((a, size // a))
            found |= {(a, b, size // a // b) for b in range(1, size // a + 1) if size // a % b == 0}
    return sorted(found)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    program = Program()
    sizes = st.sampled_from([1, 2, 3, 4, 6, 8])
    for _ in range(draw(st.integers(1, 2))):
        program.source(draw(st.lists(sizes, min_size=1, max_size=3)))
    for _ in range(draw(st.integers(1, 6))):
        tensor = draw(st.integers(0, len(program.arrays) - 1))
        array = program.arrays[tensor]
        kind = draw(st.sampled_from(["reshape", "reshape", "transpose", "concat", "split", "add"]))
        axis = draw(st.integers(0, array.ndim - 1))
        fitting = [t for t, other in enumerate(program.arrays) if other.ndim == array.ndim]
        if kind == "reshape":
            program.reshape(tensor, draw(st.sampled_from(factorings(array.size))))
        elif kind == "transpose":
            program.transpose(tensor, draw(st.permutations(range(array.ndim))))
        elif kind == "split" and array.shape[axis] >= 2:
            program.split(tensor, axis, draw(st.integers(1, array.shape[axis] - 1)))
        elif kind == "concat":
            others = [t for t in fitting if _but(program.arrays[t].shape, axis) == _but(array.shape, axis)]
            program.concat([tensor, draw(st.sampled_from(others))], axis)
        elif kind == "add":
            program.add(tensor, draw(st.sampled_from([t for t in fitting if program.arrays[t].shape == array.shape])))
    return program


def _but(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


@given(programs(), st.randoms(use_true_random=False))
@settings(max_examples=400)
def test_cutting_commutes_with_every_operation(program: Program, random: object) -> None:
    """Whatever is chosen of the free atoms: cutting the result is the result of what was cut."""
    rng = np.random.default_rng(random.randrange(2**32))  # type: ignore[attr-defined]
    masks = {}
    for atom in program.free():
        size = program.solver.sizes[atom]
        kept = np.zeros(size, dtype=bool)
        kept[rng.choice(size, rng.integers(1, size + 1), replace=False)] = True
        masks[atom] = Mask(kept)
    for tensor, (kind, _, _) in enumerate(program.steps):
        assert [len(kept) for kept in program.kept(tensor, masks)] == list(program.arrays[tensor].shape)
        if kind != "source":
            np.testing.assert_array_equal(program.again(tensor, masks), program.cut(tensor, masks), strict=True)


@given(programs())
@settings(max_examples=200)
def test_sizes_and_indices_agree_with_the_tensors(program: Program) -> None:
    solver = program.solver
    for array, dims in zip(program.arrays, program.layouts, strict=True):
        for size, dim in zip(array.shape, dims, strict=True):
            layout = solver.resolve(dim)
            assert solver.size(layout) == size
            assert kept_ratio(layout, {}, solver.sizes) == (size, size)
            for atom in repeated(layout):
                with pytest.raises(ValueError, match="several indices"):
                    index_of(layout, atom, solver.sizes)
            for atom in atoms_of(layout) - repeated(layout):
                index = index_of(layout, atom, solver.sizes)
                assert index.shape == (size,)
                assert set(index[index >= 0].tolist()) <= set(range(solver.sizes[atom]))
                # Without one index of the atom, exactly the positions that belong to it are gone.
                kept = np.ones(solver.sizes[atom], dtype=bool)
                kept[0] = False
                np.testing.assert_array_equal(flat_mask(layout, {atom: Mask(kept)}, solver.sizes), index != 0)


def test_pairs_of_one_dimension_flattened_hold_it_twice() -> None:
    """A matrix beside its own transpose ties its two axes; its elements in a row are a·a."""
    program = Program()
    program.source([2, 1, 2])
    program.transpose(0, (2, 1, 0))
    program.reshape(0, (1, 1, 4))
    program.concat([0, 1], 0)
    solver = program.solver
    pairs = solver.resolve(program.layouts[2][2])
    (atom,) = atoms_of(pairs)
    assert repeated(pairs) == {atom}
    kept = flat_mask(pairs, {atom: Mask(np.array([False, True]))}, solver.sizes)
    np.testing.assert_array_equal(kept, [False, False, False, True])
    with pytest.raises(ValueError, match="several indices"):
        index_of(pairs, atom, solver.sizes)


def only(solver: Solver, layout: Layout) -> int:
    """The one atom that a dimension consists of."""
    (atom,) = atoms_of(solver.resolve(layout))
    return atom


def test_a_fused_projection_is_a_sum_of_products() -> None:
    solver = Solver()
    fused, head = solver.new(24), solver.new(2)
    parts = [solver.new(8) for _ in range(3)]
    solver.same(fused, tuple(term for part in parts for term in part))
    for part in parts:
        solver.flat([part], [head, solver.new(4)])
    layout = solver.resolve(fused)
    h = only(solver, head)
    assert [term[0] for term in layout] == [h, h, h]
    kept = flat_mask(layout, {h: Mask(np.array([False, True]))}, solver.sizes)
    np.testing.assert_array_equal(np.flatnonzero(kept), [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23])


def test_an_interleaved_projection_nests_a_sum() -> None:
    """GPT-NeoX: every head holds its query, key and value."""
    solver = Solver()
    fused, head, inner = solver.new(24), solver.new(2), solver.new(12)
    solver.flat([fused], [head, inner])
    parts = [solver.new(4) for _ in range(3)]
    solver.same(inner, tuple(term for part in parts for term in part))
    layout = solver.resolve(fused)
    h, value = only(solver, head), only(solver, parts[2])
    kept = flat_mask(layout, {h: Mask(np.array([True, False]))}, solver.sizes)
    np.testing.assert_array_equal(np.flatnonzero(kept), np.arange(12))
    kept = flat_mask(layout, {value: Mask(np.array([True, False, False, True]))}, solver.sizes)
    np.testing.assert_array_equal(np.flatnonzero(~kept), [9, 10, 21, 22])


def test_each_head_may_keep_its_own_dimensions() -> None:
    solver = Solver()
    flat, head, dim = solver.new(6), solver.new(2), solver.new(3)
    solver.flat([flat], [head, dim])
    h, d = only(solver, head), only(solver, dim)
    own = {d: Mask(np.array([[True, False, False], [False, False, True]]), (h,))}
    np.testing.assert_array_equal(np.flatnonzero(flat_mask(solver.resolve(flat), own, solver.sizes)), [0, 5])
    # A dimension that shows the atom alone knows the number only.
    assert flat_mask(solver.resolve(dim), own, solver.sizes).sum() == 1


def test_what_cannot_be_expressed_is_pinned_on_both_sides() -> None:
    solver = Solver()
    a, b = solver.new(6), solver.new(10)
    product = solver.new(60)
    solver.flat([product], [a, b])
    assert not solver.flat([solver.resolve(product)], [solver.new(4), solver.new(15)], "because")
    assert all("because" in solver.pins[atom] for atom in atoms_of(solver.resolve(product)))


@pytest.mark.parametrize("size", [symbol_size(0), 10**6])
def test_windows_of_one_axis_that_are_tied_to_each_other_are_pinned(size: int) -> None:
    """x[:-2] joined with x[2:], as convolutions are written by hand: every second index would be the next one."""
    solver = Solver()
    whole, window = solver.new(size + 2), solver.new(size)
    solver.same(whole, (*window, *solver.new(2)))
    late = solver.new(size)
    solver.same(whole, (*solver.new(2), *late))
    assert not solver.same(window, late)
    assert atoms_of(solver.resolve(whole)) <= solver.pins.keys() and len(solver.sizes) < 200


def test_a_pin_follows_what_its_atom_becomes() -> None:
    solver = Solver()
    whole = solver.new(12)
    solver.pin(whole, "an output")
    left, right = solver.new(3), solver.new(4)
    solver.flat([whole], [left, right])
    for part in (left, right):
        assert all("an output" in solver.pins[atom] for atom in atoms_of(solver.resolve(part)))


def test_a_dimension_of_one_has_no_atoms() -> None:
    solver = Solver()
    assert solver.new(1) == ONE
    assert atoms_of(ONE) == set()
    assert solver.flat([solver.new(1), solver.new(5)], [solver.new(5)])


def test_symbols_are_large_distinct_and_share_no_factor() -> None:
    sizes = [symbol_size(i) for i in range(8)]
    assert len(set(sizes)) == 8 and min(sizes) > DYNAMIC
    for i, a in enumerate(sizes):
        assert all(math.gcd(a, b) == 1 for b in sizes[:i])
        assert all(a % n for n in range(2, 2000))


@given(st.integers(2, 9), st.integers(2, 9))
def test_dynamic_dimensions_factor_as_numbers_do(heads: int, width: int) -> None:
    solver = Solver()
    batch = symbol_size(0)
    rows, inner = solver.new(batch * heads), solver.new(width)
    head = solver.new(heads)
    assert solver.flat([rows, inner], [solver.new(batch), head, solver.new(width)])
    h = only(solver, head)
    mask = {h: Mask(np.arange(heads) > 0)}
    assert kept_ratio(solver.resolve(rows), mask, solver.sizes) == ((heads - 1) * batch, heads * batch)


def test_a_sum_behind_a_sum_is_their_product() -> None:
    layout = ((4, ((0,), ()), ((2,), (3,))),)  # 4 is outside and chooses 3's own
    masks = {
        0: Mask(np.array([True, False])),
        2: Mask(np.array([False, True])),
        3: Mask(np.array([[True, False, True], [False, True, True]]), (4,)),
    }
    kept = flat_mask(layout, masks, [2, 0, 2, 3, 2]).reshape(2, 3, 5)
    for outer in range(2):
        expected = np.outer([True, False, True], [False, True, *masks[3].kept[outer]])
        np.testing.assert_array_equal(kept[outer], expected)


def test_what_a_sum_chooses_behind_it_is_refused() -> None:
    own = {2: Mask(np.array([[True, False], [False, True]]), (0,))}
    with pytest.raises(ValueError, match="behind the sum"):
        flat_mask(((((0,), (1,)), ((2,), (3,))),), own, [2, 2, 2, 2])
