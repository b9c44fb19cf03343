"""The records of a branch, in the order of execution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowdeco.engine.outcome import ALL, Outcome, StageRecord, Status, amended
from flowdeco.model.definitions import Pipeline

__all__ = ["Records"]


class Records:
    """The records of stages, of which only the last `most` are kept, and of `scopes`: pipelines and groups.

    Those are kept that failed, were tried again or skipped by middleware, and groups some of whose branches do not count.
    """

    def __init__(self, most: int | None) -> None:
        self.kept: list[StageRecord] = []
        self.forgotten = 0
        self.scopes: list[tuple[int, Outcome]] = []  # each with the number of stages recorded before its end
        self._most = most

    def __len__(self) -> int:
        return len(self.kept) + self.forgotten

    def add(self, record: Any) -> None:
        """Add one; old ones are forgotten in one go, whenever there are more than twice as many as to keep."""
        self.kept.append(record)
        if self._most is not None:
            self._forget_old(self._most)

    def add_scope(self, record: Outcome) -> None:
        """Add that of a pipeline or group, unless it simply completed."""
        if _has_ended_oddly(record) or record.status is Status.SKIPPED or record.selection != ALL:
            self.scopes.append((len(self), record))

    def adopt(self, records: Records) -> None:
        """Add the records of a branch."""
        if records.scopes:
            count = len(self)
            self.scopes += [(count + at, record) for at, record in records.scopes]
        if records.forgotten:  # so that what is kept has no gap
            self._forget(len(self.kept))
            self.forgotten += records.forgotten
        self.kept += records.kept
        if self._most is not None:
            self._forget_old(self._most)

    def amend(self, around: Outcome, since: int) -> None:
        """Amend those of the stages in a pipeline, given its outcome and the number of records before it."""
        at = max(0, since - self.forgotten)
        self.kept[at:] = [amended(record, around) for record in self.kept[at:]]

    def cut(self, count: int) -> list[StageRecord]:
        """Drop all but the first `count`, and return the dropped ones."""
        at = max(0, count - self.forgotten)
        dropped = self.kept[at:]
        del self.kept[at:]
        self.forgotten = min(self.forgotten, count)
        while self.scopes and self.scopes[-1][0] > count:
            self.scopes.pop()
        return dropped

    def recover(self, since: int, is_inside: Callable[[Outcome], bool]) -> None:
        """Have the failures since there were so many records count as recovered, inside lost branches."""
        for at in range(max(0, since - self.forgotten), len(self.kept)):
            self.kept[at] = _recovered(self.kept[at], is_inside)
        for at, (count, record) in enumerate(self.scopes):
            if count >= since:
                self.scopes[at] = count, _recovered(record, is_inside)

    def cancel_last(self) -> None:
        """Have the last stage count as cancelled, and all that waited: its group was complete without it."""
        self.kept = list(map(_cancelled, self.kept))
        self.scopes = [(at, _cancelled(record)) for at, record in self.scopes]
        if self.kept and self.kept[-1].status is Status.COMPLETED:
            self.kept[-1] = self.kept[-1]._replace(status=Status.CANCELLED)

    def all_skipped(self) -> bool:
        """Whether there are records, and nothing was run."""
        found = [*self.kept, *(record for _, record in self.scopes)]
        return bool(found) and not self.forgotten and all(record.status is Status.SKIPPED for record in found)

    def last(self) -> list[StageRecord]:
        """Return those of stages to keep at the end of the run."""
        return self.kept if self._most is None else self.kept[max(0, len(self.kept) - self._most) :]

    def last_pipelines(self) -> list[Outcome]:
        """Return those of pipelines to keep at the end of the run."""
        forgotten = len(self) - len(self.last())
        kept = [record for at, record in self.scopes if at > forgotten or not forgotten]
        return [record for record in kept if isinstance(record.unit, Pipeline) and _has_ended_oddly(record)]

    def _forget_old(self, most: int) -> None:
        count = len(self.kept) - most
        if count > most:
            self._forget(count)

    def _forget(self, count: int) -> None:
        del self.kept[:count]
        self.forgotten += count
        self.scopes = [(at, record) for at, record in self.scopes if at > self.forgotten]


def _has_ended_oddly(record: Outcome) -> bool:
    return record.error is not None or record.attempts > 1


def _cancelled(record: Any) -> Any:
    if record.status is not Status.SUSPENDED:
        return record
    return record._replace(status=Status.CANCELLED, actions=list(map(_cancelled, record.actions)) or ())


def _recovered(record: Any, is_inside: Callable[[Outcome], bool]) -> Any:
    if record.status is not Status.FAILED or not is_inside(record):
        return record
    actions = [each._replace(recovered=True) if each.status is Status.FAILED else each for each in record.actions]
    return record._replace(recovered=True, actions=actions)
