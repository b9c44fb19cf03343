"""Large values: stored once per content, apart from the rows that refer to them, and gone when nothing does."""

import contextlib
import gc
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from flowdeco import Context, Key, Stage, action, pipeline
from flowdeco import durable as journals
from flowdeco.durable import JsonCodec, MemoryJournal, PickleCodec, SqliteJournal, blobs, digests
from flowdeco.engine.journal import Payload
from flowdeco.errors import JournalError
from flowdeco.middleware import atomic

LARGE = blobs.LARGE


@dataclass
class Model:
    weights: object
    name: str = "m"


class Buffered:
    """An object with a buffer out of band, as arrays have one: without numpy."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return Buffered, (pickle.PickleBuffer(self.data),)

    def __eq__(self, other):
        return type(other) is Buffered and bytes(self.data) == bytes(other.data)


def stored(path):
    """The sizes of the blobs in a file, and how many steps refer to each."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        query = "SELECT size, (SELECT count(*) FROM refs WHERE blob = blobs.id) FROM blobs ORDER BY id"
        return connection.execute(query).fetchall()


def rows(path):
    """The bytes in the rows of a file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT (SELECT sum(length(payload)) FROM log), (SELECT sum(length(payload)) FROM inputs)"
        ).fetchone()


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "runs.db")


@action
def keep(big):
    return {"again": big}


def test_a_large_value_is_written_once_however_many_steps_and_runs_have_it(path):
    """Rows refer to it; and it is read back as it was, by each of them."""
    values = {
        "text": "é" * LARGE,
        "bytes": b"x" * LARGE,
        "buffer": Buffered(bytearray(LARGE)),
        "list": list(range(40_000)),
    }
    for n in range(3):
        keep.run({"big": values, "n": n}, journal=path, run_id=f"r{n}")
    assert len(stored(path)) == 5  # the list, and the pickle around it
    assert max(rows(path)) < LARGE
    for n in range(3):
        store = journals.read(path, f"r{n}").store
        assert (store["big"], store["keep"], store["n"]) == (values, {"again": values}, n)
        assert type(store["big"]["buffer"].data) is bytearray


@pytest.mark.parametrize(
    "make", [lambda part: [part], lambda part: {"a": [(part, {1})]}, Model, lambda part: [part, part]]
)
@pytest.mark.parametrize("part", [b"x" * LARGE, "y" * LARGE, bytearray(LARGE), Buffered(b"z" * LARGE)], ids="bsaB")
def test_large_parts_are_found_inside_of_containers(path, make, part):
    """And they keep their type, and whether they can be changed."""
    action(lambda: make(part), name="make", returns="made").run(journal=path, run_id="r")
    assert [size for size, _ in stored(path)] == [LARGE]
    assert rows(path)[0] < 1000
    assert journals.read(path, "r").store["made"] == make(part)


def test_small_values_stay_in_their_rows(path):
    """Just below the limit, too."""
    keep.run({"big": [b"x" * (LARGE - 2000), Buffered(b"y" * 1000)]}, journal=path)
    assert stored(path) == []


def test_a_value_that_was_read_back_can_be_changed_and_changes_no_other(path):
    """Each has memory of its own."""
    flow = action(lambda: None, name="a") >> action(lambda ctx: ctx.wait_for("go"), name="b")
    big = Buffered(bytearray(LARGE))
    flow.run({"one": big, "two": big}, journal=path, run_id="r")
    run = flow.resume("r", {"go": True}, journal=path)
    run["one"].data[0] = 7
    assert journals.read(path, "r").store["one"] == big


def test_changes_in_place_are_new_content(path):
    """Of which each state is there, as long as a row refers to it."""

    @action
    def change(big):
        big.data[5] += 1

    flow = pipeline(*[change.with_options(name=f"c{n}") for n in range(3)])
    run = flow.run({"big": Buffered(bytearray(LARGE))}, journal=path, run_id="r")
    assert run["big"].data[5] == 3
    assert len(stored(path)) == 4
    assert journals.read(path, "r").store["big"].data[5] == 3


def test_json_keeps_large_parts_as_json(path):
    """A text, bytes or a long list; the row says where each belongs."""
    values = {
        "text": "é\udc80" * LARGE,
        "rows": [{"n": n} for n in range(20_000)],
        "$odd": {"$large": 0},
        "b": b"x" * LARGE,
    }
    journal = SqliteJournal(path, codec="json")
    for n in range(2):
        keep.run({"big": values, "n": n}, journal=journal, run_id=f"r{n}")
    assert len(stored(path)) == 3
    assert max(rows(path)) < 2000
    assert journals.read(journal, "r1").store["keep"] == {"again": values}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert (
            connection.execute("SELECT data FROM chunks ORDER BY id LIMIT 1 OFFSET 1")
            .fetchone()[0]
            .startswith(b'[{"n":0}')
        )


PARTS = st.recursive(
    st.one_of(
        st.integers(),
        st.sampled_from([b"x" * LARGE, "é" * LARGE, b"y" * (LARGE + 1), "short", b"short", list(range(30_000))]),
        st.binary(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=2), inner, max_size=4), st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@settings(max_examples=examples(30), deadline=None)
@given(
    PARTS,
    st.sampled_from(["inputs", "x", "pair", "puts", "appends", "entering"]),
    st.sampled_from([PickleCodec, JsonCodec]),
)
def test_any_value_comes_back_as_it_was(value, shape, codec):
    """Wherever it is in what a step wrote; no large string is left in the row."""
    whole = {
        "pair": ("key", value),
        "puts": {"puts": {"a": value, "b": 1}, "result": ("put", "a")},
        "appends": {"appends": {"a": [value, 1]}},
        "entering": {"entering": [{"puts": {"a": value}}]},
    }.get(shape, {"a": value})
    payload = codec().encode_apart(whole, shape)
    assert codec().decode(payload) == whole == codec().decode(codec().encode(whole, shape))
    if codec is PickleCodec or type(payload) is Payload:
        assert len(payload) < LARGE or len(pickle.dumps(value)) < 40 * LARGE


def test_purge_drops_values_that_nothing_refers_to(path):
    """With the last run that had them; the space is used again."""
    for n in range(3):
        keep.run({"big": b"x" * LARGE * 20, "own": bytes([n]) * LARGE * 20}, journal=path, run_id=f"r{n}")
    assert [count for _, count in stored(path)] == [6, 1, 1, 1]
    journals.delete(path, "r1")
    assert [count for _, count in stored(path)] == [4, 1, 1]
    size = Path(path).stat().st_size
    assert journals.purge(path, 0) == 2
    assert stored(path) == []
    keep.run({"big": b"y" * LARGE * 40}, journal=path)
    assert Path(path).stat().st_size <= size


def test_values_of_dropped_attempts_go_with_the_next_purge(path):
    """A retry takes the rows back; runs that are at work keep what they refer to."""
    from flowdeco.middleware import retry

    attempts = []

    @action
    def load():
        attempts.append(1)
        return bytes([len(attempts)]) * LARGE

    @action
    def check(load):
        if len(attempts) < 3:
            raise ValueError
        journals.purge(path, 0)
        seen.append(stored(path))

    seen = []
    pipeline(Stage("s", [load, check], use=[retry(on=ValueError, wait=0)])).run(journal=path)
    assert seen == [[(LARGE, 1)]]


def test_a_run_that_forks_another_shares_its_values(path):
    """Nothing is read or written anew; and it keeps them when the first one is deleted."""

    @action
    def last():
        return 1

    flow = keep >> last
    flow.run({"big": b"x" * LARGE}, journal=path, run_id="r")
    fork = flow.resume("r", journal=path, from_stage="last")
    assert stored(path) == [(LARGE, 4)]
    journals.delete(path, "r")
    assert journals.read(path, fork.id).store["keep"] == {"again": b"x" * LARGE}


def test_a_damaged_or_missing_value_is_reported(path):
    """It has a checksum, like every row."""
    keep.run({"big": b"x" * LARGE}, journal=path, run_id="r")
    for change in ("UPDATE chunks SET data = zeroblob(length(data))", "DELETE FROM chunks", "DELETE FROM blobs"):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute(change)
            connection.commit()
        with pytest.raises(
            JournalError, match="damaged: a large value is missing, or does not agree with its checksum"
        ):
            journals.read(path, "r")


def test_values_of_several_chunks_and_of_none(path, monkeypatch):
    """As one of more than 2 GB has hundreds."""
    monkeypatch.setattr(blobs, "CHUNK", 1000)
    for size in (LARGE, LARGE + 1, LARGE + 999):
        value = random.Random(size).randbytes(size)
        keep.run({"big": value}, journal=path, run_id=str(size))
        assert journals.read(path, str(size)).store["big"] == value


@pytest.mark.skipif(
    not os.environ.get("FLOWDECO_HUGE"), reason="takes 7 GB of memory and a minute: set FLOWDECO_HUGE=1"
)
def test_a_value_of_more_than_2_gb(path):
    """SQLite takes no more than 1 GB at once, and Python's sqlite3 no more than 2."""
    signal.setitimer(signal.ITIMER_REAL, 600)
    value = bytearray(2_200_000_000)
    value[-1] = 7
    Stage("s").run({"big": value}, journal=path, run_id="r")
    assert [size for size, _ in stored(path)] == [len(value)]
    read = journals.read(path, "r").store["big"]
    assert (len(read), read[-1]) == (len(value), 7)


