"""What a run is when it is over: status, store, result, records."""

import asyncio
import dataclasses
import os
import pickle
import re
import signal
import threading
import time

import pytest
from support import (
    action_record,
    again,
    failing,
    flaky,
    names,
    one,
    stage_record,
    statuses,
    step,
    swallow,
    text_of,
)

from flowdeco import Bail, Context, Key, Run, Stage, Status, Store, Suspend, action, parallel, pipeline, stream
from flowdeco.engine.runs import ActionRecord, StageRecord
from flowdeco.errors import DefinitionError, RunError, WiringError
from flowdeco.middleware import recover, retry

# -- status


def test_a_status_is_a_string():
    """One of eight."""
    expected = ["pending", "running", "completed", "failed", "skipped", "bailed", "suspended", "cancelled"]
    assert [str(status) for status in Status] == expected
    assert Status.COMPLETED == "completed"
    assert f"{Status.COMPLETED}" == "completed"


def raises(error):
    """An action that raises."""
    return failing([], "a", error)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (step([], "a"), ("completed", "completed", "completed")),
        (raises(ValueError()), ("failed", "failed", "failed")),
        (raises(Bail("enough")), ("bailed", "bailed", "bailed")),
        (raises(Suspend("wait")), ("suspended", "suspended", "suspended")),
    ],
)
def test_run_stage_and_action_have_a_status(run, unit, expected):
    """The same, where the action decides it."""
    finished = run(unit, check=False)
    record = stage_record(finished, "a")
    assert (finished.status, record.status, record.actions[0].status) == expected
    assert all(isinstance(status, Status) for status in (finished.status, record.status, record.actions[0].status))


def test_a_run_that_has_not_begun_is_pending():
    """Nothing came of it yet."""
    fresh = Run("run-1", pipeline(), Store())
    assert (fresh.status, fresh.result, fresh.error, fresh.reason, list(fresh.stages)) == (
        "pending",
        None,
        None,
        None,
        [],
    )


def test_the_run_is_running_while_it_runs(run):
    """Observers can see it through its middleware, actions through nothing at all."""
    seen = []

    def look(call):
        seen.append(call.run_id)
        yield

    finished = run(Stage("s", use=[look]))
    assert seen == [finished.id]


# -- result, reason, error


def test_the_result_is_the_last_data_that_is_not_none(run):
    """Wherever it was stored; units are no data."""
    flow = step([], "a", 1) >> step([], "b", 2, returns=None) >> step([], "c") >> step([], "d", lambda: Stage("D"))
    assert run(flow).result == 2
    assert run(step([], "a", 1, collect="xs")).result == 1
    assert run(step([], "a", (1, 2), returns=("x", "y"))).result == (1, 2)
    assert run(step([], "a", False) >> step([], "b")).result is False
    assert run(Stage("s")).result is None


def test_the_result_of_a_failed_attempt_does_not_count(run):
    """It was dropped, with all the rest."""
    log = []
    first = step(log, "a", lambda: "dropped" if "f" not in log else None)
    assert run(Stage("s", [first, flaky(log, "f", 1)], use=[again(2)])).result is None
    log.clear()
    assert run(pipeline(first, flaky(log, "f", 1), use=[again(2)])).result is None


def test_a_run_reads_its_store(run):
    """By name and by typed key."""
    finished = run(step([], "a", 1))
    assert (finished["a"], finished[Key("a", int)], finished.store["a"]) == (1, 1, 1)
    with pytest.raises(KeyError):
        finished["b"]


def test_a_run_has_a_repr(run):
    """With what came of it."""
    assert repr(run(Stage("s"), run_id="run-1")).startswith("<Run run-1 completed, 1 stage in ")
    assert "failed with ValueError" in repr(run(raises(ValueError()), check=False))
    assert "bailed: enough" in repr(run(raises(Bail("enough"))))


def test_a_run_shows_itself_as_a_page_and_in_a_notebook(run, tmp_path):
    """What is in them has tests of its own."""
    finished = run(one([], "load"))
    path = tmp_path / "run.html"
    assert finished.to_html(path) == path
    assert "load" in path.read_text(encoding="utf-8")
    assert "load" in finished._repr_html_()


# -- behind an exception


def test_the_run_behind_an_exception_can_be_found(run):
    """What had been done by then."""
    with pytest.raises(ValueError) as caught:
        run(step([], "a", 1) >> failing([], "b", ValueError("no")), run_id="run-1")
    finished = Run.of(caught.value)
    assert (finished.id, finished.status, finished["a"], finished.error) == ("run-1", "failed", 1, caught.value)
    assert names(finished) == ["a", "b"]


