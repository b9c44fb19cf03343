"""A branch in a resumed run: what it had done is asked for, catches up with other branches, and takes effect again."""

from types import SimpleNamespace

import pytest
from scripted import in_stage, perform, recorder
from support import step

from flowdeco import Stage, pipeline
from flowdeco.durable import PickleCodec
from flowdeco.engine.adoption import Archive
from flowdeco.engine.branch import Branch
from flowdeco.engine.history import History
from flowdeco.engine.memory import Log
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.engine.outcome import ROOT, ActionRecord, Outcome, Scope, StageRecord, Status
from flowdeco.engine.requests import CAUGHT_UP
from flowdeco.engine.restoring import go_live, note_adopted, reapply, recall, restore
from flowdeco.engine.rows import Recorded, outcomes
from flowdeco.errors import ANSWERED, CONSUMED, FOUND, OVER, QUESTION, Cancelled, CodeChangedError, Wait
from flowdeco.events import StageFinished
from flowdeco.model.deltas import Delta
from flowdeco.model.keys import Local
from flowdeco.model.steps import step_of

ACT = step([], "a")
STEP, STAGE = step_of(ACT), Stage("s", [ACT])
FLOW, PLACE = pipeline(Stage("t"), name="p"), Scope("p", "0.p1", None, None, None)


def did(number=1, **more):
    """The outcome of the action."""
    return ActionRecord("a", ACT, Status.COMPLETED, 1.0, 1.0, number=number, **more)


def resumed(*outcomes, inputs=None, **terms):
    """A branch of a run that had these outcomes."""
    past = History({ROOT: {outcome.number: outcome for outcome in outcomes}} if outcomes else {})
    return in_stage(STAGE, inputs, past=past, **terms)


def branch_in(parent, index=0):
    """A branch of a group in this one."""
    base = OpenScope(parent.scope, None, None, 0.0)
    branch = Branch(parent.terms, parent.store.fork(), base, parent, SimpleNamespace(id=f"{parent.id}.9"), index)
    branch.scope = OpenScope(base, STAGE, None, 0.0)
    return branch


# -- the earlier outcome of a step


def test_a_step_has_the_outcome_of_its_place():
    """Whether it counts or not; in a run that is not resumed there is none."""
    failed = did(2)._replace(status=Status.FAILED)
    branch = resumed(did(1), failed)
    assert [recall(branch, number, STEP) for number in (1, 2, 3)] == [did(1), failed, None]
    assert recall(in_stage(STAGE), 1, STEP) is None
    other = branch_in(resumed(did(1)))
    assert recall(other, 1, STEP) is None


def test_another_step_in_its_place_is_a_change():
    """The error names the stage that it is in."""
    with pytest.raises(CodeChangedError, match=r"action s/other comes where the run had s/a"):
        recall(resumed(did(1)), 1, step_of(step([], "other")))


def sealed(*outcomes, end=2, error=None, entered=True):
    """A branch inside a stage that had ended, with the number of the step after it."""
    branch = resumed(*outcomes)
    status = Status.COMPLETED if error is None else Status.FAILED
    branch.scope.earlier = StageRecord("s", STAGE, status, 1.0, 1.0, number=0, end=end, error=error, entered=entered)
    branch.sealed = 1
    return branch


def test_inside_a_scope_that_had_ended_its_steps_are_there():
    """Up to its end."""
    assert recall(sealed(did(1)), 1, STEP) == did(1)
    with pytest.raises(CodeChangedError, match="action s/a is new"):
        recall(sealed(did(1)), 2, STEP)
    with pytest.raises(CodeChangedError, match="action s/a is new"):
        recall(sealed(did(2), end=2), 2, STEP)  # that of what comes behind it
    with pytest.raises(CodeChangedError, match="action s/a is new"):
        recall(sealed(end=-1), 1, STEP)