def test_a_value_that_a_thread_changes_meanwhile_has_the_name_of_what_was_written(path, monkeypatch):
    """Or else another run would get this content for its own."""
    value, known = bytearray(LARGE), bytes(LARGE - 1) + b"!"
    hasher = digests.hasher()

    def begin(*data):
        made = hasher[1](*data)
        if data:
            value[-1:] = b"!"  # after it was hashed, and before it is copied
        return made

    keep.run({"big": known}, journal=path, run_id="known")
    monkeypatch.setattr(blobs, "hasher", lambda: (hasher[0], begin))
    for n in range(2):
        value[-1:] = b"?" if n else b"\0"
        action(lambda: None, name="a").run({"big": value}, journal=path, run_id=f"r{n}")
    monkeypatch.undo()
    assert len(stored(path)) == 1
    assert journals.read(path, "r0").store["big"] == known
    value[-1:] = b"\0"
    action(lambda: None, name="a").run({"big": value}, journal=path, run_id="as it was")
    assert journals.read(path, "as it was").store["big"] == value


def test_rows_that_are_held_back_keep_the_values_of_their_time(path):
    """An atomic stage writes its rows at its end; what a later action of it changed is in the row of that."""

    @action(returns="big")
    def make():
        return Buffered(bytearray(LARGE))

    @action
    def change(big):
        big.data[0] += 1

    def leaving(call):
        yield
        call.store["left"] = Buffered(bytearray(LARGE * 2))

    def entering(call):
        call.store["left"].data[0] = 9
        yield

    flow = Stage("s", [make, change], use=[atomic]) >> Stage("t", [], use=[leaving]) >> Stage("u", [], use=[entering])
    run = flow.run(journal=path, run_id="r")
    first, *_ = [row for row in journals.history(path, "r") if row.action == "make"]
    codec = PickleCodec()
    assert codec.decode(first.payload)["puts"]["big"].data[0] == 0
    assert journals.read(path, "r").store["big"] == run["big"] == Buffered(b"\1" + bytes(LARGE - 1))
    assert journals.read(path, "r").store["left"].data[0] == 9
    left = next(row for row in journals.history(path, "r") if row.stage == "t")
    assert codec.decode(left.payload)["puts"]["left"].data[0] == 0


