"""The settings of a run, which all of its branches share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flowdeco.engine.history import History
from flowdeco.engine.memory import Log
from flowdeco.engine.recorder import Recorder
from flowdeco.engine.requests import Gate
from flowdeco.engine.waits import Wall
from flowdeco.errors import Wait
from flowdeco.events import Event

__all__ = ["Terms"]


@dataclass(slots=True)
class Terms:
    """Settings shared by all branches of a run."""

    run_id: str
    clock: Callable[[], float]
    epoch: float  # in POSIX seconds, when the clock was at 0
    is_cancellation: Callable[[BaseException], bool]
    gate: Gate = field(default_factory=Gate)
    notify: Callable[[Event], None] | None = None
    skip: frozenset[str] = frozenset()
    unmatched: set[str] = field(default_factory=set[str])  # selectors of `skip` that have selected nothing so far
    # Selectors that actions switched, each with stage, action and whether it was enabled; and those that selected something.
    idle: dict[str, tuple[str, str, bool]] = field(default_factory=dict[str, tuple[str, str, bool]])
    used: set[str] = field(default_factory=set[str])
    has_group: bool = False  # the run came to a parallel group
    most_records: int | None = None  # so many are kept
    recorder: Recorder | None = None  # of a durable run
    log: Log | None = None  # of a run that can be resumed from memory
    past: History | None = None  # of a resumed run
    wall: Wall = field(default_factory=Wall)
    since: int = 0  # how often it was given something
    # Those of steps before the run was resumed.
    waits: dict[tuple[str, int], Sequence[Wait]] = field(default_factory=dict[tuple[str, int], Sequence[Wait]])
    # Which branch of a group takes a given value: by the group's id and the key, the place of the first one that asked.
    claims: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    timeout: float | None = None  # of this leg of the run
    shown: int = 0  # the size of the values that actions have shown
    rehearses: bool = field(init=False)  # the run is only compared with its history: nothing is performed or applied
    keeps_records: bool = field(init=False)  # not in the rehearsal of a resume: nobody would read them
    looks_nothing_up: bool = field(init=False)  # neither selectors to skip nor a history
    is_unobserved: bool = field(init=False)  # nor a journal, nor an observer

    def __post_init__(self) -> None:
        self.resume_from(self.past)

    def resume_from(self, past: History | None) -> None:
        """Set the history of a resumed run."""
        self.past = past
        self.rehearses = past is not None and past.rehearses
        self.keeps_records = past is None or past.keeps_records
        self.looks_nothing_up = not (self.skip or past)
        self.is_unobserved = self.looks_nothing_up and self.recorder is None and self.notify is None
