"""The law of order: what runs next, in which order, and what becomes of failures, skips, streams and branches."""

import gc
import logging
import operator
from collections.abc import Iterator
from contextlib import suppress
from itertools import count, pairwise

import pytest
from scripted import evaluation, perform, performed
from support import (
    action_record,
    actions_run,
    again,
    around,
    async_around,
    completed,
    failing,
    flaky,
    names,
    one,
    provide,
    shown,
    stage_record,
    statuses,
    step,
    swallow,
    text_of,
)

from flowdeco import Bail, Context, Run, Sleep, Stage, Suspend, action, parallel, pipeline, stage, stream
from flowdeco.engine.evaluation import evaluate
from flowdeco.engine.requests import Await, Fork, Raised
from flowdeco.engine.schedule import Schedule
from flowdeco.errors import MissingInputError, ReturnValueError, StoreTypeError, WriteConflictError
from flowdeco.events import ActionFinished
from flowdeco.middleware import retry

# -- the generator, called directly: it yields what is to be done, and performs nothing


def test_a_call_is_requested_and_not_performed():
    """What is yielded is the step with its arguments; the function has not been called."""
    log = []
    run, walk = evaluation(step(log, "a"))
    requested, args, kwargs = next(walk)
    assert (requested.name, tuple(args), kwargs) == ("a", (), None)
    assert log == []
    assert run.status == "running"


def test_the_answer_to_a_call_is_what_the_action_returned():
    """What is sent in is stored, without anything having been called."""
    log = []
    run, walk = evaluation(step(log, "a"))
    next(walk)
    with pytest.raises(StopIteration):
        walk.send(42)
    assert (run["a"], run.result, run.status, log) == (42, 42, "completed", [])


def test_an_exception_is_answered_as_a_value():
    """`Raised` is the failure of the action; the generator itself raises nothing."""
    run, walk = evaluation(step([], "a"))
    next(walk)
    with pytest.raises(StopIteration):
        walk.send(Raised(ValueError("no")))
    assert (run.status, str(run.error)) == ("failed", "no")


@pytest.mark.parametrize("error", [StopIteration(1), GeneratorExit(), StopAsyncIteration()], ids=shown)
def test_exceptions_that_mean_something_to_generators_are_failures_like_others(error):
    """A user's StopIteration or GeneratorExit does not end the evaluation, nor its middleware."""
    log = []
    run, walk = evaluation(Stage("s", [step([], "a")], use=[around(log, "m")]))
    next(walk)
    with pytest.raises(StopIteration):
        walk.send(Raised(error))
    assert run.error is error
    assert (run.status, log) == ("failed", ["+m", "-m"])
    assert stage_record(run, "s").error is error


def test_the_arguments_are_in_the_request():
    """They are read from the store when the call is requested."""

    @action
    def total(a, /, b, *, c):
        return a + b + c

    run, walk = evaluation(total, {"a": 1, "b": 2, "c": 3})
    requests = []
    perform(walk, requests)
    _, args, kwargs = requests[0]
    assert (list(args), kwargs) == ([1, 2], {"c": 3})
    assert run["total"] == 6


def test_waiting_and_awaiting_are_requests_too():
    """`Sleep` and `Await` are yielded to the driver; the answer goes on."""

    async def coroutine():
        pass

    pending = coroutine()

    def patient(call):
        yield Sleep(0.5)
        yield

    run, walk = evaluation(Stage("s", [step([], "a", lambda: pending)], use=[patient]))
    slept = next(walk)
    called = walk.send(None)
    awaited = walk.send(pending)
    with pytest.raises(StopIteration):
        walk.send("awaited")
    pending.close()
    assert slept == Sleep(0.5)
    assert called[0].name == "a"
    assert isinstance(awaited, Await)
    assert awaited.awaitable is pending
    assert run["a"] == "awaited"


def test_times_come_from_the_clock_that_is_handed_in():
    """`started` is in POSIX seconds, `elapsed` in the seconds of the clock."""
    run, walk = evaluation(step([], "a"))
    perform(walk)
    record = run.stages[0]
    assert run.started == 1001.0
    assert record.started > run.started
    assert record.actions[0].started > record.started
    assert 0 < record.actions[0].elapsed < record.elapsed < run.elapsed


def test_an_interrupt_inside_the_evaluation_is_a_cancellation():
    """Ctrl-C that arrives as an answer unwinds middleware, and is recorded."""
    log = []
    run, walk = evaluation(Stage("s", [step([], "a", use=[around(log, "inner")])], use=[around(log, "outer")]))
    next(walk)
    with pytest.raises(StopIteration):
        walk.send(Raised(KeyboardInterrupt()))
    assert run.status == "cancelled"
    assert log == ["+outer", "+inner", "-inner", "-outer"]
    assert statuses(run) == [("s", "cancelled")]


@pytest.mark.parametrize(
    "unit",
    [Stage("s", [step([], "a")]), parallel(step([], "a"), step([], "b")), parallel(one([], "a") >> one([], "b"))],
    ids=shown,
)
def test_a_walk_that_is_thrown_away_asks_for_nothing_more(unit):
    """Closing the generator is not a failure of the run, nor of a branch."""
    run, walk = evaluation(unit)
    next(walk)
    walk.close()
    del walk
    gc.collect()
    assert (run.error, list(run.stages)) == (None, [])


def test_a_walk_that_is_thrown_away_within_a_stage_closes_its_middleware():
    """As any generator that is thrown away: the layer does not see a failure of the stage."""
    log = []

    def layer(call):
        try:
            yield
        except Exception:
            log.append("failure")
        finally:
            log.append("closed")

    run, walk = evaluation(Stage("s", [step([], "a")], use=[layer]))
    next(walk)
    walk.close()
    del walk
    gc.collect()
    assert (log, run.error, list(run.stages)) == (["closed"], None, [])


def test_an_interrupt_while_an_observer_listens_unwinds_middleware():
    """Ctrl-C that arrives behind an action: the action has completed, what is around it is cancelled."""
    log = []

    def listening(event):
        if isinstance(event, ActionFinished):
            raise KeyboardInterrupt

    flow = pipeline(
        Stage("s", [step(log, "a"), step(log, "b")], use=[around(log, "inner")]), use=[around(log, "outer")]
    )
    with pytest.raises(KeyboardInterrupt) as caught:
        flow.run(observers=[listening])
    run = Run.of(caught.value)
    assert log == ["+outer", "+inner", "a", "-inner", "-outer"]
    assert (run.status, statuses(run), actions_run(run)) == ("cancelled", [("s", "cancelled")], ["s/a"])


