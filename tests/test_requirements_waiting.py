"""Requirements of durable waits and callbacks, one by one, by their ids.

They are those of the conformance suite of the AWS durable execution SDKs (`durable-requirements`, Apache-2.0): the families
wait, wait_for_condition, callback and wait_for_callback. `docs/requirements.md` lists the ones that are left out on purpose.
A callback is a question here, its name a key; a heartbeat is a new deadline.
"""

import json
import time

import pytest

from flowdeco import Context, Stage, action, durable, pipeline, stage
from flowdeco.durable import SqliteJournal
from flowdeco.errors import WaitTimeout
from flowdeco.middleware import retry

CALLS = []


class Clock:
    """The wall clock."""

    now = 2_000_000_000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """It stands still until a test advances it."""
    Clock.now = 2_000_000_000.0
    CALLS.clear()
    monkeypatch.setattr(time, "time", lambda: Clock.now)
    return Clock


@pytest.fixture
def journal(tmp_path):
    """A journal in JSON."""
    return SqliteJournal(tmp_path / "r.db", codec="json")


class Execution:
    """A run that is resumed as `wake` does: when it is due or answered."""

    def __init__(self, flow, journal, inputs=None):
        self.flow, self.journal = flow, journal
        self.run = flow.run(inputs, journal=journal, run_id="r", suspend_after=0, check=False)
        self.legs = 1

    def wake(self):
        """Resume it if it is due, as often as it is."""
        while durable.due(self.journal):
            self.run = self.flow.resume("r", journal=self.journal, suspend_after=0, check=False)
            self.legs += 1
        return self.run

    def after(self, seconds):
        """Let time pass, then wake it."""
        Clock.now += seconds
        return self.wake()

    def success(self, key, value=None):
        """Answer a question, then wake it."""
        durable.answer(self.journal, "r", {key: value})
        return self.wake()

    def failure(self, key, error):
        """Answer it with a failure."""
        self.run = self.flow.resume("r", error={key: error}, journal=self.journal, suspend_after=0, check=False)
        self.legs += 1
        return self.wake()


class RejectedError(Exception):
    """The failure that the other system reports."""


def waits(*seconds):
    """An action that sleeps so often."""

    @action
    def sleeps(ctx: Context):
        for each in seconds:
            ctx.sleep(each)
        return {"completedWaits": len(seconds)}

    return sleeps


# 2, wait


@pytest.mark.parametrize(("seconds", "id"), [(2, "2-1"), (60, "2-4"), (3600, "2-5")])
def test_wait(journal, seconds, id):
    """A sleep of seconds, minutes, an hour suspends, and has its due time: 2-1, 2-4, 2-5."""
    execution = Execution(waits(seconds), journal)
    assert (execution.run.status, execution.run.due) == ("suspended", Clock.now + seconds)
    assert execution.after(seconds).status == "completed"
    assert execution.legs == 2


def test_wait_with_name(journal):
    """A sleep is named by its action: 2-2."""
    flow = waits(2).with_options(name="custom_wait_name")
    execution = Execution(flow, journal)
    assert [row.action for row in durable.history(journal, "r") if row.kind == "action"] == ["custom_wait_name"]
    assert execution.after(2).status == "completed"


def test_two_waits(journal):
    """One after the other, three legs: 2-3."""
    execution = Execution(waits(2, 2), journal)
    execution.after(2)
    assert execution.run.due == Clock.now + 2
    assert (execution.after(2)["sleeps"], execution.legs) == ({"completedWaits": 2}, 3)


# 6, wait_for_condition: a stage that inserts itself


@stage
def poll(state: object, until: object, turn: int, delays: str):
    """Change the state, and look again later until it is as wanted."""

    @action(returns="state")
    def check():
        CALLS.append(state)
        return CHECKS[until](state)

    @action
    def again(ctx: Context):
        if DONE[until](ctx.store.get("state")):
            return []
        if delays == "limited" and turn == 3:
            raise RuntimeError("max attempts exceeded")
        ctx.sleep(2)
        return [poll(ctx.store["state"], until, turn + 1, delays)]


