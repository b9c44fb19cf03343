"""What a returned value means: units to insert, or data to store."""

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
from typing import NamedTuple

import pytest
from support import names, one, shown, step

from flowdeco import Action, Key, Pipeline, Stage, action, parallel, pipeline, stage, stream
from flowdeco.engine.requests import Raised
from flowdeco.engine.results import Yielded, exhaust, sort_out
from flowdeco.errors import ReturnValueError, StoreTypeError
from flowdeco.model.definitions import one_action_stage
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import step_of

STAGE, OTHER = Stage("stage"), Stage("other")
ACTION = step([], "action")
STREAM = stream([])
NAMED = pipeline(STAGE, name="named")
GROUP = parallel(STAGE)


@stage
def template(kind):
    step([], "a")


def sorted_out(value, annotation=None):
    """What is inserted and what is data of a value that an action returned."""

    def function():
        pass

    if annotation is not None:
        function.__annotations__["return"] = annotation
    return sort_out(step_of(action(function)), value)


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (None, {}),
        (None, {"returns": ("a", "b")}),
        (3, {}),
        ({"k": 3}, {"returns": "other"}),
        (3, {"collect": "xs"}),
        (3, {"collect": "xs", "returns": "k"}),
        (3, {"returns": None}),
        (3, {"returns": ("a", "b")}),
        (3, {"returns": Key("k", int)}),
        ([3], {}),
        ((3, 4), {"returns": ("a", "b")}),
        (STAGE, {}),
        ([STAGE], {}),
    ],
    ids=shown,
)
def test_the_short_way_gives_what_the_long_one_gives(value, options):
    """An action that asks for its context always goes the long way."""

    def short():
        return value

    def long(ctx):
        return value

    ends = []
    for function in (short, long):
        run = Stage("s", [action(function, name="made", **options)]).run(check=False)
        inside = [(each.name, each.status, each.inserted) for record in run.stages for each in record.actions]
        ends.append((run.status, dict(run.store), run.result, names(run), inside, str(run.error)))
    assert ends[0] == ends[1]


# -- the table, directly


@pytest.mark.parametrize(
    ("value", "inserted", "data"),
    [
        (None, (), UNSET),
        (STAGE, (STAGE,), UNSET),
        (ACTION, (ACTION,), UNSET),
        (NAMED, (NAMED,), UNSET),
        (STAGE >> OTHER, (STAGE, OTHER), UNSET),
        (GROUP, (GROUP,), UNSET),
        (STREAM, (STREAM,), UNSET),
        ([STAGE, ACTION, NAMED, GROUP, STREAM], (STAGE, one_action_stage(ACTION), NAMED, GROUP, STREAM), UNSET),
        ([ACTION, STREAM], (one_action_stage(ACTION), STREAM), UNSET),
        ([ACTION, pipeline()], (one_action_stage(ACTION),), UNSET),
        ([ACTION, ACTION], (ACTION, ACTION), UNSET),
        ((STAGE, STAGE >> OTHER), (STAGE, STAGE, OTHER), UNSET),
        ([], (), []),
        ((), (), ()),
        (0, (), 0),
        ("", (), ""),
        (False, (), False),
        ([None], (), [None]),
        ([[]], (), [[]]),
        ({"k": [{}]}, (), {"k": [{}]}),
        (Raised, (), Raised),
    ],
    ids=shown,
)
def test_a_returned_value_is_units_or_data(value, inserted, data):
    """As the table of the design says."""
    assert sorted_out(value) == (inserted, data)


def test_a_named_tuple_of_units_is_a_tuple():
    """Its elements are inserted."""

    class Both(NamedTuple):
        first: Stage
        second: Stage

    assert sorted_out(Both(STAGE, OTHER)) == ((STAGE, OTHER), UNSET)


