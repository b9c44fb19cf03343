"""From outcomes to rows of the journal, and back: whatever a step did, its row tells, whoever has written it."""

import json
import threading
from collections.abc import Mapping
from typing import Any

import pytest
from support import one, text_of

from flowdeco import Bail, Context, Stage, action, parallel, pipeline, stream
from flowdeco.durable import JsonCodec, MemoryJournal, PickleCodec
from flowdeco.durable.digests import digest
from flowdeco.engine import recorder as engine
from flowdeco.engine.journal import Payload, Row
from flowdeco.engine.messages import MessageRecord
from flowdeco.engine.outcome import (
    ActionRecord,
    Outcome,
    Scope,
    Selection,
    StageRecord,
    Status,
    branch_id,
    inserter,
    pinned,
)
from flowdeco.engine.recorder import Recorder
from flowdeco.engine.results import Yielded
from flowdeco.engine.rows import Recorded, outcomes
from flowdeco.engine.waits import Called
from flowdeco.errors import (
    CALLED,
    DefinitionError,
    JournalError,
    RunError,
    SerializationError,
    Suspend,
    Wait,
    portable,
    shortened,
)
from flowdeco.model.deltas import NOTHING, Delta
from flowdeco.model.keys import Local
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import step_of, steps_of

CODEC = PickleCodec()


@action
def act():
    """Do nothing."""


@action
def other():
    """Neither."""


STAGE = Stage("s", [act])
STEP = step_of(act.with_options(returns="x"))


def recorder_of(codec=CODEC):
    """A recorder of a journal that is not written."""
    return Recorder(MemoryJournal(codec), "r", lambda function: f"code of {function.__name__}", digest)


def row(number, kind, stage, action=None, branch="0", **did):
    """A step that took no time."""
    return Row(branch, number, kind, stage, action, "completed", 0.0, 0.0, "", CODEC.encode(did, ""))


def read(*rows, codec=CODEC, pins=()):
    """The steps of the run's own branch that these rows tell."""
    return pinned(outcomes(list(rows), codec), dict(pins)).get("0", {})


def record(result=UNSET, writes=NOTHING, number=3, **more):
    """What became of an action."""
    more.setdefault("status", Status.COMPLETED)
    return ActionRecord("act", act, started=1.0, elapsed=0.5, number=number, result=result, writes=writes, **more)


# -- there and back


@pytest.fixture(params=[PickleCodec(), JsonCodec()], ids=["pickle", "json"])
def codec(request):
    """What values become bytes by."""
    return request.param


VALUE = {"deep": [1, 2]}
DID = {
    "nothing": record(),
    "a value": record(VALUE, Delta({"act": VALUE}, [], {})),
    "a value that is not stored": record(VALUE),
    "a value, and no writes": record(VALUE, None),
    "a value under two keys": record(VALUE, Delta({"a": VALUE, "b": 2}, [], {})),
    "a value that is collected": record(VALUE, Delta({}, [], {"xs": [1, VALUE]})),
    "writes": record(UNSET, Delta({"k": 1}, ["gone"], {"xs": [1]})),
    "one write beside": record(UNSET, Delta({"k": 1}, [], {})),
    "units": record(inserted=(STAGE, other)),
    "switches": record(switches=(("s", False), ("tag:t", True))),
    "attempts": record(VALUE, Delta({"act": VALUE}, [], {}), attempts=3),
    "inserted": record(VALUE, Delta({"act": VALUE}, [], {}), inserted_by="s/other"),
    "recovered": record(status=Status.FAILED, error=ValueError("no"), recovered=True, attempts=2),
    "failed": record(status=Status.FAILED, error=ValueError("no")),
    "bailed": record(status=Status.BAILED, error=Bail("enough")),
    "bailed for no reason": record(status=Status.BAILED, error=Bail()),
    "skipped": record(status=Status.SKIPPED),
    "in a scope": StageRecord(
        "s", STAGE, Status.COMPLETED, 1.0, 0.5, number=3, end=4, writes=NOTHING,
        scope=Scope("p", "0.p1", None, None, Scope("q", "0.p0", None, "s/a", None)),
    ),
    "stage": StageRecord("s", STAGE, Status.COMPLETED, 1.0, 0.5, number=3, end=4, writes=NOTHING),
    "stage in layers": StageRecord(
        "s", STAGE, Status.COMPLETED, 1.0, 0.5, number=3, end=4, writes=Delta({"left": 1}, [], {}),
        entry_writes=(Delta({"entered": 1}, [], {"xs": [1]}), NOTHING),
    ),
    "stage that was not entered": StageRecord(
        "s", STAGE, Status.FAILED, 1.0, 0.5, number=3, end=4, error=ValueError("no"), entered=False
    ),
    "pipeline": Outcome("p", pipeline(STAGE, name="p"), Status.COMPLETED, 1.0, 0.5, number=3, end=4),
    "group": Outcome(
        "g", parallel(STAGE, act, name="g"), Status.COMPLETED, 1.0, 0.5, number=3, end=4, branches=2,
        writes=Delta({"k": 1}, [], {}),
    ),
    "group that began": Outcome("g", parallel(STAGE, act, name="g"), Status.RUNNING, 1.0, 0.0, number=3, branches=2),
}  # fmt: skip


