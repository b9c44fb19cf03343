"""Draw `docs/_static/progress.svg` again: `python docs/draw_progress.py`. The display of a real run, in the middle of it.

Time is made up, so that the picture is the same each time.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from rich.console import Console

from flowdeco import Context, Stage, action, parallel, pipeline, stage
from flowdeco.events import Progress, StageFinished
from flowdeco.executors import serial
from flowdeco.show.live import frame
from flowdeco.show.tally import Tally

TARGET = Path(__file__).with_name("_static") / "progress.svg"
WIDTH = 76


class Clock:
    """Seconds that pass when somebody looks."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 0.13
        return self.now


@action
def discover() -> list[Stage]:
    return [process(kind) for kind in ("databases", "caches")]


@stage
def process(kind: str) -> None:
    @action
    def handle() -> None: ...


@stage
def fetch(host: str) -> None:
    @action
    def download(ctx: Context) -> None:
        if host == "mirror-0":  # the calls of `serial()` are made in turn: the others have begun, and wait
            ctx.progress(7, 12)


@action
def report() -> None: ...


def draw(target: Path = TARGET) -> str:
    """Write the picture, and return its text."""
    pictures: list[Any] = []
    tally = Tally(Clock())

    def look(event: Any) -> None:
        if isinstance(event, StageFinished):
            event = event._replace(elapsed=0.21 + 0.34 * tally.done)
        tally(event)
        if isinstance(event, Progress):
            pictures.append(frame(tally, width=WIDTH))

    hosts = parallel(*(fetch(f"mirror-{number}") for number in range(4)), name="downloads")
    pipeline(discover, hosts, report, name="nightly").run(observers=[look], executor=serial())
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(pictures[0])
    svg = console.export_svg(title="python nightly.py", unique_id="progress")
    svg = re.sub(r"url\([^)]*cdnjs[^)]*\)[^,;]*,?", "", svg)  # no request to anywhere
    svg = re.sub(r'(src: local\("[^"]+"\)),\s*;', r"\1;", svg)
    target.write_text(svg, encoding="utf-8")
    return svg


if __name__ == "__main__":
    draw()
    print(f"drawn: {TARGET}")
