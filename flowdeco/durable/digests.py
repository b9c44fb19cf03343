"""Digests: short hashes of the content of values, by which changes in place, large values and cached outcomes are found.

A value is hashed while `pickle` takes it apart, and nothing of it is kept: the buffers of arrays and frames, and long
strings of bytes, are hashed where they are. It is a hash of the content, not of the pickle, which is why equal values
have one digest in every process, whatever its order of hashes and its version of Python:

1. Parts are written as often as they occur: it makes no difference whether two equal parts are one object. A value that
   contains itself, or the same parts over and over, is hashed part by part instead, with its repetitions (`_ByPart`).
2. Sets are written in the order of the digests of their items.
3. Objects are taken apart by `model.contents`: without what they cache, arrays by their items and frames by their columns.
   The parts that depend on the version of Python are described here.
4. Classes go by name, functions by name, code and what they enclose: those of two versions of Python are not comparable.

The hash is xxh3 where xxhash is installed (`flowdeco[xxhash]`), otherwise blake2b, which takes ten times as long. A
digest that leaves the process is preceded by the name of the hash.
"""

from __future__ import annotations

import copyreg
import pickle
import re
import types
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum
from functools import lru_cache, partial
from hashlib import blake2b
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

from flowdeco.durable.fingerprint import fingerprint
from flowdeco.model.contents import ATOMS, Digest, taken_apart

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["digest", "hasher", "is_frame", "lasting_digest"]

_LONGEST: Final = 1 << 28  # bytes: beyond that, parts that occur many times are hashed once
_FRAME: Final = 64 << 10  # bytes: pickle writes single strings of this length on their own
_SOME: Final = 1000  # containers that are searched for sets


@lru_cache(1)
def hasher() -> tuple[str, Any]:
    """Return the name of the hash and the function that begins one: the only place that chooses it."""
    try:
        return "xxh3", import_module("xxhash").xxh3_128
    except ImportError:
        return "blake2b", partial(blake2b, digest_size=16)


def digest(value: Any) -> Digest | None:
    """Return the digest of a value; None if its content cannot be read: it is nested too deeply, or changes meanwhile."""
    try:
        content, found = _hashed(value, with_caches=False)
        whole = _hashed(value, with_caches=True)[0] if found.cached else content
    except Exception:
        return None
    return Digest(content, found.cached, whole)


def lasting_digest(value: Any, *, with_opaque: bool = False) -> str | None:
    """Return a digest that means the same in every process; None if a part of the value has no content to be seen.

    With `with_opaque`, only the class of such a part counts.
    """
    try:
        content, found = _hashed(value, with_caches=False)
    except Exception:
        return None
    return None if found.opaque and not with_opaque else f"{hasher()[0]}:{content.hex()}"


class _Found:
    """Notes about a value: the number of attributes left out as caches, and whether some part cannot be seen."""

    __slots__ = ("cached", "opaque", "with_caches")

    def __init__(self, with_caches: bool) -> None:
        self.with_caches = with_caches
        self.cached = 0
        self.opaque = False

    def parts_of(self, value: Any) -> tuple[Any, ...]:
        """Return the parts of an object: its class or the name of what makes it, then those of `contents.Parts`."""
        kind = cast("Any", type(value))
        if isinstance(value, _NAMED):
            return _described(value)
        if kind is memoryview:
            return "memoryview", (pickle.PickleBuffer(value),), None, None, None
        if isinstance(value, Enum):  # whose pickle is another one in each version of Python
            return _name(kind), (value.name or value.value,), None, None, None
        module = kind.__module__.partition(".")[0]
        if module == "pathlib":
            return f"pathlib:{kind.__name__}", (str(value),), None, None, None
        if (module, kind.__name__) == ("fractions", "Fraction"):
            return "fractions:Fraction", (value.numerator, value.denominator), None, None, None
        try:
            maker, args, state, items, pairs, cached = taken_apart(value, with_caches=self.with_caches)
        except Exception:  # a lock, a connection: it has no content that could change
            self.opaque = True
            return _name(kind), (), None, None, None
        self.cached += cached
        if maker is _NEW:  # of most classes: the class is its first argument
            maker, args = args[0], args[1:]
        return _name(maker) if isinstance(maker, _NAMED) else maker, args, state, items, pairs


