"""The live display, drawn by rich: finished stages first, running ones below them, and the bar of the run.

A frame is a list of lines that are aligned here: a table of rich would cost several times as much, at the expense of the
run.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from flowdeco.errors import cut_middle, duration, printable
from flowdeco.show.formatting import MARKS
from flowdeco.show.tally import Row, Tally, describe, waiting

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment

__all__ = ["Frame", "Notebook", "Terminal", "frame"]


Line: TypeAlias = "list[tuple[str, str]]"  # text, style


class Glyphs(NamedTuple):
    """The characters of a display, in Unicode or in ASCII."""

    spinner: str
    full: str
    empty: str
    inserted: str
    arrow: str
    dots: str
    status: dict[str, str]


FINE: Final = Glyphs("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "━", "─", "↳ ", " › ", "…", MARKS)
PLAIN: Final = Glyphs(
    "|/-\\", "#", "-", "> ", "/", "...",
    {"completed": "+", "failed": "x", "skipped": "-", "bailed": "^", "suspended": "=", "cancelled": "#"},
)  # fmt: skip
STYLES: Final = {
    "completed": "green",
    "failed": "bold red",
    "skipped": "dim",
    "bailed": "yellow",
    "suspended": "yellow",
    "cancelled": "yellow",
    "running": "cyan",
    "pending": "dim",
}
BAR: Final = 28
SMALL_BAR: Final = 12
FINISHED: Final = 8  # lines of finished stages
ALL_OF: Final = 20  # the number of stages up to which all are shown when the run has finished


class Frame(NamedTuple):
    """The display at one moment, as lines of styled pieces of text."""

    lines: list[Line]

    @property
    def plain(self) -> str:
        """Its text, without colours."""
        return "\n".join("".join(text for text, _ in line) for line in self.lines)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        from rich.segment import Segment

        for line in self.lines:
            pieces = [Segment(text, console.get_style(style) if style else None) for text, style in line]
            yield from Segment.adjust_line_length(pieces, options.max_width, pad=False)
            yield Segment.line()


def frame(tally: Tally, height: int = 24, glyphs: Glyphs = FINE, width: int = 80) -> Frame:
    """Return the display as it is now, in at most so many lines."""
    running = list(tally.running)
    finished = tally.elapsed is not None
    room = max(1, height - 3 - bool(tally.held))  # without the bar, and the two lines with the number of hidden stages
    shown = _side_by_side(running)[: max(1, room - 2)]
    most = ALL_OF if finished and tally.done <= ALL_OF else FINISHED
    rows = _worth_showing(tally, min(room - len(shown), most)) + shown
    named = [(row, _name(row, glyphs)) for row in rows]
    names = min(max([28, *(cell_len(name) for _, name in named)]), max(16, width // 2))
    lines: list[Line] = []
    if tally.done > len(rows) - len(shown):
        lines.append([(f" {glyphs.dots} {tally.done - len(rows) + len(shown)} more", "dim")])
    lines.extend(_line(row, name, names, tally, glyphs) for row, name in named)
    if len(running) > len(shown):
        lines.append([(f" {glyphs.dots} {len(running) - len(shown)} more running", "dim")])
    held = [] if finished else list(tally.held.values())
    lines.extend([(f" {glyphs.dots} {printable(waiting(each))}", "yellow")] for each in held[:1])
    lines.append(_summary(tally, glyphs) if finished else _total(tally, glyphs))
    return Frame([_within(line, width, glyphs) for line in lines])


def _worth_showing(tally: Tally, lines: int) -> list[Row]:
    """Return the stages that finished last, preceded by failures that they would hide."""
    if lines <= 0:
        return []
    recent = list(tally.recent)
    latest = recent[-lines:]
    hidden = [row for row in list(tally.failed) if row not in latest]
    return [*hidden, *latest[len(hidden) :]] if len(hidden) < lines else latest


def _side_by_side(rows: list[Row]) -> list[Row]:
    """Return the rows in the order of branches in their group, not in order of time."""
    return sorted(rows, key=lambda row: _branch_key(row.branch)) if any(row.branch for row in rows) else rows


def _branch_key(branch: str | None) -> list[tuple[str, int]]:
    key: list[tuple[str, int]] = []
    for part in (branch or "").split("/"):
        group, _, number = part.rpartition("[")
        key.append((group, int(number[:-1]) if number[:-1].isdigit() else 0))
    return key


def _name(row: Row, glyphs: Glyphs) -> str:
    inserted = "" if row.inserted_by is None else glyphs.inserted
    return inserted + printable(describe(row, glyphs.arrow) if row.status == "running" else row.name)


def _line(row: Row, name: str, width: int, tally: Tally, glyphs: Glyphs) -> Line:
    running, skipped = row.status == "running", row.status == "skipped"
    style = STYLES.get(row.status, "")
    elapsed = tally.clock() - row.started if running else row.elapsed
    sign = glyphs.spinner[int(elapsed * 10) % len(glyphs.spinner)] if running else glyphs.status.get(row.status, "?")
    name = fitted(_in_middle(name, width, glyphs), width, glyphs)
    time = "skipped" if skipped else _took(elapsed, glyphs)
    line: Line = [(" ", ""), (sign, style), (" ", "")]
    line.append((name, "bold cyan" if running else "dim" if skipped or row.restored else ""))
    line.append((f" {time:>9}", "dim"))
    if row.branch is not None:
        line.append((f"  {row.branch}", "blue"))
    if row.inserted:
        line.append((f"  inserted {row.inserted}", "magenta"))
    if running and row.done is not None and row.total:
        line.extend([("  ", ""), *_bar(row.done / row.total, SMALL_BAR, glyphs)])
    if row.restored:
        line.append(("  restored", "dim"))
    if row.status not in ("running", "completed", "skipped"):
        line.append((f"  {printable(row.error or row.status)}", style))
    return line


def fitted(text: str, width: int, glyphs: Glyphs) -> str:
    """Return the text cut, or padded, to so many columns; wide characters take two."""
    from rich.cells import set_cell_size

    dots = glyphs.dots[:width] if cell_len(text) > width else ""
    return set_cell_size(text, width - len(dots)) + dots


def _took(seconds: float, glyphs: Glyphs) -> str:
    """Return a duration in the characters of the display."""
    return duration(seconds) if glyphs is FINE else duration(seconds).replace("µ", "u")


def _in_middle(name: str, width: int, glyphs: Glyphs) -> str:
    """Return a name cut in its middle: its beginning and its end distinguish it."""
    columns = width
    while cell_len(name) > width and columns > 0:
        name, columns = cut_middle(name, columns, glyphs.dots), columns - 1
    return name


def _within(line: Line, width: int, glyphs: Glyphs) -> Line:
    """Return a line cut to the width, with dots at its end."""
    left = width
    for number, (text, style) in enumerate(line):
        taken = cell_len(text)
        if taken > left or (taken == left and number + 1 < len(line)):
            room = max(0, left)
            return [*line[:number], (fitted(f"{text}{glyphs.dots}" if taken <= room else text, room, glyphs), style)]
        left -= taken
    return line


def cell_len(text: str) -> int:
    """Return how many columns of a terminal a string takes."""
    from rich.cells import cell_len

    return cell_len(text)


def _bar(share: float, width: int, glyphs: Glyphs) -> Line:
    full = round(width * min(1.0, max(0.0, share)))
    return [(glyphs.full * full, "green"), (glyphs.empty * (width - full), "bright_black")]


def _total(tally: Tally, glyphs: Glyphs) -> Line:
    bar = _bar(tally.done / tally.known if tally.known else 0.0, BAR, glyphs)
    count = f" {tally.done}/{tally.known} stages"
    return [
        (printable(tally.pipeline), "bold"),
        (" ", ""),
        *bar,
        (count, "bold"),
        (f"  {_took(tally.seconds, glyphs)}", "dim"),
        (f", about {_took(tally.left, glyphs)} left" if tally.left is not None else "", "dim"),
    ]


def _summary(tally: Tally, glyphs: Glyphs) -> Line:
    style = STYLES.get(tally.status, "")
    done = tally.finished
    count = str(done) if done == tally.known else f"{done} of {tally.known}"
    rest = f": {count} stage{'s' * (tally.known != 1)} in {_took(tally.seconds, glyphs)}"
    sign = glyphs.status.get(tally.status, "?")
    return [(sign, style), (" ", ""), (printable(tally.pipeline), "bold"), (f" {tally.status}", style), (rest, "")]


class Terminal:
    """A live display in a terminal; other output appears above it."""

    pause = 0.125

    def __init__(self, tally: Tally, console: Console, release: Callable[[], object]) -> None:
        from rich.live import Live

        self._tally = tally
        self._console = console
        self._release = release
        self._glyphs = PLAIN if console.options.ascii_only else FINE
        self._live = Live(
            console=console,
            auto_refresh=False,
            get_renderable=self._frame,
            # Output to a file is left alone.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            vertical_overflow="crop",
        )
        before = sys.stdout, sys.stderr
        self._live.start()
        self._streams = list(zip(before, (sys.stdout, sys.stderr), strict=True))
        _move_logging(self._streams)

    def _frame(self) -> Frame:
        width, height = self._console.size
        return frame(self._tally, height, self._glyphs, width)

    def refresh(self) -> None:
        """Draw the current state."""
        self._live.refresh()

    def end(self) -> None:
        """Draw the final state, and release the terminal."""
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()  # until then, the display holds back a last line without a line break
        finally:
            try:
                self._live.stop()
            finally:
                _move_logging((after, before) for before, after in self._streams)
                self._release()


def _move_logging(streams: Iterable[tuple[Any, Any]]) -> None:
    """Have handlers of the logging system write to other streams: they hold those that were there before the display."""
    new = {id(before): after for before, after in streams if before is not after}
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for each in [each for logger in loggers for each in getattr(logger, "handlers", ())]:
        handler: Any = each
        if isinstance(each, logging.StreamHandler) and id(handler.stream) in new:
            handler.setStream(new[id(handler.stream)])


class Notebook:
    """A display in the output of a notebook's cell, which stays there after the run."""

    pause = 0.25

    def __init__(self, tally: Tally) -> None:
        import IPython.display

        self._tally = tally
        self._display: Any = IPython.display
        self._handle = self._display.display(self._drawn(), display_id=True)

    def _drawn(self) -> Any:
        return self._display.HTML(html(frame(self._tally, 30, width=WIDE)))

    def refresh(self) -> None:
        """Draw the current state."""
        self._handle.update(self._drawn())

    def end(self) -> None:
        """Draw the final state."""
        self.refresh()


