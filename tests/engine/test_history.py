"""What a run had done before it is resumed: asked step by step, rehearsed first, and left behind in memory."""

from contextlib import suppress

import durable_units as du
import pytest
from durable_units import BROKEN, CALLS, ENTERED
from support import flaky, statuses, step

from flowdeco import Stage, Store, action, parallel, pipeline, stage, stream
from flowdeco.durable import MemoryJournal
from flowdeco.engine.history import History, Rehearsal
from flowdeco.engine.memory import Remains
from flowdeco.engine.outcome import ActionRecord, Outcome, Scope, StageRecord, Status, branch_id
from flowdeco.engine.rows import Recorded
from flowdeco.errors import Cancelled, CodeChangedError, DefinitionError
from flowdeco.middleware import recover
from flowdeco.model.stand_ins import missing_action
from flowdeco.model.steps import step_of


@pytest.fixture(autouse=True)
def nothing_noted():
    """Every test begins without calls, and with everything in order."""
    du.clear()
    ENTERED.clear()


A, B = step([], "a"), step([], "b")
S, T = Stage("s", [A, B]), Stage("t", [A])
GROUP = parallel(S, T, name="g")
INNER = branch_id("0.5", 0)


def did(number, unit, status=Status.COMPLETED, **more):
    """What a step came to."""
    kind = {type(A): ActionRecord, Stage: StageRecord}.get(type(unit), Outcome)
    return kind(unit.name, unit, status, **{"started": 1.0, "elapsed": 1.0, "number": number, **more})


def steps(*outcomes, branch="0"):
    """The history of a branch."""
    return {branch: {outcome.number: outcome for outcome in outcomes}}


# Stage s with both actions, then t, which has failed in its only one; then a group, that had begun
HISTORY = steps(
    did(0, S, end=3), did(1, A), did(2, B), did(3, T, Status.FAILED), did(4, A, Status.FAILED),
    did(5, GROUP, Status.RUNNING, branches=2),
) | steps(did(0, S, end=2), did(1, A), branch=INNER)  # fmt: skip


# -- asked step by step


def test_a_step_is_known_by_its_place():
    """What it came to is given once; a step that had not begun came to nothing."""
    history = History(HISTORY)
    assert history.take("0", 0, S, None, sealed=False) is HISTORY["0"][0]
    assert history.take("0", 1, step_of(A), S, sealed=True) is HISTORY["0"][1]
    assert history.take("0", 0, S, None, sealed=False) is None
    assert history.take("elsewhere", 0, S, None, sealed=False) is None


def test_a_branch_remains_until_all_of_it_is_recalled():
    """Then there is nothing more to restore."""
    history = History(steps(did(0, S, Status.FAILED), did(1, A)))
    assert history.has_more("0")
    assert not history.has_more("elsewhere")
    history.take("0", 0, S, None, sealed=False)
    assert history.has_more("0")
    history.take("0", 1, step_of(A), S, sealed=False)
    assert not history.has_more("0")


@pytest.mark.parametrize(
    ("number", "unit", "scope", "change"),
    [
        (0, T, None, "stage 't' comes where the run had stage 's'"),
        (1, step_of(B), S, "action s/b comes where the run had s/a"),
        (0, pipeline(S, name="s"), None, "pipeline 's' comes where the run had stage 's'"),
        (0, GROUP, None, "parallel group 'g' comes where the run had stage 's'"),
    ],
)
def test_another_step_than_the_run_had_is_an_error(number, unit, scope, change):
    """Of another name, or of another kind."""
    with pytest.raises(CodeChangedError) as changed:
        History(HISTORY).take("0", number, unit, scope, sealed=False)
    assert changed.value.changes == (f"{change}: a stream must yield the same units every time",)


def test_another_number_of_branches_is_an_error():
    """They are told apart by their places."""
    with pytest.raises(CodeChangedError, match=r"parallel group 'g' has another number of branches: \d in place of 3"):
        History(steps(did(0, GROUP, branches=3))).take("0", 0, GROUP, None, sealed=False)
    skipped = did(0, GROUP, Status.SKIPPED, branches=0)
    assert History(steps(skipped)).take("0", 0, GROUP, None, sealed=False) is skipped


