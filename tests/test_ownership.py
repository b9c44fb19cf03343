"""One owner a run, finished runs are read-only, and a run leaves nothing open behind it."""

import asyncio
import contextlib
import copy
import gc
import logging
import os
import pickle
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import durable_units as du
import pytest
from durable_units import BROKEN, CALLS
from support import names, text_of

import flowdeco
from flowdeco import Bail, Run, Stage, action, durable, parallel, pipeline, stage
from flowdeco.cli import main
from flowdeco.durable import JsonCodec, MemoryJournal, PickleCodec, Row, SqliteJournal, file, runs
from flowdeco.durable.forks import prepare_for_forks
from flowdeco.durable.head import Head
from flowdeco.durable.lease import LONGEST, is_held_here
from flowdeco.errors import (
    CodeChangedError,
    DefinitionError,
    JournalError,
    RunBusyError,
    RunExistsError,
    RunNotFoundError,
    WiringError,
)
from flowdeco.middleware import recover


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own, and begins with no calls."""
    monkeypatch.chdir(tmp_path)
    du.clear()
    yield
    du.clear()


@pytest.fixture(params=["sqlite", "memory"])
def journal(request):
    """What holds for a file holds for the journal in memory."""
    return SqliteJournal("runs.db") if request.param == "sqlite" else MemoryJournal()


@action
def paid(ctx):
    """Note which run was paid for, and take a moment."""
    CALLS.append(ctx.run_id)
    time.sleep(0.003)
    return "paid"


@action
def approve(ctx):
    """Wait for an answer."""
    return ctx.wait_for("ok")


flow = paid >> du.first
asks = pipeline(du.first, approve)


def together(*calls):
    """What came of these calls, begun at once in threads: runs and exceptions."""
    barrier = threading.Barrier(len(calls))

    def one(call):
        barrier.wait()
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def kinds(came):
    """How often what came: the status of a run, or the name of an error."""
    return Counter(type(one).__name__ if isinstance(one, Exception) else str(one.status) for one in came)


def info(journal, run_id="r"):
    [found] = [one for one in runs(journal) if one.id == run_id]
    return found


def script(source, *arguments, within=30):
    """Run a program to its end, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source), *arguments],
        capture_output=True,
        text=True,
        timeout=within,
        env={**os.environ, "PYTHONPATH": str(Path(flowdeco.__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def our_threads():
    """Those of libraries that other tests have used may still come and go; a lease needs a moment to end."""
    assert no_lease_is_renewed()
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("flowdeco", "asyncio"))]


def lease_threads():
    return sum(thread.name == "flowdeco lease" for thread in threading.enumerate())


def no_lease_is_renewed():
    """Whether the threads that renew leases end; each needs a moment to notice."""
    until = time.monotonic() + 5
    while lease_threads() and time.monotonic() < until:
        time.sleep(0.001)
    return not lease_threads()


COUNTED = []
sys.addaudithook(lambda event, args: COUNTED.append(args) if event == "sqlite3.connect" else None)


def connections():
    """Count the connections that are opened from now on."""
    before = len(COUNTED)
    return lambda: len(COUNTED) - before


def open_files():
    return len(os.listdir("/proc/self/fd"))


linux = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


# One owner.


def resumed_or_started(run_id):
    """What a web server does for a request that may come twice."""
    try:
        return flow.resume(run_id, journal="runs.db")
    except RunNotFoundError:
        return flow.run(journal="runs.db", run_id=run_id)


def test_threads_that_resume_or_start_a_run_call_its_actions_once():
    """Each with the path of the journal: one performs the run, the others are told that it is busy."""
    # dbos-inc/dbos-transact-py#544, coleifer/huey#123
    for n in range(30):
        came = together(*[lambda: resumed_or_started(f"run {n}")] * 3)
        assert CALLS.count(f"run {n}") == 1
        assert set(kinds(came)) <= {"completed", "RunBusyError", "RunExistsError"}
        assert kinds(came)["completed"] >= 1


def test_names_of_one_file_are_one_journal():
    """A relative path, an absolute one, a link to the file or to its folder; journals with other options, too."""
    os.mkdir("real")
    Path("link").symlink_to("real")
    Path("runs.db").symlink_to("real/runs.db")
    journals = [
        "real/runs.db",
        Path("real/runs.db").absolute(),
        "link/runs.db",
        "runs.db",
        SqliteJournal("real/runs.db", synchronous="FULL"),
        SqliteJournal("link/runs.db", entry="flows.py:flow"),
    ]

    def start(journal, run_id):
        return lambda: flow.run(journal=journal, run_id=run_id, if_exists="resume")

    for n in range(10):
        came = together(*[start(journal, f"run {n}") for journal in journals])
        assert CALLS.count(f"run {n}") == 1
        assert set(kinds(came)) <= {"completed", "RunBusyError"}


def test_processes_that_start_or_resume_a_run_call_its_actions_once():
    """Four processes begin eight runs each, at the same moment."""
    source = """
        import sys, time
        from pathlib import Path
        from flowdeco import action
        from flowdeco.errors import RunBusyError
        @action
        def note(ctx):
            with open("calls", "a") as calls:
                calls.write(ctx.run_id + "\\n")
            time.sleep(0.01)
        Path(sys.argv[1]).touch()
        while not Path("go").exists():
            time.sleep(0.001)
        for n in range(8):
            try:
                note.run(journal="runs.db", run_id=f"run {n}", if_exists="resume")
            except RunBusyError:
                pass
    """
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(script, source, f"ready{n}") for n in range(4)]
        while not all(Path(f"ready{n}").exists() for n in range(4)):
            time.sleep(0.01)
        Path("go").touch()
        for each in done:
            each.result()
    assert sorted(Path("calls").read_text().split("\n"))[1:] == sorted(f"run {n}" for n in range(8))
    assert {(run.status, run.owner) for run in runs("runs.db")} == {("completed", None)}


