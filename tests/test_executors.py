"""Calls that go elsewhere: to processes, interpreters, a cluster. Only the calls: all else stays with the run."""

import asyncio
import json
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent import futures
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import shipped
from pools import PATHS, interpreter_pool
from support import action_record, around, completed, names, one, provide, statuses, text_of

from flowdeco import Bail, Run, Stage, action, parallel, pipeline
from flowdeco.durable import MemoryJournal, cancel
from flowdeco.errors import ActionTimeout, ExecutorError, RunError, ShippingError, WorkerDiedError
from flowdeco.executors import serial
from flowdeco.middleware import recover, retry

PATIENCE = 20  # seconds after which a test gives up waiting for what must happen
# Those that start processes by fork are warned that there are threads; the workers here do not mind.
pytestmark = [pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]


# -- executors


def processes(method, workers=2):
    """A pool of processes."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method))


@pytest.fixture(scope="module")
def forked():
    with processes("fork") as executor:
        list(executor.map(os.getenv, ["A", "B"]))  # the processes are there
        yield executor


@pytest.fixture(scope="module")
def spawned():
    with processes("spawn") as executor:
        list(executor.map(os.getenv, ["A", "B"]))
        yield executor


@pytest.fixture(scope="module")
def interpreters():
    pool = interpreter_pool()
    if pool is None:
        pytest.skip("this Python has no InterpreterPoolExecutor")
    # They begin with the path of the process, and not with that of pytest.
    with pool(2, initializer=exec, initargs=(f"import sys; sys.path[:] = {sys.path!r}",)) as executor:
        yield executor


def cluster_of(distributed, workers=2):
    """A local cluster of processes on loopback, quiet and without dashboard."""
    return distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1", silence_logs=logging.CRITICAL,
        dashboard_address=None, scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # its HTTP server: any free port
    )  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    """Two workers; a call whose worker dies is not tried elsewhere."""
    distributed = pytest.importorskip("distributed")
    import dask

    quiet = {
        "distributed.scheduler.allowed-failures": 0,
        "distributed.admin.log-format": "",
        "logging.distributed": "critical",
    }
    with dask.config.set(quiet), cluster_of(distributed) as running:
        yield running


@pytest.fixture(scope="module")
def dask_executor(cluster):
    from distributed import Client

    with Client(cluster) as client:
        yield client.get_executor()


ELSEWHERE = ["forked", "spawned", "interpreters", "dask_executor"]
PROCESSES = ["forked", "spawned", "dask_executor"]


@pytest.fixture(params=ELSEWHERE)
def elsewhere(request):
    """Each executor that does not share the memory of the run."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=PROCESSES)
def in_processes(request):
    """Each executor that performs calls in other processes."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["default", "threads", "serial", *ELSEWHERE])
def executor(request):
    """Each executor there is: what is said of one holds for all."""
    if request.param in ELSEWHERE:
        yield request.getfixturevalue(request.param)
    elif request.param == "threads":
        with ThreadPoolExecutor(2) as pool:
            yield pool
    else:
        yield serial() if request.param == "serial" else None


def together(unit, *more):
    """A group with one more branch: a group of one might be taken for a simple case."""
    return parallel(unit, *more, Stage("beside"))


# -- the same everywhere


def test_calls_are_performed_and_their_results_merged(run, executor):
    """In branch order, whoever performs them."""
    flow = parallel(shipped.square, shipped.cube, *(shipped.length.bind(text="x" * n) for n in range(5)))
    finished = run(flow, {"n": 3}, executor=executor)
    assert dict(finished.store) == {"n": 3, "square": 9, "cube": 27, "seen": [0, 1, 2, 3, 4]}
    assert names(finished) == ["square", "cube"] + ["length"] * 5


def test_groups_in_groups_and_rows_in_branches(run, executor):
    """Evaluation is not where the calls are."""
    inner = parallel(shipped.square, shipped.cube, name="inner")
    flow = parallel(shipped.greet("ann") >> inner >> shipped.greet("bob"), shipped.length.bind(text="abc"))
    finished = run(flow, {"n": 2}, executor=executor)
    assert finished["greetings"] == [
        "hello ann", "goodbye ann from greet[ann]", "hello bob", "goodbye bob from greet[bob]",
    ]  # fmt: skip
    assert (finished["square"], finished["cube"], finished["seen"]) == (4, 8, [3])


def test_every_kind_of_action_travels(run, executor):
    """Bound, with other options, methods of every kind, from a template's stage."""
    flow = parallel(
        shipped.square.bind(n=7).with_options(returns="bound"),
        shipped.square.with_options(name="other", returns="other"),
        shipped.total_of_shop,
        shipped.Shop.brand,
        shipped.Shop.motto,
        shipped.greet("ann")["hello"],
    )
    finished = run(flow, {"n": 3}, executor=executor)
    assert dict(finished.store) == {
        "n": 3, "bound": 49, "other": 9, "total": 15, "brand": "Shop", "motto": "cheap", "greetings": ["hello ann"],
    }  # fmt: skip