def test_a_walk_can_be_thrown_away_while_middleware_of_the_run_is_entered():
    """Nothing has begun yet."""

    def patient(call):
        yield Sleep(1)
        yield

    run, walk = evaluation(Stage("s"), use=(patient,))
    assert next(walk) == Sleep(1)
    walk.close()
    assert (run.error, list(run.stages)) == (None, [])


def test_an_interrupt_in_place_of_any_answer_unwinds_what_has_been_entered_and_begins_nothing_more():
    """Of an action, of a pause of a layer, of a group; in branches it is what a driver tells the schedule."""
    log = []

    def patient(call):
        with suppress(ValueError):
            yield Sleep(1)
            yield

    inner = Stage("inner", [step(log, "a", use=[around(log, "action")]), step(log, "b")], use=[around(log, "stage")])
    group = parallel(step(log, "leaf"), one(log, "branch") >> one(log, "end"), one(log, "last", data={"k": 1}), limit=1)
    flow = pipeline(pipeline(inner, group, name="p", use=[around(log, "pipeline"), patient]), one(log, "after"))
    left = []
    for number in count():
        log.clear()
        run, walk = evaluation(flow)
        if not interrupted(walk, number):
            break
        assert isinstance(run.error, KeyboardInterrupt)
        assert run.status == "cancelled"
        entered = [name[1:] for name in log if name[0] == "+"]
        assert sorted(entered) == sorted(name[1:] for name in log if name[0] == "-")
        left.append([name for name in log if name[0] not in "+-"])
    assert left[0] == []
    assert left[-1] == ["a", "b", "leaf", "branch", "end", "last"]
    assert all(before == after[: len(before)] for before, after in pairwise(left))


def interrupted(walk, number):
    """Drive a walk with Ctrl-C for its n-th answer; return whether there are so many."""
    answers = count()
    answer = None
    came = False
    while True:
        try:
            request = walk.send(answer)
        except StopIteration:
            return came
        if not isinstance(request, Fork):
            here = next(answers) == number
            came = came or here
            answer = Raised(KeyboardInterrupt()) if here else performed(request)
            continue
        schedule = Schedule(request, count(1), evaluate)
        while schedule.ended is None:
            if next(answers) == number:
                came = True
                schedule.interrupt(KeyboardInterrupt())
            if schedule.ended is None:
                task = schedule.begin.pop(0)
                schedule.deliver(task.ticket, performed(task.request))
        answer = schedule.ended


def test_an_interrupt_inside_the_evaluation_unwinds_async_middleware_too():
    """Each layer is asked to close."""
    log = []
    run, walk = evaluation(Stage("s", [step([], "a", use=[async_around(log, "m"), around(log, "n")])]))

    def awaited(request):
        try:
            request.awaitable.__await__().send(None)
        except StopIteration as end:
            return end.value
        except BaseException as error:
            return Raised(error)

    entered = next(walk)
    called = walk.send(awaited(entered))
    assert called[0].name == "a"
    left = walk.send(Raised(KeyboardInterrupt()))
    with pytest.raises(StopIteration):
        walk.send(awaited(left))
    assert log == ["+m", "+n", "-n", "-m"]
    assert run.status == "cancelled"


# -- order (L6)


def test_static_stages_run_in_the_order_in_which_they_stand(run):
    """Each once."""
    log = []
    finished = run(one(log, "a") >> one(log, "b") >> one(log, "c"))
    assert log == names(finished) == ["a", "b", "c"]
    assert finished.status == "completed"


def test_inserted_stages_run_right_after_the_stage(run):
    """A inserts D1, D2: A D1 D2 B C."""
    log = []
    first = one(log, "A", lambda: [one(log, "D1"), one(log, "D2")])
    assert names(run(first >> one(log, "B") >> one(log, "C"))) == ["A", "D1", "D2", "B", "C"]


def test_what_an_inserted_stage_inserts_runs_before_its_next_sibling(run):
    """Depth first: A D1 E1 F D2 E2 B."""
    log = []
    e1 = one(log, "E1", lambda: one(log, "F"))
    d1 = one(log, "D1", lambda: e1)
    d2 = one(log, "D2", lambda: one(log, "E2"))
    assert names(run(one(log, "A", lambda: [d1, d2]) >> one(log, "B"))) == ["A", "D1", "E1", "F", "D2", "E2", "B"]


def test_stages_are_inserted_in_the_order_of_the_actions(run):
    """All of them after the whole stage."""
    log = []
    several = Stage("s", [step(log, "a", one(log, "da")), step(log, "b"), step(log, "c", [one(log, "dc")])])
    run(several >> one(log, "end"))
    assert log == ["a", "b", "c", "da", "dc", "end"]


def test_inserted_actions_run_right_after_the_action(run):
    """In the same stage, and depth first as well."""
    log = []
    deep = step(log, "deep")
    middle = step(log, "middle", lambda: deep)
    first = step(log, "first", lambda: [middle, step(log, "sibling")])
    finished = run(Stage("s", [first, step(log, "last")]))
    assert log == ["first", "middle", "deep", "sibling", "last"]
    assert names(finished) == ["s"]
    assert [a.inserted_by for a in finished.stages[0].actions] == [None, "s/first", "s/middle", "s/first", None]


def test_actions_and_stages_of_one_list_keep_their_order(run):
    """After the stage: each action is a stage of its own."""
    log = []
    mixed = step(log, "mixed", lambda: [one(log, "S1"), step(log, "x"), one(log, "S2"), step(log, "y")])
    run(Stage("s", [mixed, step(log, "z")]) >> one(log, "end"))
    assert log == ["mixed", "z", "S1", "x", "S2", "y", "end"]


def test_what_an_inserted_action_inserts_keeps_the_order_of_the_actions(run):
    """The stages of a dynamic action come after those of the action that inserted it."""
    log = []
    dynamic = step(log, "dynamic", lambda: one(log, "D2"))

    @action
    def static(ctx: Context):
        log.append("static")
        ctx.insert(dynamic)
        return one(log, "D1")

    run(Stage("s", [static, step(log, "other", lambda: one(log, "D3"))]))
    assert log == ["static", "dynamic", "other", "D1", "D2", "D3"]


def test_what_ctx_inserts_comes_before_what_is_returned(run):
    """`ctx.insert` first, then the returned ones."""
    log = []

    @action
    def both(ctx: Context):
        ctx.insert(one(log, "inserted"), step(log, "inserted action"))
        ctx.insert(one(log, "inserted too"))
        return [one(log, "returned"), step(log, "returned action")]

    run(both >> one(log, "end"))
    assert log == ["inserted", "inserted action", "inserted too", "returned", "returned action", "end"]


def test_an_inserted_pipeline_runs_its_units_in_order(run):
    """With what they insert in between."""
    log = []
    flow = one(log, "p1", lambda: one(log, "d")) >> one(log, "p2")
    run(one(log, "a", lambda: [flow, one(log, "x")]) >> one(log, "b"))
    assert log == ["a", "p1", "d", "p2", "x", "b"]


