"""The meaning of a returned value: units to insert, or data to store.

None                                 data, if the annotation is `T | None` and T not a unit; else nothing
a unit or a stream                   inserted
a list or tuple starting with one    each of its elements is inserted, in order; all must be units. If all are actions:
                                     in the current stage; otherwise the actions count as stages
an empty list                        nothing, where the annotation names units or the action is a generator; else data
the items yielded by a generator     as if returned in a list; its own `return value` is data as well
a stage template, a mix of both      ReturnValueError; so are units in another collection, or in a nested one, and data
                                     where the annotation names units
anything else                        data
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Iterator
from inspect import CO_ITERABLE_COROUTINE
from typing import Any, Final, cast

from flowdeco.engine.requests import Raised
from flowdeco.engine.waits import Nap
from flowdeco.errors import ReturnValueError, shortened
from flowdeco.model.contents import ATOMS
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, Stream, Template, Unit, insertable
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import Step

__all__ = [
    "HOLDING", "SETTLED", "Begun", "Exhausting", "Yielded", "exhaust", "is_awaited", "is_generator", "is_plain_iterator",
    "sort_out", "unit_in",
]  # fmt: skip

HOLDING: Final = frozenset({dict, set, frozenset})
_INSERTED: Final = (Unit, Stream, Template)
_SHORT: Final = 4  # elements that are all looked at
_EMPTY: Final[dict[Any, Any]] = {}
_VIEWS: Final[tuple[Any, ...]] = (_EMPTY.keys(), _EMPTY.values(), _EMPTY.items())
_COLLECTIONS: Final = (list, tuple, set, frozenset, dict, deque, *map(type, _VIEWS))
_ITERATORS: Final = frozenset({
    map, filter, zip, enumerate, reversed,
    *(type(iter(each)) for each in (set[Any](), *_VIEWS)),
    *(type(reversed(each)) for each in _VIEWS),
})  # fmt: skip
# These have copies of their own place in the list.
_COPIED: Final = (type(iter(list[Any]())), type(reversed(list[Any]())), type(iter(tuple[Any, ...]())))

Inserted = tuple["Unit | Stream", ...]


class Yielded(list[Any]):
    """The items that a generator yielded, and the `value` that it returned at its end."""

    value: Any = None


class Begun(Iterator[Any]):
    """An iterator whose first item has been looked at, and which passes for what it was: for `isinstance` and `repr`.

    Not a `chain` of itertools, which cannot be pickled from Python 3.14 on.
    """

    def __init__(self, iterator: Iterator[Any], first: Any = UNSET) -> None:
        self.first = next(iterator, UNSET) if first is UNSET else first
        self.rest = iterator

    def __next__(self) -> Any:
        first, self.first = self.first, UNSET
        return next(self.rest) if first is UNSET else first

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self.rest)

    def __repr__(self) -> str:
        return repr(self.rest)

    def __reduce__(self) -> tuple[Any, ...]:
        return (iter, (self.rest,)) if self.first is UNSET else (Begun, (self.rest, self.first))


SETTLED: Final = ATOMS | HOLDING | {list, tuple, Action, Stage, Pipeline, Parallel, Stream, Raised, Begun}


def is_awaited(value: Any) -> bool:
    """Whether a returned value is awaited: coroutines, asyncio's futures and tasks, and `ctx.sleep(...)`.

    Anything else with `__await__` is a value (a client, a pool, a future of a cluster), whose `await` may mean anything.
    """
    kind = cast("type[object]", type(value))
    if kind is types.GeneratorType:  # perhaps of `types.coroutine`
        return bool(value.gi_code.co_flags & CO_ITERABLE_COROUTINE)
    if not hasattr(kind, "__await__"):
        return False
    # The mark of a future, by which asyncio itself recognises one.
    return isinstance(value, (Coroutine, Nap)) or getattr(kind, "_asyncio_future_blocking", None) is not None


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


class Exhausting:
    """Awaited, it runs an asynchronous generator to its end: all of it in one task, and within one timeout."""

    def __init__(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generator = generator

    def __await__(self) -> Generator[Any, Any, Yielded]:
        found = Yielded()
        while True:
            try:
                found.append((yield from anext(self._generator).__await__()))
            except StopAsyncIteration:
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
        return _sequence(step, value, drop_empty=step.drops_empty)
    if issubclass(kind, _INSERTED):
        return insertable((value,), _who(step)), UNSET
    return (), _data(step, value)


def _sequence(step: Step, value: Any, *, drop_empty: bool) -> tuple[Inserted, Any]:
    if not value:
        return (), UNSET if drop_empty else value
    if _is_of(value[0], _INSERTED):
        return insertable(value, _who(step)), UNSET
    return (), _data(step, value)


def _data(step: Step, value: Any) -> Any:
    """Return data, unless it has units in it, or the annotation promises units: that is a `ReturnValueError`."""
    if step.names_units:
        raise ReturnValueError(
            f"{_who(step)} is annotated to return units, and returned {_described(value)}: "
            f"return a stage, or a list of them, or annotate the data"
        )
    hidden = unit_in(_visible_of(value))
    if hidden is not None:
        raise ReturnValueError(f"{_who(step)} returned {_misplaced(value, hidden)}")
    return value


def _visible_of(value: Any) -> Any:
    """Return the first item of an iterator, as long as that takes no call of a user's code; of other data, all."""
    if type(value) is Begun:
        return (value.first,)
    if type(value) not in _COPIED:
        return value
    import copy  # not loaded for other values

    return (next(copy.copy(value), None),)