def test_the_context_knows_its_place(run, executor):
    """Names, tags, the number of the run and of the step."""
    branch = pipeline(Stage("here", [shipped.names_itself], tags=["b", "a"]), name="flow", use=[around([], "m")])
    finished = run(together(branch), run_id="run-7", executor=executor)
    run_id, flow, of_stage, name, tags, step_id = finished["names_itself"]
    assert (run_id, flow, of_stage, name, tags) == ("run-7", "flow", "here", "names_itself", ["a", "b"])
    assert isinstance(step_id, str)
    assert step_id


def test_what_an_action_does_to_its_store_takes_effect(run, executor):
    """Writes, typed keys, appended items, removals; other branches do not see it."""
    flow = parallel(
        Stage("adds", [shipped.adds_up, shipped.sees]), later_look := shipped.sees.with_options(returns="late")
    )
    finished = run(flow, {"n": 1, "old": 2, "visits": ["before"]}, executor=executor)
    assert finished["adds_up"] == 30
    expected = {"n": 1, "sum": 3, "total": 4, "visits": ["before", "first", 2], "adds_up": 30}
    assert finished["sees"] == expected
    assert finished["late"] == {"n": 1, "old": 2, "visits": ["before"]}
    assert later_look.name == "sees"
    assert "old" not in finished.store


def test_what_an_action_inserts_runs_in_its_branch(run, executor):
    """Returned, by `ctx.insert`, generated; stages, actions, streams."""
    for inserting in (shipped.inserts, shipped.streams):
        finished = run(together(inserting), executor=executor)
        assert names(finished) == [inserting.name, "greet[ann]", "greet[bob]", "beside"]
        assert {record.inserted_by for record in finished.stages[1:3]} == {f"{inserting.name}/{inserting.name}"}
    for inserting in (shipped.inserts_both, shipped.generates):
        finished = run(together(inserting), executor=executor)
        assert finished["square"] == 49
        assert finished["greetings"] == ["hello ann", "goodbye ann from greet[ann]"]
    assert finished["generates"] == "generated"


def test_generators_are_run_to_their_end_where_they_are_called(run, executor):
    """What comes home is the list of what they yielded."""
    assert run(together(shipped.yields_data), executor=executor)["seen"] == [[0, 1, 2]]


def test_messages_reach_the_observers(run, executor):
    """Those of an action that fails, too."""
    events = []
    run(together(shipped.talks), observers=[events.append], executor=executor)
    run(together(shipped.talks_and_fails), observers=[events.append], executor=executor, check=False)
    messages = [event for event in events if type(event).__name__ in {"Message", "Progress"}]
    assert [(type(event).__name__, event.stage, event.action) for event in messages] == [
        ("Message", "talks", "talks"), ("Progress", "talks", "talks"), ("Message", "talks_and_fails", "talks_and_fails"),
    ]  # fmt: skip
    assert (messages[0].kind, messages[0].payload) == ("hello", {"name": "ann"})
    assert (messages[1].done, messages[1].total) == (1, 2)


def test_what_an_action_switches_off_is_off(run, executor):
    """And what it switches on is on."""
    flow = parallel(shipped.switches_off >> shipped.greet("ann"), Stage("beside")) >> shipped.greet("bob")
    finished = run(flow, executor=executor)
    assert statuses(finished)[1:] == [("greet[ann]", "skipped"), ("beside", "completed"), ("greet[bob]", "skipped")]


def test_pending_units_are_known_by_name_and_tags(run, executor):
    """After the current stage: the rest of the branch, and what follows the group."""
    branch = Stage("looks", [shipped.looks_ahead]) >> Stage("next", tags=["t"]) >> parallel(Stage("x"), name="group")
    finished = run(parallel(branch, Stage("beside")) >> Stage("end"), executor=executor)
    assert finished["pending"] == [[("next", ["t"]), ("group", []), ("end", [])]]