def test_an_inserted_pipeline_with_options_keeps_them(run):
    """Its middleware stands around its units, and around what they insert."""
    log = []
    flow = pipeline(one(log, "p1", lambda: one(log, "d")), name="inner", use=[around(log, "m")])
    run(one(log, "a", lambda: flow) >> one(log, "b"))
    assert log == ["a", "+m", "p1", "d", "-m", "b"]


def test_units_inserted_by_the_last_stage_run(run):
    """Nothing inserted is lost at the end of a nested pipeline, a group or the run."""
    log = []
    inner = pipeline(one(log, "x", lambda: one(log, "dx")), name="inner")
    group = parallel(one(log, "y", lambda: one(log, "dy")), one(log, "z"))
    finished = run(inner >> group >> one(log, "last", lambda: one(log, "d")))
    assert names(finished) == ["x", "dx", "y", "dy", "z", "last", "d"]


def test_one_stage_inserted_twice_runs_twice(run):
    """Each insertion counts."""
    log = []
    shared = one(log, "shared")
    run(one(log, "a", lambda: [shared, shared]))
    assert log == ["a", "shared", "shared"]


def test_a_stage_that_returns_itself_is_a_loop(run):
    """Until it returns something else."""
    rounds = []

    @action
    def count():
        rounds.append(len(rounds))
        return again if len(rounds) < 5 else "done"

    again = Stage("again", [count])
    finished = run(again >> step(rounds, "after"))
    assert rounds == [0, 1, 2, 3, 4, "after"]
    assert names(finished) == ["again"] * 5 + ["after"]
    assert finished["count"] == "done"


def test_an_action_that_returns_itself_is_a_loop_within_its_stage(run):
    """The action of the next round is inserted by the one before it."""
    rounds = []

    @action
    def count():
        rounds.append(1)
        return count if len(rounds) < 4 else None

    finished = run(Stage("s", [count]))
    assert len(finished.stages[0].actions) == len(rounds) == 4


def test_a_pipeline_that_returns_itself_is_a_loop(run):
    """Also where it has options, and is opened anew each time."""
    rounds = []

    def count():
        rounds.append(1)
        return flow if len(rounds) < 4 else None

    flow = pipeline(Stage("s", [count]), name="loop")
    assert names(run(flow)) == ["s"] * 4


# -- inserted_by


def test_records_say_who_inserted_what(run):
    """None for what was there from the start, else `stage/action`."""
    log = []
    dynamic = Stage("D", [step(log, "d", lambda: one(log, "E"))])
    finished = run(
        Stage("A", [step(log, "a", lambda: [dynamic, step(log, "b", lambda: one(log, "F"))])]) >> one(log, "B")
    )
    assert [(r.name, r.inserted_by) for r in finished.stages] == [
        ("A", None),
        ("D", "A/a"),
        ("E", "D/d"),
        ("b", "A/a"),
        ("F", "b/b"),
        ("B", None),
    ]


def test_units_of_an_inserted_pipeline_group_or_stream_name_who_inserted_it(run):
    """However they came in."""
    log = []
    units = [
        one(log, "w") >> one(log, "x"),
        pipeline(one(log, "y"), name="inner"),
        parallel(one(log, "z")),
        stream([one(log, "s")]),
    ]
    finished = run(one(log, "a", lambda: units))
    assert {r.name: r.inserted_by for r in finished.stages} == {"a": None} | dict.fromkeys("wxyzs", "a/a")


# -- stage data (L5)


def test_stage_data_is_merged_for_this_and_all_following_stages(run):
    """Nowhere before; overwriting from then on."""
    seen = []

    @action(returns=None)
    def look(ctx: Context):
        seen.append(ctx.store.get("k"))

    run(look >> Stage("s", [look], data={"k": 1}) >> look >> Stage("t", [look], data={"k": 2}) >> look, {"k": 0})
    assert seen == [0, 1, 1, 2, 2]


def test_stage_data_is_copied_at_each_merge(run):
    """What a run does to it reaches neither the definition nor the next round of a loop."""
    seen = []

    @action
    def grow(xs):
        xs.append(len(seen))
        seen.append(list(xs))
        return loop if len(seen) < 3 else None

    loop = Stage("loop", [grow], data={"xs": []})
    run(loop)
    assert seen == [[0], [1], [2]]
    assert loop.data == {"xs": []}


def test_stage_data_that_can_be_copied_only_once_fails_its_stage(run):
    """The copy at the merge is user code: its failure is the stage's, with a record."""

    class Once:
        copies = 0

        def __deepcopy__(self, memo):
            Once.copies += 1
            if Once.copies > 1:
                raise ValueError("enough")
            return self

    finished = run(Stage("s", [step([], "a")], data={"k": Once()}), check=False)
    assert finished.status == "failed"
    assert statuses(finished) == [("s", "failed")]


# -- writes (L4)


def test_writes_take_effect_when_the_action_completes(run):
    """A failing action leaves no trace: not its writes, not its insertions, not its switches."""
    log = []

    @action
    def writes(ctx: Context):
        ctx.store["k"] = 1
        ctx.store.append("xs", 1)
        del ctx.store["given"]
        ctx.insert(one(log, "inserted"))
        ctx.disable("b")
        raise ValueError

    finished = run(Stage("s", [writes], use=[swallow]) >> one(log, "b"), {"given": 1})
    assert dict(finished.store) == {"given": 1}
    assert log == ["b"]


def test_a_result_that_cannot_be_stored_drops_the_writes_of_the_action_too(run):
    """All of what an action does takes effect, or nothing."""

    @action(returns=("a", "b"))
    def wrong(ctx: Context):
        ctx.store["k"] = 1
        ctx.insert(Stage("inserted"))
        return 1, 2, 3

    finished = run(wrong, check=False)
    assert isinstance(finished.error, ReturnValueError)
    assert (dict(finished.store), names(finished)) == ({}, ["wrong"])


def test_collecting_into_what_is_no_list_fails_the_action(run):
    """The message names the key."""
    with pytest.raises(StoreTypeError, match="'xs'.*int"):
        run(step([], "a", 1, collect="xs"), {"xs": 3})


# -- failure


