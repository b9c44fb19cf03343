"""The notation of values as JSON: it writes and reads a value by the row that its kind has in a table."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, cast

from flowdeco.durable.kinds import Kind, checked_string, of_two
from flowdeco.durable.lookup import class_of, lookup, place
from flowdeco.errors import JournalError

__all__ = ["Nested", "Notation", "by_class", "is_of"]

_ITSELF: Final = frozenset({str, bool, types.NoneType})
_BIG: Final = 1 << 1024  # an int of more digits is written in hexadecimal: Python refuses long decimal ones


@dataclasses.dataclass(frozen=True, slots=True)
class Nested:
    """A kind of values that need the notation to be written and read: they decide which of their parts are values."""

    tag: str
    of: type | Callable[[Any], bool]
    write: Callable[[Notation, Any], list[Any]]
    read: Callable[[Notation, Any], Any]


class Notation:
    """The rules of one codec: the tables, and the types and functions that were registered or allowed.

    The table `exact` has the kinds of values of one class, `tested` those of values that pass a test, in order. `referred`
    returns the reference that a value is written as, or the value itself.
    """

    exact: ClassVar[Sequence[Kind | Nested]] = ()
    tested: ClassVar[Sequence[Kind | Nested]] = ()

    @staticmethod
    def referred(value: Any) -> Any:
        return value

    def __init__(self) -> None:
        self.allowed: dict[str, Callable[..., Any]] = {}
        self._registered: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = {}
        self._exact: dict[Any, Kind | Nested] = {kind.of: kind for kind in self.exact}
        self._tags: dict[str, Kind | Nested] = {kind.tag: kind for kind in (*self.exact, *self.tested)}
        self._tags["$value"] = Kind("$value", object, list, of_two(self._read_registered))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (), (self.allowed, list(self._registered.values()))

    def __setstate__(self, state: tuple[dict[str, Any], list[Any]]) -> None:
        allowed, registered = state
        self.allowed.update(allowed)
        for each in registered:
            self.register(*each)

    def register(self, cls: type, write: Callable[[Any], Any], read: Callable[[Any], Any]) -> None:
        """Add the kind of the values of exactly this class."""
        name = f"{cls.__module__}:{cls.__qualname__}"
        self._registered[name] = cls, write, read
        self._exact[cls] = Kind("$value", cls, lambda value: [name, write(value)], of_two(self._read_registered))

    def write(self, value: Any) -> Any:
        """Return the value as JSON."""
        cls = class_of(value)
        if cls in _ITSELF or (cls is int and -_BIG < value < _BIG) or (cls is float and value - value == 0):
            return value
        if cls is list:
            return [self.write(item) for item in value]
        if cls is dict and all(type(key) is str and not key.startswith("$") for key in value):
            return {key: self.write(item) for key, item in value.items()}
        kind = self._exact.get(cls)
        if kind is None:
            value = self.referred(value)
            kind = self._exact.get(type(value)) or self._tested(value)
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
        registered = self._registered.get(checked_string(name))
        if registered is None:
            raise JournalError(
                f"the type {name} is not registered: codec.register({name.rpartition(':')[2]}, write, read)"
            )
        _, _, read = registered
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

    def _tested(self, value: Any) -> Kind | Nested:
        """Return the first kind whose test the value passes."""
        for kind in self.tested:
            if kind.of(value):
                return kind
        cls = class_of(value)
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
            raise TypeError(
                f"JSON cannot hold the {cls.__name__} {value.__qualname__}: functions and classes are not data"
            )
        name = cls.__qualname__
        other = "" if cls.__module__.partition(".")[0] in sys.stdlib_module_names else ", or make it a dataclass"
        raise TypeError(f"JSON cannot hold a {name}: register it, codec.register({name}, write, read){other}")


def by_class(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: test(type(value))


def is_of(*classes: type) -> Callable[[Any], bool]:
    return lambda value: issubclass(type(value), classes)  # an action answers `isinstance` as its function
