"""Middleware: what it is told, what it may do at its `yield`, and the order in which it stands around things (L7)."""

import asyncio
import functools
import logging
import pickle
import time
from contextlib import suppress
from typing import Annotated

import pytest
from support import (
    action_record,
    again,
    around,
    async_around,
    failing,
    flaky,
    names,
    one,
    provide,
    stage_record,
    statuses,
    step,
    swallow,
    text_of,
)

from flowdeco import Bail, Context, Key, Run, Sleep, Stage, Suspend, action, parallel, pipeline, stream
from flowdeco.durable import JsonCodec, SqliteJournal
from flowdeco.errors import ContextEndedError, DefinitionError, MiddlewareError, MissingInputError, StoreTypeError
from flowdeco.events import StageFinished
from flowdeco.middleware import atomic, recover, retry
from flowdeco.testing import FlowRunner

# -- the onion (L7)


@pytest.mark.parametrize("kind", [around, async_around], ids=["generator", "async generator"])
def test_the_onion_has_its_layers_in_the_documented_order(run, kind):
    """Run, pipeline, its stages, stage data, the stage, its actions of all levels, the function."""
    log = []

    def level(name):
        return [kind(log, f"{name}1"), kind(log, f"{name}2")]

    def sees_data(call):
        log.append(f"data {call.store.get('k')}")
        yield

    flow = pipeline(
        Stage(
            "s",
            [step(log, "a", use=level("action"))],
            data={"k": 1},
            use=[*level("stage"), sees_data],
            use_actions=level("stage's actions"),
        ),
        use=level("pipeline"),
        use_stages=[*level("stages"), sees_data],
        use_actions=level("actions"),
    )
    run(flow, use=level("run"))
    layers = [
        f"{name}{number}"
        for name in ("run", "pipeline", "stages", "stage", "actions", "stage's actions", "action")
        for number in (1, 2)
    ]
    before = [f"+{layer}" for layer in layers]
    before.insert(before.index("+stages2") + 1, "data None")
    before.insert(before.index("+stage2") + 1, "data 1")
    assert log == [*before, "a", *(f"-{layer}" for layer in reversed(layers))]


def test_layers_stand_around_each_stage_and_action_also_dynamic_ones(run):
    """Those of the pipeline around all of them, those of a stage around its own."""
    log = []

    @action
    def inserts(ctx):
        log.append("a")
        ctx.insert(step(log, "b"))
        return one(log, "D")

    flow = pipeline(
        Stage("s", [inserts], use_actions=[around(log, "s")]),
        use_stages=[around(log, "S")],
        use_actions=[around(log, "A")],
    )
    run(flow)
    assert " ".join(log) == "+S +A +s a -s -A +A +s b -s -A -S +S +A D -A -S"


def test_mixed_kinds_of_layers_keep_the_order(run):
    """Sync and async ones alternate."""
    log = []
    layers = [around(log, "1"), async_around(log, "2"), around(log, "3"), async_around(log, "4")]
    run(Stage("s", [step(log, "a")], use=layers))
    assert " ".join(log) == "+1 +2 +3 +4 a -4 -3 -2 -1"


def test_each_run_of_a_stage_has_middleware_of_its_own(run):
    """A loop enters and leaves it in each round."""
    log = []

    @action
    def count():
        log.append("round")
        return loop if log.count("round") < 3 else None

    loop = Stage("loop", [count], use=[around(log, "m")])
    run(loop)
    assert log == ["+m", "round", "-m"] * 3


def test_a_pipeline_that_returns_itself_is_wrapped_in_each_round(run):
    """By what it declares for its stages, and by the pipeline around it, of which it is the last unit."""
    log = []

    @action
    def count():
        log.append("round")
        return loop if log.count("round") < 3 else None

    loop = pipeline(count, name="loop", use_stages=[around(log, "own")])
    run(pipeline(loop, name="outer", use_stages=[around(log, "outer")]))
    assert log == ["+outer", "+own", "round", "-own", "-outer"] * 3


# -- what the call tells


def test_the_call_tells_where_the_middleware_stands(run):
    """Level, names, None where it does not apply; the run's own `use` is at the level of the pipeline."""
    seen = []

    def look(call):
        names_there = [thing and thing.name for thing in (call.pipeline, call.stage, call.action)]
        seen.append((call.level, *names_there, call.attempt, call.run_id))
        yield

    flow = pipeline(Stage("s", [step([], "a", use=[look])], use=[look]), name="p", use=[look])
    run(flow, use=[look], run_id="run-1")
    assert seen == [
        ("pipeline", "p", None, None, 1, "run-1"),
        ("pipeline", "p", None, None, 1, "run-1"),
        ("stage", "p", "s", None, 1, "run-1"),
        ("action", "p", "s", "a", 1, "run-1"),
    ]


def test_the_call_of_a_nested_pipeline_tells_the_nested_one(run):
    """At every level inside of it."""
    seen = []

    def look(call):
        seen.append((call.level, call.pipeline.name))
        yield

    run(pipeline(pipeline(Stage("s", [step([], "a", use=[look])], use=[look]), name="inner", use=[look]), name="outer"))
    assert seen == [("pipeline", "inner"), ("stage", "inner"), ("action", "inner")]


def test_the_call_has_a_logger(run, caplog):
    """The standard one, with run, stage and action."""

    def log(call):
        call.logger.info("here")
        yield

    with caplog.at_level(logging.INFO, "flowdeco.run"):
        flow = pipeline(Stage("s", [step([], "a", use=[log])], use=[log]), use=[log])
        run(flow, run_id="run-1")
    assert [(r.name, r.run, r.stage, r.action) for r in caplog.records] == [
        ("flowdeco.run", "run-1", None, None),
        ("flowdeco.run", "run-1", "s", None),
        ("flowdeco.run", "run-1", "s", "a"),
    ]


def test_a_call_has_a_repr(run):
    """It says what it is of."""
    seen = []

    def look(call):
        seen.append(repr(call))
        yield

    run(Stage("s", [step([], "a")], use=[look], use_actions=[look]))
    assert seen == ["<Call of stage 's', attempt 1>", "<Call of action 'a', attempt 1>"]


def test_what_middleware_writes_stays(run):
    """Before its inside, after it, and when it failed; at every level."""

    def notes(call):
        call.store[f"{call.level} before"] = True
        try:
            yield
        finally:
            call.store[f"{call.level} after"] = True

    flow = pipeline(Stage("s", [failing([], "a", ValueError(), use=[notes])], use=[notes]), use=[notes])
    finished = run(flow, check=False)
    assert sorted(finished.store) == [
        f"{level} {at}" for level in ("action", "pipeline", "stage") for at in ("after", "before")
    ]


def test_middleware_in_a_branch_has_the_store_of_the_branch(run):
    """What it writes is merged with what the branch wrote."""

    def notes(call):
        yield
        call.store.append("seen", sorted(call.store))

    flow = parallel(Stage("a", data={"a": 1}, use=[notes]), Stage("b", data={"b": 1}, use=[notes]))
    assert run(flow)["seen"] == [["a"], ["b"]]


