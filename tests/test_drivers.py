"""What performs a run: the calling thread or an event loop, and that both make the same of it (L8)."""

import asyncio
import contextvars
import inspect
import os
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from support import action_record, again, around, async_around, failing, names, one, shown, stage_record, statuses, step

from flowdeco import Context, Key, Run, Sleep, Stage, Store, action, parallel, pipeline, stream
from flowdeco.drivers import sync
from flowdeco.drivers.interrupts import is_cancellation
from flowdeco.errors import ActionTimeout, DefinitionError, MiddlewareError, StoreTypeError, WiringError
from flowdeco.middleware import retry
from flowdeco.testing import FlowRunner

VARIABLE = contextvars.ContextVar("VARIABLE", default="default")


class Interrupted:
    """Raise KeyboardInterrupt in the main thread, as Ctrl-C does, when `now` is called or the time has come."""

    def __enter__(self):
        self._before = signal.signal(signal.SIGUSR1, self._raise)
        return self

    def __exit__(self, *exc_info):
        signal.signal(signal.SIGUSR1, self._before)

    def _raise(self, signum, frame):
        raise KeyboardInterrupt

    @staticmethod
    def now():
        os.kill(os.getpid(), signal.SIGUSR1)

    def after(self, seconds):
        threading.Timer(seconds, self.now).start()


@pytest.fixture
def interrupt():
    """Ctrl-C at a moment of the test's choice."""
    with Interrupted() as interrupted:
        yield interrupted


@action
async def waits_a_little() -> str:
    """Return something from an event loop."""
    await asyncio.sleep(0)
    return "waited"


# -- one suite, two drivers


def test_coroutine_actions_run(run):
    """Beside sync ones, and generators of both kinds."""

    @action
    async def coroutine(n):
        await asyncio.sleep(0)
        return n + 1

    @action
    def plain(coroutine):
        return coroutine + 1

    @action
    async def generator(plain):
        yield plain
        await asyncio.sleep(0)
        yield plain + 1

    finished = run(coroutine >> plain >> generator, {"n": 1})
    assert (finished["coroutine"], finished["plain"], finished["generator"]) == (2, 3, [3, 4])


def test_whatever_can_be_awaited_is_awaited(run):
    """Also where a plain function returned it, and what it gives in turn."""

    async def inner():
        return step([], "inserted", "by a coroutine")

    @action
    def outer():
        return inner()

    assert run(outer)["inserted"] == "by a coroutine"


def test_all_coroutines_of_a_run_share_one_loop(run):
    """What one of them began, the next can await."""

    @action
    async def begin():
        return {"task": asyncio.get_running_loop().create_task(asyncio.sleep(0, "done"))}

    @action
    async def finish(begin):
        return await begin["task"]

    assert run(begin >> finish)["finish"] == "done"


def test_both_drivers_give_the_same_records():
    """Order, statuses, attempts, who inserted what."""

    def flow(log):
        dynamic = Stage("d", [step(log, "x", use=[async_around(log, "m")])], use=[again(2)])
        return one(log, "a", lambda: [stream([dynamic]), one(log, "e")]) >> failing(log, "boom", ValueError("no"))

    def seen(run):
        return [
            (s.name, s.status, s.inserted_by, s.attempts, [(a.name, a.status, a.inserted_by) for a in s.actions])
            for s in run.stages
        ]

    logs = [], []
    runs = flow(logs[0]).run(check=False), asyncio.run(flow(logs[1]).arun(check=False))
    assert seen(runs[0]) == seen(runs[1])
    assert logs[0] == logs[1]


# -- sync: a private loop


def test_coroutines_run_while_a_loop_is_running():
    """As in a notebook."""

    async def cell():
        return waits_a_little.run()["waits_a_little"]

    assert asyncio.run(cell()) == "waited"


def test_a_coroutine_action_may_start_a_run_of_its_own(run):
    """Sync, in the middle of the private loop."""

    @action
    async def nested():
        return waits_a_little.run().result

    assert run(nested)["nested"] == "waited"


