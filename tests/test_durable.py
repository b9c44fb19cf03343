"""Durable runs: what is resumed comes to the same as what was never interrupted (L10)."""

import asyncio
import contextlib
import gc
import itertools
import os
import re
import threading
import time
import weakref
from pathlib import Path

import durable_units as du
import pytest
from durable_units import BROKEN, CALLS, ENTERED, STEP_IDS
from support import action_record, actions_run, around, names, stage_record, statuses, text_of

from flowdeco import Bail, Context, Run, Stage, action, parallel, pipeline, stream
from flowdeco.durable import MemoryJournal, SqliteJournal, read, runs
from flowdeco.errors import (
    CodeChangedError,
    DefinitionError,
    JournalError,
    RunBusyError,
    RunExistsError,
    RunNotFoundError,
    SerializationError,
    WiringError,
)
from flowdeco.middleware import atomic, recover, retry


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

    def share(self, count):
        """Every second of so many numbers: the drivers come to the same (L8), so each has a half of what both are for."""
        return range(self.driver == "async", count, 2)


def made(request, tmp_path):
    driver, where = request.param.split(" in ")
    journals = {
        "memory": lambda: None,
        "sqlite": lambda: str(tmp_path / "runs.db"),
        "json": lambda: SqliteJournal(tmp_path / "runs.db", codec="json"),
        "a dict": MemoryJournal,
    }
    return Way(driver, journals[where]())


@pytest.fixture(params=["sync in memory", "async in memory", "sync in sqlite", "async in json"])
def way(request, tmp_path):
    """Both drivers, with and without a journal."""
    return made(request, tmp_path)


@pytest.fixture(params=["async in sqlite", "sync in json", "sync in a dict"])
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
        Stage("s", [du.first], data={"k": {"n": [1]}})
        >> Stage("empty", data={"k": 2})
        >> Stage("t", [du.item], data={"u": 3}),
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
    "a named pipeline": (
        du.first >> pipeline(du.second, du.item, name="inner", use_stages=[du.watched]) >> du.third,
        {},
    ),
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
    for number in way.share(len(calls)):
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


# -- retries, recovery, middleware


def flaky(name, failures, **options):
    """An action that fails at its first calls, and collects when it does not."""

    @action(name=name, collect="handed in", **options)
    def body():
        du.call(name)
        if CALLS.count(name) <= failures:
            raise ValueError(f"{name} failed")
        return name

    return body


def test_attempts_that_a_retry_dropped_are_gone(way):
    """Of a stage: what its completed actions of the failed attempt wrote and inserted is not restored."""
    flow = (
        Stage("s", [du.plan, du.item, flaky("b", 1)], use=[retry(on=ValueError, wait=0)])
        >> du.fragile
        >> Stage("t", [du.first])
    )
    BROKEN.add("fragile")
    broken = way.run(flow)
    assert CALLS[:6] == ["plan", "item 0", "b", "plan", "item 0", "b"]
    assert stage_record(broken, "s").attempts == 2
    du.clear()
    resumed = way.resume(flow, broken)
    assert CALLS == ["fragile", "first"]
    assert resumed["items"] == [0]
    assert resumed["visits"] == ["rome", "oslo"]
    assert names(resumed) == ["s", "visit[rome]", "visit[oslo]", "fragile", "t"]
    assert stage_record(resumed, "s").attempts == 2


def test_the_journal_has_no_steps_of_dropped_attempts(kept):
    """They are taken back from the file, too."""
    flow = pipeline(Stage("s", [du.item, flaky("b", 2)]), name="p", use=[retry(on=ValueError, wait=0, attempts=5)])
    run = kept.run(flow)
    journal = SqliteJournal(kept.journal) if isinstance(kept.journal, str) else kept.journal
    rows = [(row.number, row.kind, row.stage, row.action) for row in journal.history(run.id)]
    assert rows == [  # the first two say that another attempt begins
        (0, "pipeline", "p", None), (0, "pipeline", "p", None),
        (2, "action", "s", "item"), (3, "action", "s", "b"), (1, "stage", "s", None), (0, "pipeline", "p", None),
    ]  # fmt: skip


@pytest.mark.parametrize("level", ["action", "stage", "use_stages", "pipeline", "run"])
def test_a_run_that_is_interrupted_in_a_later_attempt_comes_to_the_same(way, level):
    """Whatever it was that is retried."""
    again = retry(on=ValueError, wait=0, attempts=4)
    options = {"use": [again]} if level == "run" else {}
    flow = pipeline(
        pipeline(
            Stage(
                "s",
                [du.plan, flaky("a", 1 if level == "action" else 0, use=[again] if level == "action" else []), du.item],
                use=[again] if level == "stage" else [],
                data={"k": [1]},
            ),
            du.streams,
            flaky("b", 0 if level == "stage" else 1) if level != "action" else du.first,
            Stage("u", [flaky("c", 1 if level == "use_stages" else 0), du.item.bind(value=3)]),
            name="p",
            use=[again] if level == "pipeline" else [],
            use_stages=[again] if level == "use_stages" else [],
        ),
        du.item.bind(value=4),
    )
    whole = way.run(flow, run_id="whole", **options)
    assert whole.status == "completed"
    calls = len(CALLS)
    for number in way.share(calls):
        du.clear()
        du.CRASHING[:] = [number]
        broken = way.run(flow, run_id=f"run {number}", **options)
        assert isinstance(broken.error, du.Crash)
        resumed = way.resume(flow, broken, **({} if way.journal is None else options))
        assert resumed.status == "completed", number
        assert resumed.store == whole.store, number
        assert actions_run(resumed) == actions_run(whole), number


def test_a_recovered_action_is_restored_with_its_error(way):
    """It is not called again, and its record is as it was."""
    flow = (
        Stage("s", [du.fragile.with_options(use=[recover(on=RuntimeError, outcome="instead")]), du.first])
        >> du.item
        >> flaky("end", 0)
    )
    BROKEN.update(["fragile", "end"])
    broken = way.run(flow)
    du.clear()
    resumed = way.resume(flow, broken)
    assert CALLS == ["end"]
    record = action_record(resumed, "s", "fragile")
    assert (record.status, record.recovered, str(record.error)) == ("failed", True, "fragile is broken")
    assert isinstance(record.error, RuntimeError)
    assert resumed["fragile"] == "instead"


def test_a_recovered_stage_is_restored_with_its_error(way):
    """What its completed actions did is, what the failed one did is not, and nothing is called again."""
    flow = Stage("s", [du.plan, du.item, du.fragile], use=[retry(on=RuntimeError, wait=0, attempts=2)]).with_options(
        use=[recover(on=RuntimeError), retry(on=RuntimeError, wait=0, attempts=2)]
    ) >> flaky("end", 0)
    BROKEN.update(["fragile", "end"])
    broken = way.run(flow)
    before = shape(stage_record(broken, "s"))
    du.clear()
    resumed = way.resume(flow, broken)
    assert CALLS == ["end"]
    record = stage_record(resumed, "s")
    assert shape(record)[:5] == before[:5] == ("s", "failed", None, 2, True)
    assert str(record.error) == "fragile is broken"
    assert [(a.name, a.status, str(a.error)) for a in record.actions] == [
        ("plan", "completed", "None"), ("item", "completed", "None"), ("fragile", "failed", "fragile is broken"),
    ]  # fmt: skip
    assert resumed["visits"] == ["rome", "oslo"]
    assert resumed["items"] == [0]


def test_a_recovered_pipeline_is_restored(way):
    """The rest of it is not run after all."""
    flow = pipeline(du.item, du.fragile, du.first, name="p", use=[recover(on=RuntimeError)]) >> flaky("end", 0)
    BROKEN.update(["fragile", "end"])
    broken = way.run(flow)
    before = [shape(record) for record in broken.stages][:2]
    du.clear()
    resumed = way.resume(flow, broken)
    assert resumed.status == "completed"
    assert CALLS == ["end"]
    assert [shape(record) for record in resumed.stages][:2] == before
    assert names(resumed) == ["item", "fragile", "end"]


def test_a_failure_in_an_atomic_stage_leaves_nothing_in_the_store_and_loses_nothing(way):
    """Its writes were undone; on resume it runs again from its beginning."""
    flow = du.first >> Stage("s", [du.item, du.plan, du.fragile], use=[atomic]) >> du.item.bind(value=2)
    BROKEN.add("fragile")
    broken = way.run(flow)
    assert "items" not in broken.store
    du.clear()
    resumed = way.resume(flow, broken)
    assert CALLS[:3] == ["item 0", "plan", "fragile"]
    assert resumed["items"] == [0, 2]
    assert resumed["visits"] == ["rome", "oslo"]
    assert actions_run(resumed).count("s/item") == 1


def test_an_atomic_stage_that_completed_is_restored(way):
    """Like any other."""
    flow = Stage("s", [du.item, du.plan], use=[atomic]) >> du.fragile
    BROKEN.add("fragile")
    broken = way.run(flow)
    du.clear()
    assert way.resume(flow, broken)["items"] == [0]
    assert CALLS == ["fragile"]


def test_a_suspended_atomic_stage_runs_again_from_its_beginning(way):
    """It is one step, and has not completed."""
    flow = Stage("s", [du.item, du.suspends, du.first], use=[atomic]) >> du.item.bind(value=2)
    suspended = way.run(flow)
    assert suspended.status == "suspended"
    du.clear()
    resumed = way.resume(flow, suspended, {"go": True})
    assert CALLS == ["item 0", "suspends", "first", "item 2"]
    assert resumed["items"] == [0, 2]


def test_what_a_layer_skipped_or_supplied_is_not_asked_again(way):
    """A middleware decided: the decision is remembered."""
    flow = (
        Stage("s", [du.first.with_options(use=[du.cached]), du.second.with_options(use=[du.bypass]), du.item])
        >> Stage("t", [du.item.bind(value=2)], use=[du.bypass])
        >> du.fragile
    )
    BROKEN.add("fragile")
    broken = way.run(flow)
    assert ENTERED == ["cached first", "bypassed second", "bypassed t"]
    du.clear()
    ENTERED.clear()
    resumed = way.resume(flow, broken)
    assert (CALLS, ENTERED) == (["fragile"], [])
    assert resumed["first"] == "from the cache"
    assert [(a.name, a.status) for a in stage_record(resumed, "s").actions] == [
        ("first", "completed"), ("second", "skipped"), ("item", "completed"),
    ]  # fmt: skip
    assert statuses(resumed)[1] == statuses(broken)[1]


def test_middleware_is_entered_again_where_something_is_left_to_do_only(way):
    """That of the run, its pipelines and the unfinished stage; not that of what had completed."""
    flow = pipeline(
        pipeline(Stage("a", [du.first], use=[du.watched]), name="over", use=[du.watched]),
        pipeline(
            Stage("b", [du.second.with_options(use=[du.watched])], use=[du.watched]),
            Stage(
                "c",
                [du.item.with_options(use=[du.watched]), du.fragile.with_options(use=[du.watched])],
                use=[du.watched],
            ),
            name="open",
            use=[du.watched],
            use_stages=[du.watched],
        ),
        pipeline(du.nothing, name="later", use=[du.watched]),
        name="all",
        use=[du.watched],
    )
    BROKEN.add("fragile")
    broken = way.run(flow, use=[du.watched])
    ENTERED.clear()
    du.clear()
    way.resume(flow, broken, **({} if way.journal is None else {"use": [du.watched]}))
    assert ENTERED == [
        "+pipeline all", "+pipeline all",
        "+pipeline open",
        "+stage c", "+stage c", "+action fragile", "-action fragile", "-stage c", "-stage c",
        "-pipeline open",
        "+pipeline later", "-pipeline later",
        "-pipeline all", "-pipeline all",
    ]  # fmt: skip


