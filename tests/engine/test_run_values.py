"""A run as a value: alone, copied, pickled, and behind the exception that left it."""

import copy
import pickle
import threading

import pytest

from flowdeco import Pipeline, Run, Stage, Store, Suspend, action, pipeline
from flowdeco.durable import MemoryJournal
from flowdeco.engine.runs import Resumption, Status, remember
from flowdeco.errors import CALLED, QUESTION, SLEEP, DefinitionError, SerializationError, Wait


class Lock:
    """A value that cannot be pickled."""

    def __init__(self):
        self.lock = threading.Lock()

    def __repr__(self):
        return "<Lock>"


@action
def number() -> int:
    return 1


@action
def later() -> None:
    raise Suspend("later")


def layer(call):
    yield


def made(**values):
    """A run that has begun, and nothing more, with these attributes."""
    run = Run("run-1", Pipeline(name="p"), Store({"k": 1}))
    for name, value in values.items():
        setattr(run, name, value)
    return run


def pickled(run):
    """Its copy by way of a pickle."""
    return pickle.loads(pickle.dumps(run))


def test_a_run_that_has_not_begun_has_nothing():
    """Everything has a value."""
    run = made()
    assert {name: getattr(run, name) for name in Run.__slots__} == {
        "id": "run-1", "pipeline": run.pipeline, "status": Status.PENDING, "store": run.store, "result": None,
        "error": None, "reason": None, "stages": [], "pipelines": [], "started": 0.0, "elapsed": 0.0, "resumed": (),
        "forgotten": 0, "waits": (), "resumption": None,
    }  # fmt: skip
    assert (run["k"], "k" in run, "x" in run) == (1, True, False)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "<Run run-1 pending, 0 stages in 0.000 s>"),
        ({"status": Status.COMPLETED, "stages": [1], "elapsed": 1.25}, "<Run run-1 completed, 1 stage in 1.250 s>"),
        ({"status": Status.FAILED, "error": ValueError("no"), "stages": [1, 2]},
         "<Run run-1 failed with ValueError, 2 stages in 0.000 s>"),
        ({"status": Status.BAILED, "reason": "enough"}, "<Run run-1 bailed: enough, 0 stages in 0.000 s>"),
    ],
)  # fmt: skip
def test_its_repr_says_what_became_of_it(values, text):
    """In short."""
    assert repr(made(**values)) == text


def test_a_run_is_due_at_the_first_of_its_times():
    """If there is any."""
    waits = [Wait(QUESTION), Wait(SLEEP, 7.0), Wait(SLEEP, 5.0), Wait(QUESTION, 6.0)]
    assert (made(waits=waits).due, made(waits=waits[:1]).due, made().due) == (5.0, None, None)


def test_a_copy_is_the_same_and_a_deep_one_has_values_of_its_own():
    """Records and definitions are shared; the store and the result stay one if they were."""
    value = [1]
    run = made(result=value, stages=[1], error=ValueError("no"), waits=[Wait(SLEEP, 1.0)], reason="why", elapsed=3.0)
    run.store["k"] = value
    one = copy.copy(run)
    assert type(one) is Run
    assert all(getattr(one, name) is getattr(run, name) for name in Run.__slots__)
    deep = copy.deepcopy(run)
    own = ("store", "result")
    assert all(getattr(deep, name) is getattr(run, name) for name in Run.__slots__ if name not in own)
    assert (deep.result, dict(deep.store)) == ([1], {"k": [1]})
    assert deep.result is not value
    assert deep.store is not run.store
    assert deep.store["k"] is deep.result
    memo = {id(value): "known"}
    assert copy.deepcopy(run, memo).result == "known"


def test_a_run_shows_what_ran_and_its_values_only_if_asked(tmp_path):
    """On a page, which is a file."""
    run = pipeline(Stage("load", [action(name="secret", returns="key")(lambda: "sesame")])).run()
    assert "load" in str(run.ran())
    page = run.to_html(tmp_path / "run.html")
    assert page == tmp_path / "run.html"
    assert "sesame" not in page.read_text(encoding="utf-8")
    assert "sesame" in run.to_html(page, values=True).read_text(encoding="utf-8")


# -- pickled


def test_a_run_is_pickled_with_all_it_has():
    """Its definitions too, where they can be imported."""
    flow = pipeline(number, name="flow")
    run = flow.run()
    found = pickled(run)
    assert (found.pipeline, found.status, found.result, dict(found.store)) == (flow, "completed", 1, {"number": 1})
    assert [each.unit for each in found.stages] == [each.unit for each in run.stages]
    assert (found.id, found.started, found.elapsed) == (run.id, run.started, run.elapsed)


