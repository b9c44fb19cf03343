"""What is asked of a function: its name, its signature, a call with some values fixed."""

import functools
import inspect

import pytest
from defined import Callable, Shop, add, double, plain
from support import step

from flowdeco import action
from flowdeco.errors import DefinitionError


def test_a_lambda_can_be_an_action(run):
    """It has a name, even if not a good one."""
    assert run(action(name="seven")(lambda: 7))["seven"] == 7
    assert action(lambda: 7).name == "<lambda>"


@pytest.mark.parametrize("nameless", [functools.partial(plain, 3), Callable()], ids=["partial", "object"])
def test_what_has_no_name_must_be_given_one(nameless):
    """The message says how."""
    with pytest.raises(DefinitionError, match="name="):
        action(nameless)


def test_what_has_no_signature_is_refused():
    """The message says what to do."""
    for builtin in (dict.fromkeys, type("X", (), {"__call__": min})()):
        try:
            inspect.signature(builtin)
        except (ValueError, TypeError):
            with pytest.raises(DefinitionError, match="signature"):
                action(name="n")(builtin)
    with pytest.raises(DefinitionError, match="signature"):
        action(min)


def test_an_unknown_name_is_an_error_at_once():
    """With close matches."""
    with pytest.raises(DefinitionError, match="'total' has no parameter 'yy'.*'y'"):
        add.bind(yy=1)
    with pytest.raises(DefinitionError, match="no parameter"):
        step([], "a").bind(x=1)


def test_bound_methods_can_be_bound():
    """Their own parameters, not `self`."""
    assert Shop(3).total.bind(n=2)() == 6
    assert Shop.total.bind(self=Shop(3))(n=2) == 6
    with pytest.raises(DefinitionError, match="'self'"):
        Shop(3).total.bind(self=1)


def test_bound_values_win_over_the_store(run):
    """Also for keyword-only and positional-only parameters, and `**kwargs`."""

    @action
    def every(a, /, b, *args, c, d="d", **others):
        return [a, b, args, c, d, others]

    bound = every.bind(a="A", c="C", e="E")
    assert run(bound, {"a": 1, "b": 2, "c": 3, "e": 4})["every"] == ["A", 2, (), "C", "d", {"e": "E"}]
    assert bound("B", 5) == ["A", "B", (5,), "C", "d", {"e": "E"}]
    assert every.bind(b="B", c="C")("A") == ["A", "B", (), "C", "d", {}]


def test_a_middle_positional_only_parameter_can_be_bound():
    """The others are given in order."""

    def three(a, b, c, /):
        return a + b + c

    bound = action(three).bind(b="b")
    assert bound("a", "c") == "abc"


def test_a_callable_around_a_function_may_have_no_signature(run):
    """That of the function which it wraps is its own: here a builtin takes the values, by position."""

    class Least:
        __call__ = min

        def __init__(self, wrapped):
            functools.update_wrapper(self, wrapped)

    def least(a, b, /):
        raise NotImplementedError

    assert run(action(Least(least)), {"a": 3, "b": 2})["least"] == 2


class Layers:
    """Middleware that is a method."""

    def __init__(self):
        self.seen = []

    def watching(self, call):
        """Insert nothing."""
        self.seen.append(call.name)
        yield

    def inserting(self, call):
        """Perhaps insert something."""
        self.seen.append(call.name)
        yield
        call.insert()


def test_a_method_for_middleware_shows_whether_it_inserts(caplog):
    """A selector that matches nothing is an error where nothing can be inserted."""
    layers = Layers()
    with pytest.raises(DefinitionError, match=r"skip=\['later'\] matches nothing"):
        double.bind(n=1).run(skip=["later"], use=[layers.watching])
    with caplog.at_level("WARNING", "flowdeco.run"):
        assert double.bind(n=1).run(skip=["later"], use=[layers.inserting])["double"] == 2
    assert "matched nothing" in caplog.text
    assert layers.seen == ["pipeline"]
