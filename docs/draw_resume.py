"""Draw `docs/_static/resume.svg` again: `python docs/draw_resume.py`. A real run, killed with `kill -9`, and resumed.

The lines are what the commands print; only the moments at which they appear are made up, so that the picture is the same
each time.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import IO, NamedTuple, cast

TARGET = Path(__file__).with_name("_static") / "resume.svg"
KILLED_AFTER = "counted 3"
COMMANDS = ("run flow.py:flow --journal runs.db --run-id nightly", "resume nightly --journal runs.db")

FLOW = """\
import time
from flowdeco import Stage, action, stage

@stage
def count(number: int) -> None:
    @action(collect="counts")
    def rows() -> int:
        time.sleep(0.2)
        print("counted", number, flush=True)
        return 1000 * number

@action
def files() -> list[Stage]:
    return [count(number) for number in range(1, 7)]

@action
def total(counts: list[int]) -> int:
    return sum(counts)

flow = files >> total
"""


class Line(NamedTuple):
    """A line of the terminal: its text, how it looks, and the seconds after which it appears."""

    text: str
    look: str
    at: float


def recorded() -> Iterator[Line]:
    """Run the flow, kill it, resume it; yield what a terminal would show."""
    now = 0.6
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "flow.py").write_text(FLOW, encoding="utf-8")
        for words in COMMANDS:
            yield Line(f"$ flowdeco {words}", "prompt", now)
            now += 0.9
            for text in printed(folder, words):
                yield Line(text, "output", now)
                now += 0.6
            if words is COMMANDS[0]:
                yield Line("Killed", "killed", now)
                now += 1.4


def printed(folder: str, words: str) -> Iterator[str]:
    """Yield the lines that a command prints, without the table of stages; the first one is killed on the way."""
    command = [sys.executable, "-m", "flowdeco", *words.split()]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(cast("IO[str]", process.stdout))
        for text in lines:
            if text.startswith("STAGE"):
                break
            yield text.rstrip()
            if text.rstrip() == KILLED_AFTER and words is COMMANDS[0]:
                time.sleep(0.1)  # in the middle of the next one
                process.kill()
                return
        *_, ended, result = lines
        yield re.sub(r"[\d.]+ (ms|s),", "1.4 s,", ended.rstrip())
        yield result.rstrip()


def drawn(lines: list[Line]) -> str:
    """Return the picture: each line appears at its time, and all of them at once for those who prefer no motion."""
    height, length = 34 + 21 * len(lines), lines[-1].at + 5
    rows: list[str] = []
    moves: list[str] = []
    for at, line in enumerate(lines):
        rows.append(f'<text class="{line.look} l{at}" x="18" y="{40 + 21 * at}">{escape(line.text)}</text>')
        share = 100 * line.at / length
        frames = f"0%,{share:.1f}%{{opacity:0}}{share + 0.1:.1f}%,100%{{opacity:1}}"
        moves.append(f".l{at}{{animation-name:l{at}}}@keyframes l{at}{{{frames}}}")
    label = "A terminal: " + "; ".join(line.text.strip("$ ") for line in lines)
    motion = f"text{{animation-duration:{length:.1f}s;animation-iteration-count:infinite}}{''.join(moves)}"
    about = f'viewBox="0 0 720 {height + 16}" role="img" aria-label="{escape(label)}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {about}>
<style>
rect{{fill:#14171f}} text{{font:15px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:#d5dae5}}
.prompt{{fill:#ffffff;font-weight:600}} .killed{{fill:#ff7b72}}
@media (prefers-reduced-motion:no-preference){{{motion}}}
</style>
<rect width="720" height="{height + 16}" rx="10"/>
{chr(10).join(rows)}
</svg>
"""


def draw(target: Path = TARGET) -> str:
    """Write the picture, and return its text."""
    svg = drawn(list(recorded()))
    target.write_text(svg, encoding="utf-8")
    return svg


if __name__ == "__main__":
    draw()
    print(f"drawn: {TARGET}")