NOTED = pipeline(
    pipeline(
        Stage("a", [du.first, du.item.with_options(use=[du.noting])], use=[du.noting]), name="one", use=[du.noting]
    ),
    parallel(
        Stage("b", [du.second, du.item.bind(value=2)], use=[du.noting]),
        pipeline(du.item.bind(value=3), name="in a group", use=[du.noting]),
        limit=1,
    ),
    Stage("c", [du.plan], use=[du.inserting], use_actions=[du.noting]),
    pipeline(name="nothing in it", use=[du.noting]),
    pipeline(du.item.bind(value=4), name="two", use=[du.inserting, du.noting], use_stages=[du.noting]),
    name="all",
    use=[du.noting],
)


def test_what_middleware_wrote_and_collected_is_there_once(way):
    """At whichever call the run is interrupted: as if it had not been."""
    whole = way.run(NOTED, run_id="whole", use=[du.noting])
    assert whole.status == "completed"
    calls = CALLS.copy()
    for number in range(len(calls)):
        du.clear()
        du.CRASHING[:] = [number]
        broken = way.run(NOTED, run_id=f"run {number}", use=[du.noting])
        resumed = way.resume(NOTED, broken, **({} if way.journal is None else {"use": [du.noting]}))
        assert outcome(resumed) == outcome(whole), number
        assert CALLS == calls[: number + 1] + calls[number:]


def numbering(call):
    """Collect which attempt it is entered in."""
    call.store.append("entered", call.attempt)
    yield


def writing_once(call):
    """Write in the first attempt only."""
    if call.attempt == 1:
        call.store["first"] = True
    yield


IN_ATTEMPTS = {
    "a layer around": [du.noting, retry(on=ValueError, wait=0), numbering],
    "nothing in the second": [retry(on=ValueError, wait=0), writing_once],
    "nothing but its retry": [retry(on=ValueError, wait=0)],
}


@pytest.mark.parametrize("title", IN_ATTEMPTS)
@pytest.mark.parametrize("where", ["use", "use_stages", "stage"])
def test_what_middleware_wrote_as_an_attempt_began_is_there_once(way, where, title):
    """That of the last attempt, and of the layers around it, on each resume."""

    use = IN_ATTEMPTS[title]
    inner = Stage("s", [flaky("flaky", 1), *du.gate("go")], use=use if where == "stage" else ())
    flow = pipeline(pipeline(inner, name="q", **({} if where == "stage" else {where: use})), name="p")
    whole = way.run(flow, {"go": 1}, run_id="whole")
    du.clear()
    waiting = way.run(flow)
    assert waiting.status == "suspended"
    resumed = way.resume(flow, waiting, {"go": 1})
    assert dict(resumed.store) == dict(whole.store)
    assert resumed.store.get("entered", [2]) == [2]
    assert dict(way.resume(flow, resumed).store) == dict(whole.store)


def test_values_that_middleware_gives_are_given_again(way):
    """They cannot be written down; what needs them gets new ones."""
    flow = Stage("s", [du.uses_handle, du.fragile, du.uses_handle.with_options(name="again")], use=[du.giving])
    BROKEN.add("fragile")
    broken = way.run(flow)
    assert broken.status == "failed"
    du.clear()
    resumed = way.resume(flow, broken)
    assert CALLS == ["fragile", "uses_handle"]
    assert (resumed["uses_handle"], resumed["again"]) == (True, True)


# -- what is not run


def test_what_was_skipped_stays_skipped(way):
    """The selectors of the first run are remembered."""
    flow = (
        Stage("s", [du.first, du.item.with_options(tags=["no"]), du.second, du.nothing])
        >> du.plan
        >> pipeline(du.item.bind(value=2), du.third, name="p")
        >> du.fragile
        >> du.third
        >> Stage("t", [du.item.with_options(tags=["no"]), du.discarded])
    )
    BROKEN.add("fragile")
    whole_skip = ["tag:no", "visit", "third", "s/nothing"]
    broken = way.run(flow, skip=whole_skip)
    assert broken.status == "failed"
    du.clear()
    resumed = way.resume(flow, broken)
    assert CALLS == ["fragile", "discarded"]
    du.clear()
    assert outcome(resumed) == outcome(flow.run(skip=whole_skip))


@pytest.mark.parametrize("where", ["first", "middle", "last", "all"])
def test_skipped_actions_do_not_hide_what_was_done(way, where):
    """Wherever in a stage they are."""
    acts = [du.first, du.item, du.nothing]
    skip = {
        "first": ["s/first"],
        "middle": ["s/item"],
        "last": ["s/nothing"],
        "all": ["s/first", "s/item", "s/nothing"],
    }
    flow = Stage("s", acts) >> Stage("t", [du.discarded, du.fragile]) >> du.item.bind(value=2)
    BROKEN.add("fragile")
    broken = way.run(flow, skip=skip[where])
    assert broken.status == "failed"
    du.clear()
    resumed = way.resume(flow, broken)
    assert CALLS == ["fragile", "item 2"]
    du.clear()
    assert outcome(resumed) == outcome(flow.run(skip=skip[where]))


def test_more_can_be_skipped_on_resume(way):
    """Beside what was skipped before."""
    flow = du.first >> du.fragile >> du.item >> du.nothing
    BROKEN.add("fragile")
    broken = way.run(flow, skip=["nothing"])
    du.clear()
    resumed = way.resume(flow, broken, skip=["fragile"])
    assert CALLS == ["item 0"]
    assert statuses(resumed) == [
        ("first", "completed"),
        ("fragile", "skipped"),
        ("item", "completed"),
        ("nothing", "skipped"),
    ]


def test_what_was_switched_off_stays_off(way):
    """And what was switched on again stays on."""
    flow = (
        du.first
        >> du.second
        >> du.disables
        >> du.fragile
        >> du.plan
        >> du.third
        >> du.enables
        >> du.plan.with_options(name="b")
    )
    BROKEN.add("fragile")
    broken = way.run(flow)
    du.clear()
    resumed = way.resume(flow, broken)
    assert CALLS[:3] == ["fragile", "plan", "enables"]
    assert statuses(resumed)[4:] == [
        ("plan", "completed"), ("visit[rome]", "skipped"), ("visit[oslo]", "skipped"), ("third", "skipped"),
        ("enables", "completed"), ("b", "completed"), ("visit[rome]", "completed"), ("visit[oslo]", "completed"),
    ]  # fmt: skip


def test_a_bailed_run_is_over(way):
    """Resuming it calls nothing, and says the same."""

    @action(name="bails")
    def bails(ctx: Context):
        du.call("bails")
        ctx.store["x"] = [1]
        raise Bail("enough")

    flow = du.first >> Stage("s", [du.item, bails, du.second]) >> du.third
    bailed = way.run(flow)
    assert bailed.status == "bailed"
    CALLS.clear()
    resumed = way.resume(flow, bailed)
    assert CALLS == []
    assert (resumed.status, resumed.reason, resumed["x"], resumed.result) == ("bailed", "enough", [1], 0)
    assert outcome(resumed) == outcome(bailed)


def test_a_bail_in_a_group_is_over(way):
    """Only what the bailing branch wrote is there."""

    @action(name="bails")
    def bails():
        du.call("bails")
        raise Bail("enough")

    flow = du.first >> parallel(du.item, du.item.bind(value=1) >> bails, du.second, limit=1) >> du.third
    bailed = way.run(flow)
    CALLS.clear()
    resumed = way.resume(flow, bailed)
    assert CALLS == []
    assert outcome(resumed) == outcome(bailed)
    assert (resumed.status, resumed.reason, resumed["items"]) == ("bailed", "enough", [1])


def test_a_completed_run_is_returned(way):
    """Without calling anything; from memory, it is the same object."""
    done = way.run(du.line)
    CALLS.clear()
    resumed = way.resume(du.line, done)
    assert CALLS == []
    assert outcome(resumed) == outcome(done)
    assert (resumed is done) == (way.journal is None)


def test_a_completed_run_takes_no_more_inputs(way):
    """It has come to its end without them; nor does the journal note them."""
    done = way.run(du.line)
    for _ in range(2):
        assert outcome(way.resume(du.line, done, {"more": 1})) == outcome(done)


# -- waits


def test_a_run_waits_for_a_value(way):
    """It is suspended, and says for what; resumed with the value, it goes on where it was."""
    flow = du.first >> du.gate("approval") >> du.item
    suspended = way.run(flow)
    assert (suspended.status, suspended.error) == ("suspended", None)
    assert "approval" in suspended.reason
    assert statuses(suspended) == [("first", "completed"), ("gate[approval]", "suspended")]
    resumed = way.resume(flow, suspended, {"approval": {"by": "ada"}})
    assert CALLS == ["first", "wait approval", "wait approval", "item 0"]
    assert (resumed.status, resumed.reason) == ("completed", None)
    assert resumed["gate approval"] == {"by": "ada"}
    assert "approval" not in resumed.store  # the wait consumed the answer
    assert statuses(resumed) == [("first", "completed"), ("gate[approval]", "completed"), ("item", "completed")]


def test_a_run_that_still_has_not_got_what_it_waits_for_is_suspended_again(way):
    """However often it is resumed."""
    flow = du.first >> du.gate("approval")
    run = way.run(flow)
    for _ in range(3):
        run = way.resume(flow, run, {"something else": 1})
        assert run.status == "suspended"
    assert way.resume(flow, run, {"approval": 1}).status == "completed"
    assert CALLS.count("first") == 1


def test_a_run_waits_several_times(way):
    """In one action, in stages that were inserted, and one after the other."""
    flow = du.waits_for_two >> du.opens_gates >> du.gate("c")
    run = way.run(flow)
    reasons = []
    for given in ({"one": 1}, {"two": 2}, {"b": "B"}, {"a": "A"}, {"c": "C"}):
        reasons.append(run.reason)
        run = way.resume(flow, run, given)
    assert [reason.split("'")[1] for reason in reasons] == ["one", "two", "a", "a", "c"]
    assert run.status == "completed"
    assert (run["waits_for_two"], run["gate a"], run["gate b"], run["gate c"]) == ([1, 2], "A", "B", "C")
    assert names(run) == ["waits_for_two", "opens_gates", "gate[a]", "gate[b]", "gate[c]"]


def test_a_value_that_was_given_before_needs_no_wait(way):
    """It is there from the start."""
    run = way.run(du.gate("x") >> du.first, {"x": 5})
    assert (run.status, run["gate x"]) == ("completed", 5)


