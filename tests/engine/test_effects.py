"""The effect of an action: all of it takes place, or nothing does (L4)."""

from threading import Lock
from types import SimpleNamespace

import pytest
from scripted import in_stage, perform, recorder
from support import step, wants

from flowdeco import Bail, Key, Stage, action, stream
from flowdeco.engine.calling import call_action
from flowdeco.engine.effects import Execution, conclude, take_effect, try_complete
from flowdeco.engine.memory import Log
from flowdeco.engine.messages import MessageRecord, Messages
from flowdeco.engine.outcome import ROOT, ActionRecord, Status
from flowdeco.engine.requests import Raised
from flowdeco.engine.rows import outcomes
from flowdeco.errors import ANSWERED, QUESTION, DefinitionError, SerializationError, StoreTypeError, Wait, WiringError
from flowdeco.events import ActionFinished, StageStarted, UnitsInserted
from flowdeco.model.deltas import Delta
from flowdeco.model.keys import Local
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import step_of, steps_of

ERROR = ValueError("no")
UNIT, OTHER, THIRD = Stage("unit"), Stage("other"), Stage("third")


def act_of(function=lambda: None, **options):
    """An action of this name for its step."""
    return action(name="a", **options)(function)


def returning(annotation, **options):
    """An action that is annotated so."""

    def function():
        pass

    function.__annotations__["return"] = annotation
    return act_of(function, **options)


# -- plain values, in one go


@pytest.mark.parametrize(
    ("options", "value", "store", "result"),
    [
        ({}, None, {}, None),
        ({}, 1, {"a": 1}, 1),
        ({}, "text", {"a": "text"}, "text"),
        ({}, {"k": 1}, {"a": {"k": 1}}, {"k": 1}),
        ({}, {1, 2}, {"a": {1, 2}}, {1, 2}),
        ({"returns": "k"}, 1, {"k": 1}, 1),
        ({"collect": "xs"}, 1, {"xs": [1]}, 1),
        ({"annotation": int | None}, None, {"a": None}, None),
    ],
)
def test_a_plain_value_is_applied_at_once(options, value, store, result):
    """Under one key, or at the end of one list; its record has it, and so have the observers."""
    options = dict(options)
    act = returning(options.pop("annotation"), **options) if "annotation" in options else act_of(**options)
    for notify in (None, (heard := []).append):
        branch = in_stage(Stage("s"), clock=lambda: 8.0, notify=notify)
        assert try_complete(branch, step_of(act), "s/x", 4, 3.0, value)
        assert (dict(branch.store), branch.result) == (store, result)
        (did,) = branch.scope.records
        assert did == ActionRecord("a", act, Status.COMPLETED, 1003.0, 5.0, "s/x", 4)
    assert heard[1:] == [ActionFinished("run-1", "s", "a", Status.COMPLETED, None, 5.0, 1, False, False, ())]


def test_an_inserted_stage_is_applied_at_once():
    """With who inserted it; it is no result."""
    for notify in (None, (heard := []).append):
        branch = in_stage(Stage("s"), notify=notify)
        branch.result = "before"
        assert try_complete(branch, step_of(act_of()), None, 4, 3.0, UNIT)
        ((unit, by),) = branch.scope.inserted
        assert (unit, by, by.number, branch.result, dict(branch.store)) == (UNIT, "s/a", 4, "before", {})
        assert branch.scope.records[0].inserted == (UNIT,)
    assert [type(event) for event in heard] == [StageStarted, UnitsInserted, ActionFinished]


LACKS = Stage("lacks", [wants("nowhere")])


