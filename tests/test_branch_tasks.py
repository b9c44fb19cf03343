"""Branches are tasks: scopes of asyncio and anyio hold across the requests of a branch, and signals, interrupts and
cancellations reach it at any moment, any number of times."""

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import flowdeco
from flowdeco import Bail, Context, Run, Sleep, Stage, Store, Suspend, action, parallel, pipeline, stream
from flowdeco.durable import MemoryJournal, SqliteJournal, runs
from flowdeco.engine.call import Call
from flowdeco.engine.layers import Layers, enter
from flowdeco.engine.requests import Gate, Raised
from flowdeco.errors import MiddlewareError, all_of, meant_by, members_of
from flowdeco.executors import serial
from flowdeco.middleware import recover, retry
from tests.scripted import evaluation
from tests.support import around, names, one, step

VARIABLE = contextvars.ContextVar("VARIABLE", default=None)


def run_sync(unit, **options):
    """Run, and return the run whatever became of it."""
    return unit.run(check=False, **options)


def run_async(unit, **options):
    """The same by `arun`; no task outlives it."""

    async def main():
        run = await unit.arun(check=False, **options)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return run

    return asyncio.run(main())


@pytest.fixture(params=[run_sync, run_async], ids=["sync", "async"])
def run(request):
    """Run a unit by `run` and by `arun`."""
    return request.param


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """A folder for journals."""
    monkeypatch.chdir(tmp_path)


@action
async def quick():
    return 1


@action
async def slow():
    await asyncio.sleep(10)


def blocks(name="blocks", seconds=0.15, **options):
    """An action that keeps its thread for a moment."""
    return action(name=name, **options)(lambda: time.sleep(seconds))


async def at_most_50_ms(call):
    async with asyncio.timeout(0.05):
        yield


def limited_by_anyio():
    """The same by anyio, which cancels again in each turn of the loop."""
    anyio = pytest.importorskip("anyio")

    async def limited(call):
        with anyio.fail_after(0.05):
            yield

    return limited


LIMITS = [pytest.param(lambda: at_most_50_ms, id="asyncio"), pytest.param(limited_by_anyio, id="anyio")]


# -- time limits of middleware


def sleepy(call):
    yield Sleep(10)
    yield


async def slow_stages():
    yield Stage("a")
    await asyncio.sleep(10)
    yield Stage("b")


def blocking_stages():
    yield Stage("a")
    time.sleep(0.15)
    yield Stage("b")


