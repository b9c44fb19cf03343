"""`flowdeco wake`: the runs that are due, answered or crashed, by one waker or several; entry points; `--suspend-after`."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import flowdeco
from flowdeco import Context, Stage, action, durable, pipeline
from flowdeco.cli import main
from flowdeco.cli import wake as waking
from flowdeco.durable import SqliteJournal
from flowdeco.durable.entry import entry_of
from flowdeco.errors import DefinitionError

FLOWS = """
import asyncio, os, sys, time
from pathlib import Path
from flowdeco import Context, Stage, action, parallel, pipeline

def note(text):
    with open("calls", "a") as file:
        file.write(text + "\\n")

@action
def naps(ctx: Context, seconds: float = 0.05):
    ctx.sleep(seconds)
    note(f"woke {ctx.run_id}")
    return "woke"

@action
async def dozes(ctx: Context, seconds: float = 0.05):
    await ctx.sleep(seconds)
    note(f"woke {ctx.run_id}")
    return "woke"

@action
def twice(ctx: Context):
    ctx.sleep(0.05)
    ctx.sleep(1000)

@action
def asks(ctx: Context):
    answer = ctx.wait_for("answer")
    note(f"answered {ctx.run_id} {answer}")
    return answer

@action
def fails(ctx: Context):
    ctx.sleep(0.05)
    raise ValueError("no bread")

@action
def dies(ctx: Context):
    ctx.sleep(0.05)
    note(f"dies {ctx.run_id}")
    os._exit(7)

@action
def exits(ctx: Context):
    ctx.sleep(0.05)
    sys.exit(3)

@action
def crashes(ctx: Context):
    note(f"at work {ctx.run_id}")
    if not Path("go").exists():
        time.sleep(60)
    return "done"

@action
def prints(ctx: Context):
    ctx.sleep(0.05)
    print("loud")
    os.system("echo louder")