@pytest.mark.parametrize(
    ("act", "value", "terms"),
    [
        (act_of(), [1], {}),
        (act_of(), {"k": UNIT}, {}),
        (act_of(), Raised(ERROR), {}),
        (act_of(), object(), {}),
        (act_of(), step([], "b"), {}),
        (act_of(), LACKS, {}),
        (act_of(), UNIT, {"recorder": recorder()}),
        (act_of(returns=("k", "l")), 1, {}),
        (act_of(returns=Key("k", int)), "text", {}),
        (act_of(collect="xs", returns="k"), 1, {}),
        (act_of(collect=Key("xs", list[int])), "text", {}),
        (act_of(collect="xs"), 1, {"recorder": recorder()}),
        (act_of(collect="xs"), 1, {"xs": "text"}),
        (returning(Stage), 1, {}),
        (returning(Stage, collect="xs"), 1, {}),
        (act_of(), {"k": Lock()}, {"recorder": recorder()}),
        (act_of(), {Lock()}, {"recorder": recorder()}),
    ],
)
def test_anything_else_takes_the_long_way(act, value, terms):
    """Nothing has happened by then."""
    terms = dict(terms)
    inputs = {"xs": terms.pop("xs")} if "xs" in terms else {}
    branch = in_stage(Stage("s"), inputs, **terms)
    branch.result = "before"
    assert not try_complete(branch, step_of(act), None, 4, 3.0, value)
    assert (dict(branch.store), branch.result, branch.scope.records, branch.scope.inserted, branch.rows) == (
        inputs, "before", [], [], [],
    )  # fmt: skip


def test_an_inserted_stage_that_is_skipped_needs_nothing():
    """It does not run."""
    branch = in_stage(Stage("s"), skip=frozenset({"lacks"}))
    assert try_complete(branch, step_of(act_of()), None, 4, 3.0, LACKS)


def test_in_a_durable_run_a_plain_value_is_in_its_row():
    """Which is to be written."""
    for value in (1, None):
        branch = in_stage(Stage("s"), recorder=recorder())
        assert try_complete(branch, step_of(act_of()), None, 4, 3.0, value)
        (row,) = branch.rows
        did = outcomes([row], branch.terms.recorder.codec)[ROOT][4]
        assert (row.stage, row.action, did.writes.puts) == ("s", "a", {} if value is None else {"a": 1})


# -- the whole effect


def concluded(act, inputs=None, *, layers=None, stage=None, mark=False, **terms):
    """A branch in which this action was called and concluded, and what that ended with."""
    branch = in_stage(stage or Stage("s", [act]), inputs, **terms)
    did = Execution(step_of(act), "s/x", 4, 3.0)
    did.layers = layers
    if mark or terms.get("recorder"):
        did.mark = branch.store.mark()
    if terms.get("recorder"):
        did.watch = branch.terms.recorder.looks.watch(branch.store, branch.note_changed)
    did.value = perform(call_action(branch, did, {}))
    return branch, conclude(branch, did)


def around(**more):
    """Layers that have done this."""
    usual = {
        "inserted": (), "recovered": False, "failure": None, "attempt": 1, "failures": (), "repeats": (),
        "cached": False, "entered": True, "given": UNSET, "messages": None,
    }  # fmt: skip
    return SimpleNamespace(**{**usual, **more})


def do_everything(ctx):
    ctx.store["k"] = 1
    del ctx.store["gone"]
    ctx.store.append("xs", 2)
    ctx.insert(OTHER)
    ctx.disable("off")
    ctx.enable("on")


@action(name="a")
def does_everything(ctx):
    do_everything(ctx)
    return 3


@action(name="a")
def inserts_too(ctx):
    do_everything(ctx)
    return UNIT


@action(name="a")
def fails_in_the_end(ctx):
    do_everything(ctx)
    raise ERROR


@action(name="a")
def ends_the_run(ctx):
    do_everything(ctx)
    raise Bail("done")


BEFORE = {"gone": 0, "xs": [1]}