BUSY = {
    "coroutine": lambda: slow,
    "call in a thread": blocks,
    "call with a timeout": lambda: blocks(timeout=5),
    "pause": lambda: Stage("paused", use=[sleepy]),
    "group": lambda: parallel(slow, slow.with_options(name="slow2")),
    "group in a group": lambda: parallel(parallel(slow, quick), quick.with_options(name="quick2")),
    "group with a limit": lambda: parallel(slow, slow.with_options(name="slow2"), limit=1),
    "generator": lambda: action(name="source")(blocking_stages),
    "async generator": lambda: action(name="source")(slow_stages),
    "stream": lambda: action(name="source")(lambda: stream(blocking_stages)),
    "async stream": lambda: action(name="source")(lambda: stream(slow_stages)),
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("busy", BUSY)
def test_a_time_limit_of_middleware_holds_in_a_branch_whatever_it_waits_for(run, busy, limit):
    """A thread is waited for, anything else is cancelled; then the limit is the failure."""
    # modelcontextprotocol/python-sdk#79
    began = time.monotonic()
    finished = run(parallel(pipeline(BUSY[busy](), use=[limit()]), quick))
    assert time.monotonic() - began < 5
    assert isinstance(finished.error, TimeoutError)
    assert finished.status == "failed"


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("busy", ["coroutine", "group", "async generator", "async stream"])
def test_a_time_limit_of_middleware_holds_outside_groups(run, busy, limit):
    """A group inside is what takes too long."""
    finished = run(pipeline(BUSY[busy](), use=[limit()]))
    assert isinstance(finished.error, TimeoutError)


def test_a_pause_outside_groups_is_ended_by_a_time_limit(run):
    """In a sync run as well, once something has been awaited."""
    finished = run(pipeline(Stage("paused", use=[sleepy]), use=[at_most_50_ms]))
    assert isinstance(finished.error, TimeoutError)


def test_a_plain_action_outside_groups_is_not_ended_by_a_time_limit(run):
    """It blocks the loop; in a sync run, where it does not, the result is the same (L8)."""
    assert run(Stage("s", [blocks()], use=[at_most_50_ms])).error is None


def test_a_write_to_the_journal_is_not_interrupted(run):
    """The finished step counts, and is not called again."""

    class Slow(MemoryJournal):
        def write(self, *args):
            time.sleep(0.03)
            super().write(*args)

    log, journal = [], Slow()
    steps = [step(log, f"s{number}", number) for number in range(9)]
    finished = run(parallel(Stage("s", steps, use=[at_most_50_ms]), quick), journal=journal)
    assert isinstance(finished.error, TimeoutError)
    done = list(log)
    parallel(Stage("s", steps), quick).resume(finished.id, journal=journal, on_change="ignore")
    assert log[: len(done)] == done
    assert len(log) - len(set(log)) <= 1  # the one that was interrupted


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("busy", ["coroutine", "call in a thread", "group", "pause"])
def test_a_branch_continues_after_a_time_limit_that_is_recovered(run, busy, limit):
    """Nothing of the cancellation is left."""
    log = []
    limited = limit()

    async def lenient(call):
        layer = limited(call)
        await anext(layer)
        try:
            yield
        except BaseException as error:
            with pytest.raises(TimeoutError):
                await layer.athrow(error)
            log.append("late")
        else:
            await anext(layer, None)

    @action
    async def after():
        log.append(asyncio.current_task().cancelling())
        await asyncio.sleep(0.06)
        return "after"

    finished = run(parallel(pipeline(BUSY[busy](), use=[lenient]) >> after, quick))
    assert finished.error is None
    assert log == ["late", 0]
    assert finished["after"] == "after"


def test_an_outer_time_limit_counts_after_an_inner_one(run):
    """Which expires while the branch waits for a thread, and then for another."""

    async def at_most_100_ms(call):
        async with asyncio.timeout(0.1):
            yield

    inner = Stage("inner", [blocks(seconds=0.07)], use=[recover(on=TimeoutError), at_most_50_ms])
    finished = run(parallel(pipeline(inner, blocks("again"), slow, use=[at_most_100_ms]), quick))
    assert isinstance(finished.error, TimeoutError)
    assert "slow" not in [record.name for record in finished.stages if record.status == "completed"]


def test_many_branches_may_be_too_slow_at_once(run):
    """Each has its own time limit; one failure ends the others."""
    finished = run(parallel(*(Stage(f"s{number}", [slow], use=[at_most_50_ms]) for number in range(30))))
    failures = finished.error.exceptions if isinstance(finished.error, ExceptionGroup) else [finished.error]
    assert all(isinstance(error, TimeoutError) for error in failures)


def test_a_retry_in_a_branch_may_have_a_time_limit_for_each_attempt(run):
    """Async, entered again for each."""
    log = []

    async def limited(call):
        for _ in range(2):
            try:
                async with asyncio.timeout(0.03):
                    yield
            except TimeoutError:
                continue
            return
        yield

    @action
    async def third():
        log.append("attempt")
        await asyncio.sleep(10 if len(log) < 3 else 0)
        return len(log)

    assert run(parallel(Stage("s", [third], use=[limited]), quick))["third"] == 3


# -- task groups and scopes


def test_an_anyio_client_of_middleware_serves_a_branch(run):
    """Its task group is entered and left in one task."""
    # pydantic/pydantic-ai#2818, modelcontextprotocol/python-sdk#79
    anyio = pytest.importorskip("anyio")

    async def connected(call):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 0.01)
            yield {"client": "connected"}

    @action
    async def ping(client):
        await asyncio.sleep(0)
        return client

    finished = run(parallel(Stage("s", [ping], use=[connected]), quick))
    assert finished.error is None
    assert finished["ping"] == "connected"


def test_an_anyio_task_group_in_a_stream_holds_in_a_branch(run):
    """Entered before the first stage, left after the last one."""
    anyio = pytest.importorskip("anyio")

    async def spread():
        async with anyio.create_task_group():
            yield Stage("a")
            await asyncio.sleep(0)
            yield Stage("b")

    source = action(name="source")(lambda: stream(spread))
    finished = run(parallel(source, quick))
    assert finished.error is None
    assert names(finished) == ["source", "a", "b", "quick"]


def test_a_timeout_in_an_async_generator_holds_in_a_branch(run):
    """It is open across its yields."""

    @action
    async def pages():
        async with asyncio.timeout(0.05):
            yield Stage("a")
            await asyncio.sleep(10)
            yield Stage("b")

    assert isinstance(run(parallel(pages, quick)).error, TimeoutError)