# -- outcomes


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_yield_evaluates_to_the_outcome(run, asynchronous):
    """An action's return value; None for stages and pipelines."""
    seen = []

    def look(call):
        seen.append((call.level, (yield)))

    async def look_async(call):
        seen.append((call.level, (yield)))

    layer = look_async if asynchronous else look
    run(pipeline(Stage("s", [step([], "a", 42), step([], "b")], use=[layer], use_actions=[layer]), use=[layer]))
    assert seen == [("action", 42), ("action", None), ("stage", None), ("pipeline", None)]


def test_the_outcome_of_a_coroutine_is_what_it_returned(run):
    """Not the coroutine."""
    seen = []

    def look(call):
        seen.append((yield))

    @action(use=[look])
    async def coroutine():
        return 42

    run(coroutine)
    assert seen == [42]


def test_the_call_has_the_outcome_too(run):
    """None where there is none: before the inside ran, and for stages."""
    seen = []

    def look(call):
        seen.append(call.outcome)
        yield
        seen.append(call.outcome)

    run(Stage("s", [step([], "a", 42)], use=[look], use_actions=[look]))
    assert seen == [None, None, 42, None]


def test_middleware_may_replace_an_outcome(run):
    """Layers further out see the new one; it is stored like a returned one."""
    seen = []

    def outer(call):
        seen.append((yield))

    def add_one(call):
        call.outcome = (yield) + 1

    assert run(step([], "a", 1, use=[outer, add_one]))["a"] == 2
    assert seen == [2]


@pytest.mark.parametrize("instead", [True, False], ids=["instead", "after"])
def test_an_outcome_counts_as_returned(run, instead):
    """Units are inserted, generators run to their end, coroutines awaited, data stored, None is nothing."""
    log = []

    def outcome_of(make):
        def layer(call):
            if not instead:
                yield
            call.outcome = make()
            if instead:
                return
            yield

        def after(call):
            yield
            call.outcome = make()

        return layer if instead else after

    async def coroutine():
        return one(log, "awaited")

    flow = pipeline(
        step([], "stage", 0, use=[outcome_of(lambda: one(log, "x"))]),
        step([], "list", 0, use=[outcome_of(lambda: [one(log, "y"), step(log, "z")])]),
        step([], "generator", 0, use=[outcome_of(lambda: (one(log, name) for name in "uv"))]),
        step([], "coroutine", 0, use=[outcome_of(coroutine)]),
        step([], "data", 0, use=[outcome_of(lambda: 5)]),
    )
    finished = run(flow)
    assert log == ["x", "y", "z", "u", "v", "awaited"]
    assert dict(finished.store) == {"data": 5}


def test_an_outcome_of_none_replaces_data(run):
    """Nothing is stored then."""

    def forget(call):
        yield
        call.outcome = None

    assert dict(run(step([], "a", 1, use=[forget])).store) == {}


def test_an_outcome_that_a_layer_refused_is_not_stored(run):
    """A layer that raises after success makes it a failure, and who recovers it says what counts instead."""

    def validate(call):
        if (yield) > 0:
            raise ValueError("too big")

    finished = run(step([], "a", 1, use=[swallow, validate]) >> step([], "b", 0, use=[swallow, validate]))
    assert dict(finished.store) == {"b": 0}
    assert action_record(finished, "a", "a").recovered


# -- values


@pytest.mark.parametrize("level", ["run", "pipeline", "stages", "stage", "actions", "stage's actions", "action"])
def test_values_are_parameters_inside_and_nowhere_else(run, level):
    """They never enter the store; who stands outside of the scope does not get them."""
    values = [provide(conn="c")]
    seen = []

    @action(use=values if level == "action" else [])
    def use(conn, ctx: Context):
        seen.append((conn, "conn" in ctx.store))

    @action
    def after(conn="default"):
        seen.append(conn)

    inner = pipeline(
        Stage(
            "s",
            [use],
            use=values if level == "stage" else [],
            use_actions=values if level == "stage's actions" else [],
        ),
        use=values if level == "pipeline" else [],
        use_stages=values if level == "stages" else [],
        use_actions=values if level == "actions" else [],
        name="inner",
    )
    finished = run(inner >> after, use=values if level == "run" else [])
    assert seen == [("c", False), "c" if level == "run" else "default"]
    assert "conn" not in finished.store


def test_of_several_values_the_innermost_wins(run):
    """And after its scope the outer one is back."""
    seen = []

    def look(name):
        @action(name=name)
        def body(x, y=None):
            seen.append((name, x, y))

        return body

    inner = Stage("s", [look("a"), look("b").with_options(use=[provide(x=3)])], use=[provide(x=2, y=2)])
    run(pipeline(look("before"), inner, look("after"), use=[provide(x=1)]), {"x": 0})
    assert seen == [("before", 1, None), ("a", 2, 2), ("b", 3, 2), ("after", 1, None)]


def test_values_win_over_the_store_and_lose_to_bind(run):
    """In the documented order of where parameters come from."""

    @action
    def which(x):
        return x

    flow = pipeline(which, which.bind(x="bound").with_options(name="bound"), use=[provide(x="value")])
    finished = run(flow, {"x": "store"})
    assert (finished["which"], finished["bound"]) == ("value", "bound")


def test_stage_values_are_not_for_the_stages_it_inserts(run):
    """They run after it, out of its scope; dynamic actions run in it."""

    @action
    def needs(conn):
        return conn

    @action
    def optional(conn="default"):
        return conn

    inserts = [step([], "a", lambda: needs), step([], "b", lambda: Stage("t", [optional]))]
    finished = run(Stage("s", inserts, use=[provide(conn="c")]))
    assert (finished["needs"], finished["optional"]) == ("c", "default")


def test_a_stage_has_its_connection_opened_and_closed(run):
    """The pattern that values are for."""
    log = []

    def connected(call):
        log.append("open")
        try:
            yield {"conn": log}
            log.append("commit")
        except ValueError:
            log.append("rollback")
            raise
        finally:
            log.append("close")

    @action
    def write(conn):
        conn.append("write")

    run(
        Stage("good", [write], use=[connected])
        >> Stage("bad", [write, failing([], "x", ValueError())], use=[connected]),
        check=False,
    )
    assert log == ["open", "write", "commit", "close", "open", "write", "rollback", "close"]


def test_values_may_differ_between_attempts(run):
    """Each `yield` says anew what they are."""
    seen = []

    def fallback(call):
        try:
            yield {"server": "first"}
        except ValueError:
            yield {"server": "second"}

    @action
    def connect(server):
        seen.append(server)
        if server == "first":
            raise ValueError

    run(Stage("s", [connect], use=[fallback]))
    assert seen == ["first", "second"]


@pytest.mark.parametrize("values", [{}, None])
def test_no_values_are_fine(run, values):
    """An empty mapping is a plain `yield`."""

    def empty(call):
        yield values

    assert run(step([], "a", 1, use=[empty]))["a"] == 1