def test_a_step_that_is_new_in_what_has_ended_is_an_error():
    """It would never run."""
    with pytest.raises(CodeChangedError, match="stage 't' is new, and the unit around it has completed"):
        History(HISTORY).take("0", 9, T, None, sealed=True)
    with pytest.raises(CodeChangedError, match="action s/b is new, and the unit around it has completed"):
        History(HISTORY).take("0", 9, step_of(B), S, sealed=True)


def test_another_step_may_come_where_nothing_has_ended():
    """What had begun there is forgotten; what has ended inside, or behind, speaks against it."""
    begun = did(0, GROUP, Status.RUNNING, branches=2)
    inside = branch_id("0.0", 0)
    history = History(steps(begun, did(1, S, Status.FAILED)))
    assert history.take("0", 0, T, None, sealed=False) is None
    assert history.steps == {}
    deeper = steps(did(0, S, Status.FAILED), did(2, GROUP, Status.RUNNING, branches=2), branch=inside)
    deeper |= steps(did(0, S), branch=branch_id(f"{inside}.2", 1))
    for more in (steps(did(0, S), branch=inside), steps(begun, did(1, S, end=2)), deeper):
        with pytest.raises(CodeChangedError, match="stage 't' comes where the run had parallel group 'g'"):
            History({**steps(begun), **more}).take("0", 0, T, None, sealed=False)


def test_with_a_group_in_whose_place_another_step_comes_its_branches_are_forgotten():
    """Or another group there would find them."""
    begun = did(0, GROUP, Status.RUNNING, branches=2)
    history = History({**steps(begun), **steps(did(0, S, Status.FAILED), branch=branch_id("0.0", 0))})
    assert history.take("0", 0, T, None, sealed=False) is None
    assert history.steps == {}


def test_an_unfinished_stage_is_known_by_its_actions():
    """In a journal, it has no row before it has ended; each action knows its stage."""
    history = steps(did(1, A)._replace(unit=Recorded("action", "s")))
    assert History(history).take("0", 0, S, None, sealed=False) is None
    with pytest.raises(CodeChangedError, match="pipeline 'p' comes where the run had stage 's'"):
        History(history).take("0", 0, pipeline(S, name="p"), None, sealed=False)
    with pytest.raises(CodeChangedError, match="stage 't' comes where the run had stage 's'"):
        History(history).take("0", 0, T, None, sealed=False)
    with pytest.raises(type(rehearsed({}).stop)):
        other = rehearsed(history)
        other.take("0", 0, Stage("other"), None, sealed=False)
    assert other.changes == [
        "this looks like a different pipeline: the run began with stage 's', this one begins with stage 'other'"
    ]
    failed = History(steps(history["0"][1]._replace(status=Status.FAILED)))
    assert failed.take("0", 0, T, None, sealed=False) is None
    assert failed.steps == {}


def test_only_actions_tell_of_an_unfinished_scope():
    """A stage in a pipeline that has no row does not contradict it, nor does an action behind another one."""
    inside = did(1, S)._replace(unit=Recorded("stage", ""))
    assert History(steps(inside)).take("0", 0, pipeline(S, name="p"), None, sealed=False) is None
    behind = did(2, B)._replace(unit=Recorded("action", "s"))
    assert History(steps(behind)).take("0", 1, step_of(A), S, sealed=False) is None


@pytest.mark.parametrize(
    ("branch", "number", "unit", "scope", "expected"),
    [
        ("0", 3, S, None, None),
        ("0", 2, S, None, "action s/b has completed, and no longer exists"),
        ("0", 4, S, None, "stage 's' has completed, and ends elsewhere"),
    ],
)
def test_a_scope_must_end_where_it_had_ended(branch, number, unit, scope, expected):
    """With a step less, or one more, it is another one."""
    history = History(steps(did(0, S, end=3), did(1, A), did(2, B)))
    then = history.take(branch, 0, unit, scope, sealed=False)
    changed = history.confirm(branch, then, unit, number)
    assert (changed is None) == (expected is None)
    assert expected is None or expected in str(changed)
    alone = History(steps(then))
    alone.take(branch, 0, unit, scope, sealed=False)
    assert (alone.confirm(branch, then, unit, number) is None) == (expected is None)


