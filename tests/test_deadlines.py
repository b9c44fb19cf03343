"""Deadlines: the `timeout` of stages, pipelines and runs. What is under way is cancelled, and nothing more begins."""

import asyncio
import contextlib
import gc
import pickle
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import count
from multiprocessing import get_context

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import actions_run, completed, examples, stage_record, statuses

from flowdeco import Bail, Context, Sleep, Stage, Suspend, action, parallel, pipeline, stage, stream
from flowdeco.durable import MemoryJournal, SqliteJournal
from flowdeco.engine.deadlines import Deadline
from flowdeco.errors import DefinitionError, OutOfTime, UnitTimeout, WiringError
from flowdeco.events import Message
from flowdeco.executors import serial
from flowdeco.middleware import atomic, recover, retry
from flowdeco.testing import FlowRunner

SOON = 0.05
LATER = 0.8  # where something is to come to its end before that
LONG = 30.0
LOG = []


@pytest.fixture(autouse=True)
def no_log():
    """Each test has its own."""
    LOG.clear()


@action
def first():
    LOG.append("first")


@action
def last():
    LOG.append("last")


@action
async def hangs():
    LOG.append("hangs")
    try:
        await asyncio.sleep(LONG)
    finally:
        LOG.append("cancelled")


@action
def overruns():
    LOG.append("overruns")
    time.sleep(SOON * 1.5)
    return "done"


@stage(timeout=SOON)
def importable():
    action(first)


@stage(timeout=SOON)
def template(n: int):
    @action
    async def waits():
        await asyncio.sleep(LONG)


@action
def importable_constant():
    return 1


@action
def fails():
    raise ValueError("no")


UNFINISHED = Stage("s", [fails])


def swallowing(call):
    """Hide any failure of the target."""
    try:
        yield
    except BaseException as error:
        LOG.append(type(error))


def noting(call):
    """Note what is raised at its `yield`."""
    try:
        yield
    except BaseException as error:
        LOG.append(type(error))
        raise


def after_a_pause(call):
    yield Sleep(LONG)
    yield


def failed(run, flow, *args, **options):
    """The failed run of a flow."""
    found = run(flow, *args, check=False, **options)
    assert found.status == "failed"
    return found


# -- definitions


@pytest.mark.parametrize("timeout", [0, -1, True, float("nan"), "5"])
@pytest.mark.parametrize(
    "make",
    [
        lambda timeout: Stage("s", timeout=timeout),
        lambda timeout: Stage("s").with_options(timeout=timeout),
        lambda timeout: pipeline(Stage("s"), timeout=timeout),
        lambda timeout: pipeline(Stage("s")).with_options(timeout=timeout),
        lambda timeout: stage(timeout=timeout)(lambda n: None),
        lambda timeout: Stage("s").run(timeout=timeout),
        lambda timeout: asyncio.run(Stage("s").arun(timeout=timeout)),
        lambda timeout: UNFINISHED.resume(UNFINISHED.run(check=False), timeout=timeout),
    ],
    ids=["stage", "with_options", "pipeline", "its options", "template", "run", "arun", "resume"],
)
def test_a_timeout_that_is_not_a_positive_number_is_refused_at_once(make, timeout):
    """As that of an action."""
    with pytest.raises(DefinitionError, match="timeout is a positive number of seconds"):
        make(timeout)


def test_definitions_have_their_timeout_and_compare_with_it():
    """None by default; infinity is none."""
    assert Stage("s").timeout is pipeline().timeout is None
    assert Stage("s", timeout=5).timeout == pipeline(Stage("s"), timeout=5).timeout == 5.0
    assert Stage("s", timeout=float("inf")) == Stage("s")
    assert Stage("s", timeout=5) == Stage("s", timeout=5.0) == Stage("s").with_options(timeout=5)
    assert Stage("s", timeout=5) != Stage("s")
    assert pipeline(Stage("s"), timeout=5) == pipeline(Stage("s")).with_options(timeout=5) != pipeline(Stage("s"))
    assert len({Stage("s", timeout=5), Stage("s", timeout=5.0)}) == 1
    assert repr(Stage("s", timeout=0.5)) == "<Stage s: no actions timeout=0.5>"
    assert repr(pipeline(Stage("s"), timeout=5)) == "<Pipeline pipeline: s timeout=5>"
    assert template(1).timeout == template(1).with_options(name="t").timeout == SOON


def test_a_pipeline_with_a_timeout_is_not_flattened():
    """It is a unit of its own, as one with any other option."""
    inner = pipeline(Stage("a"), Stage("b"), timeout=5)
    assert len(inner >> Stage("c")) == 2


@pytest.mark.parametrize(
    "unit", [importable, template(1), pipeline(importable, timeout=5), importable.with_options(timeout=9)]
)
def test_a_timeout_is_pickled(unit):
    """By reference, or with the options."""
    assert pickle.loads(pickle.dumps(unit)) == unit