# -- failures


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_failure_is_raised_at_the_yield_and_goes_outwards(run, asynchronous):
    """The same exception, through all levels."""
    seen = []
    error = ValueError("no")

    def look(call):
        try:
            yield
        except ValueError as raised:
            seen.append((call.level, raised is error))
            raise

    async def look_async(call):
        try:
            yield
        except ValueError as raised:
            seen.append((call.level, raised is error))
            raise

    layer = look_async if asynchronous else look
    flow = pipeline(Stage("s", [failing([], "a", error, use=[layer])], use=[layer]), use=[layer])
    with pytest.raises(ValueError) as caught:
        run(flow)
    assert caught.value is error
    assert seen == [("action", True), ("stage", True), ("pipeline", True)]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("level", ["action", "stage", "pipeline"])
def test_a_failure_that_is_caught_is_recovered(run, level, asynchronous):
    """The run goes on behind what the middleware stands around."""
    log = []

    async def swallow_async(call):
        with suppress(ValueError):
            yield

    layer = [swallow_async if asynchronous else swallow]
    flow = pipeline(
        Stage(
            "s",
            [failing(log, "boom", ValueError(), use=layer if level == "action" else []), step(log, "b")],
            use=layer if level == "stage" else [],
        ),
        one(log, "c"),
        use=layer if level == "pipeline" else [],
    )
    finished = run(flow >> one(log, "end"))
    assert finished.status == "completed"
    assert (
        log == {"action": ["boom", "b", "c", "end"], "stage": ["boom", "c", "end"], "pipeline": ["boom", "end"]}[level]
    )
    recovered = action_record(finished, "s", "boom"), stage_record(finished, "s")
    assert [(r.status.value, r.recovered) for r in recovered] == {
        "action": [("failed", True), ("completed", False)],
        "stage": [("failed", True), ("failed", True)],
        "pipeline": [("failed", True), ("failed", True)],
    }[level]


def test_middleware_may_raise_something_else(run):
    """Outer layers, the record and the caller see that one."""
    seen = []

    def translate(call):
        try:
            yield
        except ValueError as error:
            raise KeyError("translated") from error

    def look(call):
        try:
            yield
        except Exception as error:
            seen.append(type(error))
            raise

    with pytest.raises(KeyError, match="translated") as caught:
        run(Stage("s", [failing([], "a", ValueError(), use=[look, translate])], use=[look]))
    assert seen == [KeyError, KeyError]
    assert isinstance(caught.value.__cause__, ValueError)
    assert isinstance(action_record(Run.of(caught.value), "s", "a").error, KeyError)


def test_a_layer_that_raises_before_its_yield_fails_what_it_stands_around(run):
    """Inner layers and the inside do not begin, outer layers see it."""
    log = []

    def refuses(call):
        raise ValueError("refused")
        yield

    finished = run(Stage("s", [step(log, "a")], use=[around(log, "1"), refuses, around(log, "2")]), check=False)
    assert log == ["+1", "-1"]
    assert (finished.status, str(finished.error)) == ("failed", "refused")
    assert statuses(finished) == [("s", "failed")]