def test_the_run_behind_an_interrupted_event_loop_is_found():
    """`asyncio.run` raises a KeyboardInterrupt of its own, as the cancellation of its main task is being handled."""

    @action
    async def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)

    with pytest.raises(KeyboardInterrupt) as caught:
        asyncio.run(interrupted.arun(run_id="run-1"))
    assert (Run.of(caught.value).id, Run.of(caught.value).status) == ("run-1", "cancelled")


def test_the_run_behind_an_exception_is_that_of_its_cause_or_context(run):
    """Unless these are hidden; a circle of them has an end."""
    failed = None
    try:
        run(failing([], "b", ValueError("no")), run_id="run-1")
    except ValueError as error:
        failed = error
    caused, hidden = KeyError("caused"), KeyError("hidden")
    caused.__cause__, hidden.__context__ = failed, failed
    assert Run.of(caused).id == Run.of(hidden).id == "run-1"
    hidden.__suppress_context__ = True
    one, other = KeyError("one"), KeyError("other")
    one.__context__, other.__context__ = other, one
    for error in (hidden, one):
        with pytest.raises(LookupError):
            Run.of(error)


def test_an_exception_of_no_run_is_a_lookup_error():
    """Also one that only looks like it."""
    error = ValueError("mine")
    error.__flowdeco_run__ = "nonsense"
    for other in (ValueError("mine"), error, WiringError("before")):
        with pytest.raises(LookupError, match=type(other).__name__):
            Run.of(other)


def test_the_note_of_an_exception_says_where_it_came_from(run):
    """Action, stage, pipeline, run: once, also through nested pipelines and groups."""
    flow = pipeline(parallel(pipeline(Stage("s", [failing([], "a", ValueError("no"))]), name="inner")), name="outer")
    with pytest.raises(ValueError) as caught:
        run(flow, run_id="run-1")
    (note,) = caught.value.__notes__
    for part in ("action 'a'", "stage 's'", "pipeline 'inner'", "run 'run-1'"):
        assert part in note


def test_failures_of_middleware_have_a_note_as_well(run):
    """Of a stage, of a pipeline, of the run."""

    def refuses(call):
        raise ValueError("refused")
        yield

    for flow, options, where in (
        (Stage("s", use=[refuses]), {}, "stage 's'"),
        (pipeline(Stage("s"), name="p", use=[refuses]), {}, "pipeline 'p'"),
        (pipeline(Stage("s"), name="p"), {"use": [refuses]}, "pipeline 'p'"),
    ):
        finished = run(flow, check=False, **options)
        assert where in text_of(finished.error)
        assert len(finished.error.__notes__) == 1


def test_one_exception_may_fail_several_runs(run):
    """It has a note of each, and leads to the last."""
    error = ValueError("shared")
    first, second = (run(raises(error), check=False, run_id=name) for name in ("run-1", "run-2"))
    assert first.error is second.error is error
    assert ["run-1" in note for note in error.__notes__] == [True, False]
    assert Run.of(error) is second


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """An exception to which nothing can be written."""

    code: int


class Slots(Exception):
    """An exception that refuses attributes of others."""

    def __setattr__(self, name, value):
        raise TypeError("no attributes here")


@pytest.mark.parametrize("error", [Frozen(3), Slots("no")], ids=["frozen", "slots"])
@pytest.mark.parametrize("level", ["plain", "wrapped", "group"])
def test_an_exception_that_cannot_be_written_to_is_raised_all_the_same(run, error, level):
    """The original one, even if no note and no run can be tied to it."""
    flow = {
        "plain": raises(error),
        "wrapped": pipeline(Stage("a", [raises(error)], use=[again(2)]), use=[again(2)]),
        "group": parallel(raises(error)),
    }[level]
    with pytest.raises(type(error)) as caught:
        run(flow)
    assert caught.value is error


def test_exceptions_without_a_dict_can_be_raised(run):
    """The note is written where it can be."""

    class Small(Exception):
        __slots__ = ()

    finished = run(raises(Small()), check=False)
    assert isinstance(finished.error, Small)


# -- records


def test_records_are_in_the_order_of_execution(run):
    """Of stages, with their actions; skipped ones too."""
    log = []
    flow = one(log, "a", lambda: one(log, "D")) >> pipeline(one(log, "b"), name="p") >> one(log, "c")
    finished = run(flow, skip=["b"])
    assert statuses(finished) == [("a", "completed"), ("D", "completed"), ("b", "skipped"), ("c", "completed")]
    assert [type(record) for record in finished.stages] == [StageRecord] * 4
    assert [type(record) for record in finished.stages[0].actions] == [ActionRecord]


