"""What annotations mean: where a parameter is looked for, and whether a result may be data or units."""

import functools
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from defined import Box, N, T, Unknown, UserId
from support import problems, shown, wants

from flowdeco import Stage, action
from flowdeco.model.wiring import step_of

if TYPE_CHECKING:
    from nowhere import OnlyForTheTypeChecker  # noqa: F401


# -- annotations as strings


def test_annotations_as_strings_work(run):
    """With names of the module, of the builtins, of the closure, and names that nobody knows."""
    key = "from.the.closure"

    class Local:
        pass

    @action
    def look(
        a: "int",
        b: "Annotated[int, N]",
        c: "Annotated[Local, key]",
        d: "Annotated[OnlyForTheTypeChecker, 'the.d']",
        e: "nowhere.Thing | None",  # noqa: F821
        f: "list[OnlyForTheTypeChecker] | None",
        g: "OnlyForTheTypeChecker[int]",
        h: "not even Python",  # noqa: F722
        i: "Literal['x']",
        j: "None | OnlyForTheTypeChecker",
    ) -> "list[OnlyForTheTypeChecker]":
        assert Local
        assert key
        return [a, b, c, d, e, f, g, h, i, j]

    inputs = {"the.number": 2, "from.the.closure": 3, "the.d": 4}
    finished = run(look, {**dict(zip("aefghij", [1, 5, 6, 7, 8, 9, 10], strict=True)), **inputs})
    assert finished["look"] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_a_name_of_the_closure_that_is_not_assigned_yet_is_unknown(run):
    """It does no harm."""

    @action
    def look(a: "Annotated[later, 'the.a']"):
        assert later
        return a

    finished = None
    try:
        finished = step_of(look)
    finally:
        later = int
    assert [i.key for i in finished.inputs] == ["the.a"]
    assert run(look, {"the.a": 1})["look"] == 1


def test_a_type_that_cannot_be_evaluated_does_no_harm():
    """The key next to it counts."""

    @action
    def look(a: "Annotated[OnlyForTheTypeChecker(3), 'the.a']"):  # noqa: F821
        pass

    assert [i.key for i in step_of(look).inputs] == ["the.a"]


def test_string_return_annotations_are_understood():
    """Names of units among the unknown ones, too."""

    def supplied(annotation):
        @action
        def made():
            pass

        made.__wrapped__.__annotations__["return"] = annotation
        return step_of(made).supplies

    assert supplied("int") == ("made",)
    assert supplied("Stage") == supplied("list[Stage]") == supplied("Stage | None") == ()
    assert supplied("OnlyForTheTypeChecker") == ("made",)


# -- what kinds of callables there are


def decorated(function):
    """A decorator that keeps the signature."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Adder:
    """An object that can be called."""

    def __call__(self, a, *, b: Annotated[int, "the.b"]):
        return a + b

    def method(self, a, b: Annotated[int, "the.b"]):
        return a + b

    @classmethod
    def of_class(cls, a, b: Annotated[int, "the.b"]):
        return a + b

    @staticmethod
    def static(a, b: Annotated[int, "the.b"]):
        return a + b


def plain(a, b: Annotated[int, "the.b"]):
    return a + b


@pytest.mark.parametrize(
    "function",
    [
        plain,
        decorated(plain),
        decorated(decorated(plain)),
        functools.partial(plain),
        functools.partial(decorated(plain)),
        Adder(),
        Adder().method,
        Adder.of_class,
        Adder.static,
        functools.partial(Adder().method),
        functools.partial(functools.partial(plain)),
    ],
    ids=shown,
)
def test_keys_are_found_through_every_kind_of_callable(run, function):
    """Decorators that keep the signature, partials, objects, methods."""
    assert run(action(name="add")(function), {"a": 1, "the.b": 2})["add"] == 3


def test_parameters_that_a_partial_has_fixed_are_not_asked_for(run):
    """By position, or by keyword (which is then a default)."""
    assert run(action(name="x")(functools.partial(plain, 1)), {"the.b": 2})["x"] == 3
    assert run(action(name="x")(functools.partial(plain, b=1)), {"a": 2})["x"] == 3


# -- data or units


@pytest.mark.parametrize(
    "returns",
    [
        int,
        None,
        str,
        list[int],
        dict[str, Stage],
        Sequence[str],
        int | None,
        Unknown,
        Generator[int, None, None],
        AsyncIterator[int],
        Box,
        "int",
        Annotated[int, "x"],
    ],
    ids=shown,
)
def test_an_action_annotated_to_return_something_else_inserts_nothing(returns):
    """What is missing after it is certain."""
    assert problems(wants(name="other", returns=returns) >> wants("k")) == [("wants", "wants", "k", "k", True)]


@pytest.mark.parametrize(
    "returns",
    [Stage, list[Stage], None, Iterator[Stage], Stage | None, "list[Stage]", Generator[Stage, None, None]],
    ids=shown,
)
def test_an_action_annotated_to_return_units_supplies_no_data(returns):
    """Nor does one that returns None."""
    (problem,) = (wants(name="other", returns=returns) >> wants("other")).validate()
    assert problem.parameter == "other"


@pytest.mark.parametrize(
    "returns",
    [int, Any, int | None, Stage | int, list, Iterable, Generator[Stage, None, int], UserId, T, Literal[1]],
    ids=shown,
)
def test_an_action_annotated_to_return_data_supplies_it(returns):
    """Under its key."""
    assert (wants(name="other", returns=returns) >> wants("other")).validate() == []
