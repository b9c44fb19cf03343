"""What a step came to, as one value: what is kept of it, what observers hear of it, whether a resume takes it over."""

import pytest
from support import one, shown, step

from flowdeco import Bail, Stage, Suspend, parallel, pipeline, stream
from flowdeco.drivers.interrupts import is_cancellation
from flowdeco.engine.outcome import (
    ActionRecord,
    Outcome,
    Scope,
    StageRecord,
    Status,
    branch_id,
    stages_in,
    status_of,
    step_id,
)
from flowdeco.errors import Cancelled
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


@pytest.mark.parametrize("effect", [{"writes": Delta({"k": 1}, [], {})}, {"entering": (NOTHING,)}, {"result": None}])
@pytest.mark.parametrize("record", [action_record, stage_record])
def test_a_record_that_is_kept_keeps_no_value_alive(record, effect):
    """Neither what was written nor the result; the rest is the same."""
    kept = record(number=3, attempts=2, **effect).kept()
    assert kept == record(number=3, attempts=2)
    assert type(kept) is type(record())
    assert (kept.writes, kept.entering, kept.result) == (None, (), UNSET)


def test_a_record_without_an_effect_is_kept_as_it_is():
    """There is nothing to drop."""
    record = action_record()
    assert record.kept() is record


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
        (stage_record(actions=[action_record()]), "<StageRecord s completed in 0.500000 s: a>"),
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
    scope = Scope("g", "0.3", None, "s/a", None)
    assert scope.of(1) == Scope("g", "0.3", 1, "s/a", None)


def test_identities_are_of_constant_size_and_differ():
    """However deep groups are nested; the same parts have the same one."""
    deep = branch_id(branch_id(branch_id("0.1", 0) + ".2", 1) + ".3", 2)
    assert len(deep) == len(branch_id("0.1", 0)) == len(step_id("r", deep, 7, "a")) == 20
    assert len({branch_id("0.1", 0), branch_id("0.1", 1), branch_id("0.11", 0), deep}) == 4
    assert step_id("r", "0", 1, "a") == step_id("r", "0", 1, "a") != step_id("r", "0", 2, "a")


def test_stages_are_counted_wherever_they_are():
    """In pipelines and groups; of a stream one cannot know."""
    units = [STAGE, pipeline(STAGE, parallel(STAGE, STAGE)), stream([]), ACTION]
    assert stages_in(units) == 5
