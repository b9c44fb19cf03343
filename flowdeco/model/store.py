"""The shared state of a run: typed keys, the store, and the record of what changed in it.

Whoever must be able to drop or to hand on what was written opens a *log* (`_begin`). The store then notes, for each key
that changes, what was there before the first change. Logs nest. One log serves three purposes: a retry rolls back to
it, a parallel branch and a detached action derive their `Delta` from it, and a view isolates an action by it (L4).

Beside them runs one more log of the same kind, `_recent`, as long as somebody `_watch`es: what has changed since the
journal, or the trace in memory, has `_taken` note of it. It is not nested, since no step is noted twice.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Generic,
    NamedTuple,
    TypeAlias,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    overload,
)

from flowdeco.errors import StoreKeyError, StoreTypeError, shortened, suggestion

if TYPE_CHECKING:
    from typing_extensions import TypeForm

__all__ = ["Key", "Store"]

T = TypeVar("T")
D = TypeVar("D")

_Classes: TypeAlias = "tuple[type, ...] | None"


class _Missing:
    """There is nothing: told apart from None, which is a value."""

    def __repr__(self) -> str:
        return "MISSING"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


class Key(Generic[T]):
    """A typed key of the store: `store[Key("user.id", int)]` is an `int`, to type checkers and at run time.

    Of a generic type the origin is checked (of `list[int]`, the list), of a union its members. As in the typing
    rules of numbers, an `int` is accepted where a `float` is declared.
    """

    __slots__ = ("_classes", "name", "type")
    name: str
    type: TypeForm[T]
    _classes: _Classes

    @overload
    def __init__(self, name: str, type: TypeForm[T]) -> None: ...
    @overload
    def __init__(self: Key[Any], name: str) -> None: ...
    def __init__(self, name: str, type: Any = Any) -> None:
        object.__setattr__(self, "name", key_name(name))
        object.__setattr__(self, "type", type)
        object.__setattr__(self, "_classes", _runtime_classes(type))

    def check(self, value: object) -> None:
        """Raise `StoreTypeError` if the value is not of the declared type."""
        if self._classes is not None and not isinstance(value, self._classes):
            raise StoreTypeError(
                f"the key {self.name!r} is declared as {_type_name(self.type)}, "
                f"but its value is a {type(value).__name__}: {shortened(value)}"
            )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Key is immutable: cannot set {name!r}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return NotImplemented
        theirs = cast("Key[Any]", other)
        return self.name == theirs.name and self.type == theirs.type

    def __hash__(self) -> int:
        return hash((Key, self.name))

    def __repr__(self) -> str:
        return f"Key({self.name!r})" if self.type is Any else f"Key({self.name!r}, {_type_name(self.type)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Key, (self.name, self.type))


AnyKey: TypeAlias = "str | Key[Any]"


def key_name(key: object) -> str:
    """Return the name under which the store knows this key; keys are non-empty strings and `Key` objects."""
    if isinstance(key, str):
        if key:
            return key
        raise StoreTypeError("a key of the store is a non-empty string, not ''")
    if isinstance(key, Key):
        return cast("Key[Any]", key).name
    raise StoreTypeError(f"a key of the store is a non-empty string or a Key, not the {type(key).__name__} {key!r}")


def _runtime_classes(declared: Any) -> _Classes:
    """Return what `isinstance` can check of a declared type, None for what it cannot."""
    if declared is None:
        return (types.NoneType,)
    origin = get_origin(declared)
    if origin is Annotated:
        return _runtime_classes(get_args(declared)[0])
    if origin is Union or origin is types.UnionType:
        members = [_runtime_classes(member) for member in get_args(declared)]
        return None if None in members else tuple(c for classes in members if classes for c in classes)
    cls = origin or declared
    if cls is Any or not isinstance(cls, type):
        return None
    if getattr(cls, "_is_protocol", False) and not getattr(cls, "_is_runtime_protocol", False):
        return None
    return accepted_classes(cls)


def accepted_classes(declared: type) -> tuple[type, ...]:
    """Return the classes whose values pass for one that is declared: an `int` is a `float`, too (PEP 484)."""
    return {float: (float, int), complex: (complex, float, int)}.get(declared, (declared,))


def _type_name(declared: Any) -> str:
    return declared.__name__ if isinstance(declared, type) and not get_args(declared) else str(declared)


class _Grown(NamedTuple):
    """What a log notes of a list that the store has appended to in place."""

    items: list[Any]
    length: int
    before: Any


class _Kept(NamedTuple):
    """What a log notes of a list, or of none yet, where it cannot follow how the store makes it grow: a copy."""

    items: tuple[Any, ...]
    missing: bool

    @classmethod
    def of(cls, before: Any) -> Any:
        """Return what a log can note of what was there before, however the store goes on."""
        if isinstance(before, _Grown):
            return cls((), True) if before.before is MISSING else cls(tuple(before.items[: before.length]), False)
        return before

    def begins(self, now: Any) -> bool:
        """Whether this list is what is kept, with more at its end."""
        return (
            isinstance(now, list)
            and len(cast("list[Any]", now)) >= len(self.items)
            and all(map(same, self.items, cast("list[Any]", now)))
        )


def same(one: Any, other: Any) -> bool:
    try:
        return one is other or bool(one == other)
    except Exception:  # values that cannot be compared as a whole, arrays for one
        return False


Log: TypeAlias = dict[str, Any]


class _Mark(dict[str, Any]):
    """A log that knows what the journal had not taken note of when it was opened."""

    def __init__(self, recent: Log) -> None:
        super().__init__()
        self.recent = dict(recent)


class Delta(NamedTuple):
    """What was written: whole values, removed keys, and the items appended to lists."""

    puts: dict[str, Any]
    deletes: list[str]
    appends: dict[str, list[Any]]


NOTHING: Final = Delta({}, [], {})


class Store(MutableMapping[str, Any]):
    """The key-value state of a run: keys are non-empty strings, dotted by habit, or typed `Key` objects.

    Values are taken by reference. A missing key raises `StoreKeyError`, a `KeyError` that names close matches; a value
    that is not of the type of its `Key` raises `StoreTypeError`, on writing and on reading.
    """

    __slots__ = ("_data", "_logs", "_owned", "_recent")
    _data: MutableMapping[str, Any]

    def __init__(self, mapping: Mapping[str, Any] | None = None) -> None:
        self._data = {}
        self._owned: dict[str, list[Any]] = {}
        self._logs: list[Log] = []
        self._recent: Log | None = None
        if mapping is not None:
            self.update(mapping)

    @overload
    def __getitem__(self, key: Key[T]) -> T: ...
    @overload
    def __getitem__(self, key: str) -> Any: ...
    def __getitem__(self, key: AnyKey) -> Any:
        name = key_name(key)
        try:
            value = self._data[name]
        except KeyError:
            raise StoreKeyError(f"no key {name!r} in the store. {suggestion(name, self._data)}") from None
        if isinstance(key, Key):
            key.check(value)
        return value

    @overload
    def get(self, key: Key[T], /) -> T | None: ...
    @overload
    def get(self, key: Key[T], default: D, /) -> T | D: ...
    @overload
    def get(self, key: str, default: Any = None, /) -> Any: ...
    def get(self, key: AnyKey, default: Any = None, /) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the value of the key, or the default where the key is missing."""
        return self[key] if key in self else default

    def __contains__(self, key: object) -> bool:
        name = key.name if isinstance(key, Key) else key
        return name in self._data

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    @overload
    def __setitem__(self, key: Key[T], value: T) -> None: ...
    @overload
    def __setitem__(self, key: str, value: Any) -> None: ...
    def __setitem__(self, key: AnyKey, value: Any) -> None:
        name = key_name(key)
        if isinstance(key, Key):
            key.check(value)
        if self._logs or self._recent is not None:
            self._note(name)
        self._data[name] = value

    def __delitem__(self, key: AnyKey) -> None:
        name = key_name(key)
        if name not in self._data:
            raise StoreKeyError(f"no key {name!r} in the store. {suggestion(name, self._data)}")
        if self._logs or self._recent is not None:
            self._note(name)
        del self._data[name]

    @overload
    def append(self, key: Key[list[T]], value: T) -> None: ...
    @overload
    def append(self, key: str, value: Any) -> None: ...
    def append(self, key: AnyKey, value: Any) -> None:
        """Append to the list under this key; the list is made when missing, and copied when it came from outside.

        Raises `StoreTypeError` where the key holds something else than a list.
        """
        if isinstance(key, Key):
            key.check([value])
        self._extend(key_name(key), (value,))

    def __repr__(self) -> str:
        return f"Store({dict(self)!r})"

    def _extend(self, name: str, items: Iterable[Any]) -> None:
        before = self._data.get(name, MISSING)
        target = self._owned.get(name)
        if target is None or target is not before:
            if before is not MISSING and not isinstance(before, list):
                raise StoreTypeError(
                    f"cannot append to the key {name!r}: it holds a {type(before).__name__}, not a list"
                )
            target = [] if before is MISSING else list(cast("list[Any]", before))
        if self._logs or self._recent is not None:
            self._note(name, _Grown(target, len(target), before))
        self._owned[name] = self._data[name] = target
        target.extend(items)

    def _note(self, name: str, grown: _Grown | None = None) -> None:
        before = self._data.get(name, MISSING) if grown is None else grown
        if self._logs:
            self._logs[-1].setdefault(name, before)
        if self._recent is not None:
            self._recent.setdefault(name, before)

    # What evaluation needs.

    def _begin(self) -> Log:
        """Open a log of what changes from here on."""
        log: Log = {} if self._recent is None else _Mark(self._recent)
        self._logs.append(log)
        return log

    def _end(self, log: Log) -> None:
        """Close a log; what it noted becomes part of the one around it."""
        logs = self._logs
        index = len(logs) - 1
        while index >= 0 and logs[index] is not log:  # a layer closes its own while the evaluator has one open for it
            index -= 1
        if index < 0:
            return
        del logs[index]
        if log and index:
            outer = logs[index - 1]
            for name, before in log.items():
                outer.setdefault(name, before)

    def _rollback(self, log: Log, keep: Collection[str] = (), *, forget: bool = False) -> None:
        """Undo what the (closed) log noted, but for the keys to keep.

        With `forget`, the steps since the log was opened will be forgotten by the journal, too.
        """
        if self._recent is not None:
            if forget and isinstance(log, _Mark):
                self._recent = {name: _Kept.of(before) for name, before in log.recent.items()}
            for name in keep if forget else log:
                self._recent[name] = self._data.get(name, MISSING)
        for name, before in log.items():
            if name in keep:
                continue
            for outer in self._logs:  # what is as it was has not been written
                if outer.get(name, log) is before:
                    del outer[name]
            if isinstance(before, _Grown):
                del before.items[before.length :]
                before = before.before
            elif isinstance(before, _Kept):
                self._owned[name] = items = list(before.items)
                before = MISSING if before.missing else items
            if before is MISSING:
                self._data.pop(name, None)
            else:
                self._data[name] = before

    def _changes(self, log: Log) -> Delta:
        """Return what has been written since the log was opened."""
        puts: dict[str, Any] = {}
        deletes: list[str] = []
        appends: dict[str, list[Any]] = {}
        for name, before in log.items():
            now = self._data.get(name, MISSING)
            if now is MISSING:
                if before is not MISSING and not (isinstance(before, _Kept) and before.missing):
                    deletes.append(name)
            elif isinstance(before, _Grown) and now is before.items:
                appends[name] = now[before.length :]
            elif isinstance(before, _Kept) and before.begins(now):
                if before.missing or len(now) > len(before.items):
                    appends[name] = now[len(before.items) :]
            else:
                puts[name] = now
        return Delta(puts, deletes, appends)

    def _apply(self, delta: Delta) -> None:
        """Write what another store has noted."""
        for name, value in delta.puts.items():
            self[name] = value
        for name in delta.deletes:
            if name in self:
                del self[name]
        for name, items in delta.appends.items():
            self._extend(name, items)

    # What has changed since the journal last took note.

    def _watch(self) -> None:
        """Note what changes from now on, until it is `_taken`."""
        self._recent = {}

    def _untaken(self) -> Delta:
        """Return what has changed since it was last taken."""
        return self._changes(self._recent or {})

    def _taken(self) -> None:
        """Begin to note anew: the journal has the rest."""
        self._recent = {}

    def _restore(self, delta: Delta | None) -> None:
        """Undo what has changed since it was last taken, and write what a step wrote that had been taken.

        The logs that are open go back to what was there when they were opened, not to what a step found.
        """
        recent, self._recent = self._recent or {}, None
        if delta is None:
            self._rollback(recent)
        else:
            logs, self._logs = self._logs, []
            for name in {*recent, *delta.puts, *delta.deletes, *delta.appends} if logs else ():
                self._renote(logs, name, delta, recent.get(name))
            if recent:
                self._rollback(recent)
            self._apply(delta)
            self._logs = logs
        self._recent = {}

    def _renote(self, logs: list[Log], name: str, delta: Delta, undone: Any) -> None:
        """Note in the open logs what is there now, before it is undone and written once more."""
        written = name in delta.puts or name in delta.appends or name in delta.deletes
        for log in logs:
            before = log.get(name)
            if before is not None and before is undone and not written:
                del log[name]
            elif isinstance(before, _Grown):
                log[name] = _Kept.of(before)
        if written and name not in logs[-1]:
            now = self._data.get(name, MISSING)
            if name in delta.appends:
                now = _Kept((), True) if now is MISSING else _Kept(tuple(now), False)
            logs[-1][name] = now

    def _recall(self, logs: Iterable[Log], noted: Iterable[Log]) -> None:
        """Have open logs go back to what others, of an earlier attempt, had noted; somebody watched both times."""
        for log, before in cast("Iterable[tuple[_Mark, _Mark]]", zip(logs, noted, strict=False)):
            log.update((name, _Kept.of(value)) for name, value in before.items())
            log.recent = {name: _Kept.of(value) for name, value in before.recent.items()}

    def _revived(self, given: Mapping[str, Any]) -> Store:
        """Return a copy to go on with, in which what was written since the last step was over is undone.

        What has been given since is there as if it had been there from the start.
        """
        made = Store()
        recent = self._recent or {}
        made._data = dict(self._data)
        for name, owned in self._owned.items():
            if made._data.get(name) is owned:
                made._data[name] = made._owned[name] = list(owned)
        made._rollback({name: _Kept.of(before) for name, before in recent.items()})
        for log in self._logs[:1]:
            kept = {name: before for name, before in log.items() if recent.get(name, log) is not before}
            made._logs.append({name: _Kept.of(before) for name, before in kept.items()})
        made._data.update(given)
        made._watch()
        return made

    def _fork(self) -> Store:
        """Return a store of its own with the same values, which logs from its start."""
        fork = Store()
        fork._data = dict(self._data)
        fork._begin()
        if self._recent is not None:
            fork._watch()
        return fork

    def _delta(self) -> Delta:
        """Return what was written since the store was forked, or the view was made."""
        return self._changes(self._logs[0])


