"""Who inserted whom, read from records: by numbers, because several steps may have one name."""

import pytest
from support import text_of

from flowdeco import Context, Stage, action, parallel, pipeline
from flowdeco.engine.outcome import Inserter, inserter
from flowdeco.middleware import retry
from flowdeco.show.inserters import DEEPEST, Inserters, depths


def around(call):
    """Middleware that does nothing."""
    yield


def inserting(*units, name="insert"):
    """An action that inserts these units."""

    @action(name=name)
    def body(ctx: Context) -> None:
        ctx.insert(*units)

    return body


def parents(run):
    """The name of each stage, with the index of its inserter."""
    inserters = Inserters(run.stages)
    return [(record.name, inserters.find(record.inserted_by, record.scope)) for record in run.stages]


def test_an_inserter_is_a_string_with_a_number():
    """It is equal to its name."""
    by = inserter("s/a", 3)
    assert (by, by.number, type(by)) == ("s/a", 3, Inserter)


def test_each_stage_has_the_stage_that_inserted_it(run):
    """Units of the plan have none."""
    flow = inserting(Stage("a"), inserting(Stage("c"), name="b")) >> Stage("d")
    assert parents(run(flow)) == [("insert", None), ("a", 0), ("b", 0), ("c", 2), ("d", None)]


def test_two_stages_of_one_name_are_told_apart(run):
    """The later one, which inserts nothing, is not taken for the inserter of what comes after it."""
    turns = []

    @action
    def again(ctx: Context):
        turns.append(1)
        if len(turns) == 1:
            ctx.insert(ctx.stage, Stage("x"))

    assert parents(run(Stage("s", [again]))) == [("s", None), ("s", 0), ("x", 0)]


def test_what_comes_with_a_group_was_inserted_by_its_inserter(run):
    """Also in a group within, and in a pipeline; what they insert themselves was inserted by them."""
    inner = pipeline(inserting(Stage("y"), name="x"), name="p", use=[around])
    flow = inserting(parallel(Stage("a"), parallel(inner, name="in"), name="out")) >> Stage("z")
    assert parents(run(flow)) == [("insert", None), ("a", 0), ("x", 0), ("y", 2), ("z", None)]


def test_numbers_are_those_of_a_branch(run):
    """Equal numbers in two branches are two steps."""
    flow = parallel(inserting(Stage("a"), name="s"), inserting(Stage("b"), name="s"), name="g")
    assert parents(run(flow)) == [("s", None), ("a", 0), ("s", None), ("b", 2)]


def test_middleware_inserts_in_the_name_of_its_stage(run):
    """That of a pipeline is not a stage, and has no record."""

    def inserts(call):
        call.insert(Stage("x"))
        yield

    assert parents(run(Stage("s", use=[inserts]))) == [("s", None), ("x", 0)]
    assert parents(run(pipeline(Stage("s"), name="p", use=[inserts]) >> Stage("t")))[1] == ("x", None)


def test_a_stage_that_was_tried_again_inserted_what_it_inserted_last(run):
    """Dropped attempts have no children."""
    turns = []

    @action
    def flaky(ctx: Context):
        turns.append(1)
        ctx.insert(Stage(f"x{len(turns)}"))
        if len(turns) < 2:
            raise ValueError(text_of(ValueError("not yet")))

    assert parents(run(Stage("s", [flaky], use=[retry(on=ValueError, wait=0)]))) == [("s", None), ("x2", 0)]


def test_a_forgotten_inserter_is_not_found(run):
    """As with `history=`."""
    assert parents(run(inserting(Stage("a"), Stage("b")), history=1)) == [("b", None)]


def test_an_inserter_without_a_number_is_not_found():
    """As an older journal has it."""
    assert Inserters([]).find("s/a", None) is None
    assert Inserters([]).find(None, None) is None


def test_depths_are_those_of_the_tree(run):
    """A loop has one depth, and nothing is deeper than one can read."""
    turns = []

    @action
    def again(ctx: Context):
        turns.append(1)
        return ctx.stage if len(turns) < 5 else None

    flow = Stage("loop", [again]) >> inserting(Stage("b", [inserting(Stage("c"))]), name="a")
    assert depths(run(flow).stages) == [0] * 5 + [0, 1, 2]
    assert depths(run(parallel(inserting(Stage("x"), name="a"), name="g")).stages) == [0, 1]

    unit = Stage("last")
    for number in range(DEEPEST + 5):
        unit = Stage(f"a{number}", [inserting(unit)])
    assert depths(run(unit).stages)[-1] == DEEPEST


@pytest.mark.parametrize("where", ["plain", "group"])
def test_a_skipped_unit_has_its_inserter(run, where):
    """Also in a group that is skipped."""
    unit = Stage("a") if where == "plain" else parallel(Stage("a"), name="g")
    assert parents(run(inserting(unit), skip=["a" if where == "plain" else "g"])) == [("insert", None), ("a", 0)]