def test_the_parts_of_a_definition_keep_its_timeout():
    """Slices and selections."""
    flow = pipeline(Stage("a", [first, last], timeout=3), Stage("b"), timeout=5)
    assert flow["a":].timeout == flow.without("b").timeout == 5
    assert flow.without("a/first")["a"].timeout == 3


# -- the time is up


@pytest.mark.parametrize("of", ["stage", "pipeline", "run"])
def test_a_coroutine_is_cancelled_and_nothing_more_begins(run, of):
    """The error is a `TimeoutError` that names the unit."""
    one = Stage("slow", [first, hangs, last], timeout=SOON if of == "stage" else None)
    flow = pipeline(one, Stage("after", [last]), name="etl", timeout=SOON if of == "pipeline" else None)
    began = time.perf_counter()
    found = failed(run, flow, run_id="monday", timeout=SOON if of == "run" else None)
    assert time.perf_counter() - began < 5
    assert LOG == ["first", "hangs", "cancelled"]
    assert isinstance(found.error, TimeoutError)
    assert type(found.error) is UnitTimeout
    what = {"stage": "stage 'slow'", "pipeline": "pipeline 'etl'", "run": "run 'monday' of pipeline 'etl'"}[of]
    assert str(found.error) == f"{what} took longer than its timeout of 0.05 s"
    slow = stage_record(found, "slow")
    assert [record.status for record in slow.actions] == ["completed", "cancelled"]
    assert slow.status == ("failed" if of == "stage" else "cancelled")


def test_the_error_is_raised(run):
    """With a note of its place."""
    with pytest.raises(TimeoutError, match="stage 's' took longer") as caught:
        run(Stage("s", [hangs], timeout=SOON))
    assert "in stage 's'" in caught.value.__notes__[0]


def test_a_run_in_time_is_as_any_other(run):
    """With results, data, insertions, and middleware."""

    @action
    def inserts():
        return Stage("inserted", [first])

    flow = pipeline(
        Stage("a", [inserts], data={"n": 1}, use=[noting], timeout=LONG), pipeline(Stage("b", [last]), timeout=LONG)
    )
    found = run(flow, timeout=LONG)
    assert completed(found) == ["a", "inserted", "b"]
    assert found["n"] == 1
    assert LOG == ["first", "last"]


def test_a_sync_call_is_awaited_and_then_nothing_begins(run):
    """It has completed, and its result counts; its stage has failed."""
    found = failed(run, Stage("s", [overruns, last], timeout=SOON))
    assert LOG == ["overruns"]
    assert found["overruns"] == "done"
    assert actions_run(found) == ["s/overruns"]


@pytest.mark.parametrize("of", ["stage", "pipeline", "run"])
def test_a_last_sync_action_that_overruns_is_a_failure(run, of):
    """Although nothing was left to do; middleware inside is told, too."""
    limit = dict.fromkeys(["stage", "pipeline", "run"]) | {of: SOON}
    flow = pipeline(Stage("s", [overruns], timeout=limit["stage"], use=[noting]), timeout=limit["pipeline"])
    failed(run, flow, timeout=limit["run"])
    assert LOG == (["overruns", OutOfTime] if of == "stage" else ["overruns"])


def test_a_bail_that_comes_too_late_is_a_failure(run):
    """As any other end."""

    @action
    def bails():
        time.sleep(SOON * 1.5)
        raise Bail("enough")

    assert type(failed(run, Stage("s", [bails], timeout=SOON)).error) is UnitTimeout


def test_a_failure_that_comes_too_late_is_the_cause(run):
    """It may be what took so long."""

    @action
    def fails():
        time.sleep(SOON * 1.5)
        raise ValueError("no")

    error = failed(run, Stage("s", [fails], timeout=SOON)).error
    assert type(error) is UnitTimeout
    assert repr(error.__cause__) == "ValueError('no')"


def test_a_failure_in_time_stays_what_it_is(run):
    """A `TimeoutError` of a user's own as well."""

    @action
    async def fails():
        raise TimeoutError("mine")

    error = failed(run, Stage("s", [fails], timeout=LONG)).error
    assert repr(error) == "TimeoutError('mine')"


def test_a_coroutine_that_ignores_the_cancellation_completes(run):
    """As under `asyncio.timeout`: it is cancelled once."""

    @action
    async def stubborn():
        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(SOON)
        return "done"

    found = failed(run, Stage("s", [stubborn, last], timeout=SOON / 2))
    assert actions_run(found) == ["s/stubborn"]
    assert LOG == []


