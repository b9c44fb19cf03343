"""Attempts are counted over interruptions: a retry that is killed or suspended continues where it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowdeco import Context, Stage, action, parallel, pipeline
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


@pytest.mark.parametrize("where", ["action", "stage", "pipeline", "group"])
def test_attempts_are_counted_over_a_kill(where, tmp_path):
    """Killed in its second attempt, a step begins again with the second one."""
    here = Path(__file__).parent

    def script(leg):
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, where, leg],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
            capture_output=True,
            text=True,
        )

    assert script("run").returncode == 9
    assert script("resume").stdout == "completed [2, 3]\n"


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
