"""Attempts are counted over interruptions: a retry that is killed or suspended continues where it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowdeco import Context, Stage, action, durable, parallel, pipeline, stage
from flowdeco.durable import MemoryJournal, SqliteJournal
from flowdeco.middleware import retry

CALLS, SEEN = [], []
PLAN = {}  # what the action does at each call: raise, or return


@pytest.fixture(autouse=True)
def calls():
    """None yet."""
    CALLS.clear(), SEEN.clear(), PLAN.clear()


def spies(call):
    SEEN.append(call.attempt)
    yield


@action(name="shaky")
def shaky(ctx: Context):
    CALLS.append(1)
    done = PLAN.get(len(CALLS))
    if done == "wait":
        ctx.wait_for("answer")
    elif done is not None:
        raise done()


def flows(where, attempts=3):
    layers = [retry(on=OSError, attempts=attempts, wait=0)]
    if where == "action":
        return Stage("s", [shaky.with_options(use=[*layers, spies])])
    if where == "stage":
        return Stage("s", [shaky], use=[*layers, spies])
    if where == "pipeline":
        return pipeline(Stage("before"), Stage("s", [shaky]), use=[*layers, spies])
    return parallel(pipeline(Stage("s", [shaky]), name="p", use=[*layers, spies]), Stage("other"))


@pytest.mark.parametrize("where", ["action", "stage", "pipeline", "group"])
@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_attempts_are_counted_over_a_suspension(where, codec, tmp_path):
    PLAN.update({1: OSError, 2: "wait", 3: OSError})
    flow, journal = flows(where), SqliteJournal(tmp_path / "runs.db", codec=codec)
    assert flow.run(journal=journal, run_id="r").status == "suspended"
    run = flow.resume("r", {"answer": 1}, journal=journal)
    assert (run.status, SEEN) == ("completed", [1, 2, 2, 3])
    records = [*run.stages, *(each for record in run.stages for each in record.actions)]
    assert max(record.attempts for record in records) == (1 if where in ("pipeline", "group") else 3)


@pytest.mark.parametrize("where", ["action", "stage", "pipeline", "group"])
def test_the_last_attempt_is_the_last_one_after_a_suspension(where):
    PLAN.update({1: OSError, 2: "wait", 3: OSError, 4: OSError})
    flow, journal = flows(where), MemoryJournal()
    flow.run(journal=journal, run_id="r")
    with pytest.raises(OSError):
        flow.resume("r", {"answer": 1}, journal=journal)
    assert (len(CALLS), SEEN) == (4, [1, 2, 2, 3])
    PLAN.clear()
    SEEN.clear()
    flow.resume("r", journal=journal)
    assert SEEN == [1]  # a resumed failure begins anew


@pytest.mark.parametrize("where", ["action", "stage", "pipeline"])
def test_attempts_are_counted_over_a_suspension_in_memory(where):
    PLAN.update({1: OSError, 2: "wait", 3: OSError})
    flow = flows(where)
    run = flow.run()
    assert flow.resume(run, {"answer": 1}).status == "completed"
    assert SEEN == [1, 2, 2, 3]


def test_each_layer_counts_its_own_attempts():
    PLAN.update({1: OSError, 2: ValueError, 3: OSError, 4: "wait", 5: OSError, 6: ValueError})
    layers = [retry(on=ValueError, attempts=3, wait=0), retry(on=OSError, attempts=3, wait=0), spies]
    flow, journal = Stage("s", [shaky], use=layers), MemoryJournal()
    flow.run(journal=journal, run_id="r")
    assert flow.resume("r", {"answer": 1}, journal=journal).status == "completed"
    # One ValueError before, and one after; the inner layer begins anew with each attempt of the outer one.
    assert SEEN == [1, 2, 3, 4, 4, 5, 6]


SCRIPT = """
import os, sys
import test_attempts as t
t.PLAN.update({1: OSError, 2: lambda: os._exit(9)} if sys.argv[2] == "run" else {1: OSError})
flow = t.flows(sys.argv[1])
if sys.argv[2] == "run":
    flow.run(journal="runs.db", run_id="r")
else:
    print(flow.resume("r", journal="runs.db").status, t.SEEN)
"""


def legs_of(script, where, folder):
    """Run a script, which is killed, and then resume its run; return the exit code of the one, the output of the other."""
    here = Path(__file__).parent
    first, second = (
        subprocess.run(
            [sys.executable, "-c", script, where, leg],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
            capture_output=True,
            text=True,
        )
        for leg in ("run", "resume")
    )
    return [first.returncode, second.stdout]


@pytest.mark.parametrize("where", ["action", "stage", "pipeline", "group"])
def test_attempts_are_counted_over_a_kill(where, tmp_path):
    """Killed in its second attempt, a step begins again with the second one."""
    assert legs_of(SCRIPT, where, tmp_path) == [9, "completed [2, 3]\n"]


KILLED_BETWEEN = """
import os, sys
import test_attempts as t
from flowdeco.durable import SqliteJournal

class Journal(SqliteJournal):
    drops = 0

    def drop(self, *args):
        super().drop(*args)
        self.drops += 1
        if self.drops == 2:
            os._exit(9)

t.PLAN.update(dict.fromkeys(range(1, 9), OSError))
flow = t.flows(sys.argv[1])
if sys.argv[2] == "run":
    flow.run(journal=Journal("runs.db"), run_id="r")
else:
    run = flow.resume("r", journal="runs.db", check=False)
    print(run.status, t.SEEN)
