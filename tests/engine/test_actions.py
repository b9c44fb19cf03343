"""One action, from its step to its outcome: called, restored or skipped, whichever way it takes."""

from threading import Lock

import pytest
from scripted import evaluation, in_stage, perform, recorder
from support import step

from flowdeco import Key, Stage, action
from flowdeco.engine.actions import begin_action
from flowdeco.engine.history import History
from flowdeco.engine.messages import MessageRecord
from flowdeco.engine.outcome import ROOT, ActionRecord, Status
from flowdeco.engine.requests import CAUGHT_UP, Save, Sleep
from flowdeco.engine.rows import outcomes
from flowdeco.engine.waits import Wall
from flowdeco.errors import PAUSE, Cancelled, SerializationError, Suspend, Wait
from flowdeco.events import ActionFinished, ActionStarted
from flowdeco.model.deltas import Delta
from flowdeco.model.keys import Local
from flowdeco.model.steps import step_of


def passes(call):
    yield


def nothing(event):
    """An observer."""


# -- called

# What may surround an action, or watch it: each of these has it take another way.
WAYS = {
    "alone": lambda: ({}, {}),
    "observed": lambda: ({}, {"notify": nothing}),
    "in a layer": lambda: ({"use_actions": [passes]}, {}),
    "in a layer, observed": lambda: ({"use_actions": [passes]}, {"notify": nothing}),
    "durable": lambda: ({}, {"recorder": recorder()}),
    "durable, in a layer": lambda: ({"use_actions": [passes]}, {"recorder": recorder()}),
    "where something is skipped": lambda: ({}, {"skip": frozenset({"other"})}),
}


@pytest.fixture(params=WAYS)
def way(request):
    """Options of the stage, and of the run."""
    return WAYS[request.param]()


@action
def inserted(given):
    return given


@action
def inserted_with_context(ctx, given):
    return given


@pytest.mark.parametrize("inner", [inserted, inserted_with_context])
@pytest.mark.parametrize("value", [1, None, "text", [1], {"k": 1}, (1, 2), {1}], ids=repr)
def test_an_action_comes_to_the_same_whichever_way_it_takes(way, inner, value):
    """Its value is stored, and is the result; its record has its place, its times, and who inserted it."""
    stage_options, terms = way
    last = inner.with_options(name="last")
    flow = Stage("s", [step([], "first", inner), last], **stage_options)
    run, walk = evaluation(flow, {"given": value}, clock=lambda: 8.0, **terms)
    requests = []
    perform(walk, requests)
    called = [request[0].name for request in requests if isinstance(request, tuple)]
    assert (run.status, called) == ("completed", ["first", inner.name, "last"])
    assert dict(run.store) == {"given": value, **({} if value is None else {inner.name: value, "last": value})}
    assert run.result == value
    (record,) = run.stages
    assert [tuple(each[:7]) for each in record.actions] == [
        ("first", flow.actions[0], Status.COMPLETED, 1008.0, 0.0, None, 1),
        (inner.name, inner, Status.COMPLETED, 1008.0, 0.0, "s/first", 2),
        ("last", last, Status.COMPLETED, 1008.0, 0.0, None, 3),
    ]
    if "recorder" in terms:
        rows = terms["recorder"].journal.history("run-1")
        back = outcomes(rows, terms["recorder"].codec)[ROOT]
        assert [(row.number, row.action, row.started) for row in rows[:3]] == [
            (1, "first", 1008.0), (2, inner.name, 1008.0), (3, "last", 1008.0),
        ]  # fmt: skip
        assert [back[number].writes.puts for number in (1, 2, 3)] == [
            {}, *({} if value is None else {name: value} for name in (inner.name, "last")),
        ]  # fmt: skip
        kinds = ["save" if isinstance(request, Save) else "call" for request in requests]
        assert kinds == ["call", "save"] * 3 + ["save"]  # before the next action begins


@action
def yields():
    yield 1
    yield 2


async def coroutine():
    return [1, 2]


