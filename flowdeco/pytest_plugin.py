"""The pytest plugin: the fixture `flow_runner`, and what ran in a failed test. Its imports are made when they are needed."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from flowdeco.engine.runs import Run
    from flowdeco.testing import FlowRunner

__all__ = ["flow_runner", "pytest_runtest_makereport"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what ran to the report of a failed test or fixture: runs of its `flow_runner`, the one behind its exception."""
    report = yield
    if report.failed and "flowdeco.engine.runs" in sys.modules:
        runs = _runs(item, call)
        if runs:
            report.sections.append(("flowdeco: what ran", "\n\n".join(str(run.ran()) for run in runs)))
    return report


def _runs(item: pytest.Item, call: pytest.CallInfo[Any]) -> list[Run]:
    from flowdeco.engine.runs import Run

    runner = item.stash.get(_RUNNER, None)
    runs = [] if runner is None else list(runner.runs)
    try:
        raised = Run.of(call.excinfo.value) if call.excinfo is not None else None
    except LookupError:
        raised = None
    if raised is not None and raised not in runs:
        runs.append(raised)
    return runs


_RUNNER: Final = pytest.StashKey["FlowRunner"]()  # of a test; a fixture may have it as well


@pytest.fixture
def flow_runner(request: pytest.FixtureRequest) -> FlowRunner:
    """Runs flows one call after the other, by a fake clock (`flow_runner(flow, inputs)`), and records the calls."""
    from flowdeco.testing import FlowRunner

    request.node.stash[_RUNNER] = runner = FlowRunner()
    return runner
