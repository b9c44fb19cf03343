"""Values as readable JSON; reading them runs no code that the file chooses.

JSON's own values stand for themselves; any other value is an object of one key, `{"$tag": content}`. The tables `EXACT`
and `TESTED` have a row per kind of value: its tag, the values it applies to, how they are written and read back.

Three rules keep a file harmless. Classes, definitions and functions are referred to by `module:qualname`, found among
the modules that are loaded already (see `lookup`), and must be of the kind in their tag: a dataclass, an enum, a template.
Nothing is called but templates, the functions of registered types, and the constructors in the tables. No `__init__` of
a user's class runs.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import json
import operator
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Self, TypeVar, cast

from flowdeco.durable.blobs import LARGE
from flowdeco.durable.codec import described_error, remade_exception, stand_in, unserialisable
from flowdeco.durable.kinds import STANDARD, ZONE, Kind, checked_dict, checked_list, checked_string, of_two
from flowdeco.durable.lookup import find, lookup, place, reference
from flowdeco.engine.journal import Payload
from flowdeco.errors import JournalError, RunError
from flowdeco.middleware import Cached, Recover, Retry, recover, retry
from flowdeco.model.declare import StageTemplate
from flowdeco.model.definitions import (
    Action,
    Parallel,
    Pipeline,
    Stage,
    Stream,
    home_in_module,
    home_of_copy,
    options_of,
    origin_of,
)
from flowdeco.model.paths import items
from flowdeco.model.references import Bound, Called, Changed, Imported, Member, Method, Narrowed, Part
from flowdeco.model.store import Key

__all__ = ["JsonCodec", "OutlineJsonCodec"]

T = TypeVar("T")

_ITSELF: Final = frozenset({str, bool, types.NoneType})
_BIG: Final = 1 << 1024  # an int of more digits is written in hexadecimal: Python refuses long decimal ones


@dataclasses.dataclass(frozen=True, slots=True)
class Nested:
    """A kind of values that need the notation to be written and read: they decide which of their parts are values."""

    tag: str
    of: type | Callable[[Any], bool]
    write: Callable[[Notation, Any], list[Any]]
    read: Callable[[Notation, Any], Any]


class JsonCodec:
    """JSON; types round-trip exactly: those of the standard library, dataclasses, enums, named tuples, definitions.

    Other types are registered, with a function that turns a value into one that the codec can write, and one back.
    Functions that a journal may refer to, as sources of streams or reducers of parallel groups, are allowed by
    `allow`; generator functions at module level, other than the standard library's, need not be.
    """

    name = "json"

    def __init__(self) -> None:
        self._notation = Notation()

    def register(self, cls: type[T], write: Callable[[T], Any], read: Callable[[Any], T]) -> Self:
        """Have values of exactly this class written and read by these functions; returns the codec."""
        self._notation.register(cls, write, read)
        return self

    def allow(self, *functions: Callable[..., Any]) -> Self:
        """Let journals refer to these functions; returns the codec."""
        self._notation.allowed.update((place(function), function) for function in functions)
        return self

    def encode(self, value: Any, what: str) -> bytes:
        """Return the value as bytes; raises `SerializationError` naming `what` and the path of the part that cannot."""
        try:
            return _text(self._notation.write(value))
        except Exception as error:
            raise unserialisable(value, what, self._dumped, error, parts=_parts) from error

    def encode_apart(self, value: Any, what: str) -> bytes:
        """Return the value as a `Payload` if there are large parts in it, each as JSON, and otherwise as `encode` does."""
        payload = self.encode(value, what)
        if len(payload) < LARGE:
            return payload
        parts: list[bytes] = []
        rest = _with_places(json.loads(payload.decode("utf-8", "surrogatepass")), parts, _DEEPEST)
        return Payload(_text(rest), parts) if parts else payload

    def decode(self, payload: bytes) -> Any:
        """Return the value; raises `JournalError` if the payload is damaged, or refers to something absent."""

        def loaded(text: bytes | bytearray) -> Any:
            return json.loads(text.decode("utf-8", "surrogatepass"), parse_constant=_refuse_constant, object_hook=hook)

        def put_back(node: dict[str, Any]) -> Any:
            return loaded(parts[node[_PLACE]]) if _PLACE in node else node

        parts: Sequence[Any] = payload.parts if isinstance(payload, Payload) else ()
        hook = put_back if parts else None
        try:
            return self._notation.read(loaded(payload))
        except Exception as error:
            reason = error if isinstance(error, JournalError) else f"{type(error).__name__}: {error}"
            raise JournalError(f"a value of this run cannot be read back: {reason}") from error

    def _dumped(self, value: Any) -> bytes:
        return _text(self._notation.write(value))


def _text(node: Any) -> bytes:
    text = json.dumps(node, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


_PLACE: Final = "$large"  # {"$large": n} stands for the n-th part
_DEEPEST: Final = 16  # levels that are searched for large parts
_MOST: Final = 1000  # items that are searched


def _with_places(node: Any, parts: list[bytes], depth: int) -> Any:
    """Return JSON in which large nodes, the innermost ones, are parts instead."""
    text = _text(node)
    if len(text) < LARGE:
        return node
    rest: Any = node
    if depth and isinstance(node, (dict, list)) and len(cast("list[Any]", node)) <= _MOST:
        if isinstance(node, list):
            rest = [_with_places(each, parts, depth - 1) for each in cast("list[Any]", node)]
        else:
            each_of = cast("dict[str, Any]", node).items()
            rest = {key: _with_places(each, parts, depth - 1) for key, each in each_of}
        text = _text(rest)
        if len(text) < LARGE:
            return rest
    parts.append(text)
    return {_PLACE: len(parts) - 1}


class OutlineJsonCodec(JsonCodec):
    """Reads what happened in a run without importing its code: values that need it have stand-ins."""

    def decode(self, payload: bytes) -> Any:
        """Return the value; raises `JournalError` if the payload is damaged."""
        try:
            return super().decode(payload)
        except JournalError:
            try:
                return _outlined(json.loads(payload.decode("utf-8", "surrogatepass")))
            except ValueError as error:
                raise JournalError(f"a value of this run cannot be read back: {error}") from error


def _outlined(node: Any) -> Any:
    """Return a node of JSON as a value, with stand-ins for those whose tags are not those of lists and dicts."""
    if isinstance(node, list):
        return [_outlined(each) for each in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    parts = cast("dict[str, Any]", node)
    tag = next(iter(parts), "")
    if not tag.startswith("$"):
        return {key: _outlined(value) for key, value in parts.items()}
    content: Any = parts[tag]
    if tag in ("$tuple", "$set", "$frozenset", "$deque"):
        return tuple(map(_outlined, content))
    name, *args = cast("list[Any]", content) if isinstance(content, list) and content else (tag,)
    module, _, qualname = str(name).rpartition(":")
    listed = cast("list[Any]", args[0]) if args and isinstance(args[0], list) else []
    return stand_in(module, qualname)(*map(_outlined, listed))


class Notation:
    """The rules of one codec: the tables, and the types and functions that were registered or allowed."""

    def __init__(self) -> None:
        self.allowed: dict[str, Callable[..., Any]] = {}
        self._registered: dict[str, Callable[[Any], Any]] = {}
        self._exact: dict[Any, Kind | Nested] = {kind.of: kind for kind in EXACT}
        self._tags: dict[str, Kind | Nested] = {kind.tag: kind for kind in (*EXACT, *TESTED)}
        self._tags["$value"] = Kind("$value", object, list, of_two(self._read_registered))
        self._given: list[tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Notation, (), (self.allowed, self._given)

    def __setstate__(self, state: tuple[dict[str, Any], list[Any]]) -> None:
        allowed, given = state
        self.allowed.update(allowed)
        for each in given:
            self.register(*each)

    def register(self, cls: type, write: Callable[[Any], Any], read: Callable[[Any], Any]) -> None:
        """Add the kind of the values of exactly this class."""
        name = f"{cls.__module__}:{cls.__qualname__}"
        self._registered[name] = read
        self._given.append((cls, write, read))
        self._exact[cls] = Kind("$value", cls, lambda value: [name, write(value)], of_two(self._read_registered))

    def write(self, value: Any) -> Any:
        """Return the value as JSON."""
        cls = _class_of(value)
        if cls in _ITSELF or (cls is int and -_BIG < value < _BIG) or (cls is float and value - value == 0):
            return value
        if cls is list:
            return [self.write(item) for item in value]
        if cls is dict and all(type(key) is str and not key.startswith("$") for key in value):
            return {key: self.write(item) for key, item in value.items()}
        kind = self._exact.get(cls)
        if kind is None:
            value = _referred(value)
            kind = self._exact.get(type(value)) or _tested(value)
        if isinstance(kind, Nested):
            return {kind.tag: kind.write(self, value)}
        content = kind.write(value)
        if type(content) is list:  # here, and not by a call: a value can be nested as deep as the stack allows
            return {kind.tag: [self.write(part) for part in cast("list[Any]", content)]}
        return {kind.tag: self.write(content)}

    def read(self, node: Any) -> Any:
        """Return the value that the JSON stands for."""
        if type(node) is list:
            return [self.read(item) for item in cast("list[Any]", node)]
        if type(node) is not dict:
            return node
        found = cast("dict[str, Any]", node)
        for tag in found:
            if tag.startswith("$"):
                break
        else:
            return {key: self.read(item) for key, item in found.items()}
        if len(found) != 1:
            raise JournalError(f"the tag {tag!r} is among other keys")
        kind = self._tags.get(tag)
        if kind is None:
            raise JournalError(f"the tag {tag!r} is unknown")
        content = found[tag]
        if isinstance(kind, Nested):
            return kind.read(self, content)
        if type(content) is list:
            return kind.read([self.read(part) for part in cast("list[Any]", content)])
        return kind.read(self.read(content))

    def _read_registered(self, name: Any, value: Any) -> Any:
        read = self._registered.get(checked_string(name))
        if read is None:
            raise JournalError(
                f"the type {name} is not registered: codec.register({name.rpartition(':')[2]}, write, read)"
            )
        return read(value)

    def function(self, where: str) -> Any:
        """Return an allowed function, or a generator function of the program."""
        allowed = self.allowed.get(where)
        if allowed is not None:
            return allowed
        found = lookup(where)
        module = where.partition(":")[0]
        ours = module.partition(".")[0] not in sys.stdlib_module_names
        if not (ours and type(found) is types.FunctionType and found.__module__ == module):
            raise JournalError(f"no loaded module has a generator function {where}")
        if not (inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found)):
            raise JournalError(
                f"JSON refers to generator functions, and {where} is not one: codec.allow({found.__name__})"
            )
        return found

    def function_written(self, function: Any) -> str:
        """Return the `module:qualname` of a function that `function` would return."""
        where = place(function)
        if "<locals>" in where or "<lambda>" in where:
            raise TypeError(f"{where} cannot be referred to: define it by `def` at module level")
        if self.function(where) is not function:
            raise TypeError(f"{where} is a different function now: define it once, at module level")
        return where


def _tested(value: Any) -> Kind | Nested:
    """Return the first kind whose test the value passes."""
    for kind in TESTED:
        if kind.of(value):
            return kind
    cls = _class_of(value)
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        raise TypeError(f"JSON cannot hold the {cls.__name__} {value.__qualname__}: functions and classes are not data")
    name = cls.__qualname__
    other = "" if cls.__module__.partition(".")[0] in sys.stdlib_module_names else ", or make it a dataclass"
    raise TypeError(f"JSON cannot hold a {name}: register it, codec.register({name}, write, read){other}")


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value that are written separately."""
    yield from items(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name, None)


