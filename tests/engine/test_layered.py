"""An action inside its layers: called as often as they ask for it, with the outcome that they leave, and not repeated
after a wait of theirs."""

from contextlib import suppress

import pytest
from scripted import in_stage, perform, recorder
from support import again, failing, flaky, step, swallow

from flowdeco import Bail, Sleep, Stage, Suspend, action
from flowdeco.engine.history import History
from flowdeco.engine.layered import in_layers
from flowdeco.engine.memory import Log
from flowdeco.engine.messages import MessageRecord
from flowdeco.engine.outcome import ROOT, ActionRecord, Status
from flowdeco.engine.requests import Awaited, Save
from flowdeco.engine.rows import outcomes
from flowdeco.engine.waits import Called, Wall
from flowdeco.errors import ANSWERED, CALLED, OVER, PAUSE, QUESTION, SLEEP, Cancelled, ReturnValueError, Wait
from flowdeco.model.deltas import NOTHING, Delta
from flowdeco.model.keys import Local
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import step_of, steps_of

ERROR, BROKEN = ValueError("no"), LookupError("broken")
STAGE = Stage("inserted")


def passes(call):
    yield


def skips(call):
    return
    yield


def supplies(call):
    call.outcome = "supplied"
    return
    yield


def replaces(call):
    yield
    call.outcome = "replaced"


def breaks(call):
    yield
    raise BROKEN


def inserts(call):
    call.insert(STAGE)
    yield


def writes(call):
    call.store["before"] = 1
    yield
    call.store["after"] = 1


def cached(call):
    call.take_cached("cached", (STAGE,))
    return
    yield


def acted(act, use, inputs=None, earlier=None, by="s/x", **terms):
    """A branch in which this action is called inside these layers, what that ended with, and the requests."""
    terms.setdefault("clock", lambda: 8.0)
    branch = in_stage(Stage("s", [act]), inputs, **terms)
    requests = []
    error = perform(in_layers(branch, step_of(act), by, 1, 3.0, tuple(use), earlier), requests)
    return branch, error, requests


def record_of(branch):
    """The only record."""
    (did,) = branch.scope.records
    return did


TERMS = {"nothing": dict, "a journal": lambda: {"recorder": recorder()}}


@pytest.fixture(params=TERMS)
def terms(request):
    """Of a run with a journal, and of one without."""
    return TERMS[request.param]()


# -- the outcome of an action in layers

