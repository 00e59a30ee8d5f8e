"""The axis algebra: which indices of which tensor dimensions must be cut together.

A dimension is a *layout*: a sum of products of *atoms*, in memory order. A fused QKV axis is `Q + K + V`, a head
axis `H·D`, grouped queries `Hkv·G·D`; an interleaved one `H·(Dq + Dk + Dv)` nests a sum in a product. Three
constraints say everything an operator can demand:

    same(d, e)     these dimensions move together
    flat(ds, es)   the same elements, reshaped; atoms split until both sides are made of the same ones
    pin(d, why)    not to be cut

Sizes are plain integers. A dimension known only by name ("batch_size") gets a large prime of its own
(`symbol_size`), so that products of symbols and numbers factor by ordinary arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Factor: TypeAlias = "int | Layout"
Term: TypeAlias = "tuple[Factor, ...]"  # outermost first
Layout: TypeAlias = "tuple[Term, ...]"  # in memory order

ONE: Layout = ((),)
"""The layout of a dimension of size 1."""

DYNAMIC = 10**9
"""Sizes from here on stand for dimensions that are only known at run time."""


def symbol_size(index: int) -> int:
    """The stand-in for the `index`-th symbolic dimension: a prime, far above any real size.

    Primes of the form k·2^40 + odd are found by a Fermat test; what matters is that two stand-ins share no factor
    with each other or with small numbers.
    """
    candidate = (1 << 44) + (index + 1) * (1 << 40) + 1
    while any(candidate % p == 0 for p in _SMALL_PRIMES) or pow(2, candidate - 1, candidate) != 1:
        candidate += 2
    return candidate


_SMALL_PRIMES = tuple(p for p in range(2, 200) if all(p % q for q in range(2, int(p**0.5) + 1)))


@dataclass(frozen=True)
class Mask:
    """Which indices of an atom stay.

    Attributes:
        kept: bool array of shape (*context sizes, atom size).
        context: outer atoms on which the choice depends (each head its own value dimensions); every kept outer
            index keeps the same number, so that the result is rectangular.
    """

    kept: np.ndarray
    context: tuple[int, ...] = ()


class Solver:
    """Unifies layouts under the three constraints. What cannot be expressed is pinned, never guessed."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.pins: dict[int, dict[str, None]] = {}
        self._bound: dict[int, Layout] = {}

    def new(self, size: int) -> Layout:
        """A fresh dimension of `size` with one atom of its own."""
        return ONE if size == 1 else ((self._atom(size),),)

    def size(self, layout: Layout) -> int:
        return sum(math.prod(self._factor_size(f) for f in term) for term in layout)

    def resolve(self, layout: Layout) -> Layout:
        """The layout in today's atoms; sums are spread over the products they lead."""
        if (alone := _alone(layout)) is not None:
            return self._resolve_factor(alone)
        terms: list[Term] = []
        for term in layout:
            factors: list[Factor] = []
            for factor in term:
                inner = self._resolve_factor(factor)
                if len(inner) == 1:
                    factors.extend(inner[0])
                else:
                    factors.append(inner)
            if factors and isinstance(factors[0], tuple):
                terms.extend(self.resolve(tuple((*head, *factors[1:]) for head in factors[0])))
            else:
                terms.append(tuple(factors))
        return tuple(terms)

    def same(self, a: Layout, b: Layout, why: str = "dimensions of different structure meet") -> bool:
        """Tie two dimensions index by index. False (and both pinned, with the reason) where that has no expression."""
        ours, theirs = self.resolve(a), self.resolve(b)
        if ours == theirs:
            return True
        # Most dimensions that meet are whole: of what follows, they take one step.
        if (f := _alone(ours)) is not None and (g := _alone(theirs)) is not None and self.sizes[f] == self.sizes[g]:
            self._bind(f, theirs)
            return True
        left, right = list(reversed(ours)), list(reversed(theirs))
        checked, most = False, 64 + 4 * (len(left) + len(right))
        # Terms that agree go on agreeing, whatever is bound behind them: each is looked at when it comes first.
        while left and right:
            s, t = self._first(left), self._first(right)
            most -= 1
            if s == t:
                left.pop(), right.pop()
            elif not most:
                break  # windows of one axis, tied to each other: every period of it is the next one
            elif (not checked and self.size(a) != self.size(b)) or not (
                self._spread(s, right) or self._spread(t, left) or self._step(s, t)
            ):
                break
            else:
                checked = True
        if not left and not right:
            return True
        self.pin(a, why)
        self.pin(b, why)
        return False

    def flat(self, ds: Sequence[Layout], es: Sequence[Layout], why: str = "reshaped across its structure") -> bool:
        """Tie two lists of dimensions that hold the same elements in the same order (Reshape)."""
        left, right = list(ds), list(es)
        ok = True
        while left and right and self.size(left[0]) == self.size(right[0]):
            ok &= self.same(left.pop(0), right.pop(0), why)
        tail: list[tuple[Layout, Layout]] = []
        while left and right and self.size(left[-1]) == self.size(right[-1]):
            tail.append((left.pop(), right.pop()))
        for d, e in tail:
            ok &= self.same(d, e, why)
        return self.same(self.product(left), self.product(right), why) and ok

    def product(self, layouts: Iterable[Layout]) -> Layout:
        """One dimension out of several, the first outermost."""
        factors: list[Factor] = []
        for layout in map(self.resolve, layouts):
            factors.extend(layout[0] if len(layout) == 1 else (layout,))
        return self.resolve((tuple(factors),))

    def pin(self, layout: Layout, why: str) -> None:
        for atom in atoms_of(self.resolve(layout)):
            self.pins.setdefault(atom, {})[why] = None

    # -- internals ---------------------------------------------------------------------------------------------

    def _atom(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def _factor_size(self, factor: Factor) -> int:
        return self.sizes[factor] if isinstance(factor, int) else self.size(factor)

    def _resolve_factor(self, factor: Factor) -> Layout:
        if isinstance(factor, tuple):
            return self.resolve(factor)
        if factor not in self._bound:
            return ((factor,),)
        # Every residual addition binds one more atom to the one before: chains of bindings are as long as a graph is
        # deep. Resolved from their end, none is followed by recursion.
        chain = [factor]
        while chain:
            further = [a for a in atoms_of(self._bound[chain[-1]]) if a in self._bound and not self._final(a)]
            if further:
                chain.extend(further)
            else:
                atom = chain.pop()
                self._bound[atom] = self.resolve(self._bound[atom])
        return self._bound[factor]

    def _final(self, atom: int) -> bool:
        """Whether what an atom is bound to holds no bound one."""
        return not any(a in self._bound for a in atoms_of(self._bound[atom]))

    def _bind(self, atom: int, layout: Layout) -> None:
        self._bound[atom] = layout
        for why in self.pins.pop(atom, {}):
            self.pin(layout, why)

    def _first(self, terms: list[Term]) -> Term:
        """The first term of a reversed list, in today's atoms."""
        terms.extend(reversed(self.resolve((terms.pop(),))))
        return terms[-1]

    def _spread(self, term: Term, beside: list[Term]) -> bool:
        """Bind an atom that stands beside many terms to all of them at once, as splits would one by one."""
        if len(term) != 1 or not isinstance(term[0], int):
            return False
        left, parts = self.sizes[term[0]], list[Term]()
        for other in reversed(beside):
            if (size := self.size((other,))) > left:
                break
            parts.extend(self.resolve((other,)))
            left -= size
            if not left:
                break
        if len(parts) < 2:
            return False
        self._bind(term[0], (*parts, *(((self._atom(left),),) if left else ())))
        return True

    def _step(self, s: Term, t: Term) -> bool:
        """Bring two different terms one substitution closer; False where nothing fits."""
        size_s, size_t = self.size((s,)), self.size((t,))
        if size_s > size_t:
            return self._split(s, size_t)
        if size_t > size_s:
            return self._split(t, size_s)
        while s and t and s[-1] == t[-1]:
            s, t = s[:-1], t[:-1]
        if not s or not t:  # the rest has size 1
            return self._vanish(s or t)
        f, g = s[-1], t[-1]
        size_f, size_g = self._factor_size(f), self._factor_size(g)
        if size_f < size_g:
            f, g, size_f, size_g = g, f, size_g, size_f
        if size_f == size_g:
            if isinstance(f, int):
                self._bind(f, g if isinstance(g, tuple) else ((g,),))
                return True
            if isinstance(g, int):
                self._bind(g, f)
                return True
            return self.same(f, g)
        common = math.gcd(size_f, size_g)
        if common == 1 or not isinstance(f, int):
            return False
        if common == size_g:
            self._bind(f, ((self._atom(size_f // common), g),))
            return True
        if not isinstance(g, int):
            return False
        shared = self._atom(common)
        self._bind(f, ((self._atom(size_f // common), shared),))
        self._bind(g, ((self._atom(size_g // common), shared),))
        return True

    def _vanish(self, term: Term) -> bool:
        """Take out the factors of a product of size 1."""
        atoms = [factor for factor in term if isinstance(factor, int)]
        for atom in atoms:
            self._bind(atom, ONE)
        return len(atoms) == len(term)

    def _split(self, term: Term, first: int) -> bool:
        """Cut a product into a sum of two at `first`, through its outermost atom."""
        if not term or not isinstance(term[0], int):
            return False
        inner = self.size((term[1:],))
        if first % inner:
            return False
        head = first // inner
        self._bind(term[0], ((self._atom(head),), (self._atom(self.sizes[term[0]] - head),)))
        return True


def _alone(layout: Layout) -> int | None:
    """The atom that a layout is; None of any other."""
    if len(layout) != 1 or len(layout[0]) != 1:
        return None
    factor = layout[0][0]
    return factor if isinstance(factor, int) else None


def atoms_of(layout: Layout) -> set[int]:
    """All atoms of a resolved layout."""
    found: set[int] = set()
    for term in layout:
        for factor in term:
            found |= {factor} if isinstance(factor, int) else atoms_of(factor)
    return found


def repeated(layout: Layout) -> set[int]:
    """Atoms that a product of a resolved layout holds more than once (a·a: the pairs of a square table, flattened).

    A position then belongs to several of their indices at a time: it can be cut, but stands for no single unit.
    """
    found: set[int] = set()
    for term in layout:
        seen: set[int] = set()
        for factor in term:
            atoms = {factor} if isinstance(factor, int) else atoms_of(factor)
            found |= (seen & atoms) | (set() if isinstance(factor, int) else repeated(factor))
            seen |= atoms
    return found


def flat_mask(
    layout: Layout, masks: Mapping[int, Mask], sizes: Sequence[int], outer: tuple[int, ...] = ()
) -> np.ndarray:
    """The kept positions of a dimension, as a flat bool array: the one function behind gate, cut and cost.

    Args:
        layout: the dimension, without dynamic atoms.
        masks: atom -> Mask; an atom without one is kept whole.
        sizes: atom -> size.
        outer: atoms already laid out in front (used by the recursion); the result then has their axes first.
    """
    lead = tuple(sizes[a] for a in outer)
    parts = []
    for term in layout:
        axes: list[int | None] = list(outer)  # None stands for a sum
        inside: set[int] = set()  # atoms of those sums
        kept = np.ones(lead, dtype=bool)
        for factor in term:
            chosen_by = {c for a in atoms_of(((factor,),)) if a in masks for c in masks[a].context}
            if chosen_by & inside:
                raise ValueError(f"layout {layout}: what a sum's parts choose lies behind the sum")
            if isinstance(factor, int):
                piece = _aligned(factor, masks.get(factor), axes, sizes)
                axes.append(factor)
            else:
                known = tuple(a for a in axes if a is not None)
                piece = flat_mask(factor, masks, sizes, known)
                piece = piece.reshape(*(1 if a is None else sizes[a] for a in axes), -1)
                axes.append(None)
                inside |= atoms_of(factor)
            kept = kept[..., None] & piece
        parts.append(kept.reshape(*lead, -1))
    return np.concatenate(parts, axis=-1)


def flat_order(
    layout: Layout, masks: Mapping[int, Mask], orders: Mapping[int, Sequence[int]], sizes: Sequence[int]
) -> np.ndarray:
    """The kept positions of a dimension in the order in which they are written: int64, ascending without `orders`.

    Args:
        orders: atom -> its kept indices, in the order wanted; such an atom stands in terms of its own
            (`in_whole_terms`).
    """
    parts, start = [], 0
    for term in layout:
        kept = flat_mask((term,), masks, sizes)
        (lead,) = term[:1] or (None,)
        found = np.array(orders[lead]) if isinstance(lead, int) and lead in orders else np.flatnonzero(kept)
        parts.append(start + found.astype(np.int64))
        start += len(kept)
    return np.concatenate(parts)


def in_whole_terms(layout: Layout, atom: int) -> bool:
    """Whether an atom, where a dimension has it, stands alone in its terms: its indices are then the positions."""
    return all(term == (atom,) or atom not in atoms_of((term,)) for term in layout)


def _aligned(atom: int, mask: Mask | None, axes: Sequence[int | None], sizes: Sequence[int]) -> np.ndarray:
    """A mask broadcast over the axes laid out before its atom."""
    if mask is None:
        return np.ones(sizes[atom], dtype=bool)
    if not all(c in axes for c in mask.context):
        # The dimension shows the atom without its context: only the number kept has a meaning here.
        counts = mask.kept.sum(axis=-1)
        return np.arange(sizes[atom]) < int(counts.max())
    order = sorted(range(len(mask.context)), key=lambda i: axes.index(mask.context[i]))
    kept = mask.kept.transpose(*order, len(mask.context))
    shape = [sizes[a] if a in mask.context else 1 for a in axes] if mask.context else []
    aligned: np.ndarray = kept.reshape(*shape, sizes[atom]) if mask.context else kept
    return aligned


def kept_ratio(layout: Layout, masks: Mapping[int, Mask], sizes: Sequence[int]) -> tuple[int, int]:
    """(kept, total) of a dimension that may hold dynamic atoms; exact integers, to be applied to its real size."""
    kept = total = 0
    for term in layout:
        static = tuple(f for f in term if not (isinstance(f, int) and sizes[f] >= DYNAMIC))
        dynamic = math.prod(sizes[f] for f in term if isinstance(f, int) and sizes[f] >= DYNAMIC)
        part = flat_mask((static,), masks, sizes)
        kept, total = kept + int(part.sum()) * dynamic, total + part.size * dynamic
    return kept, total


def index_of(layout: Layout, atom: int, sizes: Sequence[int]) -> np.ndarray:
    """Which index of `atom` each position of a dimension belongs to; -1 where it belongs to none. int64 [size].

    Raises:
        ValueError: a product holds the atom more than once (`repeated`).
    """
    if atom in repeated(layout):
        raise ValueError(f"layout {layout}: a position belongs to several indices of atom {atom}")
    parts = []
    for term in layout:
        found = np.full((1,), -1, dtype=np.int64)
        for factor in term:
            if isinstance(factor, tuple):
                piece = index_of(factor, atom, sizes)
            else:
                piece = np.arange(sizes[factor]) if factor == atom else np.full(sizes[factor], -1, dtype=np.int64)
            found = np.maximum(found[:, None], piece).reshape(-1)
        parts.append(found)
    return np.concatenate(parts)