@pytest.mark.parametrize("title", DID)
def test_an_outcome_comes_back_from_its_row(codec, title):
    """As it was, but for its unit, of which the row has kind and stage."""
    did = DID[title]
    stage = "s" if isinstance(did, ActionRecord) else None
    written = recorder_of(codec).row("0", stage, did)
    (back,) = outcomes([written], codec)["0"].values()
    kind = {ActionRecord: "action", StageRecord: "stage"}.get(type(did), written.kind)
    assert (type(back), back.unit) == (type(did), Recorded(kind, stage or did.name))
    assert (back.number, written.fingerprint) == (3, "code of act" if stage else "")
    assert (type(back.error), str(back.error)) == (type(did.error), str(did.error))
    assert (back.result, back.writes, back.entry_writes) == (did.result, did.writes or NOTHING, did.entry_writes)
    assert [unit.name for unit in back.inserted] == [unit.name for unit in did.inserted]
    assert back.scope == did.scope
    for field in (
        "name",
        "status",
        "started",
        "elapsed",
        "inserted_by",
        "attempts",
        "recovered",
        "switches",
        "end",
        "entered",
        "branches",
    ):
        assert getattr(back, field) == getattr(did, field)


NO, BEFORE = ValueError("no"), KeyError("before")
SAID = MessageRecord("log", 1.0, {"level": "info", "text": "text"}, 1)
WAITS = [
    Wait(
        "question", 5.0, 1, key="k", about={"x": 1}, type="int", asked=2.0, since=1, state="found", given=0, at=("b", 3)
    ),
    Wait("question", key="k", classes=("a", "b"), value=7, state="default"),
    Wait("sleep", 5.0),
    Wait("over", times=3),
]
INNER = branch_id("0.3", 0)
YIELDED = Yielded([1, 2])
YIELDED.value = 7
CALLS = [
    Called(1, Delta({"k": 1, Local("l"): 2}, ["d"], {"xs": [1]}), [STAGE, other], [("s", False)]),
    Called(YIELDED, NOTHING, [], []),
]
MORE = {
    "who inserted it": ("0", record(inserted_by=inserter("s/b", 7))),
    "attempts": ("0", record(attempts=3, repeats=(1, 1), failures=[NO, BEFORE], dropped={("p1[1]", 4, "a"): [SAID, NO]})),
    "dropped of nothing": ("0", record(attempts=2, repeats=(1,), dropped={("", 4, "a"): []})),
    "messages": ("0", record(messages=[SAID, SAID])),
    "cached": ("0", record(VALUE, cached=True)),
    "waits": ("0", record(status=Status.SUSPENDED, error=Suspend("waits"), waits=WAITS)),
    "waits of a finished step": ("0", record(waits=[WAITS[1]])),
    "calls": ("0", record(status=Status.SUSPENDED, waits=[Wait(CALLED, value=call) for call in CALLS])),
    "local": ("0", record(VALUE, Delta({Local("l"): VALUE, "k": 1}, [], {}))),
    "changed": ("0", record(VALUE, Delta({"k": 1}, ["d"], {"xs": [1]}, {"c": [1], Local("l"): [2]}))),
    "changed only": ("0", record(VALUE, Delta({}, [], {}, {Local("l"): [2]}))),
    "lost": ("0", Outcome(
        "g", parallel(act, act, act, name="g"), Status.COMPLETED, 1.0, 0.5, number=3, branches=3, writes=NOTHING,
        selection=Selection({1: NO}, frozenset([2, 0])),
        scope=Scope("g", "0.3", None, "s/a", Scope("p", "0.p1", None, inserter("s/a", 4), None)),
    )),
    "in a branch": (INNER, record(scope=Scope("p", f"{INNER}.p1", None, None, Scope("g", "0.3", 0, None, None)))),
}  # fmt: skip