CHECKS = {
    2: lambda state: state + 1, 3: lambda state: state + 1, 4: lambda state: state + 1, 8: lambda state: state + 1,
    5: lambda state: state,
    "never": lambda state: state + 1,
    "DONE": lambda state: {"status": "DONE" if state["attempts"] else "PENDING", "attempts": state["attempts"] + 1},
    "none": lambda state: None,
    "xx": lambda state: state + "x",
}  # fmt: skip
DONE = {
    **{number: lambda state, number=number: state >= number for number in (2, 3, 4, 5, 8)},
    "never": lambda state: False,
    "DONE": lambda state: state["status"] == "DONE",
    "none": lambda state: True,
    "xx": lambda state: len(state) == 2,
}


@pytest.mark.parametrize(
    ("id", "state", "until", "result", "legs"),
    [
        ("6-1", 0, 3, 3, 3),
        ("6-2", 5, 5, 5, 1),
        ("6-4", 5, 8, 8, 3),
        ("6-5", 0, 3, 3, 3),
        ("6-9", {"status": "PENDING", "attempts": 0}, "DONE", {"status": "DONE", "attempts": 2}, 2),
        ("6-10", 0, "none", None, 1),
        ("6-11", "", "xx", "xx", 2),
    ],
)
def test_wait_for_condition(journal, id, state, until, result, legs):
    """Each look is a turn of its own, two seconds apart: 6-1, 6-2, 6-4, 6-5, 6-9, 6-10, 6-11."""
    execution = Execution(pipeline(poll(state, until, 1, "fixed")), journal)
    for _ in range(legs - 1):
        assert execution.run.due == Clock.now + 2
        execution.after(2)
    assert (execution.run.status, execution.run.store.get("state"), execution.legs) == ("completed", result, legs)
    assert len(CALLS) == legs


def test_wait_for_condition_with_name(journal):
    """The name of the stage: 6-3."""
    execution = Execution(pipeline(poll(0, 2, 1, "fixed").with_options(name="poll-status")), journal)
    execution.after(2)
    assert (execution.run["state"], execution.run.stages[0].name) == (2, "poll-status")


def test_wait_for_condition_gives_up(journal):
    """After three looks: 6-6."""
    execution = Execution(pipeline(poll(0, "never", 1, "limited")), journal)
    execution.after(2)
    execution.after(2)
    assert (execution.run.status, len(CALLS)) == ("failed", 3)


@pytest.mark.parametrize(("id", "status"), [("6-7", "failed"), ("6-8", "completed")])
def test_wait_for_condition_that_raises(journal, id, status):
    """Not caught, it fails the run; caught, it does not: 6-7, 6-8."""

    @action
    def check():
        try:
            raise ValueError("check failed")
        except ValueError:
            if id == "6-7":
                raise
            return "recovered"

    run = Execution(check, journal).run
    assert (run.status, run.store.get("check")) == (status, "recovered" if id == "6-8" else None)


def test_wait_for_condition_then_a_step(journal):
    """Its state is read by the next action, and it does not run again: 6-12."""

    @action
    def times_ten(state):
        return state * 10

    execution = Execution(poll(0, 2, 1, "fixed") >> times_ten, journal)
    assert (execution.after(2)["times_ten"], CALLS) == (20, [0, 1])


def test_two_wait_for_conditions(journal):
    """The result of the first one is the state of the second: 6-13."""

    @action
    def second(state: int):
        return [poll(state, 4, 1, "fixed")]

    execution = Execution(poll(0, 2, 1, "fixed") >> second, journal)
    execution.after(2)
    execution.after(2)
    assert (execution.run["state"], CALLS) == (4, [0, 1, 2, 3])


# 4, callback: a question


def asks(key, **options):
    """An action that asks one question."""

    @action
    def asking(ctx: Context):
        return ctx.wait_for(key, **options)

    return asking


@pytest.mark.parametrize(("key", "id"), [("callback", "4-1"), ("approval", "4-2")])
def test_callback(journal, key, id):
    """It is answered from outside: 4-1, 4-2."""
    execution = Execution(asks(key), journal)
    assert execution.run.status == "suspended"
    assert execution.success(key, "payload")["asking"] == "payload"
    assert execution.legs == 2


