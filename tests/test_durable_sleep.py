"""Sleeps that the journal keeps: of middleware, of actions, of retries; resumed early, late, and after a kill."""

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from multiprocessing import get_context

import pytest
from durable_units import OneRun

import flowdeco
from flowdeco import Context, Sleep, Stage, action, durable, parallel, pipeline, stage
from flowdeco.durable import MemoryJournal, SqliteJournal
from flowdeco.errors import DefinitionError, RunError
from flowdeco.middleware import atomic, retry
from flowdeco.testing import FlowRunner

CALLS = []
HOUR = 3600.0


@pytest.fixture(autouse=True)
def no_calls():
    """Each test has its own."""
    CALLS.clear()


class Clock:
    """A wall clock that a test sets."""

    now = 2_000_000_000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """It goes back and forth as the test likes; no test sleeps in earnest."""
    Clock.now = 2_000_000_000.0
    monkeypatch.setattr(time, "time", lambda: Clock.now)
    return Clock


@pytest.fixture(params=["sync pickle", "async json", "sync memory"])
def way(request, tmp_path):
    """Each of the ways."""
    how, codec = request.param.split()
    return OneRun(how, MemoryJournal() if codec == "memory" else SqliteJournal(tmp_path / "r.db", codec=codec))


@action
def dozes(ctx: Context):
    """Sleeps three times."""
    CALLS.append("dozes")
    ctx.sleep(0.001)
    ctx.sleep(HOUR)
    ctx.sleep(2 * HOUR)
    return "awake"


@action
async def awaits(ctx: Context):
    """The same, as a coroutine."""
    CALLS.append("dozes")
    await ctx.sleep(0.001)
    await ctx.sleep(HOUR)
    await ctx.sleep(2 * HOUR)
    return "awake"


def sleeper(seconds):
    """A middleware that sleeps before its target."""

    def sleeps(call):
        CALLS.append("enters")
        yield Sleep(seconds)
        yield

    return sleeps


@action
def works():
    """Does its work at once."""
    CALLS.append("works")
    return "worked"


@pytest.mark.parametrize("flow", [dozes, awaits])
def test_a_long_sleep_suspends_the_run(way, clock, flow):
    """Resumed early, it sleeps on; late, it continues at once; each sleep once."""
    run = way.run(flow)
    assert (run.status, run.due, run.reason) == (
        "suspended",
        clock.now + HOUR,
        "sleeping until 2033-05-18 04:33:20 UTC",
    )
    [info] = durable.runs(way.journal)
    assert (info.due, info.status, info.questions, durable.due(way.journal)) == (run.due, "suspended", (), [])
    clock.now += 1800
    assert way.resume(flow).due == run.due
    clock.now += 1800
    assert [info.id for info in durable.due(way.journal)] == ["r"]
    second = way.resume(flow)
    assert second.due == clock.now + 2 * HOUR
    clock.now += 10 * HOUR
    assert way.resume(flow)[flow.name] == "awake"
    assert CALLS == ["dozes"] * 4


def test_the_clock_may_be_set_back_and_forth(way, clock):
    """The due time stays as it was noted; a sleep that is over stays over."""
    due = way.run(dozes).due
    clock.now -= 100_000
    assert way.resume(dozes).due == due
    clock.now = due + 1
    second = way.resume(dozes).due
    clock.now -= 10 * HOUR  # before the end of the first sleep
    assert way.resume(dozes).due == second
    clock.now = second
    assert way.resume(dozes).status == "completed"


def test_the_rest_of_a_sleep_is_slept_if_it_is_short(way, clock, monkeypatch):
    """Without being suspended again."""
    due = way.run(Stage("s", [works], use=[sleeper(HOUR)])).due
    clock.now = due - 0.01
    assert way.resume(Stage("s", [works], use=[sleeper(HOUR)])).status == "completed"