def plain(outcome):
    """An outcome as it can be compared."""

    def of(each):
        if isinstance(each, BaseException):
            return repr(each)
        if isinstance(each, Mapping):
            return {key: of(value) for key, value in each.items()}
        return tuple(map(of, each)) if isinstance(each, (list, tuple)) else each

    return {name: of(value) for name, value in outcome._asdict().items() if name not in ("unit", "fingerprint")}


@pytest.mark.parametrize("title", MORE)
def test_all_that_is_known_of_a_step_comes_back(codec, title):
    """Its scopes are those that began in its branch, and the group of a branch is not its own scope."""
    branch, did = MORE[title]
    written = recorder_of(codec).row(branch, "s" if isinstance(did, ActionRecord) else None, did)
    (back,) = outcomes([written], codec)[branch].values()
    expected = plain(did)
    if did.scope is not None:
        expected["scope"] = did.scope.outer if title == "lost" else did.scope._replace(outer=None)
    if title == "dropped of nothing":
        expected["dropped"] = {}
    if title == "waits of a finished step":
        expected["waits"] = tuple(map(tuple, [WAITS[1]._replace(value=None)]))
    assert plain(back) == expected
    assert getattr(back.inserted_by, "number", None) == getattr(did.inserted_by, "number", None)
    if title == "lost":
        assert back.selection.counted == {0, 2}
        assert repr(back.selection.lost) == repr({1: NO})
    assert set(map(type, back.waits)) <= {Wait}
    assert all(type(part) in (tuple, type(None)) for wait in back.waits for part in (wait.classes, wait.at))
    if title == "calls":
        assert [(type(wait.value), type(wait.value.value)) for wait in back.waits] == [(Called, int), (Called, Yielded)]
        assert back.waits[1].value.value.value == 7
    kinds = {type(each) for attempts in back.dropped.values() for each in attempts}
    assert kinds == ({MessageRecord, ValueError} if title == "attempts" else set())


def test_scopes_and_inserters_are_written_as_plain_text():
    """Such as anything can read: other codecs, too."""
    _, did = MORE["lost"]
    parts = CODEC.decode(recorder_of().row("0", None, did).payload)
    assert parts["in"] == [["p", "0.p1", None, "s/a"]]
    assert type(parts["in"][0][3]) is str
    _, did = MORE["who inserted it"]
    parts = CODEC.decode(recorder_of().row("0", "s", did).payload)
    assert (parts, type(parts["by"])) == ({"by": "s/b", "by_number": 7}, str)
    _, did = MORE["local"]
    assert CODEC.decode(recorder_of().row("0", "s", did).payload) == {
        "puts": {"k": 1}, "local": {"l": VALUE}, "result": ("local", "l")
    }  # fmt: skip
    _, did = MORE["changed"]
    parts = CODEC.decode(recorder_of().row("0", "s", did).payload)
    assert (parts["changes"], parts["local_changes"], parts["result"]) == ({"c": [1]}, {"l": [2]}, ("value", VALUE))
    _, did = MORE["attempts"]
    ((*_, attempts),) = CODEC.decode(recorder_of().row("0", "s", did).payload)["dropped"]
    assert [type(each) for each in attempts] == [list, ValueError]
    assert CODEC.decode(recorder_of().row("0", "s", record(waits=[Wait("sleep", 5.0)])).payload) == {
        "waits": [{"kind": "sleep", "due": 5.0}]
    }


