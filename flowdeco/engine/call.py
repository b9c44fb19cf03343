"""The call that a middleware receives: its view of its target, and of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from flowdeco.errors import ContextEndedError, MiddlewareError
from flowdeco.model.definitions import Action, Pipeline, Stage, Stream, Unit, insertable
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import Step, step_of
from flowdeco.model.store import Store, Watched

if TYPE_CHECKING:
    from flowdeco.engine.run_logger import RunLogger

__all__ = ["Call"]

Level: TypeAlias = Literal["pipeline", "stage", "action"]


class Call:
    """A middleware's view of its target, and of the run.

    `level` is "pipeline" (also for the run's own `use`), "stage" or "action"; `pipeline`, `stage` and `action` are None
    where they do not apply. `store` is that of the enclosing scope: a middleware's writes to it stay. `outcome` is
    the action's outcome, and can be replaced (`given` is the same, but `UNSET` as long as there is none); `attempt` counts
    from 1; `inserted` are the units that its middleware has inserted.
    """

    cached = False  # the outcome was taken from a cache
    undoes = False  # the target is one step
    localized: Step | None = None  # the step of an action that reads results that are local to its stage

    # With slots, a layer costs a tenth less.
    __slots__ = (
        "__dict__", "action", "attempt", "given", "has_ended", "inserted", "pipeline", "run_id", "stage", "store",
    )  # fmt: skip

    attempt: int
    given: Any
    has_ended: bool  # set when its layers have been left; a default costs more
    inserted: tuple[Unit | Stream, ...]
    run_id: str
    store: Store
    pipeline: Pipeline
    stage: Stage | None
    action: Action[..., Any] | None
    values: Mapping[str, Any]  # that middleware has yielded so far

    @property
    def level(self) -> Level:
        """The kind of the target: "pipeline", "stage" or "action"."""
        if self.action is not None:
            return "action"
        return "pipeline" if self.stage is None else "stage"

    @property
    def name(self) -> str:
        """The name of the target."""
        innermost = self.action if self.action is not None else self.stage
        return self.pipeline.name if innermost is None else innermost.name

    @property
    def outcome(self) -> Any:
        """The action's outcome, None as long as there is none; a value set here counts as returned."""
        return None if self.given is UNSET else self.given

    @outcome.setter
    def outcome(self, value: Any) -> None:
        self._check_open("setting call.outcome")
        if self.action is None and value is not None:
            raise MiddlewareError(
                f"call.outcome is the result of an action, and the {self.level} {self.name!r} has none: put the middleware "
                f"around actions, by use_actions= or use= of an action, or write to call.store"
            )
        self.given = value

    @property
    def step(self) -> Step:
        """The action as it is read: its parameters, and the use of its result."""
        return self.localized or step_of(cast("Action[..., Any]", self.action))

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that the action is called with, by parameter: those known so far, and without its `Context`."""
        if self.action is None:
            return {}
        if isinstance(self.store, Watched):
            self.store.report(self.step.keys)
        return self.step.arguments(self.store, self.values)

    def take_cached(self, outcome: Any, inserted: tuple[Unit | Stream, ...]) -> None:
        """Supply an outcome from a cache, with the units that middleware inserted when the action was called."""
        self.given, self.cached = outcome, True
        self.inserted += inserted

    def insert(self, *units: Unit | Stream) -> None:
        """Run these right after the target, as if an action had returned them."""
        self._check_open("call.insert")
        self.inserted += insertable(units, f"a middleware of {self.level} {self.name!r}", "call.insert")

    def _check_open(self, use: str) -> None:
        if hasattr(self, "has_ended"):
            raise ContextEndedError(
                f"{use} after {self.level} {self.name!r} has ended would have no effect: a middleware can use its call only "
                f"until it returns"
            )

    def undo_on_failure(self) -> None:
        """Make the target one step: if it fails, nothing in it counts as done (`atomic`)."""
        self.undoes = True

    @property
    def repeats_before(self) -> int:
        """How often the layer that is being entered had asked for another attempt before the run was interrupted."""
        return 0

    @property
    def time_used(self) -> float:
        """How much of its timeout the layer that is being entered had used before the run was interrupted."""
        return 0.0

    def use_time(self, seconds: float) -> None:
        """Note how much of its timeout the layer has used, for when the run is resumed."""

    @property
    def logger(self) -> RunLogger:
        """The logger `flowdeco.run`, with run, stage and action as `extra`."""
        from flowdeco.engine.run_logger import run_logger

        stage, action = self.stage, self.action
        return run_logger(self.run_id, None if stage is None else stage.name, None if action is None else action.name)

    def __repr__(self) -> str:
        return f"<Call of {self.level} {self.name!r}, attempt {self.attempt}>"
