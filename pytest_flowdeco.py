"""The pytest plugin of flowdeco: the fixture `flow_runner`.

A module of its own beside the package: pytest imports its plugins whenever it starts, and what is imported then is
imported before coverage is measured. So flowdeco is imported by the first test that asks for the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flowdeco.testing import FlowRunner

__all__ = ["flow_runner"]


@pytest.fixture
def flow_runner() -> FlowRunner:
    """Runs flows one call after the other, by a fake clock (`flow_runner(flow, inputs)`), and records the calls."""
    from flowdeco.testing import FlowRunner

    return FlowRunner()
