"""What a middleware sees of its target, and does to it: a `Call` alone, of each kind of target."""

import logging

import pytest

from flowdeco import Context, Pipeline, Stage, Store, action, stage
from flowdeco.engine.call import Call
from flowdeco.errors import MiddlewareError, ReturnValueError
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import step_of
from flowdeco.model.store import Watched


@action
def act(ctx: Context, x, given, bound, key: int = 4, missing=5):
    pass


act = act.bind(bound=1)


def call(level, store=None, **values):
    """The call of a target of this kind."""
    made = Call()
    made.run_id, made.pipeline, made.attempt, made.store = "run-1", Pipeline(name="p"), 2, store or Store()
    made.stage = None if level == "pipeline" else Stage("s", [act])
    made.action = act if level == "action" else None
    made.given, made.inserted, made.values = UNSET, (), values
    return made


@pytest.mark.parametrize(("level", "name"), [("pipeline", "p"), ("stage", "s"), ("action", "act")])
def test_a_call_knows_its_target(level, name, caplog):
    """And says so in its repr, in the log, and in an error of what it inserts."""
    made = call(level)
    assert (made.level, made.name, repr(made)) == (level, name, f"<Call of {level} {name!r}, attempt 2>")
    with caplog.at_level(logging.INFO, "flowdeco.run"):
        made.logger.info("hello")
    (record,) = caplog.records
    assert (record.run, record.stage, record.action) == (
        "run-1", None if level == "pipeline" else "s", "act" if level == "action" else None,
    )  # fmt: skip
    with pytest.raises(ReturnValueError, match=f"^a middleware of {level} '{name}' inserted the int 3"):
        made.insert(3)


def test_an_outcome_can_be_replaced():
    """As long as there is none, it is None; None is an outcome as well."""
    made = call("action")
    assert (made.outcome, made.given) == (None, UNSET)
    made.outcome = None
    assert (made.outcome, made.given) == (None, None)
    made.outcome = 3
    assert (made.outcome, made.given, made.cached) == (3, 3, False)


@pytest.mark.parametrize("level", ["pipeline", "stage"])
def test_only_an_action_has_an_outcome(level):
    """Elsewhere it would have no effect."""
    made = call(level)
    with pytest.raises(
        MiddlewareError, match=f"call.outcome is the result of an action, and the {level} '.*' has none"
    ):
        made.outcome = 3
    assert made.given is UNSET


def test_what_middleware_inserts_adds_up():
    """Also what it had inserted when its outcome was cached."""
    made, one, two, three = call("action"), Stage("one"), Stage("two"), Stage("three")
    made.insert(one)
    made.insert(two)
    assert (made.inserted, made.cached) == ((one, two), False)
    made.take_cached(3, (three,))
    assert (made.inserted, made.outcome, made.cached) == ((one, two, three), 3, True)

    @stage
    def template(kind):
        pass

    with pytest.raises(ReturnValueError, match="inserted"):
        made.insert(template)


def test_a_target_can_be_made_one_step():
    """It is none by itself, and nothing has been tried again."""
    made = call("stage")
    made.use_time(1.0)
    assert (made.undoes, made.repeats_before, made.time_used) == (False, 0, 0.0)
    made.undo_on_failure()
    assert made.undoes is True


def test_the_arguments_of_an_action_are_those_known_so_far():
    """What is bound, what middleware has yielded, what is in the store, and defaults; its reads are noted."""
    read = []
    for store in (base := Store({"x": 1, "given": 2}), Watched(base, read.append)):
        assert call("action", store, given=3).arguments == {"bound": 1, "x": 1, "given": 3, "key": 4, "missing": 5}
    assert read == list(step_of(act).keys)
    assert call("action").arguments == {"bound": 1, "key": 4, "missing": 5}
    assert call("stage").arguments == call("pipeline").arguments == {}


def test_the_step_of_an_action_may_read_local_results():
    """Then it is that one."""
    made = call("action")
    assert made.step is step_of(act)
    made.localized = other = step_of(act.with_options(name="other"))
    assert made.step is other
