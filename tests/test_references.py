"""Pickling by reference: what an importable definition comes back as, and what cannot be referenced."""

import copy
import functools
import os
import pickle
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
from defined import (
    ALIAS,
    BOTH,
    BOUND,
    BUILTIN,
    CACHED,
    CHANGED,
    FLOW,
    OBJECT,
    PARTIAL,
    Shelf,
    Shop,
    add,
    counting,
    double,
    greet,
    layer,
    plain,
)
from support import shown

import flowdeco
from flowdeco import Stage, action, parallel, pipeline, stage, stream
from flowdeco.errors import UnreferencedError
from flowdeco.middleware import retry

MADE = [action(name="made")(functools.partial(plain, threading.Lock()))]


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


@pytest.mark.parametrize("made", [OBJECT, PARTIAL, Shelf.held, Shelf.locked, MADE[0]], ids=shown)
def test_an_action_of_an_object_pickles_by_the_name_that_a_module_has_for_it(made):
    """A partial, a callable object; it may be in a list or a class, and need not be picklable itself."""
    assert pickle.loads(pickle.dumps(made)) is made
    changed = made.with_options(name="changed")
    assert pickle.loads(pickle.dumps(changed)) == changed


def test_an_action_of_an_object_that_no_module_has_is_pickled_with_it():
    """By value."""
    made = action(name="partial", tags=["t"])(functools.partial(plain, 3))
    found = pickle.loads(pickle.dumps(made))
    assert (found.name, found.tags, found()) == ("partial", {"t"}, 3)
    assert found == made != made.with_options(name="other")
    assert found != action(name="partial", tags=["t"])(functools.partial(plain, 4))


def test_what_pickles_by_its_own_name_does_not_depend_on_the_module_that_uses_it():
    """Other processes may be unable to import that."""
    assert b"defined" not in pickle.dumps(BUILTIN)
    assert pickle.loads(pickle.dumps([BUILTIN, CACHED])) == [BUILTIN, CACHED]


def test_an_action_of_an_object_of_a_script_is_sent_if_it_can_be(tmp_path):
    """Other processes have another `__main__`; what cannot be pickled is found there."""
    script = tmp_path / "script.py"
    script.write_text(
        "import functools, pickle, threading\n"
        "from flowdeco import action\n"
        "sent = action(name='sent')(functools.partial(divmod, 1))\n"
        "held = action(name='held')(functools.partial(divmod, threading.Lock()))\n"
        "assert b'__main__' not in pickle.dumps(sent) and pickle.loads(pickle.dumps(sent)) == sent\n"
        "assert pickle.loads(pickle.dumps(held)) is held\n"
    )
    root = str(Path(flowdeco.__file__).parent.parent)
    subprocess.run([sys.executable, str(script)], check=True, timeout=50, env={**os.environ, "PYTHONPATH": root})


def test_a_stream_of_a_function_pickles():
    """With its arguments."""
    found = pickle.loads(pickle.dumps(stream(plain, 3)))
    assert (found.source, found.args) == (plain, (3,))


LOCK = threading.Lock()


def local_layer(call):
    yield


local_layer.__qualname__ = "main.<locals>.layer"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: double.bind(n=LOCK), "action 'double': its value 'n': cannot pickle '_thread.lock' object"),
        (lambda: double.bind(n=lambda: 1), "action 'double': its value 'n': Can't "),
        (lambda: double.bind(n={"rows": [1, LOCK]}).with_options(name="x"), "'double': its value 'n'[\"rows\"][1]: cannot"),
        (lambda: double.with_options(use=[local_layer]), "action 'double': its option 'use'[0]: Can't "),
        (lambda: greet(LOCK), "]': its argument 'name': cannot pickle '_thread.lock' object"),
        (lambda: greet("x", loud=LOCK)["hello"], "action 'hello': its argument 'loud': cannot pickle"),
        (lambda: greet("x").with_options(use=[local_layer]), "stage 'greet[x]': its option 'use'[0]: Can't "),
        (lambda: Stage("s", use_actions=[local_layer]), "stage 's': its option 'use_actions'[0]: Can't "),
        (lambda: Stage("s", data={"f": lambda: 1}), "stage 's': its option 'data'[\"f\"]: Can't "),
        (lambda: pipeline(double, name="p", use=[local_layer]), "pipeline 'p': its option 'use'[0]: Can't "),
        (lambda: parallel(double, merge={"k": lambda a, b: a}), "parallel 'parallel': its option 'merge'[\"k\"]: Can't"),
        (lambda: parallel(stream(plain, LOCK)), "the stream of plain: its arguments[0]: cannot pickle '_thread.lock'"),
        (lambda: stream(lambda: [double]), "its source: Can't "),
        (lambda: action(name="x")(functools.partial(plain, LOCK)), "action 'x': its function.args[0]: cannot pickle"),
        (lambda: Holder().method, "action 'method': its object.lock: cannot pickle '_thread.lock' object"),
        (lambda: action(Holder().plain), "action 'plain': its object.lock: cannot pickle"),
        (lambda: double >> parallel(double.bind(n=LOCK)), "action 'double': its value 'n': cannot pickle"),
        (lambda: double.bind(n=double.bind(n=LOCK)), "action 'double': its value 'n': cannot pickle action 'double': its value"),
    ],
)  # fmt: skip
def test_a_value_of_a_definition_that_cannot_be_pickled_is_named(make, message):
    """With the definition, the parameter or option, and the reason."""
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        with pytest.raises(UnreferencedError, match="^cannot pickle ") as caught:
            pickle.dumps([make()], protocol)
        assert message in str(caught.value)
    assert copy.copy(made := make()) == copy.deepcopy(made) == made


