"""Digests: short hashes of the content of values, by which a run finds those that were changed in place.

A value is hashed while `pickle` takes it apart, and nothing of it is kept: the buffers of arrays and frames, and long
strings of bytes, are hashed where they are. Two things distinguish this from a hash of the pickle. Parts are written as
often as they occur, so that it makes no difference whether two equal parts are one object. And objects are taken apart by
`model.contents`: without what they cache, and frames by their columns.

Sets are hashed in the order in which they are iterated, so that digests are comparable within a process only.
"""

from __future__ import annotations

import copyreg
import pickle
import types
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, cast

from flowdeco.model.contents import Digest, taken_apart

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["digest"]

hasher: Final = blake2b  # the only place that chooses the hash
_SIZE: Final = 16
_LONGEST: Final = 16 << 20  # bytes: beyond that, a part that occurs many times is written once
_FRAME: Final = 64 << 10  # bytes: longer pieces are single strings of bytes


def digest(value: Any) -> Digest | None:
    """Return the digest of a value; None if its content cannot be seen: it is nested too deeply, or changes meanwhile."""
    try:
        content, cached = _hashed(value, with_caches=False)
        whole = _hashed(value, with_caches=True)[0] if cached else content
    except Exception:
        return None
    return Digest(content, cached, whole)


def _hashed(value: Any, *, with_caches: bool) -> tuple[bytes, int]:
    """Return the hash of a value, and the number of attributes that were left out."""
    try:
        return _dumped(value, with_caches, repeats=True)
    except (ValueError, RecursionError, OverflowError):  # it contains itself, or the same parts over and over
        return _dumped(value, with_caches, repeats=False)


def _dumped(value: Any, with_caches: bool, *, repeats: bool) -> tuple[bytes, int]:
    sink = _Sink(_LONGEST if repeats else None)
    pickler = _Pickler(sink, with_caches)
    pickler.fast = repeats  # nothing more joins the memo
    pickler.dump(value)
    sink.stream.update(sink.buffers.digest())
    return sink.stream.digest(), pickler.cached


class _Sink:
    """Hashes what is written to it, and the buffers that are kept out of that."""

    __slots__ = ("buffers", "left", "stream")

    def __init__(self, longest: int | None) -> None:
        self.stream = hasher(digest_size=_SIZE)
        self.buffers = hasher(digest_size=_SIZE)
        self.left = longest

    def write(self, data: Buffer, /) -> None:
        view = memoryview(data)
        if self.left is not None:
            self.left -= min(view.nbytes, _FRAME)
            if self.left < 0:
                raise OverflowError
        self.stream.update(view)

    def take(self, buffer: pickle.PickleBuffer) -> None:
        view = buffer.raw()
        self.buffers.update(view.nbytes.to_bytes(8, "little"))
        self.buffers.update(view)


class _Pickler(pickle.Pickler):
    """Writes the content of values, whether they could be read back or not."""

    def __init__(self, sink: _Sink, with_caches: bool) -> None:
        super().__init__(sink, 5, buffer_callback=sink.take)
        self.memo = _MEMO
        self.with_caches = with_caches
        self.cached = 0

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, _NAMED):
            return _made, (_name(value), getattr(getattr(value, "__code__", None), "co_code", b""))
        try:
            maker, args, state, items, pairs, cached = taken_apart(value, with_caches=self.with_caches)
        except Exception:  # a lock, a connection: it has no content that could change
            return _made, (_name(cast("Any", type(value))), id(value))
        self.cached += cached
        if maker is _NEW:  # of most classes: the class is its first argument
            maker, args = args[0], args[1:]
        return _made, (_name(maker) if isinstance(maker, _NAMED) else maker, args), state, items, pairs


_NEW: Final[Any] = vars(copyreg)["__newobj__"]
_NAMED: Final = (type, types.FunctionType, types.BuiltinFunctionType)


@lru_cache(1024)
def _name(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _made() -> None:
    """Stand for everything that makes a value from its parts."""


_MEMO: Final = {id(_made): (0, _made)}  # known to every pickler, or else its name would be looked up for each object