def test_definitions_that_cannot_be_unpickled_have_stand_ins():
    """One for each; such a run may be looked at, and has its values."""
    local = action(name="local")(lambda: 3)
    run = pipeline(Stage("s", [local]), name="flow").run()
    found = pickled(run)
    assert (found.pipeline.name, [each.name for each in found.stages], found.result) == ("flow", ["s"], 3)
    assert [each.name for each in found.stages[0].unit] == ["local"]
    assert found.stages[0].actions[0].action is found.stages[0].unit["local"]
    assert [each.name for each in found.pipeline] == ["s"]


@pytest.mark.parametrize(
    ("store", "result", "message"),
    [
        ({"k": Lock()}, None, r"cannot pickle run 'run-1': store\[.k.\]"),
        ({"a": 1, "k": {"deep": [Lock()]}}, None, r"cannot pickle run 'run-1': store\[.k.\]\[.deep.\]\[0\]"),
        ({"a": 1}, [1, Lock()], r"cannot pickle run 'run-1': result\[1\]"),
    ],
)
def test_a_value_that_cannot_be_pickled_is_an_error_that_says_where_it_is(store, result, message):
    """And why."""
    run = made(result=result)
    run.store = Store(store)
    with pytest.raises(SerializationError, match=message + ".*cannot pickle '_thread.lock' object") as raised:
        pickle.dumps(run)
    assert isinstance(raised.value.__cause__, TypeError)


def test_waits_are_pickled_with_what_they_are_about_as_far_as_it_can_be():
    """Otherwise by its repr; of a call, without its value."""
    waits = [
        Wait(QUESTION, key="a", about={"x": 1}, value=1),
        Wait(QUESTION, key="b", about=Lock()),
        Wait(CALLED, value=Lock()),
        Wait(CALLED, value=3),
    ]
    a, b, lost, kept = pickled(made(waits=waits)).waits
    assert (a, b.about, b.key, lost, kept) == (waits[0], "<Lock>", "b", Wait(CALLED), waits[3])


def test_what_a_run_can_be_resumed_with_is_pickled():
    """The middleware of a durable run is given again; what cannot be pickled is left out, and the run not resumed."""
    in_memory = (number >> later).run(use=[layer])
    found = pickled(in_memory)
    assert found.resumption.use == (layer,)
    assert (number >> number).run(use=[layer]).resumption is None or found.resumption.log is not None
    assert (number >> later).resume(found, check=False).status == "suspended"
    skipping = Resumption((layer,), frozenset({"a"}), journal=MemoryJournal())
    assert skipping.portable(lambda each: each) == skipping._replace(use=())
    assert Resumption((layer,), frozenset({"a"})).portable(lambda each: each) == Resumption((layer,), frozenset({"a"}))
    odd = pickled((number >> later).run(use=[lambda call: (yield)]))
    assert (odd.status, odd.resumption, odd["number"]) == ("suspended", None, 1)


# -- behind exceptions


def test_the_run_behind_an_exception_is_found():
    """Also of a part of a group, and of the cause of another one (as `StopIteration` leaves a coroutine)."""
    run, one, other = made(), ValueError("one"), KeyError("other")
    group = ExceptionGroup("both", [one, ExceptionGroup("inner", [other])])
    remember(run, group)
    assert [Run.of(each) for each in (group, one, other, ExceptionGroup("new", [other]))] == [run] * 4
    outer = RuntimeError("outer")
    outer.__cause__ = one
    assert Run.of(outer) is run
    with pytest.raises(LookupError, match="^no run raised this OSError: text$"):
        Run.of(OSError("text"))
    with pytest.raises(DefinitionError, match=r"that a run raised, not 3$"):
        Run.of(3)
    odd = OSError("text")
    odd.__flowdeco_run__ = "no link"
    with pytest.raises(LookupError):
        Run.of(odd)


def test_the_run_stays_where_it_is():
    """A pickled exception has none, a copied one the same; a frozen one is remembered as well."""
    run, error = made(), ValueError("no")
    remember(run, error)
    assert Run.of(copy.deepcopy(error)) is Run.of(copy.copy(error)) is run
    with pytest.raises(LookupError):
        Run.of(pickle.loads(pickle.dumps(error)))

    class Frozen(Exception):
        def __setattr__(self, name, value):
            raise TypeError("frozen")

    frozen = Frozen("no")
    remember(run, frozen)
    assert Run.of(frozen) is run