def _described(thing: Any) -> tuple[Any, ...]:
    """Return the parts of a class, function or action."""
    if not isinstance(thing, types.FunctionType):
        return _name(thing), (), None, None, None
    cells = [cell.cell_contents for cell in thing.__closure__ or () if cell != types.CellType()]
    content: tuple[Any, ...] = (fingerprint(thing), cells)
    if type(cast("Any", thing)) is not types.FunctionType:  # a proxy
        content = (*content, _options_of(thing))
    return _name(thing), content, None, None, None


def _options_of(proxy: Any) -> Any:
    """Return the options and bound values of an action; None for the proxy of another library."""
    from flowdeco.model.definitions import Action, action_options, bound_of  # not loaded for a journal without any

    if not isinstance(proxy, Action):
        return None
    action = cast("Action[..., Any]", proxy)
    return tuple(action_options(action)), dict(bound_of(action))


def _hashed(value: Any, *, with_caches: bool) -> tuple[bytes, _Found]:
    found = _Found(with_caches)
    try:
        return _streamed(value, found), found
    except _Unordered:
        found = _Found(with_caches)
        with suppress(*_ENDLESS, RecursionError):
            return _sorted(value, found), found
    except _ENDLESS:
        pass
    found = _Found(with_caches)
    return _ByPart(found).of(value), found


_ENDLESS: Final = (ValueError, OverflowError)  # a value that contains itself, or the same parts over and over


class _Unordered(Exception):
    """There may be sets in the value, which must be sorted."""


def _streamed(value: Any, found: _Found) -> bytes:
    sink = _Sink()
    _Pickler(sink, found).dump(value)
    if sink.may_have_sets and not _surely_without_sets(value):
        raise _Unordered
    return sink.hashed()


def _sorted(value: Any, found: _Found) -> bytes:
    sink = _Sink()
    _Sorting(sink, found).dump(value)
    return sink.hashed()


def is_frame(data: Any) -> bool:
    """Whether pickle wrote these bytes as a frame, which has objects in it; otherwise they are a single long string."""
    start = 2 if data[:2] == b"\x80\x05" else 0
    size = int.from_bytes(data[start + 1 : start + 9], "little")
    return len(data) < _FRAME or (data[start : start + 1] == pickle.FRAME and size == len(data) - start - 9)


_SETS: Final = re.compile(rb"\x8f\(|\x91")  # the beginning of a set that is not empty, the end of a frozenset


class _Sink:
    """Hashes what is written to it, and the buffers that are kept out of that."""

    __slots__ = ("buffers", "left", "may_have_sets", "stream")

    def __init__(self) -> None:
        self.stream = hasher()[1]()
        self.buffers: Any = None
        self.left = _LONGEST
        self.may_have_sets = False

    def write(self, data: Buffer, /) -> None:
        view = memoryview(data)
        self.left -= min(view.nbytes, _FRAME)
        if self.left < 0:
            raise OverflowError
        if not self.may_have_sets and is_frame(view):
            self.may_have_sets = _SETS.search(view) is not None
        self.stream.update(view)

    def take(self, buffer: pickle.PickleBuffer) -> None:
        view = buffer.raw()
        if self.buffers is None:
            self.buffers = hasher()[1]()
        self.buffers.update(view.nbytes.to_bytes(8, "little"))
        self.buffers.update(view)

    def hashed(self) -> bytes:
        if self.buffers is not None:
            self.stream.update(self.buffers.digest())
        made: bytes = self.stream.digest()
        return made


