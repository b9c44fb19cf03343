"""L10 for any flow: interrupted anywhere, any number of times, and resumed, it comes to what it would have come to."""

import asyncio
import os
import random
import signal

import durable_flows
import pytest
from durable_flows import World, came_to
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_laws import SKIPS, flows

from flowdeco import Pipeline, pipeline
from flowdeco.durable import MemoryJournal

NIGHTLY = bool(os.environ.get("FLOWDECO_NIGHTLY"))
law = settings(max_examples=2000 if NIGHTLY else 60, deadline=None, suppress_health_check=list(HealthCheck))


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


def resumed(flow, rows, skip, left, *, tried):
    """What a run with these steps comes to when it is resumed: tried first, or else rehearsed."""
    durable_flows.enter(world := Ending())
    world.left = left
    journal = MemoryJournal()
    journal.create("r", flow.name, journal.codec.encode({}, "inputs"), sorted(skip))
    journal.write("r", rows)
    journal.close("r", "running", None, None)
    events = []
    with pytest.MonkeyPatch.context() as patch:
        if not tried:
            patch.setattr("flowdeco.engine.rehearse.Trial.holds", lambda *_: False)
        finished = flow.resume("r", journal=journal, check=False, observers=[events.append])
    written = [row[:6] + (row.fingerprint, row.payload) for row in journal.history("r")]
    told = [tuple(map(str, part)) for part in (event._replace(**unsure(event)) for event in events)]
    restored = [(stage.name, stage.status, stage.inserted_by, len(stage.actions)) for stage in finished.stages]
    return came_to(finished), restored, written, told, world.trace, finished.status


def unsure(event):
    """What is another time in every run, and an object of its own."""
    return {field: None for field in ("elapsed", "error") if field in event._fields}


@law
@given(flow=flows(), skip=SKIPS, seed=st.integers(0, 2**16))
def test_it_is_the_same_whether_the_past_was_tried_or_rehearsed(flow, skip, seed):
    """Cut anywhere, resumed, and interrupted again: store, records, journal, events and calls are the same."""
    chance = random.Random(seed)
    _, calls = uninterrupted(run_sync, flow, skip)
    durable_flows.enter(World())
    journal = MemoryJournal()
    unit = durable_flows.unit(flow)
    whole = pipeline(unit, name="p") if not isinstance(unit, Pipeline) else unit
    whole.run(skip=skip, check=False, journal=journal, run_id="r")
    rows = journal.history("r")
    rows = rows[: chance.randrange(len(rows) + 1)]
    left = chance.choice([None, 0, 1, chance.randrange(len(calls) + 1)])
    assert resumed(whole, rows, skip, left, tried=True) == resumed(whole, rows, skip, left, tried=False)


@law
@given(flow=flows(), skip=SKIPS)
def test_a_journal_changes_nothing(flow, skip):
    """A durable run comes to what a run without a journal comes to."""
    expected, calls = uninterrupted(run_sync, flow, skip)
    durable_flows.enter(World())
    finished = durable_flows.unit(flow).run(skip=skip, check=False, journal=MemoryJournal())
    assert came_to(finished) == expected
    assert durable_flows.world.trace == calls