def test_a_run_must_not_end_before_its_history():
    """Of what had ended well the first scope is named; what had failed may be gone."""
    assert "the run ends where it had stage 's'" in str(History(HISTORY).missing_at_end("0"))
    assert "a branch ends where it had stage 's'" in str(History(HISTORY).missing_at_end(INNER))
    assert "the run ends where it had action /a" in str(History(steps(did(1, A))).missing_at_end("0"))
    assert History(steps(did(0, T, Status.FAILED))).missing_at_end("0") is None
    assert History({}).missing_at_end("0") is None


def test_what_another_attempt_drops_is_forgotten():
    """From these numbers on; and a branch that is empty is gone."""
    history = History(HISTORY)
    history.forget({"0": 4, INNER: 0, "elsewhere": 0})
    assert {branch: list(mine) for branch, mine in history.steps.items()} == {"0": [0, 1, 2, 3]}
    assert set(HISTORY) == {"0", INNER}


def test_with_a_step_the_branches_of_groups_behind_it_are_forgotten():
    """However deep: they are known by the places of their groups."""
    innermost = branch_id(f"{INNER}.2", 0)
    inner = steps(did(2, parallel(S, name="h"), branches=1), branch=INNER)
    history = History({**HISTORY, **inner, **steps(did(0, S), branch=innermost), **steps(did(0, S), branch="other")})
    history.drop_from("0", 5)
    assert {branch: list(mine) for branch, mine in history.steps.items()} == {"0": [0, 1, 2, 3, 4], "other": [0]}


# -- streams


def test_a_stream_that_is_used_up_cannot_be_begun_again():
    """The rehearsal says so; a function can be called again."""
    history = History(HISTORY)
    history.rehearses = True
    used_up = history.begun_stream("0", stream(iter([S])), "inserted by s/a", sealed=False)
    assert isinstance(used_up, DefinitionError)
    assert "inserted by s/a is used up" in str(used_up)
    assert history.begun_stream("0", stream(lambda: [S]), "s/a", sealed=False) is None
    assert history.begun_stream("elsewhere", stream(lambda: [S]), "s/a", sealed=True) is None


def test_a_stream_that_was_begun_in_the_rehearsal_is_the_run_s():
    """In the same place of the same branch; the others are begun anew."""
    rehearsal = History(HISTORY)
    rehearsal.rehearses = True
    one, other = stream(lambda: [S]), stream(lambda: [T])
    for each in (one, other):
        assert rehearsal.begun_stream("0", each, "s/a", sealed=False) is None
        rehearsal.keep_stream("0", each)
    history = History(HISTORY, streams=rehearsal.streams)
    assert history.begun_stream(INNER, one, "s/a", sealed=False) is None
    history.keep_stream(INNER, one)
    assert history.begun_stream("0", one, "s/a", sealed=False) is one
    assert history.streams == {("0", 1): other}


def test_the_rehearsal_ends_where_a_stream_would_give_what_has_not_run():
    """But not within what has ended: there, it has to give what it gave."""
    history = History({})
    history.check_pull("0", sealed=False)
    history.rehearses = True
    history.check_pull("0", sealed=True)
    with pytest.raises(type(history.stop)) as ended:
        history.check_pull("0", sealed=False)
    assert ended.value is history.stop


# -- rehearsed


def rehearsed(history, *taken, confirmed=(), **options):
    """A rehearsal of this history in which these steps were met; `confirmed` are the scopes that ended as they had."""
    rehearsal = Rehearsal(history, pipeline=pipeline(S, T), code=None, **options)
    for branch, number in taken:
        rehearsal.taken.add((branch, number))
    for branch, number in confirmed:
        rehearsal.taken.add((branch, number))
    return rehearsal


