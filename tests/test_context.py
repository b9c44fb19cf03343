"""The context: what an action that asks for it can see of its run, and do to it."""

import asyncio
import logging
import pickle
from typing import TYPE_CHECKING

import pytest
from support import again, failing, names, one, provide, statuses, step, swallow

import flowdeco
import flowdeco.middleware
from flowdeco import Action, Bail, Context, Key, Pipeline, Stage, Suspend, action, parallel, pipeline, stream
from flowdeco.errors import DefinitionError, OutOfTime, ReturnValueError, StoreTypeError
from flowdeco.events import Message, Progress, UnitsInserted

if TYPE_CHECKING:
    from flowdeco import Context as OnlyForTheTypeChecker


def asks(act, name="asks", **options):
    """An action that asks for the context, and returns what `act` makes of it."""

    @action(name=name, **options)
    def body(ctx: Context):
        return act(ctx)

    return body


# -- who gets it


def test_a_parameter_annotated_context_receives_it(run):
    """Whatever its name."""

    @action
    def look(whatever: Context):
        return type(whatever)

    assert run(look)["look"] is Context


def test_an_unannotated_parameter_named_ctx_receives_it(run):
    """Annotated as something else, it is a parameter like others."""

    @action
    def look(ctx):
        return type(ctx)

    @action
    def other(ctx: int):
        return ctx

    finished = run(look >> other, {"ctx": 3})
    assert (finished["look"], finished["other"]) == (Context, 3)


def test_string_annotations_of_the_context_work(run):
    """Also through the module, or when the name exists only for the type checker."""

    @action
    def plain(c: "Context"):
        return type(c)

    @action
    def dotted(c: "flowdeco.Context"):
        return type(c)

    @action
    def unknown(c: "OnlyForTheTypeChecker"):
        return type(c)

    finished = run(plain >> dotted >> unknown)
    assert {finished[name] for name in ("plain", "dotted", "unknown")} == {Context}


def test_every_kind_of_function_and_parameter_can_ask_for_it(run):
    """Coroutines, generators, keyword-only and positional-only parameters, beside others."""

    @action
    async def coroutine(ctx: Context):
        ctx.store["c"] = 1

    @action
    def generator(n, *, ctx: Context):
        ctx.store["g"] = n
        yield 1

    @action
    async def async_generator(ctx: Context, /):
        ctx.store["ag"] = 1
        yield 1

    finished = run(coroutine >> generator >> async_generator, {"n": 5})
    assert [finished[key] for key in ("c", "g", "ag")] == [1, 5, 1]


def test_the_context_wins_over_values_and_the_store(run):
    """But `bind` fixes it, as any parameter."""

    @action
    def look(ctx):
        return type(ctx).__name__

    flow = pipeline(look, look.bind(ctx="bound").with_options(name="bound"), use=[provide(ctx="value")])
    finished = run(flow, {"ctx": "store"})
    assert (finished["look"], finished["bound"]) == ("Context", "str")


# -- where it is


def test_it_knows_its_place(run):
    """Run, pipeline, stage and action, dynamic ones too."""
    seen = []

    def look(ctx):
        seen.append((ctx.run_id, ctx.pipeline.name, ctx.stage.name, ctx.action.name))
        return

    def begin(ctx):
        look(ctx)
        ctx.insert(asks(look, "x"))
        return Stage("D", [asks(look, "d")])

    run(pipeline(pipeline(Stage("s", [asks(begin, "a")]), name="inner"), name="outer"), run_id="run-1")
    assert seen == [("run-1", "inner", "s", "a"), ("run-1", "inner", "s", "x"), ("run-1", "inner", "D", "d")]


def test_it_has_the_definitions_themselves(run):
    """A stage, an action, a pipeline."""
    seen = []
    flow = pipeline(Stage("s", [asks(lambda ctx: seen.extend([ctx.pipeline, ctx.stage, ctx.action]))]), name="p")
    run(flow)
    assert seen == [flow, flow["s"], flow["s"]["asks"]]
    assert [type(thing) for thing in seen] == [Pipeline, Stage, Action]


def test_it_has_a_logger_with_run_stage_and_action(run, caplog):
    """The standard one, named `flowdeco.run`."""
    with caplog.at_level(logging.INFO, "flowdeco.run"):
        run(Stage("s", [asks(lambda ctx: ctx.logger.info("hello %s", "you"), "a")]), run_id="run-1")
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("flowdeco.run", "hello you")
    assert (record.run, record.stage, record.action) == ("run-1", "s", "a")


