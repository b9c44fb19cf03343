"""Pickling by reference: what an importable definition comes back as, and what cannot be referenced."""

import pickle
import sys
import types

import pytest
from defined import (
    ALIAS,
    BOTH,
    BOUND,
    BUILTIN,
    CHANGED,
    FLOW,
    OBJECT,
    PARTIAL,
    Shop,
    add,
    counting,
    double,
    greet,
    layer,
    plain,
)
from support import shown

from flowdeco import Stage, action, parallel, pipeline, stage, stream
from flowdeco.errors import UnreferencedError


@pytest.mark.parametrize(
    "definition",
    [
        double, add, ALIAS, BOUND, CHANGED, BOTH, BUILTIN, counting, counting["second"], greet("you"),
        greet("you", loud=True), greet("you")["hello"], counting.with_options(name="renamed"),
        greet("you").with_options(name="renamed").with_options(tags=["t"]), counting["first"].with_options(name="x"),
        Stage("s", [double, BOUND], tags=["t"], data={"k": [1]}, use=[layer], title="T", description="D"), FLOW,
        pipeline(double, name="p", use=[layer], tags=["t"]), parallel(double, limit=2, merge={"k": max}),
        Shop.total, Shop.brand, Shop.motto, Shop.cheap,
    ],
    ids=shown,
)  # fmt: skip
def test_what_is_importable_pickles_and_comes_back_equal(definition):
    """By reference, with every protocol."""
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        found = pickle.loads(pickle.dumps(definition, protocol))
        assert found == definition
        assert type(found) is type(definition)
        assert hash(found) == hash(definition)
        assert found.name == definition.name


@pytest.mark.parametrize(
    "make",
    [
        lambda shop: shop.total,
        lambda shop: shop.cheap,
        lambda shop: shop.total.bind(n=2),
        lambda shop: shop.total.with_options(name="x", tags=["t"]),
        lambda shop: shop.cheap.bind(n=2).with_options(tags=["t"]),
        lambda shop: shop.brand,
        lambda shop: shop.motto,
        lambda shop: shop.later,
    ],
)
def test_an_action_of_an_object_pickles_with_the_object(make):
    """It is the same action of the object that comes back."""
    shop = Shop(3)
    found_shop, found = pickle.loads(pickle.dumps((shop, make(shop))))
    assert found == make(found_shop)
    assert (found.name, found.tags) == (make(shop).name, make(shop).tags)


def test_what_is_importable_pickles_by_reference():
    """It comes back as the object itself, and no code is in the pickle."""
    assert pickle.loads(pickle.dumps(double)) is double
    assert pickle.loads(pickle.dumps(counting)) is counting
    assert pickle.loads(pickle.dumps(greet)) is greet
    assert pickle.loads(pickle.dumps(counting["first"])) is counting["first"]
    assert len(pickle.dumps(counting)) < 200


def test_what_has_been_pickled_still_runs(run):
    """With the same result."""
    inputs = {"x": 1}
    assert dict(run(pickle.loads(pickle.dumps(FLOW)), inputs).store) == dict(run(FLOW, inputs).store)


def test_an_object_that_can_be_pickled_carries_its_action():
    """By value."""
    for definition, expected in ((OBJECT, 2), (PARTIAL.with_options(name="object"), 3)):
        found = pickle.loads(pickle.dumps(definition))
        assert (found.name, found.tags) == ("object", frozenset())
        assert (found(1) if definition is OBJECT else found()) == expected


def test_a_stream_of_a_function_pickles():
    """With its arguments."""
    found = pickle.loads(pickle.dumps(stream(plain, 3)))
    assert (found.source, found.args) == (plain, (3,))


def local_function():
    @action
    def local():
        pass

    return local


def local_stage():
    @stage
    def local():
        @action
        def act():
            pass

    return local


def local_template():
    @stage
    def local(n):
        @action
        def act():
            pass

    return local


@action
def shadowed():
    pass


ORIGINAL, shadowed = shadowed, None


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (local_function, "local", "inside a function"),
        (lambda: local_function().bind(), "local", "inside a function"),
        (lambda: local_function().with_options(name="renamed"), "local", "inside a function"),
        (local_stage, "local", "inside a function"),
        (lambda: local_stage()["act"], "act", "inside a function"),
        (local_template, "local", "inside a function"),
        (lambda: local_template()(1), "local", "inside a function"),
        (lambda: local_template()(1)["act"], "local", "inside a function"),
        (lambda: pipeline(Stage("a"), local_stage()), "local", "inside a function"),
        (lambda: action(name="x")(lambda: 1), "x", "lambda"),
        (lambda: ORIGINAL, "shadowed", "a different object"),
        (lambda: action(types.FunctionType(plain.__code__, globals(), "gone")), "plain", "a different object|imported"),
    ],
)
def test_what_cannot_be_referenced_says_so_when_it_is_pickled(make, name, reason):
    """Not before; the message names the object and the reason."""
    definition = make()
    with pytest.raises(UnreferencedError, match=reason) as caught:
        pickle.dumps(definition)
    assert name in str(caught.value)


def test_what_is_gone_from_its_module_cannot_be_referenced():
    """The message says that it cannot be imported."""
    made = types.FunctionType(plain.__code__, {"__name__": __name__}, "gone")
    made.__qualname__ = "gone"
    with pytest.raises(UnreferencedError, match="cannot be imported"):
        pickle.dumps(action(made))


def test_what_a_function_made_in_a_script_is_found_under_its_name_there(monkeypatch):
    """The module is `__main__`, and it is searched first."""

    def inner(n): ...

    inner.__module__ = "__main__"
    made = action(inner)
    monkeypatch.setattr(sys.modules["__main__"], "made_in_a_script", made, raising=False)
    assert pickle.loads(pickle.dumps(made)) is made


def made_by(name):
    """An action that a function has made."""
    return action(name=name)(lambda: name)


HELD = {1: made_by("one"), "two": made_by("two")}


def test_what_a_module_holds_in_a_dict_is_found_there_by_a_name():
    """Other keys are none."""
    assert pickle.loads(pickle.dumps(HELD["two"])) is HELD["two"]
    with pytest.raises(UnreferencedError, match="cannot pickle action 'one'"):
        pickle.dumps(HELD[1])
