"""What goes where nothing is said: channels too, where a graph is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest

from onnxprune.graph.plan import Branch, Budget, Group, Pin, Structure
from onnxprune.measure.cost import Costs
from onnxprune.search.defaults import settled, why_not_so_little, why_nothing
from onnxprune.search.options import Options

TRANSFORMER = ("heads", "neurons", "blocks", "head_ranks")
CONVOLUTIONAL = (*TRANSFORMER, "channels")


def structure(kinds: Sequence[str], *, attention: bool = False) -> Structure:
    groups = tuple(Group(f"{kind}.{i}", kind, i, i, (8,), (), ()) for i, kind in enumerate(kinds))
    branches = (Branch("attention.0", "attention", 0, "add", 0, "v", "s", (), None, ()),) if attention else ()
    return Structure("", (8,) * len(kinds), {}, groups, branches, ())


@pytest.mark.parametrize(
    ("kinds", "attention", "expected"),
    [
        (["channels"] * 4, False, CONVOLUTIONAL),
        (["channels", "channels", "neurons"], False, CONVOLUTIONAL),  # a convolutional net with a large classifier
        (["channels", "neurons", "neurons"], False, CONVOLUTIONAL),  # convolutions, then recurrences
        (["neurons"] * 3, False, TRANSFORMER),
        (["channels", *["heads", "neurons"] * 4], True, TRANSFORMER),  # a transformer over patches or samples
        (["channels"] * 9 + ["heads", "neurons"] * 2, True, CONVOLUTIONAL),  # a convolutional net with some attention
        (["channels", "neurons", "neurons"], True, TRANSFORMER),  # whose heads are pinned
        ([], False, TRANSFORMER),
    ],
)
def test_channels_where_they_are_what_there_is(
    kinds: Sequence[str], attention: bool, expected: tuple[str, ...]
) -> None:
    found = settled(Options(Budget("flops", 0.5)), structure(kinds, attention=attention))
    assert found.units == expected


@pytest.mark.parametrize(("macs", "expected"), [(900, CONVOLUTIONAL), (100, TRANSFORMER)])
def test_channels_on_which_most_of_the_work_hangs_go_behind_attention(macs: int, expected: tuple[str, ...]) -> None:
    """A transformer whose tokens become a picture, and the head that convolves it."""

    class Counted:
        def behind(self, groups: Sequence[Group]) -> int:
            return macs if groups[0].kind == "channels" else 500

    there = structure(["channels", "heads", "neurons"], attention=True)
    found = settled(Options(Budget("flops", 0.5)), there, lambda: cast(Costs, Counted()))
    assert found.units == expected


def test_what_is_asked_for_stays() -> None:
    asked = Options(Budget("flops", 0.5), units=("neurons",))
    assert settled(asked, structure(["channels"])) is asked


@pytest.mark.parametrize(
    "asked",
    [
        Options(Budget("flops", 0.5), method="optin"),  # its paper's units
        Options(Budget("flops", 0.5), search="rank"),
        Options(Budget("latency", 0.5)),  # times of heads and of their dimensions do not add up
        Options(Budget("flops", 0.5), sparsity="2:4"),
    ],
    ids=["method", "search", "latency", "sparsity"],
)
def test_heads_go_as_a_whole_where_their_dimensions_were_not_measured(asked: Options) -> None:
    assert settled(asked, structure(["heads", "neurons"])).units == ("heads", "neurons", "blocks")


def test_a_model_of_which_norms_read_every_width_is_told_what_cuts_them() -> None:
    pins = (Pin(48, ("normalised by LayerNormalization",), "w", 1),)
    held = replace(structure([]), pins=pins)
    assert "--units hidden" in why_nothing(held, Options(Budget("flops", 0.5)))
    assert "go with --units" not in why_nothing(held, Options(Budget("flops", 0.5), units=("hidden",)))
    assert "go with --units" not in why_nothing(structure([]), Options(Budget("flops", 0.5)))


def test_patterns_that_let_nothing_through_are_named() -> None:
    free = structure(["heads", "neurons"])
    said = why_nothing(free, Options(Budget("flops", 0.5), units=("heads", "neurons"), include=("[",), exclude=("*",)))
    assert said.startswith("nothing to prune: --include [ and --exclude * let none of the 2 free groups")
    assert "--exclude" not in why_nothing(structure([]), Options(Budget("flops", 0.5), exclude=("*",)))


def test_a_budget_out_of_reach_names_the_kinds_that_were_left_out() -> None:
    """Convolutions behind a transformer are not cut by default."""
    options = settled(Options(Budget("flops", 0.5)), structure(["channels", "heads", "neurons"], attention=True))
    told = why_not_so_little(structure(["channels", "heads", "neurons"]), options, 0.5, 0.928)
    assert told.endswith("add channels, which it has, too: --units heads,neurons,blocks,head_ranks,channels")
    assert "allow more kinds" in why_not_so_little(structure(["heads"]), options, 0.5, 0.928)
