"""One recorded step of a run, performed again.

The run is restored up to this step, as for a resume: the steps before it, in its branch and in those around it, take
effect again, and the scopes around it are open, so their middleware is entered. Then the step is performed, and
everything after it is refused. Other branches of the groups around it have no part in this, and do not begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flowdeco.engine.history import History
from flowdeco.engine.journal import Journal, Row
from flowdeco.engine.outcome import ALL, Outcome, Outcomes, Status, branches_of
from flowdeco.engine.recorder import Recorder
from flowdeco.errors import CodeChangedError, told
from flowdeco.model.contents import Digest, agree
from flowdeco.model.deltas import NOTHING
from flowdeco.model.keys import Local
from flowdeco.model.options import Middleware
from flowdeco.model.steps import Step
from flowdeco.model.tuples import NamedTuple

__all__ = ["OneStep", "Place", "Witness", "differences"]


class Place(NamedTuple):
    """The place of a step: its branch, and its number in that."""

    branch: str
    number: int


class OneStep(History):
    """The history before one step, which is the only one that is performed."""

    def __init__(self, steps: Outcomes, place: Place) -> None:
        self.way = way = _way_to(steps, place)
        around = {inner for branch, at in way.items() for inner in branches_of(branch, at, steps[branch][at])}
        have_part = [branch for branch in steps if branch in way or branch not in around]
        super().__init__({branch: _before(steps[branch], branch, way, place) for branch in have_part})
        self.place = place
        self.called: Step | None = None
        self._recorded = steps[place.branch][place.number]

    def take(self, branch: str, number: int, unit: Any, around: Any, *, sealed: bool) -> Outcome | None:
        """Return the earlier outcome of a step; raises `stop` after the one that is performed."""
        if self.called is not None:
            raise self.stop
        if (branch, number) != self.place:
            return super().take(branch, number, unit, around, sealed=sealed)
        if type(unit) is not Step or (around.name, unit.name) != (self._recorded.unit.stage, self._recorded.name):
            raise self.mismatch(branch, unit, around, self._recorded)
        self.called = unit
        return None

    def layers_of(self, layers: tuple[Middleware, ...]) -> tuple[Middleware, ...]:
        """Return the layers around an action, without those that would answer in its place."""
        return tuple(layer for layer in layers if not getattr(layer, "answers", False))

    def changed(self, change: str) -> BaseException:
        """Return the error of a pipeline that does not lead to the step any more."""
        return CodeChangedError(f"the pipeline no longer leads to this step: {change}")


def _way_to(steps: Outcomes, place: Place) -> dict[str, int]:
    """Return the branches that lead to a place, each with the number of its step on the way."""
    outer = {
        inner: Place(branch, number)
        for branch, mine in steps.items()
        for number, outcome in mine.items()
        for inner in branches_of(branch, number, outcome)
    }
    way: dict[str, int] = {}
    at: Place | None = place
    while at is not None:
        way[at.branch] = at.number
        at = outer.get(at.branch)
    return way


def _before(mine: Mapping[int, Outcome], branch: str, way: Mapping[str, int], place: Place) -> dict[int, Outcome]:
    """Return the steps of a branch that come before the place; the scopes and groups around it are open again."""
    until = way.get(branch)
    if until is None:
        return dict(mine)
    found: dict[int, Outcome] = {}
    for number, outcome in mine.items():
        if number < until or (number == until and branch != place.branch):
            is_around = number == until or not outcome.is_final or outcome.end > until
            found[number] = outcome if not is_around else outcome._replace(
                status=Status.RUNNING, error=None, recovered=False, selection=ALL
            )  # fmt: skip
    return found


class Witness(Recorder):
    """Keeps the row of the step that is performed, and ends the run there; nothing reaches the journal."""

    def __init__(self, journal: Journal, run_id: str, fingerprint: Any, digest: Any, past: OneStep) -> None:
        super().__init__(journal, run_id, fingerprint, digest)
        self.seen: Row | None = None
        self._past = past

    def row(self, branch: str, stage: str | None, outcome: Outcome) -> Row:
        """Return the row of an outcome; raises `stop` for that of the step, and after it."""
        row = super().row(branch, stage, outcome)
        if outcome.status is Status.RUNNING:
            return row
        if (branch, outcome.number) == self._past.place:
            self.seen = self.seen or row
        if self.seen is not None:
            raise self._past.stop
        return row


# Comparison.


def differences(before: Outcome, now: Outcome, digest: Any) -> Iterator[str]:
    """Yield what differs between two outcomes of a step; times and attempts do not count."""

    def same(one: Any, other: Any) -> bool:
        if agree(one, other):
            return True
        known: Digest | None = digest(one)  # of values that are equal only to themselves
        return known is not None and known == digest(other)

    if before.is_final != now.is_final or before.status is not now.status:
        yield "status"
    if told(before.error) != told(now.error):
        yield "error"
    if before.error is not None and not before.is_final:
        return  # a failure has no effect
    if not same(before.result, now.result):
        yield "result"
    written, writes = before.writes or NOTHING, now.writes or NOTHING
    for one, other in (
        (written.puts, writes.puts),
        (written.appends, writes.appends),
        (written.changes, writes.changes),
    ):
        for key in dict.fromkeys((*one, *other)):
            if (key in one) != (key in other) or not same(one[key], other[key]):
                yield f"the value of {key.name if isinstance(key, Local) else key!r}"
    if set(written.deletes) != set(writes.deletes):
        yield "the deleted keys"
    if not (same(before.inserted, now.inserted) or list(map(repr, before.inserted)) == list(map(repr, now.inserted))):
        yield "the inserted units"
    if before.switches != now.switches:
        yield "the switched selectors"
