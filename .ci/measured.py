"""A plugin of pytest that measures coverage from its start, so that the tests need not be run a second time for it."""

import os

import coverage

if "PYTEST_XDIST_WORKER" in os.environ:  # the processes that tests start are not measured
    del os.environ["PYTEST_ADDOPTS"]
_measured = coverage.Coverage(data_suffix=True)  # each worker writes a file of its own
_measured.start()


def pytest_unconfigure():
    """Write down what was measured, for `coverage combine`."""
    _measured.stop()
    _measured.save()
