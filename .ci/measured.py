"""A plugin of pytest that measures coverage from its start, so that the tests need not be run a second time for it."""

import os

import coverage

del os.environ["PYTEST_ADDOPTS"]  # not in the processes that tests start
_measured = coverage.Coverage()
_measured.start()


def pytest_unconfigure():
    """Write down what was measured, for `coverage report`."""
    _measured.stop()
    _measured.save()