WIDE: Final = 100


def html(drawn: Frame) -> str:
    """Return a frame as HTML, in colours for light and dark pages."""
    from flowdeco.show.html import asset, text

    def piece(content: str, names: str) -> str:
        css = ";".join(COLOURS[name] for name in names.split())
        return f'<span style="{css}">{text(content)}</span>' if css else text(content)

    lines = "\n".join("".join(piece(*one) for one in line) for line in drawn.lines)
    colours = asset("notebook.css").partition(".flowdeco * {")[0]
    return f'<div class="flowdeco"><style>{colours}</style><pre style="{PRE}">{lines}</pre></div>'


COLOURS: Final = {
    "bold": "font-weight:600",
    "dim": "color:var(--fd-soft)",
    "green": "color:var(--fd-ok)",
    "red": "color:var(--fd-bad)",
    "yellow": "color:var(--fd-warn)",
    "cyan": "color:var(--fd-run)",
    "blue": "color:var(--fd-run)",
    "magenta": "color:var(--fd-new)",
    "bright_black": "color:var(--fd-off)",
}
PRE: Final = (
    "margin:0;padding:6px 10px;border:1px solid var(--fd-line);border-radius:6px;background:var(--fd-paper);"
    "color:var(--fd-fg);white-space:pre;overflow-x:auto;font:12px/1.35 var(--jp-code-font-family,ui-monospace,"
    "SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace),monospace"
)
