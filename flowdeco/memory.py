"""How an evaluation remembers: each step that is over becomes a row of the journal, each row a step that is restored.

Nothing here touches a file. Rows collect here, and the evaluator asks its driver to `save` them before the next action
starts. What cannot be encoded fails the action that wrote it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from flowdeco.definitions import Action, Stage, Stream
from flowdeco.errors import DefinitionError, RunError
from flowdeco.journal import Codec, Journal, Remembered, Row
from flowdeco.options import UNSET
from flowdeco.past import Closed, Did, Past, StagePast, failed_action
from flowdeco.runs import ActionRecord, StageRecord, Status
from flowdeco.store import MISSING, Delta, Store

__all__ = ["Memory", "branch_id", "past_of", "step_id"]

ROOT: Final = "0"
_ATOMS: Final = frozenset({str, int, float, bool, bytes, complex, type(None)})

Fingerprint = Callable[[Any], str]


def _hashed(*parts: object) -> str:
    from hashlib import (
        blake2b,  # not loaded for runs without groups and journals: it takes 2 of the 15 ms of our import
    )

    return blake2b("\0".join(map(str, parts)).encode(), digest_size=10).hexdigest()


def branch_id(parent: str, group: int, branch: int) -> str:
    """Return the identity of a branch: of constant size, however deep groups are nested."""
    return _hashed(parent, group, branch)


def step_id(run_id: str, branch: str, number: int, name: str) -> str:
    """Return the identity of a step: the same whenever, and however often, it is performed in this run."""
    return _hashed(run_id, branch, number, name)


class Memory:
    """The rows of a run that are to be saved."""

    def __init__(self, journal: Journal, run_id: str, fingerprint: Fingerprint) -> None:
        self.journal = journal
        self.codec: Codec = journal.codec
        self.run_id = run_id
        self.fingerprint = fingerprint
        self.rows: list[Row] = []

    def save(self) -> None:
        """Write what has come together; this is I/O, for a driver to perform."""
        rows, self.rows = self.rows, []
        if rows:
            self.journal.write(self.run_id, rows)

    def drop(self, cuts: Mapping[str, int]) -> None:
        """Forget the rows of these branches from these numbers on; this is I/O, too."""
        self.rows = [row for row in self.rows if row.number < cuts.get(row.branch, row.number + 1)]
        self.journal.drop(self.run_id, cuts)

    # What an action that is not over yet may change in place.

    def seen(self, store: Store, keys: Iterable[str]) -> dict[str, Any]:
        """Return what tells later whether these values were changed in place."""
        return {
            key: self._image(store, key) for key in keys if type(store._data.get(key)) not in _ATOMS and key in store
        }

    def changed(self, store: Store, seen: Mapping[str, Any], delta: Delta) -> None:
        """Add the values that were changed in place to what was written."""
        for key, image in seen.items():
            written = key in delta.puts or key in delta.appends or key in delta.deletes
            if not written and key in store and self._image(store, key) != image:
                delta.puts[key] = store._data[key]

    def _image(self, store: Store, key: str) -> Any:
        try:
            return self.codec.encode(store._data[key], key)
        except Exception:  # said when it is written
            return MISSING

    def check_repeatable(self, inserted: Iterable[Any], name: str) -> None:
        """Raise `DefinitionError` for a stream that a resumed run could not call again."""
        for unit in inserted:
            if isinstance(unit, Stream) and not callable(unit.source):
                raise DefinitionError(
                    f"action {name!r} inserted the {unit.name}, which cannot be called again on resume: "
                    f"in a durable run write stream(function, *args)"
                )

    # From steps to rows.

    def payload(self, what: str, delta: Delta, **rest: Any) -> bytes:
        """Encode what a step did; raises `SerializationError` naming the key and path of what cannot be."""
        told = {name: value for name, value in rest.items() if value}
        if "error" in told:
            told["error"] = portable(told["error"], self.codec)
        parts = {"puts": delta.puts, "deletes": delta.deletes, "appends": delta.appends}
        return self.codec.encode({**{name: part for name, part in parts.items() if part}, **told}, what)

    def action(self, branch: str, number: int, stage: str, record: ActionRecord, payload: bytes) -> None:
        """Add the row of an action."""
        fingerprint = self.fingerprint(record.action.__wrapped__)
        self.rows.append(
            Row(
                branch, number, "action", stage, record.name, str(record.status), record.started, record.elapsed,
                fingerprint, payload,
            )
        )  # fmt: skip

    def copy(self, branch: str, number: int, did: Did) -> None:
        """Add the row of an action that another run has done."""
        record = did.record
        payload = self.payload(
            f"action {record.name!r}", did.delta or Delta({}, [], {}), inserted=record.inserted, switches=record.switches,
            error=record.error, attempts=record.attempts, recovered=record.recovered,
            result=() if did.result is UNSET else ("value", did.result),
        )  # fmt: skip
        self.rows.append(
            Row(
                branch, number, "action", did.stage, record.name, str(record.status), record.started, record.elapsed,
                did.fingerprint, payload,
            )
        )  # fmt: skip

    def stage(self, branch: str, number: int, record: StageRecord, delta: Delta) -> None:
        """Add the row of a stage."""
        payload = self.payload(
            f"stage {record.name!r}", delta, error=record.error, recovered=record.recovered, inserted=record.inserted,
            attempts=record.attempts if record.attempts > 1 else None,
            failed=self._told(failed_action(record)) if record.recovered else None,
        )  # fmt: skip
        self.rows.append(
            Row(
                branch,
                number,
                "stage",
                record.name,
                None,
                str(record.status),
                record.started,
                record.elapsed,
                "",
                payload,
            )
        )

    def _told(self, record: ActionRecord | StageRecord | None) -> Any:
        """Return what is remembered of the record of a failure that was recovered further out."""
        if record is None:
            return None
        error = portable(record.error, self.codec)
        return (
            record.name,
            str(record.status),
            record.started,
            record.elapsed,
            record.inserted_by,
            error,
            record.attempts,
        )

    def pipeline(
        self, branch: str, number: int, name: str, now: float, delta: Delta, closed: Closed, opened: int
    ) -> None:
        """Add the row of a pipeline whose middleware is over."""
        failed = [(self._told(record), [self._told(action) for action in record.actions]) for record in closed.failed]
        payload = self.payload(f"pipeline {name!r}", delta, inserted=closed.inserted, opened=opened, failed=failed)
        self.rows.append(Row(branch, number, "pipeline", name, None, "completed", now, 0.0, "", payload))


def portable(error: BaseException | None, codec: Codec) -> BaseException | None:
    """Return an exception that comes back from the journal: itself, or else one that tells what it was."""
    if error is None:
        return None
    try:
        same = type(codec.decode(codec.encode(error, "error"))) is type(error)
    except Exception:
        same = False
    return error if same else RunError(f"{type(error).__name__}: {error}")


def _failed_action(told: Any) -> ActionRecord:
    name, status, started, elapsed, by, error, attempts = told
    return ActionRecord(name, None, Status(status), started, elapsed, by, error, attempts)  # type: ignore[arg-type]


def _failed_stage(told: Any, actions: Any) -> StageRecord:
    name, status, started, elapsed, by, error, attempts = told
    records = [_failed_action(action) for action in actions]
    return StageRecord(name, Stage(name), Status(status), started, elapsed, by, records, error, attempts)


# From rows to the past.


def past_of(remembered: Remembered, codec: Codec, fingerprint: Fingerprint, pins: Mapping[str, int]) -> Past:
    """Return the past that the rows of a run tell.

    `pins` are the keys that were given on a resume, each with the number of rows that were there before: what older
    steps wrote there no longer counts.
    """
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    for index, row in enumerate(remembered.rows):
        rows[row.branch].append(row._replace(payload=codec.decode(row.payload)))
        _unpin(rows[row.branch][-1].payload, index, pins)

    def find(branch: str) -> Past:
        stages, closed = _stages(sorted(rows.get(branch, ()), key=lambda row: row.number), fingerprint)
        return Past(stages, closed, lambda place: find(branch_id(branch, *place)))

    return find(ROOT)


def _unpin(did: Any, index: int, pins: Mapping[str, int]) -> None:
    for key, since in pins.items():
        if index < since:
            for part in ("puts", "appends"):
                did.get(part, {}).pop(key, None)
            did["deletes"] = [name for name in did.get("deletes", ()) if name != key]


def _stages(rows: list[Row], fingerprint: Fingerprint) -> tuple[list[StagePast], dict[int, Closed]]:
    stages: list[StagePast] = []
    closed: dict[int, Closed] = {}
    open_actions: list[Did] = []
    name = ""
    for row in rows:
        did: Any = row.payload
        if row.kind == "action":
            name = row.stage
            open_actions.append(_did(row, did, fingerprint))
        elif row.kind == "stage":
            record = StageRecord(
                row.stage, None, Status(row.status), row.started, row.elapsed, None, (),  # type: ignore[arg-type]
                did.get("error"), did.get("attempts", 1), did.get("recovered", False), tuple(did.get("inserted", ())),
            )  # fmt: skip
            failed = _failed_action(did["failed"]) if did.get("failed") else None
            stages.append(StagePast(row.stage, open_actions, record, Closed(_delta(did), record.inserted), failed))
            open_actions = []
        else:
            failures = tuple(_failed_stage(*told) for told in did.get("failed", ()))
            closed[did.get("opened", 0)] = Closed(_delta(did), tuple(did.get("inserted", ())), failures)
    if open_actions:
        stages.append(StagePast(name, open_actions))
    return stages, closed


def _did(row: Row, did: Any, fingerprint: Fingerprint) -> Did:
    record = ActionRecord(
        row.action or "", None, Status(row.status), row.started, row.elapsed, None,  # type: ignore[arg-type]
        did.get("error"), did.get("attempts", 1), did.get("recovered", False), tuple(did.get("inserted", ())),
        tuple(did.get("switches", ())),
    )  # fmt: skip

    def same(action: Action[..., Any]) -> bool:
        return fingerprint(action.__wrapped__) == row.fingerprint

    reason = did.get("reason", ("",))[0]
    return Did(record, _delta(did), _result(did), same, row.stage, row.fingerprint, reason)


def _result(did: Any) -> Any:
    """Return what the action returned, from where it was put."""
    how, what = did.get("result", ("value", UNSET))
    if how == "put":
        return did.get("puts", {}).get(what, UNSET)
    if how == "appended":
        items = did.get("appends", {}).get(what) or did.get("puts", {}).get(what) or [UNSET]
        return items[-1]
    return what


def _delta(did: Any) -> Delta:
    return Delta(did.get("puts", {}), list(did.get("deletes", ())), did.get("appends", {}))