def test_a_record_has_its_definition(run):
    """A bare action is in a stage of its name."""
    act, made = step([], "a", tags=["t"]), Stage("s")
    finished = run(act >> made)
    bare, stage = finished.stages
    assert (bare.name, bare.stage.name, bare.stage.tags, list(bare.stage)) == ("a", "a", {"t"}, [act])
    assert (bare.actions[0].name, bare.actions[0].action) == ("a", act)
    assert stage.stage is made


def test_records_say_when_it_began_and_how_long_it_took(run):
    """`started` in POSIX seconds, `elapsed` in seconds."""
    before = time.time()
    finished = run(Stage("s", [step([], "a", lambda: time.sleep(0.02))]) >> Stage("t"))
    after = time.time()
    s, t = finished.stages
    assert before - 0.01 <= finished.started <= s.started <= s.actions[0].started <= t.started <= after + 0.01
    assert 0.02 <= s.actions[0].elapsed <= s.elapsed <= finished.elapsed <= after - before + 0.01


def test_a_failed_record_has_the_error_and_the_others_none(run):
    """Of action and stage."""
    error = ValueError("no")
    finished = run(one([], "a") >> raises(error).with_options(name="b"), check=False)
    assert [record.error for record in finished.stages] == [None, error]
    assert [record.actions[0].error for record in finished.stages] == [None, error]


def test_attempts_are_counted_and_there_is_one_record(run):
    """With the final status."""
    log = []
    flow = Stage("s", [flaky(log, "f", 2, use=[again(2)])], use=[again(2)]) >> Stage(
        "t", [flaky(log, "g", 9, use=[again(3)])]
    )
    finished = run(flow, check=False)
    assert [(r.name, r.status.value, r.attempts) for r in finished.stages] == [
        ("s", "completed", 2),
        ("t", "failed", 1),
    ]
    assert action_record(finished, "s", "f").attempts == 1
    assert action_record(finished, "t", "g").attempts == 3
    assert len(finished.stages[0].actions) == 1


def test_a_recovered_record_stays_failed(run):
    """With its error, and `recovered`."""
    error = ValueError("no")
    finished = run(Stage("s", [failing([], "a", error, use=[swallow])]) >> Stage("t", [raises(error)], use=[swallow]))
    assert [(r.status.value, r.recovered, r.error) for r in finished.stages] == [
        ("completed", False, None),
        ("failed", True, error),
    ]
    recovered = action_record(finished, "s", "a")
    assert (recovered.status, recovered.recovered, recovered.error) == ("failed", True, error)
    assert action_record(finished, "t", "a").recovered  # by its stage


def test_who_was_there_from_the_start_was_inserted_by_nobody(run):
    """Else it is `stage/action`."""
    log = []

    @action
    def begin(ctx: Context):
        ctx.insert(one(log, "by ctx"))
        ctx.insert(step(log, "dynamic"))
        return [stream([one(log, "streamed")])]

    finished = run(Stage("s", [begin, step(log, "static")]) >> one(log, "t"))
    assert {r.name: r.inserted_by for r in finished.stages} == {
        "s": None, "by ctx": "s/begin", "streamed": "s/begin", "t": None,
    }  # fmt: skip
    assert {r.name: r.inserted_by for r in finished.stages[0].actions} == {
        "begin": None, "dynamic": "s/begin", "static": None,
    }  # fmt: skip
    assert action_record(finished, "by ctx", "by ctx").inserted_by is None


def test_a_group_is_recorded_in_branch_order(run):
    """Whatever finished first."""
    flow = parallel(
        Stage("slow", [step([], "a", lambda: time.sleep(0.03))]), Stage("quick"), Stage("b") >> Stage("c"),
    )  # fmt: skip
    assert names(run(flow)) == ["slow", "quick", "b", "c"]


def test_what_was_never_reached_has_no_record(run):
    """After a failure, a bail, a suspension."""
    for error in (ValueError(), Bail(), Suspend()):
        finished = run(Stage("s", [raises(error), step([], "b")]) >> Stage("t"), check=False)
        assert names(finished) == ["s"]
        assert [r.name for r in finished.stages[0].actions] == ["a"]


def test_records_can_be_kept_and_compared(run):
    """They do not change when the definition runs again."""
    flow = one([], "a") >> one([], "b")
    first = run(flow)
    kept = list(first.stages)
    run(flow)
    assert list(first.stages) == kept


def test_history_bounds_the_records(run):
    """The last ones stay."""
    flow = pipeline(*(Stage(f"s{number}") for number in range(10)))
    assert names(run(flow, history=3)) == ["s7", "s8", "s9"]
    assert names(run(flow, history=0)) == []
    assert len(run(flow).stages) == 10