def _misplaced(value: Any, unit: Any) -> str:
    if isinstance(unit, Template):
        return f"no stage: {unit.instead()}"
    if _is_of(value, (list, tuple)) and any(each is unit for each in _ends(value, _SHORT)):
        return (
            f"a mix of units and data: the first element is the {type(value[0]).__name__} {shortened(value[0])}, and "
            f"{shortened(unit)} is among the others. Return the units, and write the data by ctx.store or collect="
        )
    return (
        f"{_described(value)}, with {shortened(unit)} in it, which would be stored and never run: "
        f"return units in a list, and not in another collection or a nested one"
    )


def _described(value: Any) -> str:
    if type(value) is Begun:
        value = value.rest
    found = f"the {type(cast('object', value)).__name__} {shortened(value)}"
    if not _is_of(value, (list, tuple)):
        return found
    return f"{found}, whose first element is the {type(value[0]).__name__} {shortened(value[0])}"


def _generated(step: Step, found: Yielded) -> tuple[Inserted, Any]:
    units, data = _sequence(step, list(found), drop_empty=True)
    if found.value is None and (step.nothing is None or data is not UNSET or not step.generates):
        return units, data
    if data is not UNSET:
        raise ReturnValueError(
            f"{_who(step)} yielded data and returned data as well: yield units and return data, or collect what is data"
        )
    extra, data = sort_out(step, found.value)
    return insertable((*units, *extra), _who(step)), data


# Units where they would be stored as data, and never run. They are looked for in constant time.


def _is_of(value: object, kinds: tuple[type, ...]) -> bool:
    """Whether it is of one of these types; `isinstance` would ask a lazy proxy for its `__class__`, and load its target."""
    return issubclass(type(value), kinds)


def unit_in(value: Any, depth: int = 2, short: int = _SHORT) -> Any:
    """Return a unit in nested collections, None for none: of a long collection, only the ends are looked at."""
    if not _is_of(value, _COLLECTIONS):
        return None
    looked_at = _ends(value, short)
    if _is_of(value, (dict,)):
        looked_at = (*looked_at, *_ends(value.values(), short))
    for each in looked_at:
        if type(each) in ATOMS:
            continue
        found = each if _is_of(each, _INSERTED) else unit_in(each, depth - 1, 2) if depth else None
        if found is not None:
            return found
    return None


def _ends(value: Any, short: int) -> Iterable[Any]:
    """Return the first and the last element; all of a short collection; one of a set, the last of which is far away."""
    if len(value) <= short:
        return cast("Iterable[Any]", value)
    first = value[0] if _is_of(value, (list, tuple)) else next(iter(value))
    return (first,) if _is_of(value, (set, frozenset)) else (first, next(reversed(value)))


def is_plain_iterator(kind: type[object]) -> bool:
    """Whether iterators of this type are good for nothing but their items: files, cursors and the like are left alone."""
    return kind in _ITERATORS or kind.__module__ == "itertools"


def _who(step: Step) -> str:
    return f"action {step.name!r}"