def test_a_value_is_settled_whichever_way_an_action_takes(way):
    """A generator is run to its end, a coroutine awaited."""
    stage_options, terms = way
    for act in (yields, step([], "awaits", coroutine)):
        run, walk = evaluation(Stage("s", [act], **stage_options), **terms)
        perform(walk)
        assert (run.status, list(run[act.name])) == ("completed", [1, 2])


@pytest.mark.parametrize("use", [(), (passes,)], ids=["alone", "in a layer"])
def test_a_value_that_cannot_be_journaled_is_the_failure_of_its_action(use):
    """Nothing of it is left, in the store or in the journal; one that has layers is told by nothing else."""
    for value in (lambda: Lock(), lambda: [Lock()], lambda: {"k": Lock()}):
        kept = recorder()
        run, walk = evaluation(Stage("s", [step([], "a", 1), step([], "b", value, use=use)]), recorder=kept)
        perform(walk)
        assert (run.status, type(run.error), dict(run.store)) == ("failed", SerializationError, {"a": 1})
        assert [row.status for row in kept.journal.history("run-1")] == ["completed", "failed", "failed"]


@pytest.mark.parametrize("use", [(), (passes,)], ids=["alone", "in a layer"])
def test_observers_hear_that_an_action_begins(use):
    """Before it is called, with who inserted it."""
    heard = []

    def body():
        heard.append("called")

    act = action(name="a")(body)
    flow = Stage("s", [step([], "first", act.with_options(use=use)), act.with_options(name="b", use=use)])
    _, walk = evaluation(flow, notify=heard.append)
    perform(walk)
    assert [each for each in heard if each == "called" or isinstance(each, ActionStarted)] == [
        ActionStarted("run-1", "s", "first", None),
        ActionStarted("run-1", "s", "a", "s/first"), "called",
        ActionStarted("run-1", "s", "b", None), "called",
    ]  # fmt: skip
    assert [each.action for each in heard if isinstance(each, ActionFinished)] == ["first", "a", "b"]


@pytest.mark.parametrize("use", [(), (passes,)], ids=["alone", "in a layer"])
def test_what_an_action_changes_in_place_is_journaled(use):
    """As its changes, which are not writes."""

    @action(use=use)
    def changes(xs):
        xs.append(1)

    kept = recorder()
    run, walk = evaluation(Stage("s", [step([], "xs", lambda: [0]), changes]), recorder=kept)
    perform(walk)
    did = outcomes(kept.journal.history("run-1"), kept.codec)[ROOT][2]
    assert (run["xs"], dict(did.writes.changes), did.writes.puts) == ([0, 1], {"xs": [0, 1]}, {})


def test_a_journal_that_cannot_be_written_ends_the_run():
    """The next action is not called."""
    log, full = [], OSError("disk full")
    for use in ((), (passes,)):
        kept = recorder()
        run, walk = evaluation(Stage("s", [step(log, "a", [1], use=use), step(log, "b")]), recorder=kept)
        kept.journal.write = lambda *args: (_ for _ in ()).throw(full)
        perform(walk)
        assert (run.error, log) == (full, ["a"])
        log.clear()


# -- skipped


@pytest.mark.parametrize("selector", ["s/inserted", "tag:t"])
@pytest.mark.parametrize("durable", [True, False])
def test_an_action_that_is_selected_to_be_skipped_is_not_called(selector, durable):
    """Its record says so, with its place; the journal has it."""
    log = []
    kept = recorder() if durable else None
    act = inserted.with_options(tags=["t"])
    flow = Stage("s", [step(log, "first", act), step(log, "b")])
    run, walk = evaluation(flow, skip=frozenset({selector}), unmatched={selector}, clock=lambda: 8.0, recorder=kept)
    perform(walk)
    record = run.stages[0].actions[1]
    assert (log, run.status) == (["first", "b"], "completed")
    assert tuple(record[:7]) == ("inserted", act, Status.SKIPPED, 1008.0, 0.0, "s/first", 2)
    if kept is not None:
        assert [(row.action, row.status) for row in kept.journal.history("run-1")] == [
            ("first", "completed"), ("inserted", "skipped"), ("b", "completed"), (None, "completed"),
        ]  # fmt: skip