def test_callback_timeout(journal):
    """Nobody answers: 4-3."""
    execution = Execution(asks("cb", timeout=5), journal)
    assert execution.after(4).status == "suspended"
    run = execution.after(1)
    assert (run.status, type(run.error)) == ("failed", WaitTimeout)


def heartbeats(ctx, seconds):
    """Wait for an answer as long as the other side is alive: each sign of life is a question of the same key."""
    while (answer := ctx.wait_for("cb", timeout=seconds)) == "alive":
        pass
    return answer


def test_callback_heartbeat(journal):
    """No sign of life within the time fails the run; each one gives it more: 4-4, 4-5, 7-12, 7-13."""
    flow = action(lambda ctx: heartbeats(ctx, 10), name="asking")
    assert Execution(flow, journal).after(10).status == "failed"
    durable.delete(journal, "r")
    execution = Execution(flow, journal)
    Clock.now += 8
    execution.success("cb", "alive")
    Clock.now += 8
    assert execution.success("cb", "payload")["asking"] == "payload"


def test_callback_failure(journal):
    """The exception of the other side is raised at the wait: 4-6."""
    execution = Execution(asks("cb"), journal)
    run = execution.failure("cb", RejectedError("not approved"))
    assert (run.status, "not approved" in str(run.error)) == ("failed", True)


@pytest.mark.parametrize(("id", "ends"), [("4-7", "failure"), ("4-8", "timeout")])
def test_callback_with_a_step_before(journal, id, ends):
    """The step is done once: 4-7, 4-8."""
    step = action(lambda: CALLS.append("step"), name="step")
    execution = Execution(step >> asks("cb", timeout=5), journal)
    run = execution.failure("cb", RejectedError("not approved")) if ends == "failure" else execution.after(5)
    assert (run.status, CALLS) == ("failed", ["step"])


@pytest.mark.parametrize(("id", "ends"), [("4-9", "success"), ("4-10", "failure"), ("4-11", "timeout")])
def test_callback_that_ends_during_a_wait(journal, id, ends):
    """A question is asked where it is waited for; an answer may come before, and the failure with it: 4-9 to 4-11."""
    execution = Execution(waits(6) >> asks("cb", timeout=3), journal)
    if ends == "success":
        durable.answer(journal, "r", {"cb": "payload"})
    execution.after(6)
    if ends == "failure":
        execution.failure("cb", RejectedError("not approved"))
    execution.after(3)
    assert (execution.run.status, execution.run.store.get("asking")) == (
        ("completed", "payload") if ends == "success" else ("failed", None)
    )


def test_callback_then_a_wait(journal):
    """The answer outlives the suspension that follows it: 4-12."""

    @action
    def asking(ctx: Context):
        answer = ctx.wait_for("cb")
        ctx.sleep(2)
        return answer

    execution = Execution(asking, journal)
    execution.success("cb", "payload")
    assert (execution.after(2)["asking"], execution.legs) == ("payload", 3)


@pytest.mark.parametrize(("id", "ends"), [("4-13", "failure"), ("4-14", "timeout")])
def test_callback_failure_that_is_caught_then_a_wait(journal, id, ends):
    """It fails in the same way when the action runs again: 4-13, 4-14."""

    @action
    def asking(ctx: Context):
        try:
            message = ctx.wait_for("cb", timeout=3)
        except Exception as error:
            message = type(error).__name__
        ctx.sleep(2)
        return message

    execution = Execution(asking, journal)
    execution.failure("cb", RejectedError("not approved")) if ends == "failure" else execution.after(3)
    run = execution.after(2)
    assert run["asking"] == ("RejectedError" if ends == "failure" else "WaitTimeout")


def test_callback_with_a_conversion(journal):
    """An answer is a value, and what is made of it is the action's business: 4-15, 4-16, 7-11."""

    @action
    def asking(ctx: Context):
        received = json.loads(ctx.wait_for("cb", type=str))
        return {"id": received["id"], "doubled": received["count"] * 2}

    execution = Execution(asking, journal)
    assert execution.success("cb", '{"id": "x", "count": 42}')["asking"] == {"id": "x", "doubled": 84}
    durable.delete(journal, "r")
    execution = Execution(asks("cb", type=dict), journal)
    assert execution.success("cb", {"status": "approved"})["asking"]["status"] == "approved"