def test_waiting_for_a_key_suspends_the_run_or_returns_it(run, executor):
    """What a suspended action wrote is dropped; the other branches have finished."""
    flow = parallel(shipped.waits, shipped.square)
    finished = run(flow, {"n": 2}, executor=executor)
    assert finished.status == "suspended"
    assert "approval" in finished.reason
    assert action_record(finished, "square", "square").status == "completed"
    assert "dropped" not in finished.store
    assert run(flow, {"n": 2, "approval": True}, executor=executor)["waits"] is True
    finished = run(together(shipped.suspends), executor=executor)
    assert (finished.status, finished.reason) == ("suspended", "not yet")


def test_a_bail_keeps_what_its_action_wrote(run, executor):
    """As everywhere."""
    finished = run(together(shipped.enough) >> Stage("never"), executor=executor)
    assert (finished.status, finished.reason, dict(finished.store)) == ("bailed", "enough", {"kept": 1})
    finished = run(together(shipped.bails) >> Stage("never"), executor=executor)
    assert (finished.status, finished.reason) == ("bailed", "at once")


def test_a_failure_raises_the_original_exception(run, executor):
    """With the usual note; nothing is merged."""
    with pytest.raises(ValueError, match="no luck with 3") as caught:
        run(together(shipped.fails), {"n": 3}, executor=executor)
    assert "action 'fails' of stage 'fails'" in text_of(caught.value)
    assert dict(Run.of(caught.value).store) == {"n": 3}


def test_sys_exit_is_the_failure_of_its_branch(run, executor):
    """It does not end the worker, whichever it is."""
    with pytest.raises(SystemExit) as caught:
        run(together(shipped.exits), executor=executor)
    assert caught.value.args == (3,)  # of `code` Dask's way to pickle exceptions (tblib) knows nothing
    assert run(together(shipped.square), {"n": 2}, executor=executor)["square"] == 4


def test_coroutines_stay_with_the_run(run, executor):
    """They are tasks of its loop; async generators, too."""
    finished = run(parallel(shipped.async_pid, shipped.async_pids), executor=executor)
    assert finished["pids"] == [os.getpid(), [os.getpid()]]


def test_middleware_stays_with_the_run(run, executor):
    """Its values travel, it does not; retries repeat the call."""
    log = []
    branch = Stage("s", [shipped.square], use=[around(log, "m"), provide(n=5)], use_actions=[around(log, "a")])
    assert run(together(branch), executor=executor)["square"] == 25
    assert log == ["+m", "+a", "-a", "-m"]


def test_a_retry_performs_the_call_again(run, executor, tmp_path):
    """It is not given the remembered answer to an equal call."""
    branch = Stage("s", [shipped.fails_once], use_actions=[retry(on=ValueError, wait=0)])
    finished = run(together(branch), {"path": str(tmp_path / "calls")}, executor=executor)
    assert finished["fails_once"] == "at last"
    assert (tmp_path / "calls").read_text(encoding="utf-8") == "xx"


def test_equal_calls_are_each_performed(run, executor, tmp_path):
    """Nobody takes actions for pure functions."""
    flow = parallel(*(Stage(f"s{number}", [shipped.notes_call]) for number in range(5)))
    run(flow, {"path": str(tmp_path / "calls")}, executor=executor)
    assert (tmp_path / "calls").read_text(encoding="utf-8") == "xxxxx"


def test_an_action_outside_of_groups_is_called_by_the_run_itself(run, executor):
    """The executor is for groups."""
    finished = run(shipped.pid >> together(shipped.async_pid), executor=executor)
    assert finished["pids"] == [os.getpid()] * 2


def test_a_timeout_gives_the_call_up(run, executor):
    """Nobody waits for it; the branch may recover."""
    if executor is not None and isinstance(executor, type(serial())):
        pytest.skip("a call that is performed at once cannot be given up")
    branch = Stage("slow", [shipped.sleeps_too_long], use=[recover(on=TimeoutError)])
    finished = run(together(branch), executor=executor)
    assert isinstance(finished.stages[0].error, ActionTimeout)
    assert finished.elapsed < 1.4


def test_the_executor_is_left_open(run, executor):
    """Whoever made it ends it."""
    for _ in range(2):
        assert run(together(shipped.square), {"n": 2}, executor=executor)["square"] == 4


# -- elsewhere


def test_calls_are_performed_in_other_processes(run, in_processes, tmp_path):
    """In several of them, at the same time: two calls wait for each other."""
    flow = parallel(*(Stage(name, [shipped.meets]) for name in "ab"))
    finished = run(flow, {"folder": str(tmp_path)}, executor=in_processes)
    assert len(set(finished["pids"])) == 2
    assert os.getpid() not in finished["pids"]


