"""The keys of the store: names, typed keys, and the types that they declare."""

from __future__ import annotations

import sys
import types
from collections.abc import Collection, Iterator, Sequence
from enum import Enum
from typing import (
    IO,
    TYPE_CHECKING,
    Annotated,
    Any,
    BinaryIO,
    Final,
    Generic,
    Literal,
    NewType,
    TextIO,
    TypeAlias,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    overload,
)

from flowdeco.errors import DefinitionError, StoreTypeError, a_type, shortened
from flowdeco.model.sentinels import UNSET
from flowdeco.model.tuples import NamedTuple

if TYPE_CHECKING:
    from typing_extensions import TypeForm

__all__ = ["Key"]

T = TypeVar("T")

_Classes: TypeAlias = "tuple[type, ...] | None"


class Key(Generic[T]):
    """A typed key of the store: `store[Key("user.id", int)]` is an `int`, to type checkers and at run time.

    For a generic type, its origin is checked (for `list[int]`, the list); for a union, its members; for a TypedDict, the
    dict; for a literal, the value. As in the typing rules of numbers, an `int` is accepted where a `float` is declared.

    `frozen` promises that the value is never changed in place: durable runs do not look for changes, which takes a
    millisecond for 10 MB, and lose a change made all the same. Once an action has read or written the value under such a
    key, that holds for all that follow.
    """

    __slots__ = ("_classes", "_options", "frozen", "name", "type")
    name: str
    type: TypeForm[T]
    frozen: bool
    _classes: _Classes  # of its values; None: they are not checked
    _options: tuple[Any, ...]  # values of literals, which are accepted as well

    @overload
    def __init__(self, name: str, type: TypeForm[T], *, frozen: bool = False) -> None: ...
    @overload
    def __init__(self: Key[Any], name: str, *, frozen: bool = False) -> None: ...
    def __init__(self, name: str, type: Any = Any, *, frozen: bool = False) -> None:
        if not isinstance(frozen, bool):
            raise DefinitionError(f"frozen= of the key {key_name(name)!r} is True or False, not {shortened(frozen)}")
        object.__setattr__(self, "name", key_name(name))
        object.__setattr__(self, "frozen", frozen)
        object.__setattr__(self, "type", type)
        classes, options = _runtime_checks(type)
        object.__setattr__(self, "_classes", classes)
        object.__setattr__(self, "_options", options)

    def check(self, value: object) -> None:
        """Raise `StoreTypeError` if the value is not of the declared type."""
        if (
            self._classes is not None
            and not isinstance(value, self._classes)
            and not any(_is_option(value, option) for option in self._options)
        ):
            raise StoreTypeError(
                f"the key {self.name!r} is declared as {type_name(self.type)}, "
                f"but its value is {a_type(value)}: {shortened(value)}"
            )

    # For questions, whose types are kept in journals.

    def described(self) -> str | None:
        """Return the declared type as text, None where any value will do."""
        return None if self._classes is None else type_name(self.type)

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
        declared = "" if self.type is Any else f", {type_name(self.type)}"
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
    raise StoreTypeError(
        f"a key of the store is a non-empty string or a Key, not the {type(key).__name__} {shortened(key)}"
    )


def result_keys(returns: Any) -> tuple[Any, ...]:
    """Return the keys that `returns=` names: one, those of a tuple, or none."""
    if isinstance(returns, tuple):
        return cast("tuple[Any, ...]", returns)
    return () if returns is None or returns is UNSET else (returns,)


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


def _runtime_checks(declared: Any) -> tuple[_Classes, tuple[Any, ...]]:
    """Return the classes by which `isinstance` checks a declared type (None if it cannot), and the values of literals."""
    found: list[type] = []
    options: list[Any] = []
    for member in _members(declared):
        if get_origin(member) is Literal:
            options += get_args(member)
        elif (cls := _class_of(member)) is None:
            return None, ()
        else:
            found += accepted_classes(cls)
    return tuple(found), tuple(options)


def _is_option(value: Any, option: Any) -> bool:
    """Whether a value is that of a literal; True and 1, which are equal, are different ones."""
    return isinstance(value, type(option)) and value == option and isinstance(value, bool) is isinstance(option, bool)


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
            f"{shortened(member)}"
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
            found.append((_reference(cls), *(_references(each, depth + 1) for each in arguments)))
        else:
            found.append(_reference(cls))
    return tuple(found)


def _options(values: Sequence[Any]) -> Iterator[Any]:
    """Yield references to the values of a literal; to the class of a value that JSON does not know."""
    plain = [value for value in values if type(value) in _PLAIN]
    if plain:
        yield ("=", *plain)
    for value in values:
        if type(value) not in _PLAIN:
            where = _reference(type(value))
            yield f"{where}.{value.name}" if isinstance(value, Enum) else where


def _reference(cls: Any) -> str:
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
    """Whether this is a form of `typing` that is not a class; the name of a type, as a string, is not one."""
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


def type_name(annotation: Any) -> str:
    """Return a type as it is written in the source: `Literal['a', 'b']`, `list[date] | None`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_name, arguments))
    if origin is Literal:
        return f"Literal[{', '.join(map(_written, arguments))}]"
    if annotation is types.NoneType or annotation is Ellipsis:
        return "None" if annotation is types.NoneType else "..."
    if isinstance(origin, type) and arguments and not any(isinstance(each, list) for each in arguments):
        return f"{origin.__name__}[{', '.join(map(type_name, arguments))}]"
    is_named = isinstance(annotation, type) or hasattr(annotation, "__supertype__")
    return annotation.__name__ if is_named and origin is None else str(annotation)


def _written(value: Any) -> str:
    return f"{type(value).__name__}.{value.name}" if hasattr(value, "_value_") else repr(value)