def test_the_current_event_loop_of_the_thread_is_left_alone():
    """A sync run neither sets nor closes it."""
    mine = asyncio.new_event_loop()
    asyncio.set_event_loop(mine)
    try:
        waits_a_little.run()
        assert asyncio.get_event_loop_policy().get_event_loop() is mine
        assert not mine.is_closed()
    finally:
        asyncio.set_event_loop(None)
        mine.close()


def test_the_private_loop_ends_with_the_run():
    """Its thread is gone, and so is what was left in it."""
    log, tasks = [], []
    before = set(threading.enumerate())

    @action
    async def leaves_a_task():
        async def forever():
            try:
                await asyncio.Event().wait()
            finally:
                log.append("cancelled")

        tasks.append(asyncio.get_running_loop().create_task(forever()))
        await asyncio.sleep(0)

    leaves_a_task.run()
    assert log == ["cancelled"]
    assert set(threading.enumerate()) <= before


def test_a_run_without_coroutines_starts_no_thread():
    """Microseconds of overhead: no loop, no pool."""
    seen = []
    (step([], "a", lambda: seen.append(threading.current_thread())) >> step([], "b")).run()
    assert seen == [threading.main_thread()]


def test_sync_actions_run_in_the_thread_of_the_caller(run):
    """Also in an async run, inline."""
    seen = []
    run(step([], "a", lambda: seen.append(threading.current_thread())))
    assert seen == [threading.main_thread()]


def test_arun_lets_others_run_while_it_waits():
    """Two runs at once, each of them waiting in a coroutine and in a `Sleep`."""
    log = []

    def patient(call):
        yield Sleep(0.05)
        yield

    def flow(name):
        @action(use=[patient])
        async def wait():
            log.append(f"{name} begins")
            await asyncio.sleep(0.05)
            log.append(f"{name} ends")

        return wait

    async def both():
        await asyncio.gather(flow("a").arun(), flow("b").arun())

    asyncio.run(both())
    assert [line.split()[1] for line in log] == ["begins", "begins", "ends", "ends"]


def test_arun_is_a_coroutine_function_result():
    """It is evaluated when it is awaited, not before."""
    log = []
    pending = one(log, "a").arun()
    assert inspect.iscoroutine(pending)
    assert log == []
    asyncio.run(pending)
    assert log == ["a"]


def test_one_definition_runs_concurrently():
    """No run changes it, and no two share anything (L3)."""
    flow = Stage("s", [step([], "a", 1, collect="xs"), step([], "b", lambda: one([], "D"))], data={"ys": []})

    async def several():
        return await asyncio.gather(*(flow.arun({"xs": [i]}) for i in range(20)))

    finished = asyncio.run(several())
    threads = [threading.Thread(target=lambda i=i: finished.append(flow.run({"xs": [i]}))) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run["xs"] for run in finished) == sorted([[i, 1] for i in range(20)] * 2)
    assert all(names(run) == ["s", "D"] for run in finished)
    assert len({id(run["ys"]) for run in finished}) == 40
    assert len({run.id for run in finished}) == 40


# -- context variables


def test_context_variables_of_the_caller_are_seen_everywhere(run):
    """In plain actions, coroutines, threads for timeouts, branches, middleware of both kinds."""
    seen = {}

    def note(name, **options):
        @action(name=name, **options)
        def plain():
            seen[name] = VARIABLE.get()

        return plain

    def coroutine(name, **options):
        @action(name=name, **options)
        async def waiting():
            await asyncio.sleep(0)
            seen[name] = VARIABLE.get()

        return waiting

    async def middleware(call):
        seen["middleware"] = VARIABLE.get()
        yield

    flow = pipeline(
        note("plain"), coroutine("coroutine"), note("timed", timeout=5), coroutine("timed coroutine", timeout=5),
        parallel(note("branch"), coroutine("coroutine branch"), note("timed branch", timeout=5)),
        use=[middleware],
    )  # fmt: skip
    token = VARIABLE.set("caller's")
    try:
        run(flow)
    finally:
        VARIABLE.reset(token)
    assert set(seen.values()) == {"caller's"}
    assert len(seen) == 8