def two(first, second):
    """An action that waits for two answers."""

    @action
    def asking(ctx: Context):
        found = {first: ctx.wait_for(first), second: ctx.wait_for(second)}
        return [found["a"], found["b"]]

    return asking


@pytest.mark.parametrize(
    ("id", "asked", "answered"), [("4-17", "ab", "ab"), ("4-18", "ab", "ba"), ("4-19", "ba", "ba")]
)
def test_two_callbacks(journal, id, asked, answered):
    """In the order of asking, or answered before they are asked for: 4-17, 4-18, 4-19, 7-9."""
    execution = Execution(two(*asked), journal)
    for key in answered:
        execution.success(key, key.upper())
    assert execution.run["asking"] == ["A", "B"]


# 7, wait_for_callback: an action that submits, and one that asks


def submitting(key, ask=None, name="submit"):
    """The stage of a submission and its question."""

    @action(name=name)
    def submit(ctx: Context):
        CALLS.append(f"submit {key}")

    return Stage("submission", [submit, ask or asks(key)])


@pytest.mark.parametrize("id", ["7-1", "7-2", "7-3", "7-8"])
def test_wait_for_callback(journal, id):
    """It is submitted once; its names are those of stage and action; nested as you like: 7-1, 7-2, 7-3, 7-8."""
    flow = submitting("cb", name="approval" if id == "7-2" else "submit")
    if id == "7-8":
        flow = pipeline(flow, name="wrapper", tags=["child"])
    execution = Execution(flow, journal)
    assert (execution.success("cb", "payload")["asking"], CALLS) == ("payload", ["submit cb"])


@pytest.mark.parametrize(("id", "status"), [("7-4", "failed"), ("7-6", "completed")])
def test_wait_for_callback_failure(journal, id, status):
    """Not caught, it fails the run; caught, it does not: 7-4, 7-6."""

    @action
    def asking(ctx: Context):
        try:
            return ctx.wait_for("cb")
        except RejectedError:
            if id == "7-4":
                raise
            return "recovered"

    execution = Execution(submitting("cb", asking), journal)
    run = execution.failure("cb", RejectedError("not approved"))
    assert (run.status, run.store.get("asking")) == (status, "recovered" if id == "7-6" else None)


@pytest.mark.parametrize(("id", "status"), [("7-5", "failed"), ("7-14", "completed")])
def test_wait_for_callback_timeout(journal, id, status):
    """The same for the time to answer: 7-5, 7-14."""

    @action
    def asking(ctx: Context):
        try:
            return ctx.wait_for("cb", timeout=3)
        except WaitTimeout:
            if id == "7-5":
                raise
            return "timed-out-handled"

    run = Execution(submitting("cb", asking), journal).after(3)
    assert (run.status, run.store.get("asking")) == (status, "timed-out-handled" if id == "7-14" else None)


def test_wait_for_callback_submitter_fails(journal):
    """After two attempts, one second apart, nobody is asked: 7-7."""

    @action(use=[retry(on=ValueError, attempts=2, wait=1, jitter=False)])
    def submit():
        CALLS.append("submit")
        raise ValueError

    execution = Execution(Stage("submission", [submit, asks("cb")]), journal)
    run = execution.after(1)
    assert (run.status, CALLS, run.waits) == ("failed", ["submit"] * 2, ())


def test_two_wait_for_callbacks(journal):
    """One after the other: 7-9."""
    first = submitting("first").with_options(name="one")
    execution = Execution(first >> submitting("second").with_options(name="two"), journal)
    execution.success("first", 1)
    assert (execution.success("second", 2)["asking"], CALLS) == (2, ["submit first", "submit second"])


def test_wait_for_callback_after_a_wait_and_a_step(journal):
    """Nothing is done twice: 7-10."""
    step = action(lambda: CALLS.append("step"), name="step")
    execution = Execution(pipeline(waits(1), step, submitting("cb")), journal)
    execution.after(1)
    assert (execution.success("cb", "payload")["asking"], CALLS) == ("payload", ["step", "submit cb"])


def test_wait_for_callback_with_an_empty_answer(journal):
    """None is an answer: 7-15."""
    execution = Execution(submitting("cb"), journal)
    assert (execution.success("cb").status, "asking" in execution.run.store) == ("completed", False)
