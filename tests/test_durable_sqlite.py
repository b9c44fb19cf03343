"""The journal in a file: what is written is there afterwards, once, whole, or there is an error that says so."""

import contextlib
import gc
import itertools
import json
import os
import random
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from datetime import timedelta
from pathlib import Path

import pytest

import flowdeco
from flowdeco import Stage, action, durable
from flowdeco.durable import JsonCodec, MemoryJournal, Row, RunInfo, SqliteJournal, file, owner, schema
from flowdeco.durable import rows as written
from flowdeco.durable import sqlite as module
from flowdeco.errors import (
    DefinitionError,
    JournalError,
    RunBusyError,
    RunExistsError,
    RunNotFoundError,
    SerializationError,
)


def row(number=0, branch="0", *, action="load", payload=b"did it", stage="fetch"):
    """A step that is over."""
    return Row(branch, number, "action", stage, action, "completed", 1e9 + number / 7, 0.1, "f00", payload)


def places(rows):
    return [(row.branch, row.number) for row in rows]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


@pytest.fixture
def journal(path):
    return SqliteJournal(path)


@pytest.fixture(params=["sqlite", "memory"])
def either(request, path):
    """Every journal keeps the protocol."""
    return SqliteJournal(path) if request.param == "sqlite" else MemoryJournal()


def begun(journal, run_id="r", rows=()):
    journal.create(run_id, "flow", b"inputs", ["tag:slow"])
    journal.write(run_id, rows)
    return journal


def script(source, *args):
    """Start a program that uses the library, in a process of its own."""
    root = Path(flowdeco.__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source), *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def said(process):
    line = process.stdout.readline().strip()
    assert line, "the program ended without a word"
    return line


def finish(process, status=0):
    with process:
        assert process.wait(50) == status


# The protocol.


def test_a_run_is_read_as_it_was_written(either):
    """Inputs, selectors, and steps, in the order of their writing."""
    rows = [row(0), row(1, stage="gröber\0[x]"), row(0, "1"), row(2, action=None)]
    begun(either, rows=rows[:1])
    either.write("r", rows[1:])
    found = either.read("r")
    assert (found.run_id, found.pipeline, found.status, found.reason) == ("r", "flow", "running", None)
    assert (found.skip, found.inputs, found.rows) == (("tag:slow",), [(0, b"inputs")], rows)
    assert abs(found.started - time.time()) < 60


def test_many_rows_are_written_at_once(either):
    """More than fit into one statement."""
    rows = [row(n) for n in range(100)]
    begun(either, rows=rows)
    assert either.read("r").rows == rows


def test_no_rows_are_no_work(either):
    """Writing nothing is not an error."""
    begun(either).write("r", [])
    assert either.read("r").rows == []


CONTINUATIONS = {
    "proceed": lambda journal: journal.proceed("r"),
    "inputs": lambda journal: journal.proceed("r", b"more"),
    "write": lambda journal: journal.write("r", [row(1)]),
    "drop": lambda journal: journal.drop("r", {"0": 0}),
    "add_inputs": lambda journal: journal.add_inputs("r", b"more"),
}


@pytest.mark.parametrize("act", CONTINUATIONS)
def test_a_closed_run_is_opened_as_it_is_and_running_when_it_continues(either, act):
    """`open` takes the lease, and changes nothing else; `release` after it returns to that state."""
    begun(either, rows=[row(0)]).close("r", "suspended", "approval", None)
    [before] = durable.runs(either)
    found = either.open("r")
    assert (found.status, found.reason, places(found.rows)) == ("suspended", "approval", [("0", 0)])
    [opened] = durable.runs(either)
    assert (opened._replace(owner=None), opened.owner is None) == (before, False)
    either.release("r")
    assert durable.runs(either) == [before]
    either.release("r")  # it holds nothing
    either.open("r")
    CONTINUATIONS[act](either)
    assert (either.read("r").status, either.read("r").reason) == ("running", None)
    either.release("r")
    assert (either.read("r").status, either.read("r").reason) == ("suspended", "approval")
    either.open("r")


def test_a_finished_run_is_opened_only_if_asked_for(either):
    """No lease is taken of it: any number may read it."""
    begun(either, rows=[row(0)]).close("r", "completed", None, None)
    [before] = durable.runs(either)
    assert either.open("r") == either.open("r") == either.read("r")
    assert durable.runs(either) == [before]
    either.open("r", finished=True)
    with pytest.raises(RunBusyError):
        either.open("r", finished=True)
    assert either.open("r").status == "completed"


def test_new_inputs_know_how_many_steps_were_there(either):
    """Also when a retry has dropped steps since."""
    begun(either, rows=[row(n) for n in range(4)]).close("r", "suspended", "x", None)
    either.open("r")
    either.add_inputs("r", b"more")
    either.write("r", [row(4)])
    assert either.read("r").inputs == [(0, b"inputs"), (4, b"more")]
    either.drop("r", {"0": 3})
    either.write("r", [row(3)])
    assert either.read("r").inputs == [(0, b"inputs"), (3, b"more")]


def test_dropped_steps_are_forgotten_and_their_numbers_used_again(either):
    """Of the named branches from the named numbers on, wherever they stand; branches without steps do no harm."""
    begun(either, rows=[row(0), row(0, "a"), row(1), row(1, "a"), row(0, "b"), row(2), row(0, "c"), row(2, "a")])
    either.drop("r", {"0": 1, "a": 2, "b": 0, "nothing": 0, "nor this": 7})
    assert places(either.read("r").rows) == [("0", 0), ("a", 0), ("a", 1), ("c", 0)]
    either.write("r", [row(1), row(2, "a"), row(0, "b")])
    either.close("r", "completed", None, None)
    assert places(either.open("r").rows)[-3:] == [("0", 1), ("a", 2), ("b", 0)]


class Branch:
    """A branch of a run that writes what the engine would, whatever happens to it."""

    def __init__(self, name, parent=None):
        self.name = name
        self.parent = parent
        self.number = 0
        self.open = []  # the numbers of its scopes that have not ended
        self.closed = []  # those that have, each with the number behind it
        self.forks = []  # its groups, each with the branches in it
        self.running = []  # branches of the group that it waits for

    def inside(self, number):
        """The branches of groups from this number on."""
        found = [branch for at, branches in self.forks if at >= number for branch in branches]
        return [*found, *(inner for branch in found for inner in branch.inside(0))]


