"""What observers receive: frozen events, in the order in which things happen."""

import asyncio
import logging
import threading

import pytest
from support import again, failing, flaky, one, step, swallow

from flowdeco import Bail, Context, Stage, action, events, parallel, pipeline, stream
from flowdeco.errors import DefinitionError
from flowdeco.events import (
    ActionFinished,
    ActionStarted,
    Message,
    Progress,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    UnitsInserted,
)


def seen(run, flow, **options):
    """The events of a run."""
    found = []
    run(flow, observers=[found.append], **options)
    return found


def shortly(found):
    """Kind, names and status of events."""
    return [
        (type(event).__name__, *(getattr(event, name, None) for name in ("stage", "action", "status")))
        for event in found
    ]


def test_a_run_tells_when_it_its_stages_and_actions_begin_and_end(run):
    """In the order in which it happens."""
    flow = pipeline(Stage("s", [step([], "a"), step([], "b")]), name="p")
    assert shortly(seen(run, flow)) == [
        ("RunStarted", None, None, None),
        ("StageStarted", "s", None, None),
        ("ActionStarted", "s", "a", None),
        ("ActionFinished", "s", "a", "completed"),
        ("ActionStarted", "s", "b", None),
        ("ActionFinished", "s", "b", "completed"),
        ("StageFinished", "s", None, "completed"),
        ("RunFinished", None, None, "completed"),
    ]


def test_events_say_what_they_are_of(run):
    """Run, pipeline, stage, action by name; who inserted it; error and time."""
    error = ValueError("no")

    @action
    def a(ctx):
        ctx.insert(one([], "D"))
        return step([], "x")

    flow = pipeline(a, failing([], "f", error), name="p")
    found = seen(run, flow, run_id="run-1", check=False)
    assert {event.run_id for event in found} == {"run-1"}
    assert all(len(event) == len(event._fields) for event in found)
    assert found[0] == RunStarted("run-1", "p", 2)
    assert UnitsInserted("run-1", "a", "a", ("D", "x"), 1) in found  # an action of the stage itself is no further one
    assert StageStarted("run-1", "D", "a/a") in found
    assert StageStarted("run-1", "a", None) in found
    assert ActionStarted("run-1", "a", "x", "a/a") in found
    last = found[-1]
    assert isinstance(last, RunFinished)
    assert (last.pipeline, last.status, last.error) == ("p", "failed", error)
    ends = [event for event in found if isinstance(event, (ActionFinished, StageFinished, RunFinished))]
    assert all(event.elapsed >= 0 for event in ends)
    assert [event.error for event in ends if event.status == "failed"] == [error] * 3


def test_every_kind_of_end_is_told(run):
    """Skipped, recovered, bailed."""
    flow = (
        Stage("skipped")
        >> Stage("s", [failing([], "f", ValueError(), use=[swallow])])
        >> failing([], "b", Bail("enough"))
    )
    found = seen(run, flow, skip=["skipped"])
    assert [(e.stage, e.status) for e in found if isinstance(e, StageFinished)] == [
        ("skipped", "skipped"),
        ("s", "completed"),
        ("b", "bailed"),
    ]
    assert [(e.action, e.status) for e in found if isinstance(e, ActionFinished)] == [("f", "failed"), ("b", "bailed")]
    assert found[-1].status == "bailed"


def test_a_retried_action_begins_and_ends_once(run):
    """Attempts are its own business."""
    found = seen(run, flaky([], "f", 2, use=[again(3)]))
    assert [type(e) for e in found if getattr(e, "action", None)] == [ActionStarted, ActionFinished]


def test_messages_come_at_once(run):
    """Between the begin and the end of the action."""

    @action
    def tells(ctx: Context):
        ctx.emit("kind", number=3)
        ctx.progress(1, 2)

    kinds = [type(event) for event in seen(run, tells)]
    begin, end = kinds.index(ActionStarted), kinds.index(ActionFinished)
    assert kinds[begin + 1 : end] == [Message, Progress]


@pytest.mark.parametrize("name", [name for name in events.__all__ if name != "Event"])
def test_events_are_frozen(name):
    """Nobody can change what another observer sees."""
    kind = getattr(events, name)
    event = kind(*(None for _ in kind._fields))
    with pytest.raises(AttributeError):
        event.run_id = "other"
    assert event == kind(*event)