def test_only_the_arguments_travel(run, elsewhere):
    """The store may hold what cannot be pickled, as long as no action asks for it."""
    finished = run(together(shipped.square), {"n": 2, "vault": shipped.Vault()}, executor=elsewhere)
    assert finished["square"] == 4


class Counting(futures.Executor):
    """Counts what is submitted to another executor."""

    def __init__(self, executor):
        self.executor, self.count = executor, 0

    def submit(self, fn, /, *args, **kwargs):
        self.count += 1
        return self.executor.submit(fn, *args, **kwargs)


@pytest.mark.parametrize(
    ("argument", "path"),
    [
        (threading.Lock(), "text:"),
        ([1, shipped.Vault()], "text[1].lock:"),
        ({"a": {"b": (0, threading.Lock())}}, 'text["a"]["b"][1]:'),
        (lambda: None, "text:"),
        ({"stages": [Stage("local", [action(name="local")(lambda: None)])]}, 'text["stages"][0]'),
    ],
    ids=["itself", "attribute", "deep", "lambda", "local stage"],
)
def test_an_argument_that_cannot_be_pickled_is_named_before_anything_is_submitted(run, forked, argument, path):
    """With its path."""
    counting = Counting(forked)
    finished = run(together(shipped.length), {"text": argument}, executor=counting, check=False)
    assert isinstance(finished.error, ShippingError)
    assert "'length'" in str(finished.error)
    assert path in str(finished.error)
    assert counting.count == 0


def test_what_the_context_takes_along_is_named_as_well(run, elsewhere):
    """An action that asks for `ctx` takes all that it could read."""
    finished = run(together(shipped.sees), {"vault": {"x": shipped.Vault()}}, executor=elsewhere, check=False)
    assert isinstance(finished.error, ShippingError)
    assert 'ctx.store["vault"]["x"].lock' in str(finished.error)


def test_an_action_that_cannot_be_referenced_says_why(run, elsewhere):
    """What was defined in a function is not shipped; in threads it runs."""

    @action
    def local(n):
        return n

    finished = run(together(local), {"n": 1}, executor=elsewhere, check=False)
    assert isinstance(finished.error, ShippingError)
    assert "'local'" in str(finished.error)
    assert "inside a function" in str(finished.error)
    assert run(together(local), {"n": 1}, executor=serial())["local"] == 1


@pytest.mark.parametrize(
    ("unit", "path"),
    [
        (shipped.returns_lock, 'result["parts"][1]'),
        (shipped.writes_lock, 'ctx.store["vault"].lock'),
        (shipped.appends_lock, 'ctx.store["vaults"][0].lock'),
        (shipped.inserts_local, "result"),
        (shipped.emits_lock, "ctx.emit[0]"),
    ],
    ids=["result", "write", "append", "insertion", "message"],
)
def test_a_result_that_cannot_be_pickled_is_named(run, elsewhere, unit, path):
    """With its path; the worker goes on."""
    finished = run(together(unit), executor=elsewhere, check=False)
    assert isinstance(finished.error, ShippingError)
    assert f"'{unit.name}'" in str(finished.error)
    assert path in str(finished.error)
    assert run(together(shipped.square), {"n": 2}, executor=elsewhere)["square"] == 4


def test_a_result_that_cannot_be_unpickled_is_a_shipping_error(run, elsewhere):
    """Rather than whatever its unpickling raised."""
    finished = run(together(shipped.returns_treachery), executor=elsewhere, check=False)
    assert isinstance(finished.error, ShippingError)
    assert "'returns_treachery'" in str(finished.error)
    assert "not in this process" in str(finished.error)


def test_an_argument_that_cannot_be_unpickled_is_a_shipping_error(run, elsewhere):
    """What the worker cannot load, it says."""
    finished = run(together(shipped.length), {"text": shipped.Treacherous()}, executor=elsewhere, check=False)
    assert isinstance(finished.error, ShippingError)
    assert "not in this process" in str(finished.error)
    assert "'length'" in text_of(finished.error)


