"""`flowdeco replay`: one recorded step is called again, with its arguments and today's code, and compared."""

import builtins
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flowdeco import cli, durable

FLOWS = """
import asyncio
import itertools
import os
import random
from pathlib import Path
from flowdeco import Bail, Context, Stage, action, parallel, stage, stream
from flowdeco.middleware import atomic, cached, recover, retry

def note(text):
    with open("called.txt", "a") as file:
        file.write(text + "\\n")

def connected(call):
    note("open")
    try:
        yield {"db": {"users": 3, "orders": 5}}
    finally:
        note("close")

@stage
def copy(table: str) -> None:
    @action
    def rows(db) -> int:
        note(f"rows of {table}")
        return db[table] * FACTOR
    @action(collect="copied")
    async def store(rows: int, scale: int = 1) -> str:
        await asyncio.sleep(0)
        return f"{table}: {rows * scale}"

FACTOR = 1

@action
def discover(tables: list):
    return [copy(table) for table in tables]

@action
def publish(ctx: Context, copied: list = []) -> int:
    ctx.store["log"] = [*copied, "published"]
    return len(copied)

flow = (discover >> publish).with_options(use=[connected])

@action
def grow(items: list) -> None:
    items.append(len(items))

@action
def risky(items: list) -> int:
    note(f"risky {items}")
    if os.environ.get("BROKEN"):
        raise ConnectionError("the server is offline")
    return sum(items)

growing = grow >> grow >> risky >> grow
tolerant = grow >> risky.with_options(use=[recover(on=ConnectionError, outcome=-1)])
repeated = grow >> risky.with_options(use=[retry(on=ConnectionError, attempts=3, wait=0)])
around = (grow >> risky).with_options(use=[retry(on=ConnectionError, attempts=2, wait=0)])
whole = (grow >> risky >> grow).with_options(use=[atomic])
remembered = grow >> risky.with_options(use=[cached("cache")])

@action
def left(items: list) -> int:
    note("left")
    return len(items)

@action
def right(items: list) -> int:
    note("right")
    return -len(items)

@action
def both(left: int, right: int) -> int:
    return left + right

side = grow >> parallel(left, right) >> both >> parallel(risky, right, tolerate=1)

def numbers(count):
    for number in range(count):
        note(f"number {number}")
        yield one(number)

@stage
def one(number: int) -> None:
    @action(collect="squares")
    def square() -> int:
        return number * number

@action
def count(limit: int):
    return stream(numbers, limit)

streamed = count >> publish
grouped = parallel(stream(numbers, 3)) >> publish

@action
def chance() -> float:
    return random.random()

@action
def stop() -> None:
    raise Bail("enough")

@action
def ask(ctx: Context) -> str:
    return ctx.wait_for("answer")

@action
def after(note: str = "none") -> str:
    return note

asking = after >> ask >> after
stopping = stop >> chance

@action
def switch(ctx: Context) -> None:
    del ctx.store["items"]
    ctx.disable("grow")

switching = switch >> grow
continuing = (grow >> risky).with_options(use=[recover(on=ConnectionError)]) >> left
staged = Stage("both", [grow, risky])

@action
def die() -> None:
    os._exit(9)

dying = grow >> die

class Opaque:
    def __init__(self, value): self.value = value

@action
def opaque() -> Opaque:
    return Opaque([1])

@action
def lines():
    yield one(1)
    return 5

@action
def endless(ctx: Context, turn: int = 0):
    if turn < 3:
        ctx.store["turn"] = turn + 1
        return [endless]
"""


@pytest.fixture(autouse=True)
def _workdir(tmp_path, monkeypatch):
    """A directory with `flows.py` and a journal; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setenv("FLOWDECO_JOURNAL", "runs.db")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("BROKEN", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("flows.py").write_text(FLOWS)
    yield
    _forget()


def _forget():
    sys.modules.pop("flows", None)


@pytest.fixture
def flowdeco(capsys):
    """Run the command in this process; return exit code, output, and what it complained."""

    def run(*arguments):
        _forget()
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def recorded(flowdeco):
    """Record the run of a flow, and forget what it has called."""

    def record(name, *options):
        code, _, err = flowdeco("run", f"flows.py:{name}", "--run-id", "one", *options)
        Path("called.txt").unlink(missing_ok=True)
        return code, err

    return record


def called():
    path = Path("called.txt")
    return path.read_text().splitlines() if path.exists() else []


def change(before, after):
    """Change today's code."""
    text = Path("flows.py").read_text()
    assert before in text
    Path("flows.py").write_text(text.replace(before, after))


