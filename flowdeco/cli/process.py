"""Settings of the process while a command runs a workflow: Ctrl-C, logging, the standard output."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout, suppress

from flowdeco.cli.exit_codes import INTERRUPTED
from flowdeco.cli.report import escaped

__all__ = ["cancelling_on_interrupt", "configure_logging", "discard_broken_output", "reserved_stdout"]


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


def discard_broken_output() -> None:
    """Prevent a second failure of a broken output, when the process ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
def cancelling_on_interrupt() -> Generator[None, None, None]:
    """Cancel the run on the first Ctrl-C and wait for its clean-up; end the process at once on the second.

    A journal keeps everything written by then, as after any end of a process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def interrupt(signum: int, frame: object) -> None:
        nonlocal interrupted
        if interrupted:
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h\x1b[0m")  # a progress display may have hidden the cursor
            os._exit(INTERRUPTED)
        interrupted = True
        with suppress(OSError):
            os.write(2, b"\nflowdeco: cancelling... (Ctrl-C again ends it at once, without clean-up)\n")
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if not interrupted:  # else the process is about to end, and its report must not be interrupted
            signal.signal(signal.SIGINT, before)
