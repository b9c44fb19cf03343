"""One suite over both drivers, and a time limit for every test."""

import asyncio
import signal
from contextlib import suppress

import pytest
from hypothesis import settings

with suppress(ImportError):  # on import, `distributed` has it change how all exceptions of the process are pickled
    import tblib.pickling_support

    tblib.pickling_support.install = lambda *exceptions, **options: None

settings.register_profile("flowdeco", deadline=None)  # machines are noisy: no test is timed
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
