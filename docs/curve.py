"""Draws pages/images/curve.svg, accuracy and divergence against FLOPs, from the table in tests/golden/methods.md."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE.parent / "tests/golden/methods.md"
SHOWN = {
    "obs": ("onnxprune (auto)", "#e4572e"),
    "fisher": ("fisher", "#2e86ab"),
    "snip": ("snip", "#7a9e3e"),
    "magnitude": ("magnitude", "#888"),
}
"""Methods of the picture: what they are called, and their colours."""
BUDGETS = (0.75, 0.6, 0.5, 0.4, 0.3)
PANELS = (
    ("accuracy against dense, points", -7.5, 1.0, (0, -2, -4, -6)),
    ("KL to dense", 0.0, 0.36, (0, 0.1, 0.2, 0.3)),
)
"""Title, lowest and highest value, ticks."""
WIDTH, HEIGHT, TOP, BOTTOM = 300, 250, 30, 200
STYLE = "text{font:13px sans-serif;fill:#777}.g{stroke:#8884}polyline{fill:none;stroke-width:2.5}"


def series() -> dict[str, list[tuple[float, float, float]]]:
    """Method -> (FLOPs kept, points against dense, KL) of the classifier, as the table has them."""
    found = defaultdict(list)
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        cells = [c.strip() for c in line.strip("| ").split("|")]
        if len(cells) == 9 and cells[0] == "sst2" and cells[1] in SHOWN:
            found[cells[1]].append((float(cells[2]), float(cells[4]), float(cells[5])))
    return found


def text(x: float, y: float, said: str, anchor: str = "start") -> str:
    """A label."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{said.replace("-", "−")}</text>'


def dot(x: float, y: float, colour: str, radius: float = 3.5) -> str:
    """A point."""
    return f'<circle fill="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def panel(index: int) -> list[str]:
    """One quantity against the FLOPs that are kept."""
    title, low, high, ticks = PANELS[index]
    left = 50 + index * (WIDTH + 60)

    def place(flops: float, value: float) -> tuple[float, float]:
        return left + (0.8 - flops) / 0.55 * WIDTH, BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    drawn = [text(left, 16, title)]
    for tick in ticks:
        y = place(0.8, tick)[1]
        drawn += [f'<path class="g" d="M{left} {y:.1f}h{WIDTH}"/>', text(left - 6, y + 4, f"{tick:g}", "end")]
    drawn += [text(place(flops, low)[0], BOTTOM + 20, f"{flops:.0%}", "middle") for flops in BUDGETS]
    for method, points in series().items():
        colour = SHOWN[method][1]
        places = [place(point[0], point[index + 1]) for point in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn += [f'<polyline stroke="{colour}" points="{line}"/>', *(dot(x, y, colour) for x, y in places)]
    return drawn


def picture() -> str:
    """Both panels, and what the colours mean."""
    drawn = [part for index in range(len(PANELS)) for part in panel(index)]
    for i, (name, colour) in enumerate(SHOWN.values()):
        drawn += [dot(58 + 160 * i, HEIGHT - 12, colour, 5), text(70 + 160 * i, HEIGHT - 7, name)]
    label = "Accuracy and divergence of a classifier at 75 to 30% of its FLOPs, by four methods"
    frame = f'viewBox="0 0 {2 * WIDTH + 130} {HEIGHT}" role="img" aria-label="{label}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {frame}><style>{STYLE}</style>{"".join(drawn)}</svg>\n'


if __name__ == "__main__":
    (HERE / "pages/images/curve.svg").write_text(picture(), encoding="utf-8")
