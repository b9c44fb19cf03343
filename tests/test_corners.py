"""Corner cases that larger tests do not reach."""

from types import SimpleNamespace

import pytest

from flowdeco import Stage, action, parallel, pipeline, stream
from flowdeco.engine.memory import Log
from flowdeco.engine.outcome import NOWHERE
from flowdeco.errors import SLEEP, DefinitionError, Suspend, Wait
from flowdeco.middleware import cached, recover


@action
def fails() -> None:
    raise ValueError("no")


def test_a_group_that_tolerates_leaves_failures_before_it_alone():
    """A pipeline that had failed, and was recovered, is not in the group."""
    early = pipeline(fails, name="early", use=[recover(on=ValueError)])
    late = pipeline(fails, name="late", use=[recover(on=ValueError)])
    between = action(name="between")(lambda: 1)
    run = (early >> between >> parallel(late >> fails, action(name="fine")(lambda: 1), tolerate=1)).run()
    assert [(record.name, record.recovered) for record in run.pipelines] == [("early", True), ("late", True)]


def test_steps_in_memory_that_wait_and_have_not_run_again_are_known():
    """They belong to no branch that was evaluated."""
    log, wait = Log(), Wait(SLEEP, 5.0)
    log.waits = {("0.1", 3): (wait,)}
    assert log.history()[NOWHERE][0].waits == [wait._replace(at=("0.1", 3))]


def test_a_time_beyond_the_calendar_is_told_in_seconds():
    """The message does not fail where `datetime` does."""
    assert str(Suspend.until(Wait(SLEEP, 1e15))) == "sleeping until 1e+15 s after 1970"


def test_an_action_without_a_signature_can_be_cached(tmp_path):
    """Whether it takes a `Context` is seen when it is read, not when it is defined."""
    function = type("Odd", (), {"__call__": lambda self: 1, "__signature__": "none", "__name__": "odd"})()
    cached(tmp_path).check_signature(SimpleNamespace(name="odd", __wrapped__=function))


def test_a_selector_of_a_later_stage_is_checked_behind_a_cache(tmp_path):
    """A cache inserts nothing of its own: a `skip` that matches nothing is a mistake."""

    @action(use=[cached(tmp_path)])
    def kept() -> int:
        return 1

    with pytest.raises(DefinitionError, match="s/kept"):
        pipeline(Stage("s", [kept])).run(skip=["s/kepd"])


def test_a_stream_equals_no_other_object():
    """Python asks the other one, too."""
    assert stream([]) != 1
    assert stream([]).__eq__(1) is NotImplemented
    numbers = [1, 2]
    assert len({stream(numbers), stream(numbers)}) == 1
