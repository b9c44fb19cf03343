"""Cancelled from outside, by `durable.cancel` or `flowdeco cancel`: at work or not, sync and async, in any journal."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from durable_units import OneRun

import flowdeco
from flowdeco import Context, Run, Sleep, Stage, action, durable, parallel, pipeline, stream
from flowdeco.cli import main
from flowdeco.durable import MemoryJournal, SqliteJournal, memory
from flowdeco.durable.lease import CANCELLED
from flowdeco.engine.requests import Gate
from flowdeco.errors import Cancelled, JournalError, RunNotFoundError
from flowdeco.middleware import atomic

CALLS = []
LONG = 20.0


@pytest.fixture(autouse=True)
def no_calls(monkeypatch):
    """Each test has its own; a journal in memory looks as often as the others."""
    CALLS.clear()
    monkeypatch.setattr(memory, "HEARTBEAT", 0.1)


class Way(OneRun):
    """A way to run, and to cancel."""

    def cancel(self):
        """Cancel it."""
        durable.cancel(self.journal, "r")

    def cancelled_in(self, seconds, flow, **options):
        """Start it, and cancel it after a while; return the run, and how long it took."""

        def cancel():
            while not has_begun(self.journal):
                time.sleep(0.01)
            time.sleep(seconds)
            self.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        began = time.monotonic()
        run = self.run(flow, check=False, **options)
        thread.join()
        return run, time.monotonic() - began

    @property
    def info(self):
        """What the journal says of it."""
        [info] = durable.runs(self.journal)
        return info


def has_begun(journal):
    """Whether there is a run."""
    try:
        return bool(durable.runs(journal))
    except RunNotFoundError:  # nor a file
        return False


def journal_of(kind, folder):
    """A journal of this kind, whose owner looks often."""
    return MemoryJournal() if kind == "memory" else SqliteJournal(folder / "r.db", codec=kind, lease=0.3)


@pytest.fixture(params=["sync pickle", "async json", "sync memory", "async memory"])
def way(request, tmp_path):
    """Each of the ways."""
    how, kind = request.param.split()
    return Way(how, journal_of(kind, tmp_path))


def cancelling(way, name="cancels"):
    """An action during which the run is cancelled."""

    @action(name=name)
    def cancels():
        CALLS.append(name)
        way.cancel()
        return "ended"

    return cancels


@action
def following():
    """The next one."""
    CALLS.append("following")
    return "followed"


def cleaning(call):
    """A middleware that cleans up, and notes what it saw."""
    CALLS.append("enters")
    try:
        yield
    except BaseException as error:
        CALLS.append(type(error).__name__)
        raise
    finally:
        CALLS.append("leaves")


def test_the_running_action_ends_and_the_next_never_begins(way):
    """Middleware unwinds, `run` raises, and the status is cancelled."""
    flow = pipeline(cancelling(way), following, use=[cleaning])
    with pytest.raises(Cancelled, match="run 'r' was cancelled by durable.cancel") as caught:
        way.run(flow)
    run = Run.of(caught.value)
    assert (run.status, run.error, run["cancels"]) == ("cancelled", caught.value, "ended")
    assert CALLS == ["enters", "cancels", "Cancelled", "leaves"]
    assert (way.info.status, way.info.owner) == ("cancelled", None)


def noting(call):
    """A middleware that notes its target."""
    CALLS.append(f"enters {call.level} {call.name}")
    yield


@pytest.mark.parametrize(
    "shape",
    [
        lambda first: pipeline(first, following, use_stages=[noting], use_actions=[noting]),
        lambda first: pipeline(Stage("s", [first, following]), use_stages=[noting], use_actions=[noting]),
        lambda first: pipeline(first, parallel(following, following), use_stages=[noting]),
        lambda first: pipeline(
            parallel(pipeline(first, following), name="g"), use_stages=[noting], use_actions=[noting]
        ),
        lambda first: pipeline(first, pipeline(following, use=[noting]), use_actions=[noting]),
    ],
    ids=["stages", "actions", "group", "in a group", "pipeline"],
)
def test_the_next_step_leaves_no_trace(way, shape):
    """It has no record, no event, and its middleware is not entered."""
    events = []
    run = way.run(shape(cancelling(way)), check=False, observers=[events.append])
    named = [event.stage for event in events if hasattr(event, "stage")]
    assert run.status == "cancelled"
    assert "following" not in str([*CALLS, *named, *run.stages, *(each.actions for each in run.stages)])


def swallowing(call):
    """A middleware that catches everything."""
    try:
        yield
    except BaseException as error:
        CALLS.append(type(error).__name__)


@pytest.mark.parametrize("around", ["stage", "pipeline", "group"])
def test_middleware_that_swallows_it_does_not_keep_the_run_going(way, around):
    """Nothing more begins."""
    inner = Stage("s", [cancelling(way), following], use=[swallowing] if around == "stage" else [])
    if around == "group":
        inner = parallel(pipeline(inner, use=[swallowing]))
    run = way.run(pipeline(inner, use=[swallowing] if around == "pipeline" else []) >> following, check=False)
    assert (run.status, CALLS) == ("cancelled", ["cancels", "Cancelled"])


def test_an_atomic_stage_is_recorded_as_it_ends(way):
    """Before the next action begins: a kill there does not repeat what was committed, and a cancellation is noticed."""
    noted = []

    @action
    def looks(ctx: Context):
        noted.extend((row.kind, row.status) for row in durable.history(way.journal, ctx.run_id))

    whole = Stage("s", [following, following], use=[atomic])
    way.run(whole >> looks)
    assert noted == [("action", "completed"), ("action", "completed"), ("stage", "completed")]
    durable.delete(way.journal, "r")
    CALLS.clear()
    run = way.run(Stage("s", [cancelling(way), following], use=[atomic]) >> looks, check=False)
    assert (run.status, CALLS, [stage.name for stage in run.stages]) == ("cancelled", ["cancels", "following"], ["s"])


def test_without_check_the_run_is_returned(way):
    """And has the error."""
    run = way.run(cancelling(way) >> following, check=False)
    assert (run.status, type(run.error), CALLS) == ("cancelled", Cancelled, ["cancels"])
    assert durable.read(way.journal, "r").status == "cancelled"


def test_a_cancelled_run_can_be_resumed(way):
    """Its completed actions are not called again."""
    flow = cancelling(way) >> following
    way.run(flow, check=False)
    run = way.resume(flow)
    assert (run.status, dict(run.store), CALLS) == (
        "completed",
        {"cancels": "ended", "following": "followed"},
        ["cancels", "following"],
    )
    assert way.info.status == "completed"


def test_no_exception_handler_and_no_retry_swallows_it(way):
    """It is not an `Exception`."""

    @action
    async def waits():
        try:
            await asyncio.sleep(LONG)
        except Exception:
            CALLS.append("swallowed")

    run, _ = way.cancelled_in(0.1, waits.with_options(use=[flowdeco_retry]))
    assert (run.status, CALLS) == ("cancelled", [])


def flowdeco_retry(call):
    """A middleware that tries again after any exception."""
    for _ in range(3):
        try:
            yield
        except Exception:
            CALLS.append("again")
        else:
            return


# What the owner waits for.


@action
async def awaits():
    """A coroutine."""
    try:
        await asyncio.sleep(LONG)
    except asyncio.CancelledError:
        CALLS.append("cleaned")
        raise


@action
async def dozes(ctx: Context):
    """A short sleep, awaited."""
    await ctx.sleep(LONG)


@action
def sleeps(ctx: Context):
    """A short sleep."""
    ctx.sleep(LONG)


def pauses(call):
    """A middleware that sleeps."""
    yield Sleep(LONG)
    yield


paused = Stage("paused", [following], use=[pauses])


def endless():
    """A source of branches."""
    while True:
        yield awaits


@pytest.mark.parametrize(
    "flow",
    [
        pipeline(awaits),
        pipeline(dozes),
        pipeline(sleeps),
        pipeline(paused),
        parallel(awaits, dozes, sleeps, paused),
        parallel(parallel(awaits, paused), dozes),
        parallel(stream(endless), limit=3),
    ],
    ids=["await", "ctx.sleep awaited", "ctx.sleep", "Sleep", "group", "nested", "streamed"],
)
def test_waits_end_at_the_next_heartbeat(way, flow):
    """Whatever can be cancelled is, even a sleep that blocks the event loop."""
    run, took = way.cancelled_in(0.2, flow, suspend_after=LONG)
    assert (run.status, type(run.error)) == ("cancelled", Cancelled)
    assert took < 10
    assert "following" not in CALLS
    assert way.info.status == "cancelled"


def test_a_sleep_after_a_coroutine_ends_too(way):
    """Where a sync run has its loop by then."""

    @action
    async def quick():
        return 1

    run, took = way.cancelled_in(0.2, quick >> paused, suspend_after=LONG)
    assert (run.status, took < 10) == ("cancelled", True)


def test_a_call_with_a_timeout_is_abandoned(way):
    """In an async run, where it is awaited; in a sync one it ends first."""
    blocks = action(lambda: time.sleep(0.5), name="blocks", timeout=LONG)
    run, took = way.cancelled_in(0.05, blocks >> following)
    assert (run.status, CALLS, took < 10) == ("cancelled", [], True)


def test_sync_calls_of_a_group_end_and_are_recorded(way):
    """Branches that have not begun do not begin."""
    flow = parallel(cancelling(way), following, limit=1)
    run = way.run(flow, check=False)
    assert (run.status, CALLS) == ("cancelled", ["cancels"])
    assert way.resume(flow).status == "completed"
    assert CALLS == ["cancels", "following"]


def test_a_failing_clean_up_of_a_branch_is_not_lost(way):
    """The run was cancelled: the interrupt counts, as for Ctrl-C."""

    @action
    async def cleans_badly():
        try:
            await asyncio.sleep(LONG)
        finally:
            raise ValueError("in clean-up")

    run, _ = way.cancelled_in(0.1, parallel(cleans_badly, awaits))
    assert (run.status, type(run.error)) == ("cancelled", Cancelled)


def test_a_coroutine_that_swallows_its_cancellation_ends_by_itself(way):
    """It is recorded, and the next action does not begin."""

    @action
    async def stubborn():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(LONG)
        return asyncio.current_task().cancelling()

    run, _ = way.cancelled_in(0.1, stubborn >> following)
    assert (run.status, CALLS, "stubborn" in run.store) == ("cancelled", [], True)


async def inline(way):
    """The same, in the task of the caller."""
    durable.delete(way.journal, "r")
    cancelling_later = asyncio.create_task(asyncio.to_thread(cancel_when_there, way))
    try:
        await awaits.arun(journal=way.journal, run_id="r")
    finally:
        await cancelling_later


def cancel_when_there(way):
    """Wait for the run to begin."""
    while not has_begun(way.journal):
        time.sleep(0.01)
    way.cancel()


def test_the_task_of_an_async_run_is_not_cancelled_itself(tmp_path):
    """`arun` raises `Cancelled`, and its task continues."""
    way = Way("async", journal_of("pickle", tmp_path))

    async def program():
        task = asyncio.create_task(awaits.arun(journal=way.journal, run_id="r"))
        while not has_begun(way.journal):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        way.cancel()
        with pytest.raises(Cancelled):
            await task
        with pytest.raises(Cancelled):
            await inline(way)
        await asyncio.sleep(0)
        return asyncio.current_task().cancelling()

    assert asyncio.run(program()) == 0


def test_a_task_that_is_cancelled_as_well(tmp_path):
    """Its own cancellation counts."""
    way = Way("async", journal_of("pickle", tmp_path))

    @action
    async def slow_to_end():
        try:
            await asyncio.sleep(LONG)
        finally:
            CALLS.append("ends")
            time.sleep(0.05)

    async def program():
        task = asyncio.create_task(slow_to_end.arun(journal=way.journal, run_id="r"))
        while not has_begun(way.journal):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        way.cancel()
        task.cancel()
        with pytest.raises((asyncio.CancelledError, Cancelled)):
            await task

    asyncio.run(program())
    assert (way.info.status, CALLS) == ("cancelled", ["ends"])


# Races with the end of a run.


def test_cancelled_in_its_last_action_a_run_has_completed(way):
    """There was no next step."""
    assert way.run(cancelling(way)).status in ("completed", "cancelled")
    assert way.info.status in ("completed", "cancelled")
    assert CALLS == ["cancels"]


def test_a_run_that_suspends_instead_is_cancelled(way):
    """Nobody wakes it."""

    @action
    def asks(ctx: Context):
        way.cancel()
        return ctx.wait_for("answer")

    run = way.run(asks, check=False)
    assert (run.status, way.info.status, way.info.due, way.info.questions) == ("cancelled", "cancelled", None, ())
    assert durable.due(way.journal, time.time() + 1e6) == []
    assert way.resume(asks, {"answer": 1}, check=False).status in ("completed", "cancelled")


def test_a_failure_is_a_failure(way):
    """Although the run was cancelled meanwhile."""

    @action
    def fails():
        way.cancel()
        raise ValueError("on its own")

    run = way.run(fails, check=False)
    assert (run.status, way.info.status, str(run.error)) == ("failed", "failed", "on its own")


def test_cancelled_any_number_of_times_at_any_moment(tmp_path):
    """The run has ended one way or the other, and the journal agrees with what the caller was told."""
    journal = SqliteJournal(tmp_path / "r.db")
    steps = pipeline(*(action(lambda n=n: n, name=f"a{n}") for n in range(12)))
    for number in range(12):
        run_id, begun = str(number), threading.Event()

        def cancel(run_id=run_id, begun=begun, delay=number * 0.001):
            begun.wait()
            time.sleep(delay)
            for _ in range(3):
                with suppress(JournalError):
                    durable.cancel(journal, run_id)

        thread = threading.Thread(target=cancel)
        thread.start()
        run = steps.run(journal=journal, run_id=run_id, check=False, observers=[lambda _, begun=begun: begun.set()])
        thread.join()
        status = durable.read(journal, run_id).status
        assert str(run.status) in ("completed", "cancelled")
        assert status == run.status
        if status == "cancelled":
            assert steps.resume(run_id, journal=journal)["a11"] == 11


def test_another_interrupt_may_be_pending():
    """Then the driver is told again later."""
    gate, mine, other = Gate(), Cancelled("mine"), KeyboardInterrupt()
    gate.pending = other
    assert (gate.interrupt(mine), gate.pending) == (False, other)
    gate.drop_late()
    assert gate.pending is other
    gate.pending = None
    assert gate.interrupt(mine)
    with pytest.raises(Cancelled, match="mine"):
        gate.raise_cancelled()
    assert gate.pending is None


# Runs that nobody works on.


@action
def asks(ctx: Context):
    """Waits for an answer."""
    return ctx.wait_for("answer", timeout=1)


@action
def fails():
    """Fails."""
    raise ValueError("no")


@pytest.mark.parametrize("flow", [asks, fails])
def test_a_run_that_nobody_works_on_is_cancelled_at_once(way, flow):
    """And twice is once; it is not due any more."""
    way.run(flow, check=False)
    for _ in range(2):
        way.cancel()
        assert (way.info.status, way.info.reason, way.info.due) == ("cancelled", None, None)
    assert durable.due(way.journal, time.time() + 1e6) == []
    if flow is asks:
        assert way.resume(asks, {"answer": 3})["asks"] == 3


def test_a_finished_run_cannot_be_cancelled(way):
    """Nor one that is not there."""
    way.run(following)
    with pytest.raises(JournalError, match="run 'r' has completed: there is nothing to cancel"):
        way.cancel()
    with pytest.raises(RunNotFoundError):
        durable.cancel(way.journal, "other")
    assert way.info.status == "completed"


def test_a_journal_of_ones_own_may_not_know_how():
    """The error says so."""

    class Minimal:
        create = open = read = write = close = lambda *_: None

    with pytest.raises(JournalError, match=r"has no method `cancel`, with which to cancel run 'r'"):
        durable.cancel(Minimal(), "r")


def test_a_codec_of_ones_own_does_not_matter(tmp_path):
    """Nothing is decoded."""
    path = tmp_path / "r.db"
    asks.run(journal=SqliteJournal(path, codec="json"), run_id="r")
    durable.cancel(path, "r")
    assert durable.runs(path)[0].status == "cancelled"


def test_a_resume_that_is_refused_meanwhile_leaves_it_cancelled(tmp_path):
    """The owner of the moment gives it back as cancelled."""
    journal, other = SqliteJournal(tmp_path / "r.db"), SqliteJournal(tmp_path / "r.db")
    asks.run(journal=journal, run_id="r")
    journal.open("r")
    other.cancel("r")
    assert durable.runs(other)[0].status == "suspended"
    journal.release("r")
    assert durable.runs(other)[0].status == "cancelled"
    asks.resume("r", {"answer": 1}, journal=journal)
    memory = MemoryJournal()
    asks.run(journal=memory, run_id="r")
    memory.open("r")
    memory.cancel("r")
    memory.release("r")
    assert memory.runs()[0].status == "cancelled"


# Other processes.

PROGRAM = """
import sys, time
from flowdeco import Context, action
from flowdeco.errors import Cancelled

