"""What `progress=` takes: True for a live display, a function, or a bar like those of tqdm.

Each is an observer, which counts (`tally`) and shows; so what raises is logged and dropped, and the run goes on. What
shows begins with the run, and is closed with it, however it ends.

    progress=True                                       a display by rich: live in a terminal and in a notebook, lines
                                                        in a file; on stderr
    progress=lambda done, known, current: ...           called when a stage begins or ends, and for what is inserted
    progress=tqdm(unit="stage")                         a `Bar`: its `total` is set, and `update(n)` called
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from flowdeco.engine.logs import run_logger
from flowdeco.errors import DefinitionError
from flowdeco.events import Event, RunFinished, RunStarted, StageFinished, StageStarted, UnitsInserted, Watcher
from flowdeco.model.options import Bar, Shown
from flowdeco.show.tally import TAKE, Row, Tally, describe, duration

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Bar", "Shown", "Watcher", "watcher"]


def watcher(progress: Shown) -> Watcher | None:
    """Return what shows the progress of a run; raises `DefinitionError` for what cannot."""
    shown: Any = progress  # not by its truth value: a bar may have none
    if shown is None or shown is False:
        return None
    if shown is True:
        _check_rich()
        return _Display()
    if isinstance(shown, type):
        raise DefinitionError(
            f"progress is an object, not the class {shown.__name__}: write progress={shown.__name__}()"
        )
    if hasattr(shown, "total") and callable(getattr(shown, "update", None)) and callable(getattr(shown, "close", None)):
        return _Telling(_bar(shown), shown.close)
    if callable(shown):
        return _Telling(shown)
    raise DefinitionError(
        f"progress is True, a function of (done, known, current), or a bar with total, update(n) and close(), "
        f"not {shown!r}"
    )


def _check_rich() -> None:
    try:
        import_module("rich.live")  # now, while no time is measured
    except ImportError as error:
        raise DefinitionError("progress=True needs rich: pip install 'flowdeco[rich]'") from error


class _Telling:
    """Tells a function how far the run is."""

    def __init__(self, tell: Callable[[int, int, str], object], close: Callable[[], object] = lambda: None) -> None:
        self._tell = tell
        self._close = close
        self._tally = Tally()

    def __call__(self, event: Event) -> None:
        tally, kind = self._tally, type(event)
        take = TAKE.get(kind)
        if take is not None:  # as the tally would do itself; told of every event, it should be quick
            take(tally, event)
            if kind in _CHANGES:
                self._tell(tally.done, tally.known, tally.current)

    def close(self) -> None:
        try:
            self._close()
        except Exception:
            run_logger(run := self._tally.run_id).exception("run %s: %r could not be closed", run, self)

    def __repr__(self) -> str:
        return f"progress={self._tell!r}"


_LINES: Final = frozenset({RunStarted, RunFinished, StageFinished})
_CHANGES: Final = _LINES | {StageStarted, UnitsInserted}


def _bar(bar: Any) -> Callable[[int, int, str], object]:
    told, refreshed = 0, 0.0
    postfix: Callable[..., object] | None = getattr(bar, "set_postfix_str", None)

    def tell(done: int, known: int, current: str) -> None:
        nonlocal told, refreshed
        bar.total = known
        if postfix is not None and current:
            refresh = time.monotonic() - refreshed > REFRESH
            refreshed = time.monotonic() if refresh else refreshed
            postfix(current, refresh=refresh)
        bar.update(done - told)
        told = done

    return tell


REFRESH: Final = 0.1  # seconds: what a bar draws costs more than what it counts


class View(Protocol):
    """A way to show a tally: told of what may be worth a line, refreshed every `pause` seconds or more, and ended."""

    pause: float

    def take(self, event: Event) -> None:
        """The run began or ended, or a stage has ended, and that is counted already."""

    def refresh(self) -> None:
        """Some time has passed."""

    def end(self) -> None:
        """Show the end, and leave the screen to others."""


class _Display:
    """A live display of the run, by what the stream can show."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._view: View | None = None
        self._ticker: _Ticker | None = None

    def __call__(self, event: Event) -> None:
        kind = type(event)
        take = TAKE.get(kind)
        if take is None:
            return
        take(self._tally, event)
        if kind is RunStarted:
            self._view = view_of(self._tally)
            self._ticker = _Ticker(self._view, event.run_id)
            self._ticker.start()
        if kind in _LINES and self._view is not None:
            self._view.take(event)

    def close(self) -> None:
        view, self._view = self._view, None
        if view is None:
            return
        if self._tally.elapsed is None:  # it was torn out of its run
            self._tally.status, self._tally.elapsed = "cancelled", self._tally.seconds
        try:
            if self._ticker is not None:
                self._ticker.stop()
        finally:
            with suppress(OSError, ValueError):  # nobody looks any more: the terminal is gone
                view.end()


