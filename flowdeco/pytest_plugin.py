"""The pytest plugin: the fixture `flow_runner`. Its imports are made by the first test that asks for it."""

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