@pytest.mark.parametrize("is_inner", [False, True])
def test_a_scope_that_had_failed_ends_where_it_had(is_inner):
    """Whatever would come behind that had not begun; also in a scope inside it that has no outcome of its own."""
    branch = sealed(did(1), did(2), end=2, error=ValueError("no"))
    if is_inner:
        branch.scope = OpenScope(branch.scope, STAGE, None, 0.0)
    assert recall(branch, 1, STEP) == did(1)
    branch.number = 3
    with pytest.raises(BaseException) as early:  # noqa: PT011 - it is compared
        recall(branch, 2, STEP)
    assert early.value is branch.terms.past.early_stop
    assert branch.number == 2


def test_a_branch_of_a_group_that_had_failed_ends_where_it_had():
    """What it had done by then is restored; what is around the group says nothing about that."""
    outer = sealed(end=0, error=ValueError("no"))
    branch = branch_in(outer)
    branch.terms.past.steps[branch.id] = {1: did(1)}
    branch.sealed = 1
    branch.ended_early = True
    assert recall(branch, 1, STEP) == did(1)
    with pytest.raises(BaseException) as early:  # noqa: PT011
        recall(branch, 2, STEP)
    assert (early.value is branch.terms.past.early_stop, branch.number) == (True, 2)
    branch.ended_early = False
    with pytest.raises(CodeChangedError):
        recall(branch, 2, STEP)


# -- before anything new runs


def requests_of(branch):
    """The requests before something new runs in this branch, and the error."""
    requests = []
    walk, answer = go_live(branch), None
    try:
        while True:
            requests.append(walk.send(answer))
    except StopIteration as end:
        return requests, end.value


def test_a_branch_of_a_group_waits_until_all_of_them_have_restored_their_history():
    """Once; the run itself waits for nobody, and neither does what had ended."""
    root = resumed(did(1))
    assert root.is_catching_up
    assert (requests_of(root), root.is_catching_up) == (([], None), False)
    branch = branch_in(root)
    assert requests_of(branch) == ([], None)
    branch.is_catching_up = True
    assert (requests_of(branch), branch.is_catching_up) == (([CAUGHT_UP], None), False)
    assert requests_of(branch) == ([], None)
    branch.is_catching_up, branch.sealed = True, 1
    assert requests_of(branch) == ([], None)


def test_a_branch_whose_group_has_ended_meanwhile_begins_nothing():
    """It is told as it has waited."""
    branch = branch_in(resumed())
    branch.is_catching_up = True
    walk = go_live(branch)
    assert next(walk) is CAUGHT_UP
    branch.stop()
    with pytest.raises(StopIteration) as ended:
        walk.send(None)
    assert type(ended.value.value) is Cancelled


def test_in_a_rehearsal_nothing_is_waited_for():
    """Nothing new runs in it."""
    branch = branch_in(resumed())
    branch.is_catching_up = True
    branch.terms.rehearses = True
    assert requests_of(branch) == ([], None)
    assert branch.is_catching_up


# -- an earlier outcome takes effect again


def restoring(*, rehearses=False, keeps=True, archive=None, **terms):
    """A branch of a resumed run."""
    past = History({}, archive=archive)
    past.rehearses, past.keeps_records = rehearses, keeps
    return in_stage(STAGE, {"gone": 0}, past=past, **terms)


WRITES = Delta({"k": 1}, ["gone"], {"xs": [1]})


def scope_of(unit, **more):
    """The outcome of a stage or pipeline."""
    kind = StageRecord if unit is STAGE else Outcome
    return kind(unit.name, unit, Status.COMPLETED, 1.0, 1.0, number=3, **more)


def test_an_earlier_outcome_takes_effect_again():
    """Its record has the unit and the place that it has now."""
    heard = []
    branch = restoring(log=Log(), notify=heard.append)
    heard.clear()
    earlier = scope_of(STAGE, writes=WRITES, result=5)
    found = restore(branch, earlier, STAGE, "s/x", (did(3),), PLACE)
    assert (dict(branch.store), branch.result) == ({"k": 1, "xs": [1]}, 5)
    assert (found.unit, found.inserted_by, found.actions, found.scope, found.restored) == (
        STAGE, "s/x", (did(3),), PLACE, True,
    )  # fmt: skip
    assert (branch.logged, [type(event) for event in heard]) == ({3: found}, [StageFinished])
    branch = restoring()
    branch.result = "before"
    restore(branch, did(), ACT, None)
    assert (branch.result, dict(branch.store)) == ("before", {"gone": 0})


