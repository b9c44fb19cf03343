"""Plain functions as staged workflows, which can return more stages while they run."""

from flowdeco.context import Context
from flowdeco.declare import StageTemplate, action, stage
from flowdeco.definitions import Action, Parallel, Pipeline, Stage, parallel, pipeline, stream
from flowdeco.errors import Bail, Suspend
from flowdeco.requests import Sleep
from flowdeco.runs import Run, Status
from flowdeco.store import Key, Store

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
