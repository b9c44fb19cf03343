"""Branches side by side, in threads and in an event loop: the result does not depend on timing (L9)."""

import asyncio
import contextvars
import gc
import itertools
import math
import operator
import os
import signal
import sys
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import evaluation
from support import (
    action_record,
    actions_run,
    again,
    around,
    async_around,
    completed,
    examples,
    failing,
    flaky,
    names,
    one,
    provide,
    shown,
    stage_record,
    statuses,
    step,
    text_of,
)

from flowdeco import Bail, Context, Run, Sleep, Stage, Suspend, action, parallel, pipeline, stage, stream
from flowdeco.drivers.sync import Performer
from flowdeco.durable import MemoryJournal
from flowdeco.durable.digests import digest
from flowdeco.durable.fingerprint import fingerprint
from flowdeco.engine.evaluation import evaluate
from flowdeco.engine.recorder import Recorder
from flowdeco.engine.requests import Fork, Raised, Save
from flowdeco.engine.schedule import Schedule
from flowdeco.errors import (
    ActionTimeout,
    ContextEndedError,
    DefinitionError,
    MissingInputError,
    WiringError,
    WriteConflictError,
)
from flowdeco.executors import serial
from flowdeco.middleware import atomic, recover, retry

VARIABLE = contextvars.ContextVar("VARIABLE", default="default")
PATIENCE = 10  # seconds after which a test gives up waiting for what must happen


# -- makers


def act(function, name=None, **options):
    """An action with the name of its function, or another one."""
    return action(name=name or function.__name__, **options)(function)


def later(seconds, name, result=None, *, asynchronous=False, log=None, **options):
    """An action that takes its time."""

    def body():
        time.sleep(seconds)
        if log is not None:
            log.append(name)
        return result

    async def coroutine():
        await asyncio.sleep(seconds)
        if log is not None:
            log.append(name)
        return result

    return act(coroutine if asynchronous else body, name, **options)


def endless(log, begun, name="endless"):
    """A coroutine that waits until it is cancelled, says so, and cleans up asynchronously."""

    async def body():
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            log.append(f"{name} cancelled")
            raise

    return act(body, name)


def fails_after(begun, error, name="fails"):
    """A sync action that fails as soon as something else has begun."""

    def body():
        assert begun.wait(PATIENCE)
        raise error

    return act(body, name)


def blocks(begun, release, log, name="blocks", result=None):
    """A sync action that ends when it is released; in a group, it cannot be cancelled."""

    def body():
        begun.set()
        assert release.wait(PATIENCE)
        log.append(name)
        return result

    return act(body, name)


@pytest.fixture
def interrupt():
    """Raise KeyboardInterrupt in the main thread, as Ctrl-C does, when called."""

    def raise_it(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, raise_it)
    yield lambda: os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def cancelling(flow, begun, **options):
    """Cancel `flow.arun()` when `begun` is set; return the run behind the exception that comes out."""

    async def main():
        task = asyncio.create_task(flow.arun(**options))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError) as caught:
        asyncio.run(main())
    return Run.of(caught.value)


# -- side by side


def test_sync_branches_are_under_way_at_the_same_time(run):
    """Each waits for the others to have begun."""
    barrier = threading.Barrier(3)
    branches = [act(lambda: barrier.wait(PATIENCE) >= 0, f"b{number}") for number in range(3)]
    assert completed(run(parallel(*branches))) == ["b0", "b1", "b2"]


def test_coroutine_branches_are_under_way_at_the_same_time(run):
    """Each waits for the others to have begun."""
    begun = []

    def branch(name):
        async def body():
            begun.append(name)
            while len(begun) < 3:
                await asyncio.sleep(0.001)

        return act(body, name)

    assert completed(run(parallel(*map(branch, "abc")))) == ["a", "b", "c"]


def test_sync_and_coroutine_branches_mix(run):
    """Sync ones are in threads, coroutines in one loop: neither holds up the other."""
    begun, release = threading.Event(), threading.Event()

    async def releases():
        while not begun.is_set():
            await asyncio.sleep(0.001)
        release.set()
        return "released"

    finished = run(parallel(blocks(begun, release, [], result="blocked"), act(releases)))
    assert (finished["blocks"], finished["releases"]) == ("blocked", "released")


def test_the_actions_of_one_branch_run_one_after_the_other(run):
    """Whatever the other branches do meanwhile."""
    log = []
    branches = [
        pipeline(later(0.01, f"{name}1", log=log), later(0, f"{name}2", asynchronous=True, log=log)) for name in "ab"
    ]
    run(parallel(*branches))
    assert [name for name in log if name[0] == "a"] == ["a1", "a2"]
    assert [name for name in log if name[0] == "b"] == ["b1", "b2"]


def test_sync_actions_of_a_group_leave_the_thread_of_the_caller_alone(run):
    """Also in `arun`, whose loop goes on; outside of groups they run inline."""
    threads = {}

    def where(name):
        return act(lambda: threads.setdefault(name, threading.current_thread()) and None, name)

    run(where("before") >> parallel(where("a"), where("b")) >> where("after"))
    assert threads["before"] is threads["after"] is threading.current_thread()
    assert threading.current_thread() not in {threads["a"], threads["b"]}


def test_the_coroutines_of_a_group_share_the_loop_of_the_run(run):
    """What one opens, the others can use."""
    loops = []

    async def note():
        loops.append(asyncio.get_running_loop())

    run(act(note, "first") >> parallel(act(note, "a"), act(note, "b")))
    assert len(loops) == 3
    assert len(set(loops)) == 1


def test_the_pool_of_a_run_ends_with_it(run):
    """No thread is left."""
    before = set(threading.enumerate())
    run(parallel(*(later(0.001, f"b{number}") for number in range(5))))
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync actions", "coroutines"])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_no_more_than_limit_branches_are_under_way(run, limit, asynchronous):
    """And as many as that are."""
    active, peak, lock = Counter(), Counter(), threading.Lock()

    def enter(number):
        with lock:
            active[()] += number
            peak[()] = max(peak[()], active[()])

    def body():
        enter(1)
        time.sleep(0.01)
        enter(-1)

    async def coroutine():
        enter(1)
        await asyncio.sleep(0.01)
        enter(-1)

    branches = [act(coroutine if asynchronous else body, f"b{number}") for number in range(7)]
    finished = run(parallel(*branches, limit=limit))
    assert peak[()] == limit
    assert len(completed(finished)) == 7


def test_with_a_limit_branches_begin_in_their_order(run):
    """As soon as another one is over: a branch holds its place from its first action to its last."""
    log = []
    branches = [one(log, f"{name}1") >> one(log, f"{name}2") for name in "abcd"]
    run(parallel(*branches, limit=1))
    assert log == [f"{name}{number}" for name in "abcd" for number in (1, 2)]


def test_the_limit_is_that_of_its_group(run):
    """A nested group has its own, and counts as one branch of the group around it."""
    barrier = threading.Barrier(3)
    inner = parallel(*(act(lambda: barrier.wait(PATIENCE) >= 0, f"i{number}") for number in range(3)), name="inner")
    log = []
    finished = run(parallel(inner, one(log, "after"), limit=1))
    assert completed(finished) == ["i0", "i1", "i2", "after"]


@pytest.mark.parametrize(
    "group",
    [parallel(), parallel(parallel(), parallel()), parallel(pipeline()), parallel(Stage("x")) >> parallel(limit=3)],
    ids=["empty", "of empty groups", "of an empty pipeline", "of an empty stage"],
)
def test_a_group_without_actions_runs_to_completion(run, group):
    """It begins nothing, and merges what stages without actions bring along."""
    assert run(group >> one([], "end", 1)).result == 1


def test_a_thousand_branches_are_no_problem(run):
    """Of either kind; the pool has fewer threads."""
    branches = [later(0, f"b{number}", number, asynchronous=number % 2 == 0, collect="xs") for number in range(1000)]
    assert run(parallel(*branches))["xs"] == list(range(1000))


def test_groups_nest_deeply(run):
    """On a pool of one thread as well: a group never holds a worker."""
    group = parallel(step([], "innermost", 0, collect="xs"))
    for depth in range(1, 30):
        group = parallel(group, step([], f"s{depth}", depth, collect="xs"))
    with ThreadPoolExecutor(1) as executor:
        assert run(group, executor=executor)["xs"] == list(range(30))


# -- the result does not depend on timing


