"""Questions: `ctx.wait_for` with what it is about, a type, a deadline; answers that are checked and consumed."""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from enum import Enum
from multiprocessing import get_context
from typing import Any, ForwardRef, Literal, TypeVar

import pytest

from flowdeco import Context, Key, Stage, Suspend, action, durable, parallel, pipeline, stage
from flowdeco.durable import MemoryJournal, SqliteJournal
from flowdeco.errors import DefinitionError, JournalError, StoreTypeError, WaitTimeout
from flowdeco.middleware import atomic, recover, retry
from flowdeco.model.keys import type_name

CALLS = []


@pytest.fixture(autouse=True)
def no_calls():
    """Each test has its own."""
    CALLS.clear()


class Ways:
    """A way to start and resume runs: sync or async, in memory or with a journal."""

    def __init__(self, how, journal):
        self.how, self.journal = how, journal

    def _did(self, flow, method, *args, **options):
        if self.journal is not None:
            options["journal"] = self.journal
        if self.how == "sync":
            return getattr(flow, method)(*args, **options)
        return asyncio.run(getattr(flow, f"a{method}")(*args, **options))

    def run(self, flow, inputs=None, **options):
        """Start the run "r"."""
        return self._did(flow, "run", inputs, run_id="r", **options)

    def resume(self, flow, run, inputs=None, **options):
        """Resume a run."""
        return self._did(flow, "resume", run, inputs, **options)


@pytest.fixture(params=["sync memory", "async memory", "sync pickle", "async json", "sync journal object"])
def way(request, tmp_path):
    """Each of the ways."""
    how, _, where = request.param.partition(" ")
    if where == "memory":
        return Ways(how, None)
    return Ways(how, MemoryJournal() if where == "journal object" else SqliteJournal(tmp_path / "r.db", codec=where))


@pytest.fixture
def journal(tmp_path):
    """A journal in a file."""
    return SqliteJournal(tmp_path / "r.db")


@pytest.fixture
def clock(monkeypatch):
    """The wall clock, which a test may set."""

    class Clock:
        now = 2_000_000_000.0

    monkeypatch.setattr(time, "time", lambda: Clock.now)
    return Clock


@action
def both(ctx: Context):
    """Asks two questions, one after the other."""
    CALLS.append("both")
    return [ctx.wait_for("first", about="is it right?", type=bool), ctx.wait_for("second", type=list[int])]


@action
def until_yes(ctx: Context):
    """Asks again in the same action."""
    asked = 1
    while not ctx.wait_for("ok"):
        asked += 1
    return asked


@action
def once_more(ctx: Context) -> Stage | None:
    """Asks again in the next turn of a loop."""
    CALLS.append("turn")
    return None if ctx.wait_for("ok") else turns


turns = Stage("turns", [once_more])


@stage
def form(field: str):
    """Asks for a field, with a local result."""

    @action
    def text():
        return f"{field}?"

    @action(collect="filled")
    def filled(text, ctx: Context):
        return text + ctx.wait_for(f"form.{field}", about=text)


@action
def forms():
    """Inserts stages that ask."""
    return [form("name"), form("age")]


@stage
def reviewer(name: str):
    """Asks under a key that all reviewers share."""

    @action(collect="verdicts")
    def verdict(ctx: Context):
        return [name, ctx.wait_for("verdict")]


def asks_until(name: str, attempt: int):
    """A reviewer whose first attempts fail after the answer."""

    @action(name=name, collect="verdicts", use=[retry(on=ValueError, wait=0)])
    def review(ctx: Context) -> list[object]:
        verdict = ctx.wait_for("verdict")
        if ctx.attempt < attempt:
            raise ValueError(ctx.attempt)
        return [name, verdict]

    return review


def test_an_action_gets_the_answers_it_had_and_asks_the_next_question(way):
    """It is called from its beginning; the answers are gone from the store when it has completed."""
    run = way.run(both)
    assert (run.status, run.reason) == ("suspended", "waiting for 'first'")
    run = way.resume(both, run, {"first": True})
    assert run.reason == "waiting for 'second'"
    run = way.resume(both, run, {"second": [3]})
    assert (run.status, dict(run.store), CALLS) == ("completed", {"both": [True, [3]]}, ["both"] * 3)


def test_inputs_in_advance_are_answers_as_well(way):
    """They are in the store until the wait that consumes them."""
    run = way.run(both, {"first": False, "second": [], "other": 1})
    assert dict(run.store) == {"both": [False, []], "other": 1}


def test_all_answers_may_come_at_once(way):
    """Those that are not asked for yet are inputs."""
    run = way.resume(both, way.run(both), {"first": True, "second": [1]})
    assert dict(run.store) == {"both": [True, [1]]}


def test_a_value_that_an_action_or_a_stage_wrote_stays(way):
    """It answers as well, and is not consumed."""

    @action(returns="first")
    def decided():
        return True

    flow = decided >> Stage("asks", [both], data={"second": [7]})
    assert dict(way.run(flow).store) == {"first": True, "second": [7], "both": [True, [7]]}