def test_where_all_of_it_holds_nothing_is_cut_and_nothing_reopened():
    """What had not ended is kept as well: that it had begun is known from it."""
    rehearsal = rehearsed(HISTORY, ("0", 0), ("0", 1), ("0", 2), (INNER, 0), (INNER, 1))
    assert rehearsal.held() == HISTORY
    assert (rehearsal.cuts(), rehearsal.reopened()) == ({}, [])


def test_what_was_not_met_is_cut_off():
    """In each branch that has lost something, from behind the last step that holds; scopes around that are open again."""
    rehearsal = rehearsed(HISTORY, ("0", 1))
    assert rehearsal.cuts() == {"0": 2, INNER: 0}
    reopened = HISTORY["0"][0]._replace(status=Status.RUNNING)
    assert rehearsal.held() == {"0": {0: reopened, 1: HISTORY["0"][1]}}
    assert rehearsal.reopened() == [("0", reopened)]


def test_what_had_begun_and_is_gone_is_cut_off_too():
    """In the journal as well: else it would be met again, behind what came in its place."""
    history = steps(did(0, S, Status.FAILED), did(1, A), did(2, B, Status.FAILED))
    rehearsal = rehearsed(history, ("0", 1))
    assert rehearsal.take("0", 2, T, None, sealed=False) is None
    assert (rehearsal.changes, rehearsal.cuts(), list(rehearsal.held()["0"])) == ([], {"0": 2}, [0, 1])
    rehearsal.drop_from("0", 7)
    rehearsal.drop_from("elsewhere", 0)
    assert rehearsal.cuts() == {"0": 2}


def test_an_unfinished_scope_around_what_holds_is_kept():
    """And one behind it is not."""
    history = steps(did(0, S, Status.FAILED), did(1, A), did(2, B), did(3, T, Status.FAILED))
    rehearsal = rehearsed(history, ("0", 1))
    assert rehearsal.cuts() == {"0": 2}
    assert list(rehearsal.held()["0"]) == [0, 1]
    assert rehearsal.reopened() == []


def test_a_rehearsal_ends_where_an_action_would_be_performed():
    """One that had not begun, or not ended; in what has ended, all of it is met."""
    rehearsal = rehearsed(HISTORY)
    for number, unit in ((4, step_of(A)), (9, step_of(B))):
        with pytest.raises(type(rehearsal.stop)) as ended:
            rehearsal.take("0", number, unit, T, sealed=False)
        assert ended.value is rehearsal.stop
    assert rehearsal.changes == []
    again = rehearsed(HISTORY)
    assert again.take("0", 4, step_of(A), T, sealed=True) is HISTORY["0"][4]
    assert again.taken == {("0", 4)}
    with pytest.raises(type(again.stop)):
        again.take("0", 9, S, None, sealed=True)
    assert again.changes == ["stage 's' is new, and the unit around it has completed"]


def test_a_change_is_noted_and_ends_the_rehearsal():
    """From there on, the history does not hold."""
    rehearsal = rehearsed(HISTORY)
    rehearsal.taken.add(("0", 1))
    with pytest.raises(type(rehearsal.stop)):
        rehearsal.take("0", 0, T, None, sealed=False)
    assert (rehearsal.changes, rehearsal.differs) == (["stage 't' comes where the run had stage 's'"], True)


def test_of_another_pipeline_nothing_that_ran_is_there():
    """It is told as such, unless something has been met, or has the same name."""
    other = Stage("other", [A])
    for of, taken, expected in (
        (
            pipeline(other),
            set(),
            "this looks like a different pipeline: the run began with stage 's', this one begins with stage 'other'",
        ),
        (pipeline(other, parallel(T, name="x")), set(), "stage 'other' comes where the run had stage 's'"),
        (pipeline(other), {("0", 1)}, "stage 'other' comes where the run had stage 's'"),
    ):
        rehearsal = Rehearsal(HISTORY, pipeline=of, code=None)
        rehearsal.taken |= taken
        with pytest.raises(type(rehearsal.stop)):
            rehearsal.take("0", 0, other, None, sealed=False)
        assert rehearsal.changes == [expected]


