"""Durable runs: what is resumed comes to the same as what was never interrupted (L10)."""

import asyncio
import os
import time
from pathlib import Path

import pytest

import durable_units as du
from durable_units import BROKEN, CALLS, ENTERED, STEP_IDS
from flowdeco import Bail, Context, Run, Stage, Store, action, parallel, pipeline, stage, stream
from flowdeco.durable import MemoryJournal, SqliteJournal
from flowdeco.errors import (
    CodeChangedError,
    DefinitionError,
    JournalError,
    RunBusyError,
    RunNotFoundError,
    SerializationError,
    WiringError,
)
from flowdeco.middleware import atomic, recover, retry
from support import action_record, actions_run, names, stage_record, statuses, text_of


@pytest.fixture(autouse=True)
def nothing_noted():
    """Every test begins without calls, and with everything in order."""
    du.clear()
    ENTERED.clear()


class Way:
    """One way to run and to resume: a driver, and where the run is remembered."""

    def __init__(self, driver, journal):
        self.driver = driver
        self.journal = journal

    def run(self, flow, inputs=None, **options):
        if self.journal is not None:
            options["journal"] = self.journal
        options.setdefault("check", False)
        return flow.run(inputs, **options) if self.driver == "sync" else asyncio.run(flow.arun(inputs, **options))

    def resume(self, flow, run, inputs=None, **options):
        if self.journal is not None:
            run = run if isinstance(run, str) else run.id
            options["journal"] = self.journal
        options.setdefault("check", False)
        resumed = flow.resume if self.driver == "sync" else lambda *a, **o: asyncio.run(flow.aresume(*a, **o))
        return resumed(run, inputs, **options)


def made(request, tmp_path):
    driver, where = request.param.split(" in ")
    journals = {
        "memory": lambda: None,
        "sqlite": lambda: str(tmp_path / "runs.db"),
        "json": lambda: SqliteJournal(tmp_path / "runs.db", codec="json"),
        "a dict": MemoryJournal,
    }
    return Way(driver, journals[where]())


@pytest.fixture(params=[f"{driver} in {where}" for driver in ("sync", "async") for where in ("memory", "sqlite", "json")])
def way(request, tmp_path):
    """Both drivers, with and without a journal."""
    return made(request, tmp_path)


@pytest.fixture(params=["sync in sqlite", "async in sqlite", "sync in a dict", "async in json"])
def kept(request, tmp_path):
    """Both drivers, with a journal."""
    return made(request, tmp_path)


def shape(record):
    """What of a record must be the same in any run."""
    actions = [(a.name, str(a.status), a.inserted_by, a.attempts, a.recovered, repr(a.error)) for a in record.actions]
    return (
        record.name, str(record.status), record.inserted_by, record.attempts, record.recovered, repr(record.error), actions,
    )  # fmt: skip


def outcome(run):
    """What a run came to."""
    return str(run.status), dict(run.store), run.result, [shape(record) for record in run.stages]


def times(run):
    """When everything was, and for how long."""
    return [(s.started, s.elapsed, [(a.started, a.elapsed) for a in s.actions]) for s in run.stages]


# -- resumed at any step

FLOWS = {
    "a line": (du.line, {}),
    "a stage of several actions": (Stage("s", [du.first, du.second, du.third], data={"seed": [1]}), {}),
    "stage data": (
        Stage("s", [du.first], data={"k": {"n": [1]}}) >> Stage("empty", data={"k": 2}) >> Stage("t", [du.item], data={"u": 3}),
        {},
    ),
    "coroutines": (du.first >> du.waits >> du.item, {}),
    "dynamic stages": (du.plan >> du.item, {}),
    "dynamic stages beside data": (Stage("s", [du.plan_beside_data, du.first]) >> du.item.bind(value=2), {}),
    "dynamic pipelines": (du.plan_deep >> du.item.bind(value=2), {}),
    "a stream": (du.streams >> du.item, {}),
    "an async stream in a list": (du.streams_later >> du.first, {}),
    "a generator": (du.generates >> du.item, {}),
    "an async generator": (du.generates_async >> du.item, {}),
    "a loop of a template": (du.countdown(3) >> du.item, {}),
    "a loop of a static stage": (du.polling >> du.item, {}),
    "writes by the context": (du.writes >> du.first >> du.takes_away >> du.item, {"given": 1}),
    "changes in place": (
        du.writes >> du.changes_argument >> Stage("s", [du.changes_by_context, du.item]) >> du.first,
        {"given": 1},
    ),
    "a tuple, a discarded result, None": (du.pair >> du.discarded >> du.nothing, {}),
    "switches": (du.disables >> du.plan >> du.enables >> du.plan.with_options(name="again") >> du.third >> du.item, {}),
    "a named pipeline": (du.first >> pipeline(du.second, du.item, name="inner", use_stages=[du.watched]) >> du.third, {}),
    "a parallel group": (
        du.first >> parallel(du.second >> du.item.bind(value=1), du.plan, du.waits, limit=1) >> du.item.bind(value=2),
        {},
    ),
    "nested groups": (
        parallel(du.item.bind(value=1), parallel(du.item.bind(value=2), du.plan >> du.first, limit=1), limit=1)
        >> parallel(du.item.bind(value=3), du.item.bind(value=4), name="other", limit=1),
        {},
    ),
}


@pytest.mark.parametrize("title", FLOWS)
def test_a_run_resumed_at_any_step_comes_to_the_same(way, title):
    """L10: whichever call is interrupted, nothing else is called twice, and store, order, records, result are the same."""
    flow, inputs = FLOWS[title]
    whole = way.run(flow, inputs, run_id="whole")
    calls = CALLS.copy()
    assert whole.status == "completed"
    for number in range(len(calls)):
        CALLS.clear()
        du.CRASHING[:] = [number]
        with pytest.raises(du.Crash) as crashed:
            way.run(flow, inputs, check=True, run_id=f"run {number}")
        broken = Run.of(crashed.value)
        assert CALLS == calls[: number + 1]
        resumed = way.resume(flow, broken)
        assert CALLS == calls[: number + 1] + calls[number:]
        assert outcome(resumed) == outcome(whole)
        assert resumed.id == f"run {number}"


@pytest.mark.parametrize("title", FLOWS)
def test_a_run_resumed_again_and_again_comes_to_the_same(way, title):
    """L10: interrupted at every other call."""
    flow, inputs = FLOWS[title]
    whole = way.run(flow, inputs, run_id="whole")
    calls = CALLS.copy()
    CALLS.clear()
    du.CRASHING[:] = [1]
    run = way.run(flow, inputs, run_id="broken")
    while run.status != "completed":
        assert isinstance(run.error, du.Crash)
        du.CRASHING[:] = [1]
        run = way.resume(flow, run)
    du.clear()
    assert outcome(run) == outcome(whole)


@pytest.mark.parametrize("title", FLOWS)
def test_what_has_completed_is_restored_as_it_was(kept, title):
    """Names, statuses, times, results, of all records, without a call."""
    flow, inputs = FLOWS[title]
    whole = kept.run(flow, inputs)
    CALLS.clear()
    ENTERED.clear()
    resumed = kept.resume(flow, whole)
    assert (CALLS, ENTERED) == ([], [])
    assert outcome(resumed) == outcome(whole)
    assert times(resumed) == times(whole)
    assert resumed.id == whole.id