@pytest.mark.parametrize(("flow", "key"), [(until_yes, "until_yes"), (turns, None)])
def test_a_loop_asks_again(way, flow, key):
    """In an action or from turn to turn: each answer is for one question."""
    run = way.run(flow)
    for _ in range(3):
        assert run.reason == "waiting for 'ok'"
        run = way.resume(flow, run, {"ok": False})
    run = way.resume(flow, run, {"ok": True})
    assert (run.status, dict(run.store)) == ("completed", {key: 4} if key else {})
    assert len(CALLS) in (0, 8)  # each turn is called once to ask, and once with the answer


def test_of_two_branches_that_wait_for_one_key_the_first_gets_the_answer(way):
    """The next answer is for the next one."""
    flow = parallel(reviewer("ada"), reviewer("bob"), reviewer("cyd"))
    run = way.run(flow)
    assert (run.reason, [wait.key for wait in run.waits]) == ("waiting for 'verdict'", ["verdict"] * 3)
    for answer in (1, 2, 3):
        assert run.status == "suspended"
        run = way.resume(flow, run, {"verdict": answer})
    assert dict(run.store) == {"verdicts": [["ada", 1], ["bob", 2], ["cyd", 3]]}


def test_a_value_given_in_advance_is_for_one_branch(way):
    """The first that asks has it, also after a resume; the others ask."""
    flow = pipeline(parallel(*map(reviewer, ("ada", "bob", "cyd"))), parallel(reviewer("dan")))
    run = way.run(flow, {"verdict": 0})
    assert [wait.key for wait in run.waits] == ["verdict"] * 2
    run = way.resume(flow, run)
    assert [wait.key for wait in run.waits] == ["verdict"] * 2
    for answer in (1, 2, 3):
        run = way.resume(flow, run, {"verdict": answer})
    assert sorted(answer for _, answer in run["verdicts"]) == [0, 1, 2, 3]
    assert "verdict" not in run.store


def test_a_branch_has_its_value_in_another_attempt_too(way):
    """Nested groups as well."""
    flow = pipeline(parallel(parallel(asks_until("third", 3)), reviewer("bob")))
    run = way.run(flow, {"verdict": 0})
    assert [wait.key for wait in run.waits] == ["verdict"]
    run = way.resume(flow, run, {"verdict": 1})
    assert sorted(answer for _, answer in run["verdicts"]) == [0, 1]


def test_a_branch_may_consume_what_another_one_writes(way):
    """That is no conflict: only the other one has written it."""

    @action
    def takes(ctx: Context):
        return ctx.wait_for("shared")

    @action(returns="shared")
    def writes():
        return "new"

    assert dict(way.run(parallel(takes, writes), {"shared": "old"}).store) == {"takes": "old", "shared": "new"}


def test_two_questions_side_by_side_in_one_action(way):
    """In a task group, both are open."""

    @action
    async def asks(ctx: Context):
        async def one(key):
            return ctx.wait_for(key)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one("a")), group.create_task(one("b"))]
        return [task.result() for task in tasks]

    run = way.run(asks)
    assert run.reason == "waiting for 'a', 'b'"
    assert way.resume(asks, run, {"a": 1, "b": 2})["asks"] == [1, 2]


def test_a_wrong_answer_is_refused_and_changes_nothing(way):
    """The error names the key, and the run stays suspended."""
    run = way.run(both)
    with pytest.raises(StoreTypeError, match="the key 'first' is declared as bool, but its value is a str: 'yes'"):
        way.resume(both, run, {"first": "yes"})
    if way.journal is not None:
        assert durable.runs(way.journal)[0].status == "suspended"
        with pytest.raises(StoreTypeError, match="'first'"):
            durable.answer(way.journal, "r", {"first": 1})
    run = way.resume(both, run, {"first": True})
    with pytest.raises(StoreTypeError, match=r"'second' is declared as list\[int\]"):
        way.resume(both, run, {"second": 3})
    assert way.resume(both, run, {"second": [3]}).status == "completed"


SECOND_REFUSED = (
    "waiting for 'second'; the answer given for 'second' before the question was asked is refused: "
    "the key 'second' is declared as list[int], but its value is a str: 'x'"
)