@pytest.mark.parametrize("unit", [shipped.fails_pickily, shipped.fails_holding], ids=["arguments", "attribute"])
def test_an_exception_that_cannot_be_pickled_is_described(run, elsewhere, unit):
    """By its type, its message and its traceback."""
    finished = run(together(unit), executor=elsewhere, check=False)
    if not isinstance(finished.error, shipped.Picky):  # where Dask is, there is a way to pickle it (tblib)
        assert isinstance(finished.error, RunError)
    text = f"{type(finished.error).__name__}: {text_of(finished.error)}"
    assert ("Picky: too picky (3)" if unit is shipped.fails_pickily else "Holder: holding a lock") in text
    assert "shipped.py" in text


@pytest.mark.parametrize("timeout", [None, 30])
def test_an_exception_brings_its_traceback_along(run, elsewhere, timeout):
    """As a note, with its cause, and without the frames of flowdeco, as tracebacks of this process."""
    failing = shipped.fails_with_cause.with_options(timeout=timeout)
    finished = run(together(failing), executor=elsewhere, check=False)
    text = text_of(finished.error)
    assert "KeyError: 'inner'" in text
    assert "executors.py" not in text
    assert "threads.py" not in text
    assert "shipped.py" in text
    assert text.count("in fails_with_cause") >= 1


def test_a_failure_is_not_hidden_by_what_cannot_be_pickled(run, elsewhere):
    """What a failing action wrote is dropped anyhow."""
    with pytest.raises(ValueError, match="the real reason"):
        run(together(shipped.fails_and_leaves_a_lock), executor=elsewhere)


def test_several_failures_are_a_group_in_branch_order(run, forked):
    """Each of them the original."""
    flow = parallel(shipped.fails, shipped.fails_with_cause, name="doomed")
    finished = run(flow, {"n": 3}, executor=forked, check=False)
    if isinstance(finished.error, ExceptionGroup):  # or else the second had not begun
        assert [str(error) for error in finished.error.exceptions] == ["no luck with 3", "outer"]
    else:
        assert str(finished.error) in {"no luck with 3", "outer"}


def test_calls_that_wait_in_the_queue_are_withdrawn(run, tmp_path):
    """After a failure they do not begin."""
    calls = tmp_path / "calls"
    calls.touch()
    with processes("fork", 1) as executor:
        flow = parallel(shipped.fails, *(Stage(f"s{number}", [shipped.notes_call_slowly]) for number in range(30)))
        finished = run(flow, {"n": 1, "path": str(calls)}, executor=executor, check=False)
    assert isinstance(finished.error, ValueError)
    performed = len(calls.read_text(encoding="utf-8"))
    assert performed < 20  # mostly two: those that the pool had handed to its process already
    assert [status for name, status in statuses(finished)].count("completed") == performed


@pytest.mark.parametrize("pool", ["threads", "process"])
def test_nested_groups_finish_on_a_pool_of_one_worker(run, pool):
    """A group holds no worker while it waits for its branches."""
    flow = shipped.length.bind(text="")
    for depth in range(1, 6):
        flow = parallel(shipped.length.bind(text="x" * depth) >> parallel(flow, Stage("s")), Stage("t"))
    with ThreadPoolExecutor(1) if pool == "threads" else processes("fork", 1) as executor:
        assert run(flow, executor=executor)["seen"] == [5, 4, 3, 2, 1, 0]


def test_two_runs_share_an_executor(forked):
    """At the same time."""

    async def main():
        flow = parallel(*(shipped.length.bind(text="x" * n) for n in range(10)))
        return await asyncio.gather(*(flow.arun(executor=forked) for _ in range(3)))

    assert [finished["seen"] for finished in asyncio.run(main())] == [list(range(10))] * 3


def test_messages_come_while_others_are_at_work(run, forked, tmp_path):
    """When their action is over, not when the group is."""
    heard = []

    def observer(event):
        if type(event).__name__ == "Message":
            heard.append(time.monotonic())

    def slow():
        time.sleep(0.5)

    flow = parallel(
        shipped.talks, Stage("s", [shipped.says_pid_and_sleeps.bind(path=str(tmp_path / "x"), seconds=0.5)])
    )
    began = time.monotonic()
    run(flow, observers=[observer], executor=forked)
    assert heard[0] - began < 0.45


# -- serial


def test_serial_performs_each_call_at_once_in_the_calling_thread():
    """For tests and debugging: one after the other, in branch order."""
    log = []

    def note(name):
        return action(name=name)(lambda: log.append((name, threading.current_thread() is threading.main_thread())))

    parallel(note("a") >> note("b"), note("c"), note("d")).run(executor=serial())
    assert log == [("a", True), ("c", True), ("d", True), ("b", True)]


