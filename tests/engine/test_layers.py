"""Layers, driven by script: each row of the table, and the short way compared with the one that follows the table."""

from contextlib import suppress
from dataclasses import dataclass
from types import GeneratorType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import performed
from support import examples, shown, step

from flowdeco import Sleep, Stage, Store, pipeline
from flowdeco.engine import layers as engine
from flowdeco.engine.layers import (
    AGAIN,
    BEFORE,
    FAILURE,
    FOLLOWS,
    RAISES,
    RECOVER,
    RETURNS,
    RUNS,
    SUCCESS,
    YIELDS,
    Layers,
    enter,
    leave,
    merging,
)
from flowdeco.engine.requests import Await, Gate, Raised
from flowdeco.errors import MiddlewareError
from flowdeco.model.sentinels import UNSET

ACTION = step([], "a")
STAGE = Stage("s", [ACTION])
PIPELINE = pipeline(STAGE, name="p")


def layers_of(*layers, store=None, action=None, gate=None):
    """These around a stage, or an action of it."""
    store = Store() if store is None else store
    around = Layers("r", store, PIPELINE, STAGE, action, layers, gate or Gate())
    around.values = {"outer": 1}
    return around


def decision(passage, requests=None):
    """What a passage comes to; its requests are performed, and noted."""
    if isinstance(passage, tuple):
        return passage
    assert isinstance(passage, GeneratorType)
    answer = None
    while True:
        try:
            request = passage.send(answer)
        except StopIteration as end:
            return end.value
        if requests is not None:
            requests.append(request)
        answer = performed(request)


def asynchronous(layer):
    """The same layer as an async generator."""

    async def around(call):
        generator = layer(call)
        try:
            item = next(generator)
        except StopIteration:
            return
        while True:
            try:
                sent = yield item
            except BaseException as error:
                proceed = generator.throw
                sent = error
            else:
                proceed = generator.send
            try:
                item = proceed(sent)
            except StopIteration:
                return

    return around


@pytest.fixture(params=["short", "by the table", "asynchronous"])
def way(request, monkeypatch):
    """What a layer becomes: once for the short way, and twice for the one that follows the table."""
    if request.param == "by the table":
        monkeypatch.setattr(engine, "_GENERATOR", object())  # no generator is of this type
    return asynchronous if request.param == "asynchronous" else lambda layer: layer


# -- the table, row by row

OOPS, BROKEN = ValueError("oops"), RuntimeError("broken")


def yields(call):
    yield {"k": 1}


def returns(call):
    return
    yield


def raises(call):
    raise BROKEN
    yield


def yields_twice(call):
    yield
    yield


def returns_after(call):
    yield


def raises_after(call):
    with suppress(ValueError):
        yield
    raise BROKEN


def swallows(call):
    with suppress(ValueError):
        yield


def yields_again(call):
    with suppress(ValueError):
        yield
        return
    yield


# Where it stands, what it does, the layer that does it: whether the target runs (again), and what failure is left
ROWS = {
    (BEFORE, YIELDS): (yields, True, None),
    (BEFORE, RETURNS): (returns, False, None),
    (BEFORE, RAISES): (raises, False, BROKEN),
    (SUCCESS, YIELDS): (yields_twice, False, MiddlewareError),
    (SUCCESS, RETURNS): (returns_after, False, None),
    (SUCCESS, RAISES): (raises_after, False, BROKEN),
    (FAILURE, YIELDS): (yields_again, True, None),
    (FAILURE, RETURNS): (swallows, False, None),
    (FAILURE, RAISES): (raises_after, False, BROKEN),
}


@pytest.mark.parametrize("row", FOLLOWS, ids=lambda row: " ".join(row))
def test_what_follows_is_what_the_table_says(way, row):
    """Of a layer that stands alone."""
    layer, runs, failure = ROWS[row]
    around = layers_of(way(layer))
    where, _ = row
    found = decision(enter(around))
    if where is not BEFORE:
        assert found == (True, None)
        found = decision(leave(around, OOPS if where is FAILURE else None))
    if isinstance(failure, type):
        assert (found[0], type(found[1])) == (runs, failure)
    else:
        assert found == (runs, failure)
    follows = FOLLOWS[row]
    assert len(around.opened) == (follows in (RUNS, AGAIN))
    assert around.recovered == (follows is RECOVER)
    assert around.attempt == 1 + (follows is AGAIN)
    assert around.entered is (follows is not AGAIN and (where is not BEFORE or follows is RUNS))
    assert around.stood_by() is (around.entered and follows not in (RECOVER, AGAIN))


