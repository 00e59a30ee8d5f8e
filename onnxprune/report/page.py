"""What all pages have in common: one file that loads nothing, and a content policy that keeps it that way."""

from __future__ import annotations

from collections.abc import Iterable

from onnxprune.documents import utf8
from onnxprune.report.markup import Markup, join, tag
from onnxprune.report.style import STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, parts: Iterable[Markup | None]) -> str:
    """A page of its parts."""
    head = join(
        [
            Markup('<meta charset="utf-8">'),
            Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
            tag("title", title),
            tag("style", Markup(STYLE)),
        ]
    )
    held = tag("html", tag("head", head), tag("body", tag("main", *parts)), lang="en")
    return utf8(f"<!doctype html>\n{held}\n")


def section(title: str, note: str | None, content: Markup | None) -> Markup | None:
    """A heading with what is under it; nothing without content."""
    if content is None:
        return None
    return tag("section", tag("h2", title), tag("p", note) if note else None, content)
