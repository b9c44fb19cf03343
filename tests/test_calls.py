"""Calls: what is awaited, how long they may take and in which executor, and what a context is when they have ended."""

import asyncio
import functools
import inspect
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import names, text_of

import flowdeco
from flowdeco import Context, Stage, action, parallel, pipeline, stage, stream
from flowdeco.drivers.threads import call_with_timeout
from flowdeco.errors import (
    ActionTimeout,
    ContextEndedError,
    DefinitionError,
    ExecutorError,
    RunError,
    WorkerDiedError,
)
from flowdeco.events import Message
from flowdeco.executors import serial
from flowdeco.middleware import recover, retry

PATIENCE = 20  # seconds that nothing here takes
PATHS = os.pathsep.join(filter(None, [str(Path(flowdeco.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
# Those that start processes by fork are warned that there are threads; the workers here do not mind.
pytestmark = [pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]


def processes(workers=1, method="fork", **options):
    """A pool of processes."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method), **options)


def beside(unit):
    """A group of this unit and of one that does nothing."""
    return parallel(unit, Stage("beside"))


def output(folder, source, *arguments):
    """The lines that a script prints."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(path), *arguments],
        capture_output=True, check=False, cwd=folder, env={**os.environ, "PYTHONPATH": PATHS}, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# -- awaiting


class Pool:
    """A client as there are many: to await it opens it."""

    def __await__(self):
        raise AssertionError("it was awaited")
        yield

    def __aiter__(self):
        return self.units()

    async def units(self):
        yield Stage("streamed")


def placed(unit, where):
    """The unit in a sequence, or in a group."""
    return unit if where == "alone" else beside(unit)


@pytest.mark.parametrize("where", ["alone", "in a group"])
@pytest.mark.parametrize("made", [Pool, Future], ids=["client", "future of threads"])
def test_a_value_that_can_be_awaited_is_a_value(run, made, where):
    """Whether a plain function returns it, a coroutine function, or a middleware supplies it."""
    # python/typeshed#10379, prefect-archive/prefect-dask#91
    value = made()

    @action
    def plain():
        return value

    @action
    async def coroutine():
        return value

    def supplies(call):
        call.outcome = value
        return
        yield

    supplied = action(name="supplied", use=[supplies])(lambda: None)
    for unit in (plain, coroutine, supplied):
        assert run(placed(unit, where))[unit.name] is value


@pytest.mark.parametrize("where", ["alone", "in a group"])
def test_what_was_awaited_is_not_awaited_again(run, where):
    """A coroutine that returns a future returns a future."""

    async def opened():
        future = asyncio.get_running_loop().create_future()
        future.set_result("awaited twice")
        return future

    def surrounds(call):
        yield

    for function in (opened, lambda: opened()):
        for use in ([], [surrounds]):
            unit = action(name="opened", use=use)(function)
            assert asyncio.isfuture(run(placed(unit, where))["opened"])


@pytest.mark.parametrize("where", ["alone", "in a group"])
def test_coroutines_of_every_kind_are_awaited(run, where):
    """Of a lambda, a partial, an object, a decorated function, `types.coroutine`; those that middleware supplies."""

    async def later(value=3):
        await asyncio.sleep(0)
        return value

    class Callable:
        async def __call__(self):
            return await later()

    @types.coroutine
    def old():
        return (yield from asyncio.sleep(0, 3))

    @functools.wraps(later)
    def decorated(*args):
        return later(*args)

    def supplies(call):
        call.outcome = later()
        return
        yield

    functions = [lambda: later(), functools.partial(later, 3), Callable(), old, decorated]
    for number, function in enumerate(functions):
        assert run(placed(action(name=f"a{number}")(function), where))[f"a{number}"] == 3
    assert run(placed(action(name="supplied", use=[supplies])(lambda: None), where))["supplied"] == 3


def test_a_task_that_an_action_returns_is_awaited():
    """Of asyncio, its futures and `gather` too."""

    async def later():
        await asyncio.sleep(0)
        return 3

    @action
    def start():
        return asyncio.ensure_future(later())

    @action
    def gathers():
        return asyncio.gather(later(), later())

    run = asyncio.run((start >> gathers).arun())
    assert (run["start"], run["gathers"]) == (3, [3, 3])


@pytest.mark.parametrize("where", ["alone", "in a group"])
def test_a_generator_is_run_to_its_end_once(run, where):
    """Also one that a coroutine returns; the items of a generator are not looked into."""
    inner = (n for n in [1])

    def items():
        yield 1
        yield inner

    async def returns_one():
        return items()

    for unit in (action(items), action(name="items")(returns_one), action(name="items")(lambda: items())):
        assert run(placed(unit, where))["items"] == [1, inner]
    assert next(inner) == 1


def test_the_source_of_a_stream_is_iterated_and_not_awaited_if_it_can_be(run):
    """A cursor that can be awaited, and iterated."""

    @action
    def pulls():
        return stream(Pool)

    assert names(run(pulls)) == ["pulls", "streamed"]


def test_groups_of_async_actions_run_however_threads_are_switched():
    """Runs of short async branches, with a thread of the loop that gives way at every turn."""
    # erdewit/nest_asyncio#71

    @action
    async def quick():
        return 1

    def gives_way(frame, event, argument):
        if event in ("return", "c_return"):
            time.sleep(0)

    group = parallel(*(Stage(f"s{n}", [quick.with_options(name=f"q{m}") for m in range(10)]) for n in range(3)))
    before = threading.getprofile()
    threading.setprofile(gives_way)
    try:
        for _ in range(3):
            group.run()
    finally:
        threading.setprofile(before)


# -- timeouts


@action(collect="done", timeout=0.5)
def short_call(n):
    time.sleep(0.2)
    return n


@action(collect="done", timeout=0.2)
def sleeps(seconds):
    time.sleep(seconds)
    return seconds


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, processes, serial], ids=["threads", "processes", "serial"])
def test_a_timeout_does_not_count_the_queue(run, pool):
    """Four calls of 0.2 s with a timeout of 0.5 s and one worker: none of them takes too long."""
    # josdejong/workerpool#27, Parsl/parsl#325
    group = parallel(*(Stage(f"s{n}", [short_call.bind(n=n)]) for n in range(4)))
    executor = pool() if pool is serial else pool(1)
    with executor:
        assert run(group, executor=executor)["done"] == list(range(4))


def test_a_timeout_does_not_count_the_start_of_a_worker(run):
    """Which has to load Python and the program first."""
    with processes(1, "spawn") as pool:
        assert run(beside(sleeps.bind(seconds=0)), executor=pool)["done"] == [0]


def most_at_once(run, **options):
    """How many of 8 calls with a timeout are performed at once."""
    lock, at_once = threading.Lock(), [0, 0]

    @stage
    def per(n):
        @action(timeout=60)
        def work():
            with lock:
                at_once[0] += 1
                at_once[1] = max(at_once)
            time.sleep(0.02)
            with lock:
                at_once[0] -= 1

    run(parallel(*map(per, range(8))), **options)
    return at_once[1]


def test_calls_with_a_timeout_keep_to_the_size_of_the_pool(run):
    """A pool of two threads performs two calls at once, with a timeout as without."""
    # python/cpython#17615
    with ThreadPoolExecutor(2) as pool:
        assert most_at_once(run, executor=pool) == 2
    assert most_at_once(run, executor=serial()) == 1


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, processes], ids=["threads", "processes"])
def test_a_call_that_is_abandoned_leaves_its_worker_to_others(run, pool):
    """Neither the other branches nor the end of the pool wait for it."""
    slow = Stage("slow", [sleeps.bind(seconds=PATIENCE)], use=[recover(on=ActionTimeout)])
    began = time.monotonic()
    with pool(1) as executor:
        finished = run(parallel(slow, Stage("quick", [sleeps.bind(seconds=0)])), executor=executor)
    assert finished["done"] == [0]
    assert str(finished.stages[0].error) == "action 'sleeps' took longer than its timeout of 0.2 s"
    assert time.monotonic() - began < PATIENCE / 2


def test_the_timeout_in_a_process_is_for_each_attempt(run):
    """A call that takes too long is retried in the same worker."""
    slow = Stage("slow", [sleeps.bind(seconds=PATIENCE)], use_actions=[retry(on=TimeoutError, attempts=3, wait=0)])
    with processes() as pool:
        finished = run(beside(slow), executor=pool, check=False)
    assert isinstance(finished.error, ActionTimeout)
    assert finished.stages[0].actions[0].attempts == 3


@pytest.mark.parametrize("seconds", [math.inf, 1e300, 1e12, 10**400, sys.maxsize, 1e10])
def test_a_timeout_may_be_as_long_as_you_like(run, seconds):
    """An infinite one is none; in plain actions and coroutines, in groups, in processes."""
    # Parsl/parsl#325

    @action(timeout=seconds)
    def work():
        time.sleep(0.01)
        return 1

    @action(timeout=seconds)
    async def later():
        await asyncio.sleep(0.01)
        return 2

    @action(timeout=seconds)
    def items():
        yield 3

    flow = work >> later >> items
    assert dict(run(flow).store) == {"work": 1, "later": 2, "items": [3]}
    assert dict(run(parallel(work, later, items)).store) == {"work": 1, "later": 2, "items": [3]}
    with processes() as pool:
        assert run(beside(sleeps.with_options(timeout=seconds).bind(seconds=0)), executor=pool)["done"] == [0]


def test_ctrl_c_while_the_thread_of_a_timed_call_starts_is_that(monkeypatch):
    """Python raises an error of the lock that it then releases, as if it had it."""

    class Starting(threading.Thread):
        def start(self):
            try:
                raise KeyboardInterrupt
            finally:
                threading.Lock().release()

    monkeypatch.setattr(threading, "Thread", Starting)
    with pytest.raises(KeyboardInterrupt):
        call_with_timeout("a", 1.0, print, ())


def test_a_timed_call_without_a_thread_fails(monkeypatch):
    """The error says so."""

    def full(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        call_with_timeout("a", 1.0, print, ())


def test_an_infinite_timeout_is_none():
    """The definition is the one without."""
    assert sleeps.with_options(timeout=math.inf) == sleeps.with_options(timeout=None)


@pytest.mark.parametrize("wrong", [math.nan, -1, 0, -math.inf, True, "1", [1]])
def test_a_timeout_is_a_positive_number(wrong):
    """Refused where it is given."""
    with pytest.raises(DefinitionError, match=r"timeout.*" + re.escape(repr(wrong))):
        action(timeout=wrong)(lambda: None)


# -- executors that end


def part(n):
    return Stage(f"part{n}", [sleeps.bind(seconds=0)])


def cannot_begin():
    raise OSError("no database for this worker")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("branches", [2, 50])
@pytest.mark.parametrize("pool", [ThreadPoolExecutor, processes], ids=["threads", "processes"])
def test_a_pool_whose_workers_cannot_begin_ends_the_run(run, pool, branches):
    """It is one failure, however many calls wait for it."""
    # temporalio/sdk-python#245
    with pool(1, initializer=cannot_begin) as executor:
        finished = run(parallel(*map(part, range(branches))), executor=executor, check=False)
        again = run(parallel(*map(part, range(branches))), executor=executor, check=False)
    for error in (finished.error, again.error):
        assert isinstance(error, WorkerDiedError)
        assert type(executor).__name__ in str(error)
        assert "'sleeps'" in str(error)
        assert "initializer" in str(error) or "terminated abruptly" in str(error)


@action
def dies():
    os.kill(os.getpid(), signal.SIGKILL)


@action(collect="done")
def pid():
    return os.getpid()


def kills_idle_workers(call):
    """Kill the worker of the call before this one."""
    os.kill(call.store["done"][-1], signal.SIGKILL)
    time.sleep(0.1)
    yield


def test_a_pool_that_breaks_between_two_calls_ends_the_run(run):
    """While nothing is with it."""
    with processes() as pool:
        branch = pipeline(Stage("first", [pid]), Stage("second", [pid], use=[kills_idle_workers]))
        finished = run(beside(branch), executor=pool, check=False)
    assert isinstance(finished.error, WorkerDiedError)
    assert [record.status for record in finished.stages if record.name == "first"] == ["completed"]


# Where a call is withdrawn just as its pool breaks, the pool's own thread fails, and the call counts as withdrawn.
broken = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@broken
def test_a_pool_that_breaks_while_calls_wait_ends_the_run(run):
    """With a timeout or without, in nested groups; each record has the error."""
    inner = parallel(*map(part, range(20)), name="inner")
    with processes(2) as pool:
        finished = run(parallel(dies, inner, *map(part, range(20, 60))), executor=pool, check=False)
    assert isinstance(finished.error, WorkerDiedError)
    assert "'dies', 'sleeps'" in str(finished.error)
    ended = [record.error for record in finished.stages if record.status != "cancelled"]
    assert any(error is finished.error for error in ended)
    assert all(error in (None, finished.error) for error in ended)


def test_an_executor_that_is_shut_down_is_named(run):
    """Before the run, or in it, with calls that wait."""
    with ThreadPoolExecutor(1) as pool:
        pass
    finished = run(beside(part(1)), executor=pool, check=False)
    assert isinstance(finished.error, ExecutorError)
    assert isinstance(finished.error, RuntimeError)
    assert "ThreadPoolExecutor" in str(finished.error)
    assert "'sleeps'" in str(finished.error)
    for pool in (ThreadPoolExecutor(1), processes()):
        timer = threading.Timer(0.1, pool.shutdown, [False], {"cancel_futures": True})
        timer.start()
        finished = run(parallel(*(short_call.bind(n=n) for n in range(10))), executor=pool, check=False)
        timer.join()
        pool.shutdown()
        for error in getattr(finished.error, "exceptions", [finished.error]):  # several, if it refused the calls
            assert isinstance(error, ExecutorError)
            assert "shut" in str(error)


# -- actions of a script


MAIN = """
    import functools, sys
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    from flowdeco import Context, Stage, action, parallel, stage

    def logged(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return ["logged", function(*args, **kwargs)]
        return wrapper

    @action(collect="rows")
    def one() -> int:
        return 1

    @action
    def calls_it():
        return one() + 1

    @action
    def returns_action():
        return one

    @action
    def returns_changed():
        return [one.with_options(collect="others"), number.bind(n=2)]

    @action(collect="rows")
    def number(n: int) -> int:
        return n

    @action
    def wraps_in_stage() -> Stage:
        return Stage("w", [one])

    @stage
    def whole():
        @action(collect="rows")
        def inner():
            return 3

    @stage
    def made(n: int):
        @action(collect="rows")
        def inner():
            return n

    @action
    def returns_stages():
        return [whole, made(4)]

    @action
    def returns_local():
        @action(collect="rows")
        def local():
            return 5
        return local

    @action
    def inserts(ctx: Context):
        ctx.insert(one)

    @action(collect="rows")
    @logged
    def decorated() -> int:
        return 6

    if __name__ == "__main__":
        @action(collect="rows")
        def guarded() -> int:
            return 7

        @action
        def returns_guarded():
            return guarded

        with ProcessPoolExecutor(1, mp_context=get_context(sys.argv[1])) as pool:
            def run(unit, **options):
                return parallel(unit, Stage("beside")).run(executor=pool, **options)

            for unit in (calls_it, returns_action, returns_changed, wraps_in_stage, returns_stages, returns_local,
                         inserts, decorated, returns_guarded):
                print(dict(run(unit).store))
            actions = {record.name: record.action for stage in run(returns_action).stages for record in stage.actions}
            print(actions["one"] is one)
            print([stage.status.value for stage in run(wraps_in_stage, skip=["w/one"]).stages[1].actions])
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_action_of_a_script_stays_one_in_processes(tmp_path, method):
    """An action of `__main__` that comes home is run, with its options, as in threads, and is the one that left."""
    # joblib/joblib#643, joblib/joblib#674
    pytest.importorskip("cloudpickle")
    assert output(tmp_path, MAIN, method) == [
        "{'calls_it': 2}", "{'rows': [1]}", "{'others': [1], 'rows': [2]}", "{'rows': [1]}", "{'rows': [3, 4]}",
        "{'rows': [5]}", "{'rows': [1]}", "{'rows': [['logged', 6]]}", "{'rows': [7]}", "True", "['skipped']",
    ]  # fmt: skip


# -- wrappers that take keywords only


def by_keyword(function):
    """As a logging decorator often is."""

    @functools.wraps(function)
    def wrapper(**kwargs):
        return function(**kwargs)

    return wrapper


def first_by_position(function):
    @functools.wraps(function)
    def wrapper(x, /, **kwargs):
        return function(x, **kwargs)

    return wrapper


def named(function):
    @functools.wraps(function)
    def wrapper(*, x, y=5):
        return function(x, y)

    return wrapper


def positional(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


def anyhow(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def pretending(function):
    def add(**kwargs):
        return function(**kwargs)

    add.__signature__ = inspect.signature(function)
    return add


class Wrapped:
    """A decorator that is a class."""

    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, **kwargs):
        return self.function(**kwargs)


DECORATORS = [by_keyword, first_by_position, named, positional, anyhow, pretending, Wrapped]
DECORATORS += [lambda function: anyhow(by_keyword(function)), lambda function: by_keyword(anyhow(function))]


@pytest.mark.parametrize("decorator", DECORATORS)
def test_a_wrapper_is_called_as_it_can_be(decorator):
    """By keyword, by position, or both; with a default; with a bound value."""
    # PrefectHQ/prefect#1107

    def add(x: int, y: int = 5) -> int:
        return x + y

    unit = action(decorator(add))
    assert unit.run({"x": 1, "y": 2})["add"] == 3
    assert unit.run({"x": 1})["add"] == 6
    assert unit.bind(x=10).run({"y": 2})["add"] == 12


def test_a_method_and_a_partial_are_called_as_they_can_be():
    """The object, and the fixed values, are theirs."""

    def method_by_keyword(function):
        @functools.wraps(function)
        def wrapper(self, **kwargs):
            return function(self, **kwargs)

        return wrapper

    class Shop:
        @action
        @method_by_keyword
        def total(self, ctx: Context, price: int):
            return price, ctx.action.name

    @by_keyword
    def add(x, y):
        return x + y

    assert Shop().total.run({"price": 3})["total"] == (3, "total")
    assert action(name="add")(functools.partial(add, y=3)).run({"x": 1})["add"] == 4


# -- a context that has ended


USES = {
    "insert": lambda ctx: ctx.insert(Stage("late")),
    "disable": lambda ctx: ctx.disable("wait"),
    "enable": lambda ctx: ctx.enable("wait"),
    "emit": lambda ctx: ctx.emit("late"),
    "progress": lambda ctx: ctx.progress(1),
    "wait_for": lambda ctx: ctx.wait_for("key"),
    "write": lambda ctx: ctx.store.update(key=1),
    "append": lambda ctx: ctx.store.append("keys", 1),
    "delete": lambda ctx: ctx.store.pop("key"),
    "setdefault": lambda ctx: ctx.store.setdefault("other", 1),
}


@pytest.mark.parametrize("use", USES)
def test_a_context_says_that_its_action_has_ended(run, use):
    """In a thread that outlives the action, and nothing is lost in silence; it can still be read."""
    # PrefectHQ/prefect#17060
    raised, ended = [], threading.Event()

    @action
    def start(ctx: Context):
        def later():
            ended.wait(PATIENCE)
            try:
                USES[use](ctx)
            except Exception as error:
                raised.append(error)
            raised.append((ctx.run_id, ctx.stage.name, ctx.store["key"], ctx.logger.name, bool(ctx.step_id)))

        threads.append(threading.Thread(target=later))
        threads[-1].start()

    @action
    def wait():
        ended.set()
        threads[-1].join(PATIENCE)

    threads = []
    finished = run(start >> wait, {"key": 0}, run_id="r")
    error, known = raised
    assert isinstance(error, ContextEndedError)
    assert "action 'start' has ended" in str(error)
    assert known == ("r", "start", 0, "flowdeco.run", True)
    assert (names(finished), dict(finished.store)) == (["start", "wait"], {"key": 0})


def test_each_attempt_has_its_own_context(run):
    """That of a failed one has ended, that of the next has not; a generator's lasts to its end."""
    contexts = []

    @action(use=[retry(on=ValueError, wait=0)])
    def flaky(ctx: Context):
        contexts.append(ctx)
        ctx.store["attempt"] = ctx.attempt if hasattr(ctx, "attempt") else len(contexts)
        if len(contexts) == 1:
            raise ValueError("again")
        with pytest.raises(ContextEndedError):
            contexts[0].insert(Stage("late"))

    @action
    def yields(ctx: Context):
        yield 1
        ctx.store["seen"] = 1

    @action
    async def async_yields(ctx: Context):
        yield 1
        ctx.store["seen too"] = 1

    finished = run(flaky >> yields >> async_yields)
    assert (finished["attempt"], finished["seen"], finished["seen too"]) == (2, 1, 1)


def test_a_task_that_outlives_its_action_is_told_so():
    """A coroutine's context ends with the coroutine."""
    raised = []

    @action
    async def start(ctx: Context):
        async def later():
            await asyncio.sleep(0.01)
            with pytest.raises(ContextEndedError) as caught:
                ctx.store["late"] = 1
            raised.append(caught.value)

        tasks.append(asyncio.create_task(later()))

    @action
    async def wait():
        await tasks[0]

    tasks = []
    (start >> wait).run()
    assert len(raised) == 1


@action
def leaves_a_thread(ctx: Context, path):
    def later():
        time.sleep(0.1)
        try:
            ctx.store["late"] = 1
        except Exception as error:
            Path(path).write_text(type(error).__name__, encoding="utf-8")

    threading.Thread(target=later).start()


@action(timeout=0.1)
def is_abandoned(ctx: Context, path):
    ctx.emit("begun")
    time.sleep(0.3)
    try:
        ctx.insert(Stage("late"))
    except Exception as error:
        Path(path).write_text(type(error).__name__, encoding="utf-8")


@pytest.mark.parametrize("unit", [leaves_a_thread, is_abandoned])
def test_a_detached_context_says_it_too(run, unit, tmp_path):
    """In another process; messages from before it ended have arrived."""
    path, events = tmp_path / "raised", []
    with processes() as pool:
        finished = run(beside(unit), {"path": str(path)}, executor=pool, check=False, observers=[events.append])
        until = time.monotonic() + PATIENCE
        while not (path.exists() and path.read_text(encoding="utf-8")) and time.monotonic() < until:
            time.sleep(0.01)
    assert path.read_text(encoding="utf-8") == "ContextEndedError"
    assert isinstance(finished.error, ActionTimeout) is (unit is is_abandoned)
    messages = [event.kind for event in events if type(event).__name__ == "Message"]
    assert messages == (["begun"] if unit is is_abandoned else [])


# -- exceptions from other processes


class Coded(Exception):
    """Pickled without complaint, and unpickled never: its `__init__` takes more."""

    def __init__(self, code, detail):
        super().__init__(f"{detail} ({code})")
        self.code = code


class Prefixed(Exception):
    """Unpickled as another one: its message is taken for its argument."""

    def __init__(self, file):
        super().__init__(f"cannot read {file}")


class Silent(Exception):
    def __init__(self, *, code):
        super().__init__()
        self.code = code


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Holder(Exception):
    """Cannot be pickled at all."""

    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()


ERRORS = {
    "coded": lambda: Coded(3, "no"),
    "prefixed": lambda: Prefixed("a.csv"),
    "silent": lambda: Silent(code=3),
    "frozen": lambda: Frozen(3),
    "os": lambda: FileNotFoundError(2, "no such file", "a.csv"),
    "key": lambda: KeyError("k"),
    "unicode": lambda: UnicodeDecodeError("utf-8", b"a", 0, 1, "bad"),
    "exit": lambda: SystemExit(3),
    "stop": lambda: StopIteration(3),
    "group": lambda: ExceptionGroup("several", [ValueError(1), KeyError("k")]),
}


@action
def raises(kind):
    raise ERRORS[kind]()


@action
def raises_holder():
    raise Holder("holding a lock")


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind != "frozen"])
def test_an_exception_comes_back_as_itself(run, kind):
    """With its type, its message, its attributes; and with its traceback as a note."""
    with processes() as pool:
        finished = run(beside(raises), {"kind": kind}, executor=pool, check=False)
    expected = ERRORS[kind]()
    assert (type(finished.error), str(finished.error)) == (type(expected), str(expected))
    assert getattr(finished.error, "code", None) == getattr(expected, "code", None)
    assert "in raises" in text_of(finished.error)