def test_the_first_exception_stops_the_run(run):
    """What comes later, and what was inserted but not run, is not run."""
    log = []
    error = ValueError("boom")
    broken = Stage(
        "broken", [step(log, "a", lambda: one(log, "inserted")), failing(log, "boom", error), step(log, "c")]
    )
    with pytest.raises(ValueError, match="boom") as caught:
        run(one(log, "before") >> broken >> one(log, "after"))
    finished = Run.of(caught.value)
    assert caught.value is error
    assert log == ["before", "a", "boom"]
    assert statuses(finished) == [("before", "completed"), ("broken", "failed")]
    assert [(a.name, a.status.value) for a in finished.stages[1].actions] == [("a", "completed"), ("boom", "failed")]
    assert stage_record(finished, "broken").error is action_record(finished, "broken", "boom").error is error


def test_the_note_says_where_it_failed(run):
    """Action, stage, pipeline and run, once."""
    flow = pipeline(pipeline(Stage("s", [failing([], "a", ValueError("no"))]), name="inner"), name="outer")
    finished = run(flow, check=False, run_id="run-17")
    assert len(finished.error.__notes__) == 1
    for name in ("'a'", "'s'", "'inner'", "'run-17'"):
        assert name in finished.error.__notes__[0]


def test_a_failed_run_comes_back_when_it_is_not_checked(run):
    """Status and error are in the run."""
    error = ValueError("no")
    finished = run(failing([], "a", error), check=False)
    assert (finished.status, finished.error) == ("failed", error)


def test_a_recovered_stage_still_inserts_what_its_completed_actions_returned(run):
    """Its record stays failed, and says that it was recovered."""
    log = []
    broken = Stage(
        "s", [step(log, "a", lambda: one(log, "D")), failing(log, "boom", ValueError()), step(log, "c")], use=[swallow]
    )
    finished = run(broken >> one(log, "end"))
    assert log == ["a", "boom", "D", "end"]
    assert statuses(finished) == [("s", "failed"), ("D", "completed"), ("end", "completed")]
    assert stage_record(finished, "s").recovered
    assert isinstance(stage_record(finished, "s").error, ValueError)
    assert finished.status == "completed"


def test_what_stages_inserted_before_a_recovered_failure_of_their_pipeline_has_run(run):
    """The rest of that pipeline is not run, the outer one goes on."""
    log = []
    inner = pipeline(
        one(log, "a", lambda: one(log, "D")), failing(log, "boom", ValueError()), one(log, "c"), use=[swallow]
    )
    finished = run(inner >> one(log, "end"))
    assert log == ["a", "D", "boom", "end"]
    assert finished.status == "completed"


# -- bail and suspend


def test_bail_ends_the_run_successfully(run):
    """No exception, its reason, the action's writes take effect, nothing more runs."""
    log = []

    @action
    def enough(ctx: Context):
        ctx.store["k"] = 1
        ctx.store.append("xs", 2)
        raise Bail("enough")

    finished = run(Stage("s", [enough, step(log, "b")], use=[around(log, "m")]) >> one(log, "c"))
    assert (finished.status, finished.reason, finished.error) == ("bailed", "enough", None)
    assert dict(finished.store) == {"k": 1, "xs": [2]}
    assert log == ["+m", "-m"]
    assert statuses(finished) == [("s", "bailed")]
    assert action_record(finished, "s", "enough").status == "bailed"


def test_suspend_drops_what_the_action_did(run):
    """Its writes and insertions; the run is suspended and says why."""
    log = []

    @action
    def wait(ctx: Context):
        ctx.store["k"] = 1
        ctx.insert(one(log, "inserted"))
        raise Suspend("waiting")

    finished = run(one(log, "a") >> Stage("s", [wait], use=[around(log, "m")]) >> one(log, "b"))
    assert (finished.status, finished.reason, finished.error) == ("suspended", "waiting", None)
    assert dict(finished.store) == {}
    assert log == ["a", "+m", "-m"]
    assert statuses(finished) == [("a", "completed"), ("s", "suspended")]


@pytest.mark.parametrize("signal", [Bail, Suspend])
def test_no_except_exception_swallows_a_signal(run, signal):
    """Neither in an action nor in middleware that retries or recovers."""
    log = []

    @action
    def stop():
        log.append("called")
        try:
            raise signal("stop")
        except Exception:
            log.append("swallowed")

    finished = run(Stage("s", [stop], use=[again(3), swallow]))
    assert log == ["called"]
    assert finished.status == {Bail: "bailed", Suspend: "suspended"}[signal]


def test_middleware_may_bail(run):
    """Before its inside, for example."""

    def guard(call):
        raise Bail("closed")
        yield

    log = []
    finished = run(Stage("s", [step(log, "a")], use=[guard]) >> one(log, "b"))
    assert (finished.status, finished.reason, log) == ("bailed", "closed", [])


# -- skip, disable, enable


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("a", ["b", "c", "d1", "d2"]),
        ("s/b", ["a", "c", "d1", "d2"]),
        ("tag:slow", ["a", "c", "d2"]),
        ("dynamic", ["a", "b", "c"]),
        ("dynamic[1]", ["a", "b", "c", "d2"]),
        ("dynamic/act", ["a", "b", "c"]),
        ("dynamic[2]/act", ["a", "b", "c", "d1"]),
    ],
)
def test_skip_leaves_out_what_a_selector_names(run, selector, expected):
    """A stage, an action, a tag of either, a template, one of its stages; static and dynamic alike."""
    log = []

    @stage
    def dynamic(number):
        @action
        def act():
            log.append(f"d{number}")

    made = [dynamic(1).with_options(tags=["slow"]), dynamic(2)]
    flow = one(log, "a") >> Stage("s", [step(log, "b", tags=["slow"]), step(log, "c", lambda: made)])
    run(flow, skip=[selector])
    assert log == expected


def test_selectors_are_compared_as_whole_strings(run, caplog):
    """Neither a part nor a pattern selects anything; it is logged as a warning."""
    log = []
    with caplog.at_level(logging.WARNING, "flowdeco.run"):
        run(one(log, "load") >> one(log, "save", tags=["slow"]), skip=["loa", "load*", "tag:slo", "slow", "load/"])
    assert log == ["load", "save"]
    (record,) = caplog.records
    for selector in ("loa", "load*", "tag:slo", "slow", "load/"):
        assert repr(selector) in record.getMessage()


def test_a_selector_that_matched_is_no_warning(run, caplog):
    """Also where it matched only what was skipped for another reason, or in a nested pipeline."""
    inner = pipeline(Stage("x", [step([], "y", tags=["t"])]), name="inner")
    flow = pipeline(pipeline(inner, name="outer"), Stage("a"), Stage("b"))
    with caplog.at_level(logging.WARNING, "flowdeco.run"):
        run(flow, skip=["outer", "inner", "x", "x/y", "tag:t", "a"])
    assert caplog.records == []


def test_a_bare_string_is_no_collection_of_selectors(run):
    """`skip="load"` would be four selectors."""
    with pytest.raises(TypeError, match=r"skip=\['load'\]"):
        run(Stage("load"), skip="load")


