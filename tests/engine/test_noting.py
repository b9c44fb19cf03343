"""The outcome of a step is noted once: for the journal, for a resume in memory, for observers, in its exception."""

from threading import Lock
from types import SimpleNamespace

import pytest
from scripted import in_stage, recorder
from support import step

from flowdeco import Bail, Stage, Suspend, action, parallel, pipeline
from flowdeco.durable import PickleCodec
from flowdeco.engine.branch import Branch
from flowdeco.engine.layers import Layers
from flowdeco.engine.memory import Log
from flowdeco.engine.noting import ended_as, note, note_entry_writes, note_place
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.engine.outcome import ROOT, ActionRecord, Outcome, Scope, StageRecord, Status
from flowdeco.engine.rows import outcomes
from flowdeco.errors import OVER, SLEEP, SerializationError, Wait
from flowdeco.events import ActionFinished, StageFinished, UnitsInserted
from flowdeco.model.deltas import NOTHING, Delta
from flowdeco.model.sentinels import UNSET

ACT = step([], "a")
STAGE, GROUP, FLOW = Stage("s", [ACT]), parallel(ACT, name="g"), pipeline(Stage("t"), name="p")
ERROR = ValueError("no")
PLACE = Scope("p", "0.p1", None, None, None)
WRITES = Delta({"k": 1}, ["gone"], {"xs": [1]})


def did(unit=ACT, status=Status.COMPLETED, number=3, **more):
    """The outcome of a step."""
    kind = {type(ACT): ActionRecord, Stage: StageRecord}.get(type(unit), Outcome)
    return kind(unit.name, unit, status, 1.0, 1.0, number=number, **more)


def failed(unit=ACT, error=ERROR, **more):
    return did(unit, Status.FAILED, error=error, **more)


def back(rows, branch=ROOT):
    """The outcomes that these rows tell, by number."""
    return outcomes(rows, PickleCodec())[branch]


# -- noted


@pytest.mark.parametrize("unit", [ACT, STAGE, GROUP, FLOW], ids=["action", "stage", "group", "pipeline"])
def test_an_outcome_is_noted_for_all_who_want_to_know(unit):
    """As a row; for a resume in memory, without its values; as events."""
    outcome = did(unit, writes=Delta({"k": 1}, [], {}), inserted=(STAGE,))
    branch = in_stage(STAGE, recorder=recorder())
    assert note(branch, outcome) == (outcome, None)
    (row,) = branch.rows
    kind = {ACT: "action", STAGE: "stage", GROUP: "group", FLOW: "pipeline"}[unit]
    assert (row.branch, row.number, row.kind, row.stage) == (ROOT, 3, kind, "s" if unit is ACT else unit.name)
    assert back([row])[3].writes.puts == {"k": 1}

    branch = in_stage(STAGE, log=Log())
    assert note(branch, outcome) == (outcome, None)
    assert branch.logged == ({} if unit is ACT else {3: outcome.kept()})  # actions are in the record of their stage
    assert branch.rows == []

    heard = []
    branch = in_stage(STAGE, notify=heard.append)
    heard.clear()
    note(branch, outcome)
    finished = {ACT: [ActionFinished], STAGE: [StageFinished]}.get(unit, [])
    assert [type(event) for event in heard] == [UnitsInserted, *finished]
    assert (heard[0].run_id, heard[0].stage) == ("run-1", "s" if unit in (ACT, STAGE) else None)


def test_what_was_restored_is_in_the_journal_already():
    """It is noted elsewhere all the same."""
    heard = []
    branch = in_stage(STAGE, recorder=recorder(), log=Log(), notify=heard.append)
    heard.clear()
    note(branch, did(STAGE, restored=True))
    assert (branch.rows, list(branch.logged), [type(event) for event in heard]) == ([], [3], [StageFinished])


class Odd:
    """A value that cannot be pickled, and ends the process by trying."""

    def __reduce__(self):
        raise KeyboardInterrupt


@pytest.mark.parametrize(("value", "kind"), [(Lock(), SerializationError), (Odd(), KeyboardInterrupt)])
def test_a_step_whose_effect_cannot_be_journaled_has_failed(value, kind):
    """The journal has that failure, and nothing of the effect."""
    outcome = did(writes=Delta({"k": value}, [], {}), result=value, inserted=(STAGE,), switches=(("t", False),))
    branch = in_stage(STAGE, recorder=recorder())
    noted, refused = note(branch, outcome)
    assert isinstance(refused, kind)
    assert noted == outcome.refused(refused)
    assert (noted.writes, noted.inserted, noted.switches, noted.result, noted.error) == (None, (), (), UNSET, refused)
    assert [(row.status, row.branch, row.stage, row.number) for row in branch.rows] == [("failed", ROOT, "s", 3)]


