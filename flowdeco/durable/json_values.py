"""The kinds of values that users define, and of keys, as JSON: dataclasses, enums, named tuples, exceptions."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
from collections.abc import Sequence
from typing import Any, Final, cast

from flowdeco.durable.codec import described_error, remade_exception
from flowdeco.durable.kinds import ZONE, Kind, checked_dict, checked_list, checked_string, of_two
from flowdeco.durable.lookup import class_of, lookup, lookup_class, reference
from flowdeco.durable.notation import Nested, Notation, by_class, is_of
from flowdeco.errors import JournalError, RunError, shortened
from flowdeco.model.keys import Key

__all__ = ["VALUES", "exception_class"]


# Dataclasses, enums, named tuples, exceptions.


def _fields(cls: Any) -> list[str]:
    """Return the fields of a dataclass that consists of nothing else."""
    names = [field.name for field in dataclasses.fields(cls)]
    for base in cls.__mro__:
        if base is not object and base.__module__ == "builtins":
            raise TypeError(f"the dataclass {cls.__qualname__} is a {base.__name__} as well: register it")
        for name in names:
            found = vars(base).get(name)
            if hasattr(class_of(found), "__set__") and not isinstance(found, types.MemberDescriptorType):
                raise TypeError(f"the field {name!r} of {cls.__qualname__} is computed: register the class")
    return names


def _write_object(value: Any) -> list[Any]:
    cls = class_of(value)
    names = _fields(cls)
    rest = {name: part for name, part in getattr(value, "__dict__", {}).items() if name not in names}
    return [reference(cls, "dataclass"), {name: getattr(value, name) for name in names}, *([rest] if rest else ())]


def _read_object(content: Any) -> Any:
    where, fields, *rest = checked_list(content)
    cls = lookup_class(where)
    if not dataclasses.is_dataclass(cls):
        raise JournalError(f"{where} is not a dataclass")
    names = _fields(cls)
    if sorted(checked_dict(fields)) != sorted(names):
        raise JournalError(f"the fields of {where} are {', '.join(names)} now, not {', '.join(fields)}")
    made: Any = object.__new__(cast("type[object]", cls))
    for name in names:
        object.__setattr__(made, name, fields[name])
    if rest:
        made.__dict__.update(checked_dict(rest[0]))
    return made


def _is_named_tuple(cls: Any) -> bool:
    if not (issubclass(type(cls), type) and issubclass(cls, tuple)):
        return False
    names: Any = getattr(cast("Any", cls), "_fields", None)
    return type(names) is tuple and all(type(name) is str for name in cast("tuple[Any, ...]", names))


def _read_named(where: Any, parts: Any) -> Any:
    cls = lookup(where)
    if not _is_named_tuple(cls):
        raise JournalError(f"{where} is not a named tuple")
    if len(checked_list(parts)) != len(cls._fields):
        raise JournalError(f"the fields of {where} are {', '.join(cls._fields)} now: {len(parts)} were written")
    return cast("Any", tuple).__new__(cls, parts)  # not by a `__new__` of the class


def _is_member(value: Any) -> bool:
    return issubclass(type(value), enum.Enum) and class_of(value).__members__.get(value.name) is value


def _read_member(where: Any, name: Any) -> Any:
    members = lookup_class(where, what="an enum", meta=enum.EnumMeta).__members__
    if checked_string(name) not in members:
        raise JournalError(f"the enum {where} has no member {name!r}")
    return members[name]


def _either(one: Any, other: Any) -> Any:
    return one | other


def _flag(cls: Any, names: Sequence[str]) -> Any:
    return functools.reduce(_either, (cls.__members__[name] for name in names), cls(0))


def _write_flag(value: Any) -> list[Any]:
    cls = class_of(value)
    where, names = reference(cls, "enum"), [member.name for member in value]
    if _flag(cls, names) is not value:
        raise TypeError(f"{shortened(value)} is not a combination of members of {where}")
    return [where, names]


def _read_flag(where: Any, names: Any) -> Any:
    cls = lookup_class(where, what="an enum", meta=enum.EnumMeta)
    if not issubclass(cls, enum.Flag):
        raise JournalError(f"{where} is not an enum of flags")
    return _flag(cls, checked_list(names))


def _write_exception(notation: Notation, error: BaseException) -> list[Any]:
    """Write an exception as its class, arguments and attributes; as a string where one of them cannot be written."""
    try:
        where = reference(type(error), "exception")
        return [where, notation.write(list(error.args)), notation.write(dict(error.__dict__))]
    except (TypeError, ValueError, RecursionError):
        described = described_error(error)
        return [None, str(described), getattr(described, "__notes__", [])]


def _read_exception(notation: Notation, node: Any) -> Any:
    where, args, state = checked_list(notation.read(node), 3)
    if where is None:
        described = RunError(checked_string(args))
        for note in checked_list(state):
            described.add_note(checked_string(note))
        return described
    cls = exception_class(where)
    made = (
        cls(*checked_list(args)) if cls.__module__ == "builtins" else remade_exception(cls, tuple(checked_list(args)))
    )
    made.__dict__.update(checked_dict(state))
    return made


def exception_class(where: Any) -> Any:
    return lookup_class(where, BaseException, "an exception class")


# Keys, with their declared types.


def _write_type(declared: Any) -> Any:
    if declared is Any:
        return None
    if declared is None or declared is types.NoneType:
        return "None" if declared is None else "builtins:NoneType"
    if isinstance(declared, types.GenericAlias):
        return {"of": _write_type(declared.__origin__), "args": [_write_type(arg) for arg in declared.__args__]}
    if isinstance(declared, types.UnionType):
        return [_write_type(arg) for arg in declared.__args__]
    if not isinstance(declared, type):
        raise TypeError(f"JSON cannot hold the declared type {declared!r}")
    return reference(cast("Any", declared), "type")


def _read_type(node: Any) -> Any:
    if node is None or node == "None":
        return Any if node is None else None
    if node == "builtins:NoneType":
        return types.NoneType
    if type(node) is list:
        return functools.reduce(_either, map(_read_type, cast("list[Any]", node)))
    if type(node) is dict:
        return types.GenericAlias(lookup_class(node["of"]), tuple(map(_read_type, checked_list(node["args"]))))
    return lookup_class(node)


def _read_key(content: Any) -> Any:
    name, declared, *frozen = checked_list(content)
    return Key(checked_string(name), Any if declared is None else _read_type(declared), frozen=frozen == [True])


# The table.


VALUES: Final[tuple[Kind | Nested, ...]] = (
    Kind("$enum", _is_member, lambda v: [reference(type(v), "enum"), v.name], of_two(_read_member)),
    Kind("$flag", is_of(enum.Enum), _write_flag, of_two(_read_flag)),
    Nested("$exception", is_of(BaseException), _write_exception, _read_exception),
    Kind("$key", is_of(Key), lambda v: [v.name, _write_type(v.type), *[True] * v.frozen], _read_key),
    Kind("$named", by_class(_is_named_tuple), lambda v: [reference(type(v), "named tuple"), [*v]], of_two(_read_named)),
    ZONE,
    Kind("$object", by_class(dataclasses.is_dataclass), _write_object, _read_object),
)
