"""The shared state of a run: typed keys, the store, and the changes in it since a given point.

To be able to undo writes, or to describe them, set a *mark*. The store then notes, for each key that changes, its value
before the first change; marks nest. One mechanism serves four purposes: a retry undoes the writes since its mark, an
action's outcome and a branch's overlay are the writes since theirs (`since`), and a view isolates an action by one (L4).
Without a mark, nothing is noted, and a write is as cheap as in a dict.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from enum import Enum
from typing import (
    IO,
    TYPE_CHECKING,
    Annotated,
    Any,
    BinaryIO,
    ClassVar,
    Final,
    Generic,
    Literal,
    NewType,
    Self,
    TextIO,
    TypeAlias,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    overload,
)

from flowdeco.errors import ContextEndedError, DefinitionError, StoreKeyError, StoreTypeError, shortened, suggestion
from flowdeco.model.tuples import NamedTuple

if TYPE_CHECKING:
    from typing_extensions import TypeForm

__all__ = ["Key", "Store"]

T = TypeVar("T")
D = TypeVar("D")

_Classes: TypeAlias = "tuple[type, ...] | None"


class _Missing:
    """The absence of a value; None is a value."""

    def __repr__(self) -> str:
        return "MISSING"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


class Key(Generic[T]):
    """A typed key of the store: `store[Key("user.id", int)]` is an `int`, to type checkers and at run time.

    For a generic type, its origin is checked (for `list[int]`, the list); for a union, its members; for a TypedDict, the
    dict; for a literal, the class. As in the typing rules of numbers, an `int` is accepted where a `float` is declared.

    `frozen` promises that the value is never changed in place: durable runs do not look for changes, which takes a
    millisecond for 10 MB, and lose a change made all the same. Once an action has read or written the value under such a
    key, that holds for all that follow.
    """

    __slots__ = ("_classes", "frozen", "name", "type")
    name: str
    type: TypeForm[T]
    frozen: bool
    _classes: _Classes

    @overload
    def __init__(self, name: str, type: TypeForm[T], *, frozen: bool = False) -> None: ...
    @overload
    def __init__(self: Key[Any], name: str, *, frozen: bool = False) -> None: ...
    def __init__(self, name: str, type: Any = Any, *, frozen: bool = False) -> None:
        object.__setattr__(self, "name", key_name(name))
        object.__setattr__(self, "frozen", frozen)
        object.__setattr__(self, "type", type)
        object.__setattr__(self, "_classes", _runtime_classes(type))

    def check(self, value: object) -> None:
        """Raise `StoreTypeError` if the value is not of the declared type."""
        if self._classes is not None and not isinstance(value, self._classes):
            raise StoreTypeError(
                f"the key {self.name!r} is declared as {_type_name(self.type)}, "
                f"but its value is a {type(value).__name__}: {shortened(value)}"
            )

    # For questions, whose types are kept in journals.

    def described(self) -> str | None:
        """Return the declared type as text, None where any value will do."""
        return None if self._classes is None else _type_name(self.type)

    def references(self) -> tuple[Any, ...] | None:
        """Return the declared type as journals keep it (`type_of`), None where any value will do."""
        return None if self._classes is None else _references(self.type)

    @staticmethod
    def of(name: str, described: str | None, references: Collection[Any] | None) -> Key[Any]:
        """Return a key with the type that is described so; where a class is not loaded, it checks nothing."""
        key: Key[Any] = Key(name, type_of(references))
        if key._classes is not None:
            object.__setattr__(key, "type", described)
        return key

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Key is immutable: cannot set {name!r}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return NotImplemented
        theirs = cast("Key[Any]", other)
        return (self.name, self.type, self.frozen) == (theirs.name, theirs.type, theirs.frozen)

    def __hash__(self) -> int:
        return hash((Key, self.name))

    def __repr__(self) -> str:
        declared = "" if self.type is Any else f", {_type_name(self.type)}"
        return f"Key({self.name!r}{declared}{', frozen=True' if self.frozen else ''})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _key, (self.name, self.type, self.frozen)


def _key(name: str, type: Any, frozen: bool) -> Key[Any]:
    return Key(name, type, frozen=frozen)


AnyKey: TypeAlias = "str | Key[Any]"


class Local(NamedTuple):
    """The key of a result that is local to the open stage: never the key of a user, and never seen by one."""

    name: str


Name: TypeAlias = "str | Local"  # under which the store holds a value


def key_name(key: object) -> str:
    """Return the name under which the store knows this key; keys are non-empty strings and `Key` objects."""
    if isinstance(key, str):
        if key:
            return key
        raise StoreTypeError("a key of the store is a non-empty string, not ''")
    if isinstance(key, Key):
        return cast("Key[Any]", key).name
    raise StoreTypeError(f"a key of the store is a non-empty string or a Key, not the {type(key).__name__} {key!r}")


def is_alias(declared: object) -> bool:
    """Whether this is an alias made by the `type` statement, or by the class in typing_extensions that precedes it."""
    return type(declared).__name__ == "TypeAliasType"


def alias_value(declared: Any) -> Any:
    """Return the value of an alias, with its arguments in the places of its type parameters."""
    alias = declared if is_alias(declared) else get_origin(declared)
    value = alias.__value__
    given = dict(zip(alias.__type_params__, get_args(declared), strict=False))
    wanted = getattr(value, "__parameters__", ())
    return value[tuple(given.get(parameter, parameter) for parameter in wanted)] if given and wanted else value


def _runtime_classes(declared: Any) -> _Classes:
    """Return the classes by which `isinstance` checks a declared type; None if it cannot."""
    found: list[type] = []
    for member in _members(declared):
        cls = _class_of(member)
        if get_origin(member) is Literal:
            found += map(type, get_args(member))
        elif cls is None:
            return None
        else:
            found += accepted_classes(cls)
    return tuple(found)


def _members(declared: Any) -> list[Any]:
    """Return the members of a type, each without aliases and annotations; `Any` for one that only a type checker knows."""
    origin = get_origin(declared)
    if is_alias(declared) or is_alias(origin):
        try:
            value = alias_value(declared)
        except NameError:  # of a name for the type checker
            return [Any]
        return [Any] if isinstance(value, str) else _members(value)
    if origin is Annotated:
        return _members(get_args(declared)[0])
    if origin is Union or origin is types.UnionType:
        return [each for member in get_args(declared) for each in _members(member)]
    if isinstance(declared, NewType):
        return _members(declared.__supertype__)
    return [types.NoneType if declared is None else declared]


def _class_of(member: Any) -> type | None:
    """Return the class of which the values of a type are instances; None if there is none, or it is not known."""
    cls = get_origin(member) or member
    if not (isinstance(cls, type) or _is_form(cls)):
        raise DefinitionError(
            f"the type of a key, or of an answer, is a type, such as int or list[str], not the {type(member).__name__} "
            f"{member!r}"
        )
    if not isinstance(cls, type) or cls in (Any, IO, BinaryIO, TextIO):  # no file is an instance of the last three
        return None
    try:
        isinstance(None, cls)
    except TypeError:  # as a protocol does, and a TypedDict: its values are dicts
        return dict if dict in cls.__mro__ else None
    return cls


def _references(declared: Any, depth: int = 0) -> tuple[Any, ...] | None:
    if depth == _DEEPEST:
        return None
    found: list[Any] = []
    for member in _members(declared):
        cls, arguments = _class_of(member), get_args(member)
        if get_origin(member) is Literal:
            found += _options(arguments)
        elif cls is None:
            return None
        elif cls in _WITH_ITEMS and arguments:
            found.append((_place(cls), *(_references(each, depth + 1) for each in arguments)))
        else:
            found.append(_place(cls))
    return tuple(found)


def _options(values: Sequence[Any]) -> Iterator[Any]:
    """Yield references to the values of a literal; to the class of a value that JSON does not know."""
    plain = [value for value in values if type(value) in _PLAIN]
    if plain:
        yield ("=", *plain)
    for value in values:
        if type(value) not in _PLAIN:
            where = _place(type(value))
            yield f"{where}.{value.name}" if isinstance(value, Enum) else where


def _place(cls: Any) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


_DEEPEST: Final = 9  # levels of items: an alias may contain itself
_PLAIN: Final = (str, int, bool, types.NoneType)
_WITH_ITEMS: Final[tuple[Any, ...]] = (list, dict)  # types whose arguments are kept


def type_of(references: Any) -> Any:
    """Return a type that is kept as a list of its members; `Any` if a class is not loaded, or this is no such list.

    A member is `module:qualname` of a class or of the member of an enum, `("=", value, ...)` of a literal, or, for lists and
    dicts, `(module:qualname, type, ...)`, where an argument is again a type, or None.
    """
    found: list[Any] = []
    try:
        for member in references or ():
            where, *arguments = (member,) if isinstance(member, str) else member
            kind: Any = Literal[tuple(arguments)] if where == "=" else _loaded(where)
            if kind is None:
                return Any
            found.append(kind[tuple(map(type_of, arguments))] if kind in _WITH_ITEMS and arguments else kind)
    except (AttributeError, TypeError, ValueError):
        return Any
    return cast("Any", Union)[tuple(found)] if found else Any


def _is_form(declared: Any) -> bool:
    """Whether this is a form of `typing` that is not a class; the name of a type, as a string, is none."""
    made_by = declared.__class__
    return made_by.__module__ in ("typing", "typing_extensions") and made_by.__name__ != "ForwardRef"


def accepted_classes(declared: type) -> tuple[type, ...]:
    """Return the classes whose values pass for one that is declared: an `int` is a `float`, too (PEP 484)."""
    return {float: (float, int), complex: (complex, float, int)}.get(declared, (declared,))


def _loaded(reference: str) -> Any:
    """Return the class at `module:qualname`, or the literal of an enum's member; None if no loaded module has it."""
    module, _, qualname = reference.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None) if part != "NoneType" else types.NoneType
    return Literal[found] if isinstance(found, Enum) else found if isinstance(found, type) else None


