"""The conversion of inputs by the annotations of the parameters that take them.

An annotation outside of the table leaves an input as it is. A parameter takes an input if nothing before it supplies its
key; actions that are inserted later are not considered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Union, cast, get_args, get_origin

from flowdeco.cli.inputs import UsageError
from flowdeco.errors import shortened
from flowdeco.model.annotations import EMPTY
from flowdeco.model.definitions import (
    Parallel,
    Pipeline,
    Stage,
    Stream,
    Unit,
    action_selectors,
    as_stage,
    data_of,
    stage_selectors,
)
from flowdeco.model.keys import key_name, type_name, type_of
from flowdeco.model.steps import Input, Step, steps_of

if TYPE_CHECKING:
    from flowdeco.durable import Question
    from flowdeco.errors import Wait

__all__ = ["InputError", "Taker", "answers", "converted", "is_convertible", "listed", "takers"]

_CHOICES: Final = 20  # members that are listed
UNCHANGED: Final[Any] = object()  # an annotation without an opinion


class Misfit(Exception):
    """A value that does not fit an annotation."""


class InputError(UsageError):
    """An input, or an answer, that does not fit; it has this `key`."""

    def __init__(self, text: str, key: str) -> None:
        super().__init__(text)
        self.key = key


class Taker(NamedTuple):
    """A parameter that takes an input."""

    stage: str
    action: str
    wanted: Input

    @property
    def annotation(self) -> Any:
        """Its type, or that of its key."""
        annotation, typed = self.wanted.annotation, self.wanted.typed
        return typed.type if typed is not None and annotation in (EMPTY, Any) else annotation


def takers(flow: Unit, skip: frozenset[str] = frozenset()) -> dict[str, list[Taker]]:
    """Return the parameters that take each input, in the order of the run."""
    found: dict[str, list[Taker]] = {}
    _collect(flow, skip, set(), found)
    return found


def _collect(unit: Any, skip: frozenset[str], known: set[str], found: dict[str, list[Taker]]) -> None:
    """Add the parameters of a unit, and the keys that it supplies to those after it."""
    unit = as_stage(unit)
    if isinstance(unit, Stream) or not skip.isdisjoint(stage_selectors(unit)):
        return
    if isinstance(unit, Pipeline):
        for part in unit.units:
            _collect(part, skip, known, found)
    elif isinstance(unit, Parallel):
        branches = [set(known) for _ in unit.units]
        for part, branch in zip(unit.units, branches, strict=True):
            _collect(part, skip, branch, found)
        known.update(*branches)
        known.update(() if unit.failures is None else (key_name(unit.failures),))
    else:
        _collect_stage(unit, skip, known, found)


def _collect_stage(stage: Stage, skip: frozenset[str], known: set[str], found: dict[str, list[Taker]]) -> None:
    known.update(data_of(stage))
    for step, _ in reversed(steps_of(stage)):
        if not skip.isdisjoint(action_selectors(stage, step.action)):
            continue
        for wanted in step.inputs:
            if not _is_supplied(step, wanted, known):
                found.setdefault(wanted.key, []).append(Taker(stage.name, step.name, wanted))
        known.update(key for key in step.supplies if key not in step.local)


def _is_supplied(step: Step, wanted: Input, known: set[str]) -> bool:
    return wanted.context or wanted.name in step.bound or wanted.key in known or wanted.key in step.local


def answers(
    inputs: Mapping[str, Any], texts: frozenset[str], questions: Iterable[Wait | Question]
) -> tuple[dict[str, Any], set[str]]:
    """Return the inputs with the answers to these questions converted, and their keys; raises as `converted`."""
    made, known = dict(inputs), set[str]()
    for question in questions:
        key, wanted = question.key, type_of(question.classes)
        if key not in inputs or key in known or wanted is Any:
            continue
        known.add(key)
        try:
            result = _convert(inputs[key], wanted, key in texts)
        except Misfit as misfit:
            raise InputError(f"the input {key!r}: the run asks for it as {question.type}, and {misfit}", key) from None
        made[key] = inputs[key] if result is UNCHANGED else result
    return made, known


def converted(
    inputs: Mapping[str, Any], texts: frozenset[str], taken: Mapping[str, list[Taker]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the inputs converted, and warnings by their keys; raises `InputError` for one that does not fit.

    `texts` are the keys whose values were given as text; the values of the others come from JSON.
    """
    made, warnings = dict(inputs), dict[str, str]()
    for key, value in inputs.items():
        results: list[Any] = []
        misfits: list[str] = []
        for taker in taken.get(key, ()):
            try:
                result = _convert(value, taker.annotation, key in texts)
            except Misfit as misfit:
                misfits.append(
                    f"the input {key!r}: action {taker.action!r} of stage {taker.stage!r} takes it as "
                    f"{type_name(taker.annotation)}, and {misfit}"
                )
                continue
            if result is not UNCHANGED and not any(_same(result, other) for other in results):
                results.append(result)
        if misfits and not results:
            raise InputError(misfits[0], key)
        if len(results) == 1 and not misfits:
            made[key] = results[0]
        elif results:
            kinds = dict.fromkeys(type_name(taker.annotation) for taker in taken[key])
            warnings[key] = f"the input {key!r} stays as it was given: actions take it as {' and as '.join(kinds)}"
    return made, warnings


