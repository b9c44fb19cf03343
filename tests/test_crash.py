"""Runs that are killed with SIGKILL, and resumed: nothing is lost, nothing is done twice (L10)."""

import os
import random
import signal
import socket
import time
from collections import Counter

import crash
import durable_flows
import durable_units
import pytest
from crash import Job, Kill
from support import NIGHTLY

from flowdeco.durable import SqliteJournal
from flowdeco.errors import JournalError, RunBusyError, RunNotFoundError

SEED = int(os.environ.get("FLOWDECO_SEED", "1"))
KILLS = 100 if NIGHTLY else 8  # of each kind


@pytest.fixture(autouse=True)
def no_test_hangs(no_test_hangs):
    """The nightly form takes its time."""
    if NIGHTLY:
        signal.setitimer(signal.ITIMER_REAL, 1800)


@pytest.fixture(scope="module")
def parent():
    """The process that forks those that die."""
    made = crash.Parent()
    yield made
    made.close()


def sure(flow):
    """Whether nothing in it fails or ends early: then every call has its step in the journal, but those that were killed."""
    return "fails=1" not in repr(flow) and "fails=2" not in repr(flow) and "fails=99" not in repr(flow)


def recorded(folder):
    """How often each action is in the journal."""
    try:
        rows = SqliteJournal(folder / "runs.db").history("r")
    except RunNotFoundError:
        return Counter()
    return Counter(row.action for row in rows if row.kind == "action" and row.status != "skipped")


def killed_until_done(parent, folder, chance, job):
    """Run, and be killed, and resume, until it is over; return what it came to, the kills, and the calls that were lost."""
    kills, lost = 0, Counter()
    how = job.how
    mode = "run"
    size = 6 * len(durable_flows.world.trace) + 8
    while True:
        prefix = "a" if how == "arun" else ""
        delay = chance.choice([0.0, 0.0, chance.uniform(0, 1e-3)])
        kill = Kill(chance.randrange(1, size), delay) if kills < 4 and chance.random() < 0.9 else Kill()
        (folder / "points").unlink(missing_ok=True)
        outcome = parent.call(folder, crash.work, job._replace(how=prefix + mode, kill=kill))
        assert not outcome.error
        if not outcome.signal:
            return outcome.value, kills, lost
        kills += 1
        calls = folder / "calls"
        made = Counter(calls.read_text().split() if calls.exists() else ())
        lost += made - recorded(folder) - lost
        try:
            SqliteJournal(folder / "runs.db").read("r")
            mode = "resume"
        except RunNotFoundError:
            assert not made
            mode = "run"


@pytest.mark.parametrize("executor", ["none", "threads", "processes"])
def test_a_killed_run_is_resumed_as_if_nothing_had_happened(parent, tmp_path, executor):
    """Random pipelines, killed at random moments: store, order, records, result; and no recorded action is called again."""
    chance = random.Random(f"{SEED} {executor}")
    kills = number = 0
    while kills < KILLS:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        parallel = executor != "none"
        flow = durable_flows.random_flow(chance, sure=parallel or chance.random() < 0.5)
        skip = tuple(chance.sample(["tag:t", "s3", "a4", "s2/a3", "s4/a5"], chance.choice([0, 0, 1])))
        durable_flows.enter(durable_flows.World())
        durable_flows.LIMIT = 1
        expected = durable_flows.came_to(durable_flows.unit(flow).run(skip=skip, check=False))
        calls = Counter(durable_flows.world.trace)
        how = chance.choice(["run", "run", "arun"])
        job = Job(str(folder), flow, how, skip, executor, limit=None if parallel else 1)
        came_to, killed, lost = killed_until_done(parent, folder, chance, job)
        kills += killed
        assert came_to == expected, job
        if sure(flow):
            assert Counter((folder / "calls").read_text().split() if calls else ()) == calls + lost, job
            assert parallel or sum(lost.values()) <= killed


# -- two processes