@pytest.mark.parametrize(
    "annotation",
    [
        list[Stage],
        tuple[Stage, ...],
        list[Stage | Action],
        list[Stage] | None,
        "list[Stage]",
        Iterator[Stage],
        Pipeline,
        list[Stage] | dict,
        list[Stage | int],
        Stage | int,
        "Stage | list[int]",
        Generator[Stage, None, int],
    ],
    ids=shown,
)
def test_an_empty_list_is_nothing_where_the_annotation_names_units(annotation):
    """Elsewhere it is data."""
    assert sorted_out([], annotation) == ((), UNSET)


@pytest.mark.parametrize("annotation", [list[int], list, tuple, object, "list[int]", dict[str, Stage]], ids=shown)
def test_an_empty_list_is_data_elsewhere(annotation):
    """The annotation names none, or may mean both."""
    assert sorted_out([], annotation) == ((), [])


@pytest.mark.parametrize("value", [template, [template], [STAGE, template], (template, STAGE)], ids=shown)
def test_a_template_must_be_called(value):
    """The message says so."""
    with pytest.raises(ReturnValueError, match=r"'function'.*template\(\.\.\.\)"):
        sorted_out(value)


@pytest.mark.parametrize(
    ("value", "offending"),
    [
        ([STAGE, 3], "3"),
        ([STAGE, None], "None"),
        ((STAGE, OTHER, "x"), "'x'"),
        ([3, 4, STAGE], "stage"),
        ([STAGE, [OTHER]], "other"),
        ([None, STREAM], "stream"),
    ],
)
def test_a_mix_of_units_and_data_names_action_and_element(value, offending):
    """It is a `ReturnValueError`, which is a `TypeError`."""
    with pytest.raises(ReturnValueError, match="'function'.*mix") as caught:
        sorted_out(value)
    assert offending in str(caught.value)
    assert isinstance(caught.value, TypeError)


def test_only_both_ends_of_a_list_are_looked_at():
    """So that a million rows cost nothing."""

    class Rows(list):
        looked = 0

        def __getitem__(self, index):
            Rows.looked += 1
            return super().__getitem__(index)

        def __iter__(self):
            raise AssertionError("looked at every row")

    rows = Rows(range(1000))
    assert sorted_out(rows)[1] is rows
    assert Rows.looked <= 2


def test_a_generator_is_run_to_its_end():
    """What it yielded, and what it returned."""

    def generator():
        yield 1
        yield 2
        return "value"

    found = exhaust(generator())
    assert (list(found), found.value) == ([1, 2], "value")


def test_what_a_generator_returned_is_data_beside_what_it_yielded():
    """Units of either; two kinds of data are a mistake."""

    def yielded(items, value):
        found = Yielded(items)
        found.value = value
        return found

    assert sorted_out(yielded([STAGE], 3)) == ((STAGE,), 3)
    assert sorted_out(yielded([], 3)) == ((), 3)
    assert sorted_out(yielded([], None)) == ((), UNSET)
    assert sorted_out(yielded([1, 2], None)) == ((), [1, 2])
    assert sorted_out(yielded([STAGE], OTHER)) == ((STAGE, OTHER), UNSET)
    with pytest.raises(ReturnValueError, match="yielded data and returned data"):
        sorted_out(yielded([1], 2))


# -- the table, through a run


def returning(value, **options):
    """A stage whose action returns the value."""
    return Stage("s", [step([], "a", lambda: value, **options)])


def test_none_is_nothing(run):
    """Neither stored nor a result."""
    finished = run(returning(None))
    assert (dict(finished.store), finished.result) == ({}, None)


@pytest.mark.parametrize("value", [0, "", False, [], {}, 3.5, b"x", [1, 2], {"k": 1}, (1, 2), {1}, object()], ids=shown)
def test_data_is_stored_under_the_name_of_the_action(run, value):
    """And is the run's result."""
    finished = run(returning(value))
    assert finished["a"] is value
    assert finished.result is value


