"""Where in a value the part is that is to blame."""

import functools
import pickle
import threading
from collections import deque
from typing import NamedTuple

import pytest
from support import shown

from flowdeco.model.paths import culprit, shown_key

LOCK = threading.Lock()


class Point(NamedTuple):
    x: object
    y: object


class Plain:
    def __init__(self, **attributes):
        vars(self).update(attributes)

    def method(self):
        pass


class Slotted:
    __slots__ = ("never_set", "one", "two")

    def __init__(self, one, two):
        self.one, self.two = one, two


class OneSlot:
    __slots__ = "only"  # noqa: PLC0205 - a string is the name of one slot

    def __init__(self, only):
        self.only = only


class Open(OneSlot):
    """Slots of a base, and a dict beside them."""

    __slots__ = ("__dict__", "__weakref__")

    def __init__(self, only, **attributes):
        super().__init__(only)
        vars(self).update(attributes)


class Custom(Exception):
    pass


def where(value, attempt=pickle.dumps, **options):
    """The path of the culprit in a value."""
    path, error = culprit(value, "value", attempt, **options)
    assert isinstance(error, Exception)
    return path


@pytest.mark.parametrize("fine", [1, "text", [1, {"k": (2, 3)}], Plain(a=1), {1, 2}])
def test_a_value_that_can_go_where_it_is_to_go_has_no_culprit(fine):
    """Nothing is looked into."""
    assert culprit(fine, "value", pickle.dumps) is None


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (LOCK, "value"),
        ([1, LOCK], "value[1]"),
        ((1, [2, LOCK]), "value[1][1]"),
        (deque([LOCK]), "value[0]"),
        ({"rows": {3: LOCK}}, 'value["rows"][3]'),
        (Point(1, [LOCK]), "value.y[0]"),
        (Plain(a=1, b=Plain(c=LOCK)), "value.b.c"),
        (Slotted(1, LOCK), "value.two"),
        (OneSlot(LOCK), "value.only"),
        (Open(1, free=LOCK), "value.free"),
        (Open(LOCK, free=1), "value.only"),
        (functools.partial(print, 1, LOCK), "value.args[1]"),
        (functools.partial(print, end=LOCK), 'value.keywords["end"]'),
        (functools.partial(Plain(a=LOCK).method), "value.func.__self__.a"),
        (Custom("why", LOCK), "value.args[1]"),
        (Plain(a=LOCK).method, "value.__self__.a"),
        ([LOCK, LOCK], "value[0]"),
    ],
    ids=shown,
)
def test_the_path_leads_to_the_innermost_part_that_fails(value, path):
    """As one would write it in Python: items by key or index, fields and attributes by name."""
    assert where(value) == path


def test_keys_and_elements_are_parts_too():
    """They have no path of their own, so they are shown."""

    def no_floats(value):
        if "0.5" in repr(value):
            raise TypeError("a float")

    assert where({"k": {0.5: 1}}, no_floats) == 'value["k"] (the key 0.5)'
    assert where(["a", {0.5}], no_floats) == "value[1] (the element 0.5)"


@pytest.mark.parametrize(
    "value", [[[1, 2], [3, 4]], {"a": 1, "b": 2}, {1, 2, 3, 4}, Plain(a=1), functools.partial(len)], ids=shown
)
def test_the_whole_is_to_blame_where_none_of_its_parts_is(value):
    """It cannot go there as such."""

    def few(value):
        if len(repr(value)) > 10 and value is not len:
            raise ValueError("too long")

    assert where(value, few) == "value"


def test_the_error_is_that_of_the_part():
    """Not that of the whole."""

    def attempt(value):
        raise ValueError(f"no {value!r}")

    path, error = culprit([[3]], "value", attempt)
    assert (path, str(error)) == ("value[0][0]", "no 3")


def test_a_value_that_holds_itself_is_looked_into_once():
    """The search ends."""
    loop = [1]
    loop += [loop, {"k": loop}]

    def attempt(value):
        if value != 1:
            raise ValueError("a loop")

    assert where(loop, attempt) == "value[1]"


def test_a_value_is_looked_into_to_a_certain_depth():
    """As far as a path can be read; nor is one that is too deep for the attempt itself."""
    value = LOCK
    for _ in range(100):
        value = [value]
    assert where(value) == "value" + "[0]" * 32

    def too_deep(value):
        raise RecursionError

    assert where([[1]], too_deep) == "value"


def test_what_the_parts_are_can_be_said():
    """By a function that gives them with what each adds to the path."""

    def parts(value):
        return [(f".store[{shown_key(key)}]", part) for key, part in value.items()] if isinstance(value, dict) else []

    assert where({"a": 1, "b c": LOCK}, parts=parts) == 'value.store["b c"]'


@pytest.mark.parametrize(
    ("key", "text"),
    [("plain", '"plain"'), ('a "b"', "'a \"b\"'"), ("a\\b", "'a\\\\b'"), ("a\nb", "'a\\nb'"), (3, "3"), ((1, "a"), "(1, 'a')")],
)  # fmt: skip
def test_a_key_is_shown_as_it_can_be_written(key, text):
    """Strings in double quotes, but for those that need escapes."""
    assert shown_key(key) == text
    assert eval(text) == key