class Story:
    """A run in which anything happens; `rows` are those that its journal must have."""

    def __init__(self, journal, seed):
        self.journal = begun(journal)
        self.chance = random.Random(seed)
        self.rows = []
        self.root = Branch("0")
        self.names = itertools.count()

    def happens(self):
        branch = self.root
        while branch.running:
            branch = self.chance.choice(branch.running)
        weights = {self.act: 8, self.begin: 5, self.end: 4, self.fork: 2, self.fail: 3, self.resume: 1}
        self.chance.choices(list(weights), list(weights.values()))[0](branch)

    def write(self, branch, number, kind, status):
        self.rows.append(Row(branch.name, number, kind, "s", None, status, 1.0, 0.1, "", b""))
        self.journal.write("r", self.rows[-1:])

    def act(self, branch, status="completed"):
        self.write(branch, branch.number, "action", status)
        branch.number += 1

    def begin(self, branch):
        branch.open.append(branch.number)
        branch.number += 1

    def end(self, branch, status="completed"):
        if branch.open:
            number = branch.open.pop()
            branch.closed.append((number, branch.number))
            self.write(branch, number, "stage", status)
        elif branch.parent is not None:
            branch.parent.running.remove(branch)
            if not branch.parent.running:
                self.write(branch.parent, branch.parent.number - 1, "group", status)

    def fork(self, branch):
        self.write(branch, branch.number, "group", "running")
        branch.running = [Branch(f"b{next(self.names)}", branch) for _ in range(self.chance.randint(1, 3))]
        branch.forks.append((branch.number, list(branch.running)))
        branch.number += 1

    def fail(self, branch):
        """Close scopes until one of them runs again."""
        self.act(branch, "failed")
        again = self.chance.randint(1, 5)  # scopes outwards
        while branch is not None:
            while branch.open:
                again -= 1
                if not again:
                    self.drop({branch: branch.open[-1] + 1})
                    return
                self.end(branch, "failed")
            if branch.parent is not None:
                branch.parent.running.clear()
                self.write(branch.parent, branch.parent.number - 1, "group", "failed")
            branch = branch.parent

    def drop(self, numbers):
        inner = [each for branch, number in numbers.items() for each in branch.inside(number)]
        cuts = {branch.name: number for branch, number in [*numbers.items(), *((each, 0) for each in inner)]}
        for branch, number in numbers.items():
            branch.number, branch.running = number, []
            branch.forks = [fork for fork in branch.forks if fork[0] < number]
            branch.closed = [scope for scope in branch.closed if scope[0] < number]
        self.rows = [each for each in self.rows if each.number < cuts.get(each.branch, each.number + 1)]
        self.journal.drop("r", cuts)
        assert self.journal.read("r").rows == self.rows

    def resume(self, _):
        """Every open scope fails, and is entered again; perhaps one that had ended does not hold any more."""
        live = [self.root]
        for branch in live:
            live += branch.running
        for branch in reversed(live):
            for number in reversed(branch.open):
                self.write(branch, number, "stage", "failed")
        self.journal.close("r", "failed", None, None)
        self.journal.open("r")
        changed = self.chance.choice([each for each in live if not each.running] or live)
        ended = [scope for scope in changed.closed if scope[0] + 1 < scope[1] == changed.number]
        if ended and not changed.running:
            number, behind = ended[0]
            self.drop({changed: self.chance.randrange(number + 1, behind)})
            reopened = [scope[0] for scope in changed.closed if scope[1] > changed.number]
            changed.closed = [scope for scope in changed.closed if scope[0] not in reopened]
            changed.open += sorted(reopened)
            for at in sorted(reopened):
                self.write(changed, at, "stage", "running")


@pytest.mark.parametrize("seed", range(25))
def test_what_a_retry_drops_is_gone_whatever_has_happened_before(either, seed):
    """Of nested scopes and groups, over several resumes, which leave rows of failed steps between others."""
    story = Story(either, seed)
    for _ in range(200):
        story.happens()
    story.drop({story.root: 0})
    assert story.rows == []


def test_a_journal_goes_without_waiting_for_its_thread(path):
    """At the end of a process that thread is frozen, perhaps with the lock of the event that it waits for."""
    journals = [begun(SqliteJournal(path))]
    _, stop, _ = journals[0]._file._heart

    def forget():
        journals.clear()
        gc.collect()

    with stop._cond:
        forgetting = threading.Thread(target=forget, daemon=True)
        forgetting.start()
        forgetting.join(30)
        assert not forgetting.is_alive()


def test_what_is_damaged_meanwhile_does_not_hold_up_a_retry(journal):
    """It is noticed when the run is read."""
    begun(journal, rows=[row(n) for n in range(4)])
    journal._file.connection.execute("UPDATE log SET what = 'other' WHERE number = 1")
    journal._file.connection.execute("UPDATE log SET what = x'ff' WHERE number = 2")
    journal.drop("r", {"0": 3})
    with pytest.raises(JournalError, match="step 1 of run 'r' does not agree"):
        journal.read("r")


def test_dropping_costs_what_is_dropped_not_what_is_there(journal, monkeypatch):
    """The steps of the failed attempt are looked at, and no others."""
    begun(journal, rows=[row(n) for n in range(5000)])
    journal.write("r", [row(0, "branch"), row(1, "branch")])
    steps = []
    journal._file.connection.set_progress_handler(lambda: steps.append(1), 100)
    journal.drop("r", {"0": 4999, "branch": 0, "empty": 0})
    assert len(steps) < 20
    assert len(journal.read("r").rows) == 4999


def retried(journal, loops):
    """Return how much work it was to drop the first attempt of a stage, and of one in each branch of a group, so often."""
    steps = []
    begun(journal, f"{loops}")
    for n in range(loops):
        number, branches = 3 * n, [f"{n}a", f"{n}b"]
        for _ in range(2):
            for branch in branches:
                journal.write(f"{loops}", [row(2, branch), row(1, branch, action=None)._replace(kind="stage")])
        journal.write(f"{loops}", [row(number + 1), row(number + 2)])
        journal._file.connection.set_progress_handler(lambda: steps.append(1), 10)
        journal.drop(f"{loops}", {branches[1]: 1, "none": 0})
        journal.drop(f"{loops}", {"0": number + 1, branches[0]: 0, branches[1]: 0})
        journal._file.connection.set_progress_handler(None, 0)
        rows = [row(2, branches[0]), row(number + 1), row(number + 2), row(number, action=None)._replace(kind="stage")]
        journal.write(f"{loops}", rows)
    assert len(journal.read(f"{loops}").rows) == 4 * loops
    return len(steps)


def test_a_run_of_many_retries_takes_time_in_proportion(journal):
    """However much there is before a retry, and however many branches there were."""
    few = retried(journal, 50)
    assert 4 * few < retried(journal, 250) < 6 * few


def test_a_second_run_of_that_id_is_refused(either):
    """While it runs it is busy, and when it is over it exists."""
    begun(either)
    with pytest.raises(RunBusyError, match="'r'"):
        either.create("r", "flow", b"", ())
    either.close("r", "completed", None, None)
    with pytest.raises(RunExistsError, match="has a run 'r' already, completed|a run 'r' already, completed"):
        either.create("r", "flow", b"", ())


def test_an_unknown_run_is_named_with_what_is_there(either):
    """A LookupError, too."""
    begun(either, "orders-1")
    with pytest.raises(RunNotFoundError, match=r"no run 'orders-2'. Did you mean 'orders-1'\?"):
        either.open("orders-2")
    assert issubclass(RunNotFoundError, LookupError)


def test_who_has_not_opened_a_run_cannot_write_it(either):
    """Nor close it, nor forget steps of it."""
    begun(either).close("r", "completed", None, None)
    for call in (
        lambda: either.write("r", [row()]),
        lambda: either.drop("r", {"0": 0}),
        lambda: either.add_inputs("r", b""),
        lambda: either.close("r", "completed", None, None),
    ):
        with pytest.raises(JournalError, match="'r' is not open"):
            call()