def test_it_has_a_repr(run):
    """It says where it is."""
    seen = []
    run(Stage("s", [asks(lambda ctx: seen.append(repr(ctx)), "a")]), run_id="run-1")
    assert seen == ["<Context of s/a in run run-1>"]


# -- its store (L4)


def test_the_action_sees_what_it_wrote(run):
    """And everybody else when it has completed."""

    def writes(ctx):
        ctx.store["k"] = 1
        ctx.store["given"] = 2
        ctx.store.append("xs", 1)
        ctx.store.append("xs", 2)
        del ctx.store["gone"]
        return {
            "own": (ctx.store["k"], ctx.store["given"], ctx.store["xs"], "gone" in ctx.store, len(ctx.store)),
            "keys": sorted(ctx.store),
        }

    finished = run(asks(writes), {"given": 1, "gone": 1, "xs": [0]})
    assert finished["asks"] == {"own": (1, 2, [0, 1, 2], False, 3), "keys": ["given", "k", "xs"]}
    assert {key: finished[key] for key in ("k", "given", "xs")} == {"k": 1, "given": 2, "xs": [0, 1, 2]}
    assert "gone" not in finished.store


def test_nobody_sees_it_before_the_action_completes(run):
    """Neither another branch nor middleware around the action."""
    seen = []

    def look(call):
        seen.append("k" in call.store)
        yield
        seen.append("k" in call.store)

    def middle(ctx):
        ctx.store["k"] = 1
        seen.append("written")

    run(Stage("s", [asks(middle, use=[look])]) >> asks(lambda ctx: seen.append(ctx.store["k"]), "after"))
    assert seen == [False, "written", False, 1]


def test_a_failing_action_leaves_no_trace(run):
    """Not even of appended items, removed keys, or in a list that came in."""

    def writes(ctx):
        ctx.store["k"] = 1
        ctx.store.append("xs", 1)
        ctx.store.append("new", 1)
        ctx.store.clear()
        raise ValueError

    given = {"xs": [0], "other": 1}
    finished = run(asks(writes, use=[swallow]), given)
    assert dict(finished.store) == {"xs": [0], "other": 1}
    assert given == {"xs": [0], "other": 1}


def test_each_attempt_begins_with_a_fresh_view(run):
    """What a failed attempt wrote is not there in the next one."""
    seen = []

    def writes(ctx):
        seen.append(sorted(ctx.store))
        ctx.store[f"attempt{len(seen)}"] = 1
        if len(seen) < 3:
            raise ValueError

    finished = run(asks(writes, use=[again(3)]))
    assert seen == [[], [], []]
    assert sorted(finished.store) == ["attempt3"]


def test_the_result_and_the_writes_take_effect_together(run):
    """The result last."""

    def writes(ctx):
        ctx.store["asks"] = "written"
        return "returned"

    assert run(asks(writes))["asks"] == "returned"


def test_typed_keys_are_checked_when_the_action_writes(run):
    """And when it reads."""
    key = Key("n", int)
    with pytest.raises(StoreTypeError, match="'n'.*int.*str"):
        run(asks(lambda ctx: ctx.store.update({key: "three"})))
    with pytest.raises(StoreTypeError, match="'n'.*int.*str"):
        run(asks(lambda ctx: ctx.store[key]), {"n": "three"})


# -- inserting


def test_insert_is_for_actions_that_also_return_data(run):
    """Units of every kind."""
    log = []
    units = [
        one(log, "S"),
        step(log, "a"),
        one(log, "P1") >> one(log, "P2"),
        parallel(one(log, "G")),
        stream([one(log, "T")]),
    ]

    def inserts(ctx):
        ctx.insert(*units)
        return "data"

    finished = run(Stage("s", [asks(inserts), step(log, "b")]))
    assert finished["asks"] == "data"
    assert log == ["b", "S", "a", "P1", "P2", "G", "T"]
    assert names(finished) == ["s", "S", "a", "P1", "P2", "G", "T"]