def test_a_failing_task_of_middleware_cancels_its_branch(run):
    """Whatever that waits for; the failure is the group that the TaskGroup raises."""

    async def with_tasks(call):
        async def fails():
            await asyncio.sleep(0.02)
            raise ValueError("in the background")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fails())
            yield

    for inner in (slow, blocks(), parallel(slow, quick.with_options(name="quick2"))):
        finished = run(parallel(pipeline(inner, use=[with_tasks]), quick))
        assert isinstance(finished.error, ExceptionGroup)
        assert finished.error.subgroup(ValueError) is not None


def test_another_branch_may_cancel_the_scope_of_a_branch(run):
    """What follows the scope runs."""
    anyio = pytest.importorskip("anyio")
    scopes = []

    async def scoped(call):
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            yield

    @action
    async def cancels():
        while not scopes:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        scopes.pop().cancel()

    @action
    async def after():
        await asyncio.sleep(0.01)
        return "after"

    for inner in (slow, blocks(), parallel(slow, quick)):
        finished = run(parallel(pipeline(inner, use=[scoped]) >> after, cancels))
        assert finished.error is None
        assert finished["after"] == "after"


def test_each_branch_is_one_task_and_so_is_the_run(run):
    """Of actions, middleware and streams, before and after calls in threads and groups."""
    seen = {}

    def note(branch):
        seen.setdefault(branch, []).append(asyncio.current_task())

    def coroutine(name, branch):
        async def body():
            note(branch)
            await asyncio.sleep(0.001)
            note(branch)

        return action(name=name)(body)

    def branch(name):
        async def layer(call):
            note(name)
            yield
            note(name)

        async def units():
            note(name)
            yield Stage(f"{name} a")
            await asyncio.sleep(0)
            note(name)

        source = action(name=f"{name} source")(lambda: stream(units))
        first, last = coroutine(f"{name} first", name), coroutine(f"{name} last", name)
        return pipeline(first, blocks(f"{name} blocks", 0.001), last, source, use=[layer])

    nested = pipeline(coroutine("before", "outer"), parallel(branch("c"), branch("d")), coroutine("after", "outer"))
    finished = run(branch("run") >> parallel(branch("a"), branch("b"), nested) >> coroutine("end", "run"))
    assert finished.error is None
    assert {name: len(set(tasks)) for name, tasks in seen.items()} == dict.fromkeys(
        ["run", "a", "b", "c", "d", "outer"], 1
    )
    assert len({task for tasks in seen.values() for task in tasks}) == 6


def test_context_variables_are_those_of_the_branch(run):
    """Set by async middleware, seen and set in threads and coroutines, and reset at the end."""
    log = []

    async def sets(call):
        token = VARIABLE.set("middleware")
        yield
        VARIABLE.reset(token)
        log.append(VARIABLE.get())

    @action
    def plain():
        log.append(VARIABLE.get())
        VARIABLE.set("plain")

    @action
    async def coroutine():
        log.append(VARIABLE.get())
        VARIABLE.set("coroutine")

    @action
    def last():
        log.append(VARIABLE.get())

    finished = run(parallel(Stage("s", [plain, coroutine, last], use=[sets]), quick))
    assert finished.error is None
    assert log == ["middleware", "plain", "coroutine", None]


# -- async generators


def test_the_timeout_of_an_async_generator_is_reported_as_it_was_declared(run):
    """Not the part of it that was left."""

    @action(timeout=0.05)
    async def pages():
        await asyncio.sleep(0.02)
        yield Stage("a")
        await asyncio.sleep(10)

    assert "0.05 s" in str(run(pages).error)
    assert "0.05 s" in str(run(parallel(pages, quick)).error)


def test_the_timeout_of_an_async_generator_closes_it(run):
    """Its clean-up runs before the failure is known."""
    log = []

    @action(timeout=0.03)
    async def pages():
        try:
            while True:
                yield Stage("a")
                await asyncio.sleep(0.01)
        finally:
            log.append("closed")

    run(parallel(pages, quick))
    assert log == ["closed"]


# -- signals in exception groups


@action
async def two_answers(ctx: Context):
    """Ask for both at once."""

    async def ask(who):
        return ctx.wait_for(f"ok.{who}")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(who)) for who in ("legal", "press")]
    return [task.result() for task in tasks]