def test_runs_are_listed_latest_first(either):
    """With the number of their steps, and who works on them."""
    begun(either, "first", [row(0), row(1)]).close("first", "failed", None, "ValueError: no")
    begun(either, "second", [row(0)])
    second, first = durable.runs(either)
    assert isinstance(first, RunInfo)
    assert (first.id, first.status, first.error, first.steps, first.owner) == (
        "first",
        "failed",
        "ValueError: no",
        2,
        None,
    )
    assert (second.id, second.status, second.steps, second.pipeline) == ("second", "running", 1, "flow")
    assert second.owner == f"process {os.getpid()} on host {socket.gethostname()}"
    assert first.started <= first.updated <= second.updated


def test_a_run_tells_where_its_pipeline_is_found(tmp_path):
    """It is noted when the run begins, kept when somebody else goes on, and replaced by who knows better."""
    path = tmp_path / "runs.db"
    begun(SqliteJournal(path, entry="flows.py:flow")).close("r", "failed", None, "ValueError: no")
    assert [(run.entry, run.codec) for run in durable.runs(path)] == [("flows.py:flow", "pickle")]
    again = SqliteJournal(path)
    again.open("r")
    again.close("r", "failed", None, None)
    assert durable.runs(path)[0].entry == "flows.py:flow"
    moved = SqliteJournal(path, entry="new/flows.py:flow")
    moved.open("r")
    moved.proceed("r")
    assert durable.runs(path)[0].entry == "new/flows.py:flow"


def test_history_is_the_steps_as_they_are(either):
    """Whatever they are written in."""
    begun(either, rows=[row(0), row(1)])
    assert durable.history(either, "r") == [row(0), row(1)]


def test_a_run_is_deleted_with_all_that_was_of_it(either):
    """But not while somebody works on it."""
    begun(either, rows=[row(0)])
    with pytest.raises(RunBusyError):
        durable.delete(either, "r")
    either.close("r", "completed", None, None)
    durable.delete(either, "r")
    with pytest.raises(RunNotFoundError):
        either.read("r")
    begun(either)
    assert either.read("r").rows == []


def test_purge_deletes_old_runs_but_never_running_ones(either):
    """By age, in seconds or as a timedelta, and by status."""
    for run_id, status in (("a", "completed"), ("b", "failed"), ("c", "completed")):
        begun(either, run_id).close(run_id, status, None, None)
    begun(either, "live")
    assert durable.purge(either, older_than=3600) == 0
    assert durable.purge(either, older_than=timedelta(seconds=-60), status="failed") == 1
    assert durable.purge(either, older_than=-60, status=["completed", "bailed"]) == 2
    assert [run.id for run in durable.runs(either)] == ["live"]


_SECONDS = "older_than is a number of seconds, or a timedelta, not "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"older_than": "30 days"}, _SECONDS + "'30 days'"),
        ({"older_than": True}, _SECONDS + "True"),
        ({"older_than": 0, "status": 5}, "status is a collection of strings, not 5"),
        ({"older_than": 0, "status": [5]}, "status is a collection of non-empty strings; 5 is not one"),
        ({"older_than": 0, "status": "faild"}, "no run has the status 'faild'. Did you mean 'failed'"),
    ],
)
def test_purge_says_what_it_takes(either, options, message):
    """Nothing is deleted by mistake, and nothing is kept in silence."""
    begun(either).close("r", "failed", None, None)
    with pytest.raises(DefinitionError) as caught:
        durable.purge(either, **options)
    assert str(caught.value).startswith(message)
    assert len(durable.runs(either)) == 1


# The file.


def test_the_file_is_made_for_its_owner_only(journal, path):
    """Also what SQLite puts beside it, whatever the umask."""
    before = os.umask(0)
    try:
        begun(journal, rows=[row()])
    finally:
        os.umask(before)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["runs.db", "runs.db-shm", "runs.db-wal"]
    assert [oct(file.stat().st_mode & 0o777) for file in files] == ["0o600"] * 3


def test_reading_makes_no_file(journal, path):
    """A mistyped path is an error, not a new journal."""
    for call in (journal.runs, lambda: journal.open("r"), lambda: journal.read("r")):
        with pytest.raises(RunNotFoundError, match="there is no journal"):
            call()
    assert not path.exists()


def test_people_can_read_it_with_the_shell(journal, path):
    """Names, statuses and times in columns, payloads in blobs; a view that joins them."""
    begun(journal, rows=[row(0)]).close("r", "failed", None, "ValueError: no")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT run_id, pipeline, status, error, codec FROM runs").fetchall() == [
            ("r", "flow", "failed", "ValueError: no", "pickle")
        ]
        assert connection.execute("SELECT * FROM history").fetchall() == [
            ("r", 0, "0", 0, "action", "fetch", "load", "completed", "2001-09-09 01:46:40.000", 0.1, 6)
        ]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_names_need_not_be_valid_text(journal):
    """Stages named after files have lone surrogates, where a file's name is no UTF-8."""
    rows = [row(0, stage="load[\udcff]"), row(1, action="\udc80"), row(2, stage='say ["hi","you"]', action="C:\\new")]
    begun(journal, rows=rows)
    assert journal.read("r").rows == rows
    with contextlib.closing(sqlite3.connect(journal.path)) as connection:
        found = connection.execute("SELECT stage, action FROM history WHERE number = 2").fetchone()
    assert found == ('say ["hi","you"]', "C:\\new")


def test_synchronous_is_as_asked(path):
    """NORMAL by default; FULL waits for the disk."""
    for synchronous, number in ((None, 1), ("FULL", 2)):
        journal = SqliteJournal(path, **({"synchronous": synchronous} if synchronous else {}))
        begun(journal, str(number))
        assert journal._file.connection.execute("PRAGMA synchronous").fetchone() == (number,)
        journal.close(str(number), "completed", None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"synchronous": "OFF"}, "'NORMAL' or 'FULL'"),
        ({"codec": "yaml"}, "'pickle', 'json' or a Codec"),
        ({"lease": 0}, "positive number of seconds"),
        ({"lease": True}, "positive number of seconds"),
    ],
)
def test_options_are_checked(path, options, message):
    """What makes no sense says what does."""
    with pytest.raises(JournalError, match=message):
        SqliteJournal(path, **options)


def test_a_journal_is_a_path_or_a_journal(tmp_path):
    """Anything else is an error, and so is what SQLite would keep in memory."""
    journal = durable.as_journal(tmp_path / "x.db")
    assert isinstance(journal, SqliteJournal)
    assert durable.as_journal(journal) is journal
    assert durable.as_journal(str(tmp_path / "x.db")).path == journal.path
    for other in (7, SqliteJournal):
        with pytest.raises(JournalError, match="a path or a journal"):
            durable.as_journal(other)
    for path in ("", ":memory:"):
        with pytest.raises(JournalError, match="MemoryJournal"):
            SqliteJournal(path)


