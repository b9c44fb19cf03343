"""Another attempt at a scope forgets the failed one: a branch in the middle of it, and what is left of it afterwards."""

from types import SimpleNamespace

import pytest
from scripted import terms_of

from flowdeco import Pipeline, Stage, Status, Store
from flowdeco.engine.attempts import forget_attempt, forget_held, repeat_changes, state_before
from flowdeco.engine.branch import Branch
from flowdeco.engine.history import History
from flowdeco.engine.memory import Log
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.engine.outcome import RUN, ActionRecord, Outcome, Scope, StageRecord, branch_id
from flowdeco.engine.requests import Raised, Save
from flowdeco.engine.rows import Recorded
from flowdeco.errors import Wait
from flowdeco.model.deltas import Delta

UNIT = Stage("s")
PLACE = Scope("p", "p1", None, None, None)


class Recorder:
    """All that another attempt asks of one."""

    unsaved = None

    def __init__(self):
        self.forgotten = 0
        self.looks = SimpleNamespace(forget=self.forget)
        self.drop = object()

    def forget(self):
        self.forgotten += 1


def row(branch, number):
    return SimpleNamespace(branch=branch, number=number)


def failed(number, error, kind=StageRecord, **more):
    return kind(f"step {number}", UNIT, Status.FAILED, 0.0, 0.0, number=number, error=error, **more)


def in_an_attempt(unit=UNIT, **terms):
    """A branch with the scope 2 open, whose attempt has come to step 6, and that scope; groups were 1, 3 and 5."""
    branch = Branch(terms_of(**terms), Store(), OpenScope(None, None, None, 0.0))
    branch.records.add(failed(0, ValueError("before")))
    branch.switch("a", False)
    branch.result, branch.places = "before", 1
    scope = OpenScope(branch.base, unit, None, 0.0, 2)
    scope.place = PLACE
    scope.layers = SimpleNamespace(dropped={}, inside={("x", 0)}, entry_writes=[])
    scope.before = state_before(branch)
    branch.number = 6
    branch.records.add(failed(3, ValueError("stage")))
    scope.records.append(failed(4, ValueError("action"), ActionRecord))
    scope.inserted.append((UNIT, "s/a"))
    branch.switch("a", True)
    branch.switch("b", False)
    branch.result, branch.places = "since", 2
    branch.inner_branches = [(1, ["g1"]), (2, ["g2"]), (5, ["g5", "g6"])]
    branch.left_behind().unfinished = {number: ([], None) for number in (0, 2, 5)}
    branch.answered = tuple((number, ("0", number), [Wait("question", key=str(number))]) for number in (1, 2, 5))
    places = [("0", 1), ("0", 2), ("0", 5), ("g1", 9), ("g6", 0), None]
    branch.held_waits = tuple(Wait("sleep", at=place) for place in places)
    branch.rows = [row("0", 1), row("0", 2), row("0", 5), row("g5", 0), row("g1", 5)]
    return branch, scope


def driven(walk, answer=None):
    """The requests of a walk, all answered in the same way, and what it returns."""
    requests = []
    try:
        requests.append(walk.send(None))
        while True:
            requests.append(walk.send(answer))
    except StopIteration as end:
        return requests, end.value


def test_a_branch_is_as_it_was_before_the_attempt():
    """Records, switches, result; the numbers of its steps begin again."""
    branch, scope = in_an_attempt()
    assert driven(forget_attempt(branch, scope)) == ([], None)
    assert [record.number for record in branch.records.kept] == [0]
    assert (branch.switches, branch.switched) == ({"a": False}, {"a": False})
    assert (branch.result, branch.places, branch.number) == ("before", 1, 3)
    assert (scope.records, scope.inserted) == ([], [])
    assert branch.inner_branches == [(1, ["g1"])]
    assert list(branch.left_behind().unfinished) == [0]
    branch.switch("a", True)
    branch.switch("c", True)
    assert driven(forget_attempt(branch, scope)) == ([], None)
    assert (branch.switches, branch.switched) == ({"a": False}, {"a": False})  # as often as it is tried


@pytest.mark.parametrize(
    ("unit", "place", "key"),
    [(UNIT, "p1[None]", (4, "step 4")), (Pipeline((UNIT,)), "p1[None]", (3, "step 3"))],
    ids=["stage", "pipeline"],
)
def test_the_errors_of_the_attempt_are_kept(unit, place, key):
    """Those of the actions of a stage, and of the stages of a pipeline, after those of earlier attempts."""
    branch, scope = in_an_attempt(unit)
    dropped = {}
    for attempt in (1, 2):
        driven(forget_attempt(branch, scope))
        dropped = scope.layers.dropped
        assert [found[1:] for found in dropped] == [key]
        assert [found[0] for found in dropped] == [place]
        assert len(dropped[next(iter(dropped))]) == attempt
        branch.records.add(failed(3, ValueError("again")))
        scope.records.append(failed(4, ValueError("again"), ActionRecord))


