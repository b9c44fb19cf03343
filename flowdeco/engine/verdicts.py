"""Verdicts on the branches of a parallel group: whether one counts, is lost, or ends the group, and how that ends.

Nothing here knows of branches but their numbers, and how they ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flowdeco.engine.outcome import Outcome, Selection
from flowdeco.engine.requests import Failure
from flowdeco.errors import Bail, Cancelled, CodeChangedError, OutOfTime, RunError, Suspend, all_of, is_exit, meant_by
from flowdeco.model.definitions import Parallel

if TYPE_CHECKING:
    from fractions import Fraction

__all__ = ["Verdicts"]


class Verdicts:
    """How branches ended, by number: those of `lost` ones are tolerated. `earlier` is the group before a resume.

    With `chooses`, not all branches are to complete, and those of them that did are `counted`. Unless it
    `is_live` (in a rehearsal, or if the group had ended), it decides nothing.
    """

    def __init__(
        self,
        group: Parallel,
        is_cancellation: Callable[[BaseException], bool],
        earlier: Outcome | None,
        *,
        is_live: bool,
    ) -> None:
        self.group = group
        self.is_live = is_live
        self.chooses = group.enough is not None
        self.failures: dict[int, BaseException] = {}
        self.lost: dict[int, BaseException] = {} if earlier is None else dict(earlier.selection.lost)
        self.counted: set[int] = set()
        self.is_enough = False
        self.is_exceeded = False  # more branches failed than the group tolerates
        self.ended_by: int | None = None
        self.known = 0  # those that had begun before a resume are among so many
        self._completed = 0
        self._allowed = _allowed(group)
        self._earlier = earlier
        self._is_cancellation = is_cancellation

    def loses(self, index: int, error: BaseException) -> bool:
        """Decide whether a branch that failed is lost, and note it."""
        tolerable = isinstance(error, Exception) and not isinstance(error, CodeChangedError)
        if not (self.is_live and self.group.tolerate and tolerable) or index in self.lost:
            return False
        if self._allowed is not None and len(self.lost) >= self._allowed:
            self.is_exceeded = True
            return False
        self.lost[index] = error
        return True

    def ended(self, index: int, failure: Failure, *, is_skipped: bool = False) -> bool:
        """Note that a branch has ended, which was perhaps skipped as a whole; return whether this ends the group."""
        if failure is not None:
            self.failures[index] = failure
        if not self.is_live or self.is_enough or self.ended_by is not None:
            return False
        if index in self.lost and (index < self.known or self.lost[index] is failure):
            return False
        if failure is None:
            if is_skipped:
                return False
            self._completed += 1
            if self.chooses:
                self.counted.add(index)
                self.is_enough = self._completed == self.group.enough
            return self.is_enough
        if isinstance(failure, Suspend) or (type(failure) is Cancelled and not failure.of_run):
            return False  # the latter was stopped, with the group itself
        self.ended_by = index
        return True

    def counts(self, index: int) -> bool:
        """Whether a branch is not one that the group was complete without."""
        if self.is_live:
            return self.group.enough is None or index in self.counted or not self.is_enough
        counted = None if self._earlier is None else self._earlier.selection.counted
        return counted is None or index in counted

    def selection(self, error: Failure) -> Selection:
        """Return the branches that count, as the group ends with this error."""
        return Selection(
            {} if self.is_exceeded else self.lost, frozenset(self.counted) if self.chooses and error is None else None
        )

    def unexpected(self) -> list[BaseException]:
        """Return how branches ended, but for lost ones."""
        return [error for index, error in sorted(self.failures.items()) if index not in self.lost]

    def failure(self, interrupt: Failure, count: int) -> Failure:
        """Return how the group ended: None, a failure (or a group of several), or a signal."""
        exits = [error for error in self.unexpected() if is_exit(error)]
        if interrupt is not None and not (isinstance(interrupt, Cancelled) and not interrupt.of_run):
            return interrupt if is_exit(interrupt) else self._as_one(exits) or interrupt
        if exits or isinstance(interrupt, OutOfTime):
            self.ended_by = None  # no cancellation is a failure: asyncio's of all tasks, or the deadline's
        failures = {index: error for index, error in self.failures.items() if index not in self.lost}
        if self.is_enough:
            self.is_exceeded = False
            failures = {index: error for index, error in failures.items() if is_exit(error)}
        few = self._too_few(count) if interrupt is None and not failures else None
        if few is not None:
            return few
        if self.is_exceeded:
            failures |= self.lost
        in_order = [(index, failures[index]) for index in sorted(failures)]
        failed = self._as_one([error for index, error in in_order if self._is_failure(index, error)])
        if failed is not None or interrupt is not None:
            return interrupt if failed is None else failed
        return _signal_among([error for _, error in in_order])

    def _as_one(self, failed: Sequence[BaseException]) -> Failure:
        """Return one failure as itself, and several as a group, unless one is a KeyboardInterrupt."""
        failed = list({id(error): error for error in failed}.values())  # several may end with one error, the journal's
        if len(failed) < 2:
            return failed[0] if failed else None
        found = BaseExceptionGroup(f"{len(failed)} branches of the parallel group {self.group.name!r} failed", failed)
        return meant_by(found)

    def _is_failure(self, index: int, error: BaseException) -> bool:
        if isinstance(error, (Bail, Suspend)):
            return False
        # A cancellation that the group asked for is not a failure.
        return index == self.ended_by or is_exit(error) or not self._is_cancellation(error)

    def _too_few(self, count: int) -> Failure:
        """See, once all branches have ended, whether too many were lost; return the error if there were too few."""
        group = self.group
        if self.is_enough:
            return None
        if self._allowed is None and len(self.lost) > _share(group.tolerate) * count:
            self.is_exceeded = True
        if group.enough is None:
            return None
        if count >= group.enough:
            self.is_exceeded = True
            return None
        return RunError(
            f"the parallel group {group.name!r} completes when {group.enough} branches have, and its stream yielded {count}"
        )


def _allowed(group: Parallel) -> int | None:
    """Return how many branches may be lost; None if that is known at the end of the stream."""
    allowed: float = group.tolerate
    if not isinstance(allowed, int):
        if group.stream is not None:
            return None
        allowed = int(_share(allowed) * len(group.units))
    return (
        int(allowed)
        if group.enough is None or group.stream is not None
        else min(allowed, len(group.units) - group.enough)
    )


def _share(tolerate: float) -> Fraction:
    from fractions import Fraction  # not loaded for runs without such a group: it takes 1.5 ms

    return Fraction(str(float(tolerate)))  # as it was written: 0.29 of 100 are 29


def _signal_among(errors: Sequence[BaseException]) -> Failure:
    """Return the first `Bail`, or one `Suspend` for all; None if there are neither."""
    bail = next((error for error in errors if isinstance(error, Bail)), None)
    return bail or all_of([error for error in errors if isinstance(error, Suspend)])