def test_all_that_an_action_did_takes_effect_as_it_ends():
    """Its writes, its insertions, its switches, its result."""
    branch, error = concluded(does_everything, BEFORE)
    assert (error, dict(branch.store), branch.result) == (None, {"xs": [1, 2], "k": 1, "a": 3}, 3)
    ((unit, by),) = branch.scope.inserted
    assert (unit, by, by.number) == (OTHER, "s/a", 4)
    assert branch.switches == {"off": False, "on": True}
    assert branch.terms.idle == {"off": ("s", "a", False), "on": ("s", "a", True)}
    assert (branch.scope.is_quiet, branch.scope.is_bare) == (False, False)
    (did,) = branch.scope.records
    assert (did.switches, did.inserted, did.writes, did.result) == (
        (("off", False), ("on", True)),
        (OTHER,),
        None,
        UNSET,
    )


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_record_of_an_action_has_all_that_is_known_of_it(layered, fails):
    """Its times are those of the run, in POSIX seconds; it has the messages of all its attempts."""

    @action(name="a")
    def act(ctx):
        ctx.emit("done")
        if fails:
            raise ERROR
        return [1]

    branch = in_stage(Stage("s"), clock=lambda: 8.0)
    branch.result = "before"
    execution = Execution(step_of(act), "s/x", 4, 3.0)
    if layered:
        execution.layers = around(attempt=3, failures=(ERROR, ERROR), repeats=(2,), messages=Messages())
        execution.layers.messages.add(MessageRecord("log", 1.0, {}))
    execution.value = perform(call_action(branch, execution, {}))
    conclude(branch, execution)
    (did,) = branch.scope.records
    tried = {"attempts": 3, "failures": (ERROR, ERROR), "repeats": (2,)} if layered else {}
    failure = {"error": ERROR} if fails else {}
    status = Status.FAILED if fails else Status.COMPLETED
    expected = ActionRecord("a", act, status, 1003.0, 5.0, "s/x", 4, **tried, **failure)
    assert did == expected._replace(messages=did.messages)
    assert [each.kind for each in did.messages] == (["log", "emit"] if layered else ["emit"])
    assert branch.result == ("before" if fails else [1])


def test_units_come_in_the_order_in_which_they_were_inserted():
    """Through the context before those that are returned; those of the layers are among them."""
    branch, _ = concluded(inserts_too, BEFORE)
    assert [unit for unit, _ in branch.scope.inserted] == [OTHER, UNIT]
    branch, _ = concluded(inserts_too, BEFORE, layers=around(inserted=(THIRD,)))
    assert {unit for unit, _ in branch.scope.inserted} == {THIRD, OTHER, UNIT}
    assert branch.scope.records[0].inserted == tuple(unit for unit, _ in branch.scope.inserted)


@pytest.mark.parametrize(("act", "error"), [(fails_in_the_end, ERROR), (ends_the_run, Bail)])
def test_a_failed_action_leaves_no_trace_and_one_that_ends_the_run_leaves_its_writes(act, error):
    """A `Bail` is a success."""
    branch, left = concluded(act, BEFORE)
    bailed = error is Bail
    assert isinstance(left, Bail) if bailed else left is error
    assert dict(branch.store) == ({"xs": [1, 2], "k": 1} if bailed else BEFORE)
    assert branch.switches == ({"off": False, "on": True} if bailed else {})
    assert [unit for unit, _ in branch.scope.inserted] == ([OTHER] if bailed else [])
    assert (branch.result, branch.scope.records[0].status) == (None, "bailed" if bailed else "failed")


def test_what_a_recovered_action_did_is_dropped_and_what_its_layers_did_stays():
    """The call has failed; they have not."""
    layers = around(inserted=(THIRD,), recovered=True, failure=ERROR, attempt=2, failures=(ERROR,), repeats=(1,))
    branch = in_stage(Stage("s"), BEFORE)
    did = Execution(step_of(fails_in_the_end), None, 4, 3.0)
    did.layers, mark = layers, branch.store.mark()
    perform(call_action(branch, did, {}))
    did.mark = mark
    did.value = "of a layer"
    assert conclude(branch, did) is None
    assert (dict(branch.store), branch.result, branch.switches) == ({**BEFORE, "a": "of a layer"}, "of a layer", {})
    (record,) = branch.scope.records
    assert (record.inserted, record.recovered, record.error, record.attempts) == ((THIRD,), True, ERROR, 2)


