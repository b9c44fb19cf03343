"""What an action returned: what is awaited or run to its end, and where units would be stored and never run."""

import asyncio
import copy
import itertools
import pickle
import types
from collections import deque
from collections.abc import Generator
from typing import Any

import pytest
from support import shown, step

from flowdeco import Stage, action, stage
from flowdeco.engine.results import Begun, Yielded, is_awaited, is_generator, is_plain_iterator, sort_out
from flowdeco.engine.waits import Nap
from flowdeco.errors import ReturnValueError
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import step_of

UNIT, OTHER = Stage("unit"), Stage("other")


def sorted_out(value, annotation=Any, *, generates=False):
    """What is inserted and what is data of a value, for a function that is annotated so."""

    def function():
        pass

    def generator():
        yield

    of = generator if generates else function
    if annotation is not Any:
        of.__annotations__["return"] = annotation
    return sort_out(step_of(action(name="a")(of)), value)


def refusal(value, annotation=Any):
    """The message of a value that must not be returned; None if it is data."""
    try:
        inserted, data = sorted_out(value, annotation)
    except ReturnValueError as error:
        return str(error)
    assert inserted == ()
    assert data is value
    return None


# -- awaited, or run to its end


async def coroutine():
    pass


async def async_generator():
    yield


def generator():
    yield


@types.coroutine
def decorated():
    yield


class Client:
    """It can be awaited, which may mean anything."""

    def __await__(self):
        raise AssertionError


class Future(Client):
    """It has the mark by which asyncio recognises a future."""

    _asyncio_future_blocking = False


class Unmarked(Client):
    _asyncio_future_blocking = None


class Marked:
    _asyncio_future_blocking = False


@pytest.mark.parametrize(
    ("make", "awaited", "exhausted"),
    [
        (coroutine, True, False),
        (decorated, True, False),
        (lambda: Nap(0.0, None), True, False),
        (Future, True, False),
        (lambda: asyncio.Future(loop=LOOP), True, False),
        (Client, False, False),
        (Unmarked, False, False),
        (Marked, False, False),
        (generator, False, True),
        (async_generator, False, False),
        (lambda: iter([]), False, False),
        (lambda: 3, False, False),
    ],
)
def test_coroutines_and_futures_are_awaited_and_generators_run_to_their_end(make, awaited, exhausted):
    """Any other object that can be awaited is a value: a client, a pool, a future of a cluster."""
    value = make()
    assert (is_awaited(value), is_generator(value)) == (awaited, exhausted)
    if hasattr(value, "close"):
        value.close()


LOOP = asyncio.new_event_loop()
LOOP.close()

NUMBERS = {1: 2}


@pytest.mark.parametrize(
    ("iterator", "expected"),
    [
        (map(str, []), True),
        (filter(None, []), True),
        (zip([], []), True),
        (enumerate([]), True),
        (reversed("ab"), True),
        (iter({1}), True),
        (iter(NUMBERS.keys()), True),
        (iter(NUMBERS.values()), True),
        (iter(NUMBERS.items()), True),
        (reversed(NUMBERS), True),
        (reversed(NUMBERS.values()), True),
        (reversed(NUMBERS.items()), True),
        (itertools.chain([]), True),
        (itertools.count(), True),
        (iter([]), False),
        (iter(()), False),
        (reversed([]), False),
        (generator(), False),
        (Client(), False),
        ([], False),
    ],
    ids=shown,
)
def test_iterators_that_are_good_for_nothing_but_their_items_are_looked_into(iterator, expected):
    """Files, cursors and the like are left alone; those of lists can be copied."""
    assert is_plain_iterator(type(iterator)) is expected


@pytest.mark.parametrize("items", [[], [1], [None, 2], [1, 2, 3]])
@pytest.mark.parametrize("taken", [0, 1])
def test_an_iterator_whose_first_item_was_looked_at_gives_all_of_them(items, taken):
    """It passes for what it was, and so do its copies and pickles."""
    begun = Begun(zip(items))
    assert begun.first == ((items[0],) if items else UNSET)
    assert isinstance(begun, zip)
    assert repr(begun).startswith("<zip object at")
    for _ in range(min(taken, len(items))):
        next(begun)
    expected = [(item,) for item in items[taken:]]
    as_list = Begun(iter(list(items)))
    for _ in range(min(taken, len(items))):
        next(as_list)
    copied = pickle.loads(pickle.dumps(as_list))
    assert list(copied) == list(as_list) == items[taken:]
    assert list(copy.copy(Begun(iter(list(items))))) == items
    assert list(begun) == expected


# -- units where they would be stored


@stage
def template(kind):
    step([], "a")