flow = pipeline(naps)
slow = Stage("slow", [naps, crashes]) >> naps
"""


@pytest.fixture(autouse=True)
def flows(tmp_path, monkeypatch):
    """A folder with a module `flows`, of which this process knows nothing afterwards."""
    Path(tmp_path, "flows.py").write_text(FLOWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(flowdeco.__file__).parent.parent)]))
    for name in [name for name in sys.modules if name in ("flows", "other")]:
        del sys.modules[name]
    import flows

    yield flows
    sys.modules.pop("flows", None)


@pytest.fixture(params=["pickle", "json"])
def journal(request):
    """In both codecs."""
    return SqliteJournal("r.db", codec=request.param)


def calls():
    """What the actions noted, in any process."""
    return Path("calls").read_text().splitlines() if Path("calls").exists() else []


def statuses(path="r.db"):
    """The status of each run."""
    return {info.id: info.status for info in durable.runs(path)}


def asleep(flow, journal, *names, **inputs):
    """Start runs that are suspended, and wait until they are due."""
    for name in names:
        assert flow.run(inputs, journal=journal, run_id=name, suspend_after=0).status == "suspended"
    time.sleep(0.06)


# Once.


@pytest.mark.parametrize("name", ["naps", "dozes"])
def test_due_runs_are_resumed_in_due_time_order(flows, journal, capsys, name):
    """Whichever was started first."""
    flow = getattr(flows, name)
    for run_id, seconds in (("late", 0.03), ("early", 0.01), ("middle", 0.02), ("never", 1000)):
        flow.run({"seconds": seconds}, journal=journal, run_id=run_id, suspend_after=0)
    time.sleep(0.03)
    expected = [info.id for info in sorted(durable.runs(journal), key=lambda info: info.due) if info.id != "never"]
    assert [info.id for info in durable.due("r.db")] == expected
    assert main(["wake", "r.db"]) == 0
    assert calls() == [f"woke {run_id}" for run_id in expected]
    assert capsys.readouterr().out.splitlines() == [f"run {run_id} completed" for run_id in expected]
    assert statuses() == {"late": "completed", "early": "completed", "middle": "completed", "never": "suspended"}
    assert main(["wake", "r.db"]) == 0
    assert capsys.readouterr() == ("", "")


def test_answered_runs_are_resumed(flows, journal):
    """Those without an answer are not."""
    for run_id in ("a", "b"):
        flows.asks.run(journal=journal, run_id=run_id)
    durable.answer(journal, "a", {"answer": "yes"})
    assert main(["wake", "r.db"]) == 0
    assert (calls(), statuses()) == (["answered a yes"], {"a": "completed", "b": "suspended"})


def test_crashed_runs_are_picked_up(flows):
    """As soon as their process is dead."""
    program = "import flows; flows.crashes.run(journal='r.db', run_id='r')"
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        until(lambda: calls() == ["at work r"])
        assert main(["wake", "r.db"]) == 0  # it is at work
        process.send_signal(signal.SIGKILL)
    Path("go").touch()
    assert main(["wake", "r.db"]) == 0
    assert (calls(), statuses()) == (["at work r", "at work r"], {"r": "completed"})


def test_killed_while_asleep(flows, journal):
    """A run that is suspended has no process to lose; one that slept in its process continues as a crashed one."""
    program = "import flows; flows.flow.run({'seconds': 30}, journal='r.db', run_id='r')"
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        until(lambda: Path("r.db").exists() and statuses() == {"r": "running"})
        process.send_signal(signal.SIGKILL)
    with subprocess.Popen([sys.executable, "-m", "flowdeco", "wake", "r.db", "--suspend-after", "0.01"]) as process:
        assert process.wait() == 0
    [info] = durable.runs("r.db")
    assert (info.status, info.due > time.time()) == ("suspended", True)


def test_runs_that_suspend_again_are_fine(flows, journal, capsys):
    """Exit code 0, and the reason is printed."""
    asleep(flows.twice, journal, "r")
    assert main(["wake", "r.db"]) == 0
    assert capsys.readouterr().out.startswith("run r suspended: sleeping until ")


def test_failed_and_cancelled_runs_are_left_alone(flows, journal, capsys):
    """A failure is exit code 1, once; the others continue."""
    asleep(flows.fails, journal, "r")
    asleep(flows.naps, journal, "s", "gone")
    durable.cancel(journal, "gone")
    assert main(["wake", "r.db"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out == ["run r failed: action 'fails' of stage 'fails' failed: ValueError: no bread", "run s completed"]
    assert main(["wake", "r.db"]) == 0
    assert statuses() == {"r": "failed", "s": "completed", "gone": "cancelled"}


def test_a_run_that_cannot_be_located_is_reported_and_the_others_continue(flows, journal, capsys):
    """Its workflow is unknown, gone, broken, or another one; exit code 1; they stay as they were."""
    asleep(action(lambda ctx: ctx.sleep(0.01), name="unknown"), journal, "unknown")
    for entry in ("nowhere:flow", "flows:nothing", "other:flow"):
        asleep(flows.naps, SqliteJournal("r.db", codec=journal.codec.name, entry=entry), entry)
    Path("other.py").write_text("1 / 0")
    asleep(flows.naps, journal, "fine")
    assert main(["wake", "r.db"]) == 1
    out, error = capsys.readouterr()
    assert out == "run fine completed\n"
    lines = error.splitlines()
    assert "run unknown: the journal does not know where its workflow is" in lines[0]
    assert "run nowhere:flow: " in lines[1]
    assert "there is no module 'nowhere'" in lines[1]
    assert "EntryError" not in error
    assert "flows has no 'nothing'" in lines[2]
    assert "ZeroDivisionError" in lines[3]
    assert set(statuses().values()) == {"suspended", "completed"}


def test_a_codec_of_ones_own_is_only_known_to_its_program(flows, capsys):
    """The run is reported."""

    class Own(durable.PickleCodec):
        name = "own"

    asleep(flows.naps, SqliteJournal("r.db", codec=Own()), "r")
    assert main(["wake", "r.db"]) == 1
    assert "codec 'own', which only your program knows" in capsys.readouterr().err


def test_a_run_that_takes_its_process_down_ends_nothing_but_itself(flows, journal, capsys):
    """It has crashed; later ones are resumed all the same, also those of the same workflow."""
    asleep(flows.dies, journal, "a", "b")
    asleep(flows.exits, journal, "c")
    asleep(flows.naps, journal, "d")
    assert main(["wake", "r.db"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == [f"run {run_id} crashed: its process ended unexpectedly: exit code 7" for run_id in "ab"]
    assert out[2].startswith("run c failed")
    assert out[3:] == ["run d completed"]
    assert calls() == ["dies a", "dies b", "woke d"]
    assert [info.id for info in durable.due("r.db")] == ["a", "b"]


def test_files_of_one_name_do_not_get_in_each_others_way(tmp_path):
    """Nor do their runs with each other."""
    for folder in ("one", "two"):
        Path(folder).mkdir()
        Path(folder, "job.py").write_text(
            f"from flowdeco import Context, action\n@action\ndef job(ctx: Context):\n    ctx.sleep(0.05)\n    return '{folder}'"
        )
        for run_id in (f"{folder} 1", f"{folder} 2"):
            arguments = ["run", f"{folder}/job.py", "--journal", "r.db", "--run-id", run_id, "--suspend-after", "0"]
            assert subprocess.run([sys.executable, "-m", "flowdeco", *arguments], capture_output=True).returncode == 3
    time.sleep(0.06)
    assert main(["wake", "r.db"]) == 0
    assert {run_id: durable.read("r.db", run_id).result for run_id in statuses()} == {
        "one 1": "one", "one 2": "one", "two 1": "two", "two 2": "two",
    }  # fmt: skip


def test_json_is_a_list_and_nothing_else(flows, journal):
    """What the workflow prints goes to the standard error."""
    asleep(flows.prints, journal, "r")
    asleep(flows.fails, journal, "s")
    done = subprocess.run([sys.executable, "-m", "flowdeco", "wake", "r.db", "--json"], capture_output=True, text=True)
    assert [(each["id"], each["status"], each["error"]) for each in json.loads(done.stdout)] == [
        ("r", "completed", None),
        ("s", "failed", "action 'fails' of stage 'fails' failed: ValueError: no bread"),
    ]
    assert (done.returncode, done.stderr.split()) == (1, ["loud", "louder"])


def test_the_journal_may_be_named_by_the_environment(flows, journal, capsys, monkeypatch):
    """And must be there."""
    monkeypatch.setenv("FLOWDECO_JOURNAL", "r.db")
    asleep(flows.naps, journal, "r")
    assert (main(["wake"]), main(["wake", "none.db"])) == (0, 2)
    assert "there is no journal none.db" in capsys.readouterr().err


# Several wakers, and people.


def wakes(barrier):
    """Wake in a process of its own."""
    barrier.wait()
    code = main(["wake", "r.db"])
    os._exit(code)


def answers(barrier, journal, names):
    """A person who answers at the same moment."""
    barrier.wait()
    for name in names:
        durable.answer(journal, name, {"answer": name})
    os._exit(0)


def test_two_wakers_never_take_the_same_run(flows, journal):
    """While a person answers questions: each run continues once, and each answer is used once."""
    sleeping, asking = [f"s{n}" for n in range(12)], [f"q{n}" for n in range(6)]
    asleep(flows.naps, journal, *sleeping)
    for name in asking:
        flows.asks.run(journal=journal, run_id=name)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [
        context.Process(target=wakes, args=(barrier,)),
        context.Process(target=wakes, args=(barrier,)),
        context.Process(target=answers, args=(barrier, journal, asking)),
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] in ([0, 0, 0],)
    while durable.due("r.db"):
        assert main(["wake", "r.db"]) == 0
    assert sorted(calls()) == sorted([*(f"woke {name}" for name in sleeping), *(f"answered {n} {n}" for n in asking)])
    assert set(statuses().values()) == {"completed"}


@pytest.mark.parametrize("ended", ["failed", "suspended", "cancelled", "completed"])
def test_a_run_that_another_waker_has_taken_is_left_alone(flows, monkeypatch, capsys, ended):
    """Whatever became of it: a waker that listed it before the other one took it does not open it."""
    flow = {"failed": flows.fails, "suspended": flows.twice}.get(ended, flows.naps)
    asleep(flow, "r.db", "r")
    listed = durable.due("r.db")
    if ended == "cancelled":
        durable.cancel("r.db", "r")
    else:
        flow.resume("r", journal="r.db", check=False, suspend_after=0.001)
    assert statuses() == {"r": ended}
    before = calls()
    monkeypatch.setattr(durable, "due", lambda path: listed)
    assert main(["wake", "r.db"]) == 0
    out = capsys.readouterr().out
    assert out == ("run r completed\n" if ended == "completed" else "")
    assert (statuses(), calls()) == ({"r": ended}, before)


def test_a_run_that_was_deleted_meanwhile_is_left_alone(flows, monkeypatch, capsys):
    """The same."""
    asleep(flows.naps, "r.db", "r")
    listed = durable.due("r.db")
    durable.delete("r.db", "r")
    monkeypatch.setattr(durable, "due", lambda path: listed)
    assert (main(["wake", "r.db"]), capsys.readouterr()) == (0, ("", ""))


# `durable.due`.


def test_the_clock_may_be_set_back_and_forth(flows, monkeypatch, journal):
    """Due times stay; what was answered is due by any clock."""
    now = time.time()
    flows.naps.run({"seconds": 100}, journal=journal, run_id="r", suspend_after=0)
    flows.asks.run(journal=journal, run_id="q")
    due = durable.runs(journal)[1].due
    durable.answer(journal, "q", {"answer": 1})
    for shift, expected in ((-10_000, ["q"]), (50, ["q"]), (10_000, ["q", "r"]), (-10_000, ["q"])):
        monkeypatch.setattr(time, "time", lambda shift=shift: now + shift)
        assert sorted(info.id for info in durable.due(journal)) == expected
    assert durable.due(journal, due - 0.001)[0].id == "q"
    assert len(durable.due(journal, due)) == 2


def test_due_runs_are_found_by_indexes(journal):
    """However many are suspended, or have finished."""
    pipeline().run(journal=journal)
    asked = []
    journal._file.connection.set_trace_callback(asked.append)
    assert durable.due(journal) == []
    journal._file.connection.set_trace_callback(None)
    [query] = [each for each in asked if each.startswith("SELECT id, run_id")]
    found = journal._file.connection.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
    plan = [step for *_, step in found]
    assert any("INDEX waiting" in step for step in plan)
    assert any("INDEX working" in step for step in plan)
    assert [step for step in plan if step.startswith("SCAN runs") and "INDEX" not in step] == []


def test_many_sleeping_runs_are_listed_in_order(flows):
    """10,000 of them; the benchmark `tests/benchmarks/wake.py` wakes them."""
    from benchmarks.wake import sleeping_runs

    sleeping_runs("r.db", 10_000)
    began = time.perf_counter()
    found = durable.due("r.db", 1.5e9 + 100)
    few = time.perf_counter() - began
    assert [info.id for info in found] == [f"r{n}" for n in range(101)]
    assert few < 0.5  # 2 ms on an idle machine
    assert [info.due for info in durable.due("r.db")] == sorted(info.due for info in durable.runs("r.db"))


# `--watch`.


def until(condition):
    """Wait for it."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def watch():
    """A process that watches."""
    begun = []

    def watching(*more):
        process = subprocess.Popen(
            [sys.executable, "-m", "flowdeco", "wake", "r.db", "--watch", *more],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        begun.append(process)
        return process

    yield watching
    for process in begun:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watching_goes_on_until_a_signal_and_ends_cleanly(flows, watch, number):
    """Runs are resumed as they become due, or are answered; exit code 0, whatever became of them."""
    flows.asks.run(journal="r.db", run_id="q")
    flows.naps.run({"seconds": 1000}, journal="r.db", run_id="never")
    asleep(flows.fails, "r.db", "f")
    asleep(flows.naps, "r.db", "n")
    process = watch("--json")
    until(lambda: statuses()["n"] == "completed")
    durable.answer("r.db", "q", {"answer": 1})
    lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(number)
    out, error = process.communicate(timeout=20)
    assert (process.returncode, out, error) == (0, "", "")
    assert [(each["id"], each["status"]) for each in lines] == [
        ("f", "failed"), ("n", "completed"), ("q", "completed"),
    ]  # fmt: skip


def test_a_signal_suspends_the_run_at_work_which_is_due_at_once(flows, watch):
    """The next waker continues it; nothing is lost, and nothing waits for a person."""
    asleep(flows.slow, "r.db", "r")
    process = watch()
    until(lambda: "at work r" in calls())
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "run r suspended: flowdeco wake was stopped\n")
    assert error == "flowdeco: suspending the active run... (Ctrl-C again kills it; it is resumed later)\n"
    assert [info.id for info in durable.due("r.db")] == ["r"]
    Path("go").touch()
    assert main(["wake", "r.db"]) == 0
    assert calls() == ["woke r", "at work r", "at work r", "woke r"]