def test_of_tasks_that_resume_a_run_one_performs_it(journal):
    """An answer that is delivered twice at once."""
    # dbos-inc/dbos-transact-py#544

    @action
    async def pay(ctx):
        ctx.wait_for("ok")
        CALLS.append(ctx.run_id)
        await asyncio.sleep(0.02)

    async def twice(run_id):
        await pay.arun(journal=journal, run_id=run_id)
        resumes = (pay.aresume(run_id, {"ok": 1}, journal=journal) for _ in range(3))
        return await asyncio.gather(*resumes, return_exceptions=True)

    for n in range(5):
        assert set(kinds(asyncio.run(twice(f"run {n}")))) <= {"completed", "RunBusyError"}
        assert CALLS == [f"run {m}" for m in range(n + 1)]


def test_a_run_continues_while_a_thread_asks_for_it():
    """Again and again: it is told that the run is busy, or gets it when it has finished."""
    # dbos-inc/dbos-transact-py#544
    asked, over, came = [], threading.Event(), Counter()

    def poll():
        while not over.is_set():
            for run_id in asked[-1:]:
                try:
                    came[flow.resume(run_id, journal="runs.db").status] += 1
                except JournalError as error:
                    came[type(error).__name__] += 1

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        for n in range(20):
            asked.append(f"run {n}")
            assert flow.run(journal="runs.db", run_id=f"run {n}").status == "completed"
            assert CALLS.count(f"run {n}") == 1
    finally:
        over.set()
        thread.join()
    assert set(came) <= {"completed", "RunBusyError", "RunNotFoundError"}


def test_who_sees_the_row_sees_the_lease(monkeypatch):
    """The moment before the transaction ends is the last one at which another thread could take the run for dead."""
    journal, came = SqliteJournal("runs.db"), []
    real = file.JournalFile.keep

    def keep(self, lease):
        real(self, lease)
        came.append(is_held_here(lease.token))
        with contextlib.closing(sqlite3.connect("runs.db")) as other:
            came.append(other.execute("SELECT count(*) FROM runs WHERE owner = ?", (lease.token,)).fetchone()[0])

    monkeypatch.setattr(file.JournalFile, "keep", keep)
    asks.run(journal=journal, run_id="r")
    asks.resume("r", {"ok": 1}, journal=journal)
    assert came == [True, 0] * 2


def test_what_could_not_begin_is_not_held(monkeypatch):
    """A lease whose row was never committed is forgotten."""
    journal = SqliteJournal("runs.db")
    monkeypatch.setattr("flowdeco.durable.sqlite.insert_inputs", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError) as kept:
        flow.run(journal=journal, run_id="r")
    monkeypatch.undo()
    assert no_lease_is_renewed()
    assert runs(journal) == []
    assert flow.run(journal=journal, run_id="r").status == "completed"
    del kept


def test_a_lease_of_another_host_is_believed_for_a_day_at_most():
    """A clock that was ahead when the owner wrote it, and was set back since, does not keep a run for ever."""
    asks.run(journal="runs.db", run_id="r")

    def forge(**columns):
        with contextlib.closing(sqlite3.connect("runs.db")) as connection:
            sets = ", ".join(f"{name} = ?" for name in columns)
            connection.execute(f"UPDATE runs SET {sets}", list(columns.values()))
            connection.commit()

    elsewhere = {"owner": "token", "host": "elsewhere", "pid": 1, "place": "another boot", "born": "1"}
    forge(**elsewhere, lease=time.time() + LONGEST / 2)
    with pytest.raises(RunBusyError, match="elsewhere"):
        asks.resume("r", {"ok": 1}, journal="runs.db")
    for lease in (time.time() + 365 * LONGEST, float("inf"), "soon", None, b"\xff"):
        forge(**elsewhere, lease=lease)
        assert info("runs.db").owner is None
    assert asks.resume("r", {"ok": 1}, journal="runs.db").status == "completed"


def test_a_lease_in_the_future_of_a_dead_process_of_this_host_is_none():
    """Whatever the clock says: the process is looked up."""
    script("""
        import os
        from flowdeco.durable import SqliteJournal, PickleCodec
        SqliteJournal("runs.db", lease=10_000_000).create("r", "pipeline", PickleCodec().encode({}, ""), ())
        os._exit(0)
    """)
    assert info("runs.db").owner is None
    assert pipeline(du.first).resume("r", journal="runs.db").status == "completed"


# Finished runs are read-only.


def test_any_number_of_threads_get_a_finished_run(journal):
    """Nobody takes its lease, so nobody is refused: also where a difference was asked for, and there is none."""
    # dbos-inc/dbos-transact-py#544, dbos-inc/dbos-transact-py#801
    run = du.line.run(journal=journal)
    how = [{}, {"on_change": "ignore"}, {"on_change": "rerun"}, {"skip": ["first"]}]
    calls = [lambda how=how: du.line.resume(run.id, journal=journal, **how) for how in how * 2]
    CALLS.clear()
    assert kinds(together(*calls)) == {"completed": 8}
    assert CALLS == []


@action
def bail():
    raise Bail("enough")


@action
def insert():
    return [shown("a"), shown("b")]


@stage
def shown(what):
    @action(collect="shown")
    def show():
        return what


FINISHED = {
    "stages": du.line,
    "bailed": pipeline(du.first, bail, du.second),
    "inserted": pipeline(insert, du.first),
    "group": pipeline(parallel(du.first, shown("a"), shown("b")), Stage("s", [du.second, du.third])),
    "nested": pipeline(pipeline(du.first, name="inner", use=[recover(on=ValueError)]), du.second, name="outer"),
}