@pytest.mark.parametrize(
    ("annotation", "value", "store", "result"),
    [(int | None, None, {"a": None}, "before"), (int | None, 1, {"a": 1}, 1), (None, None, {}, "before")],
)
def test_none_is_no_result_even_where_it_is_data(annotation, value, store, result):
    """The result of a run is the last other value."""
    act = returning(annotation)
    branch = in_stage(Stage("s"))
    branch.result = "before"
    for long in (False, True):
        if long:
            did = Execution(step_of(act), None, 4, 3.0)
            did.value = value
            assert conclude(branch, did) is None
        else:
            assert try_complete(branch, step_of(act), None, 4, 3.0, value)
        assert (dict(branch.store), branch.result) == (store, result)


@pytest.mark.parametrize("durable", [False, True])
def test_marks_are_let_go_as_an_action_ends(durable):
    """A store that nobody may undo notes nothing."""
    for act in (does_everything, ends_the_run, fails_in_the_end, act_of(lambda: LACKS), act_of(lambda: [1])):
        branch, _ = concluded(act, BEFORE, mark=True, recorder=recorder() if durable else None)
        branch.store["new"] = 1
        assert not branch.store.has_written("new")


# -- refused


class Odd:
    """A value that the store cannot take."""

    def __deepcopy__(self, memo):
        raise KeyboardInterrupt

    def __reduce__(self):
        raise LookupError("no pickle")


def odd(ctx, value):
    ctx.store["k"] = 1
    ctx.insert(OTHER)
    ctx.disable("off")
    return value


@pytest.mark.parametrize(
    ("value", "options", "terms", "error"),
    [
        ("text", {"returns": Key("n", int)}, {}, StoreTypeError),
        ([UNIT, 1], {}, {}, TypeError),
        (LACKS, {}, {}, WiringError),
        (stream([UNIT]), {}, {"recorder": True}, DefinitionError),
        (Odd(), {}, {"recorder": True}, SerializationError),
        (Lock(), {}, {"recorder": True}, SerializationError),
    ],
    ids=["wrong type", "a mix", "lacks a value", "not repeatable", "not journaled", "not journaled either"],
)
@pytest.mark.parametrize("in_layers", [False, True])
def test_an_effect_that_is_refused_is_the_failure_of_its_action(value, options, terms, error, in_layers):
    """Nothing of it takes place; what its layers have written stays, until those around it decide."""
    terms = {"recorder": recorder()} if terms else {}
    act = act_of(lambda ctx: odd(ctx, value), **options)
    layers = around(given=value, cached=True) if in_layers else None
    branch, left = concluded(act, {"before": 0}, layers=layers, **terms)
    assert isinstance(left, error)
    assert (dict(branch.store), branch.result, branch.switches, branch.scope.inserted) == ({"before": 0}, None, {}, [])
    (did,) = branch.scope.records
    assert (did.status, did.error, did.inserted, did.switches, did.cached) == ("failed", left, (), (), False)
    if error is DefinitionError:
        assert "action 'a' inserted the stream of" in str(left)


@pytest.mark.parametrize(
    ("value", "options", "terms"), [("text", {"returns": ("n", Key("k", int))}, {}), ([Lock()], {}, {"recorder": True})]
)
def test_data_that_is_refused_is_taken_back(value, options, terms):
    """Also where a part of it is stored already."""
    act = act_of(lambda: value if terms else [1, value], **options)
    branch, error = concluded(act, {"before": 0}, **({"recorder": recorder()} if terms else {}))
    assert isinstance(error, (StoreTypeError, SerializationError))
    assert dict(branch.store) == {"before": 0}