def test_what_a_coroutine_sets_is_seen_by_the_next_one(run):
    """As if all of them were awaited one after the other in one task."""

    @action(returns=None)
    async def put():
        VARIABLE.set("set")

    @action
    async def get():
        return VARIABLE.get()

    @action
    def get_plainly():
        return VARIABLE.get()

    finished = contextvars.copy_context().run(run, put >> get >> get_plainly)
    assert (finished["get"], finished["get_plainly"]) == ("set", "set")


def test_what_middleware_sets_is_seen_inside(run):
    """By coroutines, too."""

    def scoped(call):
        token = VARIABLE.set("scoped")
        yield
        VARIABLE.reset(token)

    @action
    async def get():
        return VARIABLE.get()

    finished = run(Stage("s", [get], use=[scoped]))
    assert finished["get"] == "scoped"
    assert VARIABLE.get() == "default"


# -- timeouts


def test_a_coroutine_that_takes_too_long_is_cancelled(run):
    """`ActionTimeout` is a `TimeoutError`, and names the action and its time."""
    log = []

    @action(timeout=0.02)
    async def slow():
        try:
            await asyncio.sleep(10)
        finally:
            log.append("cleaned up")

    with pytest.raises(ActionTimeout, match=r"'slow'.*0\.02") as caught:
        run(slow)
    assert isinstance(caught.value, TimeoutError)
    assert log == ["cleaned up"]
    assert Run.of(caught.value).status == "failed"


def test_a_sync_call_that_takes_too_long_is_given_up(run):
    """Neither the run nor `asyncio.run` waits for its thread, and what it does later has no effect."""
    release, ended = threading.Event(), threading.Event()

    @action(timeout=0.02)
    def slow(ctx: Context):
        release.wait(10)
        try:
            ctx.store["late"] = True
        finally:
            ended.set()

    began = time.monotonic()
    finished = run(slow, check=False)
    assert time.monotonic() - began < 5
    assert isinstance(finished.error, ActionTimeout)
    release.set()
    assert ended.wait(10)
    assert dict(finished.store) == {}


def test_a_call_that_was_given_up_may_end_after_its_loop_was_closed(run):
    """Its thread ends quietly."""
    threads = []
    release = threading.Event()

    @action(timeout=0.02)
    def slow():
        threads.append(threading.current_thread())
        release.wait(10)

    run(slow, check=False)
    release.set()
    threads[0].join(10)
    assert not threads[0].is_alive()


def test_an_async_generator_has_its_timeout_for_all_it_yields(run):
    """Not anew for each."""

    @action(timeout=0.1)
    async def drips():
        for _ in range(100):
            await asyncio.sleep(0.03)
            yield 1

    finished = run(drips, check=False)
    assert isinstance(finished.error, ActionTimeout)
    assert finished.elapsed < 2


def test_a_generator_has_its_timeout_too(run):
    """It is run to its end on the worker thread."""

    @action(timeout=0.05)
    def drips():
        for _ in range(100):
            time.sleep(0.02)
            yield 1

    finished = run(drips, check=False)
    assert isinstance(finished.error, ActionTimeout)


def test_the_timeout_is_for_each_attempt(run):
    """A retry has the whole time again; ActionTimeout can be retried as TimeoutError."""
    log = []

    @action(timeout=0.2, use=[retry(on=TimeoutError, wait=0)])
    async def slow_at_first():
        log.append(1)
        if len(log) < 3:
            await asyncio.sleep(10)
        return "at last"

    assert run(slow_at_first)["slow_at_first"] == "at last"


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_timeout_error_of_the_user_is_not_taken_for_ours(run, asynchronous):
    """It is raised as it is."""
    error = TimeoutError("mine")

    async def coroutine():
        raise error

    def plain():
        raise error

    finished = run(action(timeout=5)(coroutine if asynchronous else plain), check=False)
    assert finished.error is error