def test_streams_and_pipelines_are_inserted_by_name(run):
    """As the action gave them."""
    units = [pipeline(Stage("x"), name="inner"), stream([Stage("y")]), parallel(Stage("z"), name="group")]
    (inserted,) = [e for e in seen(run, step([], "a", lambda: units)) if isinstance(e, UnitsInserted)]
    assert inserted.units[0] == "inner"
    assert inserted.units[2] == "group"
    assert len(inserted.units) == 3


def test_an_observer_that_raises_is_logged_and_dropped(run, caplog):
    """The run goes on, and so do the other observers."""
    calls, found = [], []

    def broken(event):
        calls.append(event)
        raise ValueError("my mistake")

    with caplog.at_level(logging.ERROR, "flowdeco.run"):
        finished = run(one([], "a"), observers=[broken, found.append])
    assert finished.status == "completed"
    assert len(calls) == 1
    assert len(found) == 6
    (record,) = caplog.records
    assert record.name == "flowdeco.run"
    assert "broken" in record.getMessage()
    assert "my mistake" in str(record.exc_info[1])


def test_an_observer_is_dropped_for_this_run_only(run):
    """In the next one it may try again."""
    calls = []

    def broken(event):
        calls.append(event)
        raise ValueError

    run(one([], "a"), observers=[broken])
    run(one([], "a"), observers=[broken])
    assert len(calls) == 2


def test_an_observer_that_raises_in_a_message_does_not_disturb_the_action(run):
    """It never learns of it."""

    def broken(event):
        if isinstance(event, Message):
            raise ValueError

    @action
    def tells(ctx: Context):
        ctx.emit("kind")
        return "fine"

    assert run(tells, observers=[broken])["tells"] == "fine"


def test_observers_are_called_in_their_order(run):
    """One event after the other."""
    log = []
    run(Stage("s"), observers=[lambda e: log.append(("first", type(e))), lambda e: log.append(("second", type(e)))])
    assert log[:4] == [("first", RunStarted), ("second", RunStarted), ("first", StageStarted), ("second", StageStarted)]


def test_events_of_branches_are_all_there(run):
    """They may interleave."""
    found = seen(run, parallel(one([], "a"), one([], "b")))
    for name in "ab":
        mine = [type(event) for event in found if getattr(event, "stage", None) == name]
        assert mine == [StageStarted, ActionStarted, ActionFinished, StageFinished]


def test_what_a_middleware_inserts_is_told(run):
    """Around an action, as if that had done it; around a stage, without an action; around a pipeline, without a stage."""

    def inserts(call):
        yield
        call.insert(Stage(f"by {call.level}"), step([], "x"))

    flow = Stage("s", [step([], "a", use=[inserts])], use=[inserts])
    found = [event for event in seen(run, pipeline(flow, use=[inserts])) if isinstance(event, UnitsInserted)]
    assert [event[1:] for event in found] == [
        ("s", "a", ("by action", "x"), 2),
        ("s", None, ("by stage", "x"), 2),
        (None, None, ("by pipeline", "x"), 2),
    ]


def test_the_stages_of_pipelines_and_groups_are_counted(run):
    """At the beginning, and where they are inserted."""
    units = [pipeline(Stage("x"), step([], "y"), name="p"), parallel(Stage("z"), Stage("w")), stream([Stage("v")])]
    found = seen(run, pipeline(one([], "a", lambda: units), parallel(Stage("b"), Stage("c")), step([], "d")))
    assert found[0].stages == 4
    (inserted,) = [event for event in found if isinstance(event, UnitsInserted)]
    assert inserted.stages == 4


def test_a_stage_tells_in_which_branches_it_runs(run):
    """From the outside in; a nested pipeline is no branch."""
    inner = parallel(pipeline(Stage("x"), name="p"), Stage("y"), name="inner")
    found = seen(run, Stage("a") >> parallel(Stage("b"), inner, name="outer"))
    assert {event.stage: event.branch for event in found if isinstance(event, StageStarted)} == {
        "a": None,
        "b": "outer[0]",
        "x": "outer[1]/inner[0]",
        "y": "outer[1]/inner[1]",
    }