def everything():
    """All that the journal has of the run."""
    (info,) = durable.runs("runs.db")
    return info, durable.history("runs.db", info.id)


TABLES = ("-i", 'tables=["users", "orders"]')


def test_a_step_is_called_with_its_arguments_and_gives_the_same(flowdeco, recorded):
    """The steps before it are not called; middleware that supplied values is entered again, and left."""
    recorded("flow", *TABLES)
    code, out, err = flowdeco("replay", "one", "copy[orders]/rows")
    assert (code, err) == (0, "")
    assert called() == ["open", "rows of orders", "close"]
    assert "db        {'users': 3, 'orders': 5}" in out
    assert out.endswith("\nthe same result\n")


def test_todays_code_is_called(flowdeco, recorded):
    """A changed function, with the arguments of then: its result differs."""
    recorded("flow", *TABLES)
    change("FACTOR = 1", "FACTOR = 10")
    code, out, _ = flowdeco("replay", "one", "copy[orders]/rows")
    assert code == 1
    assert out.splitlines()[-1] == "different: result, the value of 'rows'"
    assert [line.split()[-1] for line in out.splitlines() if line.startswith(("recorded", "now"))] == ["5", "50"]
    assert flowdeco("replay", "one", "copy[orders]/store")[0] == 0, "it takes what was recorded"


def test_a_replay_writes_nothing(flowdeco, recorded):
    """The run is as it was, to the byte; nor does another run appear."""
    recorded("flow", *TABLES)
    before = everything()
    for step in ("discover/discover", "copy[users]/store", "publish/publish"):
        assert flowdeco("replay", "one", step)[0] == 0
    assert everything() == before


def test_local_results_bound_values_and_coroutines(flowdeco, recorded):
    """The result of an earlier action of the stage, the argument of its template; the action is awaited."""
    recorded("flow", *TABLES)
    code, out, _ = flowdeco("replay", "latest", "copy[users]/store")
    assert code == 0
    assert "rows      3" in out
    assert "'users: 3'" in out


def test_effects_of_a_context_are_compared(flowdeco, recorded):
    """Writes to the store as well as the result."""
    recorded("flow", *TABLES)
    assert flowdeco("replay", "one", "publish/publish")[0] == 0
    change('"published"]', '"printed"]')
    code, out, _ = flowdeco("replay", "one", "publish/publish")
    assert (code, out.splitlines()[-1]) == (1, "different: the value of 'log'")


def test_the_last_of_equal_steps_or_the_nth(flowdeco, recorded):
    """Numbered from 1, in the order in which they were recorded; a value changed in place is as it was then."""
    recorded("growing", "-i", "items=[]")
    seen = {}
    for nth in ("1", "2", "3", None):
        code, out, _ = flowdeco("replay", "one", "grow/grow", *(("--nth", nth) if nth else ()))
        assert code == 0
        seen[nth] = next(line.split(maxsplit=1)[1] for line in out.splitlines() if line.startswith("items"))
    assert seen == {"1": "[]", "2": "[0]", "3": "[0, 1]", None: "[0, 1]"}


@pytest.mark.parametrize("nth", ["0", "-1", "x"])
def test_nth_is_a_number_from_1(flowdeco, recorded, nth):
    """Anything else is a wrong usage."""
    recorded("growing", "-i", "items=[]")
    assert flowdeco("replay", "one", "grow/grow", f"--nth={nth}")[0] == 2


def test_there_are_not_so_many(flowdeco, recorded):
    """And how many there are."""
    recorded("growing", "-i", "items=[]")
    code, _, err = flowdeco("replay", "one", "grow/grow", "--nth", "4")
    assert (code, err) == (2, "flowdeco: error: --nth 4: the run has 3 such steps\n")


def test_of_a_template_the_last_stage(flowdeco, recorded):
    """A template's name stands for all its stages, as for selectors."""
    recorded("flow", *TABLES)
    assert "step      copy[orders]/rows, 2 of 2" in flowdeco("replay", "one", "copy/rows")[1]
    assert "step      copy[users]/rows, 1 of 2" in flowdeco("replay", "one", "copy/rows", "--nth", "1")[1]


def test_a_name_alone_is_that_of_a_bare_action(flowdeco, recorded):
    """Its stage has the same name."""
    recorded("flow", *TABLES)
    assert flowdeco("replay", "one", "publish")[0] == 0