def test_what_is_skipped_runs_no_middleware_and_merges_no_data(run):
    """Neither its own nor that of the pipeline around stages and actions."""
    log = []
    skipped = Stage("s", [step(log, "a")], data={"k": 1}, use=[around(log, "s")])
    partly = Stage("t", [step(log, "b", use=[around(log, "b")])], data={"l": 1})
    flow = pipeline(skipped, partly, use_stages=[around(log, "stages")], use_actions=[around(log, "actions")])
    finished = run(flow, skip=["s", "t/b"])
    assert log == ["+stages", "-stages"]
    assert dict(finished.store) == {"l": 1}
    assert statuses(finished) == [("s", "skipped"), ("t", "completed")]
    assert action_record(finished, "t", "b").status == "skipped"


def test_what_was_skipped_has_a_record_and_what_was_never_reached_has_none(run):
    """Of stages and of actions."""
    flow = Stage("a") >> Stage("s", [step([], "x"), failing([], "boom", ValueError()), step([], "y")]) >> Stage("b")
    finished = run(flow, skip=["a", "s/x"], check=False)
    assert statuses(finished) == [("a", "skipped"), ("s", "failed")]
    assert [(a.name, a.status.value) for a in finished.stages[1].actions] == [("x", "skipped"), ("boom", "failed")]


def test_a_tag_of_a_pipeline_or_group_selects_all_that_is_in_it(run):
    """Each stage in it has a record."""
    log = []
    flow = pipeline(one(log, "a"), one(log, "b"), tags=["t"]) >> parallel(one(log, "c"), one(log, "d"), tags=["t"])
    finished = run(flow >> one(log, "e"), skip=["tag:t"])
    assert log == ["e"]
    assert statuses(finished) == [*((name, "skipped") for name in "abcd"), ("e", "completed")]


def test_a_stage_named_like_an_anonymous_pipeline_is_a_stage(run):
    """The default names of pipelines and groups select nothing."""
    log = []
    flow = pipeline(one(log, "pipeline"), parallel(one(log, "parallel"), one(log, "x")), one(log, "b"))
    run(flow, skip=["pipeline", "parallel"])
    assert log == ["x", "b"]


def switch(name, act, returned=None):
    """An action that asks for the context, and does something with it."""

    @action(name=name)
    def body(ctx: Context):
        act(ctx)
        return returned

    return body


def test_disable_is_of_what_has_not_run_yet(run):
    """Stages, actions, tags, templates; in this run only."""
    log = []
    flow = (
        one(log, "a")
        >> Stage(
            "s", [switch("off", lambda ctx: ctx.disable("a", "s/x", "tag:t", "b")), step(log, "x"), step(log, "y")]
        )
        >> one(log, "b")
        >> Stage("c", [step(log, "z", tags=["t"])])
        >> one(log, "d", tags=["t"])
    )
    finished = run(flow)
    assert log == ["a", "y"]
    assert statuses(finished) == [
        (n, s) for n, s in zip("asbcd", ["completed"] * 2 + ["skipped", "completed", "skipped"])
    ]
    log.clear()
    run(pipeline(*flow.units[2:]))
    assert log == ["b", "z", "d"]


def test_disable_reaches_dynamic_units(run):
    """Those inserted later, too."""
    log = []
    flow = switch("off", lambda ctx: ctx.disable("D")) >> one(log, "a", lambda: [one(log, "D"), one(log, "E")])
    run(flow)
    assert log == ["a", "E"]


def test_enable_undoes_disable_and_the_latest_word_counts(run):
    """Whichever selector it was said with."""
    log = []
    flow = (
        switch("off", lambda ctx: ctx.disable("b", "tag:t"))
        >> switch("on", lambda ctx: ctx.enable("b", "c"))
        >> one(log, "b")
        >> one(log, "c", tags=["t"])
        >> one(log, "d", tags=["t"])
    )
    run(flow)
    assert log == ["b", "c"]


def test_enable_does_not_undo_what_the_caller_skips(run):
    """`skip` is the caller's word."""
    log = []
    run(switch("on", lambda ctx: ctx.enable("b", "b/b")) >> one(log, "b"), skip=["b"])
    assert log == []


def test_what_a_retry_drops_includes_what_was_disabled(run):
    """A failed attempt leaves no trace in what comes later."""
    log = []
    off = switch("off", lambda ctx: ctx.disable("b") if "f" not in log else None)
    run(Stage("s", [off, flaky(log, "f", 1)], use=[again(2)]) >> one(log, "b"))
    assert log == ["f", "f", "b"]


# -- streams


def test_streamed_units_are_pulled_one_at_a_time(run):
    """Each when the one before it, with all it inserted, is over."""
    log = []

    def source():
        for name in "xy":
            log.append(f"pull {name}")
            yield one(log, name, lambda name=name: one(log, f"{name} inserted"))
        log.append("exhausted")

    run(one(log, "a", lambda: stream(source())) >> one(log, "b"))
    assert log == ["a", "pull x", "x", "x inserted", "pull y", "y", "y inserted", "exhausted", "b"]


def test_a_stream_may_be_a_function_with_its_arguments(run):
    """It is called when its turn comes."""
    log = []

    def source(*found):
        log.append("begun")
        return [one(log, name) for name in found]

    run(one(log, "a", lambda: [one(log, "first"), stream(source, "x", "y")]))
    assert log == ["a", "first", "begun", "x", "y"]


async def async_source(log, *found):
    """Stages from an async generator, which notes when it is closed."""
    try:
        for name in found:
            yield one(log, name)
    finally:
        log.append("closed")


def test_async_iterables_can_be_streamed(run):
    """An async generator, and a function that gives one."""
    log = []
    run(one(log, "a", lambda: [stream(async_source(log, "x")), stream(async_source, log, "y")]))
    assert log == ["a", "x", "closed", "y", "closed"]


def test_a_coroutine_function_may_give_a_stream(run):
    """It is awaited for its iterable."""
    log = []

    async def source():
        return [one(log, "x")]

    run(one(log, "a", lambda: stream(source)))
    assert log == ["a", "x"]


def test_streams_nest_and_mix_with_other_units(run):
    """A stream may give pipelines, groups, actions and further streams."""
    log = []
    inner = stream([one(log, "i1"), one(log, "i2")])
    outer = stream([inner, one(log, "p1") >> one(log, "p2"), parallel(one(log, "g")), step(log, "bare")])
    finished = run(one(log, "a", lambda: [outer, one(log, "z")]))
    assert log == ["a", "i1", "i2", "p1", "p2", "g", "bare", "z"]
    assert names(finished)[-2:] == ["bare", "z"]