def test_a_run_is_read_in_the_codec_that_it_was_written_in(path):
    """Never by another one: JSON readers must not be handed a pickle. Its history can be seen all the same."""
    begun(SqliteJournal(path), rows=[row()])
    other = SqliteJournal(path, codec="json")
    for call in (other.read, other.open):
        with pytest.raises(JournalError, match="codec 'pickle', not 'json'.*codec='pickle'"):
            call("r")
    assert other.history("r") == [row()]
    assert isinstance(SqliteJournal(path, codec=JsonCodec()).codec, JsonCodec)


def test_the_connection_is_closed_with_the_journal(path):
    """No file stays open, and nothing warns."""
    journal = begun(SqliteJournal(path), rows=[row()])
    journal.close("r", "completed", None, None)
    del journal
    gc.collect()
    assert [file.name for file in path.parent.iterdir()] == ["runs.db"]


# Not a journal; not whole.


def test_a_file_of_something_else_is_refused(path):
    """Text, and databases of other programs, which stay as they are."""
    path.write_bytes(b"this is no database, but it is long enough to be one" * 100)
    with pytest.raises(JournalError, match="is not a journal, or is damaged"):
        begun(SqliteJournal(path))
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(JournalError, match="not a journal of flowdeco"):
        begun(SqliteJournal(path))
    assert path.read_bytes() == before


def test_a_file_of_a_newer_version_asks_for_an_upgrade(path):
    """It may say more than this version understands."""
    begun(SqliteJournal(path)).close("r", "completed", None, None)
    gc.collect()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    with pytest.raises(JournalError, match="newer flowdeco.*pip install -U flowdeco"):
        SqliteJournal(path).read("r")


def test_a_file_of_version_6_is_migrated(path):
    """Its runs are read and resumed; nobody knows when they were resumed before."""
    begun(SqliteJournal(path), rows=[row()]).close("r", "failed", None, "no")
    gc.collect()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript("DROP TABLE legs; PRAGMA user_version = 6")
    journal = SqliteJournal(path)
    assert (journal.read("r").rows, journal.read("r").legs) == ([row()], [])
    journal.open("r")
    journal.proceed("r")
    journal.write("r", [row(number=1)])
    journal.close("r", "completed", None, None)
    ((rows, started),) = journal.read("r").legs
    assert (rows, started) == (1, pytest.approx(time.time(), abs=60))


VERSION_1 = """
CREATE TABLE steps (
    id INTEGER PRIMARY KEY, branch TEXT NOT NULL, number INTEGER NOT NULL, kind TEXT NOT NULL, stage TEXT NOT NULL,
    action TEXT, status TEXT NOT NULL, started REAL NOT NULL, elapsed REAL NOT NULL, fingerprint TEXT NOT NULL,
    checksum INTEGER NOT NULL, payload BLOB NOT NULL
);
CREATE INDEX branches ON steps (id >> 32, branch) WHERE number < 2;
CREATE VIEW history AS SELECT * FROM steps;
CREATE VIEW mine AS SELECT stage FROM history;
PRAGMA user_version = 1
"""
VERSION_2 = """
ALTER TABLE runs DROP COLUMN format;
DROP INDEX branches;
ALTER TABLE log DROP COLUMN begins;
CREATE INDEX branches ON log (id >> 32, substr(what, 1, instr(what, ','))) WHERE number < 2;
PRAGMA user_version = 2
"""


def as_version_2(path):
    """Make a journal what it was when all runs numbered their steps in the order of writing."""
    gc.collect()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(VERSION_2)
        check_heads(connection, module.Head._fields[:-1])


def check_heads(connection, fields):
    """Make the checksums of runs those of these columns."""
    for head in connection.execute(f"SELECT {', '.join(fields)} FROM runs").fetchall():
        checksum = zlib.crc32(json.dumps(head).encode())
        connection.execute("UPDATE runs SET checksum = ? WHERE id = ?", (checksum, head[0]))


