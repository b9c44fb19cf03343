"""Scopes and streams that are open: the surroundings of the steps inside them."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, Mapping
from typing import Any, Final

from flowdeco.engine.layers import Layers
from flowdeco.engine.outcome import Outcome, Scope
from flowdeco.model.definitions import Pipeline, Stream
from flowdeco.model.deltas import Mark
from flowdeco.model.options import Middleware
from flowdeco.model.tuples import NamedTuple

__all__ = ["UNNUMBERED", "Before", "OpenScope", "OpenStream"]

_NO_NAMES: Final[frozenset[str]] = frozenset()  # `frozenset()` makes another one each time: 216 bytes
UNNUMBERED: Final = -2  # the number of a scope that notes no outcome


class Before(NamedTuple):
    """The state that another attempt at a scope restores."""

    records: int
    switches: Mapping[str, bool]
    switched: Mapping[str, bool]
    result: Any
    places: int


class OpenScope:
    """An open pipeline or stage, or the base of a branch: the surroundings of the steps inside it."""

    # With a dictionary for its attributes, a stage would cost 17 x the loop instead of 15.
    __slots__ = (
        "before", "by", "depth", "earlier", "held", "inserted", "is_atomic", "is_bare", "is_quiet", "is_skipped",
        "layers", "local", "mark", "number", "outer", "pipeline", "place", "records", "started", "unit", "use_actions",
        "use_stages", "values",
    )  # fmt: skip

    def __init__(
        self, outer: OpenScope | None, unit: Any, by: str | None, started: float, number: int = UNNUMBERED
    ) -> None:
        self.outer: Any = outer  # None for the base of the run, which never ends
        self.unit = unit
        self.by = by
        self.started = started
        self.number = number  # its place in the branch; a scope without middleware that is not a stage has none
        self.pipeline: Any = unit
        self.place: Scope | None = None  # for the records of its contents
        self.values: Mapping[str, Any] = {}  # supplied by middleware
        self.use_stages: tuple[Middleware, ...] = ()
        self.use_actions: tuple[Middleware, ...] = ()
        self.is_skipped = False  # with those of its contents that have not run yet
        if outer is not None:
            self.place = outer.place
            self.values = outer.values
            self.use_stages = outer.use_stages
            self.use_actions = outer.use_actions
            self.is_skipped = outer.is_skipped
            if type(unit) is not Pipeline:
                self.pipeline = outer.pipeline
        self.depth = 0  # its place on the agenda
        self.layers: Layers | None = None
        self.earlier: Outcome | None = None  # from before the run was resumed
        # Set before its layers were entered, or before its data was merged, and None again after that.
        self.mark: Mark | None = None
        self.before: Before | None = None
        self.held = 0  # the number of unwritten rows when it began
        # No selector, history or supplied value needs its actions one by one; middleware may surround them. Set by
        # `fill_scope`, until an action switches a selector.
        self.is_quiet = False
        self.is_bare = False  # it is quiet, and has no `use_actions`
        self.is_atomic = False  # it is one step, and its rows are held back
        self.local = _NO_NAMES  # names of results that are local to it
        self.records: list[Any] = []  # of the actions of a stage
        # By its actions and layers; `scopes` puts them on the agenda as it ends.
        self.inserted: list[tuple[Any, str]] = []


class OpenStream:
    """A stream that has begun: its iterator, and the items that it yielded in the rehearsal of a resumed run."""

    __slots__ = ("ahead", "is_async", "iterator", "stream")

    def __init__(self, stream: Stream, iterator: Any) -> None:
        self.stream = stream
        self.iterator = iterator
        self.is_async = isinstance(iterator, AsyncIterable)
        self.ahead: deque[Any] = deque()
