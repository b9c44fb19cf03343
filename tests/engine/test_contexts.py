"""A context alone, in surroundings that a test sets: what an action says and waits for, here and in another process."""

import pickle

import pytest

from flowdeco import Context, Key, Pipeline, Stage, Store, Suspend, action, stage
from flowdeco.engine.messages import MOST_SHOWN, MOST_TEXT, MessageRecord
from flowdeco.engine.outcome import ROOT
from flowdeco.engine.waits import Waits, Wall
from flowdeco.errors import (
    ANSWERED,
    CONSUMED,
    EXPIRED,
    FOUND,
    NOT_GIVEN,
    OPEN,
    QUESTION,
    REFUSED,
    SLEEP,
    ContextEndedError,
    DefinitionError,
    ReturnValueError,
    RunError,
    StoreTypeError,
    Wait,
    WaitTimeout,
)
from flowdeco.events import Message, Progress
from flowdeco.model.deltas import NOTHING

NOON = 1000.0
NAME = Key("name", str)


async def napping(seconds):
    """Sleep as a loop does, without the time."""
    NAPS.append(seconds)


NAPS = []


class Around:
    """The surroundings of the step with number 4 of a branch; its clock stands still, at noon."""

    id = ROOT

    def __init__(self, *earlier, now=NOON, free=True, room=MOST_SHOWN, coming=(), notify=None):
        self.slept = []
        self.wall = Wall(lambda: now, self.slept.append, napping, suspend_after=60.0)
        self.waits = Waits(self.wall, 2, earlier)
        self.now, self.free, self.room, self.coming, self.notify = self.wall.now, free, room, coming, notify

    def waits_of(self, number):
        """Return those of the only step there is."""
        assert number == 4
        return self.waits

    def may_take(self, key):
        """Whether the value of the key is for this branch."""
        assert key == "name"
        return self.free

    def has_room(self, size):
        """Whether so much may still be shown."""
        return size <= self.room

    def upcoming(self, more=()):
        """Return what comes, whatever is switched off."""
        return iter(self.coming)


async def coroutine():
    """The function of an action that may await."""


async def generator():
    """And one that yields."""
    yield


def context(around=None, given=None, function=lambda: None, **written):
    """A context with a store that has these values: given to the run, or written by other actions."""
    around = around or Around()
    act = action(name="act")(function)
    store = Store(written)
    store.supply(given or {})
    return Context("run-1", Pipeline(name="p"), Stage("s", [act]), act, store, around, (around, 4))


def elsewhere(ctx):
    """Its copy in another process, which lives by a clock of its own."""
    copy = pickle.loads(pickle.dumps(ctx))
    copy.live_by(lambda: 2000.0, NAPS.append, lambda: 0.0)
    return copy


def said(ctx):
    """The messages that a context has kept."""
    return [] if ctx.messages is None else list(ctx.messages.recorded())


# -- what an action does


USES = {
    "insert": lambda ctx: ctx.insert(Stage("t")),
    "disable": lambda ctx: ctx.disable("t"),
    "enable": lambda ctx: ctx.enable("t"),
    "emit": lambda ctx: ctx.emit("row"),
    "progress": lambda ctx: ctx.progress(1),
    "show": lambda ctx: ctx.show("text"),
    "wait_for": lambda ctx: ctx.wait_for("name"),
    "sleep": lambda ctx: ctx.sleep(1),
    "sleep_until": lambda ctx: ctx.sleep_until(1),
}


@pytest.mark.parametrize("name", USES)
def test_a_context_that_has_ended_refuses_every_use(name):
    """It says which use, of which action; nothing has happened."""
    heard = []
    ctx = context(Around(notify=heard.append), {"name": "ann"})
    ctx.store.ended = "act"
    with pytest.raises(ContextEndedError, match=rf"^ctx\.{name} after action 'act' has ended"):
        USES[name](ctx)
    ctx.logger.info("late")
    assert (ctx.effects(), said(ctx), heard) == (Context.effects(context()), [], [])


def test_what_an_action_has_done_is_its_effect():
    """Units and switches in order; a context that is at home has its waits and messages elsewhere."""
    ctx, one, two = context(), Stage("one"), Stage("two")
    ctx.insert(one)
    ctx.insert(two)
    ctx.disable("a", "b")
    ctx.enable("a")
    ctx.emit("row")
    ctx.store["k"] = 1
    effects = ctx.effects()
    assert effects.delta.puts == {"k": 1}
    assert effects[1:] == ([one, two], [("a", False), ("b", False), ("a", True)], (), None, ())
    assert ctx.messages_only() == (NOTHING, [], [], (), None, ())


