"""Values as JSON that anybody can read, and that runs no code of whoever wrote the file.

JSON's own values are themselves; everything else is an object of one key, `{"$tag": ...}`. What refers to the program
(classes, definitions, stream functions) does so by `module:qualname`, is looked up among the modules that are loaded
already, without touching attributes of instances, and must be what its tag says: a dataclass, an enum, a template. To
read a value, nothing is imported, and nothing is called but templates, the functions of registered types, and the
constructors in the table below. No `__init__` runs.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import functools
import inspect
import json
import operator
import pathlib
import sys
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, Self, TypeAlias, TypeVar, cast
from uuid import UUID

from flowdeco.durable.codec import remade_exception, told_error, unserialisable
from flowdeco.errors import JournalError, RunError
from flowdeco.middleware import _Recover, _Retry, recover, retry
from flowdeco.model.declare import StageTemplate
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, Stream
from flowdeco.model.options import UNSET
from flowdeco.model.paths import items
from flowdeco.model.references import Called, Changed, Imported, Member, Method, Narrowed
from flowdeco.model.store import MISSING, Key

__all__ = ["JsonCodec"]

T = TypeVar("T")

_ITSELF: Final = frozenset({str, bool, types.NoneType})
_BIG: Final = 1 << 1024  # an int of more digits is written in hexadecimal: Python refuses long decimal ones
_CONSTANTS: Final = {"UNSET": UNSET, "MISSING": MISSING, "Ellipsis": ...}
_REDUCERS: Final[dict[str, Any]] = {
    "max": max,
    "min": min,
    **{name: getattr(operator, name) for name in ("add", "mul", "and_", "or_", "xor", "concat")},
}


_Type: TypeAlias = tuple[str, Callable[[Any], Any], Callable[[Any], Any]]  # its tag, how it is written, and read back


class JsonCodec:
    """JSON; types round-trip exactly: what is of the standard library, dataclasses, enums, named tuples, definitions.

    Other types are registered, with a function that makes of a value what JSON knows (or the codec), and one back.
    Functions that a journal may refer to, as sources of streams or reducers of parallel groups, are allowed by
    `allow`; generator functions at the top of loaded modules, other than the standard library's, are as they are.
    """

    name = "json"

    def __init__(self) -> None:
        self._types: dict[Any, _Type] = dict(_TYPES)
        self._tags = {tag: read for tag, _, read in _TYPES.values()}
        self._registered: dict[str, Callable[[Any], Any]] = {}
        self._allowed: dict[str, Callable[..., Any]] = {}
        self._readers: dict[str, Callable[[Any], Any]] = {
            "$dict": self._read_pairs,
            "$tuple": lambda items: tuple(map(self._read, _list(items))),
            "$set": lambda items: set(map(self._read, _list(items))),
            "$frozenset": lambda items: frozenset(map(self._read, _list(items))),
            "$int": lambda digits: int(_text(digits), 16),
            "$float": lambda text: float(_text(text)),
            "$zone": _zone_read,
            "$value": self._read_registered,
            "$enum": _read_enum,
            "$flag": _read_flag,
            "$object": self._read_object,
            "$named": self._read_named,
            "$exception": self._read_exception,
            "$key": self._read_key,
            "$action": lambda where: _definition(where, Action),
            "$stage": lambda where: _definition(where, Stage),
            "$method": self._read_method,
            "$member": self._read_member,
            "$narrowed": self._read_narrowed,
            "$call": self._read_call,
            "$changed": self._read_changed,
            "$bound": self._read_bound,
            "$made": self._read_made,
            "$stream": self._read_stream,
        }

    def register(self, cls: type[T], write: Callable[[T], Any], read: Callable[[Any], T]) -> Self:
        """Have values of exactly this class written and read by these functions; returns the codec."""
        name = f"{cls.__module__}:{cls.__qualname__}"
        self._registered[name] = read

        def written(value: Any) -> list[Any]:
            return [name, write(value)]

        self._types[cls] = "$value", written, self._read_registered
        return self

    def allow(self, *functions: Callable[..., Any]) -> Self:
        """Let journals refer to these functions; returns the codec."""
        for function in functions:
            self._allowed[_place(function)] = function
        return self

    def encode(self, value: Any, what: str) -> bytes:
        """Return the value as bytes; raises `SerializationError` naming `what` and the path of the part that cannot."""
        try:
            return self._dumped(value)
        except Exception as error:
            raise unserialisable(value, what, self._dumped, error, parts=_parts) from error

    def decode(self, payload: bytes) -> Any:
        """Return the value; raises `JournalError` if the payload is damaged, or refers to what is not there."""
        try:
            return self._read(json.loads(payload.decode("utf-8", "surrogatepass"), parse_constant=_refuse_constant))
        except JournalError as error:
            raise JournalError(f"a value of this run cannot be read back: {error}") from error
        except Exception as error:
            raise JournalError(f"a value of this run cannot be read back: {type(error).__name__}: {error}") from error

    # Writing.

    def _dumped(self, value: Any) -> bytes:
        text = json.dumps(self._write(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "surrogatepass")

    def _write(self, value: Any) -> Any:
        cls = _class_of(value)
        if cls in _ITSELF:
            return value
        if cls is int:
            return value if -_BIG < value < _BIG else {"$int": hex(value)}
        if cls is list:
            return [self._write(item) for item in value]
        if cls is dict:
            if all(type(key) is str and not key.startswith("$") for key in value):
                return {key: self._write(item) for key, item in value.items()}
            return {"$dict": [[self._write(key), self._write(item)] for key, item in value.items()]}
        if cls is float:
            return value if value - value == 0 else {"$float": repr(value)}
        if cls in _COLLECTIONS:
            return {_COLLECTIONS[cls]: [self._write(item) for item in value]}
        found = self._types.get(cls)
        if found is not None:
            tag, write, _ = found
            return {tag: self._write(write(value))}
        for kind, writer in _KINDS:
            if issubclass(cls, kind):
                return writer(self, value)
        raise TypeError(self._refusal(value))

    def _refusal(self, value: Any) -> str:
        cls = _class_of(value)
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
            return f"JSON cannot hold the {cls.__name__} {value.__qualname__}: functions and classes are no data"
        name = cls.__qualname__
        other = "" if cls.__module__.partition(".")[0] in sys.stdlib_module_names else ", or make it a dataclass"
        return f"JSON cannot hold a {name}: register it, codec.register({name}, write, read){other}"

    def _write_enum(self, value: Any) -> Any:
        cls = _class_of(value)
        where = _reference(cls, "enum")
        if cls._member_map_.get(value.name) is value:
            return {"$enum": [where, value.name]}
        names = [member.name for member in value]
        if _flag(cls, names) is not value:
            raise TypeError(f"{value!r} is no combination of the members of {where}")
        return {"$flag": [where, names]}

    def _write_object(self, value: Any) -> Any:
        if not dataclasses.is_dataclass(value):
            raise TypeError(self._refusal(value))
        cls = _class_of(value)
        names = _fields(cls)
        where = _reference(cls, "dataclass")
        fields = {name: self._write(getattr(value, name)) for name in names}
        rest = {name: self._write(part) for name, part in getattr(value, "__dict__", {}).items() if name not in fields}
        return {"$object": [where, fields, rest] if rest else [where, fields]}

    def _write_tuple(self, value: Any) -> Any:
        cls = _class_of(value)
        if not _is_named_tuple(cls):
            raise TypeError(self._refusal(value))
        return {"$named": [_reference(cls, "named tuple"), [self._write(item) for item in value]]}

    def _write_exception(self, value: Any) -> Any:
        """Write an exception as its class, arguments and attributes; as a text where one of them cannot be written."""
        try:
            where = _reference(type(value), "exception")
            said = [where, self._write(list(value.args)), self._write(dict(value.__dict__))]
        except (TypeError, ValueError, RecursionError):
            told = told_error(value)
            said = [None, str(told), getattr(told, "__notes__", [])]
        return {"$exception": said}

    def _write_key(self, value: Any) -> Any:
        return {"$key": [value.name, _type_written(value.type)]}

    def _write_action(self, value: Any) -> Any:
        if value._self_origin is not None:
            return self._write_origin(value._self_origin)
        where = _place(value.__wrapped__)
        if _found(where) != value:
            raise TypeError(
                f"action {value.name!r} cannot be referred to: {where} is not this action. "
                f"Declare it with @action at module level"
            )
        return {"$action": where}

    def _write_stage(self, value: Any) -> Any:
        origin: Any = value._origin
        if isinstance(origin, Imported) and _found(f"{origin.module}:{origin.qualname}") != value:
            raise TypeError(
                f"stage {value.name!r} cannot be referred to: {origin.module}:{origin.qualname} is not this stage. "
                f"Declare it at module level, or make it a stage template there"
            )
        if origin is not None:
            return self._write_origin(origin)
        actions = [self._write(action) for action in value._actions]
        return {"$made": ["Stage", actions, self._write_changes(value._options())]}

    def _write_origin(self, origin: Any) -> Any:
        if isinstance(origin, Imported):
            return {"$stage": f"{origin.module}:{origin.qualname}"}
        if isinstance(origin, Called):
            where = _reference(origin.template, "stage template")
            return {"$call": [where, self._write(list(origin.args)), self._write(origin.kwargs)]}
        if isinstance(origin, Member):
            return {"$member": [self._write_origin(origin.stage), origin.position]}
        base = self._write(origin.base)
        if isinstance(origin, Changed):
            return {"$changed": [base, self._write_changes(origin.changes)]}
        if isinstance(origin, Narrowed):
            return {"$narrowed": [base, list(origin.places)]}
        if isinstance(origin, Method):
            return {"$method": [base, self._write(origin.instance)]}
        return {"$bound": [base, self._write(origin.values)]}

    def _write_group(self, value: Any) -> Any:
        parts = [self._write(unit) for unit in value.units]
        return {"$made": [type(value).__name__, parts, self._write_changes(value._options)]}

    def _write_changes(self, changes: Mapping[str, Any]) -> Any:
        return {name: self._write_option(name, value) for name, value in changes.items()}

    def _write_option(self, name: str, value: Any) -> Any:
        if name in _LAYERS:
            return [self._write_layer(layer) for layer in value]
        if name == "merge":
            return {key: self._write_fold(fold) for key, fold in value.items()}
        return self._write(value)

    def _write_layer(self, layer: Any) -> Any:
        if isinstance(layer, (_Retry, _Recover)):
            name = "retry" if isinstance(layer, _Retry) else "recover"
            return [name, [], {option: self._write_argument(value) for option, value in layer._asdict().items()}]
        if not isinstance(layer, functools.partial):
            return self._write_function(layer)
        partial = cast("functools.partial[Any]", layer)
        args = [self._write_argument(arg) for arg in partial.args]
        kwargs = {name: self._write_argument(arg) for name, arg in partial.keywords.items()}
        return [self._write_function(partial.func), args, kwargs]

    def _write_argument(self, value: Any) -> Any:
        """Write an argument of a middleware, which may be exception classes, as those of `retry`."""
        if isinstance(value, type):
            return {"$class": _reference(value, "exception")}
        if type(value) is tuple and value and all(isinstance(cls, type) for cls in cast("tuple[Any, ...]", value)):
            return {"$classes": [_reference(cls, "exception") for cls in cast("tuple[Any, ...]", value)]}
        return self._write(value)

    def _write_fold(self, fold: Any) -> str:
        known = next((name for name, reducer in _REDUCERS.items() if reducer is fold), None)
        return self._write_function(fold) if known is None else known

    def _write_function(self, function: Any) -> str:
        where = _place(function)
        if "<locals>" in where or "<lambda>" in where:
            raise TypeError(f"{where} cannot be referred to: define it by `def` at module level")
        if self._function(where) is not function:
            raise TypeError(f"{where} is another function now: define it once, at module level")
        return where

    def _write_stream(self, value: Any) -> Any:
        source: Any = value.source
        if not callable(source):
            raise TypeError(f"a {value.name} cannot be asked again on a resume: write stream(function, *args)")
        where = self._write(source) if isinstance(source, Action) else self._write_function(source)
        return {"$stream": [where, [self._write(arg) for arg in value.args]]}

    def _function(self, where: str) -> Any:
        """Return a function that the codec was told of, or a generator function of the program."""
        allowed = self._allowed.get(where)
        if allowed is not None:
            return allowed
        found = _lookup(where)
        module = where.partition(":")[0]
        if type(found) is types.FunctionType and found.__module__ == module:
            ours = module.partition(".")[0] not in sys.stdlib_module_names
            if ours and (inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found)):
                return found
            if ours:
                name = found.__name__
                raise JournalError(f"JSON refers to generator functions, and {where} is none: codec.allow({name})")
        raise JournalError(f"no loaded module has a generator function {where}")

    # Reading.

    def _read(self, node: Any) -> Any:
        if type(node) is list:
            return [self._read(item) for item in cast("list[Any]", node)]
        if type(node) is not dict:
            return node
        found = cast("dict[str, Any]", node)
        for key in found:
            if key.startswith("$"):
                break
        else:
            return {key: self._read(item) for key, item in found.items()}
        if len(found) != 1:
            raise JournalError(f"the tag {key!r} stands among other keys")
        reader = self._readers.get(key)
        if reader is not None:
            return reader(found[key])
        read = self._tags.get(key)
        if read is None:
            raise JournalError(f"the tag {key!r} is unknown")
        return read(self._read(found[key]))

    def _read_pairs(self, node: Any) -> Any:
        pairs = (_list(pair, 2) for pair in _list(node))
        return {self._read(key): self._read(value) for key, value in pairs}

    def _read_registered(self, node: Any) -> Any:
        name, value = _list(node, 2)
        read = self._registered.get(_text(name))
        if read is None:
            raise JournalError(
                f"the type {name} is not registered: codec.register({name.rpartition(':')[2]}, write, read)"
            )
        return read(self._read(value))

    def _read_object(self, node: Any) -> Any:
        where, fields, *rest = _list(node)
        cls = _class(where)
        if not _is_dataclass(cls):
            raise JournalError(f"{where} is no dataclass")
        names = _fields(cls)
        if sorted(_dict(fields)) != sorted(names):
            raise JournalError(f"the fields of {where} are {', '.join(names)} now, not {', '.join(fields)}")
        made: Any = object.__new__(cls)
        for name in names:
            object.__setattr__(made, name, self._read(fields[name]))
        for name, value in _dict(rest[0]).items() if rest else ():
            made.__dict__[name] = self._read(value)
        return made

    def _read_named(self, node: Any) -> Any:
        where, items = _list(node, 2)
        cls = _lookup(where)
        if not _is_named_tuple(cls):
            raise JournalError(f"{where} is no named tuple")
        if len(_list(items)) != len(cls._fields):
            raise JournalError(f"the fields of {where} are {', '.join(cls._fields)} now: {len(items)} were written")
        return cast("Any", tuple).__new__(cls, map(self._read, items))  # not by what the class may call `__new__`

    def _read_exception(self, node: Any) -> Any:
        where, args, state = _list(node, 3)
        if where is None:
            told = RunError(_text(args))
            for note in _list(state):
                told.add_note(_text(note))
            return told
        cls = _exception_class(where)
        values = tuple(map(self._read, _list(args)))
        made = cls(*values) if cls.__module__ == "builtins" else remade_exception(cls, values)
        made.__dict__.update(self._read(_dict(state)))
        return made

    def _read_key(self, node: Any) -> Any:
        name, declared = _list(node, 2)
        return Key(_text(name)) if declared is None else Key(_text(name), _type_read(declared))

    def _read_method(self, node: Any) -> Any:
        base, owner = _list(node, 2)
        found, instance = _unit(self._read(base), Action), self._read(owner)
        return found.__get__(instance, type(instance))

    def _read_member(self, node: Any) -> Any:
        stage, position = _list(node, 2)
        found = _unit(self._read(stage), Stage)
        return found._actions[_index(position, found)]

    def _read_narrowed(self, node: Any) -> Any:
        stage, places = _list(node, 2)
        found = _unit(self._read(stage), Stage)
        return found._narrowed(tuple(_index(place, found) for place in _list(places)))

    def _read_call(self, node: Any) -> Any:
        where, args, kwargs = _list(node, 3)
        template = _definition(where, StageTemplate)
        return template(*[self._read(arg) for arg in _list(args)], **self._read_dict(kwargs))

    def _read_changed(self, node: Any) -> Any:
        base, changes = _list(node, 2)
        return _unit(self._read(base), (Action, Stage)).with_options(**self._read_changes(changes))

    def _read_bound(self, node: Any) -> Any:
        base, values = _list(node, 2)
        return _unit(self._read(base), Action).bind(**self._read_dict(values))

    def _read_made(self, node: Any) -> Any:
        name, parts, options = _list(node, 3)
        units = [_unit(self._read(part), _UNITS) for part in _list(parts)]
        given = self._read_changes(options)
        if name == "Stage":
            return Stage(actions=[_unit(unit, Action) for unit in units], **given)
        cls: Any = {"Pipeline": Pipeline, "Parallel": Parallel}[name]
        if not given.keys() <= cls._DEFAULTS.keys():
            raise JournalError(f"a {name} has no options {', '.join(given.keys() - cls._DEFAULTS.keys())}")
        return cls(units, **given)

    def _read_dict(self, node: Any) -> dict[str, Any]:
        found = self._read(_dict(node))
        if type(found) is not dict or not all(type(name) is str for name in cast("dict[Any, Any]", found)):
            raise JournalError("a mapping of names is something else")
        return cast("dict[str, Any]", found)

    def _read_changes(self, node: Any) -> dict[str, Any]:
        return {name: self._read_option(name, value) for name, value in _dict(node).items()}

    def _read_option(self, name: str, node: Any) -> Any:
        if name in _LAYERS:
            return [self._read_layer(layer) for layer in _list(node)]
        if name == "merge":
            return {key: _REDUCERS.get(_text(fold)) or self._function(fold) for key, fold in _dict(node).items()}
        return self._read(node)

    def _read_layer(self, node: Any) -> Any:
        if type(node) is str:
            return self._function(node)
        where, args, kwargs = _list(node, 3)
        given = {name: self._read_argument(arg) for name, arg in _dict(kwargs).items()}
        if where in ("retry", "recover"):
            return (retry if where == "retry" else recover)(**given)
        return functools.partial(self._function(_text(where)), *map(self._read_argument, _list(args)), **given)

    def _read_argument(self, node: Any) -> Any:
        if type(node) is dict and len(cast("dict[str, Any]", node)) == 1:
            if "$class" in node:
                return _exception_class(node["$class"])
            if "$classes" in node:
                return tuple(map(_exception_class, _list(node["$classes"])))
        return self._read(node)

    def _read_stream(self, node: Any) -> Any:
        source, args = _list(node, 2)
        function = self._function(source) if type(source) is str else _unit(self._read(source), Action)
        return Stream(function, tuple(map(self._read, _list(args))))


_LAYERS: Final = frozenset({"use", "use_stages", "use_actions"})
_UNITS: Final = (Action, Stage, Pipeline, Parallel)
_COLLECTIONS: Final[dict[type, str]] = {tuple: "$tuple", set: "$set", frozenset: "$frozenset"}

# What the encoder asks of a value that is of no type in the table below, in this order.
_KINDS: Final[tuple[tuple[type, Callable[[JsonCodec, Any], Any]], ...]] = (
    (enum.Enum, JsonCodec._write_enum),
    (BaseException, JsonCodec._write_exception),
    (Key, JsonCodec._write_key),
    (Action, JsonCodec._write_action),
    (Stage, JsonCodec._write_stage),
    (Pipeline, JsonCodec._write_group),
    (Parallel, JsonCodec._write_group),
    (Stream, JsonCodec._write_stream),
    (tuple, JsonCodec._write_tuple),
    (tzinfo, lambda _, zone: _zone_written(zone)),
    (object, JsonCodec._write_object),
)


# What a file may refer to: found by name among what is loaded, and never by asking an object for an attribute.


def _lookup(where: Any) -> Any:
    """Return what `module:qualname` stands for; raises `JournalError` if no loaded module has it."""
    module, _, qualname = _text(where).partition(":")
    found: Any = sys.modules.get(module)
    if not issubclass(type(found), types.ModuleType):
        raise JournalError(f"{where} refers to the module {module!r}, which is not loaded")
    space: Mapping[str, Any] = object.__getattribute__(found, "__dict__")
    for part in qualname.split("."):
        if part.startswith("__") or part not in space:
            raise JournalError(f"there is no {where}")
        found = space[part]
        space = type.__dict__["__dict__"].__get__(found) if issubclass(type(found), type) else {}
    return found


def _found(where: str) -> Any:
    try:
        return _lookup(where)
    except JournalError:
        return None


def _place(thing: Any) -> str:
    module, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(qualname, str)):
        raise TypeError(f"the {type(thing).__qualname__} has no name to refer to it by: {thing!r}")
    return f"{module}:{qualname}"


def _reference(thing: Any, what: str) -> str:
    """Return where it is found; raises `TypeError` if that leads somewhere else."""
    where = _place(thing)
    if _found(where) is not thing:
        reason = "it is defined inside a function" if "<locals>" in where else "another object, or none, has that name"
        raise TypeError(f"the {what} {where} cannot be referred to: {reason}. Move it to module level, or register it")
    return where


def _definition(where: Any, kind: type) -> Any:
    found = _lookup(where)
    if not issubclass(type(found), kind):
        raise JournalError(f"{where} is no {kind.__name__}")
    return found


def _unit(found: Any, kinds: Any) -> Any:
    if not issubclass(type(found), kinds):
        raise JournalError(f"a {type(found).__qualname__} stands where a definition should")
    return found


def _index(position: Any, stage: Stage) -> int:
    if type(position) is not int or not 0 <= position < len(stage):
        raise JournalError(f"stage {stage.name!r} has no action {position!r}")
    return position


def _exception_class(where: Any) -> Any:
    found = _lookup(where)
    if not (issubclass(type(found), type) and issubclass(found, BaseException)):
        raise JournalError(f"{where} is no exception class")
    return found


def _is_named_tuple(cls: Any) -> bool:
    if not (issubclass(type(cls), type) and issubclass(cls, tuple)):
        return False
    names: Any = getattr(cast("Any", cls), "_fields", None)
    return type(names) is tuple and all(type(name) is str for name in cast("tuple[Any, ...]", names))


def _class_of(value: Any) -> Any:
    return cast("Any", type(value))


def _is_dataclass(cls: Any) -> bool:
    return dataclasses.is_dataclass(cls)


def _fields(cls: Any) -> list[str]:
    """Return the fields of a dataclass that is made of nothing but them."""
    names = [field.name for field in dataclasses.fields(cls)]
    for base in cls.__mro__:
        if base is not object and base.__module__ == "builtins":
            raise TypeError(f"the dataclass {cls.__qualname__} is a {base.__name__} as well: register it")
        for name in names:
            found = vars(base).get(name)
            if hasattr(_class_of(found), "__set__") and not isinstance(found, types.MemberDescriptorType):
                raise TypeError(f"the field {name!r} of {cls.__qualname__} is computed: register the class")
    return names


def _read_enum(node: Any) -> Any:
    where, name = _list(node, 2)
    cls = _enum(where)
    if _text(name) not in cls._member_map_:
        raise JournalError(f"the enum {where} has no member {name!r}")
    return cls._member_map_[name]


def _read_flag(node: Any) -> Any:
    where, names = _list(node, 2)
    cls = _enum(where)
    if not issubclass(cls, enum.Flag):
        raise JournalError(f"{where} is no enum of flags")
    return _flag(cls, _list(names))


def _enum(where: Any) -> Any:
    found = _lookup(where)
    if not issubclass(type(found), enum.EnumMeta):
        raise JournalError(f"{where} is no enum")
    return found


def _either(one: Any, other: Any) -> Any:
    return one | other


def _flag(cls: Any, names: Sequence[str]) -> Any:
    return functools.reduce(_either, (cls._member_map_[name] for name in names), cls(0))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Give the parts of a value that are written for themselves."""
    yield from items(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name, None)


