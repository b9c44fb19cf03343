"""How an evaluation remembers: each step that is over becomes a row of the journal, each row a step that is restored.

Nothing here touches a file: the evaluator collects the rows of each branch, and asks its driver to write them before
the next action of that branch starts. What cannot be encoded fails the action that wrote it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias, cast

from flowdeco.definitions import Stream
from flowdeco.errors import Bail, DefinitionError, RunError
from flowdeco.journal import Codec, Journal, Row
from flowdeco.options import UNSET
from flowdeco.past import Closed, Did, GroupPast, Past, StagePast
from flowdeco.runs import ActionRecord, StageRecord, Status
from flowdeco.store import MISSING, NOTHING, Delta, Store

__all__ = ["ROOT", "Memory", "Told", "branch_id", "chronicle", "descendants", "past_of", "step_id"]

ROOT: Final = "0"
_ATOMS: Final = frozenset({str, int, float, bool, bytes, complex, type(None)})

_STATUS: Final[dict[str, Status]] = {str(status): status for status in Status}

_new: Final = cast("Any", tuple.__new__)  # pyright: ignore[reportUnknownMemberType]

Fingerprint = Callable[[Any], str]
Told: TypeAlias = "tuple[Row, Any]"  # a row with what its payload says


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
    """What turns the steps of a run into rows of its journal."""

    def __init__(self, journal: Journal, run_id: str, fingerprint: Fingerprint) -> None:
        self.journal = journal
        self.codec: Codec = journal.codec
        self.run_id = run_id
        self.fingerprint = fingerprint
        self._nothing = self.codec.encode({}, "")
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
            return self.codec.encode({"puts": {key: value}, "result": ("put", key)}, key)
        except Exception:  # said when it is encoded with what is around it
            return None

    def action(self, branch: str, number: int, stage: str, record: ActionRecord, payload: bytes | None = None) -> Row:
        """Return the row of an action, without a payload of one that failed."""
        if payload is None:
            attempts = record.attempts if record.attempts > 1 else None
            payload = self.payload(f"action {record.name!r}", NOTHING, error=record.error, attempts=attempts)
        function = record.action.__wrapped__
        known = self._codes.get(id(function))
        if known is None:
            known = self._codes[id(function)] = function, self.fingerprint(function)
        status, started, elapsed = record[2:5]
        what = "action", stage, record.name, status._value_, started, elapsed, known[1], payload
        return cast("Row", _new(Row, (branch, number, *what)))

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


def chronicle(rows: Iterable[Row], codec: Codec, pins: Mapping[str, int]) -> list[Told]:
    """Return the rows with what their payloads say.

    `pins` are the keys that were given on a resume, each with the number of rows that were there before: what older
    steps wrote there no longer counts.
    """
    decode = codec.decode
    told = [(row, decode(row.payload)) for row in rows]
    for key, since in pins.items():
        for _, did in told[:since]:
            did.get("puts", {}).pop(key, None)
            did.get("appends", {}).pop(key, None)
            did["deletes"] = [name for name in did.get("deletes", ()) if name != key]
    return told


def past_of(told: Iterable[Told]) -> Callable[[], Past]:
    """Return what gives the past of a run that is told so, from its beginning whenever it is asked."""
    branches: defaultdict[str, list[Told]] = defaultdict(list)
    for each in told:
        branches[each[0].branch].append(each)
    known = {branch: _entries(sorted(rows, key=_number)) for branch, rows in branches.items()}

    def find(branch: str) -> Past:
        def fork(position: int, index: int) -> Past:
            return find(branch_id(branch, position, index))

        entries, closed = known.get(branch) or ([], {})
        return Past(entries, closed, fork, read=_did)

    return lambda: find(ROOT)


def _number(told: Told) -> int:
    return told[0].number


def descendants(past: Past, branch: str, since: int) -> Iterator[str]:
    """Give the ids of all branches of the groups that a branch had begun from this position on."""
    for entry in past.entries:
        if isinstance(entry, GroupPast) and entry.position >= since:
            for index in range(entry.branches):
                id = branch_id(branch, entry.position, index)
                yield id
                yield from descendants(past.fork(entry.position, index), id, 0)


def _entries(rows: list[Told]) -> tuple[list[StagePast | GroupPast], dict[int, Closed]]:
    """Return the stages and groups of a branch, and the ends of its pipelines."""
    entries: list[StagePast | GroupPast] = []
    closed: dict[int, Closed] = {}
    actions: list[Any] = []
    for told in rows:
        row, did = told
        kind = row.kind
        if kind == "action":
            actions.append(told)
        elif kind == "stage":
            entries.append(StagePast(row.stage, row.number - len(actions), actions, told))
            actions = []
        elif kind == "pipeline":
            number, opened = did["opened"]
            end = row.number, opened, _delta(did), tuple(did.get("inserted", ())), did.get("early", False)
            closed[number] = Closed(*end)
        else:
            entries.append(GroupPast(row.stage, row.number, did.get("branches", 0)))
    if actions:
        entries.append(StagePast(rows[-1][0].stage, actions[0][0].number, actions))
    return entries, closed


def _did(told: Told) -> Did:
    row, did = told
    get = did.get
    return Did(
        row.action or row.stage, _STATUS[row.status], row.started, row.elapsed, _error(did), get("attempts", 1),
        get("recovered", False), tuple(get("inserted", ())), tuple(get("switches", ())), _delta(did), _result(did),
        row.fingerprint,
    )  # fmt: skip


def _error(did: Any) -> BaseException | None:
    error: BaseException | None = did.get("error")
    return Bail(*did["reason"]) if error is None and "reason" in did else error


def _result(did: Any) -> Any:
    """Return what the action returned, from where it was put."""
    found = did.get("result")
    if found is None:
        return UNSET
    how, what = found
    if how == "put":
        return did.get("puts", {}).get(what, UNSET)
    if how == "appended":
        items = did.get("appends", {}).get(what) or did.get("puts", {}).get(what) or [UNSET]
        return items[-1]
    return what


def _delta(did: Any) -> Delta:
    return Delta(did.get("puts", {}), did.get("deletes", []), did.get("appends", {}))
