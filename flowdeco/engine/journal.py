"""The ports of a durable run: the protocols `Journal` and `Codec`, and the rows of a journal.

A run is one *branch*, and a parallel group adds one for each of its branches. Within a branch everything happens in
sequence, so a row's place is the branch and a number that counts up. A written row is final: it is dropped only when
another attempt, or a resume with changed code, replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any, Final, Protocol

from flowdeco.errors import Wait
from flowdeco.model.tuples import NamedTuple

__all__ = ["FINISHED", "Codec", "Journal", "Payload", "Remembered", "Row", "encoder"]

FINISHED: Final = frozenset({"completed", "bailed"})  # the statuses of runs that are read-only


class Row(NamedTuple):
    """A step that has ended, or a group or scope that is running: `kind` is "action", "stage", "pipeline" or "group".

    Before its end, a group always has a row; a scope only if its layers or data wrote, or if it was tried again; an action
    only from its second attempt on. `started` is in POSIX seconds, `elapsed` in seconds.

    `payload` describes the effect of the step, in the journal's codec; `fingerprint` the action's code: the
    version of Python, a colon, and a hash that is the same for the same code in that version.
    """

    branch: str
    number: int
    kind: str
    stage: str
    action: str | None
    status: str
    started: float
    elapsed: float
    fingerprint: str
    payload: bytes


class Remembered(NamedTuple):
    """A run as recorded in the journal.

    `inputs` are the payloads of the inputs in the order in which they were given, each with the number of rows
    written before: those of the run first, then those of every resume, and the answers between them. `elapsed` is how
    long it took, in seconds, until it last ended or was interrupted, and `timed` the number of rows that it had then.
    `legs` are its resumes: the number of rows that each began with, and when it began, in POSIX seconds.
    """

    run_id: str
    pipeline: str
    status: str
    reason: str | None
    started: float
    skip: tuple[str, ...]
    inputs: list[tuple[int, bytes]]
    rows: list[Row]
    error: str | None = None
    elapsed: float = 0.0
    timed: int = 0
    legs: Sequence[tuple[int, float]] = ()

    def total(self) -> float:
        """Return the seconds that the run was at work: the rows since it last ended are all that a crash has left."""
        elapsed, until = self.elapsed, -inf
        for started, ended in sorted((row.started, row.started + row.elapsed) for row in self.rows[self.timed :]):
            elapsed += max(0.0, ended - max(started, until))
            until = max(until, ended)
        return elapsed


class Payload(bytes):
    """A payload with large parts of its values aside: buffers, which its codec refers to by their place in `parts`.

    Until it is written, these are a list of the buffers of the values themselves, which user code may change. A journal
    returns another sequence, which gives a new buffer (a `bytearray`) whenever an item is read.
    """

    parts: Sequence[Any]

    def __new__(cls, content: bytes, parts: Sequence[Any]) -> Payload:
        made = super().__new__(cls, content)
        made.parts = parts
        return made

    def kept(self) -> Payload:
        """Return a copy that no user code can change."""
        return Payload(self, [bytes(part) for part in self.parts])


def encoder(journal: Journal) -> Callable[[Any, str], bytes]:
    """Return the function that encodes values for a journal: with large parts aside, if journal and codec allow that."""
    apart = getattr(journal.codec, "encode_apart", None) if getattr(journal, "takes_parts", False) else None
    return apart or journal.codec.encode


class Codec(Protocol):
    """The conversion of values to bytes and back.

    It may have a method `encode_apart` as well, like `encode`, which returns a `Payload` for a value with large parts:
    for journals whose attribute `takes_parts` is true, because they store the parts and return them with the payload.
    """

    name: str

    def encode(self, value: Any, what: str) -> bytes:
        """Return the value as bytes; raises `SerializationError` naming `what` and the path of the part that cannot."""
        ...

    def decode(self, payload: bytes) -> Any:
        """Return the value; raises `JournalError` if the payload is damaged."""


class Journal(Protocol):
    """A store of runs. Only one process at a time works on a run: it holds the lease from `create` or `open` to `close` or
    `release`.

    It may also have any of the following. The methods `cancel(run_id)`, for `durable.cancel`, and `on_cancel(run_id, call)`,
    by which a driver that holds the lease is notified: `call()`, from any thread, returns whether it was heard. The methods
    `runs()`, `history(run_id)` and `delete(run_id)`, for the functions of `flowdeco.durable` of these names, and
    `drop_unused()`, for `purge`. `takes_entry`: if it is true, `create` has one more argument, the entry point of the
    pipeline, if known. `takes_parts`: if it is true, payloads may be a `Payload`.
    """

    codec: Codec

    def create(self, run_id: str, pipeline: str, inputs: bytes, skip: Sequence[str], *entry: str) -> float | None:
        """Begin a run, and return when, in POSIX seconds, if the journal notes that.

        Raises `RunExistsError` if one with that id exists, `RunBusyError` if it is at work.
        """

    def open(self, run_id: str, *, finished: bool = False) -> Remembered:
        """Take the lease of a run and return it; nothing else changes. Raises `RunNotFoundError`, `RunBusyError`.

        Of a run that has finished no lease is taken, unless `finished` asks for it.
        """
        ...

    def proceed(self, run_id: str, inputs: bytes | None = None) -> None:
        """Note that an opened run is running again, with these new inputs."""

    def release(self, run_id: str) -> None:
        """Give the lease of an opened run back, and leave the run as it was; does nothing if it is not held."""

    def read(self, run_id: str) -> Remembered:
        """Return a run without opening it."""
        ...

    def add_inputs(self, run_id: str, inputs: bytes) -> None:
        """Remember the inputs of a resume."""

    def answer(self, run_id: str, answers: bytes) -> None:
        """Remember answers, as further inputs, whoever is at work on the run; raises `JournalError` if it has finished."""

    def write(self, run_id: str, rows: Sequence[Row]) -> None:
        """Remember steps, all or none of them, durably."""

    def drop(self, run_id: str, cuts: Mapping[str, int]) -> None:
        """Forget the rows of these branches from these numbers on."""

    def close(
        self, run_id: str, status: str, reason: str | None, error: str | None, elapsed: float | None = None,
        waits: Sequence[Wait] = (),
    ) -> None:  # fmt: skip
        """Note the status of the run and, unless it was left as it is, how long it took; release its lease.

        `waits` are those of a suspended run, and given only if there are any.
        """