def test_the_table_has_a_row_for_whatever_a_layer_may_do():
    """And each is tried here."""
    assert set(FOLLOWS) == set(ROWS) == {
        (where, does) for where in (BEFORE, SUCCESS, FAILURE) for does in (YIELDS, RETURNS, RAISES)
    }  # fmt: skip


# -- what each of it means


def test_what_a_layer_yields_is_given_to_the_target_only(way):
    """With what stands further outside; when it is resumed, only that is left."""
    inner = []

    def looks(call):
        inner.append(dict(around.values))
        yield {"k": 2, "other": 3}

    around = layers_of(way(yields), way(looks))
    assert decision(enter(around)) == (True, None)
    assert (inner, around.values) == ([{"outer": 1, "k": 1}], {"outer": 1, "k": 2, "other": 3})
    assert decision(leave(around, None)) == (False, None)
    assert around.values == {"outer": 1}


def test_layers_are_resumed_from_the_inside_out(way):
    """A failure by a failure, until one recovers it; from there on, by a success."""
    log = []

    def noted(name, recovers=False):
        def layer(call):
            log.append(f"+{name}")
            try:
                yield
                log.append(f"-{name}")
            except ValueError:
                log.append(f"!{name}")
                if not recovers:
                    raise

        return way(layer)

    around = layers_of(noted("a"), noted("b", recovers=True), noted("c"))
    assert decision(enter(around)) == (True, None)
    assert decision(leave(around, OOPS)) == (False, None)
    assert log == ["+a", "+b", "+c", "!c", "!b", "-a"]
    assert (around.recovered, around.failure) == (True, OOPS)


def test_those_that_are_not_entered_are_not_resumed(way):
    """A layer that returns, or raises, is the innermost one that there is."""
    log = []

    def noted(call):
        log.append("+")
        yield
        log.append("-")

    for innermost, expected in ((returns, (False, None)), (raises, (False, BROKEN))):
        log.clear()
        around = layers_of(way(noted), way(innermost), way(noted))
        assert decision(enter(around)) == expected
        assert not around.entered
        assert decision(leave(around, expected[1])) == expected
        assert log == (["+", "-"] if innermost is returns else ["+"])


def test_another_attempt_undoes_what_the_failed_one_wrote_and_inserted(way):
    """What the layer itself writes and inserts meanwhile stays, and so does what stands outside."""
    store = Store({"a": 0})

    def retries(call):
        call.store["before"] = True
        call.insert(STAGE)
        try:
            yield {"k": 1}
        except ValueError:
            call.store["retried"] = True
            call.insert(ACTION)
            yield {"k": 2}

    def writes(call):
        call.store[f"attempt {call.attempt}"] = True
        call.insert(PIPELINE)
        yield

    around = layers_of(way(retries), way(writes), store=store)
    assert decision(enter(around)) == (True, None)
    store["a"] = 1
    store.append("xs", 1)
    assert decision(leave(around, OOPS)) == (True, None)
    assert dict(store) == {"a": 0, "before": True, "retried": True}
    assert around.inserted == (STAGE, ACTION)
    assert around.values == {"outer": 1, "k": 2}
    assert decision(enter(around)) == (True, None)
    assert (around.attempt, "attempt 2" in store) == (2, True)
    assert decision(leave(around, None)) == (False, None)
    assert around.inserted == (STAGE, ACTION, PIPELINE)
    assert (around.failure, around.recovered, around.stood_by()) == (None, False, False)


def test_a_layer_may_ask_for_as_many_attempts_as_it_likes(way):
    """Those inside it are entered anew each time."""
    entered = []

    def retries(call):
        for _ in range(3):
            with suppress(ValueError):
                yield
                return

    def inner(call):
        entered.append(call.attempt)
        yield

    around = layers_of(way(retries), way(inner))
    assert decision(enter(around)) == (True, None)
    for _ in range(2):
        assert decision(leave(around, OOPS)) == (True, None)
        assert decision(enter(around)) == (True, None)
    assert decision(leave(around, OOPS)) == (False, None)
    assert (entered, around.recovered) == ([1, 2, 3], True)