@pytest.mark.parametrize("of", ["stage", "group"])
def test_pauses_are_cut_short(run, of):
    """Of middleware, of `ctx.sleep`, and the wait for a call that has a timeout of its own."""

    @action
    def naps(ctx: Context):
        ctx.sleep(LONG)

    @action
    async def naps_async(ctx: Context):
        await ctx.sleep(LONG)

    for flow in [
        Stage("s", [last], use=[after_a_pause], timeout=SOON),
        Stage("s", [last.with_options(use=[after_a_pause])], timeout=SOON),
        Stage("s", [naps], timeout=SOON),
        Stage("s", [naps_async], timeout=SOON),
    ]:
        began = time.perf_counter()
        error = failed(run, flow if of == "stage" else parallel(flow, Stage("other", [first]))).error
        assert type(error) is UnitTimeout
        assert time.perf_counter() - began < 5
    assert "last" not in LOG


@action
def sleeps_elsewhere(ctx: Context):
    """Sleep in another process, which may be late."""
    time.sleep(ctx.store["begins"])
    ctx.sleep(0.001)
    try:
        ctx.sleep(LONG)
    finally:
        ctx.emit("woken")


@pytest.mark.parametrize("begins", [0.0, LATER * 1.5])
@pytest.mark.parametrize("of", ["stage", "pipeline", "run", "group"])
def test_a_sleep_in_another_process_is_cut_short(run, of, begins):
    """So that its worker is free again; one that would begin when the time is up does not."""
    stage = Stage("s", [sleeps_elsewhere, last], timeout=LATER if of == "stage" else LONG)
    whole = pipeline(parallel(stage, last), timeout=LATER if of == "pipeline" else LONG)
    if of == "group":
        whole = parallel(pipeline(parallel(stage), timeout=LATER), last)
    messages = []
    started = time.monotonic()
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        limits = {"timeout": LATER} if of == "run" else {}
        found = failed(run, whole, {"begins": begins}, executor=pool, observers=[messages.append], **limits)
        assert type(found.error) is UnitTimeout
        assert f"{LATER:g} s" in str(found.error)
        assert run(parallel(importable_constant), executor=pool)["importable_constant"] == 1
    assert time.monotonic() - started < LONG / 3
    assert [each.kind for each in messages if isinstance(each, Message)] == (["woken"] if begins == 0 else [])


def test_an_action_that_has_overrun_does_not_sleep(run):
    """`ctx.sleep` ends it."""

    @action
    def naps_late(ctx: Context):
        time.sleep(SOON * 1.5)
        ctx.sleep(LONG)
        LOG.append("slept")

    for flow in Stage("s", [naps_late], timeout=SOON), parallel(Stage("s", [naps_late], timeout=SOON), Stage("t")):
        assert type(failed(run, flow).error) is UnitTimeout
    assert LOG == []


def test_a_call_with_a_timeout_of_its_own_is_abandoned_at_the_first_of_both(run):
    """Its thread runs on."""
    go = threading.Event()
    for own, whole, error in [(LONG, SOON, "stage 's'"), (SOON, LONG, "action 'waits'")]:

        @action(timeout=own)
        def waits():
            go.wait(5)

        assert error in str(failed(run, Stage("s", [waits, last], timeout=whole)).error)
    go.set()
    assert LOG == []


def test_a_loop_ends(run):
    """Each turn begins while there is time."""

    @action
    def turn():
        time.sleep(SOON / 5)
        return again

    again = Stage("again", [turn])
    found = failed(run, pipeline(again, timeout=SOON))
    assert 1 <= len(found.stages) < 8


def test_stages_inserted_in_a_pipeline_share_its_time(run):
    """They run inside it; those that a stage with a timeout inserts run after it."""

    @action
    def inserts():
        return Stage("inserted", [hangs])

    assert type(failed(run, pipeline(Stage("a", [inserts]), timeout=SOON)).error) is UnitTimeout

    @action
    def inserts_quick():
        return Stage("inserted", [overruns])

    assert completed(run(Stage("a", [inserts_quick], timeout=SOON))) == ["a", "inserted"]


def test_a_stream_is_closed_that_is_not_pulled_again(run):
    """The last unit that it gave has overrun."""

    def endless():
        try:
            while True:
                yield Stage("x", [overruns])
        finally:
            LOG.append("closed")

    @action
    def pulls():
        return stream(endless)

    failed(run, pipeline(Stage("a", [pulls]), timeout=SOON))
    assert LOG == ["overruns", "closed"]


def test_an_insertion_is_checked_in_a_stage_with_a_timeout(run):
    """As in any other: a timeout supplies nothing."""

    @action
    def needs(missing):
        raise AssertionError("it never begins")

    @action
    def inserts():
        return needs

    error = failed(run, Stage("s", [inserts], timeout=LONG)).error
    assert type(error) is WiringError


def test_data_is_merged_once_in_a_resumed_stage_with_a_timeout(kept):
    """What its actions made of it stays."""

    @action(returns="n")
    def changes(n):
        return n + 1

    @action(returns=None)
    def asks(ctx: Context):
        ctx.wait_for("a")

    flow = Stage("s", [changes, asks], data={"n": 1}, timeout=LONG)
    found = flow.run(**kept)
    assert flow.resume(found.id if kept else found, {"a": 1}, **kept)["n"] == 2