def test_waiting_in_a_task_group_suspends(run):
    """The reason names everything it waits for; the answers let the run continue."""
    # pydantic/pydantic-ai#3525, langchain-ai/langgraph#6624
    finished = run(two_answers, journal="runs.db")
    assert (finished.status, finished.error) == ("suspended", None)
    assert finished.reason == "waiting for 'ok.legal', 'ok.press'"
    finished = two_answers.resume(finished.id, {"ok.legal": "yes", "ok.press": "no"}, journal="runs.db")
    assert finished["two_answers"] == ["yes", "no"]


def raises_in_tasks(*errors):
    """An action whose tasks raise these."""

    @action
    async def raises():
        async def task(error):
            raise error

        async with asyncio.TaskGroup() as group:
            for error in errors:
                group.create_task(task(error))

    return raises


@pytest.mark.parametrize("wrap", [lambda unit: unit, lambda unit: parallel(unit, quick)], ids=["alone", "branch"])
def test_bailing_in_a_task_group_ends_the_run_early(run, wrap):
    """With the reason of the Bail; nothing is raised, and layers see a success."""
    # pydantic/pydantic-ai#3525
    log = []

    def commits(call):
        yield
        log.append("commit")

    stage = Stage("s", [raises_in_tasks(Bail("enough"))], use=[commits])
    finished = run(wrap(stage) >> one(log, "never"))
    assert (finished.status, finished.reason, finished.error) == ("bailed", "enough", None)
    assert log == ["commit"]


def test_a_failure_alongside_a_signal_counts(run):
    """The group is the failure, as it was raised."""
    error = ValueError("no")
    finished = run(raises_in_tasks(Bail("enough"), error))
    assert finished.status == "failed"
    assert isinstance(finished.error, BaseExceptionGroup)
    assert error in finished.error.exceptions


@pytest.mark.parametrize("place", ["action", "layer", "layer that has entered", "async layer", "stream", "source"])
def test_a_group_of_signals_is_one_wherever_it_is_raised(run, place):
    """Nested groups, too."""

    def stops(*_):
        raise BaseExceptionGroup("several", [BaseExceptionGroup("inner", [Suspend("why")]), Suspend("why")])

    def early(call):
        stops()
        yield

    def late(call):
        yield
        stops()

    async def late_async(call):
        yield
        await asyncio.sleep(0)
        stops()

    def units():
        yield Stage("a")
        stops()

    flow = {
        "action": action(stops),
        "layer": Stage("s", [quick], use=[early]),
        "layer that has entered": Stage("s", [quick], use=[late]),
        "async layer": Stage("s", [quick], use=[late_async]),
        "stream": action(name="source")(lambda: stream(units)),
        "source": action(name="source")(lambda: stream(stops)),
    }[place]
    for unit in (flow, parallel(flow, one([], "other"))):
        finished = run(unit)
        assert (finished.status, finished.reason, finished.error) == ("suspended", "why", None)


def test_a_signal_that_passes_a_task_group_of_middleware_stays_one(run):
    """The TaskGroup wraps it on the way."""

    async def with_tasks(call):
        async with asyncio.TaskGroup():
            yield

    @action
    def suspends():
        raise Suspend("why")

    finished = run(parallel(Stage("s", [suspends], use=[with_tasks]), quick))
    assert (finished.status, finished.reason) == ("suspended", "why")


def test_a_cancelled_branch_with_a_task_group_of_middleware_is_no_failure(run):
    """The failure of the other branch is raised as itself."""

    async def with_tasks(call):
        async with asyncio.TaskGroup():
            yield

    @action
    async def fails():
        await asyncio.sleep(0.02)
        raise ValueError("no")

    steps = [blocks(seconds=0.05), quick, slow]
    assert isinstance(run(parallel(Stage("s", steps, use=[with_tasks]), fails)).error, ValueError)


def test_retries_do_not_swallow_a_group_of_signals(run):
    """Nor does `recover`, which is asked for any exception."""
    for layer in (retry(on=Exception, wait=0), recover(on=Exception)):
        finished = run(Stage("s", [raises_in_tasks(Bail("enough"))], use=[layer]))
        assert (finished.status, finished.reason) == ("bailed", "enough")