def _type_name(declared: Any) -> str:
    return declared.__name__ if isinstance(declared, type) and not get_args(declared) else str(declared)


class _Grown(NamedTuple):
    """The note of a mark about a list that the store has appended to in place.

    With an empty list of its own, it notes any value as one object, which tells notes of the same value apart.
    """

    items: list[Any]
    length: int
    before: Any


class Mark(dict[Any, Any]):
    """A point in the life of a store: for each key that has changed since, the value before its first change.

    Compared by identity: two marks with the same notes are different marks. One of a resumed run has the notes of an earlier
    mark, which enclosing marks have as well.
    """

    __slots__ = ()
    is_continued: ClassVar = False
    __hash__ = object.__hash__  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def adopt(self, later: Mapping[str, Any]) -> None:
        """Add the notes of a later mark: for a key that both have noted, the earlier note counts."""
        for name, before in later.items():
            self.setdefault(name, before)

    def share(self, later: Mark) -> None:
        """Add the notes of a later mark, so that both have the same object for a key that only that one had noted."""
        for name, before in later.items():
            if name not in self:
                self[name] = later[name] = before if isinstance(before, _Grown) else _Grown([], 0, before)

    def continue_from(self, earlier: Mapping[str, Any]) -> None:
        """Take the notes of an earlier mark, whose place this one takes in a resumed run."""
        self.update(earlier)
        self.__class__ = _Continued  # pyright: ignore[reportAttributeAccessIssue]

    def drop(self, undone: Mapping[str, Any]) -> None:
        """Drop the notes that were those of a mark that was undone: nothing has changed since."""
        for name, before in undone.items():
            if isinstance(before, _Grown) and self.get(name) is before:
                del self[name]


