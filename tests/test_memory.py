"""What the rows of a journal tell, whoever has written them."""

from flowdeco.durable import PickleCodec
from flowdeco.journal import Row
from flowdeco.memory import Chronicle, decoded
from flowdeco.past import GroupPast, StagePast

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
