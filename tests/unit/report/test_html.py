"""The report as a page: it loads nothing, runs nothing, escapes everything, and shows what was measured."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_reports import EVIL, full, latency

from onnxprune.measure.flips import Flip, Flips
from onnxprune.measure.layer_drift import LayerDrift
from onnxprune.measure.slices import Slice
from onnxprune.measure.validation import Accuracy, Drift
from onnxprune.report import Budget, Change, Flops, ModelInfo, Report, Sparsity, Units, advice, charts, html, sweep_page
from onnxprune.report.markup import Markup, tag


class Page(HTMLParser):
    """Elements and text; fails on anything that does not close."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data + " "

    def count(self, name: str, class_: str) -> int:
        return sum(tag == name and held.get("class") == class_ for tag, held in self.elements)


@pytest.mark.parametrize(
    "page", [html.render(full()), sweep_page.render([full(), full(flops=Flops(1000, 400))])], ids=["report", "sweep"]
)
def test_the_page_loads_and_runs_nothing(page: str) -> None:
    parsed = Page(page)
    names = {name for name, _ in parsed.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form", "audio", "video", "use"}
    for _, held in parsed.elements:
        assert not set(held) & {"href", "xlink:href", "action", "srcset"}
        assert (held.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
        assert not any(key.startswith("on") for key in held)
    assert not re.search(r"url\(|@import|https?:", page)
    policy = next(held for name, held in parsed.elements if held.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "prefers-color-scheme: dark" in page


def test_everything_is_escaped() -> None:
    evil = full(
        model=ModelInfo(EVIL, EVIL, 17, EVIL),
        budget=Budget(EVIL, 1, 1, EVIL),
        flops=Flops(10, 5, {EVIL: Change(10, 5)}, {EVIL: 1}),
        units=(Units(EVIL, EVIL, 0, 4, 2, (0, 1)),),
        recipe={EVIL: EVIL},
        accuracy=Accuracy(EVIL, 1, 1, 0, 2, (0, 0), True, EVIL),
        drift=Drift(0, EVIL, 0, 1, 1, 0),
        latency=(latency(1.5, 1.4, 1.6, provider=EVIL),),
        flips=Flips(1, 2, 0, 0, (Flip(EVIL, EVIL, EVIL, 1, 1, EVIL, EVIL, EVIL),)),
        slices=(Slice("class", EVIL, 2, 1, 1, 0, None),),
        layers=(LayerDrift(EVIL, EVIL, 0.1),),
        sparsity=Sparsity(EVIL, 0.5, (EVIL,)),
        warnings=(EVIL,),
        seconds={EVIL: 1.0},
    )
    page = html.render(evil) + sweep_page.render([evil, evil])
    parsed = Page(page)
    assert "script" not in {name for name, _ in parsed.elements}
    assert "<script" not in page.lower()
    assert parsed.text.count(EVIL) >= 12


def test_the_map_shows_what_is_left() -> None:
    parsed = Page(html.render(full()))
    assert parsed.count("rect", "on") == 11
    assert parsed.count("rect", "off") == 1 + 12 + 1
    for expected in ("Attention blocks", "dropped", "11 / 12", "768 / 1,536", "11 of 24"):
        assert expected in parsed.text


PICTURE = "data:image/png;base64,iVBORw0KGgo="


def flips(**changes: Any) -> Flips:
    shown = Flip("rows.jsonl:3", "good", "bad", 0.71, 0.64, "good", "a dull film", PICTURE)
    return replace(Flips(3, 872, 2, 1, (shown,)), **changes)


def test_rows_with_another_answer_are_shown_and_how_to_leave_them_out_is_said() -> None:
    parsed = Page(html.render(full(flips=flips())))
    told = " ".join(parsed.text.split())
    assert "3 of 872 rows are answered otherwise: 2 were right before, 1 is right now." in told
    assert "a dull film" in told and "dense good 71%" in told and "pruned bad 64%" in told and "label good" in told
    assert "--flips 0 leaves them out" in told and "These 1 are those" in told
    assert [held["src"] for name, held in parsed.elements if name == "img"] == [PICTURE]
    classes = {held.get("class") for name, held in parsed.elements if name == "b"}
    assert classes == {"good", "bad", None}


def test_pages_show_no_rows_where_there_are_none() -> None:
    for held in (flips(shown=()), flips(count=0, shown=())):
        told = html.render(full(flips=held))
        assert "<img" not in told and "--flips" not in told and "872 rows" in told
    assert "Other answers" not in html.render(full())


def test_tags_and_scores_have_words_of_their_own() -> None:
    shown = Flip("rows:3", "Rome: LOC", "Rome: O", 0.9, 0.6, "Rome: LOC", "Ann lives in Rome")
    tags = Flips(2, 60, 1, 1, (shown,), "tags")
    told = " ".join(Page(html.render(full(flips=tags))).text.split())
    assert "Other tags" in told and "2 of 60 rows are tagged otherwise somewhere: 1 was all right before" in told
    moved = replace(shown, dense="2.1", pruned="1.8", dense_confidence=math.nan, pruned_confidence=math.nan, label="2")
    parsed = Page(html.render(full(flips=Flips(60, 60, None, None, (moved,), "scores", (0.03, 0.3, 1.2)))))
    told = " ".join(parsed.text.split())
    assert "Scores that moved most" in told and "These 1 are those that moved most" in told and "nan" not in told
    assert "scores moved by 0.0300 in the median and by 0.300 at most" in told and "dense 2.1 pruned 1.8" in told
    assert {held.get("class") for name, held in parsed.elements if name == "b"} == {None}


@pytest.mark.parametrize("uri", ["https://example.com/a.png", "data:text/html;base64,AAAA", 'data:image/png;base64,"'])
def test_pictures_that_a_report_names_are_pictures(uri: str) -> None:
    shown = (replace(flips().shown[0], picture=uri),)
    assert "<img" not in html.render(full(flips=flips(shown=shown)))


def test_parts_of_the_rows_and_layers_are_shown() -> None:
    slices = (
        Slice("class", "good", 400, 0.95, 0.9, 0.05, (0.01, 0.09)), Slice("length", "3 to 9", 200, 0.9, 0.9, 0.0, None),
    )  # fmt: skip
    layers = (LayerDrift("attention.0", "a", 0.02), LayerDrift("ffn.0", "b", 0.15), LayerDrift("ffn.1", "c", 0.1, True))
    parsed = Page(html.render(full(slices=slices, layers=layers)))
    told = " ".join(parsed.text.split())
    assert "By class: share answered rightly" in told and "−5.00 [−9.00, −1.00]" in told
    assert "By length: accuracy" in told and "3 to 9" in told.replace("\u00a0", " ")
    assert "ffn.0 15.0%" in told and parsed.count("rect", "column") == 2 and parsed.count("rect", "column hollow") == 1


def test_every_speedup_on_the_page_has_its_interval() -> None:
    parsed = Page(html.render(full(latency=(latency(1.6, 1.55, 1.65), latency(0.7, 0.6, 0.8)))))
    quoted = re.findall(r"1\.60×(.{0,40})", parsed.text)
    assert quoted
    assert all("1.55" in after for after in quoted)
    assert parsed.count("circle", "dot good") == 1
    assert parsed.count("circle", "dot bad") == 1


def test_a_sweep_has_its_curves_and_a_recommendation() -> None:
    several = [full(flops=Flops(1000, kept)) for kept in (900, 600, 300)]
    parsed = Page(sweep_page.render(several))
    assert "Accuracy against cost" in parsed.text
    assert parsed.count("circle", "dot series s0") == 7  # of one curve the dense model, too
    assert "Take 30.0% of the FLOPs: 1.60× [1.55, 1.65] faster" in parsed.text
    assert "smallest whose loss is within chance" in parsed.text


def test_a_sweep_recommends_by_intervals() -> None:
    def at(kept: int, drop: float, low: float, high: float) -> Report:
        accuracy = Accuracy("accuracy", 0.9, 0.9 - drop, drop, 872, (low, high), True, "")
        return full(flops=Flops(1000, kept), accuracy=accuracy)

    harmless, lossy, broken = at(600, 0.0, -0.01, 0.01), at(300, 0.1, 0.05, 0.15), at(200, 0.0, -0.01, 0.01)
    assert "60.0%" in advice.recommended([lossy, harmless])[0]
    assert "60.0%" in advice.recommended([replace(broken, broken=("all answers alike",)), harmless])[0]
    worse = at(200, 0.2, 0.15, 0.25)
    taken, why = advice.recommended([worse, lossy])
    assert "30.0%" in taken and "loses least" in why
    assert "No budget" in advice.recommended([full(accuracy=None)] * 2)[0]
    assert "Accuracy against cost" not in Page(sweep_page.render([full(accuracy=None)] * 2)).text


def test_a_bare_page() -> None:
    bare = Report(ModelInfo("m", "", 17), Budget("params", 0.5, 0.5), Flops(0, 0), Change(0, 0), Change(0, 0), ())
    parsed = Page(html.render(bare))
    assert "no accuracy was measured" in parsed.text
    assert "Latency was not measured" in parsed.text


def test_tags_escape_all_but_markup() -> None:
    made = tag("a", "<", Markup("<b></b>"), 1.50, None, class_='"', data_x=2, title=None)
    assert made == '<a class="&quot;" data-x="2">&lt;<b></b>1.5</a>'
    assert tag("p", made) == f"<p>{made}</p>"


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_inside_and_are_few(low: float, span: float) -> None:
    ticks = charts._Scale(low, low + span, 0, 100).ticks(6)
    assert 1 <= len(ticks) <= 7
    slack = 1e-6 * span + 1e-15 * abs(low)  # a float near `low` is no finer than that
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)