def test_serial_needs_no_pickling_and_copies_nothing(run):
    """Calls share the memory of the run, as in threads."""
    vault = shipped.Vault()
    finished = run(together(action(name="same")(lambda vault: vault)), {"vault": vault}, executor=serial())
    assert finished["same"] is vault


def test_serial_is_an_executor():
    """Of the standard interface; it can be used again and again."""
    executor = serial()
    assert isinstance(executor, futures.Executor)
    assert executor.submit(max, 1, 2).result() == 2
    assert list(executor.map(abs, [-1, -2])) == [1, 2]
    assert isinstance(executor.submit(int, "x").exception(), ValueError)


@pytest.mark.parametrize("ends", ["failure", "bail", "enough", "cancel", "timeout"])
def test_serial_begins_nothing_after_what_ends_a_group(run, ends):
    """Its calls are made one after the other, and wait for each other: those that have not begun can be withdrawn."""
    log, journal = [], MemoryJournal()

    @action
    def ending(ctx):
        log.append("ending")
        if ends == "failure":
            raise ValueError("no")
        if ends == "bail":
            raise Bail("enough")
        if ends == "cancel":
            cancel(journal, ctx.run_id)
        if ends == "timeout":
            time.sleep(0.05)

    flow = parallel(ending >> one(log, "next"), one(log, "b") >> one(log, "c"))
    if ends == "enough":
        flow = parallel(ending, one(log, "b"), enough=1)
    options = {"timeout": 0.02} if ends == "timeout" else {"journal": journal} if ends == "cancel" else {}
    finished = run(flow, executor=serial(), check=False, **options)
    assert log == ["ending"]
    expected = {"bail": "bailed", "enough": "completed", "cancel": "cancelled"}.get(ends, "failed")
    assert finished.status == expected


# -- workers that die


def test_a_process_that_dies_fails_its_branch(run, tmp_path):
    """With an error that says so and names the action; the run ends, and what was complete is in its records."""
    with processes("fork", 1) as executor:
        flow = shipped.square >> together(shipped.cube >> shipped.dies)
        finished = run(flow, {"n": 2}, executor=executor, check=False)
    assert isinstance(finished.error, WorkerDiedError)
    assert "'dies'" in str(finished.error)
    assert "died" in str(finished.error)
    assert finished["square"] == 4
    assert completed(finished) == ["square", "cube", "beside"]
    assert statuses(finished)[2] == ("dies", "failed")


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # of the pool itself, as in test_calls
def test_all_that_was_with_a_broken_pool_fails(run):
    """The pool cannot tell whose process it was."""
    with processes("fork", 2) as executor:
        finished = run(parallel(shipped.dies, *[shipped.pid] * 3), executor=executor, check=False)
    errors = finished.error.exceptions if isinstance(finished.error, ExceptionGroup) else [finished.error]
    assert {type(error) for error in errors} == {WorkerDiedError}


def test_a_broken_pool_stays_broken(run):
    """A retry does not help; the error says the same."""
    with processes("fork", 1) as executor:
        branch = Stage("s", [shipped.dies], use_actions=[retry(on=RunError, wait=0)])
        finished = run(together(branch), executor=executor, check=False)
        assert isinstance(finished.error, WorkerDiedError)
        assert action_record(finished, "s", "dies").attempts == 3
        finished = run(together(shipped.pid), executor=executor, check=False)
        assert isinstance(finished.error, WorkerDiedError)


def test_a_dead_worker_may_be_recovered(run):
    """It is an exception like others, for the middleware of its branch."""
    with processes("fork", 1) as executor:
        branch = Stage("s", [shipped.dies], use=[recover(on=WorkerDiedError)])
        finished = run(together(branch) >> one([], "end", 1), executor=executor)
    assert (finished.status, finished.result) == ("completed", 1)


def test_a_dask_worker_that_dies_fails_its_branch(run, dask_executor):
    """The cluster starts another one, and goes on."""
    flow = shipped.square >> together(shipped.cube >> shipped.dies)
    finished = run(flow, {"n": 2}, executor=dask_executor, check=False)
    assert isinstance(finished.error, WorkerDiedError)
    assert "'dies'" in str(finished.error)
    assert completed(finished) == ["square", "cube", "beside"]
    assert run(together(shipped.square), {"n": 3}, executor=dask_executor)["square"] == 9


