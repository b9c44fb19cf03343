"""Steps of a run whose pipeline has changed since are found by name, and adopted in their present places."""

import durable_units as du
import pytest
from support import step

from flowdeco import Pipeline, Stage, Status, parallel, pipeline, stream
from flowdeco.durable import MemoryJournal
from flowdeco.engine.adoption import Archive
from flowdeco.engine.outcome import ActionRecord, Outcome, Selection, StageRecord, branch_id
from flowdeco.engine.rows import Recorded
from flowdeco.middleware import recover
from flowdeco.model.definitions import Action, Parallel
from flowdeco.model.steps import step_of

A, B, C = (step([], name) for name in "abc")
USE = [recover(on=ValueError)]


class Ran:
    """The rows of a run of these units that completed, as a journal has them; a step can be `changed` by its name."""

    def __init__(self, *units, number=0, branch="0", **changed):
        self.steps = {}
        self.changed = changed
        self._in_a_row(units, branch, number)

    def _in_a_row(self, units, branch, number):
        for unit in units:
            number = self._ran(Stage(unit.name, [unit]) if isinstance(unit, Action) else unit, branch, number)
        return number

    def _ran(self, unit, branch, number):
        if isinstance(unit, Pipeline) and not unit.use:
            return self._in_a_row(unit.units, branch, number)
        if isinstance(unit, Parallel):
            for index, inner in enumerate(unit.units):
                self._in_a_row([inner], branch_id(f"{branch}.{number}", index), 0)
            return self._row(Outcome, unit.name, "group", "", branch, number, number + 1, branches=len(unit.units))
        if isinstance(unit, Pipeline):
            end = self._in_a_row(unit.units, branch, number + 1)
            return self._row(Outcome, unit.name, "pipeline", "", branch, number, end)
        end = number + 1
        for each in unit.actions:
            end = self._row(ActionRecord, each.name, "action", unit.name, branch, end, end + 1)
        return self._row(StageRecord, unit.name, "stage", "", branch, number, end)

    def _row(self, kind, name, of, stage, branch, number, end, **more):
        own = {} if of == "action" else {"end": end}
        did = kind(name, Recorded(of, stage), Status.COMPLETED, 1.0, float(number), number=number, **own, **more)
        changes = self.changed.get(name, {})
        if changes is not None:
            self.steps.setdefault(branch, {})[number] = did._replace(**changes)
        return end


FAILED = {"status": Status.FAILED}


def adopted(archive, number, unit, around=None, branch="0", steps=None):
    """The steps that are adopted as this unit begins: their places, names, and numbers before (their times)."""
    steps = {} if steps is None else steps
    archive.adopt(steps, branch, number, step_of(unit) if isinstance(unit, Action) else unit, around)
    assert all(number == did.number for mine in steps.values() for number, did in mine.items())
    found = {(at, n): did for at, mine in steps.items() for n, did in mine.items()}
    assert all(did.restored for did in found.values())
    return [(at, n, did.name, int(did.elapsed)) for (at, n), did in sorted(found.items())]


# -- a scope with the same contents is adopted as a whole


def test_a_stage_is_found_wherever_it_is_now():
    """With its actions, under their present numbers, and once."""
    archive = Archive([Ran(Stage("s", [A]), Stage("t", [A, B])).steps])
    steps = {}
    assert adopted(archive, 7, Stage("t", [A, B]), steps=steps) == [
        ("0", 7, "t", 2),
        ("0", 8, "a", 3),
        ("0", 9, "b", 4),
    ]
    assert (steps["0"][7].end, steps["0"][8].end) == (10, -1)
    assert adopted(archive, 10, Stage("t", [A, B])) == []
    assert adopted(archive, 10, Stage("t"), A) == adopted(archive, 10, pipeline(A, name="s", use=USE)) == []
    assert adopted(archive, 1, Stage("s", [A])) == [("0", 1, "s", 0), ("0", 2, "a", 1)]


OPEN = pipeline(Stage("s", [A]), Stage("t", [B]), name="p", use=USE)
GROUP = parallel(Stage("s", [A]), pipeline(B, C), name="g")


def test_a_pipeline_with_layers_is_adopted_with_all_of_its_steps():
    """One without has no row of its own: its contents are found one by one."""
    archive = Archive([Ran(A, OPEN).steps])
    names = [("p", 2), ("s", 3), ("a", 4), ("t", 5), ("b", 6)]
    assert adopted(archive, 1, OPEN) == [("0", n, *each) for n, each in enumerate(names, 1)]
    assert adopted(archive, 9, Stage("s", [A])) == []
    nested = pipeline(pipeline(A, pipeline(B)), OPEN, name="q", use=USE)
    archive = Archive([Ran(nested).steps])
    assert len(adopted(archive, 0, nested)) == 10