def test_wrong_uses_are_refused_with_the_action_and_what_it_called():
    """Nothing of them is done."""
    ctx = context()

    @stage
    def template(kind):
        pass

    for use, error, message in [
        (lambda: ctx.insert(3), ReturnValueError, "action 'act' inserted"),
        (lambda: ctx.insert(template), ReturnValueError, "action 'act' inserted"),
        (lambda: ctx.disable(""), DefinitionError, "^disable"),
        (lambda: ctx.enable(""), DefinitionError, "^enable"),
        (lambda: ctx.emit(3), DefinitionError, r'ctx\.emit\("loaded", rows=3\), not 3$'),
        (lambda: ctx.wait_for("name", timeout="1"), DefinitionError, "^timeout= of ctx.wait_for"),
        (lambda: ctx.wait_for("name", default=None), DefinitionError, "give timeout="),
        (lambda: ctx.sleep("1"), DefinitionError, "^the argument of ctx.sleep"),
        (lambda: ctx.sleep_until("1"), DefinitionError, "^ctx.sleep_until"),
    ]:
        with pytest.raises(error, match=message):
            use()
    assert ctx.effects()[1:3] == ([], [])


# -- what it says


def test_messages_have_their_time_and_the_failures_before_them():
    """Long texts are cut, and values that are not plain are kept by their repr; observers get them as they are."""
    heard, long = [], "x" * (MOST_TEXT + 1)
    ctx = context(Around(notify=heard.append))
    ctx.emit("row", number=3, parts={1}, kind_of=long)
    ctx.emit(long)
    ctx.attempt = 3
    ctx.logger.warning(long)
    ctx.show("text")
    cut = "x" * MOST_TEXT + "… (1 more characters)"
    assert said(ctx) == [
        MessageRecord("emit", NOON, {"kind": "row", "payload": {"number": 3, "parts": "{1}", "kind_of": cut}}, 0),
        MessageRecord("emit", NOON, {"kind": cut, "payload": {}}, 0),
        MessageRecord("log", NOON, {"level": "WARNING", "text": cut}, 2),
        MessageRecord("show", NOON, {"type": "text/markdown", "content": "text", "note": ""}, 2),
    ]
    ctx.progress(1, 3)
    assert heard == [
        Message("run-1", "s", "act", "row", {"number": 3, "parts": {1}, "kind_of": long}),
        Message("run-1", "s", "act", long, {}),
        Progress("run-1", "s", "act", 1, 3),
    ]


def test_of_a_shown_value_that_the_run_has_no_room_for_a_note_is_kept():
    """With its type; the next one may be small enough."""
    ctx = context(Around(room=4))
    ctx.show("12345")
    ctx.show("1234")
    assert [message.payload for message in said(ctx)] == [
        {"type": "text/markdown", "content": "", "note": "not kept: the run has shown 20 MB before"},
        {"type": "text/markdown", "content": "1234", "note": ""},
    ]


def test_in_another_process_the_room_is_that_of_one_context():
    """It cannot ask the run, which looks again when the messages come home."""
    surroundings = elsewhere(context())._around
    assert [surroundings.has_room(size) for size in (MOST_SHOWN + 1, MOST_SHOWN - 2, 3, 1, 2, 1, 1)] == [
        False, True, False, True, False, True, False,
    ]  # fmt: skip


# -- what it waits for


def question(state=OPEN, **more):
    """A question for a name, as it was asked before."""
    return Wait(QUESTION, key="name", state=state, **{"asked": 900.0, **more})


@pytest.mark.parametrize("process", [lambda ctx: ctx, elsewhere], ids=["here", "elsewhere"])
@pytest.mark.parametrize("state", [None, OPEN, FOUND])
@pytest.mark.parametrize("key", ["name", NAME])
def test_a_given_value_is_taken_and_a_written_one_is_read(process, state, key):
    """By a new question, one that was asked before, and one that had found its value before the run was resumed."""
    earlier = [] if state is None else [question(state)]
    for written, given, left, consumed in [
        ({}, {"name": "ann"}, [], CONSUMED), ({"name": "ann"}, {}, ["name"], NOT_GIVEN)
    ]:  # fmt: skip
        ctx = process(context(Around(*earlier), given, **written))
        assert ctx.wait_for(key) == "ann"
        (noted,) = ctx._waits().noted
        assert (noted.state, noted.given, list(ctx.store)) == (FOUND, consumed, left)