def test_what_a_row_of_another_codec_cannot_have_is_described():
    """What a question is about, the value of an answer, lost branches, failures, and errors of earlier attempts."""
    about = UNWRITABLE
    waits = [Wait("question", about=about, value=Strange("no")), Wait("question", value=NO)]
    asks = record(status=Status.SUSPENDED, waits=waits, attempts=2)
    (back,) = read(recorder_of().row("0", "s", asks)).values()
    wait, usual = back.waits
    assert (wait.about, str(wait.value), repr(usual.value)) == (shortened(about), "Strange: no", repr(NO))
    (back,) = read(recorder_of().row("0", "s", asks._replace(failures=[Strange("no"), NO]))).values()
    assert list(map(str, back.failures)) == ["Strange: no", "no"]
    group = parallel(act, other, name="g", failures="lost", tolerate=1)
    lost = [("act", Strange("no")), ("other", NO)]
    did = Outcome(
        "g", group, Status.COMPLETED, 1.0, 0.5, number=0, end=1, branches=2, writes=Delta({"k": 1, "lost": lost}, [], {}),
        selection=Selection({0: Strange("no")}),
    )  # fmt: skip
    (back,) = read(recorder_of().row("0", None, did)).values()
    assert (back.writes.puts["k"], str(back.writes.puts["lost"][0][1])) == (1, "Strange: no")
    assert (back.writes.puts["lost"][0][0], str(back.selection.lost[0])) == ("act", "Strange: no")
    assert repr(back.writes.puts["lost"][1]) == repr(("other", NO))
    (back,) = read(recorder_of().row("0", None, did._replace(writes=NOTHING))).values()
    assert back.writes == NOTHING
    json_only = JsonCodec()

    class Plain(JsonCodec):
        def encode(self, value, what):
            if isinstance(value, list) and any(isinstance(each, BaseException) for each in value):
                raise TypeError
            return json_only.encode(value, what)

    (back,) = outcomes([recorder_of(Plain()).row("0", "s", record(attempts=2, failures=[NO]))], json_only)["0"].values()
    assert (back.attempts, back.failures) == (2, ())


def test_a_call_that_cannot_be_encoded_is_left_out():
    """It is repeated on a resume; the other waits are kept."""
    waits = [Wait("sleep", 5.0), Wait(CALLED, value=Called(UNWRITABLE, NOTHING, (), ()))]
    (back,) = read(recorder_of().row("0", "s", record(status=Status.SUSPENDED, waits=waits))).values()
    assert back.waits == tuple(waits[:1])


def test_a_suspended_step_is_written_with_the_reason_alone():
    """Its waits are a field of their own."""
    signal = Suspend.until(Wait("question", key="k"))
    (back,) = read(recorder_of().row("0", "s", record(status=Status.SUSPENDED, error=signal))).values()
    assert (type(back.error), back.error.waits, back.error.reason) == (Suspend, (), signal.reason)


def test_a_row_has_place_names_times_and_code():
    """Of an action, its stage as well; of another kind, its own name as that of a stage."""
    recorder = recorder_of()
    nothing = CODEC.encode({}, "")
    assert recorder.row("b", "s", record()) == Row(
        "b", 3, "action", "s", "act", "completed", 1.0, 0.5, "code of act", nothing
    )
    assert recorder.row("b", "s", record(fingerprint="known")).fingerprint == "known"
    assert (
        recorder.row("b", None, DID["stage that was not entered"])[:-1]
        == Row("b", 3, "stage", "s", None, "failed", 1.0, 0.5, "", b"")[:-1]
    )
    did = record(VALUE, Delta({"x": VALUE}, [], {}))
    assert (
        recorder.value_row("b", "s", did, STEP, VALUE)[:-1]
        == Row("b", 3, "action", "s", "act", "completed", 1.0, 0.5, "code of act", b"")[:-1]
    )
    local = steps_of(Stage("t", [act], local=True))[0][0]
    assert CODEC.decode(recorder.value_row("b", "s", did, local, VALUE).payload) == {
        "local": {"act": VALUE}, "result": ("local", "act")
    }  # fmt: skip
    known = DID["stage in layers"]._replace(unit=Recorded("stage", "s"))
    reopened = recorder.reopening("b", known)
    assert reopened[:-1] == Row("b", 3, "stage", "s", None, "running", 1.0, 0.0, "", b"")[:-1]
    entering = DID["stage in layers"].entry_writes
    kept = DID["stage in layers"]._replace(unit=Recorded("stage", "s"), selection=Selection({1: NO}, frozenset([2])))
    (back,) = outcomes([recorder.reopening("b", kept)], CODEC)["b"].values()
    assert (back.entry_writes, list(back.selection.lost), back.selection.counted) == (entering, [1], None)