@pytest.mark.parametrize("how", ["error", "ignore", "rerun"])
@pytest.mark.parametrize("which", FINISHED)
def test_resuming_a_finished_run_changes_nothing(journal, which, how):
    """Nothing is called, its row is as it was, and it is the run as it came out."""
    flow = FINISHED[which]
    run = flow.run(journal=journal, run_id="r")
    before = info(journal)
    CALLS.clear()
    again = flow.resume("r", journal=journal, on_change=how)
    assert (again.id, again.status, again.reason, again.result) == (run.id, run.status, run.reason, run.result)
    assert (dict(again.store), again.started) == (dict(run.store), pytest.approx(run.started, abs=1))
    assert [(r.name, r.status, r.stage) for r in again.stages] == [(r.name, r.status, r.stage) for r in run.stages]
    assert all(r.restored and all(each.restored for each in r.actions) for r in again.stages)
    assert (info(journal), CALLS) == (before, [])
    assert names(flow.resume("r", journal=journal, history=1)) == names(run)[-1:]


def test_a_finished_run_is_returned_while_another_process_writes():
    """It waits for no lock: it only reads."""
    run = du.line.run(journal="runs.db")
    with contextlib.closing(sqlite3.connect("runs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert du.line.resume(run.id, journal="runs.db").status == "completed"
        assert du.line.run(journal="runs.db", run_id=run.id, if_exists="resume").status == "completed"


def test_new_inputs_of_a_finished_run_are_ignored_with_a_warning(journal, caplog):
    """Those that it has already are not new."""
    asks.run({"n": 1}, journal=journal, run_id="r")
    asks.resume("r", {"ok": [1, 2]}, journal=journal)
    with caplog.at_level(logging.WARNING):
        assert asks.resume("r", {"n": 1, "ok": [1, 2]}, journal=journal)["approve"] == [1, 2]
        assert caplog.text == ""
        for how in ("error", "rerun"):
            assert asks.resume("r", {"n": 2, "ok": [1, 2]}, journal=journal, on_change=how)["n"] == 1
            assert "run r is completed: the new inputs are ignored: 'n'" in caplog.text
            assert "'ok'" not in caplog.text
            caplog.clear()
    assert len(journal.read("r").inputs) == 2


def test_a_run_in_memory_ignores_new_inputs_as_well(caplog):
    """And says so."""
    run = du.line.run()
    with caplog.at_level(logging.WARNING):
        assert du.line.resume(run, {"n": 1}) is run
    assert "the new inputs are ignored: 'n'" in caplog.text


def other(name):
    """Different code."""

    @action(name=name)
    def body():
        return "other"

    return body


def never(ctx):
    raise AssertionError("this is not called")


REFUSED = {
    "changed code": (pipeline(other("first"), approve), CodeChangedError),
    "another pipeline": (pipeline(du.first, approve, name="other"), CodeChangedError),
    "missing inputs": (pipeline(action(name="needs")(lambda missing: missing), du.first, approve), WiringError),
}


@pytest.mark.parametrize("why", REFUSED)
@pytest.mark.parametrize("how", ["resume", "aresume"])
@pytest.mark.parametrize("check", [True, False])
def test_a_refused_resume_changes_nothing(journal, why, how, check):
    """Neither status nor error nor the time of the last change, and nothing was heard of its inputs; it raises either way."""
    asks.run(journal=journal, run_id="r")
    before, remembered = info(journal), journal.read("r")
    changed, error = REFUSED[why]
    with pytest.raises(error):
        if how == "resume":
            changed.resume("r", {"ok": 1}, journal=journal, check=check)
        else:
            asyncio.run(changed.aresume("r", {"ok": 1}, journal=journal, check=check))
    assert (info(journal), journal.read("r")) == (before, remembered)
    assert asks.resume("r", {"ok": 2}, journal=journal)["approve"] == 2


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, CodeChangedError),
        ({"on_change": "rerun"}, DefinitionError),
        ({"from_stage": "approve", "journal": "runs.db"}, CodeChangedError),
        ({"from_stage": "nothing", "journal": "runs.db", "on_change": "ignore"}, JournalError),
        ({"if_exists": "resume", "run_id": "r", "journal": "runs.db"}, CodeChangedError),
    ],
    ids=["in memory", "in memory, again", "a fork", "a fork from nowhere", "if_exists"],
)
def test_an_error_before_the_first_step_is_raised_without_check_as_well(options, error):
    """As a `WiringError` is: there is no run yet that could be returned; nor did an observer hear of one."""
    heard = []
    run = asks.run(run_id="r", **({"journal": "runs.db"} if "journal" in options else {}))
    changed = pipeline(other("first"), approve)
    with pytest.raises(error):
        if "if_exists" in options:
            changed.run(check=False, observers=[heard.append], **options)
        else:
            changed.resume(run, check=False, observers=[heard.append], **options)
    assert heard == []
    assert asks.resume(run, {"ok": 2})["approve"] == 2


def test_a_failed_run_that_is_refused_keeps_its_error(journal):
    """It is still failed, as it was."""
    BROKEN.add("fragile")
    (du.first >> du.fragile).run(journal=journal, run_id="r", check=False)
    before = info(journal)
    with pytest.raises(CodeChangedError):
        (other("first") >> du.fragile).resume("r", journal=journal)
    assert info(journal) == before
    assert before.error.startswith("RuntimeError")


def test_inputs_that_cannot_be_written_leave_the_run_as_it_was(journal):
    """They are refused before anything is changed."""
    asks.run(journal=journal, run_id="r")
    before = info(journal)
    with pytest.raises(flowdeco.errors.SerializationError, match="'ok'|\\[\"ok\"\\]"):
        asks.resume("r", {"ok": threading.Lock()}, journal=journal)
    assert info(journal) == before


def test_a_process_that_dies_before_a_resume_is_accepted_leaves_the_run_suspended():
    """It had taken the lease, and nothing more."""
    asks.run(journal="runs.db", run_id="r")
    script("""
        import os
        from flowdeco.durable import SqliteJournal
        SqliteJournal("runs.db").open("r")
        os._exit(0)
    """)
    assert (info("runs.db").status, info("runs.db").owner) == ("suspended", None)


