"""L10 for any flow: interrupted anywhere, any number of times, and resumed, it comes to what it would have come to."""

import asyncio
import random
import signal
from collections import Counter

import durable_flows
import pytest
from durable_flows import World, came_to
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support import NIGHTLY, examples
from test_laws import SKIPS, flows

from flowdeco import Pipeline, pipeline
from flowdeco.durable import MemoryJournal
from flowdeco.events import StageFinished

law = settings(max_examples=examples(40, 2000), deadline=None, suppress_health_check=list(HealthCheck))


class Interrupted(BaseException):
    """The process has ended here: no middleware catches it."""


class Ending(World):
    """A world that ends at the next so many calls."""

    def __init__(self):
        super().__init__()
        self.left = None

    def called(self, name):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise Interrupted(name)
        return super().called(name)


@pytest.fixture(autouse=True)
def no_test_hangs(no_test_hangs):
    """The nightly form takes its time."""
    if NIGHTLY:
        signal.setitimer(signal.ITIMER_REAL, 3600)


@pytest.fixture(autouse=True)
def another_world():
    """The actions of a test do not live in that of another."""
    yield
    durable_flows.enter(World())


def run_sync(flow, *args, how="run", **options):
    """By `run`, or `resume`."""
    return getattr(flow, how)(*args, **options)


def run_async(flow, *args, how="run", **options):
    """By `arun`, or `aresume`."""
    return asyncio.run(getattr(flow, f"a{how}")(*args, **options))


def uninterrupted(run, flow, skip):
    """What a run without a journal comes to, and the calls in order."""
    durable_flows.enter(World())
    finished = run(durable_flows.unit(flow), skip=skip, check=False)
    return came_to(finished), durable_flows.world.trace


def times(run):
    """When what completed was; a failure is met again."""
    return [
        (s.name, s.started, s.elapsed, s.attempts, [(a.started, a.elapsed, a.attempts) for a in s.actions])
        for s in run.stages
        if s.status in ("completed", "skipped")
    ]


@pytest.mark.parametrize("run", [run_sync, run_async])
@law
@given(flow=flows(), skip=SKIPS, seed=st.integers(0, 2**16))
def test_any_flow_is_resumed_wherever_it_was_interrupted(run, flow, skip, seed):
    """With a journal: store, order, records, result and calls are those of an uninterrupted run."""
    expected, calls = uninterrupted(run, flow, skip)
    chance = random.Random(seed)
    journal = MemoryJournal()
    durable_flows.enter(world := Ending())
    world.left = chance.randrange(len(calls) + 1)
    finished = run(durable_flows.unit(flow), skip=skip, check=False, journal=journal, run_id="r")
    while isinstance(finished.error, Interrupted):
        world.left = chance.choice([None, 0, 1, 2, chance.randrange(len(calls) + 1)])
        finished = run(durable_flows.unit(flow), "r", how="resume", check=False, journal=journal)
    assert came_to(finished) == expected
    assert world.trace == calls
    if finished.status in ("completed", "bailed"):
        again = run(durable_flows.unit(flow), "r", how="resume", check=False, journal=journal)
        assert came_to(again) == expected
        assert times(again) == times(finished)
        assert world.trace == calls


@pytest.mark.parametrize("run", [run_sync, run_async])
@law
@given(flow=flows(), skip=SKIPS, seed=st.integers(0, 2**16))
def test_any_flow_is_resumed_from_memory(run, flow, skip, seed):
    """Without a journal: the same."""
    expected, calls = uninterrupted(run, flow, skip)
    chance = random.Random(seed)
    durable_flows.enter(world := Ending())
    world.left = chance.randrange(len(calls) + 1)
    finished = run(durable_flows.unit(flow), skip=skip, check=False)
    while isinstance(finished.error, Interrupted):
        world.left = chance.choice([None, 0, 1, 2, chance.randrange(len(calls) + 1)])
        before = came_to(finished)
        interrupted = finished
        finished = run(durable_flows.unit(flow), finished, how="resume", check=False)
        assert came_to(interrupted) == before
    assert came_to(finished) == expected
    assert world.trace == calls


def cut(name, rows, chance):
    """A journal of run "r" that has the first so many of these rows, as if its process had ended then."""
    journal = MemoryJournal()
    journal.create("r", name, journal.codec.encode({}, "inputs"), ())
    journal.write("r", rows[: chance.randrange(len(rows) + 1)])
    journal.close("r", "running", None, None)
    return journal


@law
@given(flow=flows(), skip=SKIPS, seed=st.integers(0, 2**16))
def test_a_journal_that_is_cut_anywhere_is_resumed_to_the_same(flow, skip, seed):
    """Interrupted again, once more. No action whose row is there is called; observers hear of each stage, restored or not."""
    chance = random.Random(seed)
    expected, _ = uninterrupted(run_sync, flow, skip)
    durable_flows.enter(World())
    journal = MemoryJournal()
    unit = durable_flows.unit(flow)
    whole = pipeline(unit, name="p") if not isinstance(unit, Pipeline) else unit
    whole.run(skip=skip, check=False, journal=journal, run_id="r")
    # How often an action fails depends on how often it was called, which a journal that is cut does not tell.
    assume(set(durable_flows.world.counts.values()) <= {1})
    journal = cut(whole.name, journal.history("r"), chance)
    done = Counter(row.action for row in journal.history("r") if row.kind == "action" and row.status == "completed")
    durable_flows.enter(world := Ending())
    world.left = chance.choice([None, 0, 1, 2])
    events = []
    finished = whole.resume("r", skip=skip, journal=journal, check=False, observers=[events.append])
    while isinstance(finished.error, Interrupted):
        world.left = chance.choice([None, 0, 1, 2])
        events.clear()
        finished = whole.resume("r", skip=skip, journal=journal, check=False, observers=[events.append])
    assert came_to(finished) == expected
    assert not world.counts.keys() & {name for name in done if done[name]}
    heard = Counter((e.stage, e.status, e.restored) for e in events if isinstance(e, StageFinished))
    assert Counter((each.name, each.status, each.restored) for each in finished.stages) <= heard


@law
@given(flow=flows(), skip=SKIPS)
def test_a_journal_changes_nothing(flow, skip):
    """A durable run comes to what a run without a journal comes to."""
    expected, calls = uninterrupted(run_sync, flow, skip)
    durable_flows.enter(World())
    finished = durable_flows.unit(flow).run(skip=skip, check=False, journal=MemoryJournal())
    assert came_to(finished) == expected
    assert durable_flows.world.trace == calls