def test_the_outcome_is_sent_to_the_layer_and_may_be_replaced(way):
    """Those further outside receive the new one; a failure drops it."""
    seen = []

    def replaces(call):
        seen.append((yield))
        call.outcome = "replaced"

    def fails(call):
        seen.append((yield))
        raise BROKEN

    around = layers_of(way(replaces), way(replaces), action=ACTION)
    decision(enter(around))
    around.outcome = "returned"
    assert decision(leave(around, None)) == (False, None)
    assert (seen, around.given) == (["returned", "replaced"], "replaced")
    around = layers_of(way(fails), action=ACTION)
    decision(enter(around))
    around.outcome = "returned"
    assert decision(leave(around, None)) == (False, BROKEN)
    assert (around.given, around.outcome) == (UNSET, None)


def test_a_layer_that_skips_an_action_may_say_what_it_came_to(way):
    """Its outcome counts as returned."""

    def cached(call):
        call.outcome = "cached"
        return
        yield

    around = layers_of(way(cached), action=ACTION)
    assert decision(enter(around)) == (False, None)
    assert (around.given, around.entered) == ("cached", False)


def test_a_pause_is_asked_for_and_the_layer_continues_where_it_stood(way):
    """Before its target, after a success, after a failure; an interrupt comes as its answer."""

    def patient(call):
        yield Sleep(1)
        try:
            yield {"k": 1}
        except ValueError:
            yield Sleep(2)
            yield {"k": 2}
        yield Sleep(3)

    around, requests = layers_of(way(patient)), []
    assert decision(enter(around), requests) == (True, None)
    assert around.values["k"] == 1
    assert decision(leave(around, OOPS), requests) == (True, None)
    assert around.values["k"] == 2
    assert decision(enter(around), requests) == (True, None)
    assert decision(leave(around, None), requests) == (False, None)
    assert [each for each in requests if isinstance(each, Sleep)] == [Sleep(1), Sleep(2), Sleep(3)]


def test_a_pause_that_is_interrupted_fails_the_layer():
    """Which may say otherwise, as of any failure."""
    interrupt = KeyboardInterrupt()

    def patient(call):
        yield Sleep(1)
        yield

    def stubborn(call):
        with suppress(KeyboardInterrupt):
            yield Sleep(1)
        yield

    for layer, expected in ((patient, (False, interrupt)), (stubborn, (True, None))):
        passage = enter(layers_of(layer))
        assert next(passage) == Sleep(1)
        with pytest.raises(StopIteration) as end:
            passage.send(Raised(interrupt))
        assert end.value.value == expected


@pytest.mark.parametrize("item", [3, "text", [], {1: 2}], ids=shown)
def test_what_a_layer_may_not_yield_is_raised_at_its_yield(way, item):
    """Before its target, and when it asks for another attempt."""
    log = []

    def wrong(call):
        try:
            yield item
        except MiddlewareError as error:
            log.append(str(error))
            raise

    def wrong_later(call):
        with suppress(ValueError):
            yield
        yield from wrong(call)

    around = layers_of(way(wrong))
    runs, error = decision(enter(around))
    assert (runs, str(error)) == (False, log[0])
    assert f"yielded {item!r}" in log[0]
    around = layers_of(way(wrong_later))
    decision(enter(around))
    runs, error = decision(leave(around, OOPS))
    assert (runs, str(error)) == (False, log[1])


def test_a_layer_that_swallows_its_misuse_has_failed_all_the_same(way):
    """Otherwise, its mistake would be without consequences."""

    def wrong(call):
        with suppress(MiddlewareError):
            yield 3

    def yields_on(call):
        yield
        with suppress(MiddlewareError):
            yield
        yield

    around = layers_of(way(wrong))
    runs, error = decision(enter(around))
    assert (runs, type(error)) == (False, MiddlewareError)
    around = layers_of(way(yields_on))
    decision(enter(around))
    runs, error = decision(leave(around, None))
    assert (runs, type(error)) == (False, MiddlewareError)
    assert "runs again only after a failure" in str(error)