def test_a_second_ctrl_c_kills_the_run_at_work(flows, watch):
    """It has crashed, and is picked up by the next waker."""
    stubborn = (
        "from flowdeco import action, Context\nimport time\n@action\ndef job(ctx: Context):\n    ctx.sleep(0.05)\n"
    )
    stubborn += "    while True:\n        try:\n            open('calls', 'a').write('at work\\n'); time.sleep(60)\n"
    stubborn += "        except BaseException: open('calls', 'a').write('no\\n')\n"
    Path("other.py").write_text(stubborn)
    import other

    asleep(other.job, "r.db", "r")
    process = watch()
    until(lambda: "at work" in calls())
    process.send_signal(signal.SIGINT)
    until(lambda: "no" in calls())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert [(info.id, info.status) for info in durable.due("r.db")] == [("r", "running")]


def test_watching_rests_before_it_tries_a_lost_run_again(flows, monkeypatch):
    """Unless something has changed; other runs do not wait for that."""
    asleep(flows.naps, SqliteJournal("r.db", entry="nowhere:flow"), "lost")
    tried, stop = [], waking._Stop()

    def note(woken):
        tried.append((woken.id, woken.status))
        if len(tried) == 3:
            stop.asked.set()
        elif woken.status == "lost":
            asleep(flows.naps, "r.db", "fine")
        else:
            clock["now"] += waking.AGAIN + 1

    clock = {"now": 0.0}
    real = time.monotonic
    monkeypatch.setattr(waking, "_Stop", lambda: stop)
    monkeypatch.setattr(waking, "_print", note)
    monkeypatch.setattr(waking, "POLL", 0.01)
    monkeypatch.setattr(waking.time, "monotonic", lambda: real() + clock["now"])
    assert main(["wake", "r.db", "--watch"]) == 0
    assert tried == [("lost", "lost"), ("fine", "completed"), ("lost", "lost")]