# Declared types, as those of keys.


def _type_written(declared: Any) -> Any:
    if declared is Any:
        return None
    if declared is None or declared is types.NoneType:
        return "None" if declared is None else "builtins:NoneType"
    if isinstance(declared, types.GenericAlias):
        return {"of": _type_written(declared.__origin__), "args": [_type_written(arg) for arg in declared.__args__]}
    if isinstance(declared, types.UnionType):
        return [_type_written(arg) for arg in declared.__args__]
    if not isinstance(declared, type):
        raise TypeError(f"JSON cannot hold the declared type {declared!r}")
    return _reference(cast("Any", declared), "type")


def _type_read(node: Any) -> Any:
    if node is None or node == "None":
        return Any if node is None else None
    if node == "builtins:NoneType":
        return types.NoneType
    if type(node) is list:
        return functools.reduce(_either, map(_type_read, cast("list[Any]", node)))
    if type(node) is dict:
        return types.GenericAlias(_class(node["of"]), tuple(map(_type_read, _list(node["args"]))))
    return _class(node)


def _class(where: Any) -> Any:
    found = _lookup(where)
    if not issubclass(type(found), type):
        raise JournalError(f"{where} is no class")
    return found


# The nodes of a file.


def _list(node: Any, length: int | None = None) -> list[Any]:
    if type(node) is not list or length not in {None, len(cast("list[Any]", node))}:
        raise JournalError("a list is something else, or of another length")
    return cast("list[Any]", node)


