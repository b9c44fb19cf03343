"""The events that observers receive: frozen values, in the order in which things happen.

Stages and actions are given by name. In a parallel group, events of different branches interleave.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias

__all__ = [
    "ActionFinished",
    "ActionStarted",
    "BranchesHeld",
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
    """A run begins; `stages` is the number in its pipeline, not counting those inserted later."""

    run_id: str
    pipeline: str
    stages: int = 0


class RunFinished(NamedTuple):
    """A run has ended, whatever its status; `elapsed` is in seconds."""

    run_id: str
    pipeline: str
    status: str
    error: BaseException | None
    elapsed: float


class StageStarted(NamedTuple):
    """A stage begins; `branch` is its place in parallel groups: `"group[0]"`, `"outer[1]/inner[0]"`."""

    run_id: str
    stage: str
    inserted_by: str | None
    branch: str | None = None


class StageFinished(NamedTuple):
    """A stage has ended: completed, failed, skipped…; `elapsed` is in seconds.

    A stage that a selector skips never began, nor did a `restored` one: it had ended before the run was resumed.
    `recovered` means that its own middleware recovered its failure; that of an enclosing pipeline may still do so.
    `failures` are the errors of the attempts before the last one.
    """

    run_id: str
    stage: str
    status: str
    error: BaseException | None
    elapsed: float
    attempts: int = 1
    recovered: bool = False
    restored: bool = False
    failures: tuple[BaseException, ...] = ()


class ActionStarted(NamedTuple):
    """An action begins."""

    run_id: str
    stage: str
    action: str
    inserted_by: str | None


class ActionFinished(NamedTuple):
    """An action has ended: completed, failed, skipped…; `elapsed` is in seconds. A `cached` one was not called.

    `failures` are the errors of the attempts before the last one.
    """

    run_id: str
    stage: str
    action: str
    status: str
    error: BaseException | None
    elapsed: float
    attempts: int = 1
    recovered: bool = False
    cached: bool = False
    failures: tuple[BaseException, ...] = ()


class UnitsInserted(NamedTuple):
    """An action, or a middleware, inserted units, given by name.

    `stage` and `action` name the step, or the target of the middleware: `action` is None around a stage, both are None
    around a pipeline. `stages` is the number of stages in the units, without those of streams, which are not yet known.
    """

    run_id: str
    stage: str | None
    action: str | None
    units: tuple[str, ...]
    stages: int = 0


class BranchesHeld(NamedTuple):
    """A streamed group pulls no more branches for now: too many come after `first`, which has not ended.

    `held` of them have ended and wait to be merged; 0 means that the group continues.
    """

    run_id: str
    group: str
    held: int
    first: int


class Message(NamedTuple):
    """A message from an action to the observers, sent by `ctx.emit`."""

    run_id: str
    stage: str
    action: str
    kind: str
    payload: dict[str, Any]


class Progress(NamedTuple):
    """The progress of an action, reported by `ctx.progress`."""

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
    | BranchesHeld
    | Message
    | Progress
)


class Watcher(Protocol):
    """An observer that is closed when the run has ended, whatever its status."""

    def __call__(self, event: Event, /) -> object:
        """Take an event."""

    def close(self) -> None:
        """Restore everything that the observer has changed."""
