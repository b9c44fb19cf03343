"""The drivers: they call, await, sleep and wait, and decide nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowdeco.drivers.sync import resume, run

if TYPE_CHECKING:
    from flowdeco.engine.runs import Run
    from flowdeco.model.definitions import Pipeline
    from flowdeco.model.runnable import Options as RunOptions

__all__ = ["aresume", "arun", "resume", "run"]


async def arun(flow: Pipeline, inputs: Mapping[str, Any] | None, options: RunOptions) -> Run:
    """Evaluate a pipeline in the running event loop."""
    __tracebackhide__ = True
    from flowdeco.drivers import async_  # asyncio is loaded only for async runs

    return await async_.run(flow, inputs, options)


async def aresume(
    flow: Pipeline, what: Run | str, inputs: Mapping[str, Any] | None, options: RunOptions, *how: Any
) -> Run:
    """Continue the evaluation of a pipeline in the running event loop."""
    __tracebackhide__ = True
    from flowdeco.drivers import async_

    return await async_.resume(flow, what, inputs, options, *how)