def test_a_dask_worker_that_is_killed_fails_its_branch(dask_executor, tmp_path):
    """From outside, in the middle of a call."""
    path = tmp_path / "pid"

    def kill():
        until = time.monotonic() + PATIENCE
        while not (path.exists() and path.read_text(encoding="utf-8")) and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(int(path.read_text(encoding="utf-8")), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    flow = together(shipped.says_pid_and_sleeps)
    finished = flow.run({"path": str(path), "seconds": PATIENCE}, executor=dask_executor, check=False)
    killer.join()
    assert isinstance(finished.error, WorkerDiedError)
    assert finished.elapsed < PATIENCE


def test_dask_tries_elsewhere_when_it_may(tmp_path):
    """As many workers may die as its configuration allows: then the branch does not even notice."""
    distributed = pytest.importorskip("distributed")
    import dask

    quiet = {"distributed.scheduler.allowed-failures": 1, "logging.distributed": "critical"}
    with dask.config.set(quiet), cluster_of(distributed) as running, distributed.Client(running) as client:
        finished = together(shipped.dies_once).run({"path": str(tmp_path / "marker")}, executor=client.get_executor())
    assert finished["dies_once"] == "survived"


# -- executors that end, or are none


@pytest.mark.parametrize("method", ["threads", "fork"])
@pytest.mark.parametrize("nested", [False, True])
def test_an_executor_that_was_shut_down_fails_all_branches_with_one_error(run, method, nested):
    """It is one failure, however many calls it refused."""
    executor = ThreadPoolExecutor(1) if method == "threads" else processes("fork", 1)
    executor.shutdown()
    group = parallel(*[shipped.pid] * 3)
    finished = run(parallel(group, shipped.pid) if nested else group, executor=executor, check=False)
    assert (finished.status, type(finished.error)) == ("failed", ExecutorError)
    assert "shutdown" in str(finished.error)
    assert "does not take the call of action 'pid'" in str(finished.error)
    assert str(finished.error).endswith("It must stay open until the run has ended")


@pytest.mark.parametrize("method", ["threads", "fork"])
def test_calls_that_somebody_else_cancels_end_the_run(method):
    """Like a cancellation from outside: nobody would ever perform them."""
    release = threading.Event()
    with ThreadPoolExecutor(1) if method == "threads" else processes("fork", 1) as executor:
        executor.submit(release.wait, PATIENCE) if method == "threads" else executor.submit(time.sleep, 1)
        timer = threading.Timer(0.1, lambda: executor.shutdown(wait=False, cancel_futures=True))
        timer.start()
        try:
            run = parallel(*[shipped.pid] * 10).run(executor=executor, check=False)
        except BaseException as error:
            run = Run.of(error)
        finally:
            release.set()
        assert run.status in {"cancelled", "failed"}
        timer.join()


@pytest.mark.parametrize("wrong", ["threads", 3, ThreadPoolExecutor, os])
def test_what_is_no_executor_is_refused_at_once(run, wrong):
    """Before anything has run, also where there is no group."""
    log = []
    with pytest.raises(
        TypeError, match=r"executor.*: write ThreadPoolExecutor\(\)$" if isinstance(wrong, type) else "executor"
    ):
        run(one(log, "a"), executor=wrong)
    assert log == []


# -- scripts: what is defined in `__main__`


SCRIPT = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple
import json, os, sys

if {blocked}:
    sys.modules["cloudpickle"] = None  # as if it were not installed

from flowdeco import Context, Stage, action, parallel, stage
from flowdeco.errors import ShippingError

FACTOR = 2
MAIN = int(os.environ.setdefault("PID_OF_MAIN", str(os.getpid())))

class Point(NamedTuple):
    x: int

def helper(n):
    return n * FACTOR

@action
def doubled(n: int) -> int:
    return helper(n)

@action
def where(ctx: Context) -> None:
    ctx.store["elsewhere"] = os.getpid() != MAIN

@action(collect="points")
def point(n: int):
    return Point(n)

@action(collect="points")
def move(point_in: Point):
    return Point(point_in.x + 1)

class Unlucky(Exception):
    pass

@action
def fails():
    raise Unlucky("no")

@stage
def greet(name: str):
    @action(collect="greetings")
    def hello():
        return "hello " + name

@action
def inserts():
    return [greet("ann"), greet("bob")]

if __name__ == "__main__":
    flow = parallel(doubled, where, point, move, inserts, greet("cid"))
    with ProcessPoolExecutor(2, mp_context=get_context({method!r})) as executor:
        try:
            failed = parallel(fails, Stage("beside")).run(executor=executor, check=False)
            if not {blocked}:
                assert isinstance(failed.error, Unlucky), failed.error
            run = flow.run({{"n": 4, "point_in": Point(1)}}, executor=executor)
        except (ShippingError, ExceptionGroup) as error:
            errors = error.exceptions if isinstance(error, ExceptionGroup) else [error]
            print(json.dumps([str(error) for error in errors]))
        else:
            assert [type(point) for point in run["points"]] == [Point, Point]
            print(json.dumps([run["doubled"], run["elsewhere"], run["points"], run["greetings"]]))
"""


def output_of_script(tmp_path, **values):
    """What the script prints, parsed; there must be no warning."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(**values), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:.*fork:DeprecationWarning", str(script)],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PATHS},
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_actions_of_a_script_travel_with_cloudpickle(tmp_path, method):
    """Functions with what they use, templates, values of classes that the script defines."""
    pytest.importorskip("cloudpickle")
    found = output_of_script(tmp_path, blocked=False, method=method)
    assert found == [8, True, [[4], [2]], ["hello ann", "hello bob", "hello cid"]]