def test_what_a_group_of_exceptions_means():
    """Its KeyboardInterrupt; else the first `Bail`, or all of `Suspend` together; anything else is itself."""
    bail, failure = Bail("b"), ValueError()
    group = BaseExceptionGroup("", [Suspend("s"), BaseExceptionGroup("", [bail])])
    assert meant_by(group) is bail
    assert Raised(group).error is bail
    assert meant_by(failure) is failure
    mixed = BaseExceptionGroup("", [failure, bail])
    assert meant_by(mixed) is mixed
    interrupt = KeyboardInterrupt()
    assert meant_by(BaseExceptionGroup("", [failure, BaseExceptionGroup("", [bail, interrupt])])) is interrupt
    exits = BaseExceptionGroup("", [SystemExit()])
    assert meant_by(exits) is exits
    assert meant_by(BaseExceptionGroup("", [Suspend("a"), Suspend("b")])).reason == "a; b"
    assert all_of([]) is None


@pytest.mark.parametrize("kind", [Suspend, Bail])
@pytest.mark.parametrize("reason", [None, 3, {"why": 1}, ["why"], b"why"])
def test_the_reason_of_a_signal_is_text(kind, reason):
    """Anything else is a TypeError where it is raised."""

    @action
    def ends():
        raise kind(reason)

    with pytest.raises(TypeError, match=f"the reason of {kind.__name__} is a string"):
        ends.run()


# -- Ctrl-C

ENDLESS = """
import asyncio, random, signal, sys
from flowdeco import Stage, action, parallel

@action
async def again():
    await asyncio.sleep(PAUSE)
    return LOOP

@action
async def quick():
    return 1

LOOP = Stage("loop", [again])
def lost(raised):  # a KeyboardInterrupt in a finalizer, which nobody can see: once more
    signal.setitimer(signal.ITIMER_REAL, 0.01)

sys.unraisablehook = lost
signal.signal(signal.SIGALRM, signal.default_int_handler)
parallel(quick, quick.with_options(name="b")).run()  # everything is imported
interrupted = 0
for n in range(30):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.02, 0.04))
        LOOP.run(history=1)
    except KeyboardInterrupt:
        interrupted += 1
print(interrupted)
"""

ENDLESS_ASYNC = """
import asyncio, signal, sys, threading
from flowdeco import Run, Stage, action, parallel

log = []

def layer(call):
    try:
        yield
    finally:
        log.append("closed")

@action
async def coroutine():
    WAIT
    return LOOP

@action
def plain():
    return LOOP

LOOP = Stage("loop", [ACTION])
threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGINT)).start()

async def main():
    try:
        await Stage("s", [ACTION], use=[layer]).arun(history=1, use=[layer])
    except asyncio.CancelledError as error:
        log.append(str(Run.of(error).status))
        raise

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print(*log)
"""


def child(source):
    """Return the output of a script, which must end soon."""
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.parametrize("pause", ["0", "0.001"])
def test_one_ctrl_c_ends_a_run_of_async_actions(pause):
    """Whenever it comes: between two of them, too."""
    # PrefectHQ/prefect#14013, PrefectHQ/prefect#14219
    assert child(ENDLESS.replace("PAUSE", pause)) == "30"


@pytest.mark.parametrize(
    ("act", "wait"), [("coroutine", "await asyncio.sleep(0.001)"), ("coroutine", "pass"), ("plain", "pass")]
)
def test_one_ctrl_c_ends_an_async_run(act, wait):
    """Also one whose actions never wait."""
    assert child(ENDLESS_ASYNC.replace("ACTION", act).replace("WAIT", wait)) == "closed closed cancelled"


def signal_soon(number):
    """Send a signal to the main thread, in a moment."""
    threading.Timer(0.02, signal.pthread_kill, [threading.main_thread().ident, number]).start()


@pytest.mark.parametrize("check", [True, False])
def test_ctrl_c_in_a_coroutine_reaches_async_layers(check):
    """They are closed after it, in the order of nesting."""
    log = []

    async def layer(call):
        try:
            yield
        finally:
            await asyncio.sleep(0.01)
            log.append("layer")

    @action
    async def waits():
        try:
            signal_soon(signal.SIGINT)
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0.01)
            log.append("action")

    for wrap in (lambda unit: unit, lambda unit: parallel(unit, quick)):
        log.clear()
        with pytest.raises(KeyboardInterrupt) as caught:
            wrap(Stage("s", [waits], use=[layer])).run(check=check)
        assert Run.of(caught.value).status == "cancelled"
        assert log == ["action", "layer"]


def test_a_second_ctrl_c_cancels_the_clean_up():
    """As a second cancellation of a task does."""
    log = []

    @action
    async def stubborn():
        try:
            signal_soon(signal.SIGINT)
            await asyncio.sleep(10)
        finally:
            try:
                signal_soon(signal.SIGINT)
                await asyncio.sleep(10)
            finally:
                log.append("ended")

    with pytest.raises(KeyboardInterrupt):
        stubborn.run()
    assert log == ["ended"]