def test_a_scope_that_ends_as_it_did_holds():
    """One that does not, does not."""
    rehearsal = rehearsed(HISTORY)
    assert rehearsal.confirm("0", HISTORY["0"][0], S, 3) is None
    assert rehearsal.taken == {("0", 0)}
    assert rehearsal.confirm("0", HISTORY["0"][0], S, 7) is rehearsal.stop
    assert rehearsal.confirm("0", HISTORY["0"][0], S, 2) is rehearsal.stop
    assert rehearsal.changes == [
        "stage 's' has completed, and ends elsewhere", "action s/b has completed, and no longer exists"
    ]  # fmt: skip


@stage
def template(n):
    step([], "a")


@pytest.mark.parametrize("until", ["s[1]", "s", "t"])
def test_a_fork_takes_the_history_up_to_a_stage(until):
    """By its own name, or that of its template."""
    made = template.named("s")(1) if hasattr(template, "named") else template(1)
    name = {"s[1]": made.name, "s": "template", "t": "t"}[until]
    rehearsal = rehearsed(steps(did(0, made, end=1)), until=name)
    if until == "t":
        assert rehearsal.take("0", 0, made, None, sealed=False) is not None
        assert rehearsal.take("0", 1, S, None, sealed=False) is None
        assert (rehearsal.until, rehearsal.differs) == ("t", False)
    else:
        with pytest.raises(type(rehearsal.stop)):
            rehearsal.take("0", 0, made, None, sealed=False)
        assert (rehearsal.until, rehearsal.differs) == (None, True)


def code(function):
    """A fingerprint."""
    return function.__name__


def test_other_code_of_what_has_completed_is_a_change():
    """In memory the functions are compared, and in a journal their fingerprints; of a failure, nothing is."""

    def made(function):
        return action(name="a")(function)

    def one():
        pass

    def other():
        pass

    def same():
        pass

    same.__name__ = "one"
    then = did(1, made(one), fingerprint="one")
    for before in (then, then._replace(unit=Recorded("action", "s"))):
        for function, changes in ((one, 0), (same, 0), (other, 1)):
            rehearsal = Rehearsal(steps(before), pipeline=pipeline(S), code=code)
            assert rehearsal.take("0", 1, step_of(made(function)), S, sealed=False) is before
            assert rehearsal.changes == ["action s/a has completed, with different code"] * changes
            assert not rehearsal.differs
    rehearsal = Rehearsal(steps(then), pipeline=pipeline(S), code=code, rerun=True)
    with pytest.raises(type(rehearsal.stop)):
        rehearsal.take("0", 1, step_of(made(other)), S, sealed=False)
    assert (rehearsal.differs, rehearsal.taken) == (True, set())
    assert rehearsal.changes == ["action s/a has completed, with different code"]
    gone = steps(then._replace(unit=missing_action("a")))  # of a run that was pickled
    rehearsal = Rehearsal(gone, pipeline=pipeline(S), code=code)
    assert rehearsal.take("0", 1, step_of(made(other)), S, sealed=False) is gone["0"][1]
    assert rehearsal.changes == []
    failed = steps(then._replace(status=Status.FAILED))
    rehearsal = Rehearsal(failed, pipeline=pipeline(S), code=code)
    assert rehearsal.take("0", 1, step_of(made(other)), S, sealed=True) is failed["0"][1]
    assert rehearsal.changes == []


# -- what it knows of places, errors and times


def test_a_history_is_one_of_a_journal_unless_it_says_otherwise():
    """It rehearses nothing, and its walks end with signals that say why."""
    history = History({})
    assert (history.is_in_memory, history.finished, history.rehearses) == (False, False, False)
    assert str(history.stop) == "this is as far as the run came"
    assert str(history.early_stop) == "the scope, or the branch, had ended here"
    rehearsal = Rehearsal({}, pipeline=P, code=None, is_in_memory=True, finished=True)
    assert (rehearsal.is_in_memory, rehearsal.finished, rehearsal.rehearses) == (True, True, True)
    assert (rehearsal.keeps_records, rehearsal.error) == (False, None)


