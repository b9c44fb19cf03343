"""The kinds of values that JSON has no notation for: a row for each, here those of the standard library."""

from __future__ import annotations

import base64
import dataclasses
import pathlib
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, cast
from uuid import UUID

from flowdeco.errors import JournalError, shortened
from flowdeco.model.sentinels import MISSING, UNSET

__all__ = ["STANDARD", "ZONE", "Kind", "checked_dict", "checked_list", "checked_string", "of_two"]


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A kind of values: those of exactly the class `of`, or those that pass the test `of`.

    `write` returns the content of the tag, which may hold any value that has a kind itself; `read` takes it back, with
    these values read.
    """

    tag: str
    of: type | Callable[[Any], bool]
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def checked_list(node: Any, length: int | None = None) -> list[Any]:
    if type(node) is not list or length not in {None, len(cast("list[Any]", node))}:
        raise JournalError("a list was expected, of the right length")
    return cast("list[Any]", node)


def of_two(read: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """Return the reader of content that has two parts."""
    return lambda content: read(*checked_list(content, 2))


def checked_dict(node: Any) -> dict[str, Any]:
    if type(node) is not dict:
        raise JournalError(f"a mapping was expected, not {type(node).__name__}")
    return cast("dict[str, Any]", node)


def checked_string(node: Any) -> str:
    if type(node) is not str:
        raise JournalError(f"a string was expected, not {type(node).__name__}")
    return node


def _number(value: Any) -> Any:
    if type(value) not in {int, float}:
        raise JournalError(f"a number was expected, not {type(value).__name__}")
    return value


_CONSTANTS: Final[dict[str, Any]] = {"UNSET": UNSET, "MISSING": MISSING, "Ellipsis": ...}
_PATHS: Final[dict[str, Any]] = {
    cls.__name__: cls
    for cls in (pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath)
}


def _write_constant(value: Any) -> str:
    return next(name for name, constant in _CONSTANTS.items() if constant is value)


def _items(value: Mapping[Any, Any]) -> list[list[Any]]:
    return list(map(list, value.items()))


def _write_naive(value: Any) -> list[Any]:
    return [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, value.tzinfo]


def _aware(cls: Any) -> Callable[[Any], Any]:
    return lambda parts: cls.fromisoformat(parts[0]).replace(fold=parts[1], tzinfo=parts[2])


def _is_zone(value: Any) -> bool:
    return isinstance(value, tzinfo)


def _write_zone(zone: Any) -> str:
    cls = cast("Any", type(zone))
    if (cls.__module__, cls.__name__) != ("zoneinfo", "ZoneInfo") or not zone.key:
        raise TypeError(
            f"JSON cannot hold the time zone {shortened(zone)}: use zoneinfo, or register {cls.__qualname__}"
        )
    return cast("str", zone.key)


def _read_zone(key: Any) -> Any:
    module: Any = sys.modules.get("zoneinfo")
    if module is None:
        raise JournalError(f"the time zone {key} needs zoneinfo, which is not loaded: import it first")
    return module.ZoneInfo(checked_string(key))


def _based(raw: bytes | bytearray) -> str:
    return base64.b64encode(raw).decode()


def _unbased(text: Any) -> bytes:
    return base64.b64decode(checked_string(text), validate=True)


STANDARD: Final[tuple[Kind, ...]] = (
    Kind("$int", int, hex, lambda digits: int(checked_string(digits), 16)),
    Kind("$float", float, repr, lambda text: float(checked_string(text))),
    Kind("$tuple", tuple, list, lambda v: tuple(checked_list(v))),
    Kind("$set", set, list, lambda v: set(checked_list(v))),
    Kind("$frozenset", frozenset, list, lambda v: frozenset(checked_list(v))),
    Kind("$bytes", bytes, _based, _unbased),
    Kind("$bytearray", bytearray, _based, lambda v: bytearray(_unbased(v))),
    Kind("$complex", complex, lambda v: [v.real, v.imag], lambda v: complex(*map(_number, v))),
    Kind("$decimal", Decimal, str, lambda v: Decimal(checked_string(v))),
    Kind("$fraction", Fraction, lambda v: [v.numerator, v.denominator], lambda v: Fraction(*map(_number, v))),
    Kind("$uuid", UUID, lambda v: v.hex, lambda v: UUID(hex=v)),
    Kind("$datetime", datetime, _write_naive, _aware(datetime)),
    Kind("$time", time, _write_naive, _aware(time)),
    Kind("$date", date, date.isoformat, date.fromisoformat),
    Kind("$timedelta", timedelta, lambda v: [v.days, v.seconds, v.microseconds], lambda v: timedelta(*v)),
    Kind("$timezone", timezone, lambda v: list(v.__getinitargs__()), lambda v: timezone(*v)),
    Kind("$range", range, lambda v: [v.start, v.stop, v.step], lambda v: range(*v)),
    Kind("$dict", dict, _items, lambda v: dict(checked_list(v))),
    Kind("$ordered", OrderedDict, _items, OrderedDict),
    Kind("$counter", Counter, _items, lambda v: Counter(dict(v))),
    Kind("$deque", deque, lambda v: [list(v), v.maxlen], lambda v: cast("Any", deque)(*v)),
    *(
        Kind("$path", cls, lambda v: [type(v).__name__, str(v)], lambda v: _PATHS[v[0]](v[1]))
        for cls in _PATHS.values()
    ),
    *(Kind("$constant", cast("Any", type(it)), _write_constant, _CONSTANTS.__getitem__) for it in _CONSTANTS.values()),
)
ZONE: Final = Kind("$zone", _is_zone, _write_zone, _read_zone)