def test_an_inserted_pipeline_of_actions_runs_after_the_stage(run):
    """Each of them as a stage of its own."""
    log = []
    finished = run(Stage("s", [asks(lambda ctx: ctx.insert(step(log, "x") >> step(log, "y"))), step(log, "b")]))
    assert log == ["b", "x", "y"]
    assert names(finished) == ["s", "x", "y"]


@pytest.mark.parametrize("wrong", ["data", 3, None, [Stage("s")], len])
def test_only_units_can_be_inserted(run, wrong):
    """What is none is named at once."""
    with pytest.raises(ReturnValueError, match="'asks'"):
        run(asks(lambda ctx: ctx.insert(Stage("fine"), wrong)))


def test_a_template_must_be_called_to_be_inserted(run):
    """The message says so."""

    @flowdeco.stage
    def template(kind):
        @action
        def act():
            pass

    with pytest.raises(ReturnValueError, match=r"template\(\.\.\.\)"):
        run(asks(lambda ctx: ctx.insert(template)))


# -- what is pending


def test_pending_are_the_units_after_the_current_stage(run):
    """In order, through nested pipelines, with what the stage has inserted so far."""
    seen = []

    def look(ctx):
        seen.append([unit.name for unit in ctx.pending])

    inner = pipeline(Stage("s", [step([], "a", lambda: one([], "D")), asks(look)]), Stage("t"), name="inner")
    run(pipeline(Stage("first"), inner, parallel(Stage("x"), name="group"), asks(look, "last"), Stage("end")))
    assert seen == [["D", "t", "group", "last", "end"], ["end"]]


def test_pending_in_a_branch_is_what_is_left_of_the_branch_and_behind_the_group(run):
    """Other branches run beside it, not after it."""
    seen = []

    def look(ctx):
        seen.append([unit.name for unit in ctx.pending])

    run(pipeline(parallel(pipeline(asks(look), Stage("then")), Stage("other")), Stage("end")))
    assert seen == [["then", "end"]]


def test_a_stream_is_pending_as_one(run):
    """Nobody knows how much it will give; also when it has been begun."""
    seen = []

    def look(ctx):
        seen.append([unit.name for unit in ctx.pending])

    def source():
        yield Stage("s", [asks(look)])
        yield Stage("t")

    run(step([], "a", lambda: [stream(source), Stage("end")]))
    ((first, *rest),) = seen
    assert "source" in first
    assert rest == ["end"]


def test_pending_is_a_list_of_its_own(run):
    """Changing it changes nothing."""
    finished = run(asks(lambda ctx: ctx.pending.clear()) >> Stage("b"))
    assert names(finished) == ["asks", "b"]


def test_nothing_is_pending_at_the_end(run):
    """The list is empty."""
    assert run(asks(lambda ctx: {"pending": ctx.pending}))["asks"] == {"pending": []}


# -- switches


@pytest.mark.parametrize("act", ["disable", "enable"])
@pytest.mark.parametrize("wrong", ["", 3, None, ["a"]])
def test_selectors_are_non_empty_strings(run, act, wrong):
    """Others are refused at once."""
    with pytest.raises(DefinitionError, match=act):
        run(asks(lambda ctx: getattr(ctx, act)(wrong)))


def test_an_action_may_disable_the_rest_of_its_own_stage(run):
    """What has not run yet is skipped, and recorded."""
    log = []
    finished = run(
        Stage("s", [step(log, "a"), asks(lambda ctx: ctx.disable("s/b", "s/a")), step(log, "b"), step(log, "c")])
    )
    assert log == ["a", "c"]
    assert [a.status.value for a in finished.stages[0].actions] == ["completed", "completed", "skipped", "completed"]


def test_a_dynamic_action_can_be_disabled(run):
    """Also by the one that inserts it."""
    log = []

    def inserts(ctx):
        ctx.insert(step(log, "x", tags=["t"]))
        ctx.insert(one(log, "X"))
        ctx.disable("tag:t", "X")

    finished = run(Stage("s", [asks(inserts)]))
    assert log == []
    assert statuses(finished) == [("s", "completed"), ("X", "skipped")]


def test_switches_hold_for_this_run_only(run):
    """The definition is as it was."""
    log = []
    flow = asks(lambda ctx: ctx.disable("b") if "off" in ctx.store else None) >> one(log, "b")
    run(flow, {"off": True})
    assert log == []
    run(flow)
    assert log == ["b"]