def test_of_what_has_failed_the_writes_are_left_out_if_they_cannot_be_encoded():
    """They are dropped on a resume; the failure is not."""
    outcome = failed(STAGE, writes=Delta({"k": Lock()}, [], {}), scope=PLACE)
    branch = in_stage(STAGE, recorder=recorder())
    assert note(branch, outcome) == (outcome, None)
    found = back(branch.rows)[3]
    assert (found.status, found.writes, str(found.error), found.scope) == ("failed", NOTHING, "no", PLACE)


def test_a_failure_that_cannot_be_journaled_happens_again_on_resume():
    """It stays what it is."""
    outcome = failed()
    branch = in_stage(STAGE, recorder=recorder())
    branch.terms.recorder.row = refuses
    assert note(branch, outcome) == (outcome, None)
    assert branch.rows == []
    noted, refused = note(branch, did())
    assert (noted.status, noted.error, type(refused)) == ("failed", refused, KeyboardInterrupt)
    assert branch.rows == []


def refuses(*args):
    raise KeyboardInterrupt


# -- where it failed


@pytest.mark.parametrize(
    ("unit", "where"),
    [
        (ACT, "in action 'a' of stage 's', pipeline 'pipeline', run 'run-1'"),
        (STAGE, "in stage 's', pipeline 'pipeline', run 'run-1'"),
        (GROUP, "in parallel group 'g', pipeline 'pipeline', run 'run-1'"),
        (FLOW, "in pipeline 'p', run 'run-1'"),
    ],
)
def test_an_exception_has_a_note_with_its_place(unit, where):
    """Once: that of the innermost step."""
    error = ValueError("no")
    branch = in_stage(STAGE)
    assert note(branch, failed(unit, error)) == (failed(unit, error), None)
    note(branch, failed(STAGE, error))
    assert error.__notes__ == [where]
    branch.terms.run_id = "run-2"
    note(branch, failed(STAGE, error))
    assert error.__notes__ == [where, "in stage 's', pipeline 'pipeline', run 'run-2'"]


def in_branches(*groups):
    """A branch in these groups, the outermost first: each with the place of its branch, and the unit of that."""
    branch = in_stage(STAGE)
    for group, index, unit in groups:
        base = OpenScope(branch.scope, None, None, 0.0)
        base.place = Scope(group, f"0.{group}", index, None, None)
        conductor = SimpleNamespace(id=f"0.{group}", group=parallel(unit, name=group))
        branch = Branch(branch.terms, branch.store.fork(), base, branch, conductor, index)
        branch.unit = unit
    branch.scope = OpenScope(branch.base, STAGE, None, 0.0)
    branch.scope.pipeline = branch.scope.pipeline
    return branch


def test_the_note_names_the_branches_that_it_was_in():
    """The innermost first, and with the values by which they can be told apart."""
    bound = action(name="reads")(lambda path: None).bind(path="x.csv")
    branch = in_branches(("outer", 1, FLOW), ("inner", 0, bound))
    error = ValueError("no")
    note(branch, failed(error=error))
    (found,) = error.__notes__
    assert found.startswith("in action 'a' of stage 's', pipeline 'pipeline', branch 0 ('reads[")
    assert "x.csv" in found
    assert found.endswith("') of parallel group 'inner', branch 1 ('p') of parallel group 'outer', run 'run-1'")


@pytest.mark.parametrize(("depth", "more"), [(8, 0), (9, 0), (10, 2), (20, 12)])
def test_of_very_many_branches_the_note_names_the_innermost_and_the_outermost(depth, more):
    """And how many there are between them."""
    branch = in_branches(*((f"g{level}", 0, STAGE) for level in range(depth)))
    note(branch, failed(error=(error := ValueError("no"))))
    (found,) = error.__notes__
    named = [level for level in range(depth) if f"group 'g{level}'" in found]
    assert named == ([*range(depth)] if not more else [0, 1, 2, 3, *range(depth - 4, depth)])
    assert (f", {more} more branches, " in found) is bool(more)


@pytest.mark.parametrize("error", [Bail("done"), Suspend("waits")], ids=repr)
def test_a_signal_has_no_note(error):
    """It is no failure."""
    note(in_stage(STAGE), failed(error=error))
    assert not hasattr(error, "__notes__")


class Closed(Exception):
    """An exception that can neither be read nor written."""

    def add_note(self, text):
        raise TypeError("not to me")

    @property
    def __notes__(self):
        raise TypeError("not to you")


def test_an_exception_may_refuse_notes():
    """It is passed on as it is."""
    note_place(in_stage(STAGE), error := Closed(), "action 'a'")
    assert str(error) == ""