def test_a_step_that_is_not_in_its_place_may_be_adopted():
    """From a pipeline that has changed since; not in what had ended, and not where there is a step."""
    adopted = []

    class Archive:
        def adopt(self, steps, *place):
            adopted.append(place)
            steps.setdefault("0", {})[3] = did(3, S)

    history = History(steps(did(0, S)), archive=Archive())
    assert history.take("0", 0, S, None, sealed=False).number == 0
    with pytest.raises(CodeChangedError):
        history.take("0", 2, T, S, sealed=True)
    assert adopted == []
    assert history.take("0", 3, S, T, sealed=False) == did(3, S)
    assert adopted == [("0", 3, S, T)]


def test_a_restored_scope_ends_with_errors_of_the_history_only():
    """With nothing, with those of steps that were recalled, or as it was stopped."""
    no = ValueError("no")
    history = History(steps(did(0, S, Status.FAILED, error=no), did(1, T)))
    assert not history.is_known(no)
    for number, unit in enumerate((S, T)):
        history.take("0", number, unit, None, sealed=False)
    assert all(map(history.is_known, (None, no, history.early_stop, Cancelled())))
    assert not history.is_known(ValueError("no"))


P = pipeline(S, name="p")
OPEN = pipeline(P, name="open", timeout=1)  # its layers have a number
IN_P = Scope("p", "p1", None, None, None)


def test_the_errors_of_changes_describe_both_sides():
    """The step there, and the step here."""
    for unit, around, expected in (
        (step_of(B), S, "action s/b is new, and the unit around it has completed: a stream must yield the same units"),
        (GROUP, None, "parallel group 'g' is new, and the unit around it has completed: a stream must yield the same"),
    ):
        assert expected in str(History({}).new(unit, around).changes[0])


def test_a_step_is_there_until_it_is_recalled():
    """In its branch."""
    history = History(steps(did(0, S)))
    assert [history.has("0", 0), history.has("0", 1), history.has(INNER, 0)] == [True, False, False]
    assert [history.has_more("0"), history.has_more(INNER)] == [True, False]
    history.take("0", 0, S, None, sealed=False)
    assert not history.has("0", 0)


def recorded(number, name, stage="", kind="action"):
    """A step as a journal has it: without its unit."""
    return did(number, A)._replace(name=name, unit=Recorded(kind, stage), end=-1)


def test_a_step_of_a_journal_is_named_in_errors_by_its_record():
    """By its stage, too; of several, the first scope is named, else the first action."""
    left = steps(recorded(4, "x", "u"), recorded(5, "y", "u"))
    assert "the run ends where it had action u/x" in str(History(left).missing_at_end("0"))
    left["0"][6] = recorded(6, "u", kind="stage")
    assert "the run ends where it had stage 'u'" in str(History(left).missing_at_end("0"))
    rehearsal = Rehearsal(steps(recorded(0, "x", "u")), pipeline=pipeline(T), code=None)
    with pytest.raises(type(rehearsal.stop)):
        rehearsal.take("0", 0, T, None, sealed=False)
    assert rehearsal.changes == [
        "this looks like a different pipeline: the run began with action u/x, this one begins with stage 't'"
    ]


def test_a_changed_history_lists_its_changes_alone():
    """One line each, under the usual words."""
    error = History({}).changed("x")
    assert error.changes == ("x: a stream must yield the same units every time",)
    assert str(error) == str(CodeChangedError.listing("", error.changes))


def test_a_branch_that_begins_anew_keeps_nothing_another_one_all():
    """What is left of a branch holds as long as its first step does."""
    history = History({}, remains={INNER: Remains(Store(), None, "result", {})})
    history.forget({INNER: 1})
    assert history.remains_of(INNER) is not None
    history.forget({INNER: 0})
    assert history.remains_of(INNER) is None


