"""What a terminal shows: complete, in ASCII where it must be, with nothing cut off."""

from __future__ import annotations

import io
import re

import pytest
from made_reports import EVIL, full, plain
from rich.console import Console

from onnxprune.measure.validation import Evidence
from onnxprune.report import (
    Budget,
    Change,
    Flops,
    ModelInfo,
    Report,
    terminal,
    text,
)


def test_plain_output_is_ascii_and_complete() -> None:
    said = plain(full())
    assert said.isascii()
    assert "\x1b" not in said
    for expected in ("bert/model.onnx", "60.0% kept", "###########. 11/12", "............ 0/12", "768/1536", "dropped"):
        assert expected in said
    assert "89.68%" in said and "-0.23 points [-0.92, +0.46]" in said
    assert "1.60x [1.55, 1.65]" in said and "no clear difference" in said
    assert "3 of 512 rows" in said
    assert terminal.to_text(full()) == said


@pytest.mark.parametrize("width", [60, 80, 110, 200])
def test_intervals_are_never_cut_off(width: int) -> None:
    stream = io.StringIO()
    terminal.print_latency(full().latency, Console(file=stream, width=width))
    terminal.print_sweep([full(), full()], Console(file=stream, width=max(width, 110)))
    assert stream.getvalue().count("1.60x [1.55, 1.65]") == 4


def test_terminals_get_colour_and_blocks() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=120, force_terminal=True, color_system="truecolor", _environ={})
    terminal.print_report(full(), console)
    said = stream.getvalue()
    assert "\x1b[" in said
    assert all(special in said for special in "█■×")


def test_brackets_are_no_markup() -> None:
    said = plain(full(warnings=(EVIL,), model=ModelInfo(f"{EVIL}.onnx", "", 17)))
    assert said.count("[red]x[/red]") >= 2


def test_validation_and_sweep_tables() -> None:
    held = full()
    assert held.accuracy is not None and held.drift is not None
    stream = io.StringIO()
    console = Console(file=stream, width=110)
    terminal.print_evidence(Evidence(held.accuracy, held.drift, held.latency[0].coverage, held.further), console)
    terminal.print_sweep([full(flops=Flops(1000, 400)), held, full(flops=Flops(1000, 900), latency=())], console)
    said = stream.getvalue()
    assert "Perplexity" in said and "agreement 97.7%" in said
    assert re.search(r"90\.0%.*60\.0%.*40\.0%", said, re.DOTALL)


def test_a_sweep_warns_of_each_thing_once() -> None:
    few = [
        full(warnings=(f"60 rows cannot tell a fall by less than {points} points", "other")) for points in (7.8, 9.2)
    ]
    assert text.warned(few) == ["60 rows cannot tell a fall by less than 7.8 points", "other"]


def test_where_nothing_is_left_to_do_nothing_is_headed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Next" in plain(full())
    monkeypatch.setattr("onnxprune.report.advice.next_steps", lambda report: ())
    assert "Next" not in plain(full())


def test_a_bare_report_prints() -> None:
    said = plain(
        Report(ModelInfo("m", "", 17), Budget("params", 0.5, 0.5), Flops(0, 0), Change(0, 0), Change(0, 0), ())
    )
    assert "Parameters: 50.0% kept" in said