def test_what_ends_in_time_is_not_affected_by_its_timeout(run):
    """Result, writes, exceptions of every kind."""

    @action(timeout=5)
    def timely(ctx: Context, n):
        ctx.store["seen"] = n
        return n + 1

    @action(timeout=5)
    async def coroutine(timely, *, k=2):
        return timely + k

    finished = run(timely >> coroutine, {"n": 1})
    assert dict(finished.store) == {"n": 1, "seen": 1, "timely": 2, "coroutine": 4}
    error = StopIteration("mine")
    assert run(failing([], "a", error, timeout=5), check=False).error is error


# -- what user functions may raise


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("error", [StopIteration(1), GeneratorExit("no"), StopAsyncIteration(2)], ids=shown)
def test_exceptions_that_generators_know_arrive_as_they_are(run, error, wrapped):
    """Through middleware of both kinds at every level; the run has failed."""
    log = []
    layers = {"use": [around(log, "a"), async_around(log, "b")]} if wrapped else {}
    flow = pipeline(Stage("s", [failing([], "a", error, **layers)], **layers), **layers)
    finished = run(flow, check=False)
    assert (finished.status, finished.error) == ("failed", error)
    assert action_record(finished, "s", "a").error is error
    if wrapped:
        assert log == ["+a", "+b"] * 3 + ["-b", "-a"] * 3


def test_a_stop_iteration_is_raised_by_run():
    """With its note."""
    error = StopIteration("mine")
    with pytest.raises(StopIteration) as caught:
        failing([], "a", error).run()
    assert caught.value is error
    assert "action 'a'" in caught.value.__notes__[0]


def test_a_stop_iteration_can_be_found_behind_what_arun_raises():
    """No coroutine can raise it: it is the cause of what Python raises instead, and the run is known."""
    error = StopIteration("mine")
    with pytest.raises(RuntimeError) as caught:
        asyncio.run(failing([], "a", error).arun())
    assert caught.value.__cause__ is error
    assert Run.of(caught.value).error is error


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("level", ["action", "middleware", "stream"])
def test_keyboard_interrupt_of_a_user_function_cancels_the_run(run, level, asynchronous):
    """It unwinds middleware, leaves the run cancelled, and is raised, also when the run is not checked."""
    log = []

    def interrupted(call=None):
        raise KeyboardInterrupt
        yield

    async def async_interrupted(call=None):
        raise KeyboardInterrupt
        yield

    source = async_interrupted if asynchronous else interrupted
    made = {
        "action": Stage("s", [action(name="a")(source)], use=[around(log, "m")]),
        "middleware": Stage("s", [step([], "a")], use=[around(log, "m"), source]),
        "stream": pipeline(step([], "a", lambda: stream(source)), use=[around(log, "m")]),
    }[level]
    with pytest.raises(KeyboardInterrupt) as caught:
        run(made, check=False)
    assert Run.of(caught.value).status == "cancelled"
    assert log == ["+m", "-m"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_system_exit_is_a_failure_that_goes_on(run, asynchronous):
    """It ends the program if nobody catches it."""

    async def leave_async():
        raise SystemExit(3)

    def leave():
        raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        run(action(leave_async if asynchronous else leave))
    assert Run.of(caught.value).status == "failed"


def test_a_coroutine_that_cancels_itself_cancels_the_run(run):
    """`CancelledError` is a cancellation in both drivers, and no `except Exception` catches it."""
    log = []

    @action
    async def gives_up():
        log.append("called")
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError) as caught:
        run(Stage("s", [gives_up], use=[again(3)]))
    assert log == ["called"]
    assert Run.of(caught.value).status == "cancelled"


def test_the_private_loop_survives_an_interrupt_of_a_coroutine():
    """Middleware that catches it can go on, with coroutines."""

    def stubborn(call):
        with suppress(KeyboardInterrupt):
            yield

    @action
    async def interrupted():
        raise KeyboardInterrupt

    finished = pipeline(Stage("s", [interrupted], use=[stubborn]), waits_a_little).run()
    assert finished["waits_a_little"] == "waited"


# -- cancellation