@pytest.mark.parametrize(
    ("options", "value", "expected"),
    [
        ({"returns": "k"}, 1, {"k": 1}),
        ({"returns": Key("k", int)}, 1, {"k": 1}),
        ({"returns": ("k", "l")}, (1, 2), {"k": 1, "l": 2}),
        ({"returns": ("k", Key("l", int))}, [1, 2], {"k": 1, "l": 2}),
        ({"returns": ["k"]}, [1], {"k": 1}),
        ({"returns": None}, 1, {}),
        ({"collect": "k"}, 1, {"k": [1]}),
        ({"collect": Key("k", list[int])}, 1, {"k": [1]}),
        ({"collect": "k", "returns": "l"}, 1, {"k": [1], "l": 1}),
        ({"collect": "k", "returns": None}, 1, {"k": [1]}),
        ({"collect": "k"}, [1, 2], {"k": [[1, 2]]}),
        ({"collect": "k"}, None, {}),
        ({"returns": "k"}, None, {}),
        ({"returns": ("k", "l")}, None, {}),
    ],
)
def test_data_goes_where_the_options_say(run, options, value, expected):
    """`returns`, `collect`, both, or nowhere."""
    assert dict(run(returning(value, **options)).store) == expected


@pytest.mark.parametrize("value", [(1,), (1, 2, 3), [], ()])
def test_a_sequence_of_the_wrong_length_is_an_error(run, value):
    """It names the action, and both numbers; nothing is stored."""
    with pytest.raises(ReturnValueError, match=rf"'a' returned {len(value)} values.*'k'.*'l'.*2"):
        run(returning(value, returns=("k", "l")))


@pytest.mark.parametrize("value", ["ab", 3, {"k": 1, "l": 2}, {1, 2}])
def test_only_a_sequence_is_unpacked(run, value):
    """Not a string, a mapping or a set."""
    with pytest.raises(ReturnValueError, match="sequence of 2"):
        run(returning(value, returns=("k", "l")))


def test_results_are_checked_by_typed_keys(run):
    """`StoreTypeError` names key, expected, found."""
    for options in ({"returns": Key("k", int)}, {"returns": (Key("k", int),)}, {"collect": Key("k", int)}):
        with pytest.raises(StoreTypeError, match="'k'.*int"):
            run(returning(["wrong"], **options))


def test_collected_values_come_in_the_order_of_the_actions(run):
    """The list is made when missing, and one that came in is copied."""
    given = [0]
    flow = pipeline(*(step([], f"a{i}", i, collect="xs") for i in range(1, 4)))
    assert run(flow)["xs"] == [1, 2, 3]
    assert run(flow, {"xs": given})["xs"] == [0, 1, 2, 3]
    assert given == [0]


def test_collecting_into_what_is_no_list_is_an_error(run):
    """It names the key and what it holds."""
    with pytest.raises(StoreTypeError, match="'xs'.*str"):
        run(returning(1, collect="xs"), {"xs": "text"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (lambda log: one(log, "x"), ["x"]),
        (lambda log: step(log, "x"), ["x"]),
        (lambda log: one(log, "x") >> one(log, "y"), ["x", "y"]),
        (lambda log: pipeline(one(log, "x"), name="p"), ["x"]),
        (lambda log: parallel(one(log, "x")), ["x"]),
        (lambda log: [one(log, "x"), one(log, "y")], ["x", "y"]),
        (lambda log: (one(log, "x"), step(log, "y")), ["x", "y"]),
        (lambda log: (one(log, name) for name in "xy"), ["x", "y"]),
        (lambda log: stream(one(log, name) for name in "xy"), ["x", "y"]),
        (lambda log: [stream([one(log, "x")]), one(log, "y")], ["x", "y"]),
    ],
)
def test_units_are_inserted_in_every_form(run, value, expected):
    """And nothing is stored."""
    log = []
    finished = run(returning(None) >> Stage("s", [step([], "b", lambda: value(log))]))
    assert log == expected
    assert dict(finished.store) == {}


