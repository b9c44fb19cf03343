"""Draw `docs/_static/tree.svg` again: `python docs/draw_tree.py`. The insertion tree of a real run, as it grows.

Time is made up, so that the picture is the same each time. Viewers who prefer no motion see the finished tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from flowdeco import Run, Stage, action, stage
from flowdeco.show.tree import Node, grown

TARGET = Path(__file__).with_name("_static") / "tree.svg"
WIDTH, TOP, ROW, INDENT = 860, 58, 38, 34
BARS, BARS_END = 430, WIDTH - 28  # where the bars of the timeline are
PERIOD = 11.0  # seconds of one turn of the animation
START, RUN = 0.03, 0.74  # the parts of it before the run, and of the run
SECONDS = {"discover": 1.6, "region": 1.0, "server": 0.9, "repair": 2.0, "report": 1.2}


@action
def discover() -> list[Stage]:
    return [region("eu"), region("us")]


@stage
def region(name: str) -> None:
    @action
    def servers() -> list[Stage]:
        return [server(f"{name}-{number}") for number in ((1, 2) if name == "eu" else (1,))]


@stage
def server(name: str) -> None:
    @action
    def check() -> Stage | None:
        return repair(name) if name == "eu-2" else None


@stage
def repair(name: str) -> None:
    @action
    def restart() -> None: ...


@action
def report() -> None: ...


class Row(NamedTuple):
    """A stage of the picture, with its depth and the row of its inserter."""

    name: str
    depth: int
    parent: int | None
    number: int

    @property
    def x(self) -> int:
        return 28 + INDENT * self.depth

    @property
    def y(self) -> int:
        return TOP + ROW * self.number


def rows_of(run: Run) -> list[Row]:
    """Return the stages of a run in their order."""
    rows: list[Row] = []

    def add(nodes: Sequence[Node], depth: int, parent: int | None) -> None:
        for node in nodes:
            rows.append(Row(node.part.name, depth, parent, len(rows)))
            add(node.inserted, depth + 1, len(rows) - 1)

    add(grown(run.ran().parts), 0, None)
    return rows


STYLE = """
text { font: 15px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #14181d; }
.soft { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #56606b; }
.paper { fill: #fff; stroke: #dfe3e8; } .line { stroke: #e6e9ed; }
.plan { fill: #2f6feb; } .new { fill: #7a43e6; } .done { fill: #1a7f37; font-weight: 700; }
.edge { fill: none; stroke: #b9a2e8; stroke-width: 2; stroke-dasharray: 1; }
.bar { transform-box: fill-box; transform-origin: left; }
@media (prefers-color-scheme: dark) {
text { fill: #e7ebf0; } .soft { fill: #9ba6b2; } .paper { fill: #161b22; stroke: #2c343e; }
.line { stroke: #2c343e; }
.plan { fill: #589bff; } .new { fill: #ab8bff; } .done { fill: #4ac26b; } .edge { stroke: #6f58a8; }
}
"""


def percent(part: float) -> str:
    return f"{100 * part:.2f}%"


def motion(row: Row, began: float, ended: float) -> Iterator[str]:
    """Yield the keyframes of a stage: a line leads to it, it appears, its bar grows, and it is done."""
    hidden = "opacity: 0" if row.parent is not None else "opacity: .4"
    for kind, since, before, until, after in (
        ("e", began - 0.02, "stroke-dashoffset: 1", began + 0.02, "stroke-dashoffset: 0"),
        ("n", began, hidden, began + 0.02, "opacity: 1"),
        ("b", began, "transform: scaleX(0)", ended, "transform: none"),
        ("d", ended, "opacity: 0", ended + 0.01, "opacity: 1"),
    ):
        yield (
            f"@keyframes {kind}{row.number} {{ 0%, {percent(since)} {{ {before} }} "
            f"{percent(until)}, 100% {{ {after} }} }}"
        )


def drawn(row: Row, rows: Sequence[Row], began: float, ended: float) -> Iterator[str]:
    """Yield the elements of a stage."""
    scale = (BARS_END - BARS) / RUN
    x, width = BARS + (began - START) * scale, (ended - began) * scale - 3
    yield f'<path class="line" d="M{BARS} {row.y}H{BARS_END}"/>'
    if row.parent is not None:
        start = rows[row.parent]
        path = f"M{start.x + 7} {start.y + 13}V{row.y - 8}q0 8 8 8H{row.x - 6}"
        yield f'<path class="edge" pathLength="1" style="animation-name: e{row.number}" d="{path}"/>'
    kind = "plan" if row.parent is None else "new"
    place = f'x="{x:.1f}" y="{row.y - 6}" width="{width:.1f}" height="12" rx="3.5"'
    yield f'<rect class="bar {kind}" style="animation-name: b{row.number}" {place}/>'
    yield f'<text class="done" style="animation-name: d{row.number}" x="{row.x}" y="{row.y + 5}">✓</text>'
    yield f'<text style="animation-name: n{row.number}" x="{row.x + 22}" y="{row.y + 5}">{escape(row.name)}</text>'


TITLE = "A run of discover and report: discover inserts two regions, these insert servers, and one of them a repair"


def draw(target: Path = TARGET) -> str:
    """Write the picture, and return its text."""
    rows = rows_of((discover >> report).run())
    total = sum(SECONDS[row.name.partition("[")[0]] for row in rows)
    moments, now = [], 0.0
    for row in rows:
        took = RUN * SECONDS[row.name.partition("[")[0]] / total
        moments.append((START + now, START + now + took))
        now += took
    height = TOP + ROW * len(rows) + 2
    keyframes = "\n".join(line for row in rows for line in motion(row, *moments[row.number]))
    moving = f"[style] {{ animation: linear infinite; animation-duration: {PERIOD}s; }}"
    body = "\n".join(line for row in rows for line in drawn(row, rows, *moments[row.number]))
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    svg = f"""<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title">
<title id="title">{TITLE}</title>
<style>{STYLE}{keyframes}
@media (prefers-reduced-motion: no-preference) {{ {moving} }}</style>
<rect class="paper" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="10"/>
<rect class="plan" x="28" y="18" width="11" height="11" rx="3"/>
<text class="soft" x="46" y="28">in the plan: discover &gt;&gt; report</text>
<rect class="new" x="{BARS}" y="18" width="11" height="11" rx="3"/>
<text class="soft" x="{BARS + 18}" y="28">inserted by running stages</text>
{body}
</svg>
"""
    target.write_text(svg, encoding="utf-8")
    return svg


if __name__ == "__main__":
    draw()
    print(f"drawn: {TARGET}")