def test_a_scope_without_rows_of_its_steps_is_adopted_with_what_comes_behind_it():
    """An atomic one that had failed, which its layers, or others, recovered."""
    flow = pipeline(pipeline(S, name="q", use=USE), C, name="p", use=USE)
    recovered = {**FAILED, "recovered": True, "error": ValueError(), "end": 5}
    ran = Ran(flow, q=recovered, s=None, a=None, b=None)
    assert adopted(Archive([ran.steps]), 2, flow) == [
        ("0", 2, "p", 0),
        ("0", 3, "q", 1),
        ("0", 7, "c", 5),
        ("0", 8, "c", 6),
    ]


def test_a_group_is_adopted_with_its_branches():
    """Their ids follow from its place; those inside them, too."""
    outer = parallel(GROUP, A, name="outer")
    archive = Archive([Ran(C, outer).steps])
    group = branch_id("0.5", 0)
    one, other = (branch_id(f"{group}.0", index) for index in (0, 1))
    assert adopted(archive, 5, outer) == sorted([
        ("0", 5, "outer", 2), (group, 0, "g", 0), (one, 0, "s", 0), (one, 1, "a", 1), (other, 0, "b", 0),
        (other, 1, "b", 1), (other, 2, "c", 2), (other, 3, "c", 3), (branch_id("0.5", 1), 0, "a", 0),
        (branch_id("0.5", 1), 1, "a", 1),
    ])  # fmt: skip


S = Stage("s", [A, B])
IN_S = [("0", 0, "s", 0), ("0", 1, "a", 1), ("0", 2, "b", 2)]


@pytest.mark.parametrize(
    ("ran", "unit", "is_whole"),
    [
        (Ran(S), S, True),
        (Ran(S), Stage("s", [A]), False),
        (Ran(S), Stage("s", [B, A]), False),
        (Ran(S), Stage("s", [A, B, C]), False),
        (Ran(S, s=FAILED), S, False),
        (Ran(S, s=None), S, False),
        (Ran(S, b=None), S, False),
        (Ran(S, s={"end": -1}), S, True),
        (Ran(S, s={"status": Status.SKIPPED, "end": 1}, a=None, b=None), S, True),
        (Ran(S, s={"status": Status.SKIPPED, "end": -1}, a=None, b=None), S, True),
        (Ran(S, s={"entered": False, "end": 1}, a=None, b=None), S, True),
        (Ran(S, s={**FAILED, "error": ValueError(), "recovered": True, "end": 2}, b=None), S, True),
        (Ran(S, s={**FAILED, "error": ValueError(), "recovered": True, "end": 3}), Stage("s", [C]), True),
        (Ran(S, a={"inserted": (C,)}), S, False),
        (Ran(Stage("s", [A, C, B]), a={"inserted": (C,)}), S, True),
        (Ran(Stage("s", [A, C, B]), b={"inserted": (C,)}), S, False),
        (Ran(Stage("s", [A, B, C]), a={"inserted": (B, C)}), Stage("s", [A]), True),
        (Ran(Stage("s", [A, C, B]), a={"inserted": (B, C)}), Stage("s", [A]), False),
        (Ran(S, C, a={"inserted": (Stage("c", [C]),)}), S, True),
        (Ran(OPEN), OPEN, True),
        (Ran(OPEN), pipeline(Stage("s", [A]), name="p", use=USE), False),
        (Ran(OPEN), pipeline(Stage("s", [A]), Stage("t", [C]), name="p", use=USE), False),
        (Ran(OPEN), pipeline(Stage("s", [A]), Stage("x", [B]), name="p", use=USE), False),
        (Ran(OPEN), pipeline(Stage("s", [A]), parallel(B, name="t"), name="p", use=USE), False),
        (Ran(OPEN, t=None, b=None, p={"end": 3}), OPEN, False),
        (Ran(OPEN, s={"inserted": (Stage("t", [B]),)}), pipeline(Stage("s", [A]), name="p", use=USE), True),
        (Ran(OPEN, a={"inserted": (Stage("t", [B]),)}), pipeline(Stage("s", [A]), name="p", use=USE), True),
        (Ran(OPEN, a={"inserted": (stream(list),)}), OPEN, False),
        (
            Ran(
                pipeline(S, Stage("t", [C]), Stage("u", [C]), name="p", use=USE),
                a={"inserted": (Stage("t", [C]),)}, b={"inserted": (Stage("u", [C]),)},
            ),
            pipeline(S, name="p", use=USE),
            True,
        ),
        (
            Ran(OPEN, s={**FAILED, "error": ValueError(), "recovered": True, "inserted": (Stage("t", [B]),)}),
            pipeline(Stage("s", [A, C]), name="p", use=USE),
            True,
        ),
        (
            Ran(
                pipeline(A, B, C, name="p", use=USE),
                a={"inserted": (pipeline(B, C),)},
            ),
            pipeline(A, name="p", use=USE),
            False,  # the row of the stage is in the way: both have the same name
        ),
        (Ran(GROUP), GROUP, True),
        (Ran(GROUP), parallel(Stage("s", [A]), pipeline(B), name="g"), False),
        (Ran(GROUP), parallel(Stage("s", [A]), pipeline(B, A), name="g"), False),
        (Ran(GROUP), parallel(Stage("s", [A]), name="g"), False),
        (Ran(GROUP), parallel(Stage("s", [A]), pipeline(B, C), C, name="g"), False),
        (Ran(GROUP, s=None, a=None), GROUP, False),
        (Ran(GROUP, s=None, a=None, g={"error": ValueError(), "recovered": True}), GROUP, True),
        (
            Ran(GROUP, s=None, a=None, g={"error": ValueError(), "recovered": True}),
            parallel(Stage("s", [A]), pipeline(B, A), name="g"),
            False,
        ),
        (Ran(parallel(A, pipeline(B, Stage("e")), name="g")), parallel(A, B, name="g"), False),
        (Ran(GROUP, s=None, a=None, g={"selection": Selection(counted=frozenset([1]))}), GROUP, True),
        (Ran(GROUP, s=None, a=None, g={"selection": Selection(counted=frozenset([0]))}), GROUP, False),
        (Ran(GROUP, b=None, g={"error": ValueError(), "recovered": True}), GROUP, False),
        (Ran(GROUP), parallel(stream(list), name="g"), False),
    ],
)  # fmt: skip
def test_a_scope_is_the_same_if_it_had_ended_with_the_steps_that_it_has_now(ran, unit, is_whole):
    """What it inserted included; after a failure, or skipped, it had come to no more."""
    count = 1 + max(ran.steps["0"])
    steps = {}
    adopted(Archive([ran.steps]), 0, unit, steps=steps)
    assert bool(steps) == is_whole
    if is_whole:
        end = max(1, ran.steps["0"][0].end)
        assert set(steps["0"]) == {number for number in ran.steps["0"] if number < end <= count}