def test_a_skipped_action_that_cannot_be_journaled_ends_the_run():
    """As any action of which the journal knows nothing."""
    log, kept = [], recorder()
    run, walk = evaluation(Stage("s", [step(log, "a"), step(log, "b")]), skip=frozenset({"s/a"}), recorder=kept)
    kept.journal.write = lambda *args: (_ for _ in ()).throw(OSError("disk full"))
    perform(walk)
    assert (str(run.error), log) == ("disk full", [])


# -- in a resumed run


def did(act, number=1, status=Status.COMPLETED, **more):
    """What had become of an action."""
    return ActionRecord(act.name, act, status, 1.0, 1.0, number=number, **more)


def test_an_action_that_had_ended_is_restored_even_if_it_is_skipped_now():
    """It is too late; but the selector has matched something."""
    log, unmatched = [], {"s/a"}
    act = step(log, "a", 1)
    past = History({ROOT: {1: did(act, writes=Delta({"a": 1}, [], {}), result=1)}})
    run, walk = evaluation(Stage("s", [act]), skip=frozenset(unmatched), unmatched=unmatched, past=past)
    perform(walk)
    assert (log, run["a"], run.result, unmatched) == ([], 1, 1, set())
    assert [record.status for record in run.stages[0].actions] == ["completed"]


def test_an_action_that_has_not_run_is_skipped_with_its_stage():
    """The stage had been skipped, or is now."""
    log = []
    for by in (None, "s/x"):
        branch = in_stage(Stage("s", []), past=History({}))
        branch.scope.is_skipped = True
        assert perform(begin_action(branch, step_of(step(log, "a")), by)) is None
        ((name, _, status, _, _, inserted_by, number, *_),) = branch.scope.records
        assert (name, status, inserted_by, number, log) == ("a", "skipped", by, 1, [])


def test_a_restored_failure_ends_its_stage_again():
    """In a scope that had ended; one that the action's own layers had recovered does not."""
    act, error = step([], "a"), ValueError("then")
    for recovered in (False, True):
        failed = did(act, status=Status.FAILED, error=error, recovered=recovered)
        branch = in_stage(Stage("s", [act]), past=History({ROOT: {1: failed}}))
        branch.sealed = 1
        assert begin_action(branch, step_of(act), "s/x") is (None if recovered else error)
        (record,) = branch.scope.records
        assert (record.restored, record.unit, record.inserted_by, record.error) == (True, act, "s/x", error)


def test_frozen_keys_of_a_restored_action_are_frozen():
    """Their values are not looked at, as if it had been called."""
    act = step([], "a", returns=Key("k", list, frozen=True))
    kept = recorder()
    branch = in_stage(Stage("s", [act]), past=History({ROOT: {1: did(act)}}), recorder=kept)
    begin_action(branch, step_of(act), None)
    assert kept.looks.frozen == {"k"}


def paused(now, suspend_after=1.0, **terms):
    """A branch in which the next attempt at an action is due at 10, and the action, which notes its calls."""
    log = []
    act = step(log, "a", 1)
    waits = [Wait(PAUSE, 10.0, 0)]
    earlier = did(act, status=Status.SUSPENDED, error=Suspend("pause"), waits=waits, attempts=2)
    branch = in_stage(
        Stage("s", [act]),
        past=History({ROOT: {1: earlier}}),
        waits={(ROOT, 1): waits},
        wall=Wall(lambda: now, suspend_after=suspend_after),
        **terms,
    )
    return branch, act, log, earlier


def test_a_run_that_is_resumed_in_a_pause_waits_until_it_is_over():
    """If that takes too long, it is suspended again, and the action's record stays as it was."""
    branch, act, log, _ = paused(9.5)
    requests = []
    assert perform(begin_action(branch, step_of(act), None), requests) is None
    assert (requests[0], log) == (Sleep(0.5), ["a"])
    branch, act, log, earlier = paused(0.0)
    error = perform(begin_action(branch, step_of(act), None))
    assert (type(error), log, branch.scope.records) == (Suspend, [], [earlier])