class _Continued(Mark):
    """A mark that has taken the notes of an earlier one: a class of its own, so that no other mark pays for an attribute."""

    __slots__ = ()
    is_continued = True


_UNCHANGED: Final[Mapping[Any, Any]] = {}


class Delta(NamedTuple):
    """The writes to a store: whole values, removed keys, and the items appended to lists.

    `changes` are not writes, and there for the journal: values that were changed in place, as they were before anything was
    appended to them. `order` is their place among the rows of a run.
    """

    puts: dict[Any, Any]  # by `Name`
    deletes: list[str]
    appends: dict[str, list[Any]]
    changes: Mapping[Any, Any] = _UNCHANGED
    order: int = 0

    def keys(self) -> set[str]:
        """Return the keys that were written."""
        return {*self.puts, *self.deletes, *self.appends}

    def without(self, keys: Collection[str]) -> Delta:
        """Return the writes to all other keys."""
        return Delta(
            {name: value for name, value in self.puts.items() if name not in keys},
            [name for name in self.deletes if name not in keys],
            {name: items for name, items in self.appends.items() if name not in keys},
            {name: value for name, value in self.changes.items() if name not in keys},
            self.order,
        )


NOTHING: Final = Delta({}, [], {})
_MOST_DROPPED: Final = 10_000  # names that are remembered
COPIED: Final = 64  # values: up to here a copy costs a branch no more than a layer