def test_a_rerun_of_a_finished_run_has_one_owner(journal):
    """With a difference, it is performed: by one of those who ask for it."""
    before, after = pipeline(du.first, paid), pipeline(du.first, other("paid"))
    before.run(journal=journal, run_id="r")
    came = together(*[lambda: after.resume("r", journal=journal, on_change="rerun")] * 4)
    assert set(kinds(came)) <= {"completed", "RunBusyError"}
    assert {one["paid"] for one in came if isinstance(one, Run)} == {"other"}
    assert [row.action for row in durable.history(journal, "r") if row.kind == "action"] == ["first", "paid"]


def test_a_refused_rerun_of_a_finished_run_takes_no_lease_from_another(journal):
    """Another thread begins to run it again, in the same journal."""
    before, after = pipeline(du.first, paid), pipeline(du.first, other("paid"))
    before.run(journal=journal, run_id="r")
    journal.open("r", finished=True)
    with pytest.raises(WiringError):
        pipeline(action(name="needs")(lambda missing: missing)).resume("r", journal=journal, on_change="rerun")
    with pytest.raises(RunBusyError):
        after.resume("r", journal=journal, on_change="rerun")
    journal.release("r")
    assert after.resume("r", journal=journal, on_change="rerun")["paid"] == "other"


def test_a_run_can_be_read_as_it_stands(journal):
    """By whoever: at work, waiting, finished; nothing of it is leased or changed."""
    seen = []
    look = action(name="look")(lambda: seen.append(durable.read(journal, "r")))
    pipeline(du.first, look, approve).run(journal=journal, run_id="r")
    assert [(run.status, dict(run.store)) for run in seen] == [("running", {"first": 1})]
    before = info(journal)
    read = durable.read(journal, "r")
    assert (read.id, read.status, read["first"]) == ("r", "suspended", 1)
    assert info(journal) == before


# `if_exists`.


def test_a_run_is_started_continued_or_returned(run, journal):
    """One call for all three."""
    job, how = du.first >> du.fragile, {"journal": journal, "run_id": "r", "if_exists": "resume"}
    BROKEN.add("fragile")
    assert run(job, {"n": 1}, check=False, **how).status == "failed"
    BROKEN.clear()
    assert run(job, {"n": 1}, **how).status == "completed"
    assert run(job, {"n": 1}, **how)["fragile"] == "mended"
    assert CALLS == ["first", "fragile", "fragile"]


def test_inputs_that_are_given_again_do_not_undo_what_the_run_made_of_them(journal):
    """Cron gives the same inputs every time; other values count, as those of a resume do."""

    @action(returns="n")
    def add_one(n):
        return n + 1

    job = pipeline(add_one, approve, action(name="seen")(lambda n, k=0: (n, k)))
    how = {"journal": journal, "run_id": "r", "if_exists": "resume"}
    assert job.run({"n": 1}, **how).status == "suspended"
    assert job.run({"n": 1}, **how).status == "suspended"
    assert job.run({"n": 1, "ok": 1, "k": 5}, **how)["seen"] == (2, 5)
    job.run({"n": 1}, journal=journal, run_id="s")
    assert job.run({"n": 7, "ok": 1}, journal=journal, run_id="s", if_exists="resume")["seen"] == (7, 0)


class Strange:
    """A value that cannot be compared, like an array; it has content."""

    def __init__(self):
        self.items = [1, 2]

    def __eq__(self, other):
        raise ValueError("the truth value is ambiguous")

    __hash__ = None


def test_inputs_that_cannot_be_compared_are_compared_by_content(caplog):
    """Arrays, NaN: given again, they are the same."""
    values, how = {"strange": Strange(), "nan": float("nan")}, {"journal": "runs.db", "run_id": "r"}
    pipeline(du.first).run(values, **how)
    with caplog.at_level(logging.WARNING):
        again = {"strange": Strange(), "nan": float("nan")}
        assert pipeline(du.first).run(again, if_exists="resume", **how).status == "completed"
    assert caplog.text == ""


def test_a_run_that_exists_needs_no_inputs():
    """It has those that it was started with."""
    job = pipeline(action(name="needs")(lambda n: n), approve)
    how = {"journal": "runs.db", "run_id": "r", "if_exists": "resume"}
    with pytest.raises(WiringError):
        job.run(**how)
    assert job.run({"n": 1}, **how).status == "suspended"
    assert job.run({"ok": 1}, **how)["needs"] == 1


def test_an_id_that_exists_is_an_error(run, journal):
    """By default, whatever became of it; it is not busy, for nobody performs it."""
    run(asks, journal=journal, run_id="r")
    with pytest.raises(RunExistsError, match="'r' already, suspended"):
        run(asks, journal=journal, run_id="r")
    asks.resume("r", {"ok": 1}, journal=journal)
    with pytest.raises(RunExistsError, match="'r' already, completed.*if_exists=\"resume\""):
        run(asks, journal=journal, run_id="r", if_exists="error")
    assert not issubclass(RunExistsError, RunBusyError)
    assert issubclass(RunExistsError, JournalError)


@pytest.mark.parametrize("how", ["error", "resume"])
def test_an_id_that_somebody_performs_is_busy(journal, how):
    """Whatever is to happen if it exists."""
    came = []

    @action
    def at_work():
        came.extend(together(*[lambda: at_work.run(journal=journal, run_id="r", if_exists=how)] * 2))

    at_work.run(journal=journal, run_id="r")
    assert kinds(came) == {"RunBusyError": 2}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"if_exists": "ignore"}, "if_exists is 'error' or 'resume', not 'ignore'"),
        ({"if_exists": None}, "if_exists is 'error' or 'resume', not None"),
        ({"if_exists": ["resume"]}, r"if_exists is 'error' or 'resume', not \['resume'\]"),
        ({"if_exists": "resume"}, "needs to know which run may exist: give a journal and a run_id"),
        ({"if_exists": "resume", "run_id": "r"}, "give a journal and a run_id"),
        ({"if_exists": "resume", "journal": "runs.db"}, "give a journal and a run_id"),
    ],
)
def test_if_exists_says_what_it_takes(run, how, message):
    """Nothing is begun."""
    with pytest.raises(DefinitionError, match=message):
        run(du.first, **how)
    assert not os.path.exists("runs.db")


