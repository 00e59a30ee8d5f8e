"""Who decides what: parts of the calibration rows that share no row, and a table on as many as it may cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import zoo as exports

from onnxprune.data import Dataset, Example
from onnxprune.errors import UsageError
from onnxprune.graph.model import load
from onnxprune.graph.plan import Budget
from onnxprune.probe.divergence import Divergence, Kind, Measure
from onnxprune.probe.forward import Rows
from onnxprune.probe.interpreter import Interpreter
from onnxprune.search.options import Options
from onnxprune.search.row_split import Split


@pytest.fixture
def interpreter(zoo: Callable[..., exports.ZooModel]) -> Interpreter:
    return Interpreter(load(zoo("bert", "torchscript", "sdpa").path).graph)


def dataset(zoo: Callable[..., exports.ZooModel], rows: int, pairs: bool) -> Dataset:
    built = zoo("bert", "torchscript", "sdpa")
    feeds = [{k: v[:1] for k, v in built.sample(seed=i).items()} for i in range(rows)]
    return Dataset(
        tuple(Example(f, pair=i // 2 if pairs else None, source=f"row {i}") for i, f in enumerate(feeds)), "tensors"
    )


def sources(rows: Rows) -> set[str]:
    return {e.source for e in rows.dataset.examples if e.source.startswith("row ")}


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("measured", [1, 40, 10**6])
def test_parts_share_no_row_and_a_table_costs_what_it_may(
    interpreter: Interpreter, zoo: Callable[..., exports.ZooModel], measured: int, pairs: bool
) -> None:
    given = dataset(zoo, 60, pairs)
    split = Split.of(interpreter, given, Options(Budget("flops", 0.5)), 4096, measured)
    fit, held, table, select = (sources(r) for r in (split.fit, split.held, split.table.rows, split.select.rows))
    assert fit | held | select == {e.source for e in given.examples}
    assert len(fit) + len(held) + len(select) == 60
    assert table
    assert table <= held
    each = given.examples[0].tokens
    wanted = min(max(measured, 4 * each), each * len(held))
    assert abs(each * len(table) - wanted) <= 2 * each, "not the tokens that may be measured"
    assert (table == held) == (measured >= each * len(held))


def test_too_few_rows_are_refused(interpreter: Interpreter, zoo: Callable[..., exports.ZooModel]) -> None:
    with pytest.raises(UsageError, match="7 calibration rows are too few"):
        Split.of(interpreter, dataset(zoo, 7, False), Options(Budget("flops", 0.5)), 4096, 512)


def test_half_of_what_a_classifier_is_measured_on_is_made(
    interpreter: Interpreter, zoo: Callable[..., exports.ZooModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = interpreter.graph.outputs[0].name or ""
    kl = Divergence((Measure(name, Kind.KL, single=True),))
    monkeypatch.setattr("onnxprune.probe.forward.choose_for", lambda *_: kl)
    rows = dataset(zoo, 60, pairs=False)
    for row in rows.examples:  # texts begin and end alike
        row.feeds["input_ids"][:, 0], row.feeds["input_ids"][:, -1] = 1, 2
    texts = replace(rows, kind="tokens")

    def made(measured: int, **more: float) -> tuple[int, int]:
        split = Split.of(interpreter, texts, Options(Budget("flops", 0.5), **more), 4096, measured)  # type: ignore[arg-type]
        held = {e.source for e in split.held.dataset.examples}
        used = [e.source.removeprefix("part of ").split(" and ") for e in split.table.rows.dataset.examples]
        assert {name for names in used for name in names} <= held, "made of rows that teach, or judge"
        count = len(split.table.rows.dataset)
        new = sum(e.source not in held for e in split.table.rows.dataset.examples)
        return new, count - new

    each = texts.examples[0].tokens
    assert made(10**6) == (6, 6)
    assert made(6 * each) == (3, 3)
    assert made(10**6, variants=0.0) == (0, 12)
