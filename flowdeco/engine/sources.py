"""The units that become the branches of a parallel group: those of its definition, or those that its stream yields."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeAlias

from flowdeco.engine.branch import Branch
from flowdeco.engine.insertions import check_insertion
from flowdeco.engine.noting import note_place
from flowdeco.engine.open_scopes import OpenStream
from flowdeco.engine.requests import Failure, Raised, Request, Walk
from flowdeco.engine.streams import begin_stream, close_stream, next_unit
from flowdeco.errors import ReturnValueError
from flowdeco.model.definitions import Parallel, Stream, Unit, insertable
from flowdeco.model.sentinels import UNSET

__all__ = ["Listed", "Source", "Streamed"]


class Listed:
    """The units of a definition; `count` were taken, of at most `bound`."""

    def __init__(self, units: tuple[Unit, ...]) -> None:
        self.count = 0
        self.bound = len(units)
        self._units = units

    def next(self) -> Generator[Request, Any, Any]:
        """Return the next unit, or `UNSET` at the end."""
        yield from ()
        if self.count == len(self._units):
            return UNSET
        self.count += 1
        return self._units[self.count - 1]

    def close(self) -> Walk:
        """End here."""
        yield from ()
        return None


class Streamed:
    """The units that a stream yields: at most `bound`, as the journal knows; `exceed` has it note a greater one."""

    def __init__(self, branch: Branch, group: Parallel, stream: Stream, bound: int, exceed: Callable[[], Walk]) -> None:
        self.count = 0
        self.bound = bound
        self._branch = branch
        self._stream = stream
        self._where = f"of the parallel group {group.name!r}"
        self._exceed = exceed
        self._open: OpenStream | None = None

    def next(self) -> Generator[Request, Any, Any]:
        """Return the next unit, `UNSET` at the end, or `Raised`."""
        if self._open is None:
            # Sealed: a rehearsal only pulls what had begun.
            begun = yield from begin_stream(self._branch, self._stream, self._where, sealed=True)
            if isinstance(begun, BaseException):
                return Raised(begun)
            self._open = begun
        unit = yield from next_unit(self._branch, self._open)
        if unit is UNSET:
            self._open = None
            return unit
        error = unit.error if type(unit) is Raised else self._refusal(unit)
        if error is not None:
            note_place(self._branch, error, f"the {self._stream.name} {self._where}")
            return Raised(error)
        self.count += 1
        if self.count > self.bound:
            self.bound *= 2
            unsaved = yield from self._exceed()
            return unit if unsaved is None else Raised(unsaved)
        return unit

    def _refusal(self, unit: Any) -> Failure:
        """Return why an item that was yielded cannot be a branch, or None."""
        try:
            if not isinstance(unit, Unit):
                kinds = "action, stage, pipeline or parallel group"
                insertable((unit,), f"the {self._stream.name} {self._where}", "yielded", kinds)  # says why not
                raise ReturnValueError(
                    f"the {self._stream.name} {self._where} yielded another stream, and not a branch: yield its units"
                )
            if not (self._branch.sealed or self._branch.terms.rehearses):
                check_insertion(self._branch, (unit,))
        except Exception as refused:
            return refused
        return None

    def close(self) -> Walk:
        """Close the stream, unless it has ended; return an interrupt."""
        return None if self._open is None else (yield from close_stream(self._branch, self._open))


Source: TypeAlias = "Listed | Streamed"