def test_what_the_layers_of_a_stage_inserted_comes_behind_what_its_actions_did():
    """Both are inside the pipeline around it."""
    units = [Stage("s", [A]), Stage("t", [B]), Stage("u", [C])]
    inserted = {"a": {"inserted": (units[1],)}, "s": {"inserted": (units[2],)}}
    now = pipeline(units[0], name="p", use=USE)
    assert len(adopted(Archive([Ran(pipeline(*units, name="p", use=USE), **inserted).steps]), 0, now)) == 7
    units[1:] = units[:0:-1]
    assert adopted(Archive([Ran(pipeline(*units, name="p", use=USE), **inserted).steps]), 0, now) == []


def test_a_scope_of_which_a_step_has_been_adopted_is_not_the_same():
    """The step would be there twice; it has been found by its own name."""
    archive = Archive([Ran(pipeline(S, name="p", use=USE)).steps])
    assert len(adopted(archive, 0, S)) == 3
    assert adopted(archive, 3, pipeline(S, name="p", use=USE)) == []


# -- of any other one, the actions are


def test_of_a_stage_that_has_changed_its_actions_are_adopted():
    """Those of the earlier stage, that had ended, once each; also if it had not ended itself, and has no row."""
    for ran in (Ran(S, Stage("s", [A, C])), Ran(S, Stage("s", [A, C]), s=None)):
        archive = Archive([ran.steps])
        now = Stage("s", [C, A, B, A])
        assert adopted(archive, 0, now) == []
        assert adopted(archive, 1, C, now) == []
        assert adopted(archive, 2, A, now) == [("0", 2, "a", 1)]
        assert adopted(archive, 3, B, now) == [("0", 3, "b", 2)]
        assert adopted(archive, 4, A, now) == []
    archive = Archive([Ran(C, S, S, s=None).steps])
    assert len(adopted(archive, 0, Stage("c", [C]))) == 2
    assert adopted(archive, 2, now) == adopted(archive, 3, C, now) == []
    assert adopted(archive, 3, A, now) == [("0", 3, "a", 3)]
    archive = Archive([Ran(S, a=FAILED).steps])
    assert adopted(archive, 0, now) == adopted(archive, 1, A, now) == []
    assert adopted(archive, 1, B, now) == [("0", 1, "b", 2)]


