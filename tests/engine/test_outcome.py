"""What a step came to, as one value: what is kept of it, what observers hear of it, whether a resume takes it over."""

import pytest
from support import one, shown, step

from flowdeco import Bail, Stage, Suspend, parallel, pipeline, stream
from flowdeco.drivers.interrupts import is_cancellation
from flowdeco.engine.messages import MessageRecord
from flowdeco.engine.outcome import (
    ALL,
    NOTHING_DROPPED,
    ActionRecord,
    Outcome,
    Scope,
    Selection,
    StageRecord,
    Status,
    amended,
    branch_id,
    cut_steps,
    dropped_errors,
    enclosing,
    innermost_branch,
    inserter,
    pinned,
    stage_count,
    status_of,
    step_id,
)
from flowdeco.errors import Cancelled, Wait
from flowdeco.events import ActionFinished, StageFinished, UnitsInserted
from flowdeco.model.deltas import NOTHING, Delta
from flowdeco.model.sentinels import UNSET

ACTION = step([], "a")
STAGE = Stage("s", [ACTION])


def action_record(status=Status.COMPLETED, **more):
    """What became of an action."""
    return ActionRecord("a", ACTION, status, 1000.0, 0.5, **more)


def stage_record(status=Status.COMPLETED, **more):
    """What became of a stage."""
    return StageRecord("s", STAGE, status, 1000.0, 0.5, **more)


# -- what is kept


@pytest.mark.parametrize(
    "effect", [{"writes": Delta({"k": 1}, [], {})}, {"entry_writes": (NOTHING,)}, {"result": None}]
)
@pytest.mark.parametrize("record", [action_record, stage_record])
def test_a_record_that_is_kept_keeps_no_value_alive(record, effect):
    """Neither what was written nor the result; the rest is the same."""
    kept = record(number=3, attempts=2, **effect).kept()
    assert kept == record(number=3, attempts=2)
    assert type(kept) is type(record())
    assert (kept.writes, kept.entry_writes, kept.result) == (None, (), UNSET)


def test_a_record_without_an_effect_is_kept_as_it_is():
    """There is nothing to drop."""
    record = action_record()
    assert record.kept() is record


def everything(unit, kind):
    """An outcome with something in every field."""
    more = {
        "inserted_by": "s/b", "number": 3, "inserted": (STAGE,), "actions": (action_record(),),
        "scope": Scope("p", "p1", None, None, None), "end": 5, "error": ValueError("no"), "attempts": 2, "recovered": True,
        "switches": (("t", False),), "entered": False, "branches": 2, "fingerprint": "code", "repeats": (1,),
        "failures": (ValueError("before"),), "dropped": {("", 4, "a"): [ValueError("dropped")]}, "cached": True,
        "selection": Selection({1: ValueError("lost")}), "waits": (Wait("question", key="k"),),
        "messages": (MessageRecord("log", 1.0, {"text": "text"}),), "writes": Delta({"k": 1}, [], {}), "entry_writes": (NOTHING,),
        "result": 1,
    }  # fmt: skip
    return kind("x", unit, Status.FAILED, 1000.0, 0.5, **more)


CHANGED_BY_A_RESTORE = {"inserted_by": "s/c", "restored": True, "fingerprint": "", "repeats": ()}


@pytest.mark.parametrize(
    ("unit", "kind"),
    [(ACTION, ActionRecord), (STAGE, StageRecord), (pipeline(STAGE), Outcome), (parallel(STAGE), Outcome)],
    ids=shown,
)
def test_the_record_of_a_restored_step_is_that_it_had(unit, kind):
    """With the unit, the scope and the records of actions that it has now, and without its effect."""
    earlier, scope, actions = everything(Stage("before"), kind), Scope("q", "p2", None, None, None), [action_record()]
    restored = earlier.as_restored(unit, "s/c", actions, scope)
    assert type(restored) is kind
    assert restored == earlier.kept()._replace(unit=unit, scope=scope, actions=actions, **CHANGED_BY_A_RESTORE)


def test_a_step_whose_effect_cannot_be_written_has_failed():
    """It did nothing, inserted and switched nothing; all else is known of it."""
    before, error = everything(STAGE, StageRecord), TypeError("not picklable")
    refused = before._replace(status=Status.COMPLETED, error=None).refused(error)
    without = {"recovered": False, "inserted": (), "switches": (), "cached": False}
    assert refused == before._replace(error=error, writes=None, result=UNSET, **without)


# -- in a form that can be pickled


