"""Durations are seconds or a `timedelta`, wherever one is given."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from math import inf, nan

import pytest

from flowdeco import Context, Stage, action, durable, pipeline, stage
from flowdeco.errors import ActionTimeout, DefinitionError, JournalError, MiddlewareError, UnitTimeout, WaitTimeout
from flowdeco.middleware import Sleep, retry
from flowdeco.model.options import LAST_SECOND, in_seconds, seconds_of
from flowdeco.testing import FlowRunner

MINUTE = timedelta(minutes=1)
HUGE = 10**400


@action
def waits(ctx: Context) -> str:
    return ctx.wait_for("answer", timeout=timedelta(hours=2), default="nobody")


def test_a_question_has_a_deadline_in_two_hours(tmp_path):
    """It is in the info of the run, as if it were given as 7200."""
    waits.run(journal=tmp_path / "r.db")
    (info,) = durable.runs(tmp_path / "r.db")
    assert info.due == pytest.approx(info.questions[0].asked + 7200)


def test_an_expired_question_tells_its_time_in_seconds():
    """Whatever it was given as."""

    @action
    def impatient(ctx: Context) -> None:
        ctx.wait_for("answer", timeout=timedelta(0))

    with pytest.raises(WaitTimeout, match=r"nobody answered 'answer' within 0\.0 s of"):
        impatient.run()


def test_sleeps_take_their_time():
    """In sync and async actions, and in middleware."""

    def slow_start(call):
        yield Sleep(MINUTE)
        yield

    @action
    def naps(ctx: Context) -> None:
        ctx.sleep(MINUTE)

    @action(use=[slow_start])
    async def dozes(ctx: Context) -> None:
        await ctx.sleep(2 * MINUTE)

    runner = FlowRunner()
    runner.run(naps >> dozes)
    assert runner.slept == [60.0, 60.0, 120.0]
    assert asyncio.run(FlowRunner().arun(naps)).status == "completed"
    runner.clock.advance(timedelta(days=1))
    assert runner.clock.now == 86_400 + 240


@pytest.mark.parametrize("suspend_after", [MINUTE, timedelta(hours=2)])
def test_a_run_suspends_after_a_timedelta(tmp_path, suspend_after):
    """A longer sleep is kept by the journal; a shorter one is slept, here until the time of the run is up."""

    @action
    def naps(ctx: Context) -> None:
        ctx.sleep(timedelta(hours=1))

    how = {"suspend_after": suspend_after, "timeout": timedelta(milliseconds=50), "check": False}
    run = naps.run(journal=tmp_path / "r.db", **how)
    assert run.status == ("suspended" if suspend_after == MINUTE else "failed")


@action
def long(ctx: Context) -> None:
    ctx.sleep(60)


@stage(timeout=timedelta(milliseconds=20))
def templated(n: int) -> None:
    @action
    def inside(ctx: Context) -> None:
        ctx.sleep(60)


SHORT = timedelta(milliseconds=20)


@pytest.mark.parametrize(
    "unit",
    [
        Stage("s", [long], timeout=SHORT), pipeline(long, timeout=SHORT), templated(1),
        Stage("s", [long]).with_options(timeout=SHORT), pipeline(long).with_options(timeout=SHORT),
    ],
)  # fmt: skip
def test_units_have_a_timeout(unit):
    """Of stages, templates and pipelines, whenever it is given."""
    with pytest.raises(UnitTimeout, match=r"0\.02 s|20 ms"):
        unit.run()


def test_an_action_has_a_timeout():
    """Also one that is set later."""

    async def dozes() -> None:
        await asyncio.sleep(60)

    for limited in (action(timeout=SHORT)(dozes), action(dozes).with_options(timeout=SHORT)):
        with pytest.raises(ActionTimeout, match="0.02 s"):
            limited.run()


def test_retry_waits_and_gives_up():
    """`wait`, `wait_max` and `timeout`, and what a function for `wait` returns."""

    def fails():
        raise OSError

    def slept(**how):
        runner = FlowRunner()
        runner.run(Stage("s", [action(fails, use=[retry(on=OSError, jitter=False, attempts=4, **how)])]), check=False)
        return runner.slept

    assert slept(wait=MINUTE, wait_max=timedelta(minutes=3)) == [60.0, 120.0, 180.0]
    assert slept(wait=lambda n: n * MINUTE, wait_max=inf) == [60.0, 120.0, 180.0]
    assert slept(wait=MINUTE, wait_max=inf, timeout=timedelta(minutes=4)) == [60.0, 120.0]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: pipeline(timeout=x), lambda x: Stage("s", timeout=x), lambda x: action(timeout=x)(test_retry_waits_and_gives_up),
        lambda x: pipeline().run(suspend_after=x), lambda x: pipeline().run(timeout=x), lambda x: retry(on=OSError, wait=x),
        lambda x: retry(on=OSError, timeout=x), lambda x: seconds_of(x, "it is"), lambda x: Sleep(x),
        lambda x: retry(on=OSError, wait_max=x), lambda x: durable.SqliteJournal("r.db", lease=x),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "value", [timedelta(seconds=-1), "60", True, "1 min", nan, -inf, -HUGE, 1j, Decimal(1), Fraction(1, 2)]
)
def test_nonsense_is_refused(wrong, value):
    """A negative time, what is no number, text and booleans."""
    with pytest.raises((DefinitionError, MiddlewareError, JournalError), match="number of seconds"):
        wrong(value)


@pytest.mark.parametrize("value", [inf, HUGE, 1e300])
def test_times_without_end(value):
    """A limit may be infinite; no sleep can be longer than the calendar."""
    one = action(name="one")(lambda: 1)
    for unlimited in (
        one.with_options(timeout=value), Stage("s", [one], timeout=value), pipeline(one, timeout=value),
        one.with_options(use=[retry(on=OSError, wait_max=value, timeout=value)]),
    ):  # fmt: skip
        assert unlimited.run(timeout=value, suspend_after=value, journal=durable.MemoryJournal())["one"] == 1
    assert durable.SqliteJournal("r.db", lease=value).lease > 1e299
    assert durable.purge(durable.MemoryJournal(), value) == 0
    for wrong in (lambda: Sleep(value), lambda: retry(on=OSError, wait=value), lambda: seconds_of(value, "it is")):
        with pytest.raises((DefinitionError, MiddlewareError), match="would end after the year 9999"):
            wrong()


def test_a_pause_of_a_function_is_cut_to_the_calendar():
    """As those that double are."""

    def fails():
        raise OSError

    runner = FlowRunner()
    runner.run(
        action(fails, use=[retry(on=OSError, jitter=False, attempts=2, wait=lambda n: HUGE, wait_max=inf)]), check=False
    )
    assert runner.slept == [LAST_SECOND]


def test_a_sleep_of_centuries_begins():
    """In memory, where it is `time.sleep`, which counts nanoseconds in 64 bits."""

    def rings(signum, frame):
        raise InterruptedError

    def sleeps(call):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        yield Sleep(1e11)
        yield

    before = signal.signal(signal.SIGALRM, rings)
    try:
        with pytest.raises(InterruptedError):
            action(lambda: 1, name="one", use=[sleeps]).run()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_lease_and_the_age_of_runs_are_durations():
    """Of journals."""
    assert durable.SqliteJournal("r.db", lease=MINUTE).lease == 60.0
    journal = durable.MemoryJournal()
    pipeline().run(journal=journal)
    assert [durable.purge(journal, age) for age in (MINUTE, timedelta(0))] == [0, 1]


def test_the_seconds_of_a_timedelta():
    """Or a number of them, and nothing else."""
    assert (in_seconds(timedelta(days=1, milliseconds=1)), in_seconds(5), in_seconds(None)) == (86_400.001, 5, None)