def test_a_signal_handler_that_raises_nothing_does_not_end_a_wait():
    """The run continues to wait."""
    handled = []
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append("handled"))
    try:

        @action
        async def waits():
            signal_soon(signal.SIGUSR1)
            await asyncio.sleep(0.08)
            return "waited"

        assert waits.run()["waits"] == "waited"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled == ["handled"]


FILES = (f"{Path(flowdeco.__file__).parent}{os.sep}", "/concurrent/futures/", "/queue.py")  # not those of tests


def interrupted_at(moment, perform):
    """Perform with Ctrl-C at the n-th line of the library in this thread; return the interrupt, and the lines."""
    lines = 0

    def line(frame, event, arg):
        nonlocal lines
        lines += event == "line"
        if lines == moment and event == "line":
            lines += 1
            signal.raise_signal(signal.SIGINT)
        return line

    def trace(frame, event, arg):
        return line if any(name in frame.f_code.co_filename for name in FILES) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        perform()
    except KeyboardInterrupt as interrupt:
        return interrupt, lines
    finally:
        sys.settrace(before)
    return None, lines


@pytest.mark.parametrize("executor", [None, serial()], ids=["threads", "serial"])
def test_ctrl_c_at_any_line_ends_a_durable_group(executor):
    """It is never lost, no request stays without an answer, layers are closed and the run has no owner."""
    log = []
    branches = parallel(step(log, "a", 1), step(log, "b", 2), Stage("s", [quick], use=[around(log, "inner")]))
    flow = pipeline(branches, use=[around(log, "outer")])

    def attempt(moment):
        log.clear()
        journal = MemoryJournal()
        interrupt, lines = interrupted_at(moment, lambda: flow.run(journal=journal, executor=executor))
        assert all(info.owner is None for info in runs(journal))
        for name in ("inner", "outer"):
            assert log.count(f"+{name}") == log.count(f"-{name}")
        return interrupt, lines

    attempt(0)
    _, total = attempt(0)
    for moment in range(150, total - 150, total // 40):
        interrupt, _ = attempt(moment)
        assert interrupt is not None


# -- interrupted before a request began


def test_a_layer_is_closed_although_its_group_ended_before_it_was_resumed(run):
    """It receives the cancellation at its `yield`."""
    log = []

    async def layer(call):
        log.append("+")
        try:
            yield
        finally:
            log.append("-")

    fails = action(name="fails")(lambda: 1 / 0)
    for _ in range(20):
        branches = [Stage(f"s{number}", [step([], "x")], use=[layer]) for number in range(5)]
        run(parallel(fails, *branches))
    assert log.count("+") == log.count("-")


def test_a_stream_is_closed_although_its_group_ended_before_it_was_pulled():
    """Whether its branch was about to pull it, or doing so."""
    opened, closed = [], []

    def units():
        opened.append(1)
        try:
            for number in range(50):
                yield Stage(f"u{number}")
        finally:
            closed.append(1)

    fails = action(name="fails")(lambda: time.sleep(0.003) or 1 / 0)
    for _ in range(10):
        sources = [action(name=f"source{number}")(lambda: stream(units)) for number in range(4)]
        parallel(fails, *sources).run(check=False)
    assert len(opened) == len(closed)


def test_an_async_layer_is_closed_by_an_interrupt_between_two_requests(run):
    """Here, one that an observer raises."""
    log = []

    async def layer(call):
        try:
            yield
        finally:
            log.append("closed")

    def observer(event):
        if type(event).__name__ == "ActionFinished":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Stage("s", [quick], use=[layer]), observers=[observer])
    assert log == ["closed"]


class Ends:
    """A value that raises GeneratorExit when it is copied, compared or pickled."""

    def __init__(self, copies=1):
        self.copies = copies

    def __deepcopy__(self, memo):
        if self.copies:
            return Ends(self.copies - 1)
        raise GeneratorExit

    def __eq__(self, other):
        raise GeneratorExit

    __hash__ = None

    def __reduce__(self):
        raise GeneratorExit