@pytest.mark.parametrize(
    "error", [StopIteration(1), StopAsyncIteration(), GeneratorExit(), KeyboardInterrupt()], ids=shown
)
@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_failure_that_only_passes_through_stays_the_same(error, asynchronously):
    """Also where Python makes a `RuntimeError` of it."""

    def layer(call):
        try:
            yield
        finally:
            call.store["closed"] = True

    async def async_layer(call):
        try:
            yield
        finally:
            call.store["closed"] = True

    around = layers_of(async_layer if asynchronously else layer)
    decision(enter(around))
    assert decision(leave(around, error)) == (False, error)
    assert around.store["closed"]


def test_where_nothing_is_waited_for_the_answer_comes_at_once():
    """Without a generator of requests; a failure is told by the table."""
    around = layers_of(returns_after, returns_after)
    assert enter(around) == (True, None)
    assert leave(around, None) == (False, None)
    around = layers_of(raises)
    assert enter(around) == (False, BROKEN)
    assert leave(around, BROKEN) == (False, BROKEN)


def test_an_asynchronous_layer_is_resumed_by_the_driver():
    """Each time by one request."""
    around, requests = layers_of(asynchronous(returns_after)), []
    assert decision(enter(around), requests) == (True, None)
    assert decision(leave(around, None), requests) == (False, None)
    assert [type(each) for each in requests] == [Await, Await]


# -- interrupts: only while code of the user runs


class Interrupting:
    """A gate in which Ctrl-C arrives in the last moment before it is closed for the n-th time, or as it has been opened.

    This is when Python looks for signals: in the functions that are called, and as they return.
    """

    def __init__(self, moment, *, as_it_opens=False):
        self.left = moment
        self._open = False
        self._as_it_opens = as_it_opens

    @property
    def open(self):
        return self._open

    @open.setter
    def open(self, value):
        counts = self._open is not value and value is self._as_it_opens
        self._open = value
        self.left -= counts
        if counts and not self.left:
            raise KeyboardInterrupt


def test_the_gate_is_open_while_a_layer_runs_and_closed_otherwise(way):
    """Whatever the layer does."""
    gate = Gate()
    opened = []

    def looks(call):
        opened.append(gate.open)
        try:
            yield
        finally:
            opened.append(gate.open)

    for error in (None, OOPS):
        opened.clear()
        around = layers_of(looks, gate=gate)
        assert decision(enter(around)) == (True, None)
        assert not gate.open
        assert decision(leave(around, error)) == (False, error)
        assert not gate.open
        assert opened == [True, True]


@pytest.mark.parametrize("error", [None, OOPS], ids=["after a success", "after a failure"])
@pytest.mark.parametrize("moment", range(1, 5))
def test_ctrl_c_just_as_a_layer_has_answered_is_a_failure_of_it(moment, error):
    """What was entered is left, and those further outside hear of it."""
    log = []

    def noted(call):
        log.append("+")
        try:
            yield
        except BaseException as error:
            log.append(type(error).__name__)
            raise
        finally:
            log.append("-")

    around = layers_of(noted, noted, gate=Interrupting(moment))
    runs, entering = decision(enter(around))
    assert (runs, type(entering)) == ((True, type(None)) if moment > 2 else (False, KeyboardInterrupt))
    again, left = decision(leave(around, entering or error))
    assert (again, type(left)) == (False, KeyboardInterrupt)
    assert log.count("+") == log.count("-") == min(moment, 2)
    assert (around.opened, around.gate.open) == ([], False)


@pytest.mark.parametrize("error", [None, OOPS], ids=["after a success", "after a failure"])
@pytest.mark.parametrize("moment", range(1, 5))
def test_ctrl_c_just_as_a_layer_is_about_to_be_resumed_is_raised_at_its_yield(moment, error):
    """What was entered is left."""
    log = []

    def noted(call):
        log.append("+")
        try:
            yield
        finally:
            log.append("-")

    around = layers_of(noted, noted, gate=Interrupting(moment, as_it_opens=True))
    _, entering = decision(enter(around))
    again, left = decision(leave(around, entering or error))
    assert (again, type(left)) == (False, KeyboardInterrupt)
    assert log.count("+") == log.count("-") == min(moment - 1, 2)
    assert (around.opened, around.gate.open) == ([], False)


