"""From the rows of a journal back to outcomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, cast

from flowdeco.engine.journal import Codec, Row
from flowdeco.engine.messages import MessageRecord
from flowdeco.engine.outcome import (
    ActionRecord,
    Dropped,
    Outcome,
    Scope,
    Selection,
    StageRecord,
    Status,
    inserter,
)
from flowdeco.engine.results import Yielded
from flowdeco.engine.waits import Called
from flowdeco.errors import CALLED, Bail, JournalError, Wait
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage
from flowdeco.model.deltas import NOTHING, Delta
from flowdeco.model.keys import Local, Name
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import Step
from flowdeco.model.tuples import NamedTuple

__all__ = ["Recorded", "kind_of", "outcomes", "unfinished_stage", "with_actions"]

_KINDS: Final = {Action: "action", Step: "action", Stage: "stage", Pipeline: "pipeline", Parallel: "group"}
_RECORDS: Final[dict[str, type[Outcome]]] = {"action": ActionRecord, "stage": StageRecord}
_STATUS: Final[dict[str, Status]] = {str(status): status for status in Status}
_KEPT: Final = 1024  # inserters and kinds; most rows share them


class Recorded(NamedTuple):
    """Stands in for a step's unit where only its row is known: its kind, and the stage of an action."""

    kind: str
    stage: str


def kind_of(unit: Any) -> str:
    """Return the kind of a unit or step, or of the stand-in of one."""
    return unit.kind if type(unit) is Recorded else _KINDS[type(unit)]


_NO_STAGE: Final = (-1, 0.0)


def outcomes(rows: list[Row], codec: Codec) -> dict[str, dict[int, Outcome]]:
    """Return the outcomes that rows describe, by branch and number; the later one of two for one step.

    Within a branch, they are in the order of writing.
    Raises `JournalError` if a step of a finished scope is missing.
    """
    found: dict[str, dict[int, Outcome]] = {}
    later: dict[str, tuple[int, float]] = {}  # by branch: its last stage, and the time of the actions written after it
    nothing = codec.encode({}, "")
    for at, row in enumerate(rows):
        outcome = _decoded(row, codec, nothing, at)
        steps = found.setdefault(row.branch, {})
        before = steps.pop(row.number, None)
        if before is not None and before.entry_writes and not outcome.entry_writes:
            outcome = outcome._replace(entry_writes=before.entry_writes)  # only the row of its beginning has it
        if before is not None and before.selection.lost and outcome.status is Status.RUNNING:
            lost: Any = before.selection.lost  # by now; each of these rows has only the latest
            lost.update(outcome.selection.lost)
            outcome = outcome._replace(selection=before.selection)
        steps[row.number] = outcome
        if row.kind != "action":
            later[row.branch] = (row.number, 0.0) if row.kind == "stage" else _NO_STAGE
        elif row.branch in later:
            number, elapsed = later[row.branch]
            later[row.branch] = number, elapsed + row.elapsed
    for branch, (number, elapsed) in later.items():
        did = found[branch].get(number)
        if did is not None and not did.is_final:  # its process was killed before it ended
            found[branch][number] = did._replace(elapsed=did.elapsed + elapsed)
    _check_complete(found)
    return found


def with_actions(steps: Mapping[int, Outcome]) -> list[tuple[Outcome, list[Outcome]]]:
    """Return the scopes of a branch in their order, with their actions; a stage without a row is made from these."""
    scopes: list[tuple[Outcome, list[Outcome]]] = []
    follows = -1  # the number of the next action in the last scope
    for number, did in sorted(steps.items()):
        if did.unit.kind != "action":
            scopes.append((did, []))
        elif number != follows:
            scopes.append((unfinished_stage(did), [did]))
        else:
            scopes[-1][1].append(did)
        follows = number + 1
    return scopes


def unfinished_stage(first: Outcome) -> Outcome:
    """Return the record of a stage that has rows for its actions only."""
    stage = Recorded("stage", first.unit.stage)
    return StageRecord(first.unit.stage, stage, Status.RUNNING, first.started, 0.0, number=first.number - 1)


def _decoded(row: Row, codec: Codec, nothing: bytes, order: int) -> Outcome:
    parts: Any = None if row.payload == nothing else codec.decode(row.payload)
    try:
        if parts is None:
            return _outcome(row, {"writes": NOTHING})
        if not isinstance(parts, tuple):
            return _outcome(row, _fields(parts, order))
        key, value = cast("tuple[str, Any]", parts)
        writes = Delta({key: value}, NOTHING.deletes, NOTHING.appends, order=order)
        return _outcome(row, {"writes": writes, "result": UNSET if value is None else value})
    except (TypeError, ValueError, LookupError, AttributeError) as error:  # written by something else than us
        raise JournalError(
            f"the journal is damaged: step {row.number} of branch {row.branch!r} ({row.kind} {row.action or row.stage!r}) "
            f"does not describe an outcome: {type(error).__name__}: {error}"
        ) from error


def _outcome(row: Row, fields: dict[str, Any]) -> Outcome:
    _, number, kind, stage, action, status, started, elapsed, fingerprint, _ = row
    return _RECORDS.get(kind, Outcome)(
        action or stage, _recorded(kind, stage), _STATUS[status], started, elapsed, number=number,
        fingerprint=fingerprint, **fields,
    )  # fmt: skip