def test_the_run_is_behind_each_failure_of_a_group_and_behind_what_except_star_splits_off():
    """Of several failures a group is raised; a part of it leads to the run as well."""

    both = threading.Barrier(2, timeout=30)

    def fails(error):
        def body():
            both.wait()
            raise error

        return action(name=type(error).__name__)(body)

    flow = parallel(fails(OSError("a")), fails(ValueError("b")))
    parts = []
    try:
        flow.run(run_id="r")
    except* OSError as part:
        parts += [part, *part.exceptions]
    except* ValueError as part:
        parts += [part, *part.exceptions]
    assert ["r"] * 4 == [Run.of(error).id for error in parts]


def test_keys_can_be_looked_for_in_a_run_and_it_is_no_sequence():
    """Not by numbers, which Python would try."""
    run = action(name="two")(lambda: 2).run()
    assert ("two" in run, "three" in run) == (True, False)
    with pytest.raises(TypeError, match="not iterable"):
        list(run)


def test_records_have_short_reprs():
    """What became of what, and how long it took."""
    fails = action(name="fails")(lambda: 1 / 0)
    run = Stage("s", [action(name="one")(lambda: 1), fails]).run(check=False)
    assert re.fullmatch(r"<StageRecord s failed with ZeroDivisionError in [\d.]+ s: one, fails>", repr(run.stages[0]))
    assert re.fullmatch(r"<ActionRecord one completed in [\d.]+ s>", repr(run.stages[0].actions[0]))


# -- pickled


class Picky(Exception):
    """It takes other arguments than it passes on."""

    def __init__(self, code, *, host):
        super().__init__(f"code {code} from {host}")
        self.code = code


class Holding(Exception):
    """It has something that cannot be pickled."""

    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()


ERRORS = {
    "picky": lambda: Picky(1, host="here"),
    "holding": lambda: Holding("no"),
    "a group": lambda: ExceptionGroup("both", [ValueError("fine"), Picky(1, host="here")]),
}
RAISES = []


@action
def troubled(ctx: Context) -> int:
    if RAISES and RAISES[0] is not None:
        raise RAISES.pop(0)()
    return len(RAISES)


TROUBLED = pipeline(Stage("s", [troubled]), name="p")
TROUBLED_TWICE = TROUBLED.with_options(use=[retry(on=Exception, attempts=2, wait=0)])
TROUBLED_ALIKE = parallel(TROUBLED, name="g")
RECOVERED = TROUBLED.with_options(use=[recover(on=Exception)])


def all_errors(run):
    steps = [each for record in run.stages for each in (record, *record.actions)]
    found = [run.error, *(each.error for each in (*steps, *run.pipelines))]
    return found + [error for each in (*steps, *run.pipelines) for error in each.failures]


@pytest.mark.parametrize(
    "flow", [TROUBLED, TROUBLED_TWICE, TROUBLED_ALIKE, RECOVERED], ids=["", "twice", "group", "recovered"]
)
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_a_run_is_unpickled_whatever_its_error(run, flow, error):
    """What cannot be is described, wherever it is in the run; the run itself keeps it. It can be resumed."""
    RAISES[:] = [error, error]
    finished = run(flow, check=False)
    before = all_errors(finished)
    found = pickle.loads(pickle.dumps(finished))
    assert [None if each is None else text_of(each) for each in before] == [
        None if each is None else text_of(each).replace("Picky: ", "").replace("Holding: ", "")
        for each in all_errors(found)
    ]
    described = {type(each) for each in all_errors(found) if each is not None}
    assert described == {ExceptionGroup if isinstance(error(), ExceptionGroup) else RunError}
    assert all(one is other for one, other in zip(before, all_errors(finished), strict=True))
    if found.error is not None:
        assert found.error is found.stages[0].error
        RAISES.clear()
        assert flow.resume(found)["troubled"] == 0


def test_an_error_that_can_be_unpickled_is_as_it_was(run):
    """With its notes."""
    RAISES[:] = [lambda: KeyError("key")]
    found = pickle.loads(pickle.dumps(run(TROUBLED, check=False)))
    assert (type(found.error), found.error.args) == (KeyError, ("key",))
    assert "action 'troubled'" in found.error.__notes__[0]


@pytest.mark.parametrize("thing", [3, None, "text", OSError])
def test_only_exceptions_have_a_run_behind_them(thing):
    """Anything else is a mistake of the caller."""
    with pytest.raises(DefinitionError, match="Run.of takes an exception that a run raised, not"):
        Run.of(thing)