def test_what_a_suspending_action_wrote_is_dropped(way):
    """It runs again, and sees what it would have seen."""

    @action(name="asks")
    def asks(ctx: Context):
        du.call("asks")
        ctx.store.append("asked", "please")
        ctx.insert(du.item)
        ctx.wait_for("answer")
        return du.nothing

    flow = Stage("s", [du.first, asks]) >> du.second
    suspended = way.run(flow)
    assert "asked" not in suspended.store
    resumed = way.resume(flow, suspended, {"answer": 1})
    assert resumed["asked"] == ["please"]
    assert actions_run(resumed) == ["s/first", "s/asks", "s/item", "s/nothing", "second/second"]
    assert CALLS == ["first", "asks", "asks", "item 0", "nothing", "second"]


def test_branches_of_a_group_wait_each(way):
    """The others finish first; nothing of them is called again."""
    flow = (
        du.first
        >> parallel(
            du.item.bind(value=1) >> du.gate("a") >> du.item.bind(value=2),
            du.plan >> du.item.bind(value=3),
            pipeline(parallel(du.gate("b"), du.item.bind(value=4)), name="inner"),
            name="g",
        )
        >> du.item.bind(value=5)
    )
    run = way.run(flow)
    assert run.status == "suspended"
    assert "items" not in run.store
    done = CALLS.copy()
    assert sorted(done) == sorted(
        ["first", "item 1", "wait a", "plan", "go rome", "look rome", "souvenir rome", "go oslo", "look oslo",
         "souvenir oslo", "item 3", "wait b", "item 4"]
    )  # fmt: skip
    CALLS.clear()
    run = way.resume(flow, run, {"b": "B"})
    assert (run.status, sorted(CALLS)) == ("suspended", ["wait a", "wait b"])
    CALLS.clear()
    run = way.resume(flow, run, {"a": "A"})
    assert CALLS == ["wait a", "item 2", "item 5"]
    assert run["items"] == [1, 2, 3, 4, 5]
    assert (run["gate a"], run["gate b"]) == ("A", "B")
    CALLS.clear()
    assert outcome(run) == outcome(flow.run({"a": "A", "b": "B"})), "but for the order of the store"


def test_what_is_given_on_resume_wins_over_what_was_written_before(way):
    """Also in a run that is interrupted and resumed once more, without it."""
    flow = du.first >> du.second >> du.fragile >> du.third >> du.item >> du.nothing
    BROKEN.update(["fragile", "nothing"])
    run = way.run(flow)
    assert run["second"] == 2
    BROKEN.discard("fragile")
    run = way.resume(flow, run, {"second": 40, "items": [7]})
    assert (run["second"], run["third"], run["items"]) == (40, 41, [7, 0])
    BROKEN.clear()
    run = way.resume(flow, run)
    assert (run.status, run["second"], run["third"], run["items"]) == ("completed", 40, 41, [7, 0])


def test_what_is_written_after_the_resume_wins_over_what_was_given(way):
    """It is a start, no constant."""
    flow = du.first >> du.fragile >> du.second >> du.nothing
    BROKEN.update(["fragile", "nothing"])
    run = way.run(flow)
    BROKEN.discard("fragile")
    run = way.resume(flow, run, {"second": 40})
    assert run["second"] == 2
    BROKEN.clear()
    assert way.resume(flow, run)["second"] == 2


def test_inputs_of_a_resume_are_a_mapping(way):
    """Anything else is said before the run is touched."""
    run = way.run(du.gate("a"))
    with pytest.raises(DefinitionError, match="mapping"):
        way.resume(du.gate("a"), run, ["a"])
    assert way.resume(du.gate("a"), run, {"a": 1}).status == "completed"


def test_values_of_earlier_inputs_are_remembered(way):
    """All that was given, at the start and later."""
    flow = du.gate("a") >> du.gate("b") >> du.gate("c")
    run = way.run(flow, {"c": {"deep": [1]}})
    run = way.resume(flow, run, {"a": (1, 2)})
    run = way.resume(flow, run, {"b": {3}})
    assert (run["gate a"], run["gate b"], run["gate c"]) == ((1, 2), {3}, {"deep": [1]})


# -- the identity of a step


def test_the_id_of_a_step_stays_over_retries_and_resumes(way):
    """So that it can serve as an idempotency key."""
    flow = du.first >> du.fragile.with_options(use=[retry(on=RuntimeError, wait=0, attempts=2)]) >> du.item
    BROKEN.add("fragile")
    run = way.run(flow)
    way.resume(flow, run)
    BROKEN.clear()
    way.resume(flow, run)
    assert len(STEP_IDS) == 5
    assert len(set(STEP_IDS)) == 1


def test_the_id_of_a_step_stays_when_what_is_around_it_is_retried(way):
    """A stage, or a pipeline with all that was inserted."""
    flow = pipeline(
        Stage("s", [du.item, du.fragile], use=[retry(on=RuntimeError, wait=0, attempts=2)]),
        name="p",
        use=[retry(on=RuntimeError, wait=0, attempts=2)],
    )
    BROKEN.add("fragile")
    run = way.run(flow)
    way.resume(flow, run)
    assert len(STEP_IDS) == 8
    assert len(set(STEP_IDS)) == 1


def test_every_step_has_an_id_of_its_own(way):
    """In stages of one name, in loops, in branches, in other runs: they are all different, and of one length."""
    same = Stage("s", [du.fragile, du.fragile])
    flow = (
        same >> same >> parallel(same, same, pipeline(parallel(same, same)), limit=1) >> parallel(same, same, limit=1)
    )
    way.run(flow)
    way.run(flow)
    assert len(set(STEP_IDS)) == len(STEP_IDS) == 2 * 16
    assert len({len(step) for step in STEP_IDS}) == 1


def test_the_ids_of_steps_are_the_same_in_any_run_of_that_id(tmp_path):
    """They come from the place in the run, not from its time, driver or journal."""
    flow = du.plan >> parallel(du.fragile, Stage("s", [du.fragile]), limit=1) >> du.fragile
    flow.run(run_id="r")
    asyncio.run(flow.arun(run_id="r", journal=tmp_path / "a.db"))
    flow.run(run_id="r", journal=MemoryJournal())
    assert STEP_IDS[:3] == STEP_IDS[3:6] == STEP_IDS[6:]


# -- groups


@pytest.mark.parametrize("limit", [1, None])
def test_what_completed_in_a_failed_group_is_not_called_again(way, limit):
    """In the branch that failed, and in the others; the group is merged when all is done."""

    @action(name="late")
    def late():
        time.sleep(0.05)
        du.call("late")
        if "late" in BROKEN:
            raise RuntimeError

    flow = (
        du.first
        >> parallel(
            du.item.bind(value=1) >> du.item.bind(value=2),
            du.item.bind(value=3) >> late >> du.item.bind(value=4),
            name="g",
            limit=limit,
        )
        >> du.item.bind(value=5)
    )
    BROKEN.add("late")
    broken = way.run(flow)
    assert broken.status == "failed"
    assert "items" not in broken.store
    assert sorted(CALLS) == ["first", "item 1", "item 2", "item 3", "late"]
    du.clear()
    resumed = way.resume(flow, broken)
    assert CALLS == ["late", "item 4", "item 5"]
    assert resumed["items"] == [1, 2, 3, 4, 5]
    assert names(resumed) == ["first", "item", "item", "item", "late", "item", "item"]


def test_a_group_in_a_group_that_failed_goes_on_where_it_was(way):
    """However deep it is."""
    inner = parallel(du.item.bind(value=1), du.item.bind(value=2) >> du.fragile, name="inner", limit=1)
    flow = parallel(
        parallel(du.item.bind(value=3), inner >> du.item.bind(value=4), name="middle", limit=1)
        >> du.item.bind(value=5),
        du.item.bind(value=6),
        name="outer",
        limit=1,
    ) >> du.item.bind(value=7)
    BROKEN.add("fragile")
    broken = way.run(flow)
    assert CALLS == ["item 3", "item 1", "item 2", "fragile"]
    du.clear()
    resumed = way.resume(flow, broken)
    assert CALLS == ["fragile", "item 4", "item 5", "item 6", "item 7"]
    assert resumed["items"] == [3, 1, 2, 4, 5, 6, 7]


def test_a_group_that_a_retry_runs_again_leaves_nothing_of_its_first_attempt(way):
    """Its branches are dropped with it."""
    flow = (
        pipeline(
            du.item,
            parallel(du.item.bind(value=1), parallel(du.plan, flaky("b", 1), limit=1), limit=1),
            du.item.bind(value=3),
            name="p",
            use=[retry(on=ValueError, wait=0)],
        )
        >> du.fragile
    )
    BROKEN.add("fragile")
    broken = way.run(flow)
    assert CALLS.count("plan") == 2
    du.clear()
    resumed = way.resume(flow, broken)
    assert CALLS == ["fragile"]
    assert resumed["items"] == [0, 1, 3]
    assert resumed["visits"] == ["rome", "oslo"]
    assert names(resumed) == ["item", "item", "plan", "visit[rome]", "visit[oslo]", "b", "item", "fragile"]


def test_a_group_that_ran_twice_is_restored_both_times(way):
    """The same object, at two places, and in a loop."""
    group = parallel(du.item.bind(value=1), du.item.bind(value=2), limit=1)

    flow = group >> Stage("s", [du.first]) >> group >> du.fragile
    BROKEN.add("fragile")
    broken = way.run(flow)
    du.clear()
    resumed = way.resume(flow, broken)
    assert CALLS == ["fragile"]
    assert resumed["items"] == [1, 2, 1, 2]


def test_a_write_conflict_is_met_again(way):
    """What the branches did is restored; what they make together is as wrong as before, until it is merged."""
    units = [du.item.with_options(name="x", returns="k", collect=None).bind(value=n) for n in (1, 2)]
    flow = parallel(*units, name="g") >> du.first
    broken = way.run(flow)
    assert type(broken.error).__name__ == "WriteConflictError"
    CALLS.clear()
    again = way.resume(flow, broken)
    assert type(again.error).__name__ == "WriteConflictError"
    assert CALLS == []
    mended = parallel(*units, name="g", merge={"k": lambda a, b: a + b}) >> du.first
    assert way.resume(mended, broken)["k"] == 3
    assert CALLS == ["first"]


