"""One hierarchy of errors, by whose fault it is; and the signals, which are no errors."""

import inspect
import pickle
import sys

import pytest
from support import text_of

from flowdeco import Bail, Run, Stage, Suspend, action, errors, parallel, stage, stream
from flowdeco.errors import (
    ActionTimeout,
    DefinitionError,
    EmptyStageError,
    FlowdecoError,
    MiddlewareError,
    MissingInputError,
    ReturnValueError,
    RunError,
    StoreKeyError,
    StoreTypeError,
    UnreferencedError,
    WiringError,
    WriteConflictError,
    suggestion,
)
from flowdeco.middleware import recover, retry
from flowdeco.testing import assert_ran


@pytest.mark.parametrize("error", [EmptyStageError, UnreferencedError, WiringError])
def test_what_is_wrong_before_a_run_is_a_definition_error(error):
    """And a `TypeError`, as a wrong call is."""
    assert issubclass(error, DefinitionError)
    assert issubclass(error, TypeError)
    assert not issubclass(error, RunError)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (MissingInputError, LookupError),
        (ReturnValueError, TypeError),
        (MiddlewareError, Exception),
        (StoreKeyError, KeyError),
        (StoreTypeError, TypeError),
        (WriteConflictError, Exception),
        (ActionTimeout, TimeoutError),
    ],
)
def test_what_goes_wrong_in_a_run_is_a_run_error(error, builtin):
    """And the builtin that one would expect."""
    assert issubclass(error, RunError)
    assert issubclass(error, builtin)
    assert not issubclass(error, DefinitionError)


def test_every_error_is_in_one_hierarchy():
    """Every name that the module exports."""
    for name in errors.__all__:
        exported = getattr(errors, name)
        assert inspect.isclass(exported)
        assert issubclass(exported, (FlowdecoError, Bail, Suspend)) or not issubclass(exported, Exception)
        assert exported.__doc__


@pytest.mark.parametrize("signal", [Bail, Suspend])
def test_signals_are_no_exceptions_that_one_catches_by_accident(signal):
    """They derive from `BaseException`, and have a reason."""
    assert issubclass(signal, BaseException)
    assert not issubclass(signal, Exception)
    assert signal("why").reason == str(signal("why")) == "why"
    assert signal().reason == ""
    assert pickle.loads(pickle.dumps(signal("why"))).reason == "why"


def test_a_wiring_error_has_its_problems():
    """None, where it was made without."""
    assert WiringError("message").problems == ()
    assert WiringError("message", iter([1, 2])).problems == (1, 2)


def test_a_store_key_error_reads_like_a_sentence():
    """A plain `KeyError` shows the repr of its argument."""
    assert str(StoreKeyError("no key 'a'")) == "no key 'a'"
    assert str(StoreKeyError()) == ""


ERRORS = [
    each
    for each in map(vars(errors).get, errors.__all__)
    if issubclass(type(each), type) and issubclass(each, BaseException)
]


@pytest.mark.parametrize("error", ERRORS)
def test_errors_pickle(error):
    """They may have to travel from another process."""
    found = pickle.loads(pickle.dumps(error("what happened")))
    assert type(found) is error
    assert str(found) == "what happened"


def test_a_suggestion_names_what_was_probably_meant():
    """Or what else there is, up to a point."""
    assert "'title'" in suggestion("titel", ["title", "other"])
    assert "'a'" in suggestion("zzz", ["b", "a", "a"])
    assert "'b'" in suggestion("zzz", ["b", "a"])
    many = suggestion("zzz", [f"k{number:03}" for number in range(100)])
    assert "k000" in many
    assert "k099" not in many
    assert "…" in many
    assert suggestion("zzz", [])


def test_messages_have_no_addresses():
    """Whatever value they show: functions, generators, objects without a repr of their own."""

    class Plain:
        """With the repr of `object`."""

    plain = Plain()
    raising = [
        lambda: stage(plain),
        lambda: action(name="a", timeout=plain)(len),
        lambda: action(name="a", use=plain)(len),
        lambda: action(name="a", use=[plain])(len),
        lambda: Stage("s", data=plain),
        lambda: Stage("s", tags=[plain]),
        lambda: parallel(len, merge=plain),
        lambda: retry(on=plain),
        lambda: retry(on=OSError, attempts=plain),
        lambda: recover(on=plain),
        lambda: action(name="a")(plain),
        lambda: stream(plain),
        lambda: Run.of(plain),
        lambda: action(len).run(journal=plain),
        lambda: action(len).run(observers=[plain]),
        lambda: action(name="a")(lambda ctx: ctx.emit(plain)).run(),
        lambda: action(name="a")(lambda ctx: ctx.sleep(plain)).run(),
        lambda: action(name="a")(lambda: [Stage("s"), plain]).run(),
        lambda: action(name="a", use=[lambda call: (yield plain)])(lambda: 1).run(),
        lambda: action(name="a", use=[lambda call: (yield {"x": 1}, plain)])(lambda: 1).run(),
        lambda: assert_ran(action(name="a")(lambda: 1).run(), [plain]),
    ]
    for each in raising:
        with pytest.raises((FlowdecoError, TypeError)) as caught:
            each()
        assert isinstance(caught.value, FlowdecoError) or each is raising[-1], caught.value
        assert " at 0x" not in text_of(caught.value)
    shown = [
        action(name="a")(lambda x: x).bind(x=plain),
        recover(on=lambda error: True),
        stream(iter([])),
        retry(on=plain.__eq__),
    ]
    assert not [each for each in map(repr, shown) if " at 0x" in each]


def test_an_error_keeps_arguments_that_are_not_text():
    """And an empty one has none."""
    assert RunError("a", 1).args == ("a", 1)
    assert RunError().args == ()


@pytest.mark.parametrize("in_group", [False, True], ids=["a row", "a group"])
@pytest.mark.parametrize("durable", [False, True], ids=["in memory", "durable"])
def test_exception_groups_may_be_nested_without_end(in_group, durable, tmp_path):
    """The run fails with it; it neither hangs nor ends in a RecursionError."""
    error: Exception = ValueError("the innermost")
    for _ in range(3 * sys.getrecursionlimit()):
        error = ExceptionGroup("around", [error])

    @action
    def fails():
        raise error

    flow = parallel(fails, Stage("quick", [action(name="quick")(lambda: None)])) if in_group else fails
    run = flow.run(check=False, journal=tmp_path / "runs.db" if durable else None)
    assert (run.status, run.error) == ("failed", error)
    with pytest.raises(ExceptionGroup) as raised:
        flow.run()
    assert Run.of(raised.value).error is error


def test_groups_of_nothing_but_signals_may_be_nested_without_end():
    """They count as the signal."""
    signal: BaseException = Bail("enough")
    for _ in range(3 * sys.getrecursionlimit()):
        signal = BaseExceptionGroup("around", [signal])

    @action
    def bails():
        raise signal

    assert bails.run().status == "bailed"
