"""The journal protocol in a dict: for tests, and as a model for journals of your own."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from flowdeco.durable.codec import PickleCodec
from flowdeco.durable.file import HEARTBEAT
from flowdeco.durable.forks import prepare_for_forks
from flowdeco.durable.info import Question, RunInfo, finished_error, first_due, nothing_to_cancel, questions_of
from flowdeco.durable.owner import this_process
from flowdeco.engine.journal import FINISHED, Codec, Remembered, Row
from flowdeco.errors import JournalError, RunBusyError, RunExistsError, RunNotFoundError, Wait, suggestion

__all__ = ["MemoryJournal"]


_State: TypeAlias = "tuple[str, str | None, str | None]"
_RUNNING: Final[_State] = ("running", None, None)
_CANCELLED: Final[_State] = ("cancelled", None, None)


class _Run:
    def __init__(self, pipeline: str, inputs: bytes, skip: Sequence[str]) -> None:
        self.pipeline = pipeline
        self.skip = tuple(skip)
        self.state: _State = _RUNNING  # status, reason, error
        self.started = self.updated = time.time()
        self.inputs = [(0, inputs)]
        self.rows: dict[int, Row] = {}  # by the order of their writing
        self.written = 0
        self.elapsed, self.timed = 0.0, 0  # and how many were written then
        self.legs: list[tuple[int, float]] = []  # how many were written at each resume, and when that was
        self.waits: Sequence[Wait] = ()
        self.known = 1  # inputs and answers that the present leg, or the last one, began with
        self.busy = True
        self.on_cancel: Callable[[], bool] | None = None
        self.is_cancelled = False  # while it is busy
        self.before: _State | None = _RUNNING  # the state that `release` returns to

    @property
    def status(self) -> str:
        """The status of the run."""
        return self.state[0]

    def proceed(self) -> None:
        """Note that the run is running, once it has been opened again."""
        if self.before is None:
            self.before, self.state = self.state, _RUNNING
            self.updated = time.time()
            self.legs.append((self.written, self.updated))

    def tell(self) -> None:
        """Have the driver cancel the run, if it was cancelled and the driver has not been told."""
        if self.is_cancelled and self.busy and self.on_cancel is not None and self.on_cancel():
            self.on_cancel = None

    def waiting(self) -> tuple[float | None, tuple[Question, ...], bool]:
        """Return when a suspended run is due, its questions, and whether it has been answered."""
        if self.status != "suspended":
            return None, (), False
        return first_due(self.waits), questions_of(self.waits), len(self.inputs) > self.known


class MemoryJournal:
    """Runs that are kept as long as this object: encoded, so that tests see values as a file would return them."""

    def __init__(self, codec: Codec | None = None) -> None:
        self.codec: Codec = PickleCodec() if codec is None else codec
        self._runs: dict[str, _Run] = {}
        self._lock = threading.Lock()
        prepare_for_forks(self)

    def before_fork(self) -> None:
        """Hold the lock until the process has forked."""
        self._lock.acquire()

    def after_fork(self, *, in_child: bool) -> None:
        """Let the lock go."""
        self._lock.release()

    def create(self, run_id: str, pipeline: str, inputs: bytes, skip: Sequence[str]) -> float:
        """Begin a run, and return when.

        Raises `RunExistsError` if one with that id exists, `RunBusyError` if it is at work.
        """
        with self._lock:
            there = self._runs.get(run_id)
            if there is not None:
                self._require_idle(run_id, there)
                raise RunExistsError(
                    f"there is a run {run_id!r} already, {there.status}: resume it, or use another run_id. "
                    f'run(..., if_exists="resume") starts, continues or returns it'
                )
            self._runs[run_id] = run = _Run(pipeline, inputs, skip)
            return run.started

    def open(self, run_id: str, *, finished: bool = False) -> Remembered:
        """Take the lease of a run that has not finished, and return it; raises `RunNotFoundError`, `RunBusyError`."""
        with self._lock:
            run = self._found(run_id)
            if finished or run.status not in FINISHED:
                self._require_idle(run_id, run)
                run.busy, run.before, run.known, run.is_cancelled = True, None, len(run.inputs), False
            return self._remembered(run_id, run)

    def proceed(self, run_id: str, inputs: bytes | None = None) -> None:
        """Note that an opened run is running again, with these new inputs."""
        with self._lock:
            run = self._held(run_id)
            run.proceed()
            if inputs is not None:
                run.inputs.append((run.written, inputs))
                run.known += 1

    def answer(self, run_id: str, answers: bytes) -> None:
        """Remember answers, as further inputs, whoever is at work on the run; raises `JournalError` if it has finished."""
        with self._lock:
            run = self._found(run_id)
            if run.status in FINISHED:
                raise finished_error(run_id, run.status)
            run.inputs.append((run.written, answers))
            run.updated = time.time()

    def on_cancel(self, run_id: str, call: Callable[[], bool]) -> None:
        """Have this called, from any thread, when the run is cancelled while it is at work; again until it returns True."""
        with self._lock:
            run = self._held(run_id)
            run.on_cancel = call
            run.tell()

    def cancel(self, run_id: str) -> None:
        """Cancel a run: at once if nobody works on it; raises `JournalError` if it has finished."""
        with self._lock:
            run = self._found(run_id)
            if run.status in FINISHED:
                raise nothing_to_cancel(run_id, run.status)
            if run.busy:
                run.is_cancelled = True
                threading.Thread(target=self._tell, args=(run,), name="flowdeco cancel", daemon=True).start()
            else:
                run.state, run.updated = _CANCELLED, time.time()

    def _tell(self, run: _Run) -> None:
        while True:  # an action that awaits has as much time to end as with a file
            time.sleep(HEARTBEAT)
            with self._lock:
                run.tell()
                if run.on_cancel is None or not run.busy:
                    return

    def release(self, run_id: str) -> None:
        """Give the lease of an opened run back, and leave the run as it was; does nothing if it is not held."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is not None and run.busy:
                run.busy = False
                run.state = _CANCELLED if run.is_cancelled else run.before or run.state

    def read(self, run_id: str) -> Remembered:
        """Return a run without opening it."""
        with self._lock:
            return self._remembered(run_id, self._found(run_id))

    def add_inputs(self, run_id: str, inputs: bytes) -> None:
        """Remember the inputs of a resume."""
        self.proceed(run_id, inputs)

    def write(self, run_id: str, rows: Sequence[Row]) -> None:
        """Remember steps."""
        with self._lock:
            run = self._held(run_id)
            run.proceed()
            for row in rows:
                run.rows[run.written] = row
                run.written += 1
            run.updated = time.time()
            run.tell()

    def drop(self, run_id: str, cuts: Mapping[str, int]) -> None:
        """Forget the rows of these branches from these numbers on."""
        with self._lock:
            run = self._held(run_id)
            run.proceed()
            run.rows = {at: row for at, row in run.rows.items() if row.number < cuts.get(row.branch, row.number + 1)}

    def close(
        self, run_id: str, status: str, reason: str | None, error: str | None, elapsed: float | None = None,
        waits: Sequence[Wait] = (),
    ) -> None:  # fmt: skip
        """Note the outcome of the run."""
        with self._lock:
            run = self._held(run_id)
            if run.is_cancelled and status == "suspended":
                status, reason = "cancelled", None
            run.state, run.busy = (str(status), reason, error), False
            run.updated, run.waits = time.time(), tuple(waits)
            if elapsed is not None:
                run.elapsed, run.timed = elapsed, run.written

    def runs(self) -> list[RunInfo]:
        """Return all runs, the latest first."""
        with self._lock:
            return [
                RunInfo(
                    *(run_id, run.pipeline, *run.state[:2], run.started, run.updated, len(run.rows)),
                    *(run.state[2], str(this_process("")) if run.busy else None, None, self.codec.name, *run.waiting()),
                    cancelling=run.busy and run.is_cancelled,
                )
                for run_id, run in reversed(self._runs.items())
            ]

    def history(self, run_id: str) -> list[Row]:
        """Return the steps of a run."""
        return self.read(run_id).rows

    def delete(self, run_id: str) -> None:
        """Forget a run; raises `RunNotFoundError`, and `RunBusyError` while a process works on it."""
        with self._lock:
            self._require_idle(run_id, self._found(run_id))
            del self._runs[run_id]

    def _found(self, run_id: str) -> _Run:
        try:
            return self._runs[run_id]
        except KeyError:
            raise RunNotFoundError(f"there is no run {run_id!r}. {suggestion(run_id, self._runs)}") from None

    def _held(self, run_id: str) -> _Run:
        run = self._found(run_id)
        if not run.busy:
            raise JournalError(f"run {run_id!r} is not open: `create` or `open` it first")
        return run

    def _require_idle(self, run_id: str, run: _Run) -> None:
        if run.busy:
            owner = this_process("")
            raise RunBusyError(f"run {run_id!r} is being worked on by {owner}: only one at a time can work on a run")

    def _remembered(self, run_id: str, run: _Run) -> Remembered:
        positions = list(run.rows)
        inputs = [(bisect_left(positions, at), payload) for at, payload in run.inputs]
        return Remembered(
            *(run_id, run.pipeline, *run.state[:2], run.started, run.skip, inputs, list(run.rows.values())),
            run.state[2],
            *(run.elapsed, bisect_left(positions, run.timed)),
            [(bisect_left(positions, at), started) for at, started in run.legs],
        )