def test_inserted_actions_are_checked_in_their_stage():
    """They see what is local to it."""
    stage = Stage("s", [step([], "n")], local=True)
    branch = in_stage(stage)
    branch.store.put(Local("n"), 1)
    execution = Execution(step_of(act_of()), None, 4, 3.0)
    execution.value = wants("n")
    assert conclude(branch, execution) is None
    assert names(branch) == [("wants", "s/a")]


@pytest.mark.parametrize("earlier", [True, False])
def test_an_action_has_what_it_has_waited_for(earlier):
    """If it has not finished; nothing waits in its place any longer."""
    question = Wait(QUESTION, key="q")

    @action(name="a")
    def asks(ctx):
        if not earlier:
            ctx.wait_for("q", type=int)

    branch = in_stage(
        Stage("s"), waits={(ROOT, 4): [question._replace(state=ANSWERED, value=1, given=0)]} if earlier else {}
    )
    execution = Execution(step_of(asks), None, 4, 3.0)
    execution.value = perform(call_action(branch, execution, {}))
    conclude(branch, execution)
    (did,) = branch.scope.records
    assert [(wait.kind, wait.key) for wait in did.waits] == [(QUESTION, "q")]
    assert (branch.waits, branch.terms.waits) == ({}, {})


def test_a_value_of_a_cache_is_marked_as_such():
    """In its record."""
    branch, _ = concluded(act_of(lambda: 1), layers=around(cached=True))
    assert branch.scope.records[0].cached
    branch, _ = concluded(act_of(lambda: 1), layers=around())
    assert not branch.scope.records[0].cached


@pytest.mark.parametrize("act", [fails_in_the_end, act_of(lambda: LACKS)])
@pytest.mark.parametrize("marked", [False, True])
def test_a_failure_is_left_for_a_resume_in_memory(act, marked):
    """Which undoes what the layers wrote, from the mark before them on."""
    branch, _ = concluded(act, BEFORE, mark=marked, log=Log())
    branch.store["left by a layer"] = 1
    assert branch.store.has_written("left by a layer")
    branch.store.undo(branch.left_behind().unwinding)
    assert dict(branch.store) == BEFORE
    branch, _ = concluded(does_everything, BEFORE, mark=marked, log=Log())
    assert branch.left_behind().unwinding is None


# -- in a durable run


def test_the_row_of_an_action_has_its_whole_effect():
    """Its writes, those of its layers, and what it changed in place."""

    @action(name="a")
    def act(ctx, ys):
        ys.append(1)
        ctx.store["k"] = 1
        ctx.disable("off")
        return 3

    branch, error = concluded(act, {"ys": []}, recorder=recorder())
    did = outcomes(branch.rows, branch.terms.recorder.codec)[ROOT][4]
    assert (error, did.writes.puts, dict(did.writes.changes)) == (None, {"k": 1, "a": 3}, {"ys": [1]})
    assert (did.switches, did.result, did.inserted_by) == ((("off", False),), 3, "s/x")


def test_a_journal_that_was_not_written_fails_what_comes_next():
    """No layer recovers that."""
    kept, full = recorder(), OSError("disk full")
    kept.unsaved = full
    branch, error = concluded(act_of(lambda: 1), recorder=kept)
    assert (error, dict(branch.store)) == (full, {"a": 1})


def test_a_frozen_key_is_noted_as_it_is_written():
    """From then on, its value is not looked at."""
    act = act_of(lambda: [1], returns=Key("k", list, frozen=True))
    kept = recorder()
    kept.looks.frozen = {"other"}
    branch, error = concluded(act, recorder=kept)
    assert (error, kept.looks.frozen) == (None, {"other", "k"})
    assert concluded(act)[1] is None  # without a journal, there is nothing to note


