"""The README's support table, from the full one: family by exporter, what is cut.

python tests/support_readme.py
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- support -->\n", "<!-- end of support -->\n"


def table(text: str) -> str:
    """Families by what is found in them, alike ones in one row; the forms' table is left to the full file."""
    found: dict[str, dict[str, str]] = {}
    for line in text.split("\n\n| family | exporter | attention | form", maxsplit=1)[0].splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if len(cells) < 8 or cells[0] in ("family", "---"):
            continue
        family, exporter, _, units, branches = cells[:5]
        kinds = re.findall(r"([a-z_]+) \d", units)
        said = ", ".join([*kinds, *(["blocks"] if branches not in ("none", "") else [])])
        found.setdefault(family, {}).setdefault(exporter, said or "does not export")
        if said:
            found[family][exporter] = said
    alike: dict[tuple[str, str], list[str]] = {}
    for family, cells_of in found.items():
        alike.setdefault((cells_of.get("torchscript", ""), cells_of.get("dynamo", "")), []).append(family)
    rows = [("families", "TorchScript", "dynamo"), ("---", "---", "---")]
    rows += [(", ".join(names), *cells) for cells, names in alike.items()]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def main() -> None:
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    full = (ROOT / "tests" / "golden" / "support.md").read_text(encoding="utf-8")
    readme.write_text(before + START + table(full) + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
