"""Layers, driven by script: each row of the table, and the short way compared with the one that follows the table."""

import traceback
from contextlib import suppress
from dataclasses import dataclass
from types import GeneratorType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import performed
from support import examples, shown, step

from flowdeco import Bail, Key, Sleep, Stage, Status, Store, Suspend, pipeline
from flowdeco.durable.digests import digest
from flowdeco.engine import layers as engine
from flowdeco.engine.changes import Looks
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
from flowdeco.engine.outcome import StageRecord
from flowdeco.engine.requests import Await, Gate, Raised
from flowdeco.engine.waits import Waits, Wall
from flowdeco.errors import OVER, PAUSE, SLEEP, MiddlewareError, StoreTypeError, Wait
from flowdeco.model.deltas import Delta
from flowdeco.model.sentinels import UNSET
from flowdeco.model.wiring import hides_gaps

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
    assert around.given is UNSET


def test_layers_that_insert_or_ask_again_did_not_only_stand_by(way):
    """Nor those that recovered a failure."""

    def inserts(call):
        call.insert(STAGE)
        yield

    for layer, error, expected in (
        (yields, None, True), (inserts, None, False), (yields_again, OOPS, False), (swallows, OOPS, False),
    ):  # fmt: skip
        around = layers_of(way(layer))
        decision(enter(around))
        again, _ = decision(leave(around, error))
        if again:
            decision(enter(around))
            decision(leave(around, None))
        assert around.stood_by() is expected


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
    assert around.supplied == ("k", "k", "other")
    assert decision(leave(around, None)) == (False, None)
    assert around.values == {"outer": 1}


def test_values_may_have_typed_keys(way):
    """They are checked, and given by name."""

    def gives(value):
        def layer(call):
            yield {Key("k", int): value}

        return layer

    around = layers_of(way(gives(1)))
    assert decision(enter(around)) == (True, None)
    assert around.values == {"outer": 1, "k": 1}
    runs, error = decision(enter(layers_of(way(gives("text")))))
    assert (runs, type(error)) == (False, StoreTypeError)


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
    assert (runs, type(error), around.failure) == (False, MiddlewareError, error)
    assert "runs again only after a failure" in str(error)


def misuses(call):
    yield 3


def misuses_later(call):
    with suppress(ValueError, KeyboardInterrupt):
        yield
    yield 3


def yields_and_yields(call):
    yield {"k": 1}
    yield


def retries_and_yields(call):
    with suppress(ValueError):
        yield
    yield
    yield