@pytest.mark.parametrize("when", ["before its target", "after a success"])
@pytest.mark.parametrize("swallows", [False, True])
def test_an_interrupt_is_not_lost_as_a_layer_is_told_of_its_misuse(way, when, swallows):
    """It comes while the layer cleans up; an error of its own does not replace the misuse."""

    def wrong(call):
        if when != "before its target":
            yield
        try:
            yield 3
        finally:
            with suppress(KeyboardInterrupt if swallows else ()):
                raise interrupt

    for interrupt, left in ((KeyboardInterrupt(), KeyboardInterrupt), (OOPS, MiddlewareError)):
        around = layers_of(way(wrong))
        _, error = decision(enter(around))
        if error is None:
            _, error = decision(leave(around, None))
        assert type(error) is (MiddlewareError if swallows else left)


@pytest.mark.parametrize("later", [False, True])
def test_an_interrupt_that_comes_before_an_async_layer_is_told_of_its_misuse_is_raised_in_it(later):
    """It was about to be resumed: it can clean up, and the interrupt is what ends its target."""
    log = []

    async def wrong(call):
        if later:
            yield
        try:
            yield 3
        except BaseException as error:
            log.append(type(error))
            raise

    around = layers_of(wrong)
    walk = enter(around)
    if later:
        assert decision(walk) == (True, None)
        walk = leave(around, None)
    assert performed(next(walk)) == 3
    walk.send(3)
    request = walk.send(Raised(KeyboardInterrupt()))
    with pytest.raises(StopIteration) as ended:
        walk.send(performed(request))
    assert (ended.value.value[0], type(ended.value.value[1]), log) == (False, KeyboardInterrupt, [KeyboardInterrupt])


@pytest.mark.parametrize("layer", [raises, raises_after, yields_twice])
def test_ctrl_c_just_as_a_layer_has_failed_replaces_its_failure(layer):
    """It comes while the exception is being caught."""
    around = layers_of(layer, gate=Interrupting(1 if layer is raises else 2))
    runs, error = decision(enter(around))
    assert runs is (layer is not raises)
    if runs:
        _, error = decision(leave(around, None))
    assert type(error) is KeyboardInterrupt


def test_ctrl_c_just_as_a_layer_yields_after_a_pause_is_heard_by_it():
    """It has been entered, and is left like any other."""
    log = []

    def patient(call):
        yield Sleep(1)
        try:
            yield
        finally:
            log.append("left")

    around = layers_of(patient, gate=Interrupting(2))
    _, error = decision(enter(around))
    assert isinstance(error, KeyboardInterrupt)
    decision(leave(around, error))
    assert log == ["left"]


# -- the short way, for any layers: as the one that follows the table, and as asynchronous ones


@dataclass(frozen=True)
class Script:
    """What a layer does, at each place: it writes, inserts, pauses, and then makes its move."""

    before: tuple
    success: tuple
    failures: tuple  # one for each


MOVES = st.sampled_from(["return", "raise"])


def acts(*moves):
    """What it does at one place: whether it writes, inserts, pauses, sets the outcome; then its move."""
    return st.tuples(
        st.sampled_from(["", "", "k", "own"]), st.booleans(), st.sampled_from([False, False, True]), st.booleans(),
        st.sampled_from(moves),
    )  # fmt: skip


SCRIPTS = st.builds(
    Script,
    before=acts("yield", "yield", "yield", "yield", "give", "return", "raise"),
    success=acts("return", "return", "return", "raise", "yield"),
    failures=st.lists(acts("yield", "yield", "give", "return", "raise", "reraise"), max_size=3).map(tuple),
)


def scripted(script, name, log):
    """The layer that does this."""

    def layer(call):
        def act(where, acts):
            writes, inserts, _, sets, _ = acts
            if writes:
                call.store[writes] = f"{name} {where} {call.attempt}"
                call.store.append("layers", f"{name} {where}")
            if inserts:
                call.insert(Stage(f"{name} {where}"))
            if sets:
                call.outcome = f"of {name}"
            log.append((name, where, call.attempt, call.outcome))

        where, acts = "before", script.before
        failures = iter(script.failures)
        error = None
        while True:
            act(where, acts)
            if acts[2]:
                yield Sleep(1)
            if acts[4] == "return":
                return
            if acts[4] == "raise":
                raise LookupError(f"{name} {where}")
            if acts[4] == "reraise":
                raise error
            try:
                log.append((name, "received", (yield {name: call.attempt} if acts[4] == "give" else None)))
            except ValueError as raised:
                error = raised
                where, acts = "failure", next(failures, ("", False, False, False, "reraise"))
            else:
                where, acts = "success", script.success

    return layer