def test_without_cloudpickle_the_error_names_the_extra(tmp_path):
    """And what can be done instead."""
    for text in output_of_script(tmp_path, blocked=True, method="fork"):
        assert "__main__" in text
        assert "flowdeco[cloudpickle]" in text


def test_cloudpickle_is_not_imported_for_what_can_be_imported(forked):
    """Extras are loaded where they are used."""
    code = """
        import sys, shipped
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        from flowdeco import parallel
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as executor:
            assert parallel(shipped.square, shipped.cube).run({"n": 2}, executor=executor)["cube"] == 8
        print(sorted({"cloudpickle", "distributed", "dask"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=True, text=True, timeout=50,
        env={**os.environ, "PYTHONPATH": PATHS},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_a_run_without_an_executor_loads_none():
    """Groups in threads load no multiprocessing."""
    code = """
        import sys
        from flowdeco import action, parallel
        parallel(action(name="a")(lambda: 1), action(name="b")(lambda: 2)).run()
        print(sorted({"multiprocessing", "concurrent.futures.process", "cloudpickle"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=True, text=True, timeout=50,
        env={**os.environ, "PYTHONPATH": PATHS},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_errors_of_shipping_can_be_pickled():
    """They come from other processes."""
    for error in (ShippingError("a"), WorkerDiedError("b")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))


# -- executors that lose a call, or take none, in ways of their own


class Losing(futures.Executor):
    """A cluster that fails with an exception of its own, and lives on."""

    def __init__(self, error):
        self.error = error

    def submit(self, fn, /, *args, **kwargs):
        future = futures.Future()
        future.set_exception(self.error)
        return future


class Refusing(Losing):
    def submit(self, fn, /, *args, **kwargs):
        raise self.error


@pytest.mark.parametrize("name", ["KilledWorker", "WorkerCrashedError", "OutOfMemoryError", "ExecutorlibSocketError"])
def test_the_deaths_of_other_clusters_are_worker_died_errors(run, name):
    """Of Dask, Ray and executorlib, known by name: none of them is imported."""
    executor = Losing(type(name, (Exception,), {})("it is gone"))
    finished = run(together(shipped.pid), executor=executor, check=False)
    assert type(finished.error) is WorkerDiedError
    assert "'pid'" in str(finished.error)
    assert finished.error.__cause__ is executor.error


def test_an_exception_of_the_executor_is_not_taken_for_one_of_the_action(run):
    """A call returns what it raises: anything else is of the executor, and no retry on its type calls again."""
    executor = Losing(ModuleNotFoundError("No module named 'flowdeco'"))
    branch = Stage("s", [shipped.pid], use_actions=[retry(on=ImportError, wait=0)])
    finished = run(together(branch), executor=executor, check=False)
    assert type(finished.error) is ExecutorError
    assert "the Losing of the run could not perform the call of action 'pid'" in str(finished.error)
    assert "ModuleNotFoundError: No module named 'flowdeco'" in str(finished.error)
    assert action_record(finished, "s", "pid").attempts == 1


def test_an_executor_that_refuses_a_call_in_its_own_words(run):
    """Whatever it raises: nobody can have the call performed."""
    for error in (OSError("no route to the cluster"), RuntimeError("no worker"), ValueError("shut that door")):
        finished = run(together(shipped.pid), executor=Refusing(error), check=False)
        assert type(finished.error) is ExecutorError
        assert "does not take the call of action 'pid': " in str(finished.error)
        assert str(finished.error).endswith(str(error))