@pytest.mark.parametrize("where", ["data", "result", "collected", "context", "branch", "merge"])
def test_a_stray_generator_exit_is_a_failure(run, where):
    """Middleware is closed, and nobody owns the run."""
    log = []

    @action
    def writes(ctx: Context):
        ctx.store["x"] = Ends()

    value = action(name="value", returns="v")(lambda: Ends())
    flow = {
        "data": Stage("s", [quick], data={"x": Ends()}),
        "result": value,
        "collected": value.with_options(returns=None, collect="vs"),
        "context": writes,
        "branch": parallel(value, quick),
        "merge": parallel(value, value.with_options(name="value2")),
    }[where]
    journal = MemoryJournal()
    finished = run(pipeline(flow, use=[around(log, "m")]), journal=journal)
    assert GeneratorExit in [type(error) for error in members_of(finished.error)]
    assert log == ["+m", "-m"]
    assert [info.owner for info in runs(journal)] == [None]


def test_an_observer_that_raises_generator_exit_is_dropped(run):
    """The run continues."""

    def observer(event):
        raise GeneratorExit

    assert run(quick, observers=[observer]).status == "completed"


# -- cancelled more than once, and at the end


class Slow(SqliteJournal):
    """A journal on a slow disk."""

    def __init__(self, path, *slow):
        super().__init__(path)
        self.slow = slow
        self.at = ""

    def _slowly(self, what, args):
        self.at = what
        pause = 0.05 if what in self.slow else 0
        time.sleep(pause)
        try:
            return getattr(super(), what)(*args)
        finally:
            time.sleep(pause)

    def create(self, *args):
        return self._slowly("create", args)

    def write(self, *args):
        return self._slowly("write", args)

    def close(self, *args):
        return self._slowly("close", args)


def statuses_of_free_runs(journal):
    """The statuses of the runs of a journal, once none has an owner."""
    until = time.monotonic() + 3
    while any(info.owner for info in runs(journal)) and time.monotonic() < until:
        time.sleep(0.01)
    assert [info.owner for info in runs(journal) if info.owner] == []
    return {info.status for info in runs(journal)}


@pytest.mark.parametrize("where", ["create", "write"])
@pytest.mark.parametrize("times", [2, 50])
def test_a_run_that_is_cancelled_again_and_again_has_no_owner(where, times):
    """While it begins, and while a step is being written, which counts."""
    # omnilib/aiosqlite#259, sqlalchemy/sqlalchemy#8145
    log, journal = [], Slow("runs.db", where)
    flow = step(log, "a") >> slow

    async def main():
        task = asyncio.create_task(flow.arun(journal=journal, run_id="r"))
        await asyncio.sleep(0.03)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert statuses_of_free_runs(journal) == {"cancelled"}
    resumed = (step(log, "a") >> quick.with_options(name="slow")).resume("r", journal=journal, on_change="ignore")
    assert resumed.status == "completed"
    assert log == ["a"]


@pytest.mark.parametrize("unit", [quick >> slow, parallel(quick, slow)], ids=["row", "group"])
def test_a_run_in_a_cancel_scope_of_anyio_has_no_owner_afterwards(unit):
    """It is cancelled in each turn of the loop, whatever it is at."""
    # sqlalchemy/sqlalchemy#8145
    anyio = pytest.importorskip("anyio")

    async def main():
        for number, delay in enumerate([0, 0.001, 0.003, 0.005, 0.01, 0.02] * 2):
            with anyio.move_on_after(delay):
                await unit.arun(journal="runs.db", run_id=f"r{number}")

    asyncio.run(main())
    assert statuses_of_free_runs("runs.db") <= {"cancelled"}


@pytest.mark.parametrize("check", [True, False])
def test_a_cancellation_while_a_run_is_closed_is_raised(check):
    """And the run is as the journal has it."""
    # langflow-ai/langflow#6625, microsoft/PyRIT#2342
    journal = Slow("runs.db", "close")

    async def main():
        task = asyncio.create_task(quick.arun(journal=journal, check=check))
        while journal.at != "close":
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        return Run.of(caught.value).status

    status = asyncio.run(main())
    assert status in {"completed", "cancelled"}
    assert statuses_of_free_runs(journal) == {status}


def test_all_tasks_of_a_loop_may_be_cancelled_at_once():
    """The run is cancelled, and nothing waits for a lane that has not begun."""

    async def main():
        task = asyncio.create_task(parallel(slow, slow.with_options(name="b"), blocks(seconds=0.02)).arun())
        for _ in range(turns):
            await asyncio.sleep(0)
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    for turns in range(1, 8):  # noqa: B007 (it is read above)
        assert asyncio.run(main())