def test_watching_sees_edited_code(flows, watch):
    """Each round imports the workflow anew."""
    Path("other.py").write_text(
        "from flowdeco import action, Context\n@action\ndef job(ctx: Context):\n    ctx.wait_for('a')\n    return 'old'\n"
    )
    import other

    for run_id in ("1", "2"):
        other.job.run(journal="r.db", run_id=run_id)
    watch()
    durable.answer("r.db", "1", {"a": 1})
    until(lambda: statuses()["1"] == "completed")
    Path("other.py").write_text(Path("other.py").read_text().replace("old", "renewed"))
    durable.answer("r.db", "2", {"a": 1})
    until(lambda: statuses()["2"] == "completed")
    assert [durable.read("r.db", run_id).result for run_id in "12"] == ["old", "renewed"]


# Entry points.


@action
def asleep_here(ctx: Context):
    """An action of this module."""
    ctx.sleep(1000)


here = pipeline(asleep_here, name="here")
staged = Stage("staged", [asleep_here])


@pytest.mark.parametrize(("unit", "name"), [(here, "here"), (asleep_here, "asleep_here"), (staged, "staged")])
def test_a_run_of_a_program_notes_where_its_pipeline_is(unit, name):
    """`module:name`, of any unit; the same run forked from a stage, too."""
    run = unit.run(journal="r.db", run_id="r")
    entry = f"{__name__}:{name}"
    assert durable.runs("r.db")[0].entry == entry
    fork = unit.resume(run.id, journal="r.db", from_stage="staged" if unit is staged else "asleep_here")
    assert {info.id: info.entry for info in durable.runs("r.db")} == {"r": entry, fork.id: entry}


