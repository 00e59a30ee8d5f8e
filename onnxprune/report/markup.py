"""HTML and SVG elements whose text and attributes are escaped by construction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Markup(str):
    """Text that is markup already. Only `tag` and `join` make it; every other string is escaped when it is placed."""

    __slots__ = ()


_VOID = ("img",)
"""Elements without an end."""
Child = str | int | float | None


def tag(name: str, /, *children: Child, **attributes: str | int | float | None) -> Markup:
    """One element. `class_` is `class`, other underscores are hyphens; an attribute that is None is left out."""
    held = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{held}>" if name in _VOID else f"<{name}{held}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    """Several pieces one after another; plain strings among them are escaped."""
    return Markup("".join(_placed(child) for child in children))


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Child]],
    classes: Sequence[str],
    *,
    foot: Sequence[Child] | None = None,
    class_: str | None = None,
    unit: str = "",
) -> Markup:
    """A table that scrolls sideways where it must; `classes` are those of its columns."""

    def cells(name: str, held: Sequence[Child]) -> Markup:
        return join(tag(name, cell, class_=style or None) for cell, style in zip(held, classes, strict=True))

    made = tag(
        "table",
        tag("thead", tag("tr", cells("th", columns))),
        tag("tbody", *(tag("tr", cells("td", row)) for row in rows)),
        tag("tfoot", tag("tr", cells("td", foot))) if foot is not None else None,
        class_=class_,
    )
    note = tag("p", f"Times in {unit}.", class_="name") if unit else None
    return tag("div", made, note, class_="scroll")


def _placed(child: Child) -> str:
    if child is None:
        return ""
    return str(child) if isinstance(child, Markup) else escape(_number(child), quote=True)


def _number(value: str | int | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