def test_streams_are_closed(run):
    """What a stream is pulled for inside is cancelled; a sync one is not pulled again."""

    def endless():
        try:
            while True:
                time.sleep(SOON / 3)
                yield Stage("x")
        finally:
            LOG.append("closed")

    async def waiting():
        try:
            yield Stage("x")
            await asyncio.sleep(LONG)
        finally:
            LOG.append("closed")

    for source in endless, waiting:

        @action
        def pulls():
            return stream(source)  # noqa: B023

        LOG.clear()
        found = failed(run, pipeline(Stage("a", [pulls]), timeout=SOON))
        assert type(found.error) is UnitTimeout
        assert LOG == ["closed"]


# -- middleware


def test_own_middleware_is_told_and_may_wait_for_its_clean_up(run):
    """It lies inside the timeout."""

    async def opened(call):
        try:
            yield
        finally:
            await asyncio.sleep(0.01)
            LOG.append("closed")

    def waiting(call):
        try:
            yield
        except OutOfTime as error:
            LOG.append(str(error))
            yield Sleep(0.01)
            LOG.append("waited")
            raise

    failed(run, Stage("s", [hangs], use=[waiting, opened], timeout=SOON))
    assert LOG == [
        "hangs", "cancelled", "closed", "stage 's' took longer than its timeout of 0.05 s", "waited",
    ]  # fmt: skip


def test_a_retry_or_recovery_inside_has_no_say(run):
    """The time is that of all its attempts."""
    inside = [swallowing, recover(on=Exception), retry(on=Exception, attempts=9, wait=0)]
    flow = Stage("s", [overruns, hangs], use=inside, use_actions=inside, timeout=SOON)
    error = failed(run, flow).error
    assert type(error) is UnitTimeout
    assert LOG.count("overruns") == 1


def test_the_attempts_inside_share_one_time(run):
    """A retry inside begins no attempt when it is up."""

    @action
    def fails():
        LOG.append("fails")
        time.sleep(SOON / 2.5)
        raise ValueError("no")

    flow = Stage("s", [fails], use=[retry(on=ValueError, attempts=99, wait=0)], timeout=SOON)
    error = failed(run, flow).error
    assert type(error) is UnitTimeout
    assert 1 <= LOG.count("fails") < 9


def test_a_layer_that_asks_for_another_attempt_gets_none(run):
    """At a stage or at an action: its target does not begin."""

    def insisting(call):
        for _ in range(3):
            try:
                yield
            except BaseException as error:
                LOG.append(type(error))
        LOG.append("gave up")

    for options in {"use": [insisting]}, {"use_actions": [insisting]}:
        LOG.clear()
        error = failed(run, Stage("s", [hangs], timeout=SOON, **options)).error
        assert type(error) is UnitTimeout
        assert LOG == ["hangs", "cancelled", OutOfTime, OutOfTime, OutOfTime, "gave up"]


def test_each_attempt_of_a_retry_around_has_its_own_time(run):
    """Around a pipeline, a stage, a run; what failed attempts wrote is dropped."""
    attempts = []

    @action(returns="n")
    async def slow_at_first():
        attempts.append(1)
        if len(attempts) % 3:
            await asyncio.sleep(LONG)
        return len(attempts)

    again = retry(on=TimeoutError, attempts=3, wait=0)
    one = Stage("s", [slow_at_first], timeout=SOON)
    for flow, options in [
        (pipeline(one, use=[again]), {}),
        (pipeline(one, use_stages=[again]), {}),
        (pipeline(pipeline(one, timeout=LONG), use=[again]), {}),
        (one, {"use": [again]}),
    ]:
        attempts.clear()
        found = run(flow, **options)
        assert found["n"] == 3
        assert len(found.stages) == 1


def test_a_recovery_around_lets_the_run_go_on(run):
    """As after any failure."""
    flow = pipeline(Stage("s", [hangs], timeout=SOON), use=[recover(on=TimeoutError)]) >> Stage("after", [last])
    found = run(flow)
    assert statuses(found) == [("s", "failed"), ("after", "completed")]
    assert stage_record(found, "s").recovered


def test_the_middleware_of_a_run_is_in_its_time(run):
    """From its beginning."""
    assert type(failed(run, Stage("s", [last]), use=[after_a_pause], timeout=SOON).error) is UnitTimeout
    assert LOG == []


def test_an_atomic_stage_leaves_nothing(run):
    """As after any failure."""
    found = failed(run, Stage("s", [overruns, last], use=[atomic], timeout=SOON))
    assert "overruns" not in found


def test_local_results_are_gone(run):
    """When the failure is recovered."""
    flow = pipeline(Stage("s", [overruns, hangs], local=True, timeout=SOON), use=[recover(on=TimeoutError)])
    assert "overruns" not in run(flow)


