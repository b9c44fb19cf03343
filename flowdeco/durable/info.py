"""What is told of a run without taking it up."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["RunInfo"]


class RunInfo(NamedTuple):
    """A run of a journal: times in POSIX seconds, `steps` that are saved.

    `owner` is the process that works on it, None where none does: a run that is `running` without one has crashed.
    `entry` is where its pipeline is found, if whoever began it said so; `codec` what its steps are written in.
    """

    id: str
    pipeline: str
    status: str
    reason: str | None
    started: float
    updated: float
    steps: int
    error: str | None = None
    owner: str | None = None
    entry: str | None = None
    codec: str = "pickle"
