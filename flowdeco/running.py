"""The one door upwards: through it, definitions and runs reach the drivers and the views.

They import this module late, and it imports drivers and views when they are used. Nothing else points upwards.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowdeco.engine.runs import Run
from flowdeco.model.definitions import Unit, as_pipeline
from flowdeco.model.runnable import Options as RunOptions
from flowdeco.model.wiring import validate

if TYPE_CHECKING:
    from flowdeco.durable.outcomes import CachedOutcomes as CachedOutcomes  # noqa: PLC0414  (so that `middleware` can import it from here)
    from flowdeco.durable.outcomes import Inputs as Inputs  # noqa: PLC0414
    from flowdeco.engine.journal import Journal as Journal  # noqa: PLC0414  (so that definitions can import it from here)
    from flowdeco.show import Plan as Plan  # noqa: PLC0414  (so that definitions and runs can import it from here)
    from flowdeco.show import Ran as Ran  # noqa: PLC0414

__all__ = [
    "Run",
    "aresume",
    "arun",
    "html_of",
    "outcomes",
    "plan",
    "ran",
    "resume",
    "run",
    "validate",
    "watched",
    "write_page",
]


def run(unit: Unit, inputs: Mapping[str, Any] | None, options: RunOptions) -> Run:
    """Evaluate a pipeline."""
    __tracebackhide__ = True
    from flowdeco import drivers

    options = watched(options)
    return drivers.perform(partial(drivers.begin, as_pipeline(unit), inputs, options), options)


def arun(unit: Unit, inputs: Mapping[str, Any] | None, options: RunOptions) -> Coroutine[Any, Any, Run]:
    """Evaluate a pipeline in the running event loop."""
    __tracebackhide__ = True
    from flowdeco.drivers import async_, begin

    options = watched(options)
    start = partial(begin, as_pipeline(unit), inputs, options)
    return async_.perform(start, options, in_thread=options.journal is not None)


def resume(unit: Unit, what: Run | str, inputs: Mapping[str, Any] | None, options: RunOptions, *how: Any) -> Run:
    """Resume a run of a pipeline."""
    __tracebackhide__ = True
    from flowdeco import drivers

    options = watched(options)
    return drivers.perform(partial(drivers.resume, as_pipeline(unit), what, inputs, options, *how), options)


def aresume(
    unit: Unit, what: Run | str, inputs: Mapping[str, Any] | None, options: RunOptions, *how: Any
) -> Coroutine[Any, Any, Run]:
    """Resume a run of a pipeline in the running event loop."""
    __tracebackhide__ = True
    from flowdeco.drivers import async_, resume

    options = watched(options)
    return async_.perform(partial(resume, as_pipeline(unit), what, inputs, options, *how), options, in_thread=True)


def watched(options: RunOptions) -> RunOptions:
    """Return the options with a factory of the observer that shows the progress, if it is to be shown."""
    if options.progress is None:
        return options
    from flowdeco.show.progress import watcher

    return options._replace(watcher=partial(watcher, options.progress))


def plan(unit: Unit) -> Plan:
    """Return the plan of a unit."""
    from flowdeco import show

    return show.plan(unit)


def ran(run: Run) -> Ran:
    """Return the view of a run."""
    from flowdeco import show

    return show.ran(run)


def outcomes(folder: str) -> CachedOutcomes:
    """Return the outcomes that are cached in a folder."""
    from flowdeco.durable.outcomes import CachedOutcomes  # sqlite3 is loaded only if it is used

    return CachedOutcomes(folder)


def html_of(thing: Any) -> str:
    """Return the HTML of a definition or a run for a notebook."""
    from flowdeco import show

    return show.html_of(thing)


def write_page(run: Run, path: str | os.PathLike[str], values: bool) -> Path:
    """Write the page of a run, and return its path."""
    from flowdeco import show

    return show.write_page(run, path, values)