class Store(MutableMapping[str, Any]):
    """The key-value state of a run: keys are non-empty strings, dotted by convention, or typed `Key` objects.

    Values are taken by reference. A missing key raises `StoreKeyError`, a `KeyError` that names close matches; a value
    that is not of the type of its `Key` raises `StoreTypeError`, on writing and on reading.
    """

    __slots__ = ("_data", "_dropped", "_given", "_marks", "_owned", "_rewritten")
    _data: MutableMapping[Any, Any]
    _repr_html_: ClassVar[Callable[[Any], str]]  # for notebooks, set by `runnable`

    def __init__(self, mapping: Mapping[str, Any] | None = None) -> None:
        self._data = {}
        self._dropped: dict[str, str] = {}  # names of results that were local, each with its stage; "" for deleted keys
        self._owned: dict[Name, list[Any]] = {}  # lists that the store has made, and may append to in place
        self._marks: list[Mark] = []
        self._given: Mapping[Name, int] = {}  # inputs and answers: by name, the `id` of the value
        self._rewritten: set[Name] = set()  # those of them that were written since
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
        name = key_name(key)
        if isinstance(key, Key):
            key.check(value)
        if self._marks:
            self._note(name, self._data.get(name, MISSING))
        if name in self._given:
            self._rewritten.add(name)
        self._data[name] = value

    def __delitem__(self, key: AnyKey) -> None:
        name = key_name(key)
        if name not in self._data:
            raise self._missing(name)
        if self._marks:
            self._note(name, self._data[name])
        del self._data[name]
        if len(self._dropped) < _MOST_DROPPED:
            self._dropped[name] = ""

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
                raise StoreTypeError(
                    f"cannot append to the key {name!r}: it holds a {type(before).__name__}, not a list"
                )
            target = [] if before is MISSING else list(cast("list[Any]", before))
        if self._marks:
            self._note(name, _Grown(target, len(target), before))
        if name in self._given:
            self._rewritten.add(name)
        self._owned[name] = self._data[name] = target
        target.extend(items)

    def _note(self, name: Name, before: Any) -> None:
        owned = self._owned.get(name)
        if owned is not None and owned is before:  # it may be written back, and grow
            before = _Grown(owned, len(owned), owned)
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
        if name in self._dropped:
            return f"It was local to stage {self._dropped[name]!r}: write returns={name!r} there to share it"
        return suggestion(name, self if known is None else known)

    def drop_local(self, names: Iterable[str], stage: str) -> None:
        """Remove the local results of a stage that has ended."""
        for name in names:
            self._dropped[name] = stage
            key = Local(name)
            if key in self._data:
                if self._marks:
                    self._note(key, self._data[key])
                del self._data[key]

    def dropped(self) -> dict[str, str]:
        """Return the names of results that were local to stages, each with its stage."""
        return {name: stage for name, stage in self._dropped.items() if stage}

    def was_deleted(self, name: str) -> bool:
        """Whether the store had the key, and an action or middleware deleted it."""
        return self._dropped.get(name) == ""

    def know_local(self, names: Iterable[str], dropped: Mapping[str, str]) -> None:
        """Give advice about these names as another store does, without the values of its local results."""
        self._data.update((Local(name), None) for name in names)
        self._dropped.update(dropped)

    def local_names(self) -> list[str]:
        """Return the names of the local results of the open stage."""
        return [key.name for key in self._data if type(key) is Local]

    def put(self, name: Name, value: Any) -> None:
        """Write under a name that has been checked."""
        if self._marks:
            self._note(name, self._data.get(name, MISSING))
        if name in self._given:
            self._rewritten.add(name)
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

    def _note_undone(self, marks: list[Mark], names: Iterable[str]) -> None:
        """Have marks note the keys to be undone: they report these as written."""
        for mark in marks:
            for name in names:
                before = mark.get(name, self._data.get(name, MISSING))
                mark[name] = _moved(before, {}) if isinstance(before, _Grown) else before
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
            held[:] = value
        else:
            held.clear()
            held.update(value)

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
        fork, data = Store.__new__(Store), self._data
        is_small = type(data) is not _Layer and len(data) <= COPIED
        fork._data = dict(data) if is_small else _Layer(data).raised()
        fork._dropped, fork._owned, fork._marks = self._dropped, {}, [Mark()]
        fork._given, fork._rewritten = self._given, set(self._rewritten)
        return fork

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
        twin = Store()
        twin._dropped, twin._given, twin._rewritten = self._dropped, self._given, set(self._rewritten)
        lists: dict[int, list[Any]] = {}
        twin._data = dict(self._data)
        for name, owned in self._owned.items():
            if self._data.get(name) is owned:
                lists[id(owned)] = twin._data[name] = twin._owned[name] = list(owned)

        moved: dict[int, _Grown] = {}  # marks that have the same note do so in the twin

        def note(before: Any) -> Any:
            return moved.setdefault(id(before), _moved(before, lists)) if isinstance(before, _Grown) else before

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
        self._rewritten.difference_update(names)

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
        if isinstance(before, _Grown):
            del before.items[before.length :]
            before = before.before
        if before is MISSING:
            self._data.pop(name, None)
        else:
            self._data[name] = before
            if self._given.get(name) == id(before):
                self._rewritten.discard(name)

    def _changes(self, noted: Mark) -> Delta:
        puts: dict[str, Any] = {}
        deletes: list[str] = []
        appends: dict[str, list[Any]] = {}
        for name, before in noted.items():
            now = self._data.get(name, MISSING)
            if now is MISSING:
                if (before.before if isinstance(before, _Grown) else before) is not MISSING:
                    deletes.append(name)
            elif isinstance(before, _Grown) and now is before.items:
                appends[name] = now[before.length :]
            else:
                puts[name] = now
        return Delta(puts, deletes, appends)


