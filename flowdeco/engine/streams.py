"""Streams: units that are pulled one at a time, each run before the next one is requested, or as a branch of a group.

A resumed run takes over the streams that its rehearsal began, and receives the same items from them again.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from typing import Any, Final, cast

from flowdeco.engine.branch import Branch
from flowdeco.engine.history import History
from flowdeco.engine.insertions import check_insertion
from flowdeco.engine.noting import note_place
from flowdeco.engine.open_scopes import OpenStream
from flowdeco.engine.requests import Await, Chore, Deferred, Failure, Raised, Request, Walk
from flowdeco.engine.restoring import go_live
from flowdeco.engine.results import is_awaited
from flowdeco.errors import DefinitionError, ReturnValueError, a_type, is_exit
from flowdeco.model.definitions import Stage, Stream, Unit, insertable
from flowdeco.model.sentinels import UNSET
from flowdeco.model.streams import not_iterated

__all__ = ["begin_stream", "close_stream", "close_streams", "next_unit", "open_stream", "pull"]

_PULL: Final = Chore(next, "stream")


def open_stream(branch: Branch, stream: Stream, by: str | None) -> Walk:
    """Begin a stream: call its source, if that is a function, and get an iterator."""
    begun = yield from begin_stream(branch, stream, f"inserted by {by}", sealed=bool(branch.sealed))
    if isinstance(begun, BaseException):
        return begun
    branch.agenda.append((begun, by))
    return None


def begin_stream(
    branch: Branch, stream: Stream, where: str, *, sealed: bool
) -> Generator[Request, Any, OpenStream | BaseException]:
    """Begin a stream, or take over the one that a rehearsal has begun; return the error if it cannot."""
    past = branch.terms.past
    begun = None if past is None else past.begun_stream(branch.id, stream, where, sealed=sealed)
    if begun is None:
        begun = yield from _begun(branch, stream, where)
        if type(begun) is Raised:
            note_place(branch, begun.error, f"the {stream.name} {where}")
            return begun.error
        if past is not None:
            past.keep_stream(branch.id, begun)
    return cast("OpenStream | BaseException", begun)


def _begun(branch: Branch, stream: Stream, where: str) -> Generator[Request, Any, Any]:
    error = yield from go_live(branch)
    if error is not None:
        return Raised(error)
    source: Any = stream.source
    if isinstance(source, (Iterator, AsyncIterator)):
        if stream.begun:
            return Raised(
                DefinitionError(
                    f"the {stream.name} {where} is used up: an iterator can be gone through once. Write "
                    f"stream(function, *args), which can be called again, or give it a list"
                )
            )
        stream.begun = True
    elif callable(source):
        source = yield Chore(source, "stream"), stream.args, None
        if is_awaited(source):
            source = yield Await(source)
        if type(source) is Raised:
            return source
    if isinstance(source, Unit):
        return Raised(
            ReturnValueError(f"the function of a stream {where} returned a single unit: {not_iterated(source)}")
        )
    if not isinstance(source, (AsyncIterable, Iterable)):
        return Raised(ReturnValueError(f"the function of a stream {where} returned {a_type(source)}, not an iterable"))
    iterator = yield Chore(aiter if isinstance(source, AsyncIterable) else iter, "stream"), (source,), None
    return iterator if type(iterator) is Raised else OpenStream(stream, iterator)


def pull(branch: Branch, stream: OpenStream, by: str | None) -> Walk:
    """Take the next unit of a stream, and run it before the rest of the stream."""
    past = branch.terms.past
    if past is not None:
        past.check_pull(branch.id, sealed=bool(branch.sealed))
    answer = yield from next_unit(branch, stream)
    if answer is UNSET:
        return None
    error = answer.error if type(answer) is Raised else None
    branch.agenda.append((stream, by))  # after a failure, it is closed with the rest of the agenda
    if error is None:
        try:
            units: tuple[Any, ...] = (answer,)
            if type(answer) is not Stage:
                units = insertable(units, f"the stream inserted by {by}", "yielded")
            if not branch.terms.rehearses:  # in a rehearsal there are no values
                check_insertion(branch, units)
            for unit in units[::-1]:
                branch.agenda.append((unit, by))
            return None
        except Exception as refused:
            error = refused
    note_place(branch, error, f"a stream inserted by {by!r}")
    return error


def next_unit(branch: Branch, stream: OpenStream) -> Generator[Request, Any, Any]:
    """Return what a stream yields next: `UNSET` at its end, or `Raised`."""
    past = branch.terms.past
    rehearses = past is not None and past.rehearses
    if stream.ahead and not rehearses:
        return stream.ahead.popleft()
    if past is not None:
        error = yield from go_live(branch)
        if error is not None:
            return Raised(error)
    if stream.is_async:
        answer = yield Await(Deferred(anext, stream.iterator))
        if type(answer) is Raised and isinstance(answer.error, StopAsyncIteration):
            answer = UNSET
    else:
        answer = yield _PULL, (stream.iterator, UNSET), None
    if rehearses:
        stream.ahead.append(answer)
    return answer


def close_stream(branch: Branch, stream: OpenStream) -> Walk:
    """Close a stream that is no longer pulled; in a rehearsal it is left open for the run. Return an interrupt."""
    if branch.terms.rehearses:
        return None
    is_cancellation = branch.terms.is_cancellation
    interrupt: Failure = None
    for _ in range(2):  # an interrupt may have come before it was called
        answer = yield from _closed(stream)
        if type(answer) is not Raised or not (is_cancellation(answer.error) or is_exit(answer.error)):
            break
        interrupt = answer.error
    return interrupt


def close_streams(past: History) -> Generator[Request, Any, None]:
    """Close the streams that were begun in a rehearsal, and not taken over by the run."""
    for stream in past.streams.values():
        yield from _closed(stream)
    past.streams.clear()


def _closed(stream: OpenStream) -> Generator[Request, Any, Any]:
    if hasattr(stream.iterator, "aclose"):
        return (yield Await(Deferred(stream.iterator.aclose)))
    if hasattr(stream.iterator, "close"):
        return (yield (Chore(stream.iterator.close, "stream"), (), None))
    return None