@pytest.mark.parametrize("delays", [(0, 0.01, 0.02), (0.02, 0.01, 0)], ids=["in order", "in reverse"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync actions", "coroutines"])
def test_the_order_of_the_branches_decides(run, delays, asynchronous):
    """Collected items, keys, records, result: all in branch order, whoever ends first."""
    branches = [
        pipeline(
            later(seconds, f"s{number}", number, asynchronous=asynchronous, collect="xs"),
            later(0, f"t{number}", f"t{number}", asynchronous=asynchronous),
        )
        for number, seconds in enumerate(delays)
    ]
    finished = run(parallel(*branches), {"xs": ["given"]})
    assert list(finished.store.items()) == [("xs", ["given", 0, 1, 2]), ("t0", "t0"), ("t1", "t1"), ("t2", "t2")]
    assert names(finished) == ["s0", "t0", "s1", "t1", "s2", "t2"]
    assert finished.result == "t2"


def test_a_branch_sees_what_was_collected_before_and_by_itself(run):
    """Not what others collect meanwhile; the list that was handed in is left alone."""
    seen, mine = {}, ["given"]

    def looks(name):
        def body(xs):
            seen[name] = list(xs)

        return act(body, f"look {name}")

    branches = [step([], f"add {name}", name, collect="xs") >> looks(name) for name in "ab"]
    finished = run(parallel(*branches) >> step([], "add c", "c", collect="xs"), {"xs": mine})
    assert seen == {"a": ["given", "a"], "b": ["given", "b"]}
    assert finished["xs"] == ["given", "a", "b", "c"]
    assert mine == ["given"]


def test_what_nested_groups_collect_is_concatenated_in_branch_order(run):
    """Between what their branch collected before and after them."""

    def add(number, seconds=0.0):
        return later(seconds, f"s{number}", number, collect="xs")

    inner = parallel(add(2, 0.02), add(3, 0.01), add(4))
    finished = run(parallel(add(0, 0.03), add(1, 0.01) >> inner >> add(5), add(6)))
    assert finished["xs"] == list(range(7))


def test_a_conflict_names_the_key_the_branches_and_the_group(run):
    """And says what to write instead; nothing at all is merged."""
    flow = parallel(
        step([], "north", 1, returns="total"), step([], "east", 5, returns="other"), step([], "south", 2, returns="total"),
        name="regions",
    )  # fmt: skip
    with pytest.raises(WriteConflictError) as caught:
        run(flow, {"total": 0})
    text = str(caught.value)
    assert all(word in text for word in ("'total'", "'north'", "'south'", "'regions'", "merge="))
    assert "east" not in text
    assert dict(Run.of(caught.value).store) == {"total": 0}


@pytest.mark.parametrize("collects", [0, 1])
def test_a_reducer_does_not_combine_what_is_collected_with_what_is_written(run, collects):
    """The error does not advise to write a merge= that is there."""
    branches = [step([], "a", [1], returns="k"), step([], "b", 2, returns="k")]
    branches[collects] = step([], "c", 3, collect="k")
    with pytest.raises(
        WriteConflictError, match="merge= combines written values only: write to the key in both, or co"
    ):
        run(parallel(*branches, merge={"k": operator.add}))


async def adds(one, other):
    return one + other


def adds_three(one, other, third):
    return one + other + third


class AddsLater:
    async def __call__(self, one, other):
        return one + other


def yields(one, other):
    yield one + other


@pytest.mark.parametrize("wrong", [adds, adds_three, lambda one: one, lambda: 1, AddsLater(), yields, action(adds)])
def test_a_reducer_is_a_plain_function_of_two_values(wrong):
    """Others are refused when they are given."""
    with pytest.raises(
        DefinitionError, match=r"merge=\{'k': .*\}: it is called with two values and returns their comb"
    ):
        parallel(step([], "a", 1), merge={"k": wrong})


@pytest.mark.parametrize(
    "right",
    [max, set.union, operator.add, math.gcd, dict.__or__, lambda *values: values, lambda one, other, third=3: one],
)
def test_anything_that_takes_two_values_is_a_reducer(right):
    """Builtins as well, some of which show no signature."""
    assert parallel(step([], "a", 1), merge={"k": right}).merge == {"k": right}


@pytest.mark.parametrize("merge", [None, {"k": lambda one, other: one.nope}], ids=["conflict", "reducer"])
def test_what_merging_raises_has_nothing_of_ours_as_its_context(run, merge):
    """It is the whole story: no exception of flowdeco was being handled."""
    group = parallel(action(name="a", returns="k")(lambda: 1), action(name="b", returns="k")(lambda: 2), merge=merge)
    for flow in (group, parallel(group, name="outer")):
        assert run(flow, check=False).error.__context__ is None


def test_a_conflict_in_a_nested_group_is_a_failure_of_its_branch(run):
    """It names the inner group, and can be recovered there."""
    inner = parallel(step([], "a", 1, returns="k"), step([], "b", 2, returns="k"), name="inner")
    with pytest.raises(WriteConflictError, match="'inner'"):
        run(parallel(inner, step([], "c", 3)))
    guarded = pipeline(inner, use=[recover(on=WriteConflictError)])
    assert dict(run(parallel(guarded, step([], "c", 3))).store) == {"c": 3}


def test_a_reducer_folds_over_nested_groups(run):
    """What an inner group has folded counts as written by its branch."""

    def writes(name, value):
        return step([], name, value, returns="k")

    inner = parallel(writes("b", "b"), writes("c", "c"), merge={"k": operator.add})
    outer = parallel(writes("a", "a"), inner, writes("d", "d"), merge={"k": operator.add})
    assert run(outer, {"k": "before"})["k"] == "abcd"


def test_a_reducer_gets_what_was_written_last_in_each_branch(run):
    """Writes within a branch replace each other, as they do elsewhere."""

    def writes(name, value):
        return step([], name, value, returns="k")

    group = parallel(writes("a", 1) >> writes("b", 10), writes("c", 100), merge={"k": operator.add})
    assert run(group)["k"] == 110


def test_a_key_that_a_branch_removes_is_gone_after_the_group(run):
    """A missing key that nobody removed is no conflict for the one who wrote it."""

    @action
    def remove(ctx: Context):
        del ctx.store["old"]

    finished = run(parallel(remove, step([], "new", 1)), {"old": 0, "kept": 2})
    assert dict(finished.store) == {"kept": 2, "new": 1}


def test_a_key_that_a_branch_writes_and_removes_was_never_there(run):
    """So it is no conflict with a branch that writes it."""

    @action
    def remove(ctx: Context):
        del ctx.store["k"]

    finished = run(parallel(step([], "a", 1, returns="k") >> remove, step([], "b", 2, returns="k")))
    assert finished["k"] == 2


def test_wiring_knows_that_branches_do_not_see_each_other():
    """What only another branch supplies is certainly missing; what came before the group is there, and after it all."""
    make, use = act(lambda: 1, "x"), act(lambda x: x, "use")
    with pytest.raises(WiringError, match="'x'"):
        parallel(make, use).run()
    assert (make >> parallel(use, one([], "other"))).run()["use"] == 1
    assert (parallel(make, one([], "other")) >> use).run()["use"] == 1


# -- what is inserted in a branch


def test_what_is_inserted_in_a_branch_runs_in_it(run):
    """Stages, actions, groups: at their place, over the store of the branch, before the group is over."""

    @stage
    def dynamic(name: str):
        @action(collect="xs")
        def inserted(own: str):
            return f"{name} of {own}"

    def branch(name, seconds):
        def inserts():
            time.sleep(seconds)
            return [dynamic("d1"), parallel(dynamic("d2"), dynamic("d3")), dynamic("d4")]

        return Stage(name, [act(inserts)], data={"own": name})

    flow = parallel(branch("a", 0.02), branch("b", 0), merge={"own": lambda one, other: "both"}) >> dynamic("end")
    finished = run(flow)
    assert finished["xs"] == [f"d{number} of {name}" for name in "ab" for number in range(1, 5)] + ["end of both"]
    assert [(record.name, record.inserted_by) for record in finished.stages[:5]] == [
        ("a", None), ("dynamic[d1]", "a/inserts"), ("dynamic[d2]", "a/inserts"), ("dynamic[d3]", "a/inserts"),
        ("dynamic[d4]", "a/inserts"),
    ]  # fmt: skip


def test_a_group_that_an_action_returns_runs_like_any_unit(run):
    """Right after its stage, with branches that were not known before."""
    split = step([], "split", lambda: parallel(*(later(0.001, f"w{n}", n * n, collect="xs") for n in range(5))))
    total = act(lambda xs: sum(xs), "total")
    finished = run(split >> total)
    assert finished["total"] == 30
    assert {record.inserted_by for record in finished.stages[1:-1]} == {"split/split"}


def test_a_branch_that_returns_itself_is_a_loop_of_that_branch(run):
    """The others have ended long ago."""

    def counting(key, until):
        @action(name=f"count {key}", collect=key)
        def count(ctx: Context):
            if len(ctx.store.get(key, ())) + 1 < until:
                ctx.insert(loop)
            return key

        loop = Stage(key, [count])
        return loop

    finished = run(parallel(counting("a", 20), counting("b", 3)))
    assert (len(finished["a"]), len(finished["b"])) == (20, 3)
    assert names(finished) == ["a"] * 20 + ["b"] * 3


@pytest.mark.parametrize("asynchronous", [False, True], ids=["iterable", "async iterable"])
def test_streams_in_branches_are_pulled_side_by_side(run, asynchronous):
    """Each in its own branch; what they bring is in branch order."""

    def items(name):
        for number in range(5):
            yield later(0.001, f"{name}{number}", f"{name}{number}", collect="xs")

    async def async_items(name):
        for item in items(name):
            await asyncio.sleep(0)
            yield item >> Stage("x")

    source = async_items if asynchronous else (lambda name: (item >> Stage("x") for item in items(name)))
    branches = [step([], f"begin {name}", lambda name=name: stream(source, name)) for name in "ab"]
    finished = run(parallel(*branches))
    assert finished["xs"] == [f"{name}{number}" for name in "ab" for number in range(5)]


def test_a_stream_in_a_branch_is_pulled_one_unit_at_a_time(run):
    """Not to its end, which may be far away; nor is a generator that an action got from elsewhere and streams."""
    pulled = []

    def endlessly():
        for number in itertools.count():
            pulled.append(number)
            yield enough if number == 3 else Stage(f"s{number}")

    @action
    def enough():
        raise Bail("enough")

    for source in (stream(endlessly), stream(endlessly())):
        pulled.clear()
        finished = run(parallel(step([], "begin", source), one([], "b")))
        assert (finished.status, pulled) == ("bailed", [0, 1, 2, 3])


def test_the_data_of_a_stage_in_a_branch_is_for_that_branch(run):
    """Until the group is over: then for all that follows, unless branches disagree."""
    seen = []

    def looks(name):
        return act(lambda k="nothing": seen.append((name, k)), name)

    flow = parallel(Stage("a", [looks("in a")], data={"k": [1]}), Stage("b", [later(0.01, "w"), looks("in b")]))
    run(flow >> looks("after"))
    assert sorted(seen) == [("after", [1]), ("in a", [1]), ("in b", "nothing")]


# -- records, events, switches


def test_records_are_in_branch_order_and_tell_when_things_ran(run):
    """The second branch ran while the first one did."""
    first, second = later(0.25, "first"), later(0.01, "second", asynchronous=True)
    finished = run(parallel(first, second) >> one([], "end"))
    one_record, two_record, _ = finished.stages
    assert names(finished) == ["first", "second", "end"]
    assert two_record.started < one_record.started + one_record.elapsed
    assert two_record.elapsed < one_record.elapsed
    assert all(record.actions[0].attempts == 1 for record in finished.stages)


def test_only_the_last_records_are_kept_if_only_so_many_are_wanted(run):
    """Counted in branch order, when the group is over."""
    group = parallel(later(0.02, "a") >> one([], "b"), one([], "c") >> one([], "d"))
    assert names(run(group, history=3)) == ["b", "c", "d"]


def test_observers_hear_the_events_of_a_branch_in_their_order(run):
    """Those of different branches interleave."""
    events = []
    run(parallel(later(0.01, "a") >> later(0.001, "b"), later(0.005, "c")), observers=[events.append])
    of_branch = [(type(event).__name__, event.stage) for event in events if getattr(event, "stage", "") in {"a", "b"}]
    assert of_branch == [
        (kind, name) for name in "ab" for kind in ("StageStarted", "ActionStarted", "ActionFinished", "StageFinished")
    ]
    assert (type(events[0]).__name__, type(events[-1]).__name__) == ("RunStarted", "RunFinished")


def test_messages_from_threads_reach_the_observers(run):
    """At once: the other branch waits for them."""
    heard = threading.Event()
    messages = []

    def observer(event):
        if type(event).__name__ in {"Message", "Progress"}:
            messages.append((event.stage, getattr(event, "kind", "progress")))
            heard.set()

    def tells(ctx):
        ctx.emit("hello", n=1)
        ctx.progress(1, 2)

    def waits():
        assert heard.wait(PATIENCE)

    run(parallel(act(tells), act(waits)), observers=[observer])
    assert messages == [("tells", "hello"), ("tells", "progress")]


def test_observers_that_raise_at_the_same_time_are_dropped(run, caplog):
    """Once each; the run goes on."""
    barrier = threading.Barrier(2)

    def observer(event):
        if type(event).__name__ == "Message":
            barrier.wait(PATIENCE)
            raise RuntimeError("broken observer")

    def tells(ctx):
        ctx.emit("hello")
        return 1

    finished = run(parallel(act(tells, "a"), act(tells, "b")), observers=[observer])
    assert (finished["a"], finished["b"]) == (1, 1)
    assert "broken observer" in caplog.text


@pytest.mark.parametrize("selector", ["tag:side", "group"])
def test_a_group_is_skipped_by_its_tag_or_name_with_all_that_is_in_it(run, selector):
    """Each of its stages has a record."""
    log = []
    group = parallel(one(log, "a"), one(log, "b") >> one(log, "c"), name="group", tags=["side"])
    finished = run(group >> one(log, "end"), skip=[selector])
    assert log == ["end"]
    assert statuses(finished) == [("a", "skipped"), ("b", "skipped"), ("c", "skipped"), ("end", "completed")]


def test_branches_are_skipped_like_other_units(run):
    """By the name of a stage, an action, a tag, in any branch."""
    log = []
    group = parallel(one(log, "a"), one(log, "b", tags=["slow"]), Stage("c", [step(log, "d"), step(log, "e")]))
    finished = run(group, skip=["a", "tag:slow", "c/d"])
    assert log == ["e"]
    assert statuses(finished) == [("a", "skipped"), ("b", "skipped"), ("c", "completed")]
    assert action_record(finished, "c", "d").status == "skipped"


def test_a_switch_set_in_one_branch_survives_the_others(run):
    """Branches that did not touch it have no say, before or behind the one that did."""
    log = []
    off = act(lambda ctx: ctx.disable("late", "also"), "off")
    on = act(lambda ctx: ctx.enable("late"), "on")
    flow = off >> parallel(one(log, "x"), on, one(log, "y")) >> parallel(one(log, "late"), one(log, "also"))
    finished = run(flow)
    assert "late" in log
    assert "also" not in log
    assert statuses(finished)[-2:] == [("late", "completed"), ("also", "skipped")]


def test_of_two_switches_the_one_of_the_later_branch_counts(run):
    """Branch order decides here, too."""
    log = []

    def slow(seconds, name, switch):
        def body(ctx):
            time.sleep(seconds)
            switch(ctx)

        return act(body, name)

    on, off = (lambda ctx: ctx.enable("late")), (lambda ctx: ctx.disable("late"))
    run(parallel(slow(0.02, "on", on), slow(0, "off", off)) >> one(log, "late"))
    assert log == []
    run(parallel(slow(0.02, "off", off), slow(0, "on", on)) >> one(log, "late"))
    assert log == ["late"]


def test_pending_in_a_branch_ends_with_what_follows_the_group(run):
    """What other branches have left is not its business."""
    seen = {}

    def looks(name):
        def body(ctx: Context):
            seen[name] = [unit.name for unit in ctx.pending]

        return Stage(name, [act(body)])

    run(parallel(looks("a") >> Stage("b"), parallel(looks("c"), Stage("d")) >> Stage("e")) >> Stage("end"))
    assert seen == {"a": ["b", "end"], "c": ["e", "end"]}


# -- failures


def test_one_failure_raises_itself(run):
    """The user's exception, with a note that says where; siblings that end by themselves change nothing."""
    error = ValueError("no")
    with pytest.raises(ValueError, match="no") as caught:
        run(parallel(one([], "a", 1), failing([], "boom", error), name="group") >> one([], "never"))
    assert caught.value is error
    assert "action 'boom' of stage 'boom'" in text_of(error)
    assert Run.of(error).status == "failed"
    assert dict(Run.of(error).store) == {}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync actions", "coroutines"])
def test_several_failures_are_a_group_in_branch_order(run, asynchronous):
    """Whichever came first; each with its own note, and the group with one."""
    barrier, begun = threading.Barrier(3), []

    def fails(name, seconds, error):
        def body():
            barrier.wait(PATIENCE)
            time.sleep(seconds)
            raise error

        async def coroutine():
            begun.append(error)
            try:
                while len(begun) < 3:
                    await asyncio.sleep(0)
                await asyncio.sleep(seconds)
            finally:
                raise error

        return act(coroutine if asynchronous else body, name)

    errors = [ValueError("slow"), KeyError("quick"), ValueError("slower")]
    group = parallel(
        fails("a", 0.02, errors[0]), fails("b", 0, errors[1]), fails("c", 0.04, errors[2]), name="doomed"
    )  # fmt: skip
    with pytest.raises(ExceptionGroup) as caught:
        run(group)
    assert list(caught.value.exceptions) == errors
    assert "'doomed'" in str(caught.value)
    assert "parallel group 'doomed'" in text_of(caught.value)
    assert all(f"action '{name}'" in text_of(error) for name, error in zip("abc", errors, strict=True))
    finished = Run.of(caught.value)
    assert finished.error is caught.value
    assert [record.error for record in finished.stages] == errors


def test_nothing_is_merged_when_a_branch_fails(run):
    """Neither what was complete nor what was collected, and a run that is not checked has the store as it was."""
    begun = threading.Event()
    done = act(begun.set, "done")
    group = parallel(
        Stage("writes", [step([], "k", 1), step([], "c", 2, collect="xs"), done], data={"d": 3}),
        fails_after(begun, ValueError("no")),
    )
    finished = run(group, {"xs": [0]}, check=False)
    assert dict(finished.store) == {"xs": [0]}
    assert finished.result is None


def test_branches_that_have_not_begun_do_not_begin(run):
    """They run nothing, enter no middleware, and have no record."""
    log = []
    begun = threading.Event()
    others = (Stage(f"s{n}", [step(log, f"s{n}")], use=[around(log, "m")]) for n in range(5))
    group = parallel(act(begun.set, "first"), fails_after(begun, ValueError("no")), *others, limit=1)
    finished = run(group, check=False)
    assert log == []
    assert statuses(finished) == [("first", "completed"), ("fails", "failed")]


def test_calls_that_wait_in_the_pool_do_not_begin(run):
    """A call that was handed to the executor has not begun before it has a thread."""
    log = []
    with ThreadPoolExecutor(1) as executor:
        group = parallel(failing([], "fails", ValueError("no")), *(later(0.01, f"s{n}", log=log) for n in range(20)))
        with pytest.raises(ValueError, match="no"):
            run(group, executor=executor)
    assert len(log) <= 1


def test_running_coroutines_are_cancelled_and_their_middleware_unwound(run):
    """With all that it awaits on its way out; their records say cancelled, and the run has failed."""
    log = []
    begun = threading.Event()

    def cleaning(call):
        try:
            yield
        except BaseException as error:
            log.append(f"{call.level} saw {type(error).__name__}")
            raise
        finally:
            yield Sleep(0.001)
            log.append(f"{call.level} cleaned up")

    async def async_cleaning(call):
        try:
            yield
        finally:
            await asyncio.sleep(0.001)
            log.append(f"async {call.level} cleaned up")

    waiting = Stage("waiting", [endless(log, begun)], use=[cleaning, async_cleaning], use_actions=[async_cleaning])
    branch = pipeline(waiting, one(log, "never"), use=[async_cleaning])
    finished = run(parallel(branch, fails_after(begun, ValueError("no"))), check=False)
    assert log == [
        "endless cancelled", "async action cleaned up", "async stage cleaned up", "stage saw CancelledError",
        "stage cleaned up", "async pipeline cleaned up",
    ]  # fmt: skip
    assert isinstance(finished.error, ValueError)
    assert (finished.status, statuses(finished)) == ("failed", [("waiting", "cancelled"), ("fails", "failed")])


def test_running_sync_calls_are_awaited(run):
    """They cannot be cancelled; when they have ended, their branch goes no further."""
    log = []
    begun, release = threading.Event(), threading.Event()

    def fails():
        assert begun.wait(PATIENCE)
        threading.Timer(0.05, release.set).start()
        raise ValueError("no")

    branch = blocks(begun, release, log) >> one(log, "never")
    finished = run(parallel(branch, act(fails)), check=False)
    assert log == ["blocks"]
    assert statuses(finished) == [("blocks", "completed"), ("fails", "failed")]


def test_a_stopped_branch_enters_nothing_more(run):
    """No middleware of a following stage, no stream, no stage without actions: what was not reached has no record."""
    log, events = [], []
    begun, release = threading.Event(), threading.Event()

    def fails():
        assert begun.wait(PATIENCE)
        threading.Timer(0.05, release.set).start()
        raise ValueError("no")

    def units():
        log.append("pulled")
        yield Stage("streamed")

    for rest in (
        Stage("next", [step(log, "never")], use=[around(log, "m")]),
        pipeline(Stage("next"), use=[around(log, "m")]),
        parallel(Stage("next", use=[around(log, "m")])),
        Stage("next", data={"k": 1}),
    ):
        begun.clear()
        release.clear()
        finished = run(parallel(blocks(begun, release, []) >> rest, act(fails)), check=False, observers=[events.append])
        assert names(finished) == ["blocks", "fails"]
    begun.clear()
    release.clear()

    def streams():
        begun.set()
        assert release.wait(PATIENCE)
        return stream(units)

    finished = run(parallel(act(streams), act(fails)), check=False)
    assert names(finished) == ["streams", "fails"]
    assert log == []
    assert {event.stage for event in events if hasattr(event, "stage")} == {"blocks", "fails"}


def test_the_next_action_of_a_stopped_branch_does_not_begin(run):
    """Neither it nor the middleware around it."""
    log = []
    begun, release = threading.Event(), threading.Event()

    def fails():
        assert begun.wait(PATIENCE)
        threading.Timer(0.05, release.set).start()
        raise ValueError("no")

    two = Stage("two", [blocks(begun, release, log), step(log, "never", use=[around(log, "m")])])
    finished = run(parallel(two, act(fails)), check=False)
    assert log == ["blocks"]
    assert [record.name for record in stage_record(finished, "two").actions] == ["blocks"]


def test_a_coroutine_that_does_not_mind_being_cancelled_ends_its_branch(run):
    """What it returns is dropped, and nothing follows it; that is no second failure."""
    log = []
    begun = threading.Event()

    async def stubborn():
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "anyway"

    finished = run(parallel(act(stubborn) >> one(log, "never"), fails_after(begun, ValueError("no"))), check=False)
    assert isinstance(finished.error, ValueError)
    assert log == []
    assert "stubborn" not in finished.store


def test_a_failure_on_the_way_out_is_a_failure(run):
    """A cancellation we asked for is none, but what clean-up raises instead is."""
    begun = threading.Event()

    async def breaks():
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("clean-up")

    finished = run(parallel(act(breaks), fails_after(begun, ValueError("no"))), check=False)
    assert isinstance(finished.error, ExceptionGroup)
    assert [type(error) for error in finished.error.exceptions] == [OSError, ValueError]


def test_failures_of_a_nested_group_count(run):
    """A call that fails while the group around its group is being stopped has failed as well."""
    begun, release = threading.Event(), threading.Event()

    def also_fails():
        begun.set()
        assert release.wait(PATIENCE)
        raise KeyError("inner")

    def fails():
        assert begun.wait(PATIENCE)
        threading.Timer(0.05, release.set).start()
        raise ValueError("outer")

    inner = parallel(act(also_fails), one([], "a"), name="inner")
    finished = run(parallel(act(fails), inner), check=False)
    assert isinstance(finished.error, ExceptionGroup)
    assert [type(error) for error in finished.error.exceptions] == [ValueError, KeyError]


def test_a_call_that_is_withdrawn_with_its_group_is_no_failure():
    """It waits for a thread while the group around its group ends; another branch of its own group does fail."""
    for _ in range(5):  # without the rule, two of three went wrong
        begun, release = threading.Event(), threading.Event()

        def also_fails(begun=begun, release=release):
            begun.set()
            assert release.wait(PATIENCE)
            raise KeyError("inner")

        def fails(begun=begun, release=release):
            assert begun.wait(PATIENCE)
            threading.Timer(0.01, release.set).start()
            raise ValueError("outer")

        inner = parallel(act(also_fails), *[one([], f"waits{n}") for n in range(60)], name="inner")
        finished = parallel(act(fails), inner).run(check=False)
        assert [type(error) for error in finished.error.exceptions] == [ValueError, KeyError]


def test_a_failure_stops_the_groups_inside_and_around_its_own(run):
    """Everything that is awaited is cancelled, whichever group it belongs to."""
    log = []
    begun = [threading.Event() for _ in range(3)]
    innermost = parallel(endless(log, begun[0], "e0"), parallel(endless(log, begun[1], "e1"), name="g3"), name="g2")

    def fails():
        assert all(event.wait(PATIENCE) for event in begun)
        raise ValueError("no")

    # A failure in the middle: one group inside it, one around it.
    middle = parallel(innermost >> one(log, "never"), act(fails), name="g1")
    finished = run(parallel(middle, endless(log, begun[2], "e2"), name="g0"), check=False)
    assert sorted(log) == ["e0 cancelled", "e1 cancelled", "e2 cancelled"]
    assert type(finished.error) is ValueError
    assert Counter(record.status for record in finished.stages) == {"cancelled": 3, "failed": 1}


def test_several_failures_of_nested_groups_nest(run):
    """A group in the group, each in branch order."""
    barrier = threading.Barrier(3)

    def fails(error):
        def body():
            barrier.wait(PATIENCE)
            raise error

        return act(body, str(error))

    a, b, c = ValueError("a"), ValueError("b"), ValueError("c")
    finished = run(parallel(fails(a), parallel(fails(b), fails(c))), check=False)
    assert isinstance(finished.error, ExceptionGroup)
    first, second = finished.error.exceptions
    assert first is a
    assert isinstance(second, ExceptionGroup)
    assert second.exceptions == (b, c)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=shown)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync action", "coroutine"])
def test_a_branch_may_raise_what_is_no_exception(run, error, asynchronous):
    """It ends the group like a failure, and goes on; beside a failure it is in a `BaseExceptionGroup`."""
    log = []
    begun = threading.Event()

    def body():
        assert begun.wait(PATIENCE)
        raise error

    async def coroutine():
        while not begun.is_set():
            await asyncio.sleep(0.001)
        raise error

    with pytest.raises(type(error)) as caught:
        run(parallel(endless(log, begun), act(coroutine if asynchronous else body)))
    assert caught.value is error
    assert log == ["endless cancelled"]
    status = "cancelled" if isinstance(error, KeyboardInterrupt) else "failed"
    assert Run.of(error).status == status


def test_a_stream_in_a_branch_is_closed_when_another_branch_fails(run):
    """At the latest when the run is over."""
    log = []
    begun = threading.Event()

    def units():
        try:
            yield endless(log, begun) >> one(log, "never")
            yield one(log, "never")
        finally:
            log.append("closed")

    async def async_units():
        try:
            yield endless(log, begun)
        finally:
            await asyncio.sleep(0)
            log.append("async closed")

    for source, closed in ((units, "closed"), (async_units, "async closed")):
        begun.clear()
        log.clear()
        branch = step([], "begin", lambda source=source: stream(source))
        run(parallel(branch, fails_after(begun, ValueError("no"))), check=False)
        assert log == ["endless cancelled", closed]


@pytest.mark.parametrize("group", [parallel, lambda *units: parallel(parallel(*units))], ids=["near", "nested"])
def test_a_branch_that_fails_before_it_calls_anything_keeps_all_others_from_beginning(run, group):
    """Those before it as well, and those in groups: nothing of theirs has been handed to anybody."""
    log = []

    def locked(call):
        raise RuntimeError("locked")
        yield

    with pytest.raises(RuntimeError, match="locked") as caught:
        run(parallel(group(one(log, "a"), one(log, "b")), Stage("fails", use=[locked]), one(log, "c")))
    assert log == []
    assert statuses(Run.of(caught.value)) == [("a", "cancelled"), ("b", "cancelled"), ("fails", "failed")]


def test_a_layer_that_goes_on_after_its_wait_was_ended_calls_nothing(run):
    """Its group has been ended by another branch: what it asks for is refused, whatever it swallows."""
    log = []

    def stubborn(call):
        with suppress(BaseException):
            yield Sleep(PATIENCE)
        log.append("goes on")
        yield

    stays = Stage("stays", [step(log, "never", use=[stubborn])])
    with pytest.raises(ValueError) as caught:
        run(parallel(stays, failing(log, "fails", ValueError())))
    assert log == ["fails", "goes on"]
    assert statuses(Run.of(caught.value)) == [("stays", "cancelled"), ("fails", "failed")]


# -- answered by hand, in an order that no driver can be made to keep


def scheduled(walk, answer=None):
    """The schedule of a group that is the next request."""
    fork = walk.send(answer)
    assert isinstance(fork, Fork)
    return Schedule(fork, itertools.count(1), evaluate)


def write_all(schedule):
    """Answer what is to be written to the journal; nothing else is asked for."""
    while schedule.begin:
        writing = schedule.begin.pop()
        assert isinstance(writing.request, Save)
        schedule.deliver(writing.ticket, None)


def test_ctrl_c_before_anything_of_a_group_has_begun_begins_nothing():
    """It arrives where the driver has not even looked at what it is asked for."""
    ran, walk = evaluation(parallel(step([], "a"), step([], "b")))
    schedule = scheduled(walk)
    assert [begun.request[0].name for begun in schedule.begin] == ["a", "b"]
    schedule.interrupt(KeyboardInterrupt())
    assert (schedule.begin, schedule.cancel) == ([], [])
    with pytest.raises(StopIteration):
        walk.send(schedule.ended)
    assert statuses(ran) == [("a", "cancelled"), ("b", "cancelled")]
    assert ran.status == "cancelled"


def test_a_group_whose_beginning_is_written_while_the_group_around_it_ends_begins_nothing():
    """The journal has it, and that is all."""
    journal = MemoryJournal()
    journal.create("run-1", "pipeline", journal.codec.encode({}, "inputs"), ())
    inner = parallel(step([], "a"), step([], "b"), name="inner")
    ran, walk = evaluation(parallel(inner, step([], "fails")), recorder=Recorder(journal, "run-1", fingerprint, digest))
    assert isinstance(next(walk), Save)  # the outer one is to be written
    schedule = scheduled(walk)
    (saving,) = [each.ticket for each in schedule.begin if isinstance(each.request, Save)]
    (calling,) = {each.ticket for each in schedule.begin} - {saving}
    schedule.begin.clear()
    schedule.deliver(calling, Raised(ValueError("no")))
    write_all(schedule)
    assert schedule.cancel == [saving]
    schedule.deliver(saving, None)
    write_all(schedule)
    assert (schedule.begin, schedule.ended is None) == ([], False)
    assert isinstance(walk.send(schedule.ended), Save)
    with pytest.raises(StopIteration):
        walk.send(None)
    assert statuses(ran) == [("fails", "failed")]
    assert str(ran.error) == "no"


# -- signals


def test_of_a_bailing_branch_alone_the_writes_are_kept(run):
    """Other branches are stopped as by a failure, but the run has ended well."""
    log = []
    begun = threading.Event()

    @action
    def enough(ctx: Context):
        assert begun.wait(PATIENCE)
        ctx.store["mine"] = 1
        raise Bail("enough")

    bailing = Stage("bailing", [step([], "x", "kept", collect="xs"), enough], data={"too": 2})
    waiting = Stage("waiting", [step([], "y", "dropped", collect="xs"), endless(log, begun)])
    finished = run(parallel(waiting, bailing, name="group") >> one(log, "never"), {"xs": [0]})
    assert (finished.status, finished.reason) == ("bailed", "enough")
    assert dict(finished.store) == {"xs": [0, "kept"], "mine": 1, "too": 2}
    assert log == ["endless cancelled"]
    assert statuses(finished) == [("waiting", "cancelled"), ("bailing", "bailed")]


def test_a_bail_in_a_nested_group_keeps_the_writes_on_its_way_out(run):
    """Those of its branch in each of the groups around it."""

    @action
    def enough(ctx: Context):
        ctx.store["mine"] = 1
        raise Bail("enough")

    inner = parallel(one([], "dropped", 0), one([], "a", 1) >> enough)
    finished = run(parallel(one([], "gone", 0), one([], "b", 2) >> inner, limit=1) >> one([], "never"))
    assert finished.status == "bailed"
    assert dict(finished.store) == {"b": 2, "a": 1, "mine": 1}


def test_a_failure_counts_more_than_a_bail(run):
    """Whoever came first: a call that was under way may fail after another branch bailed."""
    begun, release = threading.Event(), threading.Event()

    def bails(ctx):
        assert begun.wait(PATIENCE)
        ctx.store["k"] = 1
        threading.Timer(0.05, release.set).start()
        raise Bail("enough")

    def fails():
        begun.set()
        assert release.wait(PATIENCE)
        raise ValueError("no")

    finished = run(parallel(act(bails), act(fails)), check=False)
    assert (finished.status, type(finished.error)) == ("failed", ValueError)
    assert dict(finished.store) == {}


def test_suspend_lets_the_other_branches_finish_first(run):
    """Those that have not begun begin; then the run is suspended, and goes no further."""
    log = []

    @action
    def waits(ctx: Context):
        ctx.wait_for("approval")

    group = parallel(waits >> one(log, "never"), later(0.02, "a", log=log), one(log, "b") >> one(log, "c"), limit=2)
    finished = run(group >> one(log, "never"))
    assert (finished.status, sorted(log)) == ("suspended", ["a", "b", "c"])
    assert "approval" in finished.reason
    assert statuses(finished) == [("waits", "suspended"), ("a", "completed"), ("b", "completed"), ("c", "completed")]


def test_a_suspended_run_says_all_that_its_branches_wait_for(run):
    """Once each, groups in groups included; what else they say comes behind."""

    def waiting(key):
        return action(name=key)(lambda ctx: ctx.wait_for(key))

    @action
    def sleeps():
        raise Suspend("until monday")

    group = parallel(waiting("legal"), parallel(waiting("press"), waiting("boss")), waiting("legal"))
    assert run(group).reason == "waiting for 'legal', 'press', 'boss'"
    nested = parallel(parallel(sleeps, group), sleeps, waiting("me"))
    assert run(nested).reason == "waiting for 'legal', 'press', 'boss', 'me'; until monday"
    assert sorted(wait.key for wait in run(group, {"legal": 1, "boss": 2}).waits) == ["legal", "press"]  # one has it


@pytest.mark.parametrize("error", [ValueError("no"), Bail("enough")], ids=["failure", "bail"])
def test_a_failure_or_bail_counts_more_than_a_suspension(run, error):
    """The run is over: there is nothing to wait for."""

    @action
    def waits():
        raise Suspend("waiting")

    finished = run(parallel(waits, failing([], "ends", error)), check=False)
    assert finished.status == ("bailed" if isinstance(error, Bail) else "failed")


def test_no_middleware_of_the_branch_swallows_a_signal(run):
    """`retry` and `recover` leave signals alone, inside of groups and around them."""
    log = []

    @action
    def enough():
        log.append("enough")
        raise Bail("enough")

    layers = {"use": [retry(on=Exception, wait=0), recover(on=Exception)]}
    finished = run(pipeline(parallel(Stage("s", [enough], **layers)), **layers))
    assert (finished.status, log) == ("bailed", ["enough"])


# -- middleware


def test_use_stages_and_use_actions_reach_into_groups(run):
    """And into what is inserted there, outermost first."""
    log = []
    inner = pipeline(one(log, "b", lambda: one(log, "c")), use_actions=[around(log, "i")])
    flow = pipeline(
        parallel(one(log, "a"), inner, limit=1), use_stages=[around(log, "s")], use_actions=[async_around(log, "o")]
    )
    run(flow)
    assert log == [
        "+s", "+o", "a", "-o", "-s",
        "+s", "+o", "+i", "b", "-i", "-o", "-s",
        "+s", "+o", "+i", "c", "-i", "-o", "-s",
    ]  # fmt: skip


def test_what_middleware_gives_reaches_into_its_branch_only(run):
    """Also where several give a value of the same name."""

    def branch(name):
        return Stage(name, [act(lambda conn: conn, f"use {name}", collect="xs")], use=[provide(conn=f"conn {name}")])

    flow = pipeline(
        parallel(branch("a"), branch("b"), act(lambda conn: conn, "c", collect="xs")), use=[provide(conn=0)]
    )
    finished = run(flow)
    assert finished["xs"] == ["conn a", "conn b", 0]
    assert "conn" not in finished.store


def test_a_retry_in_a_branch_repeats_what_it_stands_around(run):
    """What the failed attempts wrote and collected is dropped, what the other branch did is untouched."""
    log = []
    shaky = Stage("shaky", [step(log, "x", 1, collect="xs"), flaky(log, "f", 2, "at last")], use=[again(3)])
    finished = run(parallel(shaky, step(log, "calm", 2, collect="xs")))
    assert finished["xs"] == [1, 2]
    assert finished["f"] == "at last"
    assert (log.count("x"), log.count("calm")) == (3, 1)
    assert stage_record(finished, "shaky").attempts == 3


def test_a_retry_around_a_group_repeats_all_branches(run):
    """Its records are those of the last attempt; what failed in several branches is one failure to it."""
    log = []
    group = parallel(flaky(log, "f", 2), flaky(log, "g", 1), step(log, "x", 1, collect="xs"))
    finished = run(pipeline(group, use=[retry(on=(ValueError, ExceptionGroup), attempts=4, wait=0)]))
    assert finished["xs"] == [1]
    assert names(finished) == ["f", "g", "x"]
    assert log.count("f") in (3, 4)  # whether `g` fails in an attempt of its own depends on who is first


def test_a_retry_does_not_take_a_stopped_branch_for_a_failed_one(run):
    """What another branch ended is not begun again."""
    log = []
    begun = threading.Event()
    waiting = Stage("waiting", [endless(log, begun)], use=[retry(on=Exception, wait=0), recover(on=Exception)])
    finished = run(parallel(waiting, fails_after(begun, ValueError("no"))), check=False)
    assert log == ["endless cancelled"]
    assert isinstance(finished.error, ValueError)


def test_a_branch_that_recovers_has_not_failed(run):
    """The others go on; what it wrote before is merged."""
    log = []
    guarded = Stage(
        "guarded", [step(log, "x", 1), failing(log, "boom", ValueError("no"))], use=[recover(on=ValueError)]
    )
    finished = run(parallel(guarded >> one(log, "after", 2), later(0.02, "b", 3)))
    assert dict(finished.store) == {"x": 1, "after": 2, "b": 3}
    assert statuses(finished) == [("guarded", "failed"), ("after", "completed"), ("b", "completed")]
    assert stage_record(finished, "guarded").recovered


def test_a_group_that_is_recovered_has_merged_nothing(run):
    """The run goes on behind it."""
    guarded = pipeline(parallel(one([], "a", 1), failing([], "boom", ValueError("no"))), use=[recover(on=ValueError)])
    finished = run(guarded >> one([], "end", 2))
    assert (finished.status, dict(finished.store)) == ("completed", {"end": 2})


def test_atomic_works_on_the_store_of_its_branch(run):
    """And leaves what other branches do alone."""
    shaky = Stage("s", [step([], "x", 1), failing([], "boom", ValueError("no"))], use=[recover(on=ValueError), atomic])
    assert dict(run(parallel(shaky, later(0.01, "b", 3))).store) == {"b": 3}


def test_what_middleware_writes_stays_in_its_branch_until_the_end(run):
    """`call.store` is the store of the branch."""
    seen = []

    def notes(call):
        yield
        call.store[f"note {call.stage.name}"] = sorted(call.store)

    branches = [Stage(name, [later(0.005, f"in {name}", name)], use=[notes]) for name in "ab"]
    finished = run(parallel(*branches) >> act(lambda ctx: seen.extend(sorted(ctx.store)), "look"))
    assert finished["note a"] == ["in a"]
    assert finished["note b"] == ["in b"]
    assert seen == ["in a", "in b", "note a", "note b"]


def test_a_sleeping_branch_keeps_no_other_from_going_on(run):
    """Neither in its clean-up: the pauses of all branches pass at the same time."""

    def patient(call):
        yield Sleep(0.1)
        yield
        yield Sleep(0.1)

    began = time.monotonic()
    run(parallel(*(Stage(f"s{n}", [step([], f"a{n}")], use=[patient]) for n in range(10))))
    assert 0.2 <= time.monotonic() - began < 1.9  # one after the other, 2


def test_a_pause_ends_when_another_branch_fails(run):
    """Its middleware is unwound at once."""
    log = []
    begun = threading.Event()

    def patient(call):
        try:
            begun.set()
            yield Sleep(PATIENCE)
            yield
        finally:
            log.append("cleaned up")

    began = time.monotonic()
    group = parallel(Stage("patient", [step(log, "never")], use=[patient]), fails_after(begun, ValueError("no")))
    with pytest.raises(ValueError, match="no"):
        run(group)
    assert time.monotonic() - began < PATIENCE / 2
    assert log == ["cleaned up"]


# -- timeouts


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync action", "coroutine"])
def test_a_timeout_in_a_branch_is_a_failure_of_that_branch(run, asynchronous):
    """A coroutine is cancelled, a call is given up; it can be recovered there, and nobody waits for it."""
    release = threading.Event()

    def body():
        release.wait(PATIENCE)
        return "late"

    async def coroutine():
        await asyncio.sleep(PATIENCE)

    slow = act(coroutine if asynchronous else body, "slow", timeout=0.03)
    began = time.monotonic()
    finished = run(parallel(slow, one([], "b", 1)), check=False)
    assert isinstance(finished.error, ActionTimeout)
    assert action_record(finished, "slow", "slow").status == "failed"
    guarded = Stage("guarded", [slow], use=[recover(on=TimeoutError)])
    assert dict(run(parallel(guarded, one([], "b", 1))).store) == {"b": 1}
    assert time.monotonic() - began < PATIENCE / 2
    release.set()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync action", "coroutine"])
def test_the_timeout_counts_for_each_attempt_in_a_branch(run, asynchronous):
    """A retry has the whole time again."""
    attempts = []

    def body():
        attempts.append(1)
        time.sleep(0.3 if len(attempts) < 3 else 0)
        return "at last"

    async def coroutine():
        attempts.append(1)
        await asyncio.sleep(0.3 if len(attempts) < 3 else 0)
        return "at last"

    options = {"timeout": 0.1, "use": [retry(on=TimeoutError, wait=0)]}
    slow = act(coroutine if asynchronous else body, "slow", **options)
    finished = run(parallel(slow, one([], "b")))
    assert (finished["slow"], len(attempts)) == ("at last", 3)


def test_each_branch_has_its_own_time(run):
    """Many that end in time, one that does not."""
    branches = [later(0.01, f"b{n}", n, collect="xs", asynchronous=n % 2 == 0, timeout=5) for n in range(10)]
    slow = act(lambda: time.sleep(0.4), "slow", timeout=0.1, use=[recover(on=ActionTimeout, outcome="gave up")])
    finished = run(parallel(*branches, slow))
    assert finished["xs"] == list(range(10))
    assert finished["slow"] == "gave up"


def test_what_a_given_up_call_does_later_has_no_effect(run):
    """Its writes are dropped, whoever is still running."""
    release, ended = threading.Event(), threading.Event()

    @action(timeout=0.02, use=[recover(on=TimeoutError)])
    def slow(ctx: Context):
        release.wait(PATIENCE)
        try:
            with suppress(ContextEndedError):
                ctx.store["late"] = True
            ctx.insert(Stage("late"))
        finally:
            ended.set()

    def releases():
        time.sleep(0.1)
        release.set()
        assert ended.wait(PATIENCE)

    finished = run(parallel(slow, act(releases)))
    assert dict(finished.store) == {}
    assert names(finished) == ["slow", "releases"]


def test_generators_and_what_is_awaited_later_have_their_timeout_in_branches_too(run):
    """A generator is run to its end in a thread; a returned awaitable is awaited in the loop."""

    def drips():
        for _ in range(100):
            time.sleep(0.02)
            yield 1

    def promises():
        return asyncio.sleep(PATIENCE)

    async def async_drips():
        while True:
            await asyncio.sleep(0.02)
            yield 1

    for function in (drips, promises, async_drips):
        finished = run(parallel(act(function, timeout=0.1), one([], "b")), check=False)
        assert isinstance(finished.error, ActionTimeout), function
        assert finished.elapsed < 2


# -- cancellation


def test_cancelling_arun_cancels_the_branches_and_unwinds_their_middleware():
    """Coroutines of nested groups, too; the exception that comes out is the cancellation."""
    log = []
    begun = threading.Event()

    async def careful(call):
        try:
            yield
        finally:
            await asyncio.sleep(0.001)
            log.append(f"{call.stage.name} cleaned up")

    first = Stage("first", [endless(log, threading.Event(), "e1")], use=[careful])
    second = Stage("second", [endless(log, begun, "e2")], use=[careful])
    run = cancelling(parallel(first, parallel(second, one(log, "quick")), Stage("third")) >> one(log, "never"), begun)
    assert run.status == "cancelled"
    assert sorted(log) == ["e1 cancelled", "e2 cancelled", "first cleaned up", "quick", "second cleaned up"]
    assert statuses(run) == [
        ("first", "cancelled"), ("second", "cancelled"), ("quick", "completed"), ("third", "completed"),
    ]  # fmt: skip
    assert dict(run.store) == {}


def test_cancelling_arun_waits_for_calls_in_threads():
    """They cannot be cancelled: when `arun` is over, nothing of it is running."""
    log = []
    begun, release = threading.Event(), threading.Event()
    threading.Timer(0.1, release.set).start()
    run = cancelling(parallel(blocks(begun, release, log), endless(log, threading.Event())), begun)
    assert sorted(log) == ["blocks", "endless cancelled"]
    assert run.status == "cancelled"


def test_cancelling_arun_twice_is_no_more_than_cancelling_it_once():
    """The clean-up goes on to its end."""
    log = []
    begun = threading.Event()

    async def careful(call):
        try:
            yield
        finally:
            await asyncio.sleep(0.05)
            log.append("cleaned up")

    flow = parallel(Stage("s", [endless(log, begun)], use=[careful]), Stage("other"))

    async def main():
        task = asyncio.create_task(flow.arun())
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert log == ["endless cancelled", "cleaned up"]


def test_a_failure_after_the_cancellation_does_not_hide_it():
    """What came from outside has the last word."""
    begun = threading.Event()

    async def breaks():
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("clean-up")

    assert cancelling(parallel(act(breaks), Stage("other")), begun).status == "cancelled"


def test_the_timeout_of_asyncio_around_arun_works():
    """It is a cancellation like others, and no concern of ours what it becomes outside."""
    log = []

    async def main():
        async with asyncio.timeout(0.05):
            await parallel(endless(log, threading.Event()), Stage("other")).arun()

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert log == ["endless cancelled"]


def test_ctrl_c_stops_the_group_and_waits_for_calls_in_threads(interrupt):
    """Coroutines are cancelled and middleware unwound before it comes out."""
    log = []
    begun, waits, release = threading.Event(), threading.Event(), threading.Event()

    def interrupts():
        assert begun.wait(PATIENCE)
        assert waits.wait(PATIENCE)
        interrupt()
        threading.Timer(0.1, release.set).start()

    waiting = Stage("waiting", [endless(log, waits)], use=[around(log, "m")])
    group = parallel(waiting, blocks(begun, release, log) >> one(log, "never"), act(interrupts))
    with pytest.raises(KeyboardInterrupt) as caught:
        group.run(check=False)
    assert sorted(log) == ["+m", "-m", "blocks", "endless cancelled"]
    run = Run.of(caught.value)
    assert run.status == "cancelled"
    assert statuses(run) == [("waiting", "cancelled"), ("blocks", "completed"), ("interrupts", "completed")]


def test_ctrl_c_before_all_branches_have_begun_begins_no_more(interrupt):
    """Those that wait for their turn are not reached."""
    log = []

    def interrupts():
        interrupt()
        time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt) as caught:
        parallel(act(interrupts), one(log, "never"), limit=1).run()
    assert log == []
    assert names(Run.of(caught.value)) == ["interrupts"]