# -- how a step ended


def layers(**more):
    """Layers that have come to this."""
    made = Layers("r", None, FLOW, STAGE, None, (), None)
    made.entered = True
    for name, value in more.items():
        setattr(made, name, value)
    return made


TRIED = {"attempt": 3, "failures": (ERROR,)}


@pytest.mark.parametrize(
    ("error", "around", "expected"),
    [
        (None, None, ("completed", None, 1, False, ())),
        (ERROR, None, ("failed", ERROR, 1, False, ())),
        (KeyboardInterrupt, None, ("cancelled", KeyboardInterrupt, 1, False, ())),
        (None, layers(**TRIED), ("completed", None, 3, False, (ERROR,))),
        (ERROR, layers(**TRIED), ("failed", ERROR, 3, False, (ERROR,))),
        (None, layers(**TRIED, recovered=True, failure=ERROR), ("failed", ERROR, 3, True, (ERROR,))),
        (ERROR, layers(recovered=True, failure=LookupError()), ("failed", ERROR, 1, False, ())),
        (None, layers(**TRIED, entered=False), ("skipped", None, 3, False, (ERROR,))),
        (None, layers(entered=False, given=None), ("completed", None, 1, False, ())),
        (ERROR, layers(entered=False), ("failed", ERROR, 1, False, ())),
        (Bail, layers(**TRIED), ("bailed", Bail, 3, False, (ERROR,))),
        (KeyboardInterrupt, layers(), ("cancelled", KeyboardInterrupt, 1, False, ())),
    ],
)
def test_how_a_step_ended_depends_on_its_layers(error, around, expected):
    """A failure that they recovered is kept, and a target that none of them reached was skipped."""
    error = error() if isinstance(error, type) else error
    status, found, *rest = ended_as(in_stage(STAGE), error, around)
    wanted = error if isinstance(expected[1], type) else expected[1]
    assert (status, found, *rest) == (expected[0], wanted, *expected[2:])


# -- the writes of layers as they are entered


def entered(written, around=None, **terms):
    """A branch that has noted these writes of the layers of a stage, and the error."""
    branch = in_stage(STAGE, **{"recorder": recorder(), **terms})
    scope = OpenScope(branch.scope, STAGE, "s/x", 3.0, 4)
    scope.place, scope.layers = PLACE, around
    return branch, note_entry_writes(branch, scope, written, around)


def test_the_writes_of_layers_are_journaled_as_their_scope_begins():
    """With its place, and all that its attempts have come to."""
    around = layers(attempt=3, repeats=(2,), failures=(ERROR,), dropped={("", 1, "a"): [ERROR]})
    around.inside = [(ROOT, 5), (ROOT, 6)]
    terms = {"waits": {(ROOT, 4): [Wait(OVER, who=0, times=1)], (ROOT, 5): [Wait(SLEEP, 7.0)]}}
    branch, error = entered([WRITES, NOTHING], around, **terms)
    (row,) = branch.rows
    found = back([row])[4]
    assert (error, row.kind, row.stage, row.status, row.started, row.elapsed) == (
        None, "stage", "s", "running", 1003.0, 0.0,
    )  # fmt: skip
    assert (found.inserted_by, found.scope, list(found.entry_writes)) == ("s/x", PLACE, [WRITES, NOTHING])
    assert (found.attempts, found.repeats, [str(each) for each in found.failures]) == (3, (2,), ["no"])
    assert list(found.dropped) == [("", 1, "a")]
    assert list(found.waits) == [Wait(OVER, who=0, times=1), Wait(SLEEP, 7.0, at=(ROOT, 5))]


@pytest.mark.parametrize(
    ("written", "around", "is_noted"),
    [
        ([], None, False),
        ([NOTHING], None, False),
        ([NOTHING, WRITES], None, True),
        ([NOTHING], layers(), False),
        ([WRITES], layers(), True),
        ([NOTHING], layers(attempt=2), True),
    ],
)
def test_layers_that_have_written_nothing_are_not_journaled(written, around, is_noted):
    """But another attempt is: it counts."""
    branch, error = entered(written, around)
    assert (error, len(branch.rows)) == (None, is_noted)
    branch, error = entered(written, around, recorder=None)
    assert (error, branch.rows) == (None, [])


def test_writes_of_layers_that_cannot_be_journaled_are_a_failure_of_the_scope():
    """It does not begin."""
    branch, error = entered([Delta({"k": Lock()}, [], {})])
    assert isinstance(error, SerializationError)
    assert branch.rows == []
    branch, error = entered([Delta({"k": Odd()}, [], {})])
    assert (type(error), branch.rows) == (KeyboardInterrupt, [])