def test_what_a_failing_action_switched_is_dropped(run):
    """As what it wrote."""
    log = []

    def off(ctx):
        ctx.disable("b")
        raise ValueError

    run(asks(off, use=[swallow]) >> one(log, "b"))
    assert log == ["b"]


# -- messages


def test_emit_sends_a_message_to_the_observers_at_once(run):
    """With its kind and payload, and where it came from."""
    events = []

    def emits(ctx):
        ctx.emit("row", number=3, text="three")
        ctx.emit("end")
        return len([event for event in events if isinstance(event, Message)])

    finished = run(Stage("s", [asks(emits, "a")]), observers=[events.append], run_id="run-1")
    assert finished["a"] == 2
    assert [event for event in events if isinstance(event, Message)] == [
        Message("run-1", "s", "a", "row", {"number": 3, "text": "three"}),
        Message("run-1", "s", "a", "end", {}),
    ]


def test_progress_tells_how_far_the_action_is(run):
    """Of how much is optional."""
    events = []

    def works(ctx):
        ctx.progress(1, 3)
        ctx.progress(0.5)

    run(Stage("s", [asks(works, "a")]), observers=[events.append], run_id="run-1")
    assert [event for event in events if isinstance(event, Progress)] == [
        Progress("run-1", "s", "a", 1, 3),
        Progress("run-1", "s", "a", 0.5, None),
    ]


def test_messages_without_observers_are_nothing(run):
    """Nobody listens."""

    def tells(ctx):
        ctx.emit("row")
        ctx.progress(1)

    assert run(asks(tells)).status == "completed"


def test_messages_of_a_failing_action_were_sent(run):
    """They are not undone."""
    events = []

    def tells(ctx):
        ctx.emit("row")
        ctx.insert(Stage("never"))
        raise ValueError

    run(asks(tells), observers=[events.append], check=False)
    assert [type(event) for event in events if isinstance(event, (Message, UnitsInserted))] == [Message]


# -- waiting for a value


def test_wait_for_returns_what_the_run_has(run):
    """By name, or by typed key."""
    flow = asks(lambda ctx: ctx.wait_for("approval"), "a") >> asks(lambda ctx: ctx.wait_for(Key("n", int)), "b")
    finished = run(flow, {"approval": True, "n": 3})
    assert (finished["a"], finished["b"]) == (True, 3)


@pytest.mark.parametrize("key", ["approval", Key("approval", bool)])
def test_wait_for_suspends_the_run_until_it_has_it(run, key):
    """The reason names the key; nothing the action did counts."""

    def waits(ctx):
        ctx.store["k"] = 1
        ctx.wait_for(key)

    finished = run(asks(waits) >> Stage("end"))
    assert finished.status == "suspended"
    assert "'approval'" in finished.reason
    assert (dict(finished.store), names(finished)) == ({}, ["asks"])


@pytest.mark.parametrize("signal", [Bail, Suspend])
def test_signals_have_a_reason(run, signal):
    """Or none."""

    def stops(reason):
        def act(ctx):
            raise signal(*reason)

        return asks(act)

    assert run(stops(["enough"])).reason == "enough"
    assert not run(stops([])).reason


def test_a_bail_in_a_coroutine_keeps_what_the_action_wrote(run):
    """As in any action."""

    @action
    async def stops(ctx: Context):
        ctx.store["k"] = 1
        await asyncio.sleep(0)
        raise Bail("enough")

    finished = run(stops)
    assert (finished.status, dict(finished.store)) == ("bailed", {"k": 1})


# -- detached, for another process


def test_a_context_travels_as_what_can_be_known_elsewhere(run):
    """Its place, its view of the store, and the names of what is pending; what it is told there can be brought home."""
    seen = []

    def travels(ctx):
        ctx.store["mine"] = 1
        detached = pickle.loads(pickle.dumps(ctx))
        seen.append((detached.run_id, detached.pipeline.name, detached.stage.name, detached.action.name))
        seen.append((dict(detached.store), [unit.name for unit in detached.pending]))
        detached.store["there"] = 2
        detached.store.append("xs", 1)
        detached.insert(Stage("inserted"))
        detached.disable("b")
        detached.emit("hello")
        ctx.catch_up(pickle.loads(pickle.dumps(detached.effects())))

    events = []
    flow = pipeline(
        Stage("s", [asks(travels, "a")], tags=["t"]), Stage("b"), parallel(Stage("c"), name="group"), name="p"
    )
    finished = run(flow, {"given": 0}, run_id="run-1", observers=[events.append])
    assert seen == [("run-1", "p", "s", "a"), ({"given": 0, "mine": 1}, ["b", "group"])]
    assert dict(finished.store) == {"given": 0, "mine": 1, "there": 2, "xs": [1]}
    assert statuses(finished) == [("s", "completed"), ("inserted", "completed"), ("b", "skipped"), ("c", "completed")]
    assert [event.kind for event in events if isinstance(event, Message)] == ["hello"]


