"""The executors of docs/scale.md, each with the same programs: the results are those of `serial()`.

One that is not installed is skipped. Continuous integration has threads, processes and Dask; the others are tried by
`pip install loky mpi4py mpich executorlib ray`, and `InterpreterPoolExecutor` by Python 3.14.
"""

import os
import signal
import subprocess
import sys
import time

import pools
import pytest
import shipped
import tried
from support import text_of

from flowdeco import parallel, pipeline
from flowdeco.durable import SqliteJournal
from flowdeco.errors import ActionTimeout, WorkerDiedError
from flowdeco.events import Message
from flowdeco.executors import serial
from flowdeco.middleware import retry

PATIENCE = 30  # seconds after which a test gives up waiting for what must happen
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    # Ray leaves files and sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO:FutureWarning"),
]
MORTAL = set(pools.NEEDS) - {"threads", "interpreters", "mpi4py"}


def _needed(kind):
    why = pools.missing(kind)
    if why:
        pytest.skip(why)


@pytest.fixture(scope="module", params=pools.NEEDS)
def executor(request):
    """Each that is installed."""
    _needed(request.param)
    with pools.opened(request.param) as opened:
        yield opened


def told(finished):
    """What a run says of itself, without times."""
    return (
        dict(finished.store),
        finished.result,
        [(record.name, record.status, record.inserted_by) for record in finished.stages],
    )


def test_a_group_of_template_stages_gives_what_serial_gives(run, executor):
    """Local results, writes by `ctx`, collected values, insertions and messages, in branch order."""
    heard = []
    expected = tried.shops.run(tried.SIZES, executor=serial())
    finished = run(tried.shops, tried.SIZES, executor=executor, observers=[heard.append])
    assert told(finished) == told(expected)
    assert finished["total"] == 3 * (6 + 0 + 21 + 1)
    assert sorted(event.payload["shop"] for event in heard if isinstance(event, Message)) == sorted(
        tried.SIZES["sizes"]
    )


def test_nested_groups_end_on_two_workers(run, executor):
    """A branch that waits for its own branches holds no worker."""
    flow = tried.tree("", 3)
    assert told(run(flow, executor=executor)) == told(flow.run(executor=serial()))


def test_coroutines_beside_functions_that_travel(run, executor):
    flow = parallel(*(tried.mixed(name) for name in "abc"))
    assert told(run(flow, executor=executor)) == told(flow.run(executor=serial()))


def test_an_exception_is_the_one_that_was_raised(run, executor):
    """With its arguments and attributes, alone or in a group, and the notes of where it happened."""
    finished = run(parallel(tried.shop("kiosk", 3), tried.refuses("market")), {"n": 1}, executor=executor, check=False)
    assert type(finished.error) is tried.Refused
    assert (str(finished.error), finished.error.args, finished.error.code) == ("market refused", ("market", 7), 7)
    assert "in action 'refuse' of stage 'refuses[market]'" in text_of(finished.error)
    assert "sums" not in finished.store


def test_a_retry_calls_again(run, executor, tmp_path):
    flow = parallel(*(tried.refuses_once(name, str(tmp_path)) for name in "ab"))
    flow = pipeline(flow, use_actions=[retry(on=tried.Refused, wait=0)])
    assert run(flow, executor=executor)["served"] == ["a", "b"]


def test_a_timeout_frees_the_worker(run, executor):
    """The call is abandoned, and the next one is performed."""
    finished = run(parallel(tried.dawdle, tried.dawdle), executor=executor, check=False)
    errors = finished.error.exceptions if isinstance(finished.error, ExceptionGroup) else [finished.error]
    assert {type(error) for error in errors} == {ActionTimeout}
    assert run(tried.shops, tried.SIZES, executor=executor)["total"] == 84


def test_after_a_failure_no_more_than_was_sent_is_performed(run, executor, tmp_path):
    """With `limit`, branches that had not begun do not begin."""
    calls = tmp_path / "calls"
    calls.touch()
    flow = parallel(tried.refuses("market"), *[tried.counts_calls] * 40, limit=2)
    finished = run(flow, {"path": str(calls)}, executor=executor, check=False)
    assert type(finished.error) is tried.Refused
    time.sleep(0.2)
    assert len(calls.read_text(encoding="utf-8")) <= 2


def test_a_durable_run_fails_and_continues_on_another_executor(run, executor, tmp_path):
    """Completed branches are not called again."""
    calls = tmp_path / "calls"
    flow = parallel(tried.counts_calls, tried.refuses_once("market", str(tmp_path)), limit=1)
    journal = SqliteJournal(tmp_path / "runs.db")
    failed = run(flow, {"path": str(calls)}, executor=executor, journal=journal, run_id="r", check=False)
    assert type(failed.error) is tried.Refused
    finished = flow.resume("r", journal=journal, executor=serial())
    assert finished["served"] == ["served", "market"]
    assert calls.read_text(encoding="utf-8") == "x"


def test_a_worker_that_dies_fails_its_branch(run, executor, request):
    """With an error that names the action; the run ends, and nothing waits. The last test: it leaves pools broken."""
    if request.node.callspec.params["executor"] not in MORTAL:
        pytest.skip("a worker is a thread of this process, or takes the whole job with it")
    flow = shipped.square >> parallel(shipped.cube >> shipped.dies, shipped.dies)
    finished = run(flow, {"n": 2}, executor=executor, check=False)
    errors = finished.error.exceptions if isinstance(finished.error, ExceptionGroup) else [finished.error]
    assert {type(error) for error in errors} == {WorkerDiedError}
    assert finished["square"] == 4


@pytest.mark.parametrize("kind", [kind for kind in pools.NEEDS if kind != "mpi4py"])  # there, it ends the whole job
def test_ctrl_c_unwinds_the_run(kind, tmp_path):
    """Pressed in a terminal, where the workers receive it too: calls under way end, no more begin."""
    _needed(kind)
    marker = tmp_path / "begun"
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", tried.__file__, kind, str(marker)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": pools.PATHS},
    )
    with process:
        try:
            while not marker.exists() and process.poll() is None and time.monotonic() < begun + PATIENCE:
                time.sleep(0.02)
            time.sleep(0.1)
            os.killpg(process.pid, signal.SIGINT)
            output, errors = process.communicate(timeout=PATIENCE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert output.split() == ["unwound", "cancelled"], errors