def test_an_action_that_had_not_begun_has_no_pause():
    """Another one had waited in its place, and is gone."""
    branch, act, log, _ = paused(0.0)
    branch.terms.past.steps.clear()
    assert perform(begin_action(branch, step_of(act), None)) is None
    assert log == ["a"]


def test_an_action_of_a_branch_waits_until_all_of_its_group_have_restored_their_history():
    """If the group has ended by then, it is not called."""
    log = []
    branch = in_stage(Stage("s"), past=History({}))
    branch.parent, branch.is_catching_up = branch, True
    walk = begin_action(branch, step_of(step(log, "a")), None)
    assert next(walk) is CAUGHT_UP
    branch.stop()
    with pytest.raises(StopIteration) as ended:
        walk.send(True)
    assert (type(ended.value.value), log) == (Cancelled, [])


def test_messages_of_an_action_go_on_in_a_resumed_run():
    """Those of the earlier leg are first, with the reason why it ended."""

    @action
    def speaks(ctx):
        ctx.emit("now", n=2)

    said = MessageRecord("emit", 1.0, {"kind": "then", "payload": {"n": 1}})
    earlier = did(speaks, status=Status.SUSPENDED, error=Suspend("waits"), messages=[said])
    for stage in (Stage("s", [speaks]), Stage("s", [speaks], use_actions=[passes])):
        run, walk = evaluation(stage, past=History({ROOT: {1: earlier}}))
        perform(walk)
        (record,) = run.stages[0].actions
        assert [each.kind for each in record.messages] == ["emit", "ended", "emit"]
        assert record.messages[0] == said
        assert record.messages[1].payload == {"status": "suspended", "error": "Suspend: waits"}


@action
def renewed(n=0):
    """Stands for the code that the module has now."""
    return "new", n


def outdated():
    """Return the same action as a run in memory has kept it, with its code of then."""

    def old(n=0):
        return "old", n

    old.__module__, old.__qualname__, old.__name__ = __name__, "renewed", "renewed"
    return action(old)


@pytest.mark.parametrize(
    ("is_in_memory", "by", "value"), [(True, "s/x", "new"), (True, None, "old"), (False, "s/x", "old")]
)
@pytest.mark.parametrize("use", [(), (passes,)], ids=["alone", "in a layer"])
def test_an_inserted_action_has_the_code_that_its_module_has_now(is_in_memory, by, value, use):
    """In a run that is resumed from memory: it is fixed by running its cell again. What the definition has is up to date."""
    branch = in_stage(Stage("s", [], use_actions=use), past=History({}, is_in_memory=is_in_memory))
    assert perform(begin_action(branch, step_of(outdated()), by)) is None
    assert (branch.result, dict(branch.store)) == ((value, 0), {"renewed": (value, 0)})


def test_such_an_action_reads_and_writes_what_is_local_to_its_stage():
    """As the code that was inserted."""
    stage = Stage("s", [step([], "renewed"), step([], "n")], local=True)
    branch = in_stage(stage, {"n": 0}, past=History({}, is_in_memory=True))
    branch.store.put(Local("n"), 1)
    assert perform(begin_action(branch, step_of(outdated()), "s/x")) is None
    assert (branch.result, dict(branch.store)) == (("new", 1), {"n": 0})
    assert sorted(branch.store.local_names()) == ["n", "renewed"]


def test_the_layers_of_a_stage_are_around_those_of_its_actions(way):
    """Each is entered once, in a resumed run as well."""
    log = []

    def noted(name):
        def layer(call):
            log.append(name)
            yield

        return layer

    _, terms = way
    flow = Stage("s", [step(log, "a", use=[noted("own")])], use_actions=[noted("of the stage")])
    for past in (None, History({})):
        log.clear()
        _, walk = evaluation(flow, past=past, **terms)
        perform(walk)
        assert log == ["of the stage", "own", "a"]