def test_cancelling_arun_unwinds_middleware():
    """At every level, async clean-up included; the run is cancelled, and known by the exception."""
    log = []

    async def careful(call):
        try:
            yield
        finally:
            await asyncio.sleep(0)
            log.append(f"{call.level} cleaned up")

    @action(use=[careful])
    async def waits():
        try:
            await asyncio.sleep(10)
        finally:
            log.append("action cleaned up")

    flow = pipeline(Stage("s", [waits], use=[careful]), one(log, "never"), use=[careful])

    async def cancelled():
        task = asyncio.create_task(flow.arun())
        await asyncio.sleep(0.02)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError) as caught:
        asyncio.run(cancelled())
    finished = Run.of(caught.value)
    assert log == ["action cleaned up", "action cleaned up", "stage cleaned up", "pipeline cleaned up"]
    assert finished.status == "cancelled"
    assert statuses(finished) == [("s", "cancelled")]
    assert action_record(finished, "s", "waits").status == "cancelled"


def test_cancelling_arun_closes_streams():
    """Those that have been begun."""
    log = []

    @action
    async def waits():
        await asyncio.sleep(10)

    async def source():
        try:
            yield Stage("s", [waits])
        finally:
            await asyncio.sleep(0)
            log.append("closed")

    async def cancelled():
        task = asyncio.create_task(step([], "a", lambda: stream(source)).arun())
        await asyncio.sleep(0.02)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert log == ["closed"]


@pytest.mark.parametrize("where", ["sleep", "timed call", "branch", "stream"])
def test_arun_can_be_cancelled_wherever_it_waits(where):
    """In a `Sleep` of middleware, in a timed call, in a group, in a stream."""
    log = []

    def sleepy(call):
        yield Sleep(10)
        yield

    async def slow_stream():
        await asyncio.sleep(10)
        yield one(log, "never")

    @action
    async def waits():
        await asyncio.sleep(10)

    release = threading.Event()
    flow = {
        "sleep": Stage("s", use=[sleepy]),
        "timed call": action(name="timed", timeout=20)(lambda: release.wait(20) and None),
        "branch": parallel(waits, one(log, "quick")),
        "stream": step([], "a", lambda: stream(slow_stream)),
    }[where]

    async def cancelled():
        task = asyncio.create_task(pipeline(flow, use=[around(log, "m")]).arun(check=False))
        await asyncio.sleep(0.05)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError) as caught:
        asyncio.run(cancelled())
    release.set()
    assert Run.of(caught.value).status == "cancelled"
    assert [line for line in log if line != "quick"] == ["+m", "-m"]


def test_ctrl_c_in_a_plain_action_unwinds_middleware(interrupt):
    """The run is cancelled; the interrupt is raised even if the run is not checked."""
    log = []
    flow = pipeline(Stage("s", [step(log, "a", interrupt.now)], use=[around(log, "m")]), one(log, "never"))
    with pytest.raises(KeyboardInterrupt) as caught:
        flow.run(check=False)
    assert log == ["+m", "a", "-m"]
    assert statuses(Run.of(caught.value)) == [("s", "cancelled")]
    assert Run.of(caught.value).status == "cancelled"


def test_ctrl_c_between_two_calls_unwinds_middleware():
    """Wherever evaluation happens to be: here, it comes while an observer is told."""
    log = []

    def observer(event):
        if type(event).__name__ == "ActionStarted":
            raise KeyboardInterrupt

    flow = pipeline(Stage("s", [step(log, "a")], use=[around(log, "stage")]), use=[around(log, "pipeline")])
    with pytest.raises(KeyboardInterrupt) as caught:
        flow.run(observers=[observer])
    assert log == ["+pipeline", "+stage", "-stage", "-pipeline"]
    assert Run.of(caught.value).status == "cancelled"
    assert statuses(Run.of(caught.value)) == [("s", "cancelled")]