def as_version_1(path):
    """Make a journal what it was with a column for each name."""
    as_version_2(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        found = connection.execute("SELECT * FROM steps").fetchall()
        connection.executescript(f"DROP VIEW history; DROP VIEW steps; DROP TABLE log;{VERSION_1}")
        connection.execute("ALTER TABLE runs DROP COLUMN given")
        check_heads(connection, module.Head._fields[:-2])
        for id, branch, number, kind, stage, action, status, started, elapsed, fingerprint, _, payload in found:
            text = "\0".join([branch, kind, stage, action or "", status, fingerprint]).encode("utf-8", "surrogatepass")
            checksum = zlib.crc32(struct.pack("<qqdd", id, number, started, elapsed) + text + payload)
            if "\udcff" in stage:
                stage = stage.encode("utf-8", "surrogatepass")
            columns = id, branch, number, kind, stage, action, status, started, elapsed, fingerprint, checksum, payload
            connection.execute(f"INSERT INTO steps VALUES ({', '.join('?' * 12)})", columns)


OLD = "written by an earlier version of flowdeco.*listed and shown, not resumed. Start it again, or finish it with that"


@pytest.mark.parametrize("version", [as_version_1, as_version_2])
def test_runs_of_an_earlier_version_are_kept_but_not_resumed(path, version):
    """They are listed, shown, deleted and purged. New ones in that file are as any other."""
    rows = [row(0), row(1, stage="grün"), row(0, "b"), row(2, action=None)]
    for run_id in ("r", "other", "done"):
        begun(SqliteJournal(path), run_id, rows).close(run_id, "failed", None, "it broke")
    version(path)
    assert [(run.id, run.status, run.error, run.steps) for run in durable.runs(path)] == [
        (run_id, "failed", "it broke", 4) for run_id in ("done", "other", "r")
    ]
    assert durable.history(path, "r") == rows
    journal = SqliteJournal(path)
    for call in (journal.open, journal.read):
        with pytest.raises(JournalError, match=f"run 'r' of .* {OLD}"):
            call("r")
    with pytest.raises(RunExistsError, match="has a run 'r' already, failed: delete it, or use another run_id"):
        begun(journal)
    with pytest.raises(JournalError, match=OLD):
        Stage("s", [one]).resume("r", journal=path)
    assert [run.owner for run in durable.runs(path)] == [None] * 3
    durable.delete(path, "r")
    assert durable.purge(path, older_than=0, status="failed") == 2
    begun(journal, rows=rows).close("r", "suspended", "x", None)
    assert journal.open("r").rows == rows
    journal.drop("r", {"0": 1, "b": 0})
    assert journal.read("r").rows == rows[:1]


def test_a_process_of_an_earlier_version_finishes_its_runs_in_a_file_that_was_migrated(path):
    """It has the file open, and does not notice."""
    begun(SqliteJournal(path), rows=[row(0)]).close("r", "running", None, None)
    as_version_2(path)
    with contextlib.closing(sqlite3.connect(path)) as old:
        log = ", ".join(name for _, name, *_ in old.execute("PRAGMA table_info(log)"))
        runs = ", ".join(name for _, name, *_ in old.execute("PRAGMA table_info(runs)"))
        assert len(SqliteJournal(path).history("r")) == 1
        old.execute(f"INSERT INTO runs ({runs}) SELECT {runs.replace('id, run_id', '2, 2', 1)} FROM runs")
        old.execute(f"INSERT INTO log ({log}) SELECT {log.replace('id', 'id + (1 << 32)', 1)} FROM log")
        check_heads(old, module.Head._fields[:-1])
        assert len(old.execute("SELECT * FROM history").fetchall()) == 2
        old.commit()
    assert {(run.id, run.status) for run in durable.runs(path)} == {("r", "running"), ("2", "running")}
    with pytest.raises(JournalError, match=OLD):
        SqliteJournal(path).open("2")


@pytest.mark.parametrize("version", [2, 4])
def test_the_format_of_a_run_is_part_of_its_checksum(path, version):
    """One that is taken for another would be resumed with the numbers of other steps."""
    begun(SqliteJournal(path), rows=[row(0)]).close("r", "failed", None, None)
    if version == 2:
        as_version_2(path)
        assert [run.status for run in durable.runs(path)] == ["failed"]
    gc.collect()
    for other in {1, 2, 3, 4, 5, "x"} - {version}:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE runs SET format = ?", (other,))
            connection.commit()
        with pytest.raises(JournalError, match="does not agree with its checksum"):
            SqliteJournal(path).open("r")


def test_a_file_of_version_1_is_migrated(path):
    """Which had a column for each name; the runs are as they were, and what was damaged is not mended by it."""
    rows = [row(0), row(1, stage="grün"), row(0, "b"), row(2, action=None)]
    journal = begun(begun(SqliteJournal(path), rows=rows), "damaged", rows=[row(0), row(1), row(2)])
    journal.close("r", "suspended", "x", None)
    journal.close("damaged", "failed", None, "it broke")
    del journal
    as_version_1(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE steps SET status = 'failed' WHERE id = (SELECT max(id) FROM steps)")
        connection.execute("UPDATE steps SET action = CAST(x'ff' AS TEXT) WHERE id = (SELECT max(id) - 1 FROM steps)")
        connection.execute("PRAGMA writable_schema = ON")  # as if a page were damaged
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'started REAL NOT NULL', 'started REAL')")
        connection.commit()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE steps SET started = NULL WHERE id = (SELECT max(id) FROM steps)")
        connection.commit()
    journal = SqliteJournal(path)
    assert journal.history("r") == rows
    with pytest.raises(JournalError, match="step 1 of run 'damaged' does not agree with its checksum"):
        journal.history("damaged")
    assert journal._file.connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
    assert journal._file.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    names = (
        "SELECT group_concat(name, ' ') FROM (SELECT name FROM sqlite_master WHERE name NOT LIKE '%auto%' ORDER BY 1)"
    )
    assert journal._file.connection.execute(names).fetchone() == (
        "answers blobs branches chunks history inputs legs log mine outcomes referring refs runs steps waiting working",
    )


def test_migrations_are_made_one_after_the_other(path, monkeypatch):
    """In one transaction: a file is of one version or another."""
    begun(SqliteJournal(path), rows=[row()]).close("r", "completed", None, None)
    gc.collect()
    now = schema.VERSION

    def step(to, broken=False):
        def migrate(connection):
            connection.execute(f"ALTER TABLE log ADD COLUMN added_{to}")
            connection.execute(f"PRAGMA user_version = {to}")
            assert not broken

        return migrate

    monkeypatch.setattr(file, "VERSION", now + 2)
    monkeypatch.setattr(file, "MIGRATIONS", {now: step(now + 1), now + 1: step(now + 2, broken=True)})
    with pytest.raises(AssertionError):
        SqliteJournal(path).read("r")
    monkeypatch.setattr(file, "MIGRATIONS", {now: step(now + 1), now + 1: step(now + 2)})
    journal = SqliteJournal(path)
    assert journal.read("r").rows == [row()]
    assert journal._file.connection.execute("PRAGMA user_version").fetchone() == (now + 2,)
    assert journal._file.connection.execute(f"SELECT added_{now + 1}, added_{now + 2} FROM log").fetchall() == [
        (None, None)
    ]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE log SET payload = x'00' WHERE number = 1",
        "UPDATE log SET what = replace(what, 'completed', 'failed') WHERE number = 1",
        "UPDATE log SET what = 'other' WHERE number = 1",
        "UPDATE log SET what = x'ff' WHERE number = 1",
        "UPDATE log SET what = printf('%.*c\\', 100000, '[') WHERE number = 1",
        "UPDATE log SET what = CAST(x'5b22ff' AS TEXT) WHERE number = 1",
        "UPDATE log SET number = 'one' WHERE number = 1",
        "UPDATE log SET started = started + 1 WHERE number = 1",
        "UPDATE log SET id = id + 7 WHERE number = 2",
        "DELETE FROM log WHERE number = 0",
        "DELETE FROM log WHERE number = 1",
        "DELETE FROM log WHERE number = 2",
        "UPDATE runs SET status = 'completed'",
        "UPDATE runs SET pipeline = x'ff00'",
        "UPDATE runs SET skip = '[]'",
        "UPDATE runs SET dropped = 1",
        "DELETE FROM inputs",
        "UPDATE inputs SET payload = x'00'",
        "UPDATE inputs SET position = 3",
        "UPDATE inputs SET payload = CAST(payload AS TEXT)",
    ],
)
def test_what_was_changed_by_hand_is_noticed(path, damage):
    """A row that does not agree with its checksum, or is missing."""
    begun(SqliteJournal(path), rows=[row(n) for n in range(3)]).close("r", "failed", None, None)
    gc.collect()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(damage)
        connection.commit()
    for call in (SqliteJournal(path).read, SqliteJournal(path).open):
        with pytest.raises(JournalError, match="damaged"):
            call("r")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT owner FROM runs").fetchone() == (None,)


@pytest.mark.parametrize("change", ["lease = NULL", "lease = 'soon'", "pid = 'me'", "host = x'ff', lease = NULL"])
def test_an_owner_that_was_changed_by_hand_holds_up_nobody(path, change):
    """No checksum covers who works on a run; the others of the file are listed all the same."""
    journal = begun(begun(SqliteJournal(path)), "other")
    journal.close("r", "failed", None, None)
    journal._file.connection.execute(f"UPDATE runs SET owner = 'me', {change} WHERE run_id = 'r'")
    other = SqliteJournal(path)
    assert [run.id for run in other.runs()] == ["other", "r"]
    with contextlib.suppress(RunBusyError):  # where its host and process are those of somebody
        other.open("r")


def test_what_interrupts_the_beginning_of_a_transaction_leaves_none(journal):
    """Or nothing could be written any more, or worse: it would never be committed."""
    begun(journal)

    class Interrupted:
        def __init__(self, connection):
            self.connection = connection

        def execute(self, statement):
            self.connection.execute(statement)
            if statement.startswith("BEGIN"):
                raise KeyboardInterrupt

        in_transaction = property(lambda self: self.connection.in_transaction)

    with pytest.raises(KeyboardInterrupt), file.transaction(Interrupted(journal._file.connection)):
        pass
    assert not journal._file.connection.in_transaction


