"""The pages build, their links lead somewhere, and the commands they show exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxprune.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs/pages").glob("*.md")), *sorted(ROOT.glob("*.md")), ROOT / "calibration/README.md"]


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    told = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", "docs/mkdocs.yml", "-d", tmp_path / "site"],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    index = (tmp_path / "site/index.html").read_text()
    assert "First run" in index
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', index), "something is fetched"
    assert "evaluation" in (tmp_path / "site/python/index.html").read_text()


def _links(page: Path) -> Iterator[str]:
    yield from (t for t in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if not t.startswith(("http", "mailto:")))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _links(page):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles], link


def _shown(page: Path) -> Iterator[str]:
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.M | re.S):
        yield from (line.split("#")[0].strip() for line in block.replace("\\\n", " ").splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_that_are_shown_exist(page: Path) -> None:
    for line in (x for x in _shown(page) if x.startswith("onnxprune ")):
        words = line.split()[1:]
        name = words[0] if words[0] in cli.commands else "prune"
        options = {o for parameter in cli.commands[name].params for o in (*parameter.opts, *parameter.secondary_opts)}
        asked = {w.split("=")[0] for w in words if w.startswith("-")}
        assert asked <= options | {"--help", "-h"}, f"{page.name}: {line}"