class Apart(PickleCodec):
    """One that has large parts of values aside: here, every payload."""

    def encode_apart(self, value, what):
        return Payload(self.encode(value, what), PARTS)


PARTS = [bytearray(b"part")]


def test_large_values_are_known_to_the_looks_once_they_are_written():
    """By their digests; not immutable ones, nor those that are promised not to change."""
    journal, value = MemoryJournal(Apart()), [1]
    journal.takes_parts = True
    for write in (
        lambda recorder: recorder.row("0", "s", record(writes=Delta({"k": value, "n": 1, "frozen": [1]}, [], {}))),
        lambda recorder: recorder.value_row("0", "s", record(), step_of(act.with_options(returns="k")), value),
    ):
        recorder = Recorder(journal, "r", lambda function: "code", lambda value: ("digest", value))
        recorder.looks.frozen.add("frozen")
        written = write(recorder)
        assert recorder.looks.known == {"k": (id(value), ("digest", [1]))}
        assert written.payload.parts is PARTS  # it is written before any user code runs
    stage = recorder.row("0", None, DID["stage in layers"])
    assert (type(stage.payload), stage.payload.parts) == (Payload, [b"part"])
    assert stage.payload.parts is not PARTS
    plain = recorder_of()
    plain.row("0", "s", record(writes=Delta({"k": [1]}, [], {})))
    assert plain.looks.known == {}


def test_streams_of_groups_are_checked_as_well():
    """Each branch runs again."""
    with pytest.raises(DefinitionError, match="cannot be called again"):
        recorder_of().check_repeatable([parallel(stream([one([], "a")]))], "action 'act'")


def test_looks_at_values_are_forgotten_where_they_are_written_anew():
    """And all of them if a row could not be encoded."""
    recorder = recorder_of()
    looks = recorder.looks
    for write in (
        lambda: recorder.row("0", "s", record(writes=Delta({"k": 1}, [], {}))),
        lambda: recorder.row(
            "0", None, DID["stage in layers"]._replace(writes=None, entry_writes=[Delta({"k": 1}, [], {})])
        ),
        lambda: recorder.value_row("0", "s", record(), step_of(act.with_options(returns="k")), [1]),
    ):
        for key in ("k", "other"):
            looks.note(key, [key], digest([key]))
        write()
        assert [key for key in ("k", "other") if key in looks.known] == ["other"]
    with pytest.raises(SerializationError):
        recorder.row("0", "s", record(writes=Delta({"x": UNWRITABLE}, [], {})))
    assert "other" not in looks.known


def test_the_row_of_a_beginning_tells_of_its_layers_and_of_lost_branches():
    """A later row of the step does not repeat it; each of lost branches has only the latest."""
    began = row(0, "pipeline", "p", entering=[{"puts": {"k": 1}}])._replace(status="running")
    (did,) = read(began, row(0, "pipeline", "p", end=1)).values()
    assert (did.end, [each.puts for each in did.entry_writes]) == (1, [{"k": 1}])
    again = row(0, "pipeline", "p", end=1, entering=[{"puts": {"k": 2}}])
    (did,) = read(began, again).values()
    assert [each.puts for each in did.entry_writes] == [{"k": 2}]
    lost = [
        row(0, "group", "g", branches=4, lost=[[at, ValueError(str(at))]])._replace(status="running") for at in (3, 1)
    ]
    (did,) = read(*lost).values()
    assert {at: str(error) for at, error in did.selection.lost.items()} == {3: "3", 1: "1"}
    (did,) = read(*lost, row(0, "group", "g", branches=4, end=1, lost=[[1, NO]])).values()
    assert list(did.selection.lost) == [1]