def test_a_simple_call_is_concluded_without_a_watch():
    """Of values that cannot be changed, there is none; its row and its frozen keys are as those of any other."""
    act = act_of(lambda: [1], returns=Key("k", list, frozen=True))
    kept = recorder()
    branch = in_stage(Stage("s"), recorder=kept)
    execution = Execution(step_of(act), None, 4, 3.0)
    execution.mark, execution.value = branch.store.mark(), [1]
    assert conclude(branch, execution) is None
    assert kept.looks.frozen == {"k"}
    assert outcomes(branch.rows, kept.codec)[ROOT][4].writes.puts == {"k": [1]}


# -- of an action that was performed, or is restored


def did(**more):
    """The outcome of an action."""
    return ActionRecord("a", act_of(), Status.COMPLETED, 0.0, 0.0, None, 4, **more)


def names(branch):
    """What the branch has left to do in its stage, in order."""
    return [(each.name, by) for each, by in reversed(branch.agenda[1:])]


def test_inserted_actions_come_next_and_other_units_after_the_stage():
    """Both in their order."""
    branch = in_stage(Stage("s"))
    branch.agenda.append((step_of(step([], "last")), None))
    inserted = (step([], "b"), UNIT, step([], "c"), OTHER)
    take_effect(branch, branch.scope, did(inserted=inserted))
    assert names(branch) == [("b", "s/a"), ("c", "s/a"), ("last", None)]
    assert [unit for unit, _ in branch.scope.inserted] == [UNIT, OTHER]
    assert {by.number for _, by in branch.scope.inserted} | {by.number for _, by in branch.agenda[2:]} == {4}


def test_the_first_action_to_switch_a_selector_is_remembered():
    """For the warning that it has selected nothing; the latest switch counts."""
    branch = in_stage(Stage("s"))
    take_effect(branch, branch.scope, did(switches=(("k", False), ("l", True))))
    take_effect(branch, branch.scope, did(switches=(("k", True),))._replace(name="b"))
    assert branch.terms.idle == {"k": ("s", "a", False), "l": ("s", "a", True)}
    assert branch.switches == {"l": True, "k": True}


def test_a_rehearsal_keeps_no_records():
    """Nobody reads them."""
    branch = in_stage(Stage("s"))
    branch.terms.keeps_records = False
    take_effect(branch, branch.scope, did(result=1))
    assert (branch.scope.records, branch.result) == ([], 1)


def test_a_record_keeps_no_value_alive():
    """Only the run does."""
    branch = in_stage(Stage("s"))
    take_effect(branch, branch.scope, did(result=1, writes=Delta({"k": 1}, [], {})))
    (record,) = branch.scope.records
    assert (record.result, record.writes) == (UNSET, None)


def test_the_results_of_inserted_actions_are_local_to_their_stage():
    """For all actions that follow them, those of the stage as well; not for those behind the stage."""
    local = Stage("s", [wants("b", name="a")], local=True)
    branch = in_stage(local)
    behind = step_of(wants("b"))
    branch.agenda.insert(0, (behind, None))
    branch.scope.depth = 1
    branch.agenda.extend(steps_of(local))
    take_effect(branch, branch.scope, did(inserted=(step([], "b"),)))
    (inserted, _), (last, _) = reversed(branch.agenda[2:])
    assert (inserted.name, inserted.writes, type(inserted.writes)) == ("b", Local("b"), Local)
    assert (last.name, last.keys, branch.scope.local) == ("a", (Local("b"),), {"a", "b"})
    assert branch.agenda[0] == (behind, None)
    assert behind.keys == ("b",)
    known = branch.agenda[:]
    take_effect(branch, branch.scope, did(inserted=(wants("b", name="a"),)))
    assert branch.agenda[:-1] == known
    assert branch.agenda[-1][0].keys == (Local("b"),)
    shared = in_stage(Stage("s"))
    take_effect(shared, shared.scope, did(inserted=(step([], "b"),)))
    assert shared.agenda[-1][0].writes == "b"