@pytest.mark.parametrize(
    "value",
    [
        lambda flow: flow,
        lambda flow: [flow],
        lambda flow: (unit for unit in [flow]),
        lambda flow: stream([flow]),
        lambda flow: [stream([flow])],
    ],
    ids=["plain", "list", "generator", "stream", "list with a stream"],
)
def test_a_pipeline_of_actions_runs_after_the_stage(run, value):
    """Each of them as a stage of its own, as anywhere in a pipeline."""
    log = []
    flow = step(log, "x") >> step(log, "y")
    finished = run(Stage("s", [step([], "a", lambda: value(flow)), step(log, "b")]) >> one(log, "end"))
    assert log == ["b", "x", "y", "end"]
    assert names(finished) == ["s", "x", "y", "end"]
    assert finished.stages[1].inserted_by == "s/a"


def generator_kinds(body):
    """The same generator as a function, a returned generator, and their async counterparts."""

    async def async_generator():
        for item in body():
            await asyncio.sleep(0)
            yield item

    def gives_generator():
        return body()

    def gives_async_generator():
        return async_generator()

    async def coroutine():
        return async_generator()

    return {
        "generator function": body,
        "returned generator": gives_generator,
        "async generator function": async_generator,
        "returned async generator": gives_async_generator,
        "coroutine that returns one": coroutine,
    }


@pytest.mark.parametrize("kind", list(generator_kinds(list)))
def test_generators_of_every_kind_count_as_the_list_of_what_they_yield(run, kind):
    """Units are inserted, data is stored, a mix is an error, nothing is nothing."""
    log = []

    def of(*items):
        def body():
            yield from items

        return action(name="g")(generator_kinds(body)[kind])

    run(of(one(log, "x"), step(log, "y")) >> one(log, "end"))
    assert log == ["x", "y", "end"]
    assert run(of(1, 2))["g"] == [1, 2]
    assert dict(run(of()).store) == {}
    for mix in (of(STAGE, 1), of(1, STAGE)):
        with pytest.raises(ReturnValueError, match="'g'.*mix"):
            run(mix)


def test_a_generator_function_may_return_data_beside_its_units(run):
    """Stored as if returned."""
    log = []

    @action
    def discover():
        yield one(log, "x")
        yield one(log, "y")
        return 2

    finished = run(discover)
    assert (log, finished["discover"]) == (["x", "y"], 2)


def test_a_generator_action_that_fails_inserts_nothing(run):
    """What it had yielded is dropped."""

    @action
    def fails():
        yield STAGE
        raise ValueError("no")

    finished = run(fails, check=False)
    assert (str(finished.error), names(finished)) == ("no", ["fails"])


def test_other_iterators_are_data(run):
    """Only generators are run to their end."""
    assert list(run(returning(iter([1, 2])))["a"]) == [1, 2]


def test_annotated_generators_that_yield_nothing_store_nothing(run):
    """Of every kind."""

    @action
    def sync() -> Iterator[Stage]:
        return
        yield

    @action
    async def asynchronous() -> AsyncIterator[Stage]:
        return
        yield

    assert dict(run(sync >> asynchronous).store) == {}


@pytest.mark.parametrize("value", [template, [template], [STAGE, 3], [3, STAGE]], ids=shown)
def test_errors_of_returned_values_are_failures_of_the_action(run, value):
    """With its record, and its place in a note."""
    finished = run(returning(value), check=False)
    assert isinstance(finished.error, ReturnValueError)
    assert finished.stages[0].actions[0].error is finished.error
    assert "action 'a' of stage 's'" in finished.error.__notes__[0]


@pytest.mark.parametrize("value", [iter([]), {"a"}, 3, "text"], ids=shown)
def test_an_action_that_is_annotated_to_return_units_returns_no_data(run, value):
    """A `map` of stages would be stored, and never run."""

    @action
    def plan() -> list[Stage]:
        return value

    with pytest.raises(
        ReturnValueError, match=r"'plan' is annotated to return units, and returned the .*a list of them"
    ):
        run(plan)