def test_a_group_in_processes_is_durable(kept, tmp_path):
    """What has come home is recorded, by the coordinator."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    marker = tmp_path / "marker"
    marker.touch()
    squares = [du.square.bind(n=n) for n in range(4)]
    flow = parallel(*squares, du.where, limit=1) >> parallel(du.where, du.fails_there, limit=1) >> du.item
    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as executor:
        broken = kept.run(flow, {"marker": str(marker)}, executor=executor)
        assert broken.status == "failed"
        marker.unlink()
        resumed = kept.resume(flow, broken, executor=executor)
    assert resumed["squares"] == [0, 1, 4, 9]
    assert resumed["fails_there"] == "fine there"
    assert os.getpid() not in resumed["where"]
    assert broken["where"] == resumed["where"][:1]


# -- in place


def test_what_was_changed_in_place_is_restored(kept):
    """Arguments, values read through the context, parts of them: what was there at the end of each action."""
    flow, inputs = FLOWS["changes in place"]
    whole = flow.run(inputs)
    du.clear()
    BROKEN.add("first")
    broken = kept.run(flow, inputs)
    assert broken["written"] == {"deep": [1, 2, 3], "more": True, "items": "seen"} == whole["written"]
    du.clear()
    resumed = kept.resume(flow, broken)
    assert CALLS == ["first"]
    assert resumed["written"] == whole["written"]


def test_inputs_changed_in_place_are_restored(kept):
    """As the action that changed them left them."""

    @action(name="changes")
    def changes(basket, ctx: Context):
        du.call("changes")
        basket.append(len(basket))
        ctx.store["inputs"]["seen"] = True

    flow = Stage("s", [changes, changes]) >> changes >> du.fragile
    BROKEN.add("fragile")
    given = {"basket": ["x"], "inputs": {}}
    broken = kept.run(flow, given)
    du.clear()
    resumed = kept.resume(flow, broken)
    assert CALLS == ["fragile"]
    assert (resumed["basket"], resumed["inputs"]) == (["x", 1, 2, 3], {"seen": True})


def test_stage_data_changed_in_place_is_restored(kept):
    """The definition keeps its own."""

    @action(name="changes")
    def changes(k):
        k["n"].append(2)

    flow = Stage("s", [changes, du.fragile], data={"k": {"n": [1]}}) >> du.first
    BROKEN.add("fragile")
    broken = kept.run(flow)
    BROKEN.clear()
    assert kept.resume(flow, broken)["k"] == {"n": [1, 2]}
    assert flow["s"].data["k"] == {"n": [1]}


def test_a_list_that_is_collected_into_may_be_changed_in_place(kept):
    """The items that follow join the changed list."""

    @action(name="reverses")
    def reverses(items):
        items.reverse()
        items.append("mark")

    flow = du.item.bind(value=1) >> du.item.bind(value=2) >> reverses >> du.item.bind(value=3) >> du.fragile
    BROKEN.add("fragile")
    broken = kept.run(flow)
    du.clear()
    resumed = kept.resume(flow, broken)
    assert resumed["items"] == [2, 1, "mark", 3]


def test_what_a_failing_attempt_changed_in_place_is_what_the_next_sees(kept):
    """As in memory: a retry does not undo what no write told of; the journal has what was there in the end."""

    @action(name="changes", use=[retry(on=ValueError, wait=0)])
    def changes(basket):
        basket.append(len(basket))
        if len(basket) < 3:
            raise ValueError

    flow = changes >> du.fragile
    whole = flow.run({"basket": []})
    BROKEN.add("fragile")
    broken = kept.run(flow, {"basket": []})
    du.clear()
    assert kept.resume(flow, broken)["basket"] == whole["basket"] == [0, 1, 2]


def test_what_was_changed_in_place_in_a_branch_is_restored(kept):
    """And merged."""

    @action(name="changes")
    def changes(mine):
        mine.append(2)

    flow = parallel(Stage("s", [changes, du.fragile], data={"mine": [1]}), du.first, limit=1)
    BROKEN.add("fragile")
    broken = kept.run(flow)
    BROKEN.clear()
    assert kept.resume(flow, broken)["mine"] == [1, 2]


def test_what_branches_changed_in_place_is_restored_with_their_group(kept):
    """However deep, by several branches, beside items that others append: changing a value is no conflict."""

    def changes(name):
        @action(name=name)
        def changes(basket):
            basket.append(name)

        return changes

    @action(name="joins", collect="basket")
    def joins():
        return "joined"

    groups = {
        "one branch": parallel(changes("a"), du.first, limit=1),
        "two branches": parallel(changes("a"), changes("b"), limit=1),
        "twice in one": parallel(changes("a") >> changes("b"), du.first, limit=1),
        "nested": parallel(parallel(changes("a"), du.first, limit=1), changes("b"), limit=1),
        "beside an append": parallel(joins, changes("a"), limit=1),
        "two groups": parallel(changes("a"), du.first, limit=1)
        >> parallel(changes("b"), du.item.bind(value=1), limit=1),
    }
    for name, group in groups.items():
        flow = group >> du.fragile
        whole = flow.run({"basket": ["x"]})
        BROKEN.add("fragile")
        broken = kept.run(flow, {"basket": ["x"]})
        du.clear()
        assert kept.resume(flow, broken)["basket"] == whole["basket"] != ["x"], name


def test_what_layers_append_and_actions_read_is_still_appended_to_after_a_resume(kept):
    """So that branches that append to the same list do not disagree when they are restored."""

    def appends(call):
        call.store.append("notes", call.name)
        yield

    def reads(name):
        @action(name=name, use=[appends])
        def reads(ctx):
            assert ctx.store["notes"] == [name]

        return reads

    flow = parallel(Stage("s", [reads("a"), du.fragile]), reads("b"), limit=1)
    BROKEN.add("fragile")
    broken = kept.run(flow)
    BROKEN.clear()
    assert kept.resume(flow, broken)["notes"] == ["a", "b"]


def test_a_large_list_is_not_written_again_for_every_item_that_joins(tmp_path):
    """A row has what was appended, not the whole."""
    flow = pipeline(*[du.item.bind(value="x" * 1000)] * 100)
    journal = SqliteJournal(tmp_path / "runs.db")
    run = flow.run(journal=journal)
    sizes = [len(row.payload) for row in journal.history(run.id) if row.kind == "action"]
    assert len(sizes) == 100
    assert max(sizes) < 1500


# -- what cannot be remembered


class Locked:
    """A value that can be used, but neither pickled nor copied."""

    def __init__(self):
        import threading

        self.lock = threading.Lock()


def test_a_value_that_cannot_be_written_fails_the_action_that_wrote_it(kept):
    """At once, naming key and path; of that action nothing is left, and the run can be resumed when it is mended."""

    @action(name="bad")
    def bad(ctx: Context):
        du.call("bad")
        ctx.store["before"] = 1
        ctx.insert(du.item)
        return {"rows": [1, Locked() if "bad" in BROKEN else 2]}

    flow = du.first >> Stage("s", [du.nothing, bad, du.second])
    BROKEN.clear()
    du.call("")
    CALLS.clear()

    @action(name="bad")
    def breaks(ctx: Context):
        ctx.store["before"] = 1
        ctx.insert(du.item)
        return {"rows": [1, Locked()]}

    broken = kept.run(du.first >> Stage("s", [du.nothing, breaks, du.second]))
    assert broken.status == "failed"
    assert isinstance(broken.error, SerializationError)
    assert "store['bad']['rows'][1]" in str(broken.error).replace('"', "'")
    assert "'bad'" in text_of(broken.error)
    assert "'s'" in text_of(broken.error)
    assert set(broken.store) == {"first"}
    assert [(a.name, a.status) for a in stage_record(broken, "s").actions] == [
        ("nothing", "completed"),
        ("bad", "failed"),
    ]
    CALLS.clear()
    resumed = kept.resume(flow, broken)
    assert (resumed.status, CALLS) == ("completed", ["bad", "item 0", "second"])
    assert resumed["bad"] == {"rows": [1, 2]}


@pytest.mark.parametrize("how", ["returned", "ctx", "collect", "tuple", "in place"])
def test_a_value_that_cannot_be_written_leaves_no_trace(kept, how):
    """However it came into the store."""

    @action(name="returned")
    def returned():
        return {"a": [Locked()]}

    @action(name="by ctx")
    def by_ctx(ctx: Context):
        ctx.store["deep"] = {"a": [Locked()]}

    @action(name="by collect", collect="items")
    def by_collect():
        return (Locked(),)

    @action(name="by tuple", returns=("a", "b"))
    def by_tuple():
        return 1, Locked()

    @action(name="in place")
    def in_place(basket):
        basket["x"].append(Locked())

    acts = {"returned": returned, "ctx": by_ctx, "collect": by_collect, "tuple": by_tuple, "in place": in_place}
    paths = {
        "returned": "store['returned']['a'][0].lock",
        "ctx": "store['deep']['a'][0].lock", "collect": "store['items'][0][0].lock", "tuple": "store['b'].lock",
        "in place": "store['basket']['x'][0].lock",
    }  # fmt: skip
    flow = du.item >> acts[how] >> du.nothing
    broken = kept.run(flow, {"basket": {"x": []}})
    assert isinstance(broken.error, SerializationError)
    if not (isinstance(kept.journal, SqliteJournal) and kept.journal.codec.name == "json"):
        assert paths[how] in str(broken.error).replace('"', "'")
        assert "lock" in str(broken.error)
    assert paths[how].removesuffix(".lock") in str(broken.error).replace('"', "'")
    assert set(broken.store) == {"items", "basket"}
    assert broken["items"] == [0]
    again = kept.resume(flow, broken)
    assert isinstance(again.error, SerializationError)
    assert again["basket"] == {"x": []} or how == "in place"


def test_what_middleware_wrote_must_be_written_as_well(kept):
    """The stage fails that it wrote around."""

    def layer(call):
        yield
        call.store["lock"] = Locked()

    broken = kept.run(du.first >> Stage("s", [du.second], use=[layer]) >> du.third)
    assert isinstance(broken.error, SerializationError)
    assert "store['lock']" in str(broken.error).replace('"', "'")
    assert statuses(broken) == [("first", "completed"), ("s", "failed")]
    CALLS.clear()
    resumed = kept.resume(du.first >> Stage("s", [du.second]) >> du.third, broken)
    assert (resumed.status, CALLS) == ("completed", ["third"])


def test_inputs_that_cannot_be_written_are_refused_before_the_run(kept):
    """Nothing is called, and no run is begun."""
    with pytest.raises(SerializationError, match="(?i)lock"):
        kept.run(du.line, {"x": {"deep": [Locked()]}}, run_id="r")
    assert CALLS == []
    assert kept.run(du.line, run_id="r").status == "completed", "the id is free"


def test_inputs_of_a_resume_that_cannot_be_written_leave_the_run_as_it_was(kept):
    """It can be resumed with others."""
    run = kept.run(du.gate("a"))
    with pytest.raises(SerializationError, match="(?i)lock"):
        kept.resume(du.gate("a"), run, {"a": Locked()})
    assert kept.resume(du.gate("a"), run, {"a": 1})["gate a"] == 1


def test_stage_data_that_cannot_be_written_fails_the_stage(kept):
    """It becomes part of the store, which has to be remembered."""
    flow = du.first >> Stage("s", [du.nothing], data={"f": lambda: 1})
    broken = kept.run(flow)
    assert broken.status == "failed" or not isinstance(kept.journal, SqliteJournal)
    if broken.status == "failed":
        assert isinstance(broken.error, SerializationError)
        assert "store['f']" in str(broken.error).replace('"', "'")


class Unloadable(Exception):
    """An exception that pickles, and then cannot be made again."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code = code


class Unpicklable(Exception):
    """An exception with a part that cannot be pickled."""

    def __init__(self):
        super().__init__("with a lock")
        self.value = Locked()


@pytest.mark.parametrize("error", [Unloadable(7, "no luck"), Unpicklable()], ids=["unloadable", "unpicklable"])
@pytest.mark.parametrize("level", ["action", "stage"])
def test_an_error_that_was_recovered_is_remembered_whatever_it_is(kept, error, level):
    """At least by what it said: it does not keep the run from being resumed."""

    @action(name="fails")
    def fails():
        raise error

    layer = recover(on=Exception)
    flow = Stage("s", [fails.with_options(use=[layer] if level == "action" else [])], use=[layer]) >> du.fragile
    BROKEN.add("fragile")
    broken = kept.run(flow)
    assert str(broken.error) == "fragile is broken"
    du.clear()
    resumed = kept.resume(flow, broken)
    assert (resumed.status, CALLS) == ("completed", ["fragile"])
    record = stage_record(resumed, "s") if level == "stage" else action_record(resumed, "s", "fails")
    assert record.recovered
    assert str(error) in str(record.error)