def begun(folder):
    """Wait until a held run has begun to wait."""
    until = time.monotonic() + 20
    while not (folder / "begun").exists():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_run_that_another_process_works_on_is_refused(parent, tmp_path):
    """The message names host and pid; when that process is through, the run is free."""
    pid = parent.start(tmp_path, crash.hold, str(tmp_path), "r")
    begun(tmp_path)
    with pytest.raises(RunBusyError) as busy:
        durable_units.held.resume("r", journal=tmp_path / "runs.db")
    assert str(pid) in str(busy.value)
    assert socket.gethostname() in str(busy.value)
    other = parent.call(tmp_path, crash.resume_held, str(tmp_path), "r")
    assert other.error.startswith("RunBusyError")
    assert str(pid) in other.error
    (tmp_path / "go on").touch()
    assert parent.wait(pid).value == "completed"
    assert durable_units.held.resume("r", journal=tmp_path / "runs.db")["second"] == 2


def test_two_processes_resume_the_same_run_and_one_of_them_runs(parent, tmp_path):
    """The other one is refused; the actions are called once."""
    failed = {"folder": str(tmp_path / "nowhere")}
    assert durable_units.held.run(failed, journal=tmp_path / "runs.db", run_id="r", check=False).status == "failed"
    pids = [parent.start(tmp_path, crash.resume_held, str(tmp_path), "r") for _ in range(4)]
    begun(tmp_path)
    while len(list(tmp_path.glob("result *"))) < 3:  # the others have come, and gone
        time.sleep(0.01)
    (tmp_path / "go on").touch()
    outcomes = [parent.wait(pid) for pid in pids]
    refused = [outcome.error for outcome in outcomes if outcome.error]
    assert [outcome.value["second"] for outcome in outcomes if not outcome.error] == [2]
    assert len(refused) == 3
    assert all("RunBusyError" in error for error in refused)


def test_a_run_whose_process_was_killed_is_free_at_once(parent, tmp_path):
    """Its lease has not run out, but nobody holds it any more."""
    pid = parent.start(tmp_path, crash.hold, str(tmp_path), "r")
    begun(tmp_path)
    os.killpg(pid, signal.SIGKILL)
    assert parent.wait(pid).signal == signal.SIGKILL
    (tmp_path / "go on").touch()
    since = time.monotonic()
    resumed = durable_units.held.resume("r", journal=tmp_path / "runs.db")
    assert time.monotonic() - since < 5
    assert (resumed.status, resumed["second"]) == ("completed", 2)


@pytest.mark.parametrize("how", ["run", "arun"])
def test_fifty_runs_of_four_processes_in_one_journal_lose_nothing(parent, tmp_path, how):
    """All at the same time; each run has all of its steps, and nothing of another."""
    shares = [(0, 13), (13, 13), (26, 12), (38, 12)]
    pids = [parent.start(tmp_path, crash.many, str(tmp_path), first, count, how) for first, count in shares]
    outcomes = [parent.wait(pid) for pid in pids]
    assert [outcome.error for outcome in outcomes] == [""] * 4
    stores = [store for outcome in outcomes for store in outcome.value]
    assert [store["numbers"] for store in stores] == [[[f"run {run}", n] for n in range(5)] for run in range(50)]
    journal = SqliteJournal(tmp_path / "runs.db")
    assert sorted((run.id, run.status, run.owner) for run in journal.runs()) == sorted(
        (f"run {number}", "completed", None) for number in range(50)
    )
    for number in (0, 17, 49):
        durable_units.clear()
        resumed = durable_units.numbers.resume(f"run {number}", journal=journal)
        assert dict(resumed.store) == stores[number]
        assert durable_units.CALLS == []
    assert {len(journal.history(run.id)) for run in journal.runs()} == {len(journal.history("run 0"))}


