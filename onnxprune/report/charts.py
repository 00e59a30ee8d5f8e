"""Small SVG drawings: bars, unit cells, intervals, curves. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from onnxprune.report.markup import Markup, join, tag

_CELL, _GAP, _PER_ROW = 9, 3, 32
_SERIES = 6
"""Curves that have a colour of their own."""


@dataclass(frozen=True)
class Interval:
    """A labelled value with its interval; `good` colours it (None: undecided)."""

    label: str
    value: float
    low: float
    high: float
    text: str
    good: bool | None = None


@dataclass(frozen=True)
class Point:
    """A point of a curve, with intervals along one or both axes; `series` names the curve, where there are several."""

    x: float
    y: float
    label: str
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    series: str = ""


@dataclass(frozen=True)
class Column:
    """A labelled amount; a hollow one stands for what is gone."""

    label: str
    value: float
    text: str
    hollow: bool = False


def bar(share: float, of: float = 1.0) -> Markup:
    """A track of width `of` (share of the cell) that is filled up to `share`."""
    fill = tag("i", style=f"width:{_percent(share)}")
    return tag("span", fill, class_="bar", style=f"width:{_percent(of)}", role="presentation")


def cells(total: int, kept: Collection[int]) -> Markup:
    """One square per unit, filled where it is kept."""
    step = _CELL + _GAP
    rows = math.ceil(total / _PER_ROW)
    squares = (
        tag(
            "rect",
            x=i % _PER_ROW * step + 0.5,
            y=i // _PER_ROW * step + 0.5,
            width=_CELL,
            height=_CELL,
            rx=2,
            class_="on" if i in kept else "off",
        )
        for i in range(total)
    )
    width, height = min(total, _PER_ROW) * step, rows * step - _GAP + 1
    return tag("svg", *squares, class_="cells", width=width, height=height, viewBox=f"0 0 {width} {height}")


def forest(rows: Sequence[Interval], reference: float, unit: str) -> Markup:
    """Values with their intervals on one axis, around the value that means no difference; words above each."""
    width, side, line = 480, 12, 46
    low = min([reference, *(row.low for row in rows)])
    high = max([reference, *(row.high for row in rows)])
    pad = (high - low or 1.0) * 0.08
    scale = _Scale(low - pad, high + pad, side, width - side)
    bottom = line * len(rows) + 4
    drawn: list[Markup] = []
    for value in scale.ticks(6):
        x = scale(value)
        drawn.append(tag("line", x1=x, x2=x, y1=4, y2=bottom, class_="grid"))
        drawn.append(tag("text", f"{_tick(value)}{unit}", x=x, y=bottom + 18, class_="tick", text_anchor="middle"))
    x = scale(reference)
    drawn.append(tag("line", x1=x, x2=x, y1=0, y2=bottom, class_="reference"))
    for i, row in enumerate(rows):
        y = line * i + 32
        style = {True: "good", False: "bad", None: "open"}[row.good]
        drawn += [
            tag("text", row.label, x=0, y=y - 14, class_="label"),
            tag("text", row.text, x=width, y=y - 14, class_="value", text_anchor="end"),
            tag("line", x1=scale(row.low), x2=scale(row.high), y1=y, y2=y, class_=f"whisker {style}"),
            tag("circle", cx=scale(row.value), cy=y, r=4.5, class_=f"dot {style}"),
        ]
    return _svg(width, bottom + 26, drawn, "chart small")


def curve(points: Sequence[Point], reference: float, x_axis: tuple[str, str], y_axis: tuple[str, str]) -> Markup:
    """Points joined in the order of x, with their intervals, and a dashed line at the dense model's value.

    Args:
        points: the curve, or several.
        reference: y of the dense model.
        x_axis, y_axis: title and unit.
    """
    (x_title, x_unit), (y_title, y_unit) = x_axis, y_axis
    left, right, top, bottom = 84, 800, 20, 300
    ordered = sorted(points, key=lambda p: p.x)
    xs = [x for p in ordered for x in (p.x, *(p.x_range or ()))]
    ys = [reference, *(y for p in ordered for y in (p.y, *(p.y_range or ())))]
    across = _Scale.around(xs, left, right)
    up = _Scale.around(ys, bottom, top)
    drawn: list[Markup] = []
    for value in up.ticks(5):
        y = up(value)
        drawn.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        drawn.append(tag("text", f"{_tick(value)}{y_unit}", x=left - 8, y=y + 4, class_="tick", text_anchor="end"))
    for value in across.ticks(8):
        text = f"{_tick(value)}{x_unit}"
        drawn.append(tag("text", text, x=across(value), y=bottom + 22, class_="tick", text_anchor="middle"))
    drawn.append(tag("line", x1=left, x2=right, y1=up(reference), y2=up(reference), class_="reference"))
    drawn.append(tag("text", "dense", x=left + 6, y=up(reference) - 6, class_="tick"))
    styles = {name: f"s{i % _SERIES}" for i, name in enumerate(dict.fromkeys(p.series for p in points))}
    for name, style in styles.items():
        own = [p for p in ordered if p.series == name]
        path = "M" + " L".join(f"{across(p.x):.1f} {up(p.y):.1f}" for p in own)
        drawn.append(tag("path", d=path, class_=f"path {style}"))
    for p in ordered:
        x, y = across(p.x), up(p.y)
        whisker, dot = f"whisker series {styles[p.series]}", f"dot series {styles[p.series]}"
        if p.y_range:
            drawn.append(tag("line", x1=x, x2=x, y1=up(p.y_range[0]), y2=up(p.y_range[1]), class_=whisker))
        if p.x_range:
            drawn.append(tag("line", x1=across(p.x_range[0]), x2=across(p.x_range[1]), y1=y, y2=y, class_=whisker))
        drawn.append(tag("circle", tag("title", p.label), cx=x, cy=y, r=4.5, class_=dot))
    drawn.append(tag("text", x_title, x=right, y=bottom + 46, class_="axis", text_anchor="end"))
    drawn.append(tag("text", y_title, x=0, y=top - 4, class_="axis"))
    names = [tag("span", tag("i", class_=style), name) for name, style in styles.items() if name]
    legend = tag("div", *names, class_="legend") if names else None
    return join([legend, _svg(right + 14, bottom + 52, drawn, "chart broad")])


def columns(held: Sequence[Column]) -> Markup:
    """Amounts side by side, in order, with the first, the last and the largest one labelled."""
    width, left, top, bottom = 480, 44, 22, 130
    up = _Scale(0.0, max(one.value for one in held) or 1.0, bottom, top)
    step = (width - left) / len(held)
    thick = min(step * 0.7, 28)
    drawn: list[Markup] = []
    for value in up.ticks(3):
        y = up(value)
        drawn.append(tag("line", x1=left, x2=width, y1=y, y2=y, class_="grid"))
        drawn.append(tag("text", f"{_tick(100 * value)}%", x=left - 8, y=y + 4, class_="tick", text_anchor="end"))
    for i, one in enumerate(held):
        x, y = left + (i + 0.5) * step, up(one.value)
        style = "column hollow" if one.hollow else "column"
        box = {"x": x - thick / 2, "y": y, "width": thick, "height": max(bottom - y, 0.5)}
        drawn.append(tag("rect", tag("title", f"{one.label}: {one.text}"), **box, rx=2, class_=style))
    largest = max(range(len(held)), key=lambda i: held[i].value)
    anchor = "end" if largest > len(held) / 2 else "start"
    edge = left + (largest + 0.5) * step + (thick / 2 if anchor == "end" else -thick / 2)
    said = f"{held[largest].label} {held[largest].text}"
    drawn.append(tag("text", said, x=edge, y=up(held[largest].value) - 7, class_="value", text_anchor=anchor))
    drawn.append(tag("text", held[0].label, x=left, y=bottom + 18, class_="tick"))
    if len(held) > 1:
        drawn.append(tag("text", held[-1].label, x=width, y=bottom + 18, class_="tick", text_anchor="end"))
    return _svg(width, bottom + 26, drawn, "chart small")


@dataclass(frozen=True)
class _Scale:
    """From values to pixels, linearly."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float) -> _Scale:
        low, high = min(values), max(values)
        pad = (high - low or abs(high) or 1.0) * 0.08
        return cls(low - pad, high + pad, start, end)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values inside the range, at most that many."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]


def _svg(width: int, height: int, drawn: Sequence[Markup], style: str) -> Markup:
    drawing = tag("svg", join(drawn), class_=style, viewBox=f"0 -10 {width} {height + 10}", role="img")
    return tag("div", drawing, class_="scroll")


def _tick(value: float) -> str:
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    return ("0" if text in ("-0", "") else text).replace("-", "−")


def _percent(share: float) -> str:
    return f"{min(max(share, 0.0), 1.0) * 100:.2f}%"