def test_the_same_failure_is_the_same(flowdeco, recorded, monkeypatch):
    """Exit code 0; a different one, or none, is 1."""
    monkeypatch.setenv("BROKEN", "1")
    assert recorded("growing", "-i", "items=[]")[0] == 1
    code, out, _ = flowdeco("replay", "one", "risky/risky")
    assert (code, out.splitlines()[-1], called()) == (0, "the same failure", ["risky [0, 1]"])
    change("is offline", "is on fire")
    assert flowdeco("replay", "one", "risky/risky")[1].endswith("different: error\n")
    _, out, err = flowdeco("replay", "one", "risky/risky", "--traceback")
    assert out.endswith("different: error\n")
    assert err.startswith("Traceback")
    assert "is on fire" in err
    assert "flowdeco/" not in err
    monkeypatch.delenv("BROKEN")
    code, out, _ = flowdeco("replay", "one", "risky/risky")
    assert (code, out.splitlines()[-1]) == (1, "different: status, error")


def test_a_recovered_failure(flowdeco, recorded, monkeypatch):
    """Middleware of the action itself is part of the step."""
    monkeypatch.setenv("BROKEN", "1")
    assert recorded("tolerant", "-i", "items=[]")[0] == 0
    assert flowdeco("replay", "one", "risky/risky")[0] == 0


@pytest.mark.parametrize(("flow", "calls"), [("repeated", 3), ("around", 1)])
def test_nobody_waits_for_another_attempt(flowdeco, recorded, monkeypatch, flow, calls):
    """The attempts of the action itself are part of the step, without the pauses; those of scopes around it are not."""
    monkeypatch.setenv("BROKEN", "1")
    assert recorded(flow, "-i", "items=[]")[0] == 1
    change("wait=0", "wait=600")
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it sleeps"))
    assert flowdeco("replay", "one", "risky/risky")[0] == 0
    assert len(called()) == calls
    change("attempts=2", "attempts=9")
    assert flowdeco("replay", "one", "risky/risky")[0] == 0
    assert len(called()) == 2 * calls


def test_steps_of_an_atomic_scope(flowdeco, recorded):
    """Their rows are held back until it ends, and it does not end well here."""
    recorded("whole", "-i", "items=[]")
    code, out, _ = flowdeco("replay", "one", "risky/risky")
    assert (code, called()) == (0, ["risky [0]"])
    assert "items     [0]" in out