@pytest.mark.parametrize(
    "flow",
    [
        Stage("s", [works.with_options(use=[sleeper(HOUR)])]),
        Stage("s", [works], use=[sleeper(HOUR)]),
        pipeline(works, use=[sleeper(HOUR)]),
        pipeline(works, use_stages=[sleeper(HOUR)], use_actions=[sleeper(0)]),
        parallel(works.with_options(use=[sleeper(HOUR)])),
    ],
    ids=["action", "stage", "pipeline", "use_stages", "branch"],
)
def test_middleware_sleeps_before_its_target(way, clock, flow):
    """Wherever it is, its sleep is kept."""
    assert (way.run(flow).status, CALLS) == ("suspended", ["enters"])
    clock.now += 100
    assert way.resume(flow).due == clock.now + HOUR - 100
    clock.now += HOUR
    run = way.resume(flow)
    assert (run.status, CALLS.count("works"), run["works"]) == ("completed", 1, "worked")


def test_the_middleware_of_the_run_sleeps(way, clock):
    """The same."""
    way.run(pipeline(works), use=[sleeper(HOUR)])
    clock.now += HOUR
    assert way.resume(pipeline(works), use=[sleeper(HOUR)]).status == "completed"


def test_async_middleware_sleeps(way, clock):
    """The same."""

    async def sleeps(call):
        yield Sleep(HOUR)
        yield

    flow = Stage("s", [works], use=[sleeps])
    assert way.run(flow).due == clock.now + HOUR
    clock.now += HOUR
    assert way.resume(flow).status == "completed"


@pytest.mark.parametrize("level", ["action", "stage"])
def test_middleware_sleeps_after_its_target(way, clock, level):
    """Neither a stage that has completed nor an action whose call has succeeded runs again for that."""

    def cools_down(call):
        yield
        CALLS.append("cools down")
        yield Sleep(HOUR)
        call.store["cool"] = True

    flow = Stage("s", [works], use=[cools_down])
    if level == "action":
        flow = Stage("s", [works.with_options(use=[cools_down])])
    assert way.run(flow).due == clock.now + HOUR
    clock.now += HOUR
    run = way.resume(flow)
    assert (dict(run.store), CALLS.count("cools down")) == ({"works": "worked", "cool": True}, 2)
    assert CALLS.count("works") == 1


# Retries.


PAUSED = retry(on=ValueError, attempts=4, wait=HOUR, wait_max=math.inf, jitter=False)


def failing(times, **options):
    """An action that fails so many times."""

    @action(name="failing", **options)
    def fails(ctx: Context):
        CALLS.append("tries")
        ctx.store["tried"] = len(CALLS)
        if CALLS.count("tries") <= times:
            raise ValueError(f"failure {CALLS.count('tries')}")
        return "done"

    return fails


def test_a_retry_waits_in_the_journal(way, clock):
    """The failed attempt is recorded, attempts count on, and nothing runs before the next one is due."""
    flow = pipeline(failing(2, use=[sleeper(0), PAUSED]))
    run = way.run(flow)
    assert (run.status, run.due) == ("suspended", clock.now + HOUR)
    entered = CALLS.count("enters")
    clock.now += 60
    assert way.resume(flow).due == clock.now + HOUR - 60
    assert CALLS.count("enters") == entered  # not even the layers
    clock.now += HOUR
    CALLS.remove("enters")
    assert way.resume(flow).due == clock.now + 2 * HOUR
    clock.now += 2 * HOUR
    CALLS.remove("enters")
    run = way.resume(flow)
    [record] = run.stages[0].actions
    assert (run.status, record.attempts, [str(each) for each in record.failures][0][-9:]) == (
        "completed",
        3,
        "failure 1",
    )
    assert len(record.failures) == 2


def test_the_attempts_of_a_retry_end_over_suspensions(way, clock):
    """The last failure is raised."""
    flow = pipeline(failing(9, use=[PAUSED]))
    way.run(flow)
    for _ in range(2):
        clock.now += 10 * HOUR
        assert way.resume(flow).status == "suspended"
    clock.now += 10 * HOUR
    run = way.resume(flow, check=False)
    assert (run.status, str(run.error), run.stages[0].actions[0].attempts) == ("failed", "failure 4", 4)


