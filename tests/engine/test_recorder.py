"""From outcomes to rows of the journal, and back: whatever a step did, its row tells, whoever has written it."""

import json
import threading
from typing import Any

import pytest
from support import one, text_of

from flowdeco import Bail, Context, Stage, action, parallel, pipeline, stream
from flowdeco.durable import JsonCodec, MemoryJournal, PickleCodec
from flowdeco.durable.digests import digest
from flowdeco.engine import recorder as engine
from flowdeco.engine.journal import Row
from flowdeco.engine.outcome import ActionRecord, Outcome, Scope, StageRecord, Status
from flowdeco.engine.recorder import Recorded, Recorder, outcomes
from flowdeco.errors import DefinitionError, JournalError, RunError, SerializationError, portable
from flowdeco.model.deltas import NOTHING, Delta
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import step_of

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
    return outcomes(list(rows), codec, dict(pins)).get("0", {})


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
        entering=(Delta({"entered": 1}, [], {"xs": [1]}), NOTHING),
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
    (back,) = outcomes([written], codec, {})["0"].values()
    kind = {ActionRecord: "action", StageRecord: "stage"}.get(type(did), written.kind)
    assert (type(back), back.unit) == (type(did), Recorded(kind, stage or did.name))
    assert (back.number, written.fingerprint) == (3, "code of act" if stage else "")
    assert (type(back.error), str(back.error)) == (type(did.error), str(did.error))
    assert (back.result, back.writes, back.entering) == (did.result, did.writes or NOTHING, did.entering)
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


def test_rows_may_come_in_any_order():
    """Within a branch it is their number that counts; of two for one step, the later one."""
    rows = [row(1, "action", "s", "a", puts={"k": 1}), row(0, "stage", "s", end=2), row(1, "action", "s", "b")]
    steps = read(*rows)
    assert {number: each.name for number, each in steps.items()} == {0: "s", 1: "b"}
    assert steps[1].writes == NOTHING


def test_rows_are_of_branches():
    """Each has numbers of its own."""
    rows = [row(0, "group", "g", branches=1), row(0, "stage", "s", branch="x", end=1)]
    found = outcomes(rows, CODEC, {})
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
    del rows[missing]
    with pytest.raises(JournalError, match=f"branch '0' has a gap before step {missing + 1}"):
        read(*rows)


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
    assert tuple(each._replace(order=0) for each in steps[0].entering) == (Delta({"z": 1}, [], {}),)


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


def test_of_what_has_failed_the_writes_are_left_out_if_they_cannot_be_encoded():
    """They are dropped on a resume; the failure is not."""
    writes = Delta({"k": UNWRITABLE}, [], {})
    failed = StageRecord("s", STAGE, Status.FAILED, 1.0, 0.5, number=0, error=ValueError("no"), writes=writes)
    (back,) = read(recorder_of().row("0", None, failed)).values()
    assert (back.writes, str(back.error)) == (NOTHING, "no")


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
    for function in (functions[0], functions[0], functions[1], functions[0], functions[2], functions[2]):
        assert recorder.code(function) == "code"
    assert asked == functions


def test_a_stream_must_be_a_function_that_can_be_called_again():
    """Else a resumed run could not go on with it."""
    recorder = recorder_of()
    recorder.check_repeatable([STAGE, stream(list)], "action 'act'")
    with pytest.raises(DefinitionError, match="action 'act' inserted the stream .* cannot be called again on resume"):
        recorder.check_repeatable([STAGE, stream([one([], "a")])], "action 'act'")