def test_a_value_that_another_branch_has_taken_is_not_there():
    """A written one is for everybody."""
    with pytest.raises(Suspend):
        context(Around(free=False), {"name": "ann"}).wait_for("name")
    assert context(Around(free=False), name="ann").wait_for("name") == "ann"


def test_a_question_without_an_answer_suspends_the_run():
    """It has what is known of it; its deadline has not come."""
    ctx = context()
    with pytest.raises(Suspend) as raised:
        ctx.wait_for("name", about="who?", type=str, timeout=5)
    (asked,) = raised.value.waits
    assert asked == Wait(
        QUESTION, 1005.0, key="name", about="who?", type="str", classes=asked.classes, asked=NOON, since=2
    )
    assert ctx._waits().noted == [asked]
    with pytest.raises(Suspend) as raised:
        ctx.wait_for("other")
    assert (raised.value.waits[0].type, raised.value.waits[0].due) == (None, None)
    with pytest.raises(Suspend) as raised:
        ctx.wait_for(NAME)
    assert raised.value.waits[0].type == "str"
    assert str(raised.value) == "waiting for 'name'"


@pytest.mark.parametrize("due", [NOON - 1, NOON])
def test_after_its_timeout_a_question_has_its_default(due):
    """That may be None; without one, it is an error that says how long nobody answered."""
    for default in (None, "nobody"):
        ctx = context(Around(question(due=due)))
        assert ctx.wait_for("name", timeout=100, default=default) is default
        assert [wait.state for wait in ctx._waits().noted] == [EXPIRED]
    ctx = context(Around(question(due=due)))
    with pytest.raises(
        WaitTimeout, match=r"^nobody answered 'name' within 100 s of 1970-01-01 00:15:00 UTC: .*default="
    ):
        ctx.wait_for("name", timeout=100)
    assert [wait.state for wait in ctx._waits().noted] == [EXPIRED]
    assert context(Around(question(EXPIRED, due=NOON + 9))).wait_for("name", timeout=100, default=1) == 1


def test_a_question_gets_the_answer_that_a_resume_brought():
    """Also after its deadline, and although there is a value of that key; what is not an error is none."""
    answer = question(ANSWERED, value="ann", given=3, due=NOON - 1)
    ctx = context(Around(answer), name="bob")
    assert ctx.wait_for("name", type=str) == "ann"
    assert ctx._waits().noted == [answer]
    error = ValueError("no")
    refusal = question(REFUSED, value=error, given=3)
    ctx = context(Around(refusal))
    with pytest.raises(ValueError, match="no") as raised:
        ctx.wait_for("name")
    assert raised.value is error
    assert ctx._waits().noted == [refusal]


def test_an_answer_of_a_wrong_type_is_an_error_and_the_question_stays_as_it_was():
    """It is checked before it is noted."""
    ctx = context(Around(question(ANSWERED, value=3, given=3)))
    with pytest.raises(StoreTypeError, match=r"'name'.*str.*int"):
        ctx.wait_for(NAME)
    assert ctx._waits().noted == []


@pytest.mark.parametrize("state", [OPEN, FOUND])
def test_a_value_of_a_wrong_type_that_was_given_in_advance_is_refused(state):
    """It is dropped, and the reason of the run says why; one that was written is an error."""
    ctx = context(Around(question(state)), {"name": 3})
    with pytest.raises(
        Suspend, match="the answer given for 'name' before the question was asked is refused: .*str.*int"
    ):
        ctx.wait_for(NAME)
    (noted,) = ctx._waits().noted
    assert (noted.state, noted.given, "name" in ctx.store) == (OPEN, CONSUMED, False)
    with pytest.raises(StoreTypeError):
        context(Around(question(state)), name=3).wait_for(NAME)


def test_a_value_of_a_wrong_type_leaves_an_answer_as_it_is():
    """And a default."""
    ctx = context(Around(question(ANSWERED, value="ann", given=3)), {"name": 3})
    assert ctx.wait_for(NAME) == "ann"
    assert [(wait.state, wait.given) for wait in ctx._waits().noted] == [(ANSWERED, 3)]
    ctx = context(Around(question(EXPIRED)), {"name": 3})
    assert ctx.wait_for(NAME, timeout=1, default="nobody") == "nobody"
    assert [(wait.state, wait.given) for wait in ctx._waits().noted] == [(EXPIRED, CONSUMED)]


# -- its sleeps