"""


@pytest.mark.parametrize("where", ["stage", "pipeline", "group"])
def test_attempts_are_counted_over_a_kill_between_two_of_them(where, tmp_path):
    """The failed one is gone from the journal, and the next one not yet in it: it has the count of that before."""
    assert legs_of(KILLED_BETWEEN, where, tmp_path) == [9, "failed [2, 3]\n"]


class Plain:
    """A codec that knows no exceptions."""

    name = "plain"

    def encode(self, value, what):
        return json.dumps(value).encode()

    def decode(self, payload):
        return json.loads(payload)


@pytest.mark.parametrize("where", ["action", "stage", "pipeline", "group"])
def test_a_codec_need_not_know_the_errors_of_attempts(where):
    PLAN.update({1: OSError, 2: OSError})
    run = flows(where).run(journal=MemoryJournal(codec=Plain()))
    assert (run.status, SEEN) == ("completed", [1, 2, 3])


# -- the errors of attempts at something around a step


def within(where, *use):
    """The shaky action in a stage, and around it something that is tried again."""
    stage, use = Stage("s", [shaky]), [*use, retry(on=OSError, wait=0)]
    return {
        "stage": lambda: Stage("before") >> stage.with_options(use=use),
        "pipeline": lambda: pipeline(Stage("before"), stage, name="p", use=use),
        "group in a pipeline": lambda: pipeline(parallel(Stage("before"), stage), name="p", use=use),
        "pipeline in a branch": lambda: parallel(Stage("before"), pipeline(stage, name="p", use=use)),
        "inner and outer pipeline": lambda: pipeline(
            Stage("before"),
            pipeline(stage, name="inner", use=[retry(on=OSError, attempts=2, wait=0)]),
            name="p",
            use=use,
        ),
        "unnamed pipeline of all": lambda: pipeline(Stage("before"), stage, use=use),
    }[where]()


WITHIN = [
    "stage", "pipeline", "group in a pipeline", "pipeline in a branch", "inner and outer pipeline",
    "unnamed pipeline of all",
]  # fmt: skip


def failures(run):
    """The errors of earlier attempts at the stage, and at its action; no other step has any."""
    stage = next(record for record in run.stages if record.name == "s")
    assert all(not record.failures for record in run.stages if record is not stage)
    assert not stage.dropped
    return [str(each) for each in stage.failures], [str(each) for each in stage.actions[0].failures]


def numbered():
    return OSError(f"attempt {len(CALLS)}")


@pytest.mark.parametrize("where", WITHIN)
@pytest.mark.parametrize("codec", [None, "pickle", "json"])
def test_a_step_has_the_errors_of_attempts_at_what_is_around_it(where, codec, tmp_path):
    """In memory, read from the journal, and restored, whatever was tried again."""
    PLAN.update({1: numbered, 2: numbered})
    journal = codec and SqliteJournal(tmp_path / "runs.db", codec=codec)
    flow = within(where) >> Stage("after")
    run = flow.run(journal=journal, run_id="r")
    runs = [run] if journal is None else [run, durable.read(journal, "r"), flow.resume("r", journal=journal)]
    for each in runs:
        assert failures(each) == (["attempt 1", "attempt 2"],) * 2
        stage = next(record for record in each.stages if record.name == "s")
        assert (str(stage.status), stage.attempts) == ("completed", 3 if where == "stage" else 1)


@pytest.mark.parametrize("where", WITHIN)
@pytest.mark.parametrize("codec", [None, "pickle", "json"])
def test_the_errors_of_earlier_attempts_outlast_a_suspension(where, codec, tmp_path):
    """Those of attempts before it and after it."""
    PLAN.update({1: numbered, 2: "wait", 3: numbered})
    journal = codec and SqliteJournal(tmp_path / "runs.db", codec=codec)
    flow = within(where) >> Stage("after")
    run = flow.run(journal=journal, run_id="r")
    assert (run.status, failures(run)) == ("suspended", (["attempt 1"],) * 2)
    if journal is not None:
        assert failures(durable.read(journal, "r")) == (["attempt 1"],) * 2
    run = flow.resume(run if journal is None else "r", {"answer": 1}, journal=journal)
    assert failures(run) == (["attempt 1", "attempt 3"],) * 2


def test_the_failure_of_the_last_attempt_comes_after_those_before():
    """It is the error of the record, and they are its failures."""
    PLAN.update(dict.fromkeys(range(1, 9), numbered))
    run = within("pipeline").run(check=False)
    assert (run.status, failures(run)) == ("failed", (["attempt 1", "attempt 2"],) * 2)
    assert str(run.stages[-1].error) == "attempt 3"


def test_a_retry_of_the_run_counts_as_well():
    PLAN.update({1: numbered})
    run = Stage("s", [shaky]).run(use=[retry(on=OSError, wait=0)])
    assert failures(run) == (["attempt 1"],) * 2


def test_an_error_belongs_to_the_turn_of_a_loop_that_failed():
    """Stages of one name are told apart by their place."""
    PLAN.update({3: numbered})

    @stage
    def turn():
        action(shaky)

        @action
        def repeat(ctx: Context):
            ctx.store["turns"] = turns = ctx.store.get("turns", 0) + 1
            return [turn] if turns < 4 else None

    run = pipeline(turn, name="p", use=[retry(on=OSError, wait=0)]).run()
    assert [[str(each) for each in record.failures] for record in run.stages] == [[], [], ["attempt 3"], []]


def test_a_stage_without_another_attempt_leaves_its_error_to_the_pipeline():
    """It has no record; nor is its error given to another stage in its place."""
    other = Stage("other", [shaky])

    @action
    def choose():
        return Stage("s", [shaky]) if not CALLS else other

    PLAN.update({1: numbered})
    run = pipeline(choose, name="p", use=[retry(on=OSError, wait=0)]).run()
    assert [(record.name, record.failures) for record in run.stages] == [("choose", ()), ("other", ())]
    assert [str(error) for error in run.pipelines[0].failures] == ["attempt 1"]