def test_in_a_rehearsal_nothing_takes_effect():
    """Nothing is noted, either."""
    heard = []
    branch = restoring(rehearses=True, keeps=False, log=Log(), notify=heard.append)
    heard.clear()
    earlier = scope_of(STAGE, writes=WRITES)
    assert restore(branch, earlier, STAGE, None) is earlier
    assert (dict(branch.store), branch.logged, heard) == ({"gone": 0}, {}, [])


def test_a_restored_failure_has_its_place():
    """That of now."""
    error = ValueError("then")
    found = restore(restoring(), did(error=error)._replace(status=Status.FAILED), ACT, None)
    assert (found.error, error.__notes__) == (
        error, ["in action 'a' of stage 's', pipeline 'pipeline', run 'run-1'"],
    )  # fmt: skip


ANSWERS = [
    Wait(QUESTION, key="q", state=ANSWERED, value=1, given=0),
    Wait(QUESTION, key="found", state=FOUND, given=CONSUMED),
    Wait(OVER, times=2),
]


def test_answers_that_a_restored_step_used_up_are_used_up():
    """No other branch may take what it had found in the store; another attempt at what is around it may need them."""
    branch = branch_in(restoring(), 1)
    branch.consumed = frozenset({"before"})
    restore(branch, did(waits=ANSWERS), ACT, None)
    assert branch.consumed == {"before", "q", "found", ""}
    assert branch.terms.claims == {("0.9", "found"): 1}
    assert branch.answered == ()
    branch.revocable = 1
    restore(branch, did(waits=ANSWERS[2:], number=4), ACT, None)
    restore(branch, did(waits=ANSWERS, number=5), ACT, None)
    assert branch.answered == (
        (4, (branch.id, 4), []), (5, (branch.id, 5), ANSWERS[:2]),
    )  # fmt: skip


def test_an_outcome_of_an_earlier_generation_is_journaled_in_its_present_place():
    """One that was there already is not."""
    for adopted, expected in ((True, [("a", 3, "completed")]), (False, [])):
        branch = restoring(archive=Archive([]), recorder=recorder())
        earlier = did(3, writes=WRITES, restored=adopted)._replace(unit=Recorded("action", "t"))
        restore(branch, earlier, ACT, "s/x", (), PLACE)
        assert [(row.action, row.number, row.status) for row in branch.rows] == expected
        if expected:
            (row,) = branch.rows
            found = outcomes([row], PickleCodec())[ROOT][3]
            assert (row.stage, found.inserted_by, found.writes, found.scope) == ("s", "s/x", WRITES, PLACE)


def test_an_adopted_scope_is_journaled_as_one():
    """Under its own name; in memory there is nothing to write to."""
    branch = restoring(archive=Archive([]), recorder=recorder())
    note_adopted(branch, scope_of(FLOW)._replace(restored=True), FLOW, None, PLACE)
    assert [(row.kind, row.stage, row.action) for row in branch.rows] == [("pipeline", "p", None)]
    branch = in_stage(STAGE)
    note_adopted(branch, scope_of(STAGE)._replace(restored=True), FLOW, None, PLACE)
    assert branch.rows == []


# -- values that had been changed in place


def changed(value, order=1, key="xs", **puts):
    """Writes, with a value that was changed in place at this row of the run."""
    return Delta(puts, [], {}, {key: value}, order)