def told(error):
    """What an exception says; a misuse names the layer, which is another one for each way."""
    return "misuse" if isinstance(error, MiddlewareError) else repr(error)


def travelled(scripts, attempts, action, make):
    """All that comes of it: what the layers saw, what they wrote, what is left at each turn."""
    log, store = [], Store({"k": 0})
    store.append("attempts", 0)
    mark = store.mark()
    around = layers_of(
        *(make(scripted(each, f"l{n}", log)) for n, each in enumerate(scripts)), store=store, action=action
    )
    turns, again, attempt = [], True, iter(attempts)
    while again:
        runs, error = decision(enter(around))
        turns.append((runs, told(error), dict(around.values), around.entered))
        if runs:
            fails = next(attempt, False)
            if action is None:
                store["k"] = "target"
                store.append("attempts", around.attempt)
            if fails:
                error = ValueError("of the target")
            else:
                around.outcome = "returned"
        again, error = decision(leave(around, error))
        turns.append((again, told(error), dict(around.values), around.recovered, told(around.failure)))
    assert around.opened == []
    inserted = [each.name for each in around.inserted]
    came_to = inserted, around.given, around.attempt, around.stood_by()
    delta = store.since(mark)
    now = {key: list(value) if isinstance(value, list) else value for key, value in store.items()}
    store.undo(mark)
    assert dict(store) == {"k": 0, "attempts": [0]}
    return log, turns, came_to, delta, now


@settings(max_examples=examples(150, 2000), deadline=None)
@given(
    scripts=st.lists(SCRIPTS, max_size=3),
    attempts=st.lists(st.booleans(), max_size=4),
    action=st.sampled_from([None, ACTION]),
)
def test_the_short_way_comes_to_what_the_table_says(scripts, attempts, action):
    """For any layers: what they see, the verdicts, the store, the values; and asynchronous ones come to it, too."""
    short = travelled(scripts, attempts, action, lambda layer: layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_GENERATOR", object())
        assert travelled(scripts, attempts, action, lambda layer: layer) == short
    assert travelled(scripts, attempts, action, asynchronous) == short


# -- the view of a call


def test_a_call_says_what_its_target_is():
    """Level and name, also in its repr."""
    calls = (
        Layers("r", Store(), PIPELINE, None, None, (), Gate()),
        Layers("r", Store(), PIPELINE, STAGE, None, (), Gate()),
        Layers("r", Store(), PIPELINE, STAGE, ACTION, (), Gate()),
    )
    assert [(call.level, call.name) for call in calls] == [("pipeline", "p"), ("stage", "s"), ("action", "a")]
    assert repr(calls[2]) == "<Call of action 'a', attempt 1>"
    assert calls[0].outcome is None


def test_what_a_call_inserts_must_be_units():
    """The error names the target."""
    with pytest.raises(TypeError, match="a middleware of stage 's' inserted .*3"):
        layers_of().insert(3)


def test_a_target_may_be_made_one_step():
    """By any of its layers."""

    def atomically(call):
        call.undo_on_failure()
        yield

    around = layers_of(yields, atomically)
    assert (around.undoes, decision(enter(around)), around.undoes) == (False, (True, None), True)


def test_the_data_of_a_stage_is_merged_by_a_layer():
    """Another attempt merges it again."""
    store = Store()

    def retries(call):
        with suppress(ValueError):
            yield
            return
        yield

    around = layers_of(retries, merging(Stage("s", data={"k": 1})), store=store)
    assert decision(enter(around)) == (True, None)
    assert dict(store) == {"k": 1}
    assert decision(leave(around, OOPS)) == (True, None)
    assert dict(store) == {}
    assert decision(enter(around)) == (True, None)
    assert dict(store) == {"k": 1}
