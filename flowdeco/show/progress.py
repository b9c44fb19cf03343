"""The values of `progress=`: True for a live display, a function, or a bar like those of tqdm.

Each becomes an observer that counts (`tally`) and shows; so an exception in it is logged, and the run continues. A
display begins with the run, and is closed with it, however it ends.

    progress=True                                       a display by rich: live in a terminal and in a notebook, lines
                                                        in a file; on stderr
    progress=lambda done, known, current: ...           called when a stage begins or ends, and when units are inserted
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

from flowdeco.engine.run_logger import run_logger
from flowdeco.errors import DefinitionError, duration, printable, shortened
from flowdeco.events import Event, RunFinished, RunStarted, StageFinished, StageStarted, UnitsInserted, Watcher
from flowdeco.model.options import Bar, Shown
from flowdeco.show.tally import HANDLERS, Row, Tally, describe, waiting

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Bar", "Shown", "Watcher", "watcher"]


def watcher(progress: Shown) -> Watcher | None:
    """Return the observer that shows the progress of a run; raises `DefinitionError` for values of other kinds."""
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
        return _Callback(_bar(shown), shown.close)
    if callable(shown):
        return _Callback(shown)
    raise DefinitionError(
        f"progress is True, a function of (done, known, current), or a bar with total, update(n) and close(), "
        f"not {shortened(shown)}"
    )


def _check_rich() -> None:
    try:
        import_module("rich.live")  # now, before the run is timed
    except ImportError as error:
        raise DefinitionError("progress=True needs rich: pip install 'flowdeco[rich]'") from error


class _Callback:
    """Calls a function with the progress of the run."""

    def __init__(self, report: Callable[[int, int, str], object], close: Callable[[], object] = lambda: None) -> None:
        self._report = report
        self._close = close
        self._tally = Tally()

    def __call__(self, event: Event) -> None:
        tally, kind = self._tally, type(event)
        handler = HANDLERS.get(kind)
        if handler is not None:  # inlined from the tally: this is called for every event
            handler(tally, event)
            if kind in _CHANGES:
                self._report(tally.done, tally.known, tally.current)

    def close(self) -> None:
        try:
            self._close()
        except Exception:
            run_logger(run := self._tally.run_id).exception("run %s: %r could not be closed", run, self)

    def __repr__(self) -> str:
        return f"progress={self._report!r}"


_LINES: Final = frozenset({RunStarted, RunFinished, StageFinished})
_CHANGES: Final = _LINES | {StageStarted, UnitsInserted}


def _bar(bar: Any) -> Callable[[int, int, str], object]:
    reported, refreshed = 0, 0.0
    postfix: Callable[..., object] | None = getattr(bar, "set_postfix_str", None)

    def report(done: int, known: int, current: str) -> None:
        nonlocal reported, refreshed
        bar.total = known
        if postfix is not None and current:
            refresh = time.monotonic() - refreshed > REFRESH
            refreshed = time.monotonic() if refresh else refreshed
            postfix(current, refresh=refresh)
        bar.update(done - reported)
        reported = done

    return report


REFRESH: Final = 0.1  # seconds: drawing a bar costs more than counting


class View(Protocol):
    """A display of a tally: it is refreshed every `pause` seconds or more."""

    pause: float

    def refresh(self) -> None:
        """Show the current state."""

    def end(self) -> None:
        """Show the final state, and release the screen."""


class _Display:
    """A live display of the run, in the form that suits the stream."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._view: View | None = None
        self._ticker: _Ticker | None = None

    def __call__(self, event: Event) -> None:
        kind = type(event)
        self._tally(event)
        if kind is RunStarted:
            self._view = view_of(self._tally)
            self._ticker = _Ticker(self._view, event.run_id)
            self._ticker.start()
        if kind in _LINES and isinstance(self._view, Lines):
            self._view.handle(event)

    def close(self) -> None:
        view, self._view = self._view, None
        if view is None:
            return
        if self._tally.elapsed is None:  # it is closed before its run has finished
            self._tally.status, self._tally.elapsed = "cancelled", self._tally.seconds
        try:
            if self._ticker is not None:
                self._ticker.stop()
        finally:
            with suppress(OSError, ValueError):  # the terminal is gone
                view.end()


class _Ticker:
    """A thread that refreshes a view: the higher the cost, the less often."""

    def __init__(self, view: View, run_id: str) -> None:
        self._view = view
        self._run_id = run_id
        self._stopped = threading.Event()
        context = contextvars.copy_context()  # by which a notebook knows the cell of the output
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="flowdeco-progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        pause = self._view.pause
        while not self._stopped.wait(pause):
            begun = time.thread_time()
            try:
                self._view.refresh()
            except Exception:
                run_logger(self._run_id).exception("run %s: the display of its progress has failed", self._run_id)
                return
            pause = min(max(self._view.pause, SHARE * (time.thread_time() - begun)), 2.0)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


SHARE: Final = 80  # refreshes take at most this fraction of the time: 1/80


def view_of(tally: Tally, console: Console | None = None) -> View:
    """Return the view for the standard error."""
    from rich.console import Console

    from flowdeco.show.live import Notebook, Terminal

    console = console or Console(stderr=True, markup=False, emoji=False, highlight=False)
    if console.is_jupyter:
        return Notebook(tally)
    live = console.is_interactive and console.is_terminal and not console.is_dumb_terminal
    if live and console.file.isatty() and _SCREEN.acquire(blocking=False):
        try:
            return Terminal(tally, console, _SCREEN.release)
        except BaseException:
            _SCREEN.release()
            raise
    return Lines(tally, sys.stderr)


# Of several runs at the same time, the first has the screen, and the others print lines.
_SCREEN: Final = threading.Lock()


class Lines:
    """One line for each finished stage, for logs: all of the first ones, then about one a second.

    A stage that fails always has its line; a stage that takes long is mentioned, with its `ctx.progress`.
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

    def handle(self, event: Event) -> None:
        """Print a line, if the event is worth one."""
        tally, kind = self._tally, type(event)
        if kind is StageFinished:
            self._stage_finished(tally.recent[-1])
        elif kind is RunStarted:
            self._print(f"{tally.pipeline}: {_stages(tally.known)}")
        elif kind is RunFinished:
            more = f"; {tally.error}" if tally.error else ""
            done = tally.finished
            count = _stages(done) if done == tally.known else f"{done} of {_stages(tally.known)}"
            self._print(f"{tally.pipeline} {tally.status}: {count} in {duration(tally.seconds)}{more}")

    def _stage_finished(self, row: Row) -> None:
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
        """Mention the running stages, if nothing has been printed for a while."""
        rows = list(self._tally.running)
        if not rows or self._clock() - self._latest < self._patience:
            return
        self._patience = min(2 * self._patience, 60.0)
        names = ", ".join(describe(row) for row in rows[:3])
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        longest = self._tally.clock() - min(row.started for row in rows)
        held = "".join(f"; {waiting(each)}" for each in list(self._tally.held.values())[:1])
        self._print(f"{self._count()} {names}{more} … {duration(longest)}{held}")

    def end(self) -> None:
        """Flush the stream; the last line has been printed."""
        with suppress(Exception):
            self._stream.flush()

    def _count(self) -> str:
        return f"[{self._tally.done}/{self._tally.known}]"

    def _print(self, line: str) -> None:
        self._latest = self._clock()
        self._stream.write(printable(line) + "\n")
        self._stream.flush()


ALL_OF_THE_FIRST: Final = 50
PATIENCE: Final = 10.0  # seconds


def _stages(count: int) -> str:
    return f"{count} stage" if count == 1 else f"{count} stages"