def test_a_wrong_answer_given_in_advance_is_refused_when_its_question_is_asked(way):
    """The run waits for a right one, with the reason, also when it is resumed for another one; nothing is lost."""

    @action
    def before(ctx: Context):
        CALLS.append("before")
        return ctx.wait_for("zeroth", type=int)

    flow = pipeline(before, both)
    run = way.run(flow, {"second": "x"})
    run = way.resume(flow, run, {"zeroth": 0, "first": True})
    assert (run.status, run.reason) == ("suspended", SECOND_REFUSED)
    run = way.resume(flow, run)
    assert (run.status, run.reason) == ("suspended", SECOND_REFUSED)
    with pytest.raises(StoreTypeError, match="'second'"):
        way.resume(flow, run, {"second": "y"})
    if way.journal is not None:
        [info] = durable.runs(way.journal)
        assert (info.reason, info.answered, [each.key for each in info.questions]) == (
            SECOND_REFUSED,
            False,
            ["second"],
        )
    run = way.resume(flow, run, {"second": [1]})
    assert (run.status, dict(run.store)) == ("completed", {"before": 0, "both": [True, [1]]})
    assert CALLS.count("before") == 2


def test_a_wrong_answer_recorded_in_advance_is_refused_when_its_question_is_asked(journal):
    """By `durable.answer`, while another question is open; the run does not count as answered for ever."""
    both.run(journal=journal, run_id="r")
    durable.answer(journal, "r", {"first": False, "second": "x"})
    run = both.resume("r", journal=journal)
    assert (run.reason, durable.due(journal)) == (SECOND_REFUSED, [])
    durable.answer(journal, "r", {"second": []})
    assert dict(both.resume("r", journal=journal).store) == {"both": [False, []]}


def test_a_wrong_answer_in_advance_leaves_the_default_and_an_error_as_they_are(way, clock):
    """After the timeout the default counts, and the refused value is gone; so it is after `error=`."""

    @action
    def asks(ctx: Context):
        return ctx.wait_for("n", type=int, timeout=10, default=None)

    run = way.run(asks, {"n": "x"})
    assert run.status == "suspended"
    clock.now += 11
    run = way.resume(asks, run)
    assert (run.status, dict(run.store)) == ("completed", {})

    @action
    def asks_again(ctx: Context):
        try:
            return ctx.wait_for("n", type=int)
        except ValueError as error:
            return str(error)

    other = Ways(way.how, None if way.journal is None else MemoryJournal())
    run = other.run(asks_again, {"n": "x"})
    run = other.resume(asks_again, run, error=ValueError("no"))
    assert dict(run.store) == {"asks_again": "no"}


@stage
def asks_for(kind: str):
    """Asks for a value of a type, by its name."""

    @action(collect="found", use=[retry(on=Exception, wait=0)])
    def ask(ctx: Context):
        return ctx.wait_for("n", type={"int": int, "str": str}[kind])


@action
def inserts_questions():
    """Inserts a group that asks for one key, as two types."""
    return parallel(asks_for("int"), asks_for("str"))


def test_a_wrong_answer_in_advance_in_an_inserted_group_and_a_retry(way):
    """Each branch has its own question: the one whose type it has takes the value."""
    run = way.run(inserts_questions, {"n": "x"})
    assert run.reason.startswith("waiting for 'n'; the answer given for 'n' before the question was asked is refused")
    run = way.resume(inserts_questions, run, {"n": 3})
    assert dict(run.store) == {"found": [3, "x"]}


def test_a_value_of_the_wrong_type_that_a_step_wrote_is_an_error(way):
    """Nobody has given it, and nobody could give another one."""
    flow = Stage("asks", [both], data={"first": "x"})
    assert isinstance(way.run(flow, check=False).error, StoreTypeError)


@pytest.mark.parametrize(
    ("declared", "right", "wrong"),
    [(int | None, None, "x"), (float, 1, "x"), (Key, Key("k"), "k"), (dict[str, int], {"a": 1}, [])],
)
def test_types_are_those_of_keys(journal, declared, right, wrong):
    """Unions, generic types, classes of any module that is loaded."""

    @action
    def asks(ctx: Context):
        return repr(ctx.wait_for("x", type=declared))

    asks.run(journal=journal, run_id="r")
    with pytest.raises(StoreTypeError):
        durable.answer(journal, "r", {"x": wrong})
    durable.answer(journal, "r", {"x": right})
    assert asks.resume("r", journal=journal)["asks"] == repr(right)


def test_a_typed_key_checks_the_answer_too(way):
    """As `type=` does, which counts where both are given."""

    @action
    def asks(ctx: Context):
        return ctx.wait_for(Key("n", int))

    run = way.run(asks)
    with pytest.raises(StoreTypeError, match="'n'"):
        way.resume(asks, run, {"n": "3"})
    assert way.resume(asks, run, {"n": 3})["asks"] == 3


@pytest.mark.parametrize("options", [{"type": Literal["fast", "slow"]}, {}], ids=str)
def test_an_answer_to_a_literal_is_one_of_its_values(way, options):
    """By `type=` and by a typed key; the run stays as it was."""

    @action
    def asks(ctx: Context):
        return ctx.wait_for("mode" if options else Key("mode", Literal["fast", "slow"]), **options)

    run = way.run(asks)
    with pytest.raises(StoreTypeError, match="'mode' .* 'medium'"):
        way.resume(asks, run, {"mode": "medium"})
    assert way.resume(asks, run, {"mode": "slow"})["asks"] == "slow"


