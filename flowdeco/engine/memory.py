"""How an evaluation remembers: each step that is over becomes a row of the journal, each row a step that is restored.

Nothing here touches a file: the evaluator collects the rows of each branch, and asks its driver to write them before
the next action of that branch starts. What cannot be encoded fails the action that wrote it.
"""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from flowdeco.engine.journal import Codec, Journal, Row
from flowdeco.engine.past import Closed, Did, Entry, GroupPast, Past, StagePast
from flowdeco.engine.requests import Save
from flowdeco.engine.runs import ActionRecord, StageRecord, Status
from flowdeco.errors import Bail, DefinitionError, RunError
from flowdeco.model.definitions import Stream
from flowdeco.model.options import UNSET
from flowdeco.model.store import MISSING, NOTHING, Delta, Store

if TYPE_CHECKING:
    from flowdeco.model.wiring import Step

__all__ = [
    "ROOT",
    "Chronicle",
    "Memory",
    "Told",
    "branch_id",
    "collection_paused",
    "decoded",
    "descendants",
    "in_full",
    "step_id",
]

ROOT: Final = "0"
_ATOMS: Final = frozenset({str, int, float, bool, bytes, complex, type(None)})

_COMPLETED: Final = str(Status.COMPLETED)
_STATUS: Final[dict[str, Status]] = {str(status): status for status in Status}

_new: Final = cast("Any", tuple.__new__)  # pyright: ignore[reportUnknownMemberType]

_KEPT: Final = 1024

Fingerprint = Callable[[Any], str]
Told: TypeAlias = "tuple[list[Row], list[Any]]"  # rows, and what their payloads say (see `in_full`)


def _hashed(*parts: object) -> str:
    # Not loaded for runs without groups and journals: it takes 2 of the 15 ms of our import.
    from hashlib import blake2b

    return blake2b("\0".join(map(str, parts)).encode(), digest_size=10).hexdigest()


def branch_id(parent: str, group: int, branch: int) -> str:
    """Return the identity of a branch: of constant size, however deep groups are nested."""
    return _hashed(parent, group, branch)


def step_id(run_id: str, branch: str, number: int, name: str) -> str:
    """Return the identity of a step: the same whenever, and however often, it is performed in this run."""
    return _hashed(run_id, branch, number, name)


class Memory:
    """What turns the steps of a run into rows of its journal."""

    def __init__(self, journal: Journal, run_id: str, fingerprint: Fingerprint) -> None:
        self.journal = journal
        self.codec: Codec = journal.codec
        self.run_id = run_id
        self.fingerprint = fingerprint
        self._write, self._encode = journal.write, journal.codec.encode
        self._nothing = self.codec.encode({}, "")
        # A pair is shorter than a dict; JSON is read by people, and not every codec knows tuples.
        self._terse = self.codec.name == "pickle" and type(self.codec.decode(self.codec.encode((), ""))) is tuple
        self._codes: dict[int, tuple[Any, str]] = {}

    # What an action that is not over yet may change in place.

    def seen(self, store: Store, keys: Iterable[str]) -> dict[str, Any]:
        """Return what tells later whether these values were changed in place."""
        data = store._data
        for key in keys:
            if type(data.get(key)) not in _ATOMS:
                return {
                    key: self._image(store, key) for key in keys if type(data.get(key)) not in _ATOMS and key in store
                }
        return {}

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
        error = told.pop("error", None)
        if isinstance(error, Bail):
            told["reason"] = (error.reason,)
        elif error is not None:
            told["error"] = portable(error, self.codec)
        parts = {"puts": delta.puts, "deletes": delta.deletes, "appends": delta.appends}
        return self.codec.encode({**{name: part for name, part in parts.items() if part}, **told}, what)

    def plain(self, key: str, value: Any) -> bytes | None:
        """Encode the step of an action that did nothing but return this; None if it cannot be."""
        if value is None:
            return self._nothing
        try:
            return self._encode((key, value) if self._terse else in_full((key, value)), key)
        except Exception:  # said when it is encoded with what is around it
            return None

    def action(self, branch: str, number: int, stage: str, record: ActionRecord, payload: bytes | None = None) -> Row:
        """Return the row of an action, without a payload of one that failed."""
        if payload is None:
            attempts = record.attempts if record.attempts > 1 else None
            payload = self.payload(f"action {record.name!r}", NOTHING, error=record.error, attempts=attempts)
        how = str(record.status), record.started, record.elapsed, self.code(record.action.__wrapped__)
        return Row(branch, number, "action", stage, record.name, *how, payload)

    def completed(
        self, branch: str, number: int, stage: str, step: Step, record: ActionRecord, payload: bytes | None
    ) -> Row:
        """Return the row of an action that has completed: of most actions, so by the shortest way."""
        started, elapsed = record[3:5]
        known = self._codes.get(id(step.function))
        code = self.code(step.function) if known is None else known[1]
        what = branch, number, "action", stage, step.name, _COMPLETED, started, elapsed, code, payload
        row: Row = _new(Row, what)
        return row

    def saving(self, rows: list[Row]) -> Save:
        """Return the request to write these rows."""
        return Save(self._write, self.run_id, rows)

    def code(self, function: Any) -> str:
        """Return the fingerprint of a function, worked out once."""
        known = self._codes.get(id(function))
        if known is None:
            if len(self._codes) >= _KEPT:  # a run may make new functions for ever
                self._codes.clear()
            known = self._codes[id(function)] = function, self.fingerprint(function)
        return known[1]

    def stage(self, branch: str, number: int, record: StageRecord, delta: Delta) -> Row:
        """Return the row of a stage."""
        payload = self.payload(
            f"stage {record.name!r}", delta, error=record.error, recovered=record.recovered, inserted=record.inserted,
            attempts=record.attempts if record.attempts > 1 else None,
        )  # fmt: skip
        return Row(
            branch, number, "stage", record.name, None, str(record.status), record.started, record.elapsed, "", payload
        )

    def pipeline(self, branch: str, name: str, now: float, delta: Delta, closed: Closed, number: int) -> Row:
        """Return the row of a pipeline whose middleware is over; it was the branch's `number`-th of that kind."""
        payload = self.payload(
            f"pipeline {name!r}", delta, inserted=closed.inserted, early=closed.early,
            opened=(number, closed.opened),
        )  # fmt: skip
        return Row(branch, closed.position, "pipeline", name, None, str(Status.COMPLETED), now, 0.0, "", payload)

    def group(self, branch: str, number: int, name: str, now: float, branches: int) -> Row:
        """Return the row of a parallel group that begins."""
        payload = self.payload(f"parallel group {name!r}", NOTHING, branches=branches)
        return Row(branch, number, "group", name, None, str(Status.RUNNING), now, 0.0, "", payload)


