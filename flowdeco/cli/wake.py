"""The command `wake`: resume the runs that are due, answered or crashed, one after the other.

The workflow of each entry point is imported in a process of its own, a `_Worker`, which resumes one run at a time, as it is
asked. So a run that takes its process down ends nothing but itself, files of one name do not get in each other's way, and
with `--watch`, edited code counts from the next round on. A run that another process has taken, or finished, meanwhile
is refused by the journal itself (`only_due`).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_all_start_methods, get_context
from threading import Event
from typing import Any, Final, NamedTuple

from flowdeco import durable
from flowdeco.cli import report
from flowdeco.cli.exit_codes import FAILED, FINE, INTERRUPTED
from flowdeco.cli.json_output import print_json
from flowdeco.cli.process import configure_logging, handled, reserved_stdout
from flowdeco.durable import RunInfo
from flowdeco.errors import SLEEP, FlowdecoError, RunBusyError, RunNotFoundError, Suspend, Wait

__all__ = ["wake", "why_not"]

POLL: Final = 1.0  # seconds
_UNRESUMED: Final = ("lost", "crashed")
AGAIN: Final = 60.0  # seconds after which `--watch` tries again a run that it could not resume


class Woken(NamedTuple):
    """The outcome of one run: its status, "lost" if it could not be resumed, or "crashed"; `error` is what went wrong."""

    id: str
    status: str
    reason: str | None = None
    error: str | None = None
    due: float | None = None


def wake(options: Namespace) -> int:
    """Resume the runs of a journal that are due, answered or crashed."""
    from flowdeco.cli.journals import journal_path

    path = journal_path(options)
    stop = _Stop()
    with handled(stop.handle):
        if options.watch:
            _watch(path, options, stop)
            return FINE
        woken: list[Woken] = []
        for each in _round(path, durable.due(path), options, stop):
            woken.append(each)
            if not options.json:
                _print(each)
    if options.json:
        print_json([each._asdict() for each in woken])
    if stop.signal == signal.SIGINT:
        return INTERRUPTED
    return FAILED if any(each.status in ("failed", *_UNRESUMED) for each in woken) else FINE


def _watch(path: str, options: Namespace, stop: _Stop) -> None:
    """Poll until a signal comes; a run that could not be resumed rests for a while, unless it changes."""
    resting: dict[tuple[Any, ...], float] = {}
    while not stop.asked.is_set():
        now = time.monotonic()
        infos = {info.id: info for info in durable.due(path) if resting.get(_state(info), 0.0) <= now}
        resting = {state: until for state, until in resting.items() if until > now}
        for each in _round(path, list(infos.values()), options, stop):
            if each.status in _UNRESUMED:
                resting[_state(infos[each.id])] = now + AGAIN
            if options.json:
                print_json(each._asdict(), indent=None)
            else:
                _print(each)
            sys.stdout.flush()
        stop.asked.wait(POLL)


def _state(info: RunInfo) -> tuple[Any, ...]:
    return info.id, info.status, info.due, info.answered, info.entry


def _print(woken: Woken) -> None:
    why = report.one_line(woken.error or woken.reason or "")
    if woken.status == "lost":
        report.say("flowdeco: ", report.Coloured("error"), f": run {woken.id}: {why}", out=sys.stderr)
    else:
        report.say(f"run {woken.id} ", report.Coloured(woken.status), f": {why}" if why else "")


def _round(path: str, infos: list[RunInfo], options: Namespace, stop: _Stop) -> Iterator[Woken]:
    """Resume these runs, in this order; yield what came of each, but for those that another process has taken."""
    with ExitStack() as stack:
        workers: dict[str, _Worker] = {}
        for info in infos:
            if stop.asked.is_set():
                return
            problem = why_not(info)
            if problem is not None:
                yield Woken(info.id, "lost", error=problem)
                continue
            entry = str(info.entry)
            worker = workers.get(entry)
            if worker is None:
                worker = workers[entry] = stack.enter_context(_Worker(path, entry, options))
            stop.worker = worker
            came = worker.resume(info)
            stop.worker = None
            if came is None:
                del workers[entry]
                came = Woken(info.id, "crashed", error=f"its process ended unexpectedly: {worker.ended_by()}")
            if came.status != "busy":
                yield came


def why_not(info: RunInfo) -> str | None:
    """Return why a run cannot be resumed by whoever has only the journal, None if it can."""
    if info.codec not in ("pickle", "json"):
        return f"it is written in the codec {info.codec!r}, which only your program knows"
    if info.entry is None:
        return (
            f"the journal does not know where its workflow is: resume it by flowdeco resume FILE.py:FLOW {info.id}, "
            f"after which it is known, or make its pipeline a name of a module"
        )
    return None


class _Stop:
    """Notes the first SIGINT or SIGTERM, and passes it on to the worker that resumes a run; a second one kills that."""

    def __init__(self) -> None:
        self.asked = Event()
        self.signal: int | None = None
        self.worker: _Worker | None = None

    def handle(self, number: int, frame: object) -> None:
        """Handle the signal."""
        worker, again = self.worker, self.signal is not None
        self.signal = self.signal or number
        if worker is not None:
            worker.end(kill=again and number == signal.SIGINT)
            text = "killed" if again else "suspending the active run... (Ctrl-C again kills it; it is resumed later)"
            with suppress(OSError):
                os.write(2, f"flowdeco: {text}\n".encode())
        self.asked.set()


# Workers.


class _Worker:
    """A process that imports a workflow, and resumes its runs one at a time."""

    def __init__(self, path: str, entry: str, options: Namespace) -> None:
        # Forked, it has everything imported, but for the workflow.
        context: Any = get_context("fork" if "fork" in get_all_start_methods() else None)
        self._pipe, theirs = context.Pipe()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        how = {name: getattr(options, name) for name in ("json", "verbose", "suspend_after", "traceback")}
        self._process = context.Process(target=_serve, args=(theirs, self._pipe, path, entry, how))
        with _signals_held():
            self._process.start()
        theirs.close()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pipe.close()
        self._process.join()

    def resume(self, info: RunInfo) -> Woken | None:
        """Resume a run; return what came of it, None if the process ended."""
        try:
            self._pipe.send((info.id, info.codec))
            came: Woken = self._pipe.recv()
        except (EOFError, OSError):
            return None
        return came

    def ended_by(self) -> str:
        """Return what ended the process."""
        self._process.join()
        code = self._process.exitcode
        return f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"

    def end(self, *, kill: bool) -> None:
        """Have it suspend its run, and end."""
        if kill:
            self._process.kill()
        else:
            self._process.terminate()


@contextmanager
def _signals_held() -> Generator[None]:
    """Hold signals back: a process that begins here takes them once it has its handlers."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class _AtWork:
    """Suspends the run at work when the process is asked to end, so that it is due at once."""

    def __init__(self) -> None:
        self.resumes = self.ends = False

    def handle(self, number: int, frame: object) -> None:
        """Handle the signal."""
        first, self.ends = not self.ends, True
        if self.resumes and first:
            stopped = Suspend("flowdeco wake was stopped")
            stopped.waits = (Wait(SLEEP, time.time()),)
            raise stopped