def deep(levels, value=UNIT):
    """A list in a list, and so on."""
    for _ in range(levels):
        value = [0, value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        {"k": UNIT}, {UNIT: 1}, {"k": 1, "l": UNIT}, {UNIT}, frozenset({UNIT}), {UNIT, OTHER, 1, 2, 3, 4} - {1, 2, 3, 4},
        deque([1, UNIT]), {"k": UNIT}.values(), {UNIT: 1}.keys(), {"k": UNIT}.items(), ({"k": UNIT},),
        [0, 1, 2, UNIT], [0, 1, UNIT, 3], [0, UNIT, 2, 3], [*range(100), UNIT], deep(1), deep(2), deep(3),
        [0, [1, UNIT]], [0, [UNIT, 1]], [0, [UNIT, 1, 2]], [0, [1, 2, UNIT]], [[UNIT], *range(100)],
        {**dict.fromkeys(range(9)), "k": UNIT}, {"k": UNIT, **dict.fromkeys(range(9))}, {UNIT: 0, **dict.fromkeys(range(9))},
        deque([UNIT, *range(9)]), {UNIT, *map(Stage, "abcdefgh")}, iter([UNIT]), iter((UNIT, 1)), reversed([1, UNIT]),
        Begun(map(Stage, "ab")), Begun(zip([UNIT])),
    ],
)  # fmt: skip
def test_units_in_data_would_be_stored_and_never_run(value):
    """It is an error that names the action and the unit."""
    message = refusal(value)
    assert "action 'a' returned " in message
    assert "<Stage " in message


@pytest.mark.parametrize(
    "value",
    [
        [], [1], {"k": [{}]}, deep(4), [*range(50), UNIT, *range(50)], [0, 1, UNIT, 3, 4], [0, [1, UNIT, 2]],
        deque([1, 2, UNIT, 3, 4]), {1: 1, 2: 2, "k": UNIT, 3: 3, 4: 4}, "unit", range(3), iter([1, UNIT]),
        Begun(iter([1, UNIT])), iter([]), Begun(map(str, [])), map(Stage, "a"),
    ],
)  # fmt: skip
def test_only_the_ends_of_long_collections_are_looked_at_and_only_some_levels(value):
    """So that a million rows cost nothing."""
    assert refusal(value) is None


def test_an_iterator_keeps_its_place_as_it_is_looked_into():
    """Its first item is still to come."""
    for value in (iter([1, 2]), iter((1, 2)), reversed([2, 1])):
        assert refusal(value) is None
        assert list(value) == [1, 2]


@pytest.mark.parametrize(
    ("value", "annotation", "texts"),
    [
        ([3, UNIT], Any, ["a mix of units and data: the first element is the int 3, and <Stage unit", "ctx.store"]),
        ([3, [UNIT]], Any, ["the list [3, [<Stage", "whose first element is the int 3, with <Stage unit", "never run"]),
        ({"k": UNIT}, Any, ["the dict {'k': <Stage", "with <Stage unit"]),
        ([3, template], Any, ["template(...)"]),
        (3, Stage, ["is annotated to return units, and returned the int 3: return a stage"]),
        (["x", 3], list[Stage], ["returned the list ['x', 3], whose first element is the str 'x'"]),
        (Begun(zip([3])), list[Stage], ["returned the zip <zip object"]),
        (iter([UNIT]), Any, ["the list_iterator <list_iterator"]),
    ],
    ids=shown,
)
def test_the_message_shows_what_was_returned(value, annotation, texts):
    """And what to write instead."""
    message = refusal(value, annotation)
    for text in ["action 'a' ", *texts]:
        assert text in message


def yielded(*items, value=None):
    """What a generator came to."""
    made = Yielded(items)
    made.value = value
    return made


@pytest.mark.parametrize(
    ("value", "annotation", "generates", "expected"),
    [
        (yielded(UNIT), Any, True, ((UNIT,), UNSET)),
        (yielded(UNIT), Generator[Stage, None, int | None], True, ((UNIT,), None)),
        (yielded(), Generator[Stage, None, int | None], True, ((), None)),
        (yielded(1), Generator[int, None, int | None], True, ((), [1])),
        (yielded(UNIT), int | None, False, ((UNIT,), UNSET)),
        (yielded(UNIT, value=OTHER), Any, True, ((UNIT, OTHER), UNSET)),
        (yielded(UNIT, value=2), Any, True, ((UNIT,), 2)),
        (yielded(), Any, True, ((), UNSET)),
    ],
)
def test_a_generator_function_may_return_none_as_data(value, annotation, generates, expected):
    """If its annotation says so, and it has not yielded data."""
    assert sorted_out(value, annotation, generates=generates) == expected