def test_of_a_scope_whose_process_was_killed_the_time_at_work_is_known():
    """From the actions written after it: those of an earlier leg are in its own row."""

    def took(row, seconds, status="completed"):
        return row._replace(elapsed=seconds, status=status)

    rows = [
        took(row(1, "action", "s", "a"), 1.0), took(row(0, "stage", "s"), 4.0, "failed"),
        took(row(2, "action", "s", "b"), 2.0), took(row(3, "action", "s", "c"), 8.0),
    ]  # fmt: skip
    assert read(*rows)[0].elapsed == 14.0
    assert read(*rows, row(9, "pipeline", "p"))[0].elapsed == 4.0
    assert read(*rows, took(row(0, "stage", "s", end=4), 5.0))[0].elapsed == 5.0
    assert read(*[took(rows[1], 4.0), *rows[2:]], took(row(5, "stage", "t"), 1.0, "failed"))[5].elapsed == 1.0
    assert read(rows[0])[1].elapsed == 1.0
    around = [took(row(9, "pipeline", "p"), 1.0, "failed"), took(row(10, "action", "s", "a"), 2.0)]
    assert read(*around)[9].elapsed == 1.0


@pytest.mark.parametrize(
    "payload",
    [{"puts": [1]}, {"appends": 3}, {"switches": 7}, ("a",), {"result": 5}, {"by_number": 3, "by": []}, {"in": [[]]}],
)
def test_a_row_that_does_not_describe_an_outcome_is_damage(payload):
    """It is told with its place."""
    damaged = row(7, "action", "s", "a")._replace(payload=CODEC.encode(payload, ""))
    with pytest.raises(JournalError) as found:
        read(damaged)
    assert str(found.value).startswith(
        "the journal is damaged: step 7 of branch '0' (action 'a') does not describe an outcome: "
    )
    assert str(found.value).endswith(str(found.value.__cause__))
    if isinstance(payload, dict) and payload.keys() <= {"puts", "appends"}:
        assert str(found.value.__cause__) == "its writes are not a mapping"
    assert f": {type(found.value.__cause__).__name__}: " in str(found.value)
    with pytest.raises(JournalError, match="stage 's'"):
        read(damaged._replace(kind="stage", action=None))


def test_a_result_is_where_it_was_found():
    """Under its key, at the end of a list, or on its own; a stored None is not one."""
    writes = {"puts": {"k": 1, "n": None}, "local": {"k": 2}, "appends": {"xs": [3, 4]}}
    for where, expected in (
        (("put", "k"), 1), (("local", "k"), 2), (("appended", "xs"), 4), (("value", 5), 5), (("put", "n"), UNSET),
        (("put", "gone"), UNSET), (("local", "gone"), UNSET), (("appended", "gone"), UNSET), (None, UNSET),
    ):  # fmt: skip
        (did,) = read(row(0, "action", "s", "a", **writes, result=where)).values()
        assert did.result == expected
    (did,) = read(row(0, "action", "s", "a")._replace(payload=CODEC.encode(("k", None), ""))).values()
    assert (did.writes.puts, did.result) == ({"k": None}, UNSET)
    short = row(0, "action", "s", "a")._replace(payload=CODEC.encode(("k", 1), ""))
    for each in (short, row(0, "action", "s", "a", puts={"k": 1}), row(0, "action", "s", "a", changes={"k": 1})):
        assert read(row(1, "action", "s", "a"), each)[0].writes.order == 1
    assert read(row(0, "action", "s", "a")._replace(fingerprint="code"))[0].fingerprint == "code"
    bailed = row(0, "action", "s", "a", reason=["enough"], error=NO)
    assert str(read(bailed)[0].error) == "no"
    assert read(row(0, "group", "g", counted=[1]))[0].selection == Selection({}, frozenset([1]))
    assert read(row(0, "group", "g", lost=[[1, NO]]))[0].selection.counted is None


def test_rows_may_come_in_any_order():
    """Within a branch it is their number that counts; of two for one step, the later one."""
    rows = [row(1, "action", "s", "a", puts={"k": 1}), row(0, "stage", "s", end=2), row(1, "action", "s", "b")]
    steps = read(*rows)
    assert {number: each.name for number, each in steps.items()} == {0: "s", 1: "b"}
    assert steps[1].writes == NOTHING