class Vote:
    """A class of this module."""


def test_an_answer_is_checked_later_where_its_class_is_not_loaded(journal):
    """Nothing is imported to check it: the resume, or the wait, does."""

    @action
    def asks(ctx: Context):
        return type(ctx.wait_for("vote", type=local)).__name__

    class local:  # noqa: N801
        pass

    asks.run(journal=journal, run_id="r")
    durable.answer(journal, "r", {"vote": 3})
    with pytest.raises(StoreTypeError, match="'vote'"):
        asks.resume("r", journal=journal)
    assert asks.resume("r", {"vote": local()}, journal=journal).result == "local"


# Recorded answers.


def test_recorded_answers_wait_for_the_next_resume(journal):
    """The last of several counts; the run is due from the first on."""
    both.run(journal=journal, run_id="r")
    assert durable.due(journal) == []
    durable.answer(journal, "r", {"first": False})
    durable.answer(journal, "r", {"first": True})
    [info] = durable.due(journal)
    assert (info.id, info.status, info.answered) == ("r", "suspended", True)
    run = both.resume("r", journal=journal)
    assert (run.reason, durable.due(journal), len(CALLS)) == ("waiting for 'second'", [], 2)
    assert both.resume("r", {"second": [1]}, journal=journal)["both"] == [True, [1]]


def test_answering_a_finished_run_is_an_error(journal):
    """It has nothing to ask any more; nor has it with `error=`."""
    run = both.run({"first": True, "second": []}, journal=journal, run_id="r")
    with pytest.raises(JournalError, match="'r' has completed and no longer asks anything"):
        durable.answer(journal, "r", {"first": True})
    for options in ({"journal": journal}, {}):
        with pytest.raises(DefinitionError, match="has completed and no longer asks anything"):
            both.resume(run, error=ValueError(), **options)


def test_answers_are_a_mapping(journal):
    """With something in it."""
    for wrong in (None, {}, [("a", 1)]):
        with pytest.raises(DefinitionError, match="answers are a mapping"):
            durable.answer(journal, "r", wrong)


def test_a_run_can_be_answered_while_it_is_at_work(journal):
    """The answer is recorded all the same, and is there at the next resume."""

    @action
    def at_work(ctx: Context):
        if not CALLS:
            durable.answer(journal, "r", {"late": "came"})
        CALLS.append("at work")

    @action
    def asks(ctx: Context):
        return ctx.wait_for("late")

    flow = at_work >> asks
    assert flow.run(journal=journal, run_id="r").status == "suspended"
    assert [info.answered for info in durable.due(journal)] == [True]
    assert flow.resume("r", journal=journal)["asks"] == "came"


def test_an_answer_is_not_used_twice_after_a_crash(journal):
    """The first branch has consumed it; the second one asks on, although its question is older than the answer."""

    class Dies(BaseException):
        pass

    @stage
    def fragile(name: str):
        @action(collect="verdicts")
        def verdict(ctx: Context):
            if name == "bob" and "die" in CALLS:
                raise Dies
            return [name, ctx.wait_for("verdict")]

    flow = parallel(reviewer("ada"), fragile("bob"), limit=1)
    flow.run(journal=journal, run_id="r")
    CALLS.append("die")
    with pytest.raises(Dies):
        flow.resume("r", {"verdict": 1}, journal=journal)
    CALLS.clear()
    run = flow.resume("r", journal=journal)
    assert run.reason == "waiting for 'verdict'"
    assert flow.resume("r", {"verdict": 2}, journal=journal)["verdicts"] == [["ada", 1], ["bob", 2]]


# Deadlines.


@action
def patient(ctx: Context):
    """Waits for an hour, and then for another one."""
    return [ctx.wait_for("a", timeout=3600, default="nobody"), ctx.wait_for("b", timeout=3600, default=None)]


def test_after_its_timeout_a_question_has_its_default(way, clock):
    """The time counts from the first ask, however often the run is resumed."""
    run = way.run(patient)
    assert run.due == clock.now + 3600
    clock.now += 3000
    run = way.resume(patient, run)
    assert (run.status, run.due) == ("suspended", clock.now + 600)
    clock.now += 600
    run = way.resume(patient, run)
    assert (run.reason, run.due) == ("waiting for 'b'", clock.now + 3600)
    run = way.resume(patient, run, {"a": "too late", "b": "in time"})
    assert run["patient"] == ["nobody", "in time"]


def test_an_answer_counts_until_a_resume_has_acted_on_the_timeout(way, clock):
    """Even if the time is over."""
    run = way.run(patient)
    clock.now += 4000
    run = way.resume(patient, run, {"a": "late"})
    assert way.resume(patient, run, {"b": "early"})["patient"] == ["late", "early"]


