"""`run(limit=)`: how many calls are under way at once, in all groups of a run together."""

import asyncio
import threading
import time
from contextlib import suppress

import pytest

from flowdeco import Sleep, action, parallel, pipeline, stream
from flowdeco.durable import MemoryJournal
from flowdeco.errors import DefinitionError
from flowdeco.testing import FlowRunner


class Gauge:
    """Counts the calls that are under way."""

    def __init__(self):
        self.now = self.most = self.calls = 0
        self.lock = threading.Lock()

    def enter(self):
        with self.lock:
            self.now += 1
            self.calls += 1
            self.most = max(self.most, self.now)

    def leave(self):
        with self.lock:
            self.now -= 1

    def sync(self, name):
        def body():
            self.enter()
            time.sleep(0.004)
            self.leave()

        return action(name=name)(body)

    def coroutine(self, name):
        async def body():
            self.enter()
            await asyncio.sleep(0.004)
            self.leave()

        return action(name=name)(body)

    def returned(self, name):
        async def later():
            self.enter()
            await asyncio.sleep(0.004)
            self.leave()

        return action(name=name)(lambda: later())


@pytest.fixture
def gauge():
    return Gauge()


@pytest.mark.parametrize("kind", ["sync", "coroutine"])
@pytest.mark.parametrize("limit", [1, 3])
def test_all_groups_together_have_no_more_calls_under_way(run, gauge, kind, limit):
    """However they nest, fixed and streamed."""
    make = getattr(gauge, kind)

    def units():
        for number in range(6):
            yield make(f"streamed{number}")

    inner = [parallel(*(make(f"{outer}.{number}") for number in range(4)), name=f"g{outer}") for outer in range(3)]
    run(parallel(*inner, parallel(stream(units)), make("alone")), limit=limit)
    assert (gauge.most, gauge.calls) == (limit, 3 * 4 + 6 + 1)


def test_without_a_limit_all_are(run, gauge):
    """So the test can fail."""
    run(parallel(*(gauge.coroutine(str(number)) for number in range(6))))
    assert gauge.most == 6


def test_a_coroutine_that_a_function_returns_is_a_call_too(run, gauge):
    """It is awaited like any other."""
    run(parallel(*(gauge.returned(str(number)) for number in range(6))), limit=2)
    assert gauge.most <= 2


def test_a_pause_is_not_a_call(run):
    """Other branches have their calls meanwhile."""
    log = []

    def pauses(call):
        yield Sleep(0.05)
        yield

    slow = action(name="slow", use=[pauses])(lambda: log.append("slow"))
    quick = [action(name=f"q{number}")(lambda: log.append("quick")) for number in range(3)]
    run(parallel(slow, *quick), limit=1)
    assert log == ["quick"] * 3 + ["slow"]


@pytest.mark.parametrize("in_memory", [True, False])
def test_on_resume_too(run, gauge, in_memory):
    """It is an option of each leg."""
    broken = [True]

    @action
    def fails():
        if broken:
            raise ValueError

    flow = parallel(pipeline(fails, gauge.sync("a"))) >> parallel(*(gauge.sync(str(number)) for number in range(6)))
    journal = None if in_memory else MemoryJournal()
    failed = run(flow, journal=journal, check=False, limit=2)
    broken.clear()
    flow.resume(failed, limit=2)
    assert (gauge.most, gauge.calls) == (2, 7)


def test_calls_that_wait_for_their_turn_do_not_begin_when_their_group_ends(run):
    """They are withdrawn, and those that a coroutine function was to make are not made."""
    log = []

    async def waits():
        log.append("waits")

    def fails():
        raise ValueError("no")

    def returns():
        return waits()

    async def never():
        log.append("never")

    branches = [action(name="fails")(fails), action(name="n1")(never), action(name="n2")(lambda: log.append("n2"))]
    with pytest.raises(ValueError):
        run(parallel(*branches), limit=1)
    assert log == []
    with suppress(ValueError):
        run(parallel(action(name="returns")(returns), action(name="fails")(fails)), limit=1)
    assert "never" not in log


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "2"])
def test_wrong_limits_are_refused_before_the_run(run, limit):
    """With the sentence of other counts."""
    with pytest.raises(DefinitionError, match="limit is a positive number of concurrent calls"):
        run(parallel(action(name="a")(lambda: None)), limit=limit)


def test_the_test_runner_takes_it_as_well():
    """It makes its calls one after the other anyway."""
    runner = FlowRunner()
    flow = parallel(*(action(name=str(number), collect="all")(lambda number=number: number) for number in range(4)))
    assert runner.run(flow, limit=2)["all"] == [0, 1, 2, 3]