@pytest.mark.parametrize("event", ["RunStarted", "StageStarted", "ActionStarted", "ActionFinished", "StageFinished"])
def test_ctrl_c_at_any_moment_leaves_the_run_cancelled(run, event):
    """And is re-raised, with the run behind it."""
    log = []

    def observer(seen):
        if type(seen).__name__ == event:
            raise KeyboardInterrupt

    flow = pipeline(one(log, "a"), one(log, "b"), use=[around(log, "m")])
    with pytest.raises(KeyboardInterrupt) as caught:
        run(flow, observers=[observer])
    assert Run.of(caught.value).status == "cancelled"
    assert log.count("+m") == log.count("-m")
    assert "b" not in log


DRIVER = {("flowdeco.drivers.sync", "_drive"), ("flowdeco.drivers.sync", "_answered")}


def test_ctrl_c_in_the_driver_itself_unwinds_middleware():
    """In between: while it is neither in a call nor in the evaluation. Tried at every line of its loop."""

    def run_interrupted_at(moment):
        """Run with an interrupt at the n-th line of the driver's loop; return the log, and what was raised."""
        log, lines = [], 0

        def in_driver(frame, event, arg):
            nonlocal lines
            lines += event == "line"
            if lines == moment and event == "line":
                raise KeyboardInterrupt
            return in_driver

        def trace(frame, event, arg):
            named = frame.f_globals.get("__name__"), frame.f_code.co_name
            return in_driver if named in DRIVER else None

        flow = pipeline(Stage("s", [step(log, "a"), step(log, "b")], use=[around(log, "s")]), use=[around(log, "p")])
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            flow.run()
        except KeyboardInterrupt as interrupt:
            return log, interrupt
        finally:
            sys.settrace(before)
        return log, None

    outcomes, moment = [], 0
    while True:
        moment += 1
        # In a thread of its own: in CPython 3.11, raising from a trace function leaves a handled exception behind.
        with ThreadPoolExecutor(1) as thread:
            log, interrupt = thread.submit(run_interrupted_at, moment).result()
        if interrupt is None:
            break
        if log:
            outcomes.append((Run.of(interrupt).status.value, log.count("+s") - log.count("-s"), log[-1]))
    assert moment > 5
    assert set(outcomes) == {("cancelled", 0, "-p"), ("completed", 0, "-p")}  # the latter, when the run was over


@pytest.mark.parametrize(
    ("when", "status"), [("before it has begun", "cancelled"), ("in between", "cancelled"), ("after it", "completed")]
)
def test_ctrl_c_around_the_evaluation_is_raised_with_its_run(monkeypatch, when, status):
    """A run that was over when it came is what it is."""
    log = []
    answered = sync._answered

    def interrupted(evaluation, *args):
        monkeypatch.undo()
        if when == "in between":
            next(evaluation)
        if when == "after it":
            answered(evaluation, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(sync, "_answered", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        Stage("s", [step(log, "a")], use=[around(log, "m")]).run()
    assert Run.of(caught.value).status == status
    assert log.count("+m") == log.count("-m")
    assert ("a" in log) == (when == "after it")


def test_ctrl_c_waits_for_the_clean_up_of_a_coroutine(interrupt):
    """First the coroutine, then the middleware around it, as when `arun` is cancelled."""
    log = []

    @action
    async def waits():
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0.02)
            log.append("coroutine cleaned up")

    interrupt.after(0.1)
    with pytest.raises(KeyboardInterrupt) as caught:
        Stage("s", [waits], use=[around(log, "m")]).run()
    assert log == ["+m", "coroutine cleaned up", "-m"]
    assert Run.of(caught.value).status == "cancelled"


@pytest.mark.parametrize("where", ["sleep", "timed call", "branch"])
def test_ctrl_c_wakes_a_sync_run_wherever_it_waits(interrupt, where):
    """In a `Sleep`, in a timed call, in a group."""
    log = []
    release = threading.Event()

    def sleepy(call):
        yield Sleep(10)
        yield

    @action
    async def waits():
        await asyncio.sleep(10)

    flow = {
        "sleep": Stage("s", use=[sleepy]),
        "timed call": action(name="timed", timeout=20)(lambda: release.wait(20) and None),
        "branch": parallel(waits, one([], "quick")),
    }[where]
    interrupt.after(0.1)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as caught:
        pipeline(flow, use=[around(log, "m")]).run()
    release.set()
    assert time.monotonic() - began < 5
    assert Run.of(caught.value).status == "cancelled"
    assert log == ["+m", "-m"]


def test_what_counts_as_a_cancellation():
    """Ctrl-C, and the cancellation of a task; no error is one."""
    assert is_cancellation(KeyboardInterrupt())
    assert is_cancellation(asyncio.CancelledError())
    assert not is_cancellation(SystemExit())
    assert not is_cancellation(TimeoutError())


# -- waiting


def test_sleep_waits_in_both_drivers(run):
    """Between attempts, before the inside, and after it."""
    began = time.monotonic()

    def patient(call):
        yield Sleep(0.02)
        yield
        yield Sleep(0.02)

    finished = run(Stage("s", [step([], "a", 1)], use=[patient]))
    assert time.monotonic() - began >= 0.04
    assert finished["a"] == 1


def test_in_a_group_only_the_branch_that_sleeps_waits(run):
    """The others go on."""
    log = []

    def patient(call):
        yield Sleep(0.1)
        yield

    run(parallel(Stage("slow", [step(log, "slow")], use=[patient]), one(log, "a") >> one(log, "b")))
    assert log == ["a", "b", "slow"]


# -- how a run begins and ends


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": "load"}, "skip"),
        ({"skip": [3]}, "skip"),
        ({"skip": 3}, "skip"),
        ({"use": around([], "m")}, "use"),
        ({"use": [lambda call: None]}, "is not middleware"),
        ({"observers": print}, "observers"),
        ({"observers": [3]}, "observer"),
        ({"history": -1}, "history"),
        ({"history": True}, "history"),
        ({"history": "all"}, "history"),
    ],
)
def test_wrong_options_of_a_run_are_refused(run, options, message):
    """Before anything runs; each error names the option."""
    log = []
    with pytest.raises(DefinitionError, match=message):
        run(one(log, "a"), **options)
    assert log == []


