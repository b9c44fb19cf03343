"""From outcomes to rows of the journal; `rows` is the way back.

A row is an outcome in the journal's codec. Nothing here touches a file: the evaluation collects the rows of each branch,
and asks its driver to write them after each action, before anything else of that branch begins. The row of a stage or
pipeline that ends is written with the next ones: if the process is killed before that, it is opened again by a resume,
and all in it is restored. A value that cannot be encoded fails the action that wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any, Final

from flowdeco.engine.changes import Looks
from flowdeco.engine.generations import Generation
from flowdeco.engine.journal import Codec, Journal, Payload, Row, encoder
from flowdeco.engine.messages import MessageRecord
from flowdeco.engine.outcome import (
    ALL,
    ActionRecord,
    Outcome,
    Selection,
    Status,
    enclosing,
)
from flowdeco.engine.requests import Failure
from flowdeco.engine.results import Yielded
from flowdeco.engine.rows import kind_of
from flowdeco.engine.waits import Called
from flowdeco.errors import Bail, DefinitionError, Suspend, Wait, portable, shortened
from flowdeco.model.contents import ATOMS, Digest
from flowdeco.model.definitions import Parallel, Stream
from flowdeco.model.deltas import NOTHING, Delta
from flowdeco.model.keys import Local, Name, key_name
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import Step
from flowdeco.model.units import every_unit

__all__ = ["Recorder"]

_KEPT: Final = 1024  # fingerprints of functions; a run may make new functions without end

Fingerprint = Callable[[Any], str]
Digester = Callable[[Any], Digest | None]


class Recorder:
    """Makes rows of the outcomes of a run; `unsaved` is the error after which its journal is no longer written.

    `fingerprint` describes the code of a function, `digest` the content of a value.
    """

    def __init__(self, journal: Journal, run_id: str, fingerprint: Fingerprint, digest: Digester) -> None:
        self.journal = journal
        self.codec: Codec = journal.codec
        self.run_id = run_id
        self.generation = Generation()
        self.unsaved: Failure = None
        self.looks = Looks(digest)
        self._encode = encoder(journal)
        self._nothing = journal.codec.encode({}, "")
        self._fingerprint = fingerprint
        self._fingerprints: dict[int, tuple[Any, str]] = {}
        # A pair is shorter than a dict; JSON is read by people, and not every codec knows tuples.
        self._terse = self.codec.name == "pickle" and type(self.codec.decode(self.codec.encode((), ""))) is tuple

    def write(self, rows: Sequence[Row]) -> None:
        """Have the journal remember rows, as those of this generation of the run."""
        suffix = self.generation.suffix
        self.journal.write(self.run_id, [row._replace(branch=row.branch + suffix) for row in rows] if suffix else rows)

    def drop(self, cuts: Mapping[str, int]) -> None:
        """Have the journal forget the rows of these branches from these numbers on."""
        self.journal.drop(self.run_id, {branch + self.generation.suffix: since for branch, since in cuts.items()})

    def drop_older(self) -> None:
        """Have the journal forget the earlier generations."""
        self.journal.drop(self.run_id, dict.fromkeys(self.generation.older, 0))

    def row(self, branch: str, stage: str | None, outcome: Outcome) -> Row:
        """Return the row of an outcome; raises `SerializationError` naming the path of the part that cannot be encoded."""
        kind = kind_of(outcome.unit)
        name = outcome.name
        what = f"action {name!r} of stage {stage!r}" if stage is not None else f"{kind} {name!r}"
        if self.looks.known or self.looks.parts:
            for written in (outcome.writes or NOTHING, *outcome.entry_writes):
                self.looks.forget(written.keys())
        try:
            payload = self._encode(self._parts(branch, outcome), what)
        except Exception:
            self.looks.forget()  # of changes that are not written
            raise
        self.note_written(payload, (outcome.writes or NOTHING).puts.items())
        if kind != "action" and type(payload) is Payload:
            payload = payload.kept()  # middleware runs before it is written
        code = outcome.fingerprint or (self.code(outcome.unit.__wrapped__) if kind == "action" else "")
        return Row(
            branch, outcome.number, kind, stage or name, name if kind == "action" else None, str(outcome.status),
            outcome.started, outcome.elapsed, code, payload,
        )  # fmt: skip

    def note_written(self, payload: bytes, values: Iterable[tuple[Name, Any]]) -> None:
        """Remember the digests of large values that the journal is about to get: the first step to read one need not."""
        if type(payload) is Payload:
            for key, value in values:
                if type(value) not in ATOMS and not self.looks.is_frozen(key):
                    self.looks.note(key, value, self.looks.digest(value))

    def reopening(self, branch: str, outcome: Outcome) -> Row:
        """Return the row of a scope that had ended, and is reopened."""
        begun = Outcome(
            outcome.name, outcome.unit, Status.RUNNING, outcome.started, 0.0, outcome.inserted_by, outcome.number,
            scope=outcome.scope, branches=outcome.branches, selection=outcome.selection._replace(counted=None),
            entry_writes=outcome.entry_writes,
        )  # fmt: skip
        return self.row(branch, None, begun)

    def value_row(self, branch: str, stage: str, did: ActionRecord, step: Step, value: Any) -> Row | None:
        """Return the row of an action that did nothing but return a value, stored under one key; None if there is more.

        Most rows are such, and the general path takes twice as long.
        """
        if did.inserted_by is not None:
            return None
        try:
            key = step.writes
            if value is step.nothing:
                payload = self._nothing
            elif type(key) is Local:
                payload = self._encode({"local": {key.name: value}, "result": ("local", key.name)}, key.name)
            elif self._terse:
                payload = self._encode((key, value), key)
            else:
                payload = self._encode({"puts": {key: value}, "result": ("put", key)}, key)
        except Exception:  # reported when the whole outcome is encoded
            return None
        looks = self.looks
        if looks.known or looks.parts:
            looks.forget((key,))
        if type(payload) is Payload:
            self.note_written(payload, ((key, value),))
        code = self.code(step.function)
        return Row(branch, did.number, "action", stage, step.name, "completed", did.started, did.elapsed, code, payload)

    def _parts(self, branch: str, outcome: Outcome) -> dict[str, Any]:
        parts = _surroundings(branch, outcome)
        if outcome.writes is not None:
            failures = outcome.unit.failures if type(outcome.unit) is Parallel else None
            writes = outcome.writes if failures is None else self._portable(outcome.writes, key_name(failures))
            parts.update(_of_delta(writes))
        if outcome.entry_writes:
            parts["entering"] = [_of_delta(delta) for delta in outcome.entry_writes]
        error = outcome.error
        if isinstance(error, Bail):
            parts["reason"] = (error.reason,)
        elif error is not None:
            parts["error"] = portable(Suspend(error.reason) if isinstance(error, Suspend) else error, self._copied)
        for name in ("inserted", "switches", "recovered", "branches", "cached"):
            if value := getattr(outcome, name):
                parts[name] = value
        if outcome.selection is not ALL:
            parts.update(self._of_selection(outcome.selection))
        if outcome.attempts > 1:
            parts.update(self._of_attempts(outcome))
        if outcome.messages:
            parts["messages"] = list(map(list, outcome.messages))
        if outcome.waits:
            written = (self._of_wait(wait, outcome.is_final) for wait in outcome.waits)
            parts["waits"] = [wait for wait in written if wait]
        if outcome.end >= 0:
            parts["end"] = outcome.end
        if not outcome.entered:
            parts["entered"] = False
        if outcome.result is not UNSET:
            parts["result"] = _where(outcome.result, outcome.writes)
        return parts

    def _portable(self, writes: Delta, failures: str) -> Delta:
        """Return writes whose list of failed branches has exceptions that survive the journal."""
        if failures not in writes.puts:
            return writes
        listed = [(name, portable(error, self._copied)) for name, error in writes.puts[failures]]
        return writes._replace(puts={**writes.puts, failures: listed})

    def _of_attempts(self, outcome: Outcome) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "attempts": outcome.attempts,
            "repeats": list(outcome.repeats),
            "failures": self._written_attempts(outcome.failures),
        }
        if outcome.dropped:
            parts["dropped"] = [
                [*step, written]
                for step, attempts in outcome.dropped.items()
                if (written := self._written_attempts(attempts))
            ]
        return parts

    def _of_selection(self, selection: Selection) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        if selection.lost:
            parts["lost"] = [[index, portable(error, self._copied)] for index, error in selection.lost.items()]
        if selection.counted is not None:
            parts["counted"] = sorted(selection.counted)
        return parts

    def _written_attempts(self, attempts: Iterable[MessageRecord | BaseException]) -> list[Any]:
        """Return messages and failures of earlier attempts as they are written, in so far as the codec knows them."""
        written: list[Any] = []
        for each in attempts:
            made = list(each) if isinstance(each, MessageRecord) else portable(each, self._copied)
            with suppress(Exception):
                self._encode([made], "failures")
                written.append(made)
        return written

    def _copied(self, error: BaseException) -> Any:
        return self.codec.decode(self.codec.encode(error, "error"))

    def _of_wait(self, wait: Wait, is_over: bool) -> dict[str, Any]:
        """Return the fields of a wait that are not the usual ones; an `about` that cannot be encoded is described.

        The value of an answer that was consumed is among the inputs of the run. For a call that cannot be encoded, return
        an empty dict.
        """
        wait = wait._replace(value=None) if is_over else wait
        usual, parts = Wait._field_defaults, wait._asdict()
        for name in ("classes", "at"):
            parts[name] = parts[name] and list(parts[name])
        if isinstance(wait.value, BaseException):
            parts["value"] = portable(wait.value, self._copied)
        if isinstance(wait.value, Called):
            parts["value"] = _of_call(wait.value)
            try:
                self._encode(parts["value"], "call")
            except Exception:
                return {}  # it is repeated
        try:
            self._encode(wait.about, "about")
        except Exception:
            parts["about"] = shortened(wait.about)
        return {name: value for name, value in parts.items() if name == "kind" or value is not usual[name]}

    def code(self, function: Any) -> str:
        """Return the fingerprint of a function, worked out once."""
        known = self._fingerprints.get(id(function))
        if known is None:
            if len(self._fingerprints) >= _KEPT:
                self._fingerprints.clear()
            known = self._fingerprints[id(function)] = function, self._fingerprint(function)
        return known[1]

    def check_repeatable(self, units: Iterable[Any], who: str, how: str = "inserted") -> None:
        """Raise `DefinitionError` for a stream that a resumed run could not call again, also that of a group."""
        for unit in every_unit(units):
            stream = unit.stream if isinstance(unit, Parallel) else unit
            if isinstance(stream, Stream) and not callable(stream.source):
                raise DefinitionError(
                    f"{who} {how} the {stream.name}, which cannot be called again on resume: "
                    f"in a durable run, write stream(function, *args)"
                )


def _surroundings(branch: str, outcome: Outcome) -> dict[str, Any]:
    """Return who inserted a step, and the scopes around it that began in its branch, the innermost first.

    With these, a run can be read without its pipeline: a pipeline without middleware has no row of its own.
    """
    parts: dict[str, Any] = {}
    if outcome.inserted_by is not None:
        parts["by"] = str(outcome.inserted_by)
        number = getattr(outcome.inserted_by, "number", None)
        if number is not None:
            parts["by_number"] = number
    scopes = enclosing(outcome.scope)
    if isinstance(outcome.unit, Parallel):
        next(scopes, None)  # the group itself
    inside = [
        [scope.name, scope.id, scope.branch, scope.inserted_by and str(scope.inserted_by)]
        for scope in takewhile(lambda scope: scope.id.startswith(f"{branch}."), scopes)
    ]
    if inside:
        parts["in"] = inside
    return parts


def _of_delta(delta: Delta) -> dict[str, Any]:
    puts, local = _by_scope(delta.puts)
    changes, local_changes = _by_scope(delta.changes)
    parts = {
        "puts": puts, "deletes": delta.deletes, "appends": delta.appends, "local": local,
        "changes": changes, "local_changes": local_changes,
    }  # fmt: skip
    return {name: part for name, part in parts.items() if part}


def _of_call(call: Called) -> dict[str, Any]:
    value, delta, inserted, switches = call
    parts = {**_of_delta(delta), "inserted": list(inserted), "switches": list(switches), "value": value}
    return {**parts, "value": list(value), "end": value.value} if isinstance(value, Yielded) else parts


def _by_scope(values: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], dict[str, Any]]:
    """Return the values of the run, and those that are local to a stage."""
    local = {key.name: value for key, value in values.items() if type(key) is Local}
    return {key: value for key, value in values.items() if type(key) is not Local} if local else values, local


def _where(result: Any, writes: Delta | None) -> tuple[str, Any]:
    """Return where a result is found: under a key, as the last item of a list, or on its own."""
    if writes is not None:
        for key, value in writes.puts.items():
            if value is result:
                return ("local", key.name) if type(key) is Local else ("put", key)
        for key, items in writes.appends.items():
            if items and items[-1] is result:
                return "appended", key
    return "value", result