def test_a_damaged_run_is_listed_as_such_and_can_be_deleted(path):
    """It does not hide the others."""
    begun(begun(SqliteJournal(path)), "other").close("r", "failed", None, None)
    gc.collect()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE runs SET pipeline = 'another' WHERE run_id = 'r'")
        connection.commit()
    assert {run.id: run.status for run in durable.runs(path)} == {"r": "damaged", "other": "running"}
    assert durable.purge(path, older_than=60) == 0
    durable.delete(path, "r")
    assert [run.id for run in durable.runs(path)] == ["other"]


def test_the_id_of_a_run_is_a_text(journal):
    """A number would come back as another id than it went."""
    with pytest.raises(JournalError, match="a run_id must be a string, not 3"):
        begun(journal, 3)
    assert not Path(journal.path).exists()


@pytest.mark.parametrize("written", [False, True])
def test_inputs_whose_writing_was_interrupted_do_no_damage(path, monkeypatch, written):
    """Whether they were written or not: the run is as whole as it was."""
    journal = begun(SqliteJournal(path))
    transaction = module.transaction

    @contextlib.contextmanager
    def interrupted(connection, kind="IMMEDIATE"):
        with transaction(connection, kind):
            yield
            if not written:
                raise KeyboardInterrupt
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "transaction", interrupted)
    with pytest.raises(KeyboardInterrupt):
        journal.add_inputs("r", b"more")
    monkeypatch.undo()
    journal.close("r", "cancelled", None, None)
    assert journal.open("r").inputs == [(0, b"inputs"), (0, b"more")][: 1 + written]


def test_the_inputs_of_a_resume_are_counted(path):
    """Without them, it would have come to something else."""
    journal = begun(SqliteJournal(path))
    for payload in (b"more", b"and more"):
        journal.close("r", "suspended", "x", None)
        journal.open("r")
        journal.add_inputs("r", payload)
    assert journal.read("r").inputs == [(0, b"inputs"), (0, b"more"), (0, b"and more")]
    journal._file.connection.execute("DELETE FROM inputs WHERE number = 2")
    with pytest.raises(JournalError, match="inputs of run 'r' are missing"):
        journal.read("r")


def test_steps_come_in_any_order_of_their_numbers(either):
    """A stage keeps the number that it took when it began; of a step that ran again there are two."""
    rows = [row(2), row(1, action=None), row(4, "b"), row(3), row(2), row(0, action=None), row(9)]
    begun(either, rows=rows).close("r", "failed", None, None)
    assert either.open("r").rows == either.history("r") == rows


@action
def one() -> int:
    return 1


@action
def two() -> int:
    return 2


@action
def broken() -> None:
    raise ValueError("no")


@pytest.mark.parametrize(("missing", "after"), [("one", 2), ("two", 3)])
def test_a_step_that_is_missing_below_a_finished_stage_is_damage(either, missing, after):
    """Although the rows that are there are as many as were written. The run stays as it is."""
    flow = Stage("whole", [one, two]) >> broken
    flow.run(journal=either, run_id="r", check=False)
    whole = either.read("r")
    rows = [row for row in whole.rows if row.action != missing]
    either.create("incomplete", whole.pipeline, whole.inputs[0][1], ())
    either.write("incomplete", rows)
    either.close("incomplete", whole.status, None, whole.error)
    with pytest.raises(JournalError, match=f"damaged: branch '0' has a gap before step {after}$"):
        flow.resume("incomplete", journal=either)
    found = either.open("incomplete")
    assert (found.status, found.error, found.rows) == ("failed", whole.error, rows)
    assert "ValueError: no" in found.error


def test_the_end_of_an_unfinished_run_may_be_missing(path):
    """After a loss of power, steps at the end are as if they had not happened; those before it are all there."""
    begun(SqliteJournal(path), rows=[row(n) for n in range(5)])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM log WHERE number >= 3")
        connection.commit()
    assert places(SqliteJournal(path).read("r").rows) == [("0", 0), ("0", 1), ("0", 2)]


def frozen(tmp_path):
    """A journal of two runs, as a crash leaves it: its files, and what they say."""
    path = tmp_path / "whole.db"
    journal = SqliteJournal(path)
    chance = random.Random(7)
    for run_id in ("failed", "crashed"):
        begun(journal, run_id, [row(n, payload=chance.randbytes(chance.choice((20, 300, 5000)))) for n in range(30)])
        journal.drop(run_id, {"0": 20})
        journal.write(run_id, [row(n) for n in range(20, 25)])
        if run_id == "failed":
            journal.close(run_id, "failed", None, None)
    journal._file.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for n in range(25, 30):
        journal.write("crashed", [row(n)])
    files = {suffix: Path(f"{path}{suffix}").read_bytes() for suffix in ("", "-wal")}
    return files, {run_id: journal.read(run_id) for run_id in ("failed", "crashed")}


@pytest.mark.parametrize("seed", range(6))
def test_a_torn_or_rotten_file_is_an_error_or_an_earlier_state_never_a_wrong_one(tmp_path, seed):
    """Bits flipped, sectors zeroed, ends cut off: of the file, and of the log beside it."""
    files, whole = frozen(tmp_path)
    chance = random.Random(seed)
    damaged = tmp_path / "damaged.db"
    for _ in range(60):
        found = {suffix: bytearray(content) for suffix, content in files.items()}
        target = found[chance.choice(["", "", "-wal"])]
        how, at = chance.random(), chance.randrange(len(target))
        if how < 0.6:
            target[at] ^= 1 << chance.randrange(8)
        elif how < 0.8:
            target[at : at + 512] = bytes(len(target[at : at + 512]))
        else:
            del target[at:]
        for suffix, content in found.items():
            Path(f"{damaged}{suffix}").write_bytes(content)
        journal = SqliteJournal(damaged)
        for run_id, expected in whole.items():
            try:
                actual = journal.read(run_id)
            except JournalError:
                continue
            assert actual._replace(rows=[]) == expected._replace(rows=[])
            assert actual.rows == expected.rows[: len(actual.rows)]
            assert run_id == "crashed" or actual.rows == expected.rows
        journal._file.disconnect()
        for damaged in tmp_path.glob("damaged*"):
            damaged.unlink()


def test_a_file_that_is_deleted_under_a_run_is_noticed_when_it_ends(journal, path):
    """Its steps went where nobody finds them; the next run gets a new file."""
    begun(journal, rows=[row()])
    for each in path.parent.iterdir():
        each.unlink()
    with pytest.raises(JournalError, match="deleted or replaced while run 'r' was running"):
        journal.close("r", "completed", None, None)
    begun(journal)
    assert path.exists()
    assert [run.id for run in durable.runs(path)] == ["r"]


# What cannot be written.


def test_a_full_disk_says_what_was_saved_and_what_to_do(journal, path):
    """A step is there or not, never half; the error of the write is not told twice; then there is room again."""
    begun(journal, rows=[row(0), row(1, action="parse")])
    journal._file.connection.execute("PRAGMA max_page_count = 20")
    with pytest.raises(JournalError) as caught:
        for number in range(2, 100):
            journal.write("r", [row(number, action=f"a{number}", payload=bytes(3000))])
    message = str(caught.value)
    saved = len(SqliteJournal(path).history("r"))
    assert 2 < saved < 30
    assert "the disk is full: make room" in message
    assert f"{saved} steps of run 'r' are saved, up to 'fetch/a{saved - 1}'; 'fetch/a{saved}' is not" in message
    assert f"resume('r', journal='{path}')" in message
    journal.close("r", "failed", None, "JournalError")
    journal._file.connection.execute("PRAGMA max_page_count = 100000")
    assert len(SqliteJournal(path).open("r").rows) == saved


