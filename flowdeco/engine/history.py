"""The history of a resumed run: what it remembers of a step decides whether that is restored or performed.

When a step begins, its earlier outcome is taken out of the history (`History.take`), for `Branch.restores` to decide; the
other methods compare how scopes and branches end. A step is identified by its branch and its number in it, which depend
on the definition alone, and not on timing. A step that had ended is restored; one that had not is performed.

A resume goes through the history twice, with the same evaluation. The first time is a rehearsal: nothing is performed,
and it ends where the history does. It finds the changes since (`changes`), and the steps that still hold (`taken`).
The second time, these are restored, and the run continues.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from math import inf
from typing import Any

from flowdeco.engine.adoption import Archive
from flowdeco.engine.memory import Remains
from flowdeco.engine.outcome import ROOT, Outcome, Outcomes, Status, branches_of, cut_steps
from flowdeco.engine.rows import Recorded, kind_of, unfinished_stage
from flowdeco.errors import Cancelled, CodeChangedError, DefinitionError, Suspend
from flowdeco.model.definitions import Pipeline, Stage, Stream
from flowdeco.model.deltas import Mark
from flowdeco.model.options import Middleware
from flowdeco.model.stand_ins import Missing
from flowdeco.model.steps import Step
from flowdeco.model.units import every_unit

__all__ = ["History", "Rehearsal"]


class History:
    """The outcomes of a run before it was resumed.

    With `is_in_memory`, the store has their effects already: it is that of the earlier run in memory. A run that is
    `finished` performs nothing more.
    """

    def __init__(
        self,
        steps: Outcomes,
        *,
        is_in_memory: bool = False,
        remains: Mapping[str, Remains] | None = None,
        finished: bool = False,
        streams: dict[tuple[str, int], Any] | None = None,
        archive: Archive | None = None,
    ) -> None:
        self.steps = {branch: dict(mine) for branch, mine in steps.items()}
        self.is_in_memory = is_in_memory
        self.finished = finished
        self.rehearses = False
        self.keeps_records = True
        self.archive = archive  # of a run whose pipeline has changed: steps that are found by name
        # These end a walk through the history, and are recognised by identity: raised where a step begins, caught by
        # `evaluate` as any other failure, and passed on by groups. A `Suspend` closes scopes without a failure or a note.
        self.stop: BaseException = Suspend("this is as far as the run came")
        self.early_stop: BaseException = Suspend("the scope, or the branch, had ended here")
        self.streams: dict[tuple[str, int], Any] = {} if streams is None else streams
        self._errors: list[BaseException] = []  # of the outcomes that were recalled
        self._remains = dict(remains or {})
        self._begun: dict[str, int] = {}  # the number of the stream that each branch began last

    def take(self, branch: str, number: int, unit: Any, around: Any, *, sealed: bool) -> Outcome | None:
        """Return the earlier outcome of a step, whether it had ended or not; None if it has no row.

        Then it had not begun, or its process was killed before it ended, or before its row was written: of a stage, its
        first action tells. A step in the place of another one takes it, unless anything there has ended.

        Each is returned once: `has` and `has_more` ask for what is left. `around` is the unit around the step, which had
        ended if `sealed`. Raises the error that forbids continuing.
        """
        if self.archive is not None and not (sealed or self.has(branch, number)):
            self.archive.adopt(self.steps, branch, number, unit, around)
        mine = self.steps.get(branch, {})
        earlier = mine.get(number)
        if earlier is None and sealed:
            raise self.new(unit, around)
        before = _stage_around(mine.get(number + 1)) if earlier is None and type(unit) is not Step else earlier
        if before is not None and not _is_same(unit, before):
            if sealed or self._holds(branch, number):
                raise self.mismatch(branch, unit, around, before)
            self.drop_from(branch, number)  # it had begun, and nothing in it has ended
            return None
        if earlier is not None:
            del mine[number]
            if not mine:
                del self.steps[branch]
            if earlier.error is not None:
                self._errors.append(earlier.error)
        return earlier

    def layers_of(self, layers: tuple[Middleware, ...]) -> tuple[Middleware, ...]:
        """Return the layers to enter around an action."""
        return layers

    def is_known(self, error: BaseException | None) -> bool:
        """Whether a restored scope may end with this: with nothing, or with an error that it had ended with before."""
        if error is None or error is self.early_stop or isinstance(error, Cancelled):
            return True
        return any(error is each for each in self._errors)

    def _holds(self, branch: str, number: int) -> bool:
        """Whether any step from this number on has ended, including those in groups among them."""
        left = self._cuts_from(branch, number).items()
        return any(
            at >= since and self._counts(did) for id, since in left for at, did in self.steps.get(id, {}).items()
        )

    def _cuts_from(self, branch: str, number: int) -> dict[str, int]:
        """Return a branch and the branches of groups in it from this number on, each with its first number of these."""
        cuts = {branch: number}
        waiting = [branch]
        while waiting:
            outer = waiting.pop()
            for at, outcome in self.steps.get(outer, {}).items():
                if at >= cuts[outer]:
                    inner = branches_of(outer, at, outcome)
                    cuts.update(dict.fromkeys(inner, 0))
                    waiting += inner
        return cuts

    def _counts(self, outcome: Outcome) -> bool:
        """Whether a step must not be dropped for another one."""
        return outcome.is_final

    def mismatch(self, branch: str, unit: Any, around: Any, earlier: Outcome) -> BaseException:
        """Return the error of a step in the place of another one."""
        if earlier.name == unit.name and kind_of(unit) == kind_of(earlier.unit) == "group":
            count = f"{len(unit.units)} in place of {earlier.branches}"
            return self.changed(f"{_described(unit, around)} has another number of branches: {count}")
        now, before = _described(unit, around), _described(earlier.unit, around, earlier)
        if kind_of(earlier.unit) == "action":
            before = before.removeprefix("action ")
        return self.changed(f"{now} comes where the run had {before}")

    def new(self, unit: Any, around: Any) -> BaseException:
        """Return the error of a step in a scope that had ended without it."""
        return self.changed(f"{_described(unit, around)} is new, and the unit around it has completed")

    def has(self, branch: str, number: int) -> bool:
        """Whether a step has an outcome that has not been recalled yet."""
        return number in self.steps.get(branch, {})

    def has_more(self, branch: str) -> bool:
        """Whether there is more to restore in a branch."""
        return branch in self.steps

    def missing_at_end(self, branch: str) -> BaseException | None:
        """Return the error of a branch that ends here, and had more steps; else None."""
        mine = self.steps.get(branch, {})
        left = [mine[number] for number in sorted(mine) if self._counts(mine[number])]
        if not left:
            return None
        stage = next((each for each in left if kind_of(each.unit) != "action"), left[0])
        who = "the run" if branch == ROOT else "a branch"
        return self.changed(f"{who} ends where it had {_described(stage.unit, None, stage)}")

    def confirm(self, branch: str, earlier: Outcome, unit: Any, number: int) -> BaseException | None:
        """Confirm that a scope ends as it did before, with this as the next number; return the error if it does not."""
        if earlier.end < 0 or earlier.end == number or not earlier.entered:
            return None
        left = self.steps.get(branch, {}).get(number)
        if isinstance(unit, Stage) and left is not None:
            return self.changed(f"action {unit.name}/{left.name} has completed, and no longer exists")
        return self.changed(f"{_described(unit, None)} has completed, and ends elsewhere")

    def changed(self, change: str) -> BaseException:
        """Return the error of a change that the rehearsal did not find."""
        return CodeChangedError.listing("", [f"{change}: a stream must yield the same units every time"])

    def forget(self, cuts: Mapping[str, int]) -> None:
        """Forget the steps of these branches from these numbers on: another attempt has begun."""
        cut_steps(self.steps, cuts)
        for branch in [branch for branch in self.steps if not self.steps[branch]]:
            del self.steps[branch]
        for branch in [branch for branch, since in cuts.items() if since <= 0]:
            self._remains.pop(branch, None)

    def drop_from(self, branch: str, number: int) -> dict[str, int]:
        """Forget the steps of a branch from this number on, and of groups among them; return the cuts."""
        cuts = self._cuts_from(branch, number)
        self.forget(cuts)
        return cuts

    # In memory.

    def remains_of(self, branch: str) -> Remains | None:
        """Return the remains of an unfinished branch."""
        return self._remains.get(branch)

    def unfinished(self, branch: str, number: int) -> tuple[list[Mark], Any]:
        """Return the marks of the layers of an unfinished scope, and the result before it."""
        remains = self._remains.get(branch)
        return ([], None) if remains is None else remains.unfinished.get(number, ([], remains.result))

    def unfinished_from(self, branch: str, number: int) -> dict[int, tuple[list[Mark], Any]]:
        """Return the same of all unfinished scopes from this number on."""
        remains = self._remains.get(branch)
        return {} if remains is None else {at: left for at, left in remains.unfinished.items() if at >= number}

    # Streams: the run takes over those begun in its rehearsal.

    def begun_stream(self, branch: str, stream: Stream, where: str, *, sealed: bool) -> Any:
        """Return the stream that was begun in the rehearsal, or the error of beginning it again."""
        number = self._begun[branch] = self._begun.get(branch, -1) + 1
        if self.rehearses:
            self.check_pull(branch, sealed=sealed)
            if isinstance(stream.source, (Iterator, AsyncIterator)):
                return DefinitionError(
                    f"the run cannot continue: the {stream.name} {where} is used up. "
                    f"Write stream(function, *args), which can be called again"
                )
            return None
        return self.streams.pop((branch, number), None)

    def keep_stream(self, branch: str, begun: Any) -> None:
        """Keep a stream that a rehearsal has begun."""
        if self.rehearses:
            self.streams[branch, self._begun[branch]] = begun

    def check_pull(self, branch: str, *, sealed: bool) -> None:
        """End the rehearsal where a stream would yield units that have not run."""
        if self.rehearses and not (sealed or self.has_more(branch)):
            raise self.stop


class Rehearsal(History):
    """The first walk through a history: it finds changes since then, and the steps that still hold.

    `code` returns the fingerprint of a function; with None, no code is compared. With `rerun` the history holds up to the
    first change; it never holds beyond a step in the place of another one, or beyond the stage `until`.
    """

    def __init__(
        self,
        steps: Outcomes,
        *,
        pipeline: Pipeline,
        code: Callable[[Any], str] | None,
        rerun: bool = False,
        until: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(steps, **more)
        self.rehearses = True
        self.keeps_records = False  # nobody reads them
        self.changes: list[str] = []
        self.error: BaseException | None = None  # the failure of the rehearsal itself
        self.differs = False  # the history does not hold to its end
        self.until = until
        self.taken: set[tuple[str, int]] = set()
        self._dropped: dict[str, int] = {}
        self._all = steps
        self._pipeline = pipeline
        self._code = code
        self._rerun = rerun

    def take(self, branch: str, number: int, unit: Any, around: Any, *, sealed: bool) -> Outcome | None:
        """Return the earlier outcome of a step; raises `stop` where the step would be performed."""
        if self.until is not None and isinstance(unit, Stage):
            template = None if unit.template is None else unit.template.name
            if self.until in (unit.name, template):
                self.until = None
                self.differs = True
                raise self.stop
        earlier = super().take(branch, number, unit, around, sealed=sealed)
        if type(unit) is not Step:
            return earlier
        if earlier is None or not (earlier.is_final or sealed):
            raise self.stop
        self._check_code(unit, around, earlier)
        self.taken.add((branch, number))
        return earlier

    def _counts(self, outcome: Outcome) -> bool:
        """Whether a step must not be dropped for another one: it has ended, or somebody may have been asked."""
        return outcome.is_final or outcome.status is Status.SUSPENDED

    def confirm(self, branch: str, earlier: Outcome, unit: Any, number: int) -> BaseException | None:
        """Confirm that a scope ends as it did before, and note that it still holds."""
        changed = super().confirm(branch, earlier, unit, number)
        if changed is None:
            self.taken.add((branch, earlier.number))
        return changed

    def drop_from(self, branch: str, number: int) -> dict[str, int]:
        """Forget steps that had begun and are gone, or are no longer wanted."""
        dropped = super().drop_from(branch, number)
        for each, since in dropped.items():
            self._dropped[each] = min(since, self._dropped.get(each, since))
        return dropped

    def mismatch(self, branch: str, unit: Any, around: Any, earlier: Outcome) -> BaseException:
        """Return the error of a step in the place of another one."""
        if branch == ROOT and not self.taken and isinstance(unit, Stage):
            names = {unit.name for unit in every_unit(self._pipeline.units)}
            if names.isdisjoint(outcome.name for outcome in self._all[ROOT].values()):
                began = f"the run began with {_described(earlier.unit, around, earlier)}"
                begins = f"this one begins with {_described(unit, around)}"
                return self.changed(f"this looks like a different pipeline: {began}, {begins}")
        return super().mismatch(branch, unit, around, earlier)

    def changed(self, change: str) -> BaseException:
        """Note a change; the rehearsal ends here."""
        self.changes.append(change)
        self.differs = True
        return self.stop

    def held(self) -> Outcomes:
        """Return the steps of the history that still hold, with those that had begun but not ended."""
        held: Outcomes = {}
        cuts = self.cuts()
        for branch, mine in self._all.items():
            cut = cuts.get(branch, inf)
            left = {number: did for number, did in mine.items() if number < cut or (branch, number) in self.taken}
            if left:
                held[branch] = left
        for branch, outcome in self.reopened():
            held[branch][outcome.number] = outcome
        return held

    def cuts(self) -> dict[str, int]:
        """Return, for the branches that lost steps, the number from which on the journal is to forget them."""
        taken, found = self.taken, self._all
        lost = {
            branch: 0
            for branch, mine in found.items()
            if any((branch, number) not in taken and outcome.is_final for number, outcome in mine.items())
        }
        for branch, number in taken:
            if branch in lost:
                lost[branch] = max(lost[branch], number + 1)
        dropped = self._dropped.items()
        gone = {branch: since for branch, since in dropped if any(at >= since for at in found.get(branch, ()))}
        return gone | lost

    def reopened(self) -> list[tuple[str, Outcome]]:
        """Return the scopes that had ended and are to continue: some of their steps still hold, and some do not."""
        return [
            (branch, self._all[branch][number]._replace(status=Status.RUNNING, error=None, recovered=False))
            for branch, cut in self.cuts().items()
            for number in self._all[branch]
            if number < cut and self._all[branch][number].is_final and (branch, number) not in self.taken
        ]

    def _check_code(self, step: Step, around: Any, earlier: Outcome) -> None:
        if self._code is None or not earlier.is_final:
            return
        before = earlier.fingerprint
        if not isinstance(earlier.unit, Recorded):
            function: Any = earlier.unit.__wrapped__
            if function is step.function or isinstance(function, Missing):
                return
            before = self._code(function)
        if _is_same_code(self._code(step.function), before):
            return
        change = f"action {around.name}/{step.name} has completed, with different code"
        if self._rerun:
            raise self.changed(change)
        self.changes.append(change)


def _is_same(unit: Any, earlier: Outcome) -> bool:
    """Whether a step has the same kind and name as before, and a group of fixed branches the same number of them."""
    kind = kind_of(unit)
    if earlier.name != unit.name or kind_of(earlier.unit) != kind:
        return False
    return kind != "group" or unit.stream is not None or earlier.branches in (0, len(unit.units))


def _stage_around(first: Outcome | None) -> Outcome | None:
    """Return what is known of a stage without a row of its own, from the row of its first action, if this is one."""
    if first is None or type(first.unit) is not Recorded or first.unit.kind != "action":
        return None
    return unfinished_stage(first)


def _is_same_code(now: str, before: str) -> bool:
    """Whether two fingerprints agree; those of different versions of Python (before the colon) cannot be compared."""
    return now == before or now.rpartition(":")[0] != before.rpartition(":")[0]


def _described(unit: Any, around: Any, earlier: Outcome | None = None) -> str:
    kind = kind_of(unit)
    name = unit.name if earlier is None else earlier.name
    if kind == "action":
        stage = unit.stage if isinstance(unit, Recorded) else "" if around is None else around.name
        return f"action {stage}/{name}"
    return f"{'parallel group' if kind == 'group' else kind} {name!r}"