def test_without_a_default_it_is_an_error(way, clock):
    """`WaitTimeout` is a `TimeoutError`, raised at the wait; a run that failed so asks anew."""

    @action
    def asks(ctx: Context):
        return ctx.wait_for("a", timeout=60)

    run = way.run(asks)
    clock.now += 60
    failed = way.resume(asks, run, check=False)
    assert isinstance(failed.error, WaitTimeout)
    assert isinstance(failed.error, TimeoutError)
    assert "nobody answered 'a' within 60 s" in str(failed.error)
    again = way.resume(asks, failed)
    assert (again.status, again.due) == ("suspended", clock.now + 60)
    assert way.resume(asks, again, {"a": 1})["asks"] == 1


def test_a_deadline_in_a_branch(way, clock):
    """The run is due at the earliest one; the others wait on."""

    @stage
    def branch(key: str, timeout: float):
        @action(collect="came")
        def asks(ctx: Context):
            return ctx.wait_for(key, timeout=timeout, default=f"no {key}")

    flow = parallel(branch("a", 100), branch("b", 50), branch("c", 200))
    run = way.run(flow)
    assert run.due == clock.now + 50
    clock.now += 60
    run = way.resume(flow, run)
    assert (run.reason, run.due) == ("waiting for 'a', 'c'", clock.now + 40)
    run = way.resume(flow, run, {"c": "c!"})
    clock.now += 40
    assert way.resume(flow, run)["came"] == ["no a", "no b", "c!"]


def test_a_timeout_of_0_does_not_wait(way):
    """A look whether the answer is there."""

    @action
    def looks(ctx: Context):
        return ctx.wait_for("a", timeout=0, default="not yet")

    assert way.run(looks)["looks"] == "not yet"


@pytest.mark.parametrize("wrong", [-1, True, "1", math.nan, math.inf])
def test_a_timeout_is_a_number_of_seconds(wrong):
    """Anything else is an error, and so is a default that nothing leads to."""

    @action
    def asks(ctx: Context):
        ctx.wait_for("a", timeout=wrong)

    with pytest.raises(DefinitionError, match="timeout= of ctx.wait_for is a number of seconds"):
        asks.run()
    with pytest.raises(DefinitionError, match="default= of ctx.wait_for is used after a timeout"):
        action(lambda ctx: ctx.wait_for("a", default=1), name="asks").run()


# Answers by failures.


@action
def guarded(ctx: Context):
    """Catches a refusal, and asks on."""
    try:
        first = ctx.wait_for("a")
    except Exception as error:
        first = str(error)
    return [first, ctx.wait_for("b")]


def test_an_error_is_raised_at_the_wait(way):
    """And again when the action runs again."""
    run = way.resume(guarded, way.run(guarded), error=ValueError("no way"))
    assert run.reason == "waiting for 'b'"
    first, second = way.resume(guarded, run, {"b": 2})["guarded"]
    assert (first.endswith("no way"), second) == (True, 2)


def test_an_error_that_is_not_caught_fails_the_run(way):
    """With the very exception; resumed, it asks again."""
    run = way.run(both)
    with pytest.raises(ValueError, match="no way") as raised:
        way.resume(both, run, error=ValueError("no way"))
    again = way.resume(both, type(run).of(raised.value))
    assert again.reason == "waiting for 'first'"


def test_with_several_open_questions_the_key_is_needed(way):
    """Another key than an open one is an error; so is anything but an exception."""
    flow = parallel(action(lambda ctx: ctx.wait_for("x"), name="x"), action(lambda ctx: ctx.wait_for("y"), name="y"))
    run = way.run(flow)
    with pytest.raises(DefinitionError, match=r"waits for 'x', 'y': write error=\{key: exception\}"):
        way.resume(flow, run, error=ValueError())
    with pytest.raises(DefinitionError, match="does not wait for 'z'"):
        way.resume(flow, run, error={"z": ValueError()})
    with pytest.raises(DefinitionError, match="error= is an exception"):
        way.resume(flow, run, error={"x": "no"})
    with pytest.raises(LookupError, match="gone"):
        way.resume(flow, run, error={"y": LookupError("gone")})


def test_error_without_a_question_is_an_error():
    """A run that failed asks nothing."""
    failing = action(lambda: 1 / 0, name="failing")
    with pytest.raises(DefinitionError, match="waits for nothing"):
        failing.resume(failing.run(check=False), error=ValueError())


# Retries, inserted stages, templates, atomic stages, processes.


def test_a_retry_keeps_the_answer(way):
    """Of an action and of a stage: nobody is asked twice because something else has failed."""

    @action(use=[retry(on=ValueError, wait=0)])
    def asks(ctx: Context):
        first = ctx.wait_for("a")
        CALLS.append("asks")
        second = ctx.wait_for("b")
        if CALLS.count("asks") < 5:
            raise ValueError
        return [first, second]

    @action
    def fails():
        CALLS.append("fails")
        if CALLS.count("fails") < 2:
            raise ValueError

    flow = Stage("s", [asks, fails], use=[retry(on=ValueError, wait=0)])
    run = way.resume(flow, way.run(flow), {"a": 1})
    run = way.resume(flow, run, {"b": 2})
    assert (run["asks"], run.stages[0].attempts, "a" in run.store, "b" in run.store) == ([1, 2], 3, False, False)