def test_an_end_tells_how_many_attempts_it_took(run):
    """And whether it was recovered."""
    found = seen(run, Stage("s", [flaky([], "f", 1, use=[again(3)]), failing([], "g", ValueError(), use=[swallow])]))
    ends = [event for event in found if isinstance(event, (ActionFinished, StageFinished))]
    assert [(event.attempts, event.recovered) for event in ends] == [(2, False), (1, True), (1, False)]


def test_on_resume_what_was_over_is_restored_and_does_not_begin(run):
    """It has an end, with what it came to then."""
    fails = [True]

    @action
    def fragile():
        if fails:
            fails.clear()
            raise ValueError("no")

    flow = one([], "a") >> fragile
    found = []
    flow.resume(flow.run(check=False), observers=[found.append])
    assert [event.stage for event in found if isinstance(event, StageStarted)] == ["fragile"]
    assert [(event.stage, event.status, event.restored) for event in found if isinstance(event, StageFinished)] == [
        ("a", "completed", True),
        ("fragile", "completed", False),
    ]


def test_a_cancelled_run_tells_its_end():
    """With its status."""
    found = []

    @action
    async def waits():
        await asyncio.sleep(10)

    async def cancelled():
        task = asyncio.create_task(waits.arun(observers=[found.append]))
        await asyncio.sleep(0.02)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert (type(found[-1]), found[-1].status) == (RunFinished, "cancelled")
    assert [e.status for e in found if isinstance(e, (ActionFinished, StageFinished))] == ["cancelled", "cancelled"]


def test_what_is_skipped_tells_that_it_is_over(run):
    """A stage never began; an action of a running stage is skipped as well."""
    found = seen(run, Stage("s") >> Stage("t", [step([], "a"), step([], "b")]), skip=["s", "t/a"])
    assert [(e.stage, e.status) for e in found if isinstance(e, StageFinished)] == [
        ("s", "skipped"),
        ("t", "completed"),
    ]
    assert [e.stage for e in found if isinstance(e, StageStarted)] == ["t"]
    assert ("a", "skipped") in [(e.action, e.status) for e in found if isinstance(e, ActionFinished)]


def test_a_signal_raised_by_an_observer_is_no_signal(caplog):
    """It observes, and has no say in the run."""

    def observer(event):
        raise Bail("me")

    run = action(name="a")(lambda: 1).run(observers=[observer])
    assert (run.status, run.result) == ("completed", 1)
    assert "the observer" in caplog.text


def test_an_observer_is_a_plain_function():
    """Nobody would await it."""

    async def observer(event):
        pass

    with pytest.raises(DefinitionError, match="plain function"):
        action(name="a")(lambda: 1).run(observers=[observer])


def test_an_observer_that_raises_in_several_branches_is_dropped_once(run, caplog):
    """It is called no more once it has raised, and logged once."""
    together = threading.Barrier(2, timeout=5)
    calls = []

    def broken(event):
        if type(event) is Message:
            calls.append(event)
            together.wait()
            raise ValueError("my mistake")

    def first(event):
        if type(event) is Message and event.kind == "third":
            assert [record.levelname for record in caplog.records] == ["ERROR"]

    def tells(ctx: Context):
        ctx.emit("first")

    later = action(name="c")(lambda ctx: ctx.emit("third"))
    flow = parallel(action(name="a")(tells), action(name="b")(tells)) >> later
    with caplog.at_level(logging.ERROR, "flowdeco.run"):
        assert run(flow, observers=[broken, first]).status == "completed"
    assert (len(calls), len(caplog.records)) == (2, 1)


def test_each_observer_has_the_payload_of_a_message_for_itself(run):
    """Changes that one makes are not seen by another."""
    found = []

    def changes(event):
        if type(event) is Message:
            found.append(dict(event.payload))
            event.payload.clear()

    run(action(name="a")(lambda ctx: ctx.emit("news", x=1)), observers=[changes, lambda event: changes(event)])
    assert found == [{"x": 1}, {"x": 1}]