# -- nested deadlines


def test_the_deadline_that_comes_first_is_named(run):
    """Whether it is the outer one or the inner one."""
    for inner, outer, error in [(LONG, SOON, "pipeline 'outer'"), (SOON, LONG, "stage 'inner'")]:
        flow = pipeline(Stage("inner", [hangs], timeout=inner), name="outer", timeout=outer)
        assert error in str(failed(run, flow).error)


def test_if_both_have_passed_the_outer_one_is_named_and_the_inner_one_its_cause(run):
    """A sync call has overrun both."""
    flow = pipeline(Stage("inner", [overruns], timeout=SOON / 2), name="outer", timeout=SOON)
    error = failed(run, flow).error
    assert "pipeline 'outer'" in str(error)
    assert "stage 'inner'" in str(error.__cause__)


def test_a_clean_up_has_the_time_of_the_scopes_around(run):
    """The deadline that has expired does not count again; the next one does."""

    async def cleans_up_for_long(call):
        try:
            yield
        finally:
            LOG.append("cleans up")
            await asyncio.sleep(LONG)

    flow = pipeline(Stage("inner", [hangs], use=[cleans_up_for_long], timeout=SOON), name="outer", timeout=3 * SOON)
    error = failed(run, flow).error
    assert "pipeline 'outer'" in str(error)
    assert "cleans up" in LOG


# -- groups


def test_the_branches_of_a_group_are_ended_and_nothing_is_merged(run):
    """A coroutine is cancelled, a sync call awaited, and no branch begins any more."""
    branches = [Stage("x", [hangs]), Stage("y", [overruns, last]), Stage("z", [first])]
    flow = pipeline(parallel(*branches, limit=2), Stage("after", [last]), name="etl", timeout=SOON)
    found = failed(run, flow)
    assert "pipeline 'etl'" in str(found.error)
    assert sorted(LOG) == ["cancelled", "hangs", "overruns"]
    assert "overruns" not in found


@pytest.mark.parametrize("nested", [False, True])
def test_a_run_ends_its_groups(run, nested):
    """At any depth, and pauses and queued calls with them."""
    branches = [Stage("x", [hangs]), Stage("y", [last], use=[after_a_pause])]
    flow = parallel(*branches)
    if nested:
        flow = parallel(pipeline(Stage("before", [first]), flow, name="deep"), Stage("z", [hangs]))
    error = failed(run, flow, timeout=SOON).error
    assert type(error) is UnitTimeout
    assert "last" not in LOG


def test_a_branch_that_runs_out_of_time_fails_alone(run):
    """It ends its group as any failure does, or is lost."""
    slow, quick = Stage("slow", [hangs], timeout=SOON), Stage("quick", [first])
    error = failed(run, parallel(slow, quick)).error
    assert str(error).startswith("stage 'slow'")
    found = run(parallel(slow, quick, tolerate=1, failures="lost"))
    assert [(name, type(error)) for name, error in found["lost"]] == [("slow", UnitTimeout)]


def test_a_deadline_around_a_group_makes_no_branch_a_lost_one(run):
    """They are cancelled, and have not failed."""
    flow = pipeline(parallel(Stage("x", [hangs]), Stage("y", [hangs]), tolerate=2), name="etl", timeout=SOON)
    assert "pipeline 'etl'" in str(failed(run, flow).error)


def test_a_pipeline_in_a_branch_ends_the_group_inside_it(run):
    """And the branches beside it go on."""
    inner = pipeline(parallel(Stage("x", [hangs]), Stage("y", [hangs])), name="inner", timeout=SOON)
    found = run(parallel(inner, Stage("z", [overruns]), tolerate=1, failures="lost"))
    assert [name for name, _ in found["lost"]] == ["inner"]
    assert found["overruns"] == "done"


def test_enough_branches_complete_a_group_in_time(run):
    """Those with a timeout may be lost on the way."""
    branches = [Stage(f"s{n}", [hangs if n else first], timeout=LATER) for n in range(3)]
    assert run(parallel(*branches, enough=1, tolerate=2)).status == "completed"


def test_a_streamed_group_ends(run):
    """No branch is pulled any more, and the stream is closed."""

    def endless():
        try:
            while True:
                yield Stage("x", [hangs])
        finally:
            LOG.append("closed")

    flow = pipeline(parallel(stream(endless), limit=2), timeout=LATER)
    assert type(failed(run, flow).error) is UnitTimeout
    assert LOG.count("hangs") == LOG.count("cancelled") <= 2
    assert LOG.count("closed") == 1


def test_a_stream_that_waits_is_cancelled(run):
    """It is part of what its group waits for."""

    async def waiting():
        yield Stage("x", [first])
        await asyncio.sleep(LONG)

    flow = pipeline(parallel(stream(waiting)), timeout=LATER)
    assert type(failed(run, flow).error) is UnitTimeout
    assert LOG == ["first"]