def test_the_writes_of_an_earlier_outcome_take_effect_again():
    """With what it changed in place, which is not a write."""
    held = [0]
    branch = resumed(inputs={"xs": held})
    branch.store.mark()
    reapply(branch, changed([0, 1], k=1))
    assert (dict(branch.store), held, branch.changed) == ({"xs": [0, 1], "k": 1}, [0, 1], {"xs"})
    assert branch.store.has_written("k")
    assert not branch.store.has_written("xs")
    reapply(branch, changed([5], key=Local("l")))
    assert branch.changed == {"xs"}


def test_in_a_rehearsal_no_writes_take_effect():
    """Not even in place."""
    branch = resumed(inputs={"xs": [0]})
    branch.terms.rehearses = True
    reapply(branch, changed([0, 1], k=1))
    assert (dict(branch.store), branch.changed) == ({"xs": [0]}, set())


@pytest.mark.parametrize(("first", "second", "expected"), [(1, 2, [2]), (2, 1, [1]), (1, 1, [2])])
def test_of_several_changes_the_latest_counts(first, second, expected):
    """Branches are restored one after the other, and have changed it in turn: the rows of the run have the order."""
    root = resumed(inputs={"xs": [0]})
    one, other = branch_in(root, 0), branch_in(root, 1)
    reapply(one, changed([1], first))
    reapply(other, changed([2], second))
    assert [each.store["xs"] for each in (root, other)] == [expected] * 2


def test_a_value_is_changed_in_the_branch_that_it_is_from():
    """However deep; a value that a branch has written itself is its own."""
    root = resumed(inputs={"xs": (0,)})
    middle = branch_in(root)
    inner = branch_in(middle)
    reapply(inner, changed((1,)))
    assert [each.store["xs"] for each in (root, middle, inner)] == [(1,)] * 3
    middle.store["xs"] = (5,)
    reapply(inner, changed((6,), 2))
    assert [each.store["xs"] for each in (root, middle, inner)] == [(1,), (6,), (6,)]
    reapply(inner, changed((7,), 3, key="own"))
    assert ["own" in each.store for each in (root, middle, inner)] == [False, False, True]
    root.store.put(Local("xs"), (0,))
    reapply(inner, changed((8,), 4, key=Local("xs")))
    assert root.store.reader()(Local("xs")) == (0,)


def test_before_anything_new_runs_a_branch_has_the_changes_of_the_others():
    """Of those around it, too; what it has written itself stays."""
    root = resumed(inputs={"xs": (0,), "ys": (0,), "zs": (0,)})
    one, other = branch_in(root, 0), branch_in(root, 1)
    inner = branch_in(other)
    other.store["zs"] = (5,)
    reapply(one, changed((1,)))
    reapply(one, changed((2,), key="ys"))
    reapply(one, changed((3,), key="zs"))
    root.revised[Local("l")] = (1, (0,))
    inner.store["ys"] = (7,)
    assert [each.store["xs"] for each in (root, one, other, inner)] == [(1,), (1,), (0,), (0,)]
    assert requests_of(inner) == ([], None)
    for each, expected in (
        (inner, {"xs": (1,), "ys": (7,), "zs": (5,)}), (other, {"xs": (1,), "ys": (2,), "zs": (5,)}),
    ):  # fmt: skip
        assert (dict(each.store), each.is_behind) == (expected, False)
    assert one.is_behind
    reapply(one, changed((9,), 5))
    assert requests_of(inner) == ([], None)
    assert inner.store["xs"] == (1,)  # only once: from now on, changes are its own


def test_a_key_that_is_gone_meanwhile_is_not_caught_up_with():
    """The enclosing branch has lost it."""
    root = resumed(inputs={"xs": (0,)})
    branch = branch_in(root)
    root.revised["gone"] = (1, (1,))
    assert requests_of(branch) == ([], None)
    assert dict(branch.store) == {"xs": (0,)}


def test_a_run_that_is_not_resumed_has_nothing_to_catch_up_with():
    """Neither has the run's own branch."""
    root = in_stage(STAGE, {"xs": (0,)})
    branch = branch_in(root)
    assert (root.is_behind, branch.is_behind) == (False, False)
    assert perform(go_live(branch)) is None