class Holder:
    """An object with a lock."""

    def __init__(self):
        self.lock = LOCK

    @action
    def method(self):
        pass

    def plain(self):
        pass


def test_cloudpickle_writes_values_that_pickle_refuses():
    """Its own error counts, if it cannot."""
    cloudpickle = pytest.importorskip("cloudpickle")
    assert pickle.loads(cloudpickle.dumps(greet(lambda: 1)))["hello"].name == "hello"
    nested = pickle.loads(cloudpickle.dumps(pipeline(greet(greet(lambda: 1)), name="named")))
    assert (nested.name, [each.template for each in nested]) == ("named", [greet])
    with pytest.raises(TypeError, match="^cannot pickle '_thread.lock' object"):
        cloudpickle.dumps(greet(LOCK))


@pytest.mark.parametrize("is_loaded", [True, False])
def test_pickle_refuses_them_whether_cloudpickle_is_loaded_or_not(monkeypatch, is_loaded):
    """The error names the definition and the value."""
    if is_loaded:
        pytest.importorskip("cloudpickle")
    else:
        monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(UnreferencedError, match=r"^cannot pickle stage 'greet\[.*\]': its argument .*lambda") as caught:
        pickle.dumps([greet(lambda: 1)])
    assert isinstance(caught.value.__cause__, (AttributeError, pickle.PicklingError))


def local_function():
    @action
    def local():
        pass

    return local


RENAMED = local_function().with_options(name="renamed")


def test_a_changed_copy_that_a_module_has_is_found_there():
    """Also if it does not have the original."""
    assert pickle.loads(pickle.dumps(RENAMED)) is RENAMED


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


ON = retry(on=lambda error: False)
STAGE = Stage("stage", [double], use=[ON])
PIPELINE = pipeline(STAGE, double, use=[ON])
GROUP = parallel(STAGE, merge={"k": lambda one, other: one})


@pytest.mark.parametrize("unit", [STAGE, PIPELINE, GROUP], ids=shown)
def test_what_cannot_be_sent_by_value_is_found_in_its_module(unit):
    """A stage, pipeline or group with a lambda; a copy of it is not there."""
    assert pickle.loads(pickle.dumps(unit)) is unit
    with pytest.raises(UnreferencedError, match="cannot pickle .*lambda"):
        pickle.dumps(pipeline(unit, use=[ON]))


def test_what_a_script_has_is_sent_by_cloudpickle(monkeypatch):
    """The `__main__` of the other process is another one."""
    cloudpickle = pytest.importorskip("cloudpickle")
    here = Stage("here", [double], use=[retry(on=lambda error: False)])
    monkeypatch.setattr(sys.modules["__main__"], "here", here, raising=False)
    monkeypatch.setitem(sys.modules, "__mp_main__", sys.modules["__main__"])
    found = pickle.loads(cloudpickle.dumps(here))
    assert (found is here, found.name) == (False, "here")
    assert pickle.loads(cloudpickle.dumps(STAGE)) is STAGE


def made_by(name):
    """An action that a function has made."""
    return action(name=name)(lambda: name)


HELD = {1: made_by("one"), "two": made_by("two")}


def test_what_a_module_holds_in_a_dict_is_found_there_by_a_name():
    """Other keys are none."""
    assert pickle.loads(pickle.dumps(HELD["two"])) is HELD["two"]
    with pytest.raises(UnreferencedError, match="cannot pickle action 'one'"):
        pickle.dumps(HELD[1])