def test_an_exception_that_takes_no_attributes_comes_back_as_itself():
    """One from a frozen dataclass."""
    from flowdeco.executors import perform_shipped, receive, shipped
    from flowdeco.model.steps import step_of

    step = step_of(raises)
    perform, payload, nonce = shipped(step, ["frozen"], {})
    assert perform is perform_shipped
    error = receive(step, perform(payload, nonce), (["frozen"], {})).error
    assert (type(error), error.code) == (Frozen, 3)
    assert "in raises" in text_of(error)


def test_an_exception_that_cannot_be_pickled_is_described(run):
    """By its type, message and traceback; the pool is not broken."""
    with processes() as pool:
        finished = run(beside(raises_holder), executor=pool, check=False)
        assert run(beside(pid), executor=pool)["done"]
    assert type(finished.error) is RunError
    assert "Holder: holding a lock" in str(finished.error).splitlines()[0]
    assert "in raises_holder" in str(finished.error)


def test_a_coroutine_that_a_plain_function_returns_is_awaited_in_its_process(run):
    """It cannot travel."""
    with processes() as pool:
        assert run(beside(returns_coroutine), executor=pool)["returns_coroutine"] == 3


async def three():
    await asyncio.sleep(0)
    return 3


@action
def returns_coroutine():
    return three()