def test_the_test_runner_knows_if_exists(flow_runner):
    """As every other option."""
    how = {"journal": MemoryJournal(), "run_id": "r", "if_exists": "resume"}
    for _ in range(2):
        assert flow_runner.run(du.line, **how)["third"] == 3
    assert CALLS == ["first", "second", "third"]


def test_if_exists_is_not_an_option_of_resume():
    """The run exists, or it is an error."""
    with pytest.raises(TypeError, match="resume\\(\\) has no option 'if_exists'"):
        du.first.resume("r", journal="runs.db", if_exists="resume")


# Nothing is left open.


@linux
def test_runs_that_are_kept_keep_nothing_open(run):
    """In files of their own; suspended and failed ones and their exceptions, too. They know their journals all the same."""
    # r-spade/ormah#83, facundoolano/feedi#52
    BROKEN.add("fragile")
    kept = [run(du.line, journal="0.db")]
    gc.collect()
    files = open_files()
    for n in range(1, 6):
        kept.append(run(du.line, journal=f"{n}.db"))
        kept.append(run(asks, journal=f"{n}.db"))
        with pytest.raises(RuntimeError) as raised:
            run(du.fragile, journal=f"{n}.db")
        kept.append(raised.value)
        with pytest.raises(CodeChangedError) as raised:
            pipeline(other("first"), approve).resume(kept[-2])
        kept.append(raised.value)
    assert open_files() <= files
    assert not our_threads()
    assert asks.resume(kept[2], {"ok": 1})["approve"] == 1
    assert du.line.resume(kept[1]).status == "completed"
    assert open_files() <= files


@linux
def test_a_run_does_not_keep_the_connection_of_its_journal(run):
    """That is the journal's, and is closed with it."""
    kept = [run(du.line, journal=SqliteJournal("0.db"))]
    gc.collect()
    files = open_files()
    kept += [run(du.line, journal=SqliteJournal(f"{n}.db")) for n in range(1, 6)]
    gc.collect()
    assert open_files() <= files
    assert du.line.resume(kept[-1]).status == "completed"
    assert open_files() <= files


def test_runs_at_a_time_share_a_connection_a_heartbeat_and_a_writer():
    """Thirty runs of one path in one loop."""
    opened = connections()

    async def gathered():
        everybody = asyncio.Barrier(30)

        @action
        async def wait():
            await everybody.wait()
            return lease_threads(), threading.active_count() - before

        return await asyncio.gather(*(pipeline(du.first, wait).arun(journal="runs.db") for _ in range(30)))

    before = threading.active_count()
    hearts, threads = zip(*(run.result for run in asyncio.run(gathered())), strict=True)
    assert opened() <= 2
    assert max(hearts) == 1
    assert min(threads) <= 3
    assert not our_threads()


def test_threads_share_a_connection():
    """Runs of one path, at the same time."""
    barrier = threading.Barrier(8)
    wait = action(name="wait")(barrier.wait)
    durable.fingerprint(barrier.wait)  # Python 3.11 does not parse in two threads at once
    opened = connections()
    came = together(*[lambda: wait.run(journal="runs.db")] * 8)
    assert kinds(came) == {"completed": 8}
    assert opened() <= 2


@pytest.mark.parametrize("how", ["--older-than", "ids"])
def test_purging_by_the_command_line_opens_no_connection_for_each_run(how):
    """Nor does a list of runs that have failed."""
    kept = SqliteJournal("runs.db")
    BROKEN.add("fragile")
    for n in range(20):
        du.fragile.run(journal=kept, run_id=f"{n}", check=False)
    opened = connections()
    assert main(["runs", "--json", "--journal", "runs.db"]) == 0
    which = ["--older-than", "0s"] if how == "--older-than" else [f"{n}" for n in range(20)]
    assert main(["purge", *which, "--journal", "runs.db"]) == 0
    assert runs("runs.db") == []
    assert opened() <= 5


@pytest.mark.parametrize("times", [1, 3])
def test_a_run_that_is_cancelled_releases_its_lease(times):
    """At any moment, any number of times, also while it cleans up."""

    async def layer(call):
        try:
            yield
        finally:
            await asyncio.sleep(0)

    async def waits():
        await asyncio.sleep(0.001)

    slow = pipeline(action(name="a")(waits), du.first, action(name="b")(waits), use=[layer])

    async def cancelled_after(turns):
        task = asyncio.ensure_future(slow.arun(journal="runs.db", run_id=f"{turns}"))
        for _ in range(turns):
            await asyncio.sleep(0.0003)
        while not task.done():
            task.cancel()
            for _ in range(times):
                await asyncio.sleep(0)
        return task

    for turns in range(20):
        task = asyncio.run(cancelled_after(turns))
        assert task.cancelled() or task.result().status == "completed"
    found = runs("runs.db")
    assert {run.owner for run in found} == {None}
    assert {str(run.status) for run in found} <= {"completed", "cancelled"}
    assert not our_threads()
    asyncio.run(slow.arun(journal="runs.db", run_id="19", if_exists="resume"))
    assert info("runs.db", "19").status == "completed"


def test_a_resume_that_is_cancelled_before_it_begins_leaves_the_run_as_it_was(journal):
    """It is suspended, and waits for its answer; so does a fork that never began."""
    asks.run(journal=journal, run_id="r")
    before = info(journal)

    async def cancelled(**how):
        task = asyncio.ensure_future(asks.aresume("r", {"ok": 1}, journal=journal, **how))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(cancelled())
    assert asyncio.run(cancelled(from_stage="approve"))
    assert info(journal) == before


