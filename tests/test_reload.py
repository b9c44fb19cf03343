"""What a fixed cell of a notebook is for a run in memory: what is left of it runs with the new code."""

import pytest

from flowdeco import Stage, action, parallel, pipeline, stage
from flowdeco.errors import CodeChangedError
from flowdeco.model.reload import reloaded

CALLS = []


@stage
def measure(n):
    @action(collect="found")
    def length():
        CALLS.append(n)
        return 10 // n


@stage
def fixed_stage():
    @action
    def only():
        return 1 // 0


@action(collect="found")
def divide(n):
    CALLS.append(n)
    return 10 // n


@action
def discover():
    return [measure(1), measure(0), measure(2)]


@action
def discover_deep():
    inner = pipeline(measure(1).with_options(tags=["x"]), Stage("by hand", [divide.bind(n=0)]), name="inner")
    return pipeline(parallel(inner, measure(2), limit=1), parallel(measure(3), divide.bind(n=4), limit=1), fixed_stage)


@action
def discover_actions():
    return [divide.bind(n=1), divide.bind(n=0).with_options(name="second"), divide.bind(n=2)]


@action
def discover_members():
    return [measure(1)["length"], measure(0)["length"], measure(2)["length"], fixed_stage["only"]]


@action
def total(found):
    return sum(found)


def in_cell(source):
    """Define what this says in this module, as a cell of a notebook does."""
    exec(source, globals())


@pytest.fixture
def cells():
    """Give what runs cells; what they had defined is undone."""
    CALLS.clear()
    before = dict(globals())
    yield in_cell
    globals().update(before)


FIXED = """
@stage
def measure(n):
    @action(collect="found")
    def length():
        CALLS.append(("new", n))
        return 10 // n if n else 0
"""
FIXED_ACTION = """
@action(collect="found")
def divide(n):
    CALLS.append(("new", n))
    return 10 // n if n else 0
"""
FIXED_STAGE = """
@stage
def fixed_stage():
    @action
    def only():
        return 1
"""


def test_a_template_that_was_fixed_is_taken_up(cells):
    """By what has not run; what has completed is as it was."""
    flow = discover >> total
    run = flow.run(check=False)
    assert CALLS == [1, 0]
    cells(FIXED)
    run = flow.resume(run)
    assert (run.status, run.result) == ("completed", 15)
    assert CALLS == [1, 0, ("new", 0), ("new", 2)]


def test_so_is_an_action_that_was_inserted(cells):
    """Also one with other options, or bound values."""
    flow = Stage("s", [discover_actions]) >> total
    run = flow.run(check=False)
    assert CALLS == [1, 0]
    cells(FIXED_ACTION)
    assert flow.resume(run).result == 15
    assert CALLS == [1, 0, ("new", 0), ("new", 2)]


def test_so_is_an_action_that_was_taken_out_of_a_stage(cells):
    """By its place there; where the stage has not changed, it is the same as before."""
    run = Stage("s", [discover_members]).run(check=False)
    assert CALLS == [1, 0]
    cells(FIXED)
    again = Stage("s", [discover_members]).resume(run, check=False)
    assert CALLS == [1, 0, ("new", 0), ("new", 2)]
    assert (again.status, type(again.error)) == ("failed", ZeroDivisionError)
    assert reloaded(fixed_stage["only"]) is fixed_stage["only"]


def test_so_is_what_is_deep_in_what_was_inserted(cells):
    """In pipelines, in groups, in stages made by hand."""
    flow = discover_deep >> total
    run = flow.run(check=False)
    assert CALLS == [1, 0]
    cells(FIXED_ACTION + FIXED_STAGE + FIXED)
    run = flow.resume(run)
    assert (run.result, run["only"]) == (20, 1)
    assert CALLS == [1, 0, ("new", 0), ("new", 2), ("new", 3), ("new", 4)]


def test_an_action_that_had_completed_in_the_failed_stage_is_a_change(cells):
    """As it is everywhere."""
    cells(
        """
@stage
def measure(n):
    @action(collect="found")
    def begins():
        return 1
    @action
    def length():
        return 10 // n
"""
    )
    flow = discover >> total
    run = flow.run(check=False)
    cells(
        """
@stage
def measure(n):
    @action(collect="found")
    def begins():
        return 2
    @action
    def length():
        return 0
"""
    )
    with pytest.raises(CodeChangedError, match=r"action measure\[0\]/begins has completed, with different code"):
        flow.resume(run)


def test_what_has_not_changed_is_the_same_object():
    """Also where its name leads nowhere, or to something else."""

    @stage
    def local(n):
        @action
        def inner():
            return n

    other = action(name="other")(lambda: 1)
    by_hand = Stage("by hand", [divide, other, action(total.__wrapped__, name="also")])
    for unit in (measure(1), fixed_stage, divide.bind(n=1), local(2), by_hand, by_hand.with_options(tags=["x"]), other):
        assert reloaded(unit) is unit