def test_a_portable_outcome_has_its_parts_as_a_function_returns_them():
    """Its unit, errors, insertions, waits and actions; everything else is the same."""
    outcome = everything(STAGE, StageRecord)
    portable = outcome.portable(lambda part: ("portable", part))
    expected = {
        name: tuple(("portable", each) for each in getattr(outcome, name))
        for name in ("inserted", "failures", "waits", "actions")
    }
    for name in ("unit", "error"):
        expected[name] = "portable", getattr(outcome, name)
    (text,) = outcome.messages
    (error,) = outcome.dropped["", 4, "a"]
    mixed = outcome._replace(dropped={("", 4, "a"): [text, error]})
    assert portable == outcome._replace(**expected, dropped={("", 4, "a"): [("portable", error)]})
    assert mixed.portable(lambda part: ("portable", part)).dropped == {("", 4, "a"): [text, ("portable", error)]}


def test_an_outcome_that_is_portable_is_not_copied():
    """Nor one of which only the function's copies of sequences would differ."""
    for outcome in (
        action_record(),
        everything(STAGE, StageRecord)._replace(dropped=NOTHING_DROPPED, actions=[ACTION]),
    ):
        assert outcome.portable(lambda part: part) is outcome
    inserted = action_record(inserted=(STAGE, ACTION))
    portable = inserted.portable(lambda part: Stage("other") if part is ACTION else part)
    assert portable == inserted._replace(unit=Stage("other"), inserted=(STAGE, Stage("other")))
    assert (portable.failures, portable.error) == ((), None)


# -- of a run that was given new values


def test_pinned_keys_lose_their_older_writes():
    """In whatever way they were written; others, and writes since, stay."""
    old, new = (Delta({"k": 1, "other": 2}, ["gone"], {"list": [1]}, {"changed": 3}, order=order) for order in (4, 5))
    lost = old._replace(puts={"other": 2}, deletes=[], appends={}, changes={})
    pins = dict.fromkeys(("k", "gone", "list", "changed"), 5)
    history = {
        "0": {0: stage_record(writes=old, entry_writes=(old, new)), 1: action_record(writes=new)},
        "b": {0: action_record()},
    }
    found = pinned(history, pins)
    assert found == {
        "0": {0: stage_record(writes=lost, entry_writes=(lost, new)), 1: action_record(writes=new)},
        "b": {0: action_record()},
    }
    assert found["0"][1].writes is new
    assert pinned({"0": {0: action_record(writes=old)}}, {"unknown": 9})["0"][0].writes is old
    only_changed = Delta({}, [], {}, {"changed": 3}, order=4)
    assert pinned({"0": {0: action_record(writes=only_changed)}}, {"changed": 5})["0"][0].writes.changes == {}
    assert pinned({"0": {0: action_record(writes=old)}}, {"k": 5})["0"][0].writes == old._replace(
        puts={"other": 2}
    )  # each key by its own number


# -- after a failure of what is around it


PLACE = Scope("p", "p1", None, None, None)
NO, BEFORE, LATER = ValueError("no"), ValueError("before"), ValueError("later")
SAID, SAID_LATER = (MessageRecord("log", 1.0, {"text": text}) for text in ("first", "later"))


@pytest.mark.parametrize(
    ("around", "recovered"),
    [
        ({"status": Status.FAILED, "recovered": True}, True),
        ({"status": Status.BAILED}, True),
        ({"status": Status.SUSPENDED}, True),
        ({"status": Status.FAILED}, False),
        ({"status": Status.COMPLETED}, False),
    ],
    ids=shown,
)
def test_a_failure_that_went_no_further_was_recovered(around, recovered):
    """That of a stage, and of its actions; what did not fail was not recovered, but by its own layers."""
    failed, fine, own = (action_record(status) for status in (Status.FAILED, Status.COMPLETED, Status.FAILED))
    record = stage_record(Status.FAILED, actions=[failed, fine, own._replace(recovered=True)], dropped={1: 2})
    found = amended(record, stage_record(**around))
    assert (found.recovered, [action.recovered for action in found.actions]) == (recovered, [recovered, False, True])
    assert found.dropped == {}
    assert found.actions[1] == fine