def test_a_cancelled_task_that_is_refused_stays_cancelled(journal):
    """It was cancelled while it looked, and found the run busy: the cancellation is what counts."""
    came = []

    @action
    async def at_work():
        task = asyncio.ensure_future(at_work.arun(journal=journal, run_id="r"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        came.append(task.cancelled())

    asyncio.run(at_work.arun(journal=journal, run_id="r"))
    assert came == [True]


@pytest.mark.parametrize("turns", range(6))
def test_a_coroutine_that_is_closed_releases_the_lease(turns):
    """As one is that an event loop leaves behind: it cannot await anything, and ends all the same."""

    async def waits():
        await asyncio.sleep(60)

    cleaned = []

    def layer(call):
        try:
            yield
        finally:
            cleaned.append(call.name)

    slow = pipeline(du.first, action(name="waits")(waits), use=[layer])
    coroutine = slow.arun(journal="runs.db", run_id="r")

    async def begun():
        task = asyncio.ensure_future(coroutine)
        for _ in range(turns):
            await asyncio.sleep(0.002)
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(begun())
    coroutine.close()
    assert info("runs.db").owner is None
    assert info("runs.db").status == "cancelled"
    assert no_lease_is_renewed()
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()
    entered = info("runs.db").steps > 0
    assert cleaned == ["pipeline"] * entered or not turns


def test_nothing_needs_the_default_executor_of_the_loop():
    """It may be shut down, or busy for hours."""
    release = threading.Event()

    async def saturated():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, release.wait)
        await asyncio.wait_for(asks.arun(journal="runs.db", run_id="r"), 20)
        await asyncio.wait_for(asks.aresume("r", {"ok": 1}, journal="runs.db"), 20)
        release.set()
        await busy
        await loop.shutdown_default_executor()
        return await asyncio.wait_for(asks.arun(journal="runs.db", run_id="r", if_exists="resume"), 20)

    assert asyncio.run(saturated()).status == "completed"


# Forks.

BESIDE = """
import asyncio, os, signal, sys, threading, time
from flowdeco import action
from flowdeco.durable import MemoryJournal, SqliteJournal

@action
def one():
    return 1

flow = one >> one.with_options(name="b")
journal = {"path": "runs.db", "journal": SqliteJournal("runs.db"), "memory": MemoryJournal()}[sys.argv[1]]
flow.run(journal=journal)
asyncio.run(flow.arun(journal=journal))  # everything is imported
until = time.monotonic() + 2

def begin_runs(n):
    while time.monotonic() < until:
        if n % 2:
            asyncio.run(flow.arun(journal=journal))
        else:
            flow.run(journal=journal)

threads = [threading.Thread(target=begin_runs, args=(n,)) for n in range(3)]
for thread in threads:
    thread.start()
hung = 0
while time.monotonic() < until and not hung:
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        flow.run(journal=journal)
        asyncio.run(flow.arun(journal=journal))
        os._exit(0)
    hung += os.waitpid(pid, 0)[1] != 0
for thread in threads:
    thread.join()
from flowdeco.durable import runs
print("hung:", hung, {(run.status, run.owner) for run in runs(journal)})
"""


@forks
@pytest.mark.parametrize("which", ["path", "journal", "memory"])
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python warns of every fork beside threads")
def test_a_child_that_is_forked_beside_beginning_runs_can_run(which):
    """Threads begin runs, sync and async; what another one forks performs runs of its own, and does not hang."""
    # grantjenks/python-diskcache#299, coleifer/peewee#1088
    assert script(BESIDE, which) == "hung: 0 {('completed', None)}"


@forks
def test_a_run_continues_when_its_process_has_forked():
    """The child cannot write it, and may run others; the lease is renewed as before."""

    @action
    def fork():
        pid = os.fork()
        if not pid:
            status = 1
            with contextlib.suppress(BaseException):
                signal.alarm(20)
                with pytest.raises(RunBusyError):
                    job.resume("r", journal=journal)
                with pytest.raises(JournalError, match="active in the process that forked this one"):
                    journal.write("r", [Row("0", 9, "action", "s", "a", "completed", 1.0, 1.0, "", b"")])
                status = int(du.line.run(journal="runs.db", run_id="child").status != "completed")
            os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        lease = "SELECT lease FROM runs WHERE run_id = 'r'"
        with contextlib.closing(sqlite3.connect("runs.db")) as look:
            before = look.execute(lease).fetchone()
            for _ in range(500):  # nothing is written meanwhile
                time.sleep(0.01)
                if look.execute(lease).fetchone() != before:
                    return "renewed"
        return "forgotten"

    journal = SqliteJournal("runs.db", lease=0.2)
    job = fork >> du.first
    assert job.run(journal=journal, run_id="r")["fork"] == "renewed"
    assert {(run.id, run.status, run.owner) for run in runs("runs.db")} == {
        ("r", "completed", None),
        ("child", "completed", None),
    }
    assert no_lease_is_renewed()


@forks
@pytest.mark.parametrize("journal", [SqliteJournal, MemoryJournal])
def test_an_interrupt_while_the_process_forks_leaves_nothing_locked(tmp_path, monkeypatch, journal):
    """Python forks all the same: threads may begin runs afterwards, and the journal continues."""
    used = journal() if journal is MemoryJournal else journal(tmp_path / "runs.db", lease=0.2)

    @action
    def interrupted_fork():
        with monkeypatch.context() as patch:
            patch.setattr(sys, "unraisablehook", lambda unraisable: dropped.append(unraisable.exc_type))
            pid = os.fork()
            if not pid:
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0

    class Interrupted:
        def before_fork(self):
            raise KeyboardInterrupt

        def after_fork(self, *, in_child):
            after.append(in_child)

    dropped, after, found = [], [], []
    last = Interrupted()
    prepare_for_forks(last)
    (interrupted_fork >> du.first).run(journal=used, run_id="r")
    other = threading.Thread(target=lambda: found.append(du.line.run(journal=used)), daemon=True)
    other.start()
    other.join(20)
    assert [run.status for run in found] == ["completed"]
    assert (dropped, after) == ([KeyboardInterrupt], [False])
    assert {run.status for run in runs(used)} == {"completed"}


# Runs and exceptions, elsewhere.


class Custom(Exception):
    def __init__(self, code, *, why="because"):
        super().__init__(code)
        self.code = code

    def __reduce__(self):
        return Custom, (self.code,)


class Slots(Exception):
    __slots__ = ("code",)

    def __init__(self, code):
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


@dataclass
class Equal(Exception):
    """Two of them are equal, and cannot be hashed."""

    code: int


@dataclass(frozen=True, slots=True)
class FrozenSlots(Exception):
    code: int


ERRORS = [
    ValueError("bad"),
    Custom(3),
    Slots(1),
    Equal(1),
    OSError(2, "missing", "name"),
    KeyError("k"),
    ExceptionGroup("two", [ValueError("a"), Equal(2)]),
]


def raising(error):
    @action
    def bad(data):
        raise type(error)(*error.args)

    return bad


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_exception_of_a_durable_run_pickles_and_copies_as_before(run, error):
    """A process pool passes it on; it does not carry the run, which is found where it was raised."""
    # PrefectHQ/prefect#2178, apache/airflow#18183
    with pytest.raises(type(error)) as caught:
        run(raising(error), {"data": b"x" * 100_000}, journal="runs.db", run_id="r")
    raised = caught.value
    assert Run.of(raised).id == "r"
    pickled = pickle.dumps(raised)
    assert len(pickled) < 10_000
    for again in (pickle.loads(pickled), copy.copy(raised), copy.deepcopy(raised)):
        assert (type(again), str(again), repr(again)) == (type(raised), str(raised), repr(raised))
    with pytest.raises(LookupError):
        Run.of(pickle.loads(pickled))


@pytest.mark.parametrize("error", [Frozen(1), FrozenSlots(1), Slots(1), Equal(1)], ids=lambda e: type(e).__name__)
def test_the_run_behind_an_exception_that_takes_no_attributes(run, error):
    """Two equal ones have a run each."""
    # celery/celery#6185
    caught = []
    for name in ("one", "two"):
        with pytest.raises(type(error)) as raised:
            run(raising(error), {"data": 1}, run_id=name)
        caught.append(raised.value)
    assert [Run.of(one).id for one in caught] == ["one", "two"]


def test_a_run_goes_with_its_exception():
    """No table keeps them alive."""
    import weakref

    class Value:
        pass

    value = Value()
    alive = weakref.ref(value)
    for error in (ValueError("bad"), Frozen(1)):
        with contextlib.suppress(ValueError, Frozen):
            raising(error).run({"data": value})
    del value, error
    gc.collect()
    assert alive() is None


def local_layer():
    def layer(call):
        yield

    return layer


def unreferenced():
    return lambda value: value.code, lambda code: Slots(code)


JOURNALS = {
    "path": lambda: "runs.db",
    "sqlite": lambda: SqliteJournal("runs.db"),
    "json": lambda: SqliteJournal("runs.db", codec="json"),
    "registered": lambda: SqliteJournal("runs.db", codec=JsonCodec().register(Slots, *unreferenced())),
    "memory": MemoryJournal,
}


@pytest.mark.parametrize("which", JOURNALS)
def test_a_durable_run_can_be_pickled(run, which):
    """With its store; and resumed there, if its journal can be found again."""
    done = run(asks, {"n": 1}, journal=JOURNALS[which](), use=[local_layer()])
    again = pickle.loads(pickle.dumps(done))
    assert (again.id, again.status, dict(again.store)) == (done.id, "suspended", {"n": 1, "first": 1})
    assert names(again) == names(done)
    if which in ("path", "sqlite", "json"):
        assert asks.resume(again, {"ok": 1}, use=[local_layer()])["approve"] == 1
    else:
        with pytest.raises(DefinitionError, match="its journal could not be pickled with it"):
            asks.resume(again, {"ok": 1})
    assert copy.copy(done).id == done.id


def test_a_journal_can_be_pickled():
    """A copy has nothing open, and works on no run."""
    first = SqliteJournal("runs.db", codec="json", synchronous="FULL", lease=5, entry="flows.py:flow")
    first.create("r", "flow", b"{}", ())
    again = pickle.loads(pickle.dumps(first))
    assert (again.path, again.codec.name, again.synchronous, again.lease, again.entry) == (
        *(first.path, "json", "FULL", 5.0),
        "flows.py:flow",
    )
    with pytest.raises(JournalError, match="not open"):
        again.close("r", "failed", None, None)
    with pytest.raises(RunBusyError):
        again.open("r")
    first.close("r", "failed", None, None)


# Files that were put back, deleted, or forged.


def put_back(how):
    """Make a journal with one run, and a copy of it."""
    du.line.run(journal="runs.db")
    with contextlib.closing(sqlite3.connect("runs.db")) as connection:
        if how == "vacuum":
            connection.execute("VACUUM INTO 'copy.db'")
        elif how == "backup":
            with contextlib.closing(sqlite3.connect("copy.db")) as other:
                connection.backup(other)
        else:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if how == "cp":
        shutil.copyfile("runs.db", "copy.db")


@pytest.mark.parametrize("how", ["vacuum", "backup", "cp"])
@pytest.mark.parametrize("use", ["run", "runs", "resume"])
def test_a_journal_that_was_put_back_has_a_log_and_is_private_again(how, use):
    """Readers would block runs, and each step would wait for the disk; and everybody could read it."""
    # unisonweb/unison#4076
    before = os.umask(0o022)
    try:
        put_back(how)
        assert stat.S_IMODE(os.stat("copy.db").st_mode) == 0o644
        kept = SqliteJournal("copy.db")
        [first] = runs(kept) if use != "run" else [None]
        if use == "run":
            du.line.run(journal=kept)
        elif use == "resume":
            du.line.resume(first.id, journal=kept)
    finally:
        os.umask(before)
    with contextlib.closing(sqlite3.connect("copy.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    for name in ("copy.db", "copy.db-wal", "copy.db-shm"):
        if os.path.exists(name):
            assert stat.S_IMODE(os.stat(name).st_mode) == 0o600


def test_a_journal_that_a_group_may_read_stays_so():
    """Its owner has decided that."""
    du.line.run(journal="runs.db")
    os.chmod("runs.db", 0o640)
    du.line.run(journal="runs.db")
    assert stat.S_IMODE(os.stat("runs.db").st_mode) == 0o640


@pytest.mark.parametrize("error", [None, ValueError("mine"), Frozen(1)], ids=lambda error: type(error).__name__)
def test_a_run_whose_journal_is_deleted_says_so(error, caplog):
    """Also if it fails: the exception stays that of the action, and has a note of it."""

    @action
    def delete():
        for name in ("runs.db", "runs.db-wal", "runs.db-shm"):
            os.unlink(name)
        if error is not None:
            raise error

    run = delete.run(journal="runs.db", run_id="r", check=False)
    assert run.status == "failed"
    if error is None:
        assert "was deleted or replaced while run 'r' was running" in str(run.error)
    else:
        assert run.error is error
        assert "was deleted or replaced while run 'r' was running" in caplog.text
        assert isinstance(error, Frozen) or "was deleted or replaced" in text_of(error)


HEADS = [
    {"written": "many"},
    {"written": None},
    {"skip": "{"},
    {"skip": "[1]"},
    {"skip": "3"},
    {"status": "fine"},
    {"started": "now"},
    {"started": 1e400},
    {"pipeline": b"\xff"},
    {"error": 3},
    {"codec": b"pickle"},
    {"format": "3"},
]


@pytest.mark.parametrize("forged", HEADS, ids=str)
def test_a_run_whose_row_was_forged_is_damaged_and_hides_no_other(forged, capsys):
    """With a checksum that agrees; whoever asks for it gets a message, and a new id can be taken."""
    asks.run(journal="runs.db", run_id="r")
    asks.run(journal="runs.db", run_id="other")
    with contextlib.closing(sqlite3.connect("runs.db")) as connection:
        connection.execute("PRAGMA ignore_check_constraints = 1")
        columns = ", ".join(Head._fields)
        head = Head._make(connection.execute(f"SELECT {columns} FROM runs WHERE run_id = 'r'").fetchone())
        with contextlib.suppress(sqlite3.IntegrityError):  # NOT NULL
            [(name, value)] = forged.items()
            connection.execute(f"UPDATE runs SET {name} = ? WHERE run_id = 'r'", (value,))
            with contextlib.suppress(TypeError):
                checksum = head._replace(**forged).checksum
                connection.execute("UPDATE runs SET checksum = ? WHERE run_id = 'r'", (checksum,))
            connection.commit()
    assert info("runs.db", "other").status == "suspended"
    for call in (
        lambda: asks.resume("r", {"ok": 1}, journal="runs.db"),
        lambda: durable.read("runs.db", "r"),
        lambda: durable.history("runs.db", "r"),
        lambda: asks.run({"ok": 1}, journal="runs.db", run_id="r", if_exists="resume"),
    ):
        with contextlib.suppress(JournalError):
            call()
    assert asks.run(journal="runs.db", run_id="new", if_exists="resume").status == "suspended"
    with pytest.raises(RunNotFoundError):
        asks.resume("nobody", journal="runs.db")
    assert main(["runs", "--journal", "runs.db"]) == 0
    assert "other" in capsys.readouterr().out
    durable.delete("runs.db", "r")


@pytest.mark.parametrize(
    "columns",
    [{"pid": "x"}, {"pid": 2**62}, {"place": b"\xff"}, {"updated": "now"}, {"updated": b"1"}, {"host": 3}],
    ids=str,
)
def test_columns_that_no_checksum_covers_are_believed_only_if_they_make_sense(columns):
    """Those of the owner, and the time of the last change."""
    asks.run(journal="runs.db", run_id="r")
    with contextlib.closing(sqlite3.connect("runs.db")) as connection:
        forged = {"owner": "token", "host": "here", "pid": 1, "place": "there", "born": "", "lease": 1.0, **columns}
        connection.execute(f"UPDATE runs SET {', '.join(f'{name} = ?' for name in forged)}", list(forged.values()))
        connection.commit()
    assert info("runs.db").status == "suspended"
    assert durable.purge("runs.db", older_than=3600) == 0
    assert asks.resume("r", {"ok": 1}, journal="runs.db").status == "completed"


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ("status", "fine"),
        ("payload", ["no", "mapping"]),
        ("payload", ("only one",)),
        ("payload", {"puts": 3}),
        ("payload", {"in": [[1]]}),
        ("inputs", ["no", "mapping"]),
    ],
    ids=str,
)
def test_steps_that_were_forged_are_damage(journal, row, value):
    """With checksums that agree: a message that names the step, not a raw TypeError."""
    codec = PickleCodec()
    payload = codec.encode(value, "") if row == "payload" else codec.encode({}, "")
    journal.create("r", "pipeline", codec.encode(value if row == "inputs" else {}, ""), ())
    status = value if row == "status" else "completed"
    journal.write("r", [Row("0", 1, "action", "first", "first", status, 1.0, 1.0, "", payload)])
    journal.close("r", "failed", None, None)
    for call in (lambda: asks.resume("r", journal=journal), lambda: durable.read(journal, "r")):
        with pytest.raises(JournalError, match="damaged"):
            call()
    assert info(journal).status == "failed"


def test_a_journal_without_a_name_is_an_error(capsys, monkeypatch):
    """It would have been a run without a journal: a variable of the shell was not set."""
    Path("flows.py").write_text("from flowdeco import action\n@action\ndef flow():\n    print('ran')\n")
    for command in (["run", "flows.py:flow"], ["runs"], ["resume", "r"], ["purge", "r"]):
        monkeypatch.setenv("FLOWDECO_JOURNAL", "runs.db")
        assert main([*command, "--journal", ""]) == 2
        out, err = capsys.readouterr()
        assert "an empty string is not the path of a file" in err
        assert "ran" not in out
    with pytest.raises(JournalError):
        du.first.run(journal="")
    assert CALLS == []
