"""Pickles with their large parts aside, and back: without a copy, wherever in a value these parts are.

Buffers of arrays and frames leave the pickle by protocol 5, out of band. Long strings of bytes or text are in it, and
`pickle` writes each of them on its own: they are cut out there. If anything large is left of a value that a step wrote, a
list of a million numbers say, its pickle is a part as well, so that the same list of another step is stored once.

The content of such a `Payload` is a list of nodes, the last one for all of it; each is its pickle (or the place of that
among the parts), the positions and places of the strings to be put back, and the places of its buffers.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias, cast

from flowdeco.durable.blobs import LARGE
from flowdeco.durable.digests import is_frame
from flowdeco.engine.journal import Payload

__all__ = ["Unpickler", "is_large", "load", "set_apart"]

_PROTOCOL: Final = 5

Node: TypeAlias = "tuple[bytes | int, list[tuple[int, int]], list[int]]"


class _Ref(NamedTuple):
    """Stands for a value that has a node of its own."""

    node: int


def is_large(value: Any) -> bool:
    """Whether this is a single long string, of bytes or text."""
    return type(value) in (bytes, str, bytearray) and len(value) >= LARGE


def set_apart(value: Any, base: type[pickle.Pickler] = pickle.Pickler) -> bytes:
    """Return the pickle of a value, as a `Payload` if there is anything large in it."""
    made = _Apart(base)
    made.add(made.with_refs(value))
    if not made.parts:
        content, _, _ = made.nodes[-1]
        return cast("bytes", content)
    return Payload(pickle.dumps(made.nodes, _PROTOCOL), made.parts)


@lru_cache(2)  # of pickle, and of cloudpickle
def _with_nodes(base: Any) -> Any:
    """Return the pickler that writes each `_Ref` as the number of its node."""

    class Pickler(base):  # type: ignore[misc]
        def persistent_id(self, obj: Any) -> Any:
            return obj.node if type(obj) is _Ref else None

    return Pickler


class _Apart:
    """The nodes and parts of a value, as they are made."""

    def __init__(self, base: Any) -> None:
        self.nodes: list[Node] = []
        self.parts: list[Any] = []
        self._pickler, self._plain = _with_nodes(base), base

    def add(self, value: Any) -> None:
        """Add the node of a value."""
        self.nodes.append(self._node(value, self._pickler))

    def with_refs(self, value: Any) -> Any:
        """Return what a step wrote, or inputs, with references to large values instead of these."""
        if type(value) is tuple:  # a key and a value
            return tuple(map(self._placed, cast("tuple[Any, ...]", value)))
        if type(value) is not dict:
            return value
        return {name: self._in_section(name, content) for name, content in cast("dict[Any, Any]", value).items()}

    def _in_section(self, name: Any, content: Any) -> Any:
        if name == "entering" and type(content) is list:
            return list(map(self.with_refs, cast("list[Any]", content)))
        if name not in _SECTIONS or type(content) is not dict:
            return self._placed(content)
        values = cast("dict[Any, Any]", content)
        if name == "appends":
            return {key: list(map(self._placed, items)) for key, items in values.items()}
        return {key: self._placed(each) for key, each in values.items()}

    def _placed(self, value: Any) -> Any:
        """Return the value itself, or if its pickle is large without its large parts, a reference to a node for it."""
        if not isinstance(value, _COLLECTED) and not hasattr(cast("object", value), "__dict__"):
            return value
        count = len(self.parts)
        content, cuts, buffers = self._node(value, self._plain)
        if len(cast("bytes", content)) < LARGE:
            del self.parts[count:]
            return cast("Any", value)
        self.parts.append(content)
        self.nodes.append((len(self.parts) - 1, cuts, buffers))
        return _Ref(len(self.nodes) - 1)

    def _node(self, value: Any, pickler: Any) -> Node:
        sink = _Sink(self.parts)
        pickler(sink, _PROTOCOL, buffer_callback=sink.take).dump(value)
        return b"".join(sink.pieces), sink.cuts, sink.buffers


_SECTIONS: Final = frozenset({"puts", "local", "changes", "local_changes", "appends"})
_COLLECTED: Final = (list, tuple, dict, set, frozenset)


class _Sink:
    """Takes what a pickler writes, its long strings and large buffers apart from the rest."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        self.pieces: list[bytes] = []
        self.length = 0
        self.cuts: list[tuple[int, int]] = []
        self.buffers: list[int] = []

    def write(self, data: Any) -> None:
        if is_frame(data):
            self.pieces.append(data)
            self.length += len(data)
        else:
            self.cuts.append((self.length, len(self.parts)))
            self.parts.append(data)

    def take(self, buffer: pickle.PickleBuffer) -> bool:
        """Set a large buffer aside; return whether it is to be in the pickle instead."""
        raw = buffer.raw()
        if raw.nbytes < LARGE:
            return True
        self.buffers.append(len(self.parts))
        self.parts.append(raw)
        return False


# Back.


class Unpickler(pickle.Unpickler):
    """Reads the nodes that a node refers to by the function `node`."""

    node: Callable[[int], Any]

    def persistent_load(self, pid: Any) -> Any:
        return self.node(pid)


def load(payload: bytes, unpickler: type[Unpickler] = Unpickler) -> Any:
    """Return the value of a pickle, or of a `Payload` that `set_apart` has made."""
    if type(payload) is not Payload:
        return unpickler(io.BytesIO(payload)).load()
    nodes: list[Node] = unpickler(io.BytesIO(payload)).load()
    parts = payload.parts
    # Before it is written, a payload has a list of the buffers of its own value, which another one must not share.
    loaded: Callable[[Any], Any] = bytearray if isinstance(parts, list) else lambda part: part

    def value_of(number: int) -> Any:
        content, cuts, buffers = nodes[number]
        pickled = parts[content] if isinstance(content, int) else content
        file = io.BufferedReader(_Spliced(memoryview(pickled), [(at, parts[place]) for at, place in cuts]))
        reader = unpickler(file, buffers=(loaded(parts[place]) for place in buffers))
        reader.node = value_of
        return reader.load()

    return value_of(len(nodes) - 1)


class _Spliced(io.RawIOBase):
    """Reads a pickle with the strings put back that were cut out of it."""

    def __init__(self, content: memoryview, cuts: list[tuple[int, Any]]) -> None:
        self._pieces = self._all(content, cuts)
        self._rest = memoryview(b"")

    def _all(self, content: memoryview, cuts: list[tuple[int, Any]]) -> Iterator[memoryview]:
        at = 0
        for cut, part in cuts:
            yield content[at:cut]
            yield memoryview(part)
            at = cut
        yield content[at:]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
