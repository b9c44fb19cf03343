"""Definitions as JSON: as the references that the model has for them, or by their parts and options."""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from flowdeco.durable.json_values import exception_class
from flowdeco.durable.kinds import Kind, checked_dict, checked_list, checked_string, of_two
from flowdeco.durable.lookup import class_of, find, lookup, lookup_instance, place, reference
from flowdeco.durable.notation import Nested, Notation, is_of
from flowdeco.errors import JournalError, shortened
from flowdeco.middleware import Cached, Recover, Retry, recover, retry
from flowdeco.model.declare import StageTemplate
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, Stream, options_of
from flowdeco.model.references import (
    Bound,
    Called,
    Changed,
    Imported,
    Member,
    Method,
    Narrowed,
    Part,
    home_in_module,
    home_of_copy,
    origin_of,
)

__all__ = ["DEFINITIONS", "REFERENCES", "referred"]


def referred(value: Any) -> Any:
    """Return the reference that a definition is written as; the value itself if it has none."""
    cls = class_of(value)
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
    is_action = issubclass(class_of(value), Action)
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
        kind = class_of(found)
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
    template = lookup_instance(where, StageTemplate) if type(where) is str else _read_part(where)
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
        raise TypeError(
            f"JSON does not refer to {shortened(layer)}: use it in the definition, or in `use_actions` of its stage"
        )
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
            return exception_class(node["$class"])
        if "$classes" in node:
            return tuple(map(exception_class, checked_list(node["$classes"])))
        if "$function" in node:
            return notation.function(checked_string(node["$function"]))
    return notation.read(node)


# The tables.


REFERENCES: Final[tuple[Kind | Nested, ...]] = (
    Kind("$stage", Imported, _address, lambda where: lookup_instance(where, Stage)),
    Kind("$part", Part, _write_part, lambda node: _unit(_read_part(node), Action, Stage)),
    Kind("$call", Called, _write_call, _read_call),
    Kind("$member", Member, list, of_two(lambda stage, at: list(_unit(stage, Stage))[_index(at, stage)])),
    Kind("$narrowed", Narrowed, lambda v: [v.base, list(v.places)], of_two(_read_narrowed)),
    Kind("$method", Method, list, of_two(lambda base, owner: _unit(base, Action).__get__(owner, type(owner)))),
    Kind("$bound", Bound, list, of_two(lambda base, values: _unit(base, Action).bind(**checked_dict(values)))),
    Nested("$changed", Changed, _write_changed, _read_changed),
)
DEFINITIONS: Final[tuple[Kind | Nested, ...]] = (
    Kind("$action", is_of(Action), _write_action, lambda where: lookup_instance(where, Action)),
    Nested("$made", is_of(Stage, Pipeline, Parallel), _write_made, _read_made),
    Nested("$stream", is_of(Stream), _write_stream, _read_stream),
)