def test_errors_of_attempts_that_were_dropped_are_in_the_record():
    """Of the stage and of its actions in its place: those before its own."""
    action = action_record(number=4, failures=[LATER], messages=[SAID_LATER])
    record = stage_record(number=3, scope=PLACE, actions=[action, action_record(number=5)], failures=(LATER,))
    first = [
        stage_record(Status.FAILED, number=3, scope=PLACE, error=NO, failures=(BEFORE,), actions=[
            action._replace(status=Status.FAILED, error=NO, failures=[BEFORE], messages=[SAID]), action_record(number=5),
        ]),
        stage_record(number=7, scope=None, failures=[BEFORE], error=NO),
        action_record(number=8, scope=PLACE.of(1), messages=[SAID]),
    ]  # fmt: skip
    dropped = dropped_errors(first, PLACE.of(2), NOTHING_DROPPED)
    assert dropped == {
        ("p1[None]", 3, "s"): [BEFORE, NO],
        ("p1[None]", 4, "a"): [SAID, BEFORE, NO],
        ("p1[2]", 7, "s"): [BEFORE],
        ("p1[1]", 8, "a"): [SAID],
    }
    found = amended(record, stage_record(dropped=dropped))
    assert found.failures == (BEFORE, NO, LATER)
    assert [(each.failures, each.messages) for each in found.actions] == [
        ((BEFORE, NO, LATER), (SAID, SAID_LATER._replace(failures=2))),
        ((), ()),
    ]
    assert dropped_errors([stage_record(Status.FAILED, error=NO, number=1)], None, {}) == {("", 1, "s"): [NO]}
    again = dropped_errors([first[1]._replace(scope=PLACE.of(2))], None, dropped)
    assert again == {**dropped, ("p1[2]", 7, "s"): [BEFORE, BEFORE]}


def test_scopes_around_a_step_are_known_from_the_inside():
    """The innermost branch is that of the closest group."""
    outer = Scope("g", "0.3", 1, None, Scope("p", "0.p1", None, None, None))
    inner = Scope("q", "x.p1", None, None, Scope("h", "x.4", 0, None, outer))
    assert [scope.name for scope in enclosing(inner)] == ["q", "h", "g", "p"]
    assert (innermost_branch(inner), innermost_branch(outer)) == (inner.outer, outer)
    assert innermost_branch(outer.outer) is innermost_branch(None) is None


def test_branches_count_unless_they_are_lost_or_others_were_chosen():
    """By their places in the group."""
    lost = {1: ValueError()}
    assert [ALL.takes(index) for index in (0, 1)] == [True, True]
    assert [Selection(lost).takes(index) for index in (0, 1)] == [True, False]
    assert [Selection(lost, frozenset([1, 2])).takes(index) for index in (0, 1, 2)] == [False, False, True]


# -- whether it is final


@pytest.mark.parametrize(
    ("status", "final"),
    [
        (Status.COMPLETED, True),
        (Status.SKIPPED, True),
        (Status.BAILED, True),
        (Status.FAILED, False),
        (Status.SUSPENDED, False),
        (Status.CANCELLED, False),
        (Status.RUNNING, False),
    ],
)
def test_what_has_ended_well_is_final(status, final):
    """A resume takes it over; a failure only where it was recovered."""
    assert action_record(status).is_final is final
    assert action_record(status, recovered=True).is_final


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, Status.COMPLETED),
        (Bail("done"), Status.BAILED),
        (Suspend("waits"), Status.SUSPENDED),
        (Cancelled("ended"), Status.CANCELLED),
        (KeyboardInterrupt(), Status.CANCELLED),
        (ValueError("no"), Status.FAILED),
        (SystemExit(), Status.FAILED),
    ],
    ids=shown,
)
def test_the_status_is_that_of_the_exception(error, status):
    """Signals, cancellations, failures, and none."""
    assert status_of(error, is_cancellation) is status


# -- events


def heard(outcome, stage="s"):
    """What observers hear."""
    return list(outcome.events("r", stage))


def test_observers_hear_how_an_action_ended():
    """With its stage."""
    error = ValueError("no")
    record = action_record(Status.FAILED, error=error, attempts=2, recovered=True)
    assert heard(record) == [ActionFinished("r", "s", "a", Status.FAILED, error, 0.5, 2, True)]


def test_observers_hear_how_a_stage_ended_and_whether_that_was_restored():
    """Of an action that is restored, they hear nothing."""
    assert heard(stage_record()) == [StageFinished("r", "s", Status.COMPLETED, None, 0.5, 1, False, False)]
    assert heard(stage_record(restored=True)) == [StageFinished("r", "s", Status.COMPLETED, None, 0.5, 1, False, True)]
    assert heard(action_record(restored=True)) == []


def test_observers_hear_what_was_inserted_before_they_hear_of_the_end():
    """The stages are counted: what an action inserts into its own stage is not one."""
    units = (step([], "b"), one([], "c") >> one([], "d"), stream([]))
    inserted, finished = heard(action_record(inserted=units))
    assert inserted == UnitsInserted("r", "s", "a", ("b", "pipeline", "stream of []"), 2)
    assert isinstance(finished, ActionFinished)
    inserted, _ = heard(stage_record(inserted=units))
    assert inserted == UnitsInserted("r", "s", None, ("b", "pipeline", "stream of []"), 3)


