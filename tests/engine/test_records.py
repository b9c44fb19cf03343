"""The records of a branch against a plain list of everything that was recorded, in which a number says what is forgotten."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from flowdeco import Pipeline, Stage, parallel
from flowdeco.engine.outcome import ActionRecord, Outcome, Scope, Selection, StageRecord, Status
from flowdeco.engine.records import Records

STAGE, FLOW, GROUP = Stage("s"), Pipeline(name="p"), parallel(Stage("s"), name="g")
ERROR = ValueError("no")
LOST, KEPT = (Scope("g", "0.1", branch, None, None) for branch in (0, 1))


def record(status=Status.COMPLETED, *, unit=STAGE, **more):
    """The record of a stage, or of what is given."""
    kind = StageRecord if unit is STAGE else Outcome
    return kind(unit.name, unit, status, 0.0, 0.0, **more)


ODD = [record(Status.FAILED, unit=FLOW, error=ERROR), record(unit=FLOW, attempts=2)]
OF_GROUPS = [
    record(Status.FAILED, unit=GROUP, error=ERROR),
    record(unit=GROUP, selection=Selection({0: ERROR})),
    record(Status.SKIPPED, unit=GROUP),
    record(Status.SKIPPED, unit=FLOW),
]
PLAIN = [record(unit=FLOW), record(unit=GROUP), record(Status.BAILED, unit=FLOW)]


class Model:
    """Everything that was recorded, and the number of records that are forgotten."""

    def __init__(self, most):
        self.most, self.all, self.scopes, self.forgotten = most, [], [], 0

    def forget(self):
        """Forget the oldest ones, if there are more than twice as many as to keep."""
        if self.most is not None and len(self.all) - self.forgotten > 2 * self.most:
            self.forget_until(len(self.all) - self.most)

    def forget_until(self, count):
        """Forget so many of all, and the pipelines that ended before the first of the rest had."""
        self.forgotten = count
        self.scopes = [each for each in self.scopes if each[0] > count]

    def last(self):
        """Return the last ones, of those that are not forgotten."""
        since = 0 if self.most is None else max(self.forgotten, len(self.all) - self.most)
        return self.all[since:]

    def pipelines(self):
        """Return the odd ones that ended after the first of the last records, or all if none is missing."""
        missing = len(self.all) - len(self.last())
        return [each for at, each in self.scopes if each in ODD and (at > missing or not missing)]


STEP = st.one_of(st.just("add"), st.sampled_from(["add", *ODD, *OF_GROUPS, *PLAIN]), st.integers(0, 8))
STEPS = st.lists(STEP | st.lists(STEP | st.lists(STEP, max_size=6), max_size=8), max_size=10)


def made(steps, most, number):
    """Records, and the model of them, to which both did the same; each record is a number."""
    records, model = Records(most), Model(most)
    for step in steps:
        if step == "add":
            records.add(next_one := next(number))
            model.all.append(next_one)
        elif isinstance(step, int):
            at = min(step, len(model.all))
            dropped = records.cut(at)
            assert dropped == model.all[max(at, model.forgotten) :]
            model.all, model.forgotten = model.all[:at], min(model.forgotten, at)
            model.scopes = [each for each in model.scopes if each[0] <= at]
        elif isinstance(step, list):
            inner, of_inner = made(step, most, number)
            records.adopt(inner)
            if of_inner.forgotten:
                model.forget_until(len(model.all))
                model.forgotten += of_inner.forgotten
            model.scopes += [(len(model.all) + at, each) for at, each in of_inner.scopes]
            model.all += of_inner.all
        else:
            records.add_scope(step)
            model.scopes += [] if step in PLAIN else [(len(model.all), step)]
        model.forget()
    return records, model


@settings(max_examples=examples(150))
@given(STEPS, st.sampled_from([None, 0, 1, 2, 3]))
def test_the_last_records_are_kept(steps, most):
    """What is kept is the end of everything, without a gap, and at most twice as much as was asked for."""
    records, model = made(steps, most, iter(range(1000)))
    assert (len(records), records.forgotten, records.kept) == (
        len(model.all), model.forgotten, model.all[model.forgotten :],
    )  # fmt: skip
    assert (records.last(), records.last_pipelines()) == (model.last(), model.pipelines())
    assert records.scopes == model.scopes
    assert most is None or len(records.kept) <= 2 * most


def test_pipelines_and_groups_are_kept_if_there_is_something_to_say_of_them():
    """Of those, a run has the pipelines that failed or were tried again."""
    records = Records(None)
    for each in [*PLAIN, *ODD, *OF_GROUPS]:
        records.add_scope(each)
    assert records.scopes == [(0, each) for each in [*ODD, *OF_GROUPS]]
    assert records.last_pipelines() == ODD


def test_the_last_of_none_is_none():
    """As of fewer than are asked for."""
    records = Records(3)
    assert (records.last(), records.last_pipelines(), len(records)) == ([], [], 0)
    records.add(1)
    assert records.last() == [1]


@pytest.mark.parametrize(
    ("forgotten", "since", "amends"), [(0, 1, "bc"), (0, 0, "abc"), (2, 3, "bc"), (2, 1, "abc"), (9, 3, "abc")]
)
def test_a_pipeline_amends_the_records_of_its_stages(forgotten, since, amends):
    """A failure that it recovered is theirs no more; records before it are as they were."""
    records = Records(None)
    records.kept = [record(Status.FAILED, error=ERROR)._replace(name=name) for name in "abc"]
    records.forgotten = forgotten
    records.amend(record(unit=FLOW, recovered=True), since)
    assert [each.name for each in records.kept] == ["a", "b", "c"]
    assert "".join(each.name for each in records.kept if each.recovered) == amends


@pytest.mark.parametrize(("forgotten", "since", "recovers"), [(0, 1, "bd"), (0, 0, "abd"), (2, 3, "bd"), (9, 3, "abd")])
def test_failures_in_lost_branches_are_recovered(forgotten, since, recovers):
    """Those since the group began, with their actions; nothing else is."""
    acts = [
        ActionRecord(name, STAGE, status, 0.0, 0.0) for name, status in (("x", Status.COMPLETED), ("y", Status.FAILED))
    ]
    records = Records(None)
    records.kept = [
        record(status, scope=scope, actions=acts)._replace(name=name)
        for name, status, scope in (
            ("a", Status.FAILED, LOST),
            ("b", Status.FAILED, LOST),
            ("c", Status.FAILED, KEPT),
            ("d", Status.FAILED, LOST),
            ("e", Status.COMPLETED, LOST),
        )
    ]
    records.forgotten = forgotten
    records.scopes = [(at, record(Status.FAILED, unit=FLOW, scope=LOST)) for at in (since - 1, since, since + 1)]
    records.recover(since, lambda each: each.scope is LOST)
    assert "".join(each.name for each in records.kept if each.recovered) == recovers
    for each in records.kept:
        assert [inner.recovered for inner in each.actions] == [False, each.recovered]
    assert [(at, each.recovered) for at, each in records.scopes] == [
        (since - 1, False),
        (since, True),
        (since + 1, True),
    ]


@pytest.mark.parametrize("status", Status)
def test_the_last_stage_of_a_branch_that_was_not_needed_is_cancelled(status):
    """If it had ended well, or waited."""
    records = Records(None)
    records.cancel_last()
    before, last = record()._replace(name="a"), record(status)._replace(name="c")
    records.kept = [before, before, last]
    records.cancel_last()
    cancelled = status in (Status.COMPLETED, Status.SUSPENDED)
    assert records.kept == [before, before, last._replace(status=Status.CANCELLED) if cancelled else last]


@pytest.mark.parametrize(
    ("kept", "scopes", "forgotten", "all_skipped"),
    [
        ([], [], 0, False),
        ([Status.SKIPPED] * 2, [], 0, True),
        ([], [Status.SKIPPED], 0, True),
        ([Status.SKIPPED], [], 1, False),
        ([Status.SKIPPED, Status.COMPLETED], [], 0, False),
        ([Status.SKIPPED], [Status.FAILED], 0, False),
    ],
)
def test_a_branch_is_skipped_if_all_in_it_is(kept, scopes, forgotten, all_skipped):
    """An empty one is not; of what is forgotten, nobody knows."""
    records = Records(None)
    records.kept, records.forgotten = [record(status) for status in kept], forgotten
    records.scopes = [(0, record(status, unit=GROUP)) for status in scopes]
    assert records.all_skipped() is all_skipped


def test_all_that_waited_in_a_branch_that_was_not_needed_is_cancelled():
    """Stages, their actions, pipelines; those that had ended in another way did so."""
    acts = [ActionRecord("x", STAGE, status, 0.0, 0.0) for status in (Status.COMPLETED, Status.SUSPENDED)]
    records = Records(None)
    records.kept = [record(status, actions=acts) for status in (Status.SUSPENDED, Status.FAILED, Status.SUSPENDED)]
    records.scopes = [(0, record(Status.SUSPENDED, unit=FLOW)), (1, record(Status.FAILED, unit=FLOW))]
    records.cancel_last()
    assert [each.status for each in records.kept] == ["cancelled", "failed", "cancelled"]
    assert [each.status for each in records.kept[0].actions] == ["completed", "cancelled"]
    assert [each.status for _, each in records.scopes] == ["cancelled", "failed"]