def test_many_runs_of_killed_processes_are_resumed(parent, tmp_path):
    """Four processes at work on one journal, killed at the same time: every run goes on."""
    shares = [(0, 5), (5, 5), (10, 5), (15, 5)]
    pids = [parent.start(tmp_path, crash.many, str(tmp_path), *share, "run") for share in shares]
    time.sleep(0.15)
    for pid in pids:
        os.killpg(pid, signal.SIGKILL)
    for pid in pids:
        parent.wait(pid)
    journal = SqliteJournal(tmp_path / "runs.db")
    whole = dict(durable_units.numbers.run({"n": 5, "run": "x"}).store)
    for run in journal.runs() if (tmp_path / "runs.db").exists() else ():
        resumed = durable_units.numbers.resume(run.id, journal=journal)
        assert dict(resumed.store) == {**whole, "run": run.id, "numbers": [[run.id, n] for n in range(5)]}


# -- torn and corrupted files


@pytest.fixture(scope="module")
def torn(tmp_path_factory, parent):
    """The files of a run that was killed, and what it is to come to."""
    folder = tmp_path_factory.mktemp("torn")
    pid = parent.start(folder, crash.hold_many, str(folder))
    begun(folder)
    os.killpg(pid, signal.SIGKILL)
    parent.wait(pid)
    files = {path.name: path.read_bytes() for path in folder.glob("runs.db*")}
    assert set(files) == {"runs.db", "runs.db-wal", "runs.db-shm"}
    (folder / "go on").touch()
    journal = SqliteJournal(folder / "runs.db")
    return files, folder, durable_flows.came_to(durable_units.long_held.resume("r", journal=journal))


DAMAGES = {
    "a byte": lambda chance, data: flipped(chance, data, 1),
    "many bytes": lambda chance, data: flipped(chance, data, 30),
    "the end": lambda chance, data: data[: chance.randrange(len(data))],
    "a page": lambda chance, data: zeroed(chance, data, 4096),
    "half a page": lambda chance, data: zeroed(chance, data, 2048),
    "two pages swapped": lambda chance, data: swapped(chance, data),
}


def flipped(chance, data, count):
    """Some bytes are others."""
    damaged = bytearray(data)
    for _ in range(count):
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def zeroed(chance, data, size):
    """A block is empty."""
    at = chance.randrange(0, max(1, len(data) // size)) * size
    return data[:at] + bytes(len(data[at : at + size])) + data[at + size :]


def swapped(chance, data):
    """Two pages have changed places."""
    pages = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    one, other = chance.randrange(len(pages)), chance.randrange(len(pages))
    pages[one], pages[other] = pages[other], pages[one]
    return b"".join(pages)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["runs.db", "runs.db-wal", "runs.db-shm"])
def test_a_damaged_journal_gives_a_clear_error_or_the_right_result(torn, tmp_path, damage, name):
    """Never a wrong result: what is resumed comes to the same, or a `JournalError` names the file."""
    files, folder, expected = torn
    chance = random.Random(f"{SEED} {damage} {name}")
    for number in range(60 if NIGHTLY else 6):
        place = tmp_path / str(number)
        place.mkdir()
        for file, data in files.items():
            (place / file).write_bytes(DAMAGES[damage](chance, data) if file == name else data)
        try:
            resumed = durable_units.long_held.resume("r", {"folder": str(folder)}, journal=place / "runs.db")
        except JournalError as error:
            assert "runs.db" in str(error)
        else:
            assert durable_flows.came_to(resumed) == expected


def test_a_journal_without_its_log_gives_a_clear_error_or_the_right_result(torn, tmp_path):
    """Somebody copied the file alone, while it was in use."""
    files, folder, expected = torn
    (tmp_path / "runs.db").write_bytes(files["runs.db"])
    try:
        resumed = durable_units.long_held.resume("r", {"folder": str(folder)}, journal=tmp_path / "runs.db")
    except JournalError as error:
        assert "runs.db" in str(error)
    else:
        assert durable_flows.came_to(resumed) == expected
