"""The meaning of a returned value: units to insert, or data to store.

None                                 data, if the annotation is `T | None` and T not a unit; else nothing
a unit or a stream                   inserted
a list or tuple starting with one    each of its elements is inserted, in order; all must be units
an empty list                        nothing, where the annotation names units or the action is a generator; else data
the items yielded by a generator     as if returned in a list; its own `return value` is data as well
a stage template, a mix              ReturnValueError
anything else                        data
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from inspect import CO_ITERABLE_COROUTINE
from typing import Any, Final, cast

from flowdeco.engine.requests import Raised
from flowdeco.errors import ReturnValueError, shortened
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, Stream, Template, Unit, insertable
from flowdeco.model.options import UNSET
from flowdeco.model.wiring import Step

__all__ = ["DATA", "SETTLED", "Yielded", "exhaust", "is_awaited", "is_generator", "sort_out"]

DATA: Final = frozenset({str, int, float, bool, bytes, dict, set, frozenset, complex, types.NoneType})
SETTLED: Final = DATA | {list, tuple, Action, Stage, Pipeline, Parallel, Stream, Raised}
_INSERTED: Final = (Unit, Stream, Template)

Inserted = tuple["Unit | Stream", ...]


class Yielded(list[Any]):
    """The items that a generator yielded, and the `value` that it returned at its end."""

    value: Any = None


def is_awaited(value: Any) -> bool:
    """Whether a returned value is awaited: coroutines, asyncio's futures and tasks.

    Anything else with `__await__` is a value (a client, a pool, a future of a cluster), whose `await` may mean anything.
    """
    kind = cast("type[object]", type(value))
    if kind is types.GeneratorType:  # perhaps of `types.coroutine`
        return bool(value.gi_code.co_flags & CO_ITERABLE_COROUTINE)
    if not hasattr(kind, "__await__"):
        return False
    # The mark of a future, by which asyncio itself recognises one.
    return isinstance(value, Coroutine) or getattr(kind, "_asyncio_future_blocking", None) is not None


def is_generator(value: Any) -> bool:
    """Whether a returned value is run to its end, and its items count as returned."""
    return type(value) is types.GeneratorType and not is_awaited(value)


def exhaust(generator: Generator[Any, Any, Any]) -> Yielded:
    """Run a generator to its end."""
    found = Yielded()
    while True:
        try:
            found.append(next(generator))
        except StopIteration as stop:
            found.value = stop.value
            return found


def sort_out(step: Step, value: Any) -> tuple[Inserted, Any]:
    """Return the units to insert, and the data (`UNSET` for none); raises `ReturnValueError`."""
    kind = cast("type[object]", type(value))
    if value is UNSET or value is step.nothing:  # unset, if its layers supplied nothing
        return (), UNSET
    if kind is Stage:
        return (value,), UNSET
    if kind is Yielded:
        return _generated(step, value)
    if issubclass(kind, (list, tuple)):
        return _sequence(step, value, drop_empty=step.names_units or step.generates)
    if issubclass(kind, _INSERTED):
        return insertable((value,), _who(step)), UNSET
    if step.names_units:
        raise ReturnValueError(
            f"{_who(step)} is annotated to return units, and returned the {kind.__name__} {shortened(value)}: "
            f"return a stage, or a list of them"
        )
    return (), value


def _sequence(step: Step, value: Any, *, drop_empty: bool) -> tuple[Inserted, Any]:
    if not value:
        return (), UNSET if drop_empty else value
    if isinstance(value[0], _INSERTED):
        return insertable(value, _who(step)), UNSET
    if isinstance(value[-1], _INSERTED):
        raise ReturnValueError(
            f"{_who(step)} returned a mix of units and data: the first element is a {type(value[0]).__name__}, "
            f"the last one is {value[-1]!r}. Return the units, and write the data by ctx.store or collect="
        )
    return (), value


def _generated(step: Step, found: Yielded) -> tuple[Inserted, Any]:
    units, data = _sequence(step, list(found), drop_empty=True)
    if found.value is None and (step.nothing is None or data is not UNSET or not step.generates):
        return units, data
    if data is not UNSET:
        raise ReturnValueError(
            f"{_who(step)} yielded data and returned data as well: yield units and return data, or collect what is data"
        )
    extra, data = sort_out(step, found.value)
    return (*units, *extra), data


def _who(step: Step) -> str:
    return f"action {step.name!r}"