SHORT = retry(on=ValueError, attempts=9, wait=HOUR, wait_max=math.inf, jitter=False, timeout=4 * HOUR)


@pytest.mark.parametrize("around", ["action", "stage", "pipeline", "run"])
def test_the_timeout_of_a_retry_ends_over_suspensions(way, clock, around):
    """Its own waits count: after attempts at 0, 1 and 3 hours, the next one would be at 7 hours."""
    act = failing(9, use=[SHORT] if around == "action" else [])
    flow = pipeline(
        Stage("s", [act], use=[SHORT] if around == "stage" else []), use=[SHORT] if around == "pipeline" else []
    )
    options = {"use": [SHORT]} if around == "run" else {}
    way.run(flow, **options)
    clock.now += HOUR
    assert way.resume(flow, **options).due == clock.now + 2 * HOUR
    clock.now += 60
    assert way.resume(flow, **options).status == "suspended"
    clock.now += 2 * HOUR
    run = way.resume(flow, check=False, **options)
    assert (run.status, CALLS.count("tries")) == ("failed", 3)


def test_the_timeout_of_a_retry_begins_anew_with_another_attempt_around_it(way, clock):
    """The outer retry asks for it; the time until then is over. Questions in between change nothing."""

    @action(use=[retry(on=ValueError, attempts=2, wait=0), SHORT])
    def asks(ctx: Context):
        CALLS.append("tries")
        if CALLS.count("tries") == 2:
            ctx.wait_for("answer")
        raise ValueError

    way.run(asks)
    clock.now += HOUR
    assert way.resume(asks).reason == "waiting for 'answer'"
    assert way.resume(asks, {"answer": 1}, check=False).due == clock.now + 2 * HOUR
    clock.now += 2 * HOUR
    assert way.resume(asks).due == clock.now + HOUR
    assert CALLS.count("tries") == 5


def test_a_retry_of_a_stage_waits_in_the_journal(way, clock):
    """What the failed attempt wrote, collected and inserted is dropped; layers around it are entered again."""

    @action(collect="items")
    def item():
        CALLS.append("item")
        return len(CALLS)

    @action
    def breaks():
        if CALLS.count("item") < 3:
            raise ValueError

    def counts(call):
        call.store["entered"] = call.store.get("entered", 0) + 1
        yield

    flow = Stage("s", [item, breaks], use=[counts, PAUSED])
    run = way.run(flow)
    assert (run.status, run.due, dict(run.store).get("items")) == ("suspended", clock.now + HOUR, None)
    clock.now += 60
    assert way.resume(flow).status == "suspended"
    assert CALLS == ["item"]
    clock.now += HOUR
    assert way.resume(flow).due == clock.now + 2 * HOUR
    clock.now += 2 * HOUR
    run = way.resume(flow)
    assert dict(run.store) == {"entered": 1, "items": [3]}
    assert (run.stages[0].attempts, len(run.stages[0].failures)) == (3, 2)


def test_a_retry_around_an_atomic_stage(way, clock):
    """Its rows were held back, and are gone."""

    @action
    def one():
        CALLS.append("one")
        return len(CALLS)

    @action
    def two():
        if len(CALLS) < 2:
            raise ValueError

    flow = Stage("s", [one, two], use=[PAUSED, atomic])
    assert way.run(flow).due == clock.now + HOUR
    clock.now += HOUR
    assert dict(way.resume(flow).store) == {"one": 2}


def test_a_sleep_in_an_atomic_stage(way, clock):
    """It begins anew, and its sleep does not."""

    @action
    def one():
        CALLS.append("one")

    flow = Stage("s", [one, dozes], use=[atomic])
    first = way.run(flow).due
    clock.now = first
    second = way.resume(flow).due
    assert second == clock.now + 2 * HOUR
    clock.now = second
    assert way.resume(flow).status == "completed"
    assert CALLS == ["one", "dozes"] * 3