def _dict(node: Any) -> dict[str, Any]:
    if type(node) is not dict:
        raise JournalError("a mapping is something else")
    return cast("dict[str, Any]", node)


def _text(node: Any) -> str:
    if type(node) is not str:
        raise JournalError("a text is something else")
    return node


def _number(value: Any) -> Any:
    if type(value) not in {int, float}:
        raise JournalError("a number is something else")
    return value


def _refuse_constant(name: str) -> Any:
    raise JournalError(f"{name} is no JSON")


# Types of the standard library.

_PATHS: Final[dict[str, Any]] = {
    cls.__name__: cls
    for cls in (pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath)
}


def _naive(value: Any) -> list[Any]:
    return [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, value.tzinfo]


def _aware(cls: Any) -> Callable[[Any], Any]:
    return lambda said: cls.fromisoformat(said[0]).replace(fold=said[1], tzinfo=said[2])


def _zone_written(zone: Any) -> Any:
    cls = _class_of(zone)
    if (cls.__module__, cls.__name__) != ("zoneinfo", "ZoneInfo") or not zone.key:
        raise TypeError(f"JSON cannot hold the time zone {zone!r}: use zoneinfo, or register {cls.__qualname__}")
    return {"$zone": zone.key}


def _zone_read(key: Any) -> Any:
    module: Any = sys.modules.get("zoneinfo")
    if module is None:
        raise JournalError(f"the time zone {key} needs zoneinfo, which is not loaded: import it first")
    return module.ZoneInfo(_text(key))