def test_the_branches_of_several_groups_are_forgotten():
    """Those of groups inside them as well, each in its turn."""
    outer = [did(number, parallel(S, name=f"g{number}"), branches=1) for number in (1, 2)]
    branches = {}
    for number in (1, 2):
        inner = branch_id(f"0.{number}", 0)
        branches |= steps(did(0, parallel(S, name="h"), branches=1), branch=inner)
        branches |= steps(did(0, S), branch=branch_id(f"{inner}.0", 0))
    history = History(steps(*outer) | branches)
    assert set(history.drop_from("0", 1)) == {"0", *branches}
    assert history.steps == {}


def test_each_branch_is_cut_behind_its_own_last_step():
    """Wherever the others are, and from its beginning if none of its steps holds."""
    numbers = {"0": 5, INNER: 1, "gone": 0, "b": 0}
    history = {}
    for branch, last in numbers.items():
        history |= steps(*(did(number, S) for number in range(last + 2)), branch=branch)
    rehearsal = rehearsed(history, *((branch, last) for branch, last in numbers.items() if branch != "gone"))
    assert rehearsal.cuts() == {"0": 6, INNER: 2, "gone": 0, "b": 1}
    (recovered,) = rehearsed(
        steps(did(0, S, error=ValueError("no"), recovered=True, end=3), did(1, A), did(2, B)), ("0", 1)
    ).reopened()
    assert recovered[1] == did(0, S, Status.RUNNING, end=3)


@pytest.mark.parametrize(
    ("now", "before", "same"),
    [("3.11:a", "3.11:a", 1), ("3.11:a", "3.11:b", 0), ("3.11:a", "3.12:b", 1), ("a", "b", 0)],
)
def test_fingerprints_of_one_version_are_compared(now, before, same):
    """Those of different ones say nothing of each other."""
    then = did(1, A, fingerprint=before)._replace(unit=Recorded("action", "s"))
    rehearsal = Rehearsal(steps(then), pipeline=pipeline(S), code=lambda function: now)
    rehearsal.take("0", 1, step_of(A), S, sealed=False)
    assert len(rehearsal.changes) == 1 - same


# -- in memory


def test_of_what_was_left_behind_the_history_knows_marks_and_results():
    """For another attempt at a scope that was open."""
    marks = [Store().mark()]
    history = History({}, remains={"0": Remains(Store(), None, "result", {3: (marks, "before")})})
    assert history.remains_of("0").result == "result"
    assert history.remains_of(INNER) is None
    assert history.unfinished("0", 3) == (marks, "before")
    assert history.unfinished("0", 4) == ([], "result")
    assert history.unfinished(INNER, 3) == ([], None)


def test_with_its_steps_is_forgotten_what_a_branch_left_behind():
    """The next attempt at its group begins from the store as it is then."""
    history = History(HISTORY, remains={INNER: Remains(Store(), None, "result", {})})
    history.forget({"0": 5, INNER: 0})
    assert history.remains_of(INNER) is None


# -- in a run: a rehearsal leaves nothing behind


def interrupted(*units, name="p"):
    """A journal with a run of these, which has failed."""
    BROKEN.add("fragile")
    journal = MemoryJournal()
    pipeline(*units, name=name).run(journal=journal, run_id="r", check=False)
    du.clear()
    ENTERED.clear()
    return journal


def test_observers_hear_once_what_is_restored():
    """Nothing of the rehearsal, and all of the run."""
    for units in ([du.first, du.fragile], [du.first, du.streams, du.fragile]):
        journal = interrupted(*units)
        events = []
        pipeline(*units, name="p").resume("r", journal=journal, observers=[events.append])
        kinds = [type(event).__name__ for event in events]
        assert kinds.count("RunStarted") == kinds.count("RunFinished") == 1
        assert [event.stage for event in events if getattr(event, "restored", False)].count("first") == 1