def test_a_failed_attempt_sleeps_again(way, clock):
    """Only a suspension continues a sleep: another attempt begins from the beginning."""

    @action(use=[retry(on=ValueError, wait=0)])
    def naps(ctx: Context):
        ctx.sleep(HOUR)
        CALLS.append("woke")
        if len(CALLS) == 1:
            raise ValueError

    way.run(naps)
    clock.now += HOUR
    assert way.resume(naps).due == clock.now + HOUR
    clock.now += HOUR
    assert way.resume(naps).status == "completed"


def test_a_retry_of_a_pipeline_waits_in_the_journal(way, clock):
    """The same, although a pipeline has no record of its own."""
    flow = pipeline(works, failing(1), use=[PAUSED])
    way.run(flow)
    assert way.resume(flow).due == clock.now + HOUR
    clock.now += HOUR
    assert way.resume(flow)["failing"] == "done"


def test_a_middleware_inside_an_atomic_pipeline_sleeps(way, clock):
    """Its sleep is kept with the pipeline, which is one step."""
    flow = pipeline(Stage("s", [works], use=[sleeper(HOUR)]), use=[atomic])
    way.run(flow)
    clock.now += HOUR
    assert (way.resume(flow).status, CALLS) == ("completed", ["enters", "enters", "works"])


@pytest.mark.parametrize("level", ["action", "stage"])
def test_the_rest_of_a_pause_can_be_cancelled(tmp_path, clock, level):
    """The run is cancelled, and the pause stays as it was."""
    flow = pipeline(failing(1, use=[PAUSED])) if level == "action" else Stage("s", [failing(1)], use=[PAUSED])
    way = OneRun("async", SqliteJournal(tmp_path / "r.db"))
    due = way.run(flow).due

    async def cancelled():
        task = asyncio.create_task(flow.aresume("r", journal=way.journal, suspend_after=math.inf))
        while durable.runs(way.journal)[0].status != "running":
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert durable.runs(way.journal)[0].status == "cancelled"
    assert way.resume(flow).due == due
    clock.now = due
    assert way.resume(flow)["failing"] == "done"


# Groups.


def test_in_a_group_only_its_branch_sleeps(way, clock):
    """The others finish first, and are not called again; the run is due at the earliest time."""

    @stage
    def naps(n: int):
        @action(collect="woke")
        def nap(ctx: Context):
            ctx.sleep(n * HOUR)
            return n

    flow = parallel(naps(3), works, naps(1), naps(2))
    run = way.run(flow)
    assert (run.due, CALLS) == (clock.now + HOUR, ["works"])
    assert run.reason.count("sleeping until") == 3
    clock.now += HOUR
    assert way.resume(flow).due == clock.now + HOUR
    clock.now += 5 * HOUR
    assert (way.resume(flow)["woke"], CALLS) == ([3, 1, 2], ["works"])


def test_questions_and_sleeps_of_one_group(way, clock):
    """The run waits for both, in branch order."""
    asks = action(lambda ctx: ctx.wait_for("a"), name="asks")
    flow = parallel(dozes, asks)
    run = way.run(flow)
    assert run.reason == "waiting for 'a'; sleeping until 2033-05-18 04:33:20 UTC"
    run = way.resume(flow, {"a": 1})
    assert run.reason == "sleeping until 2033-05-18 04:33:20 UTC"


def test_a_long_pause_of_a_retry_in_a_group(way, clock):
    """The branch that failed waits; the group has not failed."""
    flow = parallel(failing(1, use=[PAUSED]), works)
    run = way.run(flow)
    assert (run.status, CALLS) == ("suspended", ["tries", "works"])
    clock.now += HOUR
    run = way.resume(flow)
    assert (run["failing"], CALLS.count("works")) == ("done", 1)


# Without a journal, and the limit.


