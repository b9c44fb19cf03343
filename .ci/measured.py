"""A plugin of pytest that measures coverage from its start, so that the tests need not be run a second time for it."""

import os
import threading

import coverage

if "PYTEST_XDIST_WORKER" in os.environ:  # the processes that tests start are not measured
    del os.environ["PYTEST_ADDOPTS"]
_measured = coverage.Coverage(data_suffix=True)  # each worker writes a file of its own
_measured.start()
_trace = threading.gettrace()


def _trace_thread(frame, event, arg):
    """Measure a thread. Where two begin at once, coverage may fail in one, which would end before it has begun."""
    try:
        return _trace(frame, event, arg)
    except Exception:
        return None


if _trace is not None:
    threading.settrace(_trace_thread)


def pytest_unconfigure():
    """Write down what was measured, for `coverage combine`."""
    _measured.stop()
    _measured.save()