def _moved(note: _Grown, lists: Mapping[int, list[Any]]) -> _Grown:
    """Return the note of a mark as it reads in a store whose lists are copies."""
    items, before = lists.get(id(note.items)), note.before
    if items is not None:
        return _Grown(items, note.length, items if before is note.items else before)
    return _Grown([], 0, note.items[: note.length] if before is note.items else before)


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
            if self._own.get(name, name) is not MISSING:
                yield name
        for name, value in self._own.items():
            if value is not MISSING and name not in self._base:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)


class View(Store):
    """An action's own view of the store: it sees its own writes, and no other step does until it completes (L4).

    Appending does not copy the list of the store until the view reads it, so that contributing one result costs
    the same however many there are.
    """

    __slots__ = ("_added", "ended", "on_read")

    def __init__(self, base: Store) -> None:
        self.ended: str | None = None  # the name of its action, once that has ended: it takes no more writes
        # Called with the key of a value that is read, before it can be changed in place.
        self.on_read: Callable[[str], object] | None = None
        self._data, self._dropped = _Layer(base._data), base._dropped
        self._given, self._rewritten = base._given, set(base._rewritten)
        self._owned = {}
        self._marks = [Mark()]
        self._added: dict[str, list[Any]] = {}

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

    def _settle(self, names: Iterable[object]) -> None:
        """Put the items appended under these keys into the view, before they are read or written there."""
        for name in [name for name in names if name in self._added]:
            super()._extend(cast("str", name), self._added.pop(cast("str", name)))

    @overload
    def __getitem__(self, key: Key[T]) -> T: ...
    @overload
    def __getitem__(self, key: str) -> Any: ...
    def __getitem__(self, key: AnyKey) -> Any:
        name = key_name(key)
        self._settle((name,))
        if self.on_read is not None and not (isinstance(key, Key) and key.frozen):
            self.on_read(name)
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
        self._check_open()
        self._settle((key_name(key),))
        super().__setitem__(key, value)

    def __delitem__(self, key: AnyKey) -> None:
        self._check_open()
        self._settle((key_name(key),))
        super().__delitem__(key)

    def delta(self) -> Delta:
        """Return the writes of the action."""
        if not (self._marks[0] or self._added):
            return NOTHING
        delta = self.since(self._marks[0])
        delta.appends.update(self._added)
        return delta


class Watched(Store):
    """A store as middleware of a durable run sees it: the same one, which reports the key of every value that is read."""

    __slots__ = ("_on_read",)

    def __init__(self, base: Store, on_read: Callable[[Name], object]) -> None:
        self._data, self._dropped, self._owned, self._marks = base._data, base._dropped, base._owned, base._marks
        self._given, self._rewritten = base._given, base._rewritten
        self._on_read = on_read

    def report(self, names: Iterable[Name]) -> None:
        """Report the names of values that are read in another way."""
        for name in names:
            self._on_read(name)

    @overload
    def __getitem__(self, key: Key[T]) -> T: ...
    @overload
    def __getitem__(self, key: str) -> Any: ...
    def __getitem__(self, key: AnyKey) -> Any:
        if not (isinstance(key, Key) and key.frozen):
            self._on_read(key_name(key))
        return super().__getitem__(key)