@pytest.mark.parametrize("inputs", [3, "load", [("k", 1)], {"k"}])
def test_inputs_are_a_mapping(run, inputs):
    """Anything else is refused."""
    with pytest.raises(DefinitionError, match="inputs"):
        run(Stage("s"), inputs)


@pytest.mark.parametrize("inputs", [{"": 1}, {3: 1}, {None: 1}])
def test_keys_of_inputs_are_non_empty_strings(run, inputs):
    """Empty and other keys are refused."""
    with pytest.raises(TypeError, match="non-empty string"):
        run(Stage("s"), inputs)


def test_inputs_may_have_typed_keys_which_are_checked(run):
    """They are known by name."""
    assert run(Stage("s"), {Key("n", int): 3})["n"] == 3
    with pytest.raises(StoreTypeError, match="'n'"):
        run(Stage("s"), {Key("n", int): "three"})


def test_inputs_are_taken_by_reference_and_the_mapping_is_left_alone(run):
    """Values are shared, keys are not; appending copies a list that came in."""
    given = {"xs": [1], "shared": object()}
    finished = run(step([], "a", 2, collect="xs") >> step([], "b", 3), given)
    assert given == {"xs": [1], "shared": given["shared"]}
    assert finished["shared"] is given["shared"]
    assert finished["xs"] == [1, 2]


def test_a_store_can_be_the_input_of_another_run(run):
    """It is a mapping."""
    first = run(step([], "a", 1))
    second = run(step([], "b", 2), first.store)
    assert dict(second.store) == {"a": 1, "b": 2}
    assert "b" not in first.store


def test_the_id_of_a_run_is_given_or_made(run):
    """A made one is its own."""
    assert run(Stage("s"), run_id="mine").id == "mine"
    assert len({run(Stage("s")).id for _ in range(20)}) == 20


def test_the_traceback_leads_to_the_user(run):
    """It ends where the exception was raised."""
    with pytest.raises(ValueError) as caught:
        run(failing([], "a", ValueError("no")))
    frames = [entry.name for entry in caught.traceback]
    assert frames[-1] == "body"