def test_a_refusal_is_not_kept_for_the_next_attempt(way):
    """Nor is a timeout: the question is asked again."""

    @action(use=[retry(on=ValueError, wait=0)])
    def asks(ctx: Context):
        return ctx.wait_for("a")

    run = way.resume(asks, way.run(asks), error=ValueError())
    assert (run.status, run.reason) == ("suspended", "waiting for 'a'")
    assert way.resume(asks, run, {"a": 1})["asks"] == 1


def test_an_inserted_stage_asks(way):
    """And its local results are there when it goes on."""

    run = way.run(forms)
    run = way.resume(forms, run, {"form.name": "Ada"})
    assert run.reason == "waiting for 'form.age'"
    assert dict(way.resume(forms, run, {"form.age": "36"}).store) == {"filled": ["name?Ada", "age?36"]}


def test_an_atomic_stage_begins_anew_and_keeps_its_answers(way, clock):
    """Those of all its actions, and the time that the last one has."""

    @action
    def one(ctx: Context):
        CALLS.append("one")
        return ctx.wait_for("a")

    @action
    def two(ctx: Context):
        return ctx.wait_for("b", timeout=100, default="none")

    flow = Stage("s", [one, two], use=[atomic])
    run = way.resume(flow, way.run(flow), {"a": 1})
    due = clock.now + 100
    assert (run.reason, run.due) == ("waiting for 'b'", due)
    clock.now += 60
    run = way.resume(flow, run)
    assert (run.reason, run.due) == ("waiting for 'b'", due)
    clock.now += 60
    assert dict(way.resume(flow, run).store) == {"one": 1, "two": "none"}


def test_a_failure_after_the_answer_does_not_lose_it(way):
    """The run is resumed without it, and the action has it."""

    @action
    def asks(ctx: Context):
        answer = ctx.wait_for("a")
        CALLS.append(answer)
        if len(CALLS) < 3:
            raise ValueError
        return answer

    run = way.resume(asks, way.run(asks), {"a": 1}, check=False)
    run = way.resume(asks, run, check=False)
    assert dict(way.resume(asks, run).store) == {"asks": 1}


def test_a_recovered_question(way):
    """A wait that times out may be recovered by the middleware of its action."""

    @action(use=[recover(on=WaitTimeout, outcome="recovered")])
    def asks(ctx: Context):
        return ctx.wait_for("a", timeout=0)

    assert way.run(asks)["asks"] == "recovered"


@action
def in_a_process(ctx: Context):
    """Asks two questions, elsewhere."""
    return [ctx.wait_for("first"), ctx.wait_for("second", type=int)]


def test_questions_of_another_process(tmp_path):
    """They travel back, and the answers there."""
    flow = parallel(in_a_process)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for options in ({"executor": pool}, {"executor": pool, "journal": str(tmp_path / "r.db")}):
            run = flow.run({"first": 0}, **options)
            assert run.reason == "waiting for 'second'"
            run = flow.resume(run, {"second": 2}, **options)
            assert dict(run.store) == {"in_a_process": [0, 2]}


@action
def asks_elsewhere(ctx: Context):
    """Asks for an input, for its own write, and in vain."""
    ctx.store["b"] = 2
    return [ctx.wait_for("a"), ctx.wait_for("b"), ctx.wait_for("c", timeout=0, default=3)]


class Elsewhere(Executor):
    """An executor that is not local: each call is pickled, performed here, and its result pickled again."""

    def submit(self, fn, /, *args, **kwargs):
        """Perform a call at once."""
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_an_input_that_was_consumed_elsewhere_is_gone_here(way):
    """A question of a detached context, and what it wrote itself, which stays."""

    flow, pool = parallel(asks_elsewhere, in_a_process), Elsewhere()
    run = way.run(flow, {"a": 1, "first": 1}, executor=pool)
    assert run.reason == "waiting for 'second'"
    run = way.resume(flow, run, {"second": 2}, executor=pool)
    assert dict(run.store) == {"asks_elsewhere": [1, 2, 3], "b": 2, "in_a_process": [1, 2]}


# Forks and changed flows.


def test_a_fork_asks_its_own_questions(journal):
    """Answers of steps that it has dropped are there for it, others can be given."""
    before = action(lambda: 1, name="before")
    flow = pipeline(before, both)
    flow.run(journal=journal, run_id="r")
    flow.resume("r", {"first": True}, journal=journal)
    flow.resume("r", {"second": [1]}, journal=journal)
    fork = flow.resume("r", {"second": [2]}, from_stage="both", journal=journal)
    assert dict(fork.store) == {"before": 1, "both": [True, [2]]}