def test_an_action_that_is_not_a_coroutine_sleeps_where_it_stands():
    """Only if anything is left; what it is given can be awaited, and does nothing then."""
    around = Around()
    ctx = context(around)
    naps = [ctx.sleep(2), ctx.sleep_until(NOON + 3), ctx.sleep_until(NOON - 3), ctx.sleep(0)]
    assert around.slept == [2.0, 3.0]
    assert [(nap.seconds, nap.begun, list(nap.__await__())) for nap in naps] == [(0.0, True, [])] * 4
    assert ctx.effects() == context().effects()


@pytest.mark.parametrize("function", [coroutine, generator])
def test_a_coroutine_sleeps_as_it_awaits(function):
    """Each sleep; one that is not awaited is an error of the action."""
    NAPS.clear()
    around = Around()
    ctx = context(around, function=function)
    first, second = ctx.sleep(2), ctx.sleep_until(NOON + 3.5)
    for nap, left in ((first, "2"), (second, r"3\.5")):
        with pytest.raises(RunError, match=f"^action 'act' .* has not slept {left} s: write `await ctx.sleep"):
            ctx.effects()
        list(nap.__await__())
    assert (NAPS, around.slept, ctx.effects().inserted) == ([2.0, 3.5], [], [])


def test_a_long_sleep_suspends_the_run():
    """Until its time has come."""
    for sleep in (lambda ctx: ctx.sleep(61), lambda ctx: ctx.sleep_until(NOON + 61)):
        ctx = context()
        with pytest.raises(Suspend) as raised:
            sleep(ctx)
        assert list(raised.value.waits) == ctx._waits().noted == [Wait(SLEEP, NOON + 61)]


# -- its travels


def test_a_context_travels_with_its_place_and_its_view():
    """And what it knows: the units that come, given values, the hints about missing keys, and its attempt."""
    ctx = context(Around(coming=[Stage("t", tags=["x"]), Stage("u")]), {"name": "ann"}, k=1)
    ctx.attempt = 3
    ctx.store.drop_local(["lost"], "before")
    copy = elsewhere(ctx)
    assert (repr(copy), copy.step_id, copy.pipeline.name, copy.attempt) == (repr(ctx), ctx.step_id, "p", 3)
    assert (dict(copy.store), copy.store.is_given("name"), copy.store.is_given("k")) == (
        {"k": 1, "name": "ann"},
        True,
        False,
    )
    assert "stage 'before'" in copy.store.hint("lost")
    assert [unit.name for unit in copy.pending] == ["t", "u"]
    copy.disable("tag:x")
    assert [unit.name for unit in copy.pending] == ["u"]
    again = elsewhere(copy)
    assert (again.step_id, repr(again)) == (ctx.step_id, repr(ctx))


def test_what_it_did_elsewhere_comes_home():
    """Its messages with their times and to the observers, its waits, and all its effects."""
    heard = []
    ctx = context(Around(notify=heard.append), {"name": "ann"})
    ctx.attempt = 2
    copy = elsewhere(ctx)
    NAPS.clear()
    copy.store["k"] = 1
    copy.insert(Stage("t"))
    copy.disable("u")
    copy.emit("row", n=1)
    copy.progress(1)
    copy.sleep(1)
    assert (copy.wait_for("name"), NAPS) == ("ann", [1])
    effects = copy.effects()
    ctx.catch_up(effects)
    assert ctx.effects().delta == copy.effects().delta
    assert ([unit.name for unit in ctx.effects().inserted], ctx.effects().switches) == (["t"], [("u", False)])
    assert (
        heard
        == effects.events
        == [Message("run-1", "s", "act", "row", {"n": 1}), Progress("run-1", "s", "act", 1, None)]
    )
    assert said(ctx) == [MessageRecord("emit", 2000.0, {"kind": "row", "payload": {"n": 1}}, 1)]
    assert ctx._waits().noted == copy._waits().noted
    assert [wait.times for wait in ctx._waits().recorded() if wait.kind != QUESTION] == [1]


def test_of_a_failed_action_only_messages_and_waits_come_home():
    """And those of an abandoned one do not."""
    ctx, copy = context(), elsewhere(context())
    copy.store["k"] = 1
    copy.insert(Stage("t"))
    copy.disable("u")
    copy.emit("row")
    with pytest.raises(Suspend):
        copy.wait_for("name")
    ctx.catch_up(copy.messages_only())
    assert ctx.effects() == context().effects()
    assert ([message.kind for message in said(ctx)], [wait.key for wait in ctx._waits().noted]) == (["emit"], ["name"])
    late = context()
    late.store.ended = "act"
    late.catch_up(copy.effects())
    assert (said(late), late.effects(), late._waits().noted) == ([], context().effects(), [])