def test_actions_of_a_stage_that_is_new_are_found_by_their_own_names():
    """With that of their stage: it may have been inside another scope that was adopted before."""
    archive = Archive([Ran(S, S, b=FAILED).steps])
    for number in (0, 10):
        assert adopted(archive, number, Stage("s", [A])) == []
    assert adopted(archive, 20, Stage("s", [A])) == []  # no such stage is left
    assert adopted(archive, 21, A, Stage("s")) == [("0", 21, "a", 1)]
    assert adopted(archive, 22, A, Stage("t")) == []
    assert adopted(archive, 22, A, Stage("s")) == [("0", 22, "a", 4)]
    assert adopted(archive, 23, B, Stage("s")) == []


# -- of several


def test_the_steps_most_alike_are_adopted():
    """The first one of several such, and better one that is the same."""
    alike = [Stage("s", [C]), Stage("s", [A]), Stage("s", [A, B, C]), Stage("s", [A, B, C])]
    archive = Archive([Ran(*alike).steps])
    now = Stage("s", [A, B])
    places = [[], []]
    for found in places:
        adopted(archive, 0, now)
        found.extend(adopted(archive, 1, A, now) + adopted(archive, 2, B, now))
    assert places == [[("0", 1, "a", 5), ("0", 2, "b", 6)], [("0", 1, "a", 9), ("0", 2, "b", 10)]]
    archive = Archive([Ran(*alike, now).steps])
    assert adopted(archive, 0, now) == [("0", 0, "s", 12), ("0", 1, "a", 13), ("0", 2, "b", 14)]
    assert adopted(archive, 0, Stage("s", [A])) == [("0", 0, "s", 2), ("0", 1, "a", 3)]
    nothing_alike = Stage("s", [step([], "x")])
    adopted(archive, 0, nothing_alike)
    assert adopted(archive, 1, C, nothing_alike) == [("0", 1, "c", 1)]


def test_of_a_loop_only_a_hundred_turns_are_looked_at():
    """However many it made."""
    turns = [Stage("s", [B])] * 100
    for before, place in ((99, 198), (100, 0)):
        archive = Archive([Ran(*turns[:before], Stage("s", [A, C])).steps])
        now = Stage("s", [A])
        adopted(archive, 0, now)
        assert adopted(archive, 1, A, now) == ([("0", 1, "a", place + 1)] if place else [])


def test_one_in_the_same_branch_is_preferred():
    """Groups are known by name there, and branches by their place in them."""
    inner = parallel(Stage("s", [A]), Stage("s", [A]), name="h")
    group = parallel(Stage("s", [A]), inner, name="g")
    ran = Ran(Stage("s", [A]), group)
    ids = {}
    for number, did in enumerate(ran.steps):
        ids[did] = number
    archive = Archive([ran.steps])
    archive.begin_branch("0", "x", "g", 1)
    archive.begin_branch("x", "y", "h", 1)
    for steps in ran.steps.values():
        for number, did in steps.items():
            steps[number] = did._replace(elapsed=float(10 * ids[_branch_of(ran, did)] + number))
    last = ids[branch_id(f"{branch_id('0.2', 1)}.0", 1)] * 10
    assert adopted(archive, 0, Stage("s", [A]), branch="y") == [("y", 0, "s", last), ("y", 1, "a", last + 1)]
    assert adopted(archive, 0, Stage("s", [A])) == [("0", 0, "s", 0), ("0", 1, "a", 1)]
    archive.begin_branch("0", "z", "new", 0)
    elsewhere = [adopted(archive, 0, Stage("s", [A]), branch=branch) for branch in ("y", "z")]
    assert sorted(found[0][3] for found in elsewhere) == sorted(
        10 * ids[branch] for branch in (branch_id("0.2", 0), branch_id(f"{branch_id('0.2', 1)}.0", 0))
    )
    assert adopted(archive, 2, Stage("s", [A])) == []
    archive = Archive([Ran(parallel(S, Stage("s", [C, A, B]), name="g")).steps])
    archive.begin_branch("0", "x", "g", 1)
    assert adopted(archive, 1, B, Stage("s"), "x") == [("x", 1, "b", 3)]
    assert adopted(archive, 2, B, Stage("s"), "x") == [("x", 2, "b", 2)]


