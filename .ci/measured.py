"""A plugin of pytest that measures coverage from its start, so that the tests need not be run a second time for it."""

import os
import sys
import threading

import coverage

if "PYTEST_XDIST_WORKER" in os.environ:  # the processes that tests start are not measured
    del os.environ["PYTEST_ADDOPTS"]
_measured = coverage.Coverage(data_suffix=True)  # each worker writes a file of its own
_measured.start()
_trace = threading.gettrace()


_bootstrap = threading.Thread._bootstrap


def _trace_thread(frame, event, arg):
    """Measure a thread, or try again at its next call."""
    try:
        return _trace(frame, event, arg)
    except Exception:
        return None


def _begin(thread):
    """Begin a thread, measured if that can be: `threading.settrace` would end it, unseen, if it cannot.

    Python installs one trace function at a time, and raises in a thread that begins while another one does.
    Whoever waited for the thread would hang.
    """
    try:
        sys.settrace(_trace_thread)
    except RuntimeError:
        pass
    _bootstrap(thread)


if _trace is not None:
    threading.settrace(None)
    threading.Thread._bootstrap = _begin


def pytest_unconfigure():
    """Write down what was measured, for `coverage combine`."""
    _measured.stop()
    _measured.save()
