"""The store: the shared state of a run, and the views of it.

To be able to undo writes, or to describe them, set a *mark*. The store then notes, for each key that changes, its value
before the first change; marks nest. One mechanism serves four purposes: a retry undoes the writes since its mark, an
action's outcome and a branch's overlay are the writes since theirs (`since`), and a view isolates an action by one (L4).
Without a mark, nothing is noted, and a write is as cheap as in a dict.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast, overload

from flowdeco.errors import ContextEndedError, StoreKeyError, StoreTypeError, a_type, shortened, suggestion
from flowdeco.model.deltas import NOTHING, Delta, Grown, Mark
from flowdeco.model.keys import AnyKey, Key, Local, Name, key_name
from flowdeco.model.runnable import Shows
from flowdeco.model.sentinels import MISSING

__all__ = ["Store"]

T = TypeVar("T")
D = TypeVar("D")

_MOST_DELETED: Final = 10_000  # names that are remembered
_NO_NAMES: Final[frozenset[Name]] = frozenset()  # `frozenset()` makes another one each time
COPIED: Final = 64  # values: up to here a copy costs a branch no more than a layer


class Store(Shows, MutableMapping[str, Any]):
    """The key-value state of a run: keys are non-empty strings, dotted by convention, or typed `Key` objects.

    Values are taken by reference. A missing key raises `StoreKeyError`, a `KeyError` that names close matches; a value
    that is not of the type of its `Key` raises `StoreTypeError`, on writing and on reading.
    """

    __slots__ = ("_data", "_deleted", "_ended", "_given", "_marks", "_owned", "_rewritten")

    def __init__(self, mapping: Mapping[str, Any] | None = None) -> None:
        self._data: MutableMapping[Any, Any] = {}
        self._ended: dict[str, str] = {}  # names of results that were local, each with its stage
        self._deleted: set[str] = set()
        self._owned: dict[Name, list[Any]] = {}  # lists that the store has made, and may append to in place
        self._marks: list[Mark] = []
        self._given: Mapping[Name, int] = {}  # inputs and answers: by name, the `id` of the value
        self._rewritten = _NO_NAMES  # those of them that were written since
        if mapping is not None:
            try:
                given = mapping if isinstance(cast("object", mapping), Mapping) else dict(mapping)
            except (TypeError, ValueError):
                raise StoreTypeError(
                    f"a Store is made from a mapping of keys to values, not from the {type(mapping).__name__} "
                    f"{shortened(mapping)}"
                ) from None
            self.update(given)

    def _begin(self, base: Store, data: MutableMapping[Any, Any]) -> Self:
        """Make this a store over the values of another one, which notes the writes to it."""
        self._data, self._owned, self._marks = data, {}, [Mark()]
        self._ended, self._deleted = base._ended, base._deleted
        self._given, self._rewritten = base._given, base._rewritten
        return self

    @overload
    def __getitem__(self, key: Key[T]) -> T: ...
    @overload
    def __getitem__(self, key: str) -> Any: ...
    def __getitem__(self, key: AnyKey) -> Any:
        name = key_name(key)
        try:
            value = self._data[name]
        except KeyError:
            raise self._missing(name) from None
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
        """Return the value of the key, or the default if the key is missing."""
        return self[key] if key in self else default

    def __contains__(self, key: object) -> bool:
        name = key.name if isinstance(key, Key) else key
        return name in self._data

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._data if type(name) is not Local)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @overload
    def __setitem__(self, key: Key[T], value: T) -> None: ...
    @overload
    def __setitem__(self, key: str, value: Any) -> None: ...
    def __setitem__(self, key: AnyKey, value: Any) -> None:
        if isinstance(key, Key):
            key.check(value)
        self.put(key_name(key), value)

    def __delitem__(self, key: AnyKey) -> None:
        name = key_name(key)
        if name not in self._data:
            raise self._missing(name)
        if self._marks:
            self._note(name, self._data[name])
        del self._data[name]
        if len(self._deleted) < _MOST_DELETED:
            self._deleted.add(name)
            self._ended.pop(name, None)

    @overload
    def append(self, key: Key[list[T]], value: T) -> None: ...
    @overload
    def append(self, key: str, value: Any) -> None: ...
    def append(self, key: AnyKey, value: Any) -> None:
        """Append to the list under this key; the list is created if missing, and copied if it was passed in from outside.

        Raises `StoreTypeError` if the key holds something other than a list.
        """
        if isinstance(key, Key):
            key.check([value])
        self._extend(key_name(key), (value,))

    def __repr__(self) -> str:
        return f"Store({dict(self)!r})"

    def _missing(self, name: str) -> StoreKeyError:
        return StoreKeyError(f"no key {name!r} in the store. {self.hint(name)}")

    def _extend(self, name: str, items: Iterable[Any]) -> None:
        before = self._data.get(name, MISSING)
        target = self._owned.get(name)
        if target is None or target is not before:
            if before is not MISSING and not isinstance(before, list):
                raise StoreTypeError(f"cannot append to the key {name!r}: it holds {a_type(before)}, not a list")
            target = [] if before is MISSING else list(cast("list[Any]", before))
        if self._marks:
            self._note(name, Grown(target, len(target), before))
        if name in self._given and name not in self._rewritten:
            self._rewritten |= {name}
        self._owned[name] = self._data[name] = target
        target.extend(items)

    def _note(self, name: Name, before: Any) -> None:
        owned = self._owned.get(name)
        if owned is not None and owned is before:  # it may be written back, and grow
            before = Grown(owned, len(owned), owned)
        self._marks[-1].setdefault(name, before)

    # For the evaluation: fast access, undoing, and descriptions of the writes.

    def reader(self) -> Callable[[Name], Any]:
        """Return a function that looks a key up by its name, and raises a plain `KeyError`."""
        return self._data.__getitem__

    def hint(self, name: str, known: Iterable[str] | None = None) -> str:
        """Return advice about a key that is missing: keys with similar names, or the stage that it was local to."""
        if Local(name) in self._data:
            return f"It is local to this stage: take it as a parameter, or share it by returns={name!r}"
        if self.was_deleted(name):
            return f"It was in the store, and was deleted. {suggestion(name, self if known is None else known)}"
        if name in self._ended:
            return f"It was local to stage {self._ended[name]!r}: write returns={name!r} there to share it"
        return suggestion(name, self if known is None else known)

    def drop_local(self, names: Iterable[str], stage: str) -> None:
        """Remove the local results of a stage that has ended."""
        for name in names:
            self._ended[name] = stage
            self._deleted.discard(name)
            key = Local(name)
            if key in self._data:
                if self._marks:
                    self._note(key, self._data[key])
                del self._data[key]

    def ended_locals(self) -> dict[str, str]:
        """Return the names of results that were local to stages, each with its stage."""
        return dict(self._ended)

    def was_deleted(self, name: str) -> bool:
        """Whether the store had the key, and an action or middleware deleted it."""
        return name in self._deleted

    def know_local(self, names: Iterable[str], ended: Mapping[str, str]) -> None:
        """Give advice about these names as another store does, without the values of its local results."""
        self._data.update((Local(name), None) for name in names)
        self._ended.update(ended)

    def local_names(self) -> list[str]:
        """Return the names of the local results of the open stage."""
        return [key.name for key in self._data if type(key) is Local]

    def put(self, name: Name, value: Any) -> None:
        """Write under a name that has been checked."""
        if self._marks:
            self._note(name, self._data.get(name, MISSING))
        if name in self._given and name not in self._rewritten:
            self._rewritten |= {name}
        self._data[name] = value

    def mark(self) -> Mark:
        """Note the changes from here on."""
        mark = Mark()
        self._marks.append(mark)
        return mark

    def release(self, mark: Mark) -> None:
        """Remove a mark: its notes become part of the enclosing mark. A second time does nothing."""
        if not mark and self._marks and self._marks[-1] is mark:  # of most layers
            self._marks.pop()
            return
        index = self._index(mark)
        if index is not None:
            del self._marks[index]
            if index and mark:
                self._marks[index - 1].share(mark)

    def discard(self, mark: Mark) -> None:
        """Remove a mark with its notes: those changes can be undone by this mark alone."""
        index = self._index(mark)
        if index is not None:
            del self._marks[index]

    def undo(self, mark: Mark, keep: Collection[str] = ()) -> None:
        """Remove a mark and later ones, and restore the values from when it was set, except those of the keys to keep."""
        index = self._index(mark)
        noted = mark if index is None else self._noted(index)
        if index is not None:
            self._note_undone(self._marks[index + 1 :], noted.keys() - set(keep))
            del self._marks[index:]
            if index and keep:
                self._marks[-1].adopt({name: before for name, before in noted.items() if name in keep})
        for name, before in noted.items():
            if name not in keep:
                self._put_back(name, before)
        if mark.is_continued:
            for each in self._marks:
                each.drop({name: before for name, before in noted.items() if name not in keep})

    def _note_undone(self, marks: list[Mark], names: Collection[Name]) -> None:
        """Have marks note the keys to be undone: they report these as written."""
        noted: dict[Name, Any] = {}  # by the mark after it: what was there then was there before, too
        for mark in reversed(marks):
            for name in names:
                before = noted[name] = mark.get(name, noted.get(name, self._data.get(name, MISSING)))
                mark[name] = _moved(before, {}) if isinstance(before, Grown) else before
                if mark[name] is self._owned.get(name):  # it is cut in place
                    mark[name] = list(mark[name])

    def take_back(self, mark: Mark) -> None:
        """Undo the writes since a mark, and keep it and later marks set."""
        index = self._index(mark)
        for each in reversed(self._marks[index:] if index is not None else ()):
            for name, before in each.items():
                self._put_back(name, before)
            each.clear()

    def since(self, mark: Mark) -> Delta:
        """Return the writes since a mark was set."""
        index = self._index(mark)
        return self._changes(mark if index is None else self._noted(index))

    def apply(self, delta: Delta) -> None:
        """Repeat writes that were made to another store, or in an earlier run."""
        if delta is NOTHING:
            return
        for name, value in delta.changes.items():
            self.revise(name, value)
        for name, value in delta.puts.items():
            if type(name) is Local:
                self.put(name, value)
            else:
                self[name] = value
        for name in delta.deletes:
            if name in self:
                del self[name]
        for name, items in delta.appends.items():
            self._extend(name, items)

    def revise(self, name: Name, value: Any) -> None:
        """Change a value in place, so that it is like this one; this is not a write, and no mark notes it.

        A list, dict or set stays the object that it is: middleware, a mark or another store may have it. Anything else
        is replaced.
        """
        held: Any = self._data.get(name)
        if held is value:
            return
        if type(held) is not type(value) or type(held) not in (list, dict, set):
            self._data[name] = value
        elif type(held) is list:
            held[:] = [held if each is value else each for each in value]  # it may contain itself
        else:
            held.clear()
            held.update(value)
            for key in [key for key in held if type(held) is dict and held[key] is value]:
                held[key] = held

    def holders(self, value: Any) -> list[Name]:
        """Return the names under which the store holds this very object."""
        return [name for name, held in self._data.items() if held is value]

    def everything(self) -> list[tuple[Name, Any]]:
        """Return all names and values, local results included."""
        return list(self._data.items())

    def holds(self, name: Name, value: Any) -> bool:
        """Whether the store holds this very object under this name."""
        return self._data.get(name, MISSING) is value

    def has_written(self, name: str) -> bool:
        """Whether the name was written since the store was forked."""
        return any(name in mark for mark in self._marks)

    def fork(self) -> Store:
        """Return a store with the same values, which knows the writes to it (`delta`).

        Until it is `detached`, no value may be written here. A few values are copied; over more of them lies a layer, so
        that a branch costs the same however many there are.
        """
        data = self._data
        is_small = type(data) is not _Layer and len(data) <= COPIED
        return Store.__new__(Store)._begin(self, dict(data) if is_small else _Layer(data).raised())

    def detached(self) -> Store:
        """Return this store, which no longer depends on the one that it was forked from."""
        if type(self._data) is _Layer:
            self._data = dict(self._data)
        return self

    def delta(self) -> Delta:
        """Return the writes since the store was forked, or the view was made."""
        return self._changes(self._noted(0)) if any(self._marks) else NOTHING

    def twin(self, *marks: Mark) -> tuple[Store, list[Mark]]:
        """Return a store of its own with the same values and its first mark, and copies of these marks for it.

        The lists that this store has made are copied, so that neither sees items appended to the other.
        """
        twin = Store.__new__(Store)._begin(self, dict(self._data))
        lists: dict[int, list[Any]] = {}
        for name, owned in self._owned.items():
            if self._data.get(name) is owned:
                lists[id(owned)] = twin._data[name] = twin._owned[name] = list(owned)

        moved: dict[int, Grown] = {}  # marks that have the same note do so in the twin

        def note(before: Any) -> Any:
            return moved.setdefault(id(before), _moved(before, lists)) if isinstance(before, Grown) else before

        def copied(mark: Mark) -> Mark:
            return Mark((name, note(before)) for name, before in mark.items())

        twin._marks = [copied(mark) for mark in self._marks[:1] if not any(mark is each for each in marks)]
        return twin, [copied(mark) for mark in marks]

    def supply(self, values: Mapping[str, Any]) -> None:
        """Write values that the run is given, as if they had been there from the start: no mark notes them."""
        self._data.update(values)
        self.give(values)

    def give(self, names: Iterable[str]) -> None:
        """Note that the run was given the values under these names, as inputs or answers."""
        self._given = {**self._given, **{name: id(self._data[name]) for name in names}}
        self._rewritten = self._rewritten.difference(names)

    def is_given(self, name: str) -> bool:
        """Whether the value is the one that the run was given, and no step wrote it."""
        return name in self._given and name not in self._rewritten

    def _index(self, mark: Mark) -> int | None:
        marks = self._marks
        for index in range(len(marks) - 1, -1, -1):
            if marks[index] is mark:
                return index
        return None

    def _noted(self, index: int) -> Mark:
        """Return the notes of this mark and later ones, combined."""
        marks = self._marks
        if index == len(marks) - 1:
            return marks[index]
        noted = Mark(marks[index])
        for mark in marks[index + 1 :]:
            noted.adopt(mark)
        return noted

    def _put_back(self, name: str, before: Any) -> None:
        if isinstance(before, Grown):
            del before.items[before.length :]
            before = before.before
        if before is MISSING:
            self._data.pop(name, None)
        else:
            self._data[name] = before
            if self._given.get(name) == id(before):
                self._rewritten -= {name}

    def _changes(self, noted: Mark) -> Delta:
        puts: dict[str, Any] = {}
        deletes: list[str] = []
        appends: dict[str, list[Any]] = {}
        for name, before in noted.items():
            now = self._data.get(name, MISSING)
            if now is MISSING:
                if (before.before if isinstance(before, Grown) else before) is not MISSING:
                    deletes.append(name)
            elif isinstance(before, Grown) and now is before.items and before.is_prefix_kept():
                appends[name] = now[before.length :]
            else:
                puts[name] = now
        return Delta(puts, deletes, appends)


def _moved(note: Grown, lists: Mapping[int, list[Any]]) -> Grown:
    """Return the note of a mark as it reads in a store whose lists are copies."""
    items, before = lists.get(id(note.items)), note.before
    if items is not None:
        return Grown(items, note.length, items if before is note.items else before)
    return Grown([], 0, note.items[: note.length] if before is note.items else before)


class _Layer(MutableMapping[str, Any]):
    """A mapping over another one: writes stay here, reads fall through."""

    __slots__ = ("_base", "_own")

    def __init__(self, base: Mapping[str, Any]) -> None:
        self._base = base
        self._own: dict[str, Any] = {}

    def raised(self) -> Self:
        """Lay it over the base of its base, if few writes are between them: layers do not pile up in nested groups."""
        base = self._base
        if type(base) is type(self) and len(base._own) <= COPIED:
            self._base, self._own = base._base, dict(base._own)
        return self

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
            if self._own.get(name) is not MISSING:
                yield name
        for name, value in self._own.items():
            if value is not MISSING and name not in self._base:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Watched(Store):
    """A store as middleware of a durable run sees it: the same one, which reports the key of every value that is read."""

    __slots__ = ("on_read",)

    def __init__(self, base: Store, on_read: Callable[[Name], object]) -> None:
        # Called with the key of a value that is read, before it can be changed in place.
        self.on_read: Callable[[Name], object] | None = on_read
        for slot in Store.__slots__:
            setattr(self, slot, getattr(base, slot))

    def report(self, names: Iterable[Name]) -> None:
        """Report the names of values that are read in another way."""
        for name in names:
            cast("Any", self.on_read)(name)

    if not TYPE_CHECKING:  # pragma: no branch - to type checkers, it is that of the store

        def __getitem__(self, key):
            if self.on_read is not None and not (isinstance(key, Key) and key.frozen):
                self.on_read(key_name(key))
            return super().__getitem__(key)


class View(Watched):
    """An action's own view of the store: it sees its own writes, and no other step does until it completes (L4).

    Appending does not copy the list of the store until the view reads it, so that contributing one result costs
    the same however many there are.
    """

    __slots__ = ("_added", "ended")

    def __init__(self, base: Store) -> None:
        self.ended: str | None = None  # the name of its action, once that has ended: it takes no more writes
        self.on_read = None
        self._begin(base, _Layer(base._data))
        self._added: dict[Any, list[Any]] = {}

    def _check_open(self) -> None:
        if self.ended is not None:
            raise ContextEndedError.of(self.ended, "a write to ctx.store")

    def _extend(self, name: str, items: Iterable[Any]) -> None:
        self._check_open()
        if name in self._added:
            self._added[name].extend(items)
        elif name in self._marks[0] or not isinstance(self._data.get(name, []), list):
            super()._extend(name, items)
        else:
            self._added[name] = list(items)

    def _settle(self, *names: object) -> None:
        """Put the items appended under these keys into the view, before they are read or written there."""
        for name in names if self._added else ():
            if name in self._added:
                super()._extend(cast("str", name), self._added.pop(name))

    if not TYPE_CHECKING:  # pragma: no branch

        def __getitem__(self, key):
            self._settle(key_name(key))
            return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (key.name if isinstance(key, Key) else key) in self._added

    def __iter__(self) -> Iterator[str]:
        self._settle(*self._added)
        return super().__iter__()

    def __setitem__(self, key: AnyKey, value: Any) -> None:
        self._check_open()
        self._settle(key_name(key))
        super().__setitem__(key, value)

    def __delitem__(self, key: AnyKey) -> None:
        self._check_open()
        self._settle(key_name(key))
        super().__delitem__(key)

    def delta(self) -> Delta:
        """Return the writes of the action."""
        if not (self._marks[0] or self._added):
            return NOTHING
        delta = self.since(self._marks[0])
        delta.appends.update(self._added)
        return delta
