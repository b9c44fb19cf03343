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
    flow = pipeline(
        Stage("s", [du.item, flaky("b", 2)]), name="p", use=[retry(on=ValueError, wait=0, attempts=5)]
    )
    run = kept.run(flow)
    journal = SqliteJournal(kept.journal) if isinstance(kept.journal, str) else kept.journal
    rows = [(row.number, row.kind, row.stage, row.action) for row in journal.history(run.id)]
    assert rows[:3] == [(0, "action", "s", "item"), (1, "action", "s", "b"), (2, "stage", "s", None)]
    assert {kind for _, kind, *_ in rows[3:]} <= {"pipeline"}


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
    for number in range(calls):
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
    flow = (
        Stage("s", [du.plan, du.item, du.fragile], use=[retry(on=RuntimeError, wait=0, attempts=2)])
        .with_options(use=[recover(on=RuntimeError), retry(on=RuntimeError, wait=0, attempts=2)])
        >> flaky("end", 0)
    )
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


def test_a_failure_in_an_atomic_stage_leaves_nothing_to_restore(way):
    """All of it is run again: its writes were undone."""
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


def test_a_suspension_in_an_atomic_stage_goes_on_where_it_was(way):
    """It is no failure: what had completed stays."""
    flow = Stage("s", [du.item, du.suspends, du.first], use=[atomic]) >> du.item.bind(value=2)
    suspended = way.run(flow)
    assert suspended.status == "suspended"
    du.clear()
    resumed = way.resume(flow, suspended, {"go": True})
    assert CALLS == ["suspends", "first", "item 2"]
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
    pipeline(Stage("a", [du.first, du.item.with_options(use=[du.noting])], use=[du.noting]), name="one", use=[du.noting]),
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
    skip = {"first": ["s/first"], "middle": ["s/item"], "last": ["s/nothing"], "all": ["s/first", "s/item", "s/nothing"]}
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
    assert statuses(resumed) == [("first", "completed"), ("fragile", "skipped"), ("item", "completed"), ("nothing", "skipped")]


def test_what_was_switched_off_stays_off(way):
    """And what was switched on again stays on."""
    flow = du.first >> du.second >> du.disables >> du.fragile >> du.plan >> du.third >> du.enables >> du.plan.with_options(name="b")
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
    assert resumed["gate approval"] == resumed["approval"] == {"by": "ada"}
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
    flow = same >> same >> parallel(same, same, pipeline(parallel(same, same)), limit=1) >> parallel(same, same, limit=1)
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
        parallel(du.item.bind(value=3), inner >> du.item.bind(value=4), name="middle", limit=1) >> du.item.bind(value=5),
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
    flow = pipeline(
        du.item,
        parallel(du.item.bind(value=1), parallel(du.plan, flaky("b", 1), limit=1), limit=1),
        du.item.bind(value=3),
        name="p",
        use=[retry(on=ValueError, wait=0)],
    ) >> du.fragile
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


def test_a_large_list_is_not_written_again_for_every_item_that_joins(tmp_path):
    """A row has what was appended, not the whole."""
    flow = pipeline(*[du.item.bind(value="x" * 1000)] * 100)
    journal = SqliteJournal(tmp_path / "runs.db")
    run = flow.run(journal=journal)
    sizes = [len(row.payload) for row in journal.history(run.id) if row.kind == "action"]
    assert len(sizes) == 100
    assert max(sizes) < 1500