def test_a_cached_step_is_called(flowdeco, recorded):
    """The cache is neither asked nor told."""
    recorded("remembered", "-i", "items=[]")
    before = {path: path.read_bytes() for path in Path("cache").rglob("*") if path.is_file()}
    assert flowdeco("replay", "one", "risky/risky")[0] == 0
    assert called() == ["risky [0]"]
    change("sum(items)", "max(items)")
    flowdeco("replay", "one", "risky/risky")
    assert {path: path.read_bytes() for path in Path("cache").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("step", ["left", "right"])
def test_a_branch_of_a_group_runs_alone(flowdeco, recorded, step):
    """Over its own fork of the store; the other branches do not begin."""
    recorded("side", "-i", "items=[]")
    code, out, _ = flowdeco("replay", "one", step)
    assert (code, called()) == (0, [step])
    assert "items     [0]" in out


def test_a_step_after_a_group(flowdeco, recorded):
    """The merged writes of its branches are there."""
    recorded("side", "-i", "items=[]")
    code, out, _ = flowdeco("replay", "one", "both/both")
    assert (code, called()) == (0, [])
    assert "left      1" in out
    assert "right     -1" in out


def test_a_step_of_a_lost_branch(flowdeco, recorded, monkeypatch):
    """A failed branch that its group tolerates."""
    monkeypatch.setenv("BROKEN", "1")
    assert recorded("side", "-i", "items=[]")[0] == 0
    code, out, _ = flowdeco("replay", "one", "risky")
    assert (code, out.splitlines()[-1]) == (0, "the same failure")
    assert called() == ["risky [0]"]
    monkeypatch.delenv("BROKEN")
    assert flowdeco("replay", "one", "risky")[0] == 1


@pytest.mark.parametrize(("flow", "inputs"), [("streamed", ["-i", "limit=3"]), ("grouped", [])])
def test_a_step_of_a_stream(flowdeco, recorded, flow, inputs):
    """The stream is pulled as far as the step."""
    recorded(flow, *inputs)
    code, out, _ = flowdeco("replay", "one", "one[1]/square")
    assert (code, called()) == (0, ["number 0", "number 1"])
    assert flowdeco("replay", "one", "publish/publish")[0] == 0


def test_a_random_result_is_different(flowdeco, recorded):
    """What the command is for."""
    recorded("chance")
    code, out, _ = flowdeco("replay", "one", "chance")
    assert (code, out.splitlines()[-1]) == (1, "different: result, the value of 'chance'")


def test_a_bail_is_the_same_if_its_reason_is(flowdeco, recorded):
    """It is not called a failure, which it is not."""
    recorded("stopping")
    code, out, _ = flowdeco("replay", "one", "stop")
    assert (code, out.splitlines()[-1]) == (0, "the same: bailed")
    change('Bail("enough")', 'Bail("more")')
    assert flowdeco("replay", "one", "stop")[0] == 1


def test_inputs_that_were_given_later_are_not_there_yet(flowdeco, recorded):
    """Those of a resume: a step before it is called without them, one after it with them."""
    recorded("asking")
    assert flowdeco("resume", "one", "-i", "answer=yes", "-i", "note=late")[0] == 0
    for nth, note in (("1", "'none'"), ("2", "'late'")):
        code, out, _ = flowdeco("replay", "one", "after", "--nth", nth)
        assert code == 0
        arguments = [line.split()[1] for line in out.splitlines() if line.startswith("note")]
        assert arguments == [note]
    assert flowdeco("replay", "one", "ask")[0] == 0


@pytest.mark.parametrize(
    ("given", "verdict"), [("answer=soon", "the same result"), ("answer:=1", "the same: suspended")]
)
def test_an_answer_that_was_given_early_is_given_again(flowdeco, recorded, given, verdict):
    """Taken, so that its key is gone, or refused."""
    change('wait_for("answer")', 'wait_for("answer", type=str)')
    recorded("asking", "-i", given)
    code, out, _ = flowdeco("replay", "one", "ask")
    assert (code, out.splitlines()[-1]) == (0, verdict)


def test_values_without_an_equality_are_compared_by_content(flowdeco, recorded):
    """Objects that are equal only to themselves."""
    recorded("opaque")
    assert flowdeco("replay", "one", "opaque")[0] == 0
    change("Opaque([1])", "Opaque([2])")
    assert flowdeco("replay", "one", "opaque")[0] == 1


def test_insertions_are_compared(flowdeco, recorded):
    """By a generator that yields stages: other stages are a difference."""
    recorded("lines")
    code, out, _ = flowdeco("replay", "one", "lines")
    assert code == 0
    change("yield one(1)", "yield one(2)")
    assert flowdeco("replay", "one", "lines")[1].endswith("different: the inserted units\n")


def test_deleted_keys_and_switches_are_compared(flowdeco, recorded):
    """Everything that an action does by its context."""
    recorded("switching", "-i", "items=[]")
    assert flowdeco("replay", "one", "switch")[0] == 0
    change('del ctx.store["items"]', "pass")
    assert flowdeco("replay", "one", "switch")[1].endswith("different: the deleted keys\n")
    change('ctx.disable("grow")', "pass")
    assert flowdeco("replay", "one", "switch")[1].endswith("different: the deleted keys, the switched selectors\n")


def test_nothing_after_the_step_runs(flowdeco, recorded, monkeypatch):
    """Although a pipeline around it recovers its failure, or inserts more."""
    monkeypatch.setenv("BROKEN", "1")
    assert recorded("continuing", "-i", "items=[]")[0] == 0
    assert flowdeco("replay", "one", "risky")[0] == 0
    assert called() == ["risky [0]"]


def test_another_action_in_its_place(flowdeco, recorded):
    """It is not called."""
    recorded("staged", "-i", "items=[]")
    change('Stage("both", [grow, risky])', 'Stage("both", [grow, left])')
    code, _, err = flowdeco("replay", "one", "both/risky")
    assert (code, called()) == (2, [])
    assert "action both/left comes where the run had both/risky" in err
    change('Stage("both", [grow, left])', 'Stage("other", [parallel, risky])')
    assert flowdeco("replay", "one", "both/grow")[0] == 2


def test_a_loop(flowdeco, recorded):
    """An action that inserts itself."""
    recorded("endless")
    for nth in ("1", "2", "3", "4"):
        assert flowdeco("replay", "one", "endless", "--nth", nth)[0] == 0


def test_a_journal_in_json(flowdeco, recorded):
    """The values of a JSON journal."""
    recorded("flow", *TABLES, "--codec", "json")
    for step in ("discover/discover", "copy[orders]/rows", "copy[users]/store", "publish/publish"):
        assert flowdeco("replay", "one", step)[0] == 0


def test_a_crashed_run(flowdeco):
    """A run whose process was killed: what it has recorded can be replayed, and only that."""
    path = os.pathsep.join([str(Path(cli.__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "flowdeco", "run", "flows.py:dying", "-i", "items=[]", "--run-id", "dead"]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True).returncode == 9
    assert flowdeco("replay", "dead", "grow/grow")[0] == 0
    code, _, err = flowdeco("replay", "dead", "die/die")
    assert (code, "run 'dead' has no finished step 'die/die'" in err) == (2, True)


def test_a_pipeline_that_does_not_lead_there_any_more(flowdeco, recorded):
    """It is refused, and nothing is called."""
    recorded("growing", "-i", "items=[]")
    change("growing = grow >> grow >> risky >> grow", "growing = grow >> risky >> grow")
    code, _, err = flowdeco("replay", "one", "risky/risky")
    assert (code, called()) == (2, [])
    assert "no longer leads to this step" in err


def test_json_for_programs(flowdeco, recorded):
    """Arguments, both outcomes, and whether they are the same; prints go to the standard error."""
    recorded("flow", *TABLES)
    code, out, _ = flowdeco("replay", "one", "copy[orders]/rows", "--json")
    data = json.loads(out)
    assert (code, data["same"], data["differences"]) == (0, True, [])
    assert (data["id"], data["step"], data["nth"], data["of"]) == ("one", "copy[orders]/rows", 1, 1)
    assert data["arguments"] == {"db": {"users": 3, "orders": 5}}
    assert data["now"]["result"] == data["recorded"]["result"] == 5


def test_a_run_of_a_program_is_replayed_by_naming_its_workflow(flowdeco):
    """As for `resume`."""
    sys.path.insert(0, os.getcwd())
    import flows

    flows.growing.run({"items": []}, journal="runs.db", run_id="mine")
    code, _, _ = flowdeco("replay", "flows.py:growing", "mine", "grow/grow")
    assert code == 0


def test_the_step_must_be_named(flowdeco, recorded):
    """And be one of the run."""
    recorded("growing", "-i", "items=[]")
    code, _, err = flowdeco("replay", "one")
    assert (code, err) == (2, "flowdeco: error: name the step as well: flowdeco replay one STAGE/ACTION\n")
    code, _, err = flowdeco("replay", "one", "grow/grwo")
    assert code == 2
    assert "run 'one' has no finished step 'grow/grwo'. Did you mean 'grow/grow'?" in err


def _answers(monkeypatch, *lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    monkeypatch.setattr(builtins, "input", lambda prompt="": sys.stdin.readline().rstrip("\n") or "q")


@pytest.mark.parametrize("step", ["copy[orders]/rows", "copy[orders]/store"])
def test_the_debugger_stops_at_the_first_line(flowdeco, recorded, monkeypatch, step):
    """Also of a coroutine; the run is compared once it continues."""
    recorded("flow", *TABLES)
    _answers(monkeypatch, "p 'here', table", "c")
    code, out, _ = flowdeco("replay", "one", step, "--pdb")
    assert (code, "('here', 'orders')" in out) == (0, True)
    assert "pdb" not in repr(sys.gettrace())


@pytest.mark.parametrize("step", ["copy[orders]/rows", "copy[orders]/store"])
def test_stepping_over_the_end_of_an_action_does_not_lead_into_flowdeco(flowdeco, recorded, monkeypatch, step):
    """Nor into its context managers."""
    recorded("flow", *TABLES)
    _answers(monkeypatch, "p 'here'", *["s"] * 30, "c")
    code, out, _ = flowdeco("replay", "one", step, "--pdb")
    assert (code, "'here'" in out) == (0, True)
    stops = set(re.findall(r"^> (.*)\(\d+\)", out, re.MULTILINE))
    assert not [path for path in stops if path.endswith(("contextlib.py", "replay.py"))]
    assert any(path.endswith("flows.py") for path in stops)


def test_the_debugger_stops_where_it_raises(flowdeco, recorded, monkeypatch):
    """After the failure, in its frame."""
    monkeypatch.setenv("BROKEN", "1")
    recorded("growing", "-i", "items=[]")
    _answers(monkeypatch, "c", "p 'there', items", "c")
    code, out, _ = flowdeco("replay", "one", "risky", "--pdb")
    assert (code, "('there', [0, 1])" in out) == (0, True)


def test_quitting_the_debugger_compares_nothing(flowdeco, recorded, monkeypatch):
    """Exit code 1, without a traceback."""
    recorded("growing", "-i", "items=[]")
    _answers(monkeypatch, "q")
    code, out, err = flowdeco("replay", "one", "risky", "--pdb")
    assert (code, err) == (1, "")
    assert out.endswith("you quit the debugger: nothing was compared\n")