def test_steps_that_run_again_find_their_answers_again():
    """Those inside the scope, and of its own layers; those before it stay with their steps."""
    branch, scope = in_an_attempt()
    driven(forget_attempt(branch, scope))
    assert branch.terms.waits == {("0", 2): [Wait("question", key="2")], ("0", 5): [Wait("question", key="5")]}
    assert [number for number, _, _ in branch.answered] == [1]
    assert scope.layers.inside == {("x", 0), ("0", 2), ("0", 5)}
    assert [wait.at for wait in branch.held_waits] == [("0", 1), ("g1", 9), None]
    for number, left in ((0, [None]), (RUN, [])):
        scope.number = number
        driven(forget_attempt(branch, scope))
        assert [wait.at for wait in branch.held_waits] == left


def test_log_and_history_forget_the_steps_as_well():
    """Also those of branches of groups inside the scope, whether they were in this leg of the run or before it."""
    log = Log()
    inner = branch_id("0.5", 0)
    group = Outcome("g", Recorded("group", ""), Status.COMPLETED, 0.0, 0.0, number=5, branches=1)
    past = History({"0": {1: failed(1, None), 5: group}, inner: {0: failed(0, None)}, "g5": {0: failed(0, None)}})
    branch, scope = in_an_attempt(log=log, past=past)
    branch.logged.update({number: failed(number, None) for number in (1, 2, 3)})
    log.steps["g5"] = {0: failed(0, None)}
    assert driven(forget_attempt(branch, scope)) == ([], None)
    assert {id: list(steps) for id, steps in log.steps.items()} == {"0": [1], "g5": []}
    assert {id: list(steps) for id, steps in past.steps.items()} == {"0": [1]}


def test_the_journal_drops_the_rows_of_the_attempt():
    """Those not written yet are dropped here, and changes in place are looked at anew."""
    recorder = Recorder()
    branch, scope = in_an_attempt(recorder=recorder)
    (request,), error = driven(forget_attempt(branch, scope))
    assert isinstance(request, Save)
    assert request.write is recorder.drop
    assert request.args == ({"0": 3, "g2": 0, "g5": 0, "g6": 0},)  # not that of the scope, with its attempts
    assert (error, recorder.forgotten) == (None, 1)
    assert [(each.branch, each.number) for each in branch.rows] == [("0", 1), ("g1", 5)]


def test_the_journal_also_drops_what_only_the_history_knows():
    """The branches of a group that ran before the resume."""
    group = Outcome("g", Recorded("group", ""), Status.COMPLETED, 0.0, 0.0, number=5, branches=1)
    branch, scope = in_an_attempt(recorder=Recorder(), past=History({"0": {5: group}}))
    (request,), _ = driven(forget_attempt(branch, scope))
    assert request.args[0] == {"0": 3, branch_id("0.5", 0): 0, "g2": 0, "g5": 0, "g6": 0}


def test_a_journal_that_cannot_drop_them_ends_the_run():
    """It is asked no more."""
    recorder, full = Recorder(), OSError("disk full")
    branch, scope = in_an_attempt(recorder=recorder)
    assert len(driven(forget_attempt(branch, scope), Raised(full))[0]) == 1
    assert recorder.unsaved is full
    branch.rows = [row("0", 5)]
    assert driven(forget_attempt(branch, scope)) == ([], full)
    assert (len(branch.rows), recorder.forgotten) == (1, 1)


def test_inside_an_atomic_scope_the_journal_has_no_rows_to_drop():
    """They were held back."""
    branch, scope = in_an_attempt(recorder=Recorder())
    branch.atomic = 1
    assert driven(forget_attempt(branch, scope)) == ([], None)
    assert [(each.branch, each.number) for each in branch.rows] == [("0", 1), ("g1", 5)]


def test_an_atomic_scope_that_failed_leaves_no_steps():
    """Rows held back since it began, records of scopes and branches in it, and remains are gone; it is still known."""
    recorder, log = Recorder(), Log()
    branch, scope = in_an_attempt(recorder=recorder, log=log)
    scope.held = 1
    branch.logged.update({number: failed(number, None) for number in (1, 2, 3)})
    log.steps.update({id: {0: failed(0, None)} for id in ("g1", "g2", "g5")})
    forget_held(branch, scope)
    assert [(each.branch, each.number) for each in branch.rows] == [("0", 1)]
    assert (recorder.forgotten, branch.left_behind().unfinished) == (1, {})
    assert {id: list(steps) for id, steps in log.steps.items()} == {"0": [1, 2], "g1": [0], "g2": [0], "g5": []}
    without, scope = in_an_attempt()
    forget_held(without, scope)
    assert without.rows == []


def test_changes_in_place_are_noted_again():
    """With the writes of the innermost layer, in the order of their keys; the values are still there."""
    branch, scope = in_an_attempt()
    branch.store.update({"a": [1], "b": [2], "c": [3]})
    branch.changed = {"b", "a", "gone"}
    repeat_changes(branch, scope.layers)
    assert scope.layers.entry_writes == []
    outer, inner = [Delta({"x": 1}, [], {})] * 2, Delta({"y": 1}, [], {}, {"b": "earlier", "d": 4})
    scope.layers.entry_writes = [*outer, inner]
    repeat_changes(branch, scope.layers)
    assert scope.layers.entry_writes == [*outer, inner._replace(changes={"b": [2], "d": 4, "a": [1]})]