def test_a_stream_of_a_bare_iterable_is_refused_at_once(kept):
    """It could not be called again on resume; the message says what can."""
    for streaming in (du.streams_bare, du.streams_list):
        CALLS.clear()
        broken = kept.run(du.first >> streaming >> du.second)
        assert CALLS == ["first", streaming.name]
        assert isinstance(broken.error, DefinitionError)
        assert "stream(function, *args)" in str(broken.error)
        assert repr(streaming.name) in str(broken.error)


def test_without_a_journal_a_stream_may_be_a_bare_iterable():
    """It cannot be resumed from memory: that is said then."""
    run = (du.streams_bare >> du.item).run()
    assert names(run) == ["streams_bare", "visit[x]", "visit[y]", "item"]


def test_a_run_with_a_bare_iterable_is_not_resumed_from_memory():
    """What it had yielded cannot be matched: it is said, and nothing is called."""
    BROKEN.add("go y")
    flow = du.streams_bare >> du.item
    broken = flow.run(check=False)
    du.clear()
    with pytest.raises((DefinitionError, JournalError), match="stream"):
        flow.resume(broken)
    assert CALLS == []


@pytest.mark.parametrize("inserting", [du.local_closure, du.local_stage], ids=["closure", "stage"])
def test_units_that_cannot_be_referenced_are_refused_at_once(kept, inserting):
    """The message names what it is, and the cure."""
    broken = kept.run(du.first >> inserting >> du.second)
    assert CALLS == ["first", inserting.name]
    assert broken.status == "failed"
    assert "module level" in text_of(broken.error) or "define it with `def`" in text_of(broken.error)
    assert f"'{inserting.name}'" in text_of(broken.error)


def test_static_units_need_not_be_referenced(kept):
    """They are there when the run is resumed."""
    flow = pipeline(
        Stage("s", [action(name="a")(lambda: 1), action(name="b")(lambda a: a + 1)]), du.fragile, Stage("t", [du.item])
    )
    BROKEN.add("fragile")
    broken = kept.run(flow)
    BROKEN.clear()
    assert kept.resume(flow, broken)["b"] == 2


# -- journals and runs that are not there, or busy


@pytest.mark.parametrize("given", [str, Path, SqliteJournal], ids=["a string", "a path", "a journal"])
def test_a_journal_is_a_path_or_a_journal(tmp_path, given):
    """A path means an SQLite file, made where it is missing."""
    where = tmp_path / "my runs.db"
    BROKEN.add("third")
    with pytest.raises(RuntimeError) as raised:
        du.line.run(journal=given(where))
    du.clear()
    resumed = du.line.resume(Run.of(raised.value).id, journal=given(where))
    assert (resumed["third"], CALLS) == (3, ["third"])
    assert where.exists()