class _Pickler(pickle.Pickler):
    """Writes the content of values, whether they could be read back or not."""

    def __init__(self, sink: _Sink, found: _Found) -> None:
        super().__init__(sink, 5, buffer_callback=sink.take)
        self.memo = _MEMO
        self.fast = True  # nothing more joins the memo
        self.found = found

    def reducer_override(self, value: Any) -> Any:
        maker, args, *rest = self.found.parts_of(value)
        return _made, (maker, args), *rest


class _Sorting(_Pickler):
    """The same for a value with sets in it. It takes several times as long, because it is asked about each part."""

    def persistent_id(self, value: Any) -> Any:
        if type(value) not in _UNORDERED or len(value) < 2:
            return None
        found = self.found
        return type(value).__name__, _in_order(value, found)


def _in_order(items: Any, found: _Found) -> list[Any]:
    """Return the items of a set in an order that does not depend on the process, or their hashes."""
    if frozenset(map(type, items)) in _SORTABLE:
        return sorted(items)
    return sorted(_sorted(item, found) for item in items)


def _surely_without_sets(value: Any) -> bool:
    """Whether a value consists of so few builtin containers that all of them could be searched."""
    waiting = [value]
    for _ in range(_SOME):
        if not waiting:
            return True
        each = waiting.pop()
        if type(each) is dict:
            items: Any = (*each, *each.values())
        elif type(each) in (list, tuple):
            items = each
        elif type(each) in ATOMS:
            continue
        else:
            return False
        if not ATOMS.issuperset(map(type, items)):
            waiting += items
    return False


class _ByPart:
    """Hashes a value part by part, each once: where one occurs again, its number counts."""

    def __init__(self, found: _Found) -> None:
        self.found = found
        self.numbers: dict[int, int] = {}
        self.kept: list[Any] = []  # so that no id is reused
        self.stream = hasher()[1]()

    def of(self, value: Any) -> bytes:
        waiting = [iter((value,))]
        while waiting:
            for part in waiting[-1]:
                inside = self._begin(part)
                if inside is not None:
                    waiting.append(inside)
                    break
            else:
                waiting.pop()
        made: bytes = self.stream.digest()
        return made

    def _begin(self, part: Any) -> Iterator[Any] | None:
        """Hash a part, and return the parts inside it that are still to be hashed."""
        kind, number = cast("Any", type(part)), self.numbers.get(id(part))
        if number is not None:
            self.stream.update(b"again %d\0" % number)
            return None
        if kind in ATOMS or kind in (bytearray, pickle.PickleBuffer):
            self.stream.update(_streamed(part, self.found))
            return None
        self.numbers[id(part)] = len(self.numbers)
        self.kept.append(part)
        inside: Any
        if kind is dict:
            inside = [each for pair in part.items() for each in pair]
        elif kind in _UNORDERED:
            inside = self._in_order(part)
        elif kind in (list, tuple):
            inside = part
        else:
            maker, args, state, items, pairs = self.found.parts_of(part)
            inside = (maker, args, state, list(items or ()), list(pairs or ()))
        self.stream.update(f"{kind.__name__} {len(inside)}\0".encode())
        each_inside: Iterator[Any] = iter(inside)
        return each_inside

    def _in_order(self, items: Any) -> list[Any]:
        try:
            return _in_order(items, self.found)
        except (*_ENDLESS, RecursionError):  # they lead to each other
            self.found.opaque = True
            return list(items)


_UNORDERED: Final = (set, frozenset)
_SORTABLE: Final = frozenset({frozenset({str}), frozenset({bytes}), frozenset({int}), frozenset({int, bool})})
_NEW: Final[Any] = vars(copyreg)["__newobj__"]
_NAMED: Final = (type, types.FunctionType, types.BuiltinFunctionType)


@lru_cache(1024)
def _name(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _made() -> None:
    """Stand for everything that makes a value from its parts."""


_MEMO: Final = {id(_made): (0, _made)}  # known to every pickler, or else its name would be looked up for each object