def test_each_branch_of_a_stream_has_its_own_time_and_forgets_it(run):
    """However many there are, and even while one with an earlier deadline is at work."""
    ended, known = threading.Event(), []

    @action
    async def holds_on():
        while not ended.is_set():
            await asyncio.sleep(0.001)

    @action
    async def yields():
        await asyncio.sleep(0)

    @action
    async def ends():
        gc.collect()
        known.append(sum(type(each) is Deadline for each in gc.get_objects()))
        ended.set()

    def stages():
        yield Stage("holds on", [holds_on], timeout=LONG - 1)
        for n in range(300):
            yield Stage(f"s{n}", [yields], timeout=LONG)
        yield Stage("ends", [ends])

    assert len(run(parallel(stream(stages), limit=400)).stages) == 302
    assert known[0] < 150


def test_queued_calls_are_withdrawn_from_an_executor(run):
    """They have not begun."""
    with ThreadPoolExecutor(1) as pool:
        flow = pipeline(parallel(*[Stage(f"s{n}", [overruns]) for n in range(4)]), timeout=SOON)
        assert type(failed(run, flow, executor=pool).error) is UnitTimeout
    assert LOG == ["overruns"]


def test_calls_beyond_the_limit_of_a_run_are_withdrawn(run):
    """They wait for those under way."""
    flow = pipeline(parallel(*[Stage(f"s{n}", [overruns]) for n in range(4)]), timeout=SOON)
    assert type(failed(run, flow, limit=1).error) is UnitTimeout
    assert LOG == ["overruns"]


def test_a_branch_whose_call_is_queued_runs_out_of_time(run):
    """Its stage ends, while the call ahead of it still runs."""
    flow = parallel(Stage("x", [overruns]), Stage("y", [first], timeout=SOON / 2), tolerate=1, failures="lost")
    found = run(flow, limit=1)
    assert [name for name, _ in found["lost"]] == ["y"]
    assert LOG == ["overruns"]


def test_calls_made_one_after_the_other_end_with_the_one_that_overruns(run):
    """`serial()` makes them in the thread that would look at the clock."""
    flow = pipeline(parallel(*[Stage(f"s{n}", [overruns]) for n in range(4)]), timeout=SOON)
    assert type(failed(run, flow, executor=serial()).error) is UnitTimeout
    assert LOG == ["overruns"]


def test_an_earlier_failure_in_a_group_is_the_cause(run):
    """Other branches held it up until the time was up."""

    begun = threading.Event()

    @action
    def fails_then():
        begun.wait(5)
        raise ValueError("no")

    @action
    def holds_up():
        begun.set()
        time.sleep(SOON * 1.5)

    flow = pipeline(parallel(Stage("x", [fails_then]), Stage("y", [holds_up])), timeout=SOON)
    error = failed(run, flow).error
    assert type(error) is UnitTimeout
    assert repr(error.__cause__) == "ValueError('no')"


# -- interrupts


def test_ctrl_c_is_not_replaced():
    """It is passed on, even if the time is up."""

    @action
    def interrupted():
        time.sleep(SOON * 1.5)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Stage("s", [interrupted], timeout=SOON).run()


def test_the_cancellation_of_a_task_is_not_replaced():
    """Whoever cancelled it waits for that."""

    async def main():
        task = asyncio.create_task(Stage("s", [hangs], timeout=LONG).arun())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


# -- resumed runs


@pytest.fixture(params=["memory", "journal", "json"])
def kept(request, tmp_path):
    """The options of a run that can be resumed."""
    path = tmp_path / "runs.db"
    journal = {"memory": None, "journal": MemoryJournal(), "json": SqliteJournal(path, codec="json")}[request.param]
    return {} if journal is None else {"journal": journal}


@pytest.mark.parametrize("of", ["stage", "pipeline", "run"])
def test_a_run_that_ran_out_of_time_is_resumed(kept, of):
    """Completed steps are restored; the failed scope has its whole time again, and a run the one that is given."""
    slow = [True]

    @action(returns="b")
    async def slow_at_first():
        if slow[0]:
            await asyncio.sleep(LONG)
        return 2

    limit = dict.fromkeys(["stage", "pipeline", "run"]) | {of: LATER}
    one = Stage("s", [first, slow_at_first], timeout=limit["stage"])
    flow = pipeline(one, Stage("after", [last]), timeout=limit["pipeline"])
    found = flow.run(check=False, timeout=limit["run"], **kept)
    assert type(found.error) is UnitTimeout
    time.sleep(SOON)
    slow[0] = False
    again = flow.resume(found if not kept else found.id, **kept)
    assert again.status == "completed"
    assert again["b"] == 2
    assert LOG == ["first", "last"]