@pytest.mark.parametrize("given", [3, object(), b"runs.db", "", ["runs.db"]])
def test_anything_else_is_no_journal(given, tmp_path, monkeypatch):
    """And says so before anything runs."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises((JournalError, DefinitionError), match="journal"):
        du.line.run(journal=given)
    assert CALLS == []


def test_a_run_of_a_journal_can_be_resumed_as_an_object(tmp_path):
    """It knows its journal."""
    BROKEN.add("third")
    broken = du.line.run(journal=tmp_path / "runs.db", check=False)
    du.clear()
    resumed = du.line.resume(broken)
    assert (resumed["third"], CALLS) == (3, ["third"])
    CALLS.clear()
    assert du.line.resume(broken.id, journal=tmp_path / "runs.db")["third"] == 3
    assert CALLS == []


def test_an_id_without_a_journal_says_what_is_missing():
    """The journal."""
    with pytest.raises(DefinitionError, match="journal="):
        du.line.resume("some run")


def test_a_run_that_is_not_there_is_not_found(kept):
    """The message names the ids that are close."""
    kept.run(du.line, run_id="monday")
    with pytest.raises(RunNotFoundError, match="mondy.*monday"):
        kept.resume(du.line, "mondy")
    with pytest.raises(LookupError):
        kept.resume(du.line, "mondy")


def test_a_journal_that_is_not_there_is_not_made_by_a_resume(tmp_path):
    """A misspelt path is an error, no new file."""
    with pytest.raises(RunNotFoundError, match="runz.db"):
        du.line.resume("r", journal=tmp_path / "runz.db")
    assert list(tmp_path.iterdir()) == []


def test_an_id_is_taken_once(kept):
    """A second run of that id is refused; the first one is as it was."""
    kept.run(du.line, run_id="monday")
    CALLS.clear()
    with pytest.raises(RunExistsError, match="monday"):
        kept.run(du.line, run_id="monday")
    assert CALLS == []
    assert kept.resume(du.line, "monday")["third"] == 3


def test_a_live_run_cannot_be_resumed(kept):
    """One at a time works on it; the message names who does."""
    caught = []

    @action(name="meddles")
    def meddles(ctx: Context):
        with pytest.raises(RunBusyError) as busy:
            du.line.resume(ctx.run_id, journal=kept.journal)
        caught.append(str(busy.value))

    run = kept.run(du.first >> meddles >> du.second, run_id="r")
    assert run.status == "completed"
    assert "'r'" in caught[0]
    if not isinstance(kept.journal, MemoryJournal):
        assert str(os.getpid()) in caught[0]


def test_a_failed_run_is_free_again(kept):
    """Also when its error was no failure of an action."""
    for flow in (du.first >> du.fragile, du.gate("x"), du.first >> du.streams_bare):
        BROKEN.add("fragile")
        run = kept.run(flow)
        kept.resume(flow, run)
        kept.resume(flow, run)


# -- changed code


def versions(number, extra=()):
    """A flow whose action `priced` has two versions."""

    @action(name="priced")
    def old():
        du.call("old")
        return 1

    @action(name="priced")
    def new():
        du.call("new")
        return 2

    return pipeline(du.first, {1: old, 2: new}[number], du.item, *extra, du.fragile, name="shop")


def interrupted(way, flow, at="fragile", **options):
    """A run that failed at this action; then everything is mended."""
    BROKEN.add(at)
    broken = way.run(flow, **options)
    assert broken.status == "failed"
    du.clear()
    return broken


def change(way, flow, broken, **options):
    """The error of a resume that is refused."""
    with pytest.raises(CodeChangedError) as refused:
        way.resume(flow, broken, check=True, **options)
    return str(refused.value)


def test_changed_code_of_a_completed_action_is_an_error(way):
    """The report names it, and what can be done; the run stays as it was."""
    broken = interrupted(way, versions(1))
    report = change(way, versions(2), broken)
    assert "priced/priced" in report
    assert broken.id in report
    assert "'ignore'" in report
    assert "'rerun'" in report
    assert CALLS == []
    assert way.resume(versions(1), broken)["priced"] == 1
    assert CALLS == ["fragile"]


def test_changed_code_can_be_ignored(way):
    """What has completed stays as it is."""
    broken = interrupted(way, versions(1))
    resumed = way.resume(versions(2), broken, on_change="ignore")
    assert (resumed.status, resumed["priced"], CALLS) == ("completed", 1, ["fragile"])


def test_changed_code_can_be_run_again(kept):
    """From the first difference on: what came before is restored."""
    broken = interrupted(kept, versions(1))
    resumed = kept.resume(versions(2), broken, on_change="rerun")
    assert (resumed.status, resumed["priced"]) == ("completed", 2)
    assert CALLS == ["new", "item 0", "fragile"]
    assert resumed["items"] == [0]
    assert names(resumed) == ["first", "priced", "item", "fragile"]


def test_what_was_run_again_is_what_is_remembered(kept):
    """The next resume knows the new code only; as the run has finished, it is returned whatever the code."""
    broken = interrupted(kept, versions(1))
    kept.resume(versions(2), broken, on_change="rerun")
    CALLS.clear()
    assert kept.resume(versions(2), broken, on_change="rerun")["priced"] == 2
    assert kept.resume(versions(1), broken)["priced"] == 2
    assert CALLS == []
    assert kept.resume(versions(1), broken, on_change="rerun")["priced"] == 1


def test_a_rerun_that_is_interrupted_goes_on_as_a_rerun(kept):
    """What it had done again is restored."""
    broken = interrupted(kept, versions(1))
    BROKEN.add("fragile")
    again = kept.resume(versions(2), broken, on_change="rerun")
    assert again.status == "failed"
    du.clear()
    resumed = kept.resume(versions(2), broken)
    assert (resumed["priced"], resumed["items"], CALLS) == (2, [0], ["fragile"])


def test_changed_code_of_what_has_not_completed_is_none_of_its_business(way):
    """That is what a repair is."""

    def made(version):
        @action(name="repaired")
        def broken():
            raise ValueError

        @action(name="repaired")
        def mended():
            return "fine"

        return du.first >> {1: broken, 2: mended}[version] >> du.item

    broken = way.run(made(1))
    CALLS.clear()
    resumed = way.resume(made(2), broken)
    assert (resumed["repaired"], CALLS) == ("fine", ["item 0"])


class Dying(MemoryJournal):
    """A journal of run "r" with these rows, whose process is killed before it has written so many more times."""

    def __init__(self, rows, writes):
        super().__init__()
        self.left = None
        self.create("r", "p", self.codec.encode({}, "inputs"), ())
        self.write("r", rows)
        self.close("r", "running", None, None)
        self.left = writes

    def write(self, run_id, rows):
        """Write, as long as the process lives."""
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise du.Crash
        super().write(run_id, rows)


def check_killed_anywhere(rows, flow, skip=(), **options):
    """Check that a resume that was killed anywhere is resumed, and that nothing is called that had completed."""
    for writes in itertools.count():
        journal = Dying(rows, writes)
        killed = flow.resume("r", journal=journal, skip=skip, check=False, **options)
        assert isinstance(killed.error, du.Crash | None)
        journal.left = None
        done = {row.action for row in journal.history("r") if row.status == "completed"}
        du.clear()
        resumed = flow.resume("r", journal=journal, **options)
        assert resumed.status == "completed"
        assert done.isdisjoint(CALLS)
        if killed.error is None:
            return


def rows_of_broken(flow):
    """What a journal has of a run that failed in `fragile`; then everything is mended."""
    journal = MemoryJournal()
    BROKEN.add("fragile")
    flow.run(check=False, journal=journal, run_id="r")
    du.clear()
    return journal.history("r")


# What takes the place of a step that had failed, and is gone: it has the same number.
FOLLOWS = {
    "a stage": Stage("t", [du.first, du.second]),
    "a stage in a layer": Stage("t", [du.first, du.second], use=[du.noting]),
    "a stage with data": Stage("t", [du.first, du.second], data={"k": 1}),
    "a pipeline": pipeline(du.first, du.second, name="q", use=[du.noting]),
    "a group": parallel(du.first >> du.second, du.plan, limit=1) >> du.item,
}


@pytest.mark.parametrize("on_change", ["error", "ignore", "rerun"])
@pytest.mark.parametrize("title", FOLLOWS)
@pytest.mark.parametrize("before", [[], [du.nothing]])
def test_a_failed_action_that_is_gone_is_no_change(before, title, on_change):
    """It had not completed, and what comes in its place is performed."""

    def made(*failing):
        return pipeline(Stage("s", [*before, *failing]), FOLLOWS[title], name="p")

    check_killed_anywhere(rows_of_broken(made(du.fragile)), made(), on_change=on_change)


@pytest.mark.parametrize("on_change", ["error", "ignore", "rerun"])
@pytest.mark.parametrize("title", FOLLOWS)
@pytest.mark.parametrize("written", [1, 2])
def test_a_failed_stage_that_is_gone_is_no_change(written, title, on_change):
    """Nothing in it had completed; the process may have been killed before its own row was written."""
    rows = rows_of_broken(pipeline(du.fragile, name="p"))
    assert len(rows) == 2
    check_killed_anywhere(rows[:written], pipeline(FOLLOWS[title], name="p"), on_change=on_change)


SKIPPED = {
    "what had failed first": Stage("s", [du.fragile, du.nothing]),
    "what had failed last": Stage("s", [du.nothing, du.fragile]),
    "in a layer": Stage("s", [du.nothing, du.fragile], use=[du.noting]),
    "with data": Stage("s", [du.nothing, du.fragile], data={"k": 1}),
    "a group": parallel(du.nothing >> du.fragile, du.plan, name="s", limit=1),
    "a pipeline": pipeline(Stage("t", [du.nothing, du.fragile]), name="s", use=[du.noting]),
    "in a group": parallel(Stage("s", [du.nothing, du.fragile]) >> du.item.bind(value=2), limit=1),
}


@pytest.mark.parametrize("on_change", ["error", "ignore", "rerun"])
@pytest.mark.parametrize("follows", FOLLOWS)
@pytest.mark.parametrize("title", SKIPPED)
def test_what_was_skipped_on_a_resume_is_no_change_on_the_next(title, follows, on_change):
    """The steps in it count no more."""
    flow = pipeline(SKIPPED[title], FOLLOWS[follows], name="p")
    check_killed_anywhere(rows_of_broken(flow), flow, skip=["s"], on_change=on_change)


def test_the_same_code_elsewhere_is_no_change(way):
    """Defined anew, on other lines, with another docstring."""

    def made(again):
        if again:

            @action(name="same")
            def same(first, k=[1, {"x": 2}]):
                """Explained now."""
                # and commented

                return [first + n for n in (1, 2)]
        else:

            @action(name="same")
            def same(first, k=[1, {"x": 2}]):
                return [first + n for n in (1, 2)]

        return du.first >> same >> du.fragile

    broken = interrupted(way, made(False))
    assert way.resume(made(True), broken).status == "completed"
    assert CALLS == ["fragile"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: du.first >> du.nothing >> du.second >> du.item >> du.fragile, ["nothing", "second"]),
        (lambda: du.first >> du.item >> du.fragile, ["second"]),
        (lambda: du.first >> du.second.with_options(name="renamed") >> du.item >> du.fragile, ["second", "renamed"]),
        (lambda: du.item >> du.first >> du.second >> du.fragile, ["first", "item"]),
        (lambda: du.plan >> du.streams, ["plan", "first"]),
        (lambda: du.first >> Stage("second", [du.second, du.nothing]) >> du.item >> du.fragile, ["second", "nothing"]),
        (lambda: du.first >> Stage("second", []) >> du.item >> du.fragile, ["second"]),
        (lambda: du.first >> Stage("second", [du.nothing, du.second]) >> du.item >> du.fragile, ["second", "nothing"]),
        (lambda: pipeline(), ["first"]),
        (lambda: pipeline(du.first), ["second"]),
    ],
    ids=["new stage", "removed stage", "renamed stage", "swapped", "another pipeline", "new action", "removed action",
         "new action first", "empty pipeline", "shorter pipeline"],
)  # fmt: skip
def test_stages_that_no_longer_match_are_reported(way, other, said):
    """What is new, and what is gone; nothing is called, and the run can still be resumed as it was."""
    flow = du.first >> du.second >> du.item >> du.fragile
    broken = interrupted(way, flow)
    report = change(way, other(), broken)
    for word in said:
        assert f"{word}" in report
    assert CALLS == []
    assert way.resume(flow, broken).status == "completed"
    assert CALLS == ["fragile"]


def test_the_report_lists_all_changes_it_can_see(way):
    """One line each."""

    def made(version):
        a = {1: action(name="a")(lambda: 1), 2: action(name="a")(lambda: 2)}[version]
        b = {1: action(name="b")(lambda: 3), 2: action(name="b")(lambda: 4)}[version]
        return pipeline(a, du.first, Stage("s", [du.second, b]), du.fragile)

    broken = interrupted(way, made(1))
    with pytest.raises(CodeChangedError) as refused:
        way.resume(made(2), broken, check=True)
    assert len(refused.value.changes) == 2
    assert "a/a" in refused.value.changes[0]
    assert "s/b" in refused.value.changes[1]


def test_a_pipeline_of_another_name_says_so(kept):
    """The wrong one, most likely."""
    broken = interrupted(kept, versions(1))
    report = change(kept, pipeline(du.plan, du.streams, name="another"), broken)
    assert "shop" in report
    assert "another" in report


def test_what_comes_after_the_end_of_what_was_done_may_be_anything(way):
    """New stages there are no change of what has completed."""
    flow = du.first >> du.second >> du.fragile
    broken = interrupted(way, flow)
    resumed = way.resume(du.first >> du.second >> du.nothing >> du.fragile >> du.item, broken)
    assert (resumed.status, CALLS) == ("completed", ["nothing", "fragile", "item 0"])


@pytest.mark.parametrize(
    ("on_change", "called"), [("rerun", ["nothing", "item 0", "fragile"]), ("ignore", ["nothing", "fragile"])]
)
def test_stages_that_no_longer_match_can_be_run_again_or_kept(kept, on_change, called):
    """From the first difference, or only those that are new."""
    broken = interrupted(kept, du.first >> du.second >> du.item >> du.fragile)
    flow = du.first >> du.nothing >> du.item >> du.fragile
    resumed = kept.resume(flow, broken, on_change=on_change)
    assert CALLS == called
    assert names(resumed) == ["first", "nothing", "item", "fragile"]
    assert resumed["items"] == [0]
    assert "second" not in resumed.store
    CALLS.clear()
    assert outcome(kept.resume(flow, broken)) == outcome(resumed)
    assert CALLS == []


def test_in_memory_what_has_been_done_is_not_run_again():
    """It could not be undone: the run says so, names the change and the cure, and can still go on as it was."""
    BROKEN.add("fragile")
    broken = versions(1).run(check=False)
    du.clear()
    with pytest.raises(DefinitionError, match="priced/priced.*journal|journal.*priced/priced"):
        versions(2).resume(broken, on_change="rerun")
    with pytest.raises(DefinitionError, match="journal"):
        (du.nothing >> versions(1)).resume(broken, on_change="ignore")
    assert CALLS == []
    assert versions(1).resume(broken, on_change="rerun").status == "completed"
    assert versions(2).resume(broken, on_change="ignore")["priced"] == 1


def test_what_is_inserted_differently_now_is_a_change(way):
    """The action that inserted has completed, and its insertions are remembered; its own change is reported."""

    def made(*places):
        @action(name="inserts")
        def inserts():
            return [du.visit(place) for place in places]

        if len(places) > 1:

            @action(name="inserts")
            def inserts():
                return [du.visit(place) for place in reversed(places)]

        return inserts >> du.fragile

    broken = interrupted(way, made("x"))
    assert "inserts" in change(way, made("x", "y"), broken)
    assert names(way.resume(made("x", "y"), broken, on_change="ignore"))[:2] == ["inserts", "visit[x]"]


def test_a_stream_that_yields_something_else_is_a_change(way):
    """It must be repeatable."""
    yielded = du.YIELDED
    flow = du.streams_unsteadily >> du.item
    BROKEN.add("go c")
    broken = way.run(flow)
    du.clear()
    yielded[1] = "x"
    report = change(way, flow, broken)
    assert "visit[x]" in report
    assert "visit[b]" in report
    yielded[1] = "b"
    assert way.resume(flow, broken)["visits"] == ["a", "b", "c"]


def test_changed_code_in_a_branch_of_a_group_is_reported(way):
    """With its name; and can be run again, the other branches restored."""

    def made(version):
        changed = {1: action(name="changed")(lambda: 1), 2: action(name="changed")(lambda: 2)}[version]
        return (
            parallel(
                du.item.bind(value=1) >> du.first, du.item.bind(value=2) >> changed >> du.item.bind(value=3), limit=1
            )
            >> du.item.bind(value=4)
            >> du.fragile
        )

    broken = interrupted(way, made(1))
    assert "changed" in change(way, made(2), broken)
    if way.journal is None:
        return  # what has been done cannot be undone
    resumed = way.resume(made(2), broken, on_change="rerun")
    assert resumed["changed"] == 2
    assert CALLS == ["item 3", "item 4", "fragile"]
    assert resumed["items"] == [1, 2, 3, 4]


def test_on_change_is_one_of_three_words(way):
    """Said before the run is touched."""
    run = way.run(du.gate("a"))
    with pytest.raises(DefinitionError, match="'ignore'"):
        way.resume(du.gate("a"), run, on_change="panic")


def test_ids_and_names_are_texts(way):
    """Said before there is a run."""
    with pytest.raises(DefinitionError, match="run_id is a non-empty string, or None for a new one, not 3"):
        way.run(du.gate("a"), run_id=3)
    run = way.run(du.gate("a"))
    with pytest.raises(DefinitionError, match="from_stage is the name of a stage, not \\['a'\\]"):
        way.resume(du.gate("a"), run, from_stage=["a"])


# -- forks


def test_a_fork_is_a_new_run_from_a_stage_on(kept):
    """What came before is restored in it; the original is untouched."""
    flow = du.plan >> du.item >> du.first >> du.second >> du.item.bind(value=2)
    original = kept.run(flow)
    before = outcome(original), times(original)
    CALLS.clear()
    fork = kept.resume(flow, original, from_stage="first")
    assert fork.id != original.id
    assert CALLS == ["first", "second", "item 2"]
    assert outcome(fork) == outcome(original)
    CALLS.clear()
    restored = kept.resume(flow, original)
    assert (outcome(restored), times(restored)) == before
    assert outcome(kept.resume(flow, fork)) == outcome(fork)
    assert CALLS == []


def test_a_fork_takes_other_inputs(kept):
    """They win over what was written before."""
    flow = du.first >> du.second >> du.third
    original = kept.run(flow)
    fork = kept.resume(flow, original, {"second": 10}, from_stage="third")
    assert (fork["third"], original["third"]) == (11, 3)
    assert kept.resume(flow, fork)["third"] == 11
    assert kept.resume(flow, original)["third"] == 3


def test_a_fork_of_a_failed_run_goes_on_from_the_stage(kept):
    """Also when that comes before the failure."""
    flow = du.first >> du.item >> du.second >> du.fragile
    broken = interrupted(kept, flow)
    fork = kept.resume(flow, broken, from_stage="second")
    assert (fork.status, CALLS) == ("completed", ["second", "fragile"])
    du.clear()
    assert kept.resume(flow, broken).status == "completed"
    assert CALLS == ["fragile"]


def test_a_fork_begins_at_an_inserted_stage(kept):
    """By its name, or by that of its template."""
    flow = du.plan >> du.item
    original = kept.run(flow)
    for stage_name, calls in (
        ("visit[oslo]", ["go oslo", "look oslo", "souvenir oslo", "item 0"]),
        ("visit", ["go rome", "look rome", "souvenir rome", "go oslo", "look oslo", "souvenir oslo", "item 0"]),
    ):
        CALLS.clear()
        fork = kept.resume(flow, original, from_stage=stage_name)
        assert calls == CALLS
        assert outcome(fork) == outcome(original)


def test_a_fork_that_is_interrupted_is_resumed(kept):
    """As any run; what it took over is its own."""
    flow = du.plan >> du.item >> du.first >> du.fragile
    original = kept.run(flow)
    BROKEN.add("fragile")
    fork = kept.resume(flow, original, from_stage="first")
    assert fork.status == "failed"
    du.clear()
    assert outcome(kept.resume(flow, fork)) == outcome(original)
    assert CALLS == ["fragile"]


def test_a_fork_of_changed_code_runs_the_new_code(kept):
    """From the stage on; before it, a change is an error as ever."""
    original = kept.run(versions(1))
    du.clear()
    fork = kept.resume(versions(2), original, from_stage="priced")
    assert fork["priced"] == 2
    assert CALLS == ["new", "item 0", "fragile"]
    assert "priced" in change(kept, versions(2), original, from_stage="item")


def test_a_fork_from_an_unknown_stage_says_which_there_are(kept):
    """Nothing is called, no run is made."""
    original = kept.run(du.line)
    CALLS.clear()
    with pytest.raises((DefinitionError, JournalError), match="secnd.*second"):
        kept.resume(du.line, original, from_stage="secnd", check=True)
    assert CALLS == []
    journal = SqliteJournal(kept.journal) if isinstance(kept.journal, str) else kept.journal
    assert len(journal.runs()) == 1


def test_a_fork_goes_through_groups_and_loops(kept):
    """From behind a group; from the first stage of that name."""
    flow = parallel(du.item.bind(value=1), du.plan, limit=1) >> du.countdown(2) >> du.first
    original = kept.run(flow)
    for stage_name, calls in (("countdown[2]", 5), ("countdown[1]", 3), ("first", 1)):
        CALLS.clear()
        fork = kept.resume(flow, original, from_stage=stage_name)
        assert len(CALLS) == calls
        assert outcome(fork) == outcome(original)


def test_a_fork_needs_a_journal():
    """From memory there is only the last state."""
    run = du.line.run()
    with pytest.raises(DefinitionError, match="journal"):
        du.line.resume(run, from_stage="second")


# -- interruption from outside


def test_a_run_that_was_cancelled_by_ctrl_c_is_resumed(way):
    """What had completed is restored."""

    @action(name="interrupts")
    def interrupts():
        du.call("interrupts")
        if CALLS.count("interrupts") == 1:
            raise KeyboardInterrupt
        return "done"

    flow = Stage("s", [du.item, interrupts]) >> du.first
    with pytest.raises(KeyboardInterrupt) as raised:
        way.run(flow)
    run = Run.of(raised.value)
    assert run.status == "cancelled"
    resumed = way.resume(flow, run)
    assert (resumed.status, CALLS) == ("completed", ["item 0", "interrupts", "interrupts", "first"])
    assert resumed["items"] == [0]


def test_a_task_that_was_cancelled_is_resumed(tmp_path):
    """While an action awaits, and while the journal is written."""
    journal = SqliteJournal(tmp_path / "runs.db")

    @action(name="sleeps")
    async def sleeps(ctx: Context):
        du.call("sleeps")
        if CALLS.count("sleeps") == 1:
            await asyncio.sleep(30)

    flow = du.first >> sleeps >> du.second

    async def main():
        task = asyncio.create_task(flow.arun(journal=journal, run_id="r"))
        while "sleeps" not in CALLS:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        assert Run.of(raised.value).status == "cancelled"
        return await flow.aresume("r", journal=journal)

    resumed = asyncio.run(main())
    assert (resumed.status, CALLS) == ("completed", ["first", "sleeps", "sleeps", "second"])


class Slow:
    """A journal that takes its time."""

    def __init__(self, inner, seconds):
        self.inner, self.seconds = inner, seconds
        self.codec = inner.codec

    def __getattr__(self, name):
        method = getattr(self.inner, name)

        def slow(*args):
            time.sleep(self.seconds)
            return method(*args)

        return slow


@pytest.mark.parametrize("moment", [0.01, 0.08, 0.12, 0.18, 0.22])
def test_a_cancellation_while_the_journal_is_written_loses_nothing(tmp_path, moment):
    """What was written is written, what was not is called again, at whichever moment it comes."""
    journal = SqliteJournal(tmp_path / "runs.db")
    flow = du.first >> du.second >> du.third >> du.item

    async def main():
        task = asyncio.create_task(flow.arun(journal=Slow(journal, 0.05), run_id="r"))
        await asyncio.sleep(moment)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    try:
        resumed = flow.resume("r", journal=journal)
    except RunNotFoundError:  # cancelled before it had begun
        assert CALLS == []
    else:
        assert outcome(resumed) == outcome(flow.run())
    assert journal.runs() == [] or journal.runs()[0].owner is None


def test_the_journal_of_an_async_run_does_not_block_the_loop(tmp_path):
    """A heart beats on while a slow journal writes: also while it opens, in groups, and at the end."""
    journal = Slow(SqliteJournal(tmp_path / "runs.db"), 0.2)
    gaps = []

    async def beat():
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    flow = du.first >> parallel(du.second, du.item) >> du.fragile
    BROKEN.add("fragile")

    async def main():
        heart = asyncio.create_task(beat())
        await flow.arun(journal=journal, run_id="r", check=False)
        BROKEN.clear()
        await flow.aresume("r", journal=journal)
        await flow.aresume("r", {"more": 1}, journal=journal, from_stage="fragile")
        heart.cancel()

    asyncio.run(main())
    assert len(gaps) > 50
    assert sorted(gaps)[-4] < 0.18, "some milliseconds, and never as long as a write"


# -- history


def test_a_run_with_a_bounded_history_is_resumed_from_its_journal(kept):
    """The journal has all; the run keeps its last records."""
    flow = du.countdown(6) >> du.fragile >> du.item
    BROKEN.add("fragile")
    broken = kept.run(flow, history=2)
    assert len(broken.stages) == 2
    du.clear()
    resumed = kept.resume(flow, broken, history=3)
    assert CALLS == ["fragile", "item 0"]
    assert resumed["rounds"] == [6, 5, 4, 3, 2, 1]
    assert names(resumed) == ["countdown[1]", "fragile", "item"]
    assert len(kept.resume(flow, broken).stages) == 8


def test_a_run_with_a_bounded_history_is_not_resumed_from_memory():
    """It says so, and what would help."""
    BROKEN.add("third")
    broken = du.line.run(history=1, check=False)
    with pytest.raises(DefinitionError, match="history"):
        du.line.resume(broken)


# -- from memory


def test_the_run_that_is_resumed_from_memory_stays_as_it_was():
    """A new run goes on with a copy: store, records and status of the old one do not change."""
    flow = Stage("s", [du.item, du.fragile]) >> du.item.bind(value=2) >> du.second
    BROKEN.add("fragile")
    broken = flow.run({"first": 1}, check=False)
    before = outcome(broken)
    items = broken["items"]
    du.clear()
    resumed = flow.resume(broken)
    assert resumed["items"] == [0, 2]
    assert items == broken["items"] == [0]
    assert outcome(broken) == before
    assert resumed is not broken
    assert resumed.id == broken.id


def test_a_run_can_be_resumed_from_memory_more_than_once():
    """From the same state, each time."""
    flow = du.item >> du.fragile >> du.item.bind(value=2)
    BROKEN.add("fragile")
    broken = flow.run(check=False)
    BROKEN.clear()
    assert flow.resume(broken)["items"] == [0, 2]
    assert flow.resume(broken)["items"] == [0, 2]


def test_what_wrapped_a_run_in_memory_wraps_its_resume():
    """The `use` and `skip` of the run are kept; observers are not."""
    flow = du.first >> du.fragile >> du.item
    BROKEN.add("fragile")
    broken = flow.run(use=[du.watched], skip=["item"], check=False)
    ENTERED.clear()
    du.clear()
    resumed = flow.resume(broken)
    assert ENTERED == ["+pipeline pipeline", "-pipeline pipeline"]
    assert statuses(resumed)[-1] == ("item", "skipped")


def test_a_run_from_memory_can_go_on_in_a_journal(tmp_path):
    """Given a journal that does not know it, it says so."""
    BROKEN.add("third")
    broken = du.line.run(check=False)
    du.clear()
    with pytest.raises(RunNotFoundError):
        du.line.resume(broken, journal=tmp_path / "runs.db")


def test_a_failed_run_raises_again_on_resume(way):
    """The user's own exception, with the note that says where."""
    broken = interrupted(way, du.first >> du.fragile)
    BROKEN.add("fragile")
    with pytest.raises(RuntimeError, match="fragile is broken") as raised:
        way.resume(du.first >> du.fragile, broken, check=True)
    assert "action 'fragile'" in text_of(raised.value)
    assert Run.of(raised.value).id == broken.id


