"""What annotations mean: where a parameter is looked for, and whether a result may be data or units."""
# Every spelling of an annotation is tested, the old ones too.
# ruff: noqa: F821, PYI061, UP006, UP007, UP035, UP045

import functools
from collections.abc import AsyncIterator, Awaitable, Generator, Iterable, Iterator, Sequence
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    List,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    Required,
    TypedDict,
    Union,
)

import pytest
from defined import Box, N, T, Unknown, UserId
from support import problems, shown, wants
from typing_extensions import TypeAliasType

from flowdeco import Action, Context, Key, Parallel, Pipeline, Stage, action
from flowdeco.errors import DefinitionError
from flowdeco.model.steps import step_of

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
        e: "nowhere.Thing | None",
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
    def look(a: "Annotated[OnlyForTheTypeChecker(3), 'the.a']"):
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


class Point(NamedTuple):
    x: int


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
        Point,
        list[list],
        Sequence["tuple"],
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


# -- keys below the top of an annotation


port_type = TypeAliasType("port_type", Annotated[int, "db.port"])
keyed_type = TypeAliasType("keyed_type", Annotated[T, "db.port"], type_params=(T,))
maybe_type = TypeAliasType("maybe_type", Optional[T], type_params=(T,))
json_type = TypeAliasType("json_type", "dict[str, json_type] | list[json_type] | str | None")


def annotated(annotation, name="port"):
    """An action with a parameter of this annotation, and a default."""

    def read(port=-1):
        return port

    read.__annotations__[name] = annotation
    return action(read)


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[int, "db.port"] | None,
        Optional[Annotated[int, Key("db.port")]],
        Union[None, str, Annotated[int, "db.port"]],
        Annotated[int, "db.port"] | Annotated[str, Key("db.port")],
        Annotated[Optional[Annotated[int, "db.port"]], 5],
        Annotated[Annotated[int, "db.port"], "The port."],
        Annotated[int, "The port.", Key("db.port", int)],
        Annotated[int, {"unhashable": 1}, "db.port"],
        Annotated["Unheard", "db.port"],
        Optional["Annotated[Unheard, 'db.port']"],
        Required[Annotated[int, "db.port"]],
        Final[Annotated[int, "db.port"]],
        port_type,
        port_type | None,
        Annotated[port_type, 5],
        keyed_type,
        keyed_type[int],
        maybe_type[keyed_type[int]],
        Annotated[json_type, "db.port"],
        "port_type",
        "Annotated[int, {'unhashable': 1}, 'db.port'] | None",
        "Optional[Annotated[Unheard[int], 'db.port']]",
        " Annotated[int,\n 'db.port']\n",
        "Annotated[Literal['a key'], 'db.port'] | Literal['another key']",
    ],
    ids=shown,
)
def test_a_key_is_found_below_the_top_of_an_annotation(run, annotation):
    """In unions, nested annotations, aliases, qualifiers."""
    # BrianPugh/cyclopts#9, Lancetnik/FastDepends#217, nonebot/nonebot2#3617
    assert run(annotated(annotation), {"db.port": 5, "port": 6})["read"] == 5


@pytest.mark.parametrize(
    "annotation",
    [list[port_type], "list[Annotated[int, 'db.port']]", Literal["db.port"], json_type, "Float[Array, 'rows columns']"],
    ids=shown,
)
def test_a_key_of_an_element_is_not_that_of_the_parameter(run, annotation):
    """A list of ports is not looked up where a port is."""
    assert run(annotated(annotation), {"db.port": 5, "port": 6})["read"] == 6


def test_two_keys_in_a_union_are_an_error():
    """A parameter is looked up under one."""
    with pytest.raises(DefinitionError, match="parameter 'port' of action 'read': it has the keys 'a' and 'b'"):
        annotated(Annotated[int, "a"] | Annotated[str, "b"]).run()


@pytest.mark.parametrize(
    "annotation",
    [
        Context | None,
        Optional["Context"],
        "None | Context",
        Annotated[Context, "The context."] | None,
        Annotated[Optional[Context], 5],
        TypeAliasType("ours", Context),
        maybe_type[Context],
    ],
    ids=shown,
)
def test_an_optional_context_is_the_context(run, annotation):
    """With any name."""

    def read(mine=None):
        return type(mine).__name__

    read.__annotations__["mine"] = annotation
    assert run(action(read))["read"] == "Context"


# -- whether None is data


class Movie(TypedDict):
    """A dict with known keys."""

    name: str


maybe_id = NewType("maybe_id", Optional[int])


@pytest.mark.parametrize(
    "annotation",
    [
        int | None,
        Optional[int],
        "None | int",
        Optional["Unheard"],
        "OnlyForTheTypeChecker | None",
        Union[int, str, None],
        Annotated[int | None, "x"],
        Annotated[int, "x"] | None,
        Literal["a", None],
        Movie | None,
        maybe_id,
        maybe_type[int],
        json_type,
        list[int] | None,
        dict[str, Stage] | None,
        T | None,
        Optional[Any],
        Awaitable[int | None],
        type[Stage] | None,
    ],
    ids=shown,
)
def test_none_is_data_where_the_annotation_says_so(annotation):
    """It is stored."""
    made = annotated(annotation, "return").with_options(name="made").bind(port=None)
    assert dict(made.run().store) == {"made": None}


@pytest.mark.parametrize(
    "annotation",
    [
        None,
        "None",
        int,
        Any,
        object,
        T,
        list[int | None],
        Literal[None],
        Awaitable[None],
        Stage | None,
        "Stage | None",
        Optional["Stage"],
        Action | None,
        Pipeline | Parallel | None,
        list[Stage] | None,
        Optional[list["Stage"]],
        Stage | int | None,
        maybe_type[Stage],
        Annotated[Stage | None, "x"],
        Iterator[Stage] | None,
        Awaitable[Stage | None],
    ],
    ids=shown,
)
def test_none_is_nothing_otherwise(annotation):
    """Where the annotation is silent about it, and where it stands for no units."""
    assert dict(annotated(annotation, "return").bind(port=None).run().store) == {}


@pytest.mark.parametrize(
    "annotation",
    [
        list["Stage"],
        List["Stage"],
        Optional[list["Stage"]],
        Sequence["Stage | Pipeline"],
        list[TypeAliasType("s", Stage)],
        "list[Stage] | dict",
        list["Stage | int"],
    ],
    ids=shown,
)
def test_an_empty_list_is_nothing_where_a_nested_string_names_units(annotation):
    """Nothing is inserted, nothing stored or collected, in a stage with local results either."""
    made = annotated(annotation, "return").bind(port=[])
    assert dict(made.run().store) == dict(made.with_options(collect="all").run().store) == {}

    @action
    def look(read: list | None = None):
        return read

    assert Stage("local", [made, look.with_options(returns="seen")], local=True).run().result is None