def test_a_question_is_asked_again_where_the_flow_has_changed(journal):
    """Its answer is not lost: it is an input of the flow as it is now."""
    flow = pipeline(action(lambda: 1, name="before"), both, name="p")
    flow.run(journal=journal, run_id="r")
    changed = pipeline(action(lambda: 1, name="new"), action(lambda: 1, name="before"), both, name="p")
    run = changed.resume("r", {"first": True}, journal=journal, on_change="ignore")
    assert run.reason == "waiting for 'second'"
    assert changed.resume("r", {"second": []}, journal=journal)["both"] == [True, []]


# Views.


def test_what_a_run_asks_for_is_in_its_info(journal, clock):
    """With what it is about, as far as JSON knows it; `due` is its deadline."""

    @action
    def asks(ctx: Context):
        ctx.wait_for("ok", about={"total": 120, "items": ["desk"]}, type=bool, timeout=60, default=False)

    lock = threading.Lock()

    @action
    def odd(ctx: Context):
        ctx.wait_for("odd", about=lock)

    parallel(asks, odd).run(journal=journal, run_id="r")
    [info] = durable.runs(journal)
    ok, other = info.questions
    assert (ok.key, ok.about, ok.type, ok.deadline) == ("ok", {"total": 120, "items": ["desk"]}, "bool", clock.now + 60)
    assert (other.key, other.about, other.type, other.deadline) == ("odd", str(lock), None, None)
    assert (info.due, info.answered) == (clock.now + 60, False)
    read = durable.read(journal, "r")
    assert ([wait.key for wait in read.waits], read.due, read.reason) == (["ok", "odd"], info.due, info.reason)


def test_a_plain_suspend_asks_nothing_and_can_be_answered(journal):
    """The answer is an input of the resume."""

    @action
    def asks(ctx: Context):
        if "x" not in ctx.store:
            raise Suspend("no x")

    asks.run(journal=journal, run_id="r")
    [info] = durable.runs(journal)
    assert (info.questions, info.due) == ((), None)
    durable.answer(journal, "r", {"x": 1})
    assert len(durable.due(journal)) == 1
    assert asks.resume("r", journal=journal).status == "completed"


# -- what counts as given


@pytest.mark.parametrize("durable", [False, True], ids=["in memory", "in a journal"])
@pytest.mark.parametrize("writer", ["action", "ctx", "data", "group", "restored"])
def test_a_value_that_a_step_wrote_stays_although_an_input_was_the_same_object(run, tmp_path, writer, durable):
    """Small numbers are one object wherever they come from: who wrote it last decides."""

    @action(returns="k")
    def writes() -> int:
        return 1

    @action(name="ctx")
    def by_ctx(ctx: Context) -> None:
        ctx.store["k"] = 1

    @action
    def asks(ctx: Context) -> int:
        if writer == "restored" and "go" not in ctx.store:
            raise Suspend("later")
        return ctx.wait_for("k")

    first = {"action": writes, "ctx": by_ctx, "data": Stage("s", data={"k": 1}), "restored": writes}
    flow = first.get(writer, parallel(writes, Stage("other"))) >> asks
    options = {"journal": tmp_path / "runs.db", "run_id": "r"} if durable else {}
    found = run(flow, {"k": 1}, **options)
    if writer == "restored":
        found = (
            flow.resume("r", {"go": True}, journal=tmp_path / "runs.db")
            if durable
            else flow.resume(found, {"go": True})
        )
    assert (found["asks"], found.store.get("k")) == (1, 1)


def test_an_input_is_given_again_when_an_attempt_that_overwrote_it_is_dropped(run):
    """The next attempt finds it as it was."""
    attempts = []

    @action(name="writes")
    def writes(ctx: Context) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            ctx.store["k"] = 2

    @action
    def fails() -> None:
        if len(attempts) == 1:
            raise ValueError

    @action
    def asks(ctx: Context) -> int:
        return ctx.wait_for("k")

    found = run(Stage("s", [writes, fails, asks], use=[retry(on=ValueError, wait=0)]), {"k": 1})
    assert (found["asks"], "k" in found.store) == (1, False)


def test_an_answer_after_a_write_is_given(run):
    """The latest one who wrote counts, and that is whoever answered."""

    @action(returns="k")
    def writes() -> int:
        return 1

    @action
    def pauses(ctx: Context) -> None:
        if "go" not in ctx.store:
            raise Suspend("later")

    @action
    def asks(ctx: Context) -> int:
        return ctx.wait_for("k")

    flow = writes >> pauses >> asks
    found = flow.resume(run(flow), {"go": True, "k": 5})
    assert (found["asks"], "k" in found.store) == (5, False)


# Late answers.


@action
def approved(ctx: Context):
    return ctx.wait_for("approved", type=bool)