def test_without_a_journal_it_sleeps_in_the_process(monkeypatch):
    """However long."""
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    flow = Stage("s", [dozes], use=[sleeper(HOUR)])
    assert flow.run()["dozes"] == "awake"
    assert slept == [HOUR, 0.001, HOUR, 2 * HOUR]


@pytest.mark.parametrize(("limit", "suspends"), [(0.05, False), (0.01, True), (0, True), (math.inf, False)])
def test_the_limit_is_an_option(tmp_path, limit, suspends):
    """A sleep that is not longer is slept."""
    flow = action(lambda ctx: ctx.sleep(0.05), name="naps")
    run = flow.run(journal=str(tmp_path / "r.db"), suspend_after=limit)
    assert (run.status == "suspended") is suspends


@pytest.mark.parametrize("wrong", [-1, True, "60", None, math.nan])
def test_the_limit_is_a_number(wrong):
    """Not negative; `math.inf` for never."""
    with pytest.raises(DefinitionError, match="suspend_after is a number of seconds that is not negative"):
        works.run(suspend_after=wrong)


@pytest.mark.parametrize("nap", [lambda ctx: ctx.sleep(0.001), lambda ctx: ctx.sleep_until(0)], ids=["sleep", "until"])
@pytest.mark.parametrize("how", ["run", "arun"])
@pytest.mark.parametrize("codec", ["pickle", "json", None])
def test_a_sleep_that_is_returned_is_no_data(tmp_path, nap, how, codec):
    """As in a lambda: middleware sees None, and nothing is stored."""
    seen = []

    def watching(call):
        seen.append((yield))

    flow, journal = action(nap, name="naps", use=[watching]), codec and SqliteJournal(tmp_path / "runs.db", codec=codec)
    run = flow.run(journal=journal) if how == "run" else asyncio.run(flow.arun(journal=journal))
    assert (run.status, dict(run.store), run.result, seen) == ("completed", {}, None, [None])


# `ctx.sleep` and `ctx.sleep_until`.


def until(when):
    """An action that sleeps until then."""

    @action
    def sleeps(ctx: Context):
        ctx.sleep_until(when)

    return sleeps