def test_a_resume_has_a_timeout_of_its_own(kept):
    """That of the run is not stored."""
    flow = Stage("s", [first, hangs])
    found = flow.run(check=False, timeout=SOON, **kept)
    again = flow.resume(found if not kept else found.id, check=False, timeout=SOON, **kept)
    assert type(again.error) is UnitTimeout
    assert LOG == ["first", "hangs", "cancelled", "hangs", "cancelled"]


def test_a_run_that_completed_too_late_is_completed_by_a_resume(kept):
    """Nothing was left to do."""
    flow = Stage("s", [overruns])
    found = flow.run(check=False, timeout=SOON, **kept)
    assert type(found.error) is UnitTimeout
    assert flow.resume(found if not kept else found.id, timeout=SOON, **kept).status == "completed"
    assert LOG == ["overruns"]


@pytest.mark.parametrize("depth", ["stage", "pipeline", "branch"])
@pytest.mark.parametrize(("before", "after", "status"), [(4, 5, "completed"), (4, 7, "failed"), (0, 9, "completed")])
def test_the_time_of_a_suspension_does_not_count_and_the_time_before_does(kept, depth, before, after, status):
    """A stage of ten seconds that suspends the run twice, and works for `before` seconds ahead of each wait."""
    runner = FlowRunner()

    @action(returns=None)
    def works():
        runner.clock.advance(before / 2)

    @action(returns=None)
    def asks(ctx: Context):
        ctx.wait_for("a")

    @action(returns=None)
    def works_again():
        runner.clock.advance(before / 2)

    @action(returns=None)
    def asks_again(ctx: Context):
        ctx.wait_for("b")

    @action(returns=None)
    def ends():
        runner.clock.advance(after)

    actions = [works, asks, works_again, asks_again, ends]
    flow = pipeline(Stage("s", actions), timeout=10) if depth == "pipeline" else Stage("s", actions, timeout=10)
    if depth == "branch":
        flow = parallel(flow, Stage("other", [first]))
    found = runner.run(flow, **kept)
    for key in "a", "b":
        assert found.status == "suspended"
        runner.clock.advance(3600)
        found = runner.resume(flow, found.id if kept else found, {key: 1}, check=False, **kept)
    assert found.status == status
    assert type(found.error) is (UnitTimeout if status == "failed" else type(None))


def test_an_inserted_stage_keeps_its_timeout(kept):
    """When it runs in a resume."""

    @action(returns=None)
    def inserts(ctx: Context):
        return importable.with_options(name="inserted")

    @action(returns=None)
    def asks(ctx: Context):
        ctx.wait_for("a")

    flow = Stage("s", [inserts, asks])
    found = flow.run(**kept)
    again = flow.resume(found.id if kept else found, {"a": 1}, **kept)
    assert stage_record(again, "inserted").stage.timeout == SOON


def test_another_attempt_does_not_continue_the_time_of_a_suspended_one(kept):
    """It begins anew."""
    runner, attempts = FlowRunner(), []

    @action(returns=None)
    def works(ctx: Context):
        runner.clock.advance(6)
        attempts.append(1)
        if len(attempts) == 1:
            ctx.wait_for("a")
        if len(attempts) == 2:
            raise ValueError("no")

    flow = pipeline(Stage("s", [works], timeout=13), use=[retry(on=ValueError, attempts=2, wait=0)])
    found = runner.run(flow, **kept)
    found = runner.resume(flow, found.id if kept else found, {"a": 1}, **kept)
    assert found.status == "completed"


def test_a_suspension_that_comes_too_late_is_a_failure(run):
    """As any other end."""

    @action
    def suspends():
        time.sleep(SOON * 1.5)
        raise Suspend("later")

    assert type(failed(run, Stage("s", [suspends], timeout=SOON)).error) is UnitTimeout


def test_a_pause_of_a_retry_inside_that_suspends_does_not_count(tmp_path):
    """The journal keeps the pause, and the time used before it."""
    calls = []

    @action
    def fails_once():
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("no")

    flow = Stage("s", [fails_once], use=[retry(on=ValueError, attempts=2, wait=0.1, jitter=False)], timeout=5)
    path = tmp_path / "runs.db"
    found = flow.run(journal=path, suspend_after=0)
    assert found.status == "suspended"
    time.sleep(0.15)
    assert flow.resume(found.id, journal=path, suspend_after=0).status == "completed"


# -- the clock of tests


def test_the_clock_of_a_runner_jumps_to_a_deadline():
    """For coroutines, sleeps, groups, and calls in which it is advanced."""
    runner = FlowRunner()

    @action
    async def day():
        await asyncio.sleep(24 * 3600)

    @action
    def advances():
        runner.clock.advance(90)

    def sleepy(call):
        yield Sleep(24 * 3600)
        yield

    for flow, at in [
        (Stage("s", [day], timeout=60), 60),
        (Stage("s", [advances, last], timeout=60), 90),
        (Stage("s", [last], use=[sleepy], timeout=60), 60),
        (parallel(Stage("s", [day], timeout=60), Stage("t", [day])), 60),
        (pipeline(parallel(Stage("s", [day]), Stage("t", [last], use=[sleepy])), timeout=60), 60),
    ]:
        began = runner.clock.now
        assert type(runner.run(flow, check=False).error) is UnitTimeout
        assert runner.clock.now - began == pytest.approx(at)
    assert LOG == []