# Checks of the references in a file.


def _refuse_constant(name: str) -> Any:
    raise JournalError(f"{name} is not valid JSON")


def _class(where: Any, base: type = object, what: str = "a class", meta: type = type) -> Any:
    found = lookup(where)
    if not (issubclass(type(found), meta) and issubclass(found, base)):
        raise JournalError(f"{where} is not {what}")
    return found


def _instance(where: Any, kind: type) -> Any:
    found = lookup(where)
    if not issubclass(type(found), kind):
        raise JournalError(f"{where} is not an instance of {kind.__name__}")
    return found


def _class_of(value: Any) -> Any:
    return cast("Any", type(value))


def _by_class(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: test(type(value))


def _is(*classes: type) -> Callable[[Any], bool]:
    return lambda value: issubclass(type(value), classes)  # an action answers `isinstance` as its function


# Dataclasses, enums, named tuples, exceptions.


def _fields(cls: Any) -> list[str]:
    """Return the fields of a dataclass that consists of nothing else."""
    names = [field.name for field in dataclasses.fields(cls)]
    for base in cls.__mro__:
        if base is not object and base.__module__ == "builtins":
            raise TypeError(f"the dataclass {cls.__qualname__} is a {base.__name__} as well: register it")
        for name in names:
            found = vars(base).get(name)
            if hasattr(_class_of(found), "__set__") and not isinstance(found, types.MemberDescriptorType):
                raise TypeError(f"the field {name!r} of {cls.__qualname__} is computed: register the class")
    return names


def _is_dataclass(cls: Any) -> bool:
    return dataclasses.is_dataclass(cls)


def _write_object(notation: Notation, value: Any) -> list[Any]:
    cls = _class_of(value)
    names = _fields(cls)
    where = reference(cls, "dataclass")
    fields = {name: notation.write(getattr(value, name)) for name in names}
    rest = {name: notation.write(part) for name, part in getattr(value, "__dict__", {}).items() if name not in fields}
    return [where, fields, rest] if rest else [where, fields]


def _read_object(notation: Notation, node: Any) -> Any:
    where, fields, *rest = checked_list(node)
    cls = _class(where)
    if not _is_dataclass(cls):
        raise JournalError(f"{where} is not a dataclass")
    names = _fields(cls)
    if sorted(checked_dict(fields)) != sorted(names):
        raise JournalError(f"the fields of {where} are {', '.join(names)} now, not {', '.join(fields)}")
    made: Any = object.__new__(cls)
    for name in names:
        object.__setattr__(made, name, notation.read(fields[name]))
    for name, value in checked_dict(rest[0]).items() if rest else ():
        made.__dict__[name] = notation.read(value)
    return made


def _is_named_tuple(cls: Any) -> bool:
    if not (issubclass(type(cls), type) and issubclass(cls, tuple)):
        return False
    names: Any = getattr(cast("Any", cls), "_fields", None)
    return type(names) is tuple and all(type(name) is str for name in cast("tuple[Any, ...]", names))


def _write_named(notation: Notation, value: Any) -> list[Any]:
    return [reference(type(value), "named tuple"), [notation.write(item) for item in value]]


def _read_named(notation: Notation, node: Any) -> Any:
    where, parts = checked_list(node, 2)
    cls = lookup(where)
    if not _is_named_tuple(cls):
        raise JournalError(f"{where} is not a named tuple")
    if len(checked_list(parts)) != len(cls._fields):
        raise JournalError(f"the fields of {where} are {', '.join(cls._fields)} now: {len(parts)} were written")
    return cast("Any", tuple).__new__(cls, map(notation.read, parts))  # not by a `__new__` of the class


def _is_member(value: Any) -> bool:
    return issubclass(type(value), enum.Enum) and _class_of(value).__members__.get(value.name) is value


def _read_member(where: Any, name: Any) -> Any:
    members = _class(where, what="an enum", meta=enum.EnumMeta).__members__
    if checked_string(name) not in members:
        raise JournalError(f"the enum {where} has no member {name!r}")
    return members[name]


def _either(one: Any, other: Any) -> Any:
    return one | other


def _flag(cls: Any, names: Sequence[str]) -> Any:
    return functools.reduce(_either, (cls.__members__[name] for name in names), cls(0))


def _write_flag(value: Any) -> list[Any]:
    cls = _class_of(value)
    where, names = reference(cls, "enum"), [member.name for member in value]
    if _flag(cls, names) is not value:
        raise TypeError(f"{value!r} is not a combination of members of {where}")
    return [where, names]


def _read_flag(where: Any, names: Any) -> Any:
    cls = _class(where, what="an enum", meta=enum.EnumMeta)
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
    cls = _exception_class(where)
    made = (
        cls(*checked_list(args)) if cls.__module__ == "builtins" else remade_exception(cls, tuple(checked_list(args)))
    )
    made.__dict__.update(checked_dict(state))
    return made


def _exception_class(where: Any) -> Any:
    return _class(where, BaseException, "an exception class")


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
        return types.GenericAlias(_class(node["of"]), tuple(map(_read_type, checked_list(node["args"]))))
    return _class(node)


def _read_key(content: Any) -> Any:
    name, declared, *frozen = checked_list(content)
    return Key(checked_string(name), Any if declared is None else _read_type(declared), frozen=frozen == [True])


# Definitions: as the references that the model has for them, or by their parts.


def _referred(value: Any) -> Any:
    """Return the reference that a definition is written as; the value itself if it has none."""
    cls = _class_of(value)
    if not issubclass(cls, (Action, Stage)):
        return value
    origin = origin_of(value)
    if origin is None:
        return value if not _is_lost(value) else home_in_module(value) or value
    if issubclass(type(origin), (Changed, Bound, Narrowed)):
        return home_of_copy(value) or origin
    stage = origin.stage if type(origin) is Member else origin
    if type(stage) is not Imported or _is_stage_at(stage, value if stage is origin else None):
        return origin
    home = home_in_module(value)
    if home is None:
        raise TypeError(
            f"{cls.__name__.lower()} {value.name!r} cannot be referred to: {_address(stage)} is not this stage. "
            f"Declare it at module level, or make it a stage template there"
        )
    return home


def _is_lost(value: Any) -> bool:
    """Whether this is an action of a function that its name does not lead to."""
    is_action = issubclass(_class_of(value), Action)
    return is_action and type(value.__wrapped__) is types.FunctionType and find(place(value)) != value


def _is_stage_at(where: Imported, wanted: Any) -> bool:
    found = find(_address(where))
    return isinstance(found, Stage) if wanted is None else found == wanted


def _address(imported: Imported) -> str:
    return f"{imported.module}:{imported.qualname}"


def _write_action(action: Any) -> str:
    where = place(action.__wrapped__)
    if find(where) != action:
        raise TypeError(
            f"action {action.name!r} cannot be referred to: {where} is not this action. "
            f"Declare it with @action at module level"
        )
    return where


def _unit(found: Any, *kinds: type) -> Any:
    if not issubclass(type(found), kinds):
        raise JournalError(f"a definition was expected, not {type(found).__qualname__}")
    return found


def _index(position: Any, stage: Stage) -> int:
    if type(position) is not int or not 0 <= position < len(stage):
        raise JournalError(f"stage {stage.name!r} has no action {position!r}")
    return position


def _write_part(part: Part) -> list[Any]:
    return [_address(part.base), *part.path]


def _read_part(node: Any) -> Any:
    where, *path = checked_list(node)
    found: Any = lookup(where)
    for step in path:
        kind = _class_of(found)
        parts: Any = tuple(found) if kind in (Stage, Pipeline, Parallel) else found  # no other object is iterated
        if kind not in (dict, list, tuple, Stage, Pipeline, Parallel):
            raise JournalError(f"{where} is not a definition, and has no part {step!r}")
        try:
            found = parts[step]
        except (TypeError, LookupError):
            raise JournalError(f"there is no part {step!r} in {where}") from None
    return found


def _write_call(called: Called) -> list[Any]:
    template = called.template
    home = home_in_module(template) if find(place(template)) is not template else None
    where = _write_part(home) if home is not None else reference(template, "stage template")
    return [where, list(called.args), called.kwargs]


def _read_call(content: Any) -> Any:
    where, args, kwargs = checked_list(content, 3)
    template = _instance(where, StageTemplate) if type(where) is str else _read_part(where)
    if type(template) is not StageTemplate:
        raise JournalError(f"{where} is not a StageTemplate")
    return template(*checked_list(args), **checked_dict(kwargs))


def _read_narrowed(stage: Any, places: Any) -> Any:
    return Narrowed(_unit(stage, Stage), tuple(_index(place, stage) for place in checked_list(places))).load()


def _write_changed(notation: Notation, changed: Changed) -> list[Any]:
    return [notation.write(changed.base), _write_options(notation, changed.changes)]


def _read_changed(notation: Notation, node: Any) -> Any:
    base, changes = checked_list(node, 2)
    return _unit(notation.read(base), Action, Stage).with_options(**_read_options(notation, changes))


def _write_made(notation: Notation, unit: Any) -> list[Any]:
    name, parts = ("Stage", unit) if isinstance(unit, Stage) else (type(unit).__name__, unit.units)
    options = {key: each for key, each in options_of(unit).items() if each or key not in _NEWER}
    return [name, [notation.write(part) for part in parts], _write_options(notation, options)]


# Options that older versions do not know: they are written where they are used.
_NEWER: Final = frozenset({"tolerate", "failures", "enough", "stream", "timeout"})


def _read_made(notation: Notation, node: Any) -> Any:
    name, parts, options = checked_list(node, 3)
    make, *kinds = _MADE[name]
    units = [_unit(notation.read(part), *kinds) for part in checked_list(parts)]
    return make(units, **_read_options(notation, options))


def _make_stage(actions: list[Any], **options: Any) -> Stage:
    return Stage(actions=actions, **options)


_UNITS: Final = (Action, Stage, Pipeline, Parallel)
_MADE: Final[dict[str, Any]] = {
    "Stage": (_make_stage, Action),
    "Pipeline": (Pipeline, *_UNITS),
    "Parallel": (Parallel, *_UNITS),
}


def _write_stream(notation: Notation, stream: Stream) -> list[Any]:
    source = stream.source
    if not callable(source):
        raise TypeError(f"a {stream.name} cannot be pulled again on a resume: write stream(function, *args)")
    where = notation.write(source) if isinstance(source, Action) else notation.function_written(source)
    return [where, [notation.write(arg) for arg in stream.args]]


def _read_stream(notation: Notation, node: Any) -> Any:
    source, args = checked_list(node, 2)
    function = notation.function(source) if type(source) is str else _unit(notation.read(source), Action)
    return Stream(function, tuple(map(notation.read, checked_list(args))))


# Options of definitions: values, but for middleware, reducers, and the exception classes that middleware takes.


_LAYERS: Final = frozenset({"use", "use_stages", "use_actions"})
_SHIPPED: Final[dict[Any, Any]] = {Retry: retry, Recover: recover}
_REDUCERS: Final[dict[str, Any]] = {
    "max": max,
    "min": min,
    **{name: getattr(operator, name) for name in ("add", "mul", "and_", "or_", "xor", "concat")},
}


def _write_options(notation: Notation, options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _write_option(notation, name, value) for name, value in options.items()}


def _read_options(notation: Notation, node: Any) -> dict[str, Any]:
    return {name: _read_option(notation, name, value) for name, value in checked_dict(node).items()}


def _write_option(notation: Notation, name: str, value: Any) -> Any:
    if name in _LAYERS:
        return [_write_layer(notation, layer) for layer in value]
    if name == "merge":
        return {key: _write_reducer(notation, reducer) for key, reducer in value.items()}
    return notation.write(value)


def _read_option(notation: Notation, name: str, node: Any) -> Any:
    if name in _LAYERS:
        return [_read_layer(notation, layer) for layer in checked_list(node)]
    if name == "merge":
        return {
            key: _REDUCERS.get(checked_string(where)) or notation.function(where)
            for key, where in checked_dict(node).items()
        }
    return notation.read(node)


def _write_reducer(notation: Notation, reducer: Any) -> str:
    known = next((name for name, function in _REDUCERS.items() if function is reducer), None)
    return known or notation.function_written(reducer)


def _write_layer(notation: Notation, layer: Any) -> Any:
    args: Sequence[Any] = ()
    if type(layer) in _SHIPPED:
        where, defaults = _SHIPPED[type(layer)].__name__, layer._field_defaults
        kwargs = {name: value for name, value in layer._asdict().items() if (name, value) not in defaults.items()}
    elif isinstance(layer, functools.partial):
        partial = cast("functools.partial[Any]", layer)
        where, args, kwargs = notation.function_written(partial.func), partial.args, partial.keywords
    elif isinstance(layer, Cached):  # it loads pickles from a folder, which the file must not choose
        raise TypeError(f"JSON does not refer to {layer!r}: use it in the definition, or in `use_actions` of its stage")
    else:
        return notation.function_written(layer)
    written = {name: _write_argument(notation, value) for name, value in kwargs.items()}
    return [where, [_write_argument(notation, value) for value in args], written]


def _read_layer(notation: Notation, node: Any) -> Any:
    if type(node) is str:
        return notation.function(node)
    where, args, kwargs = checked_list(node, 3)
    given = {name: _read_argument(notation, arg) for name, arg in checked_dict(kwargs).items()}
    for shipped in _SHIPPED.values():
        if where == shipped.__name__:
            return shipped(**given)
    return functools.partial(
        notation.function(checked_string(where)),
        *(_read_argument(notation, arg) for arg in checked_list(args)),
        **given,
    )


def _write_argument(notation: Notation, value: Any) -> Any:
    """Write an argument of a middleware, which may be exception classes and functions, as those of `retry`."""
    if isinstance(value, type):
        return {"$class": reference(value, "exception")}
    if type(value) is tuple and value and all(isinstance(cls, type) for cls in cast("tuple[Any, ...]", value)):
        return {"$classes": [reference(cls, "exception") for cls in cast("tuple[Any, ...]", value)]}
    if isinstance(value, types.FunctionType):
        return {"$function": notation.function_written(value)}
    return notation.write(value)


def _read_argument(notation: Notation, node: Any) -> Any:
    if type(node) is dict and len(cast("dict[str, Any]", node)) == 1:
        if "$class" in node:
            return _exception_class(node["$class"])
        if "$classes" in node:
            return tuple(map(_exception_class, checked_list(node["$classes"])))
        if "$function" in node:
            return notation.function(checked_string(node["$function"]))
    return notation.read(node)


# Types of the standard library.


def _write_pairs(notation: Notation, value: Mapping[Any, Any]) -> list[Any]:
    return [[notation.write(key), notation.write(item)] for key, item in value.items()]


def _read_pairs(notation: Notation, node: Any) -> dict[Any, Any]:
    pairs = (checked_list(pair, 2) for pair in checked_list(node))
    return {notation.read(key): notation.read(value) for key, value in pairs}


# The tables.


EXACT: Final[tuple[Kind | Nested, ...]] = (
    *STANDARD,
    Nested("$dict", dict, _write_pairs, _read_pairs),
    # References to definitions.
    Kind("$stage", Imported, _address, lambda where: _instance(where, Stage)),
    Kind("$part", Part, _write_part, lambda node: _unit(_read_part(node), Action, Stage)),
    Kind("$call", Called, _write_call, _read_call),
    Kind("$member", Member, list, of_two(lambda stage, at: list(_unit(stage, Stage))[_index(at, stage)])),
    Kind("$narrowed", Narrowed, lambda v: [v.base, list(v.places)], of_two(_read_narrowed)),
    Kind("$method", Method, list, of_two(lambda base, owner: _unit(base, Action).__get__(owner, type(owner)))),
    Kind("$bound", Bound, list, of_two(lambda base, values: _unit(base, Action).bind(**checked_dict(values)))),
    Nested("$changed", Changed, _write_changed, _read_changed),
)
TESTED: Final[tuple[Kind | Nested, ...]] = (
    Kind("$enum", _is_member, lambda v: [reference(type(v), "enum"), v.name], of_two(_read_member)),
    Kind("$flag", _is(enum.Enum), _write_flag, of_two(_read_flag)),
    Nested("$exception", _is(BaseException), _write_exception, _read_exception),
    Kind("$key", _is(Key), lambda v: [v.name, _write_type(v.type), *[True] * v.frozen], _read_key),
    Kind("$action", _is(Action), _write_action, lambda where: _instance(where, Action)),
    Nested("$made", _is(Stage, Pipeline, Parallel), _write_made, _read_made),
    Nested("$stream", _is(Stream), _write_stream, _read_stream),
    Nested("$named", _by_class(_is_named_tuple), _write_named, _read_named),
    ZONE,
    Nested("$object", _by_class(_is_dataclass), _write_object, _read_object),
)