def test_middleware_is_not_entered_before_all_of_the_history_is_known():
    """A change in an unfinished stage, or behind the beginning of a pipeline."""

    def made(action):
        return [pipeline(Stage("s", [action, du.fragile], use=[du.watched]), name="q", use=[du.watched])]

    journal = interrupted(*made(du.first))
    with pytest.raises(CodeChangedError, match="s/item comes where the run had s/first"):
        pipeline(*made(du.item), name="p").resume("r", journal=journal)
    assert (CALLS, ENTERED) == ([], [])
    stage = [Stage("s", [du.first, du.fragile], use=[du.watched])]
    journal = interrupted(*stage)
    with pytest.raises(CodeChangedError, match="s/item comes where the run had s/first"):
        pipeline(Stage("s", [du.item, du.fragile], use=[du.watched]), name="p").resume("r", journal=journal)
    assert (CALLS, ENTERED) == ([], [])


def test_reducers_are_not_called_before_all_of_the_history_is_known():
    """They are functions of a user; what they came to is restored."""
    folded = []

    def fold(one, other):
        folded.append((one, other))
        return one + other

    def made(last):
        group = parallel(du.first, du.first, merge={"first": fold}, limit=1)
        return [group, last, du.fragile]

    journal = interrupted(*made(du.nothing))
    folded.clear()
    with pytest.raises(CodeChangedError, match="stage 'item' comes where the run had stage 'nothing'"):
        pipeline(*made(du.item), name="p").resume("r", journal=journal)
    assert pipeline(*made(du.nothing), name="p").resume("r", journal=journal)["first"] == 2
    assert folded == []


def test_a_failure_that_nobody_recovers_any_more_is_not_the_end_of_the_run():
    """What had failed is called again, if that is asked for."""
    group = parallel(du.fragile, du.first, limit=1)
    BROKEN.add("fragile")
    journal = MemoryJournal()
    pipeline(pipeline(group, name="q", use=[recover(on=RuntimeError)]), name="p").run(journal=journal, run_id="r")
    du.clear()
    resumed = pipeline(pipeline(group, name="q"), name="p").resume("r", journal=journal, on_change="rerun")
    assert statuses(resumed) == [("fragile", "completed"), ("first", "completed")]
    assert CALLS == ["fragile", "first"]


def test_a_group_that_is_retried_after_a_resume_begins_anew():
    """In memory: nothing is left of its branches, neither of the attempt nor of the run before."""

    def appends(call):
        call.store.append("notes", call.name)
        yield

    group = parallel(step([], "a", use=[appends]), flaky([], "b", 2), limit=1)
    flow = pipeline(pipeline(group, name="p", use=[retrying_the_second_time()]))
    broken = flow.run(check=False)
    assert flow.resume(broken)["notes"] == ["a"]


def retrying_the_second_time():
    """A layer that asks for another attempt, but not in its first run."""
    entered = []

    def layer(call):
        entered.append(call)
        if len(entered) == 1:
            yield
            return
        with suppress(ValueError):
            yield
            return
        yield

    return layer


PULLED = []


def pulled():
    """The units of a stream; the test may have Ctrl-C come when it is asked for them."""
    PULLED.append("pulled")
    if PULLED[:1] == ["interrupted"]:
        PULLED.clear()
        raise KeyboardInterrupt
    yield du.item


@action
def gives():
    return stream(pulled)


UNITS = {
    "alone": [gives, du.fragile],
    "in a group that had ended": [parallel(gives, du.first, limit=1), du.fragile],
    "in a group that had not ended": [parallel(pipeline(gives, du.fragile), du.first, limit=1)],
}


@pytest.mark.parametrize("title", UNITS)
def test_ctrl_c_in_a_rehearsal_leaves_the_run_as_it_was(title):
    """It can be resumed again."""
    units = UNITS[title]
    journal = interrupted(*units)
    flow = pipeline(*units, name="p")
    rows = journal.history("r")
    PULLED[:] = ["interrupted"]
    with pytest.raises(KeyboardInterrupt):
        flow.resume("r", journal=journal)
    assert (CALLS, journal.history("r")) == ([], rows)
    (info,) = journal.runs()
    assert (info.status, info.owner) == ("failed", None)
    assert flow.resume("r", journal=journal).status == "completed"
    assert "fragile" in CALLS