@pytest.mark.parametrize(
    ("layer", "errors"),
    [
        (misuses, []), (misuses_later, [OOPS]), (yields_twice, [None]), (yields_and_yields, [None]),
        (retries_and_yields, [OOPS, None]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("resumable", [False, True])
def test_a_misuse_names_the_middleware(layer, errors, resumable, way):
    """And its traceback leads to the `yield`, wherever it happens."""
    made = way(layer)
    made.__qualname__ = layer.__qualname__
    around = layers_of(made)
    around.mark = around.store.mark() if resumable else None
    _, error = decision(enter(around))
    for each in errors:
        _, error = decision(leave(around, each))
    assert f"the middleware {layer.__qualname__}" in str(error)
    if way is not asynchronous:  # that of the tests has the exception raised elsewhere
        last = traceback.extract_tb(error.__traceback__)[-1]
        assert (last.name, last.line[:5]) == (layer.__name__, "yield")


def test_a_misuse_after_an_interrupt_names_the_middleware():
    """It came just as the layer had yielded."""
    around = layers_of(misuses_later, gate=Interrupting(1))
    _, interrupt = decision(enter(around))
    _, error = decision(leave(around, interrupt))
    assert "misuses_later" in str(error)


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


def test_an_exception_that_only_passes_through_keeps_its_traceback(way):
    """The lines of layers say nothing about the failure."""

    def closes(call):
        try:
            yield
        finally:
            call.store["closed"] = True

    try:
        raise ValueError("of the target")
    except ValueError as raised:
        error, lines = raised, raised.__traceback__
    around = layers_of(way(closes), way(closes))
    decision(enter(around))
    assert decision(leave(around, error)) == (False, error)
    assert error.__traceback__ is lines


def test_an_error_that_a_layer_makes_of_a_failure_is_its_own(way):
    """Also one that looks as if Python had made it."""

    def translates(call):
        try:
            yield
        except ValueError as error:
            raise BROKEN from error

    around = layers_of(way(translates))
    decision(enter(around))
    assert decision(leave(around, OOPS)) == (False, BROKEN)


def test_a_bail_of_the_target_is_a_success_for_its_layers(way):
    """It is passed on, unless one of them fails; then it is gone."""
    log, bail = [], Bail("enough")

    def notes(call):
        log.append((yield))

    def retries(call):
        with suppress(RuntimeError):
            yield
            return
        yield

    around = layers_of(way(notes))
    decision(enter(around))
    assert (decision(leave(around, bail)), log, around.failure) == ((False, bail), [None], None)
    around = layers_of(way(raises_after))
    decision(enter(around))
    assert decision(leave(around, bail)) == (False, BROKEN)
    around = layers_of(way(retries), way(raises_after))
    decision(enter(around))
    assert decision(leave(around, bail)) == (True, None)


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


# -- attempts, and their number


def asks_again(name, times, log=None):
    """A layer that asks for so many further attempts each time it is entered."""

    def layer(call):
        if log is not None:
            log.append((name, call.repeats_before))
        for _ in range(times):
            with suppress(ValueError):
                yield
                return
        yield

    return layer


def test_what_each_layer_has_asked_for_is_counted():
    """Of those inside the one that asks, the count begins anew; errors are kept, in their order."""
    around = layers_of(asks_again("a", 1), asks_again("b", 2), asks_again("c", 1))
    errors = [ValueError(number) for number in range(6)]
    counts = []
    for error in errors:
        assert decision(enter(around)) == (True, None)
        around.take_cached(1, ())
        assert decision(leave(around, error)) == (True, None)
        assert not around.cached
        counts.append((around.repeats, around.asked_again))
    assert counts == [
        ((0, 0, 1), 2), ((0, 1, 0), 1), ((0, 1, 1), 2), ((0, 2, 0), 1), ((0, 2, 1), 2), ((1, 0, 0), 0),
    ]  # fmt: skip
    assert (around.attempt, around.failures) == (7, tuple(errors))


def earlier(status=Status.SUSPENDED, **more):
    """What had become of the stage before the run was resumed."""
    return StageRecord(
        "s", STAGE, status, 0.0, 0.0, attempts=4, failures=[OOPS], dropped={("", 1, "a"): [OOPS]}, **more
    )


def test_attempts_are_counted_on_in_a_resumed_run():
    """Each layer hears how often it had asked; a resumed failure begins anew."""
    for status, before, attempt, failures in (
        (Status.SUSPENDED, [1, 2], 4, (OOPS,)), (Status.RUNNING, [1, 2], 4, (OOPS,)), (Status.FAILED, [0, 0], 1, ()),
    ):  # fmt: skip
        log = []
        around = layers_of(asks_again("a", 0, log), asks_again("b", 0, log))
        then = earlier(status, repeats=(1, 2))
        around.continue_from(then)
        assert decision(enter(around)) == (True, None)
        assert [count for _, count in log] == before
        assert (around.attempt, around.failures) == (attempt, failures)
        assert around.dropped == (then.dropped if failures else {})


@pytest.mark.parametrize(("count", "repeats"), [(1, (2,)), (2, (1, 2)), (3, (0, 1, 2))])
def test_layers_around_a_run_keep_their_counts_however_many_there_are_now(count, repeats):
    """A resume may be given others: what is innermost is the pipeline's own."""
    around = layers_of(*[yields] * count)
    around.count_from_inside()
    around.continue_from(earlier(repeats=(1, 2)))
    assert around.repeats == repeats
    inside = layers_of(yields)
    inside.continue_from(earlier(repeats=(1,)))
    assert inside.repeats == (1,)


# -- in a durable run


def in_a_durable_run(*layers, waits=(), **more):
    """These layers, and what they wait for; the time stands still at 100, and more than 10 seconds suspend the run."""
    around, waits = layers_of(*layers, **more), Waits(Wall(lambda: 100.0, suspend_after=10), 0, waits)
    around.waits = lambda: waits
    return around, waits


def sleeps(before=0, after=0):
    """A layer that sleeps before its target, and after it."""

    def layer(call):
        if before:
            yield Sleep(before)
        yield
        if after:
            yield Sleep(after)

    return layer


def test_the_sleeps_of_each_layer_are_counted(way):
    """By its number, from the outside; so that they are not slept again."""
    around, waits = in_a_durable_run(way(sleeps(1, 2)), way(sleeps(3)), way(sleeps(4, 5)))
    requests = []
    assert decision(enter(around), requests) == (True, None)
    assert decision(leave(around, None), requests) == (False, None)
    assert [each.seconds for each in requests if isinstance(each, Sleep)] == [1, 3, 4, 5, 2]
    assert waits.recorded() == tuple(Wait(OVER, who=who, times=times) for who, times in ((0, 2), (1, 1), (2, 2)))


def test_a_long_sleep_suspends_the_run_at_the_yield_of_its_layer(way):
    """When the run is resumed, it sleeps for the rest."""
    log = []

    def patient(call):
        try:
            yield Sleep(20)
        except BaseException as error:
            log.append(type(error))
            raise
        yield

    around, waits = in_a_durable_run(way(yields), way(patient))
    runs, error = decision(enter(around))
    assert (runs, type(error), log, waits.noted) == (False, Suspend, [Suspend], [Wait(SLEEP, 120.0, 1)])
    assert decision(leave(around, error)) == (False, error)
    around, waits = in_a_durable_run(way(yields), way(patient), waits=[Wait(SLEEP, 104.0, 1)])
    requests = []
    assert decision(enter(around), requests) == (True, None)
    assert [each for each in requests if isinstance(each, Sleep)] == [Sleep(4)]


def test_a_long_sleep_after_a_failure_is_a_pause_before_the_next_attempt(way):
    """The failed one is undone, and counted; what the layer has slept and written before it stays, as do those around it."""
    log, store = [], Store()

    def outer(call):
        call.store["outer"] = 1
        try:
            yield
        except BaseException as error:
            log.append(error)
            raise

    def backs_off(call):
        yield Sleep(1)
        call.store["backs off"] = 1
        try:
            yield
        except ValueError:
            call.store["failed"] = 1
            yield Sleep(20)
        yield

    def inner(call):
        call.store["inner"] = 1
        call.insert(STAGE)
        yield Sleep(1)
        yield

    around, waits = in_a_durable_run(way(outer), way(backs_off), way(inner), store=store)
    assert decision(enter(around)) == (True, None)
    store["target"] = 1
    again, error = decision(leave(around, OOPS))
    assert (again, type(error), around.pause, log) == (False, Suspend, error, [error])
    assert dict(store) == {"outer": 1, "backs off": 1, "failed": 1}
    assert (around.attempt, around.repeats, around.failures) == (2, (0, 1, 0), (OOPS,))
    assert (around.inserted, around.opened, around.failure) == ((), [], error)
    assert waits.recorded() == (Wait(OVER, who=1, times=1), Wait(PAUSE, 120.0, 1))


def test_a_short_pause_before_the_next_attempt_is_waited_for(way):
    """Nothing is kept of it: the time until the next attempt is not part of any."""

    def backs_off(call):
        with suppress(ValueError):
            yield
        yield Sleep(5)
        yield

    around, waits = in_a_durable_run(way(backs_off))
    requests = []
    decision(enter(around))
    assert decision(leave(around, OOPS), requests) == (True, None)
    assert ([each for each in requests if isinstance(each, Sleep)], waits.recorded()) == ([Sleep(5)], ())


def test_layers_around_a_run_are_numbered_from_the_inside():
    """So is what they wait for."""
    around, waits = in_a_durable_run(sleeps(1), sleeps(2))
    around.count_from_inside()
    decision(enter(around))
    assert [wait.who for wait in waits.recorded()] == [-3, -2]


def watched(*layers, base=None):
    """Layers around a stage of which all is noted that they write, or change in place, until its target begins."""
    base = Store() if base is None else base
    watch = Looks(digest).watch(base, set().update)
    around = layers_of(*layers, store=watch.watched())
    around.mark, around.entry_writes, around.watch = base.mark(), [], watch
    return around


def writes_key(key, value=1):
    def layer(call):
        call.store[key] = value
        yield

    return layer


def test_the_writes_of_each_layer_as_it_is_entered_are_noted(way):
    """One by one; those of another attempt replace those of the failed one."""

    def inner(call):
        call.store["inner"] = call.attempt
        yield {"given": 1}

    def again(call):
        call.store["again"] = 0
        with suppress(ValueError):
            yield
            return
        call.store["again"] = 1
        yield

    around = watched(way(writes_key("outer")), way(again), way(inner))
    written = [Delta({"outer": 1}, [], {}), Delta({"again": 0}, [], {}), Delta({"inner": 1}, [], {})]
    assert decision(enter(around)) == (True, None)
    assert around.entry_writes == written
    assert decision(leave(around, OOPS)) == (True, None)
    assert around.entry_writes == [written[0], Delta({"again": 1}, [], {})]
    assert decision(enter(around)) == (True, None)
    assert around.entry_writes == [written[0], Delta({"again": 1}, [], {}), Delta({"inner": 2}, [], {})]


def test_what_a_layer_changes_in_place_as_it_is_entered_is_noted_with_it(way):
    """And not with those inside it."""

    def grows(by):
        def layer(call):
            call.store["xs"].append(by)
            yield

        return layer

    around = watched(way(grows(1)), way(yields), way(grows(2)), base=Store({"xs": []}))
    assert decision(enter(around)) == (True, None)
    assert [each.changes for each in around.entry_writes] == [{"xs": [1, 2]}, {}, {"xs": [1, 2]}]
    assert [each.puts for each in around.entry_writes] == [{}] * 3


@pytest.mark.parametrize("durable", [True, False])
def test_in_a_resumed_run_the_writes_of_a_layer_are_those_of_before(way, durable):
    """Not those that it makes now; a layer that is new makes its own."""
    base = Store()
    around = watched(*(way(writes_key(key, "now")) for key in "abc"), base=base)
    if not durable:
        around.entry_writes = None
    around.replays = iter([lambda: base.put("before", "a"), None])
    assert decision(enter(around)) == (True, None)
    assert dict(base) == {"before": "a", "b": "now", "c": "now"}
    if durable:
        assert [each.puts for each in around.entry_writes] == [{"before": "a"}, {"b": "now"}, {"c": "now"}]


def test_each_layer_has_a_mark_to_which_its_next_attempt_returns(way):
    """Around an action not the innermost: nothing inside it writes before the action has ended."""
    store = Store()
    for action, noted in ((None, [{"b", "target"}, {"target"}]), (ACTION, [{"b", "target"}])):
        around = layers_of(way(writes_key("a")), way(writes_key("b")), store=store, action=action)
        decision(enter(around))
        store["target"] = 1
        assert [store.since(mark).keys() for mark in around.marks()] == noted
        decision(leave(around, None))
        assert around.marks() == []
        store.clear()


@pytest.mark.parametrize("error", [None, OOPS], ids=repr)
@pytest.mark.parametrize("layer", [writes_key("k"), swallows, raises_after, yields_twice, sleeps(1, 1)])
def test_marks_are_let_go_as_the_layers_are_left(way, layer, error):
    """A store that nobody may undo notes nothing."""
    around = layers_of(way(layer), way(layer))
    decision(enter(around))
    decision(leave(around, error))
    around.store["new"] = 1
    assert not around.store.has_written("new")


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


@pytest.mark.parametrize("outcome", [UNSET, "returned"])
def test_the_gate_is_open_while_a_layer_runs_and_closed_otherwise(way, outcome):
    """Whatever the layer does; of an asynchronous one, the driver opens it."""
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
        around = layers_of(way(looks), gate=gate)
        assert decision(enter(around)) == (True, None)
        assert gate.open is False
        around.given = outcome
        assert decision(leave(around, error)) == (False, error)
        assert gate.open is False
        assert opened == [way is not asynchronous] * 2


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


def test_ctrl_c_that_a_layer_recovers_is_the_failure_that_was_recovered():
    """It came just as the layer was about to be resumed."""

    def stubborn(call):
        with suppress(KeyboardInterrupt):
            yield

    around = layers_of(stubborn, gate=Interrupting(2, as_it_opens=True))
    decision(enter(around))
    assert decision(leave(around, None)) == (False, None)
    assert (around.recovered, type(around.failure)) == (True, KeyboardInterrupt)


@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupt_before_an_async_layer_is_resumed_is_raised_in_it(begun):
    """It was about to be: it can clean up, if it has begun, and the layers around it hear of the interrupt."""
    log, interrupt = [], KeyboardInterrupt()

    async def noted(call):
        log.append("+")
        try:
            yield
        except BaseException as error:
            log.append(error)
            raise

    around = layers_of(noted, noted)
    walk = enter(around)
    if begun:
        assert decision(walk) == (True, None)
        walk = leave(around, None)
        next(walk)
    else:
        walk.send(performed(next(walk)))
    assert end_of(walk, walk.send(Raised(interrupt))) == (False, interrupt)
    if not begun:
        assert decision(leave(around, interrupt)) == (False, interrupt)
    assert log == (["+", "+", interrupt, interrupt] if begun else ["+", interrupt])


def end_of(walk, request):
    """What a walk comes to, after this request."""
    while True:
        try:
            request = walk.send(performed(request))
        except StopIteration as end:
            return end.value


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
            if sets and call.action is not None:
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
            elif action is not None:
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
    assert {call.run_id for call in calls} == {"r"}
    assert repr(calls[2]) == "<Call of action 'a', attempt 1>"
    assert (calls[0].outcome, calls[0].given, calls[0].values) == (None, UNSET, {})


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
    assert not hides_gaps((merging(STAGE),))  # nothing that an insertion may count on
