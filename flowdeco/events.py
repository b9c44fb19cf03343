"""What observers receive: frozen events, in the order in which things happen.

Stages and actions are given by name. In a parallel group, events of different branches interleave.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias

__all__ = [
    "ActionFinished",
    "ActionStarted",
    "Event",
    "Message",
    "Progress",
    "RunFinished",
    "RunStarted",
    "StageFinished",
    "StageStarted",
    "UnitsInserted",
]


class RunStarted(NamedTuple):
    """A run begins; `stages` is how many are in its pipeline, those that are inserted later not counted."""

    run_id: str
    pipeline: str
    stages: int = 0


class RunFinished(NamedTuple):
    """A run is over, whatever became of it; `elapsed` is in seconds."""

    run_id: str
    pipeline: str
    status: str
    error: BaseException | None
    elapsed: float


class StageStarted(NamedTuple):
    """A stage begins; `branch` says where in parallel groups: `"group[0]"`, `"outer[1]/inner[0]"`."""

    run_id: str
    stage: str
    inserted_by: str | None
    branch: str | None = None


class StageFinished(NamedTuple):
    """A stage is over: completed, failed, skipped…; `elapsed` is in seconds.

    What a selector skips never began, nor did what is `restored`: it was over before the run was resumed.
    """

    run_id: str
    stage: str
    status: str
    error: BaseException | None
    elapsed: float
    attempts: int = 1
    recovered: bool = False
    restored: bool = False


class ActionStarted(NamedTuple):
    """An action begins."""

    run_id: str
    stage: str
    action: str
    inserted_by: str | None


class ActionFinished(NamedTuple):
    """An action is over: completed, failed, skipped…; `elapsed` is in seconds."""

    run_id: str
    stage: str
    action: str
    status: str
    error: BaseException | None
    elapsed: float
    attempts: int = 1
    recovered: bool = False


class UnitsInserted(NamedTuple):
    """An action, or a middleware, inserted units, given by name.

    `stage` and `action` say around what: None for the middleware of a stage or of a pipeline. `stages` is how many
    stages are in the units; what a stream holds is not known before it is pulled, and does not count.
    """

    run_id: str
    stage: str | None
    action: str | None
    units: tuple[str, ...]
    stages: int = 0


class Message(NamedTuple):
    """What an action told the observers by `ctx.emit`."""

    run_id: str
    stage: str
    action: str
    kind: str
    payload: dict[str, Any]


class Progress(NamedTuple):
    """How far an action is, by `ctx.progress`."""

    run_id: str
    stage: str
    action: str
    done: float
    total: float | None


Event: TypeAlias = (
    RunStarted
    | RunFinished
    | StageStarted
    | StageFinished
    | ActionStarted
    | ActionFinished
    | UnitsInserted
    | Message
    | Progress
)


class Watcher(Protocol):
    """An observer that is closed when the run is over, whatever became of it."""

    def __call__(self, event: Event, /) -> object:
        """Take an event."""

    def close(self) -> None:
        """Leave everything as it was found."""