def test_observers_hear_what_is_inserted_again_on_a_resume():
    """Though the action itself is restored."""
    (inserted,) = heard(action_record(inserted=(STAGE,), restored=True))
    assert inserted == UnitsInserted("r", "s", "a", ("s",), 1)


@pytest.mark.parametrize(("recovered", "expected"), [(False, [StageFinished]), (True, [UnitsInserted, StageFinished])])
def test_what_a_failure_would_have_inserted_is_not_reported(recovered, expected):
    """It does not run, unless a layer has recovered the failure."""
    record = stage_record(Status.FAILED, error=ValueError(), inserted=(STAGE,), recovered=recovered)
    assert [type(event) for event in heard(record)] == expected


@pytest.mark.parametrize("unit", [pipeline(STAGE, name="p"), parallel(STAGE, name="g")], ids=shown)
def test_of_pipelines_and_groups_observers_hear_what_they_insert_only(unit):
    """They have no event of their own."""
    outcome = Outcome(unit.name, unit, Status.COMPLETED, 1000.0, 0.5)
    assert heard(outcome, None) == []
    inserted = outcome._replace(inserted=(STAGE,))
    assert heard(inserted, None) == [UnitsInserted("r", None, None, ("s",), 1)]


def test_observers_hear_of_the_failures_of_earlier_attempts():
    """Of actions and stages; an action outside a stage has none to name."""
    for record in (action_record, stage_record):
        (event,) = heard(record(failures=[NO], attempts=2), None)
        assert event.failures == (NO,)
    assert heard(action_record(), None)[0].stage == ""
    inserted, _ = heard(stage_record(inserted=(STAGE,)), None)
    assert inserted.stage == "s"


# -- of several branches


def test_steps_are_cut_from_these_numbers_on():
    """In these branches, of which some may have none."""
    steps = {"0": dict.fromkeys(range(4)), "b": dict.fromkeys(range(2)), "c": {0: None}}
    cut_steps(steps, {"0": 2, "b": 0, "gone": 0})
    assert {branch: list(mine) for branch, mine in steps.items()} == {"0": [0, 1], "b": [], "c": [0]}


# -- as text, and by name


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (action_record(), "<ActionRecord a completed in 0.500000 s>"),
        (
            action_record(Status.FAILED, error=ValueError(), attempts=3),
            "<ActionRecord a failed with ValueError in 3 attempts in 0.500000 s>",
        ),
        (stage_record(), "<StageRecord s completed in 0.500000 s: no actions>"),
        (
            stage_record(actions=[action_record()] * 2, attempts=2),
            "<StageRecord s completed in 2 attempts in 0.500000 s: a, a>",
        ),
        (Outcome("g", parallel(STAGE), Status.COMPLETED, 0.0, 0.5), "<Outcome g completed in 0.500000 s>"),
    ],
    ids=shown,
)
def test_an_outcome_has_a_repr(record, expected):
    """Name, status, error, attempts, duration; of a stage, its actions."""
    assert repr(record) == expected


def test_a_record_gives_what_it_is_of():
    """By a name of its own, for readers of `run.stages`."""
    assert action_record().action is ACTION
    assert stage_record().stage is STAGE


def test_the_scope_of_a_branch_differs_in_the_branch_only():
    """The branches of a group have the rest in common."""
    scope = Scope("g", "0.3", None, "s/a", PLACE)
    assert scope.of(1) == Scope("g", "0.3", 1, "s/a", PLACE)


def test_who_inserted_a_unit_is_known_by_name_and_number():
    """Several steps may have one name."""
    who = inserter("s/a", 7)
    assert (who, who.number) == ("s/a", 7)


def test_identities_are_of_constant_size_and_differ():
    """However deep groups are nested; the same parts have the same one."""
    deep = branch_id(branch_id(branch_id("0.1", 0) + ".2", 1) + ".3", 2)
    assert len(deep) == len(branch_id("0.1", 0)) == len(step_id("r", deep, 7, "a")) == 20
    assert len({branch_id("0.1", 0), branch_id("0.1", 1), branch_id("0.11", 0), deep}) == 4
    assert step_id("r", "0", 1, "a") == step_id("r", "0", 1, "a") != step_id("r", "0", 2, "a")


def test_stages_are_counted_wherever_they_are():
    """In pipelines and groups; of a stream one cannot know."""
    units = [STAGE, pipeline(STAGE, parallel(STAGE, STAGE)), stream([]), ACTION]
    assert stage_count(units) == 5
