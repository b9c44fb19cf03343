"""Results of commands as JSON."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from flowdeco.engine.runs import Run, Scope
    from flowdeco.show import Plan
    from flowdeco.show.parts import Part

__all__ = ["plain", "plan_as_data", "print_json", "repr_of", "run_as_data"]


def print_json(data: Any, indent: int | None = 2) -> None:
    """Print data as JSON, in one line if `indent` is None.

    Characters outside of ASCII are escaped where the output may not have them.
    """
    import json  # most commands print none

    encodes_all = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    text = json.dumps(data, indent=indent, ensure_ascii=not encodes_all)
    if not text.replace("\n", "").isprintable():  # JSON itself escapes only some control characters
        text = json.dumps(data, indent=indent).replace("\x7f", "\\u007f")
    print(text)


def run_as_data(run: Run) -> dict[str, Any]:
    """Return a run for JSON: the attributes of `Run`, of `StageRecord` and of `ActionRecord`.

    `parent` is the place in `stages` of the stage that inserted a stage.
    """
    from flowdeco.durable.info import questions_of  # a run without a journal needs no database
    from flowdeco.show.inserters import Inserters  # most commands show no run

    inserters = Inserters(run.stages)
    return {
        "id": run.id,
        "pipeline": run.pipeline.name,
        "status": str(run.status),
        "result": plain(run.result),
        "reason": run.reason,
        "due": run.due,
        "questions": [question._asdict() for question in questions_of(run.waits)],
        "error": _error(run.error),
        "started": run.started,
        "elapsed": run.elapsed,
        "forgotten": run.forgotten,
        "stages": [
            {
                **_record(record),
                "scope": _scopes(record.scope),
                "parent": inserters.find(record.inserted_by, record.scope),
                "actions": [_record(action) for action in record.actions],
            }
            for record in run.stages
        ],
        "pipelines": [{**_record(record), "scope": _scopes(record.scope)} for record in run.pipelines],
        "store": plain(dict(run.store)),
    }


def plan_as_data(plan: Plan) -> dict[str, Any]:
    """Return a plan for JSON: the attributes of each part that are set."""
    return {"name": plan.name, "title": plan.title, "description": plan.description, "parts": _parts(plan.parts)}


_PLANNED: Final = (
    "kind", "name", "title", "description", "tags", "reads", "writes", "inserts", "middleware", "data", "limit",
)  # fmt: skip


def _parts(parts: Iterable[Part]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for part in parts:
        data = {name: getattr(part, name) for name in _PLANNED if getattr(part, name)}
        found.append({**data, "parts": _parts(part.parts)} if part.parts else data)
    return found


def _record(record: Any) -> dict[str, Any]:
    return {
        **{name: getattr(record, name) for name in _RECORDED},
        "status": str(record.status),
        "error": _error(record.error),
        "inserted": [unit.name for unit in record.inserted],
        "switches": [{"selector": selector, "on": on} for selector, on in record.switches],
        "failures": [_error(error) for error in record.failures],
        "messages": [message._asdict() for message in record.messages],
    }


_RECORDED: Final = (
    "name", "status", "started", "elapsed", "inserted_by", "error", "attempts", "recovered", "cached", "restored",
    "number",
)  # fmt: skip


def _scopes(scope: Scope | None) -> list[dict[str, Any]]:
    """Return the pipelines with options and the branches of groups around a stage, the outermost first."""
    from flowdeco.engine.outcome import enclosing  # loaded with the run

    scopes = [*enclosing(scope)][::-1]
    return [{"name": each.name, "branch": each.branch, "inserted_by": each.inserted_by} for each in scopes]


def _error(error: BaseException | None) -> str | None:
    return None if error is None else "".join(traceback.format_exception_only(error)).rstrip()


# The forms of values that are not of a plain type. A list or dict consists of values again.
_FORMS: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...] = (
    (lambda value: isinstance(value, Mapping), lambda value: {_member(key): item for key, item in value.items()}),
    (lambda value: isinstance(value, (list, tuple, set, frozenset)), list),
    (
        lambda value: dataclasses.is_dataclass(value) and not isinstance(value, type),
        lambda value: {field.name: getattr(value, field.name) for field in dataclasses.fields(value)},
    ),
    (lambda value: isinstance(value, os.PathLike), os.fsdecode),
    (lambda value: callable(getattr(value, "isoformat", None)), lambda value: str(value.isoformat())),
    (lambda value: isinstance(value, str), str.__str__),  # of a subclass, an enumeration for one
    (lambda value: isinstance(value, int), int),
    (
        lambda value: isinstance(value, float),
        lambda value: float(value) if math.isfinite(value) else repr(float(value)),
    ),
)


class Shown(str):
    """The description of a value that cannot be shown; shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


_MOST_BITS: Final = 14_000  # Python refuses to write an int of more than 4,300 digits


def plain(value: Any, above: frozenset[int] = frozenset()) -> Any:
    """Return a value for JSON; a value without a form in JSON becomes its repr."""
    if type(value) in (NoneType, bool, str):
        return value
    if type(value) is int:
        return value if value.bit_length() <= _MOST_BITS else Shown(f"<an int of {value.bit_length():,} bits>")
    if id(value) in above:
        return "..."
    above |= {id(value)}
    try:
        found: Any = next((form for fits, form in _FORMS if fits(value)), repr_of)(value)
        if isinstance(found, dict):
            return {key: plain(item, above) for key, item in cast("dict[str, Any]", found).items()}
        if isinstance(found, list):
            return [plain(item, above) for item in cast("list[Any]", found)]
    except Exception:  # of its class
        return repr_of(value)
    return found


def _member(key: object) -> str:
    return key if isinstance(key, str) else repr(key)


def repr_of(value: object) -> str:
    """Return the repr of a value, or what is wrong with it."""
    try:
        return repr(value)
    except Exception as error:
        return Shown(f"<{type(value).__name__} whose repr raises {type(error).__name__}>")