def test_a_pipeline_without_a_name_has_no_entry():
    """Nor one that only resembles one with a name: it is found by identity."""
    for flow in (pipeline(asleep_here, name="elsewhere"), asleep_here >> asleep_here, pipeline()):
        run = flow.run(journal="r.db")
        assert [info.entry for info in durable.runs("r.db") if info.id == run.id] == [None]


def test_an_entry_given_to_the_journal_counts(flows):
    """Whatever the name of the pipeline is."""
    here.run(journal=SqliteJournal("r.db", entry="given:flow"))
    assert durable.runs("r.db")[0].entry == "given:flow"


def test_the_pipeline_may_be_in_another_module_than_its_actions(flows):
    """Of the user's own."""
    Path("other.py").write_text("import flows\ncombined = flows.naps >> flows.dozes\n")
    import other

    assert entry_of(other.combined) == "other:combined"


SCRIPT = """
from flowdeco import Context, action, durable

class Price:
    def __init__(self, euros):
        self.euros = euros

@action
def price():
    return Price(3)

@action
def naps(ctx: Context, price: Price):
    ctx.sleep(0.05)
    return price.euros

flow = price >> naps
{guard}flow.run(journal="r.db", run_id="r", suspend_after=0)
"""


def test_a_script_is_noted_as_a_file(tmp_path):
    """So that it is woken, and values of its own classes are found."""
    Path("my script.py").write_text(SCRIPT.format(guard='if __name__ == "__main__":\n    '))
    assert subprocess.run([sys.executable, "my script.py"]).returncode == 0
    time.sleep(0.06)
    assert main(["wake", "r.db"]) == 0
    assert statuses() == {"r": "completed"}


