"""The parts of plans, runs and diffs: a tree of values, and the comparison of two trees."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from flowdeco.engine.runs import Status

__all__ = ["DEEPEST", "Part", "PlanContent", "RanContent", "compared", "count_stages", "pending", "walk", "with_ahead"]

DEEPEST = 32  # parts that are nested deeper are shown at this level


class Part(NamedTuple):
    """An action, a stage, a pipeline, a parallel group or a branch of one, planned or run.

    `kind` is "action", "stage", "pipeline", "parallel" or "branch". A plan has `reads` and `writes` (keys of the store),
    and `inserts`: its annotation says that it returns units. The other fields are of a run: `status` is `pending` for units
    that were inserted or begun, and never reached; `record` is the index of its record in `run.stages`, or among the
    actions of its stage, and `parent` that of the stage or action that inserted it. `restored` ones were not run again by
    a resume; `unplanned` ones are missing from the plan although nothing inserted them. `bound` are the bound values of an
    action that ran in a branch of a group; `source` is the stream that yields the branches of a group. Units that are
    `pending` in a run that is still running are `ahead`.
    """

    kind: str
    name: str
    title: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    stem: str = ""
    limit: int | None = None
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    inserts: bool = False
    middleware: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    status: Status | None = None
    started: float | None = None
    elapsed: float | None = None
    inserted_by: str | None = None
    attempts: int = 1
    recovered: bool = False
    cached: bool = False
    error: str = ""
    record: int | None = None
    unplanned: bool = False
    bound: str = ""
    source: str = ""
    parent: int | None = None
    restored: bool = False
    ahead: bool = False

    @property
    def label(self) -> str:
        """The name, with bound values, which tell the branches of a group apart."""
        bound = self.parts[0].bound if self.is_bare else self.bound
        return f"{self.name}[{bound}]" if bound else self.name

    @property
    def is_dynamic(self) -> bool:
        """Whether it was inserted during the run."""
        return self.inserted_by is not None

    @property
    def is_bare(self) -> bool:
        """Whether it is a stage that only stands for its one action, of the same name."""
        return self.kind == "stage" and len(self.parts) == 1 and self.parts[0].name == self.name


@dataclass(frozen=True, slots=True)
class PlanContent:
    """The values that a plan consists of."""

    name: str
    title: str
    description: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class RanContent:
    """The values that the view of a run consists of."""

    run_id: str
    name: str
    status: Status
    started: float
    elapsed: float
    error: str
    notes: tuple[str, ...]
    reason: str
    forgotten: int
    parts: tuple[Part, ...]


def walk(parts: Iterable[Part]) -> Iterator[Part]:
    """Yield all parts, each before its own parts."""
    for part in parts:
        yield part
        yield from walk(part.parts)


def count_stages(parts: Iterable[Part]) -> tuple[int, int]:
    """Return how many stages there are, and how many of them were inserted; pending ones are not counted."""
    stages = [part for part in walk(parts) if part.kind == "stage" and part.status is not Status.PENDING]
    return len(stages), sum(part.is_dynamic for part in stages)


def pending(parts: Iterable[Part], inserted_by: str | None, parent: int | None = None) -> Iterator[Part]:
    """Yield planned parts as never reached; their own parts were not inserted by themselves."""
    for part in parts:
        inner = tuple(pending(part.parts, None))
        yield part._replace(status=Status.PENDING, inserted_by=inserted_by, parent=parent, parts=inner)


def with_ahead(parts: Iterable[Part], ahead: bool) -> tuple[Part, ...]:
    """Return the parts of a run that is still running, or not: the pending ones are `ahead`, or were never reached."""
    return tuple(
        part._replace(ahead=ahead and part.status is Status.PENDING, parts=with_ahead(part.parts, ahead))
        for part in parts
    )


# The comparison.

Name: TypeAlias = "tuple[str, str | int | None]"


def compared(
    planned: Sequence[Part], ran: Sequence[Part], *, forgotten: bool = False, completed: bool = False
) -> tuple[Part, ...]:
    """Return the trees of a plan and a run as one: in the order of the run, with unreached parts in their places.

    If the first records were `forgotten`, the parts of the plan before the first one that is known are left out: they ran.
    """
    indexes: dict[Name, list[int]] = {}
    for index, part in enumerate(planned):
        indexes.setdefault(_name(part), []).append(index)
    merged: list[Part] = []
    position = 0
    for part in ran:
        if part.is_dynamic:
            merged.append(part)
            continue
        known = indexes.get(_name(part), [])
        found = bisect_left(known, position)
        if found == len(known):
            merged.append(part._replace(unplanned=True))
            continue
        if not forgotten:
            merged.extend(pending(planned[position : known[found]], None))
        position = known[found] + 1
        merged.append(_merged(planned[position - 1], part, forgotten))
        forgotten = False
    if forgotten:  # all that is known was inserted
        inserters = {name for part in ran if (by := part.inserted_by) for name in (by, by.rpartition("/")[0])}
        last = max((at for at, part in enumerate(planned, 1) if part.name in inserters), default=0)
        position = len(planned) if completed else last
    merged.extend(pending(planned[position:], None))
    return tuple(merged)


def _name(part: Part) -> Name:
    return part.kind, part.record if part.kind == "branch" else part.name


def _merged(planned: Part, ran: Part, forgotten: bool) -> Part:
    if ran.kind == "stage" and ran.status is Status.SKIPPED and not ran.parts:
        return ran  # skipped as a whole
    completed = ran.status is Status.COMPLETED
    parts = (
        ran.parts
        if planned.source
        else compared(planned.parts, ran.parts, forgotten=forgotten and ran.kind != "stage", completed=completed)
    )
    known: dict[str, Any] = {name: getattr(planned, name) for name in _OF_THE_PLAN}
    return ran._replace(**known, stem=planned.stem or ran.stem, parts=parts)


_OF_THE_PLAN: Final = (
    "name", "title", "description", "tags", "limit", "reads", "writes", "inserts", "middleware", "data",
)  # fmt: skip