def _based(raw: bytes | bytearray) -> str:
    return base64.b64encode(raw).decode()


def _unbased(text: Any) -> bytes:
    return base64.b64decode(_text(text), validate=True)


_TYPES: Final[dict[Any, _Type]] = {
    bytes: ("$bytes", _based, _unbased),
    bytearray: ("$bytearray", _based, lambda v: bytearray(_unbased(v))),
    complex: ("$complex", lambda v: [v.real, v.imag], lambda v: complex(*map(_number, v))),
    Decimal: ("$decimal", str, lambda v: Decimal(_text(v))),
    Fraction: ("$fraction", lambda v: [v.numerator, v.denominator], lambda v: Fraction(*map(_number, v))),
    UUID: ("$uuid", lambda v: v.hex, lambda v: UUID(hex=v)),
    datetime: ("$datetime", _naive, _aware(datetime)),
    time: ("$time", _naive, _aware(time)),
    date: ("$date", date.isoformat, date.fromisoformat),
    timedelta: ("$timedelta", lambda v: [v.days, v.seconds, v.microseconds], lambda v: timedelta(*v)),
    timezone: ("$timezone", lambda v: list(v.__getinitargs__()), lambda v: timezone(*v)),
    range: ("$range", lambda v: [v.start, v.stop, v.step], lambda v: range(*v)),
    OrderedDict: ("$ordered", lambda v: list(map(list, v.items())), OrderedDict),
    Counter: ("$counter", lambda v: list(map(list, v.items())), lambda v: Counter(dict(v))),
    deque: ("$deque", lambda v: [list(v), v.maxlen], lambda v: cast("Any", deque)(*v)),
}
for _cls in _PATHS.values():
    _TYPES[_cls] = ("$path", lambda v: [type(v).__name__, str(v)], lambda v: _PATHS[v[0]](v[1]))
for _constant in _CONSTANTS.values():
    _TYPES[type(_constant)] = (
        "$constant",
        lambda v: next(name for name, it in _CONSTANTS.items() if it is v),
        _CONSTANTS.__getitem__,
    )