def _branch_of(ran, did):
    return next(branch for branch, steps in ran.steps.items() if any(each is did for each in steps.values()))


# -- of several generations


def test_steps_of_later_generations_are_preferred():
    """What they have is not left in the one before, which they had adopted it from."""
    archive = Archive([Ran(A, S).steps, Ran(S, C).steps])
    assert adopted(archive, 0, S) == [("0", 0, "s", 2), ("0", 1, "a", 3), ("0", 2, "b", 4)]
    assert adopted(archive, 3, S) == []
    assert adopted(archive, 3, Stage("c", [C])) == [("0", 3, "c", 3), ("0", 4, "c", 4)]
    archive = Archive([{}, Ran(S).steps, Ran(S).steps])
    assert len(adopted(archive, 0, S)) == 3
    assert adopted(archive, 3, S) == []  # each has it from the one before


@pytest.mark.parametrize(
    ("present", "left"),
    [
        (None, ["a", "b"]),
        ({}, []),
        ({"s": FAILED}, []),
        ({"s": None}, []),
        ({"s": None, "b": None}, ["b"]),
        ({"s": None, "b": FAILED}, ["b"]),
        ({"s": None, "a": None, "b": FAILED}, ["a", "b"]),
        ({"s": None, "a": None, "b": None}, ["a", "b"]),
        ({"s": {"name": "t", "unit": Recorded("stage", "t")}}, []),
    ],
)
def test_steps_that_the_present_generation_has_are_not_adopted_again(present, left):
    """Only such that had ended; of a stage that has no row, its actions tell."""
    now = {} if present is None else Ran(C, S, **present).steps
    assert bool(adopted(Archive([Ran(S).steps], now), 0, S)) == (left == ["a", "b"])
    archive = Archive([Ran(S).steps], now)
    adopted(archive, 0, Stage("s", [C]))
    assert [act.name for act in (A, B) if adopted(archive, 1, act, S)] == left


def test_of_several_stages_the_present_generation_has_the_one_most_alike():
    """The other one is left."""
    before = Ran(Stage("s", [A, C]), Stage("s", [A, B])).steps
    archive = Archive([before], Ran(Stage("s", [A, B]), number=5).steps)
    assert adopted(archive, 0, Stage("s", [A, B])) == []
    assert adopted(archive, 1, A, Stage("s")) == [("0", 1, "a", 1)]
    assert adopted(archive, 2, B, Stage("s")) == []
    archive = Archive([before], Ran(Stage("s", [A, B]), number=5, s=None).steps)
    adopted(archive, 0, Stage("s", [A, B]))
    assert adopted(archive, 1, A, Stage("s")) == []
    archive = Archive([before], Ran(GROUP).steps)
    assert adopted(archive, 0, Stage("s", [A, B])) == [("0", 0, "s", 3), ("0", 1, "a", 4), ("0", 2, "b", 5)]


def test_steps_that_the_present_generation_has_in_a_branch_are_of_that_branch():
    """Those of other branches, of the same names, are left."""
    before = Ran(parallel(S, pipeline(C, S), name="g")).steps
    now = Ran(parallel(pipeline(), S, name="g"), number=4, g=FAILED).steps
    archive = Archive([before], now)
    archive.begin_branch("0", "x", "g", 1)
    assert adopted(archive, 0, S, branch="x") == [("x", 0, "s", 0), ("x", 1, "a", 1), ("x", 2, "b", 2)]


# -- in a run


def test_a_completed_group_may_have_a_branch_without_steps():
    """One that was empty, or that was not needed: it is adopted if that is still so, and else its branches are."""
    enough = parallel(du.first, du.nothing, name="g", enough=1, limit=1)
    empty = parallel(pipeline(), du.nothing, name="g")
    for before, now, calls in (
        (empty, empty, ["item 0", "fragile"]),
        (empty, parallel(du.first, du.nothing, name="g"), ["item 0", "first", "fragile"]),
        (enough, enough, ["item 0", "fragile"]),
    ):
        du.clear()
        du.BROKEN.add("fragile")
        journal = MemoryJournal()
        pipeline(before, du.fragile, name="p").run(journal=journal, run_id="r", check=False)
        du.clear()
        run = pipeline(du.item, now, du.fragile, name="p").resume("r", journal=journal, on_change="ignore")
        assert (run.status, du.CALLS) == ("completed", calls)