def test_a_full_disk_at_any_moment_leaves_whole_steps(tmp_path):
    """A limit on the size of files, hit at random: what was acknowledged is there, and nothing else."""
    source = """
        import resource, signal, sys
        from flowdeco.durable import SqliteJournal, Row
        from flowdeco.errors import JournalError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        path, limit = sys.argv[1], int(sys.argv[2])
        journal = SqliteJournal(path)
        journal.create("r", "flow", b"", ())
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        number = 0
        try:
            while True:
                rows = [Row("0", number + n, "action", "s", "a", "completed", 1.0, 1.0, "", bytes(700)) for n in range(3)]
                journal.write("r", rows)
                number += 3
        except JournalError as error:
            assert f"{number} steps of run 'r' are saved" in str(error), error
            print(number, flush=True)
    """
    for limit in random.Random(3).sample(range(60_000, 600_000), 4):
        path = tmp_path / f"{limit}.db"
        process = script(source, path, limit)
        acknowledged = int(said(process))
        finish(process)
        assert len(SqliteJournal(path).open("r").rows) == acknowledged


def test_a_read_only_file_says_so(journal, path):
    """The write fails; what is there can be read."""
    begun(journal, rows=[row()])
    journal._file.connection.execute("PRAGMA query_only = 1")
    with pytest.raises(JournalError, match="is read-only: give this user write access.* 1 step of run 'r' is saved"):
        journal.write("r", [row(1)])
    assert journal.read("r").rows == [row()]


def test_a_directory_that_is_not_there_is_named(tmp_path):
    """It is not made: the path may be mistyped."""
    with pytest.raises(JournalError, match=f"runs.db cannot be created: there is no folder {tmp_path / 'missing'}$"):
        begun(SqliteJournal(tmp_path / "missing" / "runs.db"))


def test_a_folder_is_no_journal(tmp_path):
    """Said when the journal is named, not when a run begins."""
    with pytest.raises(JournalError, match="is a folder: give the path of a file, such as 'runs.db'"):
        SqliteJournal(tmp_path)


def test_a_value_too_large_for_the_file_is_refused(journal):
    """SQLite has a limit; the step before is there."""
    begun(journal, rows=[row(0)])
    journal._file.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)
    with pytest.raises(SerializationError, match=r"does not take a value of that size.*1 step .* 'fetch/load' is not"):
        journal.write("r", [row(1, payload=bytes(20_000))])
    journal.write("r", [row(1)])
    assert journal.read("r").rows == [row(0), row(1)]


def test_an_interrupted_write_leaves_the_journal_usable(journal, monkeypatch):
    """Ctrl-C may come before or after the step was saved: the journal looks."""
    begun(journal, rows=[row(0)])
    real = written._columns

    def interrupted(*args):
        monkeypatch.setattr(written, "_columns", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(written, "_columns", interrupted)
    with pytest.raises(KeyboardInterrupt):
        journal.write("r", [row(1)])
    journal.write("r", [row(1)])
    held = journal._held["r"]
    held.next, held.saved, held.doubtful = 1, 1, True  # as if the interrupt had come after the second step was saved
    journal.close("r", "cancelled", None, None)
    assert places(journal.open("r").rows) == [("0", 0), ("0", 1)]


# Leases.


def test_a_live_run_is_refused_naming_host_and_pid(journal, path):
    """To another journal of this process as well."""
    begun(journal)
    with pytest.raises(RunBusyError, match=f"process {os.getpid()} on host {socket.gethostname()}"):
        SqliteJournal(path).open("r")
    with pytest.raises(RunBusyError, match=f"process {os.getpid()} on host .*, which is this one: only one at a time"):
        SqliteJournal(path).create("r", "flow", b"", ())


OWNER = """
    import sys, time
    from flowdeco.durable import SqliteJournal, Row
    journal = SqliteJournal(sys.argv[1])
    journal.create("r", "flow", b"", ())
    journal.write("r", [Row("0", 0, "action", "s", "a", "completed", 1.0, 1.0, "", b"")])
    print("ready", flush=True)
    time.sleep(50)
"""


def test_a_killed_owner_is_recognised_at_once(path):
    """While it lives it is named; once it is dead, even as a zombie, the run can be taken up."""
    process = script(OWNER, path)
    said(process)
    with pytest.raises(RunBusyError, match=f"process {process.pid} on host"):
        SqliteJournal(path).open("r")
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(RunBusyError):
        SqliteJournal(path).open("r")
    process.send_signal(signal.SIGKILL)
    for _ in range(1000):  # without waiting for it: nobody has reaped it yet
        with contextlib.suppress(RunBusyError):
            found = SqliteJournal(path).open("r")
            break
        time.sleep(0.01)
    assert places(found.rows) == [("0", 0)]
    finish(process, -signal.SIGKILL)


def forge(path, **columns):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"UPDATE runs SET {', '.join(f'{name} = ?' for name in columns)}", list(columns.values()))
        connection.commit()


def test_a_pid_that_is_another_process_now_is_no_owner(journal, path):
    """The time of its start tells."""
    begun(journal)
    forge(path, pid=1, born="12345")
    assert SqliteJournal(path).open("r").run_id == "r"


def test_an_owner_elsewhere_is_believed_until_its_lease_expires(journal, path):
    """On another host, or in another process namespace: pids mean nothing there."""
    begun(journal)
    forge(path, host="elsewhere", place="another boot", pid=1)
    with pytest.raises(RunBusyError, match="process 1 on host elsewhere"):
        SqliteJournal(path).open("r")
    assert durable.runs(path)[0].owner == "process 1 on host elsewhere"
    forge(path, lease=time.time() - 1)
    assert durable.runs(path)[0].owner is None
    assert SqliteJournal(path).open("r").run_id == "r"


@pytest.mark.parametrize("act", ["write", "many", "drop", "add_inputs", "close"])
def test_who_has_lost_the_lease_notices_at_the_next_write(journal, path, act):
    """So two never write; the other one's steps stay as they are."""
    begun(journal, rows=[row(0)])
    forge(path, host="elsewhere", place="another boot", lease=0)
    other = SqliteJournal(path)
    other.open("r")
    other.write("r", [row(1, action="theirs")])
    calls = {
        "write": lambda: journal.write("r", [row(1)]),
        "many": lambda: journal.write("r", [row(n) for n in range(1, 30)]),
        "drop": lambda: journal.drop("r", {"0": 0}),
        "add_inputs": lambda: journal.add_inputs("r", b""),
        "close": lambda: journal.close("r", "failed", None, None),
    }
    with pytest.raises(
        JournalError, match=f"lease of run 'r' was lost: process {os.getpid()} on host .* took the run over"
    ):
        calls[act]()
    if act != "close":
        journal.close("r", "failed", None, None)  # raises nothing: it has been told
    other.close("r", "completed", None, None)
    found = other.read("r")
    assert (found.status, found.rows, found.inputs) == (
        "completed",
        [row(0), row(1, action="theirs")],
        [(0, b"inputs")],
    )