def portable(error: BaseException, codec: Codec) -> BaseException:
    """Return an exception that comes back from the journal: itself, or else one that tells what it was."""
    try:
        same = type(codec.decode(codec.encode(error, "error"))) is type(error)
    except Exception:
        same = False
    return error if same else RunError(f"{type(error).__name__}: {error}")


# From rows to the past.


@contextmanager
def collection_paused() -> Generator[None]:
    """Put off the cyclic garbage collector: what is restored stays, and it would go through that again and again.

    That took a twentieth of the time of a resume of plain actions, and a fifth of that of inserted stages.
    """
    if not gc.isenabled():  # somebody else has paused it, and goes on with it
        yield
        return
    try:
        gc.disable()
        yield
    finally:
        gc.enable()


def decoded(rows: list[Row], codec: Codec, pins: Mapping[str, int]) -> Told:
    """Return the rows, and what their payloads say.

    `pins` are the keys that were given on a resume, each with the number of rows that were there before: what older
    steps wrote there no longer counts.
    """
    decode, nothing, empty = codec.decode, codec.encode({}, ""), cast("dict[str, Any]", {})
    dids: list[Any] = [empty if row[9] == nothing else decode(row[9]) for row in rows]
    for key, since in pins.items():
        for at, did in enumerate(dids[:since]):
            if type(did) is tuple:
                if did[0] == key:
                    dids[at] = {"result": ("value", did[1])}
            elif did:
                _forget(did, key)
    return rows, dids


def _forget(did: dict[str, Any], key: str) -> None:
    """Take back what a step wrote under a key; what it returned stays its result."""
    result = _result(did)
    did.get("puts", {}).pop(key, None)
    did.get("appends", {}).pop(key, None)
    if key in did.get("deletes", ()):
        did["deletes"] = [name for name in did["deletes"] if name != key]
    if result is not UNSET:
        did["result"] = "value", result


def in_full(told: Any) -> dict[str, Any]:
    """Return what a payload says, if it is only a key and the value that was returned, and stored under it, as well."""
    if type(told) is not tuple:
        return cast("dict[str, Any]", told)
    key, value = cast("tuple[str, Any]", told)
    return {"puts": {key: value}, "result": key}


class Chronicle:
    """What the rows of a journal tell of a run: the past of its branches, from their beginning whenever one asks."""

    def __init__(self, told: Told) -> None:
        rows, dids = told
        self._branches = {branch: _Told([], []) for branch in {row[0] for row in rows}}
        if len(self._branches) == 1:
            self._branches = {rows[0][0]: _Told(rows, dids)}
        else:
            for row, did in zip(rows, dids, strict=True):
                mine = self._branches[row[0]]
                mine.rows.append(row)
                mine.dids.append(did)
        for mine in self._branches.values():
            mine.sort()

    def past(self, branch: str = ROOT) -> Past:
        """Return the past of a branch."""
        return _Past(self, branch, self._branches.get(branch) or _Told([], []))

    def is_within(self, kept: Mapping[str, int]) -> bool:
        """Whether all of it holds, if so much of each branch does."""
        return all(kept.get(branch, 0) > mine.rows[-1].number for branch, mine in self._branches.items())