def test_ctrl_c_twice_is_no_more_than_once(interrupt):
    """Nothing is lost of the clean-up."""
    log = []
    begun, release = threading.Event(), threading.Event()

    def interrupts():
        assert begun.wait(PATIENCE)
        interrupt()
        time.sleep(0.05)
        interrupt()
        release.set()

    with pytest.raises(KeyboardInterrupt) as caught:
        parallel(Stage("s", [blocks(begun, release, log)], use=[around(log, "m")]), act(interrupts)).run()
    assert log == ["+m", "blocks", "-m"]
    assert Run.of(caught.value).status == "cancelled"


@pytest.mark.skipif(sys.gettrace() is not None, reason="an interrupt in coverage's tracer leaves its lock locked")
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it may come in a weak reference's callback
@pytest.mark.parametrize("seconds", [number / 1000 for number in range(2, 42, 4)])
def test_ctrl_c_at_any_moment_ends_the_run(interrupt, seconds):
    """While branches begin, run, or are merged: the run ends, as cancelled, or was complete before."""
    branches = [later(0.0005, f"b{n}", n, collect="xs") for n in range(300)]
    timer = threading.Timer(seconds, interrupt)
    try:
        timer.start()  # a busy machine may take longer to start a thread than the timer waits
        run = pipeline(*(parallel(*branches, name=f"g{n}") for n in range(10))).run()
        timer.join()
    except KeyboardInterrupt as error:
        try:
            assert Run.of(error).status == "cancelled"
        except LookupError:
            pass  # it came before the run had begun, or when it was over
    else:
        assert run.status == "completed"