def test_a_run_that_was_deleted_elsewhere_cannot_be_written(journal, path):
    """The next write says so."""
    begun(journal)
    forge(path, host="elsewhere", place="another boot", lease=0)
    durable.delete(path, "r")
    with pytest.raises(JournalError, match="was deleted"):
        journal.write("r", [row()])
    journal.close("r", "failed", None, None)


def test_the_lease_is_renewed_while_a_run_is_open(path):
    """By a thread that ends with the last run, or with the journal."""

    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "flowdeco lease" and thread not in before]

    before = threading.enumerate()
    journal = SqliteJournal(path, lease=0.3)
    begun(journal)
    first = journal._file.connection.execute("SELECT lease FROM runs").fetchone()[0]
    for _ in range(500):
        time.sleep(0.01)
        if journal._file.connection.execute("SELECT lease FROM runs").fetchone()[0] > first + 0.15:
            break
    else:
        pytest.fail("the lease was not renewed")
    assert len(threads()) == 1
    journal.close("r", "completed", None, None)
    begun(journal, "forgotten")
    del journal
    gc.collect()
    for _ in range(500):
        time.sleep(0.01)
        if not threads():
            break
    assert threads() == []
    assert SqliteJournal(path).open("forgotten").run_id == "forgotten"


def test_who_owns_a_run_is_told_by_host_pid_and_birth():
    """This process lives; one with another birth, or without a process, does not."""
    me = owner.this_process("token")
    assert (me.pid, me.host, me.token) == (os.getpid(), socket.gethostname(), "token")
    assert owner.is_dead(me) is False
    assert owner.is_dead(me._replace(born="1")) is True
    assert owner.is_dead(me._replace(pid=2**22 + 1)) is True
    assert owner.is_dead(me._replace(place="another boot")) is None
    assert owner.is_dead(me._replace(place="")) is None


def test_without_proc_a_missing_pid_is_dead_and_another_one_unknown(monkeypatch):
    """As on other systems than Linux, where the time of birth is not at hand."""
    monkeypatch.setattr(owner.sys, "platform", "darwin")
    me = owner.this_process("token")
    assert (me.place, me.born) == (socket.gethostname(), "")
    assert owner.is_dead(me) is None
    assert owner.is_dead(me._replace(pid=2**22 + 1)) is True
    monkeypatch.setattr(owner.sys, "platform", "win32")
    assert owner.this_process("token").place == ""
    assert owner.is_dead(owner.this_process("token")) is None


# Threads, processes, forks.


def test_threads_share_a_journal(journal):
    """One connection, one after the other."""
    begun(journal)

    def work(branch):
        for number in range(50):
            journal.write("r", [row(number, branch)])

    threads = [threading.Thread(target=work, args=(f"b{n}",)) for n in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    journal.close("r", "completed", None, None)
    assert len(journal.open("r").rows) == 400


def test_a_fork_goes_its_own_way(journal, path):
    """Parent and child have a connection each, and only the parent has the run; nothing warns of threads."""
    begun(journal, rows=[row(0)])
    pid = os.fork()
    if not pid:
        status = 1
        try:
            with pytest.raises(JournalError, match="active in the process that forked this one"):
                journal.write("r", [row(1)])
            with pytest.raises(RunBusyError):
                journal.open("r")
            begun(journal, "child", [row(n) for n in range(200)]).close("child", "completed", None, None)
            status = 0
        finally:
            os._exit(status)
    for number in range(1, 200):
        journal.write("r", [row(number)])
    assert os.waitpid(pid, 0)[1] == 0
    assert len(journal.read("r").rows) == len(journal.read("child").rows) == 200
    assert journal._file._heart is not None


def test_fifty_runs_of_four_processes_in_one_file_lose_nothing(path):
    """All begin at once, none waits for a file of its own."""
    source = """
        import sys, threading
        from flowdeco.durable import SqliteJournal, Row
        path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        shared = SqliteJournal(path)
        def run(name):
            journal = shared if name % 2 else SqliteJournal(path)
            journal.create(f"run {name}", "flow", b"in", ())
            for number in range(0, 20, 2):
                rows = [Row("0", number + n, "action", "s", f"{name}", "completed", 1.0, 1.0, "", b"%d" % name) for n in (0, 1)]
                journal.write(f"run {name}", rows)
                if number == 10:
                    journal.drop(f"run {name}", {"0": 5})
                    journal.write(f"run {name}", [r._replace(number=n) for n in range(5, 12) for r in rows[:1]])
            journal.close(f"run {name}", "completed", None, None)
        threads = [threading.Thread(target=run, args=(first + n,)) for n in range(count)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    """
    processes = [script(source, path, first, count) for first, count in ((0, 13), (13, 13), (26, 12), (38, 12))]
    for process in processes:
        finish(process)
    found = durable.runs(path)
    assert sorted(run.id for run in found) == sorted(f"run {n}" for n in range(50))
    assert {(run.status, run.steps, run.owner) for run in found} == {("completed", 20, None)}
    journal = SqliteJournal(path)
    for run in found:
        rows = journal.read(run.id).rows
        assert places(rows) == [("0", n) for n in range(20)]
        assert {(row.action, row.payload) for row in rows} == {(run.id[4:], run.id[4:].encode())}


def test_a_killed_writer_leaves_every_acknowledged_step(path):
    """SIGKILL at random moments: what `write` returned for is there; what it did not may be, whole."""
    source = """
        import sys
        from flowdeco.durable import SqliteJournal, Row
        journal = SqliteJournal(sys.argv[1])
        try:
            number = len(journal.open("r").rows)
        except LookupError:
            journal.create("r", "flow", b"", ())
            number = 0
        while True:
            journal.write("r", [Row("0", number + n, "action", "s", "a", "completed", 1.0, 1.0, "", bytes(99)) for n in (0, 1)])
            number += 2
            print(number, flush=True)
    """
    acknowledged = 0
    for pause in random.Random(5).sample(range(40), 5):
        process = script(source, path)
        said(process)
        time.sleep(pause / 100)
        process.kill()
        acknowledged = int(process.stdout.read().split()[-1])
        finish(process, -signal.SIGKILL)
        count = len(SqliteJournal(path).read("r").rows)
        assert acknowledged <= count <= acknowledged + 2
        assert count % 2 == 0


def test_a_writer_waits_for_another_one(journal, path, monkeypatch):
    """And says who to look for when it has waited long enough."""
    begun(journal)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        journal._file.connection.execute("PRAGMA busy_timeout = 50")
        with pytest.raises(JournalError, match="locked by another process.* 0 steps of run 'r' are saved"):
            journal.write("r", [row()])
        other.execute("ROLLBACK")
    journal.write("r", [row()])
    assert journal.read("r").rows == [row()]


def test_the_selectors_are_readable(journal):
    """As JSON, for people and programs."""
    begun(journal)
    assert json.loads(journal._file.connection.execute("SELECT skip FROM runs").fetchone()[0]) == ["tag:slow"]
