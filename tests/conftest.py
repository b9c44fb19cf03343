"""One suite over both drivers, a time limit for every test, and an end for the process of the tests."""

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import settings
from support import examples

with suppress(ImportError):  # on import, `distributed` has it change how all exceptions of the process are pickled
    import tblib.pickling_support

    tblib.pickling_support.install = lambda *exceptions, **options: None

settings.register_profile("flowdeco", deadline=None, max_examples=examples(60))  # machines are noisy: no test is timed
settings.load_profile("flowdeco")

# A shell ignores Ctrl-C for what it runs in the background, and children inherit that: here, it is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


def run_sync(flow, inputs=None, **options):
    """Evaluate in the calling thread."""
    return flow.run(inputs, **options)


def run_async(flow, inputs=None, **options):
    """Evaluate in an event loop of its own."""
    return asyncio.run(flow.arun(inputs, **options))


@pytest.fixture(params=[run_sync, run_async], ids=["sync", "async"])
def run(request):
    """Evaluate a unit, once by `run` and once by `arun`: what holds for the one holds for the other (L8)."""
    return request.param


@pytest.fixture(autouse=True)
def no_test_hangs():
    """A test that takes a minute has failed: a deadlock must not hang the suite."""

    def expired(signum, frame):
        raise TimeoutError("the test took more than 60 seconds")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, 60)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


# -- what a test leaves behind


def at_work():
    """Threads that this process would wait for at its end, and where they are; idle ones of pools end by themselves."""
    frames = sys._current_frames()
    found = {}
    for thread in threading.enumerate():
        frame = frames.get(thread.ident)
        if frame is None or thread.daemon or thread is threading.main_thread():
            continue
        if frame.f_code.co_name != "_worker" and type(thread).__name__ != "_ExecutorManagerThread":
            found[thread] = frame
    return found


stuck = []  # the threads that have failed a test


@pytest.fixture(autouse=True)
def no_thread_is_left_at_work():
    """A process ends with its last thread: one that waits for ever would keep the process of all tests."""
    before = {*at_work(), *stuck}
    yield
    patience = time.monotonic() + 10
    while (left := {thread: frame for thread, frame in at_work().items() if thread not in before}) and (
        time.monotonic() < patience
    ):
        time.sleep(0.01)
    if left:
        stuck.extend(left)
        stacks = ["".join([f"{thread}\n", *traceback.format_stack(frame)]) for thread, frame in left.items()]
        pytest.fail("the test has ended, but not these threads of it:\n" + "\n".join(stacks), pytrace=False)


# -- what hangs between two tests, or at the end


def pytest_configure(config):
    """Keep the real standard error, which tests are captured from; and the pipes of a worker to itself."""
    config.stderr = os.dup(2)
    worker = next(
        (each for each in config.pluginmanager.get_plugins() if type(each).__name__ == "WorkerInteractor"), None
    )
    if worker is not None and hasattr(os, "register_at_fork"):
        io = worker.channel.gateway._io
        os.register_at_fork(after_in_child=partial(let_go, [io.infile.fileno(), io.outfile.fileno()]))


def let_go(pipes):
    """Close a worker's pipes in a child: if the worker crashes, the session waits until nothing has them open any more."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for pipe in pipes:
        os.dup2(nothing, pipe, inheritable=False)  # and not closed: the file objects still have the number
    os.close(nothing)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Without a test for this long, all threads are shown and the process ends: the limits of a test are over by then."""
    faulthandler.cancel_dump_traceback_later()
    result = yield
    faulthandler.dump_traceback_later(300, exit=True, file=item.config.stderr)
    return result


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """Do not wait for threads that have failed their tests: everything has been reported."""
    if hasattr(config, "workerinput"):  # a worker waits for the others now
        faulthandler.cancel_dump_traceback_later()
    if any(thread.is_alive() for thread in stuck):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(pytest.ExitCode.TESTS_FAILED)