class _Layer(MutableMapping[str, Any]):
    """A mapping over another one: writes stay here, reads fall through."""

    __slots__ = ("_base", "_own")

    def __init__(self, base: Mapping[str, Any]) -> None:
        self._base = base
        self._own: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        value = self._own.get(name, MISSING)
        if value is MISSING:
            if name in self._own:
                raise KeyError(name)
            return self._base[name]
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        self._own[name] = value

    def __delitem__(self, name: str) -> None:
        self._own[name] = MISSING

    def __iter__(self) -> Iterator[str]:
        for name in self._base:
            if self._own.get(name, name) is not MISSING:
                yield name
        for name, value in self._own.items():
            if value is not MISSING and name not in self._base:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)


class View(Store):
    """An action's own view of the store: it sees what it wrote, nobody else does until it completes (L4).

    Appending does not copy the list of the store until the view reads it, so that handing in one result costs the
    same however many there are.
    """

    __slots__ = ("_added", "_on_read")

    def __init__(self, base: Store) -> None:
        super().__init__()
        self._on_read: Callable[[str], object] | None = None  # told what is read, before it can be changed in place
        self._data = _Layer(base._data)
        self._added: dict[str, list[Any]] = {}
        self._begin()

    def _extend(self, name: str, items: Iterable[Any]) -> None:
        if name in self._added:
            self._added[name].extend(items)
        elif name in self._logs[0] or not isinstance(self._data.get(name, []), list):
            super()._extend(name, items)
        else:
            self._added[name] = list(items)

    def _settle(self, names: Iterable[object]) -> None:
        """Put what was appended under these keys into the view, before they are read or written there."""
        for name in [name for name in names if name in self._added]:
            super()._extend(cast("str", name), self._added.pop(cast("str", name)))

    @overload
    def __getitem__(self, key: Key[T]) -> T: ...
    @overload
    def __getitem__(self, key: str) -> Any: ...
    def __getitem__(self, key: AnyKey) -> Any:
        name = key_name(key)
        self._settle((name,))
        if self._on_read is not None:
            self._on_read(name)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (key.name if isinstance(key, Key) else key) in self._added

    def __iter__(self) -> Iterator[str]:
        self._settle(self._added)
        return super().__iter__()

    def __len__(self) -> int:
        self._settle(self._added)
        return super().__len__()

    def __setitem__(self, key: AnyKey, value: Any) -> None:
        self._settle((key_name(key),))
        super().__setitem__(key, value)

    def __delitem__(self, key: AnyKey) -> None:
        self._settle((key_name(key),))
        super().__delitem__(key)

    def _delta(self) -> Delta:
        """Return what the action wrote."""
        delta = super()._delta()
        delta.appends.update(self._added)
        return delta