def test_processes_with_and_without_xxhash_share_a_journal(path, monkeypatch):
    """A name tells by which hash it was made: content that both have is there twice, and each reads that of the other."""

    class Other:
        def __init__(self, data=b""):
            self.made = digests.blake2b(data, digest_size=8)
            self.update, self.digest, self.hexdigest = self.made.update, self.made.digest, self.made.hexdigest

    for n, installed in enumerate([None, SimpleNamespace(xxh3_128=Other)]):
        monkeypatch.setitem(sys.modules, "xxhash", installed)
        digests.hasher.cache_clear()
        keep.run({"big": b"x" * LARGE}, journal=path, run_id=f"r{n}")
        assert [journals.read(path, f"r{at}").store["big"] for at in range(n + 1)] == [b"x" * LARGE] * (n + 1)
    monkeypatch.undo()
    digests.hasher.cache_clear()
    assert len(stored(path)) == 2


def test_a_run_keeps_no_second_copy_of_its_inputs(path):
    """Nor makes one for its journal, of buffers and single strings."""
    size = 8_000_000
    big, text = Buffered(bytearray(size)), b"x" * size
    peaks = []

    @action
    def look(big):
        gc.collect()
        peaks.append(tracemalloc.get_traced_memory()[0])

    look.run({"big": 1}, journal=f"{path}.before")  # imports what durable runs need
    tracemalloc.start()
    try:
        for options in ({}, {"journal": path}):
            pipeline(*[look.with_options(name=f"look{n}") for n in range(2)]).run({"big": big, "text": text}, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(peaks) < size / 10
    assert peak < size * 0.6


def test_many_runs_of_one_input_need_its_space_once(path):
    """`tests/benchmarks/values.py` has a thousand of them."""
    big = Buffered(random.Random(1).randbytes(1_000_000))
    for n in range(50):
        Stage("s").run({"big": big, "n": n}, journal=path)
    assert Path(path).stat().st_size < 1_300_000


def test_a_value_that_actions_read_is_hashed_once_for_each(path, monkeypatch):
    """The journal knows its digest from the beginning; those of a frozen key are never hashed."""
    hashed = []
    real = digests.digest
    monkeypatch.setattr(journals, "digest", lambda value: hashed.append(value) or real(value))

    def flow(annotation):
        @action
        def make() -> object:
            return Buffered(bytearray(LARGE))

        def read(make):
            return None

        read.__annotations__["make"] = annotation
        return pipeline(make, *[action(read, name=f"read{n}") for n in range(10)])

    flow(object).run(journal=path)
    assert len(hashed) == 11
    hashed.clear()
    flow(Annotated[object, Key("make", frozen=True)]).run(journal=path)
    assert len(hashed) == 1  # when it was written, under no key that says so


BIG = Key("big", frozen=True)


@pytest.mark.parametrize("how", ["returns", "reads", "context", "middleware", "tuple"])
def test_a_value_under_a_frozen_key_is_not_checked_for_changes(path, how):
    """Once an action has said so: a change in place is lost by a resume, as the key promises that there is none."""

    @action(returns=(BIG, "other") if how == "tuple" else BIG if how == "returns" else "big")
    def make():
        value = {"n": 0, "rest": b"x" * LARGE}
        return (value, 1) if how == "tuple" else value

    def reads(big: Annotated[dict, BIG]):
        big["n"] += 1

    def context(ctx: Context):
        ctx.store[BIG]["n"] += 1

    def plain(big):
        big["n"] += 1

    def layer(call):
        call.store[BIG]["n"] += 1
        yield

    change = action({"reads": reads, "context": context}.get(how, plain), name="change")
    if how == "middleware":
        change = action(lambda: None, name="change", use=[layer])
    run = (make >> change).run(journal=path, run_id="r")
    assert run["big"]["n"] == 1
    assert journals.read(path, "r").store["big"]["n"] == 0


def test_a_key_says_whether_it_is_frozen():
    """In its repr and its equality, and by every codec."""
    assert repr(Key("a", int, frozen=True)) == "Key('a', int, frozen=True)"
    assert repr(BIG) == "Key('big', frozen=True)"
    assert Key("a") != Key("a", frozen=True) == Key("a", frozen=True)
    for codec in (PickleCodec(), JsonCodec()):
        for key in (BIG, Key("a", int, frozen=True), Key("a", int), Key("a")):
            assert codec.decode(codec.encode(key, "")) == key
            assert codec.decode(codec.encode(key, "")).frozen is key.frozen


def test_a_journal_that_does_not_take_parts_gets_whole_payloads():
    """One of your own, or that in memory."""
    journal = MemoryJournal()
    keep.run({"big": b"x" * LARGE}, journal=journal, run_id="r")
    assert all(type(row.payload) is bytes for row in journal.history("r"))
    assert journals.read(journal, "r").store["keep"] == {"again": b"x" * LARGE}


# Killed at any time.

WRITER = """
import random, sys
from flowdeco import action, pipeline
from flowdeco.durable import SqliteJournal

@action
def make(n):
    return {"own": random.Random(n).randbytes(300_000), "common": b"c" * 300_000}

flow = pipeline(*[make.with_options(name=f"m{i}", returns=f"m{i}") for i in range(5)])
if __name__ == "__main__":
    journal = SqliteJournal(sys.argv[1])
    n = int(sys.argv[2])
    print("ready", flush=True)
    while True:
        flow.run({"n": n}, journal=journal)
        n += 1
"""


def test_a_process_that_is_killed_between_value_and_row_leaves_neither(path, tmp_path):
    """They are one transaction: every reference has its value, and every value a reference."""
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    keep.run({"big": 1}, journal=path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    chance = random.Random(4)
    for kill in range(4):
        writer = subprocess.Popen(
            [sys.executable, str(script), path, str(kill * 1000)], env=environment, stdout=subprocess.PIPE
        )
        with writer:
            writer.stdout.readline()
            time.sleep(chance.uniform(0.02, 0.4))
            writer.send_signal(signal.SIGKILL)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            lost = "SELECT count(*) FROM refs WHERE blob NOT IN (SELECT id FROM blobs)"
            idle = "SELECT count(*) FROM blobs WHERE id NOT IN (SELECT blob FROM refs)"
            astray = "SELECT count(*) FROM refs WHERE step > 0 AND step NOT IN (SELECT id FROM log)"
            assert [connection.execute(query).fetchone()[0] for query in (lost, idle, astray)] == [0, 0, 0]
            for blob, size in connection.execute("SELECT id, size FROM blobs").fetchall():
                assert len(blobs.load_blob(connection, blob)) == size
    for info in journals.runs(path):
        journals.read(path, info.id)


def test_purge_and_runs_at_once_lose_nothing(path):
    """A run that is about to refer to a value has it, or writes it again."""
    stop, failures = threading.Event(), []

    def purging():
        while not stop.is_set():
            try:
                journals.purge(path, 0)
            except JournalError as error:
                failures.append(error)

    keep.run({"big": b"x" * LARGE}, journal=path)
    purger = threading.Thread(target=purging)
    purger.start()
    try:
        for n in range(30):
            run_id = f"r{n}"
            flow = keep >> action(lambda ctx: ctx.wait_for("go"), name="wait")
            flow.run({"big": b"x" * LARGE}, journal=path, run_id=run_id)
            with contextlib.suppress(Exception):
                assert journals.read(path, run_id).store["keep"] == {"again": b"x" * LARGE}
    finally:
        stop.set()
        purger.join()
    assert failures == []
    journals.purge(path, 0)
    assert stored(path) == []