def is_convertible(text: str, annotation: Any) -> bool:
    """Whether a text would become something else as an input of this type, or be refused."""
    try:
        result = _convert(text, annotation, True)
    except Misfit:
        return True
    return result is not UNCHANGED and not _same(result, text)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and repr(one) == repr(other)


# Values.


def _convert(value: Any, annotation: Any, is_text: bool) -> Any:
    """Return the value as one of this annotation, or `UNCHANGED`; raises `Misfit`."""
    annotation = _plain(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return _of_union(value, arguments, is_text)
    if origin is Literal:
        return _of_literal(value, arguments, is_text)
    kind = origin or annotation
    if kind is list or kind is dict:
        return _of_container(value, cast("type[Any]", kind), arguments, is_text)
    if kind is None or kind is NoneType:
        return _of_none(value, is_text)
    for fits, accepted, convert in _TABLE:
        if isinstance(kind, type) and fits(kind):
            if accepted is None or isinstance(value, str) or type(value) in accepted:
                with suppress(ValueError, ArithmeticError, TypeError, KeyError):
                    return convert(value, kind)
            raise Misfit(f"{shortened(value)} is not one{_choices(kind) or _FORMS.get(kind.__name__, '')}")
    return UNCHANGED


def _choices(kind: Any) -> str:
    """Return the names of the members of an enumeration."""
    names = list(getattr(kind, "__members__", ()))
    return f" of {', '.join(names[:_CHOICES])}{', …' if len(names) > _CHOICES else ''}" if names else ""


# How values of these types are written, where their names do not say it.
_FORMS: Final = {
    "bool": ": write true or false, yes or no, 1 or 0",
    "date": ": write YYYY-MM-DD",
    "datetime": ": write YYYY-MM-DDTHH:MM:SS",
}


def _plain(annotation: Any) -> Any:
    """Return an annotation without aliases and metadata."""
    while True:
        if hasattr(annotation, "__metadata__"):  # Annotated
            annotation = annotation.__origin__
        elif hasattr(annotation, "__supertype__"):  # NewType
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType" and hasattr(annotation, "__value__"):
            annotation = annotation.__value__
        else:
            return annotation


def _of_union(value: Any, members: tuple[Any, ...], is_text: bool) -> Any:
    """Return the value as the first member that it fits; None for an empty text or `null`, unless text fits."""
    none = NoneType in members
    if none and is_text and value in ("", "null") and str not in map(_plain, members):
        return None
    if none and value is None:
        return None
    unchanged, misfits = False, list[str]()
    for member in members:
        if member is NoneType:
            continue
        try:
            result = _convert(value, member, is_text)
        except Misfit as misfit:
            misfits.append(str(misfit))
            continue
        if result is not UNCHANGED:
            return result
        unchanged = True
    if unchanged:
        return UNCHANGED
    raise Misfit(misfits[0] if len(misfits) == 1 else f"{shortened(value)} is none of these")


def _of_literal(value: Any, options: tuple[Any, ...], is_text: bool) -> Any:
    for option in options:
        if type(option) is type(value) and option == value:
            return option
    for option in options if isinstance(value, str) else ():
        try:
            if _convert(value, type(option), is_text) == option:
                return option
        except Misfit:
            continue
    raise Misfit(f"{shortened(value)} is not one of these")


def _of_none(value: Any, is_text: bool) -> None:
    if value is not None and not (is_text and value in ("", "null")):
        raise Misfit(f"{shortened(value)} is not null")


def _of_container(value: Any, kind: type[Any], arguments: tuple[Any, ...], is_text: bool) -> Any:
    name = "a JSON array" if kind is list else "a JSON object"
    if is_text and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Misfit(f"{shortened(value)} is not {name}") from None
    if type(value) is not kind:
        raise Misfit(f"{shortened(value)} is not {name}")
    if kind is list:
        (of_items,) = arguments or (Any,)
        return [_item(each, of_items, f"its item {at}") for at, each in enumerate(cast("list[Any]", value))]
    of_keys, of_items = arguments or (Any, Any)
    return {
        _item(key, of_keys, f"its key {key!r}"): _item(each, of_items, f"its value of {key!r}")
        for key, each in cast("dict[Any, Any]", value).items()
    }


def _item(value: Any, annotation: Any, where: str) -> Any:
    try:
        result = _convert(value, annotation, False)
    except Misfit as misfit:
        raise Misfit(f"{where} does not fit {type_name(annotation)}: {misfit}") from None
    return value if result is UNCHANGED else result


_BOOLS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _of_enum(value: Any, kind: Any) -> Any:
    """Return the member of this name, or else of this value."""
    if isinstance(value, str) and value in kind.__members__:
        return kind[value]
    for member in kind:
        if type(member.value) is type(value) and member.value == value:
            return member
    for member in kind if isinstance(value, str) else ():
        if not isinstance(member.value, str) and str(member.value) == value:
            return member
    raise ValueError


def _is(module: str, name: str) -> Callable[[type[Any]], bool]:
    """Return the test for a class of the standard library, which is not imported for it."""
    return lambda kind: kind.__name__ == name and kind.__module__.partition(".")[0] == module


def _derives(module: str, name: str) -> Callable[[type[Any]], bool]:
    return lambda kind: any(map(_is(module, name), kind.__mro__))


def _as_text(value: Any, kind: Any) -> Any:
    return kind(value)


# The types that are converted, the types of the values that are accepted for them besides text, and how.
_TABLE: Final[tuple[tuple[Callable[[type[Any]], bool], tuple[type, ...] | None, Callable[[Any, Any], Any]], ...]] = (
    (_is("builtins", "bool"), (bool,), lambda value, _: _BOOLS[str(value).strip().lower()]),
    (_is("builtins", "int"), (int,), _as_text),
    (_is("builtins", "float"), (int, float), _as_text),
    (_is("builtins", "str"), (), lambda value, _: value),
    (_derives("enum", "Enum"), None, _of_enum),
    (_derives("pathlib", "PurePath"), (), _as_text),
    (_is("datetime", "date"), (), lambda value, kind: kind.fromisoformat(value.strip())),
    (_is("datetime", "datetime"), (), lambda value, kind: kind.fromisoformat(value.strip())),
    (_is("decimal", "Decimal"), (int, float), lambda value, kind: kind(str(value))),
    (_is("uuid", "UUID"), (), _as_text),
)


def listed(flow: Unit) -> Iterator[str]:
    """Yield a line for each input that a workflow takes: its name, type and default."""
    problems = flow.validate({})
    maybe = {problem.key for problem in problems} - {problem.key for problem in problems if problem.certain}
    for key, known in takers(flow).items():
        types = {type_name(each.annotation): each.annotation for each in known if each.annotation is not EMPTY}
        kinds = [f"{named}{_choices(kind).replace(' of', ', one of', 1)}" for named, kind in types.items()]
        defaults = [each.wanted.default for each in known]
        optional = f" (default: {_default(defaults[0])})"
        if EMPTY in defaults:
            optional = " (unless the run supplies it)" if key in maybe else ""
        yield f"{key}{': ' if kinds else ''}{' and '.join(kinds)}{optional}"


def _default(value: Any) -> str:
    """Return a default as it is given on the command line, texts in quotes."""
    kind = cast("Any", type(value))
    if hasattr(kind, "__members__"):
        return str(value.name)
    is_written = kind.__module__ != "builtins" and any(fits(kind) for fits, _, _ in _TABLE)
    return str(value) if is_written else shortened(value)