# -- context variables


def test_a_coroutine_has_left_the_variables_of_its_branch_when_that_continues(monkeypatch):
    """In a sync run the loop is in a thread of its own, and may be slow: two threads cannot be in one context."""
    report = Performer.report

    def reporting(performer, ticket, answer):
        """Report, and let the other thread continue."""
        report(performer, ticket, answer)
        time.sleep(0.01)

    monkeypatch.setattr(Performer, "report", reporting)

    @action
    async def sets():
        VARIABLE.set("set")

    reads = step([], "reads", VARIABLE.get)
    run = parallel(Stage("s", [sets, reads]), Stage("t", [step([], "other", VARIABLE.get)]), limit=1).run()
    assert (run["reads"], run["other"]) == ("set", "default")


def test_context_variables_are_copied_into_the_branches(run):
    """Sync actions, coroutines and generators see what the caller has set; what they set is not seen outside."""
    seen = []

    def looks():
        seen.append(VARIABLE.get())
        VARIABLE.set("changed")

    async def coroutine():
        looks()

    def generator():
        looks()
        yield

    async def async_generator():
        looks()
        yield

    functions = (looks, coroutine, generator, async_generator)
    token = VARIABLE.set("of the caller")
    try:
        run(parallel(*(act(function, collect="xs") for function in functions)))
        assert VARIABLE.get() == "of the caller"
    finally:
        VARIABLE.reset(token)
    assert seen == ["of the caller"] * 4