def test_a_stream_given_to_ctx_insert_runs_like_a_returned_one(run):
    """Ahead of what is returned."""
    log = []

    @action
    def both(ctx: Context):
        ctx.insert(stream([one(log, "x")]))
        return one(log, "y")

    run(both)
    assert log == ["x", "y"]


@pytest.mark.parametrize(
    "error", [ValueError("no"), Bail("enough"), Suspend("wait")], ids=["failure", "bail", "suspension"]
)
def test_a_stream_is_closed_when_the_run_ends_early(run, error):
    """Sync and async ones; a stream whose turn has not come is not begun."""
    log = []

    def source():
        try:
            yield failing(log, "x", error)
            yield one(log, "never")
        finally:
            log.append("closed")

    def late():
        log.append("begun")
        return []

    async def nested():
        try:
            yield stream(source)
        finally:
            log.append("async closed")

    run(one(log, "a", lambda: [stream(nested), stream(late)]), check=False)
    assert log == ["a", "x", "closed", "async closed"]


def test_a_stream_of_a_plain_iterable_needs_no_closing(run):
    """What is left of a list is left."""
    log = []
    finished = run(one(log, "a", lambda: stream([failing(log, "x", ValueError("no")), one(log, "never")])), check=False)
    assert (str(finished.error), log) == ("no", ["a", "x"])


def test_a_stream_that_fails_fails_the_run_and_says_who_inserted_it(run):
    """The original exception, with a note."""
    log = []

    def source():
        yield one(log, "x")
        raise ValueError("dry")

    with pytest.raises(ValueError, match="dry") as caught:
        run(one(log, "a", lambda: stream(source())) >> one(log, "b"))
    assert log == ["a", "x"]
    assert "a/a" in text_of(caught.value)


def test_an_async_stream_that_fails_fails_the_run(run):
    """As a sync one does."""
    log = []

    async def source():
        yield one(log, "x")
        raise ValueError("dry")

    finished = run(one(log, "a", lambda: stream(source)), check=False)
    assert (str(finished.error), log) == ("dry", ["a", "x"])


@pytest.mark.parametrize("fails", [lambda: 1 / 0, lambda: 3], ids=["raises", "returns no iterable"])
def test_a_stream_function_that_gives_no_iterable_fails_the_run(run, fails):
    """With its own exception, or one that names what it returned."""
    finished = run(one([], "a", lambda: stream(fails)), check=False)
    assert type(finished.error) in (ZeroDivisionError, ReturnValueError)
    assert "a/a" in text_of(finished.error)


def test_a_stream_that_gives_no_unit_fails_the_run_and_is_closed(run):
    """`ReturnValueError` names the element."""
    log = []

    def source():
        try:
            yield "data"
        finally:
            log.append("closed")

    with pytest.raises(ReturnValueError, match="'data'"):
        run(one(log, "a", lambda: stream(source())))
    assert log == ["a", "closed"]


class BadIterable:
    """An iterable whose `__iter__` raises StopIteration."""

    def __iter__(self):
        raise StopIteration("mine")


def test_a_stop_iteration_of_an_iterable_is_its_own_failure(run):
    """User code that runs when a stream is begun keeps its exception."""
    finished = run(one([], "a", lambda: stream(BadIterable())), check=False)
    assert isinstance(finished.error, StopIteration)


def test_an_empty_stream_is_nothing(run):
    """The run goes on."""
    log = []
    run(one(log, "a", lambda: stream([])) >> one(log, "b"))
    assert log == ["a", "b"]


# -- nested pipelines


def test_a_nested_pipeline_opens_and_closes_around_its_units(run):
    """Its middleware stands around all of them, and what they insert."""
    log = []
    inner = pipeline(one(log, "x", lambda: one(log, "d")), one(log, "y"), name="inner", use=[around(log, "inner")])
    flow = pipeline(one(log, "a"), inner, one(log, "b"), name="outer", use=[around(log, "outer")])
    run(flow)
    assert log == ["+outer", "a", "+inner", "x", "d", "y", "-inner", "b", "-outer"]


def test_use_stages_and_use_actions_reach_inwards(run):
    """Into nested pipelines, groups and dynamic stages; outermost first."""
    log = []
    dynamic = Stage("d", [step(log, "da")])
    inner = pipeline(
        Stage("x", [step(log, "xa", lambda: dynamic)]),
        name="inner",
        use_stages=[around(log, "S2")],
        use_actions=[async_around(log, "A2")],
    )
    flow = pipeline(parallel(inner), use_stages=[around(log, "S1")], use_actions=[around(log, "A1")])
    run(flow)
    one_stage = ["+S1", "+S2", "+A1", "+A2", "{}", "-A2", "-A1", "-S2", "-S1"]
    assert log == [name.format("xa") for name in one_stage] + [name.format("da") for name in one_stage]


def test_a_nested_pipeline_that_is_retried_runs_from_its_beginning(run):
    """What it wrote, collected, inserted and recorded in the failed attempt is dropped."""
    log = []
    inner = pipeline(
        Stage("x", [step(log, "w", 1, collect="xs"), step(log, "i", lambda: one(log, "d"))]),
        flaky(log, "f", 1),
        name="inner",
        use=[again(2)],
    )
    finished = run(one(log, "a") >> inner >> one(log, "b"))
    assert log == ["a", "w", "i", "d", "f", "w", "i", "d", "f", "b"]
    assert names(finished) == ["a", "x", "d", "f", "b"]
    assert finished["xs"] == [1]


def test_an_empty_pipeline_runs_to_completion(run):
    """`pipeline()` has nothing to do, and does it."""
    finished = run(pipeline())
    assert (finished.status, names(finished), dict(finished.store)) == ("completed", [], {})


# -- parallel groups (L9)


def test_branches_start_from_the_store_as_it_is_and_see_no_other(run):
    """Each works on its own overlay; all are merged when all are done."""
    seen = []

    def branch(name):
        @action(name=name)
        def body(ctx: Context, start):
            seen.append((name, sorted(ctx.store)))
            return start + 1

        return body

    finished = run(parallel(branch("a"), branch("b")) >> branch("c"), {"start": 1})
    assert sorted(seen[:2]) == [("a", ["start"]), ("b", ["start"])]
    assert seen[2:] == [("c", ["a", "b", "start"])]
    assert (finished["a"], finished["b"]) == (2, 2)


def test_what_branches_collect_is_concatenated_in_branch_order(run):
    """Behind what was there."""
    branches = [step([], f"s{i}", i, collect="xs") for i in range(3)]
    finished = run(parallel(*branches), {"xs": ["given"]})
    assert finished["xs"] == ["given", 0, 1, 2]