def test_the_traceback_of_a_failure_has_no_lines_of_the_middleware_that_it_only_passes(run):
    """They say nothing about it."""

    def passes(call):
        yield

    async def passes_too(call):
        yield

    with pytest.raises(ValueError) as caught:
        run(Stage("s", [failing([], "a", ValueError("no"))], use=[passes, passes_too], use_actions=[passes_too]))
    names = [entry.name for entry in caught.traceback]
    assert names[-1] == "body"
    assert not {"passes", "passes_too"} & {*names}


def test_the_traceback_of_a_mistake_in_middleware_leads_to_its_yield(run):
    """Of a synchronous one as of an asynchronous one."""

    def wrong(call):
        yield 3

    async def wrong_too(call):
        yield 3

    for layer in (wrong, wrong_too):
        with pytest.raises(MiddlewareError) as caught:
            run(Stage("s", [step([], "a")], use=[layer]))
        assert caught.traceback[-1].name == layer.__name__
        shown = [each for each in caught.traceback if not each.frame.f_locals.get("__tracebackhide__")]
        assert not [each for each in shown if each.frame.f_globals["__name__"].startswith("flowdeco")]


def test_every_unit_runs(run):
    """Actions, stages, pipelines, groups."""
    for unit in (
        step([], "a", 1),
        Stage("s", [step([], "a", 1)]),
        pipeline(step([], "a", 1)),
        parallel(step([], "a", 1)),
    ):
        assert dict(run(unit).store) == {"a": 1}
        assert isinstance(run(unit).store, Store)


def test_a_recovered_timeout_lets_the_run_go_on(run):
    """A given-up thread does not disturb what follows."""
    release = threading.Event()

    @action(timeout=0.02)
    def slow():
        release.wait(10)
        return "late"

    def forgiving(call):
        try:
            yield
        except TimeoutError:
            call.outcome = "gave up"

    finished = run(slow.with_options(use=[forgiving]) >> waits_a_little)
    release.set()
    assert (finished["slow"], finished["waits_a_little"]) == ("gave up", "waited")
    assert stage_record(finished, "slow").status == "completed"
    assert action_record(finished, "slow", "slow").recovered


@pytest.mark.parametrize(
    ("perform", "error"),
    [
        (lambda flow: flow.run({"n": 1}), ZeroDivisionError),
        (lambda flow: flow.run(), WiringError),
        (lambda flow: flow.run(observers=print), DefinitionError),
        (lambda flow: asyncio.run(flow.arun({"n": 1})), ZeroDivisionError),
        (lambda flow: asyncio.run(flow.arun()), WiringError),
        (lambda flow: flow.resume(flow.run({"n": 1}, check=False)), ZeroDivisionError),
        (lambda flow: asyncio.run(flow.aresume(flow.run({"n": 1}, check=False))), ZeroDivisionError),
        (lambda flow: FlowRunner()(flow, {"n": 1}), ZeroDivisionError),
        (lambda flow: FlowRunner().resume(flow, flow.run({"n": 1}, check=False)), ZeroDivisionError),
    ],
)
def test_tracebacks_hide_how_a_flow_is_run(perform, error):
    """By `__tracebackhide__`, which pytest and IPython know: what is left is the caller's and the action's."""
    with pytest.raises(error) as raised:
        perform(action(lambda n: n / 0, name="divide"))
    frame, seen = raised.tb, []
    while frame is not None:
        if not frame.tb_frame.f_locals.get("__tracebackhide__"):
            seen.append(frame.tb_frame.f_globals["__name__"])
        frame = frame.tb_next
    assert [name for name in seen if name.startswith("flowdeco")] == []


def test_tracebacks_of_the_members_of_a_group_have_no_frames_of_flowdeco(run):
    """As that of a single failure: they lead from the user's call to the user's error."""
    barrier = threading.Barrier(2)

    @action
    def fails():
        barrier.wait(10)
        raise ValueError

    finished = run(parallel(fails, Stage("s", [fails]), limit=2), check=False)
    for error in finished.error.exceptions:
        frames = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
        assert frames == [__name__]
