"""Settings of the process while a command runs a workflow: Ctrl-C and SIGTERM, logging, the standard output."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, Final

from flowdeco.cli.exit_codes import INTERRUPTED
from flowdeco.cli.report import escaped, print_error

__all__ = ["Cancelling", "configure_logging", "discard_broken_output", "handled", "reserved_stdout"]


def configure_logging(verbosity: int) -> None:
    """Log warnings to the standard error; with -v infos as well, with -vv everything."""
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbosity, 2)]
    logging.basicConfig(level=level, stream=sys.stderr)
    for handler in logging.root.handlers:
        if handler.formatter is not None and type(handler.formatter) is logging.Formatter:
            handler.setFormatter(_Printable("%(levelname)s %(name)s: %(message)s"))


class _Printable(logging.Formatter):
    """Escapes control characters in messages."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


def discard_broken_output(error: OSError, options: Namespace) -> None:
    """Report the error of a broken output, and prevent a second failure of it when the process ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):  # as of `flowdeco runs | head`
        print_error(error, options, error.strerror)


@contextmanager
def reserved_stdout(wanted: bool) -> Generator[None, None, None]:
    """Send the output of the workflow and its subprocesses to the standard error."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    try:
        number = sys.stdout.fileno()
        kept = os.dup(number)
        os.dup2(sys.stderr.fileno(), number)
    except (OSError, ValueError):  # an object in memory, not a file
        with redirect_stdout(sys.stderr):
            yield
        return
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, number)
        os.close(kept)


@contextmanager
def handled(handler: Callable[[int, Any], None]) -> Generator[None, None, None]:
    """Have SIGINT and SIGTERM handled by this function; in another thread than the main one, nothing is changed."""
    before: dict[int, Any] = {}
    for number in _NAMES:
        with suppress(ValueError):  # not in the main thread
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class Cancelling:
    """Cancels the run on the first Ctrl-C or SIGTERM and waits for its clean-up; the second ends the process at once.

    A journal keeps everything written by then, as after any end of a process. `code` is the exit code of a cancelled run.
    """

    def __init__(self) -> None:
        self.code = INTERRUPTED
        self._before: dict[int, Any] = {}
        self._came = False

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _NAMES}
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self._in_child)

    def __exit__(self, *exc_info: object) -> None:
        if not self._came:  # else the process is about to end, and its report must not be interrupted
            while self._before:
                signal.signal(*self._before.popitem())

    def _handle(self, number: int, frame: object) -> None:
        self.code = 128 + number  # as shells have it
        if self._came:
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h\x1b[0m")  # a progress display may have hidden the cursor
            os._exit(self.code)
        self._came = True
        with suppress(OSError):
            again = f"cancelling... ({_NAMES[number]} again ends it at once, without clean-up)"
            os.write(2, f"\nflowdeco: {again}\n".encode())
        raise KeyboardInterrupt if number == signal.SIGINT else KeyboardInterrupt(_NAMES[number])

    def _in_child(self) -> None:
        """Have workers that the workflow forks end on SIGTERM, as those who stop them expect."""
        if self._before:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


_NAMES: Final[dict[int, str]] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