@action
def first(ctx: Context):
    print("at work", flush=True)
    sys.stdin.readline()
    return 1

@action
def second():
    print("second", flush=True)

flow = first >> second
if __name__ == "__main__":
    try:
        flow.run(journal="r.db", run_id="r")
    except Cancelled as error:
        print(error)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A process that works on a run."""
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(Path(flowdeco.__file__).parent.parent)}
    with subprocess.Popen(
        [sys.executable, "program.py"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "at work\n"
        yield process
        process.kill()


def test_the_command_cancels_a_run_of_another_process(program, capsys):
    """It notices as it writes the step, long before its heartbeat."""
    assert main(["cancel", "r", "--journal", "r.db"]) == 0
    assert capsys.readouterr().out.startswith(f"run r stops at its next step: process {program.pid}")
    assert durable.runs("r.db")[0].status == "running"
    out, _ = program.communicate("\n", timeout=20)
    assert out == "run 'r' was cancelled by durable.cancel, or flowdeco cancel\n"
    assert durable.runs("r.db")[0].status == "cancelled"
    assert main(["cancel", "r", "--journal", "r.db"]) == 0
    assert "run r is cancelled; to resume: flowdeco resume r --journal r.db\n" in capsys.readouterr().out


def test_killed_before_it_noticed_it_is_cancelled_all_the_same(program):
    """It has not crashed, and is not due; a resume works on it as usual."""
    durable.cancel("r.db", "r")
    program.kill()
    program.wait()
    [info] = durable.runs("r.db")
    assert (info.status, info.owner, durable.due("r.db")) == ("cancelled", None, [])
    durable.cancel("r.db", "r")
    sys.path.insert(0, os.getcwd())
    try:
        from program import flow
    finally:
        sys.path.pop(0)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    assert flow.resume("r", journal="r.db").status == "completed"


def test_the_command_reports_what_it_did_as_json(tmp_path, capsys, monkeypatch):
    """And a run that has finished is a wrong use."""
    monkeypatch.chdir(tmp_path)
    asks.run(journal="r.db", run_id="asking")
    following.run(journal="r.db", run_id="done")
    assert main(["cancel", "ask", "--journal", "r.db", "--json"]) == 0
    assert '"status": "cancelled"' in capsys.readouterr().out
    assert main(["cancel", "done", "--journal", "r.db"]) == 2
    assert "run 'done' has completed: there is nothing to cancel" in capsys.readouterr().err
    assert main(["cancel", "--journal", "r.db"]) == 2


def test_the_lease_of_a_cancelled_run_is_renewed(tmp_path):
    """Its owner may take its time to end."""
    journal = SqliteJournal(tmp_path / "r.db", lease=0.3)

    @action
    def slow():
        durable.cancel(journal, "r")
        time.sleep(0.7)
        [(owner, lease)] = journal._file.connection.execute("SELECT owner, lease FROM runs").fetchall()
        return owner.endswith(CANCELLED) and lease > time.time()

    run = (slow >> following).run(journal=journal, run_id="r", check=False)
    assert (run.status, run["slow"]) == ("cancelled", True)


@pytest.mark.parametrize("times", [1, 3])
def test_a_cancellation_as_the_run_is_being_created_is_one_of_this_run(times):
    """`Run.of` finds it, whenever the task is cancelled."""

    class Slow(MemoryJournal):
        def create(self, *args):
            time.sleep(0.05)
            super().create(*args)
            time.sleep(0.05)

    journal = Slow()

    @action
    async def never():
        CALLS.append("never")

    async def main():
        task = asyncio.create_task(never.arun(journal=journal, run_id="r"))
        await asyncio.sleep(0.02)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        return cancelled.value

    error = asyncio.run(main())
    run = Run.of(error)
    assert (run.id, run.status, run.error, CALLS) == ("r", "cancelled", error, [])
    assert [info.status for info in durable.runs(journal)] == ["cancelled"]