def test_what_is_set_in_a_branch_is_seen_in_all_of_it_and_nowhere_else(run):
    """From one action to the next, of either kind, in and out of nested groups; as on the main line."""
    seen = {}

    def sets(name):
        return act(lambda: VARIABLE.set(name) and None, f"set {name}")

    def sets_async(name):
        async def body():
            VARIABLE.set(name)

        return act(body, f"set {name}")

    def looks(name):
        return act(lambda: seen.update({name: VARIABLE.get()}), f"look {name}")

    def looks_async(name):
        async def body():
            seen[name] = VARIABLE.get()

        return act(body, f"look {name}")

    inner = parallel(looks("inner a") >> sets("x"), looks_async("inner b"))
    branches = (
        sets("a") >> later(0.01, "w1") >> looks("a") >> looks_async("a too") >> inner >> looks("after inner"),
        sets_async("b") >> later(0.01, "w2") >> looks("b") >> looks_async("b too"),
        later(0.005, "w3") >> looks("c"),
    )
    run(parallel(*branches) >> looks("end"))
    assert seen == {
        "a": "a", "a too": "a", "inner a": "a", "inner b": "a", "after inner": "a",
        "b": "b", "b too": "b", "c": "default", "end": "default",
    }  # fmt: skip


@pytest.mark.parametrize("asynchronous", [False, True], ids=["generator", "async generator"])
def test_context_variables_set_by_middleware_stay_in_their_branch(run, asynchronous):
    """They are seen inside, and reset by the same token."""
    seen = []

    def scoped(call):
        token = VARIABLE.set(call.stage.name)
        try:
            yield Sleep(0.01)
            yield
        finally:
            VARIABLE.reset(token)

    async def async_scoped(call):
        VARIABLE.set(call.stage.name)
        await asyncio.sleep(0.01)
        yield

    def looks(ctx):
        seen.append((ctx.stage.name, VARIABLE.get()))

    async def looks_async(ctx):
        looks(ctx)

    layers = [async_scoped if asynchronous else scoped]
    run(parallel(*(Stage(name, [act(looks), act(looks_async)], use=layers) for name in "abc")))
    assert sorted(seen) == [("a", "a"), ("a", "a"), ("b", "b"), ("b", "b"), ("c", "c"), ("c", "c")]
    assert VARIABLE.get() == "default"