@action
def receipt(ctx: Context):
    return ctx.wait_for("receipt")


def test_a_second_answer_to_a_question_is_refused_once_the_first_is_used(journal):
    """It would replace what came of the first, unchecked; until a resume has used the first, the last one counts."""
    flow = approved >> receipt
    flow.run(journal=journal, run_id="r")
    durable.answer(journal, "r", {"approved": False})
    durable.answer(journal, "r", {"approved": True})
    flow.resume("r", journal=journal)
    with pytest.raises(JournalError, match="used an answer to 'approved' already, and waits for 'receipt' now"):
        durable.answer(journal, "r", {"receipt": 7, "approved": "no way"})
    assert not durable.runs(journal)[0].answered
    durable.answer(journal, "r", {"receipt": 7, "remark": "an input"})
    assert dict(flow.resume("r", journal=journal).store) == {"approved": True, "receipt": 7, "remark": "an input"}


def test_an_input_in_advance_is_an_answer_that_was_used(journal):
    """As one that was given later."""
    flow = approved >> receipt
    flow.run({"approved": True}, journal=journal, run_id="r")
    with pytest.raises(JournalError, match="used an answer to 'approved' already"):
        durable.answer(journal, "r", {"approved": False})


def test_a_loop_that_asks_again_is_answered_again(journal):
    """Its key has been used, and is asked for now."""

    @action
    def twice(ctx: Context):
        return [ctx.wait_for("n"), ctx.wait_for("n")]

    twice.run(journal=journal, run_id="r")
    for number in (1, 2):
        durable.answer(journal, "r", {"n": number})
        run = twice.resume("r", journal=journal)
    assert run["twice"] == [1, 2]


def test_an_input_for_a_used_key_is_warned_of(way, caplog):
    """A resume may replace what a step has written, but not silently."""
    flow = approved >> receipt
    run = way.run(flow)
    run = way.resume(flow, run, {"approved": True})
    assert not caplog.records
    way.resume(flow, run, {"approved": False, "receipt": 1})
    assert "has used an answer to 'approved' already" in caplog.text


@pytest.mark.parametrize("wrong", ["bool", 3, (int, str), [int], len, "list[int]", list | ForwardRef("x")])
def test_a_type_that_is_not_one_is_refused_at_once(wrong):
    """For keys and questions alike; the name of a type, as a string, is not one."""
    with pytest.raises(DefinitionError, match="is a type, such as int"):
        Key("n", wrong)
    asks = action(lambda ctx: ctx.wait_for("n", type=wrong), name="asks")
    with pytest.raises(DefinitionError, match="is a type, such as int"):
        asks.run()


@pytest.mark.parametrize(
    "right", [None, Any, list, list[int], int | None, Callable, Callable[[int], str], TypeVar("T"), Literal[1]]
)
def test_forms_of_types_are_taken(right):
    """Classes, generic types, unions and the forms of `typing`."""
    assert Key("n", right).type == right


class Color(Enum):
    RED = 1


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        (Literal["s", "l"], "Literal['s', 'l']"),
        (list[Literal[1]], "list[Literal[1]]"),
        (int | None, "int | None"),
        (dict[str, list[int]], "dict[str, list[int]]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Color, "Color"),
        (Literal[Color.RED], "Literal[Color.RED]"),
    ],
)
def test_the_type_of_a_question_is_written_as_in_the_source(wanted, name):
    """As that of an input is."""
    assert type_name(wanted) == name
    run = action(lambda ctx: ctx.wait_for("n", type=wanted), name="asks").run()
    assert [wait.type for wait in run.waits] == [name]


def test_a_wrong_value_has_the_article_of_its_type():
    """ "an int", "a list"."""
    with pytest.raises(StoreTypeError, match="but its value is an int: 3"):
        Key("n", str).check(3)
    with pytest.raises(StoreTypeError, match="but its value is a list: "):
        Key("n", str).check([])


@pytest.mark.parametrize(
    "use",
    [
        lambda j, r: durable.answer(j, r, {"a": 1}),
        durable.cancel,
        durable.read,
        durable.delete,
        lambda j, r: approved.resume(r, journal=j),
    ],
)
def test_a_run_is_named_by_its_id(journal, use):
    """Not by a run, a number, or None."""
    approved.run(journal=journal, run_id="r")
    [info] = durable.runs(journal)
    with pytest.raises(DefinitionError, match=r"named by its id, a string, not by the RunInfo .*: write its .id"):
        use(journal, info)
    with pytest.raises(DefinitionError, match="a string, not by the NoneType None"):
        use(journal, None)


def test_a_time_in_milliseconds_is_refused(journal):
    """It would be long after the year 9999."""
    sleeps = action(lambda ctx: ctx.sleep_until(1_900_000_000_000_000), name="sleeps")
    with pytest.raises(DefinitionError, match="are these milliseconds"):
        sleeps.run(journal=journal)