def test_two_branches_that_write_to_one_key_are_a_conflict(run):
    """The error names key and branches; nothing is merged."""
    flow = parallel(Stage("left", data={"k": 1, "l": 1}), Stage("right", data={"k": 2}), Stage("other", data={"o": 1}))
    with pytest.raises(WriteConflictError) as caught:
        run(flow)
    text = str(caught.value)
    assert "'k'" in text
    assert "left" in text
    assert "right" in text
    assert "other" not in text
    assert dict(Run.of(caught.value).store) == {}


def test_equal_values_are_no_conflict(run):
    """Nor is one key removed by all."""

    def remove(name):
        return switch(name, lambda ctx: ctx.store.pop("gone"))

    flow = parallel(Stage("a", [remove("ra")], data={"k": [1]}), Stage("b", [remove("rb")], data={"k": [1]}))
    assert dict(run(flow, {"gone": 1}).store) == {"k": [1]}


def test_a_reducer_folds_the_written_values_in_branch_order(run):
    """Two at a time; what one branch alone wrote is as it is; what was there before is not folded."""
    flow = parallel(
        Stage("a", data={"k": "a"}), Stage("b", data={"k": "b", "l": 1}), Stage("c", data={"k": "c"}),
        merge={"k": operator.add, "l": operator.add},
    )  # fmt: skip
    finished = run(flow, {"k": "before"})
    assert (finished["k"], finished["l"]) == ("abc", 1)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (lambda ctx: ctx.store.append("k", 1), lambda ctx: ctx.store.update(k=[2])),
        (lambda ctx: ctx.store.pop("k"), lambda ctx: ctx.store.update(k=[2])),
        (lambda ctx: ctx.store.pop("k"), lambda ctx: ctx.store.append("k", 2)),
    ],
    ids=["append and put", "delete and put", "delete and append"],
)
def test_different_kinds_of_writes_to_one_key_are_a_conflict(run, left, right):
    """There is no order in which they would mean the same."""
    with pytest.raises(WriteConflictError, match="'k'"):
        run(parallel(switch("left", left), switch("right", right)), {"k": [0]})


class Incomparable:
    """A value that cannot be compared as a whole."""

    def __eq__(self, other):
        raise TypeError("not comparable")

    __hash__ = None


def test_values_that_cannot_be_compared_are_a_conflict(run):
    """Unless they are one object."""
    shared = Incomparable()
    finished = run(parallel(step([], "a", shared, returns="k"), step([], "b", shared, returns="k")))
    assert finished["k"] is shared
    with pytest.raises(WriteConflictError):
        run(parallel(step([], "a", Incomparable(), returns="k"), step([], "b", Incomparable(), returns="k")))


@pytest.mark.parametrize("error", [ValueError("cannot"), StopIteration("cannot")], ids=["error", "stop"])
def test_a_reducer_that_raises_fails_the_run(run, error):
    """With its own exception."""

    def broken(one, other):
        raise error

    group = parallel(Stage("a", data={"k": 1}), Stage("b", data={"k": 2}), merge={"k": broken})
    finished = run(group, check=False)
    assert finished.error is error


def test_insertions_of_a_branch_stay_in_it(run):
    """They run in the branch, on its overlay, and are recorded with it."""
    seen = []

    def dynamic(name):
        @action(returns=None)
        def look(ctx: Context):
            seen.append((name, sorted(ctx.store)))

        return Stage(name, [look])

    left = Stage("left", [step([], "l", lambda: dynamic("dl"))], data={"left": 1})
    right = Stage("right", [step([], "r", lambda: dynamic("dr"))], data={"right": 1})
    finished = run(parallel(left, right) >> dynamic("end"))
    assert sorted(seen) == [("dl", ["left"]), ("dr", ["right"]), ("end", ["left", "right"])]
    assert names(finished) == ["left", "dl", "right", "dr", "end"]


def test_a_failing_branch_fails_the_group_and_nothing_is_merged(run):
    """Branches that have not begun do not begin."""
    log = []
    group = parallel(one(log, "a", 1), failing(log, "boom", ValueError("no")), one(log, "c"), limit=1)
    with pytest.raises(ValueError, match="no") as caught:
        run(pipeline(group, one(log, "end")))
    assert log == ["a", "boom"]
    assert dict(Run.of(caught.value).store) == {}


def test_of_a_bailing_branch_the_overlay_is_merged_and_of_the_others_none(run):
    """The run ends, successfully."""

    @action
    def enough(ctx: Context):
        ctx.store["mine"] = 1
        raise Bail("enough")

    log = []
    group = parallel(step(log, "a", 1), Stage("b", [enough], data={"too": 2}), one(log, "c"), limit=1)
    finished = run(group >> one(log, "end"))
    assert (finished.status, finished.reason) == ("bailed", "enough")
    assert dict(finished.store) == {"mine": 1, "too": 2}
    assert log == ["a"]


def test_suspend_lets_the_other_branches_finish(run):
    """Then the run is suspended."""
    log = []

    @action
    def wait():
        raise Suspend("waiting")

    finished = run(parallel(wait, one(log, "b")) >> one(log, "end"))
    assert (finished.status, finished.reason, log) == ("suspended", "waiting", ["b"])


def test_a_switch_in_a_branch_holds_for_what_comes_after_the_group(run):
    """And for its own branch, but not for the others."""
    log = []
    off = switch("off", lambda ctx: ctx.disable("x"))
    run(parallel(off >> one(log, "x"), one(log, "x")) >> one(log, "x") >> one(log, "y"))
    assert log == ["x", "y"]


def test_the_result_of_a_group_is_that_of_its_last_branch_with_one(run):
    """In branch order."""
    assert run(step([], "z", 0) >> parallel(step([], "a", 1), step([], "b", 2), step([], "c"))).result == 2


def test_groups_and_pipelines_nest(run):
    """An overlay on an overlay."""
    flow = parallel(
        pipeline(
            step([], "a", 1, collect="xs"), parallel(step([], "b", 2, collect="xs"), step([], "c", 3, collect="xs"))
        ),
        step([], "d", 4, collect="xs"),
    )
    assert run(flow, {"xs": [0]})["xs"] == [0, 1, 2, 3, 4]


def test_middleware_values_reach_into_groups(run):
    """As into everything inside their scope."""

    @action
    def use(conn):
        return conn

    assert run(pipeline(parallel(use), use=[provide(conn="c")]))["use"] == "c"


def test_a_group_that_is_retried_starts_from_the_store_as_it_was(run):
    """A failed attempt has merged nothing."""
    log = []
    group = parallel(step(log, "a", 1, collect="xs"), flaky(log, "f", 1))
    finished = run(pipeline(group, use=[again(2)]))
    assert finished["xs"] == [1]
    assert names(finished) == ["a", "f"]