def test_what_a_given_up_call_sets_disturbs_nobody(run):
    """It may still be in its context when its branch goes on."""
    release = threading.Event()

    @action(timeout=0.02, use=[recover(on=TimeoutError)])
    def slow():
        VARIABLE.set("slow")
        release.wait(PATIENCE)

    looks = act(lambda: VARIABLE.get(), "looks")
    finished = run(parallel(slow >> looks >> act(release.set, "release"), one([], "b")))
    assert finished["looks"] == "default"


# -- the sequential model

# A unit of a random workflow: a stage, given by its actions; a row of units; or a group of them. Each action has a
# number of its own, the seconds it takes, its kind, and what it inserts.


def actions_of(units):
    """Random actions: a number comes later; 0 or a few milliseconds; sync or not; what to do; what to insert."""
    return st.tuples(
        st.just("action"),
        st.sampled_from([0, 0, 0.001, 0.003]),
        st.booleans(),
        st.sampled_from(["write", "collect", "shared", "context", "remove"]),
        st.just([]) if units is None else st.lists(units, max_size=2),
    )


def units_of(units):
    return st.one_of(
        st.tuples(st.just("stage"), st.lists(actions_of(units), max_size=3)),
        st.tuples(st.just("row"), st.lists(units, max_size=3)),
        st.tuples(st.just("group"), st.lists(units, max_size=4), st.sampled_from([None, None, 1, 2])),
    )