# -- a model


def units(depth=3):
    """Trees of units: a kind, seconds or parts, and a timeout in seconds, or None."""
    none, seconds = st.none(), st.integers(0, 9)
    leaf = st.tuples(st.sampled_from(["call", "wait", "pause"]), seconds, none)
    if not depth:
        return leaf
    limit, inner = none | st.integers(1, 20), st.lists(units(depth - 1), min_size=1, max_size=3)
    waits = st.lists(st.tuples(st.just("wait"), seconds, none), min_size=1, max_size=3)
    branches = st.lists(st.tuples(st.just("chain"), waits, limit), min_size=1, max_size=3)
    return st.one_of(
        leaf,
        st.tuples(st.just("chain"), inner, limit),
        st.tuples(st.just("recovered"), inner, none),
        st.tuples(st.just("side by side"), branches, none),
    )


def named(unit, numbers):
    """The tree with a name for each unit, and a fraction of its own for each timeout: no two times are equal."""
    kind, what, limit = unit
    number = next(numbers)
    parts = [named(each, numbers) for each in what] if isinstance(what, list) else what
    return f"u{number}", kind, parts, None if limit is None else limit + number / 1024


class Ended(Exception):
    """A unit of the model has ended early, by the limit of this name; it has `left` the scope of that limit."""

    def __init__(self, now, name, left=False):
        self.now, self.name, self.left = now, name, left


def play(unit, now, limits, began):
    """Return when a unit ends that begins now; `limits` are the times of the scopes around it, by name."""
    name, kind, what, limit = unit
    if kind == "side by side":
        return side_by_side(what, now, limits, began)
    if isinstance(what, list):
        at = float("inf") if limit is None else now + limit
        try:
            for part in what:
                now = play(part, now, {**limits, name: at}, began)
        except Ended as end:
            now = end.now
            if kind == "recovered" and end.left:
                return now
            if not (end.name == name or at < now):
                raise
            raise Ended(now, name, left=True) from None
        if at < now:
            raise Ended(now, name, left=True)
        return now
    for other, at in limits.items():
        if at < now:
            raise Ended(now, other)
    first, at = min(limits.items(), key=lambda each: each[1], default=("", float("inf")))
    is_cut = kind != "call" and now + what > at
    if not (is_cut and kind == "pause"):  # that comes before the call
        began.append(name)
    if is_cut:
        raise Ended(at, first)
    return now + what


def side_by_side(branches, now, limits, began):
    """All of them may be lost, if their own time is up; the time of what is around them ends them all."""
    ends, cut = [now], None
    for branch in branches:
        try:
            ends.append(play(branch, now, limits, began))
        except Ended as end:
            ends.append(end.now)
            cut = cut if end.left else end
    if cut is not None:
        raise Ended(max(ends), cut.name)
    return max(ends)


def made(unit, clock, began):
    """The same as a flow, whose steps note that they begin."""
    name, kind, what, limit = unit
    if isinstance(what, list):
        parts = [made(part, clock, began) for part in what]
        if kind == "side by side":
            return parallel(*parts, name=name, tolerate=len(parts))
        use = [recover(on=TimeoutError)] if kind == "recovered" else []
        return pipeline(*parts, name=name, use=use, timeout=limit)

    def pausing(call):
        yield Sleep(what)
        yield

    if kind == "wait":

        @action(name=name, returns=None)
        async def waits():
            began.append(name)
            await asyncio.sleep(what)

        return waits

    @action(name=name, returns=None, use=[pausing] if kind == "pause" else [])
    def calls():
        began.append(name)
        clock.advance(what if kind == "call" else 0)

    return calls


@settings(deadline=None, max_examples=examples(40), suppress_health_check=[HealthCheck.too_slow])
@given(unit=units(), whole=st.none() | st.integers(5, 40))
def test_any_flow_ends_when_the_model_says(unit, whole):
    """Which steps begin, when the run ends, and by which timeout."""
    runner, expected, began, error = FlowRunner(), [], [], None
    whole = whole and whole + 1 / 4096
    root = "run", "chain", [named(unit, count(1))], whole
    try:
        end = play(root, 0.0, {}, expected)
    except Ended as ended:
        end, error = ended.now, ended.name
    found = runner.run(made(root[2][0], runner.clock, began), check=False, timeout=whole)
    assert sorted(began) == sorted(expected)
    assert runner.clock.now == pytest.approx(end, abs=1e-4)
    assert (found.error is None) == (error is None)
    if error is not None:
        assert str(found.error).startswith("run " if error == "run" else f"pipeline '{error}' ")