@pytest.mark.parametrize("given", [{}, {"xs": [0], "k": 0}], ids=["empty", "given"])
def test_a_retry_in_a_branch_is_no_conflict(run, given):
    """What the failed attempt wrote and collected was not written by the branch."""
    log = []

    @action
    def writes(ctx: Context):
        if "f" not in log:
            ctx.store["k"] = "dropped"

    retried = Stage("s", [step(log, "a", 1, collect="xs"), writes, flaky(log, "f", 1)], use=[again(2)])
    finished = run(parallel(retried, Stage("t", [step([], "b", 2, collect="xs")], data={"k": 1})), given)
    assert dict(finished.store) == {"xs": [*given.get("xs", []), 1, 2], "k": 1}


def test_an_empty_group_is_nothing(run):
    """It runs to completion."""
    assert run(parallel()).status == "completed"


# -- what a run may hold


def test_history_keeps_the_last_records_only(run):
    """Of a run of any length; the store is complete."""
    rounds = []

    @action
    def count():
        rounds.append(1)
        return loop if len(rounds) < 50 else None

    loop = Stage("loop", [count])
    finished = run(Stage("begin") >> loop >> Stage("end"), history=3)
    assert names(finished) == ["loop", "loop", "end"]
    assert len(rounds) == 50


@pytest.mark.parametrize("history", [0, 1, 2, 100])
def test_history_counts_what_was_skipped_and_what_ran_in_branches(run, history):
    """They are records like others."""
    flow = Stage("a") >> parallel(Stage("b"), Stage("c") >> Stage("d")) >> Stage("e") >> Stage("f")
    expected = ["a", "b", "c", "d", "e", "f"]
    finished = run(flow, history=history, skip=["e"])
    assert names(finished) == (expected[-history:] if history else [])


def test_history_and_the_retry_of_a_pipeline_go_together(run):
    """Forgotten records are not counted twice."""
    log = []
    inner = pipeline(*(Stage(f"i{i}") for i in range(5)), flaky(log, "f", 2), use=[again(3)])
    finished = run(Stage("a") >> Stage("b") >> inner >> Stage("c"), history=2)
    assert names(finished) == ["f", "c"]
    assert completed(finished) == ["f", "c"]
    assert len(log) == 3


def test_every_completed_action_is_counted_once(run):
    """Static and dynamic, over stages, groups and pipelines."""
    log = []
    flow = Stage("s", [step(log, "a", lambda: [step(log, "b"), one(log, "c")])]) >> parallel(one(log, "d"))
    assert actions_run(run(flow)) == ["s/a", "b/b", "c/c", "d/d"]


def test_who_returned_nothing_is_named_where_it_is_missed(run):
    """The annotation promises a value; None is not stored, and neither is what a generator did not yield."""

    @action
    def find() -> str:
        return None

    @action
    def rows() -> Iterator[dict[str, int]]:
        yield from ()

    for supplier in (find, rows):
        use = action(name="use")(eval(f"lambda {supplier.name}: 1"))
        error = run(supplier >> use, check=False).error
        assert isinstance(error, MissingInputError)
        assert f"action {supplier.name!r} has run, and returned nothing for {supplier.name!r}" in text_of(error)


# -- where an insertion, a scope, a switch belong


@pytest.mark.parametrize("last", [True, False])
def test_what_the_middleware_of_a_nested_pipeline_inserts_runs_in_the_pipeline_around_it(run, last):
    """Whether the nested one comes last there or not."""
    seen = []

    def inserting(call):
        yield
        call.insert(Stage("late", [step([], "late")]))

    def seeing(call):
        seen.append(call.stage.name)
        yield

    inner = pipeline(one([], "x"), name="inner", use=[inserting])
    rest = [] if last else [one([], "y")]
    run(pipeline(pipeline(inner, *rest, name="outer", use_stages=[seeing]), name="root"))
    assert seen == ["x", "late", *([] if last else ["y"])]


@pytest.mark.parametrize("last", [True, False])
def test_the_scope_of_a_nested_pipeline_is_that_around_it(run, last):
    """Whether it comes last there or not."""
    inner = pipeline(one([], "x"), name="inner", use_stages=[around([], "m")])
    units = [one([], "y"), inner] if last else [inner, one([], "y")]
    result = run(pipeline(*units, name="outer", use_stages=[around([], "n")]) >> one([], "z"))
    scope = stage_record(result, "x").scope
    assert (scope.name, scope.outer.name, scope.outer.outer) == ("inner", "outer", None)


def test_the_scopes_of_a_pipeline_that_returns_itself_do_not_nest(run):
    """A loop takes no more memory, however often it turns."""
    left = iter(range(3))
    flow = pipeline(
        Stage("turn", [action(name="turn")(lambda: flow if next(left, None) is not None else None)]),
        name="loop",
        use_stages=[around([], "m")],
    )
    result = run(one([], "first") >> flow)
    assert {record.scope.outer for record in result.stages if record.name == "turn"} == {None}


def test_the_latest_switch_of_a_branch_counts_after_its_group(run):
    """Also one that says once more what had been said before."""

    @action
    def once(ctx):
        ctx.disable("target")
        ctx.enable("tag:t")

    @action
    def twice(ctx):
        ctx.disable("target")

    target = one([], "target", tags=["t"])
    for unit in (twice, parallel(twice, action(name="idle")(lambda: None))):
        assert statuses(run(once >> unit >> target))[-1] == ("target", "skipped")


@pytest.mark.parametrize("grouped", [False, True])
def test_what_a_retry_dropped_is_not_counted_as_forgotten(run, grouped):
    """`forgotten` and the records that are left make what has run in the end."""
    attempts = iter([ValueError("once"), None])

    def fails_once():
        error = next(attempts)
        if error is not None:
            raise error

    first = (
        parallel(*(one([], f"s{n}") for n in range(5))) if grouped else pipeline(*(one([], f"s{n}") for n in range(5)))
    )
    flow = pipeline(first, action(name="flaky")(fails_once), use=[retry(on=ValueError)])
    result = run(pipeline(flow), history=1)
    assert (result.forgotten, names(result)) == (5, ["flaky"])


def test_ctrl_c_in_place_of_the_end_of_a_group_ends_the_run_with_what_was_done():
    """The driver could not even begin with its branches."""
    run, walk = evaluation(one([], "first") >> parallel(one([], "a"), one([], "b"), name="g"))
    answer = None
    while not isinstance(request := walk.send(answer), Fork):
        answer = performed(request)
    with pytest.raises(StopIteration):
        walk.send(Raised(KeyboardInterrupt()))
    assert (run.status, type(run.error)) == ("cancelled", KeyboardInterrupt)
    assert "in parallel group 'g', pipeline 'pipeline'" in text_of(run.error)
    assert completed(run) == ["first"]