@pytest.mark.parametrize("level", ["action", "stage", "pipeline"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_layer_that_raises_after_success_fails_what_it_stands_around(run, level, asynchronous):
    """Outer layers see it, and may recover it."""
    log = []

    def refuses(call):
        yield
        raise ValueError("refused")

    async def refuses_async(call):
        yield
        raise ValueError("refused")

    layers = [swallow, around(log, "1"), refuses_async if asynchronous else refuses, around(log, "2")]
    flow = {
        "action": Stage("s", [step(log, "a", use=layers)]),
        "stage": Stage("s", [step(log, "a")], use=layers),
        "pipeline": pipeline(Stage("s", [step(log, "a")]), use=layers),
    }[level]
    finished = run(flow >> one(log, "end"))
    assert log == ["+1", "+2", "a", "-2", "-1", "end"]
    assert finished.status == "completed"
    if level != "pipeline":
        record = stage_record(finished, "s") if level == "stage" else action_record(finished, "s", "a")
        assert (record.status, record.recovered, str(record.error)) == ("failed", True, "refused")


def test_an_action_that_a_layer_failed_leaves_no_trace(run):
    """Neither data, nor writes, nor insertions (L4)."""

    def refuses(call):
        yield
        raise ValueError

    @action(use=[refuses])
    def writes(ctx: Context):
        ctx.store["k"] = 1
        ctx.insert(Stage("inserted"))
        return [Stage("returned")]

    finished = run(writes, check=False)
    assert (dict(finished.store), names(finished)) == ({}, ["writes"])


# -- running again


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("level", ["action", "stage", "pipeline"])
def test_to_yield_again_after_a_failure_is_to_run_again(run, level, asynchronous):
    """What the failed attempt wrote, collected and inserted is dropped; one record, with its attempts."""
    log = []

    async def again_async(call):
        try:
            yield
        except ValueError:
            yield

    @action
    def writes(ctx: Context):
        ctx.store[f"attempt {log.count('f')}"] = True
        ctx.store.append("xs", 1)
        ctx.insert(one(log, "inserted"))
        return step(log, "dynamic")

    @action(name="f", use=[again_async if asynchronous else again(2)] if level == "action" else [])
    def both(ctx: Context):
        ctx.store[f"f {log.count('f')}"] = True
        ctx.insert(one(log, "F"))
        log.append("f")
        if log.count("f") < 2:
            raise ValueError

    layer = [again_async if asynchronous else again(2)]
    flow = pipeline(
        Stage("s", [writes, both], use=layer if level == "stage" else []),
        use=layer if level == "pipeline" else [],
    )
    finished = run(flow >> one(log, "end"))
    if level == "action":
        assert log == ["dynamic", "f", "f", "inserted", "F", "end"]
        assert sorted(finished.store) == ["attempt 0", "f 1", "xs"]
        assert action_record(finished, "s", "f").attempts == 2
    else:
        assert log == ["dynamic", "f", "dynamic", "f", "inserted", "F", "end"]
        assert sorted(finished.store) == ["attempt 1", "f 1", "xs"]
    assert finished["xs"] == [1]
    assert statuses(finished) == [(name, "completed") for name in ("s", "inserted", "F", "end")]
    assert stage_record(finished, "s").attempts == (2 if level == "stage" else 1)
    assert len(stage_record(finished, "s").actions) == 3


def test_what_middleware_itself_wrote_survives_its_retry(run):
    """Only what is inside belongs to the attempt."""

    def noting(call):
        call.store["before"] = 1
        for _ in range(2):
            try:
                yield
                return
            except ValueError:
                call.store.append("failures", call.attempt)
        yield

    log = []
    finished = run(Stage("s", [step(log, "w", 1, collect="xs"), flaky(log, "f", 2)], use=[noting]))
    assert dict(finished.store) == {"before": 1, "failures": [1, 2], "xs": [1]}


def test_what_an_inner_layer_wrote_in_a_failed_attempt_is_dropped(run):
    """It is part of the inside of the outer one."""

    def notes(call):
        call.store.append("notes", call.attempt)
        try:
            yield
        finally:
            call.store.append("after", call.attempt)

    log = []
    for use in ({"use": [again(2), notes]}, {"use": [again(2)], "use_actions": [notes]}):
        finished = run(Stage("s", [flaky(log, "f", 1)], **use))
        assert {key: len(finished[key]) for key in ("notes", "after")} == {"notes": 1, "after": 1}
        log.clear()


def test_data_of_a_stage_is_merged_anew_when_a_layer_outside_of_it_tries_again(run):
    """What the failed attempt made of it is dropped."""
    seen, log = [], []

    @action
    def grow(xs, ctx: Context):
        seen.append(list(xs))
        xs.append(1)
        ctx.store["k"] = "changed"

    flow = pipeline(Stage("s", [grow, flaky(log, "f", 1)], data={"xs": [], "k": "fresh"}), use_stages=[again(2)])
    assert dict(run(flow, {"k": "before"}).store) == {"xs": [1], "k": "changed"}
    assert seen == [[], []]


def test_nested_retries_multiply(run):
    """The record counts all attempts of its level."""
    log = []
    layers = [again(2), again(2)]
    finished = run(flaky(log, "f", 3, "at last", use=layers))
    assert len(log) == 4
    assert finished["f"] == "at last"
    assert action_record(finished, "f", "f").attempts == 4


def test_inner_layers_are_entered_anew_in_each_attempt(run):
    """The outer one that tries again is not."""
    log = []
    run(flaky(log, "f", 1, use=[around(log, "1"), again(2), around(log, "2")]))
    assert log == ["+1", "+2", "f", "-2", "+2", "f", "-2", "-1"]


def test_the_call_counts_attempts(run):
    """From 1."""
    seen, log = [], []

    def look(call):
        seen.append(call.attempt)
        yield

    run(flaky(log, "f", 2, use=[again(3), look]))
    assert seen == [1, 2, 3]


def test_a_retry_in_which_an_inner_layer_skips_drops_the_failed_attempt(run):
    """Writes and insertions of an attempt that failed never take effect."""

    def only_once(call):
        if call.attempt > 1:
            call.outcome = "cached"
            return
        yield

    @action(use=[again(2), only_once])
    def writes(ctx: Context):
        ctx.store["leaked"] = True
        ctx.insert(Stage("leaked"))
        ctx.disable("end")
        raise ValueError

    finished = run(writes >> Stage("end"))
    assert dict(finished.store) == {"writes": "cached"}
    assert statuses(finished) == [("writes", "completed"), ("end", "completed")]


def test_the_last_failure_counts(run):
    """A retry that fails again raises the exception of its last attempt."""
    errors = [ValueError("first"), KeyError("second")]

    @action(use=[again(2)])
    def always():
        raise errors[always_called.append(1) or len(always_called) - 1]

    always_called = []
    finished = run(always, check=False)
    assert finished.error is errors[1]
    assert action_record(finished, "always", "always").attempts == 2


def test_to_yield_again_after_a_success_is_misuse(run):
    """The message names function, file and line; the middleware may clean up."""
    log = []

    def twice(call):
        try:
            yield
            yield
        finally:
            log.append("cleaned up")

    with pytest.raises(MiddlewareError, match=r"twice.*test_middleware.py:\d+.*again after a success"):
        run(Stage("s", [step(log, "a")], use=[twice]))
    assert log == ["a", "cleaned up"]


def test_misuse_of_an_async_layer_is_told_the_same_way(run):
    """It may clean up as well."""
    log = []

    async def twice(call):
        try:
            yield
            yield
        finally:
            log.append("cleaned up")

    with pytest.raises(MiddlewareError, match=r"twice.*test_middleware.py:\d+"):
        run(Stage("s", use=[twice]))
    assert log == ["cleaned up"]


# -- not running


@pytest.mark.parametrize("level", ["action", "stage", "pipeline"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_to_return_without_yielding_is_to_skip_the_inside(run, level, asynchronous):
    """The record is skipped; outer layers go on, inner ones do not begin."""
    log = []

    def skips(call):
        return
        yield

    async def skips_async(call):
        return
        yield

    layers = [around(log, "1"), skips_async if asynchronous else skips, around(log, "2")]
    flow = {
        "action": Stage("s", [step(log, "a", use=layers)]),
        "stage": Stage("s", [step(log, "a")], use=layers),
        "pipeline": pipeline(Stage("s", [step(log, "a")]), use=layers),
    }[level]
    finished = run(flow >> one(log, "end"))
    assert log == ["+1", "-1", "end"]
    assert finished.status == "completed"
    if level != "action":
        assert statuses(finished) == [("s", "skipped"), ("end", "completed")]
    if level == "action":
        assert action_record(finished, "s", "a").status == "skipped"
        assert stage_record(finished, "s").status == "completed"


def test_a_pipeline_skipped_by_its_middleware_has_the_records_of_one_skipped_by_a_selector(run):
    """Those of all its stages, also in groups and pipelines inside it; observers see them too."""

    def skips(call):
        return
        yield

    contents = (
        Stage("s"),
        parallel(Stage("a"), Stage("b"), name="g"),
        pipeline(Stage("t"), name="q", use=[around([], "")]),
    )
    end = Stage("end")

    def came(use, skip):
        events = []
        finished = run(pipeline(*contents, name="p", use=use) >> end, skip=skip, observers=[events.append])
        finals = [(event.stage, event.status) for event in events if isinstance(event, StageFinished)]
        return [(r.name, r.status, r.number, r.scope) for r in finished.stages], finals

    by_middleware = came([skips], ())
    assert by_middleware == came([around([], "")], ["p"])
    assert by_middleware[1] == [*((name, "skipped") for name in "sabt"), ("end", "completed")]
    whole = run(pipeline(*contents, end), use=[skips])
    assert (whole.status, {record.status for record in whole.stages}, len(whole.stages)) == (
        "completed",
        {"skipped"},
        5,
    )


def test_a_cache_supplies_an_outcome_instead(run):
    """The record is completed; layers further out see the outcome."""
    seen, log = [], []

    def look(call):
        seen.append((yield))

    def cached(call):
        call.outcome = "from the cache"
        return
        yield

    finished = run(step(log, "a", "computed", use=[look, cached]))
    assert finished["a"] == "from the cache"
    assert log == []
    assert seen == ["from the cache"]
    assert action_record(finished, "a", "a").status == "completed"


def test_a_stage_that_middleware_skips_has_its_data_only_inside(run):
    """`use_stages` stands outside of the merge, the stage's own `use` inside of it."""

    def skips(call):
        return
        yield

    flow = pipeline(Stage("s", data={"k": 1}), use_stages=[skips]) >> Stage("t", data={"l": 1}, use=[skips])
    assert dict(run(flow).store) == {"l": 1}


# -- inserting


@pytest.mark.parametrize("asynchronous", [False, True])
def test_middleware_inserts_units_right_after_what_it_stands_around(run, asynchronous):
    """Actions and stages after an action, stages after a stage or a pipeline."""
    log = []

    def inserts(*units):
        def layer(call):
            call.insert(*units)
            yield

        async def layer_async(call):
            yield
            call.insert(*units)

        return layer_async if asynchronous else layer

    flow = pipeline(
        Stage(
            "s",
            [
                step(
                    log,
                    "a",
                    lambda: one(log, "returned"),
                    use=[inserts(step(log, "x")), inserts(one(log, "X"), step(log, "z"))],
                ),
                step(log, "b"),
            ],
            use=[inserts(one(log, "Y"), step(log, "y"))],
        ),
        one(log, "c"),
        use=[inserts(one(log, "Z"))],
        name="inner",
    )
    finished = run(flow >> one(log, "end"))
    assert log == ["a", "x", "b", "X", "z", "returned", "Y", "y", "c", "Z", "end"]
    assert names(finished) == ["s", "X", "z", "returned", "Y", "y", "c", "Z", "end"]
    inserted_by = {r.name: r.inserted_by for r in finished.stages}
    assert inserted_by["X"] == inserted_by["returned"] == "s/a"
    assert inserted_by["c"] is inserted_by["end"] is None
    assert inserted_by["Y"] is not None
    assert inserted_by["Z"] is not None


def test_the_run_s_own_middleware_inserts_behind_everything(run):
    """It stands around the whole."""
    log = []

    def inserts(call):
        call.insert(one(log, "last"), stream([one(log, "streamed")]))
        yield

    run(one(log, "a"), use=[inserts])
    assert log == ["a", "last", "streamed"]


def test_what_middleware_inserted_in_a_failed_attempt_is_dropped(run):
    """If it stands inside of the one that tries again; its own it keeps."""
    log = []

    def inner(call):
        call.insert(one(log, "inner"))
        yield

    def outer(call):
        call.insert(one(log, "outer"))
        try:
            yield
        except ValueError:
            call.insert(one(log, "while failing"))
            yield

    run(flaky(log, "f", 1, use=[outer, inner]))
    assert log == ["f", "f", "outer", "while failing", "inner"]


def test_middleware_that_inserts_for_a_failure_that_goes_on_inserts_nothing(run):
    """The run ends."""
    log = []

    def inserts(call):
        call.insert(one(log, "never"))
        yield

    run(Stage("s", [failing(log, "f", ValueError())], use=[inserts]), check=False)
    assert log == ["f"]


def test_recovering_middleware_may_insert_a_compensation(run):
    """It runs right after the failed unit."""
    log = []

    def compensate(call):
        try:
            yield
        except ValueError:
            call.insert(one(log, f"undo {call.name}"))

    run(Stage("s", [failing(log, "a", ValueError(), use=[compensate]), step(log, "b")]) >> one(log, "end"))
    assert log == ["a", "b", "undo a", "end"]


def test_middleware_can_insert_units_only(run):
    """What is none is named."""

    def wrong(call):
        call.insert("data")
        yield

    with pytest.raises(TypeError, match="'data'"):
        run(Stage("s", use=[wrong]))


# -- waiting


def test_a_sleep_takes_seconds_that_are_not_negative():
    """Anything else is refused where it is made."""
    for wrong in (-1, "1", None, True, float("nan")):
        with pytest.raises(MiddlewareError, match="Sleep"):
            Sleep(wrong)
    assert repr(Sleep(1.5)) == "Sleep(1.5)"
    assert Sleep(1) == Sleep(1.0)
    assert len({Sleep(1), Sleep(1), Sleep(2)}) == 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_layer_may_wait_at_any_time(run, asynchronous):
    """Before, between attempts, after; it goes on with None."""
    seen, log = [], []

    def patient(call):
        seen.append((yield Sleep(0)))
        try:
            yield
        except ValueError:
            seen.append((yield Sleep(0.001)))
            yield
        seen.append((yield Sleep(0)))

    async def patient_async(call):
        seen.append((yield Sleep(0)))
        try:
            yield
        except ValueError:
            seen.append((yield Sleep(0.001)))
            yield
        seen.append((yield Sleep(0)))

    run(flaky(log, "f", 1, use=[patient_async if asynchronous else patient]))
    assert seen == [None, None, None]
    assert log == ["f", "f"]


def test_an_async_layer_awaits_on_its_way(run):
    """In the loop in which the coroutines run."""
    loops = []

    async def note_loop(call):
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        yield {"loop": loops[0]}
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())

    @action(use=[note_loop])
    async def waits(loop):
        assert asyncio.get_running_loop() is loop

    run(waits)
    assert loops[0] is loops[1]


def test_a_time_limit_of_an_async_layer_cancels_what_is_inside(run):
    """It is the same task, in a sync run as well."""
    log = []

    async def limited(call):
        async with asyncio.timeout(0.02):
            yield

    @action
    async def waits():
        try:
            await asyncio.sleep(10)
        finally:
            log.append("cancelled")

    finished = run(Stage("s", [waits], use=[limited]), check=False)
    assert isinstance(finished.error, TimeoutError)
    assert (finished.status, log) == ("failed", ["cancelled"])


def test_async_context_managers_work_in_async_layers(run):
    """Time limits and task groups included, in a sync run as well."""
    log = []

    async def with_tasks(call):
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            yield {"tasks": tasks}

    @action
    async def begins(tasks):
        async def child():
            await asyncio.sleep(0.01)
            log.append("child")

        tasks.create_task(child())

    run(Stage("s", [begins, step(log, "next")], use=[with_tasks]) >> one(log, "end"))
    assert log == ["next", "child", "end"]


# -- misuse


@pytest.mark.parametrize("nonsense", [3, "value", ("conn", 1), {1: 2}, [Stage("s")], Stage("s"), {None: 1}])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_layer_that_yields_nonsense_is_told_at_its_yield(run, nonsense, asynchronous):
    """The message names function, file, line and what was yielded; the layer may clean up."""
    log = []

    def babbles(call):
        try:
            yield nonsense
        except MiddlewareError:
            log.append("told")
            raise

    async def babbles_async(call):
        try:
            yield nonsense
        except MiddlewareError:
            log.append("told")
            raise

    layer = babbles_async if asynchronous else babbles
    with pytest.raises(MiddlewareError, match=r"babbles.*test_middleware.py:\d+.*yielded") as caught:
        run(Stage("s", [step(log, "a")], use=[layer]))
    assert repr(nonsense) in str(caught.value)
    assert log == ["told"]
    assert "stage 's'" in text_of(caught.value)


def test_nonsense_of_a_callable_object_names_its_class_and_place(run):
    """There is no function to name."""

    class Babbles:
        def __call__(self, call):
            yield 3

    with pytest.raises(MiddlewareError, match=r"Babbles.*test_middleware.py:\d+"):
        run(Stage("s", use=[Babbles()]))
    with pytest.raises(MiddlewareError, match=r"partially.*test_middleware.py:\d+"):

        def partially(call, n):
            yield n

        run(Stage("s", use=[functools.partial(partially, n=3)]))


def test_nonsense_after_a_failure_is_misuse_too(run):
    """The layer was asked what to do, and said nothing that means something."""

    def babbles(call):
        try:
            yield
        except ValueError:
            yield 3

    with pytest.raises(MiddlewareError, match="babbles"):
        run(Stage("s", [failing([], "a", ValueError())], use=[babbles]))


def test_a_layer_that_swallows_its_own_misuse_does_not_get_away_with_it(run):
    """The run fails all the same."""

    def babbles(call):
        while True:
            with suppress(MiddlewareError):
                yield 3

    with pytest.raises(MiddlewareError, match="babbles"):
        run(Stage("s", use=[babbles]))


# -- retry


def test_retry_runs_again_after_the_exceptions_it_is_told(run):
    """So many times in all; the last failure goes on outwards."""
    log = []
    finished = run(flaky(log, "f", 2, "at last", use=[retry(on=ValueError, wait=0)]))
    assert (len(log), finished["f"]) == (3, "at last")
    log.clear()
    with pytest.raises(ValueError, match="f failed"):
        run(flaky(log, "f", 5, use=[retry(on=(KeyError, ValueError), attempts=2, wait=0)]))
    assert len(log) == 2


@pytest.mark.parametrize("error", [KeyError, Bail, KeyboardInterrupt])
def test_retry_lets_everything_else_pass(run, error):
    """At once."""
    log = []
    flow = Stage("s", [flaky(log, "f", 1, error=error)], use=[retry(on=ValueError, wait=0)])
    try:
        run(flow, check=False)
    except KeyboardInterrupt:
        assert error is KeyboardInterrupt
    assert log == ["f"]


def test_retry_of_a_stage_waits_twice_as_long_each_time_up_to_a_limit(run, monkeypatch):
    """Without jitter exactly, with jitter uniformly below."""
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    run(flaky([], "f", 5, use=[retry(on=ValueError, attempts=6, wait=1, wait_max=5, jitter=False)]))
    assert waited == [1, 2, 4, 5, 5]
    waited.clear()
    run(flaky([], "f", 5, use=[retry(on=ValueError, attempts=6, wait=1, wait_max=5)]))
    assert all(0 <= seconds <= limit for seconds, limit in zip(waited, [1, 2, 4, 5, 5], strict=True))
    assert len(set(waited)) == 5
    waited.clear()
    run(flaky([], "f", 1, use=[retry(on=ValueError, wait=9, wait_max=5, jitter=False)]))
    assert waited == [5]


def test_retry_with_one_attempt_is_no_retry(run):
    """The failure goes on."""
    log = []
    run(flaky(log, "f", 1, use=[retry(on=ValueError, attempts=1)]), check=False)
    assert log == ["f"]


def test_retry_logs_each_failure(run, caplog):
    """With what failed, how, and when it is tried again."""
    with caplog.at_level(logging.INFO, "flowdeco.run"):
        run(flaky([], "f", 1, use=[retry(on=ValueError, wait=0)]))
    (record,) = caplog.records
    assert "'f'" in record.getMessage()
    assert "ValueError" in record.getMessage()


@pytest.mark.parametrize(
    "options",
    [
        {"on": ValueError, "attempts": 0},
        {"on": ValueError, "attempts": 1.5},
        {"on": ValueError, "attempts": True},
        {"on": ValueError, "wait": -1},
        {"on": ValueError, "wait_max": "1"},
        {"on": ()},
        {"on": "ValueError"},
        {"on": (ValueError, int)},
        {"on": ValueError, "timeout": -1},
        {"on": ValueError, "timeout": "1"},
        {"on": ValueError, "jitter": 3},
        {"on": ValueError, "jitter": None},
        {"on": ValueError, "wait": None},
    ],
)
def test_wrong_options_of_retry_are_refused(options):
    """Where they are given."""
    with pytest.raises(DefinitionError, match="retry"):
        retry(**options)


def test_retry_must_be_told_what_to_retry():
    """`on` has no default."""
    with pytest.raises(TypeError):
        retry()
    with pytest.raises(TypeError):
        recover()


def busy(error):
    return "busy" in str(error)


def pauses(number):
    return number * 0.25


def test_retry_takes_functions(run):
    """One says which failures, the other how long to wait."""
    slept = []

    def sleeps(call):
        yield

    for errors, calls in ((["busy", "busy"], 3), (["busy", "broken"], 2), (["broken"], 1)):
        left = list(errors)

        @action(name="a", use=[sleeps, retry(on=busy, wait=lambda number: slept.append(number) or 0)])
        def shaky():
            if left:
                raise ValueError(left.pop(0))

        record = run(shaky, check=False).stages[0].actions[0]
        assert record.attempts == calls
    assert slept == [1, 2, 1]


def test_a_function_that_says_what_to_retry_is_not_asked_about_signals(run):
    """A run that suspends, or ends early, has not failed; of a group all members count."""
    layers = [retry(on=lambda error: True, wait=0)]
    assert run(failing([], "a", Suspend("later"), use=layers)).status == "suspended"
    assert run(failing([], "a", Bail("enough"), use=layers)).status == "bailed"
    for group, attempts in ((["busy", "busy"], 2), (["busy", "broken"], 1)):
        error = ExceptionGroup("two", [ValueError(text) for text in group])
        finished = run(failing([], "a", error, use=[retry(on=busy, wait=0, attempts=2)]), check=False)
        assert finished.stages[0].actions[0].attempts == attempts


def test_retry_begins_no_attempt_after_its_timeout():
    """The time that was waited counts, also where a test's clock jumps over it."""
    runner = FlowRunner()
    layers = [retry(on=ValueError, attempts=9, wait=pauses, jitter=False, timeout=1.0)]
    finished = runner.run(failing([], "a", ValueError(), use=layers), check=False)
    assert finished.stages[0].actions[0].attempts == 3  # after 0, 0.25 and 0.75 s; the next one would be after 1.5 s


def test_a_wait_that_is_no_time_is_an_error():
    """It names the function's result."""
    with pytest.raises(DefinitionError, match=r"wait\(1\) returned 'soon'"):
        failing([], "a", ValueError(), use=[retry(on=ValueError, wait=lambda number: "soon")]).run()


@pytest.mark.parametrize("codec", ["pickle", JsonCodec().allow(busy, pauses)], ids=["pickle", "json"])
def test_functions_of_a_retry_are_journaled_by_name(codec, tmp_path):
    """With the stage that an action inserted; JSON refers to those that it is allowed to."""
    inner = Stage("inner", use=[retry(on=busy, wait=pauses, timeout=5)])
    flow = action(name="insert")(lambda: inner) >> failing([], "f", Suspend("later"))
    journal = SqliteJournal(tmp_path / "runs.db", codec=codec)
    flow.run(journal=journal, run_id="r")
    assert flow.resume("r", journal=journal).stages[1].stage == inner


def test_shipped_middleware_are_values():
    """Equal where they would do the same, so that definitions with them are, also after pickling."""
    for made in (
        lambda **options: retry(on=ValueError, **options),
        lambda **options: recover(on=(KeyError, ValueError), **({"outcome": 1} if options else {})),
    ):
        assert made() == made()
        assert made() != made(attempts=5)
        assert Stage("s", use=[made()]) == Stage("s", use=[made()])
        assert "ValueError" in repr(made())
        assert pickle.loads(pickle.dumps(Stage("s", use=[made(), atomic]))) == Stage("s", use=[made(), atomic])


# -- recover


def test_recover_lets_the_run_go_on_with_another_outcome(run):
    """It counts as what the action returned; the record stays failed."""
    error = ValueError("no")
    finished = run(failing([], "a", error, use=[recover(on=ValueError, outcome="instead")]) >> step([], "b", 1))
    record = action_record(finished, "a", "a")
    assert (finished["a"], finished["b"], finished.status) == ("instead", 1, "completed")
    assert (record.status, record.recovered, record.error) == ("failed", True, error)
    assert (stage_record(finished, "a").status, stage_record(finished, "a").recovered) == ("completed", False)


def test_recover_without_an_outcome_stores_nothing(run):
    """Of a stage it is enough that the run goes on."""
    finished = run(
        failing([], "a", ValueError(), use=[recover(on=ValueError)])
        >> Stage("s", [failing([], "b", ValueError())], use=[recover(on=Exception)])
    )
    assert dict(finished.store) == {}
    assert stage_record(finished, "s").recovered


def test_recover_lets_other_exceptions_pass(run):
    """Also those that are no failures."""
    finished = run(failing([], "a", KeyError("k"), use=[recover(on=ValueError)]), check=False)
    assert isinstance(finished.error, KeyError)
    finished = run(failing([], "a", Bail("enough"), use=[recover(on=Exception)]))
    assert finished.status == "bailed"


def test_recover_drops_what_the_failing_action_wrote_and_inserted(run):
    """Only the outcome counts."""

    @action(use=[recover(on=ValueError, outcome=[Stage("fallback")])])
    def fails(ctx: Context):
        ctx.store["k"] = 1
        ctx.insert(Stage("inserted"))
        raise ValueError

    finished = run(fails)
    assert (dict(finished.store), names(finished)) == ({}, ["fails", "fallback"])


def test_recover_around_retry_counts_all_attempts(run):
    """The record says how often it was tried."""
    log = []
    layers = [recover(on=ValueError, outcome=0), retry(on=ValueError, attempts=3, wait=0)]
    finished = run(flaky(log, "f", 9, use=layers))
    record = action_record(finished, "f", "f")
    assert (len(log), record.attempts, record.recovered, finished["f"]) == (3, 3, True, 0)


def test_wrong_options_of_recover_are_refused():
    """`on` takes exception classes."""
    with pytest.raises(DefinitionError, match="recover"):
        recover(on=ValueError("an instance"))


# -- atomic


def writer(**values):
    """An action that writes these values."""

    @action(name="writer")
    def write(ctx: Context):
        ctx.store.update(values)

    return write


def test_an_atomic_stage_that_fails_leaves_the_store_as_it_was(run):
    """Values, collected items, removed keys, data that were merged."""

    @action
    def change(ctx: Context):
        ctx.store["old"] = "changed"
        ctx.store["new"] = 1
        del ctx.store["gone"]
        ctx.store.append("xs", 2)
        ctx.store.append("ys", 2)

    before = {"old": "value", "gone": "there", "xs": [1]}
    stage = Stage("s", [change, step([], "c", 3, collect="xs"), failing([], "f", ValueError())], use=[atomic])
    finished = run(pipeline(stage, step([], "end", 1), use=[swallow]), before)
    assert dict(finished.store) == before
    finished = run(pipeline(stage.with_options(use=[swallow, atomic]), step([], "end", 1)), before)
    assert dict(finished.store) == {**before, "end": 1}


def test_an_atomic_stage_that_completes_keeps_what_it_wrote(run):
    """As any other does."""
    finished = run(Stage("s", [writer(k=1), step([], "a", 2)], use=[atomic]))
    assert dict(finished.store) == {"k": 1, "a": 2}


def test_atomic_lets_a_bail_take_effect(run):
    """A bail is a success."""
    finished = run(Stage("s", [writer(k=1), failing([], "b", Bail("enough"))], use=[atomic]))
    assert (finished.status, dict(finished.store)) == ("bailed", {"k": 1})


def bails(call):
    """A layer that has seen enough."""
    yield
    raise Bail("enough")


async def bails_async(call):
    yield
    raise Bail("enough")


@pytest.mark.parametrize("layer", [bails, bails_async])
@pytest.mark.parametrize("around", ["action", "stage", "pipeline"])
def test_a_bail_of_a_layer_keeps_all_that_its_target_did(run, around, layer):
    """Result and writes; the layers around it see a success."""
    log = []

    def writes(ctx: Context):
        ctx.store["seen"] = True
        return "page"

    def notes(call):
        log.append((yield))

    use = {around: [notes, atomic, layer] if around == "stage" else [notes, layer]}
    act = action(name="fetch", collect="pages", use=use.get("action", []))(writes)
    flow = pipeline(Stage("s", [act], use=use.get("stage", [])), use=use.get("pipeline", []))
    finished = run(flow)
    assert (finished.status, finished.reason, finished.result) == ("bailed", "enough", "page")
    assert (dict(finished.store), len(log)) == ({"seen": True, "pages": ["page"]}, 1)


def test_a_bail_of_a_layer_after_a_failure_keeps_nothing_of_the_failed_action(run):
    """It is a success all the same; the outcome that a layer supplies counts."""
    log = []

    def gives_up(call):
        try:
            yield
        except ValueError:
            call.outcome = "instead"
            raise Bail("enough") from None

    @action(use=[around(log, "a"), gives_up])
    def fails(ctx: Context):
        ctx.store["seen"] = True
        raise ValueError

    finished = run(fails)
    assert (finished.status, dict(finished.store), finished.result) == ("bailed", {"fails": "instead"}, "instead")
    assert run(step([], "a", 1, use=[bails_before])).result is None
    assert run(step([], "a", {Stage("unit"), 1}, use=[bails]), check=False).status == "failed"


@pytest.mark.parametrize("around", ["action", "stage", "pipeline"])
@pytest.mark.parametrize("error", [None, ValueError("no")], ids=repr)
def test_a_call_that_is_used_too_late_is_an_error(run, around, error):
    """Once its middleware has returned, an insertion or an outcome would be lost."""
    kept = []

    def keeps(call):
        kept.append(call)
        call.insert(Stage("inserted"))
        yield

    use = {around: [keeps]}
    act = (failing if error else step)([], "a", error, use=use.get("action", []))
    run(pipeline(Stage("s", [act], use=use.get("stage", [])), use=use.get("pipeline", [])), check=False)
    (call,) = kept
    for late in (lambda: call.insert(Stage("late")), lambda: setattr(call, "outcome", 1)):
        with pytest.raises(ContextEndedError, match=rf"after {around} '\w+' has ended would have no effect"):
            late()
    with pytest.raises(TypeError, match="^'Call' object is not callable"):
        call()


def bails_before(call):
    raise Bail("enough")
    yield


@pytest.mark.parametrize("layers", [[atomic], [atomic, async_around([], "m")], [async_around([], "m"), atomic]])
def test_atomic_inside_a_pipeline_retry_is_undone_with_the_attempt(run, layers):
    """Completed atomic stages belong to the attempt, too."""
    log = []
    flow = pipeline(
        Stage("s", [step(log, "a", 1, collect="xs"), writer(k=1)], use=layers),
        flaky(log, "f", 1),
        use=[again(2)],
    )
    finished = run(flow, {"xs": [0]})
    assert dict(finished.store) == {"xs": [0, 1], "k": 1}


def test_atomic_and_retry_go_together_in_both_orders(run):
    """Each attempt begins with the store as it was."""
    log = []
    for layers in ([atomic, again(2)], [again(2), atomic]):
        log.clear()
        finished = run(Stage("s", [step(log, "a", 1, collect="xs"), flaky(log, "f", 1)], use=layers))
        assert dict(finished.store) == {"xs": [1]}


def test_atomic_stages_nest_in_atomic_pipelines(run):
    """The outer one undoes what the inner one kept."""
    flow = pipeline(
        Stage("s", [writer(k=1)], use=[atomic]),
        Stage("t", [writer(l=1), failing([], "f", ValueError())], use=[atomic, swallow]),
        failing([], "g", ValueError()),
        use=[swallow, atomic],
    )
    finished = run(flow >> step([], "end", 1))
    assert dict(finished.store) == {"end": 1}


def test_writes_of_an_outer_layer_survive_an_inner_atomic(run):
    """Only what is inside is undone."""

    def notes(call):
        call.store["before"] = 1
        try:
            yield
        finally:
            call.store["after"] = 1

    stage = Stage("s", [writer(k=1), failing([], "f", ValueError())], use=[swallow, notes, atomic])
    assert dict(run(stage).store) == {"before": 1, "after": 1}


# -- errors of the store inside of layers


def test_a_missing_parameter_is_a_failure_that_middleware_can_recover(run):
    """It is raised when the action would be called."""

    @action(use=[recover(on=MissingInputError, outcome="default")])
    def needs(missing):
        return missing

    assert run(needs)["needs"] == "default"


def test_a_wrong_write_of_middleware_fails_what_it_stands_around(run):
    """With the error of the store."""

    def wrong(call):
        yield
        call.store[""] = 1

    with pytest.raises(StoreTypeError):
        run(Stage("s", use=[wrong]))


def test_retry_and_recover_take_a_group_of_failures_that_are_all_of_theirs(run):
    """Several branches of a parallel group that fail raise an ExceptionGroup; one of another kind is none of theirs."""

    def raises(*errors):
        def body():
            raise ExceptionGroup("branches", [*errors])

        return action(name="raises")(body)

    alike = raises(OSError("a"), ConnectionError("b"))
    assert run(alike.with_options(use=[recover(on=OSError)]), check=False).status == "completed"
    record = run(alike.with_options(use=[retry(on=OSError, wait=0)]), check=False).stages[0].actions[0]
    assert (record.attempts, record.status) == (3, "failed")
    mixed = raises(OSError("a"), ValueError("b"))
    assert run(mixed.with_options(use=[recover(on=OSError)]), check=False).status == "failed"


DB = Key("db", int)


def test_middleware_yields_values_under_keys(run):
    """As everywhere else: by the name of the key, and checked against its type."""

    def gives(call):
        yield {DB: 3, "plain": 4}

    async def gives_later(call):
        yield {DB: 3, "plain": 4}

    @action
    def use(db: Annotated[int, DB], plain):
        return db + plain

    for layer in (gives, gives_later):
        assert run(use.with_options(use=[layer])).result == 7
        assert run(Stage("s", [use], use=[layer])).result == 7


def test_a_value_of_middleware_has_the_type_of_its_key(run):
    """The error is raised at the `yield` if that names the key, and at the reading action if that does."""
    seen = []

    def wrong_key(call):
        try:
            yield {DB: "text"}
        except StoreTypeError as error:
            seen.append(str(error))
            raise

    def wrong_value(call):
        yield {"db": "text"}

    @action
    def use(db: Annotated[int, DB]):
        return db

    expected = "the key 'db' is declared as int, but its value is a str: 'text'"
    for layer in (wrong_key, wrong_value):
        failed = run(use.with_options(use=[layer]), check=False)
        assert isinstance(failed.error, StoreTypeError)
        assert str(failed.error) == expected
    assert set(seen) == {expected}


def test_values_under_anything_but_strings_and_keys_are_misuse(run):
    """The message shows them."""

    def gives(call):
        yield {1: 3}

    error = run(action(name="a", use=[gives])(lambda: 1), check=False).error
    assert isinstance(error, MiddlewareError)
    assert "yielded {1: 3}: it may yield nothing, a mapping of values" in str(error)


class Cursor:
    """Cannot be pickled."""

    rows = (1, 2)

    def __reduce__(self):
        raise TypeError("a cursor cannot be pickled")


REPLACED = {
    "of another type": ("41", int, {"returns": Key("x", int)}, 41),
    "of another shape": (3, lambda value: (value, value), {"returns": ("x", "y")}, 3),
    "that no journal can hold": (Cursor(), lambda cursor: list(cursor.rows), {"returns": "x"}, [1, 2]),
    "that mixes units and data": ([Stage("s", [lambda: None]), 5], lambda value: value[1], {"returns": "x"}, 5),
    "that is collected": ("7", int, {"collect": Key("x", list)}, [7]),
}


@pytest.mark.parametrize("raw", REPLACED)
@pytest.mark.parametrize("how", ["run", "arun"])
def test_middleware_may_replace_a_value(how, raw, tmp_path):
    """Also one that would be refused as it is; retry around it sees a success."""
    returned, convert, options, expected = REPLACED[raw]
    calls = []

    def replaces(call):
        yield
        call.outcome = convert(call.outcome)

    @action(use=[retry(on=Exception), replaces], **options)
    def get():
        calls.append("get")
        return returned

    journal = SqliteJournal(tmp_path / "runs.db")
    flow = Stage("s", [get])
    run = flow.run(journal=journal) if how == "run" else asyncio.run(flow.arun(journal=journal))
    assert (run["x"], calls) == (expected, ["get"])


def test_a_value_that_is_refused_fails_the_action_for_the_middleware_of_its_stage():
    """That of the action has ended: it could have replaced it."""

    @action(returns=Key("age", int), use=[recover(on=StoreTypeError, outcome=0)])
    def age():
        return "unknown"

    run = Stage("s", [age]).run(check=False)
    assert isinstance(run.error, StoreTypeError)
    run = Stage("s", [age], use=[recover(on=StoreTypeError)]).run()
    assert (run.status, run.stages[0].recovered, "age" in run.store) == ("completed", True, False)
