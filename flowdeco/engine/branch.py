"""The state of an evaluation: of the run itself, or of a branch of a parallel group.

A `Branch` has an *agenda*, a stack of the work left to do, the next item on top: units, the steps of the open stage,
and, below their contents, the scopes still to be closed. It has a store of its own, numbers its steps, and has the
records of those that ended, and the rows that are to be written.

In a resumed run a branch is *sealed* while it is inside a scope that had ended: everything there is restored, and
nothing may be performed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from flowdeco.engine.deadlines import Deadline
from flowdeco.engine.journal import Payload, Row
from flowdeco.engine.layers import Layers
from flowdeco.engine.memory import Leftovers, Remains
from flowdeco.engine.messages import MOST_SHOWN
from flowdeco.engine.open_scopes import OpenScope, OpenStream
from flowdeco.engine.outcome import ROOT, Outcome, Status, branch_id
from flowdeco.engine.records import Records
from flowdeco.engine.requests import Failure, Raised, Save, Walk, ended_by_another
from flowdeco.engine.terms import Terms
from flowdeco.engine.waits import Waits
from flowdeco.errors import Wait
from flowdeco.events import Event
from flowdeco.model.definitions import Action, Stage, Stream, Unit, stage_selectors
from flowdeco.model.keys import Name
from flowdeco.model.options import Middleware
from flowdeco.model.selectors import switched_off
from flowdeco.model.store import Store

__all__ = ["Branch"]

_NO_SWITCHES: Final[Mapping[str, bool]] = {}


class Branch:
    """One line of evaluation, over a store of its own.

    `conductor` decides on it, and `index` is its place in the group: None and 0 for the run itself.
    """

    # The defaults cost a branch nothing; each of them set for each branch would take as long as an action.
    unit: Any = None  # the branch of the group
    number = 0  # of the next step
    places = 0  # of pipelines with options, to which records refer
    result: Any = None
    sealed = 0  # open scopes that had ended before the run was resumed; also counts a finished run, and a lost branch
    revocable = 0  # open scopes that may ask for another attempt
    atomic = 0  # open scopes that are one step: rows are held back
    ended_early = False  # in a group that had failed, before a resume
    stopped = False  # by the end of another branch of its group
    deadline: Deadline | None = None  # of the innermost scope that has one
    guarded = False  # perhaps the next step must not begin: it was stopped, the run was cancelled, or it has a deadline
    is_behind = False  # it may lack what other branches had changed in place before a resume
    is_catching_up = False  # it has performed nothing since the run was resumed, and had a history (`go_live`)
    logged: dict[int, Outcome] | None = None  # in memory: the outcomes of its scopes
    # Few branches have these; they are replaced, and never changed in place.
    switches: Mapping[str, bool] = _NO_SWITCHES  # the latest one last
    switched: Mapping[str, bool] = _NO_SWITCHES  # those of this branch
    consumed: frozenset[str] = frozenset()  # keys of answers
    changed: frozenset[str] = frozenset()  # with a journal: keys whose values were changed in place
    held_waits: tuple[Wait, ...] = ()  # of the steps inside an atomic one
    # Answers that another attempt at an open scope will need: number here, branch and number there.
    answered: tuple[tuple[int, tuple[str, int], list[Wait]], ...] = ()
    leftovers: Leftovers | None = None  # of failures, once there was one
    _id: str | None = None

    def __init__(
        self, terms: Terms, store: Store, base: OpenScope, parent: Branch | None = None, conductor: Any = None,
        index: int = 0,
    ) -> None:  # fmt: skip
        self.terms = terms
        self.store = store
        self.read = store.reader()
        self.base = self.scope = base
        self.parent = parent
        self.conductor = conductor
        self.index = index
        self.agenda: list[tuple[Any, str | None]] = []
        self.records = Records(terms.most_records)
        # Groups that another attempt may have to forget: the number of each, and the ids of all its branches.
        self.inner_branches: list[tuple[int, list[str]]] = []
        self.rows: list[Any] = []  # not yet written to the journal
        # Changed in place before a resume: the order of the last change, and the value after it.
        self.revised: dict[Name, tuple[int, Any]] = {}
        self.waits: dict[int, Waits] = {}  # of the steps at work
        if terms.log is not None:
            self.logged = terms.log.of(None if conductor is None else conductor.id, index)
        if parent is not None and (parent.switches or parent.revocable or parent.atomic or terms.past is not None):
            self._inherit(parent)
        if parent is not None and parent.deadline is not None:
            self.deadline, self.guarded = parent.deadline, True
        if terms.past is not None:
            self.is_behind = parent is not None
            self.is_catching_up = terms.past.has_more(self.id)

    def _inherit(self, parent: Branch) -> None:
        self.switches = parent.switches
        self.revocable, self.atomic = parent.revocable, parent.atomic
        self.sealed, self.ended_early = parent.sealed, parent.ended_early

    @property
    def id(self) -> str:
        """Its identity in logs and journals, worked out when it is needed: that takes as long as an action."""
        if self._id is None:
            self._id = ROOT if self.conductor is None else branch_id(self.conductor.id, self.index)
        return self._id

    # Whether another step may begin.

    def stop(self) -> None:
        """Begin nothing more: another branch has ended the group."""
        self.stopped = self.guarded = True

    def live_by(self, deadline: Deadline | None) -> None:
        """Have this deadline, and those around it, count from here on."""
        self.deadline = deadline
        self.guarded = self.stopped or deadline is not None or self.terms.gate.cancelled is not None
        if self.parent is None:
            self.terms.gate.deadline = deadline

    def refusal(self) -> Failure:
        """Return the error of a step that must not begin."""
        if self.stopped:
            return ended_by_another()
        gate = self.terms.gate
        if gate.cancelled is not None:
            gate.drop_late()
            return gate.cancelled
        return None if self.deadline is None else self.deadline.refusal()

    # Numbers, and the history of a resumed run.

    def next_number(self) -> int:
        """Take the next number of the branch."""
        self.number += 1
        return self.number - 1

    def next_place(self) -> str:
        """Return the id that distinguishes the next pipeline with options from others of its name."""
        self.places += 1
        return f"p{self.places}"

    def restores(self, earlier: Outcome | None) -> bool:
        """Whether a step is restored: it had ended well, or is in a scope or branch in which nothing is performed."""
        return earlier is not None and (earlier.is_final or bool(self.sealed))

    # Waiting.

    def waits_of(self, number: int) -> Waits:
        """Return the waits of a step at work."""
        found = self.waits.get(number)
        if found is None:
            terms = self.terms
            earlier, wall = terms.waits.pop((self.id, number), ()), terms.wall
            if self.deadline is not None:
                wall = wall._replace(deadline=self.deadline)
            found = self.waits[number] = Waits(wall, terms.since, earlier)
        return found

    def may_take(self, key: str) -> bool:
        """Whether a step here may take the value that was given under a key: no other branch of a group around it has."""
        branch, claims = self, self.terms.claims
        while branch.parent is not None:
            if claims.setdefault((branch.conductor.id, key), branch.index) != branch.index:
                return False
            branch = branch.parent
        return True

    # Layers.

    def layers(
        self, number: int, layers: tuple[Middleware, ...], stage: Stage | None, action: Action[..., Any] | None = None
    ) -> Layers:
        """Return the layers of a step in the current scope; with a journal, they note what they may change in place."""
        terms, scope, shown = self.terms, self.scope, self.store
        watch = None if terms.recorder is None else terms.recorder.looks.watch(shown, self.note_changed)
        if watch is not None:
            shown = watch.watched()
        around = Layers(terms.run_id, shown, scope.pipeline, stage, action, layers, terms.gate)
        around.values = scope.values
        if watch is not None:
            around.watch, around.waits = watch, partial(self.waits_of, number)
        return around

    # Noting outcomes.

    def add_row(self, row: Row) -> None:
        """Have a row written by the next `save`; one that an atomic scope holds back longer keeps its own values."""
        if self.atomic and type(row.payload) is Payload:
            row = row._replace(payload=row.payload.kept())
        self.rows.append(row)

    def note_changed(self, keys: Iterable[Name]) -> None:
        """Note that the values under these keys were changed in place."""
        self.changed = self.changed.union(key for key in keys if isinstance(key, str))

    def save(self) -> Walk:
        """Write the noted rows to the journal; once that has failed, nothing more is written."""
        recorder = self.terms.recorder
        if recorder is None:
            return None
        if self.rows and recorder.unsaved is None and not self.atomic:
            rows, self.rows = self.rows, []
            answer = yield Save(recorder.write, rows)
            if type(answer) is Raised:
                recorder.unsaved = answer.error
        if self.terms.gate.cancelled is not None:
            self.guarded = True
        return recorder.unsaved

    def unsaved(self) -> Failure:
        """Return the error that keeps the journal from being written: no layer recovers it."""
        recorder = self.terms.recorder
        return None if recorder is None else recorder.unsaved

    # After a failure, and before another attempt.

    def left_behind(self) -> Leftovers:
        """Return what failures have left here so far, to add to it."""
        if self.leftovers is None:
            self.leftovers = Leftovers(is_kept=self.terms.log is not None)
        return self.leftovers

    def end_unwinding(self) -> None:
        """Stop noting the writes of layers after a failure: the branch has ended."""
        if self.leftovers is not None:
            self.leftovers.end_unwinding(self.store)

    def remains(self) -> dict[str, Remains]:
        """Return the remains of the branch, which has failed, and of the branches in it."""
        return self.left_behind().all_remains(self.id, self.store, self.result)

    # Selectors.

    def switch(self, selector: str, on: bool) -> None:
        """Note that the selected units are disabled, or enabled again, from here on."""
        self.switches, self.switched = (
            {**{each: is_on for each, is_on in switches.items() if each != selector}, selector: on}
            for switches in (self.switches, self.switched)
        )

    def is_off(self, selectors: Callable[[], list[str]]) -> bool:
        """Whether a unit with these selectors is skipped or disabled; they have selected something."""
        if not (self.terms.skip or self.switches):
            return False
        known = selectors()
        self.terms.unmatched.difference_update(known)
        self.terms.used.update(self.switches.keys() & known)
        return self._is_off(known)

    def _is_off(self, known: list[str], more: Iterable[tuple[str, bool]] = ()) -> bool:
        return not self.terms.skip.isdisjoint(known) or switched_off(known, (*self.switches.items(), *more))

    def skips(self, unit: Unit, earlier: Outcome | None) -> bool:
        """Whether a unit is skipped as a whole, now or before the run was resumed."""
        off = self.is_off(lambda: stage_selectors(unit))  # even if too late: the selector has matched
        if earlier is not None and self.restores(earlier):
            return earlier.status is Status.SKIPPED and earlier.entered
        return off or self.scope.is_skipped

    # Surroundings.

    def upcoming(self, more: Sequence[tuple[str, bool]] = ()) -> Iterator[Unit | Stream]:
        """Yield the units that will run after the current stage, if these switches are added."""
        for unit in self._waiting():
            if not (isinstance(unit, Unit) and self._is_off(stage_selectors(unit), more)):
                yield unit

    def _waiting(self) -> Iterator[Unit | Stream]:
        yield from (unit for unit, _ in self.scope.inserted)
        branch: Branch | None = self
        while branch is not None:
            for unit, _ in reversed(branch.agenda):
                if isinstance(unit, OpenStream):
                    yield unit.stream
                elif isinstance(unit, (Unit, Stream)):
                    yield unit
            branch = branch.parent

    @property
    def notify(self) -> Callable[[Event], None] | None:
        """The observers of the run, if there are any."""
        return self.terms.notify

    def now(self) -> float:
        """Return the time in POSIX seconds."""
        return self.terms.clock() + self.terms.epoch

    def has_room(self, size: int) -> bool:
        """Whether the run may keep a shown value of this size in addition to those it has."""
        if self.terms.shown + size > MOST_SHOWN:
            return False
        self.terms.shown += size
        return True