# What the action returns or raises, its layers: its status, its value, the store beside it, what else its record has
CASES = {
    "nothing but a layer": (1, [passes], "completed", 1, {}, {}),
    "a value that is looked into": ([1], [passes], "completed", [1], {}, {}),
    "a value of a layer": (1, [supplies], "completed", "supplied", {}, {}),
    "a value that is replaced": (1, [passes, replaces], "completed", "replaced", {}, {}),
    "a value from a cache": (1, [cached], "completed", "cached", {}, {"cached": True, "inserted": (STAGE,)}),
    "skipped": (1, [skips], "skipped", UNSET, {}, {}),
    "a unit": (STAGE, [passes], "completed", UNSET, {}, {"inserted": (STAGE,)}),
    "a unit of a layer": (1, [inserts], "completed", 1, {}, {"inserted": (STAGE,)}),
    "units of both": (STAGE, [inserts], "completed", UNSET, {}, {"inserted": (STAGE, STAGE)}),
    "writes of a layer": (1, [writes], "completed", 1, {"before": 1, "after": 1}, {}),
    "a failure": (ERROR, [passes], "failed", UNSET, {}, {"error": ERROR}),
    "a failure of a layer": (1, [passes, breaks], "failed", UNSET, {}, {"error": BROKEN}),
    "a recovered failure": (ERROR, [swallow], "failed", UNSET, {}, {"error": ERROR, "recovered": True}),
    "a recovered failure of a layer": (
        1, [swallow, breaks], "failed", UNSET, {}, {"error": BROKEN, "recovered": True},
    ),
    "several attempts": (
        ERROR, [again(3)], "failed", UNSET, {},
        {"error": ERROR, "attempts": 3, "repeats": (2,), "failures": (ERROR, ERROR)},
    ),
    "recovered after several attempts": (
        ERROR, [swallow, again(2)], "failed", UNSET, {},
        {"error": ERROR, "attempts": 2, "repeats": (0, 1), "failures": (ERROR,), "recovered": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("title", CASES)
@pytest.mark.parametrize("with_context", [False, True])
def test_the_outcome_of_an_action_is_what_its_layers_leave(title, with_context, terms):
    """With its record, in a run with a journal as in one without; nothing of the call is noted any longer."""
    result, use, status, value, left, more = CASES[title]

    def body():
        if isinstance(result, Exception):
            raise result
        return result

    act = action(name="a")((lambda ctx: body()) if with_context else body)
    branch, error, _ = acted(act, use, **terms)
    did = record_of(branch)
    assert (did.name, did.unit, did.status, did.inserted_by, did.number) == ("a", act, status, "s/x", 1)
    assert (did.started, did.elapsed) == (1003.0, 5.0)
    expected = {
        "inserted": (), "error": None, "attempts": 1, "recovered": False, "failures": (), "cached": False,
        "repeats": (), **more,
    }  # fmt: skip
    assert {name: getattr(did, name) for name in expected} == expected
    assert error is (None if expected["recovered"] else expected["error"])
    assert dict(branch.store) == {**left, **({} if value is UNSET else {"a": value})}
    assert branch.result == (None if value is UNSET else value)
    assert [unit for unit, _ in branch.scope.inserted] == list(expected["inserted"])
    branch.store["new"] = 1
    assert not branch.store.has_written("new")


@pytest.mark.parametrize("use", [[passes], [writes]], ids=["that does nothing", "that writes"])
def test_after_a_refused_effect_a_resume_in_memory_undoes_what_the_layers_around_the_action_write(use):
    """It finds the store as the action found it."""
    branch, error, _ = acted(step([], "a", lambda: [1, STAGE]), use, {"k": 0}, log=Log())
    assert isinstance(error, ReturnValueError)
    branch.store["k"] = "written by a layer of the stage"
    branch.store.undo(branch.left_behind().unwinding)
    assert dict(branch.store) == {"k": 0}


def test_layers_see_the_action_and_its_surroundings(terms):
    """By their call; what enclosing layers give comes along."""
    seen = []

    def looks(call):
        seen.append(call)
        yield

    act = step([], "a")
    branch, _, _ = acted(act, [looks], **terms)
    (call,) = seen
    assert (call.run_id, call.action, call.stage, call.pipeline, call.level, call.values) == (
        "run-1", act, branch.scope.unit, branch.scope.pipeline, "action", {},
    )  # fmt: skip
    branch.scope.values = {"given": 1}
    perform(in_layers(branch, step_of(act), None, 2, 0.0, (looks,)))
    assert seen[-1].values == {"given": 1}


def test_the_action_receives_what_its_layers_yield():
    """Before what is in the store; each attempt anew."""

    @action
    def reads(given):
        if given < 2:
            raise ERROR
        return given

    def counts(call):
        for number in range(3):
            with suppress(ValueError):
                yield {"given": number}
                return

    branch, error, requests = acted(reads, [counts], {"given": 9})
    assert (error, branch.result, [args for _, args, _ in requests]) == (None, 2, [[0], [1], [2]])


def test_layers_see_the_arguments_that_are_local_to_the_stage():
    """As the action does."""
    seen = []

    def looks(call):
        seen.append(call.arguments)
        yield

    local = Stage("s", [step([], "n"), action(name="a")(lambda n: None)], local=True)
    branch = in_stage(local, {"n": 0})
    branch.store.put(Local("n"), 1)
    (reads, _), _ = steps_of(local)
    perform(in_layers(branch, reads, None, 1, 0.0, (looks,)))
    assert seen == [{"n": 1}]


def test_each_attempt_is_a_new_call(terms):
    """With a context of its own: only the effects of the last one count."""
    log = []

    @action
    def fails_once(ctx):
        log.append(ctx.attempt)
        ctx.store[f"attempt {ctx.attempt}"] = 1
        ctx.emit("attempt")
        if ctx.attempt < 3:
            raise ValueError(ctx.attempt)
        return "done"

    branch, error, _ = acted(fails_once, [again(3)], **terms)
    did = record_of(branch)
    assert (error, log, dict(branch.store)) == (None, [1, 2, 3], {"attempt 3": 1, "fails_once": "done"})
    assert ([str(each) for each in did.failures], did.attempts) == (["1", "2"], 3)
    assert [(each.kind, each.failures) for each in did.messages] == [("emit", 0), ("emit", 1), ("emit", 2)]


def test_what_a_layer_supplies_is_settled_as_a_returned_value_is(terms):
    """Run to its end, if it is a generator; what an action returned is settled once, before its layers see it."""
    seen = []

    def gives_generator(call):
        call.outcome = (number for number in (1, 2))
        return
        yield

    def looks(call):
        seen.append((yield))

    branch, _, requests = acted(step([], "a"), [gives_generator], **terms)
    assert (branch.result, len([each for each in requests if isinstance(each, tuple)])) == ([1, 2], 1)
    branch, _, requests = acted(step([], "a", lambda: (n for n in (1, 2))), [looks], **terms)
    assert (branch.result, seen, len([each for each in requests if isinstance(each, tuple)])) == ([1, 2], [[1, 2]], 2)


def test_what_a_coroutine_came_to_is_not_awaited_again(terms):
    """It is a value, in layers as without."""

    async def inner():
        pass

    coroutine = inner()
    branch, _, requests = acted(step([], "a", lambda: Awaited(coroutine)), [passes])
    assert (branch.result, len(requests)) == (coroutine, 1)
    coroutine.close()


@pytest.mark.parametrize("error", [Bail("done"), Suspend("waits"), KeyboardInterrupt()], ids=repr)
def test_a_signal_passes_the_layers_of_its_action(error, terms):
    """With its own status."""
    branch, left, _ = acted(failing([], "a", error), [swallow, again(2)], **terms)
    did = record_of(branch)
    assert (left, did.error, did.attempts, did.recovered) == (error, error, 1, False)
    assert did.status == {Bail: "bailed", Suspend: "suspended"}.get(type(error), "cancelled")


def test_the_action_is_not_called_if_its_branch_was_stopped_while_its_layers_waited():
    """They are told."""
    log = []
    branch = in_stage(Stage("s"))

    def stops(call):
        branch.stop()
        yield

    error = perform(in_layers(branch, step_of(step(log, "a")), None, 1, 0.0, (stops,)))
    assert (type(error), log) == (Cancelled, [])


# -- in a durable run


def rows_of(branch):
    """The rows that the journal has of a branch, as outcomes, in their order."""
    kept = branch.terms.recorder
    return [outcomes([row], kept.codec)[ROOT][row.number] for row in kept.journal.history("run-1")]


def saved(requests):
    """The rows of each write to the journal."""
    return [
        [(row.action, row.number, row.status) for row in each.args[0]] for each in requests if isinstance(each, Save)
    ]


def test_the_journal_has_that_another_attempt_begins():
    """It counts, should the process be killed; with what the action has emitted and waited for."""

    def backs_off(call):
        yield Sleep(1)
        while True:
            with suppress(ValueError):
                yield
                return
            yield Sleep(2)

    @action
    def fails(ctx):
        ctx.emit("attempt")
        if ctx.attempt < 3:
            raise ValueError(ctx.attempt)

    branch, _, requests = acted(fails, [passes, backs_off], recorder=recorder())
    written = [request.args[0] for request in requests if isinstance(request, Save)]
    assert saved(requests) == [[("fails", 1, "running")]] * 2
    (row,) = written[1]
    began = outcomes([row], branch.terms.recorder.codec)[ROOT][1]
    assert (row.stage, row.started, row.elapsed, began.inserted_by) == ("s", 1003.0, 0.0, "s/x")
    assert (began.attempts, began.repeats, [str(each) for each in began.failures]) == (3, (0, 2), ["1", "2"])
    assert [(each.kind, each.failures) for each in began.messages] == [("emit", 0), ("emit", 1)]
    assert list(began.waits) == [Wait(OVER, who=1, times=1)]
    assert acted(fails, [again(3)])[2][0][0].name == "fails"  # and without a journal, nothing is written
    assert saved(acted(fails, [again(3)])[2]) == []


def test_a_journal_that_cannot_be_written_is_the_end_of_the_attempts():
    """The action is not called again."""
    log, kept, full = [], recorder(), OSError("disk full")

    def write(*args):
        raise full

    kept.journal.write = write
    branch, error, _ = acted(flaky(log, "a", 2), [again(3)], recorder=kept)
    assert (error, log, record_of(branch).status) == (full, ["a"], "failed")


def test_values_that_layers_change_in_place_are_journaled():
    """As those that the action changes."""

    def grows(call):
        call.store["xs"].append(1)
        yield

    branch, _, _ = acted(step([], "a"), [grows], {"xs": []}, recorder=recorder())
    perform(branch.save())
    (did,) = rows_of(branch)
    assert (dict(did.writes.changes), did.writes.puts) == ({"xs": [1]}, {})


def test_what_the_layers_and_the_action_write_is_in_one_row():
    """With the value."""

    @action
    def writes_too(ctx):
        ctx.store["inside"] = 1
        return 2

    branch, _, _ = acted(writes_too, [writes], recorder=recorder())
    perform(branch.save())
    (did,) = rows_of(branch)
    assert did.writes.puts == {"before": 1, "inside": 1, "after": 1, "writes_too": 2}


# -- a wait of its layers


def naps(seconds=20):
    """A layer that sleeps after a call of its action has succeeded."""

    def layer(call):
        yield
        yield Sleep(seconds)

    return layer


def suspended(act, use=(naps(),), inputs=None, **terms):
    """A branch in which an action has been suspended by a sleep after its call, and its waits."""
    terms = {"recorder": recorder(), "wall": Wall(lambda: 100.0, suspend_after=10), **terms}
    branch, error, _ = acted(act, use, inputs, **terms)
    assert isinstance(error, Suspend)
    return branch, record_of(branch).waits


@action
def effects(ctx):
    ctx.store["k"] = 1
    ctx.insert(STAGE)
    ctx.disable("other")
    return 2


@pytest.mark.parametrize(
    ("act", "called"),
    [
        (step([], "a", 1), Called(1, NOTHING, (), ())),
        (step([], "a", lambda: [1]), Called([1], NOTHING, (), ())),
        (effects, Called(2, Delta({"k": 1}, [], {}), [STAGE], [("other", False)])),
    ],
    ids=["plain", "looked into", "with effects"],
)
def test_a_call_after_which_a_layer_suspends_the_run_is_kept(act, called):
    """With its value, and its effects through its context, of which nothing has taken place."""
    branch, waits = suspended(act)
    assert waits == (Wait(SLEEP, 120.0, 0), Wait(CALLED, value=called))
    assert (dict(branch.store), branch.scope.inserted, branch.switches) == ({}, [], {})


def fails_after(call):
    yield
    raise ERROR


def suspends(call):
    yield
    raise Suspend("waits")


@pytest.mark.parametrize(
    ("act", "use"),
    [
        (failing([], "a", ERROR), [lambda call: suspends_on_failure(call)]),
        (step([], "a", 1), [lambda call: suspends_before(call)]),
        (action(name="a")(lambda xs: xs.append(1)), [suspends]),
    ],
    ids=["a failed call", "no call", "a call that has changed a value in place"],
)
def test_no_other_call_is_kept(act, use):
    """It is repeated when the run is resumed."""
    _, waits = suspended(act, use, {"xs": []})
    assert [wait for wait in waits if wait.kind == CALLED] == []


def suspends_on_failure(call):
    try:
        yield
    except ValueError:
        raise Suspend("waits") from None


def suspends_before(call):
    raise Suspend("waits")
    yield


def test_a_failed_layer_does_not_keep_the_call():
    """Only a wait does."""
    branch, error, _ = acted(step([], "a", 1), [fails_after], recorder=recorder())
    assert (error, record_of(branch).waits, branch.waits) == (ERROR, (), {})


def test_an_atomic_scope_keeps_no_calls():
    """It begins anew."""
    act = step([], "a", 1)
    branch = in_stage(Stage("s", [act]))
    branch.atomic = 1
    perform(in_layers(branch, step_of(act), None, 1, 0.0, (suspends,)))
    assert [wait for wait in record_of(branch).waits if wait.kind == CALLED] == []
    assert branch.waits == {}


def resumed(act, waits, use=(naps(),), status=Status.SUSPENDED, **more):
    """A branch in which an action with these waits is performed again, long after; the error, and the requests."""
    earlier = ActionRecord("a", act, status, 1.0, 1.0, number=1, error=Suspend("waits"), waits=waits, **more)
    terms = {"recorder": recorder(), "wall": Wall(lambda: 1000.0), "past": History({}), "waits": {(ROOT, 1): waits}}
    return acted(act, use, earlier=earlier, **terms)


def test_a_call_that_was_kept_is_not_repeated():
    """Its value and its effects are those of then."""
    log = []

    def looks(call):
        log.append((yield))

    branch, error, requests = resumed(effects, suspended(effects)[1], [naps(), looks])
    assert (error, log) == (None, [2])
    assert [request for request in requests if isinstance(request, tuple)] == []
    assert (dict(branch.store), branch.result) == ({"k": 1, "effects": 2}, 2)
    assert ([unit for unit, _ in branch.scope.inserted], branch.switches) == ([STAGE], {"other": False})


def test_an_action_that_had_not_begun_has_no_earlier_call():
    """Another one had been called in its place, and is gone."""
    log = []
    waits = {(ROOT, 1): [Wait(CALLED, value=Called(1, NOTHING, (), ()))]}
    branch, error, _ = acted(step(log, "a", 3), [passes], past=History({}), waits=waits)
    assert (error, log, branch.result) == (None, ["a"], 3)


def test_another_attempt_does_not_have_the_call_of_the_one_before_it():
    """It calls the action."""
    log = []

    def fails_once(call):
        yield
        if call.attempt == 1:
            raise ERROR

    act = step(log, "a", 3)
    waits = (Wait(SLEEP, 120.0, 1), Wait(CALLED, value=Called(1, NOTHING, (), ())))
    branch, error, _ = resumed(act, waits, [again(2), naps(0), fails_once])
    assert (error, log, branch.result) == (None, ["a"], 3)


def test_attempts_and_messages_continue_in_a_resumed_run():
    """Those of before count."""
    seen = []

    def looks(call):
        seen.append((call.attempt, call.repeats_before))
        yield

    said = MessageRecord("log", 1.0, {"level": "INFO", "text": "then"})
    act = step([], "a", 1)
    branch, _, _ = resumed(act, [], [looks], attempts=3, repeats=(2,), failures=[ERROR, BROKEN], messages=[said])
    did = record_of(branch)
    assert (seen, did.attempts, did.repeats, did.failures) == ([(3, 2)], 3, (2,), (ERROR, BROKEN))
    assert [each.kind for each in did.messages] == ["log", "ended"]


def test_the_waits_of_a_failed_attempt_are_forgotten():
    """Those of layers inside the one that asks again, and of the action; answers are not asked for again."""
    answered = Wait(QUESTION, key="q", state=ANSWERED, value=1, given=0)
    waits = [Wait(OVER, who=0, times=1), Wait(OVER, who=2, times=1), Wait(OVER, times=1), answered]

    @action(name="a")
    def fails_once(ctx):
        assert ctx.wait_for("q", type=int) == 1
        if ctx.attempt == 1:
            raise ERROR
        raise Suspend("waits")

    branch, _, _ = resumed(fails_once, waits, [passes, again(2), passes])
    assert record_of(branch).waits == (Wait(OVER, who=0, times=1), answered)


def test_a_pause_after_a_failure_suspends_the_action():
    """It is recorded as suspended, with the attempt that comes next."""

    def backs_off(call):
        with suppress(ValueError):
            yield
        yield Sleep(20)
        yield

    branch, waits = suspended(failing([], "a", ERROR), [backs_off])
    did = record_of(branch)
    assert (waits, did.attempts, did.failures, did.status) == ((Wait(PAUSE, 120.0, 0),), 2, (ERROR,), "suspended")