def _serve(pipe: Any, theirs: Any, path: str, entry: str, how: dict[str, Any]) -> None:
    """Resume the runs that are asked for, until the pipe is closed."""
    from flowdeco.cli.workflow import recorded_flow

    theirs.close()
    at_work = _AtWork()
    signal.signal(signal.SIGTERM, at_work.handle)
    signal.signal(signal.SIGINT, _ignore)  # a Ctrl-C in a terminal reaches all of its processes
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    configure_logging(how["verbose"])
    found: Any = None
    with reserved_stdout(how["json"]), suppress(EOFError, OSError):
        while not at_work.ends:
            run_id, codec = pipe.recv()
            try:
                found = found or recorded_flow(entry)
            except BaseException as error:
                is_ours = isinstance(error, FlowdecoError)  # its class means nothing to the user
                why = report.error_message(error) if is_ours else report.describe_error(error)
                came = Woken(run_id, "lost", error=why)
            else:
                came = _resumed(found, path, run_id, codec, how, at_work)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            pipe.send(came)


def _ignore(number: int, frame: object) -> None:
    """Ignore a signal, without having the programs that a workflow starts ignore it."""


def _resumed(flow: Any, path: str, run_id: str, codec: Any, how: dict[str, Any], at_work: _AtWork) -> Woken:
    journal = durable.SqliteJournal(path, codec=codec).only_due()
    try:
        at_work.resumes = not at_work.ends
        if at_work.ends:
            return Woken(run_id, "busy")
        run = flow.resume(run_id, journal=journal, check=False, suspend_after=how["suspend_after"])
    except (RunBusyError, RunNotFoundError, Suspend):  # the signal came as the run had ended
        return Woken(run_id, "busy")
    except BaseException as error:
        if how["traceback"]:
            report.print_error(error, Namespace(traceback=True))
        return Woken(run_id, "lost", error=report.error_message(error))
    finally:
        at_work.resumes = False
    if run.error is None:
        return Woken(run_id, str(run.status), run.reason, due=run.due)
    if getattr(run.error, "changes", None):
        return Woken(run_id, "lost", error=report.error_message(run.error))
    step, why = report.failed_step(run), report.describe_error(run.error)
    return Woken(run_id, str(run.status), error=f"{step} failed: {why}" if step and run.status == "failed" else why)