def test_until_a_time(way, clock):
    """An aware datetime of any zone, or POSIX seconds; a time that has passed is no sleep."""
    then = datetime(2040, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert way.run(until(then)).due == datetime(2040, 1, 1, 10, tzinfo=UTC).timestamp()
    assert until(clock.now + HOUR).run(journal=way.journal).due == clock.now + HOUR
    assert until(clock.now - HOUR).run(journal=way.journal).status == "completed"


def test_a_naive_datetime_is_refused():
    """The error says what to write."""
    with pytest.raises(DefinitionError, match=r"has no time zone.*tzinfo=timezone.utc"):
        until(datetime(2040, 1, 1)).run()  # noqa: DTZ001
    for wrong in ("tomorrow", None, True, math.inf):
        with pytest.raises(DefinitionError, match="takes an aware datetime or POSIX seconds"):
            until(wrong).run()


@pytest.mark.parametrize("wrong", [-1, True, "1", math.nan, math.inf])
def test_a_sleep_is_a_number_of_seconds(wrong):
    """Anything else is an error."""
    with pytest.raises(DefinitionError, match="the argument of ctx.sleep is a number of seconds"):
        action(lambda ctx: ctx.sleep(wrong), name="naps").run()


def test_a_sleep_that_is_not_awaited_is_an_error():
    """In a coroutine action, and at its end; one in a plain function that returns a coroutine blocks."""

    @action
    async def forgets(ctx: Context):
        ctx.sleep(0.001)

    async def nap(ctx):
        await ctx.sleep(0.001)
        return "slept"

    with pytest.raises(RunError, match=r"did not await it.*write `await ctx.sleep\(...\)`"):
        forgets.run()
    assert action(lambda ctx: nap(ctx), name="naps").run()["naps"] == "slept"


def test_several_sleeps_at_once(way):
    """Short ones, in one coroutine action."""

    @action
    async def naps(ctx: Context):
        await asyncio.gather(ctx.sleep(0.01), ctx.sleep(0.01))

    assert way.run(naps).status == "completed"


@action
def elsewhere(ctx: Context):
    """Sleeps in another process."""
    ctx.sleep(0.001)
    ctx.sleep_until(2_000_003_600)
    return os.getpid()


def test_a_sleep_in_another_process(tmp_path, clock):
    """It suspends the run here, and is over there when it is over here."""
    flow, journal = parallel(elsewhere), str(tmp_path / "r.db")
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        run = flow.run(executor=pool, journal=journal, run_id="r")
        assert (run.status, run.due) == ("suspended", 2_000_003_600)
    clock.now = 2_000_003_601
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        assert flow.resume("r", executor=pool, journal=journal)["elsewhere"] != os.getpid()


def test_suspended_time_is_not_elapsed(way, clock):
    """A run that slept for hours took milliseconds."""
    way.run(Stage("s", [works], use=[sleeper(HOUR)]))
    clock.now += HOUR
    run = way.resume(Stage("s", [works], use=[sleeper(HOUR)]))
    assert run.elapsed < 60


# Tests.


def test_the_clock_of_the_test_runner_jumps(way):
    """With a journal too: no sleep suspends."""
    runner = FlowRunner()
    flow = Stage("s", [dozes, awaits], use=[sleeper(HOUR)]) >> failing(2, use=[PAUSED])
    run = runner.run(flow, journal=way.journal)
    assert run.status == "completed"
    assert runner.clock.now == pytest.approx(10 * HOUR + 0.002, abs=0.01)


def test_a_deadline_passes_by_the_clock_of_the_test_runner(way):
    """A question does suspend the run, until it is resumed."""
    runner = FlowRunner()
    flow = action(lambda ctx: ctx.wait_for("a", timeout=HOUR, default="none"), name="asks")
    assert runner.run(flow, journal=way.journal, run_id="r").status == "suspended"
    runner.clock.advance(HOUR - 1)
    assert runner.resume(flow, "r", journal=way.journal).status == "suspended"
    runner.clock.advance(2)
    assert runner.resume(flow, "r", journal=way.journal)["asks"] == "none"


# Kills.


PROGRAM = """
import os, signal, sys, time
from flowdeco import Context, Sleep, Stage, action

def naps(call):
    yield Sleep(float(sys.argv[2]))
    yield

@action
def begins():
    print("begins", flush=True)
    return time.time()

@action(use=[naps])
def sleeps(ctx: Context):
    print("sleeps", flush=True)
    ctx.sleep(float(sys.argv[3]))
    print("woke", flush=True)

flow = Stage("s", [begins, sleeps])
run = flow.run(journal="r.db", run_id="r", if_exists="resume", suspend_after=0.5)
print(run.status, run.due is not None and run.due - run["begins"] > 0.9, flush=True)
"""


def test_killed_while_asleep(tmp_path):
    """In a short sleep, the process is lost, and the sleep begins again; of a long one, the journal keeps the time."""
    env = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(flowdeco.__file__))}

    def started(*seconds):
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "x", *seconds], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
        )

    with started("0", "0.4") as process:
        for expected in ("begins", "sleeps"):
            assert process.stdout.readline().strip() == expected
        process.send_signal(signal.SIGKILL)
        process.wait()
    with started("0", "1.1") as process:  # it suspends, and its process ends
        assert process.stdout.read().split("\n")[:-1] == ["sleeps", "suspended True"]
    with started("0", "1.1") as process:  # early, and killed as it sleeps the rest or suspends again
        assert process.stdout.readline().strip() == "sleeps"
        process.send_signal(signal.SIGKILL)
        process.wait()
    while True:  # the sleep is the one that had begun, whatever the program says now
        with started("0", "1000") as process:
            lines = process.stdout.read().split("\n")[:-1]
        if "suspended True" not in lines:
            break
    assert lines in (["sleeps", "woke", "completed False"], ["completed False"])