@pytest.mark.parametrize("how", [["script.py"], ["-c", SCRIPT.format(guard="")]])
def test_a_script_that_would_run_again_as_it_is_imported_is_not_noted(how):
    """Nor is code without a file."""
    Path("script.py").write_text(SCRIPT.format(guard=""))
    assert subprocess.run([sys.executable, *how]).returncode == 0
    assert durable.runs("r.db")[0].entry is None


# `--suspend-after`.


def test_run_and_resume_have_the_option(flows, capsys):
    """A number of seconds, or inf for never."""
    run = ["run", "flows:naps", "--journal", "r.db", "--run-id", "r"]
    assert main([*run, "--suspend-after", "0.01"]) == 3
    assert main(["resume", "r", "--journal", "r.db", "--suspend-after", "inf"]) == 0
    assert main(["run", "flows:naps", "--journal", "r.db"]) == 0
    for wrong in ("-1", "soon", "nan"):
        assert main(["wake", "r.db", f"--suspend-after={wrong}"]) == 2
        assert f"expected a number of seconds, or inf for never, not '{wrong}'" in capsys.readouterr().err
    with pytest.raises(DefinitionError):
        flows.naps.run(suspend_after=-1)


# The how-to page.


def test_the_units_of_the_how_to_page_are_valid(tmp_path):
    """As far as systemd is there to say so."""
    from shutil import which

    if which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    page = Path(flowdeco.__file__).parents[1].joinpath("docs/wake.md").read_text()
    units = []
    for block in page.split("```ini\n")[1:]:
        name, _, text = block.partition("\n")
        path = tmp_path / name.removeprefix("# /etc/systemd/system/")
        text = text.partition("```")[0].replace("/srv/shop/.venv/bin/flowdeco", sys.executable)
        path.write_text(textwrap.dedent(text).replace("User=shop\n", "").replace("/srv/shop", str(tmp_path)))
        units.append(str(path))
    assert len(units) == 3
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "flowdeco" in line]
    assert (done.returncode, ours) == (0, [])