class _Told:
    """The rows of a branch, what their payloads say, the ends of its pipelines, and which rows are not of actions."""

    __slots__ = ("closed", "dids", "marks", "rows")

    def __init__(self, rows: list[Row], dids: list[Any]) -> None:
        self.rows = rows
        self.dids = dids
        self.marks: list[int] = []
        self.closed: dict[int, Closed] = {}

    def sort(self) -> None:
        """Have them in their order."""
        rows, dids = self.rows, self.dids
        numbers = [row[1] for row in rows]
        if numbers != sorted(numbers):
            order = sorted(range(len(rows)), key=numbers.__getitem__)
            self.rows, self.dids = [rows[at] for at in order], [dids[at] for at in order]
        self.marks = [at for at, row in enumerate(self.rows) if row[2] != "action"]
        ends = (at for at in self.marks if self.rows[at].kind == "pipeline")
        self.closed = dict(_closed(self.rows[at], self.dids[at]) for at in ends)


class _Past(Past):
    """The past of a branch, whose entries are put together as they are taken: a run may have very many."""

    rows = True

    __slots__ = ("_told",)

    def __init__(self, chronicle: Chronicle, branch: str, told: _Told) -> None:
        def fork(position: int, index: int) -> Past:
            return chronicle.past(branch_id(branch, position, index))

        self._told = told
        super().__init__((), told.closed, fork, read=_did)

    def take(self) -> None:
        """Pass over what comes next."""
        self.next, self._at = self._found(self._at)

    def whole(self) -> Iterator[Entry]:
        """Give all that happened, from the beginning."""
        entry, at = self._found(0)
        while entry is not None:
            yield entry
            entry, at = self._found(at)

    def is_empty(self) -> bool:
        """Whether nothing has ever happened in the branch."""
        return not self._told.rows

    def _found(self, start: int) -> tuple[Entry | None, int]:
        """Return the entry that begins here, and where the next one does."""
        rows, dids, marks = self._told.rows, self._told.dids, self._told.marks
        at = len(rows)
        for mark in range(bisect_left(marks, start), len(marks)):
            at = marks[mark]
            row = rows[at]
            kind = row[2]
            if kind == "stage":
                actions = zip(rows[start:at], dids[start:at], strict=True)
                return _new(StagePast, (row[3], row[1] - (at - start), actions, (row, dids[at]))), at + 1
            if start < at:
                break
            if kind == "group":
                return GroupPast(row[3], row[1], dids[at].get("branches", 0)), at + 1
            start, at = at + 1, len(rows)
        if start < at:
            return StagePast(rows[start][3], rows[start][1], zip(rows[start:at], dids[start:at], strict=True)), at
        return None, at


def descendants(past: Past, branch: str, since: int) -> Iterator[str]:
    """Give the ids of all branches of the groups that a branch had begun from this position on."""
    for entry in past.whole():
        if isinstance(entry, GroupPast) and entry.position >= since:
            for index in range(entry.branches):
                id = branch_id(branch, entry.position, index)
                yield id
                yield from descendants(past.fork(entry.position, index), id, 0)


def _closed(row: Row, did: dict[str, Any]) -> tuple[int, Closed]:
    """Return which pipeline of the branch has come to its end, and how."""
    number, opened = did["opened"]
    return number, Closed(row.number, opened, _delta(did), tuple(did.get("inserted", ())), did.get("early", False))


def _did(told: tuple[Row, Any]) -> Did:
    row, did = told[0], in_full(told[1])
    get = did.get
    _, _, _, stage, action, status, started, elapsed, code, _ = row
    what = (
        action or stage, _STATUS[status], started, elapsed, _error(did), get("attempts", 1), get("recovered", False),
        tuple(get("inserted", ())), tuple(get("switches", ())), _delta(did), _result(did), code,
    )  # fmt: skip
    return cast("Did", _new(Did, what))


def _error(did: Any) -> BaseException | None:
    error: BaseException | None = did.get("error")
    return Bail(*did["reason"]) if error is None and "reason" in did else error


def _result(did: Any) -> Any:
    """Return what the action returned, from where it was put."""
    found = did.get("result")
    if found is None:
        return UNSET
    how, what = ("put", found) if isinstance(found, str) else found
    if how == "put":
        return did.get("puts", {}).get(what, UNSET)
    if how == "appended":
        items = did.get("appends", {}).get(what) or did.get("puts", {}).get(what) or [UNSET]
        return items[-1]
    return what


def _delta(did: Any) -> Delta:
    return Delta(did.get("puts", {}), did.get("deletes", []), did.get("appends", {}))