def test_wiring_is_checked_again_on_resume(way):
    """Against what the run was given: certain problems are told before anything is called."""

    @action(name="fails")
    def fails() -> None:
        du.call("fragile")

    broken = interrupted(way, fails >> du.nothing)

    @action(name="needs")
    def needs(what_nobody_supplies):
        pass

    with pytest.raises(WiringError, match="what_nobody_supplies"):
        way.resume(fails >> needs, broken, check=True)
    assert CALLS == []
    assert way.resume(fails >> du.nothing, broken).status == "completed"


def test_observers_hear_of_what_is_done_on_resume_only(way):
    """What is restored is no event of an action."""
    from flowdeco.events import ActionFinished, ActionStarted, RunFinished, RunStarted

    broken = interrupted(way, Stage("s", [du.first, du.fragile]) >> du.item)
    heard = []
    way.resume(Stage("s", [du.first, du.fragile]) >> du.item, broken, observers=[heard.append])
    assert [event.action for event in heard if isinstance(event, ActionStarted)] == ["fragile", "item"]
    assert [event.action for event in heard if isinstance(event, ActionFinished)] == ["fragile", "item"]
    assert [type(event) for event in heard if isinstance(event, (RunStarted, RunFinished))] == [RunStarted, RunFinished]


def test_a_durable_run_gives_what_a_run_without_a_journal_gives(kept):
    """Store, records, result, status: of any flow."""
    for flow, inputs in FLOWS.values():
        assert outcome(kept.run(flow, inputs)) == outcome(flow.run(inputs))


def test_every_action_is_written_before_the_next_one_starts(tmp_path):
    """Whoever looks into the file finds it there."""
    path = tmp_path / "runs.db"
    seen = []

    @action(name="looks")
    def looks(ctx: Context):
        import sqlite3

        with sqlite3.connect(path) as connection:
            seen.append(connection.execute("SELECT stage, action, status FROM steps ORDER BY id").fetchall())
        connection.close()

    (du.first >> looks >> looks).run(journal=path)
    assert [row for row in seen[0] if row[1]] == [("first", "first", "completed")]
    assert [row[1] for row in seen[1] if row[1]] == ["first", "looks"]


