"""What the rows of a journal tell, whoever has written them."""

import gc
import json
import sys
import threading
from typing import Any

import pytest

from flowdeco import Context, Stage, action
from flowdeco.durable import JsonCodec, MemoryJournal, PickleCodec
from flowdeco.engine.journal import Row
from flowdeco.engine.memory import Chronicle, Memory, collection_paused, decoded
from flowdeco.engine.past import GroupPast, StagePast

CODEC = PickleCodec()


def row(number, kind, stage, action=None, branch="0", **did):
    """A step that took no time."""
    return Row(branch, number, kind, stage, action, "completed", 0.0, 0.0, "", CODEC.encode(did, ""))


def past_of(*rows, pins=()):
    """The past of the run that these rows tell."""
    return Chronicle(decoded(list(rows), CODEC, dict(pins))).past()


def test_a_stage_is_over_when_it_has_a_row():
    """Its actions come before."""
    past = past_of(row(0, "action", "s", "a"), row(1, "stage", "s"), row(2, "action", "t", "b"))
    assert isinstance(past.next, StagePast)
    assert (past.next.name, past.next.position, len(list(past.next.actions))) == ("s", 0, 1)
    past.take()
    assert isinstance(past.next, StagePast)
    assert (past.next.name, past.next.position, past.next.end) == ("t", 2, None)
    past.take()
    assert past.next is None


def test_rows_may_come_in_any_order():
    """Within a branch it is their number that counts."""
    past = past_of(row(1, "stage", "s"), row(0, "action", "s", "a"))
    assert isinstance(past.next, StagePast)
    assert (past.next.name, [told[0].action for told in past.next.actions]) == ("s", ["a"])


def test_an_unfinished_stage_ends_where_a_group_begins():
    """Neither is lost."""
    past = past_of(row(0, "action", "s", "a"), row(1, "group", "g", branches=2))
    assert isinstance(past.next, StagePast)
    assert (past.next.name, past.next.end) == ("s", None)
    past.take()
    assert past.next == GroupPast("g", 1, 2)


def test_what_was_written_to_a_key_that_is_given_since_no_longer_counts():
    """Written, appended or deleted."""
    rows = [
        row(0, "action", "s", "a", puts={"x": 1, "y": 2}),
        row(1, "action", "s", "b", appends={"x": [1]}),
        row(2, "action", "s", "c", deletes=["x", "y"]),
    ]
    _, dids = decoded(rows, CODEC, {"x": 3})
    assert dids == [{"puts": {"y": 2}}, {"appends": {}}, {"deletes": ["y"]}]


def test_a_pinned_key_in_the_short_form_of_a_payload():
    """Which is that of most actions: the key, and what was returned."""
    rows = [
        row(number, "action", "s", "a")._replace(payload=CODEC.encode((key, 1), "")) for number, key in enumerate("xyx")
    ]
    _, dids = decoded([*rows, row(3, "action", "s", "b")], CODEC, {"x": 2})
    assert dids == [{"result": ("value", 1)}, ("y", 1), ("x", 1), {}]


@pytest.mark.parametrize("codec", [PickleCodec(), JsonCodec()])
def test_the_short_form_says_the_same_as_the_long_one(codec):
    """Only a pickle has it: JSON is read by people, too."""
    memory = Memory(MemoryJournal(codec), "r", lambda function: "")
    short = row(0, "action", "s", "a")._replace(payload=memory.plain("x", 1))
    long = short._replace(payload=codec.encode({"puts": {"x": 1}, "result": "x"}, ""))
    assert (short == long) is (codec.name == "json")
    pasts = [Chronicle(decoded([each], codec, {})).past() for each in (short, long)]
    one, other = (past.read(next(iter(past.next.actions))) for past in pasts)
    assert one == other
    assert (one.delta.puts, one.result) == ({"x": 1}, 1)


def test_collection_goes_on_after_a_pause():
    """Whatever happens in it; and where it is off, it stays off."""
    with pytest.raises(KeyError), collection_paused():
        assert not gc.isenabled()
        with collection_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_pauses_of_several_threads():
    """The one that ends last leaves it on, too."""
    begun, over = threading.Event(), threading.Event()

    def other():
        with collection_paused():
            begun.set()
            over.wait(30)

    thread = threading.Thread(target=other)
    with collection_paused():
        thread.start()
        assert begun.wait(30)
    over.set()
    thread.join(30)
    assert gc.isenabled()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: [pause() for _ in range(2000)]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(interval)
    assert gc.isenabled()


def pause():
    with collection_paused():
        pass


def test_what_is_made_in_a_pause_is_as_young_as_ever():
    """Or a program that resumes for ever would grow: a run that has failed is a cycle, and only the old are not seen to."""
    with collection_paused():
        made = [[]]
    assert not any(each is made for each in gc.get_objects(generation=2))


def test_a_codec_need_not_know_tuples():
    """Whatever it calls itself."""

    class Codec(JsonCodec):
        name = "pickle"

        def encode(self, value, what):
            return json.dumps(value).encode()

        def decode(self, payload):
            return json.loads(payload)

    calls = []

    @action(returns="x")
    def first():
        calls.append("first")
        return 1

    @action
    def wait(ctx: Context) -> Any:
        return ctx.wait_for("go")

    flow = Stage("s", [first]) >> wait
    journal = MemoryJournal(Codec())
    flow.run(journal=journal, run_id="r")
    assert flow.resume("r", {"go": 1}, journal=journal)["x"] == 1
    assert calls == ["first"]