def test_a_durable_run_needs_no_thread_of_the_loop_s_executor():
    """Its threads may all wait for runs in the loop."""
    # fastapi/fastapi#12066, fastapi/fastapi#5122

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2))

        def view(number):
            call = (quick >> quick.with_options(name="b")).arun(journal="runs.db", run_id=f"r{number}")
            return asyncio.run_coroutine_threadsafe(call, loop).result(5).status

        return await asyncio.gather(*(asyncio.to_thread(view, number) for number in range(2)))

    assert asyncio.run(main()) == ["completed", "completed"]


# -- interrupts of what is closed


class Stubborn:
    """A stream that is interrupted whenever it is closed."""

    def __init__(self, times, error):
        self.times = times
        self.error = error
        self.closed = 0

    def __iter__(self):
        return self

    def __next__(self):
        return step([], "fails", fails)

    def close(self):
        self.closed += 1
        if self.closed <= self.times:
            raise self.error


def fails():
    raise OSError("gone")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()], ids=repr)
@pytest.mark.parametrize(("times", "closed"), [(0, 1), (1, 2), (2, 2), (9, 2)])
def test_an_interrupt_as_a_stream_is_closed_is_the_end_of_the_run(times, closed, error):
    """It is closed once more, since the interrupt may have come before that was called, and not again."""
    source = Stubborn(times, error)
    with pytest.raises(type(error) if times else OSError) as caught:
        pipeline(action(name="opens")(lambda: stream(source))).run()
    assert source.closed == closed
    assert Run.of(caught.value).status == ("cancelled" if times and isinstance(error, KeyboardInterrupt) else "failed")


def test_a_middleware_may_be_called_with_a_call_made_by_hand():
    """As in a unit test of it: there is no earlier attempt."""
    call = Call()
    call.run_id, call.pipeline, call.stage, call.action, call.attempt = "r", pipeline(quick), None, None, 1
    layer = retry(attempts=2, on=OSError, wait=0)(call)
    assert next(layer) is None
    assert layer.throw(OSError("gone")) in {None, Sleep(0)}
    with pytest.raises(OSError, match="again"):
        layer.throw(OSError("again"))


@pytest.mark.parametrize("turns", range(12))
def test_a_cancellation_as_a_layer_is_told_of_its_mistake(turns):
    """In any turn of the loop: it is cleaned up, and the run ends by one of the two."""
    log = []

    async def mistaken(call):
        try:
            yield 5
        finally:
            log.append("closed")

    async def main():
        task = asyncio.create_task(Stage("s", [quick], use=[mistaken]).arun())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, MiddlewareError)):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert log in ([], ["closed"])


def test_an_interrupt_before_a_layer_is_told_of_its_mistake_is_raised_in_it():
    """So that it can clean up all the same."""
    log = []

    async def mistaken(call):
        try:
            yield 5
        except BaseException as error:
            log.append(type(error))
            raise

    layers = Layers("r", Store(), pipeline(quick), Stage("s", [quick]), None, (mistaken,), Gate())
    passage = enter(layers)

    async def perform(request):
        try:
            return await request.awaitable
        except BaseException as error:
            return Raised(error)

    async def main():
        answer = await perform(next(passage))
        passage.send(answer)  # the request to tell it is not performed
        request = passage.send(Raised(KeyboardInterrupt()))
        with pytest.raises(StopIteration) as end:
            passage.send(await perform(request))
        return end.value.value

    again, error = asyncio.run(main())
    assert (again, type(error), log) == (False, KeyboardInterrupt, [KeyboardInterrupt])


def test_an_evaluation_that_is_given_up_is_closed_and_no_failure():
    """Wherever it waits: its layers are left without a word."""
    log = []

    def waits(call):
        log.append("waits")
        yield Sleep(1)
        log.append("continues")

    run, walk = evaluation(Stage("s", [quick], use=[waits]))
    assert next(walk) == Sleep(1)
    walk.close()
    assert (log, run.error) == (["waits"], None)


def test_a_generator_exit_that_is_raised_in_a_call_of_the_evaluation_is_a_failure():
    """It is told from the end of the evaluation itself, which is raised at its own `yield`."""
    moments = iter(range(100))

    def clock():
        if next(moments) == 2:  # as the stage begins
            raise GeneratorExit
        return 0.0

    log = []
    run, walk = evaluation(pipeline(quick, use=[around(log, "m")]), clock=clock)
    with pytest.raises(StopIteration):
        next(walk)
    assert (run.status, type(run.error), log) == ("failed", GeneratorExit, ["+m", "-m"])