LEAF = st.tuples(st.just("stage"), st.lists(actions_of(None), min_size=1, max_size=3))
UNITS = st.recursive(LEAF, units_of, max_leaves=12)


def numbered(tree, numbers):
    """The same tree, in which every part has a number of its own."""
    kind = tree[0]
    number = next(numbers)
    if kind == "action":
        return (*tree[:4], [numbered(unit, numbers) for unit in tree[4]], number)
    return (kind, [numbered(part, numbers) for part in tree[1]], *tree[2:], number)


def built(tree):
    """The unit that a tree stands for."""
    kind, parts, *rest = tree
    if kind == "stage":
        return Stage(f"stage {rest[-1]}", [built_action(part) for part in parts], data={f"data {rest[-1]}": rest[-1]})
    if kind == "row":
        return pipeline(*map(built, parts), name=f"row {rest[-1]}")
    merge = {"shared": lambda one, other: f"({one}|{other})"}
    return parallel(*map(built, parts), name=f"group {rest[-1]}", limit=rest[0], merge=merge)


def built_action(tree):
    """What an action writes depends on all that it sees: the keys of the store and what is collected."""
    _, seconds, asynchronous, what, inserted, number = tree
    options = {
        "write": {"returns": f"own {number}"},
        "collect": {"collect": "xs"},
        "shared": {"returns": "shared"},
    }.get(what, {"returns": None})

    def body(ctx):
        store = ctx.store
        seen = f"{number}:{len(store)}:{'.'.join(map(str, store['xs']))}:{store.get('shared')}"
        if what == "context":
            store[f"own {number}"] = seen
            store.append("ys", number)
        elif what == "remove" and f"own {number - 1}" in store:
            del store[f"own {number - 1}"]
        ctx.insert(*map(built, inserted))
        return f"{number}" if what == "collect" else seen

    def sync(ctx):
        time.sleep(seconds)
        return body(ctx)

    async def coroutine(ctx):
        await asyncio.sleep(seconds)
        return body(ctx)

    return act(coroutine if asynchronous else sync, f"action {number}", **options)


class Model:
    """The store of a branch in the model: what is there, and what was written since it began."""

    def __init__(self, values):
        self.values = {key: list(value) if isinstance(value, list) else value for key, value in values.items()}
        self.puts, self.removed, self.added = {}, [], {}

    def put(self, key, value):
        self.values[key] = self.puts[key] = value

    def remove(self, key):
        del self.values[key]
        if self.puts.pop(key, None) is None:
            self.removed.append(key)

    def add(self, key, items):
        if items:
            self.values.setdefault(key, []).extend(items)
            self.added.setdefault(key, []).extend(items)


def modelled(tree, model, order):
    """Evaluate a tree in the plainest way: one after the other, a copy for each branch."""
    kind, parts, *rest = tree
    if kind == "row":
        for part in parts:
            modelled(part, model, order)
    elif kind == "stage":
        order.append(f"stage {rest[-1]}")
        model.put(f"data {rest[-1]}", rest[-1])
        inserted = []
        for _, _, _, what, units, number in parts:
            values = model.values
            seen = f"{number}:{len(values)}:{'.'.join(map(str, values['xs']))}:{values.get('shared')}"
            if what == "collect":
                model.add("xs", [f"{number}"])
            elif what == "context":
                model.put(f"own {number}", seen)
                model.add("ys", [number])
            elif what == "remove":
                if f"own {number - 1}" in values:
                    model.remove(f"own {number - 1}")
            else:
                model.put("shared" if what == "shared" else f"own {number}", seen)
            inserted += units
        for unit in inserted:
            modelled(unit, model, order)
    else:
        branches = [Model(model.values) for _ in parts]
        for part, branch in zip(parts, branches, strict=True):
            modelled(part, branch, order)
        shared = [branch.puts["shared"] for branch in branches if "shared" in branch.puts]
        for branch in branches:
            for key, value in branch.puts.items():
                model.put(key, value)
            for key in branch.removed:
                model.remove(key)
            for key, items in branch.added.items():
                model.add(key, items)
        if shared:
            folded, *others = shared
            for other in others:
                folded = f"({folded}|{other})"
            model.put("shared", folded)


def flattened(tree, found):
    """All actions of a tree, by number."""
    if tree[0] == "action":
        found.append(tree)
        parts = tree[4]
    else:
        parts = tree[1]
    for part in parts:
        flattened(part, found)
    return found


@settings(deadline=None, max_examples=examples(30), suppress_health_check=[HealthCheck.too_slow])
@given(tree=st.tuples(st.just("row"), st.lists(UNITS, min_size=1, max_size=4)))
def test_random_workflows_equal_the_sequential_model(tree):
    """Nested groups, insertions, collects, removals, random delays: in threads and in a loop, the same as one by one."""
    numbers = iter(range(10**6))
    tree = numbered(tree, numbers)
    model, order = Model({"xs": []}), []
    modelled(tree, model, order)
    flow = built(tree)
    runs = [flow.run({"xs": []}), asyncio.run(flow.arun({"xs": []}))]
    for run in runs:
        assert dict(run.store) == model.values
        assert names(run) == order
        assert len(actions_run(run)) == len(flattened(tree, []))
    assert list(runs[0].store) == list(runs[1].store)