def test_rows_are_of_branches():
    """Each has numbers of its own."""
    rows = [row(0, "group", "g", branches=1), row(0, "stage", "s", branch="x", end=1)]
    found = outcomes(rows, CODEC)
    assert {branch: list(steps) for branch, steps in found.items()} == {"0": [0], "x": [0]}


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_gap_below_what_has_ended_is_damage(missing):
    """It is told with its place; the gap may be in a scope inside."""
    rows = [
        row(0, "pipeline", "p", end=4),
        row(1, "stage", "s", end=4),
        row(2, "action", "s", "a"),
        row(3, "action", "s", "b"),
    ]
    assert list(read(*rows)) == [0, 1, 2, 3]
    assert list(read(rows[0]._replace(status="failed"), *rows[2:])) == [0, 2, 3]
    rows.append(row(4, "stage", "t", end=5, entered=False))
    assert list(read(*rows)) == [0, 1, 2, 3, 4]
    assert list(read(row(0, "pipeline", "p", end=6, entered=False), row(6, "stage", "s", end=7))) == [0, 6]
    within = row(1, "stage", "s", end=4, entered=False)._replace(status="failed")
    assert list(read(row(0, "pipeline", "p", end=5), within, row(4, "stage", "t", end=5))) == [0, 1, 4]
    del rows[missing]
    with pytest.raises(JournalError, match=f"branch '0' has a gap before step {missing + 1}"):
        read(*rows)
    failed = row(0, "stage", "t")._replace(status="failed")
    for before in (failed, row(4, "stage", "t", end=5)):
        with pytest.raises(JournalError, match="has a gap before step 7"):
            read(before, row(5, "stage", "u", end=7))


def test_a_gap_above_what_has_ended_is_none():
    """A scope that has not ended has no row, and one that has failed says nothing of what is in it."""
    failed = row(4, "stage", "t", end=9)._replace(status="failed")
    assert list(read(row(0, "stage", "s", end=2), row(1, "action", "s", "a"), row(3, "action", "u", "b"), failed)) == [
        0,
        1,
        3,
        4,
    ]


# -- values that were given on a resume


def test_what_was_written_to_a_key_that_is_given_since_no_longer_counts():
    """Written, appended or deleted, by a step or by the middleware around one."""
    rows = [
        row(1, "action", "s", "a", puts={"x": 1, "y": 2}),
        row(2, "action", "s", "b", appends={"x": [1]}),
        row(3, "action", "s", "c", deletes=["x", "y"]),
        row(0, "stage", "s", end=4, puts={"x": 1}, entering=[{"puts": {"x": 1, "z": 1}}]),
        row(4, "action", "t", "d", puts={"x": 1}),
    ]
    steps = read(*rows, pins={"x": 4})
    assert [steps[number].writes._replace(order=0) for number in range(5)] == [
        NOTHING, Delta({"y": 2}, [], {}), NOTHING, Delta({}, ["y"], {}), Delta({"x": 1}, [], {}),
    ]  # fmt: skip
    assert tuple(each._replace(order=0) for each in steps[0].entry_writes) == (Delta({"z": 1}, [], {}),)


def test_a_result_outlives_the_key_under_which_it_was_found():
    """It is what the action returned, wherever it went."""
    short = row(0, "action", "s", "a")._replace(payload=CODEC.encode(("x", 1), ""))
    step = read(short, pins={"x": 1})[0]
    assert (step.writes, step.result) == (NOTHING, 1)


# -- the short form


def test_the_short_form_says_the_same_as_the_long_one(codec):
    """Only a pickle has it: JSON is read by people, too."""
    recorder, did = recorder_of(codec), record(VALUE, Delta({"x": VALUE}, [], {}), number=0)
    short, long = recorder.value_row("0", "s", did, STEP, VALUE), recorder.row("0", "s", did)
    assert (short == long) is (codec.name == "json")
    (one,), (other,) = (read(each, codec=codec).values() for each in (short, long))
    assert one == other
    assert (one.writes.puts, one.result) == ({"x": VALUE}, VALUE)


def test_an_action_that_did_nothing_has_the_shortest_payload(codec):
    """It is the same for all of them, in either form."""
    recorder = recorder_of(codec)
    assert recorder.row("0", "s", record()).payload == codec.encode({}, "")
    assert recorder.value_row("0", "s", record(), STEP, None) == recorder.row("0", "s", record())