def _fields(parts: dict[str, Any], order: int) -> dict[str, Any]:
    """Return the fields of an outcome that its payload describes."""
    fields: dict[str, Any] = {name: _READ[name](parts[name]) for name in parts if name in _READ}
    fields["writes"] = writes = _delta(parts, order)
    if "reason" in parts and fields.get("error") is None:
        fields["error"] = Bail(*parts["reason"])
    if "in" in parts:
        fields["scope"] = _scope(parts["in"])
    if "entering" in parts:
        fields["entry_writes"] = tuple(_delta(each, order) for each in parts["entering"])
    if "lost" in parts or "counted" in parts:
        fields["selection"] = _selection(parts)
    if "by" in parts:
        fields["inserted_by"] = _inserter(parts)
    if "result" in parts:
        fields["result"] = _result(parts["result"], writes)
    return fields


_recorded: Final = lru_cache(_KEPT)(Recorded)
_inserted_by: Final = lru_cache(_KEPT)(inserter)


def _message(parts: Any) -> MessageRecord:
    return MessageRecord(*parts)


def _dropped(parts: Any) -> Dropped:
    return {(place, number, name): tuple(map(_attempt, found)) for place, number, name, found in parts}


def _attempt(parts: Any) -> MessageRecord | BaseException:
    return parts if isinstance(parts, BaseException) else _message(parts)


def _wait(parts: dict[str, Any]) -> Wait:
    for name in ("classes", "at"):
        if name in parts:
            parts[name] = tuple(parts[name])
    if parts["kind"] == CALLED:
        parts["value"] = _call(parts["value"])
    return Wait(**parts)


def _selection(parts: Mapping[str, Any]) -> Selection:
    counted = parts.get("counted")
    return Selection(dict(parts.get("lost", ())), None if counted is None else frozenset(counted))


# The fields of an outcome that are in a row by their own names.
_READ: Final[dict[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(("error", "end", "attempts", "recovered", "entered", "branches", "cached"), lambda part: part),
    **dict.fromkeys(("inserted", "repeats", "failures"), tuple),
    "switches": lambda part: tuple((selector, on) for selector, on in part),
    "dropped": _dropped,
    "waits": lambda part: tuple(map(_wait, part)),
    "messages": lambda part: tuple(map(_message, part)),
}


def _inserter(parts: Mapping[str, Any]) -> str | None:
    return _inserted_by(parts["by"], parts["by_number"]) if "by_number" in parts else parts["by"]


def _call(parts: Any) -> Called:
    value = parts["value"]
    if "end" in parts:
        value = Yielded(value)
        value.value = parts["end"]
    return Called(value, _delta(parts, 0), parts["inserted"], [(selector, on) for selector, on in parts["switches"]])


def _scope(inside: list[tuple[str, str, int | None, str | None]]) -> Scope | None:
    scope = None
    for name, id, branch, by in reversed(inside):
        scope = Scope(name, id, branch, by, scope)
    return scope


def _delta(parts: Mapping[str, Any], order: int) -> Delta:
    get = parts.get
    puts, deletes, appends, changes = get("puts"), get("deletes"), get("appends"), get("changes")
    if "local" in parts:
        puts = _with_local(puts, parts["local"])
    if "local_changes" in parts:
        changes = _with_local(changes, parts["local_changes"])
    if changes:
        return Delta(puts or {}, deletes or [], appends or {}, changes, order)
    if puts or deletes or appends:
        if not isinstance(puts or {}, dict) or not isinstance(appends or {}, dict):
            raise TypeError("its writes are not a mapping")
        return Delta(puts or NOTHING.puts, deletes or NOTHING.deletes, appends or NOTHING.appends, order=order)
    return NOTHING


def _with_local(values: Mapping[str, Any] | None, local: Mapping[str, Any]) -> dict[Name, Any]:
    whole: dict[Name, Any] = {Local(name): value for name, value in local.items()}
    whole.update(values or {})
    return whole


def _result(where: Any, writes: Delta) -> Any:
    if where is None:
        return UNSET
    how, key = where
    if how in ("put", "local"):
        value = writes.puts.get(key if how == "put" else Local(key))
        return UNSET if value is None else value  # stored, and not a result
    if how == "appended":
        items = writes.appends.get(key) or [UNSET]
        return items[-1]
    return key


def _check_complete(found: Mapping[str, Mapping[int, Outcome]]) -> None:
    """Raise `JournalError` if a step below a finished scope is missing: its row was lost or removed."""
    for branch, steps in found.items():
        checked = 0
        for number in sorted(steps):
            outcome = steps[number]
            if outcome.end <= checked or not outcome.is_final:
                continue
            inside = number + 1 if outcome.entered else outcome.end
            while inside < outcome.end:
                if inside not in steps:
                    raise JournalError(f"the journal is damaged: branch {branch!r} has a gap before step {inside + 1}")
                within, inside = steps[inside], inside + 1
                if not within.entered:  # a failed atomic scope has no rows of its steps
                    inside = max(inside, within.end)
            checked = outcome.end