def test_what_was_refused_in_one_run_is_told_nothing_by_the_next(run):
    """Notes and causes are written to exceptions, so that no two runs may have one in common."""
    group = parallel(act(lambda: 1 / 0, "fails"), act(lambda: None, "idle") >> act(lambda: None, "never"), limit=1)
    for _ in range(2):
        result = run(group, check=False, executor=serial())
        for record in result.stages:
            assert len(getattr(record.error, "__notes__", [])) <= 1


# -- a branch that is a single call


def test_a_branch_that_is_a_single_call_says_what_it_lacks(run):
    """As any action does; and it stops the others."""
    log = []

    def needs(nothing_supplies_this):
        log.append("needs")

    opens = act(lambda: None, "opens")  # which may write anything, as far as one can know before the run
    with pytest.raises(MissingInputError, match="'needs' of stage 'needs' needs 'nothing_supplies_this'") as caught:
        run(opens >> parallel(one(log, "a"), act(needs), one(log, "b"), limit=1))
    assert log == ["a"]
    assert statuses(Run.of(caught.value)) == [("opens", "completed"), ("a", "completed"), ("needs", "failed")]


def _later():
    async def value():
        return 7

    return value()


def _yields():
    yield Stage("yielded", [one([], "in yielded")])


RESULTS = {
    "nothing": lambda: None,
    "a number": lambda: 3,
    "a list": lambda: [1, 2],
    "a tuple": lambda: (1, 2),
    "an object": lambda: ValueError("as data"),
    "a stage": lambda: Stage("inserted", [one([], "a"), one([], "b")]),
    "an action": lambda: one([], "inserted"),
    "a stage that fails": lambda: Stage("inserted", [failing([], "fails")]),
    "stages that fail later": lambda: [one([], "first"), failing([], "fails")],
    "a mix": lambda: [one([], "first"), 3],
    "an awaitable": _later,
    "a generator": _yields,
    "a failure": lambda: 1 / 0,
    "a bail": lambda: (_ for _ in ()).throw(Bail("enough")),
    "a suspension": lambda: (_ for _ in ()).throw(Suspend("wait")),
}
OPTIONS = [{}, {"collect": "xs"}, {"collect": "no list"}, {"returns": None}, {"returns": ("a", "b")}, {"tags": ["t"]}]


def single(index, result, options, needs, in_stage):
    def body(xs, text="", **more):
        return RESULTS[result]()

    def lacking(nothing_supplies_this):
        return RESULTS[result]()

    unit = act(lacking if needs else body, f"call {index}", **options)
    return Stage(f"stage {index}", [unit], tags=["t"]) if in_stage else unit


def outcome(record):
    """What a record says, but for the time."""
    error = record.error and (type(record.error), text_of(record.error).rpartition("run ")[0])
    rest = record.name, record.status, record.inserted_by, error, record.attempts, record.recovered
    return *rest, [unit.name for unit in record.inserted]


calls = st.tuples(
    st.sampled_from(sorted(RESULTS)), st.sampled_from(OPTIONS), st.sampled_from([False] * 9 + [True]), st.booleans()
)


@settings(deadline=None, max_examples=examples(60))
@given(branches=st.lists(calls, min_size=1, max_size=4), history=st.sampled_from([None, 0, 2]))
def test_a_branch_that_is_a_single_call_is_like_any_other(branches, history):
    """Whoever looks on sees the same: it is the observer who makes the evaluator take the long way."""
    if len(branches) > 1:  # a coroutine is cancelled when another branch fails, if it has not been quicker
        branches = [branch for branch in branches if branch[0] != "an awaitable"]
    group = parallel(*(single(index, *branch) for index, branch in enumerate(branches)))
    flow = act(lambda: group, "insert") >> one([], "after")
    inputs = {"xs": [0], "no list": 1}

    def run(**options):
        return flow.run(inputs, check=False, history=history, executor=serial(), **options)

    short, long = run(), run(observers=[lambda event: None])
    assert dict(short.store) == dict(long.store) or "an object" in {result for result, *_ in branches}
    assert list(short.store) == list(long.store)
    assert (short.status, type(short.error), short.reason, short.forgotten) == (
        long.status,
        type(long.error),
        long.reason,
        long.forgotten,
    )
    assert [outcome(stage) for stage in short.stages] == [outcome(stage) for stage in long.stages]
    assert [stage.scope for stage in short.stages] == [stage.scope for stage in long.stages]
    assert [outcome(a) for stage in short.stages for a in stage.actions] == [
        outcome(a) for stage in long.stages for a in stage.actions
    ]
    if history is None and not any(result == "a generator" for result, *_ in branches):
        again_short, again_long = (flow.resume(each, check=False, executor=serial()) for each in (short, long))
        assert list(again_short.store) == list(again_long.store)
        assert [outcome(stage) for stage in again_short.stages] == [outcome(stage) for stage in again_long.stages]


def test_a_run_that_was_interrupted_in_a_reducer_is_resumed(interrupt):
    """The branches have run, whatever became of their merge."""
    calls = []

    def adding(one, other):
        if len(calls) == 2:
            calls.append("interrupted")
            interrupt()
        return one + other

    branches = [step(calls, name, 1, returns="n") for name in ("a", "b")]
    flow = parallel(*branches, merge={"n": adding}) >> act(lambda n: n, "after")
    with pytest.raises(KeyboardInterrupt) as caught:
        flow.run()
    assert (flow.resume(Run.of(caught.value))["after"], calls) == (2, ["a", "b", "interrupted"])


def test_a_conflict_leaves_no_branch_out(run):
    """Whatever its branches do and when: each of a fixed group has begun when two of them disagree."""
    ran = []

    @action(returns="third")
    def third():
        ran.append("third")

    group = parallel(Stage("a", data={"k": 1}), Stage("b", data={"k": 2}), Stage("c", [third]))
    found = run(group, check=False)
    assert isinstance(found.error, WriteConflictError)
    assert ran == ["third"]
    assert [record.name for record in found.stages] == ["a", "b", "c"]


def test_a_conflict_shows_the_values(run):
    """Shortened: 1 and True look alike in a store; and how a branch that writes no value disagrees."""
    made = [action(lambda value=value: value, name=f"a{value!r:.3}", returns="k") for value in (1, True)]
    with pytest.raises(WriteConflictError, match="wrote different values to the key 'k': 1 and True"):
        run(parallel(*made))
    collects = action(lambda: 1, name="collects", collect="k")
    with pytest.raises(WriteConflictError, match="one of them collects or deletes"):
        run(parallel(made[0], collects))


def test_a_failing_merge_function_is_placed(run):
    """By its key and the branches whose values it was given."""
    made = [action(lambda value=value: value, name=f"a{value}", returns="k") for value in (1, 0)]
    with pytest.raises(ZeroDivisionError) as raised:
        run(parallel(*made, merge={"k": lambda one, other: one // other}))
    assert "in merge= of the key 'k', for the branches 0 ('a1') and 1 ('a0')" in raised.value.__notes__[0]


@pytest.mark.parametrize("run", [lambda flow: flow.run(), lambda flow: asyncio.run(flow.arun())], ids=["run", "arun"])
def test_a_branch_that_has_ended_is_freed_at_once(run):
    """Without waiting for a garbage collection: a million branches need the memory of those at work."""
    alive: list[int] = []
    seen = weakref.WeakSet()

    class Large:
        pass

    def work():
        large = Large()
        seen.add(large)
        alive.append(len(seen))

    gc.collect()
    gc.disable()
    try:
        before = sum(type(each).__name__ == "Branch" for each in gc.get_objects())
        kept = run(parallel(*[action(name="work")(work)] * 50, limit=1))
        after = sum(type(each).__name__ == "Branch" for each in gc.get_objects())
    finally:
        gc.enable()
    assert len(kept.stages) == 50
    assert max(alive) == 1
    assert after - before <= 2  # that of the run itself


IN_PLACE = {
    "taken out": lambda items: items.pop(0),
    "put in front": lambda items: items.insert(0, "first"),
    "reversed": lambda items: items.reverse(),
    "cleared": lambda items: items.clear(),
    "replaced": lambda items: items.__setitem__(0, "other"),
    "appended": lambda items: items.append("last"),
    "extended and cut": lambda items: items.__delitem__(slice(1, None)),
    "nothing": lambda items: None,
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("change", IN_PLACE.values(), ids=IN_PLACE)
def test_a_branch_that_changes_a_collected_list_in_place_leaves_it_as_it_would_alone(run, change, streamed):
    """Before the first item is collected and after that, whatever becomes of the items from outside."""
    add = action(name="add", collect="items")(lambda: "added")
    changes = action(name="changes")(lambda items: change(items) and None)
    for row in (add >> changes, add >> changes >> add, add >> add >> changes >> add):
        alone = run(row, {"items": ["x", "y"]})["items"]
        group = parallel(stream(lambda row=row: [row])) if streamed else parallel(row, one([], "other"))
        assert run(group, {"items": ["x", "y"]})["items"] == alone


def test_two_branches_conflict_if_one_changes_a_collected_list_in_place(run):
    """Their items cannot be put in an order."""
    add = action(name="add", collect="items")(lambda: "added")
    turn = action(name="turn")(lambda items: items.reverse())
    finished = run(parallel(add >> turn, add.with_options(name="more")), {"items": ["x", "y"]}, check=False)
    assert isinstance(finished.error, WriteConflictError)


@pytest.mark.parametrize("limit", [1, None])
def test_a_group_keeps_no_result_but_the_last(limit):
    """Of a run in memory, which can be resumed; the others are gone as soon as their branches are merged."""
    alive = weakref.WeakSet()

    class Token:
        def __init__(self):
            alive.add(self)

    most = []
    made = action(name="made", returns="token")(lambda: most.append(len(alive)) or Token())

    def drop(ctx):
        del ctx.store["token"]

    row = made >> action(drop, name="drop")
    group = parallel(*[pipeline(row, name=f"b{number}") for number in range(20)], limit=limit)
    finished = group.run(executor=serial())
    assert isinstance(finished.result, Token)
    assert len(alive) == 1
    if limit == 1:
        assert max(most) <= 2