# -- middleware around what is run again, or forked


def test_a_fork_inside_a_pipeline_enters_its_middleware(kept):
    """It is unfinished in the fork, as it would be in a run that was interrupted there."""
    flow = (
        du.first
        >> pipeline(
            du.second,
            du.uses_handle,
            Stage("s", [du.item, du.uses_handle], use=[du.noting]),
            name="p",
            use=[du.giving, du.noting],
        )
        >> du.item.bind(value=2)
    )
    original = kept.run(flow)
    for stage_name, calls in (("uses_handle", 4), ("s", 3), ("item", 1)):
        CALLS.clear()
        ENTERED.clear()
        fork = kept.resume(flow, original, from_stage=stage_name)
        assert outcome(fork) == outcome(original)
        assert len(CALLS) == calls
        assert ENTERED == (["+giving", "-giving"] if stage_name != "item" else [])
        CALLS.clear()
        assert outcome(kept.resume(flow, fork)) == outcome(original)
        assert CALLS == []


def noted_versions(number, where):
    """A flow with middleware around everything, in which one of two actions has two versions."""
    both = {1: action(name="changed", returns=None)(lambda: 1), 2: action(name="changed", returns=None)(lambda: 2)}
    one, other = (both[number], both[1]) if where == "stage" else (both[1], both[number])
    return (
        pipeline(
            du.first,
            Stage("s", [du.item, one.with_options(name="in s"), du.uses_handle], use=[du.giving, du.noting]),
            other.with_options(name="in p"),
            du.plan,
            name="p",
            use=[du.noting],
            use_stages=[du.noting],
        )
        >> pipeline(du.item.bind(value=2), name="q", use=[du.noting])
        >> du.fragile
    )


@pytest.mark.parametrize("where", ["stage", "pipeline"])
def test_what_is_run_again_is_run_in_its_middleware(kept, where):
    """Of the stage and the pipelines around the first difference; and it is remembered as any run is."""
    whole = kept.run(noted_versions(2, where))
    broken = interrupted(kept, noted_versions(1, where))
    ENTERED.clear()
    resumed = kept.resume(noted_versions(2, where), broken, on_change="rerun")
    assert ENTERED == (["+giving", "-giving"] if where == "stage" else [])
    assert ("uses_handle" in CALLS) == (where == "stage")
    assert "first" not in CALLS
    assert outcome(resumed) == outcome(whole)
    CALLS.clear()
    assert outcome(kept.resume(noted_versions(2, where), broken)) == outcome(whole)
    assert CALLS == []


def test_a_change_is_reported_before_any_middleware_is_entered(kept):
    """Of the run, and of what is unfinished."""
    flow = pipeline(du.first, du.second, du.fragile, name="p", use=[du.watched])
    broken = interrupted(kept, flow)
    ENTERED.clear()
    change(kept, pipeline(du.first, du.nothing, du.fragile, name="p", use=[du.watched]), broken)
    assert ENTERED in ([], ["+pipeline p", "-pipeline p"])


# -- a journal that cannot be written any more


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("error", [OSError("no disk"), KeyboardInterrupt()], ids=["an error", "Ctrl-C"])
@pytest.mark.parametrize("level", ["use", "use_stages", "use_actions"])
def test_middleware_does_not_recover_from_a_journal_that_failed(tmp_path, level, error, committed):
    """Else what comes after would be there, and what was lost would not: the run ends, and is resumed from before."""

    class Failing(SqliteJournal):
        fails = True

        def write(self, run_id, rows):
            if self.fails and any(row.action == "second" for row in rows):
                self.fails = False
                if committed:
                    super().write(run_id, rows)
                raise error
            super().write(run_id, rows)

    journal = Failing(tmp_path / "runs.db")
    calls = []
    units = [action(name=name)(lambda name=name: calls.append(name)) for name in ("first", "second", "third")]
    flow = pipeline(*units, **{level: [recover(on=(OSError, KeyboardInterrupt))]})
    with pytest.raises(type(error)) as caught:
        flow.run(journal=journal)
    assert "third" not in calls
    again = flow.resume(Run.of(caught.value).id, journal=journal)
    assert (again.status, calls[-1], names(again)) == ("completed", "third", ["first", "second", "third"])


def test_the_middleware_around_a_stage_is_left_when_its_attempt_cannot_be_dropped(tmp_path):
    """Whatever a journal does, what was opened is closed."""

    class Failing(SqliteJournal):
        def drop(self, run_id, cuts):
            raise OSError("no disk")

    log = []
    attempts = iter([1, 0])

    @action
    def fragile():
        return 1 / (1 - next(attempts))

    flow = Stage("s", [fragile], use=[around(log, "outer"), retry(on=ZeroDivisionError), around(log, "inner")])
    with pytest.raises(OSError, match="no disk"):
        flow.run(journal=Failing(tmp_path / "runs.db"))
    assert [entry[0] for entry in log] == ["+", "+", "-", "-"]


def test_observers_that_come_from_a_generator_hear_a_resume(tmp_path):
    """They are asked for once."""
    heard = []
    flow = action(name="waits")(lambda ctx: ctx.wait_for("go")) >> action(name="after")(lambda: 1)
    run = flow.run(journal=tmp_path / "runs.db")
    flow.resume(run.id, {"go": 1}, journal=tmp_path / "runs.db", observers=(each for each in [heard.append]))
    assert heard


def test_a_run_whose_suspension_cannot_be_written_has_failed(tmp_path):
    """It could not be taken up where it says that it waits."""

    class Failing(SqliteJournal):
        def write(self, run_id, rows):
            if any(row.kind == "stage" for row in rows):
                raise OSError("no disk")
            super().write(run_id, rows)

    run = pipeline(
        action(name="works")(lambda: 1), action(name="bails")(lambda: (_ for _ in ()).throw(Bail("enough")))
    ).run(journal=Failing(tmp_path / "runs.db"), check=False)
    assert (run.status, str(run.error)) == ("failed", "no disk")


def test_what_ends_after_the_journal_has_failed_in_another_branch_is_not_written(tmp_path):
    """A journal with a hole could not be resumed."""
    failed = threading.Event()

    class Failing(SqliteJournal):
        def write(self, run_id, rows):
            if any(row.action == "quick" for row in rows):
                failed.set()
                raise OSError("no disk")
            super().write(run_id, rows)

    def slow():
        assert failed.wait(10)
        time.sleep(0.1)

    journal = Failing(tmp_path / "runs.db")
    run = parallel(action(name="quick")(lambda: None), action(name="slow")(slow)).run(journal=journal, check=False)
    assert (run.status, str(run.error)) == ("failed", "no disk")
    assert [row.kind for row in journal.history(run.id)] == ["group"]


def test_a_fork_from_a_stage_that_the_run_has_not_reached_is_refused(tmp_path):
    """There is nothing of it to begin from."""
    journal = SqliteJournal(tmp_path / "runs.db")
    flow = (
        action(name="works")(lambda: 1)
        >> action(name="waits")(lambda ctx: ctx.wait_for("go"))
        >> action(name="late")(lambda: 2)
    )
    run = flow.run(journal=journal)
    with pytest.raises(JournalError, match="there is no stage 'late' to continue from in this run"):
        flow.resume(run.id, from_stage="late", journal=journal)


def test_a_refused_fork_names_only_what_it_can_begin_from(tmp_path):
    """Stages, also those of groups and pipelines, and not these themselves."""
    units = {name: action(name=name)(lambda: None) for name in ("first", "left", "right", "inside")}
    group = parallel(units["left"], units["right"], name="group")
    flow = units["first"] >> group >> pipeline(units["inside"], name="inner", tags=["t"])
    run = flow.run(journal=tmp_path / "runs.db")
    for wrong in ("group", "inner", "typo"):
        with pytest.raises(JournalError, match="there is no stage") as refused:
            flow.resume(run.id, from_stage=wrong, journal=tmp_path / "runs.db")
        offered = re.findall(r"'([^']*)'", text_of(refused.value))[1:]
        assert {"group", "inner"}.isdisjoint(offered)
    for name in units:
        assert flow.resume(run.id, from_stage=name, journal=tmp_path / "runs.db").status == "completed"


def test_a_key_that_is_given_on_a_resume_stays_although_it_had_been_deleted(tmp_path):
    """What older steps did to it no longer counts."""

    @action
    def forget(ctx):
        del ctx.store["x"]

    flow = forget >> action(name="waits")(lambda ctx: ctx.wait_for("go"))
    run = flow.run({"x": 1}, journal=tmp_path / "runs.db")
    again = flow.resume(run.id, {"x": 2, "go": True}, journal=tmp_path / "runs.db")
    assert (again.status, again["x"]) == ("completed", 2)


def test_a_long_run_does_not_hold_the_functions_that_have_run(tmp_path):
    """Actions that are made anew for each stage go when they are over, with all that they refer to."""
    made = weakref.WeakSet()

    class Token:
        pass

    def working(token):
        made.add(token)
        return lambda: str(token)[:0]

    def stages():
        for _ in range(3000):
            yield Stage("s", [action(name="works")(working(Token()))])

    flow = action(name="insert")(lambda: stream(stages))
    flow.run(journal=tmp_path / "runs.db", history=10)
    gc.collect()
    assert len(made) < 1500


@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_a_key_that_is_given_on_a_resume_leaves_the_result_as_it_was(tmp_path, codec):
    """What an action wrote no longer counts; what it returned does."""
    journal = SqliteJournal(tmp_path / "runs.db", codec=codec)

    @action
    def two() -> int:
        return 2

    @action(collect="items")
    def three() -> int:
        return 3

    @action
    def wait(ctx: Context) -> None:
        ctx.wait_for("go")

    for last, key in ((two, "two"), (three, "items")):
        flow = Stage("s", [last, wait])
        flow.run(journal=journal, run_id=key)
        run = flow.resume(key, {"go": 1, key: [9]}, journal=journal)
        assert (run[key], run.result) == ([9], 2 if last is two else 3)


def test_the_name_of_a_pipeline_need_not_be_valid_text(tmp_path):
    """It may be that of a file."""

    @action
    def wait(ctx: Context) -> object:
        return ctx.wait_for("go")

    flow = pipeline(wait, name="of \udcff")
    flow.run(journal=tmp_path / "runs.db", run_id="r")
    assert flow.resume("r", {"go": 1}, journal=tmp_path / "runs.db").result == 1


@pytest.mark.parametrize("make", [lambda path: MemoryJournal(), lambda path: SqliteJournal(path / "runs.db")])
def test_a_run_began_when_its_first_leg_did(make, tmp_path):
    """To the microsecond, for the run, a resume of it, a look at it, and the list."""
    journal = make(tmp_path)
    flow = action(name="asks")(lambda ctx: ctx.wait_for("k"))
    first = flow.run(journal=journal)
    again = flow.resume(first.id, {"k": 1}, journal=journal)
    assert again.started == first.started == read(journal, first.id).started
    assert [info.started for info in runs(journal)] == [first.started]