def test_there_is_no_short_form_of_what_was_inserted_or_cannot_be_encoded(codec):
    """The long one says who inserted it, or which key cannot be encoded."""
    recorder = recorder_of(codec)
    assert recorder.value_row("0", "s", record(inserted_by="s/other"), STEP, VALUE) is None
    assert recorder.value_row("0", "s", record(), STEP, UNWRITABLE) is None


def test_a_codec_need_not_know_tuples():
    """Whatever it calls itself."""

    class Codec(JsonCodec):
        name = "pickle"

        def encode(self, value, what):
            return json.dumps(value).encode()

        def decode(self, payload):
            return json.loads(payload)

    calls = []

    @action(returns="x")
    def first():
        calls.append("first")
        return 1

    @action
    def wait(ctx: Context) -> Any:
        return ctx.wait_for("go")

    flow = Stage("s", [first]) >> wait
    journal = MemoryJournal(Codec())
    flow.run(journal=journal, run_id="r")
    assert flow.resume("r", {"go": 1}, journal=journal)["x"] == 1
    assert calls == ["first"]


# -- what cannot be encoded

UNWRITABLE = (threading.Lock(),)


@pytest.mark.parametrize("writes", [Delta({"k": UNWRITABLE}, [], {}), Delta({"act": UNWRITABLE, "k": 1}, [], {})])
def test_what_cannot_be_encoded_is_refused_with_its_key(codec, writes):
    """In the short form as in the long one."""
    with pytest.raises(SerializationError) as refused:
        recorder_of(codec).row("0", "s", record(UNWRITABLE, writes))
    assert "act" in text_of(refused.value)
    assert "stage 's'" in text_of(refused.value)
    with pytest.raises(SerializationError, match=r"^stage 's': "):
        recorder_of(codec).row("0", None, DID["stage"]._replace(writes=writes))


class Strange(Exception):
    def __reduce__(self):
        raise TypeError("no")


class Other(Exception):
    def __reduce__(self):
        return ValueError, ("something else",)


def copied(error):
    return CODEC.decode(CODEC.encode(error, "error"))


@pytest.mark.parametrize("error", [Strange("no"), Other("no")])
def test_an_exception_that_does_not_come_back_is_described(error):
    """Its type is told in the message."""
    described = portable(error, copied)
    assert (type(described), str(described)) == (RunError, f"{type(error).__name__}: no")
    error = ValueError("no")
    assert portable(error, copied) is error


# -- scopes that are open again


@pytest.mark.parametrize("title", ["stage", "pipeline", "group", "in a scope"])
def test_a_scope_that_is_open_again_has_ended_no_more(title):
    """Of what it did, nothing is left but its place."""
    recorder, did = recorder_of(), DID[title]
    stage = "s" if isinstance(did, ActionRecord) else None
    (known,) = read(recorder.row("0", stage, did)).values()
    (back,) = read(recorder.reopening("0", known)).values()
    assert (back.status, back.is_final, back.end, back.writes) == (Status.RUNNING, False, -1, NOTHING)
    assert (back.name, back.number, back.branches, back.scope) == (did.name, 3, did.branches, did.scope)
    assert back.unit.kind == known.unit.kind


# -- code, streams, values that are changed in place


def test_the_fingerprint_of_a_function_is_worked_out_once(monkeypatch):
    """But not kept for ever: a run may make new functions all the time."""
    monkeypatch.setattr(engine, "_KEPT", 2)
    asked = []
    recorder = Recorder(MemoryJournal(), "r", lambda function: asked.append(function) or "code", digest)
    functions = [lambda: None for _ in range(3)]
    for index in (0, 0, 1, 0, 2, 2, 0):
        assert recorder.code(functions[index]) == "code"
    assert asked == [*functions, functions[0]]


def test_a_stream_must_be_a_function_that_can_be_called_again():
    """Else a resumed run could not go on with it."""
    recorder = recorder_of()
    recorder.check_repeatable([STAGE, stream(list)], "action 'act'")
    with pytest.raises(DefinitionError, match="action 'act' inserted the stream .* cannot be called again on resume"):
        recorder.check_repeatable([STAGE, stream([one([], "a")])], "action 'act'")