@action
def tells_its_step(ctx: Context, fails: bool):
    ctx.emit("step", id=ctx.step_id)
    ctx.store["written"] = 1
    if fails:
        raise Frozen(4)


def shipped_from(fails, told):
    """Ship a call from an action, and perform it in this process; return the run, and the arrival of the reply."""
    from flowdeco.executors import receive, shipped
    from flowdeco.model.steps import step_of

    arrivals = []

    @action(returns="error")
    def ships(ctx: Context):
        ctx.emit("step", id=ctx.step_id)
        step, sent = step_of(tells_its_step), ([ctx, fails], {})
        perform, payload, nonce = shipped(step, *sent)
        reply = perform(payload, nonce)
        arrivals.append(lambda: receive(step, reply, sent))
        return str(getattr(arrivals[0](), "error", None))

    return ships.run(observers=[told.append]), arrivals[0]


def messages_of(events):
    return [event.payload["id"] for event in events if isinstance(event, Message)]


@pytest.mark.parametrize("fails", [False, True], ids=["completes", "fails"])
def test_the_effects_of_a_context_in_another_process_come_home(fails):
    """It has the step's id there; of a failure, only its messages arrive; after the end of the action, nothing does."""
    events = []
    run, arrive = shipped_from(fails, events)
    there, here = messages_of(events)
    assert there == here
    assert run["error"] == (str(Frozen(4)) if fails else "None")
    assert run.store.get("written") == (None if fails else 1)
    arrive()
    assert messages_of(events) == [there, here]
    assert run.store.get("written") == (None if fails else 1)
