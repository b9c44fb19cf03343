"""The values that a function encloses, as `cached` counts them: its closure, the object of a method, arguments of a partial.

1. They count by content, as arguments do, so that `make(2)` is not `make(3)`. Of a value whose content cannot be seen
   (a lock, a connection), the class counts.
2. A value that a call of the function changes is no input of it but its state, such as a list of calls or a counter. For
   this function it counts from then on as it was before the first such call; for all others, as it is.
3. A value that is changed in place is recognised as an object, one that is replaced by its place: the variable, the
   attribute, the key. Dicts, objects and functions are taken apart, and each of their parts is an input or state.

Which values are state is known in this process only (`FirstContents`), and need not be known in others: an outcome is stored
by the content from before the first call, and that is the content that another process begins with.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from threading import Lock
from typing import Any, Final, NamedTuple, TypeAlias, cast

from flowdeco.durable.digests import lasting_digest
from flowdeco.durable.fingerprint import fingerprint
from flowdeco.model.contents import ATOMS, taken_apart
from flowdeco.model.definitions import Action, action_options, bound_of

__all__ = ["Enclosed", "FirstContents"]

_DEEPEST: Final = 8
_WIDEST: Final = 64  # parts of a value, beyond which it is not taken apart
_MOST: Final = 1000  # states that are remembered
_ALL: Final = None  # the name of the place of an object as a whole
_ABSENT: Final = "absent"

_Where: TypeAlias = "tuple[Any, Any]"  # the cell, dict or object that holds a value, and its name there
_Counted: TypeAlias = "str | list[Any]"


class _Unreadable(Exception):
    """A value is nested too deeply, or changes while it is read."""


class _Place(NamedTuple):
    """A value where it was found; its content, or that which is not among its parts."""

    where: _Where
    value: Any
    content: str
    parts: dict[Any, _Place] | None

    def counted(self, first: Callable[[_Where], _Counted | None]) -> _Counted:
        """Return the content that counts, where `first` returns the one of a place whose present content does not."""
        for where in self.marks():
            content = first(where)
            if content is not None:
                return content
        if self.parts is None:
            return self.content
        parts = [[name, part.counted(first)] for name, part in self.parts.items()]
        return [self.content, [part for part in parts if part[1] != _ABSENT]]

    def marks(self) -> Iterator[_Where]:
        """Yield the places by which it is recognised when it is replaced, and when it is changed in place."""
        yield self.where
        if type(self.value) not in ATOMS:
            yield self.value, _ALL

    def all(self) -> Iterator[_Place]:
        """Yield the place and those in it."""
        yield self
        for part in (self.parts or {}).values():
            yield from part.all()

    def changes(self, later: _Place) -> Iterator[tuple[_Where, _Place | None]]:
        """Yield the places that have other content later on, each with what was there, if anything."""
        kept = self.value is later.value
        if kept and self.parts is not None and later.parts is not None and not self._rearranged(later):
            for name, part in later.parts.items():
                if name in self.parts:
                    yield from self.parts[name].changes(part)
                else:
                    yield part.where, None
        elif self.counted(_none) != later.counted(_none):
            yield (self.value, _ALL) if kept else self.where, self

    def _rearranged(self, later: _Place) -> bool:
        """Whether more has changed than its parts: attributes may be added, but the keys of a dict are content."""
        mine, others = list(self.parts or ()), list(later.parts or ())
        kept = mine == others if type(self.value) is dict else set(mine) <= set(others)
        return not kept or self.content != later.content


def _none(where: _Where) -> None:
    """No place counts otherwise than by its present content."""


class _First(NamedTuple):
    """The content of a place before the first call that changed it, and the fingerprints of functions that did."""

    holder: Callable[[], Any]
    content: _Counted
    changed_by: set[str]


class FirstContents:
    """The contents of places from before the calls under way, and from before the first call that changed them.

    Its users hold the `lock` while they note something.
    """

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        self._known: dict[tuple[int, Any], _First] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, where: _Where) -> _First | None:
        """Return what is known of a place."""
        found = self._known.get(_key(where))
        return None if found is None or found.holder() is not where[0] else found

    def note(self, where: _Where, content: _Counted) -> _First:
        """Return what is known of a place, whose first content is this one if none is known."""
        found = self.get(where)
        if found is None:
            found = self._known[_key(where)] = _First(_reference(where[0]), content, set())
        return found

    def forget(self, places: Iterable[_Where]) -> None:
        """Forget those of these places that no call has changed, and the oldest ones beyond a number."""
        for key in map(_key, places):
            if key in self._known and not self._known[key].changed_by:
                del self._known[key]
        while len(self._known) > _MOST:
            del self._known[next(iter(self._known))]


def _key(where: _Where) -> tuple[int, Any]:
    return id(where[0]), where[1]


def _reference(thing: Any) -> Callable[[], Any]:
    """Return a function that returns the thing, and keeps it only if it must: lists, dicts and cells."""
    try:
        return weakref.ref(thing)
    except TypeError:
        return lambda: thing


class Enclosed:
    """The values that a function encloses, as they were before a call, which is made in a `with` of it."""

    def __init__(self, function: Any, firsts: FirstContents) -> None:
        self._function = function
        self._firsts = firsts
        self._fingerprint = fingerprint(function)
        self._added: list[_Where] = []
        self._before = self._read()

    def counted(self) -> list[Any] | None:
        """Return what counts for the function: its code and these values; None if some content cannot be read.

        After the call, those that it has changed do not count as such.
        """
        return None if self._before is None else [self._fingerprint, self._before.counted(self._first)]

    def _first(self, where: _Where) -> _Counted | None:
        found = self._firsts.get(where)
        return found.content if found is not None and self._fingerprint in found.changed_by else None

    def __enter__(self) -> None:
        """Note the content before the call: calls that overlap with it count from the same one."""
        if self._before is None or not self._before.parts:
            return
        with self._firsts.lock:
            for place in self._before.all():
                for where in place.marks():
                    if self._firsts.get(where) is None:
                        self._firsts.note(where, place.counted(self._first))
                        self._added.append(where)

    def __exit__(self, *exception: object) -> None:
        """Note the values that the call has changed."""
        before = self._before
        if before is None or not before.parts:
            return
        after = self._read()
        with self._firsts.lock:
            for where, place in () if after is None else before.changes(after):
                content = _ABSENT if place is None else place.counted(self._first)
                self._firsts.note(where, content).changed_by.add(self._fingerprint)
            self._firsts.forget(self._added)
        if after is None:
            self._before = None

    def _read(self) -> _Place | None:
        try:
            return _place((None, ""), self._function, (), {})
        except _Unreadable:
            return None


def _place(where: _Where, value: Any, above: tuple[Any, ...], met: dict[int, str], is_code: bool = True) -> _Place:
    """Read a place. An object that occurs again is named by where it was; of the function itself, its fingerprint counts."""
    if id(value) in met:
        return _Place(where, _AGAIN, f"again {met[id(value)]}", None)
    apart = _apart(value) if len(above) < _DEEPEST else None
    if apart is None:
        return _Place(where, value, _content(value), None)
    here = (*above, where[1])
    met[id(value)] = repr(here)
    rest, holds = apart
    is_code = is_code and type(value) in _FUNCTIONS
    parts = {name: _place((holder, name), part, here, met, is_code and name in _CODE) for holder, name, part in holds}
    return _Place(where, value, "" if is_code else _content(rest), parts)


_AGAIN: Final = "again"
_CODE: Final = ("__func__", "__wrapped__")  # the places of functions that a fingerprint covers


def _content(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    content = lasting_digest(value, with_opaque=True)
    if content is None:
        raise _Unreadable
    return content


_Holds: TypeAlias = "list[tuple[Any, Any, Any]]"  # holder, name, value


def _apart(value: Any) -> tuple[Any, _Holds] | None:
    """Return what holds the parts of a value, and the rest; None for one that counts as a whole."""
    kind = cast("Any", type(value))
    if kind in ATOMS or kind in (list, tuple, set, frozenset) or isinstance(value, (type, types.ModuleType)):
        return None
    named = _FUNCTIONS.get(kind)
    if named is not None:
        return named(value)
    if kind is dict:
        state: tuple[dict[Any, Any] | None, Any] = value, "dict"
    else:
        state = _state(value)
    pairs, rest = state
    if pairs is None or len(pairs) > _WIDEST or not all(isinstance(name, str) for name in pairs):
        return None
    names = list(pairs) if kind is dict else sorted(pairs)
    return rest, [(value, name, pairs[name]) for name in names]


def _state(value: Any) -> tuple[dict[Any, Any] | None, Any]:
    """Return the attributes of an object by name, and the rest of it; None if it does not consist of them alone."""
    try:
        parts = taken_apart(value)
    except Exception:
        return getattr(value, "__dict__", None), cast("object", type(value))
    state: Any = parts.state
    if not isinstance(state, dict) or parts.items is not None or parts.pairs is not None:
        return None, None
    return cast("dict[Any, Any]", state), [parts.maker, parts.args]


def _of_function(value: Any) -> tuple[Any, _Holds]:
    cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    holds = [(cell, name, cell.cell_contents) for name, cell in cells if cell != types.CellType()]
    wrapped = value.__dict__.get("__wrapped__")
    if wrapped is not None:
        holds.append((value, "__wrapped__", wrapped))
    return [value.__module__, value.__qualname__, fingerprint(value)], holds


def _of_method(value: Any) -> tuple[Any, _Holds]:
    return "method", [(value, "__self__", value.__self__), (value, "__func__", value.__func__)]


def _of_partial(value: Any) -> tuple[Any, _Holds]:
    given = {**{f"{at}": each for at, each in enumerate(value.args)}, **value.keywords, "__func__": value.func}
    return "partial", [(value, name, each) for name, each in given.items()]


def _of_builtin(value: Any) -> tuple[Any, _Holds]:
    return [value.__module__, value.__qualname__], [(value, "__self__", value.__self__)]


def _of_action(value: Any) -> tuple[Any, _Holds]:
    given = {"function": value.__wrapped__, "options": [*action_options(value)], "bound": dict(bound_of(value))}
    return "action", [(value, name, each) for name, each in given.items()]


_FUNCTIONS: Final[dict[Any, Callable[[Any], tuple[Any, _Holds]]]] = {
    types.FunctionType: _of_function,
    types.MethodType: _of_method,
    types.BuiltinFunctionType: _of_builtin,
    functools.partial: _of_partial,
    Action: _of_action,
}