@pytest.mark.parametrize("timeout", [None, 60])
def test_a_context_elsewhere_sleeps_for_as_long_as_its_stage_has_time(run, timeout):
    """By the clocks there."""
    slept = []

    def travels(ctx):
        detached = pickle.loads(pickle.dumps(ctx))
        detached.live_by(lambda: 2e9, slept.append, lambda: 5000.0)
        detached.sleep(59)
        if timeout is None:
            detached.sleep(61)
        else:
            with pytest.raises(OutOfTime, match="stage 's' took longer than its timeout of 60 s"):
                detached.sleep(61)

    run(Stage("s", [asks(travels)], timeout=timeout))
    assert slept == [59, pytest.approx(61 if timeout is None else 60, abs=1)]


def test_a_context_elsewhere_gives_the_same_advice_about_local_results(run):
    """Of its own stage, of one that has ended; and a name that is merely wrong."""

    def asked_of(store):
        told = []
        for name in ("size", "early", "giben"):
            with pytest.raises(KeyError) as raised:
                store[name]
            told.append(str(raised.value))
        return told

    def travels(ctx):
        detached = pickle.loads(pickle.dumps(ctx))
        assert "size" not in detached.store
        assert sorted(detached.store) == ["given"]
        assert detached.effects().delta == ctx.effects().delta
        here, there = asked_of(ctx.store), asked_of(detached.store)
        assert here == there
        assert ["local to this stage" in here[0], "was local to stage 'first'" in here[1], "'given'" in here[2]] == [
            True
        ] * 3

    size = action(name="size")(lambda: 1)
    first = Stage("first", [action(name="early")(lambda: 1)], local=True)
    assert run(first >> Stage("s", [size, asks(travels)], local=True), {"given": 0}).status == "completed"


def test_messages_brought_home_without_observers_are_nothing(run):
    """Nobody listens."""

    def travels(ctx):
        detached = pickle.loads(pickle.dumps(ctx))
        detached.emit("hello")
        ctx.catch_up(detached.effects())

    assert run(asks(travels)).status == "completed"


def test_failing_is_not_hidden_by_the_context(run):
    """The exception of the action arrives as it is."""
    error = ValueError("no")
    finished = run(failing([], "a", error), check=False)
    assert finished.error is error


def test_the_attempt_counts_the_calls_of_an_action_by_its_own_middleware(run):
    """As its record does: from 1, and anew within another attempt at its stage."""
    seen = []

    @action(use=[flowdeco.middleware.retry(on=ValueError, wait=0)])
    def tries(ctx: Context):
        seen.append(ctx.attempt)
        if len(seen) < 3:
            raise ValueError

    plain = asks(lambda ctx: seen.append(ctx.attempt), name="plain")
    assert run(pipeline(tries, plain)).stages[0].actions[0].attempts == 3
    assert seen == [1, 2, 3, 1]


def test_the_attempt_is_known_in_another_process(run):
    """It travels with the context."""
    seen = []

    def keep(ctx):
        context = pickle.loads(pickle.dumps(ctx))
        seen.append(context.attempt)
        if len(seen) < 2:
            raise ValueError

    run(asks(keep, use=[flowdeco.middleware.retry(on=ValueError, wait=0)]))
    assert seen == [1, 2]


@pytest.mark.parametrize("kind", [3, None, {"rows": 1}])
def test_the_kind_of_a_message_is_a_string(run, kind):
    """The error says how to emit values."""
    error = run(action(name="e")(lambda ctx: ctx.emit(kind)), check=False).error
    assert isinstance(error, DefinitionError)
    assert f'as in ctx.emit("loaded", rows=3), not {kind!r}' in str(error)