class _Ticker:
    """A thread that refreshes a view, the more seldom the more it costs."""

    def __init__(self, view: View, run_id: str) -> None:
        self._view = view
        self._run_id = run_id
        self._over = threading.Event()
        context = contextvars.copy_context()  # that a notebook knows whose output it is
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="flowdeco-progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        pause = self._view.pause
        while not self._over.wait(pause):
            begun = time.thread_time()
            try:
                self._view.refresh()
            except Exception:
                run_logger(self._run_id).exception("run %s: the display of its progress has failed", self._run_id)
                return
            pause = min(max(self._view.pause, SHARE * (time.thread_time() - begun)), 2.0)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


SHARE: Final = 80  # a refresh may cost one part in so many of the time


def view_of(tally: Tally, console: Console | None = None) -> View:
    """Return the view for the stream that errors go to."""
    from rich.console import Console

    from flowdeco.show.live import Notebook, Terminal

    console = console or Console(stderr=True, markup=False, emoji=False, highlight=False)
    if console.is_jupyter:
        return Notebook(tally)
    seen = console.is_interactive and console.is_terminal and not console.is_dumb_terminal
    if seen and console.file.isatty() and _SCREEN.acquire(blocking=False):
        try:
            return Terminal(tally, console, _SCREEN.release)
        except BaseException:
            _SCREEN.release()
            raise
    return Lines(tally, sys.stderr)


# There is one screen: of runs that want it at the same time, the first has it, and the others print lines.
_SCREEN: Final = threading.Lock()


class Lines:
    """One line for each stage that is over, for logs: all of the first ones, then about one a second.

    What fails has its line in any case; a stage that takes long, or tells by `ctx.progress`, is mentioned.
    """

    pause = 1.0

    def __init__(self, tally: Tally, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._tally = tally
        self._stream = stream
        self._clock = clock
        self._left = ALL_OF_THE_FIRST
        self._latest = clock()
        self._silent = 0
        self._patience = PATIENCE

    def take(self, event: Event) -> None:
        """Print what is worth a line."""
        tally, kind = self._tally, type(event)
        if kind is StageFinished:
            self._stage_is_over(tally.recent[-1])
        elif kind is RunStarted:
            self._print(f"{tally.pipeline}: {_stages(tally.known)}")
        elif kind is RunFinished:
            more = f"; {tally.error}" if tally.error else ""
            done = tally.finished
            count = _stages(done) if done == tally.known else f"{done} of {_stages(tally.known)}"
            self._print(f"{tally.pipeline} {tally.status}: {count} in {duration(tally.seconds)}{more}")

    def _stage_is_over(self, row: Row) -> None:
        failed = row.status == "failed"
        if not (failed or self._left or self._clock() - self._latest >= 1):
            self._silent += 1
            return
        self._left = max(0, self._left - 1)
        more = f", after {self._silent} more" if self._silent else ""
        self._silent = 0
        took = "" if row.status == "skipped" else f" in {duration(row.elapsed)}"
        inserted = f", inserted {row.inserted}" if row.inserted else ""
        error = f": {row.error}" if row.error else ""
        self._print(f"{self._count()} {row.name} {row.status}{took}{inserted}{more}{error}")

    def refresh(self) -> None:
        """Mention what runs, if nothing has been said for long."""
        rows = list(self._tally.running)
        if not rows or self._clock() - self._latest < self._patience:
            return
        self._patience = min(2 * self._patience, 60.0)
        told = ", ".join(describe(row) for row in rows[:3])
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        longest = self._tally.clock() - min(row.started for row in rows)
        self._print(f"{self._count()} {told}{more} … {duration(longest)}")

    def end(self) -> None:
        """Say that it was torn out of its run, if it was."""
        with suppress(Exception):
            self._stream.flush()

    def _count(self) -> str:
        return f"[{self._tally.done}/{self._tally.known}]"

    def _print(self, line: str) -> None:
        self._latest = self._clock()
        self._stream.write(line + "\n")
        self._stream.flush()


ALL_OF_THE_FIRST: Final = 50
PATIENCE: Final = 10.0  # seconds


def _stages(count: int) -> str:
    return f"{count} stage" if count == 1 else f"{count} stages"
