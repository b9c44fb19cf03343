"""Plain functions as staged workflows, which can return more stages while they run."""

from typing import TYPE_CHECKING

from flowdeco.model.lazy import lazily

if TYPE_CHECKING:
    from flowdeco.engine.context import Context
    from flowdeco.engine.requests import Sleep
    from flowdeco.engine.runs import Run, Status
    from flowdeco.errors import Bail, Suspend
    from flowdeco.model.declare import StageTemplate, action, stage
    from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, parallel, pipeline, stream
    from flowdeco.model.keys import Key
    from flowdeco.model.store import Store
else:
    # Not before they are used. The command line, and the plugin that every pytest session loads, start without them:
    # they take 115 ms, 100 of which are wrapt 2.5, which imports asyncio. A module that defines actions loads no engine.
    __getattr__, __dir__ = lazily(
        __name__,
        "errors",
        "model.keys",
        "model.store",
        "model.definitions",
        "model.declare",
        "engine.requests",
        "engine.runs",
        "engine.context",
        also=("durable", "events", "executors", "middleware", "testing"),
    )

__version__ = "0.1.0"

__all__ = [
    "Action",
    "Bail",
    "Context",
    "Key",
    "Parallel",
    "Pipeline",
    "Run",
    "Sleep",
    "Stage",
    "StageTemplate",
    "Status",
    "Store",
    "Suspend",
    "__version__",
    "action",
    "parallel",
    "pipeline",
    "stage",
    "stream",
]
